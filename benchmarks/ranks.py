"""One fit by one process and by two: the gradient of a step, the losses, and the time of a step.

    python benchmarks/ranks.py
    python benchmarks/ranks.py --engine traced --epochs 5 --busy

The digits of scikit-learn, 1,437 training and 180 validation rows. Gradients are compared at the same weights and the same
draws, in float64: the noise is an argument of the pair. Losses are means over fits with several seeds; noise alone would let
them differ by less than two standard errors in 19 of 20 cases. The time of a step is that of an epoch by the clock, with
what is measured after it, divided by its steps; the median over epochs, without the first. The table is written to
benchmarks/results/ranks-cpu.md, and all numbers to ranks-cpu.json. `--busy` says there that other programs were running.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import socket
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam

RESULTS = Path(__file__).parent / "results"
BATCH = 128
# (what it is called, widths of the networks, rows a step)
SIZES = {"64-128-10, 128 rows": ((128,), 128), "64-512-512-10, 512 rows": ((512, 512), 512)}


def digits() -> Tensor:
    x = torch.tensor(load_digits().data, dtype=torch.float32)
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]


class Given(dist.Normal):
    """A Normal whose draws are made of given noise."""

    def __init__(self, loc: Tensor, scale: Tensor, noise: Tensor) -> None:
        super().__init__(loc, scale)
        self.noise = noise

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.loc + self.scale * self.noise

    def expand(self, batch_shape: Any, _instance: Any = None) -> Given:
        return Given(*(t.expand(batch_shape) for t in (self.loc, self.scale, self.noise)))


class WithNoise(nn.Module):
    """A VAE whose noise is part of its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Sequential(nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 64))
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 20))

    def model(self, x: Tensor, noise: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 10), 1.0).to_event(1))
            pyro.sample("x", dist.Binomial(16, logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor, noise: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc, scale = self.encoder(x / 16).chunk(2, -1)
            pyro.sample("z", Given(loc, scale.exp(), noise).to_event(1))


def gradient(engine: str) -> list[float]:
    """What one step of gradient descent with rate 1 subtracts from the weights: the gradient."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    x = digits().double()
    pair = WithNoise()
    before = [p.detach().clone() for p in pair.parameters()]
    how: dict[str, Any] = {"optimizer": lambda leaves: torch.optim.SGD(leaves, lr=1.0), "engine": engine}
    rows = {"x": x[:BATCH], "noise": torch.randn(BATCH, 10)}
    pv.fit(pair, rows, epochs=1, batch_size=BATCH, seed=0, device="cpu", progress=False, **how)
    return torch.cat([(a - b.detach()).flatten() for a, b in zip(before, pair.parameters())]).tolist()


def fitted(hidden: tuple[int, ...], batch: int, epochs: int, seed: int, engine: str) -> list[dict[str, float]]:
    torch.manual_seed(seed)
    x = digits()
    likelihood = pv.mlp(10, fam.BetaBinomial(64, total_count=16), hidden)
    vae = pv.VAE(pv.priors.StandardNormal(10), likelihood, pv.mlp(64, fam.Normal(10), hidden))
    how: dict[str, Any] = {"batch_size": batch, "seed": seed, "engine": engine, "device": "cpu", "progress": False}
    return pv.fit(vae, x[:1437], validation=x[1437:1617], epochs=epochs, **how).history


def one_process(arguments: argparse.Namespace) -> None:
    """What each process does: all fits one after the other. The first writes what came of them."""
    found: dict[str, Any] = {"gradient": gradient(arguments.engine)}
    torch.set_default_dtype(torch.float32)
    hidden, batch = SIZES["64-128-10, 128 rows"]
    fits = [fitted(hidden, batch, arguments.epochs, seed, arguments.engine) for seed in range(arguments.seeds)]
    found["validation"] = [[row["validation_elbo"] for row in fit] for fit in fits]
    found["training"] = [[row["elbo"] for row in fit] for fit in fits]
    found["seconds"] = {}
    for name, (hidden, batch) in SIZES.items():
        history = fitted(hidden, batch, arguments.timed, 0, arguments.engine)
        pairs = list(itertools.pairwise(history[1:]))
        taken = [(b["seconds"] - a["seconds"]) / (b["steps"] - a["steps"]) for a, b in pairs]
        found["seconds"][name] = statistics.median(taken)
    if os.environ.get("RANK", "0") == "0":
        arguments.into.write_text(json.dumps(found))


def with_processes(number: int, into: Path, more: list[str]) -> dict[str, Any]:
    """The same by so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, "--into", str(into), *more]
    shared = {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    running = [subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(rank)}) for rank in range(number)]
    if any(process.wait() for process in running):
        raise RuntimeError("a process failed")
    return json.loads(into.read_text())  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30, help="of the fits whose losses are compared")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--timed", type=int, default=8, help="epochs of the fits whose steps are timed")
    parser.add_argument("--engine", default="traced")
    parser.add_argument("--busy", action="store_true", help="other programs run meanwhile, which the table then says")
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.into is not None:
        one_process(arguments)
        return
    more = [f"--{name}={getattr(arguments, name)}" for name in ("epochs", "seeds", "timed", "engine")]
    RESULTS.mkdir(exist_ok=True)
    into = RESULTS / "ranks.tmp"
    one, two = (with_processes(number, into, more) for number in (1, 2))
    into.unlink()
    apart = max(abs(a - b) for a, b in zip(one["gradient"], two["gradient"]))
    largest = max(map(abs, one["gradient"]))
    lines = [
        f"| | 1 process | 2 processes |\n|---|---|---|\n| largest difference of a gradient of {largest:.3g} | | {apart:.1e} |"
    ]
    for name in ("training", "validation"):
        last = [[curve[-1] for curve in found[name]] for found in (one, two)]
        errors = [statistics.stdev(values) / math.sqrt(len(values)) for values in last]
        cells = [f"{statistics.mean(values):.2f} ± {error:.2f}" for values, error in zip(last, errors)]
        lines.append(f"| {name} ELBO after {arguments.epochs} epochs, nats per row | {cells[0]} | {cells[1]} |")
    for name in SIZES:
        lines.append(f"| ms a step, {name} | {1e3 * one['seconds'][name]:.2f} | {1e3 * two['seconds'][name]:.2f} |")
    busy = " The machine was busy with other programs, so times say little." if arguments.busy else ""
    text = (
        "\n".join(lines)
        + f"\n\nMeans over {arguments.seeds} seeds, ± their standard error. Engine {arguments.engine}, "
        + f"torch {torch.__version__}, {os.cpu_count()} CPU cores, one thread a process.{busy}\n"
    )
    (RESULTS / "ranks-cpu.md").write_text(text)
    for found in (one, two):
        del found["gradient"]  # thousands of numbers
    numbers = {"arguments": {k: v for k, v in vars(arguments).items() if k != "into"}, "1": one, "2": two}
    numbers["largest difference of a gradient"] = apart
    (RESULTS / "ranks-cpu.json").write_text(json.dumps(numbers) + "\n")
    print(text)


if __name__ == "__main__":
    main()

"""Figures 2 and 3 of Kingma and Welling 2014 (arXiv:1312.6114): bounds and log p(x) against the training samples seen.

    python benchmarks/papers/aevb_figures.py --data-root DATA --only marginal
    python benchmarks/papers/aevb_figures.py --data-root DATA --only frey
    python benchmarks/papers/aevb_figures.py --data-root DATA --only mnist --epochs 200

Networks of one hidden layer of tanh, minibatches of 100, Adagrad with a learning rate of 0.02 (--rate), one of those of the
paper; weights start as torch has them. AEVB is `pv.Trace_ELBO()`, with one draw; wake-sleep is `pv.WakeSleep()`, with the same
networks. Pictures show each method at the rate by which its bound of the training rows ends highest.

    marginal  Figure 3: MNIST, --rows training images (1,000), binarised once, 784-100-3: log p(x) of 100 training and 100
              test images (refined proposal, 300 draws) after some epochs; AEVB, wake-sleep and Monte Carlo EM
              (`pv.monte_carlo_em`: 10 leapfrog steps, 90 % acceptance). Each update of the weights has a trajectory of its own
              here, where the paper takes five updates at a draw
    frey      Figure 2, right: Frey faces, 1,765 to train on and 200 at random to test on, a Normal whose mean is a sigmoid,
              560-200-D, D = 2, 5, 10, 20: the bound of training and test rows
    mnist     Figure 2, left: MNIST, 50,000 training images (--figure-rows), 784-500-D, D = 3, 5, 10, 20, 200: the same

The faces are DATA/frey/frey_faces.npz, 1,965 rows of 28 x 20 grey levels from 0 to 255 (or 0 to 1), in its first array. Writes
benchmarks/results/aevb-figures-cpu.json, entry by entry, with pictures beside it; entries that are there are kept unless
--again.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable
from typing import Any

import harness
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam

LOSSES: dict[str, Callable[[], Any]] = {"AEVB": pv.Trace_ELBO, "wake-sleep": pv.WakeSleep}
MCEM = "Monte Carlo EM"
LATENT = {"frey": (2, 5, 10, 20), "mnist": (3, 5, 10, 20, 200)}
NAMES = {"frey": "Frey faces", "mnist": "MNIST"}
POINTS = (2, 10, 50, 100, 200, 500, 1000, 2000)  # epochs after which log p(x) is estimated; and after the last


class SigmoidMean(nn.Module):
    """A network of two parameters for each element, the first of which is between 0 and 1."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, z: Tensor) -> Tensor:
        mean, raw = self.net(z).unbind(-2)
        return torch.stack([mean.sigmoid(), raw], -2)


def vae(columns: int, hidden: int, latent: int, real: bool) -> pv.VAE:
    family = fam.Normal(columns) if real else fam.Bernoulli(columns)
    net = pv.nets.MLP(latent, family.param_shape, hidden=(hidden,), activation=nn.Tanh)
    return pv.VAE(
        pv.priors.StandardNormal(latent),
        pv.Conditional(SigmoidMean(net) if real else net, family),
        pv.mlp(columns, fam.Normal(latent), hidden=(hidden,), activation=nn.Tanh),
    )


def adagrad(leaves: list[Tensor], rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(leaves, lr=rate)


def fit(build: Callable[[], Any], data: Any, options: Any, seed: int, **more: Any) -> pv.Fit:
    optimizer = functools.partial(adagrad, rate=options.rate)
    return harness.fit(build, data, options, seed, optimizer=optimizer, batch_size=100, progress=False, **more)


# --- Figure 3 ----------------------------------------------------------------------------------------------------------


def marginal(train: Tensor, test: Tensor, options: Any, method: str, seed: int) -> dict[str, Any]:
    curve: list[dict[str, float]] = []
    few = {"train": train[: options.test_rows], "test": test[: options.test_rows]}

    def look(fitted: pv.Fit) -> None:
        epoch = len(fitted.history)
        if epoch in POINTS or epoch == options.epochs:
            found = {k: pv.log_likelihood(fitted, v, num_samples=options.num_samples, seed=1) for k, v in few.items()}
            row = {name: round(values.mean().item(), 2) for name, values in found.items()}
            curve.append({"samples": 100 * fitted.history[-1]["steps"], **row})
            print(method, curve[-1], flush=True)

    def build() -> Any:
        pair = vae(train.shape[1], 100, 3, real=False)
        return pv.monte_carlo_em(pair, train) if method == MCEM else pair

    data: Any = train
    more: dict[str, Any] = {} if method == MCEM else {"loss": LOSSES[method]()}
    if method == MCEM:
        data = {"x": train, "index": torch.arange(len(train))}
    began = time.process_time()
    fitted = fit(build, data, options, seed, epochs=options.epochs, callbacks=[look], **more)
    last = {name: fitted.history[-1][name] for name in ("acceptance", "step_size") if name in fitted.history[-1]}
    seconds = round(time.process_time() - began, 1)
    return {"method": method, "seed": seed, "rows": len(train), "curve": curve, "cpu_seconds": seconds, **last}


def show_marginal(entries: list[dict[str, Any]], options: Any) -> None:
    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    for number, entry in enumerate(entries):
        curve = entry["curve"]
        for part, style in (("train", "-"), ("test", "--")):
            label = f"{entry['method']}, {part}"
            axes.plot([p["samples"] for p in curve], [p[part] for p in curve], style, color=f"C{number}", label=label)
        print(f"{entry['method']:16} {entry['cpu_seconds']:>8} CPU seconds", curve[-1])
    axes.set(xscale="log", xlabel="training samples seen", ylabel="log p(x), nats per image")
    axes.legend(fontsize=7)
    figure.savefig(options.out / "aevb-marginal.png", dpi=150)


# --- Figure 2 ----------------------------------------------------------------------------------------------------------


def faces(options: Any) -> tuple[Tensor, Tensor]:
    """Training and test faces, between 0 and 1; noise with --smoke."""
    if options.smoke:
        x = torch.rand(300, 560, generator=torch.Generator().manual_seed(0))
    else:
        with np.load(options.data_root / "frey" / "frey_faces.npz") as file:
            x = torch.as_tensor(file[file.files[0]]).float().flatten(1)
        x = x / 255 if x.max() > 1 else x
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order[200:]], x[order[:200]]


def bound(parts: tuple[Tensor, Tensor], options: Any, name: str, method: str, latent: int, seed: int) -> dict[str, Any]:
    train, test = parts
    real = name == "frey"
    fitted = fit(
        lambda: vae(train.shape[1], 200 if real else 500, latent, real),
        train,
        options,
        seed,
        epochs=options.epochs,
        loss=LOSSES[method](),
        validation=test,
    )
    curve = [
        {"samples": 100 * row["steps"], "train": round(row["elbo"], 2), "test": round(row["validation_elbo"], 2)}
        for row in fitted.history
        if "validation_elbo" in row  # long fits look at it less often
    ]
    return {
        "data": name,
        "method": method,
        "latent": latent,
        "seed": seed,
        "epochs": options.epochs,
        "rate": options.rate,
        "curve": curve,
    }


def show_bounds(entries: list[dict[str, Any]], name: str, options: Any) -> None:
    """The curves of each method at the rate whose training bound ends highest."""
    sizes = [latent for latent in LATENT[name] if any(entry["latent"] == latent for entry in entries)]
    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    for entry in sorted(entries, key=lambda entry: entry["curve"][-1]["train"]):
        best[entry["method"], entry["latent"], entry["seed"]] = entry
    entries = [best[key] for key in sorted(best)]
    figure, axes = plt.subplots(1, len(sizes), figsize=(3 * len(sizes), 3), layout="constrained", squeeze=False)
    for ax, latent in zip(axes[0], sizes):
        for number, entry in enumerate(e for e in entries if e["latent"] == latent):
            curve = entry["curve"]
            for part, style in (("train", "-"), ("test", "--")):
                label = f"{entry['method']}, {part}"
                xs, ys = [p["samples"] for p in curve], [p[part] for p in curve]
                ax.plot(xs, ys, style, color=f"C{number}", label=label)
            print(f"{NAMES[name]}, D = {latent:>3}, {entry['method']:12}", curve[-1])
        ends = [p["test"] for e in entries if e["latent"] == latent for p in e["curve"][len(e["curve"]) // 10 :]]
        ax.set(
            xscale="log", xlabel="training samples seen", title=f"{NAMES[name]}, D = {latent}", ylim=(min(ends), None)
        )
    axes[0, 0].set_ylabel("bound, nats per row")
    axes[0, 0].legend(fontsize=7)
    figure.savefig(options.out / f"aevb-{name}.png", dpi=150)


def main() -> None:
    parser = harness.parser(
        __doc__,
        ("marginal", "frey", "mnist"),
        epochs=100,
        rate=0.02,
        rows=1000,
        seeds="0",
        test_rows=100,
        num_samples=300,
        engine="traced",
    )
    parser.add_argument("--methods", type=lambda text: text.split(","), default=[*LOSSES, MCEM], help="by commas")
    parser.add_argument(
        "--latent", type=harness.integers, help="dimensions of z in Figure 2; by default those of the paper"
    )
    parser.add_argument("--figure-rows", type=int, default=50_000, help="training images of Figure 2")
    options = harness.parse(parser, epochs=2, rows=200, test_rows=4, num_samples=20, figure_rows=200)
    done = harness.Kept(options, "aevb-figures", inside="entries")
    options.out.mkdir(parents=True, exist_ok=True)
    if "marginal" in options.only:
        parts = harness.mnist(options, rows=options.rows)
        draws = torch.Generator().manual_seed(0)
        train, test = (torch.bernoulli(part.x, generator=draws) for part in (parts.train, parts.test))
        for seed in options.seeds:
            for method in options.methods:
                done.entry(
                    f"marginal, {method}, {len(train)} rows, {options.epochs} epochs, seed {seed}",
                    lambda m=method, s=seed: marginal(train, test, options, m, s),
                    ("cpu_seconds",),
                )
        show_marginal(
            [e for name, e in done.items() if name.startswith("marginal") and e["rows"] == len(train)], options
        )
    for name in ("frey", "mnist"):
        if name not in options.only:
            continue
        if name == "frey":
            rows = faces(options)
        else:
            digits = harness.mnist(options, rows=options.figure_rows)
            draws = torch.Generator().manual_seed(0)
            rows = torch.bernoulli(digits.train.x, generator=draws), torch.bernoulli(digits.test.x, generator=draws)
        rate = "" if options.rate == 0.02 else f", rate {options.rate}"
        for seed, latent, method in itertools.product(options.seeds, options.latent or LATENT[name], LOSSES):
            if method in options.methods:
                done.entry(
                    f"{name}, {method}, D = {latent}, {len(rows[0])} rows, {options.epochs} epochs, seed {seed}{rate}",
                    lambda n=name, r=rows, m=method, d=latent, s=seed: bound(r, options, n, m, d, s),
                    ("method",),
                )
        long = [
            entry
            for entry in done.values()
            if entry.get("data") == name and entry.get("epochs", len(entry["curve"])) == options.epochs
        ]
        show_bounds(long, name, options)


if __name__ == "__main__":
    main()

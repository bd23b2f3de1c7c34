"""One part of a VAE swapped, everything else equal: held-out log p(x) of priors, of guides, and of likelihoods of counts.

    python benchmarks/papers/swap.py priors --data-root DIR
    python benchmarks/papers/swap.py guides --data-root DIR
    python benchmarks/papers/swap.py counts --data-root DIR

priors, guides: static MNIST (Larochelle & Murray 2011; DIR/binarized_mnist/binarized_mnist.npz), 784-300-300-40, ReLU, batch
256, Adam with one one-cycle schedule for all, the same number of steps, the last weights, K = 1000 draws a test row. The peak
rate was taken over from benchmarks/mnist.py; nothing was tuned here. Published for priors, after up to 2,000 epochs with early
stopping and gated layers: Tomczak & Welling 2018, arXiv:1705.07120, table 1.

counts: 2,638 cells x 2,000 genes (DIR/pbmc3k/pbmc3k_hvg2000.npz), every fifth cell held out, 2000-128-10, the row's size an
argument of the graph.

Writes benchmarks/results/swap-NAME-DEVICE.json, part by part; parts that are there are kept unless --again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam

L, HIDDEN = 40, (300, 300)


class CountVAE(nn.Module):
    """p(z) p(x | z, library), guide q(z | x). x: (N, G) counts; library: (N,) a row's size."""

    def __init__(self, family: fam.Family, genes: int) -> None:
        super().__init__()
        self.prior = pv.priors.StandardNormal(10)
        self.likelihood = pv.mlp(10, family, hidden=(128,))
        self.encoder = pv.Conditional(pv.nets.Log1p(pv.nets.MLP(genes, (2, 10), (128,))), fam.Normal(10))

    def model(self, x: Tensor, library: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.likelihood(z, library=library), obs=x)

    def guide(self, x: Tensor, library: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.encoder(x))


def static_mnist(root: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Training rows, the 10,000 of validation left alone, and test rows, shuffled once (the file has them by class)."""
    found = np.load(root / "binarized_mnist" / "binarized_mnist.npz")
    train, test = (torch.from_numpy(np.unpackbits(found[name], axis=1)).float() for name in ("train", "test"))
    return {"x": train}, {"x": test[torch.randperm(len(test), generator=torch.Generator().manual_seed(0))]}


def cells(root: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    found = np.load(root / "pbmc3k" / "pbmc3k_hvg2000.npz")
    x = torch.from_numpy(found["counts"].astype(np.float32))
    library = torch.from_numpy(found["library_size"].astype(np.float32))
    held = torch.arange(len(x)) % 5 == 0
    rows = {"x": x, "library": library / library.median()}
    return {n: v[~held] for n, v in rows.items()}, {n: v[held] for n, v in rows.items()}


def vae(
    prior: Callable[[nn.Module, Tensor], nn.Module], encoder: Callable[[], nn.Module]
) -> Callable[[Tensor], pv.VAE]:
    def build(x: Tensor) -> pv.VAE:
        own = encoder()
        return pv.VAE(prior(own, x), pv.mlp(L, fam.Bernoulli(784), hidden=HIDDEN), own)

    return build


def diagonal() -> nn.Module:
    return pv.mlp(784, fam.Normal(L), hidden=HIDDEN)


PRIORS: dict[str, Callable[[nn.Module, Tensor], nn.Module]] = {
    "standard": lambda q, x: pv.priors.StandardNormal(L),
    "mixture": lambda q, x: pv.priors.MixtureOfNormals(L, num_components=100),
    "vamp": lambda q, x: pv.priors.VampPrior(q, x[:500]),
    "nsf": lambda q, x: pv.priors.FlowPrior(L, kind="nsf"),
}
GUIDES: dict[str, Callable[[], nn.Module]] = {
    "diagonal": diagonal,
    "full": lambda: pv.mlp(784, fam.FullNormal(L), hidden=HIDDEN),
    "iaf": lambda: pv.flow(784, L, kind="iaf", hidden=HIDDEN),
    "nsf": lambda: pv.flow(784, L, kind="nsf", hidden=HIDDEN),
}
COUNTS = {"Poisson": fam.Poisson, "NegativeBinomial": fam.NegativeBinomial, "ZINB": fam.ZeroInflatedNegativeBinomial}
TABLES: dict[str, dict[str, Callable[[Tensor], Any]]] = {
    "priors": {name: vae(prior, diagonal) for name, prior in PRIORS.items()},
    "guides": {name: vae(PRIORS["standard"], guide) for name, guide in GUIDES.items()},
    "counts": {name: (lambda x, f=f: CountVAE(f(x.shape[1]), x.shape[1])) for name, f in COUNTS.items()},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--epochs", type=int, help="default 50, or 200 for counts")
    parser.add_argument("--learning-rate", type=float, help="peak; default 1e-2, or 3e-3 for counts")
    parser.add_argument("--test-rows", type=int, default=10_000)
    parser.add_argument("--num-samples", type=int, default=1000)
    parser.add_argument("--only", default="", help="parts, by commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    options = parser.parse_args()

    counts = options.table == "counts"
    epochs, rate = options.epochs or (200 if counts else 50), options.learning_rate or (3e-3 if counts else 1e-2)
    train, test = (cells if counts else static_mnist)(options.data_root)
    test = {name: rows[: options.test_rows] for name, rows in test.items()}
    device = pv.pair.find_device(options.device).type
    path = options.out / f"swap-{options.table}-{device}.json"
    done: dict[str, Any] = json.loads(path.read_text())["parts"] if path.is_file() and not options.again else {}
    scores: dict[str, Tensor] = {}
    for name, build in TABLES[options.table].items():
        if name in done or (options.only and name not in options.only.split(",")):
            continue
        torch.manual_seed(options.seed)
        fitted = pv.fit(
            build(train["x"]),
            train,
            epochs=epochs,
            batch_size=128 if counts else 256,
            schedule=pv.schedules.one_cycle(rate),
            clip_norm=None if counts else 100.0,
            seed=options.seed,
            device=options.device,
            engine=options.engine,
        )
        began = time.perf_counter()
        found = pv.importance(fitted, test, options.num_samples, seed=1)
        scores[name] = found.log_likelihood
        summary = found.summary()
        done[name] = {
            "log_likelihood": round(summary["log_likelihood"], 3),
            "standard_error_over_rows": round(summary["log_likelihood_se"], 3),
            "elbo": round(summary["elbo"], 3),
            "k_hat_above_0.7": round(summary["k_hat_above_0.7"], 3),
            "steps": int(fitted.history[-1]["steps"]),
            "epochs": epochs,
            "peak_learning_rate": rate,
            "fit_seconds": round(fitted.history[-1]["seconds"], 1),
            "evaluation_seconds": round(time.perf_counter() - began, 1),
            "engine": fitted.settings["engine"],
            "test_rows": len(found.log_likelihood),
            "num_samples": options.num_samples,
            "rows": [round(v, 3) for v in found.log_likelihood[:1000].tolist()],
        }
        result = {
            "machine": f"{os.cpu_count()} cores {platform.machine()}, {device}, torch {torch.__version__}",
            "seed": options.seed,
            "parts": done,
        }
        path.write_text(json.dumps(result) + "\n")
        print({k: v for k, v in done[name].items() if k != "rows"}, name, flush=True)
    report(done)


def report(done: dict[str, Any]) -> None:
    """The table; differences to the first part are paired over the first 1,000 test rows."""
    first = torch.tensor(next(iter(done.values()))["rows"])
    for name, entry in done.items():
        gain = torch.tensor(entry["rows"]) - first
        print(
            f"{name:18} log p(x) {entry['log_likelihood']:9.2f} ± {entry['standard_error_over_rows']:.2f}   "
            f"against the first: {gain.mean():6.2f} ± {gain.std() / len(gain) ** 0.5:.2f}   "
            f"k-hat > 0.7: {entry['k_hat_above_0.7']:.0%}   {entry['steps']} steps, {entry['fit_seconds']:.0f} s"
        )


if __name__ == "__main__":
    main()

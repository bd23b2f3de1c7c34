"""One part of a VAE swapped, everything else equal: held-out log p(x) of priors, of guides, and of likelihoods of counts.

    python benchmarks/papers/swap.py priors --data-root DIR
    python benchmarks/papers/swap.py guides --data-root DIR
    python benchmarks/papers/swap.py counts --data-root DIR

priors, guides: static MNIST (Larochelle & Murray 2011; DIR/binarized_mnist/binarized_mnist.npz), 784-300-300-40, ReLU, batch
256, Adam with a one-cycle schedule, the same number of steps for all, the last weights. Each part is fitted at every rate of
--rates with the first seed; the rate with the best log p(x) of 1,000 validation rows (K = 500) is fitted with every seed of
--seeds; only then are 2,000 test rows scored, K = 1000. Published for priors, after up to 2,000 epochs with early stopping and
gated layers: Tomczak & Welling 2018, arXiv:1705.07120, table 1.

counts: 2,638 cells x 2,000 genes (DIR/pbmc3k/pbmc3k_hvg2000.npz), every fifth cell held out, 2000-128-10, the row's size an
argument of the graph; one rate, and no row to choose it on.

Writes benchmarks/results/swap-NAME-DEVICE.json, part by part; parts that are there are kept unless --again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from kept import Kept
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


def static_mnist(root: Path) -> tuple[dict[str, Tensor], ...]:
    """Training, validation and test rows; the latter two shuffled once, for the file has them by class."""
    found = np.load(root / "binarized_mnist" / "binarized_mnist.npz")
    train, valid, test = (
        torch.from_numpy(np.unpackbits(found[name], axis=1)).float() for name in ("train", "valid", "test")
    )
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    return {"x": train}, {"x": valid[order]}, {"x": test[order]}


def cells(root: Path) -> tuple[dict[str, Tensor], ...]:
    found = np.load(root / "pbmc3k" / "pbmc3k_hvg2000.npz")
    x = torch.from_numpy(found["counts"].astype(np.float32))
    library = torch.from_numpy(found["library_size"].astype(np.float32))
    held = torch.arange(len(x)) % 5 == 0
    rows = {"x": x, "library": library / library.median()}
    return {n: v[~held] for n, v in rows.items()}, {}, {n: v[held] for n, v in rows.items()}


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
    "iaf, 4 transforms": lambda: pv.flow(784, L, kind="iaf", hidden=HIDDEN, transforms=4),
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
    parser.add_argument("--epochs", type=int, help="default 30, or 200 for counts")
    parser.add_argument("--rates", help="peaks, by commas; default 5e-3,3e-3,2e-3, or 3e-3 for counts")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--test-rows", type=int, default=2000)
    parser.add_argument("--num-samples", type=int, default=1000)
    parser.add_argument("--only", default="", help="parts, by semicolons")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    options = parser.parse_args()

    counts = options.table == "counts"
    epochs = options.epochs or (200 if counts else 30)
    rates = [float(rate) for rate in (options.rates or ("3e-3" if counts else "5e-3,3e-3,2e-3")).split(",")]
    seeds = [int(seed) for seed in options.seeds.split(",")]
    train, valid, test = (cells if counts else static_mnist)(options.data_root)
    valid = {name: rows[:1000] for name, rows in valid.items()}
    test = {name: rows[: options.test_rows] for name, rows in test.items()}
    device = pv.pair.find_device(options.device).type
    path = options.out / f"swap-{options.table}-{device}.json"
    done = Kept(path, device, "parts", again=options.again)

    def fit(build: Callable[[Tensor], Any], rate: float, seed: int) -> pv.Fit:
        torch.manual_seed(seed)
        return pv.fit(
            build(train["x"]),
            train,
            epochs=epochs,
            batch_size=128 if counts else 256,
            schedule=pv.schedules.one_cycle(rate),
            clip_norm=None if counts else 100.0,
            seed=seed,
            device=options.device,
            engine=options.engine,
        )

    other = options.out / f"swap-guides-{device}.json"
    if options.table == "priors" and "standard" not in done and other.is_file():  # the same pair, fitted alike
        done["standard"] = json.loads(other.read_text())["parts"]["diagonal"]
        done.keep("standard")
    for name, build in TABLES[options.table].items():
        if name in done or (options.only and name not in options.only.split(";")):
            continue
        tried = {}
        fitted = {}
        for rate in rates:
            try:
                fitted[rate] = fit(build, rate, seeds[0])
            except pv.NotFiniteError as error:
                tried[rate] = -1e30  # worse than any, and JSON
                print(name, rate, error, flush=True)
                continue
            if valid and len(rates) > 1:
                tried[rate] = pv.log_likelihood(fitted[rate], valid, 500, seed=1).mean().item()
                print(f"{name} at {rate:g}: validation log p(x) {tried[rate]:.2f}", flush=True)
        best = max(fitted, key=lambda rate: tried.get(rate, 0.0))
        scored = []
        for seed in seeds:
            found = fitted[best] if seed == seeds[0] else fit(build, best, seed)
            scored.append({"seed": seed, **score(found, test, options.num_samples)})
            print(name, {k: v for k, v in scored[-1].items() if k != "rows"}, flush=True)
        done[name] = {
            "validation_log_likelihood": {f"{rate:g}": round(value, 3) for rate, value in tried.items()},
            "peak_learning_rate": best,
            "epochs": epochs,
            "fits": scored,
        }
        done.keep(name)
    report(done)


def score(fitted: pv.Fit, test: dict[str, Tensor], num_samples: int) -> dict[str, Any]:
    began = time.perf_counter()
    found = pv.importance(fitted, test, num_samples, seed=1)
    summary = found.summary()
    return {
        "log_likelihood": round(summary["log_likelihood"], 3),
        "standard_error_over_rows": round(summary["log_likelihood_se"], 3),
        "elbo": round(summary["elbo"], 3),
        "k_hat_above_0.7": round(summary["k_hat_above_0.7"], 3),
        "steps": int(fitted.history[-1]["steps"]),
        "fit_seconds": round(fitted.history[-1]["seconds"], 1),
        "evaluation_seconds": round(time.perf_counter() - began, 1),
        "engine": fitted.settings["engine"],
        "test_rows": len(found.log_likelihood),
        "num_samples": num_samples,
        "rows": [round(v, 3) for v in found.log_likelihood[:2000].tolist()],
    }


def report(done: dict[str, Any]) -> None:
    """The table: means over seeds with their spread; differences to the first part, seed by seed and row by row."""
    first = [torch.tensor(entry["rows"]) for entry in next(iter(done.values()))["fits"]]
    for name, part in done.items():
        reached = torch.tensor([entry["log_likelihood"] for entry in part["fits"]])
        gain = torch.tensor([(torch.tensor(e["rows"]) - other).mean() for e, other in zip(part["fits"], first)])
        last = part["fits"][0]
        spread = f" (sd {reached.std():.2f})" if len(reached) > 1 else ""
        print(
            f"{name:18} log p(x) {reached.mean():9.2f}{spread} ± {last['standard_error_over_rows']:.2f} over rows   "
            f"against the first: {gain.mean():6.2f} ({gain.min():.2f} to {gain.max():.2f})   peak rate "
            f"{part['peak_learning_rate']:g}   k-hat > 0.7: {last['k_hat_above_0.7']:.0%}   {last['steps']} steps, "
            f"{last['fit_seconds']:.0f} s"
        )


if __name__ == "__main__":
    main()

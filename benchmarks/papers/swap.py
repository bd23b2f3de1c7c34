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

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
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


def made(counts: bool) -> tuple[dict[str, Tensor], ...]:
    """Rows of the same shapes as those of the files, which mean nothing: for --smoke."""
    if counts:
        rows = {"x": torch.poisson(torch.rand(300, 50)), "library": torch.ones(300)}
    else:
        rows = {"x": torch.bernoulli(torch.full((600, 784), 0.1))}
    train, test = ({name: values[part] for name, values in rows.items()} for part in (slice(50, None), slice(50)))
    return train, {} if counts else test, test


def main() -> None:
    every = dict.fromkeys(name for table in TABLES.values() for name in table)
    parser = harness.parser(
        __doc__, every, ";", epochs=None, rates=None, seeds="0,1,2", test_rows=2000, num_samples=1000, engine="auto"
    )
    parser.add_argument("table", choices=TABLES)
    options = harness.parse(parser, epochs=1, rates="3e-3", seeds="0", test_rows=20, num_samples=20)
    counts = options.table == "counts"
    epochs = options.epochs or (200 if counts else 30)
    rates = options.rates or ((3e-3,) if counts else (5e-3, 3e-3, 2e-3))
    done = harness.Kept(options, f"swap-{options.table}", "parts")

    read = cells if counts else static_mnist
    train, valid, test = made(counts) if options.smoke else read(options.data_root)
    valid = {name: rows[:1000] for name, rows in valid.items()}
    test = {name: rows[: options.test_rows] for name, rows in test.items()}

    other = options.out / f"swap-guides-{options.device}.json"
    measured = json.loads(other.read_text())["parts"] if options.table == "priors" and other.is_file() else {}
    if "standard" not in done and "diagonal" in measured:  # the same pair, fitted alike
        done["standard"] = measured["diagonal"]
        done.keep("standard")

    def measure(name: str, build: Callable[[Tensor], Any]) -> dict[str, Any]:
        @functools.cache
        def fit(rate: float, seed: int) -> pv.Fit:
            return harness.fit(
                lambda: build(train["x"]),
                train,
                options,
                seed,
                epochs=epochs,
                batch_size=128 if counts else 256,
                schedule=pv.schedules.one_cycle(rate),
                clip_norm=None if counts else 100.0,
            )

        tried: dict[str, float] = {}
        best = rates[0]
        if valid and len(rates) > 1:
            best = harness.best_rate(
                rates,
                lambda rate: pv.log_likelihood(fit(rate, options.seeds[0]), valid, 500, seed=1).mean().item(),
                tried,
                name,
            )
        scored = []
        for seed in options.seeds:
            scored.append({"seed": seed, **score(fit(best, seed), test, options.num_samples)})
            print(name, {k: v for k, v in scored[-1].items() if k != "rows"}, flush=True)
        return {
            "validation_log_likelihood": tried,
            "peak_learning_rate": best,
            "epochs": epochs,
            "fits": scored,
        }

    for name, build in TABLES[options.table].items():
        if name in options.only:
            done.entry(name, lambda name=name, build=build: measure(name, build), ("peak_learning_rate",))
    report(done)


def score(fitted: pv.Fit, test: dict[str, Tensor], num_samples: int) -> dict[str, Any]:
    began = time.perf_counter()
    found = pv.importance(fitted, test, num_samples, seed=1)
    end = harness.end(fitted)
    return {
        **harness.scores(found),
        "k_hat_above_threshold": round(found.summary()["k_hat_above_threshold"], 3),
        "steps": end["steps"],
        "fit_seconds": end["seconds"],
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
        large = last.get("k_hat_above_threshold", last.get("k_hat_above_0.7"))
        spread = f" (sd {reached.std():.2f})" if len(reached) > 1 else ""
        print(
            f"{name:18} log p(x) {reached.mean():9.2f}{spread} ± {last['standard_error_over_rows']:.2f} over rows   "
            f"against the first: {gain.mean():6.2f} ({gain.min():.2f} to {gain.max():.2f})   peak rate "
            f"{part['peak_learning_rate']:g}   k-hat too large: {large:.0%}   {last['steps']} steps, "
            f"{last['fit_seconds']:.0f} s"
        )


if __name__ == "__main__":
    main()

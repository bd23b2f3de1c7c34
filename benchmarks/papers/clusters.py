"""Clusters without labels: a Gaussian mixture VAE on MNIST, and how far its clusters are the digits.

    python benchmarks/papers/clusters.py --data-root DIR
    python benchmarks/papers/clusters.py --data-root DIR --num-clusters 10 --only floor

MNIST (DIR/MNIST/raw), 50,000 training rows, 10,000 validation rows, 10,000 test rows, binarised anew at every step;
784-300-300-10, ReLU, batch 250, Adam with a one-cycle schedule, the last weights, products of matrices in bfloat16. SETTINGS
are remedies for clusters that die early; each is fitted with the first seed and the first K of --num-clusters, and the one
with the best log p(x) of 1,000 validation rows (50 draws) is fitted with every K and every seed. Labels choose nothing.

Accuracy is that of the guide's q(y | x) on test rows. K = 10: clusters are matched with digits, one to one (Kuhn 1955), on
training rows; other K: each cluster is the digit that most of its training rows are.

Writes benchmarks/results/clusters-DEVICE.json, fit by fit; fits that are there are kept unless --again.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import harness
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam

L, HIDDEN, DIGITS = 10, (300, 300), 10


class Centres(nn.Module):
    """A mean and a scale of each cluster, means drawn from N(0, spread^2): code (*batch, C) -> (*batch, 2, L)."""

    def __init__(self, num_clusters: int, spread: float) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.stack([spread * torch.randn(num_clusters, L), torch.zeros(num_clusters, L)], 1))

    def forward(self, code: Tensor) -> Tensor:
        return (code @ self.table.flatten(1)).unflatten(-1, (2, L))


class Floor:
    """The KL of y counts as at least `share` of log C, its largest value: q(y | x) may be as sure as that for nothing."""

    def __init__(self, num_clusters: int, share: float) -> None:
        self.least = share * math.log(num_clusters)

    def __call__(self, kl: dict[str, Tensor]) -> Mapping[str, Tensor]:
        return {**kl, "y": kl["y"].clamp_min(self.least)}


class Setting(NamedTuple):
    spread: float = 0.3  # of the first means; 0.3 is a linear layer's own
    warmup: float = 0.0  # epochs
    floor: float = 0.0  # share of log C


SETTINGS = {
    "plain": Setting(),
    "spread": Setting(spread=1.0),
    "spread-warmup": Setting(spread=1.0, warmup=4.0),
    "warmup": Setting(warmup=4.0),
    "floor": Setting(floor=0.8),
}


def build(num_clusters: int, setting: Setting) -> pv.GMVAE:
    return pv.GMVAE(
        cluster_prior=pv.priors.Categorical(num_clusters),
        prior=pv.Conditional(Centres(num_clusters, setting.spread), fam.Normal(L)),
        likelihood=pv.mlp(L, fam.Bernoulli(784), hidden=HIDDEN),
        encoder=pv.mlp((784, num_clusters), fam.Normal(L), hidden=HIDDEN),
        classifier=pv.mlp(784, fam.Categorical((), num_clusters), hidden=HIDDEN),
        code=pv.nets.OneHot(num_clusters),
    )


def fit(x: Tensor, num_clusters: int, setting: Setting, seed: int, options: argparse.Namespace) -> pv.Fit:
    schedule: list[Callable[..., Any]] = [pv.schedules.one_cycle(options.rate)]
    if setting.warmup:
        schedule.append(pv.schedules.kl_warmup(setting.warmup))
    return harness.fit(
        lambda: build(num_clusters, setting),
        x,
        options,
        seed,
        epochs=options.epochs,
        batch_size=250,
        loss=pv.Trace_ELBO(kl=Floor(num_clusters, setting.floor)) if setting.floor else None,
        schedule=schedule,
        transform=pv.transforms.Binarize(),
        clip_norm=100.0,
        precision="bfloat16",
    )


def digits_of(clusters: Tensor, y: Tensor, num_clusters: int) -> Tensor:
    """The digit of each cluster, (C,), from rows whose digits are known; -1 of a cluster without a row."""
    table = torch.zeros(num_clusters, DIGITS).index_put_((clusters, y), torch.ones(len(y)), accumulate=True)
    if num_clusters == DIGITS:
        rows, columns = linear_sum_assignment(table.numpy(), maximize=True)
        return torch.from_numpy(columns)[torch.from_numpy(rows).argsort()]
    return torch.where(table.sum(1) > 0, table.argmax(1), -1)


def score(fitted: pv.Fit, x: dict[str, Tensor], y: dict[str, Tensor], num_clusters: int) -> dict[str, Any]:
    """What is read from labels; `log_likelihood`, by which settings are chosen, is not."""
    found = {name: pv.classify(fitted, x[name], num_samples=1).guide for name in ("train", "test")}
    clusters = {name: p.argmax(-1) for name, p in found.items()}
    digits = digits_of(clusters["train"], y["train"], num_clusters)
    shares = torch.bincount(clusters["train"], minlength=num_clusters) / len(clusters["train"])
    return {
        "test_accuracy": round((digits[clusters["test"]] == y["test"]).double().mean().item(), 4),
        "normalised_mutual_information": round(
            float(normalized_mutual_info_score(y["test"].numpy(), clusters["test"].numpy())), 4
        ),
        "clusters_in_use": int((shares > 0.01).sum()),
        "clusters_of_digit": [int((digits[shares > 0.01] == d).sum()) for d in range(DIGITS)],
        "mean_entropy_of_guide": round(pv.acquisition.entropy(found["test"]).mean().item(), 4),
    }


def main() -> None:
    parser = harness.parser(__doc__, SETTINGS, epochs=12, rate=2e-3, seeds="0,1,2", rows=50_000)
    parser.add_argument("--num-clusters", type=harness.integers, default="10,20", help="by commas")
    options = harness.parse(parser, epochs=1, seeds="0", rows=500, num_clusters="10")
    done = harness.Kept(options, "clusters")

    data = harness.mnist(options, generator=torch.Generator().manual_seed(0), rows=options.rows)
    x = {"train": data.train.x, "valid": data.valid.x[:1000], "test": data.test.x}
    y = {"train": data.train.y, "test": data.test.y}

    def measure(num_clusters: int, name: str, seed: int) -> dict[str, Any]:
        fitted = fit(x["train"], num_clusters, SETTINGS[name], seed, options)
        held_out = harness.scores(pv.importance(fitted, x["valid"], 50, seed=1))
        end = harness.end(fitted)
        return {
            "num_clusters": num_clusters,
            "setting": name,
            **SETTINGS[name]._asdict(),
            "seed": seed,
            "validation_log_likelihood": held_out["log_likelihood"],
            "standard_error_over_rows": held_out["standard_error_over_rows"],
            "training_elbo": end["elbo"],
            **score(fitted, x, y, num_clusters),
            "epochs": options.epochs,
            "peak_learning_rate": options.rate,
            "training_rows": len(x["train"]),
            "steps": end["steps"],
            "fit_seconds": end["seconds"],
            "engine": fitted.settings["engine"],
        }

    def result(num_clusters: int, name: str, seed: int) -> dict[str, Any]:
        key = f"K={num_clusters} {name} seed {seed}"
        found: dict[str, Any] = done.entry(key, lambda: measure(num_clusters, name, seed), SHOWN)
        return found

    first = options.num_clusters[0], options.seeds[0]
    tried = {name: result(first[0], name, first[1])["validation_log_likelihood"] for name in options.only}
    best = max(tried, key=lambda name: tried[name])
    print(f"of {len(tried)} settings the best on validation rows: {best}", flush=True)
    for num_clusters in options.num_clusters:
        reached = [result(num_clusters, best, seed) for seed in options.seeds]
        print(
            f"K={num_clusters:<3} {best}: test accuracy {harness.spread((r['test_accuracy'] for r in reached), '.1%')} "
            f"over {len(reached)} seeds, clusters in use {[r['clusters_in_use'] for r in reached]}, log p(x) of validation "
            f"rows {[r['validation_log_likelihood'] for r in reached]}, fit {reached[0]['fit_seconds']:.0f} s"
        )


SHOWN = ("validation_log_likelihood", "training_elbo", "test_accuracy", "clusters_in_use", "fit_seconds")


if __name__ == "__main__":
    main()

"""Few rows: one set of weights, the likeliest, a posterior of weights, and an ensemble of five.

    python benchmarks/papers/bayesian.py
    python benchmarks/papers/bayesian.py --sizes 100,300 --seeds 0 --scales 2

scikit-learn's handwritten digits, counts from 0 to 16: N rows in all, of which a fifth are for validation, and test rows that
no fit sees, all drawn anew by each seed. p(z) p(x | z) with 8 latent dimensions, a beta-binomial likelihood and one hidden
layer of 100 units on either side. Adam, 1e-3 (3e-3 for the posterior, whose KL terms are closed forms), batches of 100 or all
rows, until the validation ELBO has not risen for 100 epochs or --epochs are over; the best epoch's weights. So the first rival
is early stopping.

"map" and "bayesian" give all weights of the decoder the prior N(0, s^2 / inputs), with the s of --scales that is best by
log p(x) of the validation rows; "bayesian" is the mean-field posterior of Kingma & Welling 2014, arXiv:1312.6114, appendix F,
and "low rank" one with covariances along five directions, at draws of its KL term; "swag" goes on from the first rival, at the
rate of --swag-rates that is best by log p(x) of the validation rows; "ensemble" is the average density of five fits like the
first, from different starting values.

Writes benchmarks/results/bayesian-DEVICE.json, entry by entry; entries that are there are kept unless --again.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import torch
from sklearn.datasets import load_digits
from torch import Tensor

import pyrovae as pv
from pyrovae import families as fam

MEMBERS = 5
METHODS = ("ml", "map", "bayesian", "low rank", "swag", "ensemble")


def vae() -> pv.VAE:
    return pv.VAE(
        pv.priors.StandardNormal(8),
        pv.mlp(8, fam.BetaBinomial(64, total_count=16), hidden=(100,)),
        pv.mlp(64, fam.Normal(8), hidden=(100,)),
    )


def split(size: int, seed: int, test_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Training, validation and test rows."""
    x = torch.tensor(load_digits().data, dtype=torch.float32)
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))]
    return x[size // 5 : size], x[: size // 5], x[len(x) - test_rows :]


def fit(
    around: Callable[[Any], Any], rows: tuple[Tensor, Tensor, Tensor], seed: int, options: Any, **more: Any
) -> pv.Fit:
    train, valid, _ = rows
    settings = {"epochs": options.epochs, "patience": 100, "batch_size": min(100, len(train)), "progress": False}
    return harness.fit(lambda: around(vae()), train, options, seed, validation=valid, **(settings | more))


def best(fits: dict[float, pv.Fit], rows: tuple[Tensor, Tensor, Tensor], options: Any) -> tuple[pv.Fit, float]:
    """The fit that is best by log p(x) of the validation rows, and the setting that it has."""
    scores = {s: pv.log_likelihood(f, rows[1], options.num_samples, seed=0).mean().item() for s, f in fits.items()}
    setting = max(scores, key=lambda s: scores[s])
    return fits[setting], setting


def measure(size: int, seed: int, options: argparse.Namespace, found: dict[str, Any]) -> dict[str, Any]:
    """What `found` has, and the methods that it lacks."""
    rows = split(size, seed, options.test_rows)
    first = fit(lambda pair: pair, rows, seed, options)
    posterior = {"loss": pv.Trace_ELBO(kl="analytic"), "learning_rate": 3e-3}

    def by_scale(around: Callable[[Any, Any], Any], **more: Any) -> tuple[pv.Fit, float]:
        fits = {
            s: fit(lambda pair, s=s: around(pair, pv.weights.FanIn(s)), rows, seed, options, **more)
            for s in options.scales
        }
        return best(fits, rows, options)

    def low_rank(pair: Any, prior: Any) -> Any:
        return pv.bayesian(pair, prior=prior, guide=pv.weights.LowRank())

    def ensemble() -> tuple[pv.Fit, None]:
        more = [fit(lambda pair: pair, rows, 1000 * k + seed, options) for k in range(1, MEMBERS)]
        return pv.ensemble([first, *more]), None

    def swag() -> tuple[pv.Fit, float]:
        how: Any = {"batch_size": min(100, len(rows[0])), "engine": options.engine, "progress": False, "seed": seed}
        return best({r: pv.swag(first, rows[0], learning_rate=r, **how) for r in options.swag_rates}, rows, options)

    methods: dict[str, Callable[[], tuple[pv.Fit, float | None]]] = {
        "ml": lambda: (first, None),
        "map": lambda: by_scale(lambda pair, prior: pv.map_prior(pair, prior=prior)),
        "bayesian": lambda: by_scale(lambda pair, prior: pv.bayesian(pair, prior=prior), **posterior),
        "low rank": lambda: by_scale(low_rank, **posterior | {"loss": pv.Trace_ELBO()}),
        "swag": swag,
        "ensemble": ensemble,
    }
    found = {"scales": {}} | found
    for name, method in methods.items():
        if name in options.methods and name not in found:
            fitted, setting = method()
            score = pv.importance(fitted, rows[2], options.num_samples, seed=1)
            found[name] = {
                **harness.scores(score),
                "k_hat_above_threshold": round(score.summary()["k_hat_above_threshold"], 3),
                "epochs": len(fitted.history),
            }
            found["scales"] |= {} if setting is None else {name: setting}
    return found


def main() -> None:
    parser = harness.parser(__doc__, epochs=1500, seeds=(0, 1, 2), test_rows=300, num_samples=500, engine="traced")
    parser.add_argument("--sizes", type=harness.integers, default=(100, 300, 1000), help="N, by commas")
    parser.add_argument("--scales", type=harness.floats, default=(1.0, 2.0, 4.0), help="s of the prior, by commas")
    parser.add_argument("--swag-rates", type=harness.floats, default=(1e-4, 3e-4, 1e-3), help="of swag, by commas")
    parser.add_argument("--methods", type=lambda text: text.split(","), default=list(METHODS), help="by commas")
    parser.set_defaults(data_root=Path())  # the digits come with scikit-learn
    options = harness.parse(parser, epochs=2, seeds=(0,), sizes=(100,), scales=(1.0,), test_rows=10, num_samples=20)
    kept = harness.Kept(
        options,
        "bayesian",
        inside="runs",
        epochs=options.epochs,
        test_rows=options.test_rows,
        num_samples=options.num_samples,
        tried_scales=list(options.scales),
    )
    for seed in options.seeds:
        for size in options.sizes:
            name = f"{size} rows, seed {seed}"
            if set(options.methods) - set(kept.get(name, {})):
                kept[name] = measure(size, seed, options, kept.get(name, {}))
                kept.keep(name)
                print(name, kept[name], flush=True)
    for size in options.sizes:
        runs = [kept[f"{size} rows, seed {seed}"] for seed in options.seeds]
        for name in options.methods:
            values = [run[name]["log_likelihood"] for run in runs]
            gains = [run[name]["log_likelihood"] - run["ml"]["log_likelihood"] for run in runs]
            error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
            print(
                f"N = {size:5} {name:8} log p(x) {harness.spread(values)}, {statistics.mean(gains):+.2f} ± {error:.2f}"
            )


if __name__ == "__main__":
    main()

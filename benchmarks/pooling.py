"""How often do 95 % intervals contain the truth, where gaps were filled before the analysis? Two regressions, known truth.

    python benchmarks/pooling.py [--only linear,logistic] [--repetitions 200]

500 rows of (a, b, y), of which b is missing in some 40 %, depending on a and y, which are always there: gaps are missing at
random, and rows without a gap are no random ones. `linear`: (a, b) are Normals with correlation 0.5, and y = 1 + a - b / 2 + e
with e ~ N(0, 1). `logistic`: b = a / 2 + (a^2 - 1) / 2 + e with e of standard deviation 0.5, and the log-odds of y = 1 are a /
2 + b - 0.2. Analysed are the regressions of y on (a, b), by least squares and by maximum likelihood: of the rows without a
gap, of the table with the mean of b in its gaps, and pooled by `pv.pool` from ten tables of `VAEImputer.draws` or of
scikit-learn's IterativeImputer with sample_posterior=True. For comparison, the same with no gap at all.

Kept of each repetition in benchmarks/results/pooling-cpu.json: the estimates, and which intervals contain the truth. The
settings of `VAEImputer` are a small network and few epochs, for the time that 200 fits take; with seeds from 10,000 on nothing
is kept, so that others can be tried there.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, SimpleImputer

import pyrovae as pv
from pyrovae.sklearn import VAEImputer, _graphs

RESULTS = Path(__file__).parent / "results" / "pooling-cpu.json"
ROWS, TABLES = 500, 10
SETTINGS: dict[str, Any] = {"hidden_layer_sizes": (32,), "max_iter": 100, "batch_size": 100}
Array = NDArray[np.float64]
Estimate = tuple[Array, Array]  # and its squared standard errors


def linear(rng: np.random.Generator) -> tuple[Array, Array]:
    """A table (a, b, y) without gaps, and the true coefficients (intercept, a, b)."""
    truth = np.array([1.0, 1.0, -0.5])
    a = rng.normal(size=ROWS)
    b = 0.5 * a + np.sqrt(0.75) * rng.normal(size=ROWS)
    y = truth[0] + truth[1] * a + truth[2] * b + rng.normal(size=ROWS)
    return np.stack([a, b, y], 1), truth


def logistic(rng: np.random.Generator) -> tuple[Array, Array]:
    truth = np.array([-0.2, 0.5, 1.0])
    a = rng.normal(size=ROWS)
    b = 0.5 * a + 0.5 * (a**2 - 1) + 0.5 * rng.normal(size=ROWS)
    y = rng.random(ROWS) < 1 / (1 + np.exp(-(truth[0] + truth[1] * a + truth[2] * b)))
    return np.stack([a, b, y], 1), truth


def with_gaps(table: Array, rng: np.random.Generator) -> Array:
    a, _, y = table.T
    missing = rng.random(len(table)) < 1 / (1 + np.exp(-(1.5 * (y - y.mean()) / y.std() - a - 0.6)))
    holed = table.copy()
    holed[missing, 1] = np.nan
    return holed


def least_squares(table: Array) -> Estimate:
    x, y = np.column_stack([np.ones(len(table)), table[:, :2]]), table[:, 2]
    inverse = np.linalg.inv(x.T @ x)
    found = inverse @ x.T @ y
    return found, np.diag(inverse) * np.square(y - x @ found).sum() / (len(y) - 3)


def maximum_likelihood(table: Array) -> Estimate:
    """Newton's method; variances from the Fisher information."""
    x, y = np.column_stack([np.ones(len(table)), table[:, :2]]), table[:, 2]
    found = np.zeros(3)
    for _ in range(25):
        p = 1 / (1 + np.exp(-x @ found))
        inverse = np.linalg.inv((x * (p * (1 - p))[:, None]).T @ x)
        found = found + inverse @ x.T @ (y - p)
    return found, np.diag(inverse)


STUDIES: dict[str, tuple[Callable[..., tuple[Array, Array]], Callable[[Array], Estimate]]] = {
    "linear": (linear, least_squares),
    "logistic": (logistic, maximum_likelihood),
}


def single(analyse: Callable[[Array], Estimate], table: Array, by_t: bool) -> tuple[Array, Array]:
    """The estimate from one table, and half of its 95 % interval."""
    found, variance = analyse(table)
    quantile = stats.t.ppf(0.975, len(table) - 3) if by_t else stats.norm.ppf(0.975)
    return found, quantile * np.sqrt(variance)


def pooled(analyse: Callable[[Array], Estimate], tables: Any, by_t: bool) -> tuple[Array, Array]:
    found = pv.pool(*zip(*(analyse(table) for table in tables)), df=ROWS - 3 if by_t else None)
    return found.estimate, found.interval(0.95)[1] - found.estimate


def ours(holed: Array, seed: int, graph: Any = None) -> Any:
    return VAEImputer(graph=graph, n_draws=TABLES, random_state=seed, **SETTINGS).fit(holed).draws(holed)


def at_random(x: torch.Tensor) -> Any:
    """The default graph before it started as a mixture."""
    return _graphs.flexible(x, None, SETTINGS["hidden_layer_sizes"])


def iterative(holed: Array, seed: int) -> Any:
    return [
        IterativeImputer(sample_posterior=True, random_state=100 * seed + i).fit_transform(holed) for i in range(TABLES)
    ]


def one(study: str, seed: int) -> dict[str, Any]:
    draw, analyse = STUDIES[study]
    rng = np.random.default_rng(seed)
    table, truth = draw(rng)
    holed = with_gaps(table, rng)
    by_t = study == "linear"
    ways: dict[str, Callable[[], tuple[Array, Array]]] = {
        "no gap": lambda: single(analyse, table, by_t),
        "complete cases": lambda: single(analyse, holed[~np.isnan(holed).any(1)], by_t),
        "mean": lambda: single(analyse, SimpleImputer().fit_transform(holed), by_t),
        "IterativeImputer": lambda: pooled(analyse, iterative(holed, seed), by_t),
        "VAEImputer": lambda: pooled(analyse, ours(holed, seed), by_t),
        "VAEImputer, started at random": lambda: pooled(analyse, ours(holed, seed, at_random), by_t),
    }
    found: dict[str, Any] = {"missing": float(np.isnan(holed).any(1).mean())}
    for name, way in ways.items():
        start = time.process_time()
        estimate, half = way()
        found[name] = {
            "estimate": estimate.round(4).tolist(),
            "half": half.round(4).tolist(),
            "covers": (np.abs(estimate - truth) <= half).tolist(),
            "cpu_seconds": round(time.process_time() - start, 2),
        }
    return found


def summary(study: str, repetitions: dict[str, Any]) -> dict[str, Any]:
    """Coverage, bias and mean width of the intervals of the coefficients of a and b, with standard errors of the first two."""
    truth, num = STUDIES[study][0](np.random.default_rng(0))[1], len(repetitions)
    found: dict[str, Any] = {"repetitions": num}
    for name in next(iter(repetitions.values())):
        if name == "missing":
            continue
        each = [repetition[name] for repetition in repetitions.values()]
        covers = np.array([one["covers"] for one in each], dtype=np.float64)[:, 1:]
        errors = (np.array([one["estimate"] for one in each]) - truth)[:, 1:]
        found[name] = {
            "coverage": covers.mean(0).tolist(),
            "coverage_se": np.sqrt(covers.mean(0) * (1 - covers.mean(0)) / num).tolist(),
            "bias": errors.mean(0).tolist(),
            "bias_se": (errors.std(0) / num**0.5).tolist(),
            "rmse": np.sqrt(np.square(errors).mean(0)).tolist(),
            "width": (2 * np.array([one["half"] for one in each]).mean(0)[1:]).tolist(),
            "cpu_seconds": float(np.mean([one["cpu_seconds"] for one in each])),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="linear,logistic")
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="the first seed; from 10,000 on nothing is kept")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    kept: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"studies": {}}
    if given.first >= 10_000:
        kept = {"studies": {}}
    kept |= {"rows": ROWS, "tables": TABLES, "settings": SETTINGS, "torch": str(torch.__version__)}
    for seed in range(given.first, given.first + given.repetitions):
        for study in given.only.split(","):
            entry = kept["studies"].setdefault(study, {"repetitions": {}})
            if str(seed) in entry["repetitions"]:
                continue
            entry["repetitions"][str(seed)] = one(study, seed)
            entry["summary"] = summary(study, entry["repetitions"])
            if given.first < 10_000:
                RESULTS.write_text(json.dumps(kept) + "\n")
    for study, entry in kept["studies"].items():
        for name, figures in entry["summary"].items():
            print(study, name, json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()

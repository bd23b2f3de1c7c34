"""`VAEDensity` without settings beside `GaussianMixture`: log p(x) of held-out rows of data sets that scikit-learn brings.

    python benchmarks/densities.py [--only iris,wine] [--splits 5]

A quarter of the rows is held out in each split; columns are standardised first, so that densities of different data sets can be
compared. The mixture has full covariances and as many components, up to 15, as BIC finds best on the training rows. All of
these but the two of Friedman were looked at when the default was chosen, with one or two of the splits. One thread. Figures go
to benchmarks/results/densities-cpu.json.
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
from sklearn import datasets
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import train_test_split

from pyrovae.sklearn import VAEDensity

RESULTS = Path(__file__).parent / "results" / "densities-cpu.json"
MOST_COMPONENTS = 15
Rows = NDArray[np.float64]
TABLES: dict[str, Callable[[], Rows]] = {
    "iris": lambda: datasets.load_iris().data,
    "wine": lambda: datasets.load_wine().data,
    "breast cancer": lambda: datasets.load_breast_cancer().data,
    "moons": lambda: datasets.make_moons(400, noise=0.08, random_state=0)[0],
    "s curve": lambda: datasets.make_s_curve(600, noise=0.05, random_state=0)[0],
    "swiss roll": lambda: datasets.make_swiss_roll(1200, noise=0.3, random_state=0)[0],
    "blobs": lambda: datasets.make_blobs(500, 8, centers=5, random_state=1)[0],
    "friedman": lambda: np.column_stack(datasets.make_friedman1(500, 8, random_state=0)),
    "friedman of 2,000": lambda: np.column_stack(datasets.make_friedman1(2000, 8, random_state=1)),
}


def mixture(rows: Rows) -> GaussianMixture:
    counts = range(1, 1 + min(MOST_COMPONENTS, len(rows) // (rows.shape[1] + 1)))
    tried = [GaussianMixture(k, n_init=2, random_state=0).fit(rows) for k in counts]
    return min(tried, key=lambda one: float(one.bic(rows)))


def measure(name: str, split: int) -> dict[str, float]:
    rows = TABLES[name]()
    rows = (rows - rows.mean(0)) / rows.std(0)
    train, test = train_test_split(rows, test_size=0.25, random_state=split)
    start = time.process_time()
    log_p = VAEDensity(random_state=split).fit(train).score_samples(test)
    seconds = time.process_time() - start
    other = mixture(train).score_samples(test)
    above = log_p - other
    return {
        "vae": log_p.mean(),
        "mixture": other.mean(),
        "above": above.mean(),
        "above_se": above.std() / len(above) ** 0.5,
        "cpu_seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="data sets, separated by commas")
    parser.add_argument("--splits", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"data sets": {}}
    found["torch"] = str(torch.__version__)
    for name in given.only.split(",") if given.only else TABLES:
        splits = [measure(name, split) for split in range(given.splits)]
        each = np.array([one["above"] for one in splits])
        within = np.mean([one["above_se"] for one in splits]) / len(each) ** 0.5
        error = max(float(within), float(each.std(ddof=1) / len(each) ** 0.5) if len(each) > 1 else 0.0)
        found["data sets"][name] = {"above": float(each.mean()), "standard_error": error, "splits": splits}
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        means = [float(np.mean([one[key] for one in splits])) for key in ("vae", "mixture", "cpu_seconds")]
        print(
            f"{name:18} {means[0]:8.3f}, mixture {means[1]:8.3f}, {each.mean():+.3f} ± {error:.3f}, {means[2]:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""`VAEDensity` without settings beside `GaussianMixture`: log p(x) of held-out rows of data sets that scikit-learn brings.

    python benchmarks/densities.py [--only iris,wine] [--splits 5] [--data-root DIR]

A quarter of the rows is held out in each split; columns are standardised first, so that densities of different data sets can be
compared. The mixture has as many components, up to 15, and such covariances (full, tied, diagonal, spherical) as BIC finds best
on the training rows; at most one full one for every 2 (D + 1) rows of D columns, and 1e-4 added to variances. Which models
`VAEDensity` compares, and how, was chosen on 200 and 700 rows of white wine, 250 and 800 of abalone, 150 and 600 of banknote,
and rows of linear models; earlier versions of its models on iris, wine, breast cancer, moons, s curve, swiss roll, blobs and
friedman. Diabetes showed that a column of two values asks for a start with little noise, and that fits are not to be left
early. With DIR, the folder of the UCI tables, 800 rows of yeast.data are judged, too. One thread. Figures go to
benchmarks/results/densities-cpu.json.
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
import pandas as pd
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
    "diabetes": lambda: np.column_stack(datasets.load_diabetes(return_X_y=True)),
    "moons": lambda: datasets.make_moons(400, noise=0.08, random_state=0)[0],
    "s curve": lambda: datasets.make_s_curve(600, noise=0.05, random_state=0)[0],
    "swiss roll": lambda: datasets.make_swiss_roll(1200, noise=0.3, random_state=0)[0],
    "blobs": lambda: datasets.make_blobs(500, 8, centers=5, random_state=1)[0],
    "friedman": lambda: np.column_stack(datasets.make_friedman1(500, 8, random_state=0)),
    "friedman of 2,000": lambda: np.column_stack(datasets.make_friedman1(2000, 8, random_state=1)),
}


def yeast(root: Path) -> Rows:
    rows = pd.read_csv(root / "yeast.data", header=None, sep=r"\s+").select_dtypes("number").to_numpy(np.float64)
    return rows[np.random.default_rng(1).permutation(len(rows))[:800]]


def mixture(rows: Rows) -> GaussianMixture:
    tried = []
    for kind in ("full", "tied", "diag", "spherical"):
        each = 2 * (rows.shape[1] + 1) if kind == "full" else 10
        for k in range(1, 1 + max(1, min(MOST_COMPONENTS, len(rows) // each))):
            how: dict[str, Any] = {"n_init": 2, "reg_covar": 1e-4, "random_state": 0}
            tried.append(GaussianMixture(k, covariance_type=kind, **how).fit(rows))
    return min(tried, key=lambda one: float(one.bic(rows)))


def measure(name: str, split: int) -> dict[str, Any]:
    rows = TABLES[name]()
    rows = (rows - rows.mean(0)) / rows.std(0)
    train, test = train_test_split(rows, test_size=0.25, random_state=split)
    start = time.process_time()
    density = VAEDensity(random_state=split).fit(train)
    fitted = time.process_time()
    log_p = density.score_samples(test)
    scored = time.process_time()
    other = mixture(train).score_samples(test)
    above = log_p - other
    return {
        "vae": log_p.mean(),
        "mixture": other.mean(),
        "above": above.mean(),
        "above_se": above.std() / len(above) ** 0.5,
        "search": density.fit_.info.get("search"),
        "cpu_seconds": scored - start,
        "fit_cpu_seconds": fitted - start,
        "mixture_cpu_seconds": time.process_time() - scored,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="data sets, separated by commas")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--data-root", type=Path, help="the folder with yeast.data")
    given = parser.parse_args()
    if given.data_root is not None:
        TABLES["yeast"] = lambda: yeast(given.data_root)
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
        means = [float(np.mean([one[key] for one in splits])) for key in ("vae", "mixture", "fit_cpu_seconds")]
        print(
            f"{name:18} {means[0]:8.3f}, mixture {means[1]:8.3f}, {each.mean():+.3f} ± {error:.3f}, {means[2]:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()

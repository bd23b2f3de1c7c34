"""How the default graphs of two estimators were chosen: what they are now beside the one that both had before.

    python benchmarks/starts.py imputer [--data-root DIR]
    python benchmarks/starts.py detector --tables DIR

The graph of before has a mixture of 10 Normals as prior and starts at random; it is passed as `graph=`. `imputer`: root mean
squared error of `VAEImputer` where 40 % of the entries are missing completely at random, two masks, columns of standard
deviation 1; DIR holds banknote_authentication.csv. `detector`: area under the ROC curve of `VAEOutlierDetector`, scored by the
guide, on ten tables of ADBench, those that benchmarks/outliers.py does not have, one split, 3,000 rows at most; DIR holds their
.npz files. One thread. Figures go to benchmarks/results/starts-cpu.json.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn import datasets
from sklearn.ensemble import IsolationForest
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from pyrovae.sklearn import VAEImputer, VAEOutlierDetector, _graphs

RESULTS = Path(__file__).parent / "results" / "starts-cpu.json"
TABLES = ("WBC", "glass", "wine", "Ionosphere", "Stamps", "Hepatitis", "letter", "WPBC", "vertebral", "PageBlocks")
MOST_ROWS = 3000
Rows = NDArray[np.float64]


def before(x: torch.Tensor) -> Any:
    return _graphs.flexible(x, None, (64,))


def imputer(root: Path | None) -> dict[str, Any]:
    tables: dict[str, Rows] = {
        "iris": datasets.load_iris().data,
        "diabetes": datasets.load_diabetes().data,
        "swiss roll": datasets.make_swiss_roll(600, noise=0.3, random_state=0)[0],
    }
    if root is not None:
        tables["banknote"] = np.loadtxt(root / "banknote_authentication.csv", delimiter=",")[:700, :4]
    found = {}
    for name, table in tables.items():
        rows, errors = (table - table.mean(0)) / table.std(0), []
        for mask in range(2):
            hidden = np.random.default_rng(mask).random(rows.shape) < 0.4
            hidden[hidden.all(1)] = False
            holed = np.where(hidden, np.nan, rows)
            tried = (
                VAEImputer(graph=before, random_state=mask),
                VAEImputer(search="none", random_state=mask),
                IterativeImputer(random_state=mask),
            )
            errors.append([np.sqrt(np.square(one.fit_transform(holed) - rows)[hidden].mean()) for one in tried])
        found[name] = dict(zip(("before", "now", "IterativeImputer"), np.mean(errors, 0).tolist()))
        print(name, found[name], flush=True)
    return found


def detector(folder: Path) -> dict[str, Any]:
    found = {}
    for name in TABLES:
        (path,) = folder.glob(f"*_{name}.npz")
        with np.load(path, allow_pickle=True) as held:
            rows, strange = held["X"].astype(float), held["y"].astype(int)
        some = np.random.default_rng(0).permutation(len(rows))[:MOST_ROWS] if len(rows) > MOST_ROWS else slice(None)
        rows, strange = rows[some], strange[some]
        train, test, _, truth = train_test_split(rows, strange, test_size=0.3, random_state=0, stratify=strange)
        tried = {
            "before": VAEOutlierDetector(graph=before, proposal="guide", random_state=0),
            "now": VAEOutlierDetector(proposal="guide", random_state=0),
            "IsolationForest": IsolationForest(random_state=0),
        }
        found[name] = {key: roc_auc_score(truth, -one.fit(train).score_samples(test)) for key, one in tried.items()}
        print(name, found[name], flush=True)
    found["mean"] = {key: float(np.mean([one[key] for one in found.values()])) for key in tried}
    print("mean", found["mean"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("imputer", "detector"))
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--tables", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    part = imputer(given.data_root) if given.part == "imputer" else detector(given.tables)
    kept: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(kept | {"torch": str(torch.__version__), given.part: part}, indent=1) + "\n")


if __name__ == "__main__":
    main()

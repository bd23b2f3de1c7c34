"""A default fit of a table beside the densities of scikit-learn: log p(x) of held-out rows, in the units of the data.

    python benchmarks/tables.py DIR [--only yacht,energy] [--splits 5]

DIR holds one .csv file for each of `TABLES`, all columns of the data set as the UCI repository has it, the class or target
included, with a header. Each split is what `pyrovae fit FILE --seed SPLIT` does, on one thread; the densities are fitted to its
training and validation rows. Rows are paired: the figures are differences of log p(x) to the best density, which was chosen
after the test rows were seen, and so is favoured. The settings of the default were chosen on other tables: glass, wheat seeds,
new thyroid, Boston housing, phoneme, sonar, iris, and kin8nm. Figures go to benchmarks/results/tables-cpu.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

import pyrovae as pv
from pyrovae.app.options import Options
from pyrovae.app.search import search_run
from pyrovae.data.load import read
from pyrovae.tables.baselines import FITTED

RESULTS = Path(__file__).parent / "results" / "tables-cpu.json"
TABLES = (
    *("banknote", "power-plant", "concrete", "energy", "yacht", "pima-indians-diabetes"),
    *("ecoli", "ionosphere", "white-wine", "wdbc", "abalone", "yeast"),
)
NUM_SAMPLES = 300


def measure(path: Path, split: int) -> dict[str, Any]:
    """The figures of one split of a table."""
    dataset = read(str(path))
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        run = search_run(
            dataset, Options.of("fit", seed=split), Path(folder) / "run", device="cpu", threads=1, progress=False
        )
    fitted_in = time.process_time() - start
    rows = run.rows
    assert rows.schema is not None
    result = pv.importance(run.fitted, rows.batch("test"), NUM_SAMPLES, seed=1)
    known = rows.train if rows.validation is None else torch.cat([rows.train, rows.validation])
    densities = pv.tables.baselines(rows.schema, known, rows.test, names=tuple(FITTED), seed=split)
    best = max(densities, key=lambda name: float(densities[name].mean()))
    difference = result.log_likelihood - densities[best]
    return {
        "log_likelihood": result.log_likelihood.mean().item(),
        "k_hat_above_threshold": result.summary()["k_hat_above_threshold"],
        **{name: log_p.mean().item() for name, log_p in densities.items()},
        "best_density": best,
        "difference": difference.mean().item(),
        "difference_se": (difference.std() / len(difference) ** 0.5).item(),
        "prior": run.options.prior,
        "search": run.fitted.info.get("search"),
        "training_rows": len(rows.train),
        "test_rows": len(rows.test),
        "fit_cpu_seconds": fitted_in,
    }


def summary(splits: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean difference over splits, and whether the model is first or within a standard error of the first."""
    each = torch.tensor([split["difference"] for split in splits], dtype=torch.float64)
    within = torch.tensor([split["difference_se"] for split in splits], dtype=torch.float64)
    # rows of one split vary by `within`; the means of several vary by their own standard error, too
    error = max(float(within.mean()) / len(each) ** 0.5, float(each.std()) / len(each) ** 0.5 if len(each) > 1 else 0.0)
    return {"difference": float(each.mean()), "standard_error": error, "holds": bool(each.mean() > -error)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", help="tables, separated by commas")
    parser.add_argument("--splits", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"tables": {}}
    found |= {"torch": torch.__version__, "machine": platform.machine()}
    for split in range(given.splits):
        for name in given.only.split(",") if given.only else TABLES:
            entry = found["tables"].setdefault(name, {"splits": []})
            if len(entry["splits"]) > split:
                continue
            entry["splits"].append(measure(given.folder / f"{name}.csv", split))
            entry |= summary(entry["splits"])
            RESULTS.write_text(json.dumps(found, indent=1) + "\n")
            one = entry["splits"][-1]
            print(
                f"{name:22} split {split}: {one['log_likelihood']:8.2f}, {one['best_density']} "
                f"{one[one['best_density']]:8.2f}, difference {one['difference']:+.2f} ± {one['difference_se']:.2f}; "
                f"over splits {entry['difference']:+.2f} ± {entry['standard_error']:.2f} ({one['prior']}, "
                f"{one['fit_cpu_seconds']:.0f} s)",
                flush=True,
            )


if __name__ == "__main__":
    main()

"""What do answers gain from their order? Tables most of whose columns are ordinal, fitted without settings.

    python benchmarks/ordinal.py --data-root DIR [--tables breast iris ...] [--splits 1]

DIR holds breast-cancer-wisconsin.csv, banknote_authentication.csv, wdbc.data, yeast.data and winequality-white.csv of the UCI
repository, without headers, and with headers bfi.csv of the R package psych (answers of 2,800 persons to 25 items, some with
gaps, and their age, sex and education), free1.csv of Zelig, and anes96.csv of statsmodels, separated by tabs. Of the UCI tables
numbers are cut into so many levels of equal size; `breast` has nine columns of grades from 1 to 10 as they are. `survey`,
`skewed survey` and `questionnaire` are drawn from a model of graded answers, `mixed survey` with gaps, and with an age, a score
and hours that depend on its two factors, and `codes` is the wine table with its levels numbered anew at random in each column,
so that there is no order to be found. At most 400 rows, but for `anes` (944), `bfi` and `mixed survey` (500) and
`questionnaire` (2,000 persons, 30 questions).

Each split is what `pyrovae fit FILE --seed SPLIT` does, on one thread, with the likelihoods `columns` (a probability for each
value) and `ordered-columns`, and which of them the validation rows choose by default. Compared is log p(x) of the test rows, by
300 refined draws, and that of columns that are independent: the share of each value in all rows that are not test rows, half a
row added, and of numbers a Normal of their scale. Settings were chosen on `CHOSEN_ON` and on surveys drawn with other numbers;
the others decided. Figures go to benchmarks/results/ordinal-cpu.json; what is in it is not done again.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn import datasets
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.app.options import Options
from pyrovae.app.search import search_run
from pyrovae.data.load import read as load

RESULTS = Path(__file__).parent / "results" / "ordinal-cpu.json"
MOST_ROWS, DRAWS = 400, 300
ROWS = {"questionnaire": 2000, "mixed survey": 500, "bfi": 500, "anes": 944}  # of others at most MOST_ROWS
CHOSEN_ON = ("wine", "white wine", "diabetes", "survey", "iris", "wdbc", "codes", "bfi")
DECIDED = ("questionnaire", "skewed survey", "mixed survey", "anes", "free", "breast", "yeast", "banknote")


def graded(frame: pd.DataFrame, levels: int) -> pd.DataFrame:
    """Columns of numbers cut into levels of equal size, 0, 1, ..."""
    return frame.apply(lambda column: pd.qcut(column, levels, labels=False, duplicates="drop"))


def answers(seed: int, rows: int, columns: int, factors: int, shift: float) -> pd.DataFrame:
    """Answers in five grades to questions that depend on a few factors; with a shift the low grades are frequent."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(factors, columns))
    wanted = rng.normal(size=(rows, factors)) @ weights + 0.8 * rng.logistic(size=(rows, columns))
    cuts = np.sort(1.3 * rng.normal(size=(columns, 4)), 1) + shift
    return pd.DataFrame({f"q{d}": np.digitize(wanted[:, d], cuts[d]) for d in range(columns)})


def mixed(seed: int) -> pd.DataFrame:
    """Answers to eight items behind which are two factors, and numbers that depend on them, with gaps."""
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(500, 2))
    wanted = factors[:, np.arange(8) // 4] * rng.uniform(0.9, 2.2, size=8) + rng.logistic(size=(500, 8))
    cuts = np.sort(np.linspace(-2.5, 2.5, 4) + 0.5 * rng.normal(size=(8, 4)), 1)
    frame = pd.DataFrame({f"q{d}": 1.0 + np.digitize(wanted[:, d], cuts[d]) for d in range(8)})
    frame["age"] = (45 + 8 * factors[:, 0] + 12 * rng.normal(size=500)).clip(18, 90).round()
    frame["sex"] = rng.choice(["f", "m"], 500)
    frame["score"] = (50 + 6 * factors[:, 1] + 5 * rng.normal(size=500)).round(1)
    frame["hours"] = np.exp(1 + 0.4 * factors[:, 0] + 0.5 * rng.normal(size=500)).round(1)
    return frame.mask(rng.random(frame.shape) < 0.05)


def read(root: Path, name: str) -> pd.DataFrame:
    """A table."""
    if name in ("wine", "codes"):
        frame = graded(datasets.load_wine(as_frame=True).data.iloc[:, :8], 4)
        if name == "codes":
            rng = np.random.default_rng(0)
            frame = frame.apply(lambda column: column.map(dict(enumerate(rng.permutation(4)))))
    elif name == "diabetes":
        frame = graded(datasets.load_diabetes(as_frame=True).frame.drop(columns="sex"), 5)
    elif name == "iris":
        frame = graded(datasets.load_iris(as_frame=True).data, 4)
    elif name == "survey":
        frame = answers(0, 400, 10, 2, 0.0)
    elif name == "skewed survey":
        frame = answers(1, 300, 8, 3, 1.0)
    elif name == "questionnaire":
        frame = answers(2, 2000, 30, 3, 0.0)
    elif name == "mixed survey":
        frame = mixed(3)
    elif name == "bfi":
        frame = pd.read_csv(root / "bfi.csv", index_col=0)
    elif name == "free":
        frame = pd.read_csv(root / "free1.csv", index_col=0).drop(columns="country")
    elif name == "anes":
        frame = pd.read_csv(root / "anes96.csv", sep="\t", quotechar="'")
    elif name == "breast":
        frame = pd.read_csv(root / "breast-cancer-wisconsin.csv", header=None, na_values="?").dropna().iloc[:, -10:-1]
    elif name == "yeast":
        frame = graded(pd.read_csv(root / "yeast.data", header=None, sep=r"\s+").iloc[:, [1, 2, 3, 4, 7, 8]], 4)
    elif name == "wdbc":
        frame = graded(pd.read_csv(root / "wdbc.data", header=None).iloc[:, 2:12], 5)
    else:  # with columns of numbers beside those of grades
        file = "banknote_authentication.csv" if name == "banknote" else "winequality-white.csv"
        frame = pd.read_csv(root / file, header=None)
        frame = frame.iloc[:, :4] if name == "banknote" else frame
    frame = frame.sample(min(ROWS.get(name, MOST_ROWS), len(frame)), random_state=0).reset_index(drop=True)
    frame = frame.rename(columns=lambda c: f"x{c}" if isinstance(c, int) else c)
    if name == "banknote":
        frame[["x0", "x1"]] = graded(frame[["x0", "x1"]], 5)
    return frame


def independent(schema: pv.tables.Schema, known: Tensor, test: Tensor) -> Tensor:
    """log p(x) of rows whose columns are independent, in nats."""
    numbers = len(schema.numbers)
    log_p = torch.zeros(len(test), dtype=torch.float64)
    if numbers:
        family = schema.family(known).families[0]
        params = torch.zeros(len(test), *family.param_shape)
        params[:, 1] = math.log(math.expm1(1.0))  # standard deviation 1 in units of the column, but for the floor
        log_p += pv.observed_only(pv.Conditional(nn.Identity(), family))(params).log_prob(test[:, :numbers]).double()
    for place, column in enumerate(schema.classes, numbers):
        shares = torch.stack([(known[:, place] == k).double().sum() for k in range(len(column.categories))]) + 0.5
        seen = ~test[:, place].isnan()
        log_p[seen] += (shares / shares.sum()).log()[test[seen, place].long()]
    return log_p


def measure(frame: pd.DataFrame, split: int) -> dict[str, Any]:
    """The figures of one split of a table."""
    found: dict[str, Tensor] = {}
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        frame.to_csv(Path(folder) / "table.csv", index=False)
        dataset = load(str(Path(folder) / "table.csv"))
        kept, how = "", {"device": "cpu", "threads": 1, "progress": False}
        while len(found) < 2:  # by default, and then with the other likelihood
            other = {"": None, "columns": "ordered-columns", "ordered-columns": "columns"}[kept]
            options = Options.of("fit", seed=split, likelihood=other)
            run = search_run(dataset, options, Path(folder) / f"run-{other}", **how)
            kept = kept or str(run.options.likelihood)
            log_p = pv.importance(run.fitted, run.rows.batch("test"), DRAWS, seed=1).log_likelihood
            found[str(run.options.likelihood)] = log_p.double()
        rows = run.rows
        assert rows.schema is not None and rows.validation is not None
        apart = independent(rows.schema, torch.cat([rows.train, rows.validation]), rows.test)
    gain = found["ordered-columns"] - found["columns"]
    return {
        "independent": apart.mean().item(),
        "free": found["columns"].mean().item(),
        "ordered": found["ordered-columns"].mean().item(),
        "difference": gain.mean().item(),
        "standard_error": (gain.std() / len(gain) ** 0.5).item(),
        "kept": kept,
        "training_rows": len(rows.train),
        "test_rows": len(rows.test),
        "cpu_seconds": round(time.process_time() - start, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--tables", nargs="+", choices=(*CHOSEN_ON, *DECIDED), default=[*DECIDED, *CHOSEN_ON])
    parser.add_argument("--splits", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    result: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    result["torch"] = str(torch.__version__)
    for name in given.tables:
        frame = read(given.data_root, name)
        for split in range(given.splits):
            entry = result.setdefault(name, {"rows": len(frame), "columns": frame.shape[1], "splits": {}})["splits"]
            if str(split) not in entry:
                entry[str(split)] = measure(frame, split)
                RESULTS.write_text(json.dumps(result, indent=1) + "\n")
            print(name, split, entry[str(split)], flush=True)


if __name__ == "__main__":
    main()

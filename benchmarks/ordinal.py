"""What do answers gain from their order? Tables whose columns are ordinal, held out by a third.

    python benchmarks/ordinal.py --data-root DIR [--tables breast iris ...] [--splits 1]

DIR holds breast-cancer-wisconsin.csv, banknote_authentication.csv, wdbc.data, yeast.data and winequality-white.csv of the UCI
repository. Columns of numbers are cut into so many levels of equal size; the breast table has nine columns of grades from 1 to
10 as they are; `survey` and `skewed survey` are drawn from a model of graded answers, and `codes` is the wine table with its
levels numbered anew at random in each column, so that there is no order to be found. At most 400 rows, but for `questionnaire`,
2,000 persons' answers to 30 questions, drawn from such a model.

`pv.tables.vae` is fitted twice, with free probabilities, its default, and with `OrderedLogistic` (`ordered=True`), with the
settings of `pyrovae fit TABLE`: 3,000 steps at most, the best epoch by validation rows kept. Compared is log p(x) of the rows
held out, by 300 draws of the guide. `wine`, `white wine`, `diabetes` and `survey` were looked at first; the others decided.
Figures go to benchmarks/results/ordinal-cpu.json; what is in it is not done again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn import datasets
from torch import Tensor

import pyrovae as pv

RESULTS = Path(__file__).parent / "results" / "ordinal-cpu.json"
MOST_ROWS, STEPS, DRAWS = 400, 3000, 300
CHOSEN_ON = ("wine", "white wine", "diabetes", "survey")
REPORTED = ("breast", "iris", "yeast", "wdbc", "banknote", "skewed survey", "codes", "questionnaire")


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


def read(root: Path, name: str) -> tuple[pd.DataFrame, list[str]]:
    """A table, and the names of its ordinal columns."""
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
    frame = (
        frame.sample(len(frame) if name == "questionnaire" else min(MOST_ROWS, len(frame)), random_state=0)
        .reset_index(drop=True)
        .rename(columns=lambda c: f"x{c}")
    )
    ordinal = {"banknote": ["x0", "x1"], "white wine": ["x11"]}.get(name, list(frame))
    if name == "banknote":
        frame[ordinal] = graded(frame[ordinal], 5)
    return frame, ordinal


def encoded(frame: pd.DataFrame, ordinal: list[str]) -> tuple[pv.tables.Schema, Tensor]:
    kinds = {
        name: pd.Categorical(frame[name], categories=sorted(frame[name].unique()), ordered=True) for name in ordinal
    }
    table = frame.assign(**kinds)
    schema = pv.tables.infer(table)
    return schema, schema.encode(table)


def log_p(schema: pv.tables.Schema, rows: Tensor, split: int, ordered: bool) -> Tensor:
    """log p(x) of the third of the rows that is held out, in nats."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(split))
    test, train = rows[order[: len(rows) // 3]], rows[order[len(rows) // 3 :]]
    torch.manual_seed(split)
    prior = "mixture" if schema.numbers else "normal"
    model = pv.tables.vae(schema, train, prior=prior, ordered=ordered)
    learned_from = int(0.85 * len(train))
    batch = max(32, min(128, learned_from // 8))
    epochs = min(1000, math.ceil(STEPS * batch / learned_from))
    fitted = pv.fit(
        model,
        train,
        epochs=epochs,
        batch_size=batch,
        schedule=pv.schedules.one_cycle(3e-3),
        validation=0.15,
        keep_best=True,
        patience=max(50, math.ceil(epochs / 4)),
        seed=split,
        threads=1,
        progress=False,
    )
    return pv.log_likelihood(fitted, test, DRAWS, proposal="guide", seed=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--tables", nargs="+", choices=(*CHOSEN_ON, *REPORTED), default=list(REPORTED))
    parser.add_argument("--splits", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    result: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    result["torch"] = str(torch.__version__)
    for name in given.tables:
        schema, rows = encoded(*read(given.data_root, name))
        for split in range(given.splits):
            kept = result.setdefault(name, {"rows": len(rows), "columns": rows.shape[1], "splits": {}})["splits"]
            if str(split) not in kept:
                start = time.process_time()
                free, ordered = (log_p(schema, rows, split, one).double() for one in (False, True))
                more = ordered - free
                kept[str(split)] = {
                    "free": float(free.mean()),
                    "ordered": float(ordered.mean()),
                    "difference": float(more.mean()),
                    "standard_error": float(more.std() / len(more) ** 0.5),
                    "held_out": len(more),
                    "cpu_seconds": round(time.process_time() - start, 1),
                }
                RESULTS.write_text(json.dumps(result, indent=1) + "\n")
            print(name, split, kept[str(split)], flush=True)


if __name__ == "__main__":
    main()

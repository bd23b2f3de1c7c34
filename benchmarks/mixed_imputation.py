"""How near to the truth are missing cells of mixed tables? Adult and Wine with the masks of HI-VAE.

    python benchmarks/mixed_imputation.py --data-root HI-VAE [--tables Wine Adult] [--masks 1 2 3] [--shares 20]

HI-VAE is a checkout of https://github.com/probabilistic-learning/HI-VAE (Nazabal, Olmos, Ghahramani & Valera 2020,
arXiv:1807.03653), which holds the tables, what their columns are, and the cells that are hidden: 10, 20 or 50 % of all, at
random, ten masks of each. Everything is fitted to the table with gaps, and fills it in. The error of a column is that paper's:
of classes the share of wrong cells; of ordered classes the mean number of steps between guess and truth, divided by the number
of classes; of numbers the root mean squared error, divided by the range of the column. Errors are averaged over the columns of
a kind, and over all. In Adult, cells that were missing before are not counted.

`pv.tables.vae`, the model of `pyrovae fit TABLE`, is told what the columns are, and otherwise has no settings; it is fitted by
the importance-weighted bound of 20 draws to 90 % of the rows, and the others say which epoch is kept. `pv.impute` fills in, by
draws of the guide: the mean of a number, the most frequent class, the median of ordered classes. Beside it: the mean of a
number and the most frequent class; and IterativeImputer with Bayesian ridge regression (scikit-learn), where a class has a
column for each value, of which the largest is the guess. Figures go to benchmarks/results/mixed-imputation-cpu.json; what is in
it is not done again.
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
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer

import pyrovae as pv

RESULTS = Path(__file__).parent / "results" / "mixed-imputation-cpu.json"
Array = NDArray[np.float64]
PARTICLES, CANDIDATES, DRAWS = 20, 200, 51
EPOCHS, BATCH, RATE = {"Wine": 20, "Adult": 5}, 128, 2e-3
KINDS = {"pos": "number", "real": "number", "count": "number", "cat": "class", "ordinal": "ordered"}


class Table:
    """A table, what its columns are, and its hidden cells.

    Attributes:
        whole: All cells, `(N, D)`, NaN where they were missing before; classes are 0, 1, ...
        kinds: Of each column, as the files call it.
        levels: The number of classes of each column, 0 for numbers.
        gaps: Which cells are hidden, `(N, D)`.
    """

    def __init__(self, root: Path, name: str, share: int, mask: int) -> None:
        types = pd.read_csv(root / name / "data_types.csv")
        self.kinds = list(types["type"])
        self.whole = pd.read_csv(root / name / "data.csv", header=None).to_numpy(dtype=np.float64)
        before = root / name / "MissingTrue.csv"
        if before.exists():
            row, column = pd.read_csv(before, header=None).to_numpy().T - 1
            self.whole[row, column] = np.nan
        self.levels = [0] * len(self.kinds)
        for d, kind in enumerate(self.kinds):
            if KINDS[kind] != "number":
                known = ~np.isnan(self.whole[:, d])
                values, codes = np.unique(self.whole[known, d], return_inverse=True)
                self.whole[known, d], self.levels[d] = codes, len(values)
        self.gaps = np.zeros(self.whole.shape, dtype=bool)
        row, column = pd.read_csv(root / name / f"Missing{share}_{mask}.csv", header=None).to_numpy().T - 1
        self.gaps[row, column] = True
        self.gaps &= ~np.isnan(self.whole)

    @property
    def seen(self) -> Array:
        return np.where(self.gaps, np.nan, self.whole)

    def errors(self, guess: Array) -> dict[str, float]:
        """The error of each kind of column, of all, and of each column."""
        each = []
        for d, kind in enumerate(self.kinds):
            truth, found = self.whole[self.gaps[:, d], d], guess[self.gaps[:, d], d]
            if KINDS[kind] == "class":
                each.append(float((truth != found).mean()))
            elif KINDS[kind] == "ordered":
                each.append(float(np.abs(truth - found).mean() / self.levels[d]))
            else:
                width = np.nanmax(self.whole[:, d]) - np.nanmin(self.whole[:, d])
                each.append(float(np.sqrt(np.mean((truth - found) ** 2)) / width))
        kinds = [KINDS[kind] for kind in self.kinds]
        by_kind = {one: float(np.mean([e for e, k in zip(each, kinds) if k == one])) for one in dict.fromkeys(kinds)}
        return {**by_kind, "all": float(np.mean(each)), **{f"column {d}": error for d, error in enumerate(each)}}


def means_and_modes(table: Table) -> Array:
    frame = pd.DataFrame(table.seen)
    fill = {d: frame[d].mode()[0] if levels else frame[d].mean() for d, levels in enumerate(table.levels)}
    return frame.fillna(fill).to_numpy()


def iterative(table: Table) -> Array:
    """With a column for each class; of ordered classes, which are numbers for it, the nearest one."""
    seen, columns, places = table.seen, [], []
    for d, kind in enumerate(table.kinds):
        one_hot = KINDS[kind] == "class" and table.levels[d] > 2
        known = np.isnan(seen[:, [d]])
        made = np.where(known, np.nan, seen[:, [d]] == np.arange(table.levels[d])) if one_hot else seen[:, [d]]
        places.append(slice(sum(c.shape[1] for c in columns), sum(c.shape[1] for c in columns) + made.shape[1]))
        columns.append(made)
    rows = np.concatenate(columns, 1)
    mean, sd = np.nanmean(rows, 0), np.nanstd(rows, 0) + 1e-12
    filled = IterativeImputer(max_iter=10, random_state=0).fit_transform((rows - mean) / sd) * sd + mean
    guess = np.empty_like(seen)
    for d, place in enumerate(places):
        found = filled[:, place]
        guess[:, d] = found.argmax(1) if found.shape[1] > 1 else found[:, 0]
        if table.levels[d] and found.shape[1] == 1:
            guess[:, d] = guess[:, d].round().clip(0, table.levels[d] - 1)
    return guess


def schema_of(table: Table) -> tuple[pv.tables.Schema, pd.DataFrame]:
    """What `pv.tables.infer` finds out of the numbers; which columns are classes is what the files say."""
    frame = pd.DataFrame(table.seen, columns=[f"x{d}" for d in range(len(table.kinds))])
    for d, levels in enumerate(table.levels):
        if levels:
            ordered = table.kinds[d] == "ordinal"
            frame[f"x{d}"] = pd.Categorical(frame[f"x{d}"], categories=np.arange(float(levels)), ordered=ordered)
    columns = pv.tables.infer(frame).columns
    numbers = [
        pv.tables.Column(one.name, "count", step=1.0, low=0.0) if one.is_class and not levels else one
        for one, levels in zip(columns, table.levels)
    ]
    return pv.tables.Schema(tuple(numbers)), frame


def ours(table: Table, epochs: int) -> Array:
    schema, frame = schema_of(table)
    rows = schema.encode(frame)
    torch.manual_seed(0)
    model = pv.tables.vae(schema, rows, gaps=True)
    fitted = pv.fit(
        model,
        rows,
        epochs=epochs,
        batch_size=BATCH,
        loss=pv.IWELBO(PARTICLES),
        schedule=pv.schedules.one_cycle(RATE),
        validation=0.1,
        keep_best=True,
        seed=0,
        threads=1,
        progress=False,
    )
    imputed = pv.impute(fitted, rows, DRAWS, num_particles=CANDIDATES, proposal="guide", seed=0)
    guess, middle = (
        dict(zip(schema.names, found.T.double().numpy())) for found in (imputed.mean, imputed.draws.median(0)[0])
    )
    return np.column_stack([(middle if k == "ordinal" else guess)[f"x{d}"] for d, k in enumerate(table.kinds)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="a checkout of HI-VAE")
    parser.add_argument("--tables", nargs="+", default=["Wine"])
    parser.add_argument("--shares", nargs="+", type=int, default=[20])
    parser.add_argument("--masks", nargs="+", type=int, default=[1, 2, 3])
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    result: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    result["torch"] = str(torch.__version__)
    for name in given.tables:
        ways: dict[str, Callable[[Table], Array]] = {
            "means and modes": means_and_modes,
            "IterativeImputer": iterative,
            "pv.impute": lambda table, name=name: ours(table, EPOCHS[name]),
        }
        for share in given.shares:
            for mask in given.masks:
                table = Table(given.data_root, name, share, mask)
                kept = result.setdefault(name, {}).setdefault(str(share), {}).setdefault(str(mask), {})
                for way, fill in ways.items():
                    if way not in kept:
                        start = time.process_time()
                        found = table.errors(fill(table))
                        kept[way] = {**found, "cpu_seconds": round(time.process_time() - start, 1)}
                        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
                    shown = {key: round(value, 4) for key, value in kept[way].items() if not key.startswith("column")}
                    print(name, share, mask, way, shown, flush=True)


if __name__ == "__main__":
    main()

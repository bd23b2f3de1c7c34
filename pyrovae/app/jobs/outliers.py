"""Outliers: which rows of a new table are strange to a run, how surely, and in which columns."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrovae._files import write_file
from pyrovae._sources import TABLES
from pyrovae.app.catalogue import CONDITION
from pyrovae.app.decide import class_names
from pyrovae.app.given import GivenCaptions
from pyrovae.app.rows import Array
from pyrovae.app.run import Run
from pyrovae.criticism.entries import entry_densities
from pyrovae.criticism.outliers import Anomaly, adjusted_p_values, anomaly_score, conformal_p_values
from pyrovae.data.captioned import captioned
from pyrovae.data.dataset import Dataset
from pyrovae.data.load import read
from pyrovae.data.tables import NO_IDS, table_columns
from pyrovae.errors import DataError, OptionError, PairError
from pyrovae.pair.batch import take_rows

METHODS = ("log_likelihood", "regret", "typicality")
COLUMNS_NAMED = 3  # of each row
MOST_CALIBRATION = 1000  # rows
MOST_EXPLAINED = 500  # rows, the strangest, whose columns are named
ENTRY_DRAWS = 200  # posterior draws, of which the densities of entries are averages


@dataclass(frozen=True, eq=False)
class Outliers:
    """What the job found.

    Args:
        table: one line a row, in the order of the source: its name, rank, score and error, p-value, the rate at which it is
            called an outlier, whether it is, and, of the strangest rows, the columns in which they are so, with their p-values.
        calibration: how many ordinary rows the p-values come from.
        rate: the false discovery rate.
        notes: what a reader should know.
    """

    table: pd.DataFrame
    calibration: int
    rate: float
    notes: tuple[str, ...]

    @property
    def found(self) -> pd.DataFrame:
        """The rows that are called outliers, strangest first."""
        return self.table[self.table["outlier"]].sort_values("rank")


def find_outliers(
    run: Run,
    source: str,
    *,
    method: str,
    rate: float,
    num_samples: int,
    proposal: str,
    seed: int = 0,
    data_root: Path | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> Outliers:
    """Score the rows of a table under a run, and compare them with the run's test rows, which its fit has not seen.

    Args:
        source: a table with the columns of the run, or a name as for `fit`.
        method: of `pv.anomaly_score`; "typicality" takes the mean of the test rows.
        rate: the share of ordinary rows that is tolerated among those that are called outliers, by Benjamini and Hochberg.
        num_samples: draws per row.
        proposal: of these draws.
        say: called with what is being done.

    Raises:
        OptionError: the method or the rate is impossible.
        DataError: the table has other columns than the run, or values that its likelihood does not take.
    """
    if method not in METHODS:
        raise OptionError(f"--method must be one of {', '.join(METHODS)}, got {method}.")
    if not 0 < rate < 1:
        raise OptionError(f"--rate must be between 0 and 1, got {rate:g}.")
    dataset = read_like(run, source, data_root)
    new = batch_like(run, dataset)
    ordinary = take_rows(run.rows.batch("test"), slice(0, MOST_CALIBRATION))
    how: dict[str, Any] = {"num_samples": num_samples, "proposal": proposal}
    if method == "typicality":
        how["reference"] = ordinary
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of the guide as the proposal, and of rows with few draws: they are the strange ones
        say(f"scores of {len(ordinary['x'])} test rows, to compare with")
        usual = anomaly_score(run.fitted, ordinary, method, seed=seed, **how)
        say(f"scores of {len(new['x'])} rows")
        found = anomaly_score(run.fitted, new, method, seed=seed + 1, **how)
        strangest = (found.ranks <= MOST_EXPLAINED).nonzero().flatten()
        say(f"which columns are strange in {len(strangest)} rows")
        places, columns = _strange_columns(run, take_rows(new, strangest), ordinary, num_samples, proposal, seed)
    p = conformal_p_values(usual.score, found.score)
    table = _table(run, dataset, found, p, rate, strangest.numpy(), places, columns)
    return Outliers(table, len(usual.score), rate, tuple(_notes(len(usual.score), len(p), rate, columns is None)))


def read_like(run: Run, source: str, data_root: Path | None = None) -> Dataset:
    """Read a table as the run's own was read. DataError where it lacks a column; others are left out."""
    known: Mapping[str, Any] = run.dataset.source
    label, table = known.get("label"), {}
    path = Path(source).expanduser()
    if path.suffix.lower() in TABLES and "header" in known:
        names = table_columns(path, known["header"])
        label = label if label in names else None
        others = [name for name in names if name not in (*(run.dataset.columns or ()), label)]
        ids = known["ids"] if known["ids"] in others else next((n for n in others if n.lower().endswith("id")), None)
        drop = [name for name in others if name != ids] if run.dataset.columns else ()
        table = {"header": known["header"], "ids": ids or NO_IDS, "drop": drop, "look": False}
        if run.rows.schema is not None:
            table |= {"columns": run.rows.schema.to_json(), "coded": True}
        table |= {name: known[name] for name in ("conditions", "condition_columns") if name in known}
    dataset = read(source, data_root=data_root, label=label, **table)
    if run.dataset.captions is not None:
        same = dataset.classes == run.dataset.classes  # else captions leave the class out
        told = captioned(dataset if same else replace(dataset, y=None, y_test=None), run.dataset.captions)
        dataset = replace(dataset, c=told.c, c_test=told.c_test)
    wanted, got = run.rows.columns, dataset.columns
    if wanted is not None and got is not None:
        missing = [name for name in wanted if name not in got]
        if missing:
            raise DataError(
                f"{source} has no column {', '.join(map(repr, missing[:5]))}{', ...' if len(missing) > 5 else ''}, and the run "
                f"was fitted to {len(wanted)} columns: {', '.join(wanted[:8])}{', ...' if len(wanted) > 8 else ''}."
            )
        places = torch.tensor([got.index(name) for name in wanted])
        x = dataset.x[:, places]
    else:
        x = dataset.x
    num = run.rows.test[0].numel()
    if x.shape[1] != num:
        raise DataError(f"{source} has {x.shape[1]} columns, and the run was fitted to {num}.")
    ratio = dataset.source.get("divided_by", 1) / run.dataset.source.get("divided_by", 1)  # pixels of 8 bits
    return replace(dataset, x=x * ratio, columns=wanted)


def batch_like(run: Run, dataset: Dataset) -> dict[str, Tensor]:
    """All rows of another data set as the arguments of the run's model."""
    rows = run.rows
    x = dataset.x if dataset.x_test is None else torch.cat([dataset.x, dataset.x_test])
    scaled = x if rows.scaler is None else rows.scaler.apply(x)
    batch = {"x": scaled.reshape(len(x), *rows.test.shape[1:])}
    if isinstance(rows.given, GivenCaptions):
        batch |= rows.given.argument(torch.cat([c for c in (dataset.c, dataset.c_test) if c is not None]))
    elif rows.given is not None:
        if dataset.c is None or dataset.x_test is not None:
            raise DataError("The model is given columns of a table: give a table that has them.")
        batch |= rows.given.argument(dataset.c)
    elif rows.argument == CONDITION:
        names, own = class_names(dataset), [str(name) for name in class_names(run.dataset)]
        if dataset.y is None or dataset.x_test is not None:
            raise DataError(
                f"The model is given the class of each row: the table needs the column {run.dataset.source['label']}."
            )
        unknown = sorted({str(name) for name in names} - set(own))
        if unknown or bool((dataset.y < 0).any()):
            which = f"the classes {', '.join(unknown)}" if unknown else "rows without a class"
            raise DataError(
                f"The model is given the class of each row, and the table has {which}; known are {', '.join(own)}."
            )
        batch[CONDITION] = torch.tensor([own.index(str(names[code])) for code in dataset.y.tolist()])
    return batch


def _strange_columns(
    run: Run, new: dict[str, Tensor], ordinary: dict[str, Tensor], num_samples: int, proposal: str, seed: int
) -> tuple[Tensor | None, Array | None]:
    """For each row and column the conformal p-value of its density given the other columns; None for a joint density."""
    how: dict[str, Any] = {"site": "x", "num_samples": ENTRY_DRAWS, "num_particles": num_samples, "proposal": proposal}
    try:
        usual = entry_densities(run.fitted, ordinary, seed=seed, **how).leave_one_out.flatten(1)
        found = entry_densities(run.fitted, new, seed=seed + 1, **how).leave_one_out.flatten(1)
    except PairError:
        return None, None
    columns = []
    for own, theirs in zip(found.T, usual.T):
        known, there = ~own.isnan(), ~theirs.isnan()
        p = torch.ones(len(own), dtype=torch.float64)
        if bool(there.any()):
            p[known] = conformal_p_values(-theirs[there], -own[known])
        columns.append(p)
    p_values = torch.stack(columns, 1)
    # ties, as of all columns that are stranger than any calibration row, in the order of the densities
    order = (p_values + 1e-9 * found.nan_to_num(0.0).clamp(-1e4, 1e4) / 1e4).argsort(1)
    return order[:, :COLUMNS_NAMED], p_values.numpy()


def _table(
    run: Run,
    dataset: Dataset,
    found: Anomaly,
    p: Tensor,
    rate: float,
    strangest: Array,
    places: Tensor | None,
    columns: Array | None,
) -> pd.DataFrame:
    adjusted = adjusted_p_values(p)
    names = dataset.ids if dataset.ids is not None else range(len(p))
    table = pd.DataFrame(
        {
            "id" if dataset.ids is not None else "row": list(names)[: len(p)],
            "rank": found.ranks.numpy(),
            "score": found.score.numpy(),
            "error": found.error.numpy(),
            "k_hat": found.k_hat.numpy(),
            "p_value": p.numpy(),
            "adjusted_p": adjusted.numpy(),
            "outlier": (adjusted <= rate).numpy(),
        }
    )
    if places is not None and columns is not None:
        called = np.array(run.rows.columns or [f"x{i}" for i in range(columns.shape[1])], dtype=object)
        for number in range(places.shape[1]):
            which = places[:, number].numpy()
            table.loc[strangest, f"column_{number + 1}"] = called[which]
            table.loc[strangest, f"p_column_{number + 1}"] = columns[np.arange(len(which)), which]
    return table


def _notes(calibration: int, rows: int, rate: float, joint: bool) -> list[str]:
    notes = [
        f"p-values compare with {calibration} test rows of the run, which its fit has not seen: of ordinary rows, a share of "
        f"at most a has a p-value below a. Of the rows called outliers, on average at most {rate:.0%} are ordinary ones."
    ]
    least = 1 / (calibration + 1)
    if least * rows > rate:
        needed, together = math.ceil(rows / rate) - 1, math.ceil(rows * least / rate)
        notes.append(
            f"No p-value can be below {least:.2g} with {calibration} test rows, so that at a rate of {rate:g} a single outlier "
            f"among {rows} rows cannot be called one, but only {together} or more together. Look at the ranks, or fit with a "
            f"larger --test-fraction: {needed} test rows would do."
        )
    if joint:
        notes.append("The likelihood is a joint density of all columns, so that no single column can be named.")
    return notes


def write_outliers(found: Outliers, path: Path) -> None:
    """Write the table as CSV."""
    write_file(path, found.table.to_csv(index=False, float_format="%.6g").encode())

"""Imputation: the missing cells of a table, filled in under a run that was fitted to such a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrovae._files import write_file
from pyrovae.app.catalogue import CONDITION
from pyrovae.app.given import Given
from pyrovae.app.run import Run
from pyrovae.data.tables import PACKAGES, read_frame, read_text
from pyrovae.errors import DataError, OptionError
from pyrovae.recover.impute import impute

FORMATS = (".csv", ".parquet")
DRAW = "draw"  # the column with the number of the completed table


@dataclass(frozen=True, eq=False)
class Filled:
    """What the job found.

    Args:
        tables: the completed tables: one with the best guess of each cell, or one for each draw.
        cells: how many cells were filled in.
        by_column: how many in each column that had any.
        left: the columns with missing cells that the run does not model, which stay as they are.
        separator, decimal, named: how the file of the source was written, and whether it names its columns.
    """

    tables: tuple[pd.DataFrame, ...]
    cells: int
    by_column: dict[str, int]
    left: tuple[str, ...]
    separator: str = ","
    decimal: str = "."
    named: bool = True


def fill_in(
    run: Run, source: str, *, draws: int, num_samples: int, proposal: str, seed: int = 0, header: bool | None = None
) -> Filled:
    """Fill in the missing cells of a table by `pv.impute`. All other cells stay as they are written.

    Args:
        source: a table with the columns of the run, in any order, and perhaps others.
        draws: how many completed tables; 0 makes one, with the mean of each missing number and the most frequent class.
        num_samples: draws of the proposal per row.
        proposal: of these draws.
        header: whether the first line has names; None finds out.

    Raises:
        OptionError: `draws` is negative, or the model is given the class of each row.
        DataError: the table lacks a column of the run, has cells that are no values of it, or the run's model, which was
            fitted to whole rows, has no room for missing cells.
    """
    if draws < 0:
        raise OptionError(f"--draws must be 0 or more, got {draws}.")
    path = Path(source).expanduser()
    frame, form = read_frame(path, header)
    names = rows_of(run, frame)[0]
    batch = batch_of(run, frame)
    found = impute(run.fitted, batch, max(draws, 1), num_particles=num_samples, proposal=proposal, seed=seed)
    completed = found.mean[None] if draws == 0 else found.draws
    texts = None if path.suffix.lower() in PACKAGES else read_text(path, form, list(frame.columns), frame)
    gaps = frame.isna()
    tables = []
    for values in completed:
        restored = run.rows.restore(values)
        schema = run.rows.schema
        decoded = pd.DataFrame(restored.numpy(), columns=list(names)) if schema is None else schema.decode(restored)
        tables.append(_typed(frame, gaps, decoded) if texts is None else _written(texts, gaps, decoded, form.decimal))
    by_column = {name: int(gaps[name].sum()) for name in names if gaps[name].any()}
    left = tuple(str(name) for name in frame if name not in names and gaps[name].any())
    separator = form.separator if len(form.separator) == 1 else ","
    return Filled(tuple(tables), sum(by_column.values()), by_column, left, separator, form.decimal, form.named)


def batch_of(run: Run, frame: pd.DataFrame) -> dict[str, Tensor]:
    """The rows of a table as the arguments of a run's model, with the columns that it is given."""
    known = run.rows.given
    given = known.argument(known.schema.encode(frame)) if isinstance(known, Given) else {}
    return {"x": rows_of(run, frame)[1], **given}


def rows_of(run: Run, frame: pd.DataFrame) -> tuple[tuple[str, ...], Tensor]:
    """The columns of a run in a table, and its rows as the run's model takes them."""
    rows, schema = run.rows, run.rows.schema
    if rows.argument == CONDITION and not isinstance(rows.given, Given):
        what = "class" if rows.given is None else "caption"
        raise OptionError(
            f"The run's model is given the {what} of each row: in Python, pv.impute and others take it beside the rows."
        )
    if schema is not None:
        names, values = schema.names, schema.encode(frame)
    else:
        names = run.dataset.columns or tuple(map(str, frame.columns))
        absent = [name for name in names if name not in frame]
        if absent or len(names) != run.dataset.x.shape[1]:
            raise DataError(
                f"The table needs the {run.dataset.x.shape[1]} columns of the run"
                + (f", and has no column {absent[0]!r}." if absent else f", and has {len(names)}.")
            )
        try:
            values = torch.tensor(frame[list(names)].to_numpy(dtype=np.float64), dtype=torch.float32)
        except (TypeError, ValueError) as error:
            raise DataError(f"The run was fitted to numbers, and a cell of the table is none ({error}).") from error
    scaled = values if rows.scaler is None else rows.scaler.apply(values)
    return names, scaled.reshape(len(scaled), *rows.test.shape[1:])


def _typed(frame: pd.DataFrame, gaps: pd.DataFrame, decoded: pd.DataFrame) -> pd.DataFrame:
    """The table with its dtypes, and decoded cells in its gaps."""
    filled = frame.copy()
    for name in decoded:
        gone = gaps[name].to_numpy()
        if not gone.any():
            continue
        column = frame[name].astype(object)
        column[gone] = decoded[name].astype(object).to_numpy()[gone]
        try:
            filled[name] = column.astype(frame[name].dtype)
        except (TypeError, ValueError):  # a mean of whole numbers is none
            filled[name] = column.infer_objects()
    return filled


def _written(texts: pd.DataFrame, gaps: pd.DataFrame, decoded: pd.DataFrame, decimal: str) -> pd.DataFrame:
    """The table as text, as it was written, and decoded cells in its gaps."""
    filled = texts.copy()
    for name in decoded:
        gone = gaps[name].to_numpy()
        if gone.any():
            column = filled[name].to_numpy(dtype=object, copy=True)
            column[gone] = [_text(value, decimal) for value in decoded[name].to_numpy(dtype=object)[gone]]
            filled[name] = column
    return filled


def _text(value: Any, decimal: str) -> str:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number):
        return str(value)
    number = float(value)
    return str(int(number)) if number.is_integer() else f"{number:.7g}".replace(".", decimal)


def write_filled(found: Filled, path: Path) -> None:
    """Write the table; several below one another, with the number of the draw, from 1 on, in a column in front."""
    table = found.tables[0]
    if len(found.tables) > 1:
        table = pd.concat([_numbered(one, k) for k, one in enumerate(found.tables, 1)], ignore_index=True)
    if path.suffix == ".parquet":
        table.to_parquet(path, index=False)
    else:
        text = table.to_csv(index=False, sep=found.separator, decimal=found.decimal, header=found.named)
        write_file(path, text.encode())


def _numbered(table: pd.DataFrame, number: int) -> pd.DataFrame:
    numbered = table.copy()
    numbered.insert(0, DRAW, number, allow_duplicates=True)
    return numbered


def summary(found: Filled) -> str:
    """What was filled in, in a sentence."""
    which = ", ".join(f"{name} ({number})" for name, number in list(found.by_column.items())[:8])
    more = f" and {len(found.by_column) - 8} other columns" if len(found.by_column) > 8 else ""
    said = f"{found.cells} missing cells filled in: {which}{more}." if found.cells else "No cell is missing."
    if found.left:
        said += f" The run does not model {', '.join(found.left[:5])}, whose missing cells stay."
    return said

"""Imputation: the missing cells of a table, filled in under a run that was fitted to such a table."""

from __future__ import annotations

import datetime
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from pyrovae.app.jobs.batch import batch_of, columns_of, is_folder, table_of
from pyrovae.app.jobs.blocks import DRAW, begun, check_number, rows_at_once
from pyrovae.app.jobs.frames import Block
from pyrovae.app.run import Run
from pyrovae.data.lines import BOM, UTF8
from pyrovae.errors import OptionError, counted
from pyrovae.recover.impute import impute
from pyrovae.tables.cells import as_days, date_form
from pyrovae.tables.columns import Column
from pyrovae.tables.numerals import form_of, style_in, write


@dataclass(frozen=True)
class Filled:
    """What the job found.

    Args:
        tables: how many completed tables were written: one with the best guess of each cell, or one for each draw.
        by_column: how many cells were filled in, in each column that had any.
        left: the columns with missing cells that the run does not model, which stay as they are.
    """

    tables: int
    by_column: Mapping[str, int]
    left: tuple[str, ...]

    @property
    def cells(self) -> int:
        """How many cells were filled in."""
        return sum(self.by_column.values())


def fill_in(
    run: Run,
    source: Path,
    to: Path,
    *,
    draws: int,
    num_samples: int,
    proposal: str,
    seed: int = 0,
    force: bool = False,
    say: Callable[[str], None] = lambda message: None,
    rows: int | None = None,
) -> Filled:
    """Write a table with its missing cells filled in by `pv.impute`, block by block. All other cells stay as they are written.

    Several tables stand below one another, with the number of the draw, from 1 on, in a column in front. Each block has random
    numbers of its own.

    Args:
        source: a table with the columns of the run, in any order, and perhaps others.
        to: the file to write, .csv or .parquet.
        draws: how many completed tables; 0 makes one, with the mean of each missing number and the most frequent class.
        num_samples: draws of the proposal per row.
        proposal: of these draws.
        force: start anew where another job was stopped.
        say: called with messages.
        rows: how many rows are read at once.

    Raises:
        OptionError: `draws` is negative or too many, the ending of a file is unknown, or the model is given a caption.
        DataError: the table lacks a column of the run, has cells that are no values of it, or the run's model, which was
            fitted to whole rows, has no room for missing cells.
    """
    check_number(draws)
    if is_folder(source):
        raise OptionError(
            f"{source} is a folder, and missing cells are those of a table: images have none. Pixels that are not known can be "
            "empty cells of a .csv file, or NaN in a .npy file, with a column for each pixel."
        )
    width = run.rows.test[0].numel()
    table = table_of(run, source, rows or rows_at_once(run, max(num_samples, draws * width)))
    how: dict[str, Any] = {"num_particles": num_samples, "proposal": proposal}
    gaps: Counter[str] = Counter()
    warned: list[str] = []

    def complete(block: Block, number: int) -> list[pd.DataFrame]:
        if draws > 1 and DRAW in block.frame:
            raise OptionError(f"{source} has a column {DRAW!r}, which --draws {draws} writes: rename it.")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = impute(run.fitted, batch_of(run, block), max(draws, 1), seed=seed + number, **how)
        warned.extend(str(warning.message) for warning in caught)
        completed = found.mean[None] if draws == 0 else found.draws
        tables = [_completed(run, block, values, table.form.decimal) for values in completed]
        if draws > 1:
            for k, one in enumerate(tables, 1):
                one.insert(0, DRAW, k)
        return tables

    separator = table.form.separator if len(table.form.separator) == 1 else ","
    asked = {"asked": "impute", "draws": draws, "num_samples": num_samples, "proposal": proposal, "seed": seed}
    csv = {
        "sep": separator,
        "decimal": table.form.decimal,
        "header": table.form.named and table.form.header_of,
        "lineterminator": table.form.ends,
    }
    job_of: dict[str, Any] = {"force": force, "say": say, "csv": csv}
    with begun(run, {**asked, **table.identity}, table.path, to, **job_of) as job:
        job.answer(
            table.blocks(texts=None), complete, look=lambda block: gaps.update(_number_of_gaps(run, block.frame))
        )
        # Excel takes a file without this mark for one in Windows-1252, as its own was
        job.join(max(draws, 1), begins=table.form.begins or BOM * (table.form.encoding != UTF8))
    if warned:
        more = (
            f" (So or similarly {len(warned)} times, for blocks of {counted(table.rows, 'row')}.)"
            if len(warned) > 1
            else ""
        )
        warnings.warn(warned[0] + more, stacklevel=2)
    names = columns_of(run, gaps)
    by_column = {name: gaps[name] for name in names if gaps[name]}
    left = tuple(name for name in gaps if name not in names and gaps[name])
    return Filled(max(draws, 1), by_column, left)


def _gaps(run: Run, frame: pd.DataFrame) -> pd.DataFrame:
    """Which cells are missing: in columns of the run also those with a mark such as "-", which it takes for missing."""
    gaps = frame.isna()
    columns = () if run.rows.schema is None else run.rows.schema.modelled
    there = [column for column in columns if column.name in frame]  # one that is not is told when the rows are made
    texts = [column for column in there if not pd.api.types.is_numeric_dtype(frame[column.name])]
    marked = {column.name: column.gaps(frame[column.name]) for column in texts}
    return gaps.assign(**marked)


def _number_of_gaps(run: Run, frame: pd.DataFrame) -> dict[str, int]:
    """How many cells of each column are missing."""
    return {str(name): int(number) for name, number in _gaps(run, frame).sum().items()}


def _completed(run: Run, block: Block, values: Tensor, decimal: str) -> pd.DataFrame:
    """A block with its gaps filled from rows of the run's model."""
    restored, schema, gaps = run.rows.restore(values), run.rows.schema, _gaps(run, block.frame)
    if schema is None:
        decoded = pd.DataFrame(restored.numpy(), columns=list(columns_of(run, block.frame)))
    else:
        decoded = schema.decode(restored)
        written = schema.written(decoded)
        if block.texts is None:  # of Parquet, whose dates need not be texts
            written = written[
                [name for name in decoded if block.frame[name].map(lambda cell: isinstance(cell, str)).any()]
            ]
        decoded = decoded.assign(**written)
    columns = {} if schema is None else {column.name: column for column in schema.modelled}
    if block.texts is None:
        return _typed(block.frame, gaps, decoded, columns)
    return _written(block.texts, gaps, decoded, decimal, columns)


def _typed(
    frame: pd.DataFrame, gaps: pd.DataFrame, decoded: pd.DataFrame, columns: Mapping[str, Column]
) -> pd.DataFrame:
    """The table with its dtypes, and decoded cells in its gaps."""
    filled = frame.copy()
    for name in decoded:
        gone = gaps[name].to_numpy()
        if not gone.any():
            continue
        column, values = frame[name].astype(object), decoded[name].astype(object).to_numpy()[gone]
        if name in columns and columns[name].format and any(isinstance(cell, str) for cell in column):
            values = _as_texts(column.tolist(), values, ".", columns.get(name))
        column[gone] = _of_the_type(values, column[~gone], frame[name].dtype)
        try:
            filled[name] = column.astype(frame[name].dtype)
        except (TypeError, ValueError):  # a mean of whole numbers is none
            filled[name] = column.infer_objects()
    return filled


def _of_the_type(values: Any, others: pd.Series, dtype: Any) -> Any:
    """Numbers as those of `decimal`, and moments as days or in a time zone, where the other cells of their column are such."""
    if isinstance(dtype, pd.DatetimeTZDtype):  # moments are counted in UTC
        return [pd.Timestamp(value, tz="UTC").tz_convert(dtype.tz) for value in values]
    types = {type(cell) for cell in others.dropna()}
    if types == {datetime.date}:
        return [pd.Timestamp(value).date() for value in values]
    if types == {Decimal}:
        places = Decimal(1).scaleb(min(int(cell.as_tuple().exponent) for cell in others.dropna()))
        return [Decimal(repr(float(value))).quantize(places) for value in values]
    return values


def _written(
    texts: pd.DataFrame, gaps: pd.DataFrame, decoded: pd.DataFrame, decimal: str, columns: Mapping[str, Column]
) -> pd.DataFrame:
    """The table as text, as it was written, and decoded cells in its gaps."""
    filled = texts.copy()
    for name in decoded:
        gone = gaps[name].to_numpy()
        if gone.any():
            column, values = filled[name].to_numpy(dtype=object, copy=True), decoded[name].to_numpy(dtype=object)[gone]
            column[gone] = _as_texts(column[~gone].tolist(), values, decimal, columns.get(name))
            filled[name] = column
    return filled


def _as_texts(others: list[Any], values: Any, decimal: str, column: Column | None) -> list[str]:
    """Values as texts, numbers in the form that most of the other cells have, or else those of the fit: $1,234.50."""
    if column is not None and column.kind == "date":
        return _as_dates(others, values.tolist(), column)
    if column is not None and column.is_moment:
        return [str(value) for value in values]
    if column is None:
        return [_text(value, decimal) for value in values]
    found = form_of(others, style_in(column.format))
    form = column.format if found is None else found
    if form in ("", "1234,5"):
        return [_text(value, "," if form else decimal) for value in values]
    return [value if isinstance(value, str) else write(float(value), form, column.decimals) for value in values]


def _as_dates(others: list[Any], values: list[str], column: Column) -> list[str]:
    """Dates as texts in the form of the fit, or as 2024-12-31 where all others of their table are written so."""
    dates = pd.Series(others, dtype=object)
    known = dates[~np.isnan(as_days(dates, column.format)[0])]
    if not column.format or not len(known) or date_form(known)[0] != "":
        return values
    days = pd.to_timedelta(as_days(pd.Series(values, dtype=object), column.format)[0], unit="D")
    return replace(column, format="").written(pd.Series(pd.Timestamp(0) + days)).tolist()


def _text(value: Any, decimal: str) -> str:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number):
        return str(value)
    number = float(value)
    return str(int(number)) if number.is_integer() else f"{number:.7g}".replace(".", decimal)


def summary(found: Filled) -> str:
    """What was filled in, in a sentence."""
    which = ", ".join(f"{name} ({number})" for name, number in list(found.by_column.items())[:8])
    more = f" and {counted(len(found.by_column) - 8, 'other column')}" if len(found.by_column) > 8 else ""
    said = f"{counted(found.cells, 'missing cell')} filled in: {which}{more}." if found.cells else "No cell is missing."
    if found.left:
        said += f" The run does not model {', '.join(found.left[:5])}, whose missing cells stay."
    return said

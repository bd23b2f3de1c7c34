"""Rows of a new table as the arguments of a run's model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrovae._near import expanded
from pyrovae.app.catalogue import CONDITION
from pyrovae.app.decide import class_names
from pyrovae.app.given import Given, GivenCaptions
from pyrovae.app.jobs.frames import BY_BLOCKS, SHEETS, Block, Table
from pyrovae.app.jobs.images import Folder
from pyrovae.app.rows import Array
from pyrovae.app.run import Run
from pyrovae.data.frames import of_objects
from pyrovae.data.tables import truths_as_numbers
from pyrovae.errors import DataError, OptionError, counted
from pyrovae.tables.cells import as_text


def table_of(run: Run, source: Path, rows: int) -> Table | Folder:
    """A new table, or folder of images, to ask a run about, which is read as the run's own was, so many rows at once."""
    if is_folder(source):
        return Folder(run, source, label_name(run), rows)
    header = True if run.dataset.source.get("header") and run.dataset.columns else None
    return Table(source, rows, header, texts=_text_columns(run))


def is_folder(source: str | Path) -> bool:
    """Whether rows are the images in a folder."""
    return expanded(source).is_dir() and expanded(source).suffix.lower() not in (*BY_BLOCKS, *SHEETS)


def _text_columns(run: Run) -> tuple[str, ...]:
    """The columns of names, of which some look like numbers: where a block has only these, "007" is still not 7."""
    known: dict[str, Sequence[Any]] = {one.name: one.classes for one in run.rows.several}
    if run.dataset.classes is not None:
        known[label_name(run)] = run.dataset.classes
    for schema in (run.rows.schema, run.rows.given.schema if isinstance(run.rows.given, Given) else None):
        known |= {} if schema is None else {column.name: column.categories for column in schema.classes}
    return tuple(name for name, classes in known.items() if not all(map(_read_back, classes)))


def _read_back(name: Any) -> bool:
    """Whether a text that is read as a number, or a truth value, is the same text again."""
    try:
        return str(name) in ("True", "False") or as_text(float(name)) == str(name)
    except ValueError:
        return False


def label_name(run: Run) -> str:
    """The name of the column of labels in a table that a run is asked about."""
    return run.dataset.source.get("label") or "label"


def id_column(run: Run, names: Iterable[Any]) -> str | None:
    """The column of a table that names its rows: as in the run's own table, or else the first one that is called so."""
    known = run.dataset.source
    own = {*(run.dataset.columns or ()), *known.get("conditions", ()), known.get("label")}
    others = [name for name in map(str, names) if name not in own]
    return known["ids"] if known.get("ids") in others else next((n for n in others if n.lower().endswith("id")), None)


def class_numbers(cells: pd.Series, classes: Sequence[Any]) -> tuple[Tensor, dict[int, str]]:
    """Class numbers, `(N,)` int64, -1 where there is none, and the cells that are no class: the text of each, by its row.

    Cells are compared as they were told apart in the run's own labels, where 3.0 is 3, and True is 1 among numbers.
    """
    numbers = {plain(name): code for code, name in enumerate(classes)} | {"": -1, "-1": -1}
    if not any(isinstance(name, str | bool) for name in classes):
        numbers |= {text: numbers[one] for text, one in (("True", "1"), ("False", "0")) if one in numbers}
    texts = cells.astype(object).where(cells.notna(), "").map(plain)
    unknown = {row: text for row, text in enumerate(texts) if text not in numbers}
    return torch.tensor([numbers.get(text, -1) for text in texts], dtype=torch.int64), unknown


def plain(cell: Any) -> str:
    """A cell as text, in which 3.0 is 3: a column of whole numbers with gaps is read as one of reals."""
    if isinstance(cell, float | np.floating):
        return str(int(cell)) if float(cell).is_integer() else str(cell)
    return str(cell).strip()


def batch_of(run: Run, block: Block, impossible: Array | None = None) -> dict[str, Tensor]:
    """Rows of a table, or images, as the arguments of a run's model, with the columns, or the class, that it is given.

    Where `impossible` is an array, values that their columns cannot have are marked in it, see `Schema.encode`.
    """
    rows, known, frame = run.rows, run.rows.given, block.frame
    given: dict[str, Tensor] = {}
    if isinstance(known, GivenCaptions):
        raise OptionError(
            "The run's model is given the caption of each row, which tables have not: in Python, pv.encode and others take it "
            "beside the rows."
        )
    if known is not None:
        given = known.argument(known.schema.encode(frame, before=block.start))
    elif rows.argument == CONDITION:
        given = {CONDITION: _classes(run, frame)}
    if block.pixels is not None:
        values = torch.from_numpy(block.pixels)
        scaled = values if rows.scaler is None else rows.scaler.apply(values)
        return {"x": scaled.reshape(len(scaled), *rows.test.shape[1:]), **given}
    names, schema = columns_of(run, frame), rows.schema
    if schema is not None:
        values = schema.encode(frame, before=block.start, impossible=impossible)
    else:
        try:
            cells = of_objects(frame[list(names)], truths_as_numbers)
            numbers = np.ascontiguousarray(cells.to_numpy(dtype=np.float64, na_value=np.nan))
            values = torch.tensor(numbers, dtype=torch.float32)
            values /= run.dataset.source.get("divided_by", 1)  # pixels of 8 bits
        except (TypeError, ValueError) as error:
            raise DataError(f"The run was fitted to numbers, and a cell of the table is none ({error}).") from error
    if bool((infinite := values.isinf()).any()):
        row, place = infinite.nonzero()[0].tolist()
        raise DataError(
            f"Column {names[place]!r} is infinite in row {block.start + row} of the table (counted from 0), or beyond what "
            "float32 can hold. Correct it, leave it empty, or drop the row."
        )
    scaled = values if rows.scaler is None else rows.scaler.apply(values)
    return {"x": scaled.reshape(len(scaled), *rows.test.shape[1:]), **given}


def columns_of(run: Run, table: Iterable[Any]) -> tuple[str, ...]:
    """The columns of a run, among those of a table. DataError if one of them is not there."""
    if run.rows.schema is not None:
        return run.rows.schema.names
    there = dict.fromkeys(map(str, table))
    names = run.dataset.columns or tuple(there)
    absent = [name for name in names if name not in there]
    if absent or len(names) != run.dataset.x.shape[1]:
        raise DataError(
            f"The table needs the {counted(run.dataset.x.shape[1], 'column')} of the run"
            + (f", and has no column {absent[0]!r}." if absent else f", and has {len(names)}.")
        )
    return names


def _classes(run: Run, frame: pd.DataFrame) -> Tensor:
    """The class of each row that the model is given, `(N,)` int64."""
    label, names = label_name(run), class_names(run.dataset)
    if label not in frame:
        raise DataError(f"The model is given the class of each row: the table needs the column {label}.")
    codes, unknown = class_numbers(frame[label], names)
    if unknown:
        raise DataError(
            "The model is given the class of each row, and the table has the classes "
            f"{', '.join(sorted(set(unknown.values()))[:5])}; known are {', '.join(map(str, names))}."
        )
    if missing := int((codes < 0).sum()):
        have = counted(missing, "row has", "rows have")
        raise DataError(f"The model is given the class of each row, and {have} none: {label}.")
    return codes

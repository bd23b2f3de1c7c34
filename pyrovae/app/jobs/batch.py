"""Rows of a new table as the arguments of a run's model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrovae.app.catalogue import CONDITION
from pyrovae.app.decide import class_names
from pyrovae.app.given import GivenCaptions
from pyrovae.app.run import Run
from pyrovae.data.tables import truths_as_numbers
from pyrovae.errors import DataError, OptionError
from pyrovae.tables.cells import as_text


def has_header(run: Run) -> bool | None:
    """Whether the first line of a text names the columns: as that of the run's own table did, or unknown."""
    return True if run.dataset.source.get("header") and run.dataset.columns else None


def batch_of(run: Run, frame: pd.DataFrame) -> dict[str, Tensor]:
    """The rows of a table as the arguments of a run's model, with the columns, or the class, that it is given."""
    rows, known = run.rows, run.rows.given
    given: dict[str, Tensor] = {}
    if isinstance(known, GivenCaptions):
        raise OptionError(
            "The run's model is given the caption of each row, which tables have not: in Python, pv.encode and others take it "
            "beside the rows."
        )
    if known is not None:
        given = known.argument(known.schema.encode(frame, part=True))
    elif rows.argument == CONDITION:
        given = {CONDITION: _classes(run, frame)}
    names, schema = columns_of(run, frame), rows.schema
    if schema is not None:
        values = schema.encode(frame, part=True)
    else:
        try:
            cells = frame[list(names)].apply(truths_as_numbers)
            numbers = np.ascontiguousarray(cells.to_numpy(dtype=np.float64))
            values = torch.tensor(numbers, dtype=torch.float32)
            values /= run.dataset.source.get("divided_by", 1)  # pixels of 8 bits
        except (TypeError, ValueError) as error:
            raise DataError(f"The run was fitted to numbers, and a cell of the table is none ({error}).") from error
    scaled = values if rows.scaler is None else rows.scaler.apply(values)
    return {"x": scaled.reshape(len(scaled), *rows.test.shape[1:]), **given}


def columns_of(run: Run, table: Iterable[Any]) -> tuple[str, ...]:
    """The columns of a run, among those of a table. DataError if one of them is not there."""
    if run.rows.schema is not None:
        return run.rows.schema.names
    there = tuple(map(str, table))
    names = run.dataset.columns or there
    absent = [name for name in names if name not in there]
    if absent or len(names) != run.dataset.x.shape[1]:
        raise DataError(
            f"The table needs the {run.dataset.x.shape[1]} columns of the run"
            + (f", and has no column {absent[0]!r}." if absent else f", and has {len(names)}.")
        )
    return names


def _classes(run: Run, frame: pd.DataFrame) -> Tensor:
    """The class of each row that the model is given, `(N,)` int64."""
    label = run.dataset.source.get("label") or "label"
    if label not in frame:
        raise DataError(f"The model is given the class of each row: the table needs the column {label}.")
    own = {as_text(name): code for code, name in enumerate(class_names(run.dataset))}
    told = frame[label].map(as_text)
    if bool(told.isna().any()):
        raise DataError(
            f"The model is given the class of each row, and {int(told.isna().sum())} rows have none: {label}."
        )
    unknown = sorted(set(told) - set(own))
    if unknown:
        raise DataError(
            f"The model is given the class of each row, and the table has the classes {', '.join(unknown[:5])}; known are "
            f"{', '.join(map(str, own))}."
        )
    return torch.tensor(told.map(own).to_numpy(dtype=np.int64))

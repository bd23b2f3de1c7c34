"""Names of rows: which column holds them, which only counts rows, and what is refused as a name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pyrovae._lazily import Lazily
from pyrovae.data.cells import Form
from pyrovae.errors import DataError
from pyrovae.tables.infer import ID_CAMEL, ID_NAME, is_free_text

# pandas takes seconds to import
if TYPE_CHECKING:
    import pandas as pd
else:
    pd = Lazily("pandas")

NO_IDS = "none"  # instead of the name of a column: the rows have no names
ENOUGH_ROWS = 20  # from which on a column that counts them, or has another text for each, is no accident


def look_for_ids(
    frame: pd.DataFrame, form: Form, columns: Sequence[str], named: str | None, ids: str | None
) -> tuple[str | None, dict[str, str]]:
    """The column that names the rows, and others that only number them, with the reason why they are no values."""
    out = {}
    if columns[:1] == ["column 0"] and named != "column 0" and form.named and counts_rows(frame["column 0"]):
        out["column 0"] = ""  # the index that pandas writes
    if ids == NO_IDS:
        return named, out
    for name in columns:
        listed = form.named and _is_id_name(name)
        if not (listed or name == columns[0]) or name == named or name in out or not _may_be_ids(frame[name]):
            continue
        column = frame[name]
        counted = name == columns[0] and len(column) >= ENOUGH_ROWS and counts_rows(column, from_any=True)
        # such as the names of cells before their counts, under no name of a column or any
        told = name == columns[0] and len(column) >= ENOUGH_ROWS and column.is_unique and is_free_text(column)
        if not (listed or counted or told):
            continue
        if named is None and column.notna().all() and column.is_unique:
            named = name
        else:
            out[name] = "it looks like names of rows; --id none keeps it"
    return named, out


def _is_id_name(name: str) -> bool:
    return bool(ID_NAME.search(name) or ID_CAMEL.search(name))


def _may_be_ids(column: pd.Series) -> bool:
    """Whether a column holds text or whole numbers, most of them different."""
    known = column.dropna()
    whole = not pd.api.types.is_numeric_dtype(known) or bool((known == np.floor(known.astype(np.float64))).all())
    return whole and not pd.api.types.is_bool_dtype(known) and known.nunique() > max(1, len(column) // 2)


def counts_rows(column: pd.Series, from_any: bool = False) -> bool:
    """Whether a column counts its rows from 0 on, or from any number."""
    if not pd.api.types.is_integer_dtype(column):
        return False
    return bool(np.array_equal(column - (column.iloc[0] if from_any else 0), np.arange(len(column))))


def row_names(path: Path, names: pd.Series) -> tuple[str, ...]:
    """The ids of the rows. DataError if one is empty or occurs twice."""
    if (names == "").any():
        raise DataError(
            f"{path}: row {int((names == '').argmax())} (counted from 0) has no {names.name}. "
            "Give each row one, or drop the column."
        )
    if names.duplicated().any():
        raise DataError(
            f"{path}: several rows have the {names.name} {names[names.duplicated()].iloc[0]}. Give each row its own."
        )
    return tuple(names)

"""Readers of .npz, .npy and .csv files, and what the columns of a table are: values, labels, or names of the rows."""

from __future__ import annotations

import contextlib
import csv
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pyrovae._lazily import Lazily
from pyrovae._sources import near_names
from pyrovae.data.cells import Form, find_form
from pyrovae.data.dataset import Array, Dataset, make_dataset
from pyrovae.errors import DataError, OptionError

# pandas takes seconds to import
if TYPE_CHECKING:
    import pandas as pd
else:
    pd = Lazily("pandas")

# Names of the arrays in a .npz file, in order of preference.
X_NAMES, X_TEST_NAMES = ("x", "x_train", "data", "images"), ("x_test",)
Y_NAMES, Y_TEST_NAMES = ("y", "y_train", "labels"), ("y_test", "labels_test")

NO_IDS = "none"  # instead of the name of a column: the rows have no names
ENOUGH_ROWS = 20  # from which on a column that counts them, or has another whole number for each, is no accident
_ID_NAME = re.compile(
    r"(^|[\s_.-])(ids?|uuid|guid)$|^(index|row)$|[\s_.-](index|row|key|no|nr|num|number)$", re.IGNORECASE
)
_ID_CAMEL = re.compile(r"[a-z](ID|Id)$")
MARKED = re.compile(r"[+-]?\d{1,3}([.,' ]\d{3})*[.,]?\d*|[+-]?\d+[.,]\d+")  # a number with whatever marks


def load_arrays(path: Path, label: str | None) -> Dataset:
    """The arrays of a .npz or .npy file; `label` names the array of labels."""
    try:
        with contextlib.ExitStack() as stack:
            loaded = np.load(path, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                names, arrays = ["x"], {"x": loaded}
            else:
                stack.enter_context(loaded)
                names = list(loaded.files)
                wanted = {*X_NAMES, *X_TEST_NAMES, *Y_NAMES, *Y_TEST_NAMES, label, *(names if len(names) == 1 else ())}
                arrays = {name: loaded[name] for name in names if name in wanted}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path} is not a file of plain numeric arrays ({error}). "
            "Write it with numpy.savez or numpy.save, without objects."
        ) from error

    def first(candidates: tuple[str, ...]) -> Array | None:
        return next((arrays[name] for name in candidates if name in arrays), None)

    x = first(X_NAMES) if len(names) != 1 else arrays[names[0]]
    if x is None:
        raise DataError(
            f"{path} needs an array named {' or '.join(X_NAMES)}; found {names}. Rename the array of the rows."
        )
    if label is not None and (label not in arrays or label in (*X_NAMES, *X_TEST_NAMES) or len(names) == 1):
        raise OptionError(f"{path.name} has no array of labels {label!r}{near_names(label, names)}; found {names}.")
    return make_dataset(
        path,
        x,
        first(X_TEST_NAMES),
        first(Y_NAMES) if label is None else arrays[label],
        first(Y_TEST_NAMES),
        label=label,
    )


def load_table(
    path: Path,
    label: str | None,
    *,
    ids: str | None = None,
    header: bool | None = None,
    drop: str | Sequence[str] = (),
    text_labels: bool = False,
    look: bool = True,
) -> Dataset:
    """The rows of a .csv file, without the columns of labels and ids, and those to drop.

    Args:
        look: whether to look for what nobody named: a header of numbers, ids, and columns that hold nothing.
    """
    frame, form = read_csv(path, header, numbers_name=look)
    columns, notes = list(frame.columns), list(form.notes)
    out = {column_name(path, columns, name): "" for name in _several(drop, columns)}
    y = None if label is None else column_name(path, columns, label)
    named: str | None = None
    if ids not in (None, NO_IDS):
        called = [name for name in columns if name.lower() == ids.lower()]
        named = called[0] if called else column_name(path, columns, ids)
    if y is not None and y in (*out, named):
        raise OptionError(f"{path.name}: {y} is the label, and cannot be the id or left out as well.")
    if look:
        named, more = _look_for_ids(frame, form, [c for c in columns if c not in out and c != y], named, ids)
        out |= more
        out |= {c: "it is empty" for c in columns if c not in out and c not in (y, named) and frame[c].isna().all()}
    elif ids is None and "column 0" in columns and form.named and _counts(frame["column 0"]):
        out["column 0"] = ""
    notes += [f"Column {name} is left out: {why}." for name, why in out.items() if why]
    texts = read_text(path, form, [name for name in (named, y if text_labels else None) if name is not None])
    names = None
    if named is not None:
        names = row_names(path, texts[named])
        if ids is None:
            notes.append(
                f"Column {named} names the rows, and is left out; --id none makes it a column like the others."
            )
    kept = [name for name in columns if name not in out and name not in (y, named)]
    if not kept:
        raise DataError(f"{path} has no column besides the label and those left out. A row needs at least one.")
    rows = frame[kept].apply(_as_numbers)
    if text := [name for name in kept if not pd.api.types.is_numeric_dtype(rows[name])]:
        examples = [f"{name} ({first_text(rows[name])!r})" for name in text[:8]] + ["..."] * (len(text) > 8)
        raise DataError(
            f"{path}: {len(text)} of {len(kept)} columns are not numbers: {', '.join(examples)}. {_cure(rows[text], label)}"
        )
    _refuse_long_integers(path, rows)
    x = rows.to_numpy(dtype=np.float64)
    if look:
        notes += _remarks(rows, form)
    labels = None if y is None else (texts[y] if text_labels else frame[y]).to_numpy()
    dataset = make_dataset(path, x, y=labels, label=label, columns=tuple(kept) if form.named else None, ids=names)
    how = {"header": form.header, "ids": named, "drop": list(out)}
    return replace(dataset, source={**dataset.source, **how}, notes=(*notes, *dataset.notes))


def _several(names: str | Sequence[str], columns: Sequence[str]) -> Sequence[str]:
    """The names in a list, or in a text with commas between them, unless that is the name of a column."""
    if not isinstance(names, str):
        return names
    return [names] if names in columns else [name.strip() for name in names.split(",") if name.strip()]


def _look_for_ids(
    frame: pd.DataFrame, form: Form, columns: Sequence[str], named: str | None, ids: str | None
) -> tuple[str | None, dict[str, str]]:
    """The column that names the rows, and others that only number them, with the reason why they are no values."""
    out = {}
    if columns[:1] == ["column 0"] and named != "column 0" and form.named and _counts(frame["column 0"]):
        out["column 0"] = ""  # the index that pandas writes
    if ids == NO_IDS:
        return named, out
    for name in columns:
        column = frame[name]
        if name == named or name in out or not _may_be_ids(column):
            continue
        listed = form.named and _is_id_name(name)
        counted = name == columns[0] and len(column) >= ENOUGH_ROWS and _counts(column, from_any=True)
        if not (listed or counted):
            continue
        if named is None and column.notna().all() and column.is_unique:
            named = name
        else:
            out[name] = "it looks like names of rows; --id none keeps it"
    return named, out


def _is_id_name(name: str) -> bool:
    return bool(_ID_NAME.search(name) or _ID_CAMEL.search(name))


def _may_be_ids(column: pd.Series) -> bool:
    """Whether a column holds text or whole numbers, most of them different."""
    known = column.dropna()
    whole = not pd.api.types.is_numeric_dtype(known) or bool((known == np.floor(known.astype(np.float64))).all())
    return whole and not pd.api.types.is_bool_dtype(known) and known.nunique() > max(1, len(column) // 2)


def _counts(column: pd.Series, from_any: bool = False) -> bool:
    """Whether a column counts its rows from 0 on, or from any number."""
    if not pd.api.types.is_integer_dtype(column):
        return False
    return bool(np.array_equal(column - (column.iloc[0] if from_any else 0), np.arange(len(column))))


def _as_numbers(column: pd.Series) -> pd.Series:
    """True and False with gaps, which pandas reads as objects, as numbers; other columns as they are."""
    if column.dtype == object and column.dropna().map(lambda cell: isinstance(cell, bool)).all():
        return column.astype(np.float64)
    return column


def _remarks(rows: pd.DataFrame, form: Form) -> list[str]:
    """What a look at the columns that are modelled shows."""
    found = []
    first = rows.iloc[:, 0]
    if (
        len(rows) >= ENOUGH_ROWS
        and pd.api.types.is_integer_dtype(first)
        and first.is_unique
        and first.min() > len(rows)
    ):
        name = rows.columns[0]
        found.append(f"{name} is another whole number in each row: if these are the rows' names, say --id {name}.")
    constant = [name for name in rows if len(rows) > 1 and rows[name].nunique() == 1 and rows[name].notna().all()]
    if constant:
        which = ", ".join(constant[:5]) + (", ..." if len(constant) > 5 else "")
        found.append(f"Every row has the same value of {which}: nothing can be learned from it; --drop leaves it out.")
    return found


def _refuse_long_integers(path: Path, rows: pd.DataFrame) -> None:
    """DataError for whole numbers that float64, as which the cells are handed on, cannot hold."""
    for name in rows:
        if pd.api.types.is_integer_dtype(rows[name]) and (rows[name].abs() > 2**53).any():
            raise DataError(
                f"{path}: {name} holds whole numbers beyond 2^53, which would be rounded. If they are the rows' names, say "
                f"--id {name} (ids={name!r}); otherwise subtract an offset, or leave it out by --drop {name}."
            )


def _cure(text: pd.DataFrame, label: str | None) -> str:
    """What helps against columns of text."""
    cells = [str(cell) for name in text for cell in text[name].dropna().head(1000)]
    wrong = [cell for cell in cells if MARKED.fullmatch(cell.strip())]
    if wrong:
        return (
            f"{wrong[0]!r} is not read as a number: write all numbers with the same decimal mark, and nothing between "
            "thousands."
        )
    others = f"leave {'others' if label is None else 'them'} out by --drop, or encode them as numbers."
    return (
        f"Name the class column with --label (label={text.columns[-1]!r}); {others}"
        if label is None
        else others.capitalize()
    )


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


def read_csv(path: Path, header: bool | None = None, *, numbers_name: bool = True) -> tuple[pd.DataFrame, Form]:
    """The table, and its form; without a header, columns are called "column 0", "column 1", ..."""
    with _reading(path):
        form = find_form(path, header, numbers_name=numbers_name)
        frame = pd.read_csv(path, low_memory=False, **form.options)
        if not frame.empty and form.names[-1] == f"column {len(form.names) - 1}" and frame.iloc[:, -1].isna().all():
            frame = frame.iloc[:, :-1]  # lines end in a separator
    if frame.empty:
        raise DataError(f"{path} has a header and no rows. Add at least one row.")
    return frame, form


def table_columns(path: Path, header: bool | None = None) -> tuple[str, ...]:
    """The names of a table's columns; () if the file gives them none."""
    with _reading(path):
        form = find_form(path, header)
    return form.names if form.named else ()


def read_text(path: Path, form: Form, columns: Sequence[str]) -> pd.DataFrame:
    """Columns as they are written, but for blanks around the cells: "NA" is a text there, and "007" is not 7."""
    if not columns:
        return pd.DataFrame()
    with _reading(path):
        cells = pd.read_csv(path, usecols=list(columns), dtype=str, na_filter=False, **form.options)
    return cells.apply(lambda column: column.str.strip())


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path} is not a table ({' '.join(str(error).split())}). Give rows of equal length, in UTF-8."
        ) from error


def column_name(path: Path, columns: list[str], label: str) -> str:
    """The name of the column that `label` means: a name, a number from 0, or "last"."""
    if label in columns:
        return label
    if label == "last":
        return columns[-1]
    if label.isdecimal() and int(label) < len(columns):
        return columns[int(label)]
    raise OptionError(
        f"{path.name} has no column {label!r}{near_names(label, columns)}; it has {len(columns)}: "
        f'{", ".join(columns[:20])}{", ..." if len(columns) > 20 else ""}. Give a name, a number from 0, or "last".'
    )


def first_text(column: pd.Series) -> str:
    """The first cell that is not a number."""
    known = column.dropna()
    text = known[pd.to_numeric(known, errors="coerce").isna()]
    return str((text if len(text) else known).iloc[0])  # numbers of more than 64 bits pass for text

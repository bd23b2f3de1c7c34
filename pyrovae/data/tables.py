"""Readers of .npz, .npy and .csv files."""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovae._lazily import Lazily
from pyrovae.data.dataset import Array, Dataset, make_dataset, near_names
from pyrovae.errors import DataError, OptionError

# pandas takes seconds to import
if TYPE_CHECKING:
    import pandas as pd
else:
    pd = Lazily("pandas")

# Names of the arrays in a .npz file, in order of preference.
X_NAMES, X_TEST_NAMES = ("x", "x_train", "data", "images"), ("x_test",)
Y_NAMES, Y_TEST_NAMES = ("y", "y_train", "labels"), ("y_test", "labels_test")


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


def load_table(path: Path, label: str | None, ids: str | None) -> Dataset:
    """The rows of a .csv file, without the columns of labels and ids."""
    frame, header = read_csv(path, () if ids is None else (ids, label or ids))
    columns = list(frame.columns)
    names = None
    if header and ids is not None and (called := [name for name in columns if name.lower() == ids.lower()]):
        names = row_names(path, frame.pop(called[0]))
        columns = list(frame.columns)
    elif header and columns[0] == "column 0" and np.array_equal(frame.iloc[:, 0], np.arange(len(frame))):
        frame, columns = frame.iloc[:, 1:], columns[1:]
    y = None
    if label is not None:
        y = frame.pop(column_name(path, columns, label)).to_numpy()
        columns = list(frame.columns)
    if not columns:
        raise DataError(f"{path} has no column besides the label. A row needs at least one.")
    if text := [name for name in columns if not pd.api.types.is_numeric_dtype(frame[name])]:
        examples = [f"{name} ({first_text(frame[name])!r})" for name in text[:8]] + ["..."] * (len(text) > 8)
        raise DataError(
            f"{path}: {len(text)} of {len(columns)} columns are not numbers: {', '.join(examples)}. "
            f"Name the class column with --label (label={text[-1]!r}), and drop or encode the others."
        )
    x = frame.to_numpy(dtype=np.float64)
    return make_dataset(path, x, y=y, label=label, columns=tuple(columns) if header else None, ids=names)


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


def read_csv(path: Path, text: tuple[str, ...] = ()) -> tuple[pd.DataFrame, bool]:
    """The table, and whether its first line is a header; without a header, columns are called "column 0", "column 1", ...

    Columns whose names are in `text`, in upper or lower case, are read as text: "NA" is a text there, and "007" is not 7.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            line = file.readline()
        marks = (",", ";") if "  " in line else (",", ";", "\t")  # tabs between runs of blanks are only for alignment
        separator = next((mark for mark in marks if mark in line), r"\s+")
        options: dict[str, Any] = {
            "sep": separator,
            "na_values": ["?"],
            "skipinitialspace": True,
            "encoding": "utf-8-sig",
        }
        head = pd.read_csv(path, header=None, dtype=str, nrows=200, **options)
        header = _has_header(head)
        names = [
            str(cell).strip() if header and not pd.isna(cell) else f"column {i}" for i, cell in enumerate(head.iloc[0])
        ]
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise DataError(f"{path}: several columns are called {', '.join(twice)}. Rename them: names must differ.")
        options |= {"header": 0 if header else None, "names": names}
        frame = pd.read_csv(path, low_memory=False, **options)
        as_text = [name for name in names if header and name.lower() in map(str.lower, text)]
        if as_text:
            cells = pd.read_csv(path, usecols=as_text, dtype=str, na_filter=False, **options)
            frame[as_text] = cells.apply(lambda column: column.str.strip())
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is not a table ({' '.join(str(error).split())}). Give rows of equal length, in UTF-8."
        ) from error
    if frame.empty:
        raise DataError(f"{path} has a header and no rows. Add at least one row.")
    return frame, header


def _has_header(head: pd.DataFrame) -> bool:
    """Whether the first line is a header: 0, 1, 2, ..., or text, and no number, above the columns of numbers."""
    words = {"true": "1", "false": "0"}  # pandas reads these as bool
    numbers = head.map(lambda cell: words.get(str(cell).strip().lower(), cell)).apply(pd.to_numeric, errors="coerce")
    numeric = (numbers.notna() | head.isna()).iloc[1:].all()  # by the lines below the first
    first = numbers.iloc[0]
    if len(first) > 2 and first.tolist() == list(range(len(first))):
        return True
    return not first[numeric].notna().any() and bool(head.iloc[0][numeric].notna().any())


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
    return str(known[pd.to_numeric(known, errors="coerce").isna()].iloc[0])

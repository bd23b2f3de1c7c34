"""Tables as they lie in files: .csv, .parquet and Excel, as data frames, or as the text that is written in their cells."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pyrovae._foreign import cure_of_another, cure_of_content, cure_of_letters
from pyrovae._lazily import Lazily
from pyrovae.data.cells import COLUMNS_LOOKED_AT, Form, find_form
from pyrovae.data.parquets import refuse_parquet
from pyrovae.errors import DataError, OptionError, PyrovaeError
from pyrovae.tables.cells import as_text

# pandas takes seconds to import
if TYPE_CHECKING:
    import pandas as pd
else:
    pd = Lazily("pandas")

NESTED = (list, tuple, dict, set, bytes, np.ndarray)  # cells that pandas cannot count, or JSON not keep
PACKAGES = {".parquet": "pyarrow", ".xlsx": "openpyxl", ".xls": "xlrd"}


def read_frame(
    path: Path, header: bool | None = None, *, numbers_name: bool = True, index: bool = True
) -> tuple[pd.DataFrame, Form]:
    """The table in a file of any kind, and its form.

    Args:
        path: the file.
        header, numbers_name: as for `find_form`.
        index: whether the index of a DataFrame that is in a Parquet file is a column, as the file has it, see `index_names`.
            Whole numbers without a name, some of them twice, are left out, and a note says so.

    Raises:
        DataError: it cannot be read, has no row, or two columns of one name.
        OptionError: the package that reads such files is not installed.
    """
    readers = {".parquet": pd.read_parquet, ".xlsx": pd.read_excel, ".xls": pd.read_excel}
    if path.suffix.lower() not in readers:
        return read_csv(path, header, numbers_name=numbers_name)
    try:
        if path.suffix.lower() == ".parquet":
            refuse_parquet(path)
        frame = readers[path.suffix.lower()](path)
        frame, notes = _with_index(frame) if index else (frame, ())
        check_texts(frame)
    except ImportError as error:
        raise OptionError(
            f"{path.suffix} files need a package that is not installed: pip install {PACKAGES[path.suffix.lower()]}. Or save "
            "the table as .csv."
        ) from error
    except (MemoryError, PyrovaeError):
        raise
    except Exception as error:  # of damaged files, pandas and the packages behind it raise whatever they come upon
        raise DataError(
            f"{path} is not a table ({' '.join(str(error).split())[:200]}). {cure_of_another(path) or 'Save it as .csv.'}"
        ) from error
    frame.columns = [f"column {i}" if str(c).startswith("Unnamed: ") else str(c) for i, c in enumerate(frame.columns)]
    if frame.empty:
        raise DataError(f"{path} has no rows. Add at least one.")
    if twice := sorted(set(frame.columns[frame.columns.duplicated()])):
        raise DataError(f"{path}: several columns are called {', '.join(twice)}. Rename them: names must differ.")
    frame = of_objects(frame, with_texts)
    return frame, Form(",", ".", tuple(frame.columns), True, True, notes)


def _with_index(frame: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """A DataFrame whose index is one of its columns, or several, and what is to be said of it."""
    if isinstance(frame.index, pd.RangeIndex):
        return frame, ()
    unnamed = [f"__index_level_{level}__" for level in range(frame.index.nlevels)]
    called = index_names([*map(str, frame.columns), *unnamed])
    names = [called[raw] if name is None else name for name, raw in zip(frame.index.names, unnamed)]
    numbered = frame.index.nlevels == 1 and frame.index.name is None and pd.api.types.is_integer_dtype(frame.index)
    if numbered and not frame.index.is_unique:  # as of tables that were joined
        return frame.reset_index(drop=True), (
            "The index, whole numbers without a name, some of them twice, is left out.",
        )
    frame = frame.rename_axis(index=names)
    return frame.reset_index(level=[name for name in names if name not in frame.columns]), ()


def index_names(columns: Sequence[str]) -> dict[str, str]:
    """What the columns of a Parquet file are called in which pandas wrote an index without a name: "index", if none is."""
    raw = [name for name in columns if name.startswith("__index_level_")]
    if len(raw) > 1 or "index" in columns:
        return dict(zip(raw, raw))
    return dict.fromkeys(raw, "index")


def of_objects(frame: pd.DataFrame, change: Callable[[pd.Series], pd.Series]) -> pd.DataFrame:
    """The table, with what a function makes of each column of Python's objects in its place.

    Columns one by one take pandas a time each that a table of tens of thousands has not got.
    """
    if not frame.dtypes.eq(object).any():
        return frame
    columns = {name: (change(column) if column.dtype == object else column).array for name, column in frame.items()}
    return pd.DataFrame(columns, index=frame.index, copy=False)


def with_texts(column: pd.Series) -> pd.Series:
    """A column whose cells are lists, structs or bytes, with texts in their place; any other column as it is."""
    if not column.map(lambda cell: isinstance(cell, NESTED)).any():
        return column
    return column.map(lambda cell: as_text(cell) if isinstance(cell, NESTED) else cell)


def check_texts(frame: pd.DataFrame) -> None:
    """UnicodeDecodeError if cells are no UTF-8, which pandas notices where it first looks at one."""
    for number, dtype in enumerate(frame.dtypes):
        if isinstance(dtype, pd.StringDtype):
            frame.iloc[:, number].tolist()


def read_csv(path: Path, header: bool | None = None, *, numbers_name: bool = True) -> tuple[pd.DataFrame, Form]:
    """The table, and its form; without a header, columns are called "column 0", "column 1", ..."""
    with reading(path):
        form = find_form(path, header, numbers_name=numbers_name)
        with form.source(path) as rows:
            frame = pd.read_csv(rows, **form.options)
        if not frame.empty and form.names[-1] == f"column {len(form.names) - 1}" and frame.iloc[:, -1].isna().all():
            frame = frame.iloc[:, :-1]  # lines end in a separator
        if frame.shape[1] > COLUMNS_LOOKED_AT:  # columns of one dtype in one piece: pandas takes a time for each piece
            frame = frame.copy()
    if frame.empty:
        raise DataError(f"{path} has a header and no rows. Add at least one row.")
    return short_integers(frame), form


def short_integers(frame: pd.DataFrame) -> pd.DataFrame:
    """The cells, but whole numbers of more than 64 bits as text: many functions fail for those beyond the floating numbers."""
    return of_objects(
        frame, lambda column: column.map(lambda cell: str(cell) if type(cell) is int and abs(cell) >= 2**63 else cell)
    )


def table_columns(path: Path, header: bool | None = None) -> tuple[str, ...]:
    """The names of a table's columns; () if the file gives them none."""
    if path.suffix.lower() in PACKAGES:
        return read_frame(path)[1].names
    with reading(path):
        form = find_form(path, header)
    return form.names if form.named else ()


def read_text(path: Path, form: Form, columns: Sequence[str], frame: pd.DataFrame | None = None) -> pd.DataFrame:
    """Columns as they are written, but for blanks around the cells: "NA" is a text there, and "007" is not 7."""
    if not columns:
        return pd.DataFrame()
    if frame is not None and path.suffix.lower() in PACKAGES:  # its cells are no texts in the file
        return frame[list(columns)].apply(lambda column: column.map(lambda cell: "" if pd.isna(cell) else str(cell)))
    with reading(path), form.source(path) as rows:
        cells = pd.read_csv(rows, usecols=list(columns), dtype=str, na_filter=False, **form.options)
    return tidy(cells)


def tidy(texts: pd.DataFrame) -> pd.DataFrame:
    """Cells that are texts, without the blanks around them."""
    stripped = {name: column.str.strip().array for name, column in texts.items()}  # `apply` takes three times as long
    return pd.DataFrame(stripped, index=texts.index, copy=False)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        usual = "Give rows of equal length, in UTF-8."
        if isinstance(error, pd.errors.EmptyDataError):
            usual = "It is empty, or has only blanks: give a line for each row."
        elif "inside string" in str(error):  # pandas counts rows from 0, the header included
            usual = "A cell there begins with a quotation mark that nothing closes: remove it, or close it."
        cure = cure_of_content(path) or cure_of_letters(path, error) or usual
        raise DataError(f"{path} is not a table ({' '.join(str(error).split())}). {cure}") from error
    except OverflowError as error:  # some versions of pandas
        raise DataError(
            f"{path} has a whole number of more than 308 digits. Shorten it, or write it with an exponent."
        ) from error


def first_text(column: pd.Series) -> str:
    """The first cell that is not a number."""
    known = column.dropna()
    text = known[pd.to_numeric(known, errors="coerce").isna()]
    return str((text if len(text) else known).iloc[0])  # numbers of more than 64 bits pass for text

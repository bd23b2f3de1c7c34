"""How a text file is a table: its comments, separator, decimal mark, and whether its first line is a header."""

from __future__ import annotations

import contextlib
import itertools
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyrovae._lazily import Lazily
from pyrovae.data.lines import BLANKS, LOOKED_AT, UTF8, Lines, is_comment, records, split, width, without_comments
from pyrovae.errors import DataError, counted
from pyrovae.tables.cells import as_days

# pandas takes seconds to import
if TYPE_CHECKING:
    import pandas as pd
else:
    pd = Lazily("pandas")

COLUMNS_LOOKED_AT = 1_000
MOST_ALIKE = 5_000  # columns of one name
MOST_COLUMNS = 50_000  # of a table, each of which is looked at apart
# in time that grows with the length of a cell, whatever is in it: no two parts can take the same digits
_POINT = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")
_ZERO_IN_FRONT = re.compile(r"^ *(0\d\d+) *$", re.MULTILINE)
_ALL_DIGITS = re.compile(r"(?: *\d+ *(?:\n|$))*")
_MISSING = ("", "?", "\\n", "na", "n/a", "nan", "null", "none", "<na>")


@dataclass(frozen=True)
class Form:
    """The form of a table in a text file.

    Args:
        separator: what is between two cells; `BLANKS` for any number of blanks and tabs.
        decimal: the decimal mark, "." or ",".
        names: the names of the columns; "column 0", "column 1", ... where they have none.
        header: whether the first line that is no comment names the columns.
        named: whether the file names the columns, in that line or in the comment above.
        notes: what was found out and may surprise, in sentences.
        source: what pandas reads in place of the file, which is the file itself unless it has comments.
        begins: what the file begins with before its first line, such as the mark by which Excel knows UTF-8.
        ends: how its lines end.
        encoding: of its letters.
        written: the names of the columns as they stand in the file, "" where there is none, and some of them twice.
        zeros: of columns of digits in which some cells have a 0 in front, such a cell.
    """

    separator: str
    decimal: str
    names: tuple[str, ...]
    header: bool
    named: bool
    notes: tuple[str, ...]
    source: Callable[[Path], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    begins: str = ""
    ends: str = "\n"
    encoding: str = UTF8
    written: tuple[str, ...] = ()
    zeros: Mapping[str, str] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of `pandas.read_csv`, for what `source` gives."""
        return {
            "sep": self.separator,
            "decimal": self.decimal,
            "header": 0 if self.header else None,
            "names": list(self.names),
            "encoding": self.encoding,
            **_READING,
        }

    @property
    def header_of(self) -> dict[str, str]:
        """What each column is called in the file."""
        return dict(zip(self.names, self.written or self.names))


_READING: dict[str, Any] = {"na_values": ["?", "\\N"], "skipinitialspace": True, "low_memory": False}


def find_form(path: Path, header: bool | None = None, *, numbers_name: bool = True) -> Form:
    """Find out the form of a table.

    Args:
        path: the file.
        header: whether the first line names the columns; None finds out.
        numbers_name: whether a first line of numbers can be a header.

    Raises:
        DataError: there are more columns than a text file is read with.
    """
    lines = Lines(path)
    separator = lines.separator or _separator(lines.first)
    rows, marked = records(lines.first, separator)
    commented, above = lines.marked, list(itertools.takewhile(is_comment, lines.first))
    if not rows:  # all lines begin so: it is how their first cells are written
        rows, commented, marked, above = lines.first, False, [], []
    source: Any = contextlib.nullcontext
    if commented or lines.separator:
        of_lines: dict[str, Any] = {
            "quotes": lines.quotes,
            "declared": bool(lines.separator),
            "encoding": lines.encoding,
        }
        source = partial(without_comments, separator=separator, **of_lines)
    wide = max((width(row, separator) for row in rows[:2]), default=0)
    refuse_wide(path, wide)
    options: dict[str, Any] = {"sep": separator, "header": None, "encoding": lines.encoding, **_READING}
    some: dict[str, Any] = {}
    first_line: list[Any] = []
    if wide > COLUMNS_LOOKED_AT:
        with source(path) as table:
            first_line = pd.read_csv(table, nrows=1, dtype=str, **options).iloc[0].tolist()
        some = {"usecols": range(COLUMNS_LOOKED_AT)} if len(first_line) > COLUMNS_LOOKED_AT else {}
    with source(path) as table:
        head = pd.read_csv(table, nrows=LOOKED_AT, dtype=str, **some, **options)
    first_line = first_line or head.iloc[0].tolist()
    wide = len(first_line)
    decimal, notes = ".", []
    if lines.letters:
        notes.append(
            f"Its letters are not in UTF-8, and are read as Windows-1252, which Excel writes, such as {lines.letters!r}: save "
            "it in UTF-8 if that is wrong."
        )
    if _decimal_commas(separator, [str(cell).strip() for cell in head.to_numpy().ravel()]):
        decimal = ","
        notes.append("Numbers such as 1,5 are read with a decimal comma.")
    if header is None:
        why = _has_header(head, decimal, numbers_name)
        if why:
            cells = ", ".join(str(cell).strip() for cell in head.iloc[0][:3]) + (", ..." if head.shape[1] > 3 else "")
            notes.append(f"The first line ({cells}) is taken for a header: {why}; --no-header reads it as a row.")
        header = why is not None
    first = first_line if header else _named_above(above[-1][1:], separator, wide) if above else None
    names = tuple(
        f"column {i}" if pd.isna(cell) or not str(cell).strip() else str(cell).strip()
        for i, cell in enumerate(first or [None] * wide)
    )
    written = tuple("" if pd.isna(cell) else str(cell).strip() for cell in first) if first is not None else ()
    called, number = Counter(names).most_common(1)[0]
    if number > MOST_ALIKE:  # which pandas would tell apart in a time that grows with the square of their number
        raise DataError(f"{path}: {number} columns are called {called!r}. Rename them: names must differ.")
    names, note = _different(names)
    notes += [note] if note else []
    if alike := [line for line in marked[len(above) :] if wide > 1 and width(line, separator) == wide]:
        notes.append(
            f"Lines below the first row that begin with # are left out, such as {alike[0].strip()[:40]!r}: put the first "
            "cell in quotes where such a line is a row."
        )
    known = (separator, decimal, names, bool(header), first is not None, tuple(notes), source)
    more: dict[str, Any] = {"encoding": lines.encoding, "written": written, "zeros": _zeros_of(head, names)}
    return Form(*known, begins=lines.begins, ends=lines.ends, **more)


def _different(names: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """Names that differ, as pandas makes them: the second "score" is "score.1"; and what to say of it."""
    taken, made = set(names), []
    numbers: dict[str, Iterator[int]] = {}
    for name in names:
        if name in numbers:
            made.append(next(one for k in numbers[name] if (one := f"{name}.{k}") not in taken))
            taken.add(made[-1])
        else:
            made.append(name)
            numbers[name] = itertools.count(1)
    new = [f"{name} ({one})" for name, one in zip(names, made) if name != one]
    if not new:
        return names, ""
    listed = ", ".join(new[:5]) + (", ..." if len(new) > 5 else "")
    return tuple(made), f"Several columns have one name; those after the first have a number behind it: {listed}."


def refuse_wide(path: Path, width: int) -> None:
    """DataError for a table of more columns than can be looked at in some seconds."""
    if width > MOST_COLUMNS:
        raise DataError(
            f"{path} has {counted(width, 'column')}, and tables are read with up to {MOST_COLUMNS}. Save numbers by numpy.save "
            "as .npy, which has no such limit, or exchange rows and columns."
        )


def is_number(cell: str, decimal_comma: bool = True) -> bool:
    return bool(_POINT.fullmatch(cell) or (decimal_comma and _COMMA.fullmatch(cell)))


def _separator(lines: Sequence[str]) -> str:
    """The mark that divides the rows into equally many cells; among several, the one by which most cells are numbers."""
    first = next((line for line in lines if not is_comment(line)), "".join(lines[:1]))
    if not first:
        return ","
    marks = (",", ";") if "  " in first else (",", ";", "\t")  # tabs between runs of blanks are only for alignment
    longest = max(map(len, _MISSING))  # a longer cell, which may be megabytes, need not be looked at
    best, found = (0.0, 0.0), BLANKS
    for mark in (*marks, BLANKS):
        whole = records(lines, mark)[0] or lines
        (wide, number), *_ = Counter(width(row, mark) for row in whole).most_common(1)
        rows = [split(row, mark, COLUMNS_LOOKED_AT) for row in whole]
        cells = [cell for row in rows for cell in row if len(cell) > longest or cell.lower() not in _MISSING]
        score = (number / len(rows), sum(is_number(c, mark != ",") for c in cells) / max(1, len(cells)))
        if wide > 1 and score > best:
            best, found = score, mark
    return found


def _decimal_commas(separator: str, cells: Sequence[str]) -> bool:
    """Whether numbers are written with a decimal comma. 1,234 between commas may be one thousand, and decides nothing."""
    commas = [cell for cell in cells if _COMMA.fullmatch(cell)]
    points = any("." in cell and _POINT.fullmatch(cell) for cell in cells)
    return bool(commas) and not points and (separator != "," or not all(map(_THOUSANDS.fullmatch, commas)))


def _has_header(head: pd.DataFrame, decimal: str, numbers_name: bool) -> str | None:
    """Why the first line is a header, "" where it needs no reason, or None where it is none.

    It is one if it is 0, 1, 2, ..., or text, and no number, above the columns of numbers. Numbers name the columns, such as
    the wavelengths of spectra, if they rise or fall as no other line does. Of a table of texts alone, see `_texts_name`.
    """
    words = {"true": "1", "false": "0"}  # pandas reads these as bool
    cells: NDArray[Any] = head.to_numpy(dtype=object)
    missing = head.isna().to_numpy()
    texts = [None if gap else str(cell).strip() for cell, gap in zip(cells.ravel(), missing.ravel())]
    written = [None if text is None else words.get(text.lower(), text.replace(decimal, ".")) for text in texts]
    # of all cells at once, as pandas takes a time for each column
    found = pd.to_numeric(pd.Series(written, dtype=object), errors="coerce")
    numbers = found.to_numpy(dtype=np.float64).reshape(cells.shape)
    first, unknown = numbers[0], np.isnan(numbers)
    numeric = (~unknown | missing)[1:].all(axis=0)  # by the lines below the first
    if len(first) > 2 and first.tolist() == list(range(len(first))):
        return ""
    if unknown[0, numeric].all():
        return _texts_name(head.loc[:, ~numeric]) if missing[0, numeric].all() else ""
    words_below = set(cells[1:, ~numeric].ravel().tolist())
    if not numbers_name or any(cell in words_below for cell in cells[0, ~numeric]):
        return None
    if any(str(cell).strip()[:1].isalpha() for cell in cells[0, numeric & unknown[0] & ~missing[0]]):
        return "it has text where the lines below have numbers"
    return _numbers_name(first[numeric], numbers[1:, numeric])


def _zeros_of(head: pd.DataFrame, names: Sequence[str]) -> dict[str, str]:
    """A cell of each column of digits in which some have a 0 in front, as codes have, which a number loses."""
    found = {}
    cells: NDArray[Any] = head.iloc[1:].to_numpy(dtype=object)
    for name, column in zip(names, cells.T.tolist()):
        text = "\n".join(
            [cell for cell in column if cell == cell]
        )  # of all cells at once, as there may be many columns
        first = _ZERO_IN_FRONT.search(text)
        if first is not None and _ALL_DIGITS.fullmatch(text):
            found[name] = first[1]
    return found


def _texts_name(cells: pd.DataFrame) -> str | None:
    """Why the texts of the first line are names of columns that hold only texts, or None where they may be values.

    No name occurs again in its column. That says something where others do, or where a word stands above texts of several.
    """
    first, below = cells.iloc[0], cells.iloc[1:]
    names = [str(cell).strip() for cell in first]
    if not names or not len(below) or first.isna().any() or len(set(names)) < len(names):
        return None
    if any(is_number(name) for name in names) or not np.isnan(as_days(pd.Series(names))[0]).all():
        return None
    recurs = longer = False
    for name, column in zip(names, (below[place].dropna().str.strip() for place in below)):
        if name in set(column):
            return None
        recurs |= not column.is_unique
        longer |= len(name.split()) < column.str.split().str.len().median()
    if recurs:
        return "none of its cells occurs again in its column, and others do"
    return "it has words where the lines below have texts" if longer else None


def _numbers_name(first: NDArray[Any], below: NDArray[Any]) -> str | None:
    """Why the numbers of the first line are names, or None where they may be values."""
    if len(first) < 3 or len(below) < 2 or np.isnan(first).any():
        return None

    rows = np.vstack([first, below])
    steps = np.diff(rows)
    runs: NDArray[Any] = np.all(steps > 0, axis=1) | np.all(steps < 0, axis=1)
    even = runs & (np.ptp(steps, axis=1) <= 1e-6 * np.abs(rows).max(1))
    what = "its numbers rise" if first[0] < first[-1] else "its numbers fall"
    if even[0] and not even[1:].any():
        return f"{what} in equal steps, as no other line does"
    if not runs[0]:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a column without a number
        low, high = np.nanmin(below, 0), np.nanmax(below, 0)
    outside = (first < low - (high - low)) | (first > high + (high - low))
    if outside.all():
        return f"{what}, far outside the values below"
    return f"{what}, as no other line does" if len(first) > 5 and not runs[1:].any() else None


def _named_above(above: str, separator: str, wide: int) -> list[str] | None:
    """The names in a comment above the table, as `numpy.savetxt` writes them; None where it is something else."""
    cells = split(above, separator)
    fits = wide > 1 and len(cells) == wide and not any(map(is_number, cells))
    return cells if fits else None

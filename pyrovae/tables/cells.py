"""Cells of a table as numbers, days and texts, whatever marks they are written with."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrovae.tables.numerals import Style, number_of, style_of

Array = NDArray[Any]
R = TypeVar("R")

STRANGE = 0.05  # the share of cells that may be no numbers in a column of numbers; they count as missing
GAPS = frozenset(
    [
        *("", "?", "-", "--", ".", "na", "n/a", "n.a.", "nan", "null", "none", "<na>", "missing", "#n/a", "nil"),
        *("\\n", "(null)", "<null>", "[null]"),  # of databases, which write \\N
        *("#div/0!", "#value!", "#ref!", "#name?", "#num!", "#null!"),  # of spreadsheets, where there is no result
    ]
)
_DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([T ]\d{1,2}:\d{2}.*)?")
_MONTH = (
    "(jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sep(?:t|tember)?|oct(?:ober)?|nov(?:ember)?"
    "|dec(?:ember)?)"
)
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_NAMED = re.compile(
    rf"(?:(\d{{1,2}})([ -]?){_MONTH}\2(\d{{4}}|\d{{2}})|{_MONTH} (\d{{1,2}}),? (\d{{4}}))", re.IGNORECASE
)  # 14 Mar 2024, 14-Mar-24, 14MAR2024, March 14, 2024
_YEAR_LAST = re.compile(r"(\d{1,2})([-/.])(\d{1,2})[-/.](\d{4}|\d{2})([T ]\d{1,2}:\d{2}.*)?")


def each(cells: Iterable[Any], reading: Callable[[Any], R]) -> list[R]:
    """What a function makes of each cell. Of equal texts, of which a column has many, it is called once."""
    known: dict[str, R] = {}
    found = []
    for cell in cells:
        if type(cell) is not str:
            found.append(reading(cell))
        elif cell in known:
            found.append(known[cell])
        else:
            found.append(known.setdefault(cell, reading(cell)))
    return found


def is_gap(cell: Any, categories: Collection[Any] = ()) -> bool:
    """Whether a cell says that nothing is known: not one that is a category itself, such as "none" of symptoms."""
    if isinstance(cell, str):
        return cell.strip().lower() in GAPS and cell.strip() not in categories
    return (
        cell is None
        or cell is pd.NaT
        or cell is pd.NA
        or (isinstance(cell, float | np.floating) and bool(np.isnan(cell)))
    )


def says_none(cell: Any) -> bool:
    """Whether a cell is the word "none", which among numbers and dates is a gap, and among words more often an answer."""
    return isinstance(cell, str) and cell.strip().lower() == "none"


def as_text(cell: Any, categories: Collection[Any] = ()) -> str | None:
    """A cell as the text by which a category is recognised, None where missing: 2, 2.0 and "2" are one category."""
    if is_gap(cell, categories):
        return None
    if isinstance(cell, bool | np.bool_):
        return str(bool(cell))
    if isinstance(cell, float | np.floating) and float(cell).is_integer():
        return str(int(cell))
    if isinstance(cell, bytes):
        return cell.decode("utf-8", "backslashreplace").strip()
    return str(cell).strip()


def as_numbers(cells: pd.Series, known: Style | None = None) -> tuple[Array, list[Any]]:
    """Cells as float64, NaN where missing, and those that are no numbers.

    Args:
        known: How numbers are written where these cells can be read both ways.
    """
    dtype = cells.dtype
    if (
        isinstance(dtype, np.dtype) and dtype.kind in "biuf"
    ):  # what most are, without the time that pandas takes for a look
        return np.asarray(cells, dtype=np.float64), []
    if pd.api.types.is_bool_dtype(dtype) or pd.api.types.is_numeric_dtype(dtype):
        return cells.to_numpy(dtype=np.float64, na_value=np.nan), []
    return numbers_of(cells.tolist(), known)


def numbers_of(cells: list[Any], known: Style | None = None, unit: str = "") -> tuple[Array, list[Any]]:
    """The same for cells that are texts, or anything else, and may have a unit behind."""
    style = style_of((cell for cell in cells if not is_gap(cell)), known, unit)
    numbers = each(cells, lambda cell: math.nan if is_gap(cell) else _number(cell, style))
    strange = [cell for cell, number in zip(cells, numbers) if number is None]
    return np.array(numbers, dtype=np.float64), strange  # where None becomes NaN


def _number(cell: Any, style: Style) -> float | None:
    """The finite number that a cell says, None if it says none."""
    if isinstance(cell, str):
        return number_of(cell, style)
    try:
        number = float(cell)
    except (TypeError, ValueError, OverflowError):  # the last for a whole number beyond 1e308
        return None
    return number if math.isfinite(number) else None


def _looks_like_a_date(cell: Any) -> bool:
    text = str(cell).strip()
    return bool(_DATE.fullmatch(text) or _NAMED.fullmatch(text))


def as_days(cells: pd.Series, form: str = "") -> tuple[Array, list[Any]]:
    """Dates as days since 1970-01-01, float64 with NaN where missing, and the cells that are no dates.

    Args:
        form: How dates that end in the year are written, as `date_form` says; "" reads each by itself, the month first where
            both are possible.
    """
    if not pd.api.types.is_datetime64_any_dtype(cells):
        listed = cells.tolist()
        known = ~np.array(each(listed, is_gap), dtype=bool)
        looks = np.array(each(listed, _looks_like_a_date), dtype=bool)
        if not (known & looks).any():  # before pandas is asked, which takes a hundred times as long
            return np.full(len(listed), np.nan), [cell for cell, there in zip(listed, known) if there]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of formats that are guessed cell by cell
            texts = cells.astype(object).where(known & looks)  # of durations, an empty column would be none of moments
            read = each(
                texts, lambda cell: cell if cell != cell or cell is None else _year_first(str(cell).strip(), form)
            )
            texts = pd.Series(read, index=texts.index, dtype=object)
            parsed = pd.to_datetime(texts, errors="coerce", format="mixed", utc=True)
    else:
        parsed, known = pd.to_datetime(cells, utc=True), cells.notna().to_numpy()
    since = (parsed - pd.Timestamp("1970-01-01", tz="UTC")) / pd.Timedelta(days=1)
    days = since.to_numpy(dtype=np.float64, na_value=np.nan)
    return days, cells[known & np.isnan(days)].tolist()


def date_form(cells: pd.Series) -> tuple[str | None, str]:
    """How dates that end in the year are written, as in `strftime`, and what to say of it.

    "%d.%m.%Y" has the day first: some cell, such as 31.12.2024, cannot be read otherwise, or no cell decides it, and the mark
    is a full stop, by which no country has the month first, or every first number is 1, as of months.

    Args:
        cells: Cells that are dates, none of them missing.

    Returns:
        "" where none ends in the year. None where some can only have the day first, and others only the month.
    """
    named = [match for cell in cells if (match := _NAMED.fullmatch(str(cell).strip()))]
    if 2 * len(named) > len(cells):
        return _named_form(named)
    found = [match for cell in cells if (match := _YEAR_LAST.fullmatch(str(cell).strip()))]
    first, second = ([int(match[place]) for match in found] for place in (1, 3))
    if not found or max(first) > 31:  # 99-12-31
        return "", ""
    days, months = ([match[0] for match, number in zip(found, numbers) if number > 12] for numbers in (first, second))
    if min(len(days), len(months)) > STRANGE * len(cells):
        return None, f"dates, of which {days[0]} has the day first and {months[0]} the month"
    by_day, decided = len(days) > len(months), bool(days or months)
    mark = found[0][2]
    if not decided:
        by_day = mark == "." or (set(first) == {1} and set(second) != {1})
    year = "%Y" if len(found[0][4]) == 4 else "%y"
    time = "" if found[0][5] is None else " %H:%M:%S" if found[0][5].count(":") > 1 else " %H:%M"
    form = mark.join(("%d", "%m", year) if by_day else ("%m", "%d", year)) + time
    unclear = next(
        (match[0] for match in found if match[1] != match[3] and int(match[1]) < 13 and int(match[3]) < 13), None
    )
    if unclear is None:
        return form, ""
    said = f"{unclear!r} is read as {pd.Timestamp(_year_first(unclear, form)).date()}"
    if decided or by_day:
        return form, said
    other = mark.join(("%d", "%m", year)) + time
    return (
        form,
        f"{said}, though no cell says whether the day or the month comes first; format: '{other}' has the day first",
    )


def _named_form(named: Sequence[re.Match[str]]) -> tuple[str, str]:
    """The form of dates whose months are words, and how the first of them is read."""
    first = named[0]
    month = "%B" if any(len(match[3] or match[5]) > 3 for match in named) else "%b"
    year = "%Y" if first[0][-4:].isdigit() else "%y"
    form = first[2].join(("%d", month, year)) if first[1] else f"{month} %d{',' * (',' in first[0])} {year}"
    return form, f"{first[0]!r} is read as {_year_first(first[0], '')}"


def _year_first(text: str, form: str) -> str | None:
    """A date that ends in the year as one that begins with it, None where it is none; any other text as it is."""
    if (match := _NAMED.fullmatch(text)) is not None:
        day, month, written = match[1] or match[6], match[3] or match[5], match[4] or match[7]
        return _iso(int(written), len(written), MONTHS.index(month[:3].lower()) + 1, day)
    match = _YEAR_LAST.fullmatch(text) if form else None
    if match is None:
        return text
    day, month = (match[1], match[3]) if form.find("%d") < form.find("%m") else (match[3], match[1])
    return _iso(int(match[4]), len(match[4]), int(month), day, match[5] or "")


def _iso(year: int, digits: int, month: int, day: str, time: str = "") -> str | None:
    """A day as text, of a year of two or four digits; None where there is no such month."""
    year = year if digits == 4 else year + (1900 if year > 68 else 2000)  # as strptime
    return f"{year:04}-{month:02}-{int(day):02}{time}" if 1 <= month <= 12 else None

"""Cells of a table as numbers, days and texts, whatever marks they are written with."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Array = NDArray[Any]
R = TypeVar("R")

STRANGE = 0.05  # the share of cells that may be no numbers in a column of numbers; they count as missing
GAPS = frozenset(
    ("", "?", "-", "--", ".", "na", "n/a", "n.a.", "nan", "null", "none", "<na>", "missing", "#n/a", "nil")
)
_DIGIT = re.compile(r"\d")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?")
_SPACED = re.compile(r"[+-]?\d{1,3}([ '\u00a0\u2009\u202f]\d{3})+([.,]\d*)?")
_CONTINENTAL = re.compile(r"[+-]?(\d{1,3}(\.\d{3})+|\d+),\d+")
_CURRENCIES = ("$", "€", "£", "¥")
_DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([T ]\d{1,2}:\d{2}.*)?")


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


def is_gap(cell: Any) -> bool:
    """Whether a cell says that nothing is known."""
    if isinstance(cell, str):
        return cell.strip().lower() in GAPS
    return (
        cell is None
        or cell is pd.NaT
        or cell is pd.NA
        or (isinstance(cell, float | np.floating) and bool(np.isnan(cell)))
    )


def as_text(cell: Any) -> str | None:
    """A cell as the text by which a category is recognised, None where missing: 2, 2.0 and "2" are one category."""
    if is_gap(cell):
        return None
    if isinstance(cell, bool | np.bool_):
        return str(bool(cell))
    if isinstance(cell, float | np.floating) and float(cell).is_integer():
        return str(int(cell))
    if isinstance(cell, bytes):
        return cell.decode("utf-8", "backslashreplace").strip()
    return str(cell).strip()


def as_numbers(cells: pd.Series) -> tuple[Array, list[Any]]:
    """Cells as float64, NaN where missing, and those that are no numbers."""
    dtype = cells.dtype
    if (
        isinstance(dtype, np.dtype) and dtype.kind in "biuf"
    ):  # what most are, without the time that pandas takes for a look
        return np.asarray(cells, dtype=np.float64), []
    if pd.api.types.is_bool_dtype(dtype) or pd.api.types.is_numeric_dtype(dtype):
        return cells.to_numpy(dtype=np.float64, na_value=np.nan), []
    return numbers_of(cells.tolist())


def numbers_of(cells: list[Any]) -> tuple[Array, list[Any]]:
    """The same for cells that are texts, or anything else."""
    marked = continental(cells)
    numbers = each(cells, lambda cell: math.nan if is_gap(cell) else _number(cell, marked))
    strange = [cell for cell, number in zip(cells, numbers) if number is None]
    return np.array(numbers, dtype=np.float64), strange  # where None becomes NaN


def continental(cells: Iterable[Any]) -> bool:
    """Whether texts have decimal commas: some cell can be read so, and none with a decimal point."""
    marked = {cell for cell in cells if isinstance(cell, str) and ("," in cell or "." in cell)}
    texts = [_bare(cell) for cell in marked if not is_gap(cell)]
    commas = [text for text in texts if _CONTINENTAL.fullmatch(text)]
    plain = all(_CONTINENTAL.fullmatch(text) or re.fullmatch(r"[+-]?\d+", text) for text in texts)
    thousands = all(_THOUSANDS.fullmatch(text) for text in commas)
    return bool(commas) and plain and not thousands


def _bare(cell: str) -> str:
    """A cell without the sign of a currency or of per cent around it."""
    text = cell.strip()
    text = text[1:].lstrip() if text.startswith(_CURRENCIES) else text
    return text[:-1].rstrip() if text.endswith((*_CURRENCIES, "%")) else text


def _number(cell: Any, decimal_comma: bool) -> float | None:
    """The finite number that a cell says, None if it says none; 1e999 is beyond all floating numbers."""
    number = _any_number(cell, decimal_comma)
    return None if number is None or not math.isfinite(number) else number


def _any_number(cell: Any, decimal_comma: bool) -> float | None:
    if not isinstance(cell, str):
        try:
            return float(cell)
        except (TypeError, ValueError, OverflowError):  # the last for a whole number beyond 1e308
            return None
    if not _DIGIT.search(cell):
        return None
    text = _bare(cell)
    if decimal_comma and (_CONTINENTAL.fullmatch(text) or _SPACED.fullmatch(text)):
        return float(re.sub(r"[ '.\u00a0\u2009\u202f]", "", text).replace(",", "."))
    if _NUMBER.fullmatch(text):
        return float(text)
    if _THOUSANDS.fullmatch(text) or _SPACED.fullmatch(text):
        return float(re.sub(r"[ ',\u00a0\u2009\u202f]", "", text))
    return None


def as_days(cells: pd.Series) -> tuple[Array, list[Any]]:
    """Dates as days since 1970-01-01, float64 with NaN where missing, and the cells that are no dates."""
    if not pd.api.types.is_datetime64_any_dtype(cells):
        listed = cells.tolist()
        known = ~np.array(each(listed, is_gap), dtype=bool)
        looks = np.array(each(listed, lambda cell: bool(_DATE.fullmatch(str(cell).strip()))), dtype=bool)
        if not (known & looks).any():  # before pandas is asked, which takes a hundred times as long
            return np.full(len(listed), np.nan), [cell for cell, there in zip(listed, known) if there]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of formats that are guessed cell by cell
            texts = cells.astype(object).where(known & looks)  # of durations, an empty column would be none of moments
            parsed = pd.to_datetime(texts, errors="coerce", format="mixed", utc=True)
    else:
        parsed, known = pd.to_datetime(cells, utc=True), cells.notna().to_numpy()
    since = (parsed - pd.Timestamp("1970-01-01", tz="UTC")) / pd.Timedelta(days=1)
    days = since.to_numpy(dtype=np.float64, na_value=np.nan)
    return days, cells[known & np.isnan(days)].tolist()

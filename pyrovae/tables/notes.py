"""What to say of the cells of a column, such as how a number with marks is read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrovae.errors import counted

Array = NDArray[Any]

SINCE = (946_684_800, 2_208_988_800)  # seconds, the years from 2000 to 2039
PLAIN = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


def missing(strange: Sequence[Any]) -> str:
    """What to say of a few cells that are no values of their column."""
    such = f"such as {str(strange[0])!r}"
    return counted(len(strange), f"cell {such} counts", f"cells {such} count") + " as missing"


def marked(known: Sequence[Any], values: Array) -> str:
    """How a number that is written with marks is read: 1,234 as 1234."""
    for cell, value in zip(known, values):
        if isinstance(cell, str) and not PLAIN.fullmatch(cell.strip()):
            return f"{cell.strip()!r} is read as {value:.12g}"
    return ""


def spellings(texts: Iterable[str]) -> str:
    """What to say of values that differ in capitals alone, such as yes and Yes, which somebody may mean for one."""
    met: dict[str, str] = {}
    pairs = [
        f"{first!r} and {text!r}" for text in sorted(texts) if (first := met.setdefault(text.casefold(), text)) != text
    ]
    return f"{', '.join(pairs[:2])}{', ...' if len(pairs) > 2 else ''} count as different" if pairs else ""


def sentinel(values: Array, different: Array) -> str:
    """What to say of a number such as -999 that several cells hold, far from all others, and that may mean missing."""
    for value, others in ((different[0], different[1:]), (different[-1], different[:-1])):
        nines = set(f"{abs(value):.0f}") == {"9"} and float(value).is_integer()
        if not nines or len(others) < 2 or (number := int((values == value).sum())) < 3:
            continue
        if np.abs(others - value).min() > others[-1] - others[0]:
            return f"{number} cells are {value:g}, far from all others: leave them empty if that means missing"
    return ""


def days_or_seconds(different: Array) -> str:
    """What to say of whole numbers that all are days, such as 20240131, which are no even scale, or seconds since 1970."""
    for unit, said in ((1, "seconds"), (1000, "milliseconds")):
        if SINCE[0] * unit <= different[0] and different[-1] < SINCE[1] * unit:
            written = np.datetime64(int(different[0]) // unit, "s").item()
            return f"{said} since 1970? {different[0]:.0f} would be read as a moment if it were written {written}"
    year, rest = np.divmod(different, 10_000)
    month, day = np.divmod(rest, 100)
    if not ((year >= 1900) & (year <= 2100) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)).all():
        return ""
    first = f"{different[0]:.0f}"
    return f"days? {first} would be read as one if it were written {first[:4]}-{first[4:6]}-{first[6:]}"

"""Numbers that count days, months or seconds, in words.

What the numbers of a column are is said by one value: `np.datetime64`, the date of day 0; a period of pandas, that of number 0,
such as `pd.Period("1970-01", "M")`, where they count months; or `np.timedelta64`, the duration that they count, as
`np.timedelta64(1, "s")` says of times of day.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

MOST = 2_000_000  # days, some 5,500 years, of which the calendar is spoken of
_COUNTED = {"M": "months", "Q": "quarters", "Y": "years", "W": "weeks", "D": "days", "h": "hours"}


def is_moment(meaning: Any) -> bool:
    """Whether this says that numbers are dates, periods or durations."""
    return isinstance(meaning, np.datetime64 | np.timedelta64) or hasattr(meaning, "ordinal")


def written(value: float, meaning: Any) -> str | None:
    """A number as a date, a period or a time, None where that is beyond the calendar, or infinite."""
    if isinstance(meaning, np.timedelta64) and math.isfinite(value):
        return clock(value * _seconds(meaning))
    if not abs(value) < MOST:
        return None
    if isinstance(meaning, np.datetime64):
        return str(meaning.astype("M8[D]") + np.timedelta64(round(value), "D"))
    return str(meaning + round(value))


def span(value: float, meaning: Any, digits: int = 2) -> str:
    """A difference of such numbers."""
    if isinstance(meaning, np.timedelta64) and not math.isfinite(value):
        return f"{value:g} seconds"
    if isinstance(meaning, np.timedelta64):
        return clock(value * _seconds(meaning))
    unit = "D" if isinstance(meaning, np.datetime64) else str(meaning.freqstr).split("-")[0]
    return f"{value:.{digits}g} {_COUNTED.get(unit, 'periods')}"


def clock(seconds: float, parts: bool = True) -> str:
    """Hours and minutes, 8:05, and seconds where the parts of minutes are asked for."""
    whole = round(abs(seconds))
    minutes, rest = divmod(whole, 60)
    sign = "-" if seconds < 0 and whole else ""
    return f"{sign}{minutes // 60}:{minutes % 60:02}" + (f":{rest:02}" if parts else "")


def _seconds(duration: np.timedelta64) -> float:
    return float(duration / np.timedelta64(1, "s"))

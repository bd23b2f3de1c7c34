"""Times of day, durations, months and quarters as numbers, and back."""

from __future__ import annotations

import datetime
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrovae.tables.cells import MONTHS, each, is_gap

Array = NDArray[Any]

DAY = 86_400  # seconds
LONGEST = 9e9  # seconds, 285 years, which pandas has room for at any precision
# 9:30, 09:30:15.2, 9:30 pm, 9 am, -0:15, and durations as pandas writes them: 1 days 02:30:00
_CLOCK = re.compile(
    r"(?:([+-]?\d{1,6}) days?,? )?([+\u2212-]?)(\d{1,9})(?::(\d{2}))?(?::(\d{2}))?([.,]\d{1,9})?\s?([AaPp]\.?[Mm]\.?)?"
)
_CLOCK_FORM = re.compile(r"%-?[HI]:%M(:%S)?( ?%p)?|%-?M:%S")
_YEAR = r"((?:1[5-9]|20|21)\d\d)"
_WORD = r"([A-Za-z]{3,9})"
# How months and quarters are written, in which order, and what pandas calls their frequency.
_PERIODS = [
    *((re.compile(rf"{_YEAR}{mark}(\d\d)"), f"%Y{mark}%m", "M") for mark in ("-", "/", "M")),
    (re.compile(rf"(\d\d)/{_YEAR}"), "%m/%Y", "M"),
    *((re.compile(rf"{_WORD}{mark}{_YEAR}"), f"%b{mark}%Y", "M") for mark in (" ", "-")),
    (re.compile(rf"{_WORD}-(\d\d)"), "%b-%y", "M"),
    *((re.compile(rf"{_YEAR}{mark}Q([1-4])"), f"%Y{mark}Q%q", "Q-DEC") for mark in ("", "-", " ")),
    *((re.compile(rf"Q([1-4]){mark}{_YEAR}"), f"Q%q{mark}%Y", "Q-DEC") for mark in (" ", "-", "/")),
]
NAMES = (
    *("january", "february", "march", "april", "june", "july", "august", "sept", "september", "october", "november"),
    "december",
)
PERIOD_FORMS = tuple(form for _, form, _ in _PERIODS)


def seconds_of(text: str, form: str = "") -> float | None:
    """The seconds that a time of day, or a duration, says; None where it says neither.

    Args:
        text: Such as "9:30", "09:30:15" or "9:30 pm".
        form: How the times of its column are written: by "%M:%S" 9:30 is nine and a half minutes.
    """
    found = _CLOCK.fullmatch(text.strip())
    if found is None:
        return None
    days, sign, first, second, third, part, half = found.groups()
    by_minutes = third is None and half is None and (part is not None or _begins_with_minutes(form))
    if (second is None and half is None) or (half and third is None and part is not None):
        return None
    if by_minutes:
        hours, minutes, seconds = 0, int(first), int(second or 0)
    else:
        hours, minutes, seconds = int(first), int(second or 0), int(third or 0)
        if minutes > 59 or (half and not 1 <= hours <= 12):
            return None
    if seconds > 59:
        return None
    if half:
        hours = hours % 12 + 12 * (half[0] in "Pp")
    total = 3600 * hours + 60 * minutes + seconds + float((part or "0").replace(",", "."))
    return DAY * int(days or 0) + (-total if sign in ("-", "\u2212") else total)


def _begins_with_minutes(form: str) -> bool:
    return form in ("%M:%S", "%-M:%S")


def as_seconds(cells: pd.Series, form: str = "") -> tuple[Array, list[Any]]:
    """Times and durations in seconds, float64 with NaN where missing, and the cells that are neither."""
    if pd.api.types.is_timedelta64_dtype(cells):
        return cells.dt.total_seconds().to_numpy(dtype=np.float64, na_value=np.nan), []

    def read(cell: Any) -> float | None:
        if is_gap(cell):
            return math.nan
        if isinstance(cell, datetime.time):
            return 3600.0 * cell.hour + 60 * cell.minute + cell.second + cell.microsecond / 1e6
        if isinstance(cell, datetime.timedelta):  # also those of pandas
            return cell.total_seconds()
        if isinstance(cell, np.timedelta64):
            return float(cell / np.timedelta64(1, "s"))
        return seconds_of(cell, form) if isinstance(cell, str) else None

    listed = cells.tolist()
    found = each(listed, read)
    return np.array(found, dtype=np.float64), [cell for cell, number in zip(listed, found) if number is None]


def clock_form(cells: Iterable[Any]) -> str:
    """How most of the times are written, as in `strftime`; "%-H" has no zero in front. "" where none is a text.

    With seconds where any has some. 30:15 beside 1:02:15 is minutes and seconds, as no day has 30 hours.
    """
    found = [m for cell in cells if isinstance(cell, str) and (m := _CLOCK.fullmatch(cell.strip())) is not None]
    if not found:
        return ""
    tenths = any(m[6] is not None and m[5] is None for m in found)
    two, three = (
        [int(m[3]) for m in found if m[4] and not m[7] and (m[5] is None) == of_two] for of_two in (True, False)
    )
    if tenths or (two and three and max(three) < 24 <= max(two)):
        return "%M:%S" if all(len(m[3]) > 1 for m in found) else "%-M:%S"
    halves = sum(m[7] is not None for m in found)
    hour = "%" + "-" * any(len(m[3]) < 2 for m in found) + ("I" if 2 * halves > len(found) else "H")
    there = sum(m[5] is not None for m in found)
    seconds = ":%S" * (2 * there > len(found) or any(m[5] is not None and (int(m[5]) or m[6]) for m in found))
    return f"{hour}:%M{seconds}{' %p' if hour.endswith('I') else ''}"


def form_for(form: str, seconds: Array) -> str:
    """A form in which times lose nothing: without halves where they are no times of day, with seconds where they have some."""
    if "I" in form and (seconds.min() < 0 or seconds.max() >= DAY):
        form = form.replace("I", "H").replace(" %p", "")
    if form and "%S" not in form and (seconds % 60).any():
        form = form.replace("%M", "%M:%S")
    return form


def how_read(cells: Iterable[Any], form: str) -> str:
    """What to say of times of two numbers, which may be hours or minutes: how the first is read; "" where there is none."""
    found = [m for cell in cells if isinstance(cell, str) and (m := _CLOCK.fullmatch(cell.strip())) is not None]
    two = next((m for m in found if m[4] and m[5] is None and m[7] is None), None)
    if two is None:
        return ""
    by_minutes = two[6] is not None or _begins_with_minutes(form)
    day = " of a day of 24 hours" if any(m[7] for m in found) else ""
    return f"{two[0]!r} is read as {'minutes and seconds' if by_minutes else f'hours and minutes{day}'}"


def is_clock_form(form: Any) -> bool:
    """Whether this says how times are written."""
    return isinstance(form, str) and _CLOCK_FORM.fullmatch(form) is not None


def write_clock(seconds: float, form: str, decimals: int | None = 0) -> str:
    """Seconds as a time in a form, in which hours, or minutes, may be any number."""
    form = form or "%H:%M:%S"
    parts = decimals or 0 if "%S" in form else 0
    unit = 60 if "%S" not in form else 1
    whole = round(abs(seconds) / unit, parts) * unit
    minutes, rest = divmod(whole, 60)
    hours, minutes_left = divmod(int(minutes), 60)
    last = f"{rest:0{3 + parts if parts else 2}.{parts}f}"
    minus = "-" if seconds < 0 and whole else ""
    if "H" not in form and "I" not in form:
        return f"{minus}{int(minutes):0{1 if '-' in form else 2}}:{last}"
    half = ""
    if "I" in form:
        half = (" " if " %p" in form else "") + ("PM" if hours % 24 > 11 else "AM")
        hours = (hours - 1) % 12 + 1
    first = str(hours) if "-" in form else f"{hours:02}"
    return f"{minus}{first}:{minutes_left:02}" + (f":{last}" if "%S" in form else "") + half


def time_of(seconds: float) -> datetime.time:
    """A time of day; what is beyond a day is its end or its beginning."""
    micro = min(max(round(seconds * 1e6), 0), DAY * 10**6 - 1)
    return (datetime.datetime.min + datetime.timedelta(microseconds=micro)).time()


def period_form(cells: Sequence[Any]) -> tuple[str, str]:
    """How most of the months, or quarters, are written, and what pandas calls their frequency; "" where they are none."""
    texts = Counter(cell.strip() for cell in cells if isinstance(cell, str))
    best, form, freq = 0, "", ""
    for _, one, of in _PERIODS:
        met = sum(number for text, number in texts.items() if _period(text, one) is not None)
        if met > best:
            best, form, freq = met, one, of
    return form, freq


def _period(text: str, form: str) -> int | None:
    """The months, or quarters, since 1970 that a text says in a form; None where it says none."""
    pattern, _, freq = _PERIODS[PERIOD_FORMS.index(form)]
    found = pattern.fullmatch(text)
    if found is None:
        return None
    year, part = found.groups() if form.startswith("%Y") else found.groups()[::-1]
    if form.startswith("%b"):
        part = str(MONTHS.index(part[:3].lower()) + 1) if _is_month(part) else "0"
    number, each_year = int(part), 12 if freq == "M" else 4
    years = int(year) if len(year) == 4 else int(year) + (1900 if int(year) > 68 else 2000)
    return (years - 1970) * each_year + number - 1 if 1 <= number <= each_year else None


def is_period(dtype: str, form: str) -> bool:
    """Whether this is a dtype of periods, and a form says such."""
    try:
        kind = pd.api.types.pandas_dtype(dtype)
    except (TypeError, ValueError):
        return False
    freqs = {pd.PeriodDtype(freq) for _, one, freq in _PERIODS if one == form}
    return isinstance(kind, pd.PeriodDtype) and (not form or kind in freqs)


def are_seasons(cells: Iterable[Any], form: str) -> bool:
    """Whether texts that seem to be months are years and the next ones, such as 2003-04."""
    if form not in ("%Y-%m", "%Y/%m"):
        return False
    pattern = _PERIODS[PERIOD_FORMS.index(form)][0]
    found = [m for cell in set(cells) if isinstance(cell, str) and (m := pattern.fullmatch(cell.strip())) is not None]
    return all((int(m[1]) + 1) % 100 == int(m[2]) for m in found)


def _is_month(word: str) -> bool:
    return word.lower() in MONTHS or word.lower() in NAMES


def as_periods(cells: pd.Series, dtype: str, form: str = "") -> tuple[Array, list[Any]]:
    """Months, quarters and others as their number since 1970, float64 with NaN where missing, and the cells that are none.

    Args:
        cells: Texts, or periods of pandas.
        dtype: Of the periods, such as "period[M]".
        form: How they are written; "" for any way in which such are.
    """
    wanted = pd.api.types.pandas_dtype(dtype)
    if cells.dtype == wanted:
        return np.array([math.nan if one is pd.NaT else one.ordinal for one in cells], dtype=np.float64), []
    every = [one for _, one, freq in _PERIODS if pd.PeriodDtype(freq) == wanted]
    forms = [form, *every] if form in PERIOD_FORMS else every

    def read(cell: Any) -> float | None:
        if is_gap(cell):
            return math.nan
        if isinstance(cell, pd.Period):
            if cell.freq == wanted.freq:
                return float(cell.ordinal)
            first, last = (cell.asfreq(wanted.freq, how=how).ordinal for how in ("start", "end"))
            return float(last) if first == last else None  # a quarter is no month
        if not isinstance(cell, str):
            return None
        if forms:
            return next((float(n) for one in forms if (n := _period(cell.strip(), one)) is not None), None)
        try:
            return float(pd.Period(cell.strip(), freq=wanted.freq).ordinal)
        except (ValueError, TypeError):
            return None

    listed = cells.tolist()
    found = each(listed, read)
    return np.array(found, dtype=np.float64), [cell for cell, number in zip(listed, found) if number is None]


def periods_of(numbers: Array, dtype: str, form: str) -> pd.Series:
    """What `as_periods` made of cells, back as texts in a form, or without one as periods of pandas."""
    missing = np.isnan(numbers)
    whole = np.where(missing, 0, np.round(numbers)).astype(np.int64)
    whole[missing] = np.iinfo(np.int64).min  # what pandas has for NaT
    made = pd.Series(pd.arrays.PeriodArray(whole, dtype=pd.api.types.pandas_dtype(dtype)))
    if not form:
        return made
    return made.map(lambda one: None if one is pd.NaT else _written(one, form)).astype(object)


def _written(period: Any, form: str) -> str:
    word = MONTHS[period.month - 1].capitalize()
    parts = {"%Y": f"{period.year:04}", "%y": f"{period.year % 100:02}", "%m": f"{period.month:02}", "%b": word}
    for name, text in (parts | {"%q": str(period.quarter)}).items():
        form = form.replace(name, text)
    return form

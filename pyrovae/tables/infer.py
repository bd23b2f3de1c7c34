"""What each column of a table is, found out from its cells and its name."""

from __future__ import annotations

import datetime
import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrovae.errors import DataError, counted
from pyrovae.tables.cells import STRANGE, as_days, as_numbers, as_text, date_form, each, numbers_of, says_none
from pyrovae.tables.clocks import (
    DAY,
    are_seasons,
    as_periods,
    as_seconds,
    clock_form,
    form_for,
    how_read,
    period_form,
    periods_of,
)
from pyrovae.tables.columns import Column
from pyrovae.tables.frames import as_frame
from pyrovae.tables.notes import days_or_seconds, marked, missing, sentinel, spellings
from pyrovae.tables.numerals import (
    are_addresses,
    form_of,
    is_multiple,
    units_of,
    without_sign,
    without_unit,
    word_units,
)
from pyrovae.tables.schema import Schema

Array = NDArray[Any]

MOST_LEVELS, ROWS_A_LEVEL = 20, 10  # numbers with so few values, each in so many rows on average, are classes
MOST_CATEGORIES = 100
LOOKED_AT = 200  # cells of a column, by which it may be a kind or not
MOST_UNITS = 5  # of a column; more are other words behind numbers
ENOUGH_ROWS = 20  # from which on a column of whole numbers that are all different is no accident
EXACT = 2e-3  # of the standard deviation: numbers recorded to less are exact, unless many are equal
ID_NAME = re.compile(
    r"(^|[\s_.-])(ids?|uuid|guid)$|^(index|row|unnamed: 0)$|[\s_.-](index|row|key|no|nr|num|number)$", re.IGNORECASE
)
NOTHING = "no cell has a value"
PER_CENT = re.compile(r"%|(^|[^a-z])(per ?cent(age)?|pct)([^a-z]|$)", re.IGNORECASE)  # in a name
ID_CAMEL = re.compile(r"[a-z](ID|Id)$")


def infer(table: Any) -> Schema:
    """Find out what each column of a table is.

    Texts with few different values are categories, with many they are left out. Numbers with at most 20 different values, each
    in ten rows on average, are ordinal, with two binary. Other numbers are counts if they are whole and not negative, and are
    modelled on a log scale where that makes a skewed column less than half as skewed. How many decimals they have says what
    they are recorded to. Dates become days. Columns that only name the rows, hold one value, or nothing, are left out, with
    the reason. Cells such as "", "?", "NA" and "n/a" are missing.

    Args:
        table: A DataFrame of N rows, of pandas, Polars, or another package whose tables have `to_pandas`. It is not changed.

    Returns:
        A `Schema`; print it, edit its columns, and give rows to its `encode`.

    Raises:
        DataError: There is no row, two columns have one name, or no column is left.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"age": [31, 45, 62, None], "city": ["Oslo", "Rome", "Oslo", "Rome"], "note": list("abcd")})
        >>> pv.tables.infer(table)
        Schema of 2 columns, 1 left out:
          age   count
          city  binary, 'Oslo' or 'Rome'
          note  left out: texts, 4 different ones in 4 rows
    """
    table = as_frame("infer", table)
    if len(table) == 0 or not len(table.columns):
        raise DataError(f"A table needs rows and columns, got {table.shape[0]} x {table.shape[1]}.")
    names = [str(name) for name in table.columns]
    if twice := sorted(name for name, number in Counter(names).items() if number > 1):
        raise DataError(f"Several columns have the name {twice[0]!r}. Give each column its own.")
    with np.errstate(over="ignore", invalid="ignore"):  # squares of numbers beyond 1e154
        columns = [_column(name, cells) for name, (_, cells) in zip(names, table.items())]
    if all(column.kind == "none" for column in columns):
        reasons = "; ".join(f"{column.name}: {column.why}" for column in columns[:5])
        raise DataError(f"No column is left that can be modelled ({reasons}).")
    return Schema(tuple(columns))


def is_free_text(cells: pd.Series) -> bool:
    """Whether a column holds texts too different from one another to be modelled: no numbers, dates or categories."""
    return not pd.api.types.is_numeric_dtype(cells) and _column(str(cells.name), cells).kind == "none"


def is_number(dtype: Any) -> bool:
    """Whether the cells of a column of this dtype are numbers, and no truths."""
    if isinstance(dtype, np.dtype):
        return dtype.kind in "iufc"
    return pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_bool_dtype(dtype)


def _column(name: str, cells: pd.Series) -> Column:
    dtype = str(cells.dtype)
    if is_number(cells.dtype):
        if getattr(cells.dtype, "kind", "") == "c":
            raise DataError(
                f"Column {name!r} holds complex numbers. Give real and imaginary parts as columns of their own."
            )
        values = as_numbers(cells)[0]
        if (gaps := np.isnan(values)).any():
            values = values[~gaps]
        if np.isinf(values).any():
            raise DataError(f"Column {name!r} holds infinite numbers. Leave such cells empty, or change its unit.")
        return (
            _numbers(name, dtype, values, len(cells), "") if len(values) else Column(name, "none", dtype, why=NOTHING)
        )
    listed = cells.tolist()
    written = [(cell, text) for cell, text in zip(listed, each(listed, as_text)) if text is not None]
    if not written:
        return Column(name, "none", dtype, why=NOTHING)
    known, texts = [cell for cell, _ in written], [text for _, text in written]
    if isinstance(cells.dtype, pd.CategoricalDtype):
        return _category(name, cells, known)
    words = {cell.strip() for cell in listed if says_none(cell)}
    if words and _are_words(known):
        written = [
            (cell, text) for cell, text in zip(listed, each(listed, lambda c: as_text(c, words))) if text is not None
        ]
        known, texts = [cell for cell, _ in written], [text for _, text in written]
    if len(set(texts)) == 1:
        return Column(name, "none", dtype, why=f"every row has the value {texts[0]}")
    if all(isinstance(cell, bool | np.bool_) for cell in known):
        return Column(name, "binary", dtype, categories=(False, True))
    if pd.api.types.is_datetime64_any_dtype(cells):
        return Column(name, "date", dtype, step=_date_step(as_days(cells)[0]))
    for found in (_clocks(name, cells, known, texts), _periods(name, cells, known, texts)):
        if found is not None:
            return found
    if are_addresses(known):
        return _texts(name, dtype, known, texts, "")
    unit, nearly = _unit(known)
    values, strange = numbers_of(known, unit=unit)
    if not nearly and 2 * len(strange) < len(known):
        nearly = f"numbers, but for {len(strange)} of {len(known)} cells"
        nearly += f" such as {strange[0]!r}: leave such cells empty, or make them numbers" if strange else ""
    # beside "none", which is a word then, all may be strange
    if len(strange) <= STRANGE * len(known) and not np.isnan(values).all():
        if unit and (levels := _levels(name, dtype, values, texts)) is not None:
            return levels
        why = missing(strange) if strange else marked(known, values)
        if len(units := units_of(cell for cell, value in zip(known, values) if not math.isnan(value))) > 1:
            why = "; ".join(filter(None, (why, f"{', '.join(units[:5])} are taken for one unit")))
        if (unit or "%" in units) and (bare := without_unit(known)):
            said = f"{counted(len(bare), 'cell')} without a unit, such as {str(bare[0])!r}, taken for {unit or '%'}"
            why = "; ".join(filter(None, (why, said)))
        made = _numbers(name, dtype, values[~np.isnan(values)], len(cells), why, per_cent=units == ["%"])
        style = form_of(known, unit=unit) or ""
        style = without_sign(style) if len(units) > 1 else style  # other rows may have any of them
        return made if made.kind == "none" else replace(made, format=style)
    moments = pd.Series(known, dtype=object)
    days, strange = as_days(moments)
    if len(strange) <= STRANGE * len(known) and not np.isnan(days).all():
        form, why = date_form(moments[~np.isnan(days)])
        if form is None:
            return Column(name, "none", dtype, why=why)
        days, strange = as_days(moments, form)
        if strange:
            why = "; ".join(filter(None, (why, missing(strange))))
        return Column(name, "date", "datetime64[ns]", step=_date_step(days), format=form, why=why)
    return _texts(name, dtype, known, texts, nearly)


def _few_of_the_first(known: Sequence[Any], strange: Callable[[pd.Series], Sequence[Any]]) -> bool:
    """Whether most of the first cells are no values of a kind, of which the others then need not be looked at."""
    some = pd.Series(known[:LOOKED_AT], dtype=object)
    return 2 * len(strange(some)) > len(some)


def _clocks(name: str, cells: pd.Series, known: Sequence[Any], texts: Sequence[str]) -> Column | None:
    """A column of times of day, or of durations; None where it is none."""
    lasting = pd.api.types.is_timedelta64_dtype(cells)
    if not lasting and _few_of_the_first(known, lambda some: as_seconds(some)[1]):
        return None
    form = clock_form(known)
    seconds, strange = as_seconds(pd.Series(known, dtype=cells.dtype if lasting else object), form)
    values = seconds[~np.isnan(seconds)]
    if len(strange) > STRANGE * len(known) or not len(values):
        return None
    form = form_for(form, values)
    if (levels := _levels(name, str(cells.dtype), seconds, texts)) is not None:
        return levels
    dtype = str(cells.dtype) if form or lasting else "time"
    if dtype == "time" and any(isinstance(cell, datetime.timedelta | np.timedelta64) for cell in known):
        dtype = "timedelta64[us]"  # which may be longer than a day
    why = "; ".join(filter(None, (how_read(known, form), missing(strange) if strange else "")))
    made = _numbers(name, dtype, values, len(cells), why, classes=False)
    if made.kind == "none":
        return made
    always = dtype == "time" or "I" in form  # a time of day, whatever its values
    offset, low, high = None if always else made.offset, made.low, None
    # without a logarithm none that is but small, which may be more than a second
    step = made.step if offset is not None else _step(values, np.unique(values), made.decimals)
    recorded = next((unit for unit in (60.0, 1.0) if not (values % unit).any()), 0.0)
    step = max(step, recorded) if step else 0.0
    if offset is None and values.min() >= 0:  # a bound has a probability only where numbers are rounded
        step, low = step or recorded or _small_step(values), 0.0
        if (always or form.startswith("%H")) and values.max() < DAY:
            high = max(DAY - step, float(values.max()))
    return replace(made, kind="time", dtype=dtype, offset=offset, low=low, high=high, step=step, format=form)


def _periods(name: str, cells: pd.Series, known: Sequence[Any], texts: Sequence[str]) -> Column | None:
    """A column of months, quarters or others; None where it is none."""
    form, dtype = "", str(cells.dtype)
    if not isinstance(cells.dtype, pd.PeriodDtype):
        form, freq = period_form(known[:LOOKED_AT])
        if not form:
            return None
        dtype = f"period[{freq}]"
    numbers, strange = as_periods(pd.Series(known, dtype=object), dtype, form)
    if len(strange) > STRANGE * len(known) or are_seasons(known, form):
        return None
    if (levels := _levels(name, str(cells.dtype), numbers, texts)) is not None:
        return levels
    said = ""
    if form == "%b-%y":  # which may be a day without its year, too
        place = next(k for k, cell in enumerate(known) if isinstance(cell, str) and not math.isnan(numbers[k]))
        said = f"{texts[place]!r} is read as {periods_of(numbers[[place]], dtype, '')[0]}"
    why = "; ".join(filter(None, (said, missing(strange) if strange else "")))
    return Column(name, "period", dtype, step=1.0, format=form, why=why)


def _levels(name: str, dtype: str, values: Array, texts: Sequence[str]) -> Column | None:
    """Texts of few values as classes in the order of what they say, such as 5 mg < 10 mg; None where there are more.

    Args:
        name: Of the column.
        dtype: Of the column.
        values: What the cells say, NaN where nothing.
        texts: The cells, which stay what they are.
    """
    known = sorted({(value, text) for value, text in zip(values.tolist(), texts) if not math.isnan(value)})
    num = len(known)
    if num < 2 or num != len({value for value, _ in known}) or num < len(set(texts)):
        return None
    if num > 2 and (num > MOST_LEVELS or len(values) < ROWS_A_LEVEL * num):
        return None
    return Column(name, "binary" if num == 2 else "ordinal", dtype, categories=tuple(text for _, text in known))


def _unit(known: Sequence[Any]) -> tuple[str, str]:
    """The unit behind most numbers of a column, and, where there are several, what to say of it."""
    some = known[:LOOKED_AT]
    if 4 * word_units(some).total() <= len(some):
        return "", ""
    units = word_units(known)
    if 2 * units.total() <= len(known):
        return "", ""
    (unit, number), *others = units.most_common()
    if number >= (1 - STRANGE) * units.total():
        if is_multiple(unit) and without_unit(known):
            return "", f"numbers with {unit} and without: write all of them out"
        return unit, ""
    several = len(units) <= MOST_UNITS and others[0][1] > 1  # and not words that follow numbers, such as streets
    return "", f"numbers with several units, {unit} and {others[0][0]}: give all cells one" if several else ""


def _are_words(known: Sequence[Any]) -> bool:
    """Whether too many cells are neither numbers nor dates for the others to be counted as missing."""
    days = as_days(pd.Series(known, dtype=object))
    return all(len(strange) > STRANGE * len(known) for _, strange in (numbers_of([*known]), days))


def _category(name: str, cells: pd.Series, known: Sequence[Any]) -> Column:
    """A column of pandas' own categories, which are kept, with their order if they have one."""
    categories = tuple(cells.cat.categories.tolist())
    if len(categories) < 2:
        return Column(name, "none", "category", why=f"every row has the value {known[0]}")
    kind = "binary" if len(categories) == 2 else "ordinal" if cells.cat.ordered else "categorical"
    return Column(name, kind, "category", categories=categories)


def _texts(name: str, dtype: str, known: Sequence[Any], texts: Sequence[str], nearly: str) -> Column:
    """A column of texts, of which most may be `nearly` numbers."""
    num, rows = len(set(texts)), len(texts)
    if num > MOST_CATEGORIES or num > max(2, rows / 2):
        is_id = num == rows and (bool(ID_NAME.search(name)) or bool(ID_CAMEL.search(name)))
        what = "it names the rows" if is_id else nearly or f"texts, {num} different ones in {counted(rows, 'row')}"
        return Column(name, "none", dtype, why=what)
    of_numbers = f"; {nearly}" if nearly and num > MOST_LEVELS else ""
    first = dict(zip(reversed(texts), reversed(known)))
    categories = tuple(_plain(first[text]) for text in sorted(first, key=_in_order))
    return Column(
        name,
        "binary" if num == 2 else "categorical",
        dtype,
        categories=categories,
        why=(spellings(first) + of_numbers).removeprefix("; "),
    )


def _plain(cell: Any) -> Any:
    """A category as JSON can keep it: a truth, a number or a text, such as that of a moment."""
    cell = cell.item() if isinstance(cell, np.generic) else cell
    return cell if isinstance(cell, bool | int | float) else as_text(cell, (str(cell).strip(),))


def _in_order(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return np.inf, text


def _numbers(
    name: str, dtype: str, values: Array, rows: int, why: str, *, per_cent: bool = False, classes: bool = True
) -> Column:
    """A column of numbers, whose known values are given.

    Args:
        name: Of the column.
        dtype: Of the column.
        values: Its values, without those that are missing.
        rows: How many rows there are.
        why: What is to be said of it.
        per_cent: Whether they are written with a sign of per cent, which the name may say, too.
        classes: Whether few different ones are classes, and ones that all differ may name the rows.
    """
    different = np.unique(values)
    num = len(different)
    whole = bool((different == np.floor(different)).all())
    if num == 1:
        return Column(name, "none", dtype, why=f"every row has the value {different[0]:g}")
    why = "; ".join(filter(None, (why, sentinel(values, different))))
    named = bool(ID_NAME.search(name)) or bool(ID_CAMEL.search(name))
    if not _is_numeric(dtype) and classes:  # texts with marks
        dtype = "int64" if whole else "float64"
    if classes and whole and num == len(values) == rows >= ENOUGH_ROWS and named:
        return Column(name, "none", dtype, why="it names the rows")
    if classes and (num == 2 or (num <= MOST_LEVELS and len(values) >= ROWS_A_LEVEL * num)):
        categories = tuple(int(v) if whole else float(v) for v in different)
        return Column(name, "binary" if num == 2 else "ordinal", dtype, categories=categories, why=why)
    if whole and classes:
        all_differ = num == len(values) == rows >= ENOUGH_ROWS
        noted = days_or_seconds(different) or ("all different: leave it out if it names the rows" if all_differ else "")
        noted = noted or ("its name is one of an id: leave it out if its numbers are no amounts" if named else "")
        why = "; ".join(filter(None, (why, noted)))
    decimals = _decimals(different)
    step = _step(values, different, decimals)
    smallest, largest = float(different[0]), float(different[-1])
    zeros, ones = float((values == 0).mean()), float((values == 1).mean())
    offset, low, high = None, None, None
    kind = "count" if whole and smallest >= 0 and classes else "real"
    if kind == "count" or (smallest == 0 and zeros > 0.01):
        low = 0.0
    if smallest >= 0 and largest == 1 and ones > 0.01 and not whole:
        kind, low, high = "proportion", 0.0, 1.0
    elif smallest >= 0 and _is_skewed(values, different):
        offset = 0.0 if smallest > 0 and kind != "count" else step or float(np.quantile(values[values > 0], 0.05))
        kind = kind if kind == "count" else "positive"
        # on a log scale, what is below half a step is recorded as the smallest number that has a logarithm
        low = 0.0 if smallest == 0 or kind == "count" else step or None
    if classes and (per_cent or PER_CENT.search(name)) and smallest >= 0 and 1 < largest <= 100:
        kind, low, high = ("proportion", 0.0, 100.0) if offset is None else (kind, low, 100.0)
    if (low is not None or high is not None) and not step:  # a bound has a probability only where numbers are rounded
        step = _small_step(values)
    return Column(name, kind, dtype, step=float(step), offset=offset, low=low, high=high, decimals=decimals, why=why)


@functools.cache  # pandas takes longer to read the name of a dtype than all else about a short column
def _is_numeric(dtype: str) -> bool:
    try:
        return bool(pd.api.types.is_numeric_dtype(dtype))
    except (TypeError, NotImplementedError):  # pandas does not read all names that it gives: decimal128(12, 2)[pyarrow]
        return False


def _decimals(different: Array) -> int | None:
    """How many decimals numbers are written with, None if more than six, by the different ones in ascending order."""
    size = max(1.0, -float(different[0]), float(different[-1]))
    found = next((d for d in range(7) if np.abs(np.round(different, d) - different).max() < 1e-9 * size), None)
    return None if found is None or size * 10.0**found > 2**53 else found


def _step(values: Array, different: Array, decimals: int | None) -> float:
    """What the values are recorded to: their decimals, or multiples of those; 0 if they are as good as exact."""
    if decimals is None:
        return 0.0
    multiples = np.rint(different * 10.0**decimals).astype(np.int64)
    step = float(np.gcd.reduce(multiples)) / 10.0**decimals
    return 0.0 if len(different) > len(values) / 2 and step < EXACT * values.std() else step


def _small_step(values: Array) -> float:
    """A step that is small beside what the values span."""
    spread = float(values.std())  # infinite beyond 1e154
    return float(10.0 ** np.floor(np.log10(1e-3 * spread))) if 0 < spread < np.inf else 0.0


def _is_skewed(values: Array, different: Array) -> bool:
    """Whether a logarithm makes numbers from 0 on much less skewed."""
    if len(different) - (different[0] == 0) < 3:
        return False
    skew = _skewness(values)
    if not skew > 1:
        return False
    positive = values[values > 0]
    return abs(_skewness(np.log(positive))) < (skew if different[0] > 0 else abs(_skewness(positive))) / 2


def _skewness(values: Array) -> float:
    centred = values - values.mean()
    return float((centred**3).mean() / (centred**2).mean() ** 1.5)


def _date_step(days: Array) -> float:
    """1 for days, 0 for moments."""
    known = days[~np.isnan(days)]
    return 1.0 if bool((known == np.floor(known)).all()) else 0.0

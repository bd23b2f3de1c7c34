"""One column of a table: its kind, and what belongs to the kind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrovae.errors import DataError, counted, shortened
from pyrovae.tables.cells import STRANGE, as_days, as_numbers, as_text, each, is_gap
from pyrovae.tables.clocks import (
    LONGEST,
    PERIOD_FORMS,
    as_periods,
    as_seconds,
    is_clock_form,
    is_period,
    periods_of,
    time_of,
    write_clock,
)
from pyrovae.tables.numerals import is_form, style_in

Array = NDArray[Any]

KINDS = {
    "real": "a number",
    "positive": "a number above 0, or 0, modelled on a log scale",
    "count": "a whole number from 0 on",
    "proportion": "a number between two bounds, such as a share from 0 to 1, or to 100 %",
    "date": "a day, counted from 1970-01-01",
    "time": "a time of day, or a duration, in seconds",
    "period": "a month, a quarter or another period, counted from 1970",
    "binary": "one of two values",
    "categorical": "one of several values without an order",
    "ordinal": "one of several values in an order",
    "none": "left out",
}
MOMENTS = ("date", "time", "period")
NUMBERS = ("real", "positive", "count", "proportion", *MOMENTS)
CLASSES = ("binary", "categorical", "ordinal")


@dataclass(frozen=True)
class Column:
    """A column of a table, and how it is modelled.

    Args:
        name: Its name.
        kind: What it is: "real", "positive" (on a log scale), "count", "proportion", "date", "time" (of day, or a
            duration), "period" (a month, a quarter), "binary", "categorical", "ordinal", or "none" for a column that is left
            out.
        dtype: The dtype that pandas had read it as, which `Schema.decode` gives back; "time" for times of Python.
        categories: The values of a binary, categorical or ordinal column, in the order of their codes 0, 1, ...
        step: What numbers are recorded to, such as 0.1 for one decimal; 0 if they are exact.
        offset: What is added to numbers before their logarithm is taken; None for a linear scale.
        low: The smallest number that can occur; None if there is no bound.
        high: The largest number that can occur; None if there is no bound.
        decimals: How many decimals numbers are written with; None if with all that they have.
        format: How dates are written as text, such as "%d.%m.%Y" for 31.12.2024, as in `strftime`; "" for 2024-12-31. Dates
            that begin with the year are read whatever it is. Of times "%H:%M" or "%H:%M:%S", of months "%Y-%m". Of numbers, how
            1234.5 would be written, such as "1.234,5 €" or "1234.5 kg"; by it are read those that say either of two numbers,
            such as 1.234, unless other cells of a table decide it.
        why: Why the column is left out, or what else was noticed.

    Raises:
        DataError: The kind is unknown, or lacks what belongs to it.

    Example:
        >>> pv.tables.Column("smoker", "binary", categories=("no", "yes"))
        Column(smoker: binary, 'no' or 'yes')
    """

    name: str
    kind: str
    dtype: str = "float64"
    categories: tuple[Any, ...] = ()
    step: float = 0.0
    offset: float | None = None
    low: float | None = None
    high: float | None = None
    decimals: int | None = None
    format: str = ""
    why: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in KINDS:
            raise DataError(f"Column {self.name!r}: the kind {self.kind!r} is unknown; known: {', '.join(KINDS)}.")
        if self.is_class and len(set(self.categories)) < max(2, len(self.categories)):
            raise DataError(
                f"Column {self.name!r}: {self.kind} needs a list of at least two different categories, got "
                f"{list(self.categories)}."
            )
        if self.kind == "binary" and len(self.categories) != 2:
            raise DataError(f"Column {self.name!r}: binary needs two categories, got {list(self.categories)}.")
        if self.decimals is not None and (isinstance(self.decimals, bool) or not isinstance(self.decimals, int)):
            raise DataError(f"Column {self.name!r}: decimals is a whole number, got {self.decimals!r}.")
        if self.format and not FORMATS.get(self.kind, is_form)(self.format):
            raise DataError(
                f"Column {self.name!r}: format is for dates, with %d, %m and %Y (or %y), such as '%d.%m.%Y' for 31.12.2024, "
                "for times, '%H:%M' or '%H:%M:%S', for months and quarters, '%Y-%m' or '%YQ%q', or for numbers, how 1234.5 is "
                f"written, such as '$1,234.5', got {self.format!r} for {self.kind}."
            )
        if self.kind == "period" and not self.dtype.startswith("period["):
            raise DataError(
                f"Column {self.name!r}: a period needs a dtype, such as period[M] for months, got {self.dtype!r}."
            )
        if self.kind == "period" and not is_period(self.dtype, self.format):
            raise DataError(
                f"Column {self.name!r}: {self.dtype!r} is no dtype of periods"
                + (f" that are written {self.format!r}" if self.format else "")
                + ": period[M] has months, such as %Y-%m, and period[Q-DEC] quarters, such as %YQ%q."
            )
        bounds = [value for value in (self.low, self.high, self.offset) if value is not None]
        if not all(isinstance(v, int | float) and math.isfinite(v) for v in (self.step, *bounds)) or self.step < 0:
            raise DataError(f"Column {self.name!r}: step, offset, low and high are numbers, step of 0 or more.")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise DataError(f"Column {self.name!r}: low must be below high, got {self.low} and {self.high}.")

    @property
    def is_number(self) -> bool:
        return self.kind in NUMBERS

    @property
    def is_moment(self) -> bool:
        """Whether it is a date, a time or a period: numbers that nobody writes as such."""
        return self.kind in MOMENTS

    @property
    def is_class(self) -> bool:
        return self.kind in CLASSES

    def gaps(self, cells: pd.Series) -> Array:
        """Which cells are missing, `(N,)`."""
        return np.array(each(cells.tolist(), lambda cell: is_gap(cell, self.categories)), dtype=bool)

    def codes(self, cells: pd.Series, before: int = 0, *, infinite: bool = False) -> tuple[Array, list[Any]]:
        """The cells as numbers, `(N,)` float64 with NaN where missing, and the cells that are no value of the column.

        Args:
            before: How many cells of the same column came before these.
            infinite: Whether numbers may be infinite, which is an error otherwise.
        """
        if self.is_class:
            return self._class_codes(cells, before)[:2]
        if self.kind == "date":
            return as_days(cells, self.format)
        if self.kind == "time":
            return as_seconds(cells, self.format)
        if self.kind == "period":
            return as_periods(cells, self.dtype, self.format)
        values, strange = as_numbers(cells, style_in(self.format))
        beyond = np.isinf(values)
        if beyond.any() and not infinite:
            raise DataError(
                f"Column {self.name!r} has {counted(int(beyond.sum()), 'infinite value')}. Make them missing, or drop the rows."
            )
        return values, strange

    def unknown(self, cells: pd.Series, before: int = 0) -> Array:
        """Which cells of a column of classes hold a class that it does not have, `(N,)`."""
        return self._class_codes(cells, before)[2]

    def _class_codes(self, cells: pd.Series, before: int) -> tuple[Array, list[Any], Array]:
        if all(isinstance(category, int | float) and not isinstance(category, bool) for category in self.categories):
            values, strange = as_numbers(cells, style_in(self.format))  # "1,234.0" is 1234
            order = np.argsort(np.asarray(self.categories, dtype=np.float64))
            levels = np.asarray(self.categories, dtype=np.float64)[order]
            place = np.searchsorted(levels, values).clip(0, len(levels) - 1)
            met = levels[place] == values
            unknown = ~met & ~np.isnan(values)
            others = np.unique(values[unknown]).tolist()
            if len(strange) <= STRANGE * (before + len(cells)):  # may count as missing in any column of numbers
                strange = []
            elif strange:
                unknown |= np.isnan(values) & ~self.gaps(cells)
            return np.where(met, order[place], np.nan), [*strange, *others], unknown
        known = {as_text(category, self.categories): code for code, category in enumerate(self.categories)}
        texts = each(cells.tolist(), lambda cell: as_text(cell, known))  # None where missing
        found = np.array([math.nan if text is None else known.get(text, math.nan) for text in texts], dtype=np.float64)
        unknown = np.isnan(found) & np.array([text is not None for text in texts], dtype=bool)
        return found, list(dict.fromkeys(text for text in texts if text is not None and text not in known)), unknown

    def values(self, codes: Array) -> pd.Series:
        """What `codes` made of the cells, back as cells of the column's dtype."""
        missing = np.isnan(codes)
        if self.is_class:
            picked = np.where(missing, 0, codes).astype(np.int64).clip(0, len(self.categories) - 1)
            cells = pd.Series([None if gone else self.categories[code] for code, gone in zip(picked, missing)])
        elif self.kind == "date":
            days = np.round(codes / self.step) * self.step if self.step else codes  # of means, which lie between them
            days = pd.to_timedelta(np.round(days * 86400), unit="s")
            return pd.Series(pd.Timestamp("1970-01-01") + days)
        elif self.kind == "period":
            return periods_of(codes, self.dtype, self.format)
        elif self.kind == "time":
            return self._times(codes)
        else:
            cells = pd.Series(codes if self.decimals is None else np.round(codes, self.decimals))
        answers = self.kind == "ordinal" and all(isinstance(category, str) for category in self.categories)
        dtype = "category" if answers else self.dtype  # which texts cannot have an order without
        return _as_dtype(cells, dtype, self.categories, ordered=self.kind == "ordinal")

    def _times(self, seconds: Array) -> pd.Series:
        """Times as texts in their form, or as those of pandas or of Python."""
        unit = 10.0 ** -(self.decimals or 0)  # of means, which lie between them
        seconds = np.round(np.clip(seconds, -LONGEST, LONGEST) / unit) * unit
        if self.format:
            texts = [None if math.isnan(one) else write_clock(one, self.format, self.decimals) for one in seconds]
            return pd.Series(texts, dtype=object)
        if self.dtype == "time":
            return pd.Series([None if math.isnan(one) else time_of(one) for one in seconds], dtype=object)
        return _as_dtype(pd.Series(pd.to_timedelta(seconds, unit="s")), self.dtype)

    def written(self, cells: pd.Series) -> pd.Series:
        """Dates, times and periods that `values` gave as texts, as they are written in a file; other cells as they are."""
        if self.kind == "time":
            seconds = as_seconds(cells, self.format)[0]
            texts = [None if math.isnan(one) else write_clock(one, self.format, self.decimals) for one in seconds]
            return pd.Series(texts, index=cells.index, dtype=object)
        if self.kind == "period":
            return cells.map(str, na_action="ignore").astype(object)
        if self.kind != "date":
            return cells
        form = self.format or ("%Y-%m-%d" if self.step >= 1 else "%Y-%m-%d %H:%M:%S")
        return cells.map(lambda cell: cell.strftime(form), na_action="ignore").astype(object)

    def to_json(self) -> dict[str, Any]:
        """The column in JSON's types, without what is as by default."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        if self.categories:
            given["categories"] = [c.item() if isinstance(c, np.generic) else c for c in self.categories]
        return given

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Column:
        """The column that `to_json` wrote, or a person edited.

        Raises:
            DataError: an entry is unknown or impossible.
        """
        known = {f.name for f in fields(cls)}
        if unknown := sorted(shortened(repr(key), 60) for key in saved if key not in known):
            raise DataError(
                f"Column {saved.get('name')!r}: {', '.join(unknown[:5])} is unknown; known: {', '.join(sorted(known))}."
            )
        if "kind" not in saved:
            raise DataError(f"Column {saved.get('name')!r} has no kind, such as `kind: real`. Say which.")
        try:
            made = cls(**{**saved, "categories": tuple(saved.get("categories") or ())})
        except (TypeError, OverflowError) as error:
            raise DataError(f"Column {saved.get('name')!r}: {shortened(error)}.") from error
        return replace(made, name=str(made.name))

    def __str__(self) -> str:
        """The kind and what belongs to it, in a few words."""
        if self.kind == "none":
            return f"left out: {self.why}" if self.why else "left out"
        parts = [self.kind]
        if self.kind == "binary":
            parts.append(" or ".join(map(repr, self.categories)))
        elif self.is_class:
            between = " < " if self.kind == "ordinal" else ", "
            shown = between.join(map(str, self.categories[:6])) + (f"{between}..." if len(self.categories) > 6 else "")
            parts.append(shown if self.kind == "ordinal" else f"{counted(len(self.categories), 'value')}: {shown}")
        if self.is_number and not self.is_moment:
            if self.offset is not None and self.kind != "positive":
                parts.append("on a log scale")
            if self.step and self.kind != "count":
                parts.append(f"recorded to {self.step:g}")
            bounds = [
                f"from {self.low:g}" if self.low is not None else "",
                f"to {self.high:g}" if self.high is not None else "",
            ]
            if any(bounds) and self.kind != "count" and (self.kind, self.high) != ("proportion", 1.0):
                parts.append(" ".join(filter(None, bounds)))
        return ", ".join(parts) + (f" ({self.why})" if self.why else "")

    def __repr__(self) -> str:
        return f"Column({self.name}: {self})"


def _is_period_form(form: Any) -> bool:
    return form in PERIOD_FORMS


def _is_date_format(form: Any) -> bool:
    kinds = (("%d",), ("%m", "%b", "%B"), ("%Y", "%y"))
    return isinstance(form, str) and all(any(part in form for part in kind) for kind in kinds)


FORMATS = {"date": _is_date_format, "time": is_clock_form, "period": _is_period_form}


def _as_dtype(cells: pd.Series, dtype: str, categories: Sequence[Any] = (), *, ordered: bool = False) -> pd.Series:
    """Cells in a dtype that has room for them: whole numbers with gaps become pandas' nullable ones."""
    gaps = bool(cells.isna().any())
    if dtype.startswith(("int", "uint")) and gaps:
        dtype = dtype.replace("uint", "UInt").replace("int", "Int")
    if dtype == "bool" and gaps:
        dtype = "boolean"
    try:
        if dtype == "category":
            return cells.astype(pd.CategoricalDtype(list(categories), ordered=ordered))
        return cells.astype(dtype)
    except (TypeError, ValueError, NotImplementedError):
        # a dtype that these cells do not fit, such as a category without one of them, or whose name pandas does not read
        return cells

"""A schema: what the columns of a table are, and the way from a DataFrame to rows of numbers and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml  # type: ignore[import-untyped]
from torch import Tensor

from pyrovae import families
from pyrovae._arguments import as_several, told
from pyrovae._near import near_names
from pyrovae.errors import DataError, counted
from pyrovae.tables.cells import STRANGE
from pyrovae.tables.columns import Column
from pyrovae.tables.frames import as_frame
from pyrovae.tables.plain_yaml import read_yaml

DAY_0 = np.datetime64("1970-01-01", "D")  # of dates
SECOND = np.timedelta64(1, "s")  # of times
MOST_SHOWN = 60  # columns that are told in full


@dataclass(frozen=True)
class Schema:
    """What the columns of a table are, in the order of the table.

    Rows of a model, `(N, D)`, hold the columns that are modelled: first those of numbers, in their own units, then those of
    classes, as 0, 1, ...; NaN is missing. `pv.tables.infer` makes a schema; `read` reads an edited one.

    Args:
        columns: The columns.

    Raises:
        DataError: No column is modelled, or two have one name.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"kind": ["rose", "tulip", "rose", None], "length": [5.1, 4.9, None, 6.3]})
        >>> schema = pv.tables.infer(table)
        >>> rows = schema.encode(table)
        >>> rows
        tensor([[5.1000, 0.0000],
                [4.9000, 1.0000],
                [   nan, 0.0000],
                [6.3000,    nan]])
        >>> schema.decode(rows).equals(table)
        True
    """

    columns: tuple[Column, ...]

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "columns", tuple(as_several("columns", self.columns, "columns, pv.tables.Column(...)"))
        )
        if wrong := [column for column in self.columns if not isinstance(column, Column)]:
            raise DataError(f"A schema is made of columns, pv.tables.Column(name, kind), got {told(wrong[0])}.")
        names = [column.name for column in self.columns]
        if twice := sorted(name for name, number in Counter(names).items() if number > 1):
            raise DataError(f"A schema has two columns {twice[0]!r}. Give each its own name.")
        if not self.modelled:
            raise DataError("A schema needs at least one column that is not left out.")

    @cached_property  # since a table may have tens of thousands
    def modelled(self) -> tuple[Column, ...]:
        """The columns in the order of the rows of a model: numbers, then classes."""
        return (*self.numbers, *self.classes)

    @cached_property
    def numbers(self) -> tuple[Column, ...]:
        """The columns of numbers."""
        return tuple(column for column in self.columns if column.is_number)

    @cached_property
    def classes(self) -> tuple[Column, ...]:
        """The columns of classes."""
        return tuple(column for column in self.columns if column.is_class)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the modelled columns, in the order of the rows of a model."""
        return tuple(column.name for column in self.modelled)

    @property
    def meanings(self) -> dict[str, Any]:
        """What the numbers of each modelled column are, as `pv.criticise` and `pv.plots.reconstructions` take it: the names of
        classes in their order, () for numbers, for dates the date of day 0, for periods that of number 0, and for times the
        duration that they count."""
        return {column.name: _meaning(column) for column in self.modelled}

    def encode(self, table: Any, *, before: int | None = None, impossible: Any = None) -> Tensor:
        """The rows of a table as numbers.

        Args:
            table: A DataFrame with the modelled columns, in any order; others are ignored. As for `infer`, it may be one
                of another package than pandas. It is not changed.
            before: How many rows came before these, where they are some rows of a table: their spread does not say what float32
                has to tell apart, and their number not how many cells may be no numbers. None for a whole table.
            impossible: An array of bool, `(N, D)`, in which cells are marked whose value is infinite, beyond the bounds of the
                column, or a class that it does not have. They are missing in the rows. None where such cells are an error.

        Returns:
            `(N, D)` float32, NaN where a cell is missing.

        Raises:
            DataError: A column is not there, a cell is no value of its column, or float32 cannot tell the numbers apart.
        """
        table = as_frame("encode", table)
        given = {str(name): cells for name, cells in table.items()}
        if absent := [column.name for column in self.modelled if column.name not in given]:
            raise DataError(
                f"The table has no column {absent[0]!r}{near_names(absent[0], list(given))}, which the model was fitted to"
                + (f", nor {', '.join(map(repr, absent[1:6]))}" if len(absent) > 1 else "")
                + (", ..." if len(absent) > 6 else "")
                + (f"; it has {', '.join(map(repr, list(given)[:6]))}{', ...' * (len(given) > 6)}" if given else "")
                + ". Add it; cells that are not known may be left empty."
            )
        rows = np.empty((len(table), len(self.modelled)), order="F")  # which is written column by column
        for place, column in enumerate(self.modelled):
            codes, strange = column.codes(given[column.name], before or 0, infinite=impossible is not None)
            if column.is_class and strange and impossible is None:
                raise DataError(_unknown(column, strange))
            if column.is_class and strange:
                impossible[:, place] = column.unknown(given[column.name], before or 0)
            elif len(strange) > STRANGE * max(1, len(table) + (before or 0)):
                raise DataError(
                    f"Column {column.name!r} holds {column.kind} values{f' ({column.format})' if column.format else ''}, and "
                    f"{len(strange)} of {len(table)} cells are no such values, for example {strange[0]!r}. Correct them, leave "
                    "them empty, or change the column's kind."
                )
            rows[:, place] = codes
        if impossible is None:
            _check_bounds(self.modelled, rows)
        else:
            impossible |= _beyond(self.modelled, rows).any(0) | np.isinf(rows)
            rows[impossible] = np.nan
        return _as_float32(rows, self.names, part=before is not None)

    def decode(self, rows: Tensor, index: Any = None) -> pd.DataFrame:
        """Rows of a model as a table, with the columns, categories and dtypes of the one that the schema was made from.

        Args:
            rows: `(N, D)`, as `encode` or `pv.generate` gives them; NaN is missing.
            index: The index of the rows, such as `table.index` of the table that was encoded, by which pandas puts the columns
                of two tables together; None for 0, 1, 2, ...

        Returns:
            A DataFrame of the modelled columns, in the order of the table.

        Raises:
            DataError: The rows have another number of columns, or the index another length.
        """
        if rows.dim() != 2 or rows.shape[1] != len(self.modelled):
            raise DataError(
                f"The schema has {counted(len(self.modelled), 'modelled column')}, got rows of shape {tuple(rows.shape)}."
            )
        if index is not None and len(index) != len(rows):
            raise DataError(
                f"The index has {counted(len(index), 'entry', 'entries')}, and there are {counted(len(rows), 'row')}. "
                "Give that of their table."
            )
        values = rows.detach().cpu().double().numpy()
        found = {column.name: column.values(values[:, place]) for place, column in enumerate(self.modelled)}
        decoded = pd.DataFrame({column.name: found[column.name] for column in self.columns if column.name in found})
        return decoded if index is None else decoded.set_axis(index, axis=0)

    def written(self, table: pd.DataFrame) -> pd.DataFrame:
        """A table that `decode` gave as it is written in a file: dates and times are texts in the form of their column."""
        return table.assign(
            **{c.name: c.written(table[c.name]) for c in self.columns if c.name in table and c.is_moment}
        )

    def with_changes(self, names: str | Sequence[str], **changes: Any) -> Schema:
        """The schema with other entries for some of its columns, such as answers whose order is now said.

        Args:
            names: The name of a column, or several.
            **changes: What is to be different, as for `Column`.

        Raises:
            DataError: There is no such column, or an entry is unknown or impossible.

        Example:
            >>> import pandas as pd
            >>> schema = pv.tables.infer(pd.DataFrame({"walks": ["often", "never", "rarely"] * 3}))
            >>> schema.with_changes("walks", kind="ordinal", categories=["never", "rarely", "often"])
            Schema of 1 column:
              walks  ordinal, never < rarely < often
        """
        wanted = [names] if isinstance(names, str) else list(names)
        known = [column.name for column in self.columns]
        if absent := [name for name in wanted if name not in known]:
            raise DataError(f"The schema has no column {absent[0]!r}{near_names(absent[0], known)}.")
        changed = {
            c.name: Column.from_json({**c.to_json(), "why": "", **changes}) for c in self.columns if c.name in wanted
        }
        return Schema(tuple(changed.get(column.name, column) for column in self.columns))

    def family(
        self, rows: Tensor, floor: float = 1e-2, *, ordered: bool = False, scale: str = "column"
    ) -> families.Columns:
        """The family of a row: `RoundedNormal` for the numbers, `Categorical` for each column of classes.

        Args:
            rows: Training rows, `(N, D)`, whose means and standard deviations are what the numbers are measured by, and
                whose shares of each value the probabilities of `OrderedLogistic` start at.
            floor: The smallest noise of a number, in standard deviations.
            ordered: Whether ordinal columns have `OrderedLogistic`, and encoders see them as numbers from -1 to 1.
            scale: Whose scale answers in an order have, see `OrderedLogistic`: "column" or "net".

        Returns:
            A family with rows of D elements.
        """
        blocks: list[Any] = []
        if self.numbers:
            centre, spread = zip(*(self._units(column, rows[:, i]) for i, column in enumerate(self.numbers)))
            blocks.append(
                families.RoundedNormal(
                    len(self.numbers),
                    centre=centre,
                    spread=spread,
                    offset=tuple(column.offset for column in self.numbers),
                    step=tuple(column.step for column in self.numbers),
                    low=tuple(column.low for column in self.numbers),
                    high=tuple(column.high for column in self.numbers),
                    floor=floor,
                )
            )
        start = len(self.numbers)
        for (in_order, num), same in groupby(self.classes, lambda one: (one.kind == "ordinal", len(one.categories))):
            columns = len(list(same))
            if ordered and in_order:  # neighbours with as many classes are computed together
                blocks.append(families.OrderedLogistic(columns, num_classes=num, scale=scale))
                blocks[-1].start_from(rows[:, start : start + columns])
            else:
                blocks += [families.Categorical((), num_classes=num) for _ in range(columns)]
            start += columns
        return families.Columns(blocks)

    @staticmethod
    def _units(column: Column, values: Tensor) -> tuple[float, float]:
        """Mean and standard deviation of the known training values of a column, of their logarithms where it has an offset."""
        known = values[~values.isnan()].double()
        if column.offset is not None:
            known = (known + column.offset).clamp_min(1e-30).log()
        if not len(known):
            return 0.0, 1.0
        spread = float(known.std(correction=0))
        return float(known.mean()), spread if spread > 1e-8 * (1 + float(known.abs().max())) else 1.0

    def log_cells(self, column: int) -> float | None:
        """The logarithm of what one step of a modelled column is wide, 0 for classes, None for exact numbers."""
        of = self.modelled[column]
        return 0.0 if of.is_class else float(np.log(of.step)) if of.step else None

    def to_json(self) -> list[dict[str, Any]]:
        """The schema in JSON's types."""
        return [column.to_json() for column in self.columns]

    @classmethod
    def from_json(cls, saved: Any) -> Schema:
        """The schema that `to_json` wrote.

        Raises:
            DataError: it is none.
        """
        if not isinstance(saved, Sequence) or not all(isinstance(one, Mapping) for one in saved):
            raise DataError(f"A schema is a list with one entry for each column, got {str(saved)[:60]}.")
        return cls(tuple(Column.from_json(one) for one in saved))

    def write(self, path: str | Path) -> None:
        """Write the schema as YAML, to be read and edited."""
        Path(path).write_text(self.to_yaml(), encoding="utf-8")

    def to_yaml(self) -> str:
        """The schema as YAML, one entry for each column."""
        entries = {column.name: {k: v for k, v in column.to_json().items() if k != "name"} for column in self.columns}
        about = (
            "# What each column is: real, positive (on a log scale), count, proportion, date, time, period, binary,\n"
            "# categorical, ordinal, or none, which leaves it out. step: what numbers are recorded to, 0 if they are exact;\n"
            "# offset: what is added before the logarithm; low, high: bounds; format: how dates are written, '%d.%m.%Y' for\n"
            "# 31.12.2024, times, '%H:%M', or numbers, '1.234,5 €' for 1234.5 €; categories: the values of a class, in order.\n"
        )
        return about + str(
            yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)
        )

    @classmethod
    def read(cls, path: str | Path) -> Schema:
        """Read a schema that `write` wrote, perhaps edited.

        Raises:
            DataError: it cannot be read, or an entry is impossible.
        """
        saved = read_yaml(Path(path), "the columns")
        if not isinstance(saved, Mapping) or not all(isinstance(entry, Mapping) for entry in saved.values()):
            raise DataError(f"{path} needs one entry for each column, such as `age: {{kind: count}}`.")
        return cls(tuple(Column.from_json({**entry, "name": str(name)}) for name, entry in saved.items()))

    def __repr__(self) -> str:
        out = len(self.columns) - len(self.modelled)
        shown = self.columns if len(self.columns) <= MOST_SHOWN else self.columns[: MOST_SHOWN - 10]
        wide = max(len(column.name) for column in shown)
        lines = [f"  {column.name:<{wide}}  {column}" for column in shown]
        lines += (
            [f"  ... and {counted(len(self.columns) - len(shown), 'other')}"] if len(shown) < len(self.columns) else []
        )
        number = counted(len(self.modelled), "column")
        title = f"Schema of {number}{f', {out} left out' if out else ''}:"
        return "\n".join([title, *lines])


def _meaning(column: Column) -> Any:
    if column.kind == "period":
        kind = pd.api.types.pandas_dtype(column.dtype)
        return pd.Period(ordinal=0, freq=kind.freq)
    return {"date": DAY_0, "time": SECOND}.get(column.kind, column.categories)


def _unknown(column: Column, strange: Iterable[Any]) -> str:
    found = ", ".join(map(repr, list(strange)[:3]))
    known = ", ".join(map(str, column.categories[:10])) + (", ..." if len(column.categories) > 10 else "")
    return (
        f"Column {column.name!r} has cells that it did not have when the model was fitted ({found}); known: {known}. Leave "
        "such cells empty, or fit again with rows that have them."
    )


def _beyond(columns: Sequence[Column], rows: Any) -> Any:
    """Which numbers are below and above the bounds of their columns, and have no logarithm on their scale, `(3, N, D)`."""

    def of_all(bounds: Iterable[float | None], otherwise: float) -> Any:
        return np.array([otherwise if bound is None else bound for bound in bounds])

    below = rows < of_all((column.low for column in columns), -np.inf)
    above = rows > of_all((column.high for column in columns), np.inf)
    return np.stack([below, above, rows + of_all((column.offset for column in columns), np.inf) <= 0])


def _check_bounds(columns: Sequence[Column], rows: Any) -> None:
    """DataError for the first column that has a value beyond its bounds, or none on its log scale."""
    below, above, impossible = _beyond(columns, rows)
    for place in np.flatnonzero((below | above).any(0)).tolist():
        column, is_below = columns[place], bool(below[:, place].any())
        beyond, bound = (below, column.low) if is_below else (above, column.high)
        row = int(np.flatnonzero(beyond[:, place])[0])
        raise DataError(
            f"Column {column.name!r} ({column.kind}) has {counted(int(beyond[:, place].sum()), 'value')} "
            f"{'below' if is_below else 'above'} {bound:g}, the first {rows[row, place]:g} in row {row} (counted from 0). "
            "Correct them, leave them empty, or change the column's bounds."
        )
    for place in np.flatnonzero(impossible.any(0)).tolist():
        row = int(np.flatnonzero(impossible[:, place])[0])
        raise DataError(
            f"Column {columns[place].name!r} is modelled on a log scale, and row {row} (counted from 0) has "
            f"{rows[row, place]:g}. Correct it, leave it empty, or make the column's kind real without an offset."
        )


def _as_float32(rows: Any, names: Sequence[str], part: bool) -> Tensor:
    """DataError for numbers beyond float32's, or which float32, with its 7 digits, cannot tell apart, as in 1e9 +- 1."""
    with np.errstate(over="ignore", invalid="ignore"):
        kept = np.ascontiguousarray(rows, dtype=np.float32)
        lost = np.nanmax(np.abs(kept - rows), axis=0, initial=0.0, where=~np.isnan(rows))
        spread = np.fmax.reduce(rows, axis=0) - np.fmin.reduce(rows, axis=0)
    # no standard deviation of N numbers is less than what they span over the root of 2 N
    in_doubt = ~np.isfinite(lost) | (lost > 0.01 * spread / np.sqrt(2 * max(1, len(rows))))
    for place in np.flatnonzero(in_doubt).tolist():
        name, known = names[place], rows[~np.isnan(rows[:, place]), place]
        if len(known) and not np.isfinite(lost[place]):
            raise DataError(
                f"Column {name!r} reaches {np.abs(known).max():.3g}, beyond the {np.finfo(np.float32).max:.2g} that float32 "
                "can hold. Change its unit, or leave it out."
            )
        if not part and len(known) and known.max() > known.min() and not lost[place] <= 0.01 * known.std():
            raise DataError(
                f"Column {name!r} varies by {known.std():.3g} around {known.mean():.6g}, less than float32 can tell apart. "
                "Subtract an offset, change its unit, or leave it out if it names the rows."
            )
    return torch.from_numpy(kept)

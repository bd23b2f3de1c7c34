"""What a model is given with every row: a class, columns of a table, or a caption; as fields that a person fills in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrovae.app.catalogue import CONDITION
from pyrovae.app.given import Given, GivenCaptions
from pyrovae.app.rows import of_source
from pyrovae.app.run import Run
from pyrovae.errors import DataError
from pyrovae.fitted.fitted import Fit
from pyrovae.pair.program import arguments

if TYPE_CHECKING:
    from pyrovae.tables.columns import Column

LONGEST = 1000  # characters of what is typed into a field
LARGEST = 1e6  # of a number
Fields = dict[str, str]


class Conditions(Protocol):
    """What a model is given. All fields are texts, as a page has them."""

    @property
    def fields(self) -> Sequence[Mapping[str, Any]]:
        """The name of each field, its "kind", and what belongs to it."""

    @property
    def start(self) -> Fields:
        """What the fields hold at first."""

    def read(self, fields: Fields) -> dict[str, Tensor]:
        """The arguments of the model for one row."""

    def of_row(self, row: int) -> Fields:
        """What a row of the source is given."""


class Nothing:
    """The condition of a model that is given nothing."""

    fields: Sequence[Mapping[str, Any]] = ()
    start: Fields = {}  # noqa: RUF012

    def read(self, fields: Fields) -> dict[str, Tensor]:
        return {}

    def of_row(self, row: int) -> Fields:
        return {}


class OfClass:
    """A class that is given with every row.

    Args:
        classes: Their names.
        codes: The class number of each row of the source, `(N,)`.
    """

    def __init__(self, classes: Sequence[str | int], codes: Tensor) -> None:
        self.names, self.codes = [str(name) for name in classes], codes
        self.fields = [{"name": CONDITION, "kind": "choice", "options": self.names}]
        self.start = {CONDITION: self.names[0]}

    def read(self, fields: Fields) -> dict[str, Tensor]:
        return {CONDITION: torch.tensor([_chosen(CONDITION, fields[CONDITION], self.names)])}

    def of_row(self, row: int) -> Fields:
        if (number := int(self.codes[row])) < 0:
            raise DataError(f"row {row} has no class: start from another.")
        return {CONDITION: self.names[number]}


class OfColumns:
    """Columns that are given with every row.

    Args:
        given: What they are.
        rows: Those of each row of the source, `(N, C)`.
    """

    def __init__(self, given: Given, rows: Tensor) -> None:
        self.given, self.rows = given, rows
        place = {name: i for i, name in enumerate(given.schema.names)}
        self.columns = [column for column in given.schema.columns if column.name in place]
        known = given.parts["train"].double().numpy()
        self.fields = [self._field(column, known[:, place[column.name]]) for column in self.columns]
        self.start = self.of_row(0)

    def _field(self, column: Column, known: Any) -> dict[str, Any]:
        found: dict[str, Any] = {"name": column.name, "optional": self.given.seen.mask}
        if column.is_class:
            return found | {"kind": "choice", "options": [str(category) for category in column.categories]}
        if column.is_moment:
            return found | {"kind": "text"}
        known = known[~np.isnan(known)]
        low, high = np.quantile(known, [0.01, 0.99]).tolist() if len(known) else (0.0, 1.0)
        return found | {"kind": "number", "low": float(f"{low:.4g}"), "high": float(f"{high:.4g}")}

    def read(self, fields: Fields) -> dict[str, Tensor]:
        cells: dict[str, list[Any]] = {}
        for column in self.columns:
            text = fields[column.name].strip()
            if column.is_class and text:
                names = [str(category) for category in column.categories]
                cells[column.name] = [column.categories[_chosen(column.name, text, names)]]
            else:
                cells[column.name] = [text or None]
        return self.given.argument(self.given.schema.encode(pd.DataFrame(cells, dtype=object)))

    def of_row(self, row: int) -> Fields:
        cells = self.given.table(self.rows[row : row + 1]).iloc[0]
        return {str(name): "" if pd.isna(value) else _text(value) for name, value in cells.items()}


class OfCaptions:
    """A caption that is given with every row.

    Args:
        given: How captions are made, and their words.
        rows: The numbers of the words of each row of the source, `(N, T)`.
    """

    def __init__(self, given: GivenCaptions, rows: Tensor) -> None:
        self.given, self.rows = given, rows
        self.fields = [{"name": CONDITION, "kind": "words", "words": list(given.words.words)}]
        self.start = {CONDITION: given.example}

    def read(self, fields: Fields) -> dict[str, Tensor]:
        return self.given.argument(self.given.words.encode([fields[CONDITION]]))

    def of_row(self, row: int) -> Fields:
        return {CONDITION: self.given.words.decode(self.rows[row : row + 1])[0]}


class OfNumbers:
    """Arguments of a pair that was fitted in Python, which its model reads and no site observes: a number for each element.

    Args:
        arguments: The shape of one row and the dtype of each, by name.
    """

    def __init__(self, arguments: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
        self.arguments = dict(arguments)
        self.names = {
            name: [name + (f"[{','.join(map(str, place))}]" if place else "") for place in np.ndindex(*shape)]
            for name, (shape, _) in self.arguments.items()
        }
        self.fields = [{"name": one, "kind": "text"} for names in self.names.values() for one in names]
        self.start = {str(field["name"]): "0" for field in self.fields}

    def read(self, fields: Fields) -> dict[str, Tensor]:
        found = {}
        for name, (shape, dtype) in self.arguments.items():
            numbers = [_number(one, fields[one]) for one in self.names[name]]
            if not dtype.is_floating_point and any(number != int(number) for number in numbers):
                raise DataError(f"{name} takes whole numbers, got {numbers}.")
            found[name] = torch.tensor(numbers, dtype=torch.float64).to(dtype).reshape(1, *shape)
        return found

    def of_row(self, row: int) -> Fields:
        raise DataError("there are no data here to start from.")


def conditions_of_pair(fitted: Fit) -> Conditions:
    """What a model is given of which nothing else is known: the arguments that it needs and that no site observes."""
    observed = {site.argument for layout in fitted.layouts for site in layout.sites}
    taken = arguments(fitted.pair)
    read = {
        name: what
        for name, what in fitted.arguments.items()
        if name not in observed and name in taken and taken[name].default is not None
    }
    return OfNumbers(read) if read else Nothing()


def conditions_of(run: Run) -> Conditions:
    """What the model of a run is given."""
    rows, dataset = run.rows, run.dataset
    if rows.given is not None and dataset.c is not None:
        c = of_source(dataset.c, dataset.c_test)
        return OfColumns(rows.given, c) if isinstance(rows.given, Given) else OfCaptions(rows.given, c)
    if rows.argument == CONDITION and rows.classes is not None and dataset.y is not None:
        return OfClass(rows.classes, of_source(dataset.y, dataset.y_test))
    return Nothing()


def check_fields(conditions: Conditions, sent: object) -> Fields:
    """What is sent, with what the model starts with where a field is left out. DataError for what is no text or number."""
    if sent is None:
        sent = {}
    if not isinstance(sent, dict):
        raise DataError(f"what the model is given is an object, one text a field, got {type(sent).__name__}.")
    if unknown := [name for name in sent if name not in conditions.start]:
        known = ", ".join(conditions.start) or "nothing"
        raise DataError(f"the model is not given {str(unknown[0])[:40]!r}; it is given {known}.")
    return {name: _field_text(name, sent.get(name, text)) for name, text in conditions.start.items()}


def _field_text(name: str, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) < math.inf:
            raise DataError(f"{name} takes a finite number, got {value}.")
        return repr(value)
    if not isinstance(value, str) or len(value) > LONGEST:
        raise DataError(f"{name} takes a text of at most {LONGEST} characters, got {str(value)[:40]!r}.")
    return value


def _chosen(name: str, text: str, known: Sequence[str]) -> int:
    if text not in known:
        listed = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
        raise DataError(f"{name} has no value {text[:40]!r}; known: {listed}.")
    return known.index(text)


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= LARGEST:
        raise DataError(f"{name} takes a number between {-LARGEST:g} and {LARGEST:g}, got {text[:40]!r}.")
    return value


def _text(value: Any) -> str:
    """A cell as a person types it."""
    if isinstance(value, pd.Timestamp):
        return str(value.date() if value == value.normalize() else value)
    return f"{value:.10g}" if isinstance(value, float) else str(value)

"""Tables of other packages."""

from __future__ import annotations

import datetime
from typing import Any

import pandas as pd
import pyarrow
import pytest
import torch

import pyrovae as pv
from pyrovae.errors import DataError, MissingPackageError

CELLS: dict[str, list[Any]] = {
    "age": [31, None, 62, 58] * 10,
    "city": ["Oslo", "Rome", None, "Rome"] * 10,
    "day": [datetime.date(2024, 1, 1 + i % 28) for i in range(40)],
    "smokes": [True, False, False, None] * 10,
}


class Table:
    """A table of another package."""

    def __init__(self, made: Any) -> None:
        self.made = made

    def to_pandas(self) -> Any:
        if isinstance(self.made, Exception):
            raise self.made
        return self.made


class Query:
    def collect(self) -> None: ...


def test_tables_of_other_packages_are_those_of_pandas() -> None:
    table = pd.DataFrame(CELLS)
    schema = pv.tables.infer(table)
    rows = schema.encode(table)
    for other in (pyarrow.table(CELLS), Table(table)):
        assert pv.tables.infer(other).names == schema.names
        torch.testing.assert_close(schema.encode(other), rows, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("library", "kinds"), [("polars", {"age": "ordinal", "city": "binary", "day": "date", "smokes": "binary"})]
)
def test_polars(library: str, kinds: dict[str, str]) -> None:
    module = pytest.importorskip(library)
    schema = pv.tables.infer(module.DataFrame(CELLS))
    assert {column.name: column.kind for column in schema.columns} == kinds
    assert schema.encode(module.DataFrame(CELLS)).isnan().sum() == 30
    with pytest.raises(DataError, match=r"LazyFrame, a query of one: give table.collect\(\)"):
        pv.tables.infer(module.DataFrame(CELLS).lazy())


def test_what_is_no_table_yet_is_one_error() -> None:
    with pytest.raises(DataError, match=r"infer takes a table, got a Query, a query of one: give table.collect\(\)"):
        pv.tables.infer(Query())
    with pytest.raises(DataError, match=r"a DataFrame of pandas or Polars, got [a-z_]+.Table"):
        pv.tables.infer(Table([1, 2]))
    with pytest.raises(MissingPackageError, match=r"needs another package .*\(No module named 'arrow'\)"):
        pv.tables.infer(Table(ModuleNotFoundError("No module named 'arrow'")))


def test_a_table_that_does_not_become_one_of_pandas_is_one_error() -> None:
    error = pyarrow.ArrowInvalid("Casting from timestamp[s] to timestamp[ns] would result in out of bounds timestamp")
    with pytest.raises(
        DataError, match="infer: tests?.*Table does not become a table of pandas .*out of bounds.* leave it"
    ):
        pv.tables.infer(Table(error))

"""Tables of very many columns: the work of reading one grows with their number, and not with its square."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import pyrovae as pv
from pyrovae.data import cells, frames
from pyrovae.data.frames import read_csv
from pyrovae.data.load import read
from pyrovae.data.tables import _roles_of
from pyrovae.errors import DataError, OptionError
from pyrovae.tables import Column, Schema, infer

FEW, MANY, ROWS = 50, 200, 10


def table(kind: str, columns: int) -> pd.DataFrame:
    draw = np.random.default_rng(0)
    numbers = pd.DataFrame(draw.normal(size=(ROWS, columns)).round(2), columns=[f"gene {i}" for i in range(columns)])
    if kind == "whole":
        return (numbers * 100).astype(int)
    if kind == "truths":
        return (numbers > 0).astype(object).mask(draw.random(numbers.shape) < 0.2)
    if kind == "mixed":
        texts = np.where(numbers > 0, "high", "low")
        return numbers.assign(**{name: texts[:, i] for i, name in enumerate(numbers) if i % 2}).mask(numbers > 2)
    return numbers


def calls_of(question: Callable[[], Any]) -> int:
    """How many functions are called, of Python and of C."""
    number = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal number
        number += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        question()
    finally:
        sys.setprofile(None)
    return number


def refuse_faster_growth(few: Callable[[], Any], many: Callable[[], Any]) -> None:
    """Fail where four times the columns are more than about four times the work: squared, it were sixteen times."""
    few()  # so that nothing is imported, compiled or kept when it counts
    assert calls_of(many) < 5 * calls_of(few)


@pytest.mark.parametrize(("kind", "ending"), (("mixed", "csv"), ("truths", "csv"), ("whole", "parquet")))
def test_work_grows_with_the_number_of_columns(tmp_path: Path, kind: str, ending: str) -> None:
    paths = []
    for columns in (FEW, MANY):
        paths.append(tmp_path / f"{columns}.{ending}")
        if ending == "csv":
            table(kind, columns).to_csv(paths[-1], index=False)
        else:
            pytest.importorskip("pyarrow")
            table(kind, columns).to_parquet(paths[-1])
    few, many = (lambda path=path: read(str(path)) for path in paths)
    refuse_faster_growth(few, many)


def test_the_form_of_a_table_is_found_by_a_few_calls_a_cell(tmp_path: Path) -> None:
    path = tmp_path / "wide.csv"
    table("mixed", MANY).to_csv(path, index=False)
    cells.find_form(path)
    assert (
        calls_of(lambda: cells.find_form(path)) < 70 * (ROWS + 1) * MANY
    )  # 150 a cell, if pandas is asked about each column


@pytest.mark.parametrize("ending", ("parquet", "arrow"))
def test_work_of_open_grows_with_the_number_of_columns(tmp_path: Path, ending: str) -> None:
    pytest.importorskip("pyarrow")
    paths = []
    for columns in (FEW, MANY):
        paths.append(tmp_path / f"{columns}.{ending}")
        rows = table("whole", columns)
        rows.to_parquet(paths[-1]) if ending == "parquet" else rows.to_feather(paths[-1])
    few, many = (lambda path=path: pv.data.open(path) for path in paths)
    refuse_faster_growth(few, many)


def test_work_of_a_schema_grows_with_the_number_of_columns(tmp_path: Path) -> None:
    def use(columns: int) -> Callable[[], Any]:
        rows = table("mixed", columns)

        def used() -> Any:
            schema = infer(rows)
            schema.write(tmp_path / "columns.yaml")
            again = Schema.read(tmp_path / "columns.yaml")
            return again.decode(again.encode(rows)), repr(again), [again.log_cells(i) for i in range(len(again.names))]

        return used

    refuse_faster_growth(use(FEW), use(MANY))


class Name(str):
    """A text that counts how often it is compared."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        Name.compared += 1
        return str.__eq__(self, other)


def test_roles_are_found_without_a_search_through_all_columns(tmp_path: Path) -> None:
    def compared(columns: int) -> int:
        names = [Name(f"gene {i}") for i in range(columns)]
        rows = table("numbers", columns).set_axis(pd.Index(names, dtype=object), axis=1)
        third = columns // 3
        form = cells.Form(",", ".", tuple(names), True, True, ())
        Name.compared = 0
        roles = _roles_of(
            tmp_path,
            rows,
            form,
            label=None,
            ids=None,
            drop=[Name(name) for name in names[:third]],
            conditions=[Name(name) for name in names[third : 2 * third]],
            look=True,
        )
        assert (list(roles.out), roles.given, roles.values) == (
            names[:third],
            names[third : 2 * third],
            names[2 * third :],
        )
        return Name.compared

    assert compared(MANY) < 5 * compared(FEW) + 100


@pytest.mark.parametrize("ending", ("csv", "parquet", "arrow"))
def test_more_columns_than_are_looked_at_are_refused_at_once(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "MOST_COLUMNS", 5)
    path = tmp_path / f"wide.{ending}"
    rows = table("numbers", 6)
    if ending != "csv":
        pytest.importorskip("pyarrow")
    {"csv": rows.to_csv, "parquet": rows.to_parquet, "arrow": rows.to_feather}[ending](path)
    if ending == "arrow":
        assert pv.data.open(path).num_rows == ROWS  # numbers that nobody looks at
        return
    with pytest.raises(DataError, match=r"has [67] columns, and tables are read with up to 5\. .*\.npy"):
        read(str(path))


def test_the_head_of_a_wide_table_is_that_of_a_narrow_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header, a decimal comma and the width are found by some columns, as by all."""
    path = tmp_path / "wide.csv"
    rows = table("mixed", 30)
    rows.to_csv(path, index=False, sep=";", decimal=",")
    whole, form = read_csv(path)
    for module in (cells, frames):
        monkeypatch.setattr(module, "COLUMNS_LOOKED_AT", 7)
    part, same = read_csv(path)
    pd.testing.assert_frame_equal(part, whole)
    assert (same.names, same.header, same.decimal) == (form.names, True, ",") == (tuple(rows.columns), True, ",")


@pytest.mark.parametrize("lines", (("a,b", "1," * 2000), ("1," * 2000, "1,2"), ("#" + "x," * 2000, "1,2", "3,4")))
def test_lines_of_unlike_width_are_a_table_or_one_error(tmp_path: Path, lines: tuple[str, ...]) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("\n".join([*lines, *lines[-1:] * 3]) + "\n")
    with contextlib.suppress(DataError):
        assert read(str(path)).x.shape[1] in (2, 2000)


def test_a_schema_of_many_columns_is_told_in_part() -> None:
    schema = Schema(tuple(Column(f"gene {i}", "real") for i in range(500)))
    lines = repr(schema).splitlines()
    assert len(lines) < 70 and lines[0] == "Schema of 500 columns:" and lines[-1] == "  ... and 450 others"


def test_labels_by_many_names_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    table("numbers", 4).to_csv(path, index=False)
    with pytest.raises(OptionError, match="gene 1 is named twice among the labels"):
        read(str(path), label="gene 1,gene 2,gene 1")

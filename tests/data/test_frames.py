"""Tables in Parquet files have cells that texts do not have: each is a value, a text, or left out, and can be kept as JSON."""

import datetime
import json
import warnings
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pyrovae.app.jobs.frames import Table
from pyrovae.data import load, load_again
from pyrovae.data.load import read

CELLS: dict[str, tuple[Any, str]] = {  # what pandas makes of a column of Parquet, and what it is
    "durations": (pd.to_timedelta(range(20), unit="h"), "time"),
    "months": (pd.period_range("2020-01", periods=20, freq="M"), "period"),
    "two durations": (pd.to_timedelta([1, 2] * 10, unit="h"), "binary"),
    "times": ([datetime.time(1), datetime.time(2)] * 10, "binary"),
    "lists": ([[1.0, 2.0], [3.0]] * 10, "binary"),
    "structs": ([{"a": 1}, {"a": 2}] * 10, "binary"),
    "bytes": ([b"ab", b"cd"] * 10, "binary"),
}


@pytest.mark.parametrize("name", CELLS)
def test_cells_of_parquet_that_are_neither_numbers_nor_texts(name: str, tmp_path: Path) -> None:
    """Also as the first column, which is looked at as the rows' names; and what is found can be kept as JSON."""
    cells, kind = CELLS[name]
    pd.DataFrame({"row_id": cells, "a": np.linspace(0, 1, 20)}).to_parquet(tmp_path / "t.parquet")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what is left out
        load(str(tmp_path / "t.parquet"))
        data = load(str(tmp_path / "t.parquet"), ids="none")
    assert data.schema is not None
    assert [column.kind for column in data.schema.columns if column.name == "row_id"] == [kind] * (kind != "none")
    again = load_again(json.loads(json.dumps(data.source)))
    assert torch.equal(data.x, again.x) and again.source == data.source


@pytest.mark.parametrize(
    "labels, classes",
    [
        ([Decimal(1), Decimal(0)], (0, 1)),
        ([Decimal("0.5"), Decimal(1)], (1, "0.5")),
        ([datetime.date(2020, 1, 2), datetime.date(2020, 1, 1)], ("2020-01-01", "2020-01-02")),
        ([[1], [2]], ("[1]", "[2]")),
        ([b"b", b"a"], ("a", "b")),
    ],
)
def test_labels_of_parquet_are_whole_numbers_or_texts(labels: Any, classes: Any, tmp_path: Path) -> None:
    pd.DataFrame({"a": np.linspace(0, 1, 20), "y": labels * 10}).to_parquet(tmp_path / "t.parquet")
    data = load(str(tmp_path / "t.parquet"), label="y")
    assert data.classes == classes and [type(c) for c in data.classes] == [type(c) for c in classes]


def test_an_index_is_a_column_of_parquet_but_of_no_run_of_before(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": np.linspace(0, 1, 20), "b": np.linspace(1, 0, 20) ** 2})
    for index, ids, columns in (
        (pd.Index([f"p{i}" for i in range(20)], name="patient_id"), "p3", ("a", "b")),
        (pd.Index(np.linspace(0, 1, 20) ** 3, name="depth"), None, ("depth", "a", "b")),
        (pd.Index(range(20, 0, -1)), None, ("a", "b")),
        (pd.Index([f"p{i}" for i in range(20)]), "p3", ("a", "b")),  # without a name, each level is "index"
        (pd.Index(np.linspace(0, 1, 20) ** 3), None, ("index", "a", "b")),
        (pd.Index(np.arange(20) ** 2), "9", ("a", "b")),  # rows of a larger table
        (pd.Index([0, 1] * 10), None, ("a", "b")),  # tables that were joined
        (pd.Index(np.linspace(0, 1, 20), name="a"), None, ("a", "b")),  # the file has it under another name
    ):
        frame.set_index(index).to_parquet(tmp_path / "t.parquet")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            data = load(str(tmp_path / "t.parquet"))
        blocks = Table(tmp_path / "t.parquet", 7).blocks()
        assert set(columns) <= set(next(blocks).frame.columns)
        blocks.close()
        assert data.columns == columns and (data.ids[3] if data.ids else None) == ids
        again = load_again(data.source)
        assert again.columns == columns and again.ids == data.ids and torch.equal(again.x, data.x)
        before = {**data.source, "ids": None, "drop": []}
        del before["index"], before["columns"]
        assert load_again(before).columns == ("a", "b")


def test_an_index_that_is_no_column_is_spoken_of(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": np.linspace(0, 1, 20), "index": np.linspace(1, 0, 20) ** 2})
    frame.set_index(pd.Index([0, 1] * 10)).to_parquet(tmp_path / "t.parquet")
    with pytest.warns(UserWarning, match="The index, whole numbers without a name, some of them twice, is left out"):
        load(str(tmp_path / "t.parquet"))
    levels = [np.linspace(0, 1, 20), np.linspace(2, 3, 20)]
    for index, names in (
        (pd.Index(levels[0]), ("__index_level_0__", "a", "index")),  # since a column has its name
        (pd.MultiIndex.from_arrays(levels), ("__index_level_0__", "__index_level_1__", "a", "index")),
    ):
        frame.set_index(index).to_parquet(tmp_path / "t.parquet")
        assert read(str(tmp_path / "t.parquet")).columns == names

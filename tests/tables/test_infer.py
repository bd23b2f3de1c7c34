"""What a column is found to be, from its cells and its name, and the way from a table to rows and back."""

import datetime
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import pyrovae as pv
from pyrovae.errors import DataError
from pyrovae.tables import Column, Schema, infer

N = 200
RANDOM = np.random.default_rng(0)


def reals(scale: float = 1.0) -> np.ndarray:
    return RANDOM.normal(size=N) * scale


# name of the column, its cells, and what it is to be
COLUMNS: dict[str, tuple[str, Any, str, dict[str, Any]]] = {
    "reals": ("a", reals(), "real", {"step": 0.0, "offset": None, "low": None}),
    "one decimal": ("a", np.round(reals(5), 1), "real", {"step": 0.1, "decimals": 1}),
    "steps of a half": ("a", RANDOM.integers(-60, 60, N) / 2, "real", {"step": 0.5}),
    "many decimals": ("a", np.round(reals(100), 4), "real", {"step": 0.0, "decimals": 4}),
    "positive and skewed": ("a", np.exp(reals(2)), "positive", {"offset": 0.0, "low": None}),
    "amounts with zeros": (
        "a",
        np.where(RANDOM.random(N) < 0.3, 0, np.round(np.exp(reals(1)), 2)),
        "positive",
        {"low": 0.0},
    ),
    "counts": ("a", RANDOM.poisson(40, N), "count", {"step": 1.0, "low": 0.0, "offset": None}),
    "skewed counts": ("a", np.floor(np.exp(3 + reals(1.5))).astype(int), "count", {"low": 0.0}),
    "whole and negative": ("a", RANDOM.integers(-50, 50, N), "real", {"step": 1.0, "low": None}),
    "shares with ones": (
        "a",
        np.minimum(1, np.round(RANDOM.random(N) * 1.3, 3)),
        "proportion",
        {"low": 0.0, "high": 1.0},
    ),
    "few numbers": ("a", RANDOM.integers(1, 6, N), "ordinal", {"categories": (1, 2, 3, 4, 5)}),
    "two numbers": ("a", RANDOM.integers(1, 3, N) * 10, "binary", {"categories": (10, 20)}),
    "truth values": ("a", RANDOM.random(N) < 0.3, "binary", {"categories": (False, True)}),
    "truth values with gaps": ("a", [True, False, None] * 66 + [True, False], "binary", {"categories": (False, True)}),
    "words": ("a", RANDOM.choice(["x", "y", "z"], N), "categorical", {"categories": ("x", "y", "z")}),
    "words with blanks": ("a", [" x", "x ", "y"] * 60, "binary", {"categories": ("x", "y")}),
    "numbers as categories": ("a", pd.Categorical(RANDOM.choice([3, 1], N)), "binary", {"categories": (1, 3)}),
    "ordered": (
        "a",
        pd.Categorical(["low", "high", "mid"] * 60, ["low", "mid", "high"], ordered=True),
        "ordinal",
        {"categories": ("low", "mid", "high")},
    ),
    "thousands": ("a", [f"{v:,}" for v in RANDOM.integers(1000, 10**6, N)], "count", {"dtype": "int64"}),
    "decimal commas": ("a", [f"{v:.2f}".replace(".", ",") for v in reals(50)], "real", {"decimals": 2}),
    "gaps of all kinds": (
        "a",
        [*map(str, np.round(reals(5), 1)), "NA", "n/a", "?", "-", "", None],
        "real",
        {"step": 0.1},
    ),
    "some that are no numbers": ("a", [*map(str, np.round(reals(50), 1)), "<5", "error"], "real", {}),
    "few numbers, one cell that is none": ("a", [*["1", "2", "3"] * 60, "n.d."], "ordinal", {"categories": (1, 2, 3)}),
    "days": ("a", pd.date_range("2020-01-01", periods=N), "date", {"step": 1.0}),
    "days as text": ("a", [f"2020-01-{d:02d}" for d in RANDOM.integers(1, 29, N)], "date", {}),
    "moments": ("a", pd.date_range("2020-01-01 07:00", periods=N, freq="h"), "date", {"step": 0.0}),
    "days with the day first": ("a", ["03.04.2024", "5.12.2023"] * 60, "date", {"format": "%d.%m.%Y", "step": 1.0}),
    "a day that is none": ("a", [*["03.04.2024", "25.12.2023"] * 60, "31.02.2024"], "date", {"format": "%d.%m.%Y"}),
    "days in both orders": ("a", ["13/04/2024", "04/13/2024"] * 60, "none", {}),
    "an answer that is none": (
        "a",
        ["mild", "none", "", "None"] * 30,
        "categorical",
        {"categories": ("None", "mild", "none")},
    ),
    "numbers, and none": ("a", [*map(str, np.round(reals(5), 1)), "none"], "real", {"step": 0.1}),
    "one answer, or none": ("a", ["aspirin", "none", None] * 30, "binary", {"categories": ("aspirin", "none")}),
    "nullable": ("a", pd.array([*RANDOM.poisson(40, N).tolist(), None], dtype="Int64"), "count", {}),
    "per cent": ("a", [f"{v} %" for v in RANDOM.integers(40, 98, N)], "proportion", {"low": 0.0, "high": 100.0}),
    "per cent by its name": ("Humidity (%)", RANDOM.integers(40, 98, N), "proportion", {"low": 0.0, "high": 100.0}),
    "per cent beyond 100": ("a", [f"{v}%" for v in RANDOM.integers(40, 180, N)], "count", {"high": None}),
    "changes in per cent": ("a", [f"{v:.1f}%" for v in reals(5)], "real", {"low": None, "high": None}),
    "small shares in per cent": ("pct", np.round(np.exp(reals()), 2), "positive", {"high": 100.0}),
    "a unit": ("a", [f"{v:.1f} kg" for v in 70 + reals(9)], "real", {"step": 0.1, "format": "1234.5 kg"}),
    "a unit without a blank": ("a", [f"{v}mg" for v in RANDOM.integers(5, 90, N)], "count", {"format": "1234.5mg"}),
    "few values with a unit": (
        "a",
        RANDOM.choice(["5 mg", "20 mg", "100 mg"], N),
        "ordinal",
        {"categories": ("5 mg", "20 mg", "100 mg")},
    ),
    "two units": ("a", [f"{v:.2f} {'kg' if v > 70 else 'lb'}" for v in 70 + reals(9)], "none", {}),
    "streets": ("a", [f"{i} {'Main' if i % 7 else 'Oak'} St" for i in range(N)], "none", {}),
    "times of day": (
        "a",
        [f"{m // 60:02}:{m % 60:02}" for m in RANDOM.integers(400, 1300, N)],
        "time",
        {"step": 60.0, "low": 0.0, "high": 86340.0, "format": "%H:%M", "offset": None},
    ),
    "times with am and pm": (
        "a",
        [f"{1 + h % 12}:{h:02} {'ap'[h % 2]}m" for h in range(60)] * 2,
        "time",
        {"high": 86340.0},
    ),
    "times of Python": ("a", [datetime.time(h % 24, h % 60) for h in range(N)], "time", {"dtype": "time"}),
    "durations": (
        "a",
        [f"{s // 3600}:{s % 3600 // 60:02}:{s % 60:02}" for s in np.exp(8 + reals(1)).astype(int)],
        "time",
        {"offset": 0.0, "high": None, "format": "%-H:%M:%S"},
    ),
    "durations of pandas": ("a", pd.to_timedelta(RANDOM.integers(0, 10**6, N), unit="s"), "time", {"format": ""}),
    "durations of pandas in a file": ("a", [f"{d} days 0{h}:30:00" for d in range(20) for h in range(9)], "time", {}),
    "durations of symmetric shape": (
        "a",
        [f"{s // 3600}:{s % 3600 // 60:02}:{s % 60:02}" for s in RANDOM.integers(0, 900_000, N)],
        "time",
        {"offset": None, "low": 0.0, "high": None, "step": 1.0},
    ),
    "few numbers with marks": ("a", RANDOM.choice(["5%", "10%", "25%"], N), "ordinal", {"dtype": "int64"}),
    "keys of another table": (
        "customer_id",
        RANDOM.integers(1, 90, N),
        "count",
        {"why": "its name is one of an id: leave it out if its numbers are no amounts"},
    ),
    "shifts": ("a", ["22:00", "06:00", "14:00"] * 20, "ordinal", {"categories": ("06:00", "14:00", "22:00")}),
    "periods": ("a", pd.period_range("1999-03", periods=N, freq="M"), "period", {"dtype": "period[M]"}),
    "months": ("a", [f"{1990 + i // 12}-{1 + i % 12:02}" for i in range(N)], "period", {"format": "%Y-%m"}),
    "months by their words": ("a", [f"{m} {y}" for m in ("Jan", "June") for y in range(1950, 2000)], "period", {}),
    "quarters": ("a", [f"{1950 + i // 4}Q{1 + i % 4}" for i in range(N)], "period", {"dtype": "period[Q-DEC]"}),
    "names of rows": ("patient_id", [f"P{i}" for i in range(N)], "none", {}),
    "numbers of rows": ("customerId", np.arange(N) + 1000, "none", {}),
    "an index that pandas has written": ("Unnamed: 0", np.arange(N), "none", {}),
    "free text": ("a", [f"came on day {i}" for i in range(N)], "none", {}),
    "a constant": ("a", [7] * N, "none", {}),
    "nothing": ("a", [None] * N, "none", {}),
}


@pytest.mark.parametrize("case", COLUMNS.values(), ids=COLUMNS)
def test_what_a_column_is(case: tuple[str, Any, str, dict[str, Any]]) -> None:
    name, cells, kind, wanted = case
    table = pd.DataFrame({name: cells, "other": np.arange(len(cells)) * 0.37})
    before = table.copy()
    column = infer(table).columns[0]
    pd.testing.assert_frame_equal(table, before)
    assert column.kind == kind, column
    for key, value in wanted.items():
        assert getattr(column, key) == (
            value if isinstance(value, tuple | str | type(None)) else pytest.approx(value)
        ), column
    assert (kind == "none") == (column.why != "" and str(column).startswith("left out"))
    assert Column.from_json(column.to_json()) == column


KEPT = {name: case for name, case in COLUMNS.items() if case[2] != "none"}


@pytest.mark.parametrize("case", KEPT.values(), ids=KEPT)
def test_rows_and_back(case: tuple[str, Any, str, dict[str, Any]]) -> None:
    name, cells, _, _ = case
    table = pd.DataFrame({name: cells})
    schema = infer(table)
    rows = schema.encode(table)
    assert rows.shape == (len(table), 1) and rows.dtype == torch.float32
    again = schema.encode(schema.decode(rows))
    torch.testing.assert_close(again, rows, equal_nan=True, rtol=1e-6, atol=1e-5)
    if pd.api.types.is_numeric_dtype(table[name]) or isinstance(table[name].dtype, pd.CategoricalDtype):
        back = schema.decode(rows)[name]
        assert back.dtype == table[name].dtype
        if not isinstance(back.dtype, pd.CategoricalDtype):
            np.testing.assert_allclose(back.astype(float), table[name].astype(float), rtol=1e-5, atol=1e-5)


def mixed() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "id": [f"r{i}" for i in range(30)],
            "sex": ["f", "m", "m"] * 10,
            "age": np.arange(20, 50),
            "crp": np.round(np.linspace(0.1, 9, 30), 1),
            "seen": pd.date_range("2024-01-01", periods=30),
        }
    )


def test_other_orders_more_columns_and_other_dtypes_make_no_difference() -> None:
    schema = infer(mixed())
    other = mixed()[["seen", "crp", "age", "sex"]].assign(more=1, age=lambda t: t["age"].astype(str))
    assert schema.encode(other).equal(schema.encode(mixed()))
    assert schema.names == ("age", "crp", "seen", "sex")  # numbers first
    assert list(schema.decode(schema.encode(mixed())).columns) == ["sex", "age", "crp", "seen"]


WRONG: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], str]] = {
    "a column is gone": (lambda t: t.drop(columns="crp"), "no column 'crp'.*may be left empty"),
    "a name is misspelt": (lambda t: t.rename(columns={"crp": "cpr"}), "no column 'crp' .did you mean cpr"),
    "a new category": (
        lambda t: t.assign(sex=["x", *t["sex"][1:]]),
        "'sex' has cells that it did not have .*'x'.*known: f, m",
    ),
    "text for numbers": (
        lambda t: t.assign(crp="high"),
        "'crp' holds real values, and 30 of 30 cells are no such values",
    ),
    "below a bound": (
        lambda t: t.assign(age=t["age"] - 25),
        "'age' .count. has 5 values below 0, the first -5 in row 0",
    ),
    "infinite": (lambda t: t.assign(crp=np.inf), "'crp' has 30 infinite values"),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_tables_that_do_not_fit_the_schema(case: tuple[Callable[[pd.DataFrame], pd.DataFrame], str]) -> None:
    change, words = case
    with pytest.raises(DataError, match=words):
        infer(mixed()).encode(change(mixed()))


def test_a_schema_is_written_read_and_edited(tmp_path: Path) -> None:
    schema = infer(mixed())
    schema.write(tmp_path / "columns.yaml")
    assert Schema.read(tmp_path / "columns.yaml") == schema and Schema.from_json(schema.to_json()) == schema
    text = (tmp_path / "columns.yaml").read_text().replace("kind: count", "kind: real")
    (tmp_path / "columns.yaml").write_text(text)
    assert Schema.read(tmp_path / "columns.yaml").columns[2].kind == "real"
    for wrong, words in {
        "age: {kind: number}": "kind 'number' is unknown; known: real",
        "age: {kind: binary, categories: [1]}": "at least two different categories",
        "age: {kind: real, steps: 1}": "'steps' is unknown",
        "age: {kind: date, format: dd.mm.yyyy}": "format is for dates, with %d, %m and %Y",
        "age: {kind: date, format: 3}": "format is for dates",
        "age: {kind: real, format: '%d.%m.%Y'}": "format is for dates.*for real",
        "age: {kind: real, low: 3, high: 2}": "low must be below high",
        "[1, 2]": "one entry for each column",
        "age: {kind": "cannot read the columns",
        "age: {kind: none}": "at least one column",
        "age: {why: x}": "'age' has no kind",
        "age: {kind: real, 1: 2, x: 3}": "'x', 1 is unknown",
        "age: {kind: real, decimals: many}": "decimals is a whole number",
        "age: {kind: categorical, categories: [[1], [2]]}": "unhashable",
        "age: 0000-00-00": "cannot read the columns",
        "age: !!python/object/apply:os.getcwd []": "cannot read the columns",
    }.items():
        (tmp_path / "wrong.yaml").write_text(wrong)
        with pytest.raises(DataError, match=words):
            Schema.read(tmp_path / "wrong.yaml")


def nested(line: Callable[[str, str], str]) -> str:
    """Ten lines, each of which names that before it nine times: 9^10 values."""
    names = "abcdefghijk"
    return "a: &a {kind: real}\n" + "".join(line(name, before) + "\n" for before, name in itertools.pairwise(names))


ENDLESS: dict[str, tuple[str, str]] = {
    "aliases": (nested(lambda name, before: f"{name}: &{name} {{kind: [{', '.join([f'*{before}'] * 9)}]}}"), "aliases"),
    "merges": (nested(lambda name, before: f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 9)}]}}"), "aliases"),
    "itself": ("&a {a: *a}", "aliases"),
    "digits": ("age: {kind: real, low: " + "9" * 5000 + "}", "4300 digits"),
    "hexadecimal digits": ("age: {kind: real, low: 0x" + "f" * 10**5 + "}", "400000 bits"),
    "brackets": ("[" * 5000, "cannot read the columns"),
    "bytes": ("# " + "x" * 2**24, "more than 16 MiB"),
    "values": ("- {}\n" * 800_000, "more than 1,500,000 values"),
}


@pytest.mark.parametrize("case", ENDLESS.values(), ids=ENDLESS.keys())
def test_columns_that_would_not_end_are_refused(case: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "columns.yaml").write_text(case[0])
    with pytest.raises(DataError, match=case[1]):
        Schema.read(tmp_path / "columns.yaml")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are of Unix")
def test_columns_are_read_from_files_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # to open it would wait for ever
    (tmp_path / "device").symlink_to("/dev/zero")  # and this has no end
    for name, said in {
        "pipe": "is a pipe",
        "device": "is a pipe",
        "": "is a folder",
        "none": "there is no file",
    }.items():
        with pytest.raises(DataError, match=said):
            Schema.read(tmp_path / name)


@pytest.mark.parametrize(
    "table", [pd.DataFrame(), pd.DataFrame({"a": [1, 1]}), pd.DataFrame([[1, 2]], columns=["a", "a"])]
)
def test_tables_of_which_nothing_can_be_learned(table: pd.DataFrame) -> None:
    with pytest.raises(DataError):
        infer(table)


def test_numbers_that_float32_cannot_tell_apart_are_refused() -> None:
    table = pd.DataFrame({"time": 1e9 + np.arange(50.0), "b": np.arange(50.0)})
    with pytest.raises(DataError, match="'time' varies by 14.* less than float32 can tell apart"):
        pv.tables.infer(table).encode(table)


def test_numbers_beyond_all_bounds_are_no_numbers() -> None:
    with pytest.raises(pv.DataError, match="Column 'a' holds infinite numbers"):
        pv.tables.infer(pd.DataFrame({"a": [np.inf, 1.0, 2.0]}))
    texts = pd.DataFrame({"a": [*(f"{n}" for n in range(40)), "1e999"]}, dtype=object)
    schema = pv.tables.infer(texts)
    assert schema.columns[0].kind == "count" and "'1e999' counts as missing" in schema.columns[0].why
    assert pv.tables.infer(pd.DataFrame({"a": [1e308, 1.0, 3.5, 2e307] * 9, "b": range(36)})).names


def note_on(cells: list[object]) -> str:
    return str(
        pv.tables.infer(pd.DataFrame({"a": pd.Series(cells, dtype=object), "x": np.arange(len(cells)) * 0.5})).columns[
            0
        ]
    )


def test_a_column_that_is_left_out_for_some_cells_names_them() -> None:
    """Of 200 texts of which most are numbers, nobody would guess that the other ones are what is wrong."""
    mostly = [f"{0.1 + i / 7:.4f}" if i % 10 else "<0.05" for i in range(200)]
    assert note_on(mostly) == (
        "left out: numbers, but for 20 of 200 cells such as '<0.05': leave such cells empty, or make them numbers"
    )
    places: list[object] = [f"{i}{'st' if i % 10 == 1 else 'th'}" for i in range(4, 100)]
    assert "units" not in note_on([*places, *places, *places])
    hours: list[object] = [str(i % 37) if i % 9 else "about 10" for i in range(200)]
    assert note_on(hours).startswith("categorical, 38 values")
    assert "(numbers, but for 23 of 200 cells such as 'about 10': leave such cells empty" in note_on(hours)
    assert "numbers" not in note_on(["0", "1", "2", "3+"] * 30)
    assert note_on([f"note {i}" for i in range(200)]) == "left out: texts, 200 different ones in 200 rows"


def test_values_that_differ_in_capitals_alone_are_told() -> None:
    assert note_on(["yes", "No", "no", "Yes"] * 10).endswith("('No' and 'no', 'Yes' and 'yes' count as different)")
    assert "different" not in note_on(["yes", "no"] * 10) + note_on(["Yes", "No", "yess"] * 10)


@pytest.mark.parametrize("mark", [-999, 9999, 99.0])
def test_numbers_that_may_mean_missing_are_told_and_kept(mark: float) -> None:
    cells: list[object] = [round(20 + i * 0.3, 1) if i % 10 else mark for i in range(200)]
    assert (f"20 cells are {mark:g}, far from all others" in note_on(cells)) == (abs(mark) > 200)
    assert "far from" not in note_on([*cells[1:10], *(float(i) for i in range(-2000, 12000, 7))])
    assert "20 cells are 99, far from" in note_on([1 + i % 5 if i % 10 else 99 for i in range(200)])
    assert "far from" not in note_on([1 + i % 9 for i in range(200)])


def test_errors_of_a_spreadsheet_are_missing() -> None:
    cells = ["#DIV/0!", "#N/A", "#VALUE!", *(f"{i / 7:.2f}" for i in range(60))]
    assert "as missing" not in note_on(cells) and note_on(cells).startswith("real")


@pytest.mark.parametrize("table", [np.zeros((3, 2)), [[1, 2]], {"a": [1]}])
def test_what_is_no_data_frame_is_one_error(table: object) -> None:
    schema = pv.tables.infer(pd.DataFrame({"a": np.arange(30) * 0.5}))
    assert repr(schema).startswith("Schema of 1 column:")
    for reads in (schema.encode, pv.tables.infer):
        with pytest.raises(DataError, match="takes a table, a DataFrame of pandas or Polars, got"):
            reads(table)


def test_a_table_without_a_column_is_told_which_it_has() -> None:
    schema = pv.tables.infer(pd.DataFrame({"a": np.arange(30) * 0.5}))
    with pytest.raises(DataError, match=r"no column 'a', which the model was fitted to; it has 'A', '2'\. Add it"):
        schema.encode(pd.DataFrame({"A": [1.0], "2": [2.0]}))


def test_whole_numbers_that_may_be_names_or_days_are_told() -> None:
    random = np.random.default_rng(0)
    codes: list[object] = random.choice(10**6, 60, replace=False).tolist()
    assert "(all different: leave it out if it names the rows)" in note_on(codes)
    assert "all different" not in note_on([*codes[1:], codes[1]]) + note_on(codes[:15])
    moments: list[object] = [1_704_067_200 + 86_401 * i for i in range(60)]
    told = "(seconds since 1970? 1704067200 would be read as a moment if it were written 2024-01-01 00:00:00)"
    assert told in note_on(moments) and "milliseconds since" in note_on([one * 1000 for one in moments])  # type: ignore[operator]
    days: list[object] = [int(f"202{i % 5}{1 + i % 12:02}{1 + i % 28:02}") for i in range(300)]
    assert "(days? 20200101 would be read as one if it were written 2020-01-01)" in note_on(days)
    assert "days?" not in note_on([*days, 20201350])


def test_decoded_rows_have_the_index_of_their_table() -> None:
    """pandas puts tables together by their indices, so that rows that were shuffled before would be filled in with others."""
    table = pd.DataFrame({"a": np.arange(30) * 0.5, "b": ["u", "v"] * 15}).sample(frac=1, random_state=0)
    schema = pv.tables.infer(table)
    rows = schema.encode(table)
    gaps = table.assign(a=table["a"].where(table.index % 3 > 0))
    pd.testing.assert_frame_equal(gaps.fillna(schema.decode(rows, index=table.index)), table)
    assert schema.decode(rows).index.tolist() == list(range(30))
    with pytest.raises(DataError, match="The index has 29 entries, and there are 30 rows"):
        schema.decode(rows, index=table.index[:-1])


@pytest.mark.parametrize("cell", ["2,002 kg", "some", "2024-01-32"])
def test_a_column_of_none_with_one_other_answer_has_two_values(cell: str) -> None:
    """Neither are numbers, of which "none" would be a missing one."""
    found = infer(pd.DataFrame({"a": ["none"] * 39 + [cell]})).columns[0]
    assert found.kind == "binary" and set(found.categories) == {"none", cell}

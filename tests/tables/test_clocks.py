"""Times of day, durations, months and quarters become numbers, and come back as they were written."""

import datetime
import math
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from pyrovae import _moments
from pyrovae.errors import DataError
from pyrovae.tables import Column, infer
from pyrovae.tables.clocks import clock_form, how_read, seconds_of, time_of, write_clock

# Cells of one column, the seconds that they say, and their form.
CLOCKS: dict[str, tuple[list[str], list[float], str]] = {
    "hours and minutes": (["09:30", "00:00", "23:59"], [34200, 0, 86340], "%H:%M"),
    "no zero in front": (["9:30", "12:05"], [34200, 43500], "%-H:%M"),
    "seconds": (["09:30:15", "00:00:01"], [34215, 1], "%H:%M:%S"),
    "halves of the day": (["9:30 PM", "12:00 AM", "12:15 PM"], [77400, 0, 44100], "%-I:%M %p"),
    "tenths of a second": (["0:01:02.5", "1:00:00.0"], [62.5, 3600], "%-H:%M:%S"),
    "minutes and seconds": (["3:45.2", "59:30.0"], [225.2, 3570], "%-M:%S"),
    "more than a day": (["25:00", "130:30"], [90000, 469800], "%H:%M"),
    "behind": (["-0:15", "0:20"], [-900, 1200], "%-H:%M"),
    "seconds and halves": (["9:30:00 PM", "9:31:15 PM"], [77400, 77475], "%-I:%M:%S %p"),
}
# The same for cells of one column that are written in two ways, of which the second is not how they are written again.
MIXED: dict[str, tuple[list[str], list[float], str, str]] = {
    "minutes beside hours": (
        ["30:15", "59:02", "1:02:15"],
        [1815, 3542, 3735],
        "%-M:%S",
        "'30:15' is read as minutes and",
    ),
    "hours, some with seconds": (
        ["9:30", "9:30", "9:31:15"],
        [34200, 34200, 34275],
        "%-H:%M:%S",
        "'9:30' is read as hours",
    ),
    "durations, some with seconds": (
        ["30:15", "40:10:05"],
        [108900, 144605],
        "%H:%M:%S",
        "'30:15' is read as hours and",
    ),
    "halves, some with seconds": (["9:30 pm", "9:31:15 pm"], [77400, 77475], "%-I:%M:%S %p", ""),
    "some without halves": (
        ["1:05 pm", "2:05"],
        [47100, 7500],
        "%-H:%M",
        "'2:05' is read as hours and minutes of a day of 24",
    ),
}


@pytest.mark.parametrize("case", CLOCKS.values(), ids=CLOCKS)
def test_clocks_say_seconds_and_are_written_as_before(case: tuple[list[str], list[float], str]) -> None:
    cells, seconds, form = case
    assert clock_form(cells) == form
    assert [seconds_of(cell, form) for cell in cells] == seconds
    decimals = 1 if any(one % 1 for one in seconds) else 0
    assert [write_clock(one, form, decimals) for one in seconds] == cells


@pytest.mark.parametrize("case", MIXED.values(), ids=MIXED)
def test_times_written_in_two_ways_are_told_and_lose_nothing(case: tuple[list[str], list[float], str, str]) -> None:
    cells, seconds, form, said = case
    assert clock_form(cells) == form
    assert [seconds_of(cell, form) for cell in cells] == seconds
    assert [seconds_of(write_clock(one, form), form) for one in seconds] == seconds
    more = [write_clock(one, form) for one in range(36000, 43200, 60)] if form != "%-H:%M" else []
    assert (
        said in infer(pd.DataFrame({"a": [*cells, *more], "x": range(len(cells) + len(more))})).columns[0].why
        or not more
    )
    assert how_read(cells, form).startswith(said)


@pytest.mark.parametrize(
    "cell",
    [
        "9:30.5 pm",
        "9.30 pm",
        "9",
        "9:7",
        "12:60",
        "13:00 pm",
        "0:10:75",
        "1:2:3:4",
        "10:00-11:00",
        "16:9",
        "Mt 5:17",
        "",
    ],
)
def test_what_is_no_time_is_none(cell: str) -> None:
    assert seconds_of(cell) is None


def test_a_time_beyond_a_day_is_its_end() -> None:
    assert time_of(-5) == datetime.time.min and time_of(1e6) == datetime.time.max
    assert time_of(34200.5) == datetime.time(9, 30, 0, 500_000)


def column(cells: Any) -> tuple[Column, pd.DataFrame]:
    table = pd.DataFrame({"a": cells, "x": np.arange(len(cells)) * 0.3})
    return infer(table).columns[0], table


MOMENTS: dict[str, Any] = {
    "texts": [f"{h:02}:{m:02}" for h in range(6, 20) for m in (7, 23, 41)],
    "durations": pd.to_timedelta(np.arange(40) * 977, unit="s"),
    "times of Python": [datetime.time(i % 24, i) for i in range(40)],
    "periods": pd.period_range("1968-11", periods=40, freq="M"),
    "weeks": pd.period_range("1968-11-03", periods=40, freq="W-SUN"),
    "months": [f"{m}/{y}" for m in ("03", "11") for y in range(1960, 1980)],
    "quarters": [f"Q{q} {y}" for q in (1, 4) for y in range(1960, 1980)],
    "months by words": [f"{m}-{y}" for m in ("Mar", "Nov") for y in range(1960, 1980)],
}


@pytest.mark.parametrize("cells", MOMENTS.values(), ids=MOMENTS)
def test_a_table_and_back_with_gaps(cells: Any) -> None:
    found, table = column(cells)
    assert found.kind in ("time", "period"), found
    table.loc[3, "a"] = None
    schema = infer(table)
    rows = schema.encode(table)
    assert bool(rows[3].isnan().any()) and int(rows.isnan().sum()) == 1
    back = schema.decode(rows)["a"]
    assert back.isna().tolist() == table["a"].isna().tolist()
    assert back.dropna().tolist() == table["a"].dropna().tolist()
    assert back.dtype == table["a"].dtype or found.format or found.dtype == "time"
    written = schema.written(schema.decode(rows))  # what a file has can be read again
    torch.testing.assert_close(schema.encode(written), rows, equal_nan=True)


def test_means_between_two_values_are_values() -> None:
    for cells, wanted in ((MOMENTS["texts"], "06:12"), (MOMENTS["months"], "05/1960")):
        schema = infer(column(cells)[1])
        code = schema.columns[0].codes(pd.Series([wanted]))[0]
        rows = torch.tensor([[float(code[0]) + 0.3, 0.0]])
        assert schema.decode(rows)["a"].tolist() == [wanted]


def test_a_form_says_what_a_short_time_is() -> None:
    found, table = column([f"{m}:{s:02}" for m in range(3, 9) for s in (5, 15, 45)])
    assert "'3:05' is read as hours and minutes" in str(found)
    schema = infer(table).with_changes("a", format="%-M:%S", high=None, step=1.0)
    assert (
        schema.encode(table)[0, 0] == 185 and schema.decode(schema.encode(table))["a"].tolist() == table["a"].tolist()
    )


def test_draws_of_a_day_stay_within_it_and_probabilities_add_up_to_one() -> None:
    cells = [f"{h:02}:{m:02}" for h in (22, 23) for m in range(60)]
    _, table = column(cells)
    schema = infer(table[["a"]])
    family = schema.family(schema.encode(table)).double()
    fn = family(torch.tensor([[3.0, 2.0]], dtype=torch.float64).reshape(1, *family.param_shape))
    every = torch.arange(0, 86400, 60, dtype=torch.float64).unsqueeze(-1)
    mass = (fn.expand((len(every),)).log_prob(every).exp() * 60).sum()  # a density per second, of minutes
    assert math.isclose(float(mass), 1.0, rel_tol=1e-6)
    torch.manual_seed(0)
    drawn = fn.sample((2000,)).flatten()
    assert float(drawn.min()) >= 0 and float(drawn.max()) == 86340.0


def test_shares_in_per_cent_end_at_100_and_probabilities_add_up_to_one() -> None:
    table = pd.DataFrame({"a": [f"{v} %" for v in range(55, 100)]})
    schema = infer(table)
    family = schema.family(schema.encode(table)).double()
    fn = family(torch.tensor([[1.5, 1.0]], dtype=torch.float64).reshape(1, *family.param_shape))
    every = torch.arange(101, dtype=torch.float64).unsqueeze(-1)
    assert math.isclose(float(fn.expand((101,)).log_prob(every).exp().sum()), 1.0, rel_tol=1e-6)
    torch.manual_seed(0)
    assert float(fn.sample((2000,)).max()) == 100.0
    with pytest.raises(DataError, match="has 1 value above 100"):
        schema.encode(pd.DataFrame({"a": ["104 %"]}))


def test_another_unit_is_never_taken_for_the_one_of_the_fit() -> None:
    random = np.random.default_rng(0)
    table = pd.DataFrame(
        {"a": [f"{v:.1f} kg" for v in random.normal(70, 9, 100)], "b": random.normal(70, 9, 100).round(1)}
    )
    schema = infer(table)
    rows = schema.encode(table)
    assert schema.encode(table.assign(a=[cell.replace(" kg", "kgs") for cell in table["a"]])).equal(rows)
    assert schema.encode(table.assign(a=[float(cell[:-3]) for cell in table["a"]])).equal(rows)
    for name in "ab":
        with pytest.raises(DataError, match=rf"'{name}' holds real values.* 100 of 100 cells are no such values.*lb"):
            schema.encode(table.assign(**{name: [f"{v:.1f} lb" for v in table["b"]]}))
    mixed = infer(table.assign(a=[f"{v:.2f} {'kg' if v > 70 else 'lb'}" for v in table["b"]]))
    assert "numbers with several units, " in mixed.columns[0].why and ": give all cells one" in mixed.columns[0].why


def test_periods_of_another_kind_are_told() -> None:
    with pytest.raises(DataError, match="a period needs a dtype"):
        Column("a", "period")
    with pytest.raises(DataError, match="for times, '%H:%M'"):
        Column("a", "time", format="%d.%m.%Y")
    schema = infer(column(MOMENTS["months"])[1])
    with pytest.raises(DataError, match="'a' holds period values .*such values, for example '13/1960'"):
        schema.encode(pd.DataFrame({"a": ["13/1960"], "x": [0.0]}))


LONG = [datetime.timedelta(hours=7 * i) for i in range(40)]


@pytest.mark.parametrize(
    "cells",
    [
        pd.Series(LONG, dtype=object),
        pd.Series([None, *LONG[1:]], dtype=object),
        pd.Series([np.timedelta64(one) for one in LONG], dtype=object),
        pd.Series(LONG, dtype=pd.ArrowDtype(pa.duration("ms"))),
    ],
)
def test_durations_are_longer_than_a_day_whatever_they_are_kept_as(cells: pd.Series) -> None:
    schema = infer(pd.DataFrame({"a": cells, "x": np.arange(40) * 0.3}))
    assert schema.columns[0].kind == "time" and schema.columns[0].high is None
    back = schema.decode(schema.encode(pd.DataFrame({"a": cells, "x": 0.0})))["a"]
    assert back[1:].tolist() == LONG[1:]


def test_years_with_the_next_one_are_no_months() -> None:
    for mark in "-/":
        seasons = [f"{year}{mark}{(year + 1) % 100:02}" for year in range(2000, 2012)] * 5
        assert column(seasons)[0].kind == "categorical"
        assert column([*seasons, f"2005{mark}09"])[0].kind == "period"


def test_a_month_that_may_be_a_day_is_told() -> None:
    assert "'Mar-01' is read as 2001-03" in column([f"Mar-{day:02}" for day in range(1, 31)])[0].why
    assert not column(MOMENTS["months"])[0].why


def test_a_period_that_is_longer_is_no_period_of_a_column() -> None:
    schema = infer(column(pd.period_range("2010-01", periods=40, freq="M"))[1])
    days = pd.DataFrame({"a": pd.period_range("2010-01-15", periods=3, freq="D"), "x": 0.0})
    assert schema.encode(days)[:, 0].tolist() == [480.0] * 3
    with pytest.raises(DataError, match=r"3 of 3 cells are no such values, for example Period\('2010Q1'"):
        schema.encode(pd.DataFrame({"a": pd.period_range("2010Q1", periods=3, freq="Q"), "x": 0.0}))
    threes = column(pd.period_range("1990-01", periods=40, freq="3M"))[0]
    assert (threes.kind, threes.dtype) == ("period", "period[3M]")


def test_a_column_of_periods_says_which_and_how_they_are_written() -> None:
    schema = infer(column(MOMENTS["months"])[1])
    for change in ({"dtype": "period[junk]"}, {"dtype": "period[Q-DEC]"}, {"format": "%YQ%q"}):
        with pytest.raises(DataError, match=r"is no dtype of periods that are written '%.*period\[M\] has months"):
            schema.with_changes("a", **change)
    with pytest.raises(DataError, match=r"'period\[junk\]' is no dtype of periods: "):
        Column("a", "period", "period[junk]")
    assert (
        schema.with_changes("a", format="%Y-%m").decode(schema.encode(column(MOMENTS["months"])[1]))["a"][0]
        == "1960-03"
    )


@pytest.mark.parametrize("name", ["texts", "durations", "times of Python"])
def test_draws_far_beyond_all_times_are_written(name: str) -> None:
    schema = infer(pd.DataFrame({"a": MOMENTS[name]}))
    far = torch.tensor([[1e13], [-1e13], [1e38], [math.inf], [-math.inf], [math.nan]])
    assert schema.written(schema.decode(far))["a"].isna().tolist() == [False] * 5 + [True]


@pytest.mark.parametrize("meaning", [np.timedelta64(1, "s"), np.datetime64("1970-01-01"), pd.Period("1970-01", "M")])
def test_what_is_no_finite_number_is_no_moment(meaning: Any) -> None:
    for value in (math.nan, math.inf, -math.inf):
        assert _moments.written(value, meaning) is None
        assert f"{value:g}" in _moments.span(value, meaning)


@pytest.mark.parametrize(
    "few", [["-1:30"], ["25:10"], ["1:10:30"], [datetime.timedelta(hours=30, seconds=7)], ["1:30.5"]], ids=str
)
@pytest.mark.parametrize("form", ["{0}:{1:02}", "{0}:{1:02} pm"])
def test_a_few_cells_of_another_form_lose_nothing(form: str, few: list[Any]) -> None:
    cells = [form.format(hour, minute) for hour in range(1, 11) for minute in range(0, 60, 7)]
    schema = infer(pd.DataFrame({"a": pd.Series([*few, *cells], dtype=object)}))
    rows = schema.encode(pd.DataFrame({"a": pd.Series([*few, *cells], dtype=object)}))
    assert not rows.isnan().any()
    torch.testing.assert_close(schema.encode(schema.written(schema.decode(rows))), rows, rtol=0, atol=1e-3)


@pytest.mark.parametrize("part", [0, 123_456])
def test_times_of_a_day_with_midnight_are_those_of_their_own_column(part: int) -> None:
    """What is recorded to seconds stays so, and the last of them is within the bounds."""
    of_day = [datetime.time(0)] * 4 + [datetime.time(i % 24, i % 60, 7 * i % 60, part) for i in range(200)]
    table = pd.DataFrame({"a": pd.Series([*of_day, datetime.time(23, 59, 58, part)], dtype=object)})
    for cells in (table["a"], table["a"].map(lambda one: f"{one:%H:%M:%S}")):
        schema = infer(pd.DataFrame({"a": cells}))
        assert schema.columns[0].low == 0.0 and (part or schema.columns[0].step == 1.0)
        assert not schema.encode(pd.DataFrame({"a": cells})).isnan().any()

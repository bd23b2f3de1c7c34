"""Numbers as people write them are read as what they say, and written as they were."""

from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pyrovae.errors import DataError
from pyrovae.tables import Column, infer
from pyrovae.tables.cells import as_numbers
from pyrovae.tables.numerals import form_of, is_form, style_in, style_of, units_of, word_units, write

# Cells of one column, what they say, and how 1234.5 would be written.
WRITTEN: dict[str, tuple[list[Any], list[float], str]] = {
    "plain": (["1.5", "-2", "1e3"], [1.5, -2, 1000], ""),
    "thousands": (["1,234.5", "12"], [1234.5, 12], "1,234.5"),
    "decimal commas": (["1234,5", "-0,25", ",5"], [1234.5, -0.25, 0.5], "1234,5"),
    "points between thousands": (["1.234,5", "1.000"], [1234.5, 1000], "1.234,5"),
    "blanks between thousands": (["8 628,84", "11 161,34"], [8628.84, 11161.34], "1 234,5"),
    "blanks, some below 1000": (["8 628,84", "564,80", "12"], [8628.84, 564.8, 12], "1 234,5"),
    "narrow blanks": (["8\u202f628,84\u00a0€", "564,80\u00a0€"], [8628.84, 564.8], "1\u202f234,5\u00a0€"),
    "blanks and points": (["8 628.84", "564.80"], [8628.84, 564.8], "1 234.5"),
    "Swiss": (["CHF 8'628.84", "CHF 7"], [8628.84, 7], "CHF 1'234.5"),
    "Swiss, of a word processor": (["8’628.84", "1"], [8628.84, 1], "1’234.5"),
    "Indian": (["₹1,23,456.00", "₹999.50"], [123456, 999.5], "₹1,234.5"),
    "a minus before a currency": (["-$1,360.44", "$583.53"], [-1360.44, 583.53], "$1,234.5"),
    "a minus behind a currency": (["$-360.44", "$583.53"], [-360.44, 583.53], "$1234.5"),
    "a minus of typesetters": (["\u2212360.4", "583.5"], [-360.4, 583.5], ""),
    "brackets of accountants": (["($1,360.44)", "$583.53"], [-1360.44, 583.53], "$1,234.5"),
    "a code": (["8628.84 USD", "7.00 USD"], [8628.84, 7], "1234.5 USD"),
    "crowns": (["8628,84 kr", "7,00 kr"], [8628.84, 7], "1234,5 kr"),
    "per cent": (["29%", "5%"], [29, 5], "1234.5%"),
    "per cent, with commas": (["0,67 %", "3,125 %"], [0.67, 3.125], "1234,5 %"),
    "euros without cents": (["1.360 €", "845 €", "12.500 €"], [1360, 845, 12500], "1.234,5 €"),
    "a few words with full stops": (["172,5", "k.A.", "168,0"] + ["170,1"] * 40, [172.5, np.nan, 168], "1234,5"),
    "numbers among texts": ([1.5, "2,000", 3], [1.5, 2000, 3], "1,234.5"),
}


@pytest.mark.parametrize("case", WRITTEN.values(), ids=WRITTEN)
def test_cells_say_what_people_mean(case: tuple[list[Any], list[float], str]) -> None:
    cells, numbers, form = case
    read, strange = as_numbers(pd.Series(cells, dtype=object))
    np.testing.assert_allclose(read[: len(numbers)], numbers)
    assert form_of(cells) == form and len(strange) == np.isnan(read).sum() <= 1
    known = [number for number in numbers if not np.isnan(number)]
    again = [write(number, form, 3) for number in known]
    np.testing.assert_allclose(
        as_numbers(pd.Series(again, dtype=object), style_in(form))[0], known
    )  # as written, it is read
    schema = infer(pd.DataFrame({"a": pd.Series([*cells, *cells], dtype=object), "x": np.arange(2 * len(cells)) * 0.5}))
    assert schema.columns[0].kind != "categorical" and schema.columns[0].format == form


@pytest.mark.parametrize(
    "cells",
    [["(0.5)", "(0.7)"], ["(1)", "(2)"], ["5 kg", "7 kg"], ["1-2", "3-4"], ["--5", "$-+5"], ["1.2.3.4", "4.5.6.7"]],
)
def test_what_is_no_number_is_none(cells: list[str]) -> None:
    """Brackets around all cells may be anything, such as standard errors, and no minus."""
    assert form_of(cells) is None
    assert infer(pd.DataFrame({"a": cells * 10, "x": np.arange(20) * 0.5})).columns[0].kind == "binary"
    assert not infer(pd.DataFrame({"a": cells * 10, "x": np.arange(20) * 0.5})).columns[0].format


def test_a_cell_that_says_either_is_read_as_the_column_of_the_fit() -> None:
    """A block of a table, or a table of one row, need not show how the others are written."""
    numbers = [1360.5, 12.25, *np.arange(30) * 7.5]
    sums = infer(pd.DataFrame({"a": [write(n, "1.234,5", 2) for n in numbers], "b": [f"{n:,.2f}" for n in numbers]}))
    found = sums.decode(sums.encode(pd.DataFrame({"a": ["1.360"], "b": ["1.360"]})))
    assert found["a"].tolist() == [1360] and found["b"].tolist() == [1.36]
    found = sums.decode(sums.encode(pd.DataFrame({"a": ["12,500"], "b": ["12,500"]})))
    assert found["a"].tolist() == [12.5] and found["b"].tolist() == [12500]
    other = sums.decode(sums.encode(pd.DataFrame({"a": ["1,360", "2.50"], "b": ["1.360", "2,5"]})))  # cells decide it
    assert other["a"].tolist() == [1360, 2.5] and other["b"].tolist() == [1360, 2.5]


def test_forms_are_kept_edited_and_checked() -> None:
    column = Column("a", "real", format="1.234,5 €")
    assert Column.from_json(column.to_json()) == column
    assert is_form("$1,234.5") and not is_form("$1,000") and not is_form(3)
    with pytest.raises(DataError, match="or for numbers, how 1234.5 is written"):
        Column("a", "real", format="#,##0.00")


@pytest.mark.parametrize(
    ("number", "form", "decimals", "text"),
    [
        (1234.5, "$1,234.5", 2, "$1,234.50"),
        (-1234567.891, "1.234,5 €", 2, "-1.234.567,89 €"),
        (29.0, "1234.5%", 0, "29%"),
        (0.5, "1234,5 %", None, "0,5 %"),
        (17.0, "1234.5 USD", None, "17 USD"),
        (-0.001, "$1,234.5", 2, "$0.00"),
    ],
)
def test_numbers_are_written_in_a_form(number: float, form: str, decimals: int | None, text: str) -> None:
    assert write(number, form, decimals) == text


def test_two_currencies_are_told() -> None:
    cells = ["$5.50", "€7.25", "$9.00"] * 10
    assert units_of(cells) == ["$", "€"]
    schema = infer(pd.DataFrame({"a": cells + [f"${1.25 * i:.2f}" for i in range(1, 31)], "x": np.arange(60) * 0.5}))
    assert "$, € are taken for one unit" in str(schema.columns[0])
    for some in (["€1,250.5", "€7"], ["$1,250.5", "$7"]):  # rows that have one of them alone
        assert schema.encode(pd.DataFrame({"a": some, "x": [1.0, 2.0]}))[:, 0].tolist() == [1250.5, 7.0]
    assert not style_of(cells).comma


def test_another_currency_than_that_of_the_fit_is_no_number() -> None:
    """Also among many cells that have the right one: 5 dollars are not 5 euros."""
    cells = [f"{1.25 * i:.2f} €" for i in range(1, 401)]
    schema = infer(pd.DataFrame({"a": cells}))
    for other in ("$5.50", "5.50 $", "USD 5.50"):
        rows = schema.encode(pd.DataFrame({"a": [*cells, other]}))
        assert rows[:-1].isfinite().all() and rows[-1].isnan().all()
        with pytest.raises(DataError, match="are no such values"):
            schema.encode(pd.DataFrame({"a": [*cells[:2], other]}))


def test_decimals_of_arrow_are_numbers_and_complex_ones_are_none() -> None:
    amounts = pd.Series([Decimal(f"{8628.84 + 3 * i:.2f}") for i in range(30)])
    table = pd.DataFrame({"a": amounts.astype(pd.ArrowDtype(pa.decimal128(12, 2))), "x": np.arange(30) * 0.5})
    table["b"] = pd.Series([Decimal("1.50"), Decimal("2.50")] * 15).astype(pd.ArrowDtype(pa.decimal128(4, 2)))
    schema = infer(table)
    assert [column.kind for column in schema.columns[::2]] == ["real", "binary"]
    back = schema.decode(schema.encode(table))
    assert back["a"].tolist() == amounts.astype(float).tolist() and back["b"].tolist() == [1.5, 2.5] * 15
    with pytest.raises(DataError, match="'c' holds complex numbers"):
        infer(table.assign(c=np.arange(30) + 1j))


def test_numbers_without_the_unit_of_the_others_are_told() -> None:
    def found(cells: list[Any]) -> Column:
        return infer(pd.DataFrame({"a": cells, "x": np.arange(len(cells)) * 0.5})).columns[0]

    kilos, shares = [f"{i} kg" for i in range(40)], [f"{i} %" for i in range(40)]
    assert "without a unit" not in found(kilos).why + found(shares).why
    assert "1 cell without a unit, such as '500', taken for kg" in found([*kilos, "500"]).why
    assert "2 cells without a unit, such as '0.03', taken for %" in found([*shares, "0.03", "0.5"]).why
    for unit in ("k", "M", "Mio"):  # of which no other number is one
        assert found([f"{i}{unit}" for i in range(40)]).kind == "count"
        mixed = found([*(f"{i}{unit}" for i in range(40)), "500"])
        assert mixed.kind == "none" and f"numbers with {unit} and without" in mixed.why


def test_a_plural_is_no_other_unit_and_ms_no_plural() -> None:
    for one, many in (("kg", "kgs"), ("year", "years"), ("hr", "hrs.")):
        assert word_units([f"1 {one}", f"2 {many}"]) == {one: 2}
    for one, other in (("m", "ms"), ("s", "ms"), ("g", "gs")):
        assert len(word_units([f"1 {one}", f"2 {other}"])) == 2
    assert not word_units(["9.30 pm", "9.45 AM", "10 a.m."])


def test_a_unit_of_cells_that_count_as_missing_is_taken_for_no_other() -> None:
    cells = [f"{i} kg" for i in range(58)] + ["5 lb"]
    why = infer(pd.DataFrame({"a": cells})).columns[0].why
    assert "1 cell such as '5 lb' counts as missing" in why and "for one unit" not in why


def test_addresses_of_computers_are_no_numbers_with_a_mark_at_thousands() -> None:
    cells = [f"192.168.100.{i}" for i in range(100, 160)]
    with pytest.raises(DataError, match="a: texts, 60 different ones"):
        infer(pd.DataFrame({"a": cells}))
    assert infer(pd.DataFrame({"a": [*cells, "192.168.100.999"]})).columns[0].kind == "count"


def test_of_two_equally_frequent_forms_it_is_the_first() -> None:
    cells = [f"{i}{mark}kg" for i in range(20) for mark in ("", " ")]
    assert form_of(cells, unit="kg") == "1234.5kg" and form_of(cells[1:] + cells[:1], unit="kg") == "1234.5 kg"


# How the column of a fit is written, cells that are no such numbers, and cells that are.
OTHERS = [
    ("kg", ["5 %", "$5", "5 lb"], ["5 kg", "5 kgs", "5"]),
    (" %", ["5 €", "$5", "5 kg"], ["5%", "5 %", "5"]),
    (" €", ["5 %", "$5", "USD 5"], ["5€", "EUR 5", "5"]),
    ("k", ["500", "5M", "5 %"], ["5k", "5 k"]),
]


@pytest.mark.parametrize(("after", "wrong", "right"), OTHERS)
def test_a_table_in_another_unit_than_that_of_the_fit_is_refused(
    after: str, wrong: list[str], right: list[str]
) -> None:
    schema = infer(pd.DataFrame({"a": [f"{i}{after}" for i in range(40)]}))
    for cell in wrong:
        with pytest.raises(DataError, match=r"3 of 3 cells are no such values"):
            schema.encode(pd.DataFrame({"a": [cell] * 3}))
    for cell in right:
        assert schema.encode(pd.DataFrame({"a": [cell] * 3})).flatten().tolist() == [5.0] * 3
    assert schema.encode(pd.DataFrame({"a": [5.0]})).item() == 5  # as `decode` gives it

"""Cells as days and as answers, by what the whole column shows."""

import numpy as np
import pandas as pd
import pytest
import torch

from pyrovae.errors import DataError
from pyrovae.tables import Column, infer

# What the first cell is, and what is noted; the last cells are more of the column.
DATES: dict[str, tuple[list[str], str, str]] = {
    "a full stop": (["03.04.2024", "05.06.2024"], "2024-04-03", "'03.04.2024' is read as 2024-04-03"),
    "some day above 12": (["03/04/2024", "13/06/2024"], "2024-04-03", "'03/04/2024' is read as 2024-04-03"),
    "some day above 12 in the second place": (["03-04-2024", "06-13-2024"], "2024-03-04", "is read as 2024-03-04"),
    "nothing decides": (["03/04/2024", "05/06/2024"], "2024-03-04", "format: '%d/%m/%Y' has the day first"),
    "the first of each month": (["01/04/2024", "01/06/2024"], "2024-04-01", "is read as 2024-04-01"),
    "two digits of the year": (["3.4.24", "5.6.74"], "2024-04-03", "is read as 2024-04-03"),
    "hours": (["03.04.2024 12:00", "05.06.2024 06:00"], "2024-04-03 12:00:00", "is read as 2024-04-03"),
    "some begin with the year": (["03/04/2024", "2024-06-05", "15/06/2024"], "2024-04-03", "is read as 2024-04-03"),
    "all begin with the year": (["2024-04-03", "2024/06/05"], "2024-04-03", ""),
    "names of months": (["3 Apr 2024", "14 Mar 2021"], "2024-04-03", "'3 Apr 2024' is read as 2024-04-03"),
    "names of months, as of spreadsheets": (["03-Apr-24", "14-Mar-21"], "2024-04-03", "is read as 2024-04-03"),
    "names of months, of births": (["03-Apr-69", "14-Sept-55"], "1969-04-03", "is read as 1969-04-03"),
    "names of months, in America": (["April 3, 2024", "May 14, 2021"], "2024-04-03", "is read as 2024-04-03"),
    "names of months, as of SAS": (["03APR2024", "14MAR2021"], "2024-04-03", "'03APR2024' is read as 2024-04-03"),
    "the year first in two digits": (["99-12-31", "98-01-02"], "1999-12-31", ""),
}


@pytest.mark.parametrize("case", DATES.values(), ids=DATES)
def test_days_and_months_are_told_apart_by_the_whole_column(case: tuple[list[str], str, str]) -> None:
    cells, first, noted = case
    table = pd.DataFrame({"seen": cells * 10, "x": np.arange(10 * len(cells)) * 0.5})
    schema = infer(table)
    column = schema.columns[0]
    assert column.kind == "date" and noted in str(column), column
    decoded = schema.decode(schema.encode(table))
    assert decoded["seen"][0] == pd.Timestamp(first)
    back = schema.written(decoded)
    assert [str(cell) for cell in back["seen"]] == back["seen"].tolist()
    assert schema.encode(back).equal(schema.encode(table))  # as it is written, it is read
    if column.format:
        assert back["seen"][0] == pd.Timestamp(first).strftime(column.format)
        one = schema.encode(table.iloc[:1].assign(seen="2024-04-03"))  # which no format makes another day
        assert one[0, 1 - schema.names.index("x")] == (pd.Timestamp("2024-04-03") - pd.Timestamp(0)).days


def test_a_few_days_that_are_none_count_as_missing_and_many_are_refused() -> None:
    table = pd.DataFrame({"seen": ["03.04.2024", "25.12.2023"] * 20, "x": np.arange(40) * 0.5})
    schema = infer(table)
    table.loc[5, "seen"] = "12.25.2023"  # with the month first
    assert schema.encode(table)[5].isnan().sum() == 1 and "such as '12.25.2023' counts as missing" in repr(infer(table))
    table.loc[::2, "seen"] = "12.25.2023"
    with pytest.raises(
        DataError, match=r"date values \(%d.%m.%Y\), and 21 of 40 cells are no such values, for example '12.25"
    ):
        schema.encode(table)


def test_means_of_days_are_days() -> None:
    table = pd.DataFrame({"seen": ["03.04.2024", "25.12.2023"] * 20, "x": np.arange(40) * 0.5})
    schema = infer(table)
    between = schema.encode(table)[:1] + torch.tensor([0.4, 0.0])
    assert schema.decode(between)["seen"][0] == pd.Timestamp("2024-04-03")


def test_none_is_an_answer_where_it_is_a_category() -> None:
    cells = pd.Series(["mild", "none", "", None, "severe", " none "] * 5)
    schema = infer(pd.DataFrame({"pain": cells}))
    rows = schema.encode(pd.DataFrame({"pain": cells}))[:6, 0].tolist()
    assert schema.columns[0].categories == ("mild", "none", "severe")
    np.testing.assert_equal(rows, [0, 1, np.nan, np.nan, 2, 1])
    np.testing.assert_equal(schema.columns[0].gaps(cells[:6]), [False, False, True, True, False, False])
    said = Column("pain", "categorical", "str", categories=("mild", "missing"))
    np.testing.assert_equal(
        said.codes(pd.Series(["missing", "none"]))[0], [1, np.nan]
    )  # whoever names a mark, means it


def test_words_that_begin_as_months_do_are_no_dates() -> None:
    cells = ["Marble 3, 1999", "May 3, 1999", "3 Octopus 20", "Apr 31, 2020"] * 10
    assert infer(pd.DataFrame({"seen": cells, "x": np.arange(40) * 0.5})).columns[0].kind == "categorical"

"""What is said of simulated rows: nothing if they are rows of the same distribution, and what is off if something is."""

import itertools

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

from pyrovae.tables import infer
from pyrovae.tables.simulated import _correlations, differences, sentence


def people(seed: int, num: int = 600) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    age = random.normal(50, 12, num).round(1)
    amount = np.where(random.random(num) < 0.2, 0, np.exp(random.normal(age / 40, 1)).round(2))
    kind = random.choice(["u", "v", "w"], num, p=[0.5, 0.3, 0.2])
    return pd.DataFrame(
        {"age": age, "pressure": (age + random.normal(0, 8, num)).round(1), "amount": amount, "kind": kind}
    )


SCHEMA = infer(people(0))


def test_rows_of_the_same_distribution_are_called_alike() -> None:
    """In ten pairs of tables with about 20 comparisons each, beyond 3 standard errors and a tolerance: under 1 in 1,000."""
    for seed in range(1, 11):
        data, drawn = (SCHEMA.encode(people(seed + shift)) for shift in (0, 100))
        assert differences(SCHEMA, data, drawn) == []
    assert "are like the data" in sentence(SCHEMA, data, drawn)


def row(table: pd.DataFrame, name: str) -> pd.DataFrame:
    random = np.random.default_rng(5)
    if name == "mean":
        return table.assign(age=table["age"] + 8, pressure=table["pressure"] + 8)
    if name == "varies":
        return table.assign(age=(50 + 0.4 * (table["age"] - 50)).round(1))
    if name == "is 0":
        return table.assign(amount=table["amount"].where(table["amount"] > 0, 1.0))
    if name == "is 'u'":
        return table.assign(kind=random.choice(["u", "v", "w"], len(table), p=[0.2, 0.6, 0.2]))
    if name == "correlation":
        return table.assign(pressure=random.permutation(table["pressure"]))
    return table.assign(age=np.where(random.random(len(table)) < 0.2, 120.0, table["age"]))


@pytest.mark.parametrize("name", ["mean", "varies", "is 0", "is 'u'", "correlation", "beyond the data"])
def test_what_is_off_is_named(name: str) -> None:
    data, drawn = SCHEMA.encode(people(1)), SCHEMA.encode(row(people(2), name))
    said = differences(SCHEMA, data, drawn)
    assert any(name in words for words in said), said
    assert sentence(SCHEMA, data, drawn).startswith("Rows drawn from the model differ from the data: ")
    gaps = data.clone()
    gaps[::4, :3] = torch.nan
    assert any(name in words for words in differences(SCHEMA, gaps, drawn))


def test_dates_beyond_the_data_are_days_of_the_calendar() -> None:
    cells = pd.DataFrame({"seen": pd.date_range("2024-01-01", periods=200)})
    schema = infer(cells)
    rows = schema.encode(cells)
    found = " ".join(differences(schema, rows, rows + 400))
    assert "(2025-02-04 to 2025-08-22, in the data 2024-01-01 to 2024-07-18)" in found
    far = " ".join(differences(schema, rows, rows * 1e9))
    assert "in the data 2024-01-01" in far and "e+13 to" in far


def test_correlations_are_those_of_the_rows_that_have_both_columns() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 5).double()
    x[:, 1] += x[:, 0]
    x[:20, 2], x[10:30, 3], x[2:, 4] = torch.nan, torch.nan, torch.nan
    found = _correlations(x)
    for i, j in itertools.combinations(range(5), 2):
        both = x[~(x[:, i].isnan() | x[:, j].isnan())]
        exact = scipy.stats.spearmanr(both[:, i], both[:, j]).statistic if len(both) > 2 else 0.0
        assert found[i][j] == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize("num", [100, 300, 3000])
def test_ends_of_a_uniform_column_are_not_those_of_a_normal_one(num: int) -> None:
    """A Normal of the same mean and spread has 8.3 % of its draws beyond the ends; 1,000 rows of the column itself have few."""
    random = np.random.default_rng(num)
    schema = infer(pd.DataFrame({"share": random.uniform(0, 5, num).round(3)}))
    for seed in range(20):
        draw = np.random.default_rng(seed)
        rows = torch.from_numpy(draw.uniform(0, 5, (num, 1)))
        assert differences(schema, rows, torch.from_numpy(draw.uniform(0, 5, (1000, 1)))) == []
        normal = torch.from_numpy(draw.normal(2.5, 5 / 12**0.5, (1000, 1)))
        said = differences(schema, rows, normal)
        assert num < 300 or any("are beyond the data" in words for words in said), said

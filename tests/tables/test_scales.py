"""Answers that have an order: which columns seem to hold such, and how the order is said and kept."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

from pyrovae.errors import DataError
from pyrovae.tables import Schema, infer, scales
from pyrovae.tables.scales import hint, in_order, unlike_counts

LEVELS = ["never", "rarely", "sometimes", "often", "always"]


def answers() -> pd.DataFrame:
    random = np.random.default_rng(0)
    table = pd.DataFrame({name: random.choice(LEVELS, 60) for name in ("walks", "reads")})
    table["size"] = random.choice(["S", "XL", "M"], 60)
    for name in ("eins", "zwei"):
        table[name] = random.choice(["nie", "oft", "immer"], 60)
    return table.assign(place=random.choice(["Rome", "Oslo", "Bern"], 60), low=random.choice(["low", "high"], 60))


def test_answers_that_seem_to_have_an_order_are_told() -> None:
    schema = infer(answers())
    assert hint(schema).splitlines() == [
        "These answers seem to have an order. If so, say it in a copy of columns.yaml:",
        "  walks, reads: kind: ordinal, categories: [never, rarely, sometimes, often, always]",
        "  size: kind: ordinal, categories: [S, M, XL]",
        "  eins, zwei: kind: ordinal, categories: [immer, nie, oft], put in order",
    ]
    said = schema.with_changes(["walks", "reads"], kind="ordinal", categories=LEVELS).with_changes(
        ["size", "eins", "zwei"], kind="none"
    )
    assert hint(said) == ""
    assert in_order(["bad", "poor", "good"]) is None  # which of the first two is lower, nobody knows


def test_an_order_that_is_said_is_kept(tmp_path: Path) -> None:
    table = answers()
    schema = infer(table).with_changes("walks", kind="ordinal", categories=LEVELS)
    assert "walks  ordinal, never < rarely < sometimes < often < always" in repr(schema)
    schema.write(tmp_path / "columns.yaml")
    read = Schema.read(tmp_path / "columns.yaml")
    assert read == schema
    rows = read.encode(table)
    assert rows[:, 0].tolist() == [LEVELS.index(cell) for cell in table["walks"]]
    back = read.decode(rows)["walks"]
    assert back.cat.ordered and back.tolist() == table["walks"].tolist() and back.max() == "always"
    assert infer(table.assign(walks=back)).columns[0].kind == "ordinal"  # as pandas keeps it
    with pytest.raises(DataError, match="no column 'walk' .did you mean walks"):
        schema.with_changes("walk", kind="none")
    with pytest.raises(DataError, match="'kinds' is unknown"):
        schema.with_changes("walks", kinds="none")


@pytest.mark.parametrize("spread", [0.3, 2.0])
def test_how_far_answers_are_from_counts(monkeypatch: pytest.MonkeyPatch, spread: float) -> None:
    """The divergence from scipy's negative binomial of the same mean and variance, Poisson's where the variance is smaller."""
    x = np.random.default_rng(0).normal(3.0, spread, size=400).round().clip(0, 9)
    mean, variance = x.mean(), x.var()
    if variance > mean:
        counts = scipy.stats.nbinom(mean**2 / (variance - mean), mean / variance)
    else:
        counts = scipy.stats.poisson(mean)
    values, times = np.unique(x, return_counts=True)
    lost = float((times / 400 * (np.log(times / 400) - counts.logpmf(values))).sum())
    columns = torch.tensor(np.column_stack([x, 100 * x]))  # the second of which has values too large for answers
    monkeypatch.setattr(scales, "UNLIKE", 0.99 * lost / 2)
    assert unlike_counts(columns)
    monkeypatch.setattr(scales, "UNLIKE", 1.01 * lost / 2)
    assert not unlike_counts(columns) and not unlike_counts(torch.zeros(5, 3))

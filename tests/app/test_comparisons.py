"""Comparisons of runs of which some cannot judge all rows."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

import pyrovae as pv
from pyrovae.app import comparisons
from pyrovae.errors import OptionError
from pyrovae.tables import Schema, infer

NAN = math.nan


def run(folder: str, log_p: list[float], elbo: list[float]) -> Any:
    """A run of which all is given that a comparison asks for."""
    n = len(log_p)
    rows = SimpleNamespace(
        test=torch.zeros(n, 2),
        test_index=torch.arange(n),
        log_abs_det=0.5,
        schema=None,
        batch=lambda _: {"x": torch.zeros(n, 2)},
    )
    log_likelihood, bound = torch.tensor(log_p, dtype=torch.float64), torch.tensor(elbo, dtype=torch.float64)
    zeros = torch.zeros(n, dtype=torch.float64)
    return SimpleNamespace(
        folder=Path(folder),
        dataset=SimpleNamespace(source={}, name="table"),
        rows=rows,
        model=SimpleNamespace(quantised=False),
        found=pv.Importance(log_likelihood, zeros, bound, zeros + 50, zeros, 100),
    )


@pytest.fixture(autouse=True)
def given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparisons, "estimate", lambda run, *_: run.found)
    monkeypatch.setattr(comparisons, "_check_measures", lambda *_: None)


def test_all_figures_are_of_the_rows_that_every_run_can_judge() -> None:
    """Row 3 alone would make the first run the better one by its ELBO."""
    one = run("one", [-2.0, -3.0, NAN, -1.0], [-4.0, -5.0, NAN, 90.0])
    other = run("other", [-1.0, -2.5, -7.0, NAN], [-3.0, -4.0, -9.0, NAN])
    best, second = comparisons.compare([one, other], 100)
    assert (best["run"], second["run"], best["rows"], second["rows"]) == ("other", "one", 2, 2)
    assert (best["log_likelihood"], second["log_likelihood"]) == (-1.75 - 0.5, -2.5 - 0.5)
    assert (best["elbo"], second["elbo"]) == (-3.5 - 0.5, -4.5 - 0.5)
    assert (best["rank_by_elbo"], second["rank_by_elbo"]) == (1, 2)
    assert second["difference"] == -0.75


def test_runs_that_judge_no_row_in_common_are_not_compared() -> None:
    with pytest.raises(pv.errors.NotFiniteError, match="no row whose density"):
        comparisons.compare([run("one", [-2.0, NAN], [-4.0, NAN]), run("other", [NAN, -1.0], [NAN, -3.0])], 100)


TABLE = pd.DataFrame({"pain": ["none", "mild", "severe"] * 10, "seen": ["03/04/2024", "05/06/2024", None] * 10})
TABLE["age"] = range(30)
AS_FOUND = infer(TABLE)
READINGS: dict[str, tuple[Schema, list[str]]] = {
    "the same": (AS_FOUND, []),
    "an order": (AS_FOUND.with_changes("pain", kind="ordinal", categories=["none", "mild", "severe"]), []),
    "another kind of number": (AS_FOUND.with_changes("age", kind="real", low=None), []),
    "fewer columns": (AS_FOUND.with_changes("age", kind="none"), ["age"]),
    "other days": (AS_FOUND.with_changes("seen", format="%d/%m/%Y"), ["seen"]),
    "a gap in place of an answer": (
        AS_FOUND.with_changes("pain", kind="binary", categories=["mild", "severe"]),
        ["pain"],
    ),
}


@pytest.mark.parametrize("case", READINGS.values(), ids=READINGS)
def test_runs_that_read_a_table_otherwise_are_not_compared(case: tuple[Schema, list[str]]) -> None:
    schema, other = case
    one, two = run("one", [-1.0] * 30, [-2.0] * 30), run("two", [-1.5] * 30, [-2.0] * 30)
    for each, own in ((one, AS_FOUND), (two, schema)):
        each.rows.schema, each.rows.test = own, own.encode(TABLE)
    if not other:
        assert len(comparisons.compare([one, two], 100)) == 2
        return
    with pytest.raises(OptionError, match=f"two takes cells of {other[0]} for other values, or other gaps, than one"):
        comparisons.compare([one, two], 100)

"""What happens between the call of `fit` and the first step: how often the pair runs, what it costs, what is checked."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.command import Command
from support.programs import ROWS, binary, labels, ssvae, vae
from torch import Tensor

import pyrovae as pv
from pyrovae.batching.chunks import row_elements
from pyrovae.engine import step
from pyrovae.models.vae import VAE
from pyrovae.pair.batch import as_batch, group_rows, take_group
from pyrovae.pair.handlers import MakeParamsOn
from pyrovae.pair.parameters import param_scope

MOST_RUNS = 6


class Counted(Exception):
    """Raised in place of the first step."""


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """One entry for each run of a VAE's model; the first step of a fit raises Counted."""
    found: list[str] = []
    model = VAE.model

    @functools.wraps(model)
    def counted(self: VAE, *args: Any, **kwargs: Any) -> Any:
        found.append("model")
        return model(self, *args, **kwargs)

    def stop(self: Any, *args: Any) -> Tensor:
        raise Counted

    monkeypatch.setattr(VAE, "model", counted)
    for kind in (step.Eager, step.Traced):
        monkeypatch.setattr(kind, "step", stop)
    yield found


def test_the_command_runs_the_pair_at_most_six_times_before_the_first_gradient(
    runs: list[str], pyrovae: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Counted):
        pyrovae("fit", "digits")
    assert 0 < len(runs) <= MOST_RUNS


@pytest.mark.parametrize(
    "options",
    [{}, {"validation": 0.2}, {"transform": lambda batch: {"x": batch["x"] + 0.0}}, {"check_also": binary()}],
    ids=["plain", "validation", "transform", "more rows to check"],
)
def test_fit_runs_the_pair_at_most_six_times_before_the_first_gradient(
    runs: list[str], options: dict[str, Any]
) -> None:
    with pytest.raises(Counted):
        pv.fit(vae(), binary(), epochs=1, **options)
    assert 0 < len(runs) <= MOST_RUNS


def test_questions_measure_what_a_row_costs_once(runs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    fitted = pv.fit(vae(), binary(), epochs=1, batch_size=20, progress=False)
    assert list(fitted.row_elements) == [("x",)]

    def again(*args: Any) -> int:
        raise AssertionError("measured twice")

    monkeypatch.setattr("pyrovae.fitted.fitted.row_elements", again)
    pv.importance(fitted, binary(), 10)
    pv.encode(fitted, binary())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=[] if name in ("vae", "ssvae", "global-and-local", "auto-normal") else pytest.mark.slow
        )
        for name in ROWS
    ],
)
def test_the_first_runs_tell_what_a_row_costs(name: str) -> None:
    """As much as a measurement of its own tells, which runs the pair three times."""
    row = ROWS[name]
    torch.manual_seed(0)
    pair, data = row.build(), row.data()
    fitted = pv.fit(pair, data, epochs=1, batch_size=8, seed=0, progress=False, engine="eager")
    batch = as_batch(pair, data)
    with fitted.scope():
        for group in group_rows(pair, batch):
            rows = take_group(batch, group)
            if tuple(rows) in fitted.row_elements:
                assert fitted.row_elements[tuple(rows)] == row_elements(pair, rows)


def test_rows_that_are_only_checked_are_checked_before_the_first_step(tmp_path: Path) -> None:
    x, wrong = binary(), binary()
    wrong[7] = 3.0
    with pytest.raises(pv.DataError, match="row 7"):
        pv.fit(vae(), x, epochs=1, check_also=wrong, checkpoint=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    one, two = vae(), vae()
    two.load_state_dict(one.state_dict())
    pv.fit(one, x, epochs=2, seed=0)
    pv.fit(two, x, epochs=2, seed=0, check_also=binary())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))


@pytest.mark.slow
@pytest.mark.auto_engine
def test_one_group_and_several_take_the_same_way() -> None:
    """A pair whose optional argument is known in every row is fitted as one group; unknown in some, as two."""
    y = labels()
    whole = pv.fit(ssvae(), {"x": binary(), "y": y.abs() % 3}, epochs=1, seed=0, progress=False)
    assert "group_size" not in whole.settings
    some = y.clone()
    some[::2] = -1
    both = pv.fit(ssvae(), {"x": binary(), "y": some}, epochs=1, seed=0, progress=False)
    assert len(both.settings["group_size"]) == 2 == len(both.layouts)


def test_parameters_are_made_where_the_rows_are() -> None:
    """`pyro.param` with an initial value on the CPU, and rows elsewhere: the "meta" device stands for a GPU here."""
    with param_scope({}), MakeParamsOn(torch.device("meta")):
        drawn = pyro.param("drawn", lambda: torch.randn(2))
        given = pyro.param("given", torch.ones(2), constraint=dist.constraints.positive)
        again = pyro.param("drawn")
    assert {value.device.type for value in (drawn, given, again)} == {"meta"}
    layer = torch.nn.Linear(1, 1)
    with param_scope({}), MakeParamsOn(torch.device("meta")):
        pyro.module("layer", layer)
    assert layer.weight.device.type == "cpu"  # a module's own parameter is moved with the module

"""Rows that a model observes part by part, `obs=x[:, t]`: what cannot draw them says how to write them as one site."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv

HOW: dict[str, Any] = {"epochs": 1, "batch_size": 10, "engine": "eager", "device": "cpu", "progress": False, "seed": 0}
T = 3


class InTurn(pyro.distributions.TorchDistribution):  # type: ignore[misc]
    """x_t ~ N(loc_t + x_{t-1} / 2, 1), a distribution of one's own, whose sample draws its elements in turn."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = dist.constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor) -> None:
        self.loc = loc
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    def expand(self, shape: Any, _instance: Any = None) -> InTurn:
        return InTurn(self.loc.expand(*shape, -1))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        drawn = [torch.zeros(*sample_shape, *self.batch_shape)]
        for loc in self.loc.unbind(-1):
            drawn.append(dist.Normal(loc + drawn[-1] / 2, 1.0).rsample(sample_shape))
        return torch.stack(drawn[1:], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        before = torch.cat([torch.zeros_like(value[..., :1]), value[..., :-1]], -1)
        return dist.Normal(self.loc + before / 2, 1.0).log_prob(value).sum(-1)


class Steps(nn.Module):
    """z ~ N(0, I), x_t ~ N(f_t(z), 1), or with x_{t-1} / 2 in its mean, in parts or as one site."""

    def __init__(self, in_turn: bool, whole: bool) -> None:
        super().__init__()
        self.in_turn, self.whole = in_turn, whole
        self.encode, self.decode = nn.Linear(T, 2), nn.Linear(2, T)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = self.decode(z)
            if self.whole:
                pyro.sample("x", InTurn(loc) if self.in_turn else dist.Normal(loc, 1.0).to_event(1), obs=x)
                return
            for t in range(T):
                before = x[:, t - 1] / 2 if self.in_turn and t else 0.0
                pyro.sample(f"x{t}", dist.Normal(loc[..., t] + before, 1.0), obs=x[:, t])

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encode(x), 1.0).to_event(1))


def rows() -> Tensor:
    return torch.randn(30, T, generator=torch.Generator().manual_seed(0))


def fitted(in_turn: bool, whole: bool, **more: Any) -> pv.Fit:
    torch.manual_seed(0)
    return pv.fit(Steps(in_turn, whole), rows(), **HOW, **more)


def calibration(in_turn: bool, whole: bool) -> str:
    asked = ("simulation_based_calibration",)
    (found, *_) = pv.criticise(fitted(in_turn, whole), rows(), only=asked, num_samples=30, proposal="guide").findings
    if found.verdict == "none":
        raise pv.PairError(found.says)
    return found.says


NEED_ROWS: dict[str, Callable[[bool, bool], Any]] = {
    "a guide asleep": lambda *kind: fitted(*kind, loss=pv.WakeSleep()),
    "a sleep phase": lambda *kind: fitted(*kind, loss=pv.RWS(3, sleep=0.5)),
    "calibration": calibration,
}


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize("name", NEED_ROWS)
def test_what_needs_rows_says_how_to_write_them_as_one_site(name: str, in_turn: bool) -> None:
    with pytest.raises(pv.PairError, match="one site of the whole row.*whose sample draws them in turn"):
        NEED_ROWS[name](in_turn, False)
    NEED_ROWS[name](in_turn, True)  # and so it works


def test_parts_that_do_not_depend_on_one_another_are_drawn() -> None:
    drawn = pv.simulate(fitted(False, False), 7, seed=0)
    assert {name: tuple(value.shape) for name, value in drawn.items()} == {
        "z": (7, 2),
        "x0": (7,),
        "x1": (7,),
        "x2": (7,),
    }


def test_an_argument_that_is_observed_in_parts_is_not_said_to_be_a_condition_alone() -> None:
    with pytest.raises(pv.DataError, match="'x', which no site observes as a whole .site 'x0' observes") as failed:
        pv.simulate(fitted(True, False), 7, seed=0)
    assert "only a condition, pass: given={'x': ...}" in str(failed.value) and "in turn" in str(failed.value)
    assert pv.simulate(fitted(True, True), 7, seed=0)["x"].shape == (7, T)


def test_no_prior_is_made_of_observed_parts_of_a_row() -> None:
    """x_1 given the x_0 of the data is no draw from the prior predictive."""
    how: dict[str, Any] = {"num_samples": 3, "num_particles": 20, "proposal": "guide", "seed": 0}
    with pytest.warns(UserWarning, match="prior and prior_predictive are left out.*came out NaN"):
        tree = pv.to_arviz(fitted(True, False), rows(), **how)
    assert "prior" not in tree and set(tree["posterior_predictive"].data_vars) == {"x0", "x1", "x2"}
    for kind, names in (((False, False), {"x0", "x1", "x2"}), ((True, True), {"x"})):
        assert set(pv.to_arviz(fitted(*kind), rows(), **how)["prior_predictive"].data_vars) == names

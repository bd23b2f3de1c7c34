"""`.to_event` with a wrong number, a factor in a guide, and pairs that take one particle at a time: each is told, once."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

import pyrovae as pv

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
HOW: dict[str, Any] = {"epochs": 1, "engine": "eager", "progress": False, "seed": 0}


class Rows(nn.Module):
    """A right pair, of whose likelihood the event may have a dimension too many."""

    def __init__(self, event: int = 1, constant: bool = False, factor: bool = False) -> None:
        super().__init__()
        self.event, self.constant, self.factor, self.w = event, constant, factor, nn.Parameter(torch.ones(3))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            loc = z if x.dim() == 1 else z.unsqueeze(-1) * self.w
            pyro.sample("x", dist.Normal(loc, self.w.exp().mean()).to_event(self.event), obs=x)
            if self.constant:  # as long as there are rows, and the same for all of them
                pyro.sample("c", dist.Normal(z.unsqueeze(-1) + x.new_zeros(20), 1.0).to_event(1), obs=x.new_zeros(20))

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.reshape(len(x), -1).sum(-1) * self.w[0], 1.0))
        if self.factor:
            pyro.factor("f", -z.sum(), has_rsample=True)


ASKED: dict[str, Callable[[Any, Tensor], Any]] = {"check_pair": pv.check_pair, "fit": lambda p, x: pv.fit(p, x, **HOW)}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize(("x", "event"), [(X, 2), (X[:, 0], 1), (X[:3], 2)], ids=["rows", "numbers", "a square"])
def test_rows_in_one_event_are_refused(x: Tensor, event: int, ask: Callable[[Any, Tensor], Any]) -> None:
    """Their ELBO would be N times that of the model, and was, with a warning about something else."""
    first = rf"'x' observes all rows as one event .* count {len(x)} times"
    said = rf"{first}.*to_event\({event - 1}\) in place of .to_event\({event}\)"
    with pytest.raises(pv.PairError, match=said):
        ask(Rows(event), x)
    ask(Rows(event - 1), x.contiguous())


def test_a_constant_that_all_rows_observe_is_none() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pv.check_pair(Rows(constant=True), X)


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_a_factor_of_a_guide_is_called_one(ask: Callable[[Any, Tensor], Any]) -> None:
    with pytest.raises(pv.PairError, match=r"The guide has a factor, 'f' \(pyro.factor\), .*TransformedDistribution"):
        ask(Rows(factor=True), X)


class Weights(PyroModule):  # type: ignore[misc]  # Pyro has no types
    """Regression on c with y unknown in some rows, whose nn.Linear has weights of two dimensions, and so takes one particle."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](2, 3)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([3, 2]).to_event(2))

    def forward(self, x: Tensor, c: Tensor, y: Tensor | None = None) -> None:
        loc = self.linear(c)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)
            if y is not None:
                pyro.sample("y", dist.Normal(loc[..., 0], 1.0), obs=y)


def test_questions_of_several_particles_say_why_they_cannot_be_asked() -> None:
    data = {"x": X, "c": X[:, :2].clone(), "y": torch.where(torch.arange(20) % 2 == 0, X[:, 0], torch.nan)}
    model = Weights()
    pair = pv.Pair(model, AutoNormal(model))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pv.check_pair(pair, data)
    told = [str(one.message) for one in caught if "one particle" in str(one.message)]
    assert len(told) == 1  # and not one of each group of rows
    fitted = pv.fit(pair, data, **HOW)
    with pytest.raises(pv.PairError, match="particle dimension.*Write code for any number of dimensions on the left"):
        pv.entry_densities(fitted, data, site="x", num_samples=5)
    report = pv.criticise(fitted, data, num_rows=20, num_samples=5, proposal="guide", only=["predictive_intervals"])
    assert "particle dimension" in report.findings[0].says and report.findings[0].verdict == "none"

"""Pairs for which no proposal can be refined, and densities at the limits of their precision."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from support.comparisons import BOUND
from support.pairs import unfitted
from torch import Tensor

import pyrovae as pv


def in_plate(function: Callable[[Tensor], Any]) -> Callable[[Tensor], None]:
    def program(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            function(x)

    return program


def eager(model: Callable[[Tensor], Any], guide: Callable[[Tensor], Any], x: Tensor) -> pv.Fit:
    fitted = unfitted(pv.Pair(model, guide), x)
    fitted.settings["engine"] = "eager"
    return fitted


def normal(name: str, loc: Any, scale: Any = 1.0) -> Any:
    return pyro.sample(name, dist.Normal(loc, scale).to_event(1))


def even(x: Tensor) -> Tensor:
    return torch.arange(len(x)) % 2 == 0


def observed(x: Tensor, z: Any) -> None:
    pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)


@in_plate
def plain(x: Tensor) -> None:
    observed(x, normal("z", torch.zeros_like(x)))


@in_plate
def masked(x: Tensor) -> None:
    with poutine.mask(mask=even(x)):
        z = normal("z", torch.zeros_like(x))
    observed(x, torch.where(even(x)[:, None], z, 0.0))


@in_plate
def guide_masked(x: Tensor) -> None:
    with poutine.mask(mask=even(x)):
        normal("z", 0.3 * x, 0.3)


@in_plate
def masked_itself(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1).mask(even(x)))
    observed(x, torch.where(even(x)[:, None], z, 0.0))


@in_plate
def guide_masked_itself(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(0.3 * x, 0.3).to_event(1).mask(even(x)))


@in_plate
def at_a_point(x: Tensor) -> None:
    pyro.sample("z", dist.Delta(0.3 * x).to_event(1))


@in_plate
def two_classes(x: Tensor) -> None:
    a, b = (pyro.sample(name, dist.Bernoulli(torch.tensor(0.4))) for name in "ab")
    observed(x, normal("z", (a + b)[..., None] + torch.zeros_like(x)))


@in_plate
def guide_two_classes(x: Tensor) -> None:
    summed = {"enumerate": "parallel"}
    a, b = (pyro.sample(name, dist.Bernoulli(torch.tensor(0.5)), infer=summed) for name in "ab")
    normal("z", 0.3 * x + (a + b)[..., None])


def class_of_all(x: Tensor) -> None:
    y = pyro.sample("y", dist.Bernoulli(torch.tensor(0.4)))
    with pyro.plate("data", len(x)):
        observed(x, normal("z", y[..., None] + torch.zeros_like(x)))


def guide_class_of_all(x: Tensor) -> None:
    y = pyro.sample("y", dist.Bernoulli(torch.tensor(0.5)), infer={"enumerate": "parallel"})
    with pyro.plate("data", len(x)):
        normal("z", 0.3 * x + y[..., None])


@pytest.mark.parametrize(
    ("model", "guide", "why"),
    [
        (masked, guide_masked, "site 'z' is masked"),
        (masked_itself, guide_masked_itself, "site 'z' is masked"),
        (plain, at_a_point, "site 'z' is not continuous"),
        (two_classes, guide_two_classes, r"several enumerated sites \('a', 'b'\)"),
    ],
)
def test_the_guide_stands_in_and_the_warning_says_why(model: Any, guide: Any, why: str) -> None:
    """A masked site has the density 1 in some rows, which no proposal but its own integrates."""
    x = torch.linspace(-1, 1, 6)[:, None]
    fitted = eager(model, guide, x)
    with pytest.warns(UserWarning, match=f'The guide is the proposal.*{why}.*pass proposal="guide"'):
        found = pv.importance(fitted, x, 30, seed=0)
    assert found.proposal == "guide" and found.log_likelihood.isfinite().all()
    with pytest.warns(UserWarning, match=why), pytest.raises(pv.OptionError, match="leave moves out"):
        pv.posterior(fitted, x, 3, site="z", num_particles=30, moves=1)


def test_a_class_of_all_rows_has_a_proposal_for_each_value() -> None:
    """It is averaged under the guide: log sum_y q(y) N(x; y, 1.25). 5 standard errors, 6 rows: false alarms 4e-6."""
    x = torch.linspace(-1, 1, 6)[:, None]
    found = pv.importance(eager(class_of_all, guide_class_of_all, x), x, 300, seed=0)
    each = dist.Normal(torch.tensor([0.0, 1.0]), 1.25**0.5).log_prob(x)
    exact = each.logsumexp(-1) + torch.tensor(0.5).log()
    assert found.proposal == "refined" and found.k_hat.max() < 0.5
    assert ((found.log_likelihood - exact).abs() < 5 * found.standard_error + 1e-4).all()


@pytest.mark.slow
def test_a_narrow_guide_far_away_costs_no_digits() -> None:
    """log q is some -1e7 at refined draws: added and taken off again in float32 it would leave whole nats.

    8 rows, one-sided, since the estimate may be too low: false alarms 3e-5.
    """
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    fitted = eager(plain, in_plate(lambda x: normal("z", 0.3 * x, 1e-4)), x)
    found = pv.importance(fitted, x, 1000, seed=1)
    exact = dist.Normal(0.0, math.sqrt(1.25)).expand(x.shape).to_event(1).log_prob(x).double()
    assert (found.log_likelihood - exact < BOUND * found.standard_error).all()


@pytest.mark.slow
def test_draws_at_which_a_density_overflows_have_no_weight() -> None:
    """exp(9 z) overflows in float32 at z = 10, where the Poisson density is inf - inf. 5 rows: false alarms 4e-5."""
    x = torch.tensor([0.0, 1.0, 3.0, 20.0, 5.0])

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 3.0))
        pyro.sample("x", dist.Poisson((9 * z).exp()), obs=x)

    fitted = eager(in_plate(model), in_plate(lambda x: pyro.sample("z", dist.Normal(0.1 * x.log1p() - 1, 1.0))), x)
    grid = torch.linspace(-25, 5, 30001, dtype=torch.float64)[:, None]
    each = dist.Normal(0.0, 3.0).log_prob(grid) + dist.Poisson((9 * grid).exp()).log_prob(x.double())
    exact = each.logsumexp(0) + math.log(1e-3)
    found = pv.importance(fitted, x, 4000, seed=1)
    assert ((found.log_likelihood - exact).abs() < BOUND * found.standard_error).all()


def test_laplace_has_a_triangular_factor_where_directions_are_of_very_different_widths() -> None:
    """In float32, and 1e5 times as wide. 4 rows: false alarms 3e-5."""
    x = 0.01 * torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    weights = torch.zeros(4, 50)
    weights[0], weights[1] = 1.0, 1e-3

    def model(x: Tensor) -> None:
        z = normal("z", torch.zeros(len(x), 4))
        pyro.sample("x", dist.Normal(z @ weights, 1e-3).to_event(1), obs=x)

    fitted = eager(in_plate(model), in_plate(lambda x: normal("z", torch.zeros(len(x), 4))), x)
    covariance = weights.T.double() @ weights.double() + 1e-6 * torch.eye(50, dtype=torch.float64)
    exact = dist.MultivariateNormal(torch.zeros(50, dtype=torch.float64), covariance).log_prob(x.double())
    found = pv.importance(fitted, x, 1000, proposal="laplace", seed=1)
    assert (
        (found.log_likelihood - exact).abs() < BOUND * found.standard_error + 0.05
    ).all()  # densities of -2000 in float32


@pytest.mark.slow
def test_sites_of_different_precision_keep_theirs() -> None:
    """6 rows: false alarms 4e-5."""
    x = torch.linspace(-2, 2, 6, dtype=torch.float64)[:, None]

    def model(x: Tensor) -> None:
        z, w = normal("z", torch.zeros_like(x)), normal("w", torch.zeros(len(x), 1))
        observed(x, z + torch.nn.functional.linear(w, torch.ones(1, 1)).double())

    def guide(x: Tensor) -> None:
        normal("z", 0.3 * x, 0.3)
        normal("w", 0.3 * x.float(), 0.3)

    found = pv.importance(eager(in_plate(model), in_plate(guide), x), x, 500, seed=1)
    assert ((found.log_likelihood - dist.Normal(0.0, 1.5).log_prob(x[:, 0])).abs() < BOUND * found.standard_error).all()


@pytest.mark.slow
def test_a_row_for_which_the_guide_is_broken_is_named() -> None:
    """A scale that has overflowed: nothing is said of particles. With and without that row, 3 rows: false alarms 4e-5."""
    x = torch.linspace(-1, 1, 4)[:, None]
    wide = in_plate(lambda x: normal("z", 0.3 * x, torch.where(x > 0.9, math.inf, 0.3)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = eager(plain, wide, x)
        with pytest.warns(UserWarning, match="of row 3 is undefined"):
            every = pv.importance(fitted, x, 300, seed=1)
        found = pv.importance(fitted, x[:3], 300, seed=1)
    exact = dist.Normal(0.0, math.sqrt(1.25)).log_prob(x[:3, 0]).double()
    assert found.proposal == "refined"
    assert every.log_likelihood.isnan().tolist() == [False, False, False, True]
    for one in (found.log_likelihood, every.log_likelihood[:3]):
        assert ((one - exact).abs() < BOUND * found.standard_error).all()

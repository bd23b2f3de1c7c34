"""Variational Newton steps, by which proposals of many dimensions are refined, against closed forms."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from support.comparisons import BOUND
from support.pairs import linear_gaussian, unfitted
from torch import Tensor

import pyrovae as pv
from pyrovae.criticism.coordinates import Coordinate, Coordinates
from pyrovae.criticism.newton import _at_most, _directions, _factor, _least_change, _parts, by_newton, rounds
from pyrovae.criticism.proposals import start
from pyrovae.criticism.refined import Refined, freedom
from pyrovae.pair.common import common_draws

D, N = 24, 6


def symmetric(*shape: int) -> Tensor:
    a = torch.randn(*shape, shape[-1], dtype=torch.float64)
    return (a + a.mT) / 2


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_a_linear_residual_is_found_in_as_many_directions_as_there_are_dimensions() -> None:
    a = symmetric(3, 5)
    directions, _ = _directions(5, a)
    torch.testing.assert_close(_least_change(directions @ a, directions), a)


def test_in_fewer_directions_it_is_the_least_symmetric_matrix_that_agrees_in_them() -> None:
    a = symmetric(3, 7)
    directions, _ = _directions(4, a)
    torch.testing.assert_close(directions @ directions.T, torch.eye(4, dtype=torch.float64))
    found = _least_change(directions @ a, directions)
    torch.testing.assert_close(found, found.mT)
    torch.testing.assert_close(directions @ found, directions @ a)
    # what else agrees differs by a matrix between other directions, to which the least one is orthogonal
    beside = torch.linalg.svd(directions).Vh[4:]
    torch.testing.assert_close(beside @ found @ beside.T, torch.zeros(3, 3, 3, dtype=torch.float64), atol=1e-12, rtol=0)


def test_what_no_symmetric_matrix_explains_is_taken_for_noise() -> None:
    a, turn = symmetric(1, 40), torch.randn(1, 40, 40, dtype=torch.float64)
    turn = turn - turn.mT
    directions, _ = _directions(40, a)
    assert not _least_change(directions @ turn, directions).any()
    # of independent noise, half is: with as much of it as of a signal, the gain is a half
    noisy = directions @ a + torch.randn(1, 40, 40, dtype=torch.float64) * a.std()
    share = (_least_change(noisy, directions) * a).sum() / a.square().sum()
    assert 0.4 < share < 0.6  # its standard deviation is 0.03


def test_a_factor_of_the_new_precision_halves_changes_that_would_leave_none() -> None:
    change = torch.stack([0.2 * symmetric(6), 50 * torch.eye(6, dtype=torch.float64), -40 * symmetric(6).matrix_exp()])
    factor = _factor(change)
    assert torch.equal(factor, factor.tril()) and bool((factor.diagonal(dim1=-2, dim2=-1) > 0).all())
    precision = factor.mT @ factor
    one = torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(precision[[0, 2]], (one - change)[[0, 2]])
    torch.testing.assert_close(precision[1], (1 - 50 / 64) * one)  # the first power of two below 1, and not too flat


def test_draws_without_a_density_have_no_part_in_a_step() -> None:
    residual = torch.randn(2, 5, 30, dtype=torch.float64)
    gaps = torch.cat([residual, torch.full((2, 1, 30), math.nan), torch.full((2, 1, 30), math.inf)], 1)
    for with_gaps, without in zip(_parts(gaps), _parts(residual)):
        torch.testing.assert_close(with_gaps[:, :5], without[:, :5])
    assert not _parts(gaps)[2][:, 5:].any() and not any(part.any() for part in _parts(gaps[:, 5:]))


def test_outliers_are_shortened_even_where_their_squares_overflow() -> None:
    vectors = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3e25, 4e25]])
    torch.testing.assert_close(vectors * _at_most(10.0, vectors), torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]]))


@pytest.mark.parametrize("size", [21, 60, 150, 200, 256, 1000])
def test_rounds_take_about_three_hundred_draws(size: int) -> None:
    assert all(2 <= count <= size for count in rounds(size)) and 250 < sum(rounds(size)) < 400


def test_t_draws_of_many_dimensions_have_the_density_that_is_stated() -> None:
    """Squared lengths over d follow an F distribution; false alarms 1e-4."""
    torch.manual_seed(0)
    part = Coordinate("z", (D,), (D,), None)
    scale = torch.randn(1, D, D, dtype=torch.float64).tril() + 3 * torch.eye(D, dtype=torch.float64)
    q = Refined(Coordinates((part,), 1, -1), torch.randn(1, D, dtype=torch.float64), scale)
    u = q.sample(2000)
    exact = stats.multivariate_t(q.loc[0], scale[0] @ scale[0].T, df=D / 2)
    torch.testing.assert_close(q.log_prob(u)[:, 0], torch.as_tensor(exact.logpdf(u[:, 0].numpy())))
    squared = torch.linalg.solve_triangular(scale[0], (u[:, 0] - q.loc[0]).T, upper=False).square().sum(0) / D
    assert stats.kstest(squared.numpy(), stats.f(D, D / 2).cdf).pvalue > 1e-4
    assert freedom(10) == 5.0


def test_the_posterior_of_a_linear_gaussian_pair_is_reached() -> None:
    pair, x, fitted = linear_gaussian(rows=N, latent=D, columns=40, shift=2.0, spread=0.3)
    layout = fitted.layouts[0]
    with fitted.scope():
        coordinates, mean, sd = start(fitted, {"x": x}, layout, 64)
        loc, scale, moving = by_newton(fitted, {"x": x}, layout, coordinates, mean, torch.diag_embed(sd), None)
    exact = pair.posterior(x)
    torch.testing.assert_close(loc, exact.mean, atol=1e-3, rtol=0)
    torch.testing.assert_close(scale @ scale.mT, exact.covariance_matrix.expand_as(scale), atol=1e-3, rtol=0)
    assert not moving.any()


@pytest.mark.parametrize(("shift", "spread"), [(10.0, 0.1), (1.0, 10.0)])
def test_guides_that_are_far_away_or_far_too_wide_do_no_harm(shift: float, spread: float) -> None:
    """6 rows: false alarms 4e-5."""
    pair, x, fitted = linear_gaussian(rows=N, latent=40, columns=60, shift=shift, spread=spread)
    found = pv.importance(fitted, x, 500, seed=1)
    assert ((found.log_likelihood - pair.marginal().log_prob(x)).abs() < BOUND * found.standard_error).all()
    assert found.standard_error.max() < 0.06 and found.k_hat.max() < 0.5


def test_a_normal_posterior_is_reached_from_any_distance() -> None:
    """3 rows: false alarms 2e-5. In 150 dimensions there are few rounds: their steps have to be long."""
    pair, x, fitted = linear_gaussian(rows=3, latent=150, columns=170, shift=30.0)
    found = pv.importance(fitted, x, 200, seed=1)
    assert ((found.log_likelihood - pair.marginal().log_prob(x)).abs() < BOUND * found.standard_error).all()
    assert found.standard_error.max() < 0.1


def in_plate(program: Any) -> Any:
    def inside(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            program(x)

    return inside


def test_posteriors_that_are_not_normal() -> None:
    """Poisson counts with Gamma rates, whose marginal is negative binomial. 6 rows: false alarms 4e-5."""
    torch.manual_seed(1)
    prior = dist.Gamma(f64(2.0), f64(0.5))

    def model(x: Tensor) -> None:
        z = pyro.sample("z", prior.expand([len(x), D]).to_event(1))
        pyro.sample("x", dist.Poisson(z).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Gamma((x + 2) * 3, 4.0).to_event(1))

    x = torch.poisson(prior.sample((N, D))[..., 0])
    fitted = unfitted(pv.Pair(in_plate(model), in_plate(guide)), x)
    found = pv.importance(fitted, x, 1000, seed=1)
    exact = dist.NegativeBinomial(2.0, probs=f64(1 / 1.5)).log_prob(x).sum(-1)
    assert ((found.log_likelihood - exact).abs() < BOUND * found.standard_error).all()
    assert found.standard_error.max() < 0.15 and found.k_hat.median() < 0.5


def test_each_class_has_newton_steps_of_its_own() -> None:
    """6 rows: false alarms 4e-5. The guide of each class is 10 of its own standard deviations away."""
    torch.manual_seed(2)

    def model(x: Tensor) -> None:
        y = pyro.sample("y", dist.Categorical(f64(0.3, 0.7)))
        loc = (3.5 * y[..., None] - 2.0).expand(*y.shape, D)
        z = pyro.sample("z", dist.Normal(loc.double(), 0.5).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.4).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        y = pyro.sample("y", dist.Categorical(logits=x[:, :2]), infer={"enumerate": "parallel"})
        pyro.sample("z", dist.Normal(0.5 * x + 0.2 * y[..., None], 0.1).to_event(1))

    x = 0.6 * torch.randn(N, D, dtype=torch.float64) + torch.linspace(-0.4, 0.2, N, dtype=torch.float64)[:, None]
    fitted = unfitted(pv.Pair(in_plate(model), in_plate(guide)), x)
    found = pv.importance(fitted, x, 500, seed=1)
    each = [dist.Normal(loc, math.sqrt(0.41)).log_prob(x).sum(-1) for loc in (-2.0, 1.5)]
    exact = torch.stack(each, -1).add(f64(0.3, 0.7).log()).logsumexp(-1)
    assert ((found.log_likelihood - exact).abs() < BOUND * found.standard_error).all()
    assert found.standard_error.max() < 0.1


def log_linear(scale: float) -> tuple[pv.Fit, Tensor, Tensor]:
    """Poisson counts with rates exp(z), z ~ N(0, 2^2), and a guide that is far too wide: a fit, rows, and their log p(x)."""
    torch.manual_seed(3)

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 2.0).to_event(1))
        pyro.sample("x", dist.Poisson(z.exp()).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal((x + 0.5).log(), scale).to_event(1))

    x = torch.poisson((2 * torch.randn(N, D, dtype=torch.float64)).exp())
    z = torch.linspace(-14, 14, 2001, dtype=torch.float64)[:, None, None]
    each = dist.Normal(f64(0.0), 2.0).log_prob(z) + dist.Poisson(z.exp()).log_prob(x)
    fitted = unfitted(pv.Pair(in_plate(model), in_plate(guide)), x)
    return fitted, x, (each.logsumexp(0) + math.log(28 / 2000)).sum(-1)


def test_where_newton_steps_go_astray_there_are_others() -> None:
    """With Newton's steps alone, estimates are too low by tens and hundreds of nats."""
    fitted, x, exact = log_linear(30.0)
    assert (pv.log_likelihood(fitted, x, 500, seed=1) - exact).abs().max() < 3


def test_no_row_depends_on_how_many_steps_others_take() -> None:
    fitted, x, _ = log_linear(10.0)

    def found(rows: Tensor) -> Tensor:
        with common_draws(1):
            return pv.log_likelihood(fitted, rows, 25)

    # the first takes Adam's steps at once, the second after more of Newton's
    torch.testing.assert_close(found(x[5:]), found(x[[3, 5]])[1:])

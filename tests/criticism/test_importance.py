"""Importance sampling against closed forms of linear-Gaussian pairs: log p(x), its error, posterior draws, k-hat, memory."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from arviz_stats.base import array_stats
from support.comparisons import BOUND
from support.pairs import (
    LinearGaussian,
    linear_gaussian,
    ones,
    unfitted,
)
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode

import pyrovae as pv
from pyrovae.batching import chunks as chunking
from pyrovae.criticism import importance as importance_module
from pyrovae.criticism import psis

# --- a guide that is the exact posterior --------------------------------------------------------------------------------


@pytest.mark.parametrize("particles", [1, 50])
def test_exact_posterior_has_constant_weights(particles: int) -> None:
    pair, x, _ = linear_gaussian()
    closed = pair.marginal().log_prob(x)
    weights = pv.log_weights(pv.terms(pair, {"x": x}, particles))
    assert weights.shape == (particles, len(x)) and weights.dtype == torch.float64
    assert (weights - closed).abs().max() < 1e-9
    assert closed.std() > 0.1  # the rows differ, so that a mix-up of rows would show


def test_importance_of_the_exact_posterior() -> None:
    pair, x, fitted = linear_gaussian()
    closed = pair.marginal().log_prob(x)
    found = pv.importance(fitted, x, 100, seed=0, proposal="guide")
    torch.testing.assert_close(found.log_likelihood, closed, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.elbo, closed, rtol=0, atol=1e-9)
    assert found.standard_error.max() < 1e-7
    torch.testing.assert_close(found.ess, torch.full_like(closed, 100.0), rtol=1e-12, atol=0)
    assert (found.k_hat == -math.inf).all()
    torch.testing.assert_close(pv.log_likelihood(fitted, x, 100, proposal="guide"), closed, rtol=0, atol=1e-9)


def test_float32_says_the_same() -> None:
    pair, x, _ = linear_gaussian()
    closed = pair.marginal().log_prob(x)
    pair, x = pair.float(), x.float()
    wide = LinearGaussianFloat(pair)
    found = pv.importance(unfitted(wide, x), x, 100, seed=0, proposal="guide")
    assert found.log_likelihood.dtype == torch.float64
    torch.testing.assert_close(found.log_likelihood, closed, rtol=0, atol=1e-4)
    assert (found.k_hat == -math.inf).all()  # rounding is no tail


class LinearGaussianFloat(nn.Module):
    """The same pair in float32 throughout."""

    def __init__(self, pair: LinearGaussian) -> None:
        super().__init__()
        self.pair = pair

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = z @ self.pair.weight.T + self.pair.bias
            pyro.sample("x", dist.Normal(loc, self.pair.noise).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.pair.proposal(x))


# --- a guide that is off ------------------------------------------------------------------------------------------------


def test_log_likelihood_with_a_guide_that_is_off() -> None:
    pair, x, fitted = linear_gaussian(shift=0.5, spread=2.0)
    closed = pair.marginal().log_prob(x)
    found = pv.importance(fitted, x, 20_000, seed=0, proposal="guide")
    # 4 standard errors of each of 20 rows: false alarms 20 x 6.3e-5 = 1.3e-3 (the estimate is normal at this K)
    assert ((found.log_likelihood - closed).abs() < 4 * found.standard_error).all()
    assert found.standard_error.max() < 0.02 and found.k_hat.max() < 0.5
    z_score = (found.log_likelihood - closed).mean() / found.standard_error.square().mean().div(len(x)).sqrt()
    assert abs(z_score) < BOUND


def test_elbo_is_log_likelihood_minus_kl() -> None:
    pair, x, fitted = linear_gaussian(shift=0.5, spread=2.0)
    draws = 20_000
    found = pv.importance(fitted, x, draws, seed=0, proposal="guide")
    exact, proposal = pair.posterior(x), pair.proposal(x)
    divergence = kl_divergence(proposal, exact)
    assert divergence.min() > 0.3
    torch.manual_seed(1)
    z = proposal.sample((2000,))
    spread = (exact.log_prob(z) - proposal.log_prob(z)).std(0)
    wanted = pair.marginal().log_prob(x) - divergence
    assert ((found.elbo - wanted).abs() < BOUND * spread / draws**0.5).all()  # false alarms 20 x 7e-6
    summary = found.summary()
    assert summary["elbo"] == pytest.approx(found.elbo.mean().item())
    assert summary["log_likelihood_se"] == pytest.approx((found.log_likelihood.std() / len(x) ** 0.5).item())


@pytest.mark.parametrize("draws", [50, 500])
def test_standard_error_is_the_spread_over_repetitions(draws: int) -> None:
    # One row, a thousand times over: independent repetitions of one estimate.
    pair, x, _ = linear_gaussian(shift=0.5, spread=2.0)
    x = x[:1].expand(1000, -1).contiguous()
    found = pv.importance(unfitted(pair, x), x, draws, seed=0, proposal="guide")
    ratio = found.log_likelihood.std() / found.standard_error.square().mean().sqrt()
    # sd of a standard deviation of 1,000 numbers: 2.2 %, a little more for tails: 4.5 of them and the delta method's bias
    assert 0.88 < ratio < 1.12
    # Jensen: the estimate is too low by about se^2 / 2
    bias = found.log_likelihood.mean() - pair.marginal().log_prob(x[0])
    assert abs(bias + found.standard_error.square().mean() / 2) < BOUND * found.log_likelihood.std() / 1000**0.5


def test_posterior_by_resampling() -> None:
    pair, x, _ = linear_gaussian(rows=8, shift=0.5, spread=2.0)
    fitted = unfitted(pair, x)
    draws, particles = 4000, 20_000
    z = pv.posterior(fitted, x, draws, num_particles=particles, seed=0, proposal="guide")
    assert z.shape == (draws, len(x), 2) and z.dtype == torch.float64
    exact = pair.posterior(x)
    sd = exact.covariance_matrix.diagonal(dim1=-2, dim2=-1).sqrt().expand(exact.mean.shape)
    ess = pv.importance(fitted, x, particles, seed=0, proposal="guide").ess
    # error of the resampling and of the particles resampled; 16 means, 16 variances: false alarms 32 x 7e-6
    error = (1 / draws + 1 / ess).sqrt()[:, None]
    assert ((z.mean(0) - exact.mean).abs() < BOUND * error * sd).all()
    assert ((z.var(0) / sd**2 - 1).abs() < BOUND * 2**0.5 * error).all()
    centred = z - z.mean(0)
    correlation = (centred[..., 0] * centred[..., 1]).mean(0) / z.std(0).prod(-1)
    covariance = exact.covariance_matrix.expand(len(x), 2, 2)
    assert ((correlation - covariance[:, 0, 1] / sd.prod(-1)).abs() < BOUND * error[:, 0]).all()
    # and it is not the guide that was drawn from
    assert ((pair.proposal(x).mean - exact.mean).abs() > 2 * BOUND * error * sd).all()


# --- chunks -------------------------------------------------------------------------------------------------------------


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _, x, fitted = linear_gaussian(shift=0.5, spread=2.0)
    whole = pv.importance(fitted, x, 2000, seed=0, proposal="guide")
    monkeypatch.setattr(chunking, "CHUNK_ELEMENTS", 3000)  # 85 particles at a time
    monkeypatch.setattr(importance_module, "WEIGHT_ELEMENTS", 14_000)  # of 7 rows
    pieces = pv.importance(fitted, x, 2000, seed=1, proposal="guide")
    both = (whole.standard_error**2 + pieces.standard_error**2).sqrt()
    assert ((whole.log_likelihood - pieces.log_likelihood).abs() < BOUND * both).all()  # false alarms 20 x 7e-6
    assert not torch.equal(whole.log_likelihood, pieces.log_likelihood)
    torch.testing.assert_close(pieces.ess, whole.ess, rtol=0.2, atol=0)  # about 6 of its standard deviations


@pytest.mark.parametrize("elements", [1, 7, 31, 64])
def test_chunks_of_any_size(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pair, x, fitted = linear_gaussian(rows=5)
    closed = pair.marginal().log_prob(x)
    monkeypatch.setattr(chunking, "CHUNK_ELEMENTS", elements)
    monkeypatch.setattr(importance_module, "WEIGHT_ELEMENTS", elements)
    found = pv.importance(fitted, x, 11, proposal="guide")
    torch.testing.assert_close(found.log_likelihood, closed, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.ess, torch.full_like(closed, 11.0))
    assert pv.posterior(fitted, x, 3, num_particles=20, proposal="guide").shape == (3, len(x), 2)


def test_many_runs_are_traced_and_draw_what_eager_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    _, x, fitted = linear_gaussian(rows=7, shift=0.5)
    monkeypatch.setattr(chunking, "CHUNK_ELEMENTS", 700)  # 20 particles of a row, or 4 rows of 5 particles, at a time
    monkeypatch.setattr(importance_module, "TRACE_FROM", 2)
    calls: list[int] = []
    log_weights = importance_module.log_weights
    monkeypatch.setattr(importance_module, "log_weights", lambda terms: calls.append(1) or log_weights(terms))
    for draws in (5, 85):
        found = {}
        for engine in ("eager", "traced"):
            fitted.settings["engine"] = engine
            calls.clear()
            found[engine] = (pv.log_likelihood(fitted, x, draws, seed=0, proposal="guide"), len(calls))
        torch.testing.assert_close(found["traced"][0], found["eager"][0], rtol=0, atol=1e-12)
    assert found["traced"][1] < found["eager"][1]


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


def test_memory_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunking, "CHUNK_ELEMENTS", 8000)
    monkeypatch.setattr(importance_module, "WEIGHT_ELEMENTS", 8000)
    largest = {}
    for rows, draws in ((8, 30), (8, 480), (64, 30), (64, 480)):
        pair, x, _ = linear_gaussian(rows=rows)
        fitted = unfitted(pair, x)
        with Largest() as mode:
            pv.importance(fitted, x, draws, seed=0, proposal="guide")
        largest[rows, draws] = mode.elements
    assert max(largest.values()) <= 8000, largest  # rows x particles x columns would be 154,000
    assert largest[64, 480] > 4000  # nor are the chunks needlessly small


# --- k-hat --------------------------------------------------------------------------------------------------------------


def test_k_hat_is_arviz() -> None:
    # w = exp(k E), E exponential, is Pareto with tail index k
    index = torch.tensor([0.2, 0.5, 1.0, 1.5], dtype=torch.float64)
    # 3 sqrt(2500) is an integer, which ArviZ does not round
    log_weights = index * dist.Exponential(ones()).sample((2500, 4))
    found = psis.pareto_k(log_weights)
    _, theirs = array_stats.psislw(-log_weights.T.numpy())
    torch.testing.assert_close(found, torch.from_numpy(theirs), rtol=1e-12, atol=0)
    # tail of 150 draws: sd of k about (1 + k) / sqrt(150), the prior draws it to 0.5 by 10 / 160
    assert ((found - index).abs() < BOUND * (1 + index) / 150**0.5 + 0.065).all()
    # each row alone: another row's weights, or their order, change nothing
    torch.testing.assert_close(psis.pareto_k(log_weights[:, [2, 0]].flip(0)), found[[2, 0]], rtol=1e-12, atol=0)


def test_k_hat_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The values of ArviZ 0.23, whose tail has ceil(3 sqrt(K)) weights, at the quantiles of Pareto distributions."""
    monkeypatch.setattr(psis, "FIT_ELEMENTS", 1)  # row by row
    wanted = {
        100: [0.3772698681657967, 0.6062891118970053, 0.8923632152333728],
        1000: [0.3235606438260692, 0.670657768314356, 1.1046739292502503],
        4000: [0.3123116638230461, 0.6843220218846074, 1.1492715840633752],
    }
    for draws, values in wanted.items():
        quantiles = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
        log_weights = -torch.log1p(-quantiles)[:, None] * torch.tensor([0.3, 0.7, 1.2], dtype=torch.float64)
        assert psis.pareto_k(log_weights).tolist() == pytest.approx(values, rel=1e-10)


def test_k_hat_of_few_values_and_few_weights_that_count() -> None:
    values = torch.arange(3.0, dtype=torch.float64).repeat_interleave(100)
    few = torch.cat([torch.tensor([10.0, 9.0, 8.0]), torch.full((297,), -1000.0)]).double()
    broken = torch.cat([torch.randn(299), torch.tensor([math.nan])]).double()
    assert (psis.pareto_k(torch.stack([values, few, broken], 1)) == math.inf).all()


@pytest.mark.parametrize(("spread", "low", "high"), [(0.1, 0.6, 1.3), (0.5, 0.2, 0.75), (2.0, -math.inf, 0.35)])
def test_k_hat_of_a_narrow_guide(spread: float, low: float, high: float) -> None:
    # q = N(m, c S): log w = const + (1 - c) u / 2, u chi-square, so the tail index is 1 - c; bounded weights for c > 1.
    # k-hat of 2,000 draws has sd of about 0.15, a median of 30 rows 0.035; bounds of 6 sd and the slowness of the limit.
    _, x, fitted = linear_gaussian(rows=30, latent=1, spread=spread)
    k_hat = pv.importance(fitted, x, 2000, seed=0, proposal="guide").k_hat
    assert low < k_hat.median() < high


def test_k_hat_of_equal_and_of_few_weights() -> None:
    assert (psis.pareto_k(torch.full((100, 3), -83.0)) == -math.inf).all()
    assert torch.isnan(psis.pareto_k(torch.randn(24, 3))).all()


def test_k_hat_of_weights_that_are_zero() -> None:
    # -inf among the log-weights is a draw outside the support; it must not make the rest look perfect.
    log_weights = torch.distributions.Exponential(ones()).sample((2000, 1))
    log_weights[::3] = -math.inf
    alone = psis.pareto_k(log_weights[torch.isfinite(log_weights[:, 0])])
    found = psis.pareto_k(log_weights)
    assert alone > 0.7
    assert found > 0.7


# --- memory -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_memory_counts_hidden_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 columns, 500 hidden units: a chunk is as large as its hidden layer, not as its data."""
    monkeypatch.setattr(chunking, "CHUNK_ELEMENTS", 20_000)
    monkeypatch.setattr(importance_module, "WEIGHT_ELEMENTS", 20_000)
    monkeypatch.setattr(psis, "FIT_ELEMENTS", 20_000)
    wide = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.mlp(2, pv.families.Normal(2), hidden=(500,)),
        pv.mlp(2, pv.families.Normal(2), hidden=(500,)),
    )
    x = torch.randn(90, 2)
    assert chunking.row_elements(wide, {"x": x}) == 500
    fitted = unfitted(wide, x)
    with Largest() as mode:
        pv.importance(fitted, x, 100, seed=0, proposal="guide")
        pv.posterior(fitted, x, 3, num_particles=100, proposal="guide")
    assert mode.elements <= 50_000  # the chunk's 40 rows or one row's 100 particles, 500 units each

"""What is known in closed form must come out: linear-Gaussian pairs, a conjugate mean, probabilistic PCA."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.pairs import (
    LinearGaussian,
    fit_global_mean,
    normal,
    ones,
    pca_comparison,
    unfitted,
    value_and_gradients,
    weight,
    zeros,
)
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode

import pyrovae as pv
from pyrovae.batching import chunks as chunking
from pyrovae.criticism import importance as importance_module
from pyrovae.criticism import psis

# Bounds are given in standard errors of the estimate. 4.5 of them: false alarms 7e-6 a number compared.
BOUND = 4.5


def linear_gaussian(rows: int = 20, **options: Any) -> tuple[LinearGaussian, Tensor, pv.Fit]:
    torch.manual_seed(0)
    pair = LinearGaussian(**options)
    x = pair.marginal().sample((rows,))
    return pair, x, unfitted(pair, x)


# --- the exact posterior ---------------------------------------------------------------------------------------------


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
    found = pv.importance(fitted, x, 100, seed=0)
    torch.testing.assert_close(found.log_likelihood, closed, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.elbo, closed, rtol=0, atol=1e-9)
    assert found.standard_error.max() < 1e-7
    torch.testing.assert_close(found.ess, torch.full_like(closed, 100.0), rtol=1e-12, atol=0)
    assert (found.k_hat == -math.inf).all()
    torch.testing.assert_close(pv.log_likelihood(fitted, x, 100), closed, rtol=0, atol=1e-9)


def test_float32_says_the_same() -> None:
    pair, x, _ = linear_gaussian()
    closed = pair.marginal().log_prob(x)
    pair, x = pair.float(), x.float()
    wide = LinearGaussianFloat(pair)
    found = pv.importance(unfitted(wide, x), x, 100, seed=0)
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


# --- a guide that is off ---------------------------------------------------------------------------------------------


def test_log_likelihood_with_a_guide_that_is_off() -> None:
    pair, x, fitted = linear_gaussian(shift=0.5, spread=2.0)
    closed = pair.marginal().log_prob(x)
    found = pv.importance(fitted, x, 20_000, seed=0)
    # 4 standard errors of each of 20 rows: false alarms 20 x 6.3e-5 = 1.3e-3 (the estimate is normal at this K)
    assert ((found.log_likelihood - closed).abs() < 4 * found.standard_error).all()
    assert found.standard_error.max() < 0.02 and found.k_hat.max() < 0.5
    z_score = (found.log_likelihood - closed).mean() / found.standard_error.square().mean().div(len(x)).sqrt()
    assert abs(z_score) < BOUND


def test_elbo_is_log_likelihood_minus_kl() -> None:
    pair, x, fitted = linear_gaussian(shift=0.5, spread=2.0)
    draws = 20_000
    found = pv.importance(fitted, x, draws, seed=0)
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
    found = pv.importance(unfitted(pair, x), x, draws, seed=0)
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
    z = pv.posterior(fitted, x, draws, num_particles=particles, seed=0)
    assert z.shape == (draws, len(x), 2) and z.dtype == torch.float64
    exact = pair.posterior(x)
    sd = exact.covariance_matrix.diagonal(dim1=-2, dim2=-1).sqrt().expand(exact.mean.shape)
    ess = pv.importance(fitted, x, particles, seed=0).ess
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


# --- chunks ----------------------------------------------------------------------------------------------------------


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _, x, fitted = linear_gaussian(shift=0.5, spread=2.0)
    whole = pv.importance(fitted, x, 2000, seed=0)
    monkeypatch.setattr(chunking, "CHUNK_ELEMENTS", 3000)  # 85 particles at a time
    monkeypatch.setattr(importance_module, "WEIGHT_ELEMENTS", 14_000)  # of 7 rows
    pieces = pv.importance(fitted, x, 2000, seed=1)
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
    found = pv.importance(fitted, x, 11)
    torch.testing.assert_close(found.log_likelihood, closed, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.ess, torch.full_like(closed, 11.0))
    assert pv.posterior(fitted, x, 3, num_particles=10).shape == (3, len(x), 2)


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
            found[engine] = (pv.log_likelihood(fitted, x, draws, seed=0), len(calls))
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
            pv.importance(fitted, x, draws, seed=0)
        largest[rows, draws] = mode.elements
    assert max(largest.values()) <= 8000, largest  # rows x particles x columns would be 154,000
    assert largest[64, 480] > 4000  # nor are the chunks needlessly small


# --- k-hat -----------------------------------------------------------------------------------------------------------


def test_k_hat_is_arviz() -> None:
    # w = exp(k E), E exponential, is Pareto with tail index k
    index = torch.tensor([0.2, 0.5, 1.0, 1.5], dtype=torch.float64)
    log_weights = index * dist.Exponential(ones()).sample((4000, 4))
    found = psis.pareto_k(log_weights)
    for row in range(4):
        _, alone = psis.arviz.psislw(log_weights[:, row].numpy())
        assert found[row].item() == pytest.approx(float(alone), rel=1e-12)
    # tail of 3 sqrt(4000) = 190 draws: sd of k about (1 + k) / sqrt(190), the prior draws it to 0.5 by 10 / 200
    assert ((found - index).abs() < BOUND * (1 + index) / 190**0.5 + 0.05).all()
    # each row alone: another row's weights, or their order, change nothing
    torch.testing.assert_close(psis.pareto_k(log_weights[:, [2, 0]].flip(0)), found[[2, 0]], rtol=1e-12, atol=0)


@pytest.mark.parametrize(("spread", "low", "high"), [(0.1, 0.6, 1.3), (0.5, 0.2, 0.75), (2.0, -math.inf, 0.35)])
def test_k_hat_of_a_narrow_guide(spread: float, low: float, high: float) -> None:
    # q = N(m, c S): log w = const + (1 - c) u / 2, u chi-square, so the tail index is 1 - c; bounded weights for c > 1.
    # k-hat of 2,000 draws has sd of about 0.15, a median of 30 rows 0.035; bounds of 6 sd and the slowness of the limit.
    _, x, fitted = linear_gaussian(rows=30, latent=1, spread=spread)
    k_hat = pv.importance(fitted, x, 2000, seed=0).k_hat
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


# --- gradients -------------------------------------------------------------------------------------------------------


class Amortised(nn.Module):
    """z ~ N(0, I), x | z ~ N(W z + b, 0.7^2 I), q(z | x) = N(x A + c, diag s^2): its ELBO is known."""

    def __init__(self, latent: int = 2, columns: int = 3) -> None:
        super().__init__()
        self.weight, self.bias = weight(columns, latent), weight(columns)
        self.encode, self.offset, self.log_scale = weight(columns, latent), weight(latent), weight(latent)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(zeros(2), 0.0))
            pyro.sample("x", normal(z @ self.weight.T + self.bias, math.log(0.7)), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(x @ self.encode + self.offset, self.log_scale))

    def objective(self, x: Tensor, kl_weight: float) -> Tensor:
        loc, scale = x @ self.encode + self.offset, self.log_scale.exp()
        fit = normal(loc @ self.weight.T + self.bias, math.log(0.7)).log_prob(x)
        fit = fit - (self.weight**2 @ scale**2).sum() / (2 * 0.7**2)
        divergence = 0.5 * (loc**2 + scale**2 - 1 - 2 * self.log_scale).sum(-1)
        return (fit - kl_weight * divergence).sum()


class Switches(nn.Module):
    """Two dependent Bernoulli sites a row and a global one, all drawn: 8 values to sum over."""

    def __init__(self) -> None:
        super().__init__()
        self.prior, self.logit, self.encode = weight(3), weight(), weight(3, 2)
        self.loc, self.coupling = weight(3, 3), weight()

    def likelihood(self, g: Tensor, a: Tensor, b: Tensor) -> Any:
        states = torch.stack(torch.broadcast_tensors(g, a, b), -1)
        return normal(states @ self.loc, 0.0)

    def model(self, x: Tensor) -> None:
        g = pyro.sample("g", dist.Bernoulli(logits=self.prior[0]))
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(logits=self.prior[1]))
            b = pyro.sample("b", dist.Bernoulli(logits=self.prior[2] + self.coupling * a))
            pyro.sample("x", self.likelihood(g, a, b), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.sample("g", dist.Bernoulli(logits=self.logit))
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(logits=x @ self.encode[:, 0]))
            pyro.sample("b", dist.Bernoulli(logits=x @ self.encode[:, 1] + self.coupling * a))

    def objective(self, x: Tensor, kl_weight: float, share: float) -> Tensor:
        def log_prob(logits: Tensor, value: Tensor) -> Tensor:
            return dist.Bernoulli(logits=logits).log_prob(value)

        total = zeros()
        values = [torch.tensor(v, dtype=torch.float64) for v in (0.0, 1.0)]
        for g in values:
            log_q = log_prob(self.logit, g)
            rows = zeros()
            for a in values:
                for b in values:
                    log_a = log_prob(x @ self.encode[:, 0], a.expand(len(x)))
                    log_b = log_prob(x @ self.encode[:, 1] + self.coupling * a, b.expand(len(x)))
                    log_p = log_prob(self.prior[1], a) + log_prob(self.prior[2] + self.coupling * a, b)
                    fit = self.likelihood(g, a, b).log_prob(x)
                    rows = rows + ((log_a + log_b).exp() * (fit + kl_weight * (log_p - log_a - log_b))).sum()
            total = total + log_q.exp() * (share * rows + kl_weight * (log_prob(self.prior[0], g) - log_q))
        return total


def mean_gradient(
    pair: nn.Module, x: Tensor, exact: Tensor, draws: int, **options: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """The exact value and gradient, their mean over independent draws, and its standard error."""
    kl, particles = options.pop("kl", None), options.pop("particles", 1)
    loss = pv.Trace_ELBO(particles, kl=kl)
    layout = pv.check_pair(pair, x)
    found = [value_and_gradients(loss(pair, {"x": x}, layout=layout, **options).objective, pair) for _ in range(draws)]
    stacked = {name: torch.stack([f[name] for f in found]) for name in found[0]}
    means = {name: value.mean(0) for name, value in stacked.items()}
    errors = {name: value.std(0) / draws**0.5 for name, value in stacked.items()}
    return value_and_gradients(exact, pair), means, errors


def assert_unbiased(exact: dict[str, Tensor], mean: dict[str, Tensor], error: dict[str, Tensor]) -> None:
    for name, wanted in exact.items():
        assert ((mean[name] - wanted).abs() <= BOUND * error[name] + 1e-9).all(), name
    # sharp enough to see a term that is missing
    sharp = {name: (error[name].max() / wanted.abs().max()).item() for name, wanted in exact.items()}
    assert max(sharp.values()) < 0.1, sharp


@pytest.mark.parametrize("kl", [None, "analytic"])
@pytest.mark.parametrize("kl_weight", [1.0, 0.5])
def test_gradient_is_unbiased(kl: str | None, kl_weight: float) -> None:
    # 20 numbers: false alarms 1.4e-4
    pair, x = Amortised(), torch.randn(6, 3, dtype=torch.float64)
    exact = 5 * pair.objective(x, kl_weight)
    options: dict[str, Any] = {"kl": kl, "kl_weight": kl_weight, "num_rows": 30, "particles": 20}
    assert_unbiased(*mean_gradient(pair, x, exact, 100, **options))


@pytest.mark.parametrize("kl_weight", [1.0, 0.5])
def test_score_function_gradient_is_unbiased(kl_weight: float) -> None:
    # 21 numbers: false alarms 1.5e-4
    torch.manual_seed(2)  # weights whose gradients are not near 0
    pair, x = Switches(), 2 * torch.randn(4, 3, dtype=torch.float64)
    exact = pair.objective(x, kl_weight, share=3.0)
    options: dict[str, Any] = {"kl_weight": kl_weight, "num_rows": 12, "particles": 4000}
    assert_unbiased(*mean_gradient(pair, x, exact, 100, **options))


# --- fits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("auto", [False, True], ids=["by hand", "AutoNormal"])
def test_conjugate_global_mean(auto: bool) -> None:
    # Seeded. Over seeds the ratio has sd 1 % (optimiser's noise): false alarms 1e-6. Without N/B it is 3.2.
    ratio, shift = fit_global_mean(auto)
    assert abs(ratio - 1) < 0.05
    assert abs(shift) < 0.5


def test_linear_vae_is_probabilistic_pca() -> None:
    found = pca_comparison(2, num_samples=500)
    assert abs(found["difference"]) < 0.1
    assert abs(found["closed_form_minus_importance"]) < 0.02
    assert found["importance_error"] < 0.02 / BOUND
    # the bound means something: a model without z is far away
    assert found["pca_score"] > -5 and found["k_hat_above_0.7"] == 0.0


# --- generate, encode, reconstruct -----------------------------------------------------------------------------------


def assert_moments(x: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Of normal draws (S, D); D + D (D + 1) / 2 numbers at 7e-6 false alarms each."""
    count, variance = len(x), covariance.diagonal()
    assert ((x.mean(0) - mean).abs() < BOUND * (variance / count).sqrt()).all()
    error = ((covariance**2 + variance[:, None] * variance) / count).sqrt()
    assert ((x.T.cov() - covariance).abs() < BOUND * error).all()


def test_generated_moments() -> None:
    pair, _, fitted = linear_gaussian()
    marginal = pair.marginal()
    x = pv.generate(fitted, 20_000, seed=0)
    assert x.shape == (20_000, 5)
    assert_moments(x, marginal.mean, marginal.covariance_matrix)
    joint = pv.simulate(fitted, 20_000, seed=0)
    assert set(joint) == {"z", "x"} and torch.equal(joint["x"], x)
    assert_moments(joint["z"], zeros(2), torch.eye(2, dtype=torch.float64))
    noise = joint["x"] - joint["z"] @ pair.weight.T - pair.bias  # x belongs to the z beside it
    assert_moments(noise, zeros(5), 0.7**2 * torch.eye(5, dtype=torch.float64))
    means = pv.generate(fitted, 20_000, mean=True, seed=0)
    torch.testing.assert_close(means, joint["z"] @ pair.weight.T + pair.bias)


def test_encode_and_reconstruct() -> None:
    pair, x, fitted = linear_gaussian(shift=0.5, spread=2.0)
    proposal = pair.proposal(x)
    torch.testing.assert_close(pv.encode(fitted, x), proposal.mean, rtol=0, atol=1e-12)
    draws = 2000
    found = pv.reconstruct(fitted, x, num_samples=draws, seed=1)
    wanted = proposal.mean @ pair.weight.T + pair.bias
    spread = (pair.weight @ proposal.covariance_matrix @ pair.weight.T).diagonal(dim1=-2, dim2=-1).sqrt()
    assert ((found - wanted).abs() < BOUND * spread / draws**0.5).all()  # 100 numbers: false alarms 7e-4
    torch.testing.assert_close(pv.decode(fitted, proposal.mean), wanted)


class HeavyTail(nn.Module):
    """z ~ N(0, 1), x | z log-normal, whose mean exp(z + s^2 / 2) overflows where s, a power of |z|, is large."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(zeros(), ones()))
            pyro.sample("x", dist.LogNormal(z, 0.5 * ones() + z.abs() ** 3), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.log(), 1e-9 * ones()))


def test_a_row_without_a_mean_leaves_the_others_theirs() -> None:
    far = torch.tensor([1.0, 1.0, 1e4], dtype=torch.float64)  # z = 9, s = 782: its mean is inf
    fitted = unfitted(HeavyTail(), far[:2])
    found = pv.reconstruct(fitted, far, num_samples=1)
    torch.testing.assert_close(found[:2], torch.full((2,), math.exp(0.125), dtype=torch.float64))
    assert pv.decode(fitted, far.log())[:2].tolist() == pytest.approx([math.exp(0.125)] * 2)


class Undecided(nn.Module):
    """The guide draws z, and says of most z that y = 0 is a little more probable, of the others that y = 1 is sure."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(zeros())

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.tensor([0.5, 0.5], dtype=torch.float64)))
            z = pyro.sample("z", dist.Normal(y + self.loc, ones()))
            pyro.sample("x", dist.Normal(z, ones()), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x, ones()))
            one = torch.where(z > 0.25, 0.99, 0.45)
            pyro.sample("y", dist.Categorical(torch.stack([1 - one, one], -1)), infer={"enumerate": "parallel"})


def test_a_code_that_is_a_class_is_the_most_probable_one_of_all_draws() -> None:
    # P(z > 0.25) = 0.40: q(y = 1) = 0.67, though y = 0 is the more probable class in 60 draws of 100
    x = torch.zeros(4, dtype=torch.float64)
    assert pv.encode(unfitted(Undecided(), x), x, site="y", num_samples=500).tolist() == [1] * 4


class Thresholded(LinearGaussian):
    """What is observed is a function of x, which hides whether x was given."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(zeros(2), 0.0))
            pyro.sample("x", dist.Bernoulli(logits=z @ self.weight.T).to_event(1), obs=(x > 0).double())


def test_a_function_of_the_data_is_not_taken_for_a_draw() -> None:
    fitted = unfitted(Thresholded(), torch.randn(10, 5, dtype=torch.float64))
    for mean in (False, True):
        with pytest.raises(pv.PairError, match="observes a function of what is to be drawn"):
            pv.generate(fitted, 3, mean=mean)


class Reader(LinearGaussian):
    """A model that reads the data it is to generate: its noise grows with |x|."""

    def model(self, x: Tensor) -> None:
        scale = x.abs().mean().log()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(zeros(2), 0.0))
            pyro.sample("x", normal(z @ self.weight.T, scale), obs=x)


class BernoulliReader(Reader):
    """The same with a discrete likelihood, whose sampler refuses NaN by itself."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(zeros(2), 0.0))
            logits = z @ self.weight.T + x.mean()
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


@pytest.mark.parametrize("kind", [Reader, BernoulliReader])
@pytest.mark.parametrize("ask", [pv.generate, pv.simulate])
def test_model_that_reads_its_data(kind: Callable[[], Any], ask: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    x = torch.randn(10, 5, dtype=torch.float64).gt(0).double()
    fitted = unfitted(kind(), x)
    with pytest.raises(pv.PairError, match="argument"):
        ask(fitted, 3)


class Regression(nn.Module):
    """p(x | c) = N(3 c, 0.1^2), with z of no use."""

    def model(self, x: Tensor, c: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(zeros(), ones()))
            pyro.sample("x", dist.Normal(3 * c, 0.1 * ones()), obs=x)

    def guide(self, x: Tensor, c: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(zeros(), ones()))


def test_conditional_generation() -> None:
    batch = {"x": torch.randn(10, dtype=torch.float64), "c": torch.randn(10, dtype=torch.float64)}
    fitted = unfitted(Regression(), batch)
    c = torch.linspace(-2, 2, 1000, dtype=torch.float64)
    x = pv.generate(fitted, 1000, given={"c": c}, seed=0)
    residual = x - 3 * c  # of each row its own c
    assert residual.abs().max() < 0.1 * 6 and abs(residual.std() - 0.1) < BOUND * 0.1 / 2000**0.5
    with pytest.raises(pv.PairError, match="argument"):
        pv.generate(fitted, 3)
    with pytest.raises(pv.DataError, match="num=3"):
        pv.generate(fitted, 3, given={"c": c})


class GlobalShift(nn.Module):
    """theta ~ N(0, 10^2) for all rows, guide N(5, 0.01^2); z and x of a row stand about theta."""

    def model(self, x: Tensor) -> None:
        theta = pyro.sample("theta", dist.Normal(zeros(), 10 * ones()))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(zeros(), 0.1 * ones()))
            pyro.sample("x", dist.Normal(theta + z, 0.1 * ones()), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.sample("theta", dist.Normal(5 * ones(), 0.01 * ones()))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(zeros(), 0.1 * ones()))


def test_global_latents_come_from_the_guide() -> None:
    # Under the prior a draw of theta is within 0.1 of 5 once in 140 times, 5 times never; under the guide always (10 sd).
    fitted = unfitted(GlobalShift(), torch.randn(10, dtype=torch.float64))
    for seed in range(5):
        joint = pv.simulate(fitted, 400, seed=seed)
        assert abs(joint["theta"] - 5) < 0.1
        assert abs(pv.generate(fitted, 400, seed=seed).mean() - 5) < 0.1 + BOUND * 0.02**0.5 / 20


def test_decode_draws_global_latents_from_the_guide() -> None:
    fitted = unfitted(GlobalShift(), torch.randn(10, dtype=torch.float64))
    assert (pv.decode(fitted, torch.zeros(4, dtype=torch.float64)) - 5).abs().max() < 0.1


def test_predictive_density_with_global_latents() -> None:
    # mean weight of a row = its density with theta ~ q integrated out: N(5, 0.01^2 + 2 x 0.1^2)
    x = torch.tensor([4.9, 5.0, 5.2], dtype=torch.float64)
    fitted = unfitted(GlobalShift(), x)
    found = pv.importance(fitted, x, 20_000, seed=0)
    closed = dist.Normal(5.0, (0.01**2 + 2 * 0.1**2) ** 0.5).log_prob(x)
    assert ((found.log_likelihood - closed).abs() < BOUND * found.standard_error).all()


def test_what_is_derived_from_a_given_argument_stays_given() -> None:
    """obs=y * 1.0: another tensor than the argument, yet made of it alone."""

    class Derived(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def model(self, x: Tensor, y: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                y = pyro.sample("y", dist.Normal(z, 1.0), obs=y * 1.0)
                pyro.sample("x", dist.Normal(10 * y, self.scale), obs=x)

        def guide(self, x: Tensor, y: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(0.0, self.scale))

    data = {"x": torch.randn(20), "y": torch.randn(20)}
    fitted = pv.fit(Derived(), data, epochs=1, batch_size=20, learning_rate=1e-6)
    made = pv.generate(fitted, 500, given={"y": torch.full((500,), 3.0)}, site="x", seed=0)
    assert abs(made.mean().item() - 30.0) < 0.25  # 5 standard errors


def test_marks_of_the_model_are_kept() -> None:
    """objective_only on a site that the guide draws: the objective counts it, the evaluator's fold does not."""

    class Marked(nn.Module):
        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(0.0, 1.0), infer={"objective_only": True})
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(3.0, 1.0))

    x = torch.randn(5)
    found = pv.terms(Marked(), {"x": x})
    assert torch.allclose(pv.log_weights(found)[0], dist.Normal(0.0, 1.0).log_prob(x))


def test_deterministic_sites_are_no_observations() -> None:
    class Noted(nn.Module):
        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.deterministic("twice", 2 * z)
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(0.0, 1.0))

    assert [s.name for s in pv.check_pair(Noted(), torch.randn(4)).sites] == ["z", "x"]


def test_memory_counts_hidden_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 columns, 500 hidden units: a chunk is as large as its hidden layer, not as its data."""
    monkeypatch.setattr(chunking, "CHUNK_ELEMENTS", 20_000)
    monkeypatch.setattr(importance_module, "WEIGHT_ELEMENTS", 20_000)
    wide = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.mlp(2, pv.families.Normal(2), hidden=(500,)),
        pv.mlp(2, pv.families.Normal(2), hidden=(500,)),
    )
    x = torch.randn(200, 2)
    assert chunking.row_elements(wide, {"x": x}) == 500
    fitted = unfitted(wide, x)
    with Largest() as mode:
        pv.importance(fitted, x, 100, seed=0)
        pv.posterior(fitted, x, 3, num_particles=100)
    assert mode.elements <= 50_000  # the chunk's 40 rows or one row's 100 particles, 500 units each


def test_a_class_that_is_needed_must_be_given() -> None:
    """An integer stand-in would pass for class 0."""

    class OfClass(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(3))

        def model(self, x: Tensor, c: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(self.loc[c] + z, 1.0), obs=x)

        def guide(self, x: Tensor, c: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.loc[c], 1.0))

    fitted = pv.fit(OfClass(), {"x": torch.randn(30), "c": torch.arange(30) % 3}, epochs=1, batch_size=30)
    with pytest.raises(pv.DataError, match="'c', which no site observes"):
        pv.generate(fitted, 5)
    assert pv.generate(fitted, 6, given={"c": torch.arange(6) % 3}).shape == (6,)
    with pytest.raises(pv.DataError, match="int64"):
        pv.generate(fitted, 6, given={"c": torch.zeros(6)})


def test_two_halves_of_one_tensor_are_two_arguments() -> None:
    class Both(nn.Module):
        def model(self, x: Tensor, y: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)
                pyro.sample("y", dist.Normal(z, 1.0), obs=y)

        def guide(self, x: Tensor, y: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(0.0, 1.0))

    whole = torch.randn(2, 10)
    layout = pv.check_pair(Both(), {"x": whole[0], "y": whole[1]})
    assert {s.name: s.argument for s in layout.sites if s.role == "observed"} == {"x": "x", "y": "y"}

"""Likelihoods after linear corruptions, block by block, against the dense normal that they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pyro.distributions as dist
import pytest
import torch
from support.pairs import LinearGaussian, unfitted
from torch import Tensor

import pyrovae as pv
from pyrovae.recover.linear import LinearMap, linear_guess
from pyrovae.recover.seen import SeenLinearly

NAN = float("nan")
D = 12
torch.manual_seed(3)
DENSE = torch.randn(5, D, dtype=torch.float64)
STACKED = torch.block_diag(DENSE[:2, :5], DENSE[:1, :3], DENSE[:3, :4])  # blocks of 2, 1 and 3 elements
UNEVEN = torch.block_diag(DENSE[:5, :7], *torch.ones(5, 1, 1, dtype=torch.float64))
SPARSE = torch.zeros(4, D, dtype=torch.float64)
SPARSE[0, 2] = SPARSE[2, 7] = SPARSE[2, 8] = 1.5  # rows 1 and 3 show noise alone


def times(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: x @ matrix.T.to(x)


def chain(x: Tensor) -> Tensor:
    """Means of neighbours: each shares an element with the next one."""
    return (x[..., 1:] + x[..., :-1]) / 2


# what the function is, the sd of the noise, and the shape of `parts`
MAPS = {
    "one block": (times(DENSE), 0.3, (1, 5, 12)),
    "three blocks": (times(STACKED), 0.0, (3, 3, 5)),
    "blocks of very different sizes are one": (times(UNEVEN), 0.1, (1, 10, 12)),
    "sums of disjoint triples": (lambda x: x.unflatten(-1, (4, 3)).sum(-1), 0.0, (4, 1, 3)),
    "a chain": (chain, 0.0, (1, 11, 12)),
    "some show noise alone": (times(SPARSE), 0.2, (4, 1, 2)),
    "noise of some": (chain, torch.linspace(0, 1, 11), (1, 11, 12)),
}


def likelihood(kind: str) -> tuple[Tensor, Tensor, dist.Normal]:
    """Of 3 particles and 4 rows; scales are shared by all, by all particles of a row, by all rows of a particle, or by none."""
    torch.manual_seed(4)
    loc = torch.randn(3, 4, D, dtype=torch.float64, requires_grad=True)
    shape = {"all": (), "row": (4, D), "particle": (3, 1, 1), "none": (3, 4, D)}[kind]
    raw = torch.rand(shape, dtype=torch.float64, requires_grad=True)
    return loc, raw, dist.Normal(loc, 0.5 + raw).to_event(1)


def dense(corruption: pv.corruptions.Corruption, fn: dist.Normal, there: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A, and the mean and covariance of what is there, for one particle and row."""
    a = corruption.function(torch.eye(D, dtype=torch.float64)).T[there]
    sd = torch.as_tensor(corruption.sd, dtype=torch.float64).expand(len(there))[there]
    return a, a @ fn.mean, a @ torch.diag(fn.variance) @ a.T + torch.diag(sd.square())


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("kind", ["all", "row", "particle", "none"])
@pytest.mark.parametrize("name", MAPS)
def test_density_gradient_and_posterior_mean_are_those_of_the_dense_normal(name: str, kind: str, gaps: bool) -> None:
    function, sd, parts = MAPS[name]
    corruption = pv.corruptions.Corruption(function, sd, linear=True)
    loc, raw, fn = likelihood(kind)
    seen = corruption(fn.sample()[0])
    if gaps:
        seen[0, 1:3] = seen[2, 0] = NAN
    linear = LinearMap.of(corruption, torch.Size([D]), seen)
    assert linear.parts.shape == parts and linear.complete is not gaps
    found = SeenLinearly(fn, corruption, seen.shape[1:], linear)
    log_p = found.log_prob(seen)
    drawn, mean = found.given(seen)
    each, middle = torch.zeros(3, 4, dtype=torch.float64), torch.zeros(3, 4, D, dtype=torch.float64)
    for n in range(4):
        there = ~seen[n].isnan()
        for k in range(3):
            one = dist.Normal(fn.mean[k, n], fn.stddev[k, n])
            a, at, covariance = dense(corruption, one, there)
            normal = torch.distributions.MultivariateNormal(at, covariance)
            each[k, n] = normal.log_prob(seen[n, there])
            middle[k, n] = one.mean + one.variance * (a.T @ torch.linalg.solve(covariance, seen[n, there] - at))
    torch.testing.assert_close(log_p, each, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(mean, middle, rtol=1e-7, atol=1e-7)
    ours, theirs = (torch.autograd.grad(value.sum(), [loc, raw]) for value in (log_p, each))
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)
    if isinstance(sd, float) and sd == 0:  # a draw agrees with all that was seen
        torch.testing.assert_close(function(drawn), torch.where(seen.isnan(), function(drawn), seen.expand(3, -1, -1)))
    assert (drawn - mean).abs().max() > 1e-2


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("name", MAPS)
def test_the_first_guess_is_the_mean_of_a_normal_with_the_covariance_of_examples(name: str, gaps: bool) -> None:
    function, sd, _ = MAPS[name]
    torch.manual_seed(5)
    examples, variance = torch.randn(7, D, dtype=torch.float64), torch.rand(D, dtype=torch.float64) + 0.1
    seen = function(torch.randn(4, D, dtype=torch.float64))
    if gaps:
        seen[0, 1:3] = seen[2, 0] = NAN
    corruption = pv.corruptions.Corruption(function, sd, linear=True)
    found = linear_guess(LinearMap.of(corruption, torch.Size([D]), seen), examples, variance, seen)
    mean, prior = examples.mean(0), examples.T.cov(correction=0) + torch.diag(variance)
    for n in range(4):
        there = ~seen[n].isnan()
        a = function(torch.eye(D, dtype=torch.float64)).T[there]
        noise = torch.as_tensor(sd, dtype=torch.float64).expand(len(there))[there].square()
        gain = torch.linalg.solve(a @ prior @ a.T + torch.diag(noise), a @ prior).T
        torch.testing.assert_close(found[n], mean + gain @ (seen[n, there] - a @ mean), rtol=1e-7, atol=1e-7)


def test_what_always_shows_the_same_says_nothing() -> None:
    """A mask by multiplication, and entries that the function itself leaves out."""
    shown = torch.tensor([1.0, 0.0, 2.0])
    fn = dist.Normal(torch.tensor([[1.0, -1.0, 3.0]]), 0.5).to_event(1)
    for function, elementwise in ((lambda x: shown * x, True), (lambda x: shown / (shown > 0) * x, False)):
        corruption = pv.corruptions.Corruption(function, linear=True, elementwise=elementwise)
        seen = corruption(torch.tensor([[0.7, 5.0, 2.0]]))
        found = SeenLinearly(fn, corruption, torch.Size([3]), LinearMap.of(corruption, torch.Size([3]), seen))
        wanted = dist.Normal(torch.tensor([1.0, 6.0]), torch.tensor([0.5, 1.0])).log_prob(torch.tensor([0.7, 4.0]))
        torch.testing.assert_close(found.log_prob(seen), wanted.sum()[None])
        torch.testing.assert_close(found.given(seen)[1], torch.tensor([[0.7, -1.0, 2.0]]))


def test_functions_of_one_batch_dimension_and_one_dtype_will_do() -> None:
    kernel = torch.full((1, 1, 2, 2), 0.25)  # float32, of which conv2d is asked with four dimensions
    linear = pv.corruptions.Corruption(lambda x: torch.nn.functional.conv2d(x, kernel, stride=2), 0.1, linear=True)
    squared = pv.corruptions.Corruption(lambda x: torch.nn.functional.conv2d(x, kernel, stride=2).square(), 0.1)
    family, q = pv.families.Normal((1, 4, 4)), pv.families.Normal(1)
    encoder = pv.Conditional(pv.nets.ConvEncoder((1, 4, 4), q.param_shape, channels=(2,)), q)
    vae = pv.VAE(pv.priors.StandardNormal(1), pv.mlp(1, family, hidden=(3,)), encoder)
    x = torch.rand(4, 1, 4, 4)
    fitted = pv.fit(vae, x, epochs=1, engine="eager", progress=False)
    for corruption in (linear, squared):
        found = pv.restore(fitted, corruption(x), corruption, 1, num_particles=20, proposal="guide", seed=0)
        assert found.exact and found.draws.shape == (1, 4, 1, 4, 4)


def test_large_terms_that_cancel_are_linear_in_float32_too() -> None:
    """Sums that are nothing but rounding, of terms of 100,000, as where pixels of 255 meet filters whose entries sum to 0."""
    torch.manual_seed(0)
    probe = torch.arange(1.0, 2001, dtype=torch.float64).cos()
    matrix = 1000 * torch.randn(50, 2000, dtype=torch.float64)
    matrix -= (matrix @ probe / probe.square().sum())[:, None] * probe
    corruption = pv.corruptions.Corruption(times(matrix), 1.0, linear=True)
    assert LinearMap.of(corruption, torch.Size([2000]), torch.zeros(2, 50)).parts.shape == (1, 50, 2000)


@pytest.mark.parametrize("add", [1.0, 0.1])
def test_what_is_not_linear_is_refused(add: float) -> None:
    for function in (lambda x: x.sum(-1) + add, lambda x: x.clamp_min(-add), lambda x: x[..., :1] * x):
        corruption = pv.corruptions.Corruption(function, 0.1, linear=True)
        with pytest.raises(pv.OptionError, match="says linear=True, and its function is not"):
            LinearMap.of(corruption, torch.Size([D]), torch.zeros_like(corruption(torch.zeros(1, D))))


def test_what_follows_from_the_rest_needs_noise() -> None:
    pair = LinearGaussian(columns=3)
    x = pair.marginal().sample((2,))
    fitted = replace(unfitted(pair, x), settings={"engine": "eager"})

    def twice(x: Tensor) -> Tensor:
        return torch.cat([x[..., :1], 2 * x[..., :1], x[..., 1:].sum(-1, keepdim=True)], -1)

    with pytest.raises(pv.OptionError, match="follows from the rest of it without noise"):
        pv.restore(fitted, twice(x), pv.corruptions.Corruption(twice, linear=True))
    noisy = pv.corruptions.Corruption(twice, 0.1, linear=True)
    assert pv.restore(fitted, noisy(x), noisy, 1, num_particles=20, proposal="guide", seed=0).exact

"""Rows that get common random numbers: what is drawn for a row depends on its own parameters and on nothing else."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.errors import PairError
from pyrovae.pair.common import common_draws, same_for_rows, start_rows
from pyrovae.pair.program import Pair, run

# From the parameters of rows, `(N,)` positive, to a distribution of each row.
KINDS: dict[str, Callable[[Tensor], Any]] = {
    "Normal": lambda a: dist.Normal(a, a),
    "Normal, vectors": lambda a: dist.Normal(a[:, None].expand(-1, 3), 1.0).to_event(1),
    "MultivariateNormal": lambda a: dist.MultivariateNormal(a[:, None].expand(-1, 2), torch.eye(2, dtype=a.dtype)),
    "LowRank": lambda a: dist.LowRankMultivariateNormal(
        a[:, None].expand(-1, 3), torch.ones(len(a), 3, 2, dtype=a.dtype), torch.ones(len(a), 3, dtype=a.dtype)
    ),
    "Laplace": lambda a: dist.Laplace(a, 1.0),
    "LogNormal": lambda a: dist.LogNormal(a, 1.0),
    "StudentT": lambda a: dist.StudentT(4.0, a, 1.0),
    "Uniform": lambda a: dist.Uniform(0 * a, a),
    "Exponential": lambda a: dist.Exponential(a),
    "Gamma": lambda a: dist.Gamma(a, 1.0),
    "Beta": lambda a: dist.Beta(a, 2.0),
    "Dirichlet": lambda a: dist.Dirichlet(a[:, None].expand(-1, 3)),
    "Poisson": lambda a: dist.Poisson(a),
    "Bernoulli": lambda a: dist.Bernoulli(torch.sigmoid(a - 2)),
    "Categorical": lambda a: dist.Categorical(torch.stack([a, 1 + 0 * a, a**2], -1)),
    "OneHotCategorical": lambda a: dist.OneHotCategorical(torch.stack([a, 1 + 0 * a, a**2], -1)),
    "MixtureSameFamily": lambda a: dist.MixtureSameFamily(
        dist.Categorical(torch.ones(len(a), 2)), dist.Normal(torch.stack([-a, a], -1), 1.0)
    ),
    "VonMises": lambda a: dist.VonMises(a, 3.0),
    "flow": lambda a: pv.flow(1, 2, hidden=(4,), context=2, flow_hidden=(4,)).double()(a[:, None]),
}


def pair_of(kind: Callable[[Tensor], Any]) -> Pair:
    def guide(x: Tensor) -> None:
        torch_state = torch.get_rng_state()
        torch.manual_seed(0)  # the same weights at each run, for the kinds with networks
        with pyro.plate("data", len(x)):
            made = kind(x)
            torch.set_rng_state(torch_state)
            pyro.sample("z", made)

    return Pair(guide, guide)


def draws(kind: Callable[[Tensor], Any], x: Tensor, particles: int) -> Tensor:
    with common_draws(3):
        start_rows()
        node = run(pair_of(kind), {"x": x}, num_particles=particles, plate_nesting=1)[1].nodes["z"]
    value: Tensor = node["value"]
    return value if particles > 1 else value[None]


@pytest.mark.parametrize("particles", [1, 4])
@pytest.mark.parametrize("name", KINDS)
def test_a_row_gets_the_same_draws_in_any_company(name: str, particles: int) -> None:
    x = torch.tensor([0.5, 3.0, 1.0, 3.0, 2.0], dtype=torch.float64)
    found = draws(KINDS[name], x, particles)
    assert found.shape[:2] == (particles, 5)
    torch.testing.assert_close(found[:, 1], found[:, 3], rtol=0, atol=0)  # equal rows, equal draws
    turned = draws(KINDS[name], x.flip(0), particles).flip(1)
    torch.testing.assert_close(found, turned, rtol=1e-12, atol=1e-12)
    for row in range(5):
        alone = draws(KINDS[name], x[row : row + 1], particles)
        torch.testing.assert_close(found[:, row : row + 1], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["Normal", "Categorical", "Gamma", "Poisson", "Bernoulli", "MixtureSameFamily"])
def test_the_draws_of_a_row_are_those_of_its_distribution(name: str) -> None:
    """Their mean, by a test that fails by chance once in 10,000 times for each kind and row."""
    x = torch.tensor([0.5, 3.0], dtype=torch.float64)
    found = draws(KINDS[name], x, 20_000).double()
    torch.manual_seed(1)
    other = KINDS[name](x).sample((20_000,)).double()
    error = (found.var(0) + other.var(0)).div(20_000).sqrt()
    assert bool(((found.mean(0) - other.mean(0)).abs() <= 3.9 * error).all())


def test_random_numbers_outside_are_as_ever() -> None:
    torch.manual_seed(5)
    before = torch.randn(3)
    torch.manual_seed(5)
    with common_draws(1):
        start_rows()
        torch.randn(7)
    torch.testing.assert_close(torch.randn(3), before, rtol=0, atol=0)
    with same_for_rows(0, 3):  # not common: nothing changes
        assert len(torch.rand(3).unique()) == 3


def test_factories_and_fillers_hold_the_same_for_each_row() -> None:
    with common_draws(1), same_for_rows(1, 3):
        made = [
            torch.randn(2, 3, 4),
            torch.rand(2, 3),
            torch.randint(100, (2, 3, 4)),
            torch.randn_like(torch.zeros(2, 3)),
            torch.empty(2, 3, 4).normal_(),
            torch.empty(2, 3).exponential_(),
            torch.nn.functional.dropout(torch.ones(2, 3, 40)),
            torch._standard_gamma(torch.full((2, 3), 2.0)),
        ]
        other = torch.randn(2, 4)
    for one in made:
        torch.testing.assert_close(one, one[:, :1].expand_as(one), rtol=0, atol=0)
        assert len(one[:, 0].flatten().unique()) > 1
    assert len(other.unique()) == 8


@pytest.mark.slow
def test_the_estimate_of_a_row_does_not_depend_on_its_company() -> None:
    x = torch.randn(30, 3).double()
    encoder = pv.mlp(3, fam.Normal(2), hidden=(8,)).double()
    vae = pv.VAE(pv.priors.StandardNormal(2).double(), pv.mlp(2, fam.Normal(3), hidden=(8,)).double(), encoder)
    fitted = pv.fit(vae, x, epochs=2, progress=False)
    for proposal in ("guide", "laplace", "refined"):
        with common_draws(0):
            together = pv.importance(fitted, x, 40, proposal=proposal, seed=0)
            alone = pv.importance(fitted, x[7:8], 40, proposal=proposal, seed=0)
        torch.testing.assert_close(together.log_likelihood[7:8], alone.log_likelihood, rtol=0, atol=1e-9)
        torch.testing.assert_close(together.k_hat[7:8], alone.k_hat, rtol=0, atol=1e-6)


def test_draws_that_cannot_be_told_apart_are_refused() -> None:
    with common_draws(1), same_for_rows(1, 3), pytest.raises(PairError, match="Categorical"):
        torch.multinomial(torch.ones(5, 2), 1)

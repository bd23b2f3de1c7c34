"""Quadrature against closed forms, and against sums over grids that are written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.pairs import linear_gaussian, unfitted
from torch import Tensor

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.batching import chunks as chunking


def f64(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def in_plate(function: Callable[..., Any]) -> Callable[[Tensor], None]:
    def program(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            function(x)

    return program


def eager(pair: Any, data: Any) -> pv.Fit:
    fitted = unfitted(pair, data)
    fitted.settings["engine"] = "eager"
    return fitted


def normal_guide(x: Tensor) -> Any:
    return pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))


@pytest.mark.slow
@pytest.mark.parametrize("latent", [1, 2])
def test_linear_gaussian_rows_have_their_closed_form(latent: int) -> None:
    pair, x, fitted = linear_gaussian(latent=latent, shift=3.0)
    found = pv.quadrature(fitted, x)
    torch.testing.assert_close(found.log_likelihood, pair.marginal().log_prob(x), rtol=0, atol=1e-10)
    assert found.error.max() < 1e-8 and found.log_likelihood.dtype == torch.float64


@pytest.mark.parametrize(("noise", "far"), [(1e-4, 0.0), (1e-3, 60.0), (30.0, 5.0)])
def test_a_posterior_is_found_however_narrow_or_far_it_is(noise: float, far: float) -> None:
    def model(x: Tensor) -> Any:
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
        return pyro.sample("x", dist.Normal(z, noise).to_event(1), obs=x)

    x = f64([0.3, -1.0], [2.0, 0.01]) + far
    found = pv.quadrature(eager(pv.Pair(in_plate(model), in_plate(normal_guide)), x), x)
    exact = dist.Normal(f64(0.0), (1 + noise**2) ** 0.5).expand([2]).to_event(1).log_prob(x)
    torch.testing.assert_close(found.log_likelihood, exact, rtol=1e-10, atol=1e-8)


def test_a_prior_that_is_a_mixture_has_the_closed_form_of_its_parts() -> None:
    """z ~ 0.3 N(-2, 0.5^2) + 0.7 N(1, 0.1^2), x ~ N(z, 0.2^2); annealed chains take it, too."""

    def model(x: Tensor) -> Any:
        parts = dist.Normal(f64([-2.0], [1.0]), f64([0.5], [0.1])).to_event(1)
        z = pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(f64(0.3, 0.7)), parts))
        return pyro.sample("x", dist.Normal(z, 0.2).to_event(1), obs=x)

    x = f64([-2.0], [0.0], [1.1])
    fitted = eager(pv.Pair(in_plate(model), in_plate(normal_guide)), x)
    each = [dist.Normal(f64(m), (s**2 + 0.2**2) ** 0.5).log_prob(x[:, 0]) for m, s in ((-2.0, 0.5), (1.0, 0.1))]
    exact = torch.logaddexp(each[0] + f64(0.3).log(), each[1] + f64(0.7).log())
    found = pv.quadrature(fitted, x, num_points=513)
    torch.testing.assert_close(found.log_likelihood, exact, rtol=0, atol=1e-7)
    chains = pv.ais(fitted, x, num_temperatures=40, num_chains=64, num_leapfrog=3, seed=0)
    assert bool(((chains.log_likelihood - exact).abs() < 5 * chains.standard_error + 1e-3).all())


def test_two_modes_and_a_class_are_summed() -> None:
    """z ~ N(0, 1), y in {0, 1}, x ~ N(z^2 + y, 0.1), by a sum over 200,001 points."""

    def model(x: Tensor) -> Any:
        y = pyro.sample("y", dist.Categorical(f64(0.2, 0.8)), infer={"enumerate": "parallel"})
        z = pyro.sample("z", dist.Normal(f64(0.0), 1.0).expand(x.shape[:1]))
        return pyro.sample("x", dist.Normal(z**2 + y, 0.1), obs=x)

    x = f64(0.1, 1.0, 4.0, 9.0)
    guide = in_plate(lambda x: pyro.sample("z", dist.Normal(x.sqrt(), 0.1)))
    found = pv.quadrature(eager(pv.Pair(in_plate(model), guide), x), x, num_points=513)
    z = torch.linspace(-12, 12, 200_001, dtype=torch.float64)[:, None]
    by_class = [dist.Normal(z**2 + y, 0.1).log_prob(x) + f64(p).log() for y, p in ((0, 0.2), (1, 0.8))]
    each = torch.logaddexp(*by_class) + dist.Normal(0.0, 1.0).log_prob(z)
    exact = each.logsumexp(0) + torch.tensor(24 / 200_000, dtype=torch.float64).log()
    torch.testing.assert_close(found.log_likelihood, exact, rtol=0, atol=1e-8)


def test_positive_numbers_and_proportions_are_integrated_over_their_support() -> None:
    def counts(x: Tensor) -> Any:
        z = pyro.sample("z", dist.Gamma(f64(2.0), f64(0.5)).expand([len(x)]))
        return pyro.sample("x", dist.Poisson(z), obs=x)

    def shares(x: Tensor) -> Any:
        z = pyro.sample("z", dist.Dirichlet(f64(1.0, 2.0, 3.0)).expand([len(x)]))
        return pyro.sample("x", dist.Multinomial(7, z), obs=x)

    x = torch.arange(40, dtype=torch.float64)
    guide = in_plate(lambda x: pyro.sample("z", dist.Gamma(x + 1, 1.0)))
    found = pv.quadrature(eager(pv.Pair(in_plate(counts), guide), x), x)
    exact = dist.NegativeBinomial(2.0, probs=f64(1 / 1.5)).log_prob(x)
    torch.testing.assert_close(found.log_likelihood, exact, rtol=0, atol=1e-9)
    x = f64([7, 0, 0], [2, 2, 3], [0, 0, 7])
    guide = in_plate(lambda x: pyro.sample("z", dist.Dirichlet(x + 1)))
    found = pv.quadrature(eager(pv.Pair(in_plate(shares), guide), x), x)
    exact = dist.DirichletMultinomial(f64(1.0, 2.0, 3.0), 7).log_prob(x)
    torch.testing.assert_close(found.log_likelihood, exact, rtol=0, atol=1e-7)


def test_a_circle_is_integrated_within_the_stated_error() -> None:
    """Against a sum over 4,000 angles. A direction has no limit at the origin, which is why the error is larger here."""

    def model(x: Tensor) -> Any:
        z = pyro.sample("z", pv.priors.HypersphericalUniform(2)())
        return pyro.sample("x", dist.Normal(z, 0.4).to_event(1), obs=x)

    def guide(x: Tensor) -> Any:
        return pyro.sample("z", pv.distributions.PowerSpherical(x / x.norm(dim=-1, keepdim=True), x[:, 0].exp()))

    x = torch.tensor([[1.0, 0.2], [-0.3, 0.4], [0.9, -1.5]])
    found = pv.quadrature(eager(pv.Pair(in_plate(model), in_plate(guide)), x), x)
    angles = torch.arange(4000) / 4000 * 2 * torch.pi
    z = torch.stack([angles.cos(), angles.sin()], -1)
    each = dist.Normal(z[:, None], 0.4).to_event(1).log_prob(x).double()
    exact = each.logsumexp(0) - torch.tensor(4000.0).double().log()
    assert ((found.log_likelihood - exact).abs() < found.error).all() and found.error.max() < 0.05


@pytest.mark.slow
def test_a_network_in_float32_and_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a sum over 501 x 501 points that is written out; kinks of ReLU are what is left of the error."""
    torch.manual_seed(0)
    vae = pv.VAE(
        pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6), hidden=(8,)), pv.mlp(6, fam.Normal(2), hidden=(8,))
    )
    for weight in vae.likelihood.parameters():
        torch.nn.init.normal_(weight, std=1.5)
    x = torch.bernoulli(torch.full((5, 6), 0.4))
    fitted = eager(vae, x)
    found = pv.quadrature(fitted, x)
    side = torch.linspace(-7, 7, 501)
    z = torch.cartesian_prod(side, side)
    with torch.no_grad():
        each = torch.stack([vae.likelihood(z).log_prob(row) + vae.prior().log_prob(z) for row in x]).double()
    exact = each.logsumexp(1) + 2 * torch.tensor(14 / 500, dtype=torch.float64).log()
    assert ((found.log_likelihood - exact).abs() < 1e-3).all() and found.error.max() < 5e-3
    monkeypatch.setattr(chunking, "CHUNK_ELEMENTS", 500 * fitted.row_elements[("x",)])
    fitted.settings["engine"] = "traced"
    torch.testing.assert_close(pv.quadrature(fitted, x).log_likelihood, found.log_likelihood, rtol=0, atol=1e-3)


def test_what_a_grid_cannot_hold_is_refused() -> None:
    _, x, fitted = linear_gaussian(latent=3)
    with pytest.raises(pv.PairError, match="at most 2 latent dimensions of a row, and here are 3"):
        pv.quadrature(fitted, x)
    _, x, fitted = linear_gaussian()
    with pytest.raises(pv.OptionError, match="num_points must be odd and at least 9, got 100"):
        pv.quadrature(fitted, x, num_points=100)


def test_sites_of_all_rows_and_discrete_ones_are_refused() -> None:
    def shared(x: Tensor) -> None:
        b = pyro.sample("b", dist.Normal(f64(0.0), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(f64(0.0), 1.0).expand(x.shape))
            pyro.sample("x", dist.Normal(z + b, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("b", dist.Normal(f64(0.0), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    def discrete(x: Tensor) -> Any:
        z = pyro.sample("z", dist.Bernoulli(f64(0.4)).expand([len(x)]))
        return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = f64(0.0, 1.0)
    with pytest.raises(pv.PairError, match="would have to run over 'b' of all rows"):
        pv.quadrature(eager(pv.Pair(shared, guide), x), x)
    bernoulli = in_plate(lambda x: pyro.sample("z", dist.Bernoulli(logits=x)))
    with pytest.raises(pv.PairError, match="site 'z' is not continuous"):
        pv.quadrature(eager(pv.Pair(in_plate(discrete), bernoulli), x), x)


def test_the_table_says_what_was_done() -> None:
    _, x, fitted = linear_gaussian(latent=1)
    found = pv.quadrature(fitted, x, num_points=65)
    assert "Quadrature of 20 rows, 65 points a side" in found._repr_html_()
    assert found.summary()["largest_error"] == found.error.max().item()

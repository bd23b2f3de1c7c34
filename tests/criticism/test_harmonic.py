"""Harmonic estimates of log p(x) against closed forms and quadrature, within the error that they state."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.pairs import linear_gaussian, unfitted
from torch import Tensor

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.criticism.harmonic import _log_cut_normal, _radius

QUICK: dict[str, Any] = {"num_samples": 160, "num_temperatures": 10, "num_leapfrog": 5, "seed": 0}


def standardised(found: pv.Harmonic, exact: Tensor) -> Tensor:
    return (found.log_likelihood - exact) / found.standard_error


def test_linear_gaussian_rows_are_within_their_stated_error() -> None:
    """Errors over 16 chains, so t of 15 degrees: the mean of 40 squares is 1.15 with sd 0.29, and false alarms are 1e-4."""
    pair, x, fitted = linear_gaussian(rows=40, latent=3)
    found = pv.harmonic(fitted, x, **QUICK)
    assert standardised(found, pair.marginal().log_prob(x)).square().mean() < 2.7
    assert found.standard_error.max() < 0.2 and (found.num_samples, found.num_chains) == (160, 16)
    assert 0.4 < found.summary()["acceptance"] < 0.9


def test_a_curved_posterior_with_classes_summed_out_agrees_with_quadrature() -> None:
    """The bound is that of the test above, for 12 rows: a mean of 1.15 with sd 0.53."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
            loc = torch.stack(torch.broadcast_tensors(z[..., 0], z.prod(-1) + y), -1)
            pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))

    x = torch.rand(12, 2) + torch.tensor([0.2, 1.5])
    fitted = unfitted(pv.Pair(model, guide), x)
    found = pv.harmonic(fitted, x, **{**QUICK, "num_samples": 800})
    exact = pv.quadrature(fitted, x, num_points=65).log_likelihood
    assert standardised(found, exact).square().mean() < 3.6
    assert (found.log_likelihood - exact).abs().max() < 0.6


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_density_is_a_normal_cut_off_to_nine_tenths(size: int) -> None:
    torch.manual_seed(0)
    u = torch.randn(20_000, 1, 1, size, dtype=torch.float64)
    factor = 0.5 * torch.eye(size, dtype=torch.float64)[None] + torch.ones(size, size).double().tril(-1)[None] / 4
    log_q = _log_cut_normal(0.3 + (factor @ u[..., None])[..., 0], torch.full((1, 1, size), 0.3).double(), factor)
    whole = dist.MultivariateNormal(torch.zeros(size).double(), scale_tril=factor[0]).log_prob(
        (factor @ u[..., None])[..., 0]
    )
    inside = log_q.isfinite()
    assert inside.double().mean().item() == pytest.approx(0.9, abs=4.5 * math.sqrt(0.09 / 20_000))
    torch.testing.assert_close(log_q[inside], whole[inside] - math.log(0.9))
    assert _radius(2) == pytest.approx(-2 * math.log(0.1))


def test_a_seed_repeats_it() -> None:
    _, x, fitted = linear_gaussian(rows=3, latent=1)
    fitted.settings["engine"] = "eager"
    one, two = (pv.harmonic(fitted, x, **{**QUICK, "num_samples": 64}) for _ in range(2))
    assert torch.equal(one.log_likelihood, two.log_likelihood)
    assert "3 rows, 64 draws each" in one._repr_html_()


def test_what_is_refused() -> None:
    _, x, fitted = linear_gaussian(rows=3)
    wrong = {"num_samples": 0, "num_chains": 1, "num_temperatures": 0, "num_leapfrog": 0}
    for name, value in wrong.items():
        with pytest.raises(pv.OptionError, match=f"{name} must be at least"):
            pv.harmonic(fitted, x, **{name: value})

    wide = linear_gaussian(rows=3, latent=7)[2]
    for few, chains, words in (
        (69, 4, "at least 70 for 7 latent"),
        (79, 20, "at least 80 for 7 latent dimensions and 20"),
    ):
        with pytest.raises(pv.OptionError, match=words):
            pv.harmonic(wide, x, num_samples=few, num_chains=chains)

    def discrete(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("y", dist.Bernoulli(0.5)), 1.0), obs=x)

    def shared(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w + pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def guide_of(model: Any) -> Any:
        return pyro.poutine.block(pyro.poutine.uncondition(model), hide=["x"])

    for model, words in ((discrete, "Chains move along gradients"), (shared, "All rows share 'w'")):
        with pytest.raises(pv.PairError, match=words):
            pv.harmonic(unfitted(pv.Pair(model, guide_of(model)), torch.randn(4)), torch.randn(4), **QUICK)


def test_rows_of_a_vae_agree_with_quadrature() -> None:
    torch.manual_seed(0)
    vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6), hidden=(8,)), pv.mlp(6, fam.Normal(2)))
    x = torch.rand(10, 6).round()
    fitted = unfitted(vae, x)
    fitted.settings["engine"] = "eager"
    found = pv.harmonic(fitted, x, **QUICK)
    exact = pv.quadrature(fitted, x, num_points=33)
    assert (found.log_likelihood - exact.log_likelihood).abs().max() < 0.2

"""The gaps of amortisation and approximation against closed forms."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.comparisons import BOUND
from support.pairs import linear_gaussian, unfitted
from torch import Tensor
from torch.distributions import kl_divergence

import pyrovae as pv

PARALLEL = {"enumerate": "parallel"}


def f64(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def eager(pair: Any, data: Any) -> pv.Fit:
    fitted = unfitted(pair, data)
    fitted.settings["engine"] = "eager"  # tracing takes longer than these runs
    return fitted


@pytest.fixture(scope="module")
def gaussian() -> tuple[Any, Tensor, pv.Refinement]:
    """A guide that is 2 posterior sds off and half as wide, so that the best q has no gap at all."""
    pair, x, fitted = linear_gaussian(shift=2.0, spread=0.25)
    fitted.settings["engine"] = "eager"
    return pair, x, pv.refine(fitted, x, 4000, seed=0)


@pytest.mark.slow
def test_the_guides_gap_is_its_divergence_and_the_best_q_has_none(gaussian: Any) -> None:
    """20 rows, twice: false alarms 2.7e-4. 200 steps of 4 draws end within 0.05 nats of the best Normal."""
    pair, x, found = gaussian
    exact, kl = pair.marginal().log_prob(x), kl_divergence(pair.proposal(x), pair.posterior(x))
    assert ((found.elbo - (exact - kl)).abs() < BOUND * found.elbo_error).all()
    assert ((found.log_likelihood - exact).abs() < BOUND * found.standard_error).all()
    assert (found.refined_elbo - exact < BOUND * found.refined_elbo_error + 1e-9).all()
    assert (exact - found.refined_elbo).max() < 0.05 < 0.05 * kl.min()
    assert (found.approximation_gap.abs() < 0.1).all() and found.k_hat.max() < 0.5
    torch.testing.assert_close(found.amortisation_gap, kl, rtol=0, atol=0.4)


def test_means_over_no_row_are_nan(gaussian: Any) -> None:
    found = gaussian[2]
    fields = {
        name: torch.full_like(value, torch.nan) for name, value in vars(found).items() if isinstance(value, Tensor)
    }
    assert all(math.isnan(value) for value in dataclasses.replace(found, **fields).summary().values())
    nothing = torch.full((2,), torch.nan, dtype=torch.float64)
    means = pv.Importance(nothing, nothing, nothing, nothing, nothing, 100).summary()
    assert means.pop("undefined_rows") == 2 and means.pop("k_hat_threshold") > 0
    assert all(math.isnan(value) for value in means.values()), means


def test_posterior_moments_are_those_of_the_closed_form(gaussian: Any) -> None:
    """20 rows of 2 + 2 numbers: false alarms 5e-4; an effective sample size of 2,000 of 4,000 draws is assumed."""
    pair, x, found = gaussian
    exact = pair.posterior(x)
    sd = exact.covariance_matrix.diagonal(dim1=-2, dim2=-1).sqrt()
    assert found.mean["z"].shape == found.sd["z"].shape == (20, 2)
    assert ((found.mean["z"] - exact.mean).abs() < BOUND * sd / math.sqrt(2000)).all()
    assert ((found.sd["z"] - sd).abs() < BOUND * sd / math.sqrt(2 * 1000)).all()


def test_its_error_covers_the_elbo_of_the_normal_itself(gaussian: Any) -> None:
    """The t distribution that is weighed is wider, and would have an ELBO 0.2 nats lower in two dimensions."""
    pair, x, found = gaussian
    assert (found.refined_elbo - pair.marginal().log_prob(x)).mean().abs() < 0.02
    assert (found.refined_elbo_error < 0.01).all()


def in_mean_field(x: Tensor) -> None:
    """z ~ N(0, I), x1 = z1 + z2 + noise: a posterior with strong correlation."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(f64(0.0, 0.0), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 0.1), obs=x)


def best_diagonal_guide(x: Tensor) -> None:
    """Exact means, and the variances that are best without correlation: 1 / diagonal of the precision matrix."""
    with pyro.plate("data", len(x)):
        loc = x[:, None] / 2.01 * f64(1.0, 1.0)
        pyro.sample("z", dist.Normal(loc, 101**-0.5).to_event(1))


@pytest.mark.slow
def test_correlation_that_the_guide_lacks_counts_as_amortisation() -> None:
    """3 rows: false alarms 4e-5. KL of the best diagonal Normal = -log(1 - rho^2) / 2 with rho = 100 / 101."""
    x = f64(-1.0, 0.3, 2.0)
    found = pv.refine(eager(pv.Pair(in_mean_field, best_diagonal_guide), x), x, 2000, seed=1)
    lost = -math.log(1 - (100 / 101) ** 2) / 2
    error = BOUND * found.amortisation_gap_error
    assert (found.amortisation_gap < lost + error).all() and (found.amortisation_gap > lost - 0.1 - error).all()


def labelled(x: Tensor, y: Tensor | None = None) -> None:
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(f64(0.3, 0.7)), obs=y)
        loc = torch.where(y[..., None] == 0, f64(-1.0, 1.0), f64(1.5, 0.0))
        z = pyro.sample("z", dist.Normal(loc, 0.7).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.6).to_event(1), obs=x)


def guide_of_labelled(x: Tensor, y: Tensor | None = None) -> None:
    with pyro.plate("data", len(x)):
        if y is None:
            y = pyro.sample("y", dist.Categorical(logits=x), infer=PARALLEL)
        pyro.sample("z", dist.Normal(0.5 * x + 0.2 * y[..., None], 0.2).to_event(1))


@pytest.mark.slow
def test_a_class_is_summed_out_where_it_is_not_known() -> None:
    """8 rows of two kinds: false alarms 6e-5."""
    torch.manual_seed(3)
    data = {"x": torch.randn(8, 2, dtype=torch.float64), "y": torch.tensor([-1, 0, 1, -1, 1, -1, 0, -1])}
    fitted = eager(pv.Pair(labelled, guide_of_labelled), {"x": data["x"][:2]})
    found = pv.refine(fitted, data, 1000, seed=2)
    scale, prior, locs = math.sqrt(0.7**2 + 0.6**2), f64(0.3, 0.7), f64([-1.0, 1.0], [1.5, 0.0])
    joint = dist.Normal(locs, scale).to_event(1).log_prob(data["x"][:, None]) + prior.log()  # (8, 2)
    known = data["y"][:, None] == torch.arange(2)
    joint = torch.where(known | (data["y"] < 0)[:, None], joint, -math.inf)
    exact = joint.logsumexp(1)
    assert ((found.log_likelihood - exact).abs() < BOUND * found.standard_error).all()
    assert (exact - found.refined_elbo).max() < 0.06 and (found.amortisation_gap > 0.5).all()
    gain = 0.7**2 / scale**2
    each = locs + gain * (data["x"][:, None] - locs)
    mean = (joint.softmax(1)[..., None] * each).sum(1)
    assert ((found.mean["z"] - mean).abs() < 0.15).all()


@pytest.mark.slow
def test_positive_sites_have_moments_of_their_own_kind() -> None:
    """z ~ Gamma(2, 1/2), x ~ Poisson(z): the posterior is Gamma(2 + x, 3/2). 6 rows: false alarms 4e-5."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(f64(2.0), f64(0.5)).expand(x.shape))
            pyro.sample("x", dist.Poisson(z), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LogNormal((x + 1).log() + 0.3, 0.1))

    x = torch.arange(6, dtype=torch.float64)
    found = pv.refine(eager(pv.Pair(model, guide), x), x, 3000, seed=3)
    exact = dist.NegativeBinomial(2.0, probs=f64(1 / 1.5)).log_prob(x)
    assert ((found.log_likelihood - exact).abs() < BOUND * found.standard_error).all()
    posterior = dist.Gamma(2 + x, f64(1.5))
    assert ((found.mean["z"] - posterior.mean).abs() < BOUND * posterior.stddev / math.sqrt(1000)).all()
    assert (found.sd["z"] / posterior.stddev - 1).abs().max() < 0.15
    assert (found.approximation_gap > 0).all()  # the posterior of log z is skewed, and no Normal


def test_what_cannot_be_refined_is_refused() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(f64(0.4)).expand(x.shape))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=x))

    x = f64(0.0, 1.0)
    with pytest.raises(pv.PairError, match="can be refined for a row: site 'z' is not continuous"):
        pv.refine(eager(pv.Pair(model, guide), x), x)
    _, rows, fitted = linear_gaussian()
    with pytest.raises(pv.OptionError, match="num_samples must be at least 2, got 1"):
        pv.refine(fitted, rows, 1)


def test_the_table_says_what_was_lost(gaussian: Any) -> None:
    _, _, found = gaussian
    summary = found.summary()
    assert summary["amortisation_gap"] == pytest.approx(summary["refined_elbo"] - summary["elbo"])
    assert summary["amortisation_gap_monte_carlo_se"] > 0
    assert "approximation_gap" in found._repr_html_() and "20 rows" in found._repr_html_()

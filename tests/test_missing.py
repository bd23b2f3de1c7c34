"""observed_only: NaN entries are integrated out, exactly, and poison nothing."""

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
import pyrovae.families as fam
from pyrovae.distributions import ObservedOnly

NAN = float("nan")
ROW = torch.tensor([[1.0, NAN, 0.0], [NAN, NAN, NAN], [0.0, 1.0, 1.0]])

FAMILIES: dict[str, fam.Family] = {
    "Bernoulli": fam.Bernoulli(3),
    "Normal": fam.Normal(3),
    "Binomial": fam.Binomial(3, 4),
    "BetaBinomial": fam.BetaBinomial(3, 4),
}


@pytest.mark.parametrize("family", list(FAMILIES.values()), ids=list(FAMILIES))
def test_value_is_that_of_the_observed_elements_and_gradient_is_finite(family: fam.Family) -> None:
    params = torch.randn(3, *family.param_shape, requires_grad=True)
    whole = family(params)
    found = ObservedOnly(whole).log_prob(ROW)
    for n in range(3):
        there = ~torch.isnan(ROW[n])
        elements = whole.base_dist.log_prob(torch.nan_to_num(ROW))[n]
        assert torch.allclose(found[n], elements[there].sum())
    (gradient,) = torch.autograd.grad(found.sum(), params)
    assert torch.isfinite(gradient).all() and (gradient[1] == 0).all() and gradient[2].abs().sum() > 0


def test_a_full_row_is_as_without_it() -> None:
    whole = fam.Normal(3)(torch.randn(2, 5, 2, 3))
    x = torch.randn(2, 5, 3)
    wrapped = ObservedOnly(whole)
    assert torch.equal(wrapped.log_prob(x), whole.log_prob(x)) or torch.allclose(wrapped.log_prob(x), whole.log_prob(x))
    assert wrapped.expand((7, 2, 5)).log_prob(x).shape == (7, 2, 5)
    assert torch.equal(wrapped.mean, whole.mean)


def test_a_joint_density_is_refused() -> None:
    with pytest.raises(pv.PairError, match="independent elements"):
        ObservedOnly(dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))


class Loading(torch.nn.Module):
    """p(x | z) = N(W z, s^2), fixed."""

    def __init__(self, weight: Tensor, scale: float) -> None:
        super().__init__()
        self.weight, self.scale = torch.nn.Parameter(weight), scale

    def forward(self, z: Tensor) -> Any:
        return dist.Normal(z @ self.weight, self.scale).to_event(1)


def test_log_p_of_a_linear_gaussian_row_with_gaps_is_the_closed_form_marginal() -> None:
    """Importance sampling against N(0, W_o' W_o + s^2 I) of the observed elements; 5 standard errors, a false alarm in
    fewer than 1 run in 10,000 over the 20 rows."""
    weight = torch.randn(2, 6)
    x = torch.randn(20, 2) @ weight + 0.5 * torch.randn(20, 6)
    x[torch.rand(20, 6) < 0.4] = NAN
    encoder = pv.Conditional(pv.nets.WithMask(pv.nets.MLP((6, 6), (2, 2), hidden=(16,))), fam.Normal(2))
    vae = pv.VAE(pv.priors.StandardNormal(2), pv.observed_only(Loading(weight, 0.5)), encoder)
    fitted = pv.fit(vae, x, epochs=200, batch_size=20, learning_rate=1e-2, seed=0)
    found = pv.importance(fitted, x, 4000, seed=0)
    weight = vae.likelihood.likelihood.weight.detach()  # type: ignore[union-attr]
    for n in range(20):
        o = ~torch.isnan(x[n])
        if o.any():
            w = weight[:, o]
            exact = dist.MultivariateNormal(torch.zeros(int(o.sum())), w.T @ w + 0.25 * torch.eye(int(o.sum())))
            difference = found.log_likelihood[n].item() - exact.log_prob(x[n][o]).item()
            assert abs(difference) < 5 * found.standard_error[n].item() + 1e-4
        else:
            assert math.isclose(found.log_likelihood[n].item(), 0.0, abs_tol=0.2)


def test_fit_takes_gaps_and_reconstruct_fills_them() -> None:
    x = torch.randn(60, 1).repeat(1, 6) + 0.1 * torch.randn(60, 6)
    gaps = torch.rand(60, 6) < 0.2
    y = x.clone()
    y[gaps] = NAN
    encoder = pv.Conditional(pv.nets.WithMask(pv.nets.MLP((6, 6), (2, 2), hidden=(32,))), fam.Normal(2))
    likelihood = pv.observed_only(pv.mlp(2, fam.Normal(6, scale="shared"), hidden=()))
    fitted = pv.fit(
        pv.VAE(pv.priors.StandardNormal(2), likelihood, encoder),
        y,
        epochs=150,
        batch_size=30,
        learning_rate=1e-2,
        seed=0,
    )
    filled = pv.reconstruct(fitted, y)
    assert torch.isfinite(filled).all()
    assert (filled - x)[gaps].square().mean() < 0.25 * x[gaps].square().mean()  # better by far than the column mean, 0

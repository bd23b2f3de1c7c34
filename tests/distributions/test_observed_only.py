"""observed_only: NaN entries are integrated out, exactly, and poison nothing."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
import pyrovae.families as fam
from pyrovae.distributions import ObservedOnly
from pyrovae.engine.tracing import graph_of

NAN = float("nan")
ROW = torch.tensor([[1.0, NAN, 0.0], [NAN, NAN, NAN], [0.0, 1.0, 1.0]])

FAMILIES: dict[str, fam.Family] = {
    "Bernoulli": fam.Bernoulli(3),
    "Normal": fam.Normal(3),
    "Binomial": fam.Binomial(3, 4),
    "BetaBinomial": fam.BetaBinomial(3, 4),
    "Categorical": fam.Categorical(3, 4),
    "OrderedLogistic": fam.OrderedLogistic(3, 4),
    "StudentT": fam.StudentT(3),
    "ContinuousBernoulli": fam.ContinuousBernoulli(3),
    "ZeroInflatedNegativeBinomial": fam.ZeroInflatedNegativeBinomial(3),
    "DiscretizedLogistic": fam.DiscretizedLogistic(3, 4),
}
MIXED = fam.Columns(
    [
        fam.Normal(2),
        fam.Gamma(()),
        fam.Beta(()),
        fam.Poisson(()),
        fam.Bernoulli(()),
        fam.Categorical(2, 4),
        fam.OrderedLogistic((), 3),
    ]
)


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


def test_densities_that_end_in_zero_are_filled_inside_their_support() -> None:
    for family in (fam.Gamma(3), fam.LogNormal(3), fam.Beta(3)):
        params = torch.randn(2, *family.param_shape, requires_grad=True)
        x = torch.tensor([[0.3, NAN, NAN], [NAN, NAN, NAN]])
        found = ObservedOnly(family(params)).log_prob(x)
        expected = family(params).base_dist.log_prob(torch.full((3,), 0.3))
        torch.testing.assert_close(found, torch.stack([expected[0, 0], torch.zeros(())]))
        (gradient,) = torch.autograd.grad(found.sum(), params)
        assert gradient.isfinite().all() and gradient[0, :, 0].all() and not gradient[0, :, 1:].any()


def test_every_column_of_a_table_may_miss() -> None:
    params = torch.randn(9, *MIXED.param_shape, requires_grad=True)
    whole = MIXED(params)
    x = whole.sample()
    full = whole.log_prob_elements(x)
    y = x.clone()
    gone = torch.eye(9, dtype=torch.bool)
    y[gone] = NAN
    found = ObservedOnly(whole).log_prob(y)
    torch.testing.assert_close(found, full.masked_fill(gone, 0.0).sum(-1))
    (gradient,) = torch.autograd.grad(found.sum(), params)
    assert gradient.isfinite().all()
    nothing = ObservedOnly(MIXED(params)).log_prob(torch.full_like(x, NAN))
    assert (nothing == 0).all() and torch.autograd.grad(nothing.sum(), params)[0].isfinite().all()
    torch.testing.assert_close(ObservedOnly(MIXED(params)).log_prob(x), MIXED(params).log_prob(x))


def test_what_is_missing_is_traced_without_reading_values() -> None:
    params = torch.randn(9, *MIXED.param_shape)
    x = MIXED(params).sample()
    x[torch.eye(9, dtype=torch.bool)] = NAN
    with pyro.validation_enabled(False):
        graph = graph_of(lambda p, x: ObservedOnly(MIXED(p)).log_prob(x), params, x)
    called = {str(node.target) for node in graph.graph.nodes}
    assert not [name for name in called if "_local_scalar_dense" in name or "lift_fresh" in name]
    assert torch.equal(graph(params + 1, x), ObservedOnly(MIXED(params + 1)).log_prob(x))


def test_a_table_with_gaps_is_fitted_and_filled_in() -> None:
    with torch.no_grad():
        x = MIXED(torch.randn(60, *MIXED.param_shape)).sample()
    gaps = torch.rand(60, 9) < 0.2
    x[gaps] = NAN
    encoder = pv.Conditional(pv.nets.WithMask(pv.nets.MLP((9, 9), (2, 2), hidden=(8,))), fam.Normal(2))
    vae = pv.VAE(pv.priors.StandardNormal(2), pv.observed_only(pv.mlp(2, MIXED, hidden=(8,))), encoder)
    fitted = pv.fit(vae, x, epochs=2, batch_size=30, seed=0)
    filled = pv.reconstruct(fitted, x)
    assert filled.isfinite().all() and (filled[:, 6:] == filled[:, 6:].round()).all()
    assert pv.log_likelihood(fitted, x, num_samples=5, proposal="guide").isfinite().all()
    with torch.no_grad():
        assert pv.generate(fitted, 7).shape == (7, 9)


def mixture(params: Tensor) -> Any:
    return dist.MixtureSameFamily(dist.Categorical(logits=params[..., 0, 0]), fam.Normal(3)(params))


def test_of_a_mixture_of_products_each_component_leaves_them_out() -> None:
    params = torch.randn(5, 4, 2, 3, requires_grad=True)  # 4 components
    x = torch.randn(5, 3)
    x[0, 1] = x[1] = NAN
    x[2, 0] = x[2, 2] = NAN
    found = ObservedOnly(mixture(params)).log_prob(x)
    torch.testing.assert_close(found[3:], mixture(params).log_prob(x.nan_to_num())[3:])
    for n in range(3):
        there = ~x[n].isnan()
        each = fam.Normal(3)(params[n]).base_dist.log_prob(x[n].nan_to_num())[:, there].sum(-1)
        torch.testing.assert_close(found[n], torch.logsumexp(each + params[n, :, 0, 0].log_softmax(-1), -1))
    (gradient,) = torch.autograd.grad(found.sum(), params)
    assert gradient.isfinite().all()
    assert ObservedOnly(mixture(params)).expand((2, 5)).log_prob(x).shape == (2, 5)


def test_a_row_that_is_a_mixture_element_by_element() -> None:
    inner = dist.MixtureSameFamily(
        dist.Categorical(logits=torch.randn(3, 4)), dist.Gamma(torch.ones(3, 4), torch.rand(3, 4) + 0.5)
    )
    x = torch.tensor([0.5, NAN, 2.0])
    found = ObservedOnly(inner.to_event(1)).log_prob(x)
    torch.testing.assert_close(found, inner.log_prob(x.nan_to_num(1.0))[[0, 2]].sum())


def test_a_grey_image_may_miss_pixels() -> None:
    family = fam.DiscretizedLogisticMixture((1, 2, 2), levels=8, num_components=3)
    whole = family(torch.randn(5, *family.param_shape))
    x = whole.sample()
    y = x.clone()
    y[:, 0, 0, 1] = NAN
    expected = whole.log_prob_elements(x)
    torch.testing.assert_close(ObservedOnly(whole).log_prob(y), expected.sum((1, 2, 3)) - expected[:, 0, 0, 1])


def joint_densities() -> dict[str, Any]:
    colours = fam.DiscretizedLogisticMixture((3, 2, 2), num_components=2)
    normals = dist.MultivariateNormal(torch.zeros(4, 2), torch.eye(2))
    return {
        "Multinomial": fam.Multinomial(4)(torch.zeros(4)),
        "DiscretizedLogisticMixture": colours(torch.zeros(colours.param_shape)),
        "MultivariateNormal": normals,
        "MixtureSameFamily": dist.MixtureSameFamily(dist.Categorical(torch.ones(4)), normals),
        "Independent": normals.to_event(1),
    }


@pytest.mark.parametrize("name", list(joint_densities()))
def test_what_has_no_marginals_is_refused_with_the_cure(name: str) -> None:
    with pytest.raises(pv.PairError, match=rf"got {name}: .*fill or drop rows"):
        ObservedOnly(joint_densities()[name])


class Loading(torch.nn.Module):
    """p(x | z) = N(W z, s^2), fixed."""

    def __init__(self, weight: Tensor, scale: float) -> None:
        super().__init__()
        self.weight, self.scale = torch.nn.Parameter(weight), scale

    def forward(self, z: Tensor) -> Any:
        return dist.Normal(z @ self.weight, self.scale).to_event(1)


@pytest.mark.slow
def test_log_p_of_a_linear_gaussian_row_with_gaps_is_the_closed_form_marginal() -> None:
    """Importance sampling against N(0, W_o' W_o + s^2 I) of the observed elements; 5 standard errors, a false alarm in
    fewer than 1 run in 10,000 over the 20 rows."""
    weight = torch.randn(2, 6)
    x = torch.randn(20, 2) @ weight + 0.5 * torch.randn(20, 6)
    x[torch.rand(20, 6) < 0.4] = NAN
    encoder = pv.Conditional(pv.nets.WithMask(pv.nets.MLP((6, 6), (2, 2), hidden=(16,))), fam.Normal(2))
    vae = pv.VAE(pv.priors.StandardNormal(2), pv.observed_only(Loading(weight, 0.5)), encoder)
    fitted = pv.fit(vae, x, epochs=200, batch_size=20, learning_rate=1e-2, seed=0)
    found = pv.importance(fitted, x, 4000, seed=0, proposal="guide")
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


@pytest.mark.slow
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
        epochs=50,
        batch_size=30,
        learning_rate=3e-2,
        seed=0,
    )
    filled = pv.reconstruct(fitted, y)
    assert torch.isfinite(filled).all()
    assert (filled - x)[gaps].square().mean() < 0.25 * x[gaps].square().mean()  # better by far than the column mean, 0

"""A mixture of Normals with full covariances, and a flow on top of it."""

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

from pyrovae import priors
from pyrovae.errors import OptionError, ShapeError


def components() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    root = torch.tensor([[[1.0, 0.0], [0.6, 0.5]], [[0.3, 0.0], [-0.4, 0.9]]], dtype=torch.float64)
    return torch.tensor([0.3, 0.7]), torch.tensor([[0.0, 1.0], [4.0, -2.0]]), root @ root.mT


def test_it_is_the_mixture_that_it_starts_from() -> None:
    weights, loc, covariance = components()
    prior = priors.MixtureOfNormals(2, 2, covariance="full").double()
    prior.start_from(weights, loc, covariance)
    z = torch.randn(50, 2, dtype=torch.float64) * 3
    each = [
        scipy.stats.multivariate_normal(m, s).logpdf(z.numpy()) + np.log(w)
        for w, m, s in zip(weights.double().numpy(), loc.numpy(), covariance.numpy())
    ]
    np.testing.assert_allclose(prior().log_prob(z).detach().numpy(), scipy.special.logsumexp(each, 0), atol=1e-6)
    diagonal = priors.MixtureOfNormals(2, 2).double()
    diagonal.start_from(weights, loc, covariance)
    kept = diagonal().component_distribution.variance
    torch.testing.assert_close(kept, covariance.diagonal(dim1=-2, dim2=-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("covariance", ["diag", "full"])
def test_a_flow_starts_near_its_base_and_is_normalised(covariance: str) -> None:
    torch.manual_seed(0)
    base = priors.MixtureOfNormals(2, 3, covariance=covariance)
    prior = priors.FlowPrior(2, transforms=1, hidden=(8,), base=base)
    axis = torch.linspace(-8, 8, 161)
    z = torch.cartesian_prod(axis, axis)
    log_p = prior().log_prob(z).detach()
    assert (log_p - base().log_prob(z)).abs().max() < 0.5
    assert float(log_p.exp().sum() * 0.1**2) == pytest.approx(1, abs=0.01)
    p = prior()
    drawn = p.sample((500,))
    assert not p.has_rsample and drawn.shape == (500, 2)
    torch.testing.assert_close(p.log_prob(drawn), prior().log_prob(drawn), atol=1e-3, rtol=1e-3)


def test_mistakes() -> None:
    with pytest.raises(OptionError, match="covariance of MixtureOfNormals must be one of 'diag', 'full'"):
        priors.MixtureOfNormals(2, covariance="tied")
    with pytest.raises(ShapeError, match="needs vectors for covariance='full'"):
        priors.MixtureOfNormals((2, 3), covariance="full")
    with pytest.raises(ShapeError, match="start_from needs weights"):
        priors.MixtureOfNormals(2, 3, covariance="full").start_from(*components())
    with pytest.raises(ShapeError, match="a base over such vectors"):
        priors.FlowPrior(3, base=priors.StandardNormal(2))

"""The Normal with a full covariance: torch's own in all but how it is built."""

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from pyrovae.distributions.normals import MultivariateNormal


@pytest.mark.parametrize(("of_loc", "of_factor"), [((), ()), ((5,), ()), ((), (5,)), ((4, 1), (5,))])
def test_it_is_torchs(of_loc: tuple[int, ...], of_factor: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    loc, factor = torch.randn(*of_loc, 3), torch.randn(*of_factor, 3, 3).tril() + 3 * torch.eye(3)
    ours, theirs = MultivariateNormal(loc, factor), dist.MultivariateNormal(loc, scale_tril=factor)
    assert type(ours).__name__ == "MultivariateNormal" and ours.support is theirs.support
    for _ in range(2):  # as they are, and expanded
        assert ours.batch_shape == theirs.batch_shape and ours.event_shape == theirs.event_shape
        value = torch.randn(7, *theirs.batch_shape, 3)
        for name in ("mean", "variance", "covariance_matrix", "precision_matrix", "scale_tril"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
        assert torch.equal(ours.log_prob(value), theirs.log_prob(value)) and torch.equal(
            ours.entropy(), theirs.entropy()
        )
        assert torch.equal(kl_divergence(ours, theirs), kl_divergence(theirs, theirs))
        draws = []
        for one in (ours, theirs):
            torch.manual_seed(1)
            draws.append(one.rsample((2,)))
        assert torch.equal(*draws)
        ours, theirs = (one.expand((2, *theirs.batch_shape)) for one in (ours, theirs))
        assert type(ours) is MultivariateNormal


def test_what_is_no_factor_is_refused() -> None:
    with pytest.raises(ValueError, match="LowerCholesky"):
        MultivariateNormal(torch.zeros(2), torch.ones(2, 2))

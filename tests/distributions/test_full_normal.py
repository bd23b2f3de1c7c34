"""The Normal with a full covariance: torch's own in all but how it is built."""

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from pyrovae.batching.chunks import TensorSizes
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
        torch.testing.assert_close(*draws)
        ours, theirs = (one.expand((2, *theirs.batch_shape)) for one in (ours, theirs))
        assert type(ours) is MultivariateNormal


def parts(*batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    loc, factor = torch.randn(*batch, 3, dtype=torch.float64), torch.randn(*batch, 3, 3, dtype=torch.float64)
    return loc.requires_grad_(), (factor.tril(-1) + torch.eye(3)).requires_grad_()


@pytest.mark.parametrize("knows_diagonal", [True, False])
def test_the_density_of_its_own_draw_has_the_value_and_gradient_of_any_other(knows_diagonal: bool) -> None:
    loc, factor = parts(5)
    diagonal = factor.diagonal(dim1=-2, dim2=-1) if knows_diagonal else None
    for p in (one := MultivariateNormal(loc, factor, diagonal), one.expand((4, 5))):
        z = p.rsample((2,))
        found = []
        for value in (z, z + 0):  # the latter by solving a system of equations
            log_p = p.log_prob(value)
            by_loc, by_factor = torch.autograd.grad(
                log_p.sum(), (loc, factor), retain_graph=True, allow_unused=True, materialize_grads=True
            )
            found.append((log_p, by_loc, by_factor.tril()))
        for own, other in zip(*found):
            torch.testing.assert_close(own, other)


def test_a_draw_without_gradients_is_scored_with_them() -> None:
    """It is a value like any other, which does not move with the parameters."""
    loc, factor = parts()
    p = MultivariateNormal(loc, factor)
    z = p.sample()
    (gradient,) = torch.autograd.grad(p.log_prob(z), loc)
    precision = torch.linalg.inv(factor.detach() @ factor.detach().mT)
    torch.testing.assert_close(gradient, precision @ (z - loc.detach()))
    with torch.no_grad():
        torch.testing.assert_close(p.log_prob(z), dist.MultivariateNormal(loc, scale_tril=factor).log_prob(z))


def test_many_draws_copy_no_matrix() -> None:
    p = MultivariateNormal(*(part.detach() for part in parts(5)))
    for one, shape in ((p, (7,)), (p.expand((7, 5)), ())):
        with TensorSizes(stored=True) as seen:
            one.rsample(shape)
        assert max(seen.sizes) == 7 * 5 * 3


def test_what_is_no_factor_is_refused() -> None:
    with pytest.raises(ValueError, match="LowerCholesky"):
        MultivariateNormal(torch.zeros(2), torch.ones(2, 2))

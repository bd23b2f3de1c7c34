"""What a log-density is of is found from the distribution: masses, densities, and rows of both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

import pyrovae as pv
import pyrovae.families as fam
from pyrovae.pair.supports import BOTH, DENSITY, MASS, measures_of

ROW = torch.zeros(5, 2)


class Counts(TorchDistribution):  # type: ignore[misc]
    """A distribution of counts whose support does not say that they are whole."""

    support = constraints.nonnegative
    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__(torch.Size([5]), torch.Size([2]), validate_args=False)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return torch.poisson(torch.full((*sample_shape, 5, 2), 3.0))

    def log_prob(self, value: Tensor) -> Tensor:
        return value.sum(-1)


class Unsaid(Counts):
    """The same without a support."""

    @property
    def support(self) -> Any:
        raise NotImplementedError


def normal() -> Any:
    return dist.Normal(ROW, 1.0)


def columns(*families: fam.Family) -> Any:
    family = fam.Columns(families)
    return family(torch.zeros(5, *family.param_shape))


MEASURES: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "reals": (lambda: normal().to_event(1), (DENSITY,)),
    "positive reals": (lambda: dist.LogNormal(ROW, 1.0).to_event(1), (DENSITY,)),
    "reals of some rows": (lambda: normal().to_event(1).mask(ROW[:, 0] > 0), (DENSITY,)),
    "counts": (lambda: dist.Poisson(ROW.exp()).to_event(1), (MASS,)),
    "counts from 1": (
        lambda: dist.TransformedDistribution(dist.Poisson(ROW.exp()), [dist.transforms.AffineTransform(1.0, 1.0)]),
        (MASS,),
    ),
    "a vector of counts": (lambda: dist.Multinomial(4, torch.ones(5, 3)), (MASS,)),
    "levels": (
        lambda: fam.DiscretizedLogistic(3, 4)(torch.zeros(5, *fam.DiscretizedLogistic(3, 4).param_shape)),
        (MASS,),
    ),
    "counts that do not say so": (Counts, (MASS,)),
    "counts without a support": (Unsaid, (MASS,)),
    "a point": (lambda: dist.Delta(ROW), (MASS,)),
    "shares": (lambda: dist.Dirichlet(torch.ones(5, 3)), (f"{DENSITY} of shares that sum to 1",)),
    "counts with more zeros": (lambda: dist.ZeroInflatedPoisson(ROW.exp(), gate=ROW + 0.2).to_event(1), (MASS,)),
    "reals with zeros": (
        lambda: dist.ZeroInflatedDistribution(dist.LogNormal(ROW, 1.0), gate=ROW + 0.2).to_event(1),
        (BOTH,),
    ),
    "a mixture of reals": (
        lambda: dist.MixtureSameFamily(dist.Categorical(torch.ones(5, 2)), normal()),
        (DENSITY,),
    ),
    "a mixture of counts": (
        lambda: dist.MixtureSameFamily(dist.Categorical(torch.ones(5, 2)), dist.Poisson(ROW.exp())),
        (MASS,),
    ),
    "one or the other": (
        lambda: dist.MaskedMixture(ROW > 0, dist.Poisson(ROW.exp()), normal()),
        (BOTH,),
    ),
    "columns of both": (
        lambda: columns(fam.Normal(2), fam.Categorical((), 3), fam.Poisson(())),
        (DENSITY, DENSITY, MASS, MASS),
    ),
    "columns of both, with gaps": (
        lambda: pv.distributions.ObservedOnly(columns(fam.Gamma(()), fam.Bernoulli(()))),
        (DENSITY, MASS),
    ),
    "columns of reals": (lambda: columns(fam.Normal(2), fam.Gamma(())), (DENSITY,)),
    "columns of masses": (lambda: columns(fam.Bernoulli(2), fam.Poisson(())), (MASS,)),
}


@pytest.mark.parametrize("name", MEASURES)
def test_a_distribution_says_what_its_density_is_of(name: str) -> None:
    make, wanted = MEASURES[name]
    assert measures_of(make()) == wanted
    state = torch.get_rng_state()
    measures_of(make())
    assert torch.equal(torch.get_rng_state(), state)

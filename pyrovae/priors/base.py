"""Priors: conditionals with no parents. A prior of one's own is any module whose forward() returns a distribution."""

import copy
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn import functional as F

from pyrovae.errors import PairError
from pyrovae.nets.mlp import as_size


class StandardNormal(nn.Module):
    """p(z) = N(z; 0, I). z: (*event_shape). Raises ShapeError if that is no shape.

    Kingma & Welling 2014, arXiv:1312.6114.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.event_shape = as_size(event_shape)
        self.register_buffer("loc", torch.zeros(self.event_shape), persistent=False)
        self.register_buffer("scale", torch.ones(self.event_shape), persistent=False)

    def forward(self) -> TorchDistributionMixin:
        return dist.Normal(self.loc, self.scale).to_event(len(self.event_shape))


class MixtureOfNormals(nn.Module):
    """p(z) = sum_k w_k N(z; m_k, diag(s_k^2)), everything learned. z: (*event_shape).

    w = softmax(logits), s = softplus(raw_scale) + 1e-3. It starts with equal weights, s = sqrt(1/2) and m drawn from
    N(0, 1/2): components apart, and overall the moments of the standard normal. Raises ShapeError.
    Dilokthanakul et al. 2016, arXiv:1611.02648; Bishop 2006, *Pattern Recognition and Machine Learning*, 9.2.
    """

    def __init__(self, event_shape: int | Sequence[int], num_components: int = 10) -> None:
        super().__init__()
        self.event_shape = as_size(event_shape)
        (self.num_components,) = as_size(num_components)
        shape = (self.num_components, *self.event_shape)
        self.logits = nn.Parameter(torch.zeros(self.num_components))
        self.loc = nn.Parameter(math.sqrt(0.5) * torch.randn(shape))
        self.raw_scale = nn.Parameter(torch.full(shape, math.log(math.expm1(math.sqrt(0.5)))))

    def forward(self) -> TorchDistributionMixin:
        components = dist.Normal(self.loc, F.softplus(self.raw_scale) + 1e-3).to_event(len(self.event_shape))
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), components)


class Fixed(nn.Module):
    """p(z) = a distribution that is given and stays as it is, of Pyro or of torch. z: its event_shape.

    `.to` moves the distribution's tensors; nothing of it is learned and nothing is in the state_dict. Raises PairError
    if the distribution has a batch_shape, since its event must be a whole row, or holds a tensor that wants a gradient.
    """

    def __init__(self, distribution: torch.distributions.Distribution) -> None:
        super().__init__()
        if distribution.batch_shape:
            raise PairError(
                f"A prior needs batch_shape () and a whole row as its event, got {distribution} with batch_shape "
                f"{tuple(distribution.batch_shape)} and event_shape {tuple(distribution.event_shape)}. "
                f"Call .to_event({len(distribution.batch_shape)})."
            )
        self.distribution: torch.distributions.Distribution = _mapped(distribution, _refuse_learned)

    def forward(self) -> TorchDistributionMixin:
        if isinstance(self.distribution, TorchDistributionMixin):
            return self.distribution
        return dist.MaskedDistribution(self.distribution, True)  # torch's own lack what a sample statement asks for

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Fixed":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.distribution = _mapped(self.distribution, fn)
        return self


def as_prior(prior: Any) -> nn.Module:
    """A module is a prior as it is, a distribution becomes `Fixed` (and so may raise PairError); else PairError."""
    if isinstance(prior, nn.Module):
        return prior
    if isinstance(prior, torch.distributions.Distribution):
        return Fixed(prior)
    raise PairError(
        f"A prior is a module whose forward() returns a distribution, or a distribution, got {type(prior).__name__}. "
        "Use priors.StandardNormal(num_latent), say."
    )


def _refuse_learned(tensor: Tensor) -> Tensor:
    if tensor.requires_grad:
        raise PairError(
            "A distribution as a prior stays fixed, but a tensor of this one requires a gradient and would never be "
            "trained. Detach it, or write a module that holds it as a parameter."
        )
    return tensor


_PARTS = (torch.distributions.Distribution, torch.distributions.Transform, torch.distributions.constraints.Constraint)


def _mapped(value: Any, fn: Callable[[Tensor], Tensor], done: dict[int, Any] | None = None) -> Any:
    """A copy of a distribution with fn applied to every tensor in it, however deep."""
    done = {} if done is None else done  # a transform and its inverse hold each other
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, (list, tuple)):
        return type(value)([_mapped(v, fn, done) for v in value])
    if isinstance(value, dict):
        return type(value)((k, _mapped(v, fn, done)) for k, v in value.items())
    if isinstance(value, weakref.ref):
        return None  # how older versions of torch hold that inverse: it is made anew when asked for
    if isinstance(value, _PARTS):
        done[id(value)] = new = copy.copy(value)
        new.__dict__.update((k, _mapped(v, fn, done)) for k, v in vars(value).items())
        return new
    return value

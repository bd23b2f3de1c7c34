"""Distributions on the unit sphere S^(D-1) in R^D; densities are with respect to its area."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import constraints as pyro_constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Beta

from pyrovae._shapes import broadcast_shapes


def _directions(like: Tensor, shape: torch.Size) -> Tensor:
    """Uniform draws on the sphere, shape `(*shape)`, the last dimension of unit length."""
    z = torch.randn(shape, dtype=like.dtype, device=like.device)
    return z / z.norm(dim=-1, keepdim=True).clamp_min(1e-20)


class HypersphericalUniform(TorchDistribution):  # type: ignore[misc]  # Pyro has no types
    """`p(z) = Gamma(D/2) / (2 pi^(D/2))`: uniform on the unit sphere in R^D.

    Args:
        like: A tensor `(..., D)` that gives D, dtype and device.
        batch_shape: Shape of the batch.

    Example:
        >>> p = pv.distributions.HypersphericalUniform(torch.zeros(3))
        >>> torch.allclose(p.sample((5,)).norm(dim=-1), torch.ones(5))
        True
        >>> p.log_prob(torch.tensor([0.0, 0.0, 1.0])).exp()  # 1 / (4 pi)
        tensor(0.0796)
    """

    has_rsample = True
    arg_constraints: dict[str, Any] = {}  # torch's name and form  # noqa: RUF012
    support = pyro_constraints.sphere

    def __init__(self, like: Tensor, batch_shape: torch.Size = torch.Size()) -> None:  # noqa: B008
        self.like = like
        super().__init__(batch_shape, like.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        return type(self)(self.like, torch.Size(batch_shape))

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return _directions(self.like, self._extended_shape(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        half = self.event_shape[0] / 2
        area = math.log(2) + half * math.log(math.pi) - math.lgamma(half)
        shape = broadcast_shapes(value.shape[:-1], self.batch_shape)
        return (0 * value.sum(-1) - area).expand(shape)

    @property
    def mean(self) -> Tensor:
        return torch.zeros_like(self.like).expand(self._extended_shape())


class PowerSpherical(TorchDistribution):  # type: ignore[misc]
    """`p(z) = C (1 + m.z)^k` on the unit sphere in R^D, D >= 2: unimodal around the direction m.

    `log C = -(a + b) log 2 - b log pi - lgamma(a) + lgamma(a + b)` with `b = (D - 1) / 2` and `a = b + k`. A draw has
    `m.z = 2 Beta(a, b) - 1` and a uniform direction orthogonal to m, so it is reparameterised without rejection.

    Args:
        loc: m, unit vectors, shape `(*batch, D)`.
        concentration: k, positive, shape `(*batch)`; larger values are more concentrated.

    References:
        De Cao and Aziz 2020, arXiv:2006.04437.

    Example:
        >>> north = torch.tensor([0.0, 0.0, 1.0])
        >>> p = pv.distributions.PowerSpherical(north, torch.tensor(100.0))
        >>> z = p.rsample((50,))
        >>> z.shape, bool((z[:, 2] > 0.5).all())
        (torch.Size([50, 3]), True)
        >>> p.mean  # inside the ball
        tensor([0.0000, 0.0000, 0.9804])
    """

    has_rsample = True
    arg_constraints: dict[str, Any] = {}  # torch's name and form  # noqa: RUF012
    support = pyro_constraints.sphere

    def __init__(self, loc: Tensor, concentration: Tensor) -> None:
        batch = broadcast_shapes(loc.shape[:-1], concentration.shape)
        self.loc, self.concentration = loc.expand(*batch, loc.shape[-1]), concentration.expand(batch)
        super().__init__(batch, loc.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        batch = torch.Size(batch_shape)
        return type(self)(self.loc.expand(*batch, *self.event_shape), self.concentration.expand(batch))

    @property
    def _alpha_beta(self) -> tuple[Tensor, float]:
        beta = (self.event_shape[0] - 1) / 2
        return beta + self.concentration, beta

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        shape = self._extended_shape(sample_shape)
        alpha, beta = self._alpha_beta
        w = Beta(alpha, torch.full_like(alpha, beta), validate_args=False).rsample(sample_shape).unsqueeze(-1)
        across = _directions(w, torch.Size((*shape[:-1], shape[-1] - 1)))
        # sqrt(1 - t^2) for t = 2 w - 1; the floor keeps its slope finite
        drawn = torch.cat([2 * w - 1, 2 * (w * (1 - w)).clamp_min(1e-10).sqrt() * across], -1)
        # a Householder reflection that maps the first axis to loc
        first = torch.arange(shape[-1], device=w.device) == 0
        u = first.to(w.dtype) - self.loc
        u = u / (u.square().sum(-1, keepdim=True) + 1e-20).sqrt()
        turned = drawn - 2 * u * (u * drawn).sum(-1, keepdim=True)
        return turned / turned.norm(dim=-1, keepdim=True)

    def log_prob(self, value: Tensor) -> Tensor:
        alpha, beta = self._alpha_beta
        norm = (alpha + beta) * math.log(2) + beta * math.log(math.pi) + torch.lgamma(alpha)
        cosine = (self.loc * value).sum(-1)
        return self.concentration * torch.log1p(cosine.clamp_min(-1 + 1e-6)) - norm + torch.lgamma(alpha + beta)

    @property
    def mean(self) -> Tensor:
        """`E[z] = m (a - b) / (a + b)`, a vector inside the ball."""
        alpha, beta = self._alpha_beta
        return self.loc * ((alpha - beta) / (alpha + beta)).unsqueeze(-1)

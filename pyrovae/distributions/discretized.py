"""Distributions of numbers rounded to levels: the discretised logistic, and its mixture for the pixels of an image."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F

from pyrovae.distributions.numerics import log_sigmoid_difference


def log_mass(value: Tensor, loc: Tensor, scale: Tensor, levels: int) -> Tensor:
    """The log-mass of levels `0, ..., levels - 1` under a logistic density on [-1, 1]; the end levels include the tails."""
    half = 1 / (levels - 1)
    y = value * (2 * half) - 1
    upper, lower, width = (y + half - loc) / scale, (y - half - loc) / scale, 2 * half / scale
    inside = log_sigmoid_difference(upper, lower, width)
    return torch.where(
        value < 0.5, F.logsigmoid(upper), torch.where(value > levels - 1.5, F.logsigmoid(-lower), inside)
    )


def moments(loc: Tensor, scale: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """`E[x] = sum_k P(x >= k)` and `E[x^2] = sum_k (2 k - 1) P(x >= k)` over `k = 1, ..., levels - 1`, one level at a time."""
    first, second = torch.zeros_like(loc), torch.zeros_like(loc)
    for k in range(1, levels):
        above = torch.sigmoid((loc - ((2 * k - 1) / (levels - 1) - 1)) / scale)
        first, second = first + above, second + (2 * k - 1) * above
    return first, second


def draw(loc: Tensor, scale: Tensor, levels: int) -> Tensor:
    """Draw a level for each element of loc and scale."""
    tiny = torch.finfo(loc.dtype).tiny
    u = torch.rand_like(loc).clamp(tiny, 1 - torch.finfo(loc.dtype).eps)
    y = loc + scale * (u.log() - torch.log1p(-u))
    return ((y + 1) * ((levels - 1) / 2)).round().clamp(0.0, levels - 1.0)


class DiscretizedLogistic(TorchDistribution):  # type: ignore[misc]  # Pyro has no types
    """`P(x = k) = s((y_k + h - m) / t) - s((y_k - h - m) / t)` for `k = 0, ..., levels - 1`.

    Here `y_k = 2 k / (levels - 1) - 1` is level k on [-1, 1], `h = 1 / (levels - 1)`, m is `loc`, t is `scale` and s the
    logistic function. The end levels include the tails, so that the masses sum to 1.

    Args:
        loc: m, in the units of [-1, 1], shape `(*batch)`.
        scale: t, positive, shape `(*batch)`; it broadcasts with `loc`.
        levels: The number of levels, 256 for a byte.
        validate_args: Whether to check values, as in torch.

    References:
        Salimans, Karpathy, Chen and Kingma 2017, arXiv:1701.05517.

    Example:
        >>> p = pv.distributions.DiscretizedLogistic(torch.tensor(0.0), torch.tensor(0.3), levels=5)
        >>> masses = p.log_prob(torch.arange(5.0)).exp()
        >>> round(masses.sum().item(), 5), int(masses.argmax())
        (1.0, 2)
        >>> p.mean
        tensor(2.)
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # torch's name and form  # noqa: RUF012

    def __init__(self, loc: Tensor, scale: Tensor, levels: int, validate_args: bool | None = None) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.levels = levels
        super().__init__(self.loc.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        return constraints.integer_interval(0, self.levels - 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> DiscretizedLogistic:
        shape = torch.Size(batch_shape)
        return DiscretizedLogistic(
            self.loc.expand(shape), self.scale.expand(shape), self.levels, validate_args=self._validate_args
        )

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return log_mass(value, self.loc, self.scale, self.levels)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # torch's signature  # noqa: B008
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            return draw(self.loc.expand(shape), self.scale.expand(shape), self.levels)

    @property
    def mean(self) -> Tensor:
        return moments(self.loc, self.scale, self.levels)[0]

    @property
    def variance(self) -> Tensor:
        first, second = moments(self.loc, self.scale, self.levels)
        return (second - first.square()).clamp_min(0.0)


class DiscretizedLogisticMixture(TorchDistribution):  # type: ignore[misc]
    """`p(x) = prod over pixels of sum_k pi_k prod_c P(x_c; m_kc + sum_{j < c} a_kcj y_j, t_kc)`: colour images.

    P is the mass of `DiscretizedLogistic` and y_j the level of channel j on [-1, 1]. All channels of a pixel share its
    component, and later channels depend linearly on earlier ones. Images x have shape `(*batch, C, H, W)` and values
    `0, ..., levels - 1`. `mean` is exact for C = 1; for more channels it uses the mean of earlier channels in later ones, which
    is exact up to clipping at the ends.

    Args:
        logits: Unnormalised log-probabilities of the components, shape `(*batch, K, H, W)`.
        loc: m, shape `(*batch, K, C, H, W)`.
        scale: t, positive, shape `(*batch, K, C, H, W)`.
        coefficients: a, shape `(*batch, K, C (C - 1) / 2, H, W)`, for the channels (1, 0), (2, 0), (2, 1), ...
        levels: The number of levels, 256 for a byte.
        validate_args: Whether to check values, as in torch.

    References:
        Salimans, Karpathy, Chen and Kingma 2017, arXiv:1701.05517.

    Example:
        >>> K, C, H, W = 5, 3, 4, 4
        >>> p = pv.distributions.DiscretizedLogisticMixture(
        ...     logits=torch.zeros(2, K, H, W), loc=torch.zeros(2, K, C, H, W), scale=torch.ones(2, K, C, H, W),
        ...     coefficients=torch.zeros(2, K, 3, H, W), levels=256)
        >>> images = p.sample()
        >>> images.shape, p.log_prob(images).shape
        (torch.Size([2, 3, 4, 4]), torch.Size([2]))
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(
        self,
        logits: Tensor,
        loc: Tensor,
        scale: Tensor,
        coefficients: Tensor,
        levels: int,
        validate_args: bool | None = None,
    ) -> None:
        self.logits, self.loc, self.scale, self.coefficients, self.levels = logits, loc, scale, coefficients, levels
        super().__init__(logits.shape[:-3], loc.shape[-3:], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=3)
    def support(self) -> Any:
        return constraints.independent(constraints.integer_interval(0, self.levels - 1), 3)

    def expand(self, batch_shape: Any, _instance: Any = None) -> DiscretizedLogisticMixture:
        shape, n = torch.Size(batch_shape), len(self.batch_shape)
        own = [t.expand(shape + t.shape[n:]) for t in (self.logits, self.loc, self.scale, self.coefficients)]
        return DiscretizedLogisticMixture(own[0], own[1], own[2], own[3], self.levels, self._validate_args)

    def _shifted(self, c: int, y: list[Tensor]) -> Tensor:
        """The location of channel c given the channels y before it, shape `(*batch, K, H, W)`."""
        loc = self.loc[..., c, :, :]
        start = c * (c - 1) // 2
        for j in range(c):
            loc = loc + self.coefficients[..., start + j, :, :] * y[j]
        return loc

    def _unit(self, levels: Tensor) -> Tensor:
        return levels * (2 / (self.levels - 1)) - 1

    def _log_prob_of_pixels(self, value: Tensor) -> Tensor:
        channels = value.unsqueeze(-4).unbind(-3)
        y = [self._unit(c) for c in channels]
        found = F.log_softmax(self.logits, -3)
        for c, x in enumerate(channels):
            found = found + log_mass(x, self._shifted(c, y), self.scale[..., c, :, :], self.levels)
        return torch.logsumexp(found, -3)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self._log_prob_of_pixels(value).sum((-1, -2))

    @property
    def log_prob_elements(self) -> Any:
        """A function from x to each element's log-mass, `(*batch, 1, H, W)`; None for several (dependent) channels."""
        if self.event_shape[0] > 1:
            return None
        return lambda value: self._log_prob_of_pixels(value).unsqueeze(-3)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        with torch.no_grad():
            whole = self.expand(torch.Size(sample_shape) + self.batch_shape)
            gumbel = -torch.empty_like(whole.logits).exponential_().log()
            k = (whole.logits + gumbel).argmax(-3, keepdim=True)
            channels: list[Tensor] = []
            for c in range(self.event_shape[0]):
                loc = whole._shifted(c, [self._unit(x) for x in channels]).gather(-3, k)
                channels.append(draw(loc, whole.scale[..., c, :, :].gather(-3, k), self.levels))
            return torch.cat(channels, -3)

    @property
    def mean(self) -> Tensor:
        means: list[Tensor] = []
        for c in range(self.event_shape[0]):
            loc = self._shifted(c, [self._unit(m) for m in means])
            means.append(moments(loc, self.scale[..., c, :, :], self.levels)[0])
        return (F.softmax(self.logits, -3).unsqueeze(-3) * torch.stack(means, -3)).sum(-4)

"""A distribution of numbers in [0, 1] that torch has too, computed accurately and without reading values on the host."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

SERIES = 0.5  # for |l| below this, power series are used; their first omitted term is 4e-10 here


class ContinuousBernoulli(TorchDistribution):  # type: ignore[misc]  # Pyro has no types
    """`log p(x) = l (x - 1/2) + log((l / 2) / sinh(l / 2))` for x in [0, 1], l the logits.

    It is normalised for any logits. torch's own distribution clamps probabilities at machine precision, so that from
    `|l| = 17` on its density does not integrate to one in float32.

    Args:
        logits: l, any real numbers, shape `(*batch)`.
        validate_args: Whether to check values, as in torch.

    References:
        Loaiza-Ganem and Cunningham 2019, arXiv:1907.06845.

    Example:
        >>> p = pv.distributions.ContinuousBernoulli(torch.tensor([0.0, 30.0]))
        >>> p.log_prob(torch.tensor(1.0))
        tensor([0.0000, 3.4012])
        >>> p.mean
        tensor([0.5000, 0.9667])
    """

    arg_constraints = {"logits": constraints.real}  # torch's name and form  # noqa: RUF012
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ContinuousBernoulli:
        return ContinuousBernoulli(self.logits.expand(torch.Size(batch_shape)), validate_args=self._validate_args)

    def _split(self, bound: float = SERIES) -> tuple[Tensor, Tensor, Tensor]:
        near = self.logits.abs() < bound
        one, zero = torch.ones_like(self.logits), torch.zeros_like(self.logits)
        return near, torch.where(near, self.logits, zero), torch.where(near, one, self.logits)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        near, small, large = self._split()
        a, square = large.abs(), small.square()
        far = a.log() - a / 2 - torch.log1p(-torch.exp(-a))
        series = -square / 24 * (1 - square / 120 * (1 - square * 2 / 126))
        return self.logits * (value - 0.5) + torch.where(near, series, far)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # torch's signature  # noqa: B008
        shape = self._extended_shape(sample_shape)
        u = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        near, small, large = self._split(1e-3)
        # invert the distribution function for -|l|, which cannot overflow, and reflect for l > 0
        falling = -torch.log1p(u * torch.expm1(-large.abs())) / large.abs()
        far = torch.where(large < 0, falling, 1 - falling)
        return torch.where(near, u + small * u * (1 - u) / 2, far).clamp(0.0, 1.0)

    @property
    def mean(self) -> Tensor:
        near, small, large = self._split()
        square = small.square()
        series = small / 12 * (1 - square / 60 * (1 - square / 42))
        return 0.5 + torch.where(near, series, 0.5 / torch.tanh(large / 2) - 1 / large)

    @property
    def variance(self) -> Tensor:
        near, small, large = self._split()
        square = small.square()
        series = 1 / 12 - square / 240 * (1 - square * 240 / 6048)
        half = torch.exp(-large.abs() / 2)  # 1 / sinh(l / 2) = 2 half / (1 - half^2)
        return torch.where(near, series, 1 / large.square() - (half / (1 - half.square())).square())

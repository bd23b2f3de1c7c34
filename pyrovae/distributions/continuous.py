"""Densities of numbers that torch has, in a form that keeps its digits and reads nothing on the host."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

SERIES = 0.5  # below it the functions of l below are summed as series: the next term is 4e-10 there


class ContinuousBernoulli(TorchDistribution):  # type: ignore[misc]  # Pyro has no types
    """log p(x) = l (x - 1/2) + log((l / 2) / sinh(l / 2)) for x in [0, 1], l = logits.

    logits: (*batch), any number: torch's one cuts probabilities at machine precision and so is not normalised from
    |l| = 17 on in float32. Loaiza-Ganem & Cunningham 2019, arXiv:1907.06845.
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
        # the inverse of the distribution function of -|l|, reflected for l > 0
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

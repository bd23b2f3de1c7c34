"""Densities of numbers that torch has, in a form that keeps its digits and reads nothing on the host."""

from __future__ import annotations

import math
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

    arg_constraints = {"logits": constraints.real}  # noqa: RUF012  # torch's name and form
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

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008  # torch's signature
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


class StudentT(TorchDistribution):  # type: ignore[misc]
    """p(x) = Gamma((v + 1) / 2) / (Gamma(v / 2) sqrt(pi v) s) (1 + ((x - m) / s)^2 / v)^(-(v + 1) / 2), v = df.

    df, loc, scale: (*batch), broadcast. mean is NaN for df <= 1, variance infinite for df <= 2. torch's one makes its
    chi-square distribution, and a constant on the device, at every call. Student 1908, Biometrika 6.
    """

    arg_constraints = {"df": constraints.positive, "loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012
    support = constraints.real
    has_rsample = True

    def __init__(self, df: Tensor, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        self.df, self.loc, self.scale = torch.broadcast_tensors(df, loc, scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> StudentT:
        shape = torch.Size(batch_shape)
        return StudentT(
            self.df.expand(shape), self.loc.expand(shape), self.scale.expand(shape), validate_args=self._validate_args
        )

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        half, y = self.df / 2, (value - self.loc) / self.scale
        norm = torch.lgamma(half + 0.5) - torch.lgamma(half) - 0.5 * (self.df.log() + math.log(math.pi))
        return norm - self.scale.log() - (half + 0.5) * torch.log1p(y.square() / self.df)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        shape = self._extended_shape(sample_shape)
        chi2 = 2 * torch._standard_gamma((self.df / 2).expand(shape))
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + self.scale * noise * torch.rsqrt(chi2 / self.df)

    @property
    def mean(self) -> Tensor:
        return torch.where(self.df > 1, self.loc, self.loc.new_full((), math.nan))

    @property
    def variance(self) -> Tensor:
        found = self.scale.square() * self.df / torch.where(self.df > 2, self.df - 2, torch.ones_like(self.df))
        infinite = torch.where(self.df > 2, found, found.new_full((), math.inf))
        return torch.where(self.df > 1, infinite, found.new_full((), math.nan))

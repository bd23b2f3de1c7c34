"""The Normal as tables have it: in units of its own, on a linear or a log scale, recorded to a resolution, within bounds."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyrovae.distributions.recorded import Cells, log_density


class Between(constraints.Constraint):
    """`low <= x <= high` element by element, where either bound may be infinite; `inside` is a value between them."""

    def __init__(self, low: Tensor, high: Tensor, inside: Tensor) -> None:
        self.low, self.high, self.inside = low, high, inside
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        return (value >= self.low) & (value <= self.high)

    def of_element(self, column: int) -> Between:
        """The constraint of one element of the last dimension."""
        return Between(*(bound[..., column] for bound in (self.low, self.high, self.inside)))

    def __repr__(self) -> str:
        low, high = self.low, self.high
        return f"between {low.item():g} and {high.item():g}" if low.numel() == 1 else "between bounds of each column"


class Scale(NamedTuple):
    """How numbers are measured: `t(x) = (x - centre) / spread`, or `(log(x + offset) - centre) / spread` where `logs`.

    All are tensors that broadcast to the numbers; `any_steps` says at once whether some step is positive, and `any_bounds`
    whether some of these have a bound.
    """

    centre: Tensor
    spread: Tensor
    logs: Tensor
    offset: Tensor
    step: Tensor
    low: Tensor
    high: Tensor
    any_steps: bool
    any_bounds: bool

    def standardise(self, x: Tensor) -> Tensor:
        """t(x). What has no logarithm counts as the smallest number that has one."""
        return (torch.where(self.logs, self._measured(x).log(), x) - self.centre) / self.spread

    def invert(self, t: Tensor) -> Tensor:
        """x, from t."""
        u = self.centre + self.spread * t
        return torch.where(self.logs, torch.exp(u.clamp_max(80.0)) - self.offset, u)

    def log_slope(self, x: Tensor) -> Tensor:
        """`log dt/dx`."""
        return -self._measured(x).log() - self.spread.log()

    def _measured(self, x: Tensor) -> Tensor:
        """What the logarithm is taken of, 1 on a linear scale."""
        return torch.where(self.logs, x + self.offset, 1.0).clamp_min(torch.finfo(x.dtype).tiny)

    def cells(self, x: Tensor) -> Cells:
        """The numbers t that are recorded as x: from `t(x - step / 2)` to `t(x + step / 2)`, or on where x is at a bound.

        The width is exact, however small the step is beside x.
        """
        half, of = self.step / 2, self._measured(x)
        share = half / of
        above = torch.where(self.logs, torch.log1p(share), half)
        below = torch.where(self.logs, torch.log1p(-share.clamp_max(1 - 1e-6)), -half)
        logged = of.log()
        t = (torch.where(self.logs, logged, x) - self.centre) / self.spread
        width = (above - below) / self.spread
        stepped = self.step > 0
        log_step = torch.where(stepped, self.step, 1.0).log()
        log_rate = torch.where(stepped, width.clamp_min(1e-30).log() - log_step, -logged - self.spread.log())
        ends = None
        if self.any_bounds:
            quarter = self.step / 4
            low, high = (x < self.low + quarter) & stepped, (x > self.high - quarter) & stepped
            ends = torch.where(high, -1.0, low.to(x.dtype))
        return Cells(t + (above + below) / (2 * self.spread), width, log_rate, log_step, ends)


class RoundedNormal(TorchDistribution):  # type: ignore[misc]  # Pyro has no types
    """`t(x) ~ N(m, s^2)`, where x is recorded to the nearest multiple of a step, within bounds.

    The density is in the units of x. Without a step it is `N(t(x); m, s^2) dt/dx`. With a step d it is the mean density over
    the numbers that are recorded as x, `[Phi((t(x + d/2) - m) / s) - Phi((t(x - d/2) - m) / s)] / d`, which is bounded by
    1 / d, so that repeated values cannot make it infinite; times d it is the probability of x. Where the step is positive, a
    bound takes what lies beyond it: at `low` the cell reaches to minus infinity, at `high` to infinity. A share of zeros is
    modelled so.

    Args:
        loc: m, shape `(*batch)`.
        scale: s, positive, shape `(*batch)`.
        measured: The scale that x is measured on; its tensors broadcast to the batch.

    References:
        Heitjan 1989, Statistical Science 4(2), on rounded data; Tobin 1958, Econometrica 26(1), on bounds.

    Example:
        >>> counts = fam.RoundedNormal(1, step=1.0, low=0.0)(torch.zeros(2, 1)).base_dist
        >>> masses = counts.log_prob(torch.arange(30.0).unsqueeze(-1)).exp()  # of 0, 1, 2, ..., since the step is 1
        >>> round(masses.sum().item(), 4)
        1.0
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # torch's name and form  # noqa: RUF012
    has_rsample = False

    def __init__(self, loc: Tensor, scale: Tensor, measured: Scale) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.measured = measured
        super().__init__(self.loc.shape, validate_args=False)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> Any:
        of = self.measured
        return Between(of.low, of.high, of.invert(torch.zeros_like(of.centre)).clamp(of.low, of.high))

    def expand(self, batch_shape: Any, _instance: Any = None) -> RoundedNormal:
        shape = torch.Size(batch_shape)
        return RoundedNormal(self.loc.expand(shape), self.scale.expand(shape), self.measured)

    def log_prob(self, value: Tensor) -> Tensor:
        of = self.measured
        if of.any_steps:
            return log_density(self.loc, self.scale, of.cells(value))
        z = (of.standardise(value) - self.loc) / self.scale
        return -0.5 * z.square() - self.scale.log() - 0.5 * math.log(2 * math.pi) + of.log_slope(value)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # torch's signature  # noqa: B008
        of = self.measured
        with torch.no_grad():
            shape = self._extended_shape(sample_shape)
            x = of.invert(self.loc + self.scale * torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device))
            step = torch.where(of.step > 0, of.step, torch.ones_like(of.step))
            # 46 / 10 is the number that 4.6 is read as, and 46 * 0.1 is not
            parts = torch.round(1 / step).clamp_min(1.0)
            rounded = torch.where(step < 1, torch.round(x * parts) / parts, torch.round(x / step) * step)
            exact = torch.where((parts * step - 1).abs() < 1e-5, rounded, torch.round(x / step) * step)
            return torch.where(of.step > 0, exact, x).clamp(of.low, of.high)

    @property
    def mean(self) -> Tensor:
        """The mean before x is recorded, clamped to the bounds."""
        of = self.measured
        shift = torch.where(of.logs, 0.5 * of.spread * self.scale.square(), torch.zeros_like(self.scale))
        return of.invert(self.loc + shift).clamp(of.low, of.high)

    @property
    def variance(self) -> Tensor:
        """The variance before x is recorded."""
        of = self.measured
        s2 = (of.spread * self.scale).square()
        top = torch.exp((2 * (of.centre + of.spread * self.loc) + s2).clamp_max(80.0))
        return torch.where(of.logs, torch.expm1(s2.clamp_max(80.0)) * top, s2)

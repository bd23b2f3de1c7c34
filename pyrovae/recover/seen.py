"""Likelihoods of corrupted rows, `p(x_seen | z)`, where x can be integrated out; and x given what was seen."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyrovae.distributions import ObservedOnly
from pyrovae.distributions.missing import draw_missing, mean_missing
from pyrovae.recover.corruptions import Clip, Corruption, Mask
from pyrovae.recover.linear import LinearMap, solve

MOST_VALUES = 1024  # of an element, which are summed over


class Seen(TorchDistribution):  # type: ignore[misc]  # Pyro has no types
    """`p(x_seen | z) = E[p(x_seen | x)]` over a likelihood `p(x | z)`; entries of x_seen that are NaN are left out.

    Args:
        whole: The likelihood.
        corruption: The corruption.
        event_shape: Of a seen row.
    """

    arg_constraints: dict[str, Any] = {}  # torch's name and form  # noqa: RUF012
    exact = True

    def __init__(self, whole: Any, corruption: Corruption, event_shape: torch.Size) -> None:
        self.whole, self.corruption = whole, corruption
        super().__init__(whole.batch_shape, event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        return type(self)(self.whole.expand(torch.Size(batch_shape)), self.corruption, self.event_shape)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        return constraints.independent(constraints.real, len(self.event_shape))

    def given(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """A draw of x given what was seen, and its mean, `(*batch, *event)` each."""
        raise NotImplementedError

    def _sum(self, log_prob: Tensor, seen: Tensor) -> Tensor:
        """The log-density of rows from that of elements."""
        log_prob = torch.where(seen.isnan(), 0.0, log_prob)
        n = len(self.event_shape)
        return log_prob.flatten(log_prob.dim() - n).sum(-1) if n else log_prob


class SeenInPart(Seen):
    """Some elements are seen."""

    def log_prob(self, value: Tensor) -> Tensor:
        return ObservedOnly(self.whole).log_prob(value)

    def given(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        drawn = draw_missing(self.whole, seen)
        mean = mean_missing(self.whole, seen)
        mean = drawn if mean is None else torch.where(mean.isfinite(), mean, drawn)
        return torch.where(seen.isnan(), drawn, seen), torch.where(seen.isnan(), mean, seen)


class SeenByValue(Seen):
    """Independent elements of few values v: `p(x_seen) = prod_d sum_v p(v) p(x_seen_d | f(v))`."""

    def _log_posterior(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """The values, `(V, 1, ..., *event)`, and their log-probabilities together with what was seen, `(V, *batch, *event)`."""
        base = inner(self.whole)
        values = base.enumerate_support(expand=False).reshape(
            -1, *[1] * (len(self.batch_shape)), *[1] * seen_dims(self)
        )
        values = values.expand(*values.shape[: 1 + len(self.batch_shape)], *self.event_shape)
        wanted = self.corruption.function(values.to(seen.dtype))
        sd = torch.as_tensor(self.corruption.sd).to(seen)
        filled = seen.nan_to_num(0.0)
        log_p = base.log_prob(values)
        exactly = torch.where((filled - wanted).abs() < 1e-5 * (1 + wanted.abs()), 0.0, -math.inf).to(log_p.dtype)
        noisy = (
            -0.5 * ((filled - wanted) / sd.clamp_min(1e-30)) ** 2
            - sd.clamp_min(1e-30).log()
            - 0.5 * math.log(2 * math.pi)
        )
        likely = torch.where(sd > 0, noisy, exactly)
        return values, log_p + torch.where(seen.isnan(), 0.0, likely)

    def log_prob(self, value: Tensor) -> Tensor:
        return self._sum(self._log_posterior(value)[1].logsumexp(0), value)

    def given(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        values, log_p = self._log_posterior(seen)
        shares = log_p.movedim(0, -1).softmax(-1)
        which = torch.distributions.Categorical(probs=shares, validate_args=False).sample()
        each = values.to(shares.dtype).movedim(0, -1)
        drawn = each.expand(shares.shape).gather(-1, which[..., None])[..., 0]
        return drawn, (shares * each).sum(-1)


class SeenClipped(Seen):
    """Independent Normals, cut off at an end or two: beyond it the probability counts, and not the density."""

    def _ends(self, seen: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Location, scale, where the lower end is seen, and where the upper one is."""
        base, clip = inner(self.whole), self.corruption
        assert isinstance(clip, Clip)
        nowhere = torch.zeros_like(seen, dtype=torch.bool)
        low = nowhere if clip.low is None else seen <= clip.low
        return base.loc, base.scale, low, nowhere if clip.high is None else seen >= clip.high

    def log_prob(self, value: Tensor) -> Tensor:
        loc, scale, low, high = self._ends(value)
        z = (value.nan_to_num(0.0) - loc) / scale
        inside = -0.5 * z.square() - scale.log() - 0.5 * math.log(2 * math.pi)
        return self._sum(
            torch.where(low, torch.special.log_ndtr(z), torch.where(high, torch.special.log_ndtr(-z), inside)), value
        )

    def given(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        loc, scale, low, high = self._ends(seen)
        sign = torch.where(low, -1.0, 1.0).double()
        beyond = sign * ((seen.nan_to_num(0.0) - loc) / scale).double()  # of a standard normal, how far the end is out
        u = torch.rand_like(beyond).clamp_min(1e-12)
        near = -torch.special.ndtri(u * torch.special.ndtr(-beyond))
        far = beyond - u.log() / beyond.clamp_min(1.0)
        drawn = loc + scale * (sign * torch.where(beyond < 20, near, far)).to(loc)
        hazard = (-0.5 * beyond.square() - 0.5 * math.log(2 * math.pi) - torch.special.log_ndtr(-beyond)).exp()
        mean = loc + scale * (sign * hazard).to(loc)
        cut, missing = low | high, seen.isnan()
        normal = loc + scale * torch.randn_like(drawn)
        drawn = torch.where(cut, drawn, torch.where(missing, normal, seen))
        return drawn, torch.where(cut, mean, torch.where(missing, loc.expand_as(drawn), seen))


class SeenLinearly(Seen):
    """`x_seen = A x + sd e` of independent Normals, and of other likelihoods as if they were Normals of their moments."""

    def __init__(self, whole: Any, corruption: Corruption, event_shape: torch.Size, linear: LinearMap) -> None:
        super().__init__(whole, corruption, event_shape)
        self.linear, self.exact = linear, isinstance(inner(whole), dist.Normal)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        whole = self.whole.expand(torch.Size(batch_shape))
        return type(self)(whole, self.corruption, self.event_shape, self.linear)

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean of x, `(*batch, D)` float64, and variance, of size 1 along dimensions along which it is repeated."""
        whole, base, batch = self.whole, inner(self.whole), self.batch_shape
        spread = base.scale if self.exact else whole.variance
        spread = spread.expand(*batch, *whole.event_shape)
        for dim in range(len(batch)):
            spread = spread.narrow(dim, 0, 1) if spread.stride(dim) == 0 else spread
        mean = whole.mean.expand(*batch, *whole.event_shape)
        mean, spread = (part.reshape(*part.shape[: len(batch)], -1).double() for part in (mean, spread))
        return mean, spread.square() if self.exact else spread

    def _in_blocks(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """What was seen, `(*batch, B, m)`, and which of it is there."""
        found = self.linear.pick(seen.reshape(*seen.shape[: seen.dim() - len(self.event_shape)], -1).double())
        return found.nan_to_num(0.0), ~found.isnan()

    def log_prob(self, value: Tensor) -> Tensor:
        mean, variance = self._moments()
        seen, there = self._in_blocks(value)
        factor = self.linear.factor(variance, there)
        squared = solve(factor, torch.where(there, seen - self.linear.times(mean), 0.0)).square().sum((-1, -2))
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum((-1, -2))
        constant = 0.5 * math.log(2 * math.pi) * there.sum((-1, -2), dtype=squared.dtype)
        return (-0.5 * squared - log_det - constant).to(value.dtype)

    def given(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = self._moments()
        wanted, there = self._in_blocks(seen)
        factor = self.linear.factor(variance, there)
        x = mean + variance.sqrt() * torch.randn_like(mean)  # moved to what was seen, by Matheron's rule
        noise = self.linear.sd * torch.randn(*mean.shape[:-1], *self.linear.sd.shape).to(mean)
        found = []
        for at, error in ((x, noise), (mean, 0.0)):
            difference = torch.where(there, wanted - self.linear.times(at) - error, 0.0)
            solved = solve(factor, solve(factor, difference), transposed=True)
            found.append(at + variance * self.linear.transposed_times(solved))
        shape = (*mean.shape[:-1], *self.whole.event_shape)
        drawn, middle = (part.reshape(shape).to(seen.dtype) for part in found)
        return drawn, middle


def integrated(fn: Any, corruption: Corruption, event_shape: torch.Size, linear: LinearMap | None) -> Seen | None:
    """The likelihood of corrupted rows, if x can be integrated out of it; None where x has to be drawn.

    Args:
        fn: The likelihood of x.
        corruption: The corruption.
        event_shape: Of a seen row.
        linear: The corruption as a matrix, if it is linear.
    """
    while isinstance(fn, ObservedOnly):
        fn = fn.whole
    base = inner(fn)
    elementwise = not base.event_shape
    if isinstance(corruption, Mask):
        return SeenInPart(fn, corruption, event_shape)
    if corruption.elementwise and elementwise and _few_values(base):
        return SeenByValue(fn, corruption, event_shape)
    if isinstance(corruption, Clip) and elementwise and isinstance(base, dist.Normal):
        return SeenClipped(fn, corruption, event_shape)
    if linear is not None and elementwise and has_moments(fn):
        return SeenLinearly(fn, corruption, event_shape, linear)
    return None


def inner(fn: Any) -> Any:
    """The distribution of elements inside one of rows."""
    while isinstance(fn, dist.Independent):
        fn = fn.base_dist
    return fn


def seen_dims(fn: Seen) -> int:
    return len(fn.event_shape)


def _few_values(base: Any) -> bool:
    if not getattr(base, "has_enumerate_support", False):
        return False
    try:
        return len(base.enumerate_support(expand=False)) <= MOST_VALUES
    except NotImplementedError:
        return False


def has_moments(fn: Any) -> bool:
    """Whether a distribution knows its mean and variance."""
    try:
        return bool(fn.mean.isfinite().all()) and bool(fn.variance.isfinite().all())
    except (NotImplementedError, AttributeError):
        return False

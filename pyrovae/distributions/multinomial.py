"""Bags of words: counts of V kinds, with a total that may differ from row to row."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F

from pyrovae._shapes import broadcast_shapes
from pyrovae.errors import PairError


class Multinomial(TorchDistribution):  # type: ignore[misc]  # Pyro has no types
    """`p(x | n) = n! / prod_v x_v! prod_v p_v^x_v` with `n = sum_v x_v` and p = softmax(logits).

    `log_prob` takes the total n of each row from x. Draws and moments need `total_count`, which may differ from row to row;
    torch's Multinomial draws rows of one total only.

    Args:
        logits: Unnormalised log-probabilities, shape `(*batch, V)`.
        total_count: n for draws and moments, shape `(*batch)`, or None.
        validate_args: Whether to check values, as in torch.

    Raises:
        PairError: `sample`, `mean` or `variance` without `total_count`.

    Example:
        >>> p = pv.distributions.Multinomial(torch.zeros(2, 4), total_count=torch.tensor([3, 100]))
        >>> p.sample().sum(-1)
        tensor([  3., 100.])
        >>> p.log_prob(torch.tensor([1.0, 0.0, 0.0, 0.0])).exp()
        tensor([0.2500, 0.2500])
    """

    arg_constraints = {"logits": constraints.real_vector}  # torch's name and form  # noqa: RUF012
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(self, logits: Tensor, total_count: Tensor | None = None, validate_args: bool | None = None) -> None:
        self.logits = logits
        if total_count is not None:
            shape = broadcast_shapes(logits.shape[:-1], total_count.shape)
            self.logits, total_count = logits.expand(*shape, -1), total_count.expand(shape)
        self.total_count = total_count
        super().__init__(self.logits.shape[:-1], self.logits.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Multinomial:
        shape = torch.Size(batch_shape)
        total = None if self.total_count is None else self.total_count.expand(shape)
        return Multinomial(self.logits.expand(shape + self.event_shape), total, validate_args=self._validate_args)

    @property
    def probs(self) -> Tensor:
        return F.softmax(self.logits, -1)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        ways = torch.lgamma(value.sum(-1) + 1) - torch.lgamma(value + 1).sum(-1)
        return ways + (value * F.log_softmax(self.logits, -1)).sum(-1)

    def _total(self) -> Tensor:
        if self.total_count is None:
            raise PairError(
                "A Multinomial needs total_count for draws and for its mean. Pass the total of each row to the likelihood, "
                "total_count=n with n of shape (*batch), or give the family one, Multinomial(V, total_count=100)."
            )
        return self.total_count.to(self.logits.dtype)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # torch's signature  # noqa: B008
        """Draw by halving the kinds again and again: the count of one half is Binomial given that of the whole."""
        with torch.no_grad():
            probs, size = self.probs, self.event_shape[0]
            depth = (size - 1).bit_length()
            sums = [F.pad(probs, (0, 2**depth - size))]
            for _ in range(depth):
                sums.append(sums[-1].unflatten(-1, (-1, 2)).sum(-1))
            count = self._total().expand(self._extended_shape(sample_shape)[:-1]).unsqueeze(-1)
            tiny = torch.finfo(probs.dtype).tiny
            for below, whole in zip(sums[-2::-1], sums[:0:-1]):
                share = (below[..., ::2] / whole.clamp_min(tiny)).clamp(0.0, 1.0)
                # where the right half has no kinds, rounding must not give it a share
                share = torch.where(below[..., 1::2] > 0, share, torch.ones_like(share))
                left = torch.binomial(count.contiguous(), share.expand(count.shape).contiguous())
                count = torch.stack([left, count - left], -1).flatten(-2)
            return count[..., :size]

    @property
    def mean(self) -> Tensor:
        return self._total().unsqueeze(-1) * self.probs

    @property
    def variance(self) -> Tensor:
        return self._total().unsqueeze(-1) * self.probs * (1 - self.probs)

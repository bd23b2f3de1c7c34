"""Sequences in which every value depends on the one before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyrovae.errors import PairError


class MarkovChain(TorchDistribution):  # type: ignore[misc]  # Pyro has no types
    """`p(z_1, ..., z_T) = p(z_1) prod_t p(z_t | z_(t-1))`: a Markov chain of T values, drawn one after the other.

    Its log-density needs no loop: given the whole sequence, all steps are known at once, and are computed as one batch.

    Args:
        initial: The distribution of z_1, batch shape `(*batch)` and event shape `(L,)`.
        transition: `transition(z, t)` is the distribution of the next value given z, `(*batch, L)`, with that batch shape. t is
            its place, from 1 to T - 1, counted from 0; or, for z `(*batch, T - 1, L)`, the slice of all places, so that what a
            guide knows of each step is `h[..., t, :]`.
        num_steps: T, at least 1.

    Raises:
        PairError: T is less than 1, or the event shape of `initial` is not `(L,)`.

    References:
        Krishnan, Shalit and Sontag 2017, arXiv:1609.09869. Rabiner 1989, doi:10.1109/5.18626.

    Example:
        >>> import pyro.distributions as dist
        >>> walk = pv.distributions.MarkovChain(
        ...     initial=dist.Normal(torch.zeros(2), 1.0).to_event(1),
        ...     transition=lambda z, t: dist.Normal(z, 0.1).to_event(1),
        ...     num_steps=5,
        ... )
        >>> z = walk.rsample((3,))
        >>> z.shape, walk.log_prob(z).shape
        (torch.Size([3, 5, 2]), torch.Size([3]))
    """

    arg_constraints: dict[str, Any] = {}  # torch's name and form  # noqa: RUF012
    support = constraints.independent(constraints.real, 2)

    def __init__(self, initial: Any, transition: Callable[[Tensor, Any], Any], num_steps: int) -> None:
        if num_steps < 1 or len(initial.event_shape) != 1:
            raise PairError(
                "MarkovChain needs at least one step and an initial distribution with event_shape (L,), got "
                f"num_steps={num_steps} and event_shape {tuple(initial.event_shape)}."
            )
        self.initial, self.transition, self.num_steps = initial, transition, num_steps
        super().__init__(initial.batch_shape, torch.Size((num_steps, *initial.event_shape)), validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override, unused-ignore]
        return bool(self.initial.has_rsample)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # torch's signature  # noqa: B008
        z = [self.initial.rsample(sample_shape)]
        for t in range(1, self.num_steps):
            z.append(self.transition(z[-1], t).rsample())
        return torch.stack(z, -2)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        first: Tensor = self.initial.log_prob(value[..., 0, :])
        if self.num_steps == 1:
            return first
        following: Tensor = self.transition(value[..., :-1, :], slice(1, None)).log_prob(value[..., 1:, :])
        return first + following.sum(-1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> MarkovChain:
        return MarkovChain(self.initial.expand(batch_shape), self.transition, self.num_steps)

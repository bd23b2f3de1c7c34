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
        PairError: T is no whole number of at least 1, or the event shape of `initial` is not `(L,)`. When drawn or scored: that
            of a transition is another one, or only one of the two is drawn by reparameterisation.

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

    def __init__(self, initial: Any, transition: Callable[[Tensor, Any], Any], num_steps: int) -> None:
        if not isinstance(num_steps, int) or num_steps < 1 or len(initial.event_shape) != 1:
            raise PairError(
                "MarkovChain needs at least one step and an initial distribution with event_shape (L,), got "
                f"num_steps={num_steps} and event_shape {tuple(initial.event_shape)}."
            )
        self.initial, self.transition, self.num_steps = initial, transition, num_steps
        super().__init__(initial.batch_shape, torch.Size((num_steps, *initial.event_shape)), validate_args=False)

    @property
    def support(self) -> Any:
        return constraints.independent(self.initial.support, 1)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override, unused-ignore]
        return bool(self.initial.has_rsample)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # torch's signature  # noqa: B008
        return self._drawn(sample_shape, "rsample")

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        with torch.no_grad():
            return self._drawn(sample_shape, "sample")

    def log_prob(self, value: Tensor) -> Tensor:
        first: Tensor = self.initial.log_prob(value[..., 0, :])
        if self.num_steps == 1:
            return first
        following: Tensor = self._step(value[..., :-1, :], slice(1, None)).log_prob(value[..., 1:, :])
        return first + following.sum(-1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> MarkovChain:
        return MarkovChain(self.initial.expand(batch_shape), self.transition, self.num_steps)

    def _drawn(self, sample_shape: torch.Size, how: str) -> Tensor:
        """A draw by `rsample` or `sample` of every step."""
        z = [getattr(self.initial, how)(sample_shape)]
        for t in range(1, self.num_steps):
            z.append(getattr(self._step(z[-1], t), how)())
        return torch.stack(z, -2)

    def _step(self, z: Tensor, t: Any) -> Any:
        """`transition(z, t)`, after a check that it is of the kind of `initial`."""
        step = self.transition(z, t)
        if step.event_shape != self.initial.event_shape:
            raise PairError(
                f"The transition of a MarkovChain has event_shape {tuple(step.event_shape)}, and its initial distribution "
                f"{tuple(self.initial.event_shape)}: both are distributions of one value, such as Normal(...).to_event(1)."
            )
        if step.has_rsample != self.initial.has_rsample:
            raise PairError(
                "Either both the initial distribution and the transition of a MarkovChain are drawn by reparameterisation, or "
                f"neither is; here has_rsample is {self.initial.has_rsample} and {step.has_rsample}."
            )
        return step

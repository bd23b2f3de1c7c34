"""A trajectory of Hamiltonian Monte Carlo for many rows at once: `trajectory`.

Pyro's HMC takes all latent variables of a run for one state: one step size, and one decision to accept for all rows together.
With a thousand independent rows, each must then be all but certain to be accepted. Here each chain of each row has its own
step size, momentum and decision, and all are computed in one run of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor

JITTER = 0.2  # of the step size, in each trajectory, so that no length of it is in step with an oscillation


class Place(Protocol):
    """Where chains are."""

    @property
    def u(self) -> Tensor:
        """The coordinates, `(*chains, d)`."""


P = TypeVar("P", bound=Place)


def trajectory(
    at: P,
    *,
    log_density: Callable[[P], Tensor],
    gradient: Callable[[P], Tensor],
    move: Callable[[Tensor], P],
    step_size: Tensor,
    unit: Tensor | float,
    num_leapfrog: int,
) -> tuple[P, Tensor]:
    """Where leapfrog steps from a new momentum lead, and the log-probability of acceptance there.

    Args:
        at: Where the chains are.
        log_density: The log-density at a place, `(*chains)`.
        gradient: Its gradient, `(*chains, d)`.
        move: The place with other coordinates.
        step_size: That of each chain, or what broadcasts to them.
        unit: The unit of each coordinate, by which steps are multiplied.
        num_leapfrog: The number of steps.

    Returns:
        The place at the end, and the logarithm of the probability with which each chain is to go there, `(*chains)`.

    References:
        Duane, Kennedy, Pendleton & Roweth 1987, *Hybrid Monte Carlo*, Physics Letters B 195. Neal 2011, arXiv:1206.1901.
    """
    before = log_density(at)
    jitter = 1 + JITTER * (2 * torch.rand_like(before) - 1)
    step = (step_size * jitter)[..., None]
    momentum = torch.randn_like(at.u)
    energy = before - momentum.square().sum(-1) / 2
    moved = at
    for _ in range(num_leapfrog):
        momentum = momentum + step / 2 * unit * gradient(moved)
        moved = move(moved.u + step * unit * momentum)
        momentum = momentum + step / 2 * unit * gradient(moved)
    after = log_density(moved)
    log_ratio = after - momentum.square().sum(-1) / 2 - energy
    # where a value was rounded to the end of its support, a density may be infinite: a chain that went there would never leave
    log_ratio = log_ratio.where(after.isfinite(), -math.inf)
    return moved, log_ratio.nan_to_num(-math.inf, posinf=0.0, neginf=-math.inf).clamp_max(0.0)

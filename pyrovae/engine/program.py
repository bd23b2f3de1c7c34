"""The definition of one SVI step: its loss, the parameters it trains, how gradients are clipped, and the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae.errors import PairError
from pyrovae.pair.batch import Batch
from pyrovae.pair.parameters import every_module
from pyrovae.pair.program import PairLike

# (the parameters, told apart by identity; their gradients) -> clipped gradients
Clip = Callable[[Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]]


@dataclass
class Program:
    """One step of SVI, which an engine runs.

    Args:
        pair: Model and guide.
        objective: `objective(inputs, weights)` returns the ELBO without weights and the loss to minimise, both 0-d. The
            tensors of `inputs` have the same shapes at every step.
        parameters: The parameters that are trained, by name.
        optimizer: The optimizer, whose groups contain all parameters.
        weights: Names of the 0-d tensors that the objective takes, such as "kl". The scheduled "lr" and "model" are not among
            them, because they set the learning rates of the optimizer's groups.
        clip: Function of the parameters and their gradients that returns clipped gradients.
        reads: Objects other than the pair whose attributes and globals the objective may read. A traced step is checked for
            changes of these.
        precision: "float32", or "bfloat16" if matrix products are computed in bfloat16.
    """

    pair: PairLike
    objective: Callable[[Batch, dict[str, Tensor]], tuple[Tensor, Tensor]]
    parameters: Mapping[str, Tensor]
    optimizer: torch.optim.Optimizer
    weights: tuple[str, ...] = ()
    clip: Clip | None = None
    reads: tuple[Any, ...] = ()
    precision: str = "float32"

    @property
    def leaves(self) -> list[Tensor]:
        """The parameters that are trained: those that have not been frozen meanwhile, as a callback may do.

        Raises:
            PairError: All have been frozen.
        """
        found = [leaf for leaf in self.parameters.values() if leaf.requires_grad]
        if not found:
            raise PairError(
                "All parameters were frozen during the fit, so that there is nothing to train: leave one with "
                ".requires_grad_(True), or stop the fit by returning True from a callback."
            )
        return found

    @property
    def buffers(self) -> list[Tensor]:
        """Other tensors that a step may change, such as the running means of batch normalisation."""
        unique = {id(b): b for m in every_module(self.pair).values() for b in m.buffers()}
        return list(unique.values())


def clip_by_norm(
    leaves: Sequence[Tensor], grads: Sequence[Tensor], largest: float, apart: Collection[int] = ()
) -> list[Tensor]:
    """Scale the gradients so that their joint norm is at most `largest` (Pascanu et al. 2013, arXiv:1211.5063).

    The leaves whose ids are in `apart` have a norm of their own: a network that a loss trains does not slow the pair down.
    """
    others = [id(leaf) in apart for leaf in leaves]
    scales = {}
    for other in set(others):
        norm = torch.stack([g.square().sum() for g, o in zip(grads, others) if o == other]).sum().sqrt()
        scales[other] = (largest / (norm + 1e-6)).clamp(max=1.0)
    return [g * scales[other] for g, other in zip(grads, others)]

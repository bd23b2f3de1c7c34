"""What one SVI step is: its loss, the parameters that it trains, clipping, and the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae.pair.batch import Batch
from pyrovae.pair.parameters import modules

# (leaves, to know them by identity; their gradients) -> gradients
Clip = Callable[[Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]]


@dataclass
class Program:
    """What one step is: its loss, the leaves it trains, how gradients are clipped, and the optimizer.

    objective: (inputs, weights) -> (ELBO without weights, loss to descend), both 0-d. inputs: tensors of one set of shapes.
    weights: names of the 0-d tensors that the objective takes; "lr" and "model" are none of them, they go to the
    optimizer's groups.
    watched: the objects whose plain attributes the loss may read.
    """

    pair: Any
    objective: Callable[[Batch, dict[str, Tensor]], tuple[Tensor, Tensor]]
    parameters: Mapping[str, Tensor]
    optimizer: torch.optim.Optimizer
    weights: tuple[str, ...] = ()
    clip: Clip | None = None
    watched: tuple[Any, ...] = ()
    precision: str = "float32"

    @property
    def leaves(self) -> list[Tensor]:
        return list(self.parameters.values())

    @property
    def buffers(self) -> list[Tensor]:
        """Tensors that a step may change beside the leaves: running means, say."""
        unique = {id(b): b for m in modules(self.pair).values() for b in m.buffers()}
        return list(unique.values())


def clip_by_norm(leaves: Sequence[Tensor], grads: Sequence[Tensor], largest: float) -> list[Tensor]:
    """Gradients scaled so that their joint norm is at most `largest` (Pascanu et al. 2013, arXiv:1211.5063)."""
    norm = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
    return [g * (largest / (norm + 1e-6)).clamp(max=1.0) for g in grads]

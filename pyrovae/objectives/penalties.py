"""Penalties on weights, for `fit(penalty=...)`: functions of the pair that return a 0-d tensor, nats for the whole data set.

A function of one's own does as well: `penalty=lambda pair: 0.5 * sum(w.square().sum() for w in pair.parameters())`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from pyrovae.errors import OptionError, PairError
from pyrovae.pair.parameters import modules
from pyrovae.pair.program import PairLike

SQUARINGS = 8  # 2^8 steps of the power method


class spectral_norm:
    """weight * sum of the largest singular values of all linear and convolutional layers, W as (outputs, the rest).

    It bounds how fast a network can change, and so keeps the KL terms of a deep hierarchy from running away (Vahdat & Kautz
    2020, arXiv:2007.03898, section 3.3; Yoshida & Miyato 2017, arXiv:1705.10941). `weight` counts for the whole data set, as
    every penalty does: a weight of w per row is w N here. Nothing is carried from step to step: singular vectors are found
    anew, by repeated squaring of the smaller Gram matrix, to the precision at which the largest value stands apart. Raises
    OptionError for a weight that is negative or not finite; PairError, at the first step, for a pair without such layers.
    """

    def __init__(self, weight: float) -> None:
        if not 0 <= weight < math.inf:
            raise OptionError(f"spectral_norm needs a finite weight of at least 0, got {weight!r}.")
        self.weight = weight

    def __call__(self, pair: PairLike) -> Tensor:
        layers = {
            id(layer.weight): layer  # one that two layers share counts once
            for module in modules(pair).values()
            for layer in module.modules()
            if isinstance(layer, (nn.Linear, _ConvNd))
        }
        if not layers:
            raise PairError(
                "spectral_norm needs linear or convolutional layers, and the modules of this pair have none: leave penalty out."
            )
        total, *others = (largest_singular_value(_matrix(layer)) for layer in layers.values())
        return self.weight * sum(others, total)

    def __repr__(self) -> str:
        return f"spectral_norm({self.weight!r})"


def _matrix(layer: Any) -> Tensor:
    """A layer's weight as (outputs, the rest); of a transposed convolution the inputs come first."""
    weight: Tensor = layer.weight
    return (weight.transpose(0, 1) if isinstance(layer, _ConvTransposeNd) else weight).flatten(1)


def largest_singular_value(matrix: Tensor) -> Tensor:
    """max u^T W v over unit vectors u, v, with its gradient u v^T; 0-d. Golub & Van Loan 2013, section 7.3."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    with torch.no_grad():
        tiny = torch.finfo(matrix.dtype).tiny
        power = wide @ wide.T
        for _ in range(SQUARINGS):
            power = power / power.norm().clamp_min(tiny)
            power = power @ power
        # Nearly u u^T by now, up to its size: of the columns, all multiples of u, the one with the largest entries.
        u = power.index_select(1, power.diagonal().argmax().reshape(1))
        u = u / u.norm().clamp_min(tiny)
        v = wide.T @ u
        v = v / v.norm().clamp_min(tiny)
    return (u * (wide @ v)).sum()

"""Penalties on weights, for `fit(penalty=...)`: functions of a pair that return a 0-d tensor, in nats for the whole data set.

Any such function will do: `penalty=lambda pair: 0.5 * sum(w.square().sum() for w in pair.parameters())`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from pyrovae._arguments import as_number
from pyrovae.errors import PairError
from pyrovae.pair.parameters import every_module, modules
from pyrovae.pair.program import PairLike

__all__ = ["spectral_norm"]

SQUARINGS = 8  # as many as 2^8 steps of the power method


class spectral_norm:
    """`weight * sum_l s_max(W_l)`, the largest singular values of linear and convolutional layers, W as (outputs, the rest).

    It bounds how fast a network can change, which keeps the KL terms of a deep hierarchy from diverging. A weight matrix
    that two layers share counts once. Singular vectors are computed anew in each step, so nothing is carried from step to
    step. Their precision depends on the gap to the second largest value: where there is none, any of the equal directions
    will do.

    Args:
        weight: Factor in nats for the whole data set, as for every penalty: w nats per row are `w * N` here. At least 0.

    Raises:
        OptionError: The weight is negative or not finite.
        PairError: At the first step, if the pair has no linear or convolutional layers.

    References:
        Vahdat and Kautz 2020, arXiv:2007.03898, section 3.3; Yoshida and Miyato 2017, arXiv:1705.10941.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> with torch.no_grad():
        ...     layer.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
        Parameter containing:
        ...
        >>> pv.penalties.spectral_norm(0.5)(layer).detach()
        tensor(1.5000)
        >>> x = torch.rand(32, 4).round()
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(4)), pv.mlp(4, fam.Normal(2)))
        >>> fitted = pv.fit(vae, x, epochs=1, penalty=pv.penalties.spectral_norm(0.1), progress=False)
    """

    def __init__(self, weight: float) -> None:
        self.weight = as_number("weight of spectral_norm", weight, least=0)

    def __call__(self, pair: PairLike) -> Tensor:
        layers = {
            id(layer.weight): layer  # a weight shared by two layers counts once
            for module in (modules(pair) or every_module(pair)).values()
            for layer in module.modules()
            if isinstance(layer, (nn.Linear, _ConvNd))
        }
        if not layers:
            raise PairError(
                "spectral_norm needs linear or convolutional layers, but the modules of this pair have none: leave penalty out."
            )
        total, *others = (_largest_singular_value(_matrix(layer)) for layer in layers.values())
        return self.weight * sum(others, total)

    def __repr__(self) -> str:
        return f"spectral_norm({self.weight!r})"


def _matrix(layer: Any) -> Tensor:
    """The weight of a layer as (outputs, the rest); a transposed convolution stores its inputs first."""
    weight: Tensor = layer.weight
    return (weight.transpose(0, 1) if isinstance(layer, _ConvTransposeNd) else weight).flatten(1)


# torch.linalg.matrix_norm(matrix, ord=2) is the same number and can be traced and compiled on a CPU. But on CUDA its singular
# value decomposition makes the host wait for the device, so a step could not be recorded as a CUDA graph; and on a CPU it
# takes three to four times as long for a matrix of 400 x 784.
def _largest_singular_value(matrix: Tensor) -> Tensor:
    """max u'Wv over unit vectors u and v, with its gradient uv', a 0-d tensor. Golub and Van Loan 2013, section 7.3."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    with torch.no_grad():
        tiny = torch.finfo(matrix.dtype).tiny
        power = wide @ wide.T
        for _ in range(SQUARINGS):
            power = power / power.norm().clamp_min(tiny)
            power = power @ power
        # by now nearly a multiple of u u', so every column is a multiple of u: take the one with the largest entries
        u = power.index_select(1, power.diagonal().argmax().reshape(1))
        u = u / u.norm().clamp_min(tiny)
        v = wide.T @ u
        v = v / v.norm().clamp_min(tiny)
    return (u * (wide @ v)).sum()

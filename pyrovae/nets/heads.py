"""Heads of networks, whose numbers become the parameters of a distribution, normalised over the rows of a batch."""

from typing import Any

import torch
from torch import Tensor, nn

from pyrovae._arguments import as_number, index_of
from pyrovae.errors import OptionError, ShapeError
from pyrovae.nets.mlp import as_size
from pyrovae.nets.normalising import BatchNorm, checked_momentum


class BatchNormedHead(nn.Module):
    """`g (u - mean) / sd + b` of each number u of a network's output, with mean and sd over the batch, and g and b learned.

    Put it around the network of a guide or a prior, `pv.batch_normed(conditional)`, and the locations and raw scales of all
    levels of a hierarchy start with the same spread. Statistics are those of `BatchNormed`: of the rows and particles of
    a step in training, with enumerated values weighted by their probabilities, and running ones in evaluation.

    With `gamma`, only the first numbers are normalised, the locations, and their factor is fixed: g = gamma. For a guide
    `N(m, s^2)` of L dimensions and the prior N(0, I) this is a floor of the KL term. The mean of m_l^2 over the rows is
    `v gamma^2 + b_l^2`, where `v = var / (var + 1e-5)` is next to 1, and so `E KL >= L v gamma^2 / 2`, whatever is learned. In
    training that holds for every batch; in evaluation as far as the rows have the variance of those of the fit. No code can
    then collapse; whether the likelihood uses it is another question.

    Args:
        net: A network with an `out_shape`; its parents and output shape are kept.
        gamma: The factor of locations, positive; None learns a factor for each number.
        locations: With `gamma`, how many numbers of the flattened output are locations. None means all that
            `out_shape[0]` counts but once, as in the outputs (P, D) of families of independent elements.
        momentum: How far each pass moves the running statistics towards its own, above 0 and at most 1.

    Raises:
        OptionError: `gamma`, `locations` or `momentum` is out of range, or `locations` is missing where the output is a vector.
        ShapeError: `net` has no `out_shape`, or, in a call, a batch is a single row in training.

    References:
        Sønderby et al. 2016, arXiv:1602.02282; with gamma, Zhu et al. 2020, arXiv:2004.12585.

    Example:
        >>> head = pv.nets.BatchNormedHead(pv.nets.MLP(4, (2, 3)), gamma=0.5)
        >>> loc, raw_scale = head(torch.randn(100, 4)).unbind(-2)
        >>> loc.detach().var(0, correction=0).round(decimals=2)
        tensor([0.2500, 0.2500, 0.2500])
    """

    def __init__(
        self, net: nn.Module, gamma: float | None = None, locations: int | None = None, momentum: float = 0.1
    ) -> None:
        super().__init__()
        shape: Any = getattr(net, "out_shape", None)
        if shape is None:
            raise ShapeError(
                f"BatchNormedHead needs a network with an out_shape, the shape of its output for one row, and "
                f"{type(net).__name__} has none: use a network of pyrovae.nets, or set net.out_shape."
            )
        self.out_shape = as_size(shape)
        self.net, self.gamma, self.locations = net, _factor(gamma), locations
        self.momentum = checked_momentum("BatchNormedHead", momentum)
        self.norm = BatchNorm(self._normalised(), self.momentum, self.gamma)

    def _normalised(self) -> int:
        """How many numbers are normalised, the first ones."""
        total = self.out_shape.numel()
        given: Any = self.locations
        if self.gamma is None:
            if given is not None:
                raise OptionError(
                    f"BatchNormedHead takes locations={given!r} only with gamma: without, all are normalised."
                )
            return total
        if given is None and len(self.out_shape) > 1:
            return total // self.out_shape[0]
        number = index_of(given)
        if number is None or not 0 < number <= total:
            raise OptionError(
                f"BatchNormedHead with gamma needs locations, how many of the {total} numbers are locations, got {given!r}."
            )
        return number

    def forward(self, *parents: Tensor) -> Tensor:
        out: Tensor = self.net(*parents)
        flat = out.reshape(*out.shape[: out.dim() - len(self.out_shape)], -1)
        width = len(self.norm.bias)
        normed: Tensor = self.norm(flat[..., :width])
        if width < flat.shape[-1]:
            normed = torch.cat([normed, flat[..., width:].to(normed.dtype)], -1)
        return normed.reshape(out.shape)


def _factor(gamma: Any) -> float | None:
    if gamma is None:
        return None
    return float(as_number("gamma of BatchNormedHead", gamma, above=0, also=", or None for learned factors"))

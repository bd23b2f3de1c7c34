"""Hidden layers whose units are normalised: over the units of a row, or over the rows of a batch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyrovae._arguments import as_number, told
from pyrovae._weighing import weights_of
from pyrovae.errors import OptionError, ShapeError, shortened


class LayerNormed:
    """Makes activation layers `a((u - mean(u)) / sd(u))`, with mean and sd over the units of a layer, for each row by itself.

    Pass it as `activation` to networks of vectors, `MLP` and `ResidualMLP`; of an image it would normalise single lines. It
    keeps the levels of a deep hierarchy at one scale, as batch normalisation does, but rows stay independent. It has no weights
    of its own, since the next linear layer has them.

    Args:
        activation: Makes the activation layer a.

    Raises:
        OptionError: `activation` does not make a layer.

    References:
        Ba, Kiros and Hinton 2016, arXiv:1607.06450.

    Example:
        >>> activation = pv.nets.LayerNormed(torch.nn.LeakyReLU)
        >>> pv.nets.MLP(4, 2, hidden=(16, 16), activation=activation)(torch.zeros(5, 4)).shape
        torch.Size([5, 2])
    """

    def __init__(self, activation: Callable[[], nn.Module] = nn.ReLU) -> None:
        activation_of(None, activation)
        self.activation = activation

    def __call__(self) -> nn.Module:
        return nn.Sequential(_LayerNorm(), activation_of(None, self.activation))


class _LayerNorm(nn.Module):
    """`(u - mean(u)) / sd(u)` over the last dimension, of any size."""

    def forward(self, u: Tensor) -> Tensor:
        return F.layer_norm(u, u.shape[-1:])


class BatchNormed:
    """Makes activation layers `a(g (u - mean) / sd + b)`, with mean and sd of each unit over the batch, and g and b learned.

    Pass it as `activation` to networks of vectors, `MLP` and `ResidualMLP`. In training, mean and sd are those of the rows and
    particles of the step. Where the values of a discrete site are enumerated, a batch has each row once for each value, and
    these are weighted by their probabilities, q(y|x) of a site of the guide: the statistics are those of a draw of y, so that
    values that are improbable for a row hardly enter them. Dimensions that belong to the network, such as the steps of a
    sequence whose every step it sees, count like rows. Every pass of training also moves the running mean and variance, in
    all engines. In evaluation these take the place of the statistics of a batch, so that rows, particles and values do not
    depend on one another.

    In training they do depend on one another, and so a step is no longer an unbiased estimate for the data set. Take many
    rows a step, or `LayerNormed`, which has no such concern.

    Args:
        activation: Makes the activation layer a.
        momentum: How far each pass moves the running statistics towards its own, above 0 and at most 1.

    Raises:
        OptionError: `momentum` is out of range, or a network does not say how wide its layers are, such as a convolution.
        ShapeError: A batch is a single row in training, without enumerated values, and so has no variance.

    References:
        Ioffe and Szegedy 2015, arXiv:1502.03167.

    Example:
        >>> activation = pv.nets.BatchNormed(torch.nn.LeakyReLU)
        >>> net = pv.nets.MLP(4, 2, hidden=(16, 16), activation=activation)
        >>> net(torch.zeros(5, 4)).shape, net.eval()(torch.zeros(3, 1, 4)).shape
        (torch.Size([5, 2]), torch.Size([3, 1, 2]))
    """

    def __init__(self, activation: Callable[[], nn.Module] = nn.ReLU, momentum: float = 0.1) -> None:
        activation_of(None, activation)
        self.activation, self.momentum = activation, checked_momentum("BatchNormed", momentum)

    def __call__(self, width: int | None = None) -> nn.Module:
        if width is None:
            raise OptionError(
                "BatchNormed normalises layers of vectors, and this network does not say how wide they are: use it in MLP or "
                "ResidualMLP, and another activation in convolutions."
            )
        return nn.Sequential(BatchNorm(width, self.momentum), activation_of(None, self.activation))


def checked_momentum(name: str, momentum: Any) -> float:
    """How far a pass moves the running statistics of a layer of this name, or OptionError."""
    return float(as_number(f"momentum of {name}", momentum, above=0, most=1))


class BatchNorm(nn.Module):
    """`g (u - mean) / sd + b` of each of the units in the last dimension, over all other dimensions; g is learned, or gamma."""

    running_mean: Tensor
    running_var: Tensor
    EPS = 1e-5

    def __init__(self, width: int, momentum: float, gamma: float | None = None) -> None:
        super().__init__()
        self.momentum, self.gamma = momentum, gamma
        self.track_running_stats = True  # as in torch: off where rows are not those of the data
        self.register_parameter("weight", nn.Parameter(torch.ones(width)) if gamma is None else None)
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, u: Tensor) -> Tensor:
        u = u.to(self.running_mean.dtype)  # statistics in bfloat16 would have two digits
        mean, var = self._of_batch(u) if self.training else (self.running_mean, self.running_var)
        scale: Any = self.weight if self.gamma is None else self.gamma
        normed: Tensor = (u - mean) * ((var + self.EPS).rsqrt() * scale) + self.bias
        return normed

    def _of_batch(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance over a batch, which the running ones follow."""
        weights, rows = weights_of(u.shape[:-1])
        if weights is None and rows < 2:
            raise ShapeError(
                f"Expected more than 1 row in training, got input of shape {tuple(u.shape)}: batch normalisation needs a "
                "variance."
            )
        flat = u.reshape(-1, u.shape[-1])
        if weights is None:
            var, mean = torch.var_mean(flat, 0, correction=0)
        else:
            shares = weights.to(u.dtype).reshape(-1, 1)
            mean = (shares * flat).sum(0)  # not a product of matrices, which a fit may compute in bfloat16
            var = (shares * (flat - mean).square()).sum(0)
        if self.track_running_stats:
            with torch.no_grad():
                self.running_mean.lerp_(mean.detach(), self.momentum)
                self.running_var.lerp_(var.detach() * (rows / max(1, rows - 1)), self.momentum)
        return mean, var

    def extra_repr(self) -> str:
        return f"{len(self.running_mean)}, momentum={self.momentum}"


def activation_of(width: int | None, activation: Callable[..., Any]) -> nn.Module:
    """The activation of a layer of so many units, None where it has no units; only some kinds are made for a width.

    Raises:
        OptionError: `activation` does not make a layer, such as a layer itself, or a class whose objects make layers.
    """
    if isinstance(activation, nn.Module):
        raise OptionError(
            f"activation makes a layer for each place, and this {type(activation).__name__} is one: pass its class, such as "
            "nn.ReLU, or a function that makes it."
        )
    if not callable(activation):
        raise OptionError(
            f"activation makes a layer: pass its class, such as nn.ReLU, or a function that makes it, got {told(activation)}."
        )
    try:
        made = activation(width) if isinstance(activation, BatchNormed) else activation()
    except TypeError as error:
        raise OptionError(
            f"activation is called without arguments to make a layer, as nn.ReLU is, and {told(activation)} cannot be "
            f"({shortened(error, 200)}): pass the class of a layer, or a function that makes it."
        ) from error
    if not isinstance(made, nn.Module):
        how = ": write it with parentheses" if isinstance(made, (BatchNormed, LayerNormed)) else ""
        raise OptionError(
            f"activation makes a layer, such as nn.ReLU or nets.LayerNormed(), and this one makes {type(made).__name__}{how}."
        )
    return made

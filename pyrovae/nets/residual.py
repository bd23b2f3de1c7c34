"""Residual networks: perceptrons and convolutional networks with blocks that add to their input."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae._arguments import MOST_LAYERS, as_count, index_of, told
from pyrovae.errors import OptionError
from pyrovae.nets.conv import ConvDecoder, ConvEncoder
from pyrovae.nets.mlp import MLP
from pyrovae.nets.normalising import activation_of


class ResidualBlock(nn.Module):
    """`x + g(x)` with `g(x) = W_2 a(W_1 a(x))`, W linear layers or 3 x 3 convolutions that keep the shape.

    W_2 starts at a tenth of its usual size, so that a deep stack starts near the identity. He et al. 2016, arXiv:1603.05027,
    without normalisation; Zhang, Dauphin and Ma 2019, arXiv:1901.09321.
    """

    def __init__(self, layer: Callable[[int, int], nn.Module], width: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        last = layer(width, width)
        for parameter in last.parameters():
            nn.init.normal_(parameter, std=0.1 / (width * 9) ** 0.5)
        self.change = nn.Sequential(
            activation_of(None, activation), layer(width, width), activation_of(None, activation), last
        )

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = x + self.change(x)
        return changed


def _convolution(n: int, m: int) -> nn.Module:
    return nn.Conv2d(n, m, 3, padding=1)


class ResidualMLP(MLP):
    """`MLP` with residual blocks `x + W_2 a(W_1 a(x))` after each hidden layer.

    Args:
        in_features: Size of the parent, or a tuple with the size of each parent.
        out_shape: Shape of the output for one row.
        hidden: Widths of the hidden layers.
        activation: Makes an activation layer, such as `nn.ReLU`.
        blocks: Number of residual blocks after each hidden layer.

    Raises:
        ShapeError: As `MLP`.
        OptionError: As `MLP`, or `blocks` is no whole number.

    References:
        Gorishniy et al. 2021, arXiv:2106.11959, section 3.2, without normalisation.

    Example:
        >>> net = pv.nets.ResidualMLP(4, 2, hidden=(16,), blocks=2)
        >>> net(torch.zeros(5, 4)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        in_features: int | tuple[int, ...],
        out_shape: int | tuple[int, ...],
        hidden: int | Sequence[int] = (400,),
        activation: Callable[[], nn.Module] = nn.ReLU,
        blocks: int = 1,
    ) -> None:
        super().__init__(in_features, out_shape, hidden, activation)
        self.blocks = as_count("blocks", blocks, 0, MOST_LAYERS)
        self.rest = nn.Sequential()
        for n, m in pairwise((*self.hidden, self.out_shape.numel())):
            self.rest.extend(
                ResidualBlock(nn.Linear, n, partial(activation_of, n, activation)) for _ in range(self.blocks)
            )
            self.rest.extend([activation_of(n, activation), nn.Linear(n, m)])


class ResNetEncoder(ConvEncoder):
    """`ConvEncoder` with residual blocks after each convolution.

    Args:
        in_shape: Shape of one image, (C, H, W) or (H, W).
        out_shape: Shape of the output for one image.
        channels: Number of channels of each convolution.
        hidden: Widths of the hidden layers between the convolutions and the output.
        activation: Makes an activation layer, such as `nn.ReLU`.
        blocks: Number of residual blocks after each convolution.

    Raises:
        ShapeError: As `ConvEncoder`.
        OptionError: As `ConvEncoder`, or `blocks` is no whole number.

    References:
        He et al. 2016, arXiv:1603.05027, without normalisation.

    Example:
        >>> net = pv.nets.ResNetEncoder((1, 8, 8), 3, channels=(4, 8))
        >>> net(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        in_shape: tuple[int, ...],
        out_shape: int | tuple[int, ...],
        channels: int | Sequence[int] = (32, 64),
        hidden: int | Sequence[int] = (),
        activation: Callable[[], nn.Module] = nn.ReLU,
        blocks: int = 1,
    ) -> None:
        super().__init__(in_shape, out_shape, channels, hidden, activation)
        self.blocks = as_count("blocks", blocks, 0, MOST_LAYERS)
        plain = list(self.convolutions)
        self.convolutions = nn.Sequential()
        for convolution, act, width in zip(plain[::2], plain[1::2], self.channels):
            self.convolutions.append(convolution)
            self.convolutions.extend(ResidualBlock(_convolution, width, activation) for _ in range(self.blocks))
            self.convolutions.append(act)


class ResNetDecoder(ConvDecoder):
    """`ConvDecoder` with residual blocks before each doubling of H and W.

    Args:
        in_features: Size of z, or a tuple of sizes for several parents.
        out_shape: Shape of the output for one z, ending in (H, W).
        channels: Number of channels before each convolution.
        hidden: Widths of the hidden layers of the MLP.
        activation: Makes an activation layer, such as `nn.ReLU`.
        blocks: Number of residual blocks before each doubling.

    Raises:
        ShapeError: As `ConvDecoder`.
        OptionError: As `ConvDecoder`, or `blocks` is no whole number.

    References:
        He et al. 2016, arXiv:1603.05027, without normalisation.

    Example:
        >>> net = pv.nets.ResNetDecoder(3, (1, 8, 8), channels=(8, 4))
        >>> net(torch.zeros(5, 3)).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        in_features: int | tuple[int, ...],
        out_shape: tuple[int, ...],
        channels: int | Sequence[int] = (64, 32),
        hidden: int | Sequence[int] = (),
        activation: Callable[[], nn.Module] = nn.ReLU,
        blocks: int = 1,
    ) -> None:
        super().__init__(in_features, out_shape, channels, hidden, activation)
        self.blocks = as_count("blocks", blocks, 0, MOST_LAYERS)
        self.activations = nn.ModuleList(
            nn.Sequential(
                *(ResidualBlock(_convolution, width, activation) for _ in range(self.blocks)),
                activation_of(None, activation),
            )
            for width in self.channels
        )


class Skip(nn.Module):
    """`net(x, ...) + W x`, W learned, at the start the identity of the first numbers and 0 for the others.

    A decoder whose first outputs are the means of x, and an encoder whose first outputs are the means of z, then start as
    copies, `x = z` plus noise, and learn what differs.

    Args:
        net: A network, whose (first) parent is `(*batch, D)`; the output, `(*batch, *out_shape)`, is its own.
        copied: How many numbers of the first parent are added to the first outputs.

    Raises:
        OptionError: `copied` is more than the network takes or gives.

    References:
        He et al. 2016, arXiv:1512.03385.

    Example:
        >>> net = pv.nets.Skip(pv.nets.MLP(3, 4), copied=2)
        >>> x = torch.tensor([[5.0, -7.0, 1.0]])
        >>> (net(x) - net.net(x)).detach()
        tensor([[ 5., -7.,  0.,  0.]])
    """

    def __init__(self, net: nn.Module, copied: int) -> None:
        super().__init__()
        self.net, self.copied = net, copied
        features: Any = getattr(net, "in_features", None)
        features = features[0] if isinstance(features, tuple) and features else features
        outputs = getattr(net, "out_shape", torch.Size()).numel()
        number = index_of(copied)
        if not isinstance(features, int) or number is None or not 0 <= number <= min(features, outputs):
            raise OptionError(
                f"Skip needs a network of vectors, such as MLP(D, n), and copied from 0 to the fewer of its inputs and "
                f"outputs, got copied={told(copied)} and {features} inputs, {outputs} outputs."
            )
        self.linear = nn.Linear(features, outputs, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(outputs, features) * (torch.arange(outputs) < copied).unsqueeze(-1))

    @property
    def out_shape(self) -> torch.Size:
        """The shape of the output for one row."""
        shape: Any = self.net.out_shape
        return torch.Size(shape)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        out: Tensor = self.net(x, *others)
        return out + self.linear(x).reshape(*x.shape[:-1], *self.out_shape)

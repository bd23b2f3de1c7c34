"""Residual networks: perceptrons and convolutional networks with blocks that add to what they are given."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from pyrovae.nets.conv import ConvDecoder, ConvEncoder
from pyrovae.nets.mlp import MLP


class ResidualBlock(nn.Module):
    """x + g(x), g(x) = W_2 a(W_1 a(x)), W linear layers or 3 x 3 convolutions that keep the shape.

    W_2 starts at a tenth of its usual size, so that a deep stack starts near the identity. He et al. 2016,
    arXiv:1603.05027, without normalisation; Zhang, Dauphin & Ma 2019, arXiv:1901.09321.
    """

    def __init__(self, layer: Callable[[int, int], nn.Module], width: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        last = layer(width, width)
        for parameter in last.parameters():
            nn.init.normal_(parameter, std=0.1 / (width * 9) ** 0.5)
        self.change = nn.Sequential(activation(), layer(width, width), activation(), last)

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = x + self.change(x)
        return changed


def _convolution(n: int, m: int) -> nn.Module:
    return nn.Conv2d(n, m, 3, padding=1)


class ResidualMLP(MLP):
    """`MLP` with `blocks` residual blocks after each hidden layer. Arguments, shapes and errors are those of `MLP`.

    Gorishniy et al. 2021, arXiv:2106.11959, section 3.2, without normalisation.
    """

    def __init__(
        self,
        in_features: int | tuple[int, ...],
        out_shape: int | tuple[int, ...],
        hidden: Sequence[int] = (400,),
        activation: Callable[[], nn.Module] = nn.ReLU,
        blocks: int = 1,
    ) -> None:
        super().__init__(in_features, out_shape, hidden, activation)
        self.blocks = blocks
        self.rest = nn.Sequential()
        for n, m in pairwise((*self.hidden, self.out_shape.numel())):
            self.rest.extend(ResidualBlock(nn.Linear, n, activation) for _ in range(blocks))
            self.rest.extend([activation(), nn.Linear(n, m)])


class ResNetEncoder(ConvEncoder):
    """`ConvEncoder` with `blocks` residual blocks after each convolution. Arguments, shapes and errors are its own."""

    def __init__(
        self,
        in_shape: tuple[int, ...],
        out_shape: int | tuple[int, ...],
        channels: Sequence[int] = (32, 64),
        hidden: Sequence[int] = (),
        activation: Callable[[], nn.Module] = nn.ReLU,
        blocks: int = 1,
    ) -> None:
        super().__init__(in_shape, out_shape, channels, hidden, activation)
        self.blocks = blocks
        plain = list(self.convolutions)
        self.convolutions = nn.Sequential()
        for convolution, act, width in zip(plain[::2], plain[1::2], self.channels):
            self.convolutions.append(convolution)
            self.convolutions.extend(ResidualBlock(_convolution, width, activation) for _ in range(blocks))
            self.convolutions.append(act)


class ResNetDecoder(ConvDecoder):
    """`ConvDecoder` with `blocks` residual blocks before each doubling. Arguments, shapes and errors are its own."""

    def __init__(
        self,
        in_features: int | tuple[int, ...],
        out_shape: tuple[int, ...],
        channels: Sequence[int] = (64, 32),
        hidden: Sequence[int] = (),
        activation: Callable[[], nn.Module] = nn.ReLU,
        blocks: int = 1,
    ) -> None:
        super().__init__(in_features, out_shape, channels, hidden, activation)
        self.blocks = blocks
        self.activations = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(_convolution, width, activation) for _ in range(blocks)), activation())
            for width in self.channels
        )

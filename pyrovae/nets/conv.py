"""Convolutional networks from images and to images, of any height and width."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from pyrovae._arguments import as_widths
from pyrovae.errors import ShapeError
from pyrovae.nets.mlp import MLP, as_size, check_inputs
from pyrovae.nets.normalising import activation_of


def halved(n: int) -> int:
    """The size after a 3 x 3 convolution of stride 2 and padding 1."""
    return (n + 1) // 2


class ConvEncoder(nn.Module):
    """`MLP(a(conv(... a(conv(x)))))`: 3 x 3 convolutions of stride 2, then an MLP.

    Input `(*batch, *in_shape)`, output `(*batch, *out_shape)`. Each convolution halves H and W, rounding up.

    Args:
        in_shape: Shape of one image, (C, H, W) or (H, W).
        out_shape: Shape of the output for one image, such as `family.param_shape`.
        channels: Number of channels of each convolution, an int for one convolution.
        hidden: Widths of the hidden layers, an int for one, between the convolutions and the output.
        activation: Makes an activation layer, such as `nn.ReLU`.

    Raises:
        ShapeError: `in_shape` has another number of dimensions, or the input another trailing shape or dtype.
        OptionError: `channels` or `hidden` holds something else than positive ints, or `activation` does not make a layer.

    References:
        LeCun et al. 1989, Neural Computation 1(4).

    Example:
        >>> net = pv.nets.ConvEncoder((1, 28, 28), fam.Normal(8).param_shape, channels=(4, 8))
        >>> net(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 2, 8])
    """

    def __init__(
        self,
        in_shape: tuple[int, ...],
        out_shape: int | tuple[int, ...],
        channels: int | Sequence[int] = (32, 64),
        hidden: int | Sequence[int] = (),
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.in_shape = as_size(in_shape)
        self.out_shape = as_size(out_shape)
        self.channels = as_widths("channels", channels, one="convolution")
        self.hidden = as_widths("hidden", hidden)
        self.activation = activation
        if len(self.in_shape) not in (2, 3):
            raise ShapeError(f"ConvEncoder needs in_shape (C, H, W) or (H, W), got {tuple(self.in_shape)}: use an MLP.")
        width, height = self.in_shape[-1], self.in_shape[-2]
        self._image = (self.in_shape[:-2].numel(), height, width)
        self.convolutions = nn.Sequential()
        for n, m in pairwise((self._image[0], *self.channels)):
            self.convolutions.extend([nn.Conv2d(n, m, 3, stride=2, padding=1), activation_of(None, activation)])
            height, width = halved(height), halved(width)
        num_features = (self._image[0], *self.channels)[-1] * height * width
        self.head = MLP(num_features, self.out_shape, self.hidden, activation)

    def forward(self, *parents: Tensor) -> Tensor:
        check_inputs(self, parents, [self.in_shape], self.head.first[0])
        (x,) = parents
        batch = x.shape[: len(x.shape) - len(self.in_shape)]
        out: Tensor = self.head(self.convolutions(x.reshape(-1, *self._image)).flatten(1))
        return out.reshape((*batch, *self.out_shape))


class ConvDecoder(nn.Module):
    """`conv(up(a(... conv(up(a(MLP(z)))))))`: an MLP, then one doubling and one 3 x 3 convolution for each of `channels`.

    Input `(*batch, in_features)`, output `(*batch, *out_shape)`. Sizes are those of a `ConvEncoder` with as many channels, in
    reverse. H and W are doubled by nearest neighbours before a convolution: transposed convolutions leave checkerboards.

    Args:
        in_features: Size of z, or a tuple of sizes for several parents, as in `MLP`.
        out_shape: Shape of the output for one z, ending in (H, W): (P, C, H, W), (C, H, W) or (P, H, W). The dimensions before
            H and W are planes of the last convolution.
        channels: Number of channels before each convolution, an int for one convolution.
        hidden: Widths of the hidden layers of the MLP, an int for one.
        activation: Makes an activation layer, such as `nn.ReLU`.

    Raises:
        ShapeError: `out_shape` does not end in (H, W), `channels` is empty, or an input has another trailing shape or dtype.
        OptionError: `channels` or `hidden` holds something else than positive ints, or `activation` does not make a layer.

    References:
        Odena, Dumoulin and Olah 2016, doi:10.23915/distill.00003.

    Example:
        >>> net = pv.nets.ConvDecoder(8, fam.Bernoulli((1, 28, 28)).param_shape, channels=(8, 4))
        >>> net(torch.zeros(5, 8)).shape
        torch.Size([5, 1, 1, 28, 28])
    """

    def __init__(
        self,
        in_features: int | tuple[int, ...],
        out_shape: tuple[int, ...],
        channels: int | Sequence[int] = (64, 32),
        hidden: int | Sequence[int] = (),
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.in_features = tuple(in_features) if isinstance(in_features, Sequence) else in_features
        self.out_shape = as_size(out_shape)
        self.channels = as_widths("channels", channels, one="convolution")
        self.hidden = as_widths("hidden", hidden)
        self.activation = activation
        if len(self.out_shape) < 2:
            raise ShapeError(
                f"ConvDecoder needs an out_shape that ends in (H, W), got {tuple(self.out_shape)}: use an MLP."
            )
        if not self.channels:
            raise ShapeError("ConvDecoder needs at least one number of channels, got channels=(): use an MLP.")
        height, width = self.out_shape[-2:]
        self._sizes = [(height, width)]
        for _ in self.channels:
            self._sizes.insert(0, (halved(self._sizes[0][0]), halved(self._sizes[0][1])))
        self.stem = MLP(self.in_features, (self.channels[0], *self._sizes[0]), self.hidden, activation)
        widths = (*self.channels, self.out_shape[:-2].numel())
        self.activations = nn.ModuleList(activation_of(None, activation) for _ in self.channels)
        self.convolutions = nn.ModuleList(nn.Conv2d(n, m, 3, padding=1) for n, m in pairwise(widths))

    def forward(self, *parents: Tensor) -> Tensor:
        check_inputs(self, parents, self.stem._in_shapes, self.convolutions[0])
        out: Tensor = self.stem(*parents)
        batch = out.shape[:-3]
        out = out.reshape(-1, *out.shape[-3:])
        for activation, convolution, size in zip(self.activations, self.convolutions, self._sizes[1:]):
            out = convolution(F.interpolate(activation(out), size=size, mode="nearest-exact"))
        return out.reshape((*batch, *self.out_shape))

"""Convolutional networks from images to a grid of vectors at a lower resolution, and back."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from pyrovae._arguments import MOST_LAYERS, as_count, as_number, as_widths
from pyrovae.errors import ShapeError
from pyrovae.nets.cells import Conv, EncoderCell, Planes, Upsample, halvings
from pyrovae.nets.mlp import as_length, as_size, check_inputs


class GridEncoder(nn.Module):
    """A grid of vectors for an image: 3 x 3 convolutions of stride 2, residual cells, and a 1 x 1 convolution.

    Input `(*batch, *in_shape)`, output `(*batch, width, h, w)`. Each convolution halves H and W, rounding up, so that a vector
    is about its own patch of the image.

    Args:
        in_shape: Shape of one image, (C, H, W) or (H, W).
        width: Number of elements of each vector.
        channels: Channels of the convolutions, one for each halving; an int for one.
        cells: Residual cells at the last resolution.
        rescale: Factor of the image at the input, such as 1 / 255 for grey values.

    Raises:
        ShapeError: `in_shape` has another number of dimensions, or the input another trailing shape or dtype.
        OptionError: `channels`, `cells` or `rescale` is out of range.

    References:
        van den Oord et al. 2017, arXiv:1711.00937, section 4.1, with the cells of `NVAE`.

    Example:
        >>> net = pv.nets.GridEncoder((3, 32, 32), width=4, channels=(8, 8), cells=1)
        >>> net(torch.zeros(5, 3, 32, 32)).shape, net.grid
        (torch.Size([5, 4, 8, 8]), torch.Size([8, 8]))
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        width: int,
        channels: int | Sequence[int] = (64, 128),
        cells: int = 2,
        rescale: float = 1.0,
    ) -> None:
        super().__init__()
        self.in_shape, self.width = as_size(in_shape), as_length("width", width)
        self.channels = as_widths("channels", channels, one="halving")
        self.cells, self.rescale = as_count("cells", cells, 0, MOST_LAYERS), as_number("rescale", rescale, above=0)
        if len(self.in_shape) not in (2, 3) or not self.channels:
            raise ShapeError(
                f"GridEncoder needs in_shape (C, H, W) or (H, W) and channels for at least one halving, got "
                f"{tuple(self.in_shape)} and channels={self.channels}."
            )
        self._image = (self.in_shape[:-2].numel(), *self.in_shape[-2:])
        self.grid = as_size(halvings((self._image[1], self._image[2]), len(self.channels))[-1])
        self.out_shape = as_size((self.width, *self.grid))
        self.down = nn.Sequential()
        for n, m in pairwise((self._image[0], *self.channels)):
            self.down.extend([nn.Conv2d(n, m, 3, stride=2, padding=1), nn.SiLU()])
        self.stack = nn.Sequential(*(EncoderCell(self.channels[-1]) for _ in range(self.cells)))
        self.last = Conv(self.channels[-1], self.width, 1)

    def forward(self, *parents: Tensor) -> Tensor:
        check_inputs(self, parents, [self.in_shape], self.last)
        (x,) = parents
        batch = x.shape[: x.dim() - len(self.in_shape)]
        out: Tensor = self.last(self.stack(self.down(self.rescale * x.reshape(-1, *self._image))))
        return out.reshape(*batch, *self.out_shape)


class GridDecoder(nn.Module):
    """The parameters of an image from a grid of vectors: a convolution, residual cells, and a doubling for each of `channels`.

    Input `(*batch, width, h, w)`, output `(*batch, *out_shape)`. Sizes are those of a `GridEncoder` with as many channels, in
    reverse.

    Args:
        width: Number of elements of each vector.
        out_shape: Shape of the output for one image, ending in (H, W), such as `family.param_shape`.
        channels: Channels before each doubling, listed from the image inwards as for `GridEncoder`; an int for one.
        cells: Residual cells at the first resolution.

    Raises:
        ShapeError: `out_shape` does not end in (H, W), `channels` is empty, or an input has another trailing shape or dtype.
        OptionError: `channels` or `cells` is out of range.

    References:
        van den Oord et al. 2017, arXiv:1711.00937, section 4.1, with the cells of `NVAE`.

    Example:
        >>> net = pv.nets.GridDecoder(4, fam.Normal((3, 32, 32)).param_shape, channels=(8, 8), cells=1)
        >>> net(torch.zeros(5, 4, 8, 8)).shape
        torch.Size([5, 2, 3, 32, 32])
    """

    def __init__(
        self, width: int, out_shape: Sequence[int], channels: int | Sequence[int] = (64, 128), cells: int = 2
    ) -> None:
        super().__init__()
        self.width, self.out_shape = as_length("width", width), as_size(out_shape)
        self.channels, self.cells = (
            as_widths("channels", channels, one="doubling"),
            as_count("cells", cells, 0, MOST_LAYERS),
        )
        if len(self.out_shape) < 2 or not self.channels:
            raise ShapeError(
                f"GridDecoder needs an out_shape that ends in (H, W) and channels for at least one doubling, got "
                f"{tuple(self.out_shape)} and channels={self.channels}."
            )
        size = (self.out_shape[-2], self.out_shape[-1])
        sizes = [*halvings(size, len(self.channels))[::-1], size]
        self.in_shape = as_size((self.width, *sizes[0]))
        widths = (*self.channels[::-1], self.channels[0])
        self.first = Conv(self.width, widths[0])
        self.stack = nn.Sequential(*(EncoderCell(widths[0]) for _ in range(self.cells)))
        self.up = nn.Sequential()
        for n, m, finer in zip(widths, widths[1:], sizes[1:]):
            self.up.extend([nn.SiLU(), Upsample(n, m, finer)])
        self.last = Planes(widths[-1], self.out_shape)

    def forward(self, *parents: Tensor) -> Tensor:
        check_inputs(self, parents, [self.in_shape], self.first)
        (z,) = parents
        out: Tensor = self.last(self.up(self.stack(self.first(z))))
        return out

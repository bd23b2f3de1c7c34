"""Residual cells for deep hierarchies of latent images: feature maps in, feature maps out, `(*batch, C, H, W)`.

Normalisation is over groups of channels of one image, never over a batch: the density of a row must not depend on the
other rows, and nothing is carried from step to step. Vahdat and Kautz 2020, arXiv:2007.03898, with group normalisation in
place of batch normalisation.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyrovae._arguments import as_count
from pyrovae.errors import OptionError
from pyrovae.nets.conv import halved
from pyrovae.nets.mlp import as_length, as_size, check_inputs


class Conv(nn.Conv2d):
    """A convolution of stride 1 that keeps H and W, for any batch dimensions: `(*batch, n, H, W)` to `(*batch, m, H, W)`."""

    def __init__(self, n: int, m: int, kernel: int = 3) -> None:
        super().__init__(n, m, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x.reshape(-1, *x.shape[-3:]))
        return out.reshape(*x.shape[:-3], *out.shape[1:])


def small(layer: nn.Conv2d) -> nn.Conv2d:
    """The same layer with its weights scaled to a tenth: a deep stack starts near the identity, distributions near N(0, I)."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(0.1)
    return layer


def group_norm(channels: int) -> nn.GroupNorm:
    """Up to 8 groups of at least 4 channels, since smaller ones erase a map of one pixel. Wu and He 2018, arXiv:1803.08494."""
    groups = max(g for g in (1, 2, 4, 8) if g == 1 or channels % (4 * g) == 0)
    return nn.GroupNorm(groups, channels)


class SqueezeExcitation(nn.Module):
    """`x * sigmoid(W_2 relu(W_1 m))`, m the channel means. x: `(N, C, H, W)`. Hu, Shen and Sun 2018, arXiv:1709.01507."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(4, channels // 16)
        self.gate = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        gated: Tensor = x * self.gate(x.mean((-2, -1)))[..., None, None]
        return gated


class _Cell(nn.Module):
    """`x + change(x)`."""

    change: nn.Sequential

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, *x.shape[-3:])
        changed: Tensor = flat + self.change(flat)
        return changed.reshape(x.shape)


class EncoderCell(_Cell):
    """`x + SE(conv(a(norm(conv(a(norm(x)))))))`: a residual cell of 3 x 3 convolutions, with `a(u) = u sigmoid(u)`.

    SE is squeeze-and-excitation and norm is group normalisation. The second convolution starts at a tenth of its usual size.
    Input and output have shape `(*batch, C, H, W)`.

    Args:
        channels: C, the number of channels.

    Raises:
        ShapeError: `channels` is not a positive int.

    References:
        Vahdat and Kautz 2020, arXiv:2007.03898, figure 3b.

    Example:
        >>> cell = pv.nets.EncoderCell(8)
        >>> cell(torch.zeros(5, 8, 7, 7)).shape
        torch.Size([5, 8, 7, 7])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels = as_length("channels", channels)
        self.change = nn.Sequential(
            group_norm(channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            group_norm(channels),
            nn.SiLU(),
            small(nn.Conv2d(channels, channels, 3, padding=1)),
            SqueezeExcitation(channels),
        )


class GenerativeCell(_Cell):
    """`x + SE(project(a(norm(depthwise(a(norm(expand(norm(x)))))))))`: a residual cell with a wide receptive field.

    `expand` and `project` are 1 x 1 convolutions from C channels to `expansion` C and back. The convolution between them is
    depthwise, so that a large kernel costs little. `a(u) = u sigmoid(u)`, SE is squeeze-and-excitation and norm is group
    normalisation; `project` starts at a tenth of its usual size. Input and output have shape `(*batch, C, H, W)`.

    Args:
        channels: C, the number of channels.
        expansion: Factor by which the cell widens inside.
        kernel: Height and width of the depthwise convolution, odd.

    Raises:
        ShapeError: `channels` is not a positive int.
        OptionError: `expansion` is not a positive int, or `kernel` not an odd one.

    References:
        Vahdat and Kautz 2020, arXiv:2007.03898, figure 3a.

    Example:
        >>> cell = pv.nets.GenerativeCell(8, expansion=2)
        >>> cell(torch.zeros(5, 8, 7, 7)).shape
        torch.Size([5, 8, 7, 7])
    """

    def __init__(self, channels: int, expansion: int = 6, kernel: int = 5) -> None:
        super().__init__()
        self.channels = channels = as_length("channels", channels)
        self.expansion, self.kernel = expansion, kernel = as_count("expansion", expansion), as_count("kernel", kernel)
        if kernel % 2 == 0:
            raise OptionError(f"GenerativeCell needs an odd kernel, which keeps height and width, got {kernel}.")
        wide = expansion * channels
        self.change = nn.Sequential(
            group_norm(channels),
            nn.Conv2d(channels, wide, 1),
            group_norm(wide),
            nn.SiLU(),
            nn.Conv2d(wide, wide, kernel, padding=kernel // 2, groups=wide),
            group_norm(wide),
            nn.SiLU(),
            small(nn.Conv2d(wide, channels, 1)),
            SqueezeExcitation(channels),
        )


class Upsample(nn.Module):
    """`conv(up(x))`, nearest neighbours and then 3 x 3: `(*batch, n, h, w)` to `(*batch, m, *size)`. See `ConvDecoder`."""

    def __init__(self, n: int, m: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size, self.convolution = size, nn.Conv2d(n, m, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.convolution(F.interpolate(x.reshape(-1, *x.shape[-3:]), size=self.size, mode="nearest-exact"))
        return out.reshape(*x.shape[:-3], *out.shape[1:])


class Planes(nn.Module):
    """`conv(a(x))`, small at the start: `(*batch, C, H, W)` to `(*batch, *out_shape)`, where out_shape ends in (H, W)."""

    def __init__(self, channels: int, out_shape: Sequence[int], kernel: int = 3) -> None:
        super().__init__()
        self.out_shape = as_size(out_shape)
        self.convolution = small(Conv(channels, self.out_shape[:-2].numel(), kernel))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.convolution(F.silu(x))
        return out.reshape(*x.shape[:-3], *self.out_shape)


class ToImage(nn.Module):
    """`shuffle(conv(a(x)))`, small at the start: `(*batch, C, H / 2, W / 2)`, rounded up, to `(*batch, *out_shape)`.

    out_shape ends in (H, W). Each feature of 2 x 2 pixels has four planes of its own, so that the convolution runs at half the
    resolution (Shi et al. 2016, arXiv:1609.05158). An odd H or W is cropped.
    """

    def __init__(self, channels: int, out_shape: Sequence[int]) -> None:
        super().__init__()
        self.channels, self.out_shape = channels, as_size(out_shape)
        self.convolution = small(Conv(channels, 4 * self.out_shape[:-2].numel()))

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.out_shape[-2:]
        out = F.pixel_shuffle(self.convolution(F.silu(x)), 2)[..., :height, :width]
        return out.reshape(*x.shape[:-3], *self.out_shape)


class BottomUp(nn.Module):
    """Features of an image at several resolutions, coarsest first: a list of tensors `(*batch, C_r, H_r, W_r)`.

    x has shape `(*batch, C, H, W)` for an in_shape (C, H, W), or `(*batch, H, W)`, and is first multiplied by `rescale`. For
    each of `channels` a 3 x 3 convolution of stride 2 halves H and W, rounding up, and `cells[r] >= 1` residual cells
    follow; the output of each cell is part of the list. Raises ShapeError if x has another trailing shape or dtype.
    """

    def __init__(
        self, in_shape: Sequence[int], channels: Sequence[int], cells: Sequence[int], rescale: float = 1.0
    ) -> None:
        super().__init__()
        self.in_shape, self.channels, self.cells = as_size(in_shape), tuple(channels), tuple(cells)
        self.rescale = rescale
        self._image = (self.in_shape[:-2].numel(), *self.in_shape[-2:])
        widths = (self._image[0], *self.channels)
        self.down = nn.ModuleList(nn.Conv2d(n, m, 3, stride=2, padding=1) for n, m in pairwise(widths))
        self.stages = nn.ModuleList(
            nn.ModuleList(EncoderCell(n) for _ in range(num)) for n, num in zip(self.channels, self.cells)
        )

    def forward(self, *parents: Tensor) -> list[Tensor]:
        check_inputs(self, parents, [self.in_shape], self.down[0])
        (x,) = parents
        batch = x.shape[: x.dim() - len(self.in_shape)]
        h = self.rescale * x.reshape(-1, *self._image)
        found: list[Tensor] = []
        for down, stage in zip(self.down, self.stages):
            h = down(h)
            for cell in stage.children():
                h = cell(h)
                found.insert(0, h.reshape(*batch, *h.shape[1:]))
        return found


def halvings(size: tuple[int, int], num: int) -> list[tuple[int, int]]:
    """(H, W) after 1, ..., num convolutions of stride 2."""
    found = [size]
    for _ in range(num):
        found.append((halved(found[-1][0]), halved(found[-1][1])))
    return found[1:]

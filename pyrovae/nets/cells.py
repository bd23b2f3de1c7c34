"""Residual cells for deep hierarchies over images: feature maps in, feature maps out, (*batch, C, H, W).

What is normalised are groups of channels of one image, never a batch: a row's density may not depend on the rows beside it,
and nothing is carried from step to step. Vahdat & Kautz 2020, arXiv:2007.03898, with group for batch normalisation.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyrovae.nets.conv import halved
from pyrovae.nets.mlp import as_size, check_rows


class Conv(nn.Conv2d):
    """A convolution of stride 1 that keeps H and W, over any left-hand dims: (*batch, n, H, W) -> (*batch, m, H, W)."""

    def __init__(self, n: int, m: int, kernel: int = 3) -> None:
        super().__init__(n, m, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x.reshape(-1, *x.shape[-3:]))
        return out.reshape(*x.shape[:-3], *out.shape[1:])


def small(layer: nn.Conv2d) -> nn.Conv2d:
    """The same layer at a tenth of its size, for a deep stack to start near the identity, and distributions near N(0, I)."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(0.1)
    return layer


def group_norm(channels: int) -> nn.GroupNorm:
    """Up to 8 groups of at least 4 channels: fewer would be all but nothing on a map of one pixel. arXiv:1803.08494."""
    groups = max(g for g in (1, 2, 4, 8) if g == 1 or channels % (4 * g) == 0)
    return nn.GroupNorm(groups, channels)


class SqueezeExcitation(nn.Module):
    """x * sigmoid(W_2 relu(W_1 m)), m the means of the channels: (N, C, H, W). Hu, Shen & Sun 2018, arXiv:1709.01507."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(4, channels // 16)
        self.gate = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        gated: Tensor = x * self.gate(x.mean((-2, -1)))[..., None, None]
        return gated


class _Cell(nn.Module):
    """x + change(x)."""

    change: nn.Sequential

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, *x.shape[-3:])
        changed: Tensor = flat + self.change(flat)
        return changed.reshape(x.shape)


class EncoderCell(_Cell):
    """x + SE(conv(a(norm(conv(a(norm(x))))))), 3 x 3 convolutions, a(u) = u sigmoid(u). x: (*batch, C, H, W), any batch.

    The second convolution starts at a tenth of its usual size. Vahdat & Kautz 2020, arXiv:2007.03898, figure 3b.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
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
    """x + SE(project(a(norm(depthwise(a(norm(expand(norm(x)))))))): C channels to `expansion` C and back. x: (*batch, C, H, W).

    The depthwise convolution is kernel x kernel, so that a wide receptive field costs little; expand and project are 1 x 1;
    a(u) = u sigmoid(u); project starts at a tenth of its usual size. Vahdat & Kautz 2020, arXiv:2007.03898, figure 3a.
    """

    def __init__(self, channels: int, expansion: int = 6, kernel: int = 5) -> None:
        super().__init__()
        self.channels, self.expansion, self.kernel = channels, expansion, kernel
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
    """conv(up(x)): (*batch, n, h, w) -> (*batch, m, *size), nearest neighbours, then 3 x 3. See `ConvDecoder`."""

    def __init__(self, n: int, m: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size, self.convolution = size, nn.Conv2d(n, m, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.convolution(F.interpolate(x.reshape(-1, *x.shape[-3:]), size=self.size, mode="nearest-exact"))
        return out.reshape(*x.shape[:-3], *out.shape[1:])


class Planes(nn.Module):
    """conv(a(x)): (*batch, C, H, W) -> (*batch, *out_shape), out_shape ending in (H, W); small at the start."""

    def __init__(self, channels: int, out_shape: Sequence[int], kernel: int = 3) -> None:
        super().__init__()
        self.out_shape = as_size(out_shape)
        self.convolution = small(Conv(channels, self.out_shape[:-2].numel(), kernel))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.convolution(F.silu(x))
        return out.reshape(*x.shape[:-3], *self.out_shape)


class ToImage(nn.Module):
    """shuffle(conv(a(x))): (*batch, C, H / 2, W / 2), rounded up -> (*batch, *out_shape), out_shape ending in (H, W).

    Each feature of 2 x 2 pixels has four planes of its own, so that the convolution stays at half the resolution: Shi et al.
    2016, arXiv:1609.05158. What an odd H or W does not need is cut off. Small at the start.
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
    """Features of an image at several resolutions, last found and so coarsest first: a list of (*batch, C_r, H_r, W_r).

    x: (*batch, C, H, W) for in_shape (C, H, W), or (*batch, H, W); it is multiplied by `rescale` first. A 3 x 3 convolution of
    stride 2 for each of `channels` halves H and W, rounding up; cells[r] >= 1 residual cells follow it, and the features
    behind each cell are returned. Raises ShapeError if x has another trailing shape or dtype.
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
        check_rows(self, parents, [self.in_shape], self.down[0])
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

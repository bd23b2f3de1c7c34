"""`gradient_histograms`: images as counts of the directions of their edges, in which distances mean more than in pixels."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from pyrovae.errors import DataError, ShapeError
from pyrovae.pair.arrays import as_tensor

__all__ = ["gradient_histograms"]

DIRECTIONS, CELLS, LEAST_CELL = 8, 7, 2  # of a circle; along the shorter side, about; pixels
LEAST_SIDE = 4  # pixels
FLOOR = 0.1  # of the mean strength in an image, added to that around a cell
MOST_VALUES = 2e7  # in memory at once


def gradient_histograms(x: Tensor, image_shape: Sequence[int]) -> Tensor:
    """Square roots of histograms of gradients: how strong the edges in each cell of an image are, by eight directions.

    Of central differences `g(u)` at the pixels u, `h[k, c] = sum_u |g(u)| a_k(arg g(u)) b_c(u)`, where a and b divide each
    pixel linearly between the two nearest directions and the nearest cells. The cells are about a seventh of the shorter
    side, and at least two pixels. Each is divided by the root mean square of the cells around it, so that contrast counts
    little. A stroke that is moved by a pixel has nearly the same histograms, and quite other pixels: this is what a
    `LabelField` or a `LabelProcess` of images should see. Of coloured images each pixel has the gradient of the channel in
    which it is largest.

    Args:
        x: Images, `(N, *event)` with as many numbers as a shape `image_shape` has; rows or arrays.
        image_shape: `(height, width)` or `(channels, height, width)`, with sides of four pixels or more.

    Returns:
        `(N, D)`, float32 on the CPU, D = 8 times the number of cells.

    Raises:
        ShapeError: The shape is not that of an image, or not that of the rows.
        DataError: Numbers are missing or infinite.

    References:
        Dalal & Triggs 2005, doi:10.1109/CVPR.2005.177.

    Example:
        >>> images = torch.rand(10, 28, 28)
        >>> pv.gradient_histograms(images, (28, 28)).shape
        torch.Size([10, 392])
    """
    x, shape = as_tensor("x", x, torch.float64).detach().cpu(), checked_shape(image_shape)
    if min(shape[-2:]) < LEAST_SIDE:
        raise ShapeError(f"gradient_histograms needs images with sides of {LEAST_SIDE} pixels or more, got {shape}.")
    if x.dim() < 2 or math.prod(x.shape[1:]) != math.prod(shape):
        raise ShapeError(f"Images of shape {shape} need {math.prod(shape)} numbers a row, got rows {tuple(x.shape)}.")
    if not bool(x.isfinite().all()):
        raise DataError("Images must have no gaps and no infinite numbers: fill them in.")
    images = x.reshape(len(x), math.prod(shape[:-2]), *shape[-2:])
    size = max(1, int(MOST_VALUES / (DIRECTIONS * math.prod(shape))))
    found = torch.cat([_histograms(_scaled(part), _cell(shape)) for part in images.split(size)])
    energy = found.square().sum(1, keepdim=True)
    around = torch.nn.functional.avg_pool2d(energy, 3, 1, 1, count_include_pad=False).sqrt()
    return (
        (found / (around + FLOOR * around.mean((1, 2, 3), keepdim=True)).clamp_min(torch.finfo(found.dtype).tiny))
        .flatten(1)
        .sqrt()
    )


def checked_shape(image_shape: Sequence[int]) -> tuple[int, ...]:
    """`(height, width)` or `(channels, height, width)` as a tuple. ShapeError for what is neither."""
    try:
        shape = tuple(operator.index(side) for side in image_shape)
    except TypeError:
        shape = ()
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ShapeError(f"image_shape is (height, width) or (channels, height, width), got {image_shape!r}.")
    return shape


def _scaled(images: Tensor) -> Tensor:
    """Images `(N, channels, H, W)` as float32, each from its first pixel on and in units of its own largest number.

    No number is then too large or too small to be squared, and what one image has does not depend on the others.
    """
    images = _in_units(images.double())
    return _in_units(images - images[..., :1, :1]).float()


def _in_units(images: Tensor) -> Tensor:
    largest = images.abs().amax((1, 2, 3), keepdim=True)
    return images / torch.where(largest > 0, largest, 1.0)


def _cell(shape: tuple[int, ...]) -> int:
    return max(LEAST_CELL, round(min(shape[-2:]) / CELLS))


def _histograms(images: Tensor, cell: int) -> Tensor:
    """`(N, 8, rows, columns)` of images `(N, channels, H, W)`."""
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")
    across = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    strength, channel = (across.square() + down.square()).sqrt().max(1, keepdim=True)
    across, down = across.gather(1, channel), down.gather(1, channel)
    angle = torch.atan2(down, across) / (2 * math.pi) * DIRECTIONS
    apart = angle - torch.arange(DIRECTIONS)[:, None, None]
    apart = (apart + DIRECTIONS / 2) % DIRECTIONS - DIRECTIONS / 2
    directed = (1 - apart.abs()).clamp_min(0.0) * strength  # (N, 8, H, W)
    tent = 1 - ((torch.arange(2 * cell) + 0.5 - cell) / cell).abs()
    kernel = (tent[:, None] * tent).to(directed.dtype).expand(DIRECTIONS, 1, -1, -1)
    return torch.nn.functional.conv2d(directed, kernel, stride=cell, padding=cell - cell // 2, groups=DIRECTIONS)

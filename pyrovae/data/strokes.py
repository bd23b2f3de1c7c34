"""Measures of handwriting: how wide its strokes are, how it leans, how large it is. They need no label."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from pyrovae.errors import DataError, ShapeError
from pyrovae.pair.arrays import as_tensor


def stroke_width(images: Tensor) -> Tensor:
    """The width of strokes in pixels, `2 A / P`: A the area of the ink, P the length of its outline.

    A line of width w and length l has A = w l and P = 2 (w + l), and so this is w where l is large. The outline runs where an
    image, interpolated between its pixels, is 0.7 as dark as at its darkest. Images that a model draws are expectations, and
    softer than handwriting: at half the darkness, reconstructions are wider than their originals, and at 0.7 about as wide. The
    length of the outline is the total variation of what it encloses, which is up to 8 % more for oblique lines.

    Args:
        images: `(N, H, W)` or `(N, 1, H, W)`, ink on a ground of 0, in any unit.

    Returns:
        `(N,)` float64; 0 for an image without ink.

    Raises:
        ShapeError: These are no gray images.
        DataError: A value is negative or not finite.

    Example:
        >>> from pyrovae.data import stroke_width
        >>> line = torch.zeros(1, 64, 64)
        >>> line[0, 2:62, 20:24] = 255.0
        >>> stroke_width(line).round(decimals=1)  # 4 x 60 / 64, and a little for round corners
        tensor([3.8000], dtype=torch.float64)
    """
    x = F.pad(as_ink(images), (1, 1, 1, 1))  # the ground goes on beyond the edge
    finer = -(-FINE // min(x.shape[1:]))
    x = F.interpolate(x.unsqueeze(1), scale_factor=finer, mode="bilinear").squeeze(1) if finer > 1 else x
    ink = _dark(x, SOLID).double()
    across, down = ink[:, :-1, 1:] - ink[:, :-1, :-1], ink[:, 1:, :-1] - ink[:, :-1, :-1]
    return _ratio(2 * ink.sum((1, 2)), torch.hypot(across, down).sum((1, 2))) / finer


def slant(images: Tensor) -> Tensor:
    """How far the writing leans to the right, in degrees from the upright: `atan(-cov(column, row) / var(row))` of the ink.

    An image that is sheared so that its rows move to the right by s pixels a row, from the bottom upwards, has a tangent that
    is larger by s. What leans to the left is negative.

    Args:
        images: `(N, H, W)` or `(N, 1, H, W)`, ink on a ground of 0, in any unit.

    Returns:
        `(N,)` float64 in (-90, 90); 0 for an image whose ink is all in one row.

    Raises:
        ShapeError: These are no gray images.
        DataError: A value is negative or not finite.

    References:
        LeCun et al. 1995, *Comparison of learning algorithms for handwritten digit recognition*, which deslants by moments.

    Example:
        >>> from pyrovae.data import slant
        >>> slant(torch.eye(5).flip(1)[None]).round()  # from the lower left to the upper right
        tensor([45.], dtype=torch.float64)
    """
    x = as_ink(images)
    ink = x.sum((1, 2))
    row, column = (torch.arange(n, dtype=x.dtype, device=x.device) for n in x.shape[1:])
    row = row - _ratio((x.sum(2) * row).sum(1), ink).unsqueeze(1)
    column = column - _ratio((x.sum(1) * column).sum(1), ink).unsqueeze(1)
    covariance = torch.einsum("nhw,nh,nw->n", x, row, column)
    return torch.rad2deg(torch.atan(-_ratio(covariance, (x.sum(2) * row**2).sum(1))))


def extent(images: Tensor) -> Tensor:
    """How large the writing is: the side of the square of the same area as its bounding box, as a share of the image's.

    In the box is what is at least half as dark as the darkest pixel.

    Args:
        images: `(N, H, W)` or `(N, 1, H, W)`, ink on a ground of 0, in any unit.

    Returns:
        `(N,)` float64 in [0, 1]; 0 for an image without ink.

    Raises:
        ShapeError: These are no gray images.
        DataError: A value is negative or not finite.

    Example:
        >>> from pyrovae.data import extent
        >>> square = torch.zeros(1, 8, 8)
        >>> square[0, 2:6, 3:7] = 16.0
        >>> extent(square)
        tensor([0.5000], dtype=torch.float64)
    """
    x = as_ink(images)
    dark = _dark(x, 0.5)
    return (_span(dark.any(2)) * _span(dark.any(1))).sqrt()


SOLID = 0.7  # of the darkest: what is inside of a stroke
FINE = 28  # pixels of a side, to which smaller images are interpolated, where an outline is to be found

# By the name of what a caption says.
MEASURES: dict[str, Callable[[Tensor], Tensor]] = {"width": stroke_width, "slant": slant, "size": extent}


def as_ink(images: Tensor) -> Tensor:
    """Gray images as float64, `(N, H, W)`. ShapeError or DataError for anything else."""
    images = as_tensor("images", images)
    shape = tuple(images.shape)
    if len(shape) == 4 and shape[1] == 1:
        images = images.squeeze(1)
    if images.dim() != 3 or 0 in shape[1:]:
        raise ShapeError(
            f"Strokes are measured in gray images, (N, H, W) or (N, 1, H, W), got {shape}. Reshape the rows."
        )
    found = images.double()
    if bool((~torch.isfinite(found) | (found < 0)).any()):
        raise DataError(
            "Ink is measured on a ground of 0, and a pixel is negative, missing or infinite. Correct it first."
        )
    return found


def _dark(x: Tensor, share: float) -> Tensor:
    """Which places are at least so dark, as a share of the darkest of their image, bool of the shape of x."""
    return (x >= share * x.amax((1, 2), keepdim=True)) & (x > 0)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """Their ratio; 0 where both are 0."""
    return torch.where(below > 0, above / below.clamp_min(torch.finfo(below.dtype).tiny), torch.zeros_like(above))


def _span(dark: Tensor) -> Tensor:
    """From the first to the last True of each row, as a share of its length, `(N,)`."""
    place = torch.arange(dark.shape[1], device=dark.device)
    first = torch.where(dark, place, dark.shape[1]).amin(1)
    last = torch.where(dark, place, -1).amax(1)
    return (last - first + 1).clamp_min(0).double() / dark.shape[1]

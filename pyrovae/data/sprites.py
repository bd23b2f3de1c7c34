"""Sprites: black and white images of a shape, drawn from five known factors, as a yardstick of disentanglement."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyrovae._arguments import as_seed, index_of
from pyrovae.data.dataset import Dataset
from pyrovae.errors import OptionError

SHAPES = ("square", "ellipse", "heart")
FACTORS = ("shape", "scale", "angle", "x", "y")
LEVELS = (3, 6, 8, 16, 16)
AT_ONCE = 2**22  # pixels
MOST_PIXELS = 4096  # of a side
# In units of the image, and odd enough for no centre of a pixel to lie on an outline, where rounding would decide.
SMALLEST, LARGEST, EDGE = 0.0971, 0.1813, 0.2517


def sprites(num_rows: int | None = 10_000, size: int = 32, levels: Sequence[int] = LEVELS, seed: int = 0) -> Dataset:
    """Images of a square, an ellipse or a heart of some size and angle at some place.

    The factors are independent of each other and even: the shape, the scale (the half width, from 0.10 to 0.18 of the image),
    the angle (equal steps from 0 up to, but without, 90 degrees, since a square looks the same then), and the place x and y of
    the centre (from 0.25 to 0.75 of the image). A pixel is 1 if its centre is inside of the shape. Ten thousand images of 32 x
    32 pixels take about half a second.

    Args:
        num_rows: N, different combinations of the factors chosen at random; None gives all of them, in order.
        size: The height and width of an image in pixels, at least 8.
        levels: The number of values of each factor, at most 3 for the shape.
        seed: Of the choice of rows.

    Returns:
        A `Dataset` of kind "binary": `x` is `(N, size * size)`, `y` the shape, and `factors` `(N, 5)` int64 the numbers of the
        values of `factor_names`, each from 0.

    Raises:
        OptionError: There are fewer combinations than `num_rows`, or an argument has a value that cannot be.

    References:
        After dSprites (Matthey et al. 2017), which has the same factors; the images are ours.

    Example:
        >>> from pyrovae.data import sprites
        >>> data = sprites(100)
        >>> data.x.shape, data.image_shape, data.factor_names
        (torch.Size([100, 1024]), (32, 32), ('shape', 'scale', 'angle', 'x', 'y'))
        >>> one = sprites(None, size=8, levels=(1, 1, 1, 1, 1))
        >>> print("\\n".join("".join("_#"[int(p)] for p in row) for row in one.x.reshape(8, 8)[:4]))
        ________
        _##_____
        _##_____
        ________
    """
    counts, pixels = _whole(levels), _whole([size])
    if len(counts) != len(FACTORS) or min(counts) < 1 or counts[0] > len(SHAPES):
        raise OptionError(
            f"levels are five whole numbers, of {', '.join(FACTORS)}, at most {len(SHAPES)} for the shape; got {levels!r}."
        )
    if not pixels or not 8 <= pixels[0] <= MOST_PIXELS:
        raise OptionError(f"size must be a whole number of at least 8 pixels, and at most {MOST_PIXELS}, got {size!r}.")
    total = int(np.prod(counts))
    wanted = (total,) if num_rows is None else _whole([num_rows])
    if not wanted or not 1 <= wanted[0] <= total:
        raise OptionError(
            f"num_rows must be between 1 and {total}, the number of combinations of {counts} levels, got {num_rows!r}."
        )
    numbers = (
        np.arange(total)
        if num_rows is None
        else np.random.default_rng(as_seed(seed, least=0)).permutation(total)[: wanted[0]]
    )
    factors = np.stack(np.unravel_index(numbers, counts), 1).astype(np.int64)
    step = max(1, AT_ONCE // size**2)
    images = np.concatenate([_draw(part, size, counts) for part in np.split(factors, range(step, len(factors), step))])
    return Dataset(
        name="sprites",
        x=torch.from_numpy(images.reshape(len(images), -1)),
        y=torch.from_numpy(factors[:, 0].copy()),
        kind="binary",
        classes=SHAPES[: counts[0]],
        image_shape=(size, size),
        source={"name": "sprites", "checksum": hashlib.sha256(np.packbits(images > 0).tobytes()).hexdigest()},
        factors=torch.from_numpy(factors),
        factor_names=FACTORS,
    )


def _whole(numbers: Any) -> tuple[int, ...]:
    """Whole numbers of any kind as Python's; none where one is no whole number."""
    found = tuple(index_of(n) for n in numbers) if isinstance(numbers, Iterable) else (None,)
    return () if None in found else tuple(n for n in found if n is not None)


def _draw(factors: NDArray[np.int64], size: int, counts: tuple[int, ...]) -> NDArray[Any]:
    """The images of these rows, `(n, size, size)` float32."""
    shape, scale, angle, x, y = factors.T
    half = _between(SMALLEST, LARGEST, scale, counts[1])
    turn = 0.5 * np.pi * angle / counts[2]
    centres = (np.arange(size) + 0.5) / size
    right = (centres - _between(EDGE, 1 - EDGE, x, counts[3])[:, None])[:, None, :]
    down = (centres - _between(EDGE, 1 - EDGE, y, counts[4])[:, None])[:, :, None]
    cos, sin = (f(turn)[:, None, None] / half[:, None, None] for f in (np.cos, np.sin))
    u, v = cos * right + sin * down, cos * down - sin * right  # in units of the half width, along the shape's own axes
    inside = np.empty(u.shape, dtype=bool)
    for number, test in enumerate((_square, _ellipse, _heart)):
        these = shape == number
        inside[these] = test(u[these], v[these])
    return inside.astype(np.float32)


def _between(low: float, high: float, number: NDArray[np.int64], count: int) -> NDArray[Any]:
    """`count` values in equal steps from low to high."""
    found: NDArray[Any] = low + (high - low) * number / max(1, count - 1)
    return found


def _square(u: NDArray[Any], v: NDArray[Any]) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = np.maximum(np.abs(u), np.abs(v)) < 0.8863  # the area is that of a circle of radius 1
    return found


def _ellipse(u: NDArray[Any], v: NDArray[Any]) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = (u / 1.3) ** 2 + (v * 1.3) ** 2 < 1
    return found


def _heart(u: NDArray[Any], v: NDArray[Any]) -> NDArray[np.bool_]:
    """The curve (a^2 + b^2 - 1)^3 = a^2 b^3, its point downwards."""
    a, b = 1.03 * u, 0.13 - 1.03 * v
    aa, bb = a * a, b * b
    round_ = aa + bb - 1
    found: NDArray[np.bool_] = round_ * round_ * round_ < aa * bb * b
    return found

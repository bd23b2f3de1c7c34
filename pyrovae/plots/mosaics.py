"""Mosaics of images: samples, reconstructions, latent manifolds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from torch import Tensor

from pyrovae._arguments import as_count, as_number, as_widths, told
from pyrovae.errors import DataError, ShapeError
from pyrovae.plots.columns import Columns, column_scatters
from pyrovae.plots.style import STYLE, Array, as_array, axes_of, literal


@rc_context(STYLE)
def images(
    x: ArrayLike | Tensor,
    image_shape: Sequence[int],
    columns: int = 8,
    vmax: float | None = None,
    ax: Axes | None = None,
    names: Sequence[str] | None = None,
) -> Axes:
    """Show images in a mosaic, row by row.

    Args:
        x: N images, `(N, D)` or `(N, *image_shape)`; NaN is white.
        image_shape: `(H, W)`, or `(C, H, W)` with 1, 3 or 4 channels.
        columns: The number of images in a row of the mosaic.
        vmax: The value that is white; 0 is black. By default 1, or the largest value if that is above 1.
        ax: The axes to draw on; None makes a figure.
        names: A heading for each column.

    Returns:
        The axes.

    Raises:
        ShapeError: `x` does not have images of `image_shape`, or `names` not one for each column.
        DataError: There is no image.
        OptionError: `columns` is less than 1.

    Example:
        >>> ax = pv.plots.images(torch.rand(6, 16), image_shape=(4, 4), columns=3)
        >>> ax.get_images()[0].get_array().shape  # 2 x 3 images with gaps of a pixel, in colour
        (9, 14, 3)
    """
    pictures = _pictures(x, image_shape)
    columns = as_count("columns", columns)
    columns = min(columns, len(pictures))
    if names is not None and len(names) != columns:
        raise ShapeError(f"{columns} columns need as many names, got {len(names)}.")
    rows = -(-len(pictures) // columns)
    ax = axes_of(ax, _size(columns, rows, pictures))
    _show(ax, _mosaic(pictures, columns), _white(pictures, vmax))
    if names is not None:
        width = pictures.shape[2] + 1  # an image and its gap
        ax.xaxis.tick_top()
        ax.set_xticks([(i + 0.5) * width - 1 for i in range(columns)], [literal(name) for name in names])
        ax.tick_params(length=0, labelrotation=90 if max(map(len, names)) > 4 else 0)
    return ax


@rc_context(STYLE)
def reconstructions(
    x: ArrayLike | Tensor,
    x_hat: ArrayLike | Tensor,
    image_shape: Sequence[int] | None = None,
    ax: Axes | Sequence[Axes] | Array | None = None,
    columns: Columns | None = None,
    labels: Sequence[bool] | None = None,
) -> Axes | Array:
    """Show originals and their reconstructions: images one above the other, or a scatter plot for each column of a table.

    A scatter plot shows reconstruction against original, the diagonal, and the share of the column's variance that is
    explained, R^2 = 1 - sum (x - x_hat)^2 / sum (x - mean x)^2. A column of classes has a disc for each pair of them, whose
    area is the number of rows, and the share that is right. NaN is left out.

    Args:
        x: The originals, `(N, D)`, or `(N, *image_shape)` for images.
        x_hat: Their reconstructions, of the same shape.
        image_shape: `(H, W)`, or `(C, H, W)` with 1, 3 or 4 channels. None: rows are those of a table, and the first 12
            columns are shown.
        ax: The axes to draw on: one for images, a sequence of at least min(D, 12) for a table. None makes a figure.
        columns: The names of the D columns of a table. A mapping gives the names of the classes of each, too, in the order of
            their numbers, an empty tuple for a column of numbers, and
            what those of dates, periods and times count: the date of day 0, such as `np.datetime64("1970-01-01")`, the period
            of number 0, `pd.Period("1970-01", "M")`, or a duration, `np.timedelta64(1, "s")`. `pv.tables.Schema` has all that
            as `meanings`.
        labels: For each column of a table whether it holds numbers of classes, where `columns` does not say it.

    Returns:
        The axes for images, an array of min(D, 12) axes for a table.

    Raises:
        ShapeError: The two shapes differ, or do not fit `image_shape`, `ax`, `columns` or `labels`.
        DataError: There is no row.

    Example:
        >>> x = torch.rand(5, 16)
        >>> ax = pv.plots.reconstructions(x, x.round(), image_shape=(4, 4))
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['original', 'reconstruction']
        >>> pv.plots.reconstructions(x[:, :3], x[:, :3].round(), columns=["a", "b", "c"]).shape
        (3,)
    """
    x, x_hat = as_array(x), as_array(x_hat)
    if x.shape != x_hat.shape:
        raise ShapeError(f"Reconstructions must have the shape of their originals, got {x_hat.shape} and {x.shape}.")
    if image_shape is None:
        return column_scatters(x, x_hat, ax, columns, labels)
    if ax is not None and not isinstance(ax, Axes):
        raise ShapeError(f"Images are drawn on one Axes, got {type(ax).__name__}. Pass one of its elements.")
    above, below = _pictures(x, image_shape), _pictures(x_hat, image_shape)
    wide = min(10, len(above))
    starts = range(0, len(above), wide)
    bands = [_mosaic(np.concatenate([_padded(p[i : i + wide], wide) for p in (above, below)]), wide) for i in starts]
    gap = np.full((max(2, above.shape[1] // 3), *bands[0].shape[1:]), np.nan)
    stacked = [part for band in bands for part in (gap, band)][1:]
    ax = axes_of(ax, _size(wide, 2.3 * len(bands), above, left=0.9))
    _show(ax, np.concatenate(stacked), _white(above, None))
    step, height = len(gap) + len(bands[0]), above.shape[1]
    ticks = [band * step + row * (height + 1) + (height - 1) / 2 for band in range(len(bands)) for row in (0, 1)]
    ax.set_yticks(ticks, ["original", "reconstruction"] * len(bands))
    ax.tick_params(length=0)
    return ax


@rc_context(STYLE)
def captioned(
    x: ArrayLike | Tensor,
    image_shape: Sequence[int],
    captions: Sequence[str],
    columns: int = 8,
    vmax: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Show images in a mosaic, row by row, each below its caption.

    Args:
        x: N images, `(N, D)` or `(N, *image_shape)`; NaN is white.
        image_shape: `(H, W)`, or `(C, H, W)` with 1, 3 or 4 channels.
        captions: N texts, of one or several lines, which are shown as they are (dollar signs do not start mathematics).
        columns: The number of images in a row of the mosaic.
        vmax: The value that is white; 0 is black. By default 1, or the largest value if that is above 1.
        ax: The axes to draw on; None makes a figure.

    Returns:
        The axes.

    Raises:
        ShapeError: `x` does not have images of `image_shape`, or there is not one caption for each.
        DataError: There is no image.
        OptionError: `columns` is less than 1.

    Example:
        >>> ax = pv.plots.captioned(torch.rand(3, 16), (4, 4), ["cat", "dog", "cat?"])
        >>> [text.get_text() for text in ax.texts]
        ['cat', 'dog', 'cat?']
    """
    pictures = _pictures(x, image_shape)
    if len(captions) != len(pictures):
        raise ShapeError(f"{len(pictures)} images need as many captions, got {len(captions)}.")
    columns = as_count("columns", columns)
    wide = min(columns, len(pictures))
    height, width = pictures.shape[1:3]
    # in pixels: the text above each image, whose cell is an inch wide
    lines = 1 + max(caption.count("\n") for caption in captions)
    line, gap, space = -(-width * (1 + lines) // 8), -(-width // 12), 0.1 * -(-width // 4)
    lined = np.pad(pictures, ((0, 0), (line, 0), (0, 0), (0, 0)), constant_values=np.nan)
    mosaic = _mosaic(lined, wide, gap)
    ax = axes_of(ax, (mosaic.shape[1] / (width + gap), mosaic.shape[0] / (width + gap)))
    _show(ax, mosaic, _white(pictures, vmax))
    for number, caption in enumerate(captions):
        row, column = divmod(number, wide)
        x0, y0 = column * (width + gap) - 0.5, row * (height + line + gap) - 0.5
        ax.text(
            x0 + width / 2,
            y0 + line - space,
            caption,
            fontsize=7.5,
            ha="center",
            va="bottom",
            parse_math=False,
        )
    return ax


@rc_context(STYLE)
def manifold(
    images: ArrayLike | Tensor,
    image_shape: Sequence[int],
    ax: Axes | None = None,
    grid: ArrayLike | Tensor | None = None,
) -> Axes:
    """Show images decoded on a grid of a two-dimensional latent space; z_1 grows to the right and z_2 upwards.

    Args:
        images: The decoded images, `(R, R, D)` or `(R, R, *image_shape)`; `images[i, j]` belongs to
            z = (grid[j], grid[i]).
        image_shape: `(H, W)`, or `(C, H, W)` with 1, 3 or 4 channels.
        ax: The axes to draw on; None makes a figure.
        grid: The R coordinates, `(R,)`, increasing but not necessarily equally spaced: ticks are interpolated between
            them. Without it the axes have no ticks.

    Returns:
        The axes.

    Raises:
        ShapeError: `images`, `image_shape` and `grid` do not fit together.

    Example:
        >>> grid = torch.linspace(-2, 2, 5)
        >>> z = torch.cartesian_prod(grid, grid).flip(-1)  # z_2 changes from one row of images to the next
        >>> decoded = torch.sigmoid(z @ torch.randn(2, 16))  # pv.decode(fitted, z) of a fitted pair
        >>> ax = pv.plots.manifold(decoded.reshape(5, 5, 16), (4, 4), grid=grid)
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('$z_1$', '$z_2$')
    """
    array = as_array(images)
    if array.ndim < 3 or array.shape[0] != array.shape[1]:
        raise ShapeError(f"A manifold needs decoded images of shape (R, R, D), got {array.shape}.")
    side = len(array)
    pictures = _pictures(
        array[::-1].reshape(side * side, *array.shape[2:]), image_shape
    )  # the first row is at the bottom
    ax = axes_of(ax, _size(side, side, pictures, left=0.5, largest=6.0))
    _show(ax, _mosaic(pictures, side), _white(pictures, None))
    if grid is not None:
        values = as_array(grid)
        if values.shape != (side,):
            raise ShapeError(f"The grid of {side} x {side} images must have shape ({side},), got {values.shape}.")
        if not (np.diff(values) > 0).all():
            raise ShapeError(
                f"The coordinates of the grid must increase, got {values.tolist()}. Sort them, and the images."
            )
        ticks = [tick for tick in MaxNLocator(4).tick_values(values[0], values[-1]) if values[0] <= tick <= values[-1]]
        centres = np.interp(ticks, values, np.arange(side) + 0.5)
        height, width = (size + 1 for size in pictures.shape[1:3])  # an image and its gap
        labels = [f"{tick:g}".replace("-", "\N{MINUS SIGN}") for tick in ticks]
        ax.set_xticks(centres * width - 1, labels)
        ax.set_yticks((side - centres) * height - 1, labels)
    ax.set(xlabel="$z_1$", ylabel="$z_2$")
    return ax


def _pictures(x: ArrayLike | Tensor, image_shape: Sequence[int]) -> Array:
    """The images as floats of shape `(N, H, W, C)`."""
    array, shape = _numbers(x), as_widths("image_shape", image_shape, some=True, one="dimension")
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] not in (1, 3, 4)):
        raise ShapeError(f"An image has the shape (H, W), or (C, H, W) with 1, 3 or 4 channels, got {shape}.")
    if array.ndim < 2 or array[:1].size != np.prod(shape) * len(array[:1]):
        raise ShapeError(f"Images of shape {shape} need rows of {np.prod(shape)} values, got an array {array.shape}.")
    if not len(array):
        raise DataError("There is no image to draw, got 0 rows.")
    array = array.reshape(len(array), *shape)
    return array[..., None] if len(shape) == 2 else np.moveaxis(array, 1, -1)


def _numbers(x: ArrayLike | Tensor) -> Array:
    try:
        return as_array(x).astype(float)
    except (TypeError, ValueError) as error:
        raise DataError(f"Images are an array or a tensor of numbers, got {told(x)}.") from error


def _padded(pictures: Array, number: int) -> Array:
    """The images, and blank ones up to this number."""
    blank = np.full((number - len(pictures), *pictures.shape[1:]), np.nan)
    return np.concatenate([pictures, blank])


def _mosaic(pictures: Array, columns: int, gap: int = 1) -> Array:
    """Images `(N, H, W, C)` in one array `(height, width, C)`, with `gap` pixels of NaN between them."""
    rows = -(-len(pictures) // columns)
    pictures = np.pad(_padded(pictures, rows * columns), ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=np.nan)
    _, height, width, channels = pictures.shape
    tiles = pictures.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    mosaic = tiles.reshape(rows * height, columns * width, channels)
    return mosaic[: len(mosaic) - gap, : mosaic.shape[1] - gap]


def _white(pictures: Array, vmax: float | None) -> float:
    if vmax is not None:
        return as_number("vmax", vmax, above=0)
    largest = float(np.nanmax(pictures, initial=0.0))
    return largest if largest > 1 else 1.0


def _show(ax: Axes, mosaic: Array, vmax: float) -> None:
    """Draw the mosaic; NaN, in gaps and where values are missing, is white."""
    colours = np.clip(mosaic / vmax, 0, 1)
    if colours.shape[-1] == 1:
        colours = colours.repeat(3, axis=-1)
    ax.imshow(np.nan_to_num(colours, nan=1.0), interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


def _size(columns: float, rows: float, pictures: Array, left: float = 0.0, largest: float = 8.0) -> tuple[float, float]:
    """The size of the figure in inches: 0.7 for each image, and at most `largest` altogether."""
    height, width = rows * pictures.shape[1] / pictures.shape[2], columns
    scale = min(0.7, largest / max(height, width))
    return max(1.5, scale * width) + left, max(1.0, scale * height)

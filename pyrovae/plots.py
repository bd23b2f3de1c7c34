"""Pictures of a fit: arrays in (numpy or torch), matplotlib axes out.

No function touches pyplot: figures are objects of their own, so nothing is global and no display is needed. Each takes
`ax`, the axes to draw on, and makes a figure where it is None; `ax.figure` leads back to it, `save` writes it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray
from sklearn.decomposition import PCA
from torch import Tensor

from pyrovae.errors import DataError, OptionError, ShapeError

Array = NDArray[Any]

# Okabe and Ito's colours less black and yellow, and four more: no two are closer than 15 in CIELAB for readers with any
# of the three kinds of colour blindness (Machado's simulation)
PALETTE = (
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#222222", "#bcb95a", "#8723f5", "#754321",
)  # fmt: skip
UNKNOWN = "#c8c8c8"  # a label of -1
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.edgecolor": "#444444",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "figure.constrained_layout.use": True,
}


@rc_context(STYLE)
def training_curve(history: Sequence[Mapping[str, Any]], ax: Axes | None = None) -> Axes:
    """The ELBO against the epoch, in nats per row.

    history: one mapping an epoch with `epoch` and `elbo`, and where they are known `validation_elbo` and `kl_weight`.
    The y-axis shows the later epochs; first epochs far below them run out of the picture, which a note says. Epochs
    with a KL weight below 1 are shaded: there the training curve belongs to another objective.

    Raises:
        DataError: the history is empty, or has no finite ELBO.
    """
    epochs = np.array([row["epoch"] for row in history], dtype=float)
    curves = {
        label: np.array([np.nan if row.get(key) is None else row[key] for row in history], dtype=float)
        for key, label in (("elbo", "training"), ("validation_elbo", "validation"))
    }
    if not np.isfinite(curves["training"]).any():
        raise DataError(f"a training curve needs a finite ELBO, got {len(epochs)} epochs without one. Fit first.")
    ax = _axes(ax, (5.0, 3.2))
    drawn = {label: curve for label, curve in curves.items() if np.isfinite(curve).any()}
    for (label, curve), colour in zip(drawn.items(), PALETTE):
        few = np.isfinite(curve).sum() < 30
        seen = np.isfinite(curve)  # a validation every few epochs is still one line
        ax.plot(epochs[seen], curve[seen], label=label, color=colour, marker="." if few else None)
    cut = _cut(np.stack(list(drawn.values())))
    if cut:
        rest = np.concatenate([curve[cut:] for curve in drawn.values()])
        low, high = np.nanmin(rest), np.nanmax(rest)
        ax.set_ylim(low - 0.05 * (high - low), high + 0.1 * (high - low))  # the note stands above the curve
        note = "the first epoch lies below" if cut == 1 else f"the first {cut} epochs lie below"
        ax.text(0.015, 0.985, note, transform=ax.transAxes, fontsize=7.5, color="#666666", va="top")
    weights = np.array([row.get("kl_weight", 1.0) for row in history], dtype=float)
    if (weights < 1).any():
        end = epochs[weights < 1].max() + 0.5
        ax.axvspan(epochs.min() - 0.5, end, color="#eeeeee", zorder=0, label="KL weight below 1", linewidth=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    ax.set(xlabel="epoch", title="ELBO (nats per row)", xlim=(epochs.min() - 0.5, epochs.max() + 0.5))
    if len(ax.get_legend_handles_labels()[1]) > 1:
        ax.legend(loc="lower right")
    return ax


@rc_context(STYLE)
def images(
    x: ArrayLike | Tensor,
    image_shape: Sequence[int],
    columns: int = 8,
    vmax: float | None = None,
    ax: Axes | None = None,
    names: Sequence[str] | None = None,
) -> Axes:
    """One mosaic of the pictures x, (N, D) or (N, *image_shape), row by row.

    image_shape: (H, W), or (C, H, W) with 1, 3 or 4 channels. vmax: the value of white, by default 1 where no value is
    larger, else the largest; 0 is black. names: what stands above each column.

    Raises:
        ShapeError: x and image_shape do not fit, or names and columns. DataError: no picture. OptionError: columns < 1.
    """
    pictures = _pictures(x, image_shape)
    if columns < 1:
        raise OptionError(f"a mosaic needs 1 column or more, got {columns}.")
    columns = min(columns, len(pictures))
    if names is not None and len(names) != columns:
        raise ShapeError(f"{columns} columns have as many names, got {len(names)}.")
    rows = -(-len(pictures) // columns)
    ax = _axes(ax, _size(columns, rows, pictures))
    _show(ax, _mosaic(pictures, columns), _white(pictures, vmax))
    if names is not None:
        width = pictures.shape[2] + 1  # a picture and its gap
        ax.xaxis.tick_top()
        ax.set_xticks([(i + 0.5) * width - 1 for i in range(columns)], names)
        ax.tick_params(length=0, labelrotation=90 if max(map(len, names)) > 4 else 0)
    return ax


@rc_context(STYLE)
def reconstructions(
    x: ArrayLike | Tensor,
    x_hat: ArrayLike | Tensor,
    image_shape: Sequence[int] | None = None,
    ax: Axes | Sequence[Axes] | Array | None = None,
    columns: Sequence[str] | None = None,
) -> Axes | Array:
    """Originals and their reconstructions, x and x_hat of one shape.

    With an `image_shape`: bands of up to 10 pictures, the originals above. Without: rows of a table, (N, D), one
    scatter a column (the first 12), original against reconstruction, with the diagonal and the share of the column's
    variance that is explained, R2 = 1 - sum (x - x_hat)^2 / sum (x - mean x)^2; NaN is left out. Then `ax` is a
    sequence of at least min(D, 12) axes, `columns` names the columns, and an array of axes comes back.

    Raises:
        ShapeError: the shapes differ, or do not fit `image_shape` or `ax`. DataError: no row.
    """
    x, x_hat = _array(x), _array(x_hat)
    if x.shape != x_hat.shape:
        raise ShapeError(f"reconstructions have the shape of their originals, got {x_hat.shape} and {x.shape}.")
    if image_shape is None:
        return _column_scatters(x, x_hat, ax, columns)
    if ax is not None and not isinstance(ax, Axes):
        raise ShapeError(f"pictures are drawn on one Axes, got {type(ax).__name__}. Give one of its elements.")
    above, below = _pictures(x, image_shape), _pictures(x_hat, image_shape)
    wide = min(10, len(above))
    starts = range(0, len(above), wide)
    bands = [_mosaic(np.concatenate([_padded(p[i : i + wide], wide) for p in (above, below)]), wide) for i in starts]
    gap = np.full((max(2, above.shape[1] // 3), *bands[0].shape[1:]), np.nan)
    stacked = [part for band in bands for part in (gap, band)][1:]
    ax = _axes(ax, _size(wide, 2.3 * len(bands), above, left=0.9))
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
    """One mosaic of the pictures x, (N, D) or (N, *image_shape), row by row, each under its caption.

    image_shape and vmax as for `images`. Raises ShapeError and DataError as `images` does, and for another number of captions;
    OptionError for columns < 1.
    """
    pictures = _pictures(x, image_shape)
    if len(captions) != len(pictures):
        raise ShapeError(f"{len(pictures)} pictures have as many captions, got {len(captions)}.")
    if columns < 1:
        raise OptionError(f"captioned pictures need 1 column or more, got {columns}.")
    wide = min(columns, len(pictures))
    height, width = pictures.shape[1:3]
    line, gap = -(-width // 4), -(-width // 12)  # a line of text above each, in pixels; cells are an inch wide
    lined = np.pad(pictures, ((0, 0), (line, 0), (0, 0), (0, 0)), constant_values=np.nan)
    mosaic = _mosaic(lined, wide, gap)
    ax = _axes(ax, (mosaic.shape[1] / (width + gap), mosaic.shape[0] / (width + gap)))
    _show(ax, mosaic, _white(pictures, vmax))
    for number, caption in enumerate(captions):
        row, column = divmod(number, wide)
        x0, y0 = column * (width + gap) - 0.5, row * (height + line + gap) - 0.5
        ax.text(x0 + width / 2, y0 + 0.9 * line, caption, fontsize=7.5, ha="center", va="bottom", parse_math=False)
    return ax


@rc_context(STYLE)
def manifold(
    images: ArrayLike | Tensor,
    image_shape: Sequence[int],
    ax: Axes | None = None,
    grid: ArrayLike | Tensor | None = None,
) -> Axes:
    """Decoded points of a two-dimensional latent space: `images[i, j]`, (R, R, D), belongs to z = (grid[j], grid[i]).

    z1 grows to the right, z2 upwards. grid: the R coordinates, (R,), increasing, in any spacing; the ticks are
    interpolated between them. Without it the axes have no ticks.

    Raises:
        ShapeError: images, image_shape and grid do not fit.
    """
    array = _array(images)
    if array.ndim < 3 or array.shape[0] != array.shape[1]:
        raise ShapeError(f"a manifold needs decoded points of shape (R, R, D), got {array.shape}.")
    side = len(array)
    pictures = _pictures(array[::-1].reshape(side * side, *array.shape[2:]), image_shape)  # the first row at the bottom
    ax = _axes(ax, _size(side, side, pictures, left=0.5, largest=6.0))
    _show(ax, _mosaic(pictures, side), _white(pictures, None))
    if grid is not None:
        values = _array(grid)
        if values.shape != (side,):
            raise ShapeError(f"the grid of {side} x {side} pictures has shape ({side},), got {values.shape}.")
        if not (np.diff(values) > 0).all():
            raise ShapeError(f"the grid's coordinates increase, got {values.tolist()}. Sort them, and the pictures.")
        ticks = [tick for tick in MaxNLocator(4).tick_values(values[0], values[-1]) if values[0] <= tick <= values[-1]]
        centres = np.interp(ticks, values, np.arange(side) + 0.5)
        height, width = (size + 1 for size in pictures.shape[1:3])  # a picture and its gap
        labels = [f"{tick:g}".replace("-", "\N{MINUS SIGN}") for tick in ticks]
        ax.set_xticks(centres * width - 1, labels)
        ax.set_yticks((side - centres) * height - 1, labels)
    ax.set(xlabel="$z_1$", ylabel="$z_2$")
    return ax


@rc_context(STYLE)
def latent(
    z: ArrayLike | Tensor, labels: ArrayLike | Tensor | None = None, ax: Axes | None = None, name: str = "z"
) -> Axes:
    """Latent points z, (N, L), coloured by their labels, (N,): integers or names, -1 is unknown and gray. name: of the site.

    L = 2 as they are; L > 2 projected on the first two principal components, whose share of the variance the axes tell;
    L = 1 as densities. Points are drawn in random order, so that no class covers the others. Above ten classes, colours
    repeat with another marker.

    Raises:
        ShapeError: z is not (N, L), or labels are not (N,). DataError: no row, or values that are not finite.
    """
    points = _array(z)
    if points.ndim != 2 or points.size == 0:
        raise ShapeError(f"latent points have shape (N, L), N and L at least 1, got {points.shape}.")
    if not np.isfinite(points).all():
        raise DataError("latent points hold NaN or infinite values. Drop their rows, or look at the encoder.")
    classes = np.zeros(len(points), dtype=int) if labels is None else _array(labels)
    if classes.shape != points.shape[:1]:
        raise ShapeError(f"{len(points)} latent points need labels of shape ({len(points)},), got {classes.shape}.")
    known = [value for value in np.unique(classes) if value != -1]
    styles = {value: (PALETTE[i % 10], "o^sDvPX"[i // 10 % 7]) for i, value in enumerate(known)}
    if len(known) < len(np.unique(classes)):
        styles[-1] = (UNKNOWN, "o")
    ax = _axes(ax, (5.2, 4.2))
    if points.shape[1] == 1:
        bins = np.linspace(points.min(), points.max() + 1e-6, 25).tolist()
        for value, (colour, _) in styles.items():
            ax.hist(points[classes == value, 0], bins=bins, density=True, histtype="step", color=colour, linewidth=1.4)
        ax.set(xlabel="$z$" if name == "z" else name, ylabel="density")
    else:
        ax.set(xlabel="$z_1$", ylabel="$z_2$")
        if name != "z":  # z1 is a site's name, not a number of z
            ax.set(xlabel=f"{name}, dimension 1", ylabel=f"{name}, dimension 2")
        if points.shape[1] > 2:
            shares = np.zeros(2)
            if (points != points[0]).any():  # else there is no direction to find, as in a collapsed posterior
                projection = PCA(2, svd_solver="full")
                points = projection.fit_transform(points.astype(float))
                shares = projection.explained_variance_ratio_
            for axis, number, share in zip((ax.xaxis, ax.yaxis), (1, 2), shares):
                axis.set_label_text(f"principal component {number} ({share:.0%} of the variance)")
        order = np.random.default_rng(0).permutation(len(points))
        size = float(np.clip(15000 / len(points), 4, 20))
        for marker in dict.fromkeys(marker for _, marker in styles.values()):
            rows = order[[styles[value][1] == marker for value in classes[order].tolist()]]
            colours = to_rgba_array([styles[value][0] for value in classes[rows].tolist()])
            ax.scatter(points[rows, 0], points[rows, 1], s=size, c=colours, marker=marker, alpha=0.75, linewidths=0)
        ax.set_aspect("equal", adjustable="datalim")
    if labels is not None:
        handles = [
            Line2D([], [], linestyle="", marker=marker, color=colour, markersize=5, label=name)
            for value, (colour, marker) in styles.items()
            for name in ["unknown" if value == -1 else str(value)]
        ]
        wide = 1 + (len(handles) - 1) // 20
        ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), handletextpad=0.1, ncols=wide)
    return ax


@rc_context(STYLE)
def reliability(
    confidence: ArrayLike | Tensor, accuracy: ArrayLike | Tensor, counts: ArrayLike | Tensor, ax: Axes | None = None
) -> Axes:
    """How often a class that was given probability p was right: accuracy against confidence, in bins, (B,) each.

    counts: rows in each bin. Whiskers are Wilson's 95 % intervals of the accuracy; below the diagonal the probabilities are
    too sure. Grey bars are the shares of all rows. The title tells the expected calibration error,
    sum_b (n_b / N) |accuracy_b - confidence_b|. Guo et al. 2017, arXiv:1706.04599.

    Raises:
        ShapeError: the three are not (B,) each. DataError: no row, or values outside of 0 to 1.
    """
    x, y, n = (_array(values).astype(float) for values in (confidence, accuracy, counts))
    if x.ndim != 1 or not x.shape == y.shape == n.shape:
        raise ShapeError(
            f"confidence, accuracy and counts have one shape (B,), got {x.shape}, {y.shape} and {n.shape}."
        )
    x, y, n = (values[n > 0] for values in (x, y, n))
    if not n.size or not all(((values >= 0) & (values <= 1)).all() for values in (x, y)):
        raise DataError(f"a reliability diagram needs rows, and shares from 0 to 1; got {n.sum():g} rows.")
    ax = _axes(ax, (3.6, 3.6))
    ax.plot([0, 1], [0, 1], color="#888888", linewidth=0.8, zorder=1)
    ax.vlines(x, 0, n / n.sum(), color="#dddddd", linewidth=5, zorder=0, label="share of rows")
    z = 1.96  # a 95 % interval
    centre = (y + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(y * (1 - y) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    ax.vlines(x, centre - half, centre + half, color=PALETTE[0], linewidth=1.0, zorder=2)
    ax.plot(x, y, color=PALETTE[0], marker="o", markersize=4, linewidth=1.2, label="accuracy", zorder=3)
    error = float((n * np.abs(y - x)).sum() / n.sum())
    ax.set(
        xlabel="probability of the predicted class",
        title=f"accuracy; expected calibration error {error:.3f}",
        xlim=(-0.02, 1.02),
        ylim=(0, 1.02),
        aspect="equal",
    )
    ax.legend(loc="upper left")
    return ax


def save(axes: Axes | Sequence[Axes] | Array, path: str | Path, dpi: int = 200) -> Path:
    """Writes the figure of `axes` (one, or an array of one figure's) as a PNG, making the folder. Returns its path.

    Raises:
        OptionError: the name ends in something else than .png.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise OptionError(f"pictures are written as PNG, got the name {path.name!r}. Let it end in .png.")
    figure = np.ravel(np.asarray(axes, dtype=object))[0].get_figure(root=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=dpi, bbox_inches="tight", facecolor="white")
    return path


# ---- below: how ------------------------------------------------------------------------------------


def _array(x: ArrayLike | Tensor) -> Array:
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        x = x.float() if x.dtype == torch.bfloat16 else x  # which numpy does not have
        return x.numpy()
    return np.asarray(x)


def _axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    return Figure(figsize=size).subplots() if ax is None else ax


def _cut(curves: Array) -> int:
    """How many first epochs would flatten the rest. curves: (C, E), NaN where there is no value.

    They lie further below the last three quarters than these span, rare lows aside. Later epochs are never cut: a fit
    that falls apart at its end must be seen.
    """
    finite = np.where(np.isfinite(curves), curves, np.nan)
    late = finite[:, curves.shape[1] // 4 :]
    if np.isfinite(late).sum() < 6:
        return 0
    low, high = np.nanquantile(late, 0.05), np.nanmax(late)
    below = (finite < low - (high - low)).any(0)
    return int(below.argmin()) if not below.all() else 0


def _pictures(x: ArrayLike | Tensor, image_shape: Sequence[int]) -> Array:
    """x -> (N, H, W, C) floats with 1, 3 or 4 channels."""
    array, shape = _array(x).astype(float), tuple(image_shape)
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] not in (1, 3, 4)):
        raise ShapeError(f"a picture has the shape (H, W), or (C, H, W) with 1, 3 or 4 channels, got {shape}.")
    if array.ndim < 2 or array[:1].size != np.prod(shape) * len(array[:1]):
        raise ShapeError(f"pictures of shape {shape} need rows of {np.prod(shape)} values, got an array {array.shape}.")
    if not len(array):
        raise DataError("there is no picture to draw, got 0 rows.")
    array = array.reshape(len(array), *shape)
    return array[..., None] if len(shape) == 2 else np.moveaxis(array, 1, -1)


def _padded(pictures: Array, number: int) -> Array:
    blank = np.full((number - len(pictures), *pictures.shape[1:]), np.nan)
    return np.concatenate([pictures, blank])


def _mosaic(pictures: Array, columns: int, gap: int = 1) -> Array:
    """(N, H, W, C) -> (rows H', columns W', C), with `gap` pixels of NaN between pictures."""
    rows = -(-len(pictures) // columns)
    pictures = np.pad(_padded(pictures, rows * columns), ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=np.nan)
    _, height, width, channels = pictures.shape
    tiles = pictures.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    mosaic = tiles.reshape(rows * height, columns * width, channels)
    return mosaic[: len(mosaic) - gap, : mosaic.shape[1] - gap]


def _white(pictures: Array, vmax: float | None) -> float:
    if vmax is not None:
        return vmax
    largest = float(np.nanmax(pictures, initial=0.0))
    return largest if largest > 1 else 1.0


def _show(ax: Axes, mosaic: Array, vmax: float) -> None:
    """NaN is white paper: gaps, and what is missing."""
    colours = np.clip(mosaic / vmax, 0, 1)
    if colours.shape[-1] == 1:
        colours = colours.repeat(3, axis=-1)
    ax.imshow(np.nan_to_num(colours, nan=1.0), interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


def _size(columns: float, rows: float, pictures: Array, left: float = 0.0, largest: float = 8.0) -> tuple[float, float]:
    """Inches: some 0.7 a picture, never above `largest`."""
    height, width = rows * pictures.shape[1] / pictures.shape[2], columns
    scale = min(0.7, largest / max(height, width))
    return max(1.5, scale * width) + left, max(1.0, scale * height)


def _column_scatters(
    x: Array, x_hat: Array, ax: Axes | Sequence[Axes] | Array | None, names: Sequence[str] | None
) -> Array:
    if x.ndim != 2:
        raise ShapeError(f"rows of a table have shape (N, D), got {x.shape}. Give image_shape for pictures.")
    if x.size == 0:
        raise DataError(f"there is no row to draw, got an array {x.shape}.")
    shown = min(x.shape[1], 12)
    if names is not None and len(names) != x.shape[1]:
        raise ShapeError(f"{x.shape[1]} columns have as many names, got {len(names)}.")
    if ax is None:
        wide = min(shown, 4)
        high = -(-shown // wide)
        figure = Figure(figsize=(1.9 * wide + 0.3, 2.0 * high + 0.4))
        grid = figure.subplots(high, wide, squeeze=False)
        for unused in grid.flat[shown:]:
            unused.remove()
        figure.supxlabel("original", fontsize=9)
        figure.supylabel("reconstruction", fontsize=9)
        if shown < x.shape[1]:
            figure.suptitle(f"the first {shown} of {x.shape[1]} columns", x=0.01, ha="left", fontsize=10)
        axes = grid.flat[:shown]
    else:
        axes = np.ravel(np.asarray(ax, dtype=object))
        if len(axes) < shown:
            raise ShapeError(f"{shown} columns need as many axes, got {len(axes)}. Leave ax out to have them made.")
    for d, panel in enumerate(axes[:shown]):
        seen = np.isfinite(x[:, d]) & np.isfinite(x_hat[:, d])
        original, rebuilt = x[seen, d].astype(float), x_hat[seen, d].astype(float)
        size = float(np.clip(2000 / max(len(original), 1), 2, 12))
        panel.scatter(original, rebuilt, s=size, color=PALETTE[0], alpha=0.4, linewidths=0)
        panel.axline((float(original.mean()) if len(original) else 0.0,) * 2, slope=1, color="#888888", linewidth=0.8)
        spread = ((original - original.mean()) ** 2).sum() if len(original) else 0.0
        share = f"$R^2$ = {1 - ((original - rebuilt) ** 2).sum() / spread:.2f}" if spread > 0 else "constant"
        name = f"column {d}" if names is None else names[d]
        panel.set_title(f"{name if len(name) < 16 else name[:14] + '…'}, {share}", fontsize=8)
        panel.xaxis.set_major_locator(MaxNLocator(3))
        panel.yaxis.set_major_locator(MaxNLocator(3))
    return np.asarray(axes[:shown], dtype=object)

"""The latent space as scatter plots."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from sklearn.decomposition import PCA
from torch import Tensor

from pyrovae.errors import DataError, ShapeError
from pyrovae.plots.style import PALETTE, STYLE, UNKNOWN, Array, as_array, axes_of


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
    points = as_array(z)
    if points.ndim != 2 or points.size == 0:
        raise ShapeError(f"latent points have shape (N, L), N and L at least 1, got {points.shape}.")
    if not np.isfinite(points).all():
        raise DataError("latent points hold NaN or infinite values. Drop their rows, or look at the encoder.")
    classes = np.zeros(len(points), dtype=int) if labels is None else as_array(labels)
    if classes.shape != points.shape[:1]:
        raise ShapeError(f"{len(points)} latent points need labels of shape ({len(points)},), got {classes.shape}.")
    known = [value for value in np.unique(classes) if value != -1]
    styles = {value: (PALETTE[i % 10], "o^sDvPX"[i // 10 % 7]) for i, value in enumerate(known)}
    if len(known) < len(np.unique(classes)):
        styles[-1] = (UNKNOWN, "o")
    ax = axes_of(ax, (5.2, 4.2))
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


def column_scatters(
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

"""Scatter plots: latent points, and the reconstructed columns of a table."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba_array
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike
from torch import Tensor

from pyrovae.errors import DataError, ShapeError
from pyrovae.plots.style import PALETTE, STYLE, UNKNOWN, Array, as_array, axes_of, literal

Styles = dict[Any, tuple[str, str]]  # the colour and the marker of each class


@rc_context(STYLE)
def latent(
    z: ArrayLike | Tensor, labels: ArrayLike | Tensor | None = None, ax: Axes | None = None, name: str = "z"
) -> Axes:
    """Plot latent points, coloured by their labels.

    Points of more than two dimensions are projected on their first two principal components, and the axes give the share
    of the variance of each. Points of one dimension are shown as a density for each class. The order of drawing is random,
    so that no class hides the others. With more than ten classes, colours repeat with other markers.

    Args:
        z: The points, `(N, L)`, for example from `pv.encode`.
        labels: The label of each point, `(N,)`, integers or names; -1 is unknown and gray.
        ax: The axes to draw on; None makes a figure.
        name: The name of the latent site, for the labels of the axes.

    Returns:
        The axes.

    Raises:
        ShapeError: `z` is not `(N, L)` with at least one value, or `labels` is not `(N,)`.
        DataError: `z` has values that are not finite.

    Example:
        >>> z, y = torch.randn(50, 3), torch.arange(50) % 2
        >>> ax = pv.plots.latent(z, y)
        >>> ax.get_xlabel()
        'principal component 1 (...% of the variance)'
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['0', '1']
    """
    points = as_array(z)
    if points.ndim != 2 or points.size == 0:
        raise ShapeError(f"Latent points have the shape (N, L) with N and L at least 1, got {points.shape}.")
    if not np.isfinite(points).all():
        raise DataError("Latent points have NaN or infinite values. Drop their rows, or look at the encoder.")
    classes = np.zeros(len(points), dtype=int) if labels is None else as_array(labels)
    if classes.shape != points.shape[:1]:
        raise ShapeError(f"{len(points)} latent points need labels of shape ({len(points)},), got {classes.shape}.")
    known = [value for value in np.unique(classes) if value != -1]
    styles: Styles = {value: (PALETTE[i % 10], "o^sDvPX"[i // 10 % 7]) for i, value in enumerate(known)}
    if len(known) < len(np.unique(classes)):
        styles[-1] = (UNKNOWN, "o")
    ax = axes_of(ax, (5.2, 4.2))
    if points.shape[1] == 1:
        _draw_densities(ax, points[:, 0], classes, styles)
        ax.set(xlabel="$z$" if name == "z" else name, ylabel="density")
    else:
        ax.set(xlabel="$z_1$", ylabel="$z_2$")
        if name != "z":  # "z1" would be the name of a site, not of a dimension of z
            ax.set(xlabel=f"{name}, dimension 1", ylabel=f"{name}, dimension 2")
        if points.shape[1] > 2:
            points, shares = _principal_components(points)
            for axis, number, share in zip((ax.xaxis, ax.yaxis), (1, 2), shares):
                axis.set_label_text(f"principal component {number} ({share:.0%} of the variance)")
        _draw_points(ax, points, classes, styles)
    if labels is not None:
        handles = [
            Line2D([], [], linestyle="", marker=marker, color=colour, markersize=5, label=name)
            for value, (colour, marker) in styles.items()
            for name in ["unknown" if value == -1 else literal(value)]
        ]
        wide = 1 + (len(handles) - 1) // 20
        ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), handletextpad=0.1, ncols=wide)
    return ax


def _draw_densities(ax: Axes, values: Array, classes: Array, styles: Styles) -> None:
    """A histogram of the values of each class, on common bins."""
    bins = np.linspace(values.min(), values.max() + 1e-6, 25).tolist()
    for value, (colour, _) in styles.items():
        ax.hist(values[classes == value], bins=bins, density=True, histtype="step", color=colour, linewidth=1.4)


def _principal_components(points: Array) -> tuple[Array, Array]:
    """The first two principal components of the points, `(N, 2)`, and their shares of the variance, `(2,)`."""
    if not (points != points[0]).any():  # equal points, as of a collapsed posterior, have no principal components
        return points[:, :2], np.zeros(2)
    centred = points.astype(float) - points.mean(0, dtype=float)
    _, lengths, axes = np.linalg.svd(centred, full_matrices=False)
    largest = np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1)  # of each component, which is to be positive
    return centred @ (axes * np.sign(largest))[:2].T, lengths[:2] ** 2 / (lengths**2).sum()


def _draw_points(ax: Axes, points: Array, classes: Array, styles: Styles) -> None:
    """The points in random order, with one scatter for each marker, on axes of one scale."""
    order = np.random.default_rng(0).permutation(len(points))
    size = float(np.clip(15000 / len(points), 4, 20))
    for marker in dict.fromkeys(marker for _, marker in styles.values()):
        rows = order[[styles[value][1] == marker for value in classes[order].tolist()]]
        colours = to_rgba_array([styles[value][0] for value in classes[rows].tolist()])
        ax.scatter(points[rows, 0], points[rows, 1], s=size, c=colours, marker=marker, alpha=0.75, linewidths=0)
    ax.set_aspect("equal", adjustable="datalim")

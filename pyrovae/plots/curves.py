"""Curves: the ELBO over the epochs of a fit, and the calibration of class probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from torch import Tensor

from pyrovae.errors import DataError, ShapeError
from pyrovae.plots.style import PALETTE, STYLE, as_array, axes_of, readable_from

CURVES = {
    "elbo": "training",
    "validation_elbo": "validation",
    "relaxed_elbo": "relaxed",
    "first_rows_elbo": "first rows",
}


@rc_context(STYLE)
def training_curve(history: Sequence[Mapping[str, Any]], ax: Axes | None = None, units: str = "nats per row") -> Axes:
    """Plot the ELBO against the epoch.

    The y-axis shows the later epochs. First epochs that lie far below them are cut off, and a note says how many. Epochs
    with a KL weight below 1 are shaded, since they were trained on another objective.

    Args:
        history: One mapping for each epoch, as in `Fit.history`, with the keys `epoch` and `elbo`, and optionally
            `validation_elbo`, `relaxed_elbo`, `first_rows_elbo` (of rows that come batch by batch, to see their drift) and
            `kl_weight`.
        ax: The axes to draw on; None makes a figure.
        units: The units of the ELBO, for the title.

    Returns:
        The axes.

    Raises:
        DataError: The history is empty, or has no finite ELBO.

    Example:
        >>> history = [{"epoch": 1, "elbo": -120.0, "validation_elbo": -121.0}, {"epoch": 2, "elbo": -110.0}]
        >>> ax = pv.plots.training_curve(history)
        >>> len(ax.get_lines()), ax.get_xlabel()
        (2, 'epoch')
    """
    epochs = np.array([row["epoch"] for row in history], dtype=float)
    curves = {
        label: np.array([np.nan if row.get(key) is None else row[key] for row in history], dtype=float)
        for key, label in CURVES.items()
    }
    if not np.isfinite(curves["training"]).any():
        raise DataError(
            f"A training curve needs a finite ELBO, got {len(epochs)} epochs without one. Fit the pair first."
        )
    ax = axes_of(ax, (5.0, 3.2))
    drawn = {label: curve for label, curve in curves.items() if np.isfinite(curve).any()}
    for (label, curve), colour in zip(drawn.items(), PALETTE):
        few = np.isfinite(curve).sum() < 30
        seen = np.isfinite(curve)  # one line through the epochs that were validated
        ax.plot(epochs[seen], curve[seen], label=label, color=colour, marker="." if few else None)
    cut = readable_from(np.stack(list(drawn.values())))
    if cut:
        rest = np.concatenate([curve[cut:] for curve in drawn.values()])
        low, high = np.nanmin(rest), np.nanmax(rest)
        ax.set_ylim(low - 0.05 * (high - low), high + 0.1 * (high - low))  # leaves room for the note above the curve
        note = "the first epoch lies below" if cut == 1 else f"the first {cut} epochs lie below"
        ax.text(0.015, 0.985, note, transform=ax.transAxes, fontsize=7.5, color="#666666", va="top")
    weights = np.array([row.get("kl_weight", 1.0) for row in history], dtype=float)
    if (weights < 1).any():
        end = epochs[weights < 1].max() + 0.5
        ax.axvspan(epochs.min() - 0.5, end, color="#eeeeee", zorder=0, label="KL weight below 1", linewidth=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    ax.set(xlabel="epoch", title=f"ELBO ({units})", xlim=(epochs.min() - 0.5, epochs.max() + 0.5))
    if len(ax.get_legend_handles_labels()[1]) > 1:
        ax.legend(loc="lower right")
    return ax


@rc_context(STYLE)
def reliability(
    confidence: ArrayLike | Tensor, accuracy: ArrayLike | Tensor, counts: ArrayLike | Tensor, ax: Axes | None = None
) -> Axes:
    """Plot a reliability diagram: the accuracy in B bins of confidence against the mean confidence of each bin.

    The classifier is overconfident where the curve lies below the diagonal. Vertical lines are 95 % Wilson intervals of the
    accuracy, and grey bars the share of the rows in each bin. The title gives the expected calibration error,
    `sum_b (n_b / N) |accuracy_b - confidence_b|`.

    Args:
        confidence: The mean probability of the predicted class in each bin, `(B,)`.
        accuracy: The share of rows in each bin whose predicted class is right, `(B,)`.
        counts: The number of rows in each bin, `(B,)`. Bins without rows are left out.
        ax: The axes to draw on; None makes a figure.

    Returns:
        The axes.

    Raises:
        ShapeError: The three arrays do not have one shape `(B,)`.
        DataError: There is no row, or a confidence or accuracy is outside [0, 1].

    References:
        Guo, Pleiss, Sun & Weinberger 2017, arXiv:1706.04599.

    Example:
        >>> p = torch.tensor([[0.9, 0.1], [0.75, 0.25], [0.45, 0.55]])
        >>> bins = pv.calibration.reliability(p, torch.tensor([0, 1, 1]), num_bins=5)
        >>> ax = pv.plots.reliability(bins.confidence, bins.accuracy, bins.counts)
        >>> ax.get_title(loc="left")
        'accuracy; expected calibration error 0.433'
    """
    x, y, n = (as_array(values).astype(float) for values in (confidence, accuracy, counts))
    if x.ndim != 1 or not x.shape == y.shape == n.shape:
        raise ShapeError(
            f"confidence, accuracy and counts must have one shape (B,), got {x.shape}, {y.shape} and {n.shape}."
        )
    x, y, n = (values[n > 0] for values in (x, y, n))
    if not n.size or not all(((values >= 0) & (values <= 1)).all() for values in (x, y)):
        raise DataError(
            f"A reliability diagram needs at least one row, and confidence and accuracy from 0 to 1; got {n.sum():g} rows."
        )
    ax = axes_of(ax, (3.6, 3.6))
    ax.plot([0, 1], [0, 1], color="#888888", linewidth=0.8, zorder=1)
    ax.vlines(x, 0, n / n.sum(), color="#dddddd", linewidth=5, zorder=0, label="share of rows")
    z = 1.96  # the 95 % interval
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

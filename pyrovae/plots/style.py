"""Colours, fonts and small helpers that all plots share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pyrovae.errors import OptionError

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


def as_array(x: ArrayLike | Tensor) -> Array:
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        x = x.float() if x.dtype == torch.bfloat16 else x  # which numpy does not have
        return x.numpy()
    return np.asarray(x)


def axes_of(ax: Axes | None, size: tuple[float, float]) -> Axes:
    return Figure(figsize=size).subplots() if ax is None else ax


def readable_from(curves: Array) -> int:
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

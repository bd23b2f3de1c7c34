"""Colours, fonts and functions that all plots share."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pyrovae._arguments import as_number, as_path
from pyrovae._letters import draw
from pyrovae.errors import OptionError

Array = NDArray[Any]


# The colours of Okabe and Ito without black and yellow, and four more. Under Machado's simulation of each of the three
# kinds of colour blindness, all pairs are at least 15 apart in CIELAB.
PALETTE = (
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#222222", "#bcb95a", "#8723f5", "#754321",
)  # fmt: skip

UNKNOWN = "#c8c8c8"  # for labels of -1
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


def save(axes: Axes | Sequence[Axes] | Array, path: str | Path, dpi: float = 200) -> Path:
    """Write a figure to a PNG file, and create its folder if necessary.

    Args:
        axes: The axes of the figure, or several of them.
        path: The name of the file, which ends in .png.
        dpi: The resolution in pixels per inch.

    Returns:
        The path of the file.

    Raises:
        OptionError: The name does not end in .png.

    Example:
        >>> ax = pv.plots.images(torch.rand(6, 16), image_shape=(4, 4))
        >>> path = pv.plots.save(ax, "pictures/noise.png")
        >>> path.exists()
        True
    """
    path, dpi = as_path("path", path), as_number("dpi", dpi, above=0)
    if path.suffix.lower() != ".png":
        raise OptionError(f"Figures are written as PNG, got the name {path.name!r}. Choose a name that ends in .png.")
    content = png_of(axes, dpi)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")  # which then takes the name: a link of that name is not followed
    temporary.unlink(missing_ok=True)
    with temporary.open("xb") as file:
        file.write(content)
    os.replace(temporary, path)
    return path


def png_of(axes: Axes | Sequence[Axes] | Array, dpi: float) -> bytes:
    """The figure of some axes, or of several, as the content of a PNG file."""
    figure = np.ravel(np.asarray(axes, dtype=object))[0].get_figure(root=True)
    with io.BytesIO() as content:
        draw(figure, lambda: _write(figure, content, dpi))
        return content.getvalue()


def _write(figure: Figure, content: io.BytesIO, dpi: float) -> None:
    content.seek(0)
    content.truncate()
    figure.savefig(content, format="png", dpi=dpi, bbox_inches="tight", facecolor="white")


def as_array(x: ArrayLike | Tensor) -> Array:
    """The values as a numpy array."""
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        x = x.float() if x.dtype == torch.bfloat16 else x  # numpy has no bfloat16
        return x.numpy()
    return np.asarray(x)


MOST_LETTERS = 32  # of a name in a picture


def literal(name: Any) -> str:
    """A name from the data, as matplotlib draws it as it is: in one line, not too long, and no formula where it has dollars.

    An underscore at the beginning, by which matplotlib knows what is not for a legend, gets a blank before it.
    """
    text = " ".join(str(name).split())
    text = text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 1]}…"
    return (" " * text.startswith("_") + text).replace("$", r"\$")


def axes_of(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """The given axes, or those of a new figure of this size in inches."""
    return Figure(figsize=size).subplots() if ax is None else ax


def readable_from(curves: Array) -> int:
    """How many first epochs to cut off from curves, `(C, E)`, so that they do not flatten the rest; NaN is no value.

    These are the epochs that lie below the last three quarters by more than the range of those quarters, without their
    lowest 5 %. Later epochs are never cut off, so that a fit that diverges at its end is seen to do so.
    """
    finite = np.where(np.isfinite(curves), curves, np.nan)
    late = finite[:, curves.shape[1] // 4 :]
    if np.isfinite(late).sum() < 6:
        return 0
    low, high = np.nanquantile(late, 0.05), np.nanmax(late)
    below = (finite < low - (high - low)).any(0)
    return int(below.argmin()) if not below.all() else 0

"""Reconstructed columns of a table beside the originals, a panel for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyrovae._moments import MOST, clock, is_moment, written
from pyrovae.errors import DataError, ShapeError
from pyrovae.plots.style import PALETTE, Array, literal

MOST_SHOWN = 12
MOST_CLASSES, MOST_LETTERS = 12, 9  # whose names are at the axes, and letters of each
ACROSS: dict[str, Any] = {"rotation": 40, "ha": "right", "fontsize": 6}  # words at an axis
UPWARDS: dict[str, Any] = {"fontsize": 6}
Columns = Sequence[str] | Mapping[str, Any]


def column_scatters(
    x: Array,
    x_hat: Array,
    ax: Axes | Sequence[Axes] | Array | None,
    columns: Columns | None,
    labels: Sequence[bool] | None = None,
) -> Array:
    """Reconstruction against original for each of the first 12 columns of a table; see `reconstructions`."""
    if x.ndim != 2:
        raise ShapeError(f"Rows of a table have the shape (N, D), got {x.shape}. Pass image_shape=... for images.")
    if x.size == 0:
        raise DataError(f"There is no row to draw, got an array of shape {x.shape}.")
    shown = min(x.shape[1], MOST_SHOWN)
    if columns is not None and len(columns) != x.shape[1]:
        raise ShapeError(f"{x.shape[1]} columns need as many names, got {len(columns)}.")
    if labels is not None and len(labels) != x.shape[1]:
        raise ShapeError(
            f"labels says of each of {x.shape[1]} columns whether it has classes, got {len(labels)} answers."
        )
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
            raise ShapeError(f"{shown} columns need as many axes, got {len(axes)}. Without ax, they are made.")
    names = [f"column {d}" for d in range(shown)] if columns is None else [str(name) for name in columns]
    meanings = list(columns.values()) if isinstance(columns, Mapping) else [()] * x.shape[1]
    for d, panel in enumerate(axes[:shown]):
        seen = np.isfinite(x[:, d]) & np.isfinite(x_hat[:, d])
        original, rebuilt, meaning = x[seen, d].astype(float), x_hat[seen, d].astype(float), meanings[d]
        classes = () if is_moment(meaning) else meaning
        if len(classes) or (labels is not None and labels[d]):  # numbers of classes have no variance to explain
            share = f"{(original == rebuilt).mean():.0%} right" if len(original) else "constant"
            _draw_classes(panel, original, rebuilt, classes)
        else:
            spread = ((original - original.mean()) ** 2).sum() if len(original) else 0.0
            share = f"R² = {1 - ((original - rebuilt) ** 2).sum() / spread:.2f}" if spread > 0 else "constant"
            _draw_numbers(panel, original, rebuilt, meaning if is_moment(meaning) else None)
        name = names[d]
        panel.set_title(f"{literal(name if len(name) < 16 else name[:14] + '…')}, {share}", fontsize=8)
    return np.asarray(axes[:shown], dtype=object)


def _draw_numbers(panel: Axes, original: Array, rebuilt: Array, meaning: Any) -> None:
    """A point for each row, and the diagonal; of dates, periods and times, see `pyrovae._moments`, round ones at the axes."""
    size = float(np.clip(2000 / max(len(original), 1), 2, 12))
    panel.scatter(original, rebuilt, s=size, color=PALETTE[0], alpha=0.4, linewidths=0)
    panel.axline((float(original.mean()) if len(original) else 0.0,) * 2, slope=1, color="#888888", linewidth=0.8)
    ticks = (
        _dates if isinstance(meaning, np.datetime64) else _times if isinstance(meaning, np.timedelta64) else _periods
    )
    for axis, small in ((panel.xaxis, ACROSS), (panel.yaxis, UPWARDS)):
        axis.set_major_locator(MaxNLocator(3))
        low, high = axis.get_view_interval()
        if meaning is not None and len(original) and max(abs(low), abs(high)) < MOST:
            axis.set_ticks(*ticks(low, high, meaning), **small)


def _times(low: float, high: float, unit: np.timedelta64) -> tuple[list[float], list[str]]:
    """Two to four round times between two, whole hours, minutes or seconds: where they are, and how they are written."""
    second = float(unit / np.timedelta64(1, "s"))
    reach = (high - low) * second
    step = 3600 if reach > 3 * 3600 else 60 if reach > 180 else 1
    ticks = MaxNLocator(4, integer=True, steps=[1, 2, 3, 6, 10]).tick_values(low * second / step, high * second / step)
    within = [step * float(tick) for tick in ticks if low <= step * tick / second <= high]
    return [tick / second for tick in within], [clock(tick, parts=step == 1) for tick in within]


def _periods(low: float, high: float, first: Any) -> tuple[list[float], list[str]]:
    """Some of the periods between two numbers: where they are, and how they are written."""
    ticks = MaxNLocator(4, integer=True, steps=[1, 2, 3, 6, 10]).tick_values(low, high)
    within = [float(tick) for tick in ticks if low <= tick <= high]
    return within, [str(written(tick, first)) for tick in within]


def _dates(low: float, high: float, since: np.datetime64) -> tuple[list[float], list[str]]:
    """Two to four round dates between two days, years, months, days or hours: where they are, and how they are written."""
    unit = "Y" if high - low > 1500 else "M" if high - low > 90 else "D" if high - low > 3 else "h"
    start, day = since.astype("M8[ms]"), np.timedelta64(86_400_000, "ms")
    ends = [
        (start + np.timedelta64(round(at * 86_400_000), "ms")).astype(f"M8[{unit}]").astype(int) for at in (low, high)
    ]
    steps = [1, 2, 3, 6, 10] if unit in "Mh" else [1, 2, 5, 10]
    ticks = np.asarray(MaxNLocator(4, integer=True, steps=steps).tick_values(*ends)).astype(int).astype(f"M8[{unit}]")
    places = [float((tick.astype("M8[ms]") - start) / day) for tick in ticks]
    within = [(place, str(tick)) for place, tick in zip(places, ticks) if low <= place <= high]
    return [place for place, _ in within], [date for _, date in within]


def _draw_classes(panel: Axes, original: Array, rebuilt: Array, classes: Sequence[Any]) -> None:
    """A disc for each pair of classes, its area the number of rows; those on the diagonal, which are right, in a colour."""
    pairs, counts = np.unique(np.stack([original, rebuilt], 1), axis=0, return_counts=True)
    most = max(len(classes) - 1, int(pairs.max(initial=0)))
    largest = (70 / (most + 1)) ** 2  # points squared
    colours = [PALETTE[0] if first == second else "#999999" for first, second in pairs]
    panel.scatter(pairs[:, 0], pairs[:, 1], s=largest * counts / counts.max(initial=1), c=colours, linewidths=0)
    panel.set(xlim=(-0.6, most + 0.6), ylim=(-0.6, most + 0.6))
    if 0 < len(classes) <= MOST_CLASSES:
        cut = [str(one) if len(str(one)) <= MOST_LETTERS else f"{str(one)[: MOST_LETTERS - 1]}…" for one in classes]
        for axis, small in ((panel.xaxis, ACROSS), (panel.yaxis, UPWARDS)):
            axis.set_ticks(range(len(classes)), [literal(one) for one in cut], **small)
    else:
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_locator(MaxNLocator(3, integer=True))

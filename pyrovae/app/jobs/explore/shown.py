"""How what comes out of a decoder is shown: as a picture, or as a table of its columns."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.app.run import Run
from pyrovae.data.images import as_png, grey_range
from pyrovae.errors import DataError
from pyrovae.predict.points import mean_of, mean_or

if TYPE_CHECKING:
    from pyrovae.tables.columns import Column
    from pyrovae.tables.schema import Schema

DRAWS = 400  # from which intervals, and shares of classes, are found
LEVEL = 0.9
ENDS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
MOST_COLUMNS = 500  # of a table; more are not shown
MOST_SHARES = 6  # categories of a column whose probabilities are shown


def flat(rows: Tensor) -> Tensor:
    """Rows, `(N, *event)`, in the units that they have, `(N, D)`."""
    return rows.reshape(len(rows), -1)


class Pictures:
    """Images, or other arrays of two or three dimensions.

    Args:
        shape: `(H, W)` or `(C, H, W)`.
        low: What is black; None for the smallest value of each picture.
        high: What is white; None for the largest value.
        restore: From rows of the model to those of the source, `(N, D)`.
    """

    def __init__(
        self,
        shape: Sequence[int],
        low: float | None = None,
        high: float | None = None,
        restore: Callable[[Tensor], Tensor] = flat,
    ) -> None:
        self.shape, self.low, self.high, self.restore = tuple(shape), low, high, restore

    def show(self, fn: Any, draw: Tensor, row: Tensor | None) -> dict[str, Any]:
        """The mean of a distribution of one row, a draw of it, `(1, *event)`, and the row of the data that it began with."""
        found: dict[str, Any] = {
            "kind": "image",
            "width": self.shape[-1],
            "height": self.shape[-2],
            "point": point_name(fn),
        }
        found |= {"mean": self._picture(point_of(fn, draw)), "draw": self._picture(draw)}
        found["row"] = None if row is None else self._picture(row)
        return found

    def _picture(self, row: Tensor) -> str:
        values = self.restore(row)[0].double().cpu().numpy().reshape(self.shape)
        check_finite(values, missing=True)
        known = values[~np.isnan(values)]
        ends = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
        low, high = (own if own is not None else end for own, end in zip((self.low, self.high), ends))
        return (
            "data:image/png;base64," + base64.b64encode(as_png(values, low, high if high > low else low + 1)).decode()
        )


class Columns:
    """Rows of numbers: for each column its mean, where most draws are, and one draw.

    Args:
        names: Of the columns.
        restore: From rows of the model to those of the source, `(N, D)`.
    """

    def __init__(self, names: Sequence[str], restore: Callable[[Tensor], Tensor] = flat) -> None:
        self.names, self.restore = list(names), restore

    def show(self, fn: Any, draw: Tensor, row: Tensor | None) -> dict[str, Any]:
        """The same as of `Pictures`, for each column."""
        draws = self._array(fn.sample((DRAWS,)).reshape(DRAWS, -1))
        point, one = self._array(point_of(fn, draw))[0], self._array(draw)[0]
        check_finite(np.stack([point, one]))
        low, high = np.quantile(draws, ENDS, axis=0, method="nearest")  # of counts a count
        own = None if row is None else self._array(row)[0]
        lines = []
        for i in range(min(len(self.names), MOST_COLUMNS)):
            line: dict[str, Any] = {
                "name": self.names[i],
                "mean": number(point[i]),
                "low": number(low[i]),
                "high": number(high[i]),
            }
            line |= {"draw": number(one[i]), "row": None if own is None else number(own[i])}
            lines.append(line)
        more = {"others": len(self.names) - len(lines), "level": LEVEL, "point": point_name(fn)}
        return {"kind": "table", "lines": lines, **more}

    def _array(self, rows: Tensor) -> Any:
        return self.restore(rows).double().cpu().numpy()


class Cells:
    """Rows of a table with columns of several kinds: numbers as in `Columns`, and of classes their probabilities.

    Args:
        schema: What the columns are.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.place = {name: i for i, name in enumerate(schema.names)}

    def show(self, fn: Any, draw: Tensor, row: Tensor | None) -> dict[str, Any]:
        """The same as of `Pictures`, for each column."""
        draws = fn.sample((DRAWS,)).reshape(DRAWS, -1).double().cpu().numpy()
        point, one = (flat(value)[0].double().cpu().numpy() for value in (point_of(fn, draw), draw))
        check_finite(np.stack([point, one]))
        own = None if row is None else flat(row)[0].double().cpu().numpy()
        exact = class_probabilities(fn, len(self.place))
        lines = []
        for column in [one for one in self.schema.columns if one.name in self.place][:MOST_COLUMNS]:
            i = self.place[column.name]
            line: dict[str, Any] = {"name": column.name, "draw": cell(column, one[i])}
            line["row"] = None if own is None else cell(column, own[i])
            if column.is_class:
                shares = exact.get(i)
                if shares is None:
                    shares = np.bincount(draws[:, i].astype(int), minlength=len(column.categories)) / DRAWS
                order = np.argsort(-shares, kind="stable")
                line["mean"] = str(column.categories[order[0]])
                line["shares"] = [[str(column.categories[k]), round(float(shares[k]), 4)] for k in order[:MOST_SHARES]]
                line["fewer"] = max(0, len(order) - MOST_SHARES)
            else:
                ends = np.quantile(draws[:, i], ENDS, method="nearest")
                line |= {"low": cell(column, ends[0]), "high": cell(column, ends[1])}
                line["mean"] = cell(column, point[i]) if column.is_moment else number(point[i])
            lines.append(line)
        kinds = {column.is_class for column in self.schema.modelled}
        told = "mean, or most probable" if len(kinds) == 2 else "most probable" if True in kinds else "mean"
        more = {"others": len(self.place) - len(lines), "level": LEVEL, "point": told}
        return {"kind": "table", "lines": lines, **more}


def views_of(run: Run) -> Pictures | Columns | Cells:
    """How the rows of a run are shown."""
    rows, dataset = run.rows, run.dataset
    if rows.image_shape is not None:
        return Pictures(rows.image_shape, *grey_range(dataset, dataset.x), restore=rows.restore)
    if rows.schema is not None:
        return Cells(rows.schema)
    return Columns(rows.columns or [f"x{i}" for i in range(rows.test[0].numel())], rows.restore)


def view_of(event: Sequence[int]) -> Pictures | Columns:
    """How rows of this shape are shown, of which nothing else is known: as a picture if they may be one."""
    planes = len(event) == 2 or (len(event) == 3 and event[0] in (1, 3, 4))
    if planes and min(event[-2:]) > 1:
        return Pictures(event)
    places = list(np.ndindex(*event)) if event else [()]
    return Columns([",".join(map(str, place)) or "value" for place in places])


def point_of(fn: Any, draw: Tensor) -> Tensor:
    """The mean of a distribution, of classes the most probable one, and the draw where there is neither; `(1, *event)`."""
    classes = _unwrapped(fn)
    if isinstance(classes, dist.Categorical):
        return classes.logits.argmax(-1).reshape(draw.shape).to(draw.dtype)
    return mean_or(fn, draw)


def point_name(fn: Any) -> str:
    """What `point_of` is."""
    if isinstance(_unwrapped(fn), dist.Categorical):
        return "most probable"
    return "mean" if mean_of(fn) is not None else "mean, or a draw where there is none"


def class_probabilities(fn: Any, num: int) -> dict[int, Any]:
    """The probabilities of the classes of those of `num` columns of which they are known."""
    found, place = {}, 0
    for block in getattr(getattr(fn, "whole", fn), "blocks", ()):
        width = block.batch_shape[-1]
        if isinstance(block, torch.distributions.Categorical):
            for i in range(width):
                found[place + i] = block.probs.reshape(-1, width, block.probs.shape[-1])[0, i].double().cpu().numpy()
        place += width
    return found if place == num else {}


def _unwrapped(fn: Any) -> Any:
    while isinstance(fn, dist.Independent) or hasattr(fn, "whole"):
        fn = fn.base_dist if isinstance(fn, dist.Independent) else fn.whole
    return fn


def cell(column: Column, value: float) -> str:
    """A value of a column as its table writes it; "" where it is missing."""
    found = column.values(np.asarray([value]))[0]
    if pd.isna(found):
        return ""
    if isinstance(found, pd.Timestamp):
        return str(found.date())
    return f"{found:.10g}" if isinstance(found, float) else str(found)


def number(value: float) -> str:
    """A number as a person writes it: of four digits, or as a whole one."""
    return "" if np.isnan(value) else f"{value:.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def check_finite(values: Any, missing: bool = False) -> None:
    """DataError unless all values are finite; they may be `missing`."""
    if not bool((np.isfinite(values) | (np.isnan(values) & missing)).all()):
        raise DataError(f"{NOT_FINITE}: {GO_BACK}")


NOT_FINITE = "the decoder gives no finite numbers here"
GO_BACK = "go back to where the prior has its draws."

"""Why a log-density is not finite: values on the edge of a support, values far from all others, gaps under a mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyrovae.pair.program import distribution_name

FAR = 1e4  # times the spread of the other values


def edge(support: Any, value: Tensor) -> Tensor:
    """Which values of a continuous site lie on the edge of its support, `(*value.shape)` bool; a share of 0 does."""
    nowhere = torch.zeros_like(value, dtype=torch.bool)
    if support is None or getattr(support, "is_discrete", False):
        return nowhere
    if support is constraints.simplex:
        return value == 0
    if hasattr(support, "of_column"):
        columns = [edge(support.of_column(i), value[..., i]) for i in range(value.shape[-1])]
        return torch.stack(columns, -1)
    for side in ("lower_bound", "upper_bound"):
        bound = getattr(support, side, None)
        if bound is not None:
            nowhere = nowhere | (value == torch.as_tensor(bound, device=value.device))
    return nowhere


def on_the_edge(name: str, fn: Any, value: Tensor, at: Tensor, numbers: Tensor) -> str:
    """A message about values on the edge of a support; `at` says which."""
    place = at.nonzero()[0].tolist()
    found = value[tuple(place)].item()
    inner = value[torch.isfinite(value) & ~at]
    positive = inner[inner > 0]
    least = positive.min().item() / 2 if len(positive) else 1e-6
    if bool((value[torch.isfinite(value)] <= 1).all()):
        least = min(least, 1e-3)
        cure = f"Move them inside, as by x.clamp({least:.2g}, {1 - least:.5g}) or for counted shares (k + 0.5)/(n + 1)"
    else:
        cure = f"Move them inside, as by x.clamp(min={least:.2g}), half of the smallest value above it"
    return (
        f"Site {name!r}: {int(at.sum())} of {value.numel()} values lie on the edge of the support of {distribution_name(fn)}, "
        f"where its density is zero or infinite; the first is {found:g} in {named_place(place, numbers)}. {cure}; or take a "
        "likelihood with a density there, such as Normal."
    )


def far_away(value: Tensor, suspects: Tensor) -> list[int] | None:
    """The place of a value that is far from all others of its column, in the first row that is suspect; None without one.

    Args:
        value: `(N, *event)`.
        suspects: the rows to look at, `(N,)` bool.
    """
    if not value.is_floating_point() or len(value) < 3:
        return None
    flat = value.reshape(len(value), -1).double()
    middle = flat.nanmedian(0).values
    away = (flat - middle).abs()
    spread = torch.maximum(away.nanmedian(0).values, 1e-6 * middle.abs()).clamp_min(1e-30)
    ratio = (away / spread).nan_to_num(0.0)
    for row in suspects.nonzero().squeeze(1).tolist():
        column = int(ratio[row].argmax())
        # a column that is nearly constant has no spread to compare with
        if ratio[row, column] > FAR and away[row, column] > FAR * middle[column].abs().clamp_min(1.0):
            return [row, column] if value.dim() > 1 else [row]
    return None


def is_far(name: str, value: Tensor, place: list[int], numbers: Tensor) -> str:
    """A message about a value that `far_away` has found in an argument or at a site."""
    flat = value.reshape(len(value), -1)
    column = flat[:, place[-1] if len(place) > 1 else 0]
    others = column[torch.arange(len(column), device=column.device) != place[0]]
    low, high = (torch.nanquantile(others[:100_000].double(), q).item() for q in (0.01, 0.99))
    return (
        f"{name!r} is {column[place[0]].item():g} in {named_place(place, numbers)}, far from the others (98 % of them are from "
        f"{low:.3g} to {high:.3g}), too far for a finite log-density and gradient. Correct it, or drop the row; where such "
        "values are right, take logarithms of the column."
    )


def named_place(place: list[int], numbers: Tensor) -> str:
    """The row, by its number in the data, and the column of a value."""
    column = "" if len(place) < 2 else f", column {place[1] if len(place) == 2 else tuple(place[1:])}"
    return f"row {int(numbers[place[0]])}{column}"


def gap_under_mask(name: str, value: Tensor, numbers: Tensor) -> str:
    """A message about missing values that a mask leaves out of a density, but not out of its gradient."""
    place = torch.isnan(value).nonzero()[0].tolist()
    return (
        f"Site {name!r} leaves missing values (NaN) out of its log-density, the first in {named_place(place, numbers)}, and "
        "the gradient is NaN nonetheless, since a mask does not stop what was computed from NaN. Fill them in before anything "
        "is computed, as by x.nan_to_num(0.0), and mask then; pv.observed_only(likelihood) and pv.nets.WithMask do both."
    )

"""Whether what is said of a row depends on that row alone, and not on the others of its batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyrovae.pair.batch import Batch, num_rows, take_rows
from pyrovae.pair.handlers import DATA_PLATE
from pyrovae.pair.program import PairLike, at_values, run, sites_by_side

# Products of matrices are added up in another order for another number of rows. Where numbers are large, that may move a
# density several times as far as a change in the last bits of the rows does.
CLOSE, ROUNDINGS = 1e-3, 32
SMALL = 256


def in_a_loop(traces: tuple[Any, Any]) -> str | None:
    """The first site in a plate "data" that is a loop over rows, `for i in pyro.plate("data", ...)`; None without any."""
    nodes = sites_by_side(traces).items()
    loops = ((name, f) for (_, name), node in nodes for f in node["cond_indep_stack"] if not f.vectorized)
    return next((name for name, f in loops if f.name == DATA_PLATE), None)


def depends_on_others(pair: PairLike, batch: Batch, traces: tuple[Any, Any]) -> str:
    """What of the first half of the rows is another one without the second half, as a sentence; nothing if all is the same.

    Args:
        pair: Model and guide, in evaluation mode.
        batch: The rows.
        traces: (model trace, guide trace) of a run on them, whose values are kept.
    """
    rows, half = num_rows(batch), num_rows(batch) // 2
    if not half:
        return ""
    before = sites_by_side(traces)
    values = {}
    for (_, name), node in before.items():
        if not node["is_observed"]:
            kept = _first(node, node["value"], len(node["fn"].event_shape), rows, half)
            if kept is None:
                return ""
            values[name] = kept
    few = take_rows(batch, slice(0, half))
    with torch.no_grad():
        after = sites_by_side(run(at_values(pair, values), few))
        if other := sorted({name for _, name in before.keys() ^ after.keys()}):
            return f"Site {other[0]!r} is there or not by the other rows of a batch"
        for (side, name), node in before.items():
            old = _first(node, node["fn"].log_prob(node["value"]), 0, rows, half)
            new = after[side, name]["fn"].log_prob(after[side, name]["value"])
            if _dim(node) is None or old is None or old.shape != new.shape:
                continue
            moved = (old - new).abs() > CLOSE * (1 + new.abs())
            if bool(moved.any()):
                moved &= (old - new).abs() > ROUNDINGS * _rounding(pair, values, few, (side, name), new)
            if bool(moved.any()):
                where = tuple(moved.nonzero()[0].tolist())
                return (
                    f"The log-density of a row at site {name!r} of the {side} depends on the other rows of its batch: "
                    f"{old[where].item():.6g} among {rows} rows, and {new[where].item():.6g} among {half}"
                )
    return ""


def _rounding(
    pair: PairLike, values: dict[str, Tensor], batch: Batch, which: tuple[str, str], log_prob: Tensor
) -> Tensor:
    """How far the log-density of a site moves, of all rows at most, with the last bits of the rows' numbers."""
    nudged = {}
    for name, value in batch.items():
        if value.is_floating_point():  # small whole numbers may be classes, or bits
            whole = (value == value.round()) & (value.abs() < SMALL)
            value = torch.where(whole, value, torch.nextafter(value, torch.full_like(value, torch.inf)))
        nudged[name] = value
    try:
        node = sites_by_side(run(at_values(pair, values), nudged))[which]
        moved = (node["fn"].log_prob(node["value"]) - log_prob).abs()
    except ValueError:  # only whole numbers have a density
        return log_prob.new_zeros(())
    return moved.nan_to_num(0.0, posinf=0.0).amax()


def _dim(node: Any) -> int | None:
    """The dimension of the plate "data" of a site, from the right of its batch shape; None of a global one."""
    return next((f.dim for f in node["cond_indep_stack"] if f.name == DATA_PLATE and f.vectorized), None)


def _first(node: Any, value: Any, event_dim: int, rows: int, half: int) -> Tensor | None:
    """A value for the first half of the rows; of a global site as it is; None if its rows cannot be found."""
    dim = _dim(node)
    if dim is None or not isinstance(value, Tensor):
        return value if isinstance(value, Tensor) else None
    at = dim - event_dim
    return value.narrow(at, 0, half) if value.dim() >= -at and value.shape[at] == rows else None

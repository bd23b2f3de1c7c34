"""Codes and factors of variation as arrays, levels and bins, and the mutual information of two series of levels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyrovae.errors import DataError

Array = NDArray[Any]
BINS = 20  # of equal width, for what is continuous
MOST_LEVELS = 50  # of a factor of whole numbers; one with more is taken as continuous


def as_array(values: Any) -> Array:
    try:
        return np.array(
            values.detach().cpu().double().numpy() if isinstance(values, torch.Tensor) else values, dtype=float
        )
    except (TypeError, ValueError) as error:
        raise DataError(
            f"Scores take arrays of numbers ({error}): number the levels of factors that are texts."
        ) from error


def codes_and_factors(codes: Any, factors: Any) -> tuple[Array, Array]:
    """Both as arrays of floats, checked, and those of very large or small units in others. Raises DataError."""
    z, v = as_array(codes), as_array(factors)
    if z.ndim != 2 or v.ndim != 2 or len(z) != len(v) or len(z) < 4 or not z.shape[1] or not v.shape[1]:
        raise DataError(
            f"Scores take codes (N, D) and factors (N, K) of the same rows, four at least, got {z.shape} and {v.shape}: "
            "flatten codes of several dimensions, and give a single factor as a column."
        )
    for name, values in (("codes", z), ("factors", v)):
        if not np.isfinite(values).all():
            raise DataError(f"Scores take finite {name}, and {(~np.isfinite(values)).sum()} of these are not.")
    constant = [k for k, factor in enumerate(v.T) if (factor == factor[0]).all()]
    if constant:
        raise DataError(f"Factor {constant[0]} has a single value, {v[0, constant[0]]:g}: leave it out.")
    for k in range(v.shape[1]):
        v[:, k] = _in_range(v[:, k]) if is_continuous(v[:, k]) else v[:, k]  # of others the levels alone count
    return _in_range(z), v


def _in_range(values: Array) -> Array:
    """Values whose squares neither overflow nor vanish, in float32 either: no score depends on the unit."""
    return values if 2**-10 <= np.abs(values).max() <= 2**30 else scaled(values)


def is_continuous(values: Array) -> bool:
    """Whether these are no whole numbers, or more of them than are levels."""
    return bool((values != np.round(values)).any()) or len(np.unique(values)) > MOST_LEVELS


def levels_of(values: Array, bins: int = BINS) -> NDArray[np.int64]:
    """The numbers 0, 1, ... of the values that occur; of the bins they fall into where values are continuous."""
    found: NDArray[np.int64] = np.unique(
        binned(values, bins) if is_continuous(values) else values, return_inverse=True
    )[1]
    return found.reshape(-1)


def binned(values: Array, bins: int) -> NDArray[np.int64]:
    """The number of the bin of each value, of bins of equal width between the smallest and the largest value."""
    values = scaled(values)
    low, width = values.min(), np.ptp(values) / bins
    return np.zeros(len(values), dtype=int) if width == 0 else ((values - low) / width).astype(int).clip(0, bins - 1)


def scaled(values: Array) -> Array:
    """Values over a power of two, so that the largest is between 0.5 and 1: differences neither overflow nor become 0."""
    return np.ldexp(values, -np.frexp(np.abs(values).max(initial=0.0))[1])


def mutual_information(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """Mutual information of two series of non-negative integers, from their table of counts, in nats."""
    joint = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(joint, (a, b), 1 / len(a))
    product = joint.sum(1, keepdims=True) * joint.sum(0)
    some = joint > 0
    return float((joint[some] * np.log(joint[some] / product[some])).sum())


def halves(rows: int, seed: int) -> tuple[Array, Array]:
    order = np.random.default_rng(seed).permutation(rows)
    return order[: rows // 2], order[rows // 2 :]


def rows_that_share(
    factors: Array, votes: int, batch_size: int, rng: np.random.Generator, per_value: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each vote a factor, and the numbers of rows that share a value of it, `(votes, batch_size)`.

    All rows of a vote share one value, or, with `per_value`, each so many that follow each other.
    """
    size = per_value or batch_size
    held = rng.integers(factors.shape[1], size=votes)
    rows = np.empty((votes, batch_size), dtype=np.int64)
    for k in range(factors.shape[1]):
        levels = levels_of(factors[:, k])
        order, counts = levels.argsort(kind="stable"), np.bincount(levels)
        starts = counts.cumsum() - counts
        mine = np.flatnonzero(held == k)
        values = levels[rng.integers(len(levels), size=(len(mine), batch_size // size))]  # by how often they occur
        values = values.repeat(size, 1)
        rows[mine] = order[starts[values] + (rng.random(values.shape) * counts[values]).astype(int)]
    return held, rows

"""Rows that a model draws, beside those of the table: what is off, in a sentence."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from pyrovae._moments import written
from pyrovae.tables.columns import Column
from pyrovae.tables.schema import DAY_0, Schema

# How far simulated rows may be from the data, beyond three standard errors of the comparison.
MEAN, SPREAD, SHARE, CORRELATION, BEYOND = 0.2, 0.25, 0.05, 0.15, 0.01
MOST_NAMED = 4
MOST_BEYOND = 12.0  # rows of n, beyond the ends of n others


def differences(schema: Schema, rows: Tensor, drawn: Tensor) -> list[str]:
    """In what simulated rows depart from those of a table: means, spreads, zeros, ranges, categories, correlations.

    Args:
        schema: What the columns are.
        rows: Rows of the table, `(N, D)`, NaN where a cell is missing.
        drawn: Rows that the model has drawn, `(M, D)`.

    Returns:
        A phrase for each departure, the largest first; none where there is no more than chance and small tolerances explain.
    """
    rows, drawn = rows.double(), drawn.double()
    error = 3 * math.sqrt(1 / len(rows) + 1 / len(drawn))
    found: list[tuple[float, str]] = []

    def note(size: float, tolerance: float, words: str, by_chance: float | None = None) -> None:
        chance = error * (0.5 if tolerance == SHARE else 1.0) if by_chance is None else by_chance
        if size > tolerance + chance:
            found.append((size / tolerance, words))

    for place, column in enumerate(schema.modelled):
        data, own = rows[:, place], drawn[:, place]
        data, own = data[~data.isnan()], own[~own.isnan()]
        if len(data) < 2 or len(own) < 2:
            continue
        if column.is_class:
            num = len(column.categories)
            gaps = [torch.bincount(one.long(), minlength=num).double() / len(one) for one in (data, own)]
            at = int((gaps[1] - gaps[0]).abs().argmax())
            words = f"{column.name} is {column.categories[at]!r} in {gaps[1][at]:.0%} of them, in the data in {gaps[0][at]:.0%}"
            note(float((gaps[1] - gaps[0]).abs().max()), SHARE, words)
            continue
        zeros = [float((one == 0).double().mean()) for one in (data, own)]
        note(
            abs(zeros[1] - zeros[0]),
            SHARE,
            f"{column.name} is 0 in {zeros[1]:.0%} of them, in the data in {zeros[0]:.0%}",
        )
        beyond = float(((own < data.min()) | (own > data.max())).double().mean())
        low, high, least, most = (
            _written(column, float(one)) for one in (own.min(), own.max(), data.min(), data.max())
        )
        ends = f"{low} to {high}, in the data {least} to {most}"
        note(
            beyond, BEYOND, f"{beyond:.1%} of {column.name} are beyond the data ({ends})", _beyond(len(data), len(own))
        )
        if column.offset is not None:
            data, own = (torch.log((one + column.offset).clamp_min(1e-12)) for one in (data, own))
        spread = data.std().clamp_min(1e-12)
        off = float((own.mean() - data.mean()) / spread)
        note(
            abs(off),
            MEAN,
            f"the mean of {column.name} is {abs(off):.2f} standard deviations too {'high' if off > 0 else 'low'}",
        )
        ratio = float(own.std() / spread)
        note(abs(math.log(max(ratio, 1e-6))), SPREAD, f"{column.name} varies {ratio:.2f} times as much")
    numbers = [place for place, column in enumerate(schema.modelled) if column.is_number]
    correlations = [_correlations(one[:, numbers]) for one in (rows, drawn)]
    for (i, a), (j, b) in combinations(enumerate(numbers), 2):
        pair = [each[i][j] for each in correlations]
        names = f"{schema.modelled[a].name} and {schema.modelled[b].name}"
        words = f"the correlation of {names} is {pair[1]:.2f}, in the data {pair[0]:.2f}"
        note(abs(pair[1] - pair[0]), CORRELATION, words)
    return [words for _, words in sorted(found, reverse=True)]


def _beyond(rows: int, drawn: int) -> float:
    """What share of rows of the same distribution is beyond the ends of a column once in some 10,000 times, at most.

    The probability beyond both ends of n rows is Beta(2, n - 1), which is above t / n with a probability of (1 + t) exp(-t).
    """
    return (MOST_BEYOND + 3 * math.sqrt(MOST_BEYOND * rows / drawn)) / rows


def _written(column: Column, value: float) -> str:
    """A value as a reader knows it: of a date the day."""
    if column.is_moment and column.kind != "date":
        return str(column.written(column.values(np.array([value])))[0])
    return (written(value, DAY_0) if column.kind == "date" else None) or f"{value:.4g}"


def _correlations(columns: Tensor) -> list[list[float]]:
    """The rank correlation of each two columns in the rows that have both, of rows `(N, D)`; 0 where it is not defined."""
    whole = ~columns.isnan().any(0)
    found = torch.zeros(columns.shape[1], columns.shape[1], dtype=torch.float64)
    found[whole[:, None] & whole] = _of_ranks(columns[:, whole]).flatten()
    for i, j in combinations(range(columns.shape[1]), 2):
        if not (whole[i] and whole[j]):
            both = columns[:, [i, j]]
            found[i, j] = _of_ranks(both[~both.isnan().any(1)])[0, 1]
    answer: list[list[float]] = found.tolist()
    return answer


def _of_ranks(columns: Tensor) -> Tensor:
    """The rank correlations of columns without gaps, `(D, D)`; 0 of fewer than three rows."""
    size = columns.shape[1]
    if len(columns) < 3 or not size:
        return torch.zeros(size, size, dtype=torch.float64)
    ranks = columns.argsort(0).argsort(0).double()
    return torch.corrcoef(ranks.T).nan_to_num(0.0).reshape(size, size)


def sentence(schema: Schema, rows: Tensor, drawn: Tensor) -> str:
    """What `differences` has found, as one sentence."""
    found = differences(schema, rows, drawn)
    if not found:
        return (
            "Rows drawn from the model are like the data in means, spreads, zeros, ranges, categories and correlations."
        )
    more = f"; and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return f"Rows drawn from the model differ from the data: {'; '.join(found[:MOST_NAMED])}{more}."

"""Ranks of scores, and rates of false discoveries, of more rows than are in memory: 8 bytes a row are held."""

from __future__ import annotations

import numpy as np

from pyrovae.app.rows import Array


class Ranking:
    """The places of N rows by their scores, and their p-values adjusted for N rows.

    Rows come block by block, twice in the same order. First `add` takes the scores of all blocks. Then `ranks` gives the ranks
    of each block, and `adjusted` its p-values, which are those of all rows at once: `Anomaly.ranks` and `adjusted_p_values`.

    Args:
        num_rows: N.
        calibration: n, the number of ordinary rows with which p-values compare, so that they are multiples of 1 / (n + 1).
        num_first: how many of the strangest rows are remembered, of those with a finite score.
    """

    def __init__(self, num_rows: int, calibration: int, num_first: int) -> None:
        self.scores = np.empty(num_rows)
        self.counts = np.zeros(calibration + 1, dtype=np.int64)  # of rows by their p-value
        self.num_first, self.seen = num_first, 0
        self.first = np.empty(0, dtype=np.int64)  # the numbers of the strangest rows so far, strangest first
        self.tied: dict[int, int] = {}  # by the rank of the first of several rows with one score: how many had a place

    def add(self, scores: Array, p_values: Array) -> None:
        """Take a block of rows."""
        end = self.seen + len(scores)
        self.scores[self.seen : end] = scores
        self.counts += np.bincount(self._steps(p_values), minlength=len(self.counts))
        rows = np.concatenate([self.first, np.arange(self.seen, end)])
        rows = rows[np.isfinite(self.scores[rows])]
        self.first = rows[np.argsort(-self.scores[rows], kind="stable")][: self.num_first]
        self.seen = end
        if end == len(self.scores):
            self.scores.sort()  # in place
            adjusted = self.p_values() * end / np.maximum(self.counts.cumsum(), 1)
            adjusted[self.counts.cumsum() == 0] = np.inf
            self._adjusted = np.minimum(np.minimum.accumulate(adjusted[::-1])[::-1], 1.0)

    def p_values(self) -> Array:
        """All that there can be, ascending."""
        return np.arange(1, len(self.counts) + 1) / len(self.counts)

    def called(self, rate: float) -> int:
        """How many rows are called outliers at this false discovery rate."""
        return int(self.counts[self._adjusted <= rate].sum())

    def ranks(self, scores: Array) -> Array:
        """The rank of each row of the next block, from 1 for the strangest; of rows with one score the earlier comes first."""
        below, up_to = (np.searchsorted(self.scores, scores, side=side) for side in ("left", "right"))
        ranks: Array = len(self.scores) - up_to + 1
        for place in np.flatnonzero(up_to - below > 1).tolist():
            first = int(ranks[place])
            before = self.tied.get(first, 0)
            ranks[place] += before
            self.tied[first] = before + 1
        return ranks

    def adjusted(self, p_values: Array) -> Array:
        """The smallest rate at which each row is called an outlier among all N, by Benjamini and Hochberg."""
        adjusted: Array = self._adjusted[self._steps(p_values)]
        return adjusted

    def _steps(self, p_values: Array) -> Array:
        """How many ordinary rows are at least as strange."""
        steps: Array = np.rint(p_values * len(self.counts)).astype(np.int64) - 1
        return steps

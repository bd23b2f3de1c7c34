"""`NormalScores`: columns as quantiles of N(0, 1), in which neither units nor the tails of a column count."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NormalScores:
    """`Phi^-1` of the share of rows with a smaller value, of which those with the same value count half, for each column.

    No share is below half a row of those that the column has, nor above all but half a row.

    Args:
        columns: The values of each column in ascending order, `(D, N)`, with infinity in the place of gaps.
        counts: How many values each column has, `(D, 1)`.
    """

    columns: Tensor
    counts: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> NormalScores:
        """Those of rows `(N, D)`, NaN where a value is missing."""
        gaps = rows.isnan()
        columns = torch.where(gaps, torch.inf, rows).T.contiguous().sort(-1).values
        return cls(columns, (~gaps).sum(0)[:, None])

    def __call__(self, rows: Tensor) -> Tensor:
        """The scores of rows `(M, D)`, float64; NaN where a value is missing, and 0 in a column without any."""
        values = rows.T.contiguous()
        below, up_to = (torch.searchsorted(self.columns, values, right=right) for right in (False, True))
        counts = self.counts.clamp_min(1).double()
        share = (below + up_to.minimum(self.counts)).double() / (2 * counts)
        share = share.maximum(0.5 / counts).minimum(1 - 0.5 / counts)
        return torch.where(values.isnan(), torch.nan, torch.special.ndtri(share)).T

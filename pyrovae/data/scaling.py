"""Scaling of real-valued tables. What is learned here is learned from the training rows only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae.errors import CheckpointError, DataError, ShapeError


@dataclass(frozen=True, eq=False)
class Standardize:
    """z = (x - mean) / scale, column by column; so log p(x) = log p(z) - sum_d log scale_d.

    mean, scale: (D,) float64. Computed in float64: float32 would lose the variation of a column such as 1e6 +- 1.
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, x: Tensor) -> Standardize:
        """Mean and standard deviation (divisor: the number of observed rows) of the rows x, (N, D); NaN is skipped.

        Constant columns get scale 1, columns without any observed value mean 0 and scale 1.

        Raises:
            DataError: x is not (N, D) with N >= 1, or holds infinite values.
        """
        if x.dim() != 2 or len(x) == 0:
            raise DataError(f"Standardize.fit wants rows (N, D), N >= 1, got {tuple(x.shape)}. Flatten each row.")
        x = x.double().cpu()
        if x.isinf().any():
            columns = x.isinf().any(0).nonzero().flatten().tolist()
            raise DataError(f"columns {columns} hold infinite values. Make them NaN (missing) or drop the rows.")
        observed = ~x.isnan()
        mean = x.nanmean(0).nan_to_num()
        variance = (x - mean).square().nanmean(0)
        inf = torch.tensor(torch.inf, dtype=x.dtype)
        # compared exactly: the rounded variance of a constant column is not always 0
        varies = x.where(observed, -inf).amax(0) > x.where(observed, inf).amin(0)
        return cls(mean, variance.sqrt().where(varies, torch.ones_like(mean)))

    def apply(self, x: Tensor) -> Tensor:
        """x (*batch, D) in the data's units -> z (*batch, D), of the same dtype. Raises ShapeError for another D."""
        self._check(x)
        return ((x.double() - self.mean.to(x.device)) / self.scale.to(x.device)).to(x.dtype)

    def invert(self, z: Tensor) -> Tensor:
        """z (*batch, D) -> x (*batch, D) in the data's units, of the same dtype. Raises ShapeError for another D."""
        self._check(z)
        return (z.double() * self.scale.to(z.device) + self.mean.to(z.device)).to(z.dtype)

    @property
    def log_abs_det(self) -> float:
        """sum_d log scale_d = log |dx/dz|, nats per row: log p(x) in the data's units is log p(z) minus this."""
        return float(self.scale.log().sum())

    def to_json(self) -> dict[str, Any]:
        """JSON's numbers hold every float64 exactly, so `from_json` gives the same tensors bit for bit."""
        return {"mean": self.mean.tolist(), "scale": self.scale.tolist()}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Standardize:
        """The inverse of `to_json`. Raises CheckpointError if `saved` is not such a record."""
        try:
            mean, scale = (torch.tensor(saved[key], dtype=torch.float64) for key in ("mean", "scale"))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"a saved scaling has two lists of numbers, mean and scale; got {saved}. Fit again."
            ) from error
        if mean.dim() != 1 or mean.shape != scale.shape or not bool((scale > 0).all()):
            raise CheckpointError(
                f"a saved scaling has a mean and a positive scale per column; got {tuple(mean.shape)} means "
                f"and {tuple(scale.shape)} scales. Fit again."
            )
        return cls(mean, scale)

    def _check(self, x: Tensor) -> None:
        if x.shape[-1:] != self.mean.shape:
            raise ShapeError(
                f"the scaling was learned from {len(self.mean)} columns, got a tensor of shape {tuple(x.shape)}. "
                "Give the columns of the training rows, in their order."
            )

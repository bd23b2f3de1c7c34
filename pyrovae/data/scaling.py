"""Scaling of the columns of real-valued tables, by statistics of the training rows only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.errors import CheckpointError, DataError, ShapeError, counted
from pyrovae.pair.arrays import as_tensor
from pyrovae.pair.batch import check_columns, names_of


@dataclass(frozen=True, eq=False)
class Standardize:
    """z = (x - mean) / scale for each column; by change of variables log p(x) = log p(z) - sum_d log scale_d.

    It is computed in float64, since float32 would lose the variation of a column such as 1e6 +- 1.

    Args:
        mean: The mean of each column, `(D,)` float64.
        scale: The scale of each column, `(D,)` float64, positive.
        columns: The names of the columns, where the training rows were a table that has some; else empty.

    Example:
        >>> from pyrovae.data import Standardize
        >>> scaling = Standardize.fit(torch.tensor([[1.0, 10.0], [3.0, 30.0]]))
        >>> scaling.apply(torch.tensor([[2.0, 30.0]]))
        tensor([[0., 1.]])
        >>> scaling.invert(torch.tensor([[0.0, 1.0]]))
        tensor([[ 2., 30.]])
        >>> round(scaling.log_abs_det, 3)  # log 1 + log 10
        2.303
    """

    mean: Tensor
    scale: Tensor
    columns: tuple[str, ...] = ()

    @classmethod
    def fit(cls, x: Any) -> Standardize:
        """The scaling by mean and standard deviation of the observed values of each column.

        Args:
            x: The training rows, `(N, D)`, a tensor, an array or a DataFrame; NaN is missing. The variance is divided by the
                number of observed values.

        Returns:
            A `Standardize`. Constant columns have scale 1; columns without an observed value have mean 0 and scale 1.

        Raises:
            DataError: `x` is not `(N, D)` with N >= 1, or has infinite values.
        """
        names = names_of(x) or ()
        x = as_tensor("x", x, torch.float64)
        if x.dim() != 2 or len(x) == 0:
            raise DataError(f"Standardize.fit wants rows (N, D) with N >= 1, got {tuple(x.shape)}. Flatten each row.")
        x = x.double().cpu()
        if x.isinf().any():
            columns = x.isinf().any(0).nonzero().flatten().tolist()
            raise DataError(f"columns {columns} hold infinite values. Replace them by NaN (missing), or drop the rows.")
        # In units of a power of 2, which changes no bit, since squares of 1e200 or 1e-200 are infinite or 0.
        exponent = torch.frexp(x.nan_to_num().abs().amax(0)).exponent.numpy()
        x = torch.from_numpy(np.ldexp(x.numpy(), -exponent))
        observed = ~x.isnan()
        mean = x.nanmean(0).nan_to_num()
        variance = (x - mean).square().nanmean(0)
        inf = torch.tensor(torch.inf, dtype=x.dtype)
        # Compare extremes, since the variance of a constant column may be rounded to more than 0.
        varies = x.where(observed, -inf).amax(0) > x.where(observed, inf).amin(0)
        mean, scale = (torch.from_numpy(np.ldexp(each.numpy(), exponent)) for each in (mean, variance.sqrt()))
        return cls(mean, scale.where(varies, torch.ones_like(mean)), tuple(names))

    def apply(self, x: Any) -> Tensor:
        """Scale x, `(*batch, D)` in the units of the data, to z, `(*batch, D)`.

        Args:
            x: Rows, a tensor, an array or a DataFrame.

        Returns:
            z, of the dtype of a tensor of floating-point numbers, and else of torch's default dtype.

        Raises:
            ShapeError: `x` has another number of columns.
            DataError: `x` is no numbers, or a table with other columns than the training rows, or in another order.
        """
        check_columns("x", names_of(x), self.columns, "the training rows", "table[list(units.columns)]")
        kept = isinstance(x, Tensor) and x.is_floating_point()
        x = as_tensor("x", x, torch.float64)
        self._check(x)
        z: Tensor = (x.double() - self.mean.to(x.device)) / self.scale.to(x.device)
        return z.to(x.dtype if kept else torch.get_default_dtype())

    def invert(self, z: Tensor) -> Tensor:
        """Scale z, `(*batch, D)`, back to x, `(*batch, D)` in the units of the data and of the same dtype.

        Raises:
            ShapeError: `z` has another number of columns.
        """
        self._check(z)
        return (z.double() * self.scale.to(z.device) + self.mean.to(z.device)).to(z.dtype)

    @property
    def log_abs_det(self) -> float:
        """`sum_d log scale_d = log |dx/dz|`, in nats per row: log p(x) in the units of the data is log p(z) minus this."""
        return float(self.scale.log().sum())

    def to_json(self) -> dict[str, Any]:
        """The scaling in JSON's types. They represent each float64 exactly, so `from_json` returns the same tensors."""
        named = {"columns": list(self.columns)} if self.columns else {}
        return {"mean": self.mean.tolist(), "scale": self.scale.tolist(), **named}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Standardize:
        """The scaling that `to_json` wrote.

        Raises:
            CheckpointError: `saved` is not what `to_json` writes.
        """
        try:
            mean, scale = (torch.tensor(saved[key], dtype=torch.float64) for key in ("mean", "scale"))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"a saved scaling has two lists of numbers, mean and scale, got {saved}. Fit the model again."
            ) from error
        if mean.dim() != 1 or mean.shape != scale.shape or not bool((scale > 0).all()):
            raise CheckpointError(
                f"a saved scaling has a mean and a positive scale for each column, got means of shape {tuple(mean.shape)} "
                f"and scales of shape {tuple(scale.shape)}. Fit the model again."
            )
        names = saved.get("columns", ())
        if not isinstance(names, Sequence) or len(names) not in (0, len(mean)):
            raise CheckpointError("a saved scaling has a name for each column, or no names. Fit the model again.")
        return cls(mean, scale, tuple(map(str, names)))

    def _check(self, x: Tensor) -> None:
        if x.shape[-1:] != self.mean.shape:
            raise ShapeError(
                f"the scaling was learned from {counted(len(self.mean), 'column')}, got a tensor of shape {tuple(x.shape)}. "
                "Give the columns of the training rows, in their order."
            )

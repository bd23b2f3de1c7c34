"""Student's t without constants that a device would have to be sent."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor


class StudentT(dist.StudentT):  # type: ignore[misc]  # Pyro has no types
    """t(x; df, loc, scale), as Pyro's, of three tensors: Pyro's makes a tensor of the number 1/2 at every call."""

    def __init__(self, df: Tensor, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        self.df, self.loc, self.scale = torch.broadcast_tensors(df, loc, scale)
        self._chi2 = dist.Gamma(0.5 * self.df, torch.full_like(self.df, 0.5))
        torch.distributions.Distribution.__init__(self, self.df.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        df, loc, scale = (p.expand(batch_shape) for p in (self.df, self.loc, self.scale))
        return type(self)(df, loc, scale, validate_args=self._validate_args)

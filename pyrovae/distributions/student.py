"""Student's t distribution, without constants that would have to be copied to the device."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor


class StudentT(dist.StudentT):  # type: ignore[misc]  # Pyro has no types
    """`t(x; df, loc, scale)`: Student's t distribution of three tensors.

    It is Pyro's; that one makes a tensor of the number 1/2 in every call, which a CUDA graph cannot record.

    Args:
        df: Degrees of freedom, positive, shape `(*batch)`.
        loc: Location, shape `(*batch)`.
        scale: Scale, positive, shape `(*batch)`. All three broadcast.
        validate_args: Whether to check values, as in torch.

    Example:
        >>> p = pv.distributions.StudentT(torch.tensor(5.0), torch.zeros(3), torch.tensor(2.0))
        >>> p.rsample((4,)).shape
        torch.Size([4, 3])
        >>> p.log_prob(torch.tensor(0.0)).shape
        torch.Size([3])
    """

    def __init__(self, df: Tensor, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        self.df, self.loc, self.scale = torch.broadcast_tensors(df, loc, scale)
        self._chi2 = dist.Gamma(0.5 * self.df, torch.full_like(self.df, 0.5))
        torch.distributions.Distribution.__init__(self, self.df.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        df, loc, scale = (p.expand(batch_shape) for p in (self.df, self.loc, self.scale))
        return type(self)(df, loc, scale, validate_args=self._validate_args)

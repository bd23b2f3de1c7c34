"""The Categorical whose mass is 0 outside of its classes."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor


class Categorical(dist.Categorical):  # type: ignore[misc]  # Pyro has no types
    """p(k) = softmax(logits)_k for k = 0, ..., K - 1, else 0. logits: (*batch, K); k: (*batch), of any dtype.

    Pyro's fails at a class that does not exist, with an index error of the gather and before any check of the data.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        last = self.param_shape[-1] - 1
        known = torch.nan_to_num(value, nan=-1.0) if value.is_floating_point() else value
        inside = known.clamp(0, last)
        log_prob: Tensor = super().log_prob(inside)
        return log_prob.masked_fill(inside != known, -torch.inf)

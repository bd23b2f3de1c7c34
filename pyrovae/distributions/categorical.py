"""The categorical distribution, with mass 0 for values that are not among its classes."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor


class Categorical(dist.Categorical):  # type: ignore[misc]  # Pyro has no types
    """`p(k) = softmax(logits)_k` for `k = 0, ..., K - 1`, and 0 for any other value.

    Pyro's Categorical raises an index error for a class that does not exist, which hides the explanation that a check of
    the data could give.

    Args:
        probs: Probabilities, shape `(*batch, K)`; give either these or `logits`.
        logits: Unnormalised log-probabilities, shape `(*batch, K)`.
        validate_args: Whether to check values, as in torch.

    Example:
        >>> p = pv.distributions.Categorical(logits=torch.zeros(4))
        >>> p.log_prob(torch.tensor([0.0, 3.0, 4.0, float("nan")])).exp()
        tensor([0.2500, 0.2500, 0.0000, 0.0000])
    """

    def log_prob(self, value: Tensor) -> Tensor:
        last = self.param_shape[-1] - 1
        known = torch.nan_to_num(value, nan=-1.0) if value.is_floating_point() else value
        inside = known.clamp(0, last)
        log_prob: Tensor = super().log_prob(inside)
        return log_prob.masked_fill(inside != known, -torch.inf)

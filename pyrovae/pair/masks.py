"""What a mask leaves out of an observed value: it is missing there, and what stands in its place is no data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def masked_out(fn: Any, mask: Any, value: Tensor) -> Tensor | None:
    """Which elements of an observed value count nothing, by `poutine.mask` or `.mask(...)` of its distribution.

    Args:
        fn: The distribution of the site.
        mask: That of handlers, `(*batch)`, a bool, or None.
        value: What is observed, `(*batch, *event)`.

    Returns:
        A tensor of bools that broadcasts to `value`; None where nothing is masked by a tensor, or by False.
    """
    found = None if mask is None or mask is True else _out(mask, len(fn.event_shape), value)
    while True:
        if type(fn).__name__ == "MaskedDistribution" and fn._mask is not True:
            here = _out(fn._mask, len(fn.event_shape), value)
            found = here if found is None else found | here
        if not hasattr(fn, "base_dist") or hasattr(fn, "transforms"):
            return found
        fn = fn.base_dist


def without_masked(fn: Any, mask: Any, value: Tensor) -> Tensor:
    """A value of real numbers with NaN where a mask leaves elements out."""
    out = masked_out(fn, mask, value)
    return value if out is None else torch.where(out, torch.nan, value)


def _out(mask: Any, event_dim: int, value: Tensor) -> Tensor:
    if not isinstance(mask, Tensor):
        return torch.full((), not mask, device=value.device)
    return ~mask.bool().reshape(*mask.shape, *(1,) * event_dim)

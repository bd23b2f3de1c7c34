"""Shapes and dtypes of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def broadcast_shapes(*shapes: Sequence[int]) -> torch.Size:
    """As `torch.broadcast_shapes`, for which torch imports SymPy.

    Raises:
        RuntimeError: They do not fit.
    """
    found: list[int] = []
    for shape in shapes:
        found = [1] * (len(shape) - len(found)) + found
        for dim in range(-len(shape), 0):
            if shape[dim] != 1:
                if found[dim] not in (1, shape[dim]):
                    raise RuntimeError(
                        f"the shapes {', '.join(str(tuple(s)) for s in shapes)} cannot be broadcast to one"
                    )
                found[dim] = shape[dim]
    return torch.Size(found)


def how_to_cast(dtype: torch.dtype) -> str:
    """The methods that give rows this dtype, for error messages."""
    cure = {torch.float32: "`.float()`", torch.float64: "`.double()`"}.get(dtype, f"`.to({dtype})`")
    if dtype in (torch.float32, torch.float64):  # NumPy has no bfloat16
        cure += f", or `.astype('{str(dtype).removeprefix('torch.')}')` for a NumPy array or a DataFrame"
    return cure

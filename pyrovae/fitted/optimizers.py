"""The state of an optimizer as tensors by name and as JSON, in which it is saved with a fit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of an optimizer as tensors by name, and as JSON."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}/{key}"] = value
            else:
                numbers.setdefault(str(index), {})[key] = value
    groups = [
        {k: v.item() if isinstance(v, Tensor) else v for k, v in group.items()} for group in state["param_groups"]
    ]
    return tensors, {"numbers": numbers, "groups": groups}


def unflatten_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]
) -> None:
    """Load the state of an optimizer from what `flatten_optimizer` returned."""
    state: dict[int, dict[str, Any]] = {int(i): dict(values) for i, values in notes["numbers"].items()}
    for name, value in tensors.items():
        index, key = name.split("/", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": [_tuples(g) for g in notes["groups"]]})


def _tuples(group: Mapping[str, Any]) -> dict[str, Any]:
    # JSON turned tuples, such as Adam's betas, into lists; only the parameter indices were a list.
    return {k: tuple(v) if isinstance(v, list) and k != "params" else v for k, v in group.items()}


def finite_or_none(value: float) -> float | None:
    """The number, or None for NaN and infinities, which JSON does not have."""
    return value if math.isfinite(value) else None

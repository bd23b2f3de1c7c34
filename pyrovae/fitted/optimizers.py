"""The state of an optimizer as tensors by name and as JSON, in which it is saved with a fit."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyrovae.engine.fused import lay_out_state


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
    optimizer.load_state_dict({"state": _state(tensors, notes), "param_groups": [_tuples(g) for g in notes["groups"]]})
    lay_out_state(optimizer)  # files keep no order of memory


def check_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
    """TypeError unless this, read from a file, is a state that an optimizer of this kind and these parameters can have."""
    own = json.loads(json.dumps(flatten_optimizer(optimizer)[1]["groups"]))
    if _form(own) != _form(notes["groups"]) or [g["params"] for g in own] != [g["params"] for g in notes["groups"]]:
        raise TypeError("its groups of parameters are not those of the optimizer")
    if not isinstance(optimizer, torch.optim.Adam):
        return
    leaves = [leaf for group in optimizer.param_groups for leaf in group["params"]]
    for index, entries in _state(tensors, notes).items():
        shapes = {key: tuple(getattr(value, "shape", (-1,))) for key, value in entries.items()}
        wanted = {key: () if key == "step" else tuple(leaves[index].shape) for key in shapes}
        if shapes != wanted or not {"step", "exp_avg", "exp_avg_sq"} <= shapes.keys():
            raise TypeError(f"the state of parameter {index} is none of Adam")


def _state(tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    state: dict[int, dict[str, Any]] = {int(i): dict(values) for i, values in notes["numbers"].items()}
    for name, value in tensors.items():
        index, key = name.split("/", 1)
        state.setdefault(int(index), {})[key] = value
    return state


def _form(value: Any) -> Any:
    """A JSON value with the kinds of numbers and texts in their place."""
    if isinstance(value, dict):
        return {key: _form(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_form(one) for one in value]
    return "number" if type(value) in (int, float) and math.isfinite(value) else type(value).__name__


def _tuples(group: Mapping[str, Any]) -> dict[str, Any]:
    # JSON turned tuples, such as Adam's betas, into lists; only the parameter indices were a list.
    return {k: tuple(v) if isinstance(v, list) and k != "params" else v for k, v in group.items()}


def finite_or_none(value: float) -> float | None:
    """The number, or None for NaN and infinities, which JSON does not have."""
    return value if math.isfinite(value) else None

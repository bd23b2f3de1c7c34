"""Effects for any model or guide: Pyro handlers that know plates and sites, and no particular graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

DATA_PLATE = "data"
PARTICLE_PLATE = "particles"


def with_particles(function: Callable[..., Any], num_particles: int, plate_nesting: int) -> Callable[..., Any]:
    """Run `function` for K particles at once, in a plate on the left of all of its own; as it is for K = 1."""
    if num_particles == 1:
        return function
    wrapped: Callable[..., Any] = pyro.plate(PARTICLE_PLATE, num_particles, dim=-plate_nesting - 1)(function)
    return wrapped


class Uncondition(Messenger):  # type: ignore[misc]  # Pyro has no types
    """Draw every observed site afresh, except those that observe one of the tensors in `keep`.

    `generate` runs the very model that was fitted; what is given stays observed, everything else is drawn.
    """

    def __init__(self, keep: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.keep = tuple(keep)

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and not self._given(msg["value"]):
            msg["is_observed"] = False
            msg["value"] = None

    def _given(self, value: Any) -> bool:
        if not isinstance(value, Tensor) or any(same_memory(value, kept) for kept in self.keep):
            return isinstance(value, Tensor)
        # What is made of given arguments alone, or of none, holds no NaN: the stand-ins of the others are NaN.
        return value.is_floating_point() and not bool(torch.isnan(value).any())


class Replay(Messenger):  # type: ignore[misc]
    """Run the model at the guide's draws. Unlike Pyro's replay, the model's own marks in `infer` are kept."""

    def __init__(self, trace: Any) -> None:
        super().__init__()
        self.trace = trace

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.trace and not msg["is_observed"]:
            drawn = self.trace.nodes[msg["name"]]
            msg["done"] = True
            msg["value"] = drawn["value"]
            msg["infer"] = {**drawn["infer"], **msg["infer"]}


class SetValues(Messenger):  # type: ignore[misc]
    """Give sites these values in place of draws. Unlike with Pyro's condition, they stay latent."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values:
            msg["done"] = True
            msg["value"] = self.values[msg["name"]]


def same_memory(a: Any, b: Any) -> bool:
    """Whether b is a, or a reshaped view of it."""
    if a is b or not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return a is b
    here, there = ((t.numel(), t.storage_offset(), t.untyped_storage().data_ptr()) for t in (a, b))
    return here == there

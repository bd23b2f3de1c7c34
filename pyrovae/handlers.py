"""Effects for any model or guide: Pyro handlers that know plates and sites, and no particular graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pyro
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
        if msg["is_observed"] and not any(_shares(msg["value"], kept) for kept in self.keep):
            msg["is_observed"] = False
            msg["infer"]["was_observed"] = True
            msg["value"] = None


def _shares(a: Any, b: Tensor) -> bool:
    return isinstance(a, Tensor) and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()

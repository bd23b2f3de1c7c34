"""Effects for any model or guide: Pyro handlers that know plates and sites, and no particular graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyrovae.errors import PairError

DATA_PLATE = "data"
PARTICLE_PLATE = "particles"
MOST_DIMS = 60  # torch sums tensors of at most 64 dimensions


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


class Enumerate(Messenger):  # type: ignore[misc]
    """Give each site marked infer={"enumerate": "parallel"} all of its values, along a new dimension of its own.

    Dimensions are handed out from `first_dim` to the left, to the guide and then to the model. None is used twice, not even
    under `pyro.markov`. Raises PairError for marks that cannot be honoured: see `check_mark`.
    """

    def __init__(self, first_dim: int) -> None:
        super().__init__()
        self.next_dim = first_dim

    def _pyro_sample(self, msg: Any) -> None:
        name, fn, infer = msg["name"], msg["fn"], msg["infer"]
        if msg["done"] or msg["is_observed"] or infer.get("enumerate") is None:
            return
        check_mark(name, fn, infer)
        dim, self.next_dim = self.next_dim, self.next_dim - 1
        if -dim > MOST_DIMS:
            raise PairError(
                f"Site {name!r} would be enumerated along dimension {dim}, at most {MOST_DIMS} are possible (dimensions are "
                f"not recycled under pyro.markov): mark fewer sites, or {PYRO_ENUMERATES}."
            )
        support = fn.enumerate_support(expand=False)
        event = tuple(fn.event_shape)
        value = support.reshape(len(support), *(1 for _ in range(-dim - 1)), *event)
        if infer.get("expand"):
            value = value.expand(
                len(support), *(1 for _ in range(-dim - 1 - len(fn.batch_shape))), *fn.batch_shape, *event
            )
        elif hasattr(support, "_pyro_categorical_support"):  # spares Categorical.log_prob a gather
            value._pyro_categorical_support = support._pyro_categorical_support
        msg["infer"] = {**infer, "_enumerate_dim": dim}
        msg["value"], msg["done"] = value, True


PYRO_ENUMERATES = "use pyro.infer.TraceEnum_ELBO with pyro.infer.SVI"


def check_mark(name: str, fn: Any, infer: Mapping[str, Any]) -> None:
    """PairError unless the mark infer={"enumerate": ...} of a site can be honoured: in parallel, over a finite support."""
    kind = infer["enumerate"]
    if kind != "parallel" or infer.get("num_samples") is not None:
        what = f"infer={{'enumerate': {kind!r}}}" + (
            " with num_samples" if infer.get("num_samples") is not None else ""
        )
        raise PairError(
            f"Site {name!r} is marked {what}; sites are summed out exactly, with infer={{'enumerate': 'parallel'}} and "
            f"nothing else: mark it so, remove the mark to draw the site, or {PYRO_ENUMERATES}."
        )
    if not getattr(fn, "has_enumerate_support", False):
        raise PairError(
            f"Site {name!r} is marked infer={{'enumerate': 'parallel'}}, and {fn} has no finite support to sum over: "
            "remove the mark to draw it, or use Categorical, OneHotCategorical, Bernoulli or Binomial."
        )


class Keep(Messenger):  # type: ignore[misc]
    """Remember the values of these sites, of the first run: a second one may be at detached values."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.names = frozenset(names)
        self.values: dict[str, Tensor] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self.names:
            self.values.setdefault(msg["name"], msg["value"])


def settled(function: Callable[..., Any], values: Mapping[str, Tensor], counted: Iterable[str]) -> Callable[..., Any]:
    """`function` with these values at their sites, and all sites `counted` out of everyone's sight: what another run has
    drawn, or observed, and counted."""
    inside: Callable[..., Any] = SetValues(values)(function)
    hidden: Callable[..., Any] = pyro.poutine.block(inside, hide=list(counted))
    return hidden


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

"""A pair: a model p(x, z) and its guide q(z | x), two Pyro programs of one signature, run on a batch.

A batch is a dict; its keys are the arguments of `model` and `guide`. Rows are the first dimension of every argument and
stand in one `pyro.plate("data", N)`. Nothing here knows a particular graph: all that is known about a pair is found by
running it once (`describe`).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyrovae.errors import DataError, OptionError, PairError
from pyrovae.handlers import DATA_PLATE, PARTICLE_PLATE, Enumerate, Replay, with_particles

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Pair:
    """Two functions, modules or AutoGuides held together: `Pair(model, guide)`. Any object with both names does as well.

    A module that a function only registers with `pyro.module` has its parameters trained and saved; its buffers and its
    evaluation mode (batch norm, dropout) are out of sight: hold such a module in the pair.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]


# --- batches ---------------------------------------------------------------------------------------------------------


def _signature(function: Any) -> inspect.Signature:
    # An nn.Module's own __call__ takes (*args, **kwargs); its forward tells the names.
    return inspect.signature(function.forward if isinstance(function, nn.Module) else function)


def arguments(pair: Any) -> dict[str, inspect.Parameter]:
    """The named arguments of the model, in order. PairError when the guide's differ, or when there are none."""
    for side in ("model", "guide"):
        if not callable(getattr(pair, side, None)):
            raise PairError(
                f"A pair needs a callable `{side}`, {type(pair).__name__} has none. "
                "Write both methods in one class, or hold two functions: pv.Pair(model, guide)."
            )
    named = {
        side: {
            name: p
            for name, p in _signature(getattr(pair, side)).parameters.items()
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        }
        for side in ("model", "guide")
    }
    open_ended = any(p.kind is p.VAR_KEYWORD for p in _signature(pair.guide).parameters.values())
    if not open_ended and list(named["model"]) != list(named["guide"]):
        differing = sorted(set(named["model"]) ^ set(named["guide"])) or list(named["guide"])
        raise PairError(
            f"Model and guide must take the same arguments: model({', '.join(named['model'])}), "
            f"guide({', '.join(named['guide'])}); they differ in {', '.join(map(repr, differing))}."
        )
    if not named["model"]:
        raise PairError("The model takes no argument: give it the data, model(x), so that a batch can reach it.")
    return named["model"]


def as_tensor(name: str, value: Any, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of rows. Floating arrays come as `dtype`, or the default dtype; a tensor is left as it is."""
    if not isinstance(value, Tensor):
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise DataError(
                f"{name!r} must hold numbers, got dtype {array.dtype} ({type(value).__name__}). "
                "Encode text and categories as numbers first."
            )
        value = torch.from_numpy(np.require(array, requirements=["C", "W"])).reshape(array.shape)
        if value.is_floating_point():
            value = value.to(dtype if dtype is not None else torch.get_default_dtype())
    if value.dim() == 0:
        raise DataError(f"{name!r} must have one row per datum as its first dimension, got a single number.")
    return value


def as_batch(pair: Any, data: Any, dtypes: Mapping[str, torch.dtype] | None = None) -> Batch:
    """Bind data to the model's arguments: a mapping by name, anything else to the first argument.

    Floating arrays become the argument's dtype in `dtypes`, or the default dtype.

    Raises DataError for empty data, unequal numbers of rows, unknown or missing arguments.
    """
    wanted = arguments(pair)
    given = dict(data) if isinstance(data, Mapping) else {next(iter(wanted)): data}
    unknown = [name for name in given if name not in wanted]
    missing = [name for name, p in wanted.items() if p.default is p.empty and name not in given]
    if unknown or missing:
        problem = f"does not take {unknown}" if unknown else f"also needs {missing}"
        raise DataError(f"The model takes ({', '.join(wanted)}); it {problem}. Pass a dict with these names as keys.")
    batch = {
        name: as_tensor(name, value, (dtypes or {}).get(name)) for name, value in given.items() if value is not None
    }
    rows = {name: len(value) for name, value in batch.items()}
    if len(set(rows.values())) > 1:
        raise DataError(f"Every argument needs the same number of rows, got {rows}.")
    if not rows or not next(iter(rows.values())):
        raise DataError("The data are empty: at least one row is needed.")
    return batch


def num_rows(batch: Mapping[str, Tensor]) -> int:
    return len(next(iter(batch.values())))


def take_rows(batch: Mapping[str, Tensor], rows: slice | Tensor) -> Batch:
    return {name: value[rows] for name, value in batch.items()}


MOST_GROUPS = 8


@dataclass(frozen=True)
class Group:
    """The rows of a batch that have the same arguments: their `names`, in order, and where they stand, (n,) int64."""

    names: tuple[str, ...]
    rows: Tensor


def known_rows(value: Tensor) -> Tensor:
    """(N,) bool: rows that are not -1 (integers) or NaN throughout."""
    missing = torch.isnan(value) if value.is_floating_point() else value == -1
    return ~missing.flatten(1).all(1) if missing.dim() > 1 else ~missing


def group_rows(pair: Any, batch: Mapping[str, Tensor]) -> list[Group]:
    """Rows by what is observed of them: an argument that may be None is unknown in a row of -1 (integers) or NaN only.

    Groups with fewer arguments first. DataError for more than 8 of them.
    """
    known = {}
    for name, parameter in arguments(pair).items():
        value = batch.get(name)
        if value is not None and parameter.default is None and value.dtype != torch.bool:
            known[name] = known_rows(value)
    if not known:
        return [Group(tuple(batch), torch.arange(num_rows(batch), device=next(iter(batch.values())).device))]
    patterns, which = torch.stack(list(known.values()), 1).unique(dim=0, return_inverse=True)
    if len(patterns) > MOST_GROUPS:
        raise DataError(
            f"The rows have {len(patterns)} combinations of known and unknown arguments ({', '.join(known)}), and at most "
            f"{MOST_GROUPS} are possible: leave single missing entries to pv.observed_only(likelihood)."
        )
    found = []
    for number, pattern in enumerate(patterns.tolist()):
        unknown = {name for name, there in zip(known, pattern) if not there}
        names = tuple(name for name in batch if name not in unknown)
        if not names:
            raise DataError(f"{int((which == number).sum())} rows have nothing observed at all: drop them.")
        found.append(Group(names, (which == number).nonzero().squeeze(1)))
    return sorted(found, key=lambda group: (len(group.names), group.names))


def take_group(batch: Mapping[str, Tensor], group: Group) -> Batch:
    """The rows of a group, with its arguments alone."""
    if len(group.rows) == num_rows(batch):
        return {name: batch[name] for name in group.names}
    return {name: batch[name].index_select(0, group.rows) for name in group.names}


# --- parameters ------------------------------------------------------------------------------------------------------


def modules(pair: Any) -> dict[str, nn.Module]:
    """The modules that hold a pair's weights, by prefix: the pair itself, or its two functions where they are modules,
    methods of modules, or partial applications of either."""
    if isinstance(pair, nn.Module):
        return {"": pair}
    found: dict[str, nn.Module] = {}
    for side in ("model", "guide"):
        function = getattr(pair, side)
        while isinstance(function, functools.partial):
            function = function.func
        holder = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
        if isinstance(holder, nn.Module) and all(holder is not m for m in found.values()):
            found[f"{side}."] = holder
    return found


def named_tensors(pair: Any, *, buffers: bool) -> dict[str, Tensor]:
    """Parameters (and buffers) of a pair by name, each tensor once: the modules' own, then the param store's."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()

    def add(name: str, tensor: Tensor) -> None:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor

    for prefix, module in modules(pair).items():
        for name, parameter in module.named_parameters():
            add(prefix + name, parameter)
        if buffers:
            persistent = module.state_dict(keep_vars=True)
            for name, buffer in module.named_buffers():
                if name in persistent:
                    add(prefix + name, buffer)
    for name, unconstrained in pyro.get_param_store()._params.items():
        add(name, unconstrained)
    return found


def trainable(pair: Any) -> dict[str, Tensor]:
    """The leaf tensors that a fit trains, by name: unconstrained, each once."""
    return {name: p for name, p in named_tensors(pair, buffers=False).items() if p.requires_grad}


_SCOPES: list[dict[str, Any]] = []


@contextmanager
def param_scope(state: dict[str, Any]) -> Iterator[None]:
    """Run inside a param store of one's own, kept in `state`; the global store is put back afterwards, whatever happens."""
    if _SCOPES and _SCOPES[-1] is state:  # asked from within, by a callback: these very parameters are in use
        yield
        return
    store = pyro.get_param_store()
    outside = store.get_state()
    _SCOPES.append(state)
    store.clear()
    try:
        store.set_state({"params": state.get("params", {}), "constraints": state.get("constraints", {})})
        yield
    finally:
        _SCOPES.pop()
        state.update(store.get_state())
        store.clear()
        store.set_state(outside)


def run(
    pair: Any, batch: Mapping[str, Tensor], *, num_particles: int = 1, plate_nesting: int = 0, enumerate: bool = False
) -> tuple[Any, Any]:
    """Trace the guide, then the model at the guide's values: (model trace, guide trace), without log-densities.

    With `enumerate`, sites marked so take all of their values at once, on the left of plates and particles, whose number
    `plate_nesting` must tell; else they are drawn.
    """
    guide = with_particles(pair.guide, num_particles, plate_nesting)
    model = with_particles(pair.model, num_particles, plate_nesting)
    if not enumerate:
        guide_trace = poutine.trace(guide).get_trace(**batch)
        return poutine.trace(Replay(guide_trace)(model)).get_trace(**batch), guide_trace
    summed = Enumerate(-plate_nesting - 1 - (num_particles > 1))
    guide_trace = poutine.trace(summed(guide)).get_trace(**batch)
    # Replay stands inside: what the guide has given a value is not enumerated again.
    return poutine.trace(summed(Replay(guide_trace)(model))).get_trace(**batch), guide_trace


def plate_nesting(*sides: Mapping[str, Any]) -> int:
    """How deep the vectorised plates of these sample sites nest, the particles' plate left out."""
    frames = [f for sites in sides for node in sites.values() for f in node["cond_indep_stack"]]
    return max((-f.dim for f in frames if f.vectorized and f.name != PARTICLE_PLATE), default=0)


def is_marked(node: Any) -> bool:
    """Whether a site asks to be enumerated; an observed one has nothing to enumerate."""
    return node["infer"].get("enumerate") is not None and not node["is_observed"]


def sample_sites(trace: Any) -> dict[str, Any]:
    """The random sample sites of a trace by name: neither a plate's own subsampling nor `pyro.deterministic`."""
    return {
        name: node
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and not site_is_subsample(node) and not node["infer"].get("_deterministic")
    }


def is_local(node: Any) -> bool:
    return any(f.name == DATA_PLATE for f in node["cond_indep_stack"])


@contextmanager
def fork_rng() -> Iterator[None]:
    """What happens to torch's random state inside is undone. CUDA's are included where CUDA is in use, and only there."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        yield


def find_device(device: str | torch.device) -> torch.device:
    """A device by name; "auto" is CUDA where there is one. OptionError for one that cannot be used here."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        if found.type == "meta":
            raise RuntimeError("it holds no values")
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:100]
        raise OptionError(f"device={str(device)!r} cannot be used here ({reason}); known: auto, cpu, cuda.") from error
    return found


def place(pair: Any, device: torch.device) -> None:
    """Move a pair to a device in place. Leaves stay the same objects, so that optimizers and registrations hold."""
    for module in modules(pair).values():
        module.to(device)
    with torch.no_grad():
        for tensor in pyro.get_param_store()._params.values():
            if tensor.device != device:
                tensor.data = tensor.data.to(device)


@contextmanager
def evaluating(pair: Any) -> Iterator[None]:
    """The pair's modules in evaluation mode, and each back in its own mode afterwards."""
    modes = [(m, m.training) for root in modules(pair).values() for m in root.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, was in modes:
            module.training = was


def distribution_name(fn: Any) -> str:
    """The class of what stands inside of Independent, expanded and masked distributions."""
    while type(fn).__name__ in ("Independent", "ExpandedDistribution", "MaskedDistribution"):
        fn = fn.base_dist
    return type(fn).__name__

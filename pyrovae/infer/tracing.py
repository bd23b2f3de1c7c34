"""Tracing: a Python function of tensors as one flat graph of tensor operations, and how to know that the graph is true.

A trace runs the function once and writes down every operation, those of the backward pass included; Pyro, plates and
handlers leave none. It bakes in what it cannot see: numbers that Python or NumPy computed. So a graph is compared with the
function itself on two batches (`differ`), and attributes that Python could change are watched (`fingerprint`, `changed`).
"""

from __future__ import annotations

import functools
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from pyro.poutine import Trace
from torch import Tensor, fx, nn
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx
from torch.overrides import TorchFunctionMode

from pyrovae.infer.simplify import simplify
from pyrovae.pair import fork_rng

MOST_ENTRIES = 4096  # of one fingerprint
# The largest difference, of a tensor's largest value, that is taken for rounding: products of matrices in bfloat16 have 8 bits,
# and a graph may add up the gradients of a parameter that is used often in another order.
ROUNDING = {"float32": 1e-3, "bfloat16": 2e-2}


class Untraceable(Exception):
    """A function that a graph cannot stand for; the message says why and where."""


class Graph:
    """What `capture` found: called with the tensors it was captured with, or others of their shapes."""

    def __init__(self, module: fx.GraphModule, captured: list[Tensor]) -> None:
        self.module, self.captured = module, captured
        self._forward = module.forward

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return list(self._forward(*tensors, *self.captured))

    @property
    def inputs(self) -> int:
        """How many tensors it takes, the captured ones included."""
        return sum(node.op == "placeholder" for node in self.module.graph.nodes)


def capture(function: Callable[..., list[Tensor]], tensors: Sequence[Tensor]) -> Graph:
    """Trace function(*tensors). Tensors are known by identity: a parameter passed here may be reached by any road.

    Other tensors that the function reads are captured by reference: what is written into them later counts. Random
    numbers come from torch's generators at every call. Raises Untraceable where the function reads a tensor's value.
    """
    try:
        # one fake mode for all of a trace's shapes: without it, make_fx builds a new one for every operation
        shapes = tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True)))
        with _NoHostReads(), shapes:
            module = make_fx(function)(*tensors)
    except Exception as error:
        raise Untraceable(explain(error)) from error
    captured = _lift_constants(module)
    simplify(module)
    return Graph(module, captured)


def trace(
    function: Callable[..., list[Tensor]],
    batches: Sequence[Sequence[Tensor]],
    changing: Sequence[Tensor],
    tolerance: float = ROUNDING["float32"],
) -> Graph:
    """`capture`, and make sure of it: graph and function must agree on every batch, from one random state.

    changing: tensors that the function writes into; they are left as they were. Errors of the function itself pass through.
    """
    truth = []
    for tensors in batches:
        with undone(changing):
            truth.append(function(*tensors))
    with undone(changing):
        graph = capture(function, batches[0])
    for tensors, true in zip(batches, truth):
        with undone(changing):
            if differ(graph(*tensors), true, tolerance):
                raise Untraceable(
                    "it gives another result when its operations are run again: it depends on something that a trace cannot "
                    "see, such as NumPy, Python's random numbers, or a value read from a tensor"
                )
    return graph


def _lift_constants(module: fx.GraphModule) -> list[Tensor]:
    """Make inputs of the tensors that a graph holds. Those that were made while tracing (a number as a tensor) stay."""
    graph = module.graph
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    captured: list[Tensor] = []
    for node in list(graph.nodes):
        if node.op != "get_attr" or not isinstance(getattr(module, node.target), Tensor):
            continue
        if all(user.target is torch.ops.aten.lift_fresh_copy.default for user in node.users):
            continue
        captured.append(getattr(module, node.target))
        with graph.inserting_after(last):
            last = graph.placeholder(f"captured_{len(captured)}")
        node.replace_all_uses_with(last)
        graph.erase_node(node)
    module.recompile()
    return captured


class _NoHostReads(TorchFunctionMode):
    """Fails at the line that reads a traced tensor into Python in a way that the trace would not notice."""

    READS = (torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.__array__)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.READS:
            mode = get_proxy_mode()
            if mode is not None and args[0] in mode.tracer.tensor_tracker:
                raise RuntimeError(f"Tensor.{func.__name__}() reads values into Python")
        return func(*args, **(kwargs or {}))


# --- why not ---------------------------------------------------------------------------------------------------------

LIBRARIES = tuple(str(Path(m.__file__).parent) + "/" for m in (torch, pyro, np) if m.__file__)
HERE = str(Path(__file__).parents[1]) + "/"


def explain(error: BaseException) -> str:
    """What an error while tracing means, with the line of the program it came from, and the sample site, if it was in one."""
    line, own, site = "", "", ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        name = frame.f_code.co_filename
        if frame.f_code.co_name == "sample" and name.endswith("primitives.py"):
            site = str(frame.f_locals.get("name", ""))
        if name.startswith(LIBRARIES) or name.startswith("<"):
            continue
        here = traceback.FrameSummary(name, number, frame.f_code.co_name)
        text = f"{Path(name).name}, line {number}: {(here.line or '').strip()}"
        if name.startswith(HERE):
            own = text
        else:
            line = text
    what = (str(error).splitlines() or [type(error).__name__])[0]
    if "_local_scalar_dense" in what or "is_nonzero" in what or "DataDependent" in type(error).__name__:
        what = "it reads a tensor's value in Python (.item(), float(), bool(), an `if` or `while` on a tensor)"
    at = f" at sample site {site!r}" if site else ""
    return f"{what}{at} ({line or own or 'no line of a program'})"


# --- is the graph true -----------------------------------------------------------------------------------------------


@contextmanager
def undone(tensors: Sequence[Tensor]) -> Iterator[None]:
    """What happens inside to torch's random state and to these tensors (buffers of batch norm) is undone."""
    kept = [t.detach().clone() for t in tensors]
    try:
        with fork_rng():
            yield
    finally:
        with torch.no_grad():
            for tensor, was in zip(tensors, kept):
                tensor.copy_(was)


def differ(a: Sequence[Tensor], b: Sequence[Tensor], tolerance: float = ROUNDING["float32"]) -> bool:
    """Whether two runs of the same operations differ by more than rounding; NaN equals NaN. Waits for the device.

    tolerance: the largest difference taken for rounding, of the largest value of a tensor that is not of float64.
    """
    if len(a) != len(b):
        return True
    worst: list[Tensor] = []
    for x, y in zip(a, b):
        if x.shape != y.shape or x.dtype != y.dtype:
            return True
        allowed = 1e-8 if x.dtype == torch.float64 else tolerance
        x, y = x.detach().double().nan_to_num(1e30), y.detach().double().nan_to_num(1e30)
        largest = torch.maximum(x.abs().max(), y.abs().max()) if x.numel() else x.sum()
        apart = (x - y).abs().max() if x.numel() else x.sum()
        worst.append((apart > allowed * largest + 1e-12).reshape(()))
    return bool(torch.stack(worst).any()) if worst else False


class Traced:
    """A function of one batch, without gradient, as a graph: traced anew where an attribute of `watched` has changed, run as it
    is where it cannot be traced."""

    def __init__(self, function: Callable[[dict[str, Tensor]], list[Tensor]], watched: tuple[Any, ...]) -> None:
        self.function, self.watched = function, watched
        self.graph: Graph | None = None
        self.refused = False
        self._mark: dict[str, Any] = {}
        self._unchanged: Callable[[], bool] = lambda: False

    def __call__(self, batch: dict[str, Tensor]) -> list[Tensor]:
        tensors = list(batch.values())
        if not self.refused and (self.graph is None or not self._unchanged()):
            mark = fingerprint(*self.watched)
            if self.graph is None or changed(self._mark, mark):
                names = list(batch)
                try:
                    other = [t[torch.arange(len(t), device=t.device) // 2] for t in tensors]
                    self.graph = trace(lambda *flat: self.function(dict(zip(names, flat))), [tensors, other], [])
                    self._mark = steady(mark, fingerprint(*self.watched))
                except Untraceable:
                    self.refused = True
            self._unchanged = watch(*self.watched)
        return self.function(batch) if self.refused or self.graph is None else self.graph(*tensors)


class _Same:
    """Equal only to itself: an object by identity, kept alive so that its address is not given away."""

    def __init__(self, kept: Any) -> None:
        self.kept = kept

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.kept is other.kept

    def __hash__(self) -> int:
        return id(self.kept)

    def __repr__(self) -> str:
        return f"a {type(self.kept).__name__}"


PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size, np.generic)
SKIPPED = (Trace, types.ModuleType, torch.Generator, np.random.Generator, np.random.RandomState)
LIBRARY_NAMES = ("torch", "pyro", "numpy", "pyrovae")
PLAIN_LIBRARIES = ("builtins", "numpy", "weakref", "collections", "threading")
HIDDEN = (
    "_parameters",
    "_buffers",
    "_modules",
    "_pyro",
    "_backward",
    "_forward",
    "_state_dict",
    "_load_state",
    "_non_",
)


Slot = tuple[Mapping[Any, Any], Any, Any]  # where Python finds a value: mapping, key, and what was there


def fingerprint(*roots: Any) -> dict[str, Any]:
    """Everything plain that Python could read in these objects, by path: numbers, text, modes, arrays, tensors that are no
    parameter or buffer, in attributes, containers, closures, defaults and the globals that functions name."""
    return _walk(roots)[0]


def watch(*roots: Any) -> Callable[[], bool]:
    """A function that tells quickly whether every attribute and global is still the very object that it was. It does not see
    what is written into a list or an array: `fingerprint` does."""
    slots = _walk(roots)[1]

    def unchanged() -> bool:
        return all(mapping.get(key) is value for mapping, key, value in slots)

    return unchanged


def _walk(roots: Sequence[Any]) -> tuple[dict[str, Any], list[Slot]]:
    found: dict[str, Any] = {}
    slots: list[Slot] = []
    seen: set[int] = set()
    queue: list[tuple[str, Any]] = [("", root) for root in roots]
    while queue and len(found) < MOST_ENTRIES:
        path, value = queue.pop()
        if isinstance(value, PLAIN):
            found[path] = repr(value) if isinstance(value, float) else value
            continue
        if id(value) in seen or isinstance(value, SKIPPED):
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            found[path] = value.requires_grad if isinstance(value, nn.Parameter) else _Same(value)
        elif isinstance(value, np.ndarray):
            found[path] = (value.shape, hash(value.tobytes())) if value.nbytes < 2**20 else _Same(value)
        elif isinstance(value, type):
            found[path] = value
        else:
            for name, part, holder in _parts(value):
                queue.append((f"{path}.{name}" if path else name, part))
                if holder is not None:
                    slots.append((holder, name, part))
    return found, slots


def _parts(value: Any) -> Iterator[tuple[str, Any, Mapping[Any, Any] | None]]:
    """What an object holds: name, part, and the mapping that has it under that name, if one has."""
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", part, None) for key, part in list(value.items()) if isinstance(key, (str, int)))
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from ((f"[{i}]", part, None) for i, part in enumerate(value))
    elif isinstance(value, types.MethodType):
        yield value.__func__.__name__, value.__func__, None
        yield "self", value.__self__, None
    elif isinstance(value, types.FunctionType):
        if value.__module__ and value.__module__.split(".")[0] in LIBRARY_NAMES:
            return
        yield from ((f"default {i}", part, None) for i, part in enumerate(value.__defaults__ or ()))
        yield from ((name, part, None) for name, part in (value.__kwdefaults__ or {}).items())
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or ()):
            try:
                yield name, cell.cell_contents, None
            except ValueError:  # not bound yet
                continue
        for name in value.__code__.co_names:
            if name in value.__globals__:
                yield name, value.__globals__[name], value.__globals__
    elif isinstance(value, functools.partial):
        yield from (("func", value.func, None), ("args", value.args, None), ("keywords", value.keywords, None))
    else:
        if isinstance(value, nn.Module):
            yield from ((name, part, value._modules) for name, part in value._modules.items())
            yield from ((name, part, value._parameters) for name, part in value._parameters.items() if part is not None)
        elif type(value).__module__.split(".")[0] in PLAIN_LIBRARIES:
            return
        own = getattr(value, "__dict__", {})
        yield from ((name, part, own) for name, part in list(own.items()) if not name.startswith(HIDDEN))
        # its methods may read globals; a model's own class is where that matters
        if type(value).__module__.split(".")[0] not in LIBRARY_NAMES:
            methods = vars(type(value))
            yield from (
                (name, part, methods)
                for name, part in methods.items()
                if isinstance(part, (types.FunctionType, *PLAIN)) and not name.startswith("__")
            )


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The paths of `before` that are not as they were."""
    return [path for path, value in before.items() if path not in now or not _equal(now[path], value)]


def steady(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What a run did not change: a counter that a program keeps, or a tensor kept for a look, is no news."""
    return {path: value for path, value in after.items() if path in before and _equal(before[path], value)}


def _equal(a: Any, b: Any) -> bool:
    return type(a) is type(b) and bool(a == b)

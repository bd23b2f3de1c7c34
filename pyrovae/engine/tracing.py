"""Functions of tensors, traced into programs of tensor operations and compared with the functions they came from."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx
from torch.overrides import TorchFunctionMode

from pyrovae.engine.simplify import simplify
from pyrovae.engine.watch import change_detector, changed, snapshot, steady
from pyrovae.pair.parameters import fork_rng

# Differences up to this fraction of a tensor's largest value are taken for rounding. Matrix products in bfloat16 have 8 bits of
# precision, and a traced program may add the gradients of a parameter that is used several times in another order.
ROUNDING = {"float32": 1e-3, "bfloat16": 2e-2}


class Untraceable(Exception):
    """A function cannot be replaced by a traced program. The message says why and where."""


class TracedProgram:
    """A function as a fixed sequence of tensor operations, for tensors of the shapes with which it was traced."""

    def __init__(self, module: fx.GraphModule, captured: list[Tensor]) -> None:
        self.module, self.captured = module, captured
        self._forward = module.forward

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return list(self._forward(*tensors, *self.captured))

    @property
    def inputs(self) -> int:
        """The number of tensors that it takes, including captured ones."""
        return sum(node.op == "placeholder" for node in self.module.graph.nodes)


def capture(function: Callable[..., list[Tensor]], tensors: Sequence[Tensor]) -> TracedProgram:
    """Trace `function(*tensors)`.

    Tensors are matched by identity: a parameter in `tensors` is an input of the program even if the function reads it
    elsewhere, such as from a module. Other tensors that the function reads are captured by reference, so the program sees
    what is written into them later. Random numbers come from torch's generators at every call.

    Raises:
        Untraceable: The function fails, or reads the value of a tensor in Python.
    """
    try:
        # without a common fake mode, make_fx would create a new one for every operation
        shapes = tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True)))
        with _NoHostReads(), shapes:
            module = make_fx(function)(*tensors)
    except Exception as error:
        raise Untraceable(explain(error)) from error
    captured = _lift_constants(module)
    simplify(module)
    return TracedProgram(module, captured)


def trace(
    function: Callable[..., list[Tensor]],
    batches: Sequence[Sequence[Tensor]],
    changing: Sequence[Tensor],
    tolerance: float = ROUNDING["float32"],
) -> TracedProgram:
    """Trace a function and check that the traced program agrees with it on every batch, from the same random state.

    Args:
        function: The function. Its own errors are not caught.
        batches: Arguments to compare on. The first are those that the function is traced with.
        changing: Tensors that the function writes into. They are restored.
        tolerance: See `differ`.

    Raises:
        Untraceable: The function cannot be traced, or the program gives another result.
    """
    truth = []
    for tensors in batches:
        with undone(changing):
            truth.append(function(*tensors))
    with undone(changing):
        program = capture(function, batches[0])
    for tensors, true in zip(batches, truth):
        with undone(changing):
            if differ(program(*tensors), true, tolerance):
                raise Untraceable(
                    "it gives another result when its operations are run again: it depends on something that a trace cannot "
                    "see, such as NumPy, Python's random numbers, or a value read from a tensor"
                )
    return program


def _lift_constants(module: fx.GraphModule) -> list[Tensor]:
    """Turn the tensors that a graph contains into inputs, except numbers that became tensors while tracing."""
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
    """Raise an error at the line that reads a traced tensor into Python in a way that tracing itself does not notice."""

    READS = (torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.__array__)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.READS:
            mode = get_proxy_mode()
            if mode is not None and args[0] in mode.tracer.tensor_tracker:
                raise RuntimeError(f"Tensor.{func.__name__}() reads values into Python")
        return func(*args, **(kwargs or {}))


LIBRARIES = tuple(str(Path(m.__file__).parent) + "/" for m in (torch, pyro, np) if m.__file__)
HERE = str(Path(__file__).parents[1]) + "/"


def explain(error: BaseException) -> str:
    """What an error while tracing means, with the sample site and the line of the user's program at which it occurred."""
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
    return f"{what}{at} ({line or own or 'line unknown'})"


@contextmanager
def undone(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Restore torch's random state and these tensors (such as the buffers of batch normalisation) afterwards."""
    kept = [t.detach().clone() for t in tensors]
    try:
        with fork_rng():
            yield
    finally:
        with torch.no_grad():
            for tensor, was in zip(tensors, kept):
                tensor.copy_(was)


def differ(a: Sequence[Tensor], b: Sequence[Tensor], tolerance: float = ROUNDING["float32"]) -> bool:
    """Whether two lists of tensors differ by more than rounding. NaN equals NaN. This waits for the device.

    `tolerance` is the largest difference that is taken for rounding, as a fraction of a tensor's largest value; for float64
    it is 1e-8.
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


class TracedFunction:
    """A function of one batch, traced and run without gradients.

    It is traced anew when an attribute or global that it may read from the objects in `reads` has changed, and run as it is
    if it cannot be traced.
    """

    def __init__(self, function: Callable[[dict[str, Tensor]], list[Tensor]], reads: tuple[Any, ...]) -> None:
        self.function, self.reads = function, reads
        self.traced: TracedProgram | None = None
        self.refused = False
        self._snapshot: dict[str, Any] = {}
        self._unchanged: Callable[[], bool] = lambda: False

    def __call__(self, batch: dict[str, Tensor]) -> list[Tensor]:
        tensors = list(batch.values())
        if not self.refused and (self.traced is None or not self._unchanged()):
            now = snapshot(*self.reads)
            if self.traced is None or changed(self._snapshot, now):
                names = list(batch)
                try:
                    other = [t[torch.arange(len(t), device=t.device) // 2] for t in tensors]
                    self.traced = trace(lambda *flat: self.function(dict(zip(names, flat))), [tensors, other], [])
                    self._snapshot = steady(now, snapshot(*self.reads))
                except Untraceable:
                    self.refused = True
            self._unchanged = change_detector(*self.reads)
        return self.function(batch) if self.refused or self.traced is None else self.traced(*tensors)

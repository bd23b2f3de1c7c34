"""Functions of tensors, traced into programs of tensor operations and compared with the functions they came from."""

from __future__ import annotations

import itertools
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from pyrovae.engine.interpreted import interpreted
from pyrovae.engine.products import use_the_faster_library
from pyrovae.engine.recording import record, recorder_at_work
from pyrovae.engine.simplify import simplify
from pyrovae.engine.watch import change_detector, changed, rewound, snapshot, steady
from pyrovae.pair.parameters import fork_rng

# Differences up to this fraction of a tensor's largest value are taken for rounding. Matrix products in bfloat16 have 8 bits of
# precision, and a traced program may add the gradients of a parameter that is used several times in another order.
ROUNDING = {"float32": 1e-3, "bfloat16": 2e-2}


class Untraceable(Exception):
    """A function cannot be replaced by a traced program. The message says why and where."""


class TracedProgram:
    """A function as a fixed sequence of tensor operations, for tensors of the shapes with which it was traced."""

    def __init__(
        self, module: fx.GraphModule, captured: list[Tensor], *, on_cpu: bool = False, other_library: bool = False
    ) -> None:
        self.module, self.captured = module, captured
        self.other_library = other_library  # whether it has products by another library than the function
        forward = interpreted(module, on_cpu=on_cpu)
        self.run_by_interpreter = forward is not None
        self._forward: Callable[..., Sequence[Tensor]] = forward or module.forward

    def run_in_python(self) -> None:
        """Run the program in Python from now on."""
        self.run_by(self.module.forward)

    def run_by(self, forward: Callable[..., Sequence[Tensor]]) -> None:
        """Run the program by another function of its inputs, such as a compiled one, from now on."""
        self.run_by_interpreter, self._forward = False, forward

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return list(self._forward(*tensors, *self.captured))

    @property
    def inputs(self) -> int:
        """The number of tensors that it takes, including captured ones."""
        return sum(node.op == "placeholder" for node in self.module.graph.nodes)


def capture(function: Callable[..., list[Tensor]], tensors: Sequence[Tensor], *, faster: bool = True) -> TracedProgram:
    """Trace `function(*tensors)`.

    Tensors are matched by identity: a parameter in `tensors` is an input of the program even if the function reads it
    elsewhere, such as from a module. Other tensors that the function reads are captured by reference, so the program sees
    what is written into them later. Random numbers come from torch's generators at every call.

    Args:
        function: The function.
        tensors: Its arguments.
        faster: Whether products of matrices may be computed by another library, where that is the faster one.

    Raises:
        Untraceable: The function fails, reads the value of a tensor in Python, or has results whose shapes depend on values.
    """
    try:
        with _NoHostReads():
            module, captured = record(function, tensors)
    except Exception as error:
        raise Untraceable(explain(error)) from error
    unsteady = _depending_on_values(module.graph)
    if unsteady is not None:
        raise Untraceable(f"the shape of a result depends on values ({unsteady})")
    simplify(module)
    keep_workspaces(module)
    on_cpu = all(tensor.device.type == "cpu" for tensor in (*tensors, *captured))
    other = on_cpu and faster and use_the_faster_library(module)
    return TracedProgram(module, captured, on_cpu=on_cpu, other_library=other)


def graph_of(function: Callable[..., Any], *tensors: Any) -> fx.GraphModule:
    """The operations of `function(*tensors)` as a graph for compilers.

    In it, `meta["val"]` has the shape, dtype, strides and device of each result.
    """
    # without a common mode, make_fx would create a new one for every operation
    with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
        return make_fx(function)(*tensors)


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
    results = []
    for tensors in batches:
        with undone(changing):
            results.append(function(*tensors))
    truth = _Truth(batches, results, changing, tolerance)
    with undone(changing):
        program = capture(function, batches[0])
    try:
        return truth.agreeing(program)
    except Untraceable:
        if not program.other_library:
            raise
    # A number that another library rounds to the other side of 0 has another slope there. Where the same operations by the
    # function's own library agree, that is all there is to it, and it shows in few elements.
    with undone(changing):
        own = capture(function, batches[0], faster=False)
    with undone(changing):
        program = capture(function, batches[0])
    own = truth.agreeing(own)
    try:
        truth.check(program, on_the_whole=True)
    except Untraceable:
        return own
    return program


@dataclass(frozen=True)
class _Truth:
    """What a function returns on some batches. See `trace` for the rest."""

    batches: Sequence[Sequence[Tensor]]
    results: Sequence[Sequence[Tensor]]
    changing: Sequence[Tensor]
    tolerance: float

    def agreeing(self, program: TracedProgram) -> TracedProgram:
        """The program, run in Python if its results are right so only. Untraceable if they are not."""
        try:
            self.check(program)
        except Untraceable:
            if not program.run_by_interpreter:
                raise
            program.run_in_python()  # before it is given up, since a version of torch may interpret it in another way
            self.check(program)
        return program

    def check(self, program: TracedProgram, *, on_the_whole: bool = False) -> None:
        """Untraceable unless the program returns the same, see `differ`."""
        for tensors, true in zip(self.batches, self.results):
            with undone(self.changing):
                try:
                    found = program(*tensors)
                except Exception as error:
                    raise Untraceable(f"its operations cannot be run again ({first_line(error)})") from error
                if differ(found, true, self.tolerance, on_the_whole=on_the_whole):
                    raise Untraceable(
                        "it gives another result when its operations are run again: it depends on something that a trace "
                        "cannot see, such as NumPy, Python's random numbers, or a value read from a tensor"
                    )


def _deciding(node: fx.Node) -> list[fx.Node]:
    """The arguments whose values decide on the shape of an operation's result, such as the mask of `x[mask]`."""
    if torch.Tag.dynamic_output_shape not in getattr(node.target, "tags", ()):
        return []
    if node.target is torch.ops.aten.masked_select.default:
        return [node.all_input_nodes[-1]]
    if node.target is not torch.ops.aten.index.Tensor:
        return node.all_input_nodes
    indices: Any = node.args[1]
    return [i for i in indices if isinstance(i, fx.Node) and i.meta["val"].dtype in (torch.bool, torch.uint8)]


def _depending_on_values(graph: fx.Graph) -> Any:
    """An operation whose result may have another shape for other inputs or draws; None if there is none."""
    varying: set[fx.Node] = set()
    for node in graph.nodes:
        if any(source in varying for source in _deciding(node)):
            return node.target
        draws = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if node.op == "placeholder" or draws or any(source in varying for source in node.all_input_nodes):
            varying.add(node)
    return None


def _with_workspace(*args: Any) -> Any:
    with torch.enable_grad():
        found = torch.ops.aten.mkldnn_rnn_layer.default(*(a.detach() if isinstance(a, Tensor) else a for a in args))
    return tuple(part.detach() for part in found)


def keep_workspaces(module: fx.GraphModule) -> None:
    """Let oneDNN's LSTM, in place, leave what its backward pass needs, which it does only where gradients are enabled."""
    nodes = [node for node in module.graph.nodes if node.target is torch.ops.aten.mkldnn_rnn_layer.default]
    for node in nodes:
        node.target = _with_workspace
    if nodes:
        module.recompile()


class _NoHostReads(TorchFunctionMode):
    """Raise an error at the line that reads values into Python, or into a shape, where tracing itself does not notice it."""

    READS = (torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.__array__)

    def __init__(self) -> None:
        super().__init__()
        self.last: fx.Node | None = None  # the newest operation that was looked at

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        recorder = recorder_at_work()
        if func in self.READS and recorder is not None and recorder.knows(args[0]):
            raise RuntimeError(f"Tensor.{func.__name__}() reads values into Python")
        made = func(*args, **(kwargs or {}))
        if recorder is not None:
            new = list(itertools.takewhile(lambda node: node is not self.last, reversed(recorder.graph.nodes)))
            self.last = new[0] if new else self.last
            if any(map(_deciding, new)) and _depending_on_values(recorder.graph) is not None:
                raise RuntimeError("the shape of a result depends on values, as that of x[mask] does")
        return made


LIBRARIES = tuple(str(Path(m.__file__).parent) + "/" for m in (torch, pyro, np) if m.__file__)
OF_PYTHON = sysconfig.get_paths()["stdlib"] + "/"
PYRO = str(Path(pyro.__file__).parent) + "/"
HERE = str(Path(__file__).parents[1]) + "/"
# ours in which lines of a program stand; the others run it
OF_PROGRAMS = "distributions/ nets/ families/ conditionals.py normalised.py priors/ models/ guides/ weights/"
PARTS = tuple(HERE + name for name in OF_PROGRAMS.split())


def line_of_program(frames: Iterable[traceback.FrameSummary]) -> tuple[traceback.FrameSummary, str] | None:
    """The line of a program among lines that were run, the last of them innermost, and how its file is called.

    It is the innermost one of the user's, or else of our parts of models, or else of Pyro, such as of an AutoGuide.
    """
    found: dict[str, traceback.FrameSummary] = {}
    for frame in frames:
        name = frame.filename
        if name.startswith(PARTS):
            found["own"] = frame
        elif name.startswith(PYRO):
            found["pyro"] = frame
        elif not name.startswith((*LIBRARIES, HERE, "<")) and ("-packages" in name or not name.startswith(OF_PYTHON)):
            found["user"] = frame
    kind = next((kind for kind in ("user", "own", "pyro") if kind in found), None)
    if kind is None:
        return None
    return found[kind], ("Pyro's " if kind == "pyro" else "") + Path(found[kind].filename).name


def explain(error: BaseException) -> str:
    """What an error while tracing means, with the sample site and the line of the program at which it occurred."""
    frames, site = [], ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        name = frame.f_code.co_filename
        frames.append(traceback.FrameSummary(name, number, frame.f_code.co_name, lookup_line=False))
        if frame.f_code.co_name == "sample" and name.endswith("primitives.py"):
            site = str(frame.f_locals.get("name", ""))
        if name.startswith(HERE) and isinstance(node := frame.f_locals.get("node"), dict):
            site = str(node.get("name", ""))  # of which the density is computed
    what = first_line(error)
    if "_local_scalar_dense" in what or "is_nonzero" in what or "DataDependent" in type(error).__name__:
        what = "it reads a tensor's value in Python (.item(), float(), bool(), an `if` or `while` on a tensor)"
    at = f" at sample site {site!r}" if site else ""
    found = line_of_program(frames)
    if found is None:
        return f"{what}{at} (line unknown)"
    line, called = found
    return f"{what}{at} ({called}, line {line.lineno}: {(line.line or '').strip()})"


def first_line(error: BaseException) -> str:
    """What an error says, in one line that is not too long."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def halved(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Another batch of the same shapes: the first half of the rows, each twice."""
    return {n: v[torch.arange(len(v), device=v.device) // 2] if v.dim() else v for n, v in batch.items()}


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


def differ(
    a: Sequence[Tensor], b: Sequence[Tensor], tolerance: float = ROUNDING["float32"], *, on_the_whole: bool = False
) -> bool:
    """Whether two lists of tensors differ by more than rounding. NaN equals NaN. This waits for the device.

    `tolerance` is the largest difference that is taken for rounding, as a fraction of a tensor's largest value; for float64
    it is 1e-8. Differences are those of elements, or with `on_the_whole` the roots of the mean squares of all.
    """
    if len(a) != len(b):
        return True
    worst: list[Tensor] = []
    for x, y in zip(a, b):
        if x.shape != y.shape or x.dtype != y.dtype:
            return True
        allowed = 1e-8 if x.dtype == torch.float64 else tolerance
        x, y = x.detach().double().nan_to_num(1e30), y.detach().double().nan_to_num(1e30)
        size = _root_mean_square if on_the_whole else _largest
        largest = torch.maximum(size(x), size(y)) if x.numel() else x.sum()
        apart = size(x - y) if x.numel() else x.sum()
        worst.append((apart > allowed * largest + 1e-12).reshape(()))
    return bool(torch.stack(worst).any()) if worst else False


def _largest(values: Tensor) -> Tensor:
    return values.abs().max()


def _root_mean_square(values: Tensor) -> Tensor:
    return values.square().mean().sqrt()


class TracedFunction:
    """A function of one batch, traced and run without gradients.

    It is traced anew when an attribute or global that it may read from the objects in `reads` has changed, and run as it is
    if it cannot be traced.
    """

    def __init__(self, function: Callable[[dict[str, Tensor]], list[Tensor]], reads: tuple[Any, ...]) -> None:
        self.function, self.reads = function, reads
        self.traced: TracedProgram | None = None
        self.refused = ""  # why it cannot be traced
        self._snapshot: dict[str, Any] = {}
        self._unchanged: Callable[[], bool] = lambda: False

    def __call__(self, batch: dict[str, Tensor]) -> list[Tensor]:
        tensors = list(batch.values())
        if not self.refused and (self.traced is None or not self._unchanged()):
            now = snapshot(*self.reads)
            if self.traced is None or changed(self._snapshot, now):
                names = list(batch)
                try:
                    batches = [tensors, list(halved(batch).values())]
                    with rewound(*self.reads):
                        self.traced = trace(lambda *flat: self.function(dict(zip(names, flat))), batches, [])
                    self._snapshot = steady(now, snapshot(*self.reads))
                except Untraceable as error:
                    self.refused = str(error)
            self._unchanged = change_detector(*self.reads)
        return self.function(batch) if self.refused or self.traced is None else self.traced(*tensors)

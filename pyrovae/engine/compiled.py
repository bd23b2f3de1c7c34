"""How a step is run as one compiled graph (`Compiled`) or CUDA graph (`Graphed`), and which engine a fit gets."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from pyrovae._lazily import Lazily
from pyrovae.engine.adam import AdamUpdate, make_update
from pyrovae.engine.program import Program
from pyrovae.engine.step import Eager, Engine, Traced, _apply
from pyrovae.engine.tracing import TracedProgram, undone
from pyrovae.errors import OptionError
from pyrovae.pair.batch import Batch

symbolic_shapes = Lazily("torch.fx.experimental.symbolic_shapes")  # SymPy, for compiled steps only
log = logging.getLogger(__name__)


# From so many steps on, the minute or less that compiling takes is won back on a CPU.
COMPILE_FROM = 5_000


MOST_COMPILATIONS = 3


class Compiled(Traced):
    """The whole step as one compiled graph."""

    name = "compiled"

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self.whole: Callable[..., Any] | None = None
        self.update: AdamUpdate | None = None
        self._key: Any = None
        self._compilations = 0
        self._bound: list[Tensor] = []
        self._given_up = False

    def _take(self, graph: TracedProgram) -> None:
        if self.graph is None or not _same_graph(self.graph, graph):
            self.graph, self.whole = graph, None
        else:
            self.graph = graph

    def _look(self, inputs: Batch, weights: Mapping[str, float]) -> None:
        self.sync()
        super()._look(inputs, weights)
        self.rebind()

    def rebind(self) -> None:
        self.update = None
        self._bound = []

    def _prepare(self, inputs: Batch, weights: Mapping[str, float]) -> None:
        """Take up the optimizer's state, and compile unless a compiled step fits."""
        self.update = make_update(self.program.optimizer, self._used)
        key = self.update.key if self.update else None
        if self.whole is None or key != self._key:
            self._key = key
            self._compile(inputs, weights)
        if not self._given_up:
            self._bind(inputs, weights)

    def _compile(self, inputs: Batch, weights: Mapping[str, float]) -> None:
        self._compilations += 1
        if self._compilations > MOST_COMPILATIONS:
            return self._give_up(f"the step changed {MOST_COMPILATIONS} times, and each time was compiled anew")
        program, graph, update = self.program, self.graph, self.update
        assert graph is not None
        if update is None:
            note = (
                f"{type(program.optimizer).__name__} steps outside the graph: only Adam and AdamW are written out in it"
            )
            self.notes.append(note)
            log.info(note)
        flat = self._flat(inputs, weights)
        count = 1 + len(inputs) + len(self._leaves) + len(self._buffers) + len(graph.captured)
        trained = {id(leaf): 1 + len(inputs) + i for i, leaf in enumerate(self._leaves)}
        places = [trained[id(leaf)] for leaf in self._used]

        def step(*tensors: Tensor) -> list[Tensor]:
            elbo, _, *grads = graph.module(*tensors[:count])
            if program.clip is not None:
                grads = list(program.clip(self._used, grads))
            if update is None:
                return [elbo, *grads]
            update.apply([tensors[i] for i in places], grads, tensors[count:], tensors[0][len(program.weights) :])
            return [elbo]

        try:
            with torch.no_grad(), undone(self._changing):
                module = make_fx(step)(*flat)
                # On a CPU torch's own generator is the faster one, and the noise is that of the other engines.
                options = {"fallback_random": True} if flat[0].device.type == "cpu" else {}
                with cached_compilation():
                    self.whole = torch._inductor.compile(module, [*flat], options=options)
                self.whole(*flat)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            self._give_up(f"it could not be compiled ({reason})")

    def _flat(self, inputs: Batch, weights: Mapping[str, float]) -> list[Tensor]:
        assert self.graph is not None
        numbers = [1.0] * (AdamUpdate.NUMBERS * len(self.update.steps)) if self.update is not None else []
        state = self.update.state if self.update is not None else []
        leaves = [leaf.detach() for leaf in self._leaves]
        first = self._numbers(weights, numbers)
        return [first, *inputs.values(), *leaves, *self._buffers, *self.graph.captured, *state]

    @property
    def _changing(self) -> list[Tensor]:
        """What a step writes into."""
        return [*self._leaves, *self._buffers, *(self.update.state if self.update else [])]

    def _bind(self, inputs: Batch, weights: Mapping[str, float]) -> None:
        self._bound = self._flat(inputs, weights)

    def _run(self, inputs: Batch, weights: Mapping[str, float]) -> Tensor:
        if not self._bound and not self._given_up:
            self._prepare(inputs, weights)
        if self._given_up:
            return super()._run(inputs, weights)
        self._bound[0] = self._numbers(weights, self.update.advance() if self.update is not None else ())
        elbo, *grads = self._replay(inputs)
        if self.update is None:
            _apply(self.program.optimizer, self._leaves, self._used, grads)
        return elbo

    def _replay(self, inputs: Batch) -> list[Tensor]:
        assert self.whole is not None
        self._bound[1 : 1 + len(inputs)] = inputs.values()
        with torch.no_grad():
            return list(self.whole(*self._bound))

    def sync(self) -> None:
        if self.update is not None:
            self.update.sync()

    def _give_up(self, reason: str) -> None:
        self._given_up = True
        self.whole, self.update = None, None
        self.notes.append(f"runs traced: {reason}")
        warnings.warn(f"engine={self.name!r}: {reason}; the fit goes on traced, not compiled.", stacklevel=2)


class Graphed(Compiled):
    """The compiled step as a CUDA graph. Its inputs have fixed places, into which each step's rows are copied."""

    name = "graphed"

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self._static: Batch = {}
        self._key_recorded: Any = None

    def _bind(self, inputs: Batch, weights: Mapping[str, float]) -> None:
        if any(t.device.type != "cuda" for t in (*self._leaves, *inputs.values())):
            raise OptionError("engine='graphed' records CUDA graphs; the pair or its rows are not on a CUDA device.")
        if not self._static:
            self._static = {name: value.clone() for name, value in inputs.items()}
        super()._bind(self._static, weights)
        whole, bound = self.whole, self._bound
        assert whole is not None
        key = (id(whole), *(t.data_ptr() for t in bound))
        if key == self._key_recorded:  # a graph plays for as long as everything is where it was
            return
        with undone(self._changing), torch.no_grad():
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # lazily made handles must not be made while recording
                for _ in range(3):
                    whole(*bound)
            torch.cuda.current_stream().wait_stream(side)
            self._recorded = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._recorded):
                self._results = list(whole(*bound))
        self._key_recorded = key

    def _replay(self, inputs: Batch) -> list[Tensor]:
        for name, value in inputs.items():
            self._static[name].copy_(value, non_blocking=True)
        self._recorded.replay()
        return [result.clone() for result in self._results]


ENGINES: dict[str, Callable[[Program], Engine]] = {
    "eager": Eager,
    "traced": Traced,
    "compiled": Compiled,
    "graphed": Graphed,
}


def choose_engine(name: str, device: torch.device, steps: int) -> str:
    """The name of an engine; "auto" is a rule without a clock: CUDA graphed; a CPU compiled from 5,000 steps on where there
    is a C++ compiler, else traced. OptionError lists the known ones."""
    if name != "auto" and name not in ENGINES:
        raise OptionError(f"engine={name!r} is not known; known: auto, {', '.join(ENGINES)}.")
    if name == "graphed" and device.type != "cuda":
        raise OptionError(f"engine='graphed' records CUDA graphs, and the device is {device.type}: use engine='auto'.")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "graphed"
    return "compiled" if device.type == "cpu" and steps >= COMPILE_FROM and has_compiler() else "traced"


def make_engine(name: str, program: Program) -> Engine:
    """The engine of that name for a program."""
    return ENGINES[name](program)


def has_compiler() -> bool:
    """Whether there is a C++ compiler, which TorchInductor needs on a CPU."""
    return shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")) is not None


class _Fixed(FakeTensorMode):
    """A step has one shape: without this every size is a symbol, and those that no operation settles fail in large graphs."""

    def from_tensor(self, tensor: Tensor, **options: Any) -> Any:
        return super().from_tensor(tensor, **{**options, "static_shapes": True})


def cached_compilation() -> Any:
    """Inside, TorchInductor keeps whole compiled graphs on disk; without a shape environment it keeps only their kernels."""
    return tracing(TracingContext(_Fixed(allow_non_fake_inputs=True, shape_env=symbolic_shapes.ShapeEnv())))


def _same_graph(a: TracedProgram, b: TracedProgram) -> bool:
    if a.module.code != b.module.code or [id(t) for t in a.captured] != [id(t) for t in b.captured]:
        return False
    constants = [n.target for n in a.module.graph.nodes if n.op == "get_attr"]
    return all(torch.equal(getattr(a.module, name), getattr(b.module, name)) for name in constants)

"""Steps that run as one compiled program (`Compiled`) or as a CUDA graph (`Graphed`), and the choice of an engine."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode

from pyrovae._lazily import Lazily, imported
from pyrovae.engine import ranks
from pyrovae.engine.adam import AdamUpdate, make_update
from pyrovae.engine.order import order_kept
from pyrovae.engine.products import for_the_compiler
from pyrovae.engine.program import Program
from pyrovae.engine.step import Eager, Engine, Traced, _apply
from pyrovae.engine.tracing import ROUNDING, TracedFunction, TracedProgram, differ, first_line, graph_of, undone
from pyrovae.errors import OptionError
from pyrovae.pair.batch import Batch

symbolic_shapes = Lazily("torch.fx.experimental.symbolic_shapes")  # imports SymPy, which only compiled steps need
dynamo_utils = Lazily("torch._dynamo.utils")
COMPILER = ("torch._dynamo", "torch._inductor.compile_fx")  # most of what a step costs that torch's cache has
log = logging.getLogger(__name__)

# What compiling takes on a CPU, in seconds, and what a compiled step saves: of the time that operations take to start, and, for
# each floating-point operation of its largest product of matrices, of the elementwise operations that come with it.
COMPILING, STARTING, WITH_EACH = 10.0, 0.5e-3, 5e-12
MOST_COMPILATIONS = 3
ANEW, FOUND = "compiled anew", "found in torch's cache, where an earlier fit has left it"


def compiled(
    function: Callable[..., list[Tensor]], tensors: Sequence[Tensor], *, checks: bool = True
) -> Callable[..., Any]:
    """`function(*tensors)` compiled by TorchInductor, for tensors of these shapes.

    Args:
        checks: Whether shapes and strides are checked at every call. They must be right, or memory of others is read.
    """
    for name in COMPILER:
        imported(name)
    if tensors[0].device.type != "cpu":
        return _by_inductor(function, tensors, size_asserts=checks)
    # On a CPU torch's own generator is the faster one, and gives the same noise as the other engines.
    options = {"size_asserts": checks, "fallback_random": True, "cpp.threads": torch.get_num_threads()}
    # All kernels in one C++ file, and what calls them in another: these compile in half of the time that one file for each
    # kernel takes, and without Python between kernels a run is a tenth faster. In a single file, long programs take minutes.
    in_cpp = {"cpp_wrapper": True, "cpp_wrapper_build_separate": True}
    try:
        return _by_inductor(function, tensors, **in_cpp, **options)
    except Exception as error:
        log.info("compiled with Python between its kernels, since without it failed: %s", first_line(error))
        return _by_inductor(function, tensors, **options)


def _by_inductor(
    function: Callable[..., list[Tensor]], tensors: Sequence[Tensor], **options: Any
) -> Callable[..., Any]:
    module = graph_of(function, *tensors)
    _reshape_instead_of_view(module)
    for_the_compiler(module)
    if tensors[0].device.type == "cpu":
        _draw_in_place(module)
    with cached_compilation(), order_kept():
        made: Callable[..., Any] = torch._inductor.compile(module, [*tensors], options=options)
    return made


class CompiledFunction(TracedFunction):
    """A traced function that is compiled once it pays, by the rule for fits: what no gradient follows gains a fifth as much.

    It pays at once where as many runs are expected, and else as soon as so many have been taken that compiling at the start
    would have: a function that runs on and on takes at most twice as long as with that knowledge. If compiling fails, it stays
    traced.

    Args:
        function: As for `TracedFunction`.
        reads: As for `TracedFunction`.
        product: Floating-point operations of its largest product of matrices.
        runs: How many runs are expected.
    """

    def __init__(
        self,
        function: Callable[[dict[str, Tensor]], list[Tensor]],
        reads: tuple[Any, ...],
        product: float = 0.0,
        runs: int = 0,
    ) -> None:
        super().__init__(function, reads)
        self.product, self.runs = product, runs
        self.taken = 0
        self.seen: list[TracedProgram] = []  # that were compiled, or could not be

    def __call__(self, batch: dict[str, Tensor]) -> list[Tensor]:
        found = super().__call__(batch)
        self.taken += 1
        program = self.traced
        if program is not None and program not in self.seen and len(self.seen) < MOST_COMPILATIONS:
            tensors = list(batch.values())
            if self._pays(tensors[0].device):
                self.seen.append(program)
                _compile_in_place(program, tensors)
        return found

    def _pays(self, device: torch.device) -> bool:
        runs = max(self.runs, self.taken)
        return device.type == "cpu" and choose_engine("auto", device, runs, self.product / 5) == "compiled"


def _compile_in_place(program: TracedProgram, tensors: Sequence[Tensor]) -> None:
    """Run a program compiled from now on, if that can be done and gives the same results."""
    arguments = [*tensors, *program.captured]
    try:
        with torch.no_grad(), undone([]), warnings.catch_warnings():  # compiling draws, too
            warnings.filterwarnings("ignore", "TensorFloat32", UserWarning)  # float32 is what was asked for
            made = compiled(lambda *flat: list(program.module(*flat)), arguments)
            with undone([]):
                true = program(*tensors)
            with undone([]):
                found = list(made(*arguments))
        if not differ(found, true):
            return program.run_by(made)
        reason = "it gave other results"
    except Exception as error:
        reason = first_line(error)
    warnings.warn(
        f"A long question could not be compiled ({reason}); it goes on traced, which is slower.", stacklevel=4
    )


class Compiled(Traced):
    """Run the whole step as one compiled program: loss, gradient, clipping, and Adam if that is the optimizer."""

    name = "compiled"

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self.compiled: Callable[..., Any] | None = None
        self.update: AdamUpdate | None = None
        self._key: Any = None
        self._compilations = 0
        self._bound: list[Tensor] = []  # the arguments of the compiled step
        self._given_up = False
        self.origin = ""  # of the compiled step: compiled anew, or found

    def _accept(self, traced: TracedProgram) -> None:
        if self.traced is None or not _same_program(self.traced, traced):
            self.compiled = None
        self.traced = traced

    def _check(self, inputs: Batch, weights: Mapping[str, float]) -> None:
        self.sync()
        super()._check(inputs, weights)
        self.rebind()

    def rebind(self) -> None:
        self.update = None
        self._bound = []

    def _prepare(self, inputs: Batch, weights: Mapping[str, float]) -> None:
        """Read the optimizer's state, and compile the step unless it is compiled already."""
        self.update = make_update(self.program.optimizer, self._used)
        key = (self.update.key if self.update else None, _layouts(self._flat(inputs, weights)))
        if self.compiled is None or key != self._key:
            self._key = key
            self._compile(inputs, weights)
        if not self._given_up:
            self._bind(inputs, weights)

    def _compile(self, inputs: Batch, weights: Mapping[str, float]) -> None:
        self._compilations += 1
        if self._compilations > MOST_COMPILATIONS:
            return self._give_up(f"the step changed {MOST_COMPILATIONS} times and had to be compiled anew each time")
        program, traced, update = self.program, self.traced, self.update
        assert traced is not None
        if update is None:
            note = f"{type(program.optimizer).__name__} steps outside the graph: only Adam and AdamW can be part of it"
            self.notes.append(note)
            log.info(note)
        flat = self._flat(inputs, weights)
        count = 1 + len(inputs) + len(self._leaves) + len(self._buffers) + len(traced.captured)
        trained = {id(leaf): 1 + len(inputs) + i for i, leaf in enumerate(self._leaves)}
        places = [trained[id(leaf)] for leaf in self._used]

        def step(*tensors: Tensor) -> list[Tensor]:
            elbo, _, *grads = traced.module(*tensors[:count])
            if program.clip is not None:
                grads = list(program.clip(self._used, grads))
            if update is None:
                return [elbo, *grads]
            update.apply([tensors[i] for i in places], grads, tensors[count:], tensors[0][len(program.weights) :])
            return [elbo]

        try:
            with torch.no_grad(), undone(self._changing), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "TensorFloat32", UserWarning)  # float32 is what was asked for
                found = _number_found()
                # Another rank may have compiled its step already, or not do so at all. The step is run once to be compiled,
                # by numbers that are no step's.
                with ranks.unheard(), undone(self._changing):
                    self.compiled = compiled(step, flat, checks=False)  # `_prepare` checks them once an epoch
                self.origin = FOUND if _number_found() > found else ANEW
                log.info("the step was %s", self.origin)
                with ranks.unheard():
                    with undone(self._changing):
                        true = traced.module(*flat[:count])[:1]
                    elbo = self.compiled(*flat)[:1]
                # on a GPU the compiler draws its own noise
                if flat[0].device.type == "cpu" and differ(elbo, true, ROUNDING[program.precision]):
                    raise RuntimeError(
                        f"its ELBO is {float(elbo[0]):.6g}, and that of the traced step is {float(true[0]):.6g}"
                    )
        except Exception as error:
            self._give_up(f"it could not be compiled ({first_line(error)})")

    def _flat(self, inputs: Batch, weights: Mapping[str, float]) -> list[Tensor]:
        """The arguments of the compiled step: numbers, inputs, parameters, buffers, captured tensors, optimizer state."""
        assert self.traced is not None
        numbers = [1.0] * (AdamUpdate.NUMBERS * len(self.update.steps)) if self.update is not None else []
        state = self.update.state if self.update is not None else []
        leaves = [leaf.detach() for leaf in self._leaves]
        first = self._numbers(weights, numbers)
        return [first, *inputs.values(), *leaves, *self._buffers, *self.traced.captured, *state]

    @property
    def _changing(self) -> list[Tensor]:
        """The tensors that a step writes into."""
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
        assert self.compiled is not None
        assert all(now.shape == value.shape for now, value in zip(self._bound[1:], inputs.values()))
        self._bound[1 : 1 + len(inputs)] = inputs.values()
        with torch.no_grad():
            return list(self.compiled(*self._bound))

    def sync(self) -> None:
        if self.update is not None:
            self.update.sync()

    def _give_up(self, reason: str) -> None:
        self._given_up = True
        self.compiled, self.update = None, None
        self.notes.append(f"runs traced: {reason}")
        warnings.warn(f"engine={self.name!r}: {reason}; the fit goes on traced, not compiled.", stacklevel=2)


class Graphed(Compiled):
    """Run the compiled step as a CUDA graph. Its inputs are at fixed addresses, to which each step's rows are copied."""

    name = "graphed"

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self._static: Batch = {}
        self._key_recorded: Any = None

    def _bind(self, inputs: Batch, weights: Mapping[str, float]) -> None:
        if any(t.device.type != "cuda" for t in (*self._leaves, *inputs.values())):
            raise OptionError(
                "engine='graphed' records CUDA graphs, and the pair or its rows are not on a CUDA device."
            )
        if not self._static:
            self._static = {name: value.clone() for name, value in inputs.items()}
        super()._bind(self._static, weights)
        compiled, bound = self.compiled, self._bound
        assert compiled is not None
        key = (id(compiled), *(t.data_ptr() for t in bound))
        if key == self._key_recorded:  # a CUDA graph stays valid while all tensors are at the same addresses
            return
        with undone(self._changing), torch.no_grad():
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            # handles that libraries create at first use must exist before recording
            with torch.cuda.stream(side), ranks.unheard():
                for _ in range(3):
                    compiled(*bound)
            torch.cuda.current_stream().wait_stream(side)
            self._recorded = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._recorded):
                self._results = list(compiled(*bound))
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


def choose_engine(name: str, device: torch.device, steps: int, product: float = 0) -> str:
    """The name of the engine that runs a fit.

    "auto" is a rule that measures nothing, so that a seed determines the result: "graphed" on CUDA; on a CPU "compiled" if
    there is a C++ compiler and the steps save more than compiling takes, else "traced". That is from 20,000 steps on for small
    networks, from 7,700 where the largest product of matrices takes 160 million floating-point operations, from 1,200 where it
    takes 1.6 billion.

    Args:
        name: "auto", or an engine.
        device: where the steps run.
        steps: how many.
        product: floating-point operations of the largest product of matrices of a step.

    Raises:
        OptionError: The engine is unknown, or cannot run on this device.
    """
    if not isinstance(name, str) or (name != "auto" and name not in ENGINES):
        raise OptionError(f"engine={name!r} is not known; known: auto, {', '.join(ENGINES)}.")
    if name == "graphed" and device.type != "cuda":
        raise OptionError(f"engine='graphed' records CUDA graphs, and the device is {device.type}: use engine='auto'.")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "graphed"
    saved = steps * (STARTING + WITH_EACH * product)
    return "compiled" if device.type == "cpu" and saved >= COMPILING and has_compiler() else "traced"


def make_engine(name: str, program: Program) -> Engine:
    """The engine of that name, to run the steps of a program."""
    return ENGINES[name](program)


def has_compiler() -> bool:
    """Whether a C++ compiler is installed, which TorchInductor needs on a CPU."""
    return shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")) is not None


class _Fixed(FakeTensorMode):
    """Fake tensors with fixed sizes, since a step has one shape. Symbolic sizes make TorchInductor fail on large programs."""

    def from_tensor(self, tensor: Tensor, **options: Any) -> Any:
        return super().from_tensor(tensor, **{**options, "static_shapes": True})


def cached_compilation() -> Any:
    """Let TorchInductor cache whole compiled programs on disk. Without a shape environment it caches their kernels only."""
    return tracing(TracingContext(_Fixed(allow_non_fake_inputs=True, shape_env=symbolic_shapes.ShapeEnv())))


def _layouts(tensors: Sequence[Tensor]) -> list[Any]:
    """All that a compiled program takes for granted of its arguments."""
    return [(t.shape, t.stride(), t.dtype, t.device) for t in tensors]


def _number_found() -> int:
    """How many compiled programs this process has found in TorchInductor's cache on disk."""
    return int(dynamo_utils.counters["inductor"]["fxgraph_cache_hit"])


def _reshape_instead_of_view(module: torch.fx.GraphModule) -> None:
    """A view holds for the strides that a tensor had in eager mode, and TorchInductor may choose others."""
    for node in module.graph.nodes:
        if node.target in (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default):
            node.target = torch.ops.aten.reshape.default
    module.recompile()


def _draw_in_place(module: torch.fx.GraphModule) -> None:
    """What `torch.bernoulli(p)` does itself. TorchInductor would compare p with uniform noise, which are other draws."""
    aten = torch.ops.aten
    for node in list(module.graph.nodes):
        if node.target is aten.bernoulli.default:
            with module.graph.inserting_before(node):
                empty = module.graph.call_function(aten.empty_like.default, (node.args[0],))
            empty.meta = dict(node.meta)
            node.target, node.args = aten.bernoulli_.Tensor, (empty, node.args[0])
    module.recompile()


def _same_program(a: TracedProgram, b: TracedProgram) -> bool:
    if a.module.code != b.module.code or [id(t) for t in a.captured] != [id(t) for t in b.captured]:
        return False
    constants = [n.target for n in a.module.graph.nodes if n.op == "get_attr"]
    return all(torch.equal(getattr(a.module, name), getattr(b.module, name)) for name in constants)

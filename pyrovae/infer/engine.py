"""The engine: one SVI step. What a step is (`Program`) is apart from how it is run (an engine), and the result is one.

eager      Python runs the step, Pyro and all.
traced     loss and gradient are one graph of tensor operations, found by running the pair once; no compile time.
compiled   the whole step is one graph, compiled by TorchInductor: row gather, transform, noise, loss, gradient, clipping and
           Adam's update. Compiled kernels are kept on disk, so that the next fit of that shape begins sooner.
graphed    the compiled step, recorded as a CUDA graph and replayed: one launch a step.

What cannot be traced runs eagerly, after one warning that names the line. Numbers that change from step to step (learning
rate, KL weight, Adam's bias corrections) enter as one tensor, and so retrace nothing.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyro
import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from pyrovae._lazily import Lazily
from pyrovae.errors import OptionError
from pyrovae.infer.tracing import ROUNDING, Graph, Untraceable, changed, differ, fingerprint, steady, trace, undone
from pyrovae.infer.updates import MODEL_RATE, AdamUpdate, make_update
from pyrovae.pair import Batch, modules

symbolic_shapes = Lazily("torch.fx.experimental.symbolic_shapes")  # SymPy, for compiled steps only
log = logging.getLogger(__name__)

# (leaves, to know them by identity; their gradients) -> gradients
Clip = Callable[[Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]]
# From so many steps on, the minute or less that compiling takes is won back on a CPU.
COMPILE_FROM = 5_000
MOST_COMPILATIONS = 3
# A comparison costs as much as two or three steps: short epochs share one, but for the first few.
COMPARE_EVERY = 50
COMPARE_FIRST = 3


@dataclass
class Program:
    """What one step is: its loss, the leaves it trains, how gradients are clipped, and the optimizer.

    objective: (inputs, weights) -> (ELBO without weights, loss to descend), both 0-d. inputs: tensors of one set of shapes.
    weights: names of the 0-d tensors that the objective takes; "lr" and "model" are none of them, they go to the
    optimizer's groups.
    watched: the objects whose plain attributes the loss may read.
    """

    pair: Any
    objective: Callable[[Batch, dict[str, Tensor]], tuple[Tensor, Tensor]]
    parameters: Mapping[str, Tensor]
    optimizer: torch.optim.Optimizer
    weights: tuple[str, ...] = ()
    clip: Clip | None = None
    watched: tuple[Any, ...] = ()
    precision: str = "float32"

    @property
    def leaves(self) -> list[Tensor]:
        return list(self.parameters.values())

    @property
    def buffers(self) -> list[Tensor]:
        """Tensors that a step may change beside the leaves: running means, say."""
        unique = {id(b): b for m in modules(self.pair).values() for b in m.buffers()}
        return list(unique.values())


def clip_by_norm(leaves: Sequence[Tensor], grads: Sequence[Tensor], largest: float) -> list[Tensor]:
    """Gradients scaled so that their joint norm is at most `largest` (Pascanu et al. 2013, arXiv:1211.5063)."""
    norm = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
    return [g * (largest / (norm + 1e-6)).clamp(max=1.0) for g in grads]


class Engine(Protocol):
    """Takes one step and returns the unweighted ELBO as a 0-d tensor that stays on the device."""

    name: str
    notes: list[str]

    def step(self, inputs: Batch, weights: Mapping[str, float]) -> Tensor: ...

    def begin_epoch(self) -> None:
        """Something outside a step may have changed: look before the next one."""

    def rebind(self) -> None:
        """The optimizer's state has been replaced, or another engine has stepped: take it up anew."""

    def sync(self) -> None:
        """Make the optimizer's own state whole, to be saved, or for another engine to go on."""


class Eager:
    """The step as Python runs it, operation by operation. It never waits for the device."""

    name = "eager"

    def __init__(self, program: Program) -> None:
        self.program = program
        self.notes: list[str] = []

    def step(self, inputs: Batch, weights: Mapping[str, float]) -> Tensor:
        set_rates(self.program.optimizer, weights)
        elbo, loss = self.program.objective(inputs, _as_tensors(self.program, weights))
        self.descend(loss)
        return elbo

    def descend(self, loss: Tensor) -> None:
        """From a loss on: gradients, clipping, the optimizer's step."""
        leaves = self.program.leaves
        grads = torch.autograd.grad(loss, leaves, allow_unused=True)
        used = [(leaf, grad) for leaf, grad in zip(leaves, grads) if grad is not None]
        _descend(self.program, leaves, [leaf for leaf, _ in used], [grad for _, grad in used])

    def begin_epoch(self) -> None:
        pass

    def rebind(self) -> None:
        pass

    def sync(self) -> None:
        pass


class Traced:
    """Loss and gradient as a graph; clipping and the optimizer outside it."""

    name = "traced"

    def __init__(self, program: Program) -> None:
        self.program = program
        self.eager = Eager(program)
        self.notes: list[str] = []
        self.refused = ""
        self.graph: Graph | None = None
        self.other: Batch | None = None  # a second batch to compare on; None makes one of the first
        self._stale = True
        self._retraced = False
        self._compared, self._since = 0, 0  # comparisons so far; steps since the last
        self._vectors: dict[int, Tensor] = {}
        self._watch: dict[str, Any] = {}

    # the step

    def step(self, inputs: Batch, weights: Mapping[str, float]) -> Tensor:
        if not self.refused:
            set_rates(self.program.optimizer, weights)
            if self._stale:
                with pyro.validation_enabled(False):
                    self._look(inputs, weights)
                self._stale = False
        if self.refused:
            return self.eager.step(inputs, weights)
        self._since += 1
        return self._run(inputs, weights)

    def begin_epoch(self) -> None:
        self._stale = True

    def rebind(self) -> None:
        pass

    def sync(self) -> None:
        pass

    def _run(self, inputs: Batch, weights: Mapping[str, float]) -> Tensor:
        assert self.graph is not None
        elbo, _, *grads = self.graph(*self._tensors(inputs, weights))
        _descend(self.program, self._leaves, self._used, grads)
        return elbo

    # the graph

    def _look(self, inputs: Batch, weights: Mapping[str, float]) -> None:
        """Trace, or make sure that what was traced still holds."""
        self._leaves, self._buffers = self.program.leaves, self.program.buffers
        now = fingerprint(self.program.pair, *self.program.watched)
        differing = changed(self._watch, now)
        try:
            if self.graph is None or differing:
                self._trace(inputs, weights, now)
                if differing:
                    self._tell_retraced(differing, now)
            elif self._since >= COMPARE_EVERY or self._compared < COMPARE_FIRST:
                self._compare_loss(inputs, weights)
                self._compared, self._since = self._compared + 1, 0
        except Untraceable as error:
            self._refuse(str(error))

    def _trace(self, inputs: Batch, weights: Mapping[str, float], now: dict[str, Any]) -> None:
        names = list(inputs)
        program = self.program
        used: list[int] = []

        def gradient(*flat: Tensor) -> list[Tensor]:
            numbers = {name: flat[0][i].to(self._leaves[0].dtype) for i, name in enumerate(program.weights)}
            elbo, loss = program.objective(dict(zip(names, flat[1:])), numbers)
            grads = torch.autograd.grad(loss, self._leaves, allow_unused=True)
            used[:] = [i for i, grad in enumerate(grads) if grad is not None]
            return [elbo.detach(), loss.detach(), *(grad for grad in grads if grad is not None)]

        batches = [inputs, self.other if self.other is not None else _halved(inputs)]
        tensors = [self._tensors(batch, weights) for batch in batches]
        graph = trace(gradient, tensors, self._buffers, ROUNDING[program.precision])
        after = fingerprint(program.pair, *program.watched)
        self._used = [self._leaves[i] for i in used]
        self._watch = steady(now, after)
        self._take(graph)

    def _take(self, graph: Graph) -> None:
        self.graph = graph

    def _compare_loss(self, inputs: Batch, weights: Mapping[str, float]) -> None:
        assert self.graph is not None
        with undone(self._buffers), torch.no_grad():
            true = list(self.program.objective(inputs, _as_tensors(self.program, weights)))
        with undone(self._buffers):
            found = self.graph(*self._tensors(inputs, weights))[:2]
        if differ(found, true, ROUNDING[self.program.precision]):
            raise Untraceable(
                f"its loss is {float(true[1]):.6g} and that of the traced step {float(found[1]):.6g}: the program has changed "
                "in a way that a trace cannot see (a value read from a tensor, a counter, NumPy)"
            )

    def _tensors(self, inputs: Batch, weights: Mapping[str, float]) -> list[Tensor]:
        return [self._numbers(weights), *inputs.values(), *self._leaves, *self._buffers]

    def _numbers(self, weights: Mapping[str, float], more: Sequence[float] = ()) -> Tensor:
        """What changes from step to step, written into the vector that the graph reads."""
        values = [*(weights[name] for name in self.program.weights), *more] or [1.0]
        if len(values) not in self._vectors:
            self._vectors[len(values)] = torch.zeros(len(values), dtype=torch.float64, device=self._leaves[0].device)
        _write(self._vectors[len(values)], values)
        return self._vectors[len(values)]

    # words

    def _refuse(self, reason: str) -> None:
        self.refused = reason
        self.graph = None
        self.sync()
        self.notes.append(f"runs eagerly: {reason}")
        warnings.warn(
            f"engine={self.name!r} cannot trace this program, which goes on eagerly (right, and slower): {reason}.",
            stacklevel=2,
        )

    def _tell_retraced(self, differing: list[str], now: dict[str, Any]) -> None:
        if self._retraced:
            return
        self._retraced = True
        path = differing[0]
        note = f"{path!r} is now {now.get(path, 'gone')!r}: the step was traced anew"
        self.notes.append(note)
        warnings.warn(
            f"{note}. To change a number without that, hold it in a tensor (register_buffer) and write into it, or use "
            "schedule=...",
            stacklevel=2,
        )


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

    def _take(self, graph: Graph) -> None:
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


def set_rates(optimizer: torch.optim.Optimizer, weights: Mapping[str, float]) -> None:
    """Give a scheduled learning rate to every group, and weigh that of the parameters which only the model uses."""
    for group in optimizer.param_groups:
        if "lr" in weights:
            group["lr"] = weights["lr"]
        if MODEL_RATE in group:
            group["lr"] = weights.get("model", 1.0) * weights.get("lr", group[MODEL_RATE])


# --- pieces ----------------------------------------------------------------------------------------------------------


class _Fixed(FakeTensorMode):
    """A step has one shape: without this every size is a symbol, and those that no operation settles fail in large graphs."""

    def from_tensor(self, tensor: Tensor, **options: Any) -> Any:
        return super().from_tensor(tensor, **{**options, "static_shapes": True})


def cached_compilation() -> Any:
    """Inside, TorchInductor keeps whole compiled graphs on disk; without a shape environment it keeps only their kernels."""
    return tracing(TracingContext(_Fixed(allow_non_fake_inputs=True, shape_env=symbolic_shapes.ShapeEnv())))


def _write(vector: Tensor, values: Sequence[float]) -> None:
    if vector.device.type == "cpu":
        vector.numpy()[:] = values
    else:  # pinned anew each step: the host may run ahead of the copy
        vector.copy_(torch.tensor(values, dtype=torch.float64).pin_memory(), non_blocking=True)


def _as_tensors(program: Program, weights: Mapping[str, float]) -> dict[str, Tensor]:
    like = program.leaves[0]
    return {name: torch.full((), weights[name], dtype=like.dtype, device=like.device) for name in program.weights}


def _descend(program: Program, leaves: list[Tensor], used: list[Tensor], grads: Sequence[Tensor]) -> None:
    if program.clip is not None:
        with torch.no_grad():
            grads = program.clip(used, grads)
    _apply(program.optimizer, leaves, used, grads)


def _apply(optimizer: torch.optim.Optimizer, leaves: list[Tensor], used: list[Tensor], grads: Sequence[Tensor]) -> None:
    for leaf in leaves:
        leaf.grad = None
    for leaf, grad in zip(used, grads):
        leaf.grad = grad
    optimizer.step()
    for leaf in used:
        leaf.grad = None


def _halved(inputs: Batch) -> Batch:
    """Another batch of the same shapes: each of the first half of the rows twice."""
    return {n: v[torch.arange(len(v), device=v.device) // 2] if v.dim() else v for n, v in inputs.items()}


def _same_graph(a: Graph, b: Graph) -> bool:
    if a.module.code != b.module.code or [id(t) for t in a.captured] != [id(t) for t in b.captured]:
        return False
    constants = [n.target for n in a.module.graph.nodes if n.op == "get_attr"]
    return all(torch.equal(getattr(a.module, name), getattr(b.module, name)) for name in constants)

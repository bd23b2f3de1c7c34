"""How a step is run in Python (`Eager`), or as a traced graph of tensor operations (`Traced`)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import pyro
import torch
from torch import Tensor

from pyrovae.engine.adam import MODEL_RATE
from pyrovae.engine.program import Program
from pyrovae.engine.tracing import ROUNDING, TracedProgram, Untraceable, differ, trace, undone
from pyrovae.engine.watch import changed, snapshot, steady
from pyrovae.pair.batch import Batch

# A comparison costs as much as two or three steps: short epochs share one, but for the first few.
COMPARE_EVERY = 50


COMPARE_FIRST = 3


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
        self.graph: TracedProgram | None = None
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
        now = snapshot(self.program.pair, *self.program.watched)
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
        after = snapshot(program.pair, *program.watched)
        self._used = [self._leaves[i] for i in used]
        self._watch = steady(now, after)
        self._take(graph)

    def _take(self, graph: TracedProgram) -> None:
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
        write_numbers(self._vectors[len(values)], values)
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


def set_rates(optimizer: torch.optim.Optimizer, weights: Mapping[str, float]) -> None:
    """Give a scheduled learning rate to every group, and weigh that of the parameters which only the model uses."""
    for group in optimizer.param_groups:
        if "lr" in weights:
            group["lr"] = weights["lr"]
        if MODEL_RATE in group:
            group["lr"] = weights.get("model", 1.0) * weights.get("lr", group[MODEL_RATE])


def write_numbers(vector: Tensor, values: Sequence[float]) -> None:
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

"""Steps that run in Python (`Eager`), or as a traced program of tensor operations (`Traced`)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor

from pyrovae.engine.adam import MODEL_RATE, Adam
from pyrovae.engine.fused import gradients_as_by_backward
from pyrovae.engine.program import Program
from pyrovae.engine.tracing import ROUNDING, TracedProgram, Untraceable, differ, halved, trace, undone
from pyrovae.engine.watch import changed, rewound, snapshot, steady
from pyrovae.pair.batch import Batch

# The traced program is compared with the eager one in the first three epochs, and then at most every 50 steps. A comparison
# costs as much as two or three steps.
COMPARE_EVERY = 50
COMPARE_FIRST = 3


class Engine:
    """A way to run the steps of a `Program`. An engine that keeps no state between steps defines `name` and `step` alone."""

    name: str
    notes: list[str]  # what a user should know about how the steps ran

    def step(self, inputs: Batch, weights: Mapping[str, float]) -> Tensor:
        """Take one step and return the ELBO without weights, as a 0-d tensor that stays on the device."""
        raise NotImplementedError

    def begin_epoch(self) -> None:
        """Check before the next step whether code or attributes have changed since the step was traced."""

    def rebind(self) -> None:
        """Read the optimizer's state again, after it was replaced or another engine took a step."""

    def sync(self) -> None:
        """Bring the optimizer's own state up to date, so that it can be saved or another engine can continue."""


class Eager(Engine):
    """Run each step in Python, operation by operation, without waiting for the device."""

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
        """The rest of a step, from the loss: gradients, clipping, the optimizer's step."""
        leaves = self.program.leaves
        grads = torch.autograd.grad(loss, leaves, allow_unused=True)
        used = [(leaf, grad) for leaf, grad in zip(leaves, grads) if grad is not None]
        descend(self.program, [leaf for leaf, _ in used], [grad for _, grad in used])


class Traced(Engine):
    """Run loss and gradient as a traced program. Clipping and the optimizer run in Python."""

    name = "traced"

    def __init__(self, program: Program) -> None:
        self.program = program
        self.eager = Eager(program)
        self.notes: list[str] = []
        self.refused = ""
        self.traced: TracedProgram | None = None
        self.other: Batch | None = None  # a second batch to compare on; if None, one is made from the first
        self._stale = True
        self._retraced = False
        self._compared, self._since = 0, 0  # comparisons so far, and steps since the last
        self._vectors: dict[int, Tensor] = {}
        self._snapshot: dict[str, Any] = {}  # what the traced program may have read in Python

    # the step

    def step(self, inputs: Batch, weights: Mapping[str, float]) -> Tensor:
        if not self.refused:
            set_rates(self.program.optimizer, weights)
            if self._stale:
                with pyro.validation_enabled(False):
                    self._check(inputs, weights)
                self._stale = False
        if self.refused:
            return self.eager.step(inputs, weights)
        self._since += 1
        return self._run(inputs, weights)

    def begin_epoch(self) -> None:
        self._stale = True

    def _run(self, inputs: Batch, weights: Mapping[str, float]) -> Tensor:
        assert self.traced is not None
        elbo, _, *grads = self.traced(*self._tensors(inputs, weights))
        descend(self.program, self._used, grads)
        return elbo

    # the traced program

    def _check(self, inputs: Batch, weights: Mapping[str, float]) -> None:
        """Trace the step if there is need to, else check that the traced program still does what the code does."""
        self._leaves, self._buffers = self.program.leaves, self.program.buffers
        now = snapshot(self.program.pair, *self.program.reads)
        differing = changed(self._snapshot, now)
        try:
            if self.traced is None or differing:
                with rewound(self.program.pair, *self.program.reads):
                    self._trace(inputs, weights, now)
                if differing:
                    self._warn_retraced(differing, now)
            elif self._since >= COMPARE_EVERY or self._compared < COMPARE_FIRST:
                with rewound(self.program.pair, *self.program.reads):
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

        batches = [inputs, self.other if self.other is not None else halved(inputs)]
        tensors = [self._tensors(batch, weights) for batch in batches]
        traced = trace(gradient, tensors, self._buffers, ROUNDING[program.precision])
        after = snapshot(program.pair, *program.reads)
        self._used = [self._leaves[i] for i in used]
        self._snapshot = steady(now, after)
        self._accept(traced)

    def _accept(self, traced: TracedProgram) -> None:
        self.traced = traced

    def _compare_loss(self, inputs: Batch, weights: Mapping[str, float]) -> None:
        assert self.traced is not None
        with undone(self._buffers):  # with gradients, since a codebook follows its vectors only where they are trained
            true = [t.detach() for t in self.program.objective(inputs, _as_tensors(self.program, weights))]
        with undone(self._buffers):
            found = self.traced(*self._tensors(inputs, weights))[:2]
        if differ(found, true, ROUNDING[self.program.precision]):
            raise Untraceable(
                f"its loss is {float(true[1]):.6g} and that of the traced step is {float(found[1]):.6g}: the program has "
                "changed in a way that a trace cannot see (a value read from a tensor, a counter, NumPy)"
            )

    def _tensors(self, inputs: Batch, weights: Mapping[str, float]) -> list[Tensor]:
        return [self._numbers(weights), *inputs.values(), *self._leaves, *self._buffers]

    def _numbers(self, weights: Mapping[str, float], more: Sequence[float] = ()) -> Tensor:
        """The numbers that change from step to step, written into the vector that the traced program reads."""
        values = [*(weights[name] for name in self.program.weights), *more] or [1.0]
        if len(values) not in self._vectors:
            self._vectors[len(values)] = torch.zeros(len(values), dtype=torch.float64, device=self._leaves[0].device)
        write_numbers(self._vectors[len(values)], values)
        return self._vectors[len(values)]

    # messages

    def _refuse(self, reason: str) -> None:
        self.refused = reason
        self.traced = None
        self.sync()
        self.notes.append(f"runs eagerly: {reason}")
        warnings.warn(
            f"engine={self.name!r} cannot trace this program, which runs eagerly instead (correct, but slower): {reason}.",
            stacklevel=2,
        )

    def _warn_retraced(self, differing: list[str], now: dict[str, Any]) -> None:
        if self._retraced:
            return
        self._retraced = True
        path = differing[0]
        note = f"{path!r} is now {now.get(path, 'gone')!r}: the step was traced anew"
        self.notes.append(note)
        warnings.warn(
            f"{note}. To change a number without tracing anew, keep it in a tensor (register_buffer) and write into that, or "
            "use schedule=...",
            stacklevel=2,
        )


def set_rates(optimizer: torch.optim.Optimizer, weights: Mapping[str, float]) -> None:
    """Set the scheduled learning rate of every group, times the weight "model" for parameters that only the model uses."""
    for group in optimizer.param_groups:
        if "lr" in weights:
            group["lr"] = weights["lr"]
        if MODEL_RATE in group:
            group["lr"] = weights.get("model", 1.0) * weights.get("lr", group[MODEL_RATE])


def write_numbers(vector: Tensor, values: Sequence[float]) -> None:
    """Write numbers into a vector without waiting for its device."""
    if vector.device.type == "cpu":
        vector.numpy()[:] = values
    else:  # in fresh pinned memory each time, because the host may run ahead of the copy
        vector.copy_(torch.tensor(values, dtype=torch.float64).pin_memory(), non_blocking=True)


def _as_tensors(program: Program, weights: Mapping[str, float]) -> dict[str, Tensor]:
    like = program.leaves[0]
    return {name: torch.full((), weights[name], dtype=like.dtype, device=like.device) for name in program.weights}


def descend(program: Program, used: list[Tensor], grads: Sequence[Tensor]) -> None:
    """Take a step of the optimizer, with the gradients of the parameters that have one."""
    if program.clip is not None:
        with torch.no_grad():
            grads = program.clip(used, grads)
    _apply(program.optimizer, program.leaves, used, grads)


def _apply(optimizer: torch.optim.Optimizer, leaves: list[Tensor], used: list[Tensor], grads: Sequence[Tensor]) -> None:
    grads = gradients_as_by_backward(used, grads)
    if isinstance(optimizer, Adam):
        return optimizer.descend(used, grads)
    for leaf in leaves:
        leaf.grad = None
    for leaf, grad in zip(used, grads):
        leaf.grad = grad
    groups = optimizer.param_groups
    if len(groups) > 1:  # a group that this step has nothing for must not even lower its learning rate
        optimizer.param_groups = [group for group in groups if any(leaf.grad is not None for leaf in group["params"])]
    try:
        optimizer.step()
    finally:
        optimizer.param_groups = groups
    for leaf in used:
        leaf.grad = None

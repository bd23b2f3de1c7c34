"""The engine: one SVI step. What a step is (`Program`) is apart from how it is run (an engine)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pyrovae.check import Layout
from pyrovae.errors import OptionError, PairError
from pyrovae.infer.objectives import Bound
from pyrovae.pair import Batch

Transform = Callable[[Batch], Batch]


@dataclass
class Program:
    """Everything that one step needs: loss = -(objective - penalty) / num_rows, its gradient, clipping, the update.

    `rows` are all training rows on the device; a step gathers its own by index. `weights` are 0-d tensors that the
    schedule writes before a step: "kl" is read by the loss, "lr" goes to every group of the optimizer.
    """

    pair: Any
    loss: Callable[..., Bound]
    parameters: Mapping[str, Tensor]
    optimizer: torch.optim.Optimizer
    rows: Batch
    num_rows: int
    layout: Layout
    weights: dict[str, Tensor]
    transform: Transform | None = None
    penalty: Callable[[Any], Tensor] | None = None
    clip_norm: float | None = None

    def objective(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """(unweighted ELBO, loss to descend), both 0-d, in nats per row."""
        batch = {name: value.index_select(0, index) for name, value in self.rows.items()}
        if self.transform is not None:
            batch = self.transform(batch)
        bound = self.loss(
            self.pair, batch, num_rows=self.num_rows, kl_weight=self.weights.get("kl"), layout=self.layout
        )
        descend = -bound.objective
        if self.penalty is not None:
            penalty = self.penalty(self.pair)
            if not isinstance(penalty, Tensor) or penalty.dim():
                raise PairError(f"penalty must return a 0-d tensor, in nats: sum it. It returned {penalty!r}.")
            descend = descend + penalty
        return bound.elbo / self.num_rows, descend / self.num_rows


class Engine(Protocol):
    """Takes one step and returns the unweighted ELBO, nats per row, as a 0-d tensor that stays on the device."""

    name: str

    def step(self, index: Tensor, weights: Mapping[str, float]) -> Tensor: ...


class Eager:
    """The step as Python runs it, operation by operation. It never waits for the device."""

    name = "eager"

    def __init__(self, program: Program) -> None:
        self.program = program
        self.leaves = list(program.parameters.values())

    def step(self, index: Tensor, weights: Mapping[str, float]) -> Tensor:
        program = self.program
        for name, value in weights.items():
            program.weights[name].fill_(value)
        if "lr" in weights:
            for group in program.optimizer.param_groups:
                group["lr"] = weights["lr"]
        program.optimizer.zero_grad(set_to_none=True)
        elbo, loss = program.objective(index)
        loss.backward(inputs=self.leaves)
        if program.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.leaves, program.clip_norm)
        program.optimizer.step()
        return elbo


ENGINES: dict[str, Callable[[Program], Engine]] = {"eager": Eager}


def make_engine(name: str, program: Program) -> Engine:
    """The engine of that name; "auto" takes what suits the device. OptionError lists the known ones."""
    if name != "auto" and name not in ENGINES:
        raise OptionError(f"engine={name!r} is not known; known: auto, {', '.join(ENGINES)}.")
    return ENGINES["eager" if name == "auto" else name](program)

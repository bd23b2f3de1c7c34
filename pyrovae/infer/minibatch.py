"""The loss of a minibatch: rows gathered, transformed, put through the pair, and scaled to the whole data set."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyrovae.check import Layout
from pyrovae.errors import OptionError, PairError
from pyrovae.handlers import Keep, settled
from pyrovae.infer.objectives import Bound
from pyrovae.pair import Batch, Pair

Transform = Callable[[Batch], Batch]
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Part:
    """A group of rows that have the same arguments: how many of all rows, and what the pair is made of for them."""

    names: tuple[str, ...]
    num_rows: int
    layout: Layout


@dataclass
class MinibatchLoss:
    """loss = -(sum over groups of the objective - penalty) / num_rows, in nats per row.

    rows: all training rows on the device, of which inputs[name of the group] says which; None where the inputs are the rows.
    parts: the groups, by that name. The local terms of B of a group's N rows count N/B times; what belongs to no row is
    drawn, and counted, once, in the first group that has it, and used in all.
    precision: "bfloat16" runs the products of matrices (linear layers, convolutions) of pair and transform in bfloat16;
    parameters, their results and all log-densities are float32.
    """

    pair: Any
    loss: Callable[..., Bound]
    num_rows: int
    parts: dict[str, Part]
    rows: Batch | None = None
    transform: Transform | None = None
    penalty: Callable[[Any], Tensor] | None = None
    precision: str = "float32"

    def __call__(self, inputs: Batch, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(ELBO without weights, loss to descend), both 0-d."""
        bounds: list[Bound] = []
        drawn: dict[str, Tensor] = {}
        counted: set[str] = set()
        with ExitStack() as stack:
            if self.precision == "bfloat16":
                stack.enter_context(low_precision(next(iter(inputs.values())).device))
            for name, part in self.parts.items():
                batch = inputs
                if self.rows is not None:
                    batch = {argument: self.rows[argument].index_select(0, inputs[name]) for argument in part.names}
                if self.transform is not None:
                    batch = self.transform(batch)
                pair, fresh = self.pair, Keep(set(part.layout.shared) - counted)
                if len(self.parts) > 1 and (counted or part.layout.rowless):
                    guide = fresh(settled(self.pair.guide, drawn, counted))
                    pair = Pair(settled(self.pair.model, drawn, counted), guide)
                bounds.append(
                    self.loss(pair, batch, num_rows=part.num_rows, kl_weight=weights.get("kl"), layout=part.layout)
                )
                drawn |= fresh.values
                counted |= set(part.layout.rowless)
        bound = Bound(*(sum(values[1:], values[0]) for values in zip(*bounds)))
        descend = -bound.objective
        if self.penalty is not None:
            penalty = self.penalty(self.pair)
            if not isinstance(penalty, Tensor) or penalty.dim():
                raise PairError(f"penalty must return a 0-d tensor, in nats: sum it. It returned {penalty!r}.")
            descend = descend + penalty
        return bound.elbo / self.num_rows, descend / self.num_rows


class _Float32Results(TorchFunctionMode):
    """Results in bfloat16 go on as float32, so that only products of matrices are short of precision."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        return made.float() if isinstance(made, Tensor) and made.dtype == torch.bfloat16 else made


class low_precision(ExitStack):
    """torch.autocast to bfloat16, every result brought back to float32 (Micikevicius et al. 2018, arXiv:1710.03740)."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __enter__(self) -> low_precision:
        super().__enter__()
        self.enter_context(torch.autocast(self.device.type, dtype=torch.bfloat16))
        self.enter_context(_Float32Results())
        return self


def as_precision(precision: str | None, dtype: torch.dtype) -> str:
    """ "float32" stands for the parameters' own dtype. OptionError for an unknown precision, or bfloat16 of float64."""
    if precision is None:
        return PRECISIONS[0]
    if precision not in PRECISIONS:
        raise OptionError(f"precision={precision!r} is not known; known: {', '.join(PRECISIONS)}.")
    if precision == "bfloat16" and dtype != torch.float32:
        raise OptionError(
            f"precision='bfloat16' is for float32 parameters, these are {str(dtype)[6:]}: make them float32."
        )
    return precision

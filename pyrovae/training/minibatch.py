"""The loss of a minibatch: rows are gathered, transformed, put through the pair, and scaled to the whole data set."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyrovae.batching.transforms import Transform
from pyrovae.engine.precision import low_precision
from pyrovae.errors import PairError
from pyrovae.objectives.elbo import Bound
from pyrovae.pair.batch import Batch
from pyrovae.pair.handlers import Keep, settled
from pyrovae.pair.layout import Layout
from pyrovae.pair.program import Pair


@dataclass(frozen=True)
class GroupTerms:
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
    parts: dict[str, GroupTerms]
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
                if len(self.parts) > 1 and (counted or part.layout.global_sites):
                    guide = fresh(settled(self.pair.guide, drawn, counted))
                    pair = Pair(settled(self.pair.model, drawn, counted), guide)
                bounds.append(
                    self.loss(pair, batch, num_rows=part.num_rows, kl_weight=weights.get("kl"), layout=part.layout)
                )
                drawn |= fresh.values
                counted |= set(part.layout.global_sites)
        bound = Bound(*(sum(values[1:], values[0]) for values in zip(*bounds)))
        descend = -bound.objective
        if self.penalty is not None:
            penalty = self.penalty(self.pair)
            if not isinstance(penalty, Tensor) or penalty.dim():
                raise PairError(f"penalty must return a 0-d tensor, in nats: sum it. It returned {penalty!r}.")
            descend = descend + penalty
        return bound.elbo / self.num_rows, descend / self.num_rows

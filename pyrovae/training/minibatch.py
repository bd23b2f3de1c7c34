"""The loss of a minibatch: rows are gathered, transformed, put through the pair, and scaled to the whole data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyrovae.batching.transforms import Transform
from pyrovae.engine.precision import low_precision
from pyrovae.errors import OptionError, PairError
from pyrovae.objectives.elbo import Bound
from pyrovae.pair.batch import Batch, num_rows
from pyrovae.pair.handlers import Keep, settled
from pyrovae.pair.layout import Layout
from pyrovae.pair.program import Pair, PairLike


@dataclass(frozen=True)
class GroupTerms:
    """A group of rows with the same arguments: their names, how many rows there are, and the layout of the pair for them.

    (Of several ranks, each may have its own number of rows; see `ranks.stands_for`.)

    `weight` is how many times each of its rows counts in what is maximised.
    """

    names: tuple[str, ...]
    num_rows: float
    layout: Layout
    weight: float = 1.0


@dataclass
class MinibatchLoss:
    """The loss of a minibatch: -(sum over groups of weight times objective - penalty) / num_rows, in nats per row.

    Args:
        pair: the model and the guide.
        loss: what a fit ascends, as `pv.Trace_ELBO()` gives it.
        num_rows: N, the training rows of all groups.
        groups: the groups of rows, by the name of their indices among the inputs of a step. The local terms of B of a group's
            N_g rows count N_g/B times. A global site is drawn and counted once, with the first group that has it.
        rows: all training rows; `inputs[name of a group]` holds the indices of this minibatch. None where the inputs are the
            rows themselves.
        transform: applied to the rows of each group.
        penalty: added to the loss, in nats for the whole data set.
        precision: "bfloat16" computes products of matrices (linear layers, convolutions) in bfloat16; parameters and
            log-densities stay float32.
    """

    pair: PairLike
    loss: Callable[..., Bound]
    num_rows: int
    groups: dict[str, GroupTerms]
    rows: Batch | None = None
    transform: Transform | None = None
    penalty: Callable[[Any], Tensor] | None = None
    precision: str = "float32"

    def __call__(self, inputs: Batch, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The ELBO without KL weight, and the loss to descend, both 0-d tensors in nats per row."""
        bounds: list[Bound] = []
        drawn: dict[str, Tensor] = {}
        counted: set[str] = set()
        with ExitStack() as stack:
            if self.precision == "bfloat16":
                stack.enter_context(low_precision(next(iter(inputs.values())).device))
            for name, group in self.groups.items():
                if self.rows is None:
                    # an engine that compares two runs of a step gives both the same inputs, and a transform may write
                    batch = {n: v.clone() for n, v in inputs.items()} if self.transform is not None else inputs
                else:
                    batch = {argument: self.rows[argument].index_select(0, inputs[name]) for argument in group.names}
                if self.transform is not None:
                    batch = self.transform(batch)
                pair: PairLike = self.pair
                fresh = Keep(set(group.layout.shared) - counted)
                if len(self.groups) > 1 and (counted or group.layout.global_sites):
                    guide = fresh(settled(self.pair.guide, drawn, counted))
                    pair = Pair(settled(self.pair.model, drawn, counted), guide)
                with _enough_to_normalise(group, num_rows(batch)):
                    bound = self.loss(
                        pair, batch, num_rows=group.num_rows, kl_weight=weights.get("kl"), layout=group.layout
                    )
                if not isinstance(bound, Bound):
                    raise OptionError(
                        f"A loss must return a pv.Bound, and it returned a {type(bound).__name__}: the ELBO and the objective "
                        "that is ascended, both 0-d tensors in nats for the whole data set, as pv.elbo(pv.terms(pair, batch)) "
                        "does."
                    )
                bounds.append(Bound(bound.elbo, group.weight * bound.objective) if group.weight != 1 else bound)
                drawn |= fresh.values
                counted |= set(group.layout.global_sites)
        whole = Bound(*(sum(values[1:], values[0]) for values in zip(*bounds)))
        descend = -whole.objective
        if self.penalty is not None:
            penalty = self.penalty(self.pair)
            if not isinstance(penalty, Tensor) or penalty.dim():
                raise PairError(f"penalty must return a 0-d tensor, in nats: sum it. It returned {penalty!r}.")
            descend = descend + penalty
        return whole.elbo / self.num_rows, descend / self.num_rows


@contextmanager
def _enough_to_normalise(group: GroupTerms, rows: int) -> Iterator[None]:
    """Explain what batch normalisation says where a step has a single value of a channel, and so no variance."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("Expected more than 1"):
            raise
        raise PairError(
            f"A step takes {rows} of the {group.num_rows:.0f} rows that have {', '.join(group.names)}, and batch normalisation "
            f"needs several values of each channel ({str(error).splitlines()[0]}): give it at least two rows a step "
            "(batch_size=..., or group_size=... where rows are grouped), or use LayerNorm or GroupNorm instead."
        ) from error

"""Training rows in groups of which the same arguments are known: one is the ordinary case, several share every minibatch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.batching.batches import group_sizes, group_weights
from pyrovae.batching.incoming import Incoming
from pyrovae.engine import ranks
from pyrovae.errors import DataError, OptionError
from pyrovae.pair.batch import Batch, group_rows
from pyrovae.pair.parameters import fork_rng
from pyrovae.pair.program import PairLike, arguments
from pyrovae.training.bind import FitData
from pyrovae.training.fit_options import FitOptions


@dataclass
class TrainingGroup:
    """Training rows of which the same arguments are known: `size` of the rows with these indices are in each minibatch.

    `weight` is how many times each of them counts.
    """

    names: tuple[str, ...]
    rows: Tensor
    size: int
    weight: float
    num_rows: int  # N_g, which is more than are known of where rows come batch by batch

    @property
    def key(self) -> str:
        """The name of this group's indices among the inputs of a step."""
        return f"index of {','.join(self.names)}"

    def first_batch(self, data: FitData) -> Batch:
        """The first rows as they come, as many as a rank takes of a minibatch."""
        rows = data.training.take(self.rows[: -(-self.size // ranks.world_size())].to(data.device))
        return {name: value for name, value in rows.items() if name in self.names}


def group(pair: PairLike, data: FitData, options: FitOptions) -> list[TrainingGroup]:
    """Group the training rows by which of their arguments are known; groups with fewer arguments first.

    Raises DataError for a stream whose rows lack an argument: which rows do is not known before all have been read.
    """
    training = data.training
    if training.rows is not None:
        found = group_rows(pair, training.rows)
    else:
        with fork_rng():
            first = training.take(torch.arange(data.batch_size))
        found = group_rows(pair, first)
        if len(found) > 1 or len(found[0].names) < len(first):
            raise DataError(
                "Rows of which some lack an argument (-1, or NaN) are grouped, which needs all of them at hand: pass arrays or "
                "tensors in place of a Dataset, a DataLoader or batches."
            )
    sizes = [data.batch_size]
    optional = [name for name, parameter in arguments(pair).items() if parameter.default is None]
    weights = group_weights(found, optional, {} if options.group_weight is None else options.group_weight)
    if isinstance(training, Incoming) and options.group_size:
        raise OptionError("group_size chooses among rows at hand, and these come batch by batch: leave it out.")
    if len(found) > 1 or options.group_size:
        sizes = group_sizes(found, optional, data.batch_size, options.group_size or {})
    if isinstance(training, Incoming):
        return [TrainingGroup(found[0].names, found[0].rows, sizes[0], weights[0], training.num_rows)]
    rows = [one.rows for one in found] if training.rows is not None else [torch.arange(training.num_rows)]
    own = zip(found, rows, sizes, weights)
    return [TrainingGroup(one.names, index, size, weight, len(index)) for one, index, size, weight in own]

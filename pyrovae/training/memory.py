"""A fit whose steps need more memory than there is: which batch size fits."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch

from pyrovae.batching.memory import free_memory
from pyrovae.engine.tracing import undone
from pyrovae.errors import OutOfMemoryError, short_of_memory
from pyrovae.fitted.fitted import transform_once
from pyrovae.objectives.losses import as_loss
from pyrovae.pair.batch import num_rows, take_rows
from pyrovae.pair.layout import describe
from pyrovae.pair.parameters import default_dtype, fork_rng, named_tensors, param_scope, place, trainable
from pyrovae.pair.program import PairLike
from pyrovae.training.bind import FitData
from pyrovae.training.fit_options import FitOptions
from pyrovae.training.groups import TrainingGroup


def too_large(
    pair: PairLike, data: FitData, groups: Sequence[TrainingGroup], options: FitOptions, said: str
) -> OutOfMemoryError:
    """The error of a fit for which memory did not suffice; it names a batch size whose loss and gradients do fit.

    Args:
        pair, data, groups, options: Of the fit, of which nothing else may be in memory any more.
        said: What torch said.
    """
    size = data.batch_size
    try:
        while size and not _fits(pair, data, groups, options, size / data.batch_size):
            size //= 2
    except Exception:  # of a pair that fails in another way, too, and must not hide how it failed first
        size = data.batch_size
    where = "" if options.checkpoint is None else f" What was written to {options.checkpoint} before is still whole."
    if not size:
        cure = "not even a step of one row fits: choose smaller networks, or fewer particles"
    elif size < data.batch_size:
        cure = f"a step of {data.batch_size} rows does not fit, and one of {size} does: set batch_size={size}"
    else:
        cure = (
            "choose a smaller batch_size, end what else uses the device, or give many or large rows as a torch Dataset, whose "
            "batches are loaded one by one"
        )
    return OutOfMemoryError(f"Memory does not suffice ({said}): {cure}.{where}")


def _fits(pair: PairLike, data: FitData, groups: Sequence[TrainingGroup], options: FitOptions, share: float) -> bool:
    """Whether loss and gradients can be computed of this share of the rows of a step. Nothing changes."""
    free_memory()
    objective = as_loss(options.loss)
    buffers = list(named_tensors(pair, buffers=True).values())
    try:
        with param_scope({}), default_dtype(pair), fork_rng(), undone(buffers), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            place(pair, data.device)
            for one in groups:
                first = one.first_batch(data)
                some = take_rows(first, slice(0, max(1, int(num_rows(first) * share))))
                moved = {name: value.to(data.device) for name, value in some.items()}
                rows = transform_once(pair, moved, options.transform)
                layout = describe(pair, take_rows(rows, slice(0, 2)))
                bound = objective(pair, rows, num_rows=one.num_rows, kl_weight=None, layout=layout)
                torch.autograd.grad(bound.objective, list(trainable(pair).values()), allow_unused=True)
    except Exception as error:
        if not short_of_memory(error):
            raise
        return False
    return True

"""What a transform makes of a batch, checked."""

from __future__ import annotations

from torch import Tensor

from pyrovae.batching.transforms import Transform
from pyrovae.errors import DataError, OptionError, counted
from pyrovae.pair.batch import Batch, num_rows
from pyrovae.pair.program import PairLike, arguments


def in_evaluation(transform: Transform | None) -> Transform | None:
    """What a transform of training does to rows of which something is asked: nothing if it says `only_in_training`."""
    return None if getattr(transform, "only_in_training", False) else transform


def transformed(pair: PairLike, batch: Batch, transform: Transform | None) -> Batch:
    """What the pair sees of a batch: what the transform makes of a copy of it, checked against the model's arguments.

    A transform may change values, shapes and dtypes, and add arguments of the model that the data lack.

    Raises:
        OptionError: The transform returns something else than a dict of tensors with the same rows, or other arguments than
            the model takes, or it leaves one out that it was given.
        DataError: An argument that the model needs is neither in the data nor in what the transform returns.
    """
    if transform is None:
        return batch
    try:
        made = transform({name: value.clone() for name, value in batch.items()})
    except KeyError as error:
        raise OptionError(
            f"transform reads {error}, and these rows have only {', '.join(map(repr, batch))}."
        ) from error
    if not isinstance(made, dict) or not all(isinstance(value, Tensor) and value.dim() for value in made.values()):
        raise OptionError("transform takes a batch, a dict of tensors, and returns one: {**batch, 'x': changed}.")
    taken = arguments(pair)
    if unknown := [name for name in made if name not in taken]:
        raise OptionError(
            f"transform returns {unknown}, and the model takes only ({', '.join(taken)}): leave out what is not for the model."
        )
    if missing := [name for name in taken if name in batch and name not in made]:
        raise OptionError(f"transform leaves out {missing}, which the model takes: return {{**batch, 'x': changed}}.")
    if missing := [name for name, p in taken.items() if p.default is p.empty and name not in made]:
        raise DataError(
            f"The model takes ({', '.join(taken)}), and neither the data nor transform give {missing}: pass a dict with these "
            "names as keys, or have transform add them."
        )
    rows = {name: len(value) for name, value in made.items()}
    if set(rows.values()) != {num_rows(batch)}:
        raise OptionError(
            f"transform must keep the {counted(num_rows(batch), 'row')} of a batch in every argument, it returned {rows}."
        )
    return made

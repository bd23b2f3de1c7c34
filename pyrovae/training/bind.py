"""The data of a fit: bound to the arguments of the model, with validation rows split off."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader

from pyrovae.batching.incoming import Incoming, can_start_again, length
from pyrovae.batching.splits import Split
from pyrovae.batching.stream import Resident, Stream
from pyrovae.batching.transformed import transformed
from pyrovae.engine import ranks
from pyrovae.errors import CheckpointError, DataError, OptionError
from pyrovae.pair.batch import Batch, as_batch, cast, check_columns, check_names, columns_of, named_by
from pyrovae.pair.casts import find_casts
from pyrovae.pair.datasets import is_batches, is_streamed
from pyrovae.pair.parameters import find_device
from pyrovae.pair.program import PairLike
from pyrovae.pair.stored import Stored
from pyrovae.training.fit_options import FitOptions

FIRST = 64  # rows of a Dataset by which it is found out in which dtype the pair takes them


@dataclass
class FitData:
    """The data of a fit: training rows, validation rows, and other rows that are only checked."""

    training: Resident | Stream | Incoming
    validation: Batch | None
    checked: Batch | None
    split: Split | None
    batch_size: int
    epochs: int
    seed: int
    device: torch.device
    # of rows that come batch by batch: steps in all, and in an epoch on average
    steps: list[float] | None = None
    # the names of the columns of an argument, where it is a table that has some
    columns: dict[str, list[str]] = field(default_factory=dict)
    # floating-point operations of the largest product in a step, and in a full chunk of a question, once the pair has run
    product: float = 0.0
    chunk_product: float = 0.0

    def place(self) -> None:
        """Move everything to the device."""
        self.training.place(self.device)
        if self.validation is not None:
            self.validation = {name: value.to(self.device) for name, value in self.validation.items()}


def bind(pair: PairLike, data: Any, options: FitOptions) -> FitData:
    """Bind data to the arguments of the model, and split off the validation rows."""
    device, seed, batch_size = find_device(options.device), options.seed, options.batch_size
    ranks.check_device(device)
    if isinstance(data, DataLoader) and batch_size is None:
        batch_size = getattr(data.batch_sampler, "batch_size", None)

    transforms = options.transform is not None
    casts: dict[str, torch.dtype] = {}  # of rows with which the pair does not compute as they are

    named = {} if is_batches(data) or is_streamed(data) else columns_of(pair, data)
    check_names(pair, data)

    def whole(rows: Any, name: str = "data") -> Batch:
        if is_batches(rows):
            raise DataError(
                f"{name} must be rows at hand, an array or a dict of them, and not batches that come one by one."
            )
        if rows is not data and not is_streamed(rows):
            for argument, names in columns_of(pair, rows).items():
                of = {**named_by(pair), **named}.get(argument)
                check_columns(argument, names, of, "the training rows", "table[training.columns]")
        return as_batch(pair, rows, transforms=transforms, casts=casts)

    def find(rows: Batch) -> dict[str, torch.dtype]:
        return find_casts(pair, rows, seed or 0, lambda few: transformed(pair, few, options.transform))

    comes = isinstance(data, Stored) or is_batches(data)
    if comes and options.resume and not can_start_again(data):
        raise CheckpointError(
            f"A fit to batches of a bare iterator ({type(data).__name__}) cannot be resumed, since what it has read is gone. "
            "Give something that can be started again, and is then wound forward: a list, a DataLoader, or a function that "
            "makes the iterator, pv.fit(pair, lambda: batches(), ...)."
        )
    if comes and ranks.world_size() > 1:
        raise OptionError(
            "Several processes fit rows at hand together, and these come batch by batch: fit them in one process, or pass "
            "arrays or a map-style Dataset."
        )
    if seed is None:
        seed = int(options.recorded("seed") or 0) if options.resume else ranks.agree(int(torch.randint(2**31, ())))
    training: Resident | Stream | Incoming
    if comes:
        how: dict[str, Any] = {"transforms": transforms, "find_casts": find}
        training = Incoming(pair, data, device, batch_size, options.num_rows, seed, **how)
        batch_size, casts = training.batch_size, training.casts
    elif is_streamed(data):
        training = Stream(pair, data, device, transforms=transforms)
        training.casts = casts = find(training.take(torch.arange(min(FIRST, training.num_rows))))
    else:
        bound = whole(data)
        casts = find(bound)
        training = Resident(cast(pair, bound, casts), torch.device("cpu"))
    if not comes:
        _check_length(options)
    epochs, steps = options.epochs or 0, None
    if isinstance(training, Incoming):
        epochs, *steps = length(training, options.epochs, options.steps)
    validation, split = None, None
    if isinstance(options.validation, (int, float)):
        if isinstance(training, Incoming):
            raise OptionError(
                f"validation={options.validation!r} holds out a share of rows at hand, and these come batch by batch: give "
                "rows of their own, validation=rows, or None."
            )
        share = float(options.validation)
        split = Split(training.num_rows, test_fraction=0.0, validation_fraction=share, seed=seed)
        validation, training = training.take(split.validation), training.subset(split.train)
    elif options.validation is not None:
        validation = whole(options.validation, "validation")
    checked = None if options.check_also is None else whole(options.check_also, "check_also")
    rows = training.num_rows
    batch_size = min(128, rows) if batch_size is None else batch_size
    if batch_size > rows:
        raise DataError(f"batch_size={batch_size} is larger than the {rows} training rows: use at most {rows}.")
    return FitData(training, validation, checked, split, batch_size, epochs, seed, device, steps, named)


def _check_length(options: FitOptions) -> None:
    """OptionError for a length of the fit, or a number of rows, that is not for rows at hand."""
    given = {"steps": options.steps, "num_rows": options.num_rows}
    for name, value in given.items():
        if value is not None:
            raise OptionError(
                f"{name}={value} is for rows that come batch by batch, and these are at hand: leave it out"
                + (", and give epochs=..., passes over the rows." if name == "steps" else ".")
            )
    if options.epochs is None:
        raise OptionError("epochs must be a whole number of at least 0, got None: say how many passes over the rows.")

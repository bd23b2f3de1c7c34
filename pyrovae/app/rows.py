"""Rows: a data set, split and scaled as the model of a run takes it, with the labels that the model may see.

Everything here follows from the options and the seed, so that a run that is opened again has the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrovae.app.catalogue import BY_COLUMN, CONDITION, Likelihood, part
from pyrovae.app.decide import class_names
from pyrovae.app.given import Given, GivenCaptions
from pyrovae.app.models import MODELS
from pyrovae.app.options import Options
from pyrovae.batching.splits import Split
from pyrovae.data import Dataset, Standardize
from pyrovae.errors import OptionError, counted
from pyrovae.pair.batch import take_rows

if TYPE_CHECKING:
    from pyrovae.tables.schema import Schema

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Labels:
    """One of several columns of labels of a run.

    Args:
        argument: of the model, "y1", "y2", ...
        name: of the column.
        classes: as the source writes them.
        codes: class numbers of each part, `(N,)`, -1 where unknown.
    """

    argument: str
    name: str
    classes: tuple[str | int, ...]
    codes: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a run as its model takes them.

    Args:
        train, validation, test: `(N, *event)`; validation is None where there are no such rows.
        argument: the argument of the model that labels go to, or None.
        codes: class numbers of each part, `(N,)`, -1 where unknown or hidden from the model; None without labels.
        classes: the names of the model's classes or clusters, or None.
        labels: the labels of the test rows as the source writes them, `(N_test,)`, or None.
        scaler: the scaling that was applied to the columns, or None.
        image_shape: the shape of a row that is an image, or None.
        columns: the columns' names, or None.
        schema: what the columns of a table are, whose rows it encoded, or None.
        given: columns or captions that the model is given with every row, or None.
        several: the columns of labels, of a model that has several.
        test_index: the position of each test row in the source, `(N_test,)`.
        divisor: what the source's values were divided by when they were read. Densities are given for the source's own
            values; for masses it is 1.
    """

    train: Tensor
    validation: Tensor | None
    test: Tensor
    argument: str | None
    codes: Mapping[str, Tensor | None]
    classes: tuple[str | int, ...] | None
    labels: Array | None
    scaler: Standardize | None
    image_shape: tuple[int, ...] | None
    columns: tuple[str, ...] | None
    test_index: Tensor
    divisor: float
    schema: Schema | None = None
    given: Given | GivenCaptions | None = None
    several: tuple[Labels, ...] = ()

    def batch(self, part: str, *, labels: bool = True) -> dict[str, Tensor]:
        """The rows of "train", "validation" or "test" as the model's arguments.

        A condition c is given with every row. A label y, which the model can infer, is given in training only, and with
        `labels`; elsewhere it serves for scoring.
        """
        x, codes = getattr(self, part), self.codes[part]
        if self.given is not None:
            return {"x": x, **self.given.argument(self.given.parts[part])}
        if self.several and part == "train" and labels:
            return {"x": x, **{column.argument: column.codes[part] for column in self.several}}
        if self.argument is None or codes is None:
            return {"x": x}
        if self.argument != CONDITION and (part != "train" or not labels):
            return {"x": x}
        return {"x": x, self.argument: codes}

    def examples(self) -> dict[str, dict[str, Tensor]]:
        """Two training rows for each graph that the model has: without its label, and with it where it may have one.

        The keys say which is meant; "" where there is nothing to tell apart.
        """
        given = take_rows(self.batch("train"), slice(0, 2))
        if self.several:
            every = {column.argument: torch.zeros(2, dtype=torch.int64) for column in self.several}
            names = " and ".join([", ".join(list(every)[:-1]), list(every)[-1]])
            return {"": {"x": given["x"]}, f"where {names} are known": {"x": given["x"], **every}}
        if self.argument in (None, CONDITION):
            return {"": given}
        known = torch.zeros(2, dtype=torch.int64)  # any class: the graph is the same
        return {"": {"x": given["x"]}, f"where {self.argument} is known": {**given, str(self.argument): known}}

    @property
    def gaps(self) -> bool:
        """Whether a cell is missing in some row."""
        parts = (self.train, self.validation, self.test)
        return any(bool(part.isnan().any()) for part in parts if part is not None)

    @property
    def num_classes(self) -> int:
        return len(self.classes or ())

    def restore(self, rows: Tensor) -> Tensor:
        """Rows of the model, `(N, *event)`, in the units of the source: `(N, D)`."""
        flat = rows.flatten(1)
        return self.scaler.invert(flat) * self.divisor if self.scaler is not None else flat

    def dequantised(self, rows: Tensor, seed: int) -> Tensor:
        """Rows of the model plus uniform noise, on [0, 1) in the source's units, whose values are whole numbers."""
        noise = torch.rand(rows.shape, generator=torch.Generator().manual_seed(seed)).to(rows)
        scale = self.divisor * (self.scaler.scale.reshape(rows.shape[1:]) if self.scaler is not None else 1.0)
        return rows + (noise / scale).to(rows)

    @property
    def log_abs_det(self) -> float:
        """Subtract it from the log density of a standardised row to get that in the units of the source, nats per row."""
        scaled = 0.0 if self.scaler is None else float(self.scaler.log_abs_det)
        return scaled + self.test[0].numel() * math.log(self.divisor)


def split_rows(dataset: Dataset, options: Options) -> Split:
    test = 0.0 if dataset.x_test is not None else options.test_fraction
    if dataset.x_test is None and not test > 0:
        raise OptionError("--test-fraction must be above 0: this data set has no test rows of its own.")
    return Split(len(dataset.x), test_fraction=test, validation_fraction=options.validation_fraction, seed=options.seed)


def make_rows(dataset: Dataset, split: Split, options: Options, scaler: Standardize | None = None) -> Rows:
    """Split the rows, scale and shape them for the model, and choose the labels that it may see.

    Args:
        scaler: the scaling of an earlier fit; None fits one to the training rows, where the likelihood is one of reals.
    """
    schema = dataset.schema if options.likelihood in BY_COLUMN else None
    if schema is not None and dataset.encoded is not None:
        dataset = replace(dataset, x=dataset.encoded, columns=schema.names)
    test = dataset.x[split.test] if dataset.x_test is None else dataset.x_test
    codes: dict[str, Tensor | None] = dict.fromkeys(("train", "validation", "test"))
    if dataset.y is not None:
        codes = {part: dataset.y[getattr(split, part)] for part in codes}
    if dataset.x_test is not None:
        codes["test"] = dataset.y_test
    parts = (dataset.x[split.train], dataset.x[split.validation], test)
    (train, validation, test), scaler = model_rows(dataset, options, parts, scaler)
    model, classes = MODELS[options.model], None
    given: Given | GivenCaptions | None = None
    if dataset.c is not None and dataset.captions is not None:
        told = {part: dataset.c[getattr(split, part)] for part in codes}
        given = GivenCaptions(dataset.captions, told if dataset.c_test is None else told | {"test": dataset.c_test})
    elif dataset.c is not None and dataset.conditions is not None:
        given = Given(
            dataset.conditions, {part: dataset.c[getattr(split, part)] for part in codes}, options.size_column
        )
    elif model.labels is not None:
        classes = class_names(dataset)
        assert codes["train"] is not None  # checked by `decide`
        codes["train"] = keep_labels(codes["train"], classes, options)
    elif model.clusters:
        classes = tuple(range(int(options.clusters or 0)))
    for column in dataset.labels:
        if not bool((column.y[split.train] >= 0).any()):
            raise OptionError(f"No training row has a label in column {column.name}. Give rows that have one.")
    return Rows(
        train=train,
        validation=validation if len(validation) else None,
        test=test,
        argument=model.labels,
        codes=codes,
        classes=classes,
        labels=None if codes["test"] is None else class_values(dataset, codes["test"]),
        scaler=scaler,
        image_shape=dataset.image_shape,
        columns=dataset.columns,
        test_index=split.test if dataset.x_test is None else len(dataset.x) + torch.arange(len(dataset.x_test)),
        divisor=divisor_of(dataset, options),
        schema=schema,
        given=given,
        several=tuple(
            Labels(f"y{number}", one.name, one.classes, {part: one.y[getattr(split, part)] for part in codes})
            for number, one in enumerate(dataset.labels, 1)
        ),
    )


def model_rows(
    dataset: Dataset, options: Options, parts: Sequence[Tensor], scaler: Standardize | None = None
) -> tuple[list[Tensor], Standardize | None]:
    """Several parts of the rows, `(N, D)` each, as the model takes them, and the scaling that was applied, if any.

    Where the likelihood is one of reals, columns are standardised by the first part, or by the `scaler` given; of a model
    that moves images, all pixels of a channel alike. Convolutional nets and models of images get rows in the shape of images.
    """
    likelihood: Likelihood = part("likelihood", str(options.likelihood))
    if likelihood.takes == "real":
        if scaler is None and MODELS[options.model].has_pose and dataset.image_shape:
            scaler = _scaler_of_channels(parts[0], math.prod(dataset.image_shape[-2:]))
        scaler = scaler or Standardize.fit(parts[0])
        parts = [scaler.apply(rows) for rows in parts]
    as_images = options.net != "mlp" or MODELS[options.model].images
    shape = dataset.image_shape if as_images and dataset.image_shape else tuple(parts[0].shape[1:])
    return [rows.reshape(len(rows), *shape) for rows in parts], scaler


def _scaler_of_channels(rows: Tensor, pixels: int) -> Standardize:
    """One mean and scale for all pixels of a channel, so that what is moved keeps its values."""
    channels = rows.reshape(len(rows), -1, pixels).transpose(1, 2).flatten(0, 1)
    found = Standardize.fit(channels)
    return Standardize(found.mean.repeat_interleave(pixels), found.scale.repeat_interleave(pixels))


def divisor_of(dataset: Dataset, options: Options) -> float:
    likelihood: Likelihood = part("likelihood", str(options.likelihood))
    return float(dataset.source.get("divided_by", 1)) if likelihood.density else 1.0


def keep_labels(codes: Tensor, classes: Sequence[str | int], options: Options) -> Tensor:
    """Class numbers of the training rows, `(N,)`, with all but --labelled of them replaced by -1.

    The rows that keep their label are drawn at random, equally many of each class; if --labelled is no multiple of the number
    of classes, the first classes keep one more.

    Raises:
        OptionError: there are fewer labelled rows than wanted, or none.
    """
    wanted, known = options.labelled, int((codes >= 0).sum())
    if not known:
        raise OptionError(f"--model {options.model}: no training row has a label. Give rows that have one.")
    if wanted is None:
        return codes
    if not len(classes) <= wanted <= known:
        raise OptionError(
            f"--labelled {wanted} must be from {len(classes)}, one row a class, to {known}, the training rows with a label."
        )
    generator = torch.Generator().manual_seed(options.seed)
    kept = torch.full_like(codes, -1)
    for code, name in enumerate(classes):
        rows, share = (codes == code).nonzero().squeeze(1), (wanted + len(classes) - 1 - code) // len(classes)
        if len(rows) < share:
            raise OptionError(
                f"--labelled {wanted} takes {counted(share, 'row')} of each class, and {name} has {len(rows)} in "
                "training: ask for fewer."
            )
        kept[rows[torch.randperm(len(rows), generator=generator)[:share]]] = code
    return kept


def names_of(classes: Sequence[str | int], codes: Tensor) -> Array:
    """Class numbers as the source writes the classes, None where unknown."""
    return np.asarray([classes[code] if code >= 0 else None for code in codes.tolist()], dtype=object)


def num_source_rows(dataset: Dataset) -> int:
    """How many rows the source has, with those of a test set."""
    return len(dataset.x) + (0 if dataset.x_test is None else len(dataset.x_test))


def of_source(first: Tensor, rest: Tensor | None, which: Tensor | None = None) -> Tensor:
    """Values of the rows of the source, those of a test set at the end; all, or those of the rows `which`, `(n,)`."""
    if which is None or rest is None:
        every = first if rest is None else torch.cat([first, rest])
        return every if which is None else every[which]
    inside = which < len(first)
    found = first[which.clamp_max(len(first) - 1)]
    found[~inside] = rest[which[~inside] - len(first)]
    return found


def source_rows(dataset: Dataset, rows: Rows, which: Tensor | None = None) -> dict[str, Tensor]:
    """Rows of the source as the model takes rows to encode: without labels, and with what it is given.

    Args:
        which: the numbers of the rows in the source, `(n,)`, where those of a test set come last; None for all.
    """
    first = dataset.encoded if rows.schema is not None and dataset.encoded is not None else dataset.x
    x = of_source(first, dataset.x_test, which)
    scaled = rows.scaler.apply(x) if rows.scaler is not None else x
    batch = {"x": scaled.reshape(len(scaled), *rows.train.shape[1:])}
    if rows.argument == CONDITION:
        if rows.given is not None and dataset.c is not None:
            batch |= rows.given.argument(of_source(dataset.c, dataset.c_test, which))
        elif dataset.y is not None:
            batch[CONDITION] = of_source(dataset.y, dataset.y_test, which)
    return batch


def class_values(dataset: Dataset, codes: Tensor) -> Array:
    """Class numbers as the source writes the classes. Unknown, -1, stays -1, or becomes "unknown" among names."""
    if dataset.classes is None:
        return np.asarray(codes)
    unknown: str | int = "unknown" if any(isinstance(c, str) for c in dataset.classes) else -1
    return np.asarray([dataset.classes[code] if code >= 0 else unknown for code in codes.tolist()])

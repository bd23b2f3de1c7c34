"""Rows: a data set split and scaled as a model of `recipes` takes it, with the labels that the model may see.

This is a face. What is decided here follows from a run's options and seed, and so is the same when the run is opened again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrovae.app.catalogue import CONDITION, Likelihood, part
from pyrovae.app.decide import class_names
from pyrovae.app.models import MODELS
from pyrovae.app.options import Options
from pyrovae.batching.splits import Split
from pyrovae.data import Dataset, Standardize
from pyrovae.errors import OptionError

Array = NDArray[Any]


@dataclass(frozen=True)
class Rows:
    """The rows of a run as the model takes them, and how to get back: `restore` turns model rows into the data's own units."""

    train: Tensor
    validation: Tensor | None
    test: Tensor
    argument: str | None  # of the model, which the labels go to
    codes: Mapping[str, Tensor | None]  # class numbers of each part, -1 where unknown, or hidden from the model
    classes: tuple[str | int, ...] | None  # what the values of the model's classes or clusters are called
    labels: Array | None  # of the test rows, as the source writes them
    scaler: Standardize | None
    image_shape: tuple[int, ...] | None
    columns: tuple[str, ...] | None
    test_index: Tensor  # where the test rows stand in the source, as `encode` numbers its rows
    divisor: float  # what the source was divided by when it was read, undone for densities; 1 for masses

    def batch(self, part: str) -> dict[str, Tensor]:
        """The rows of a part as the model takes them. A condition belongs to every row; a label that the model could tell by
        itself is shown in training alone, and kept for scoring in the other parts."""
        x, codes = getattr(self, part), self.codes[part]
        if self.argument is None or codes is None or (self.argument != CONDITION and part != "train"):
            return {"x": x}
        return {"x": x, self.argument: codes}

    @property
    def num_classes(self) -> int:
        return len(self.classes or ())

    def restore(self, rows: Tensor) -> Tensor:
        flat = rows.flatten(1)
        return self.scaler.invert(flat) * self.divisor if self.scaler is not None else flat

    def dequantised(self, rows: Tensor, seed: int) -> Tensor:
        """Rows plus noise, uniform on [0, 1) in units of the source's whole numbers, as the model takes them."""
        noise = torch.rand(rows.shape, generator=torch.Generator().manual_seed(seed)).to(rows)
        scale = self.divisor * (self.scaler.scale.reshape(rows.shape[1:]) if self.scaler is not None else 1.0)
        return rows + (noise / scale).to(rows)

    @property
    def log_abs_det(self) -> float:
        """What turns a log-density of standardised rows into one of the data's own units: subtract it."""
        scaled = 0.0 if self.scaler is None else float(self.scaler.log_abs_det)
        return scaled + self.test[0].numel() * math.log(self.divisor)


def split_rows(dataset: Dataset, options: Options) -> Split:
    test = 0.0 if dataset.x_test is not None else options.test_fraction
    if dataset.x_test is None and not test > 0:
        raise OptionError("--test-fraction must be above 0: this data set has no test rows of its own.")
    return Split(len(dataset.x), test_fraction=test, validation_fraction=options.validation_fraction, seed=options.seed)


def make_rows(dataset: Dataset, split: Split, options: Options, scaler: Standardize | None = None) -> Rows:
    """Split, standardise by the training rows where the likelihood is a density, and shape rows for the network."""
    train, validation = dataset.x[split.train], dataset.x[split.validation]
    test = dataset.x[split.test] if dataset.x_test is None else dataset.x_test
    codes: dict[str, Tensor | None] = dict.fromkeys(("train", "validation", "test"))
    if dataset.y is not None:
        codes = {part: dataset.y[getattr(split, part)] for part in codes}
    if dataset.x_test is not None:
        codes["test"] = dataset.y_test
    likelihood: Likelihood = part("likelihood", str(options.likelihood))
    if likelihood.takes == "real":
        scaler = scaler or Standardize.fit(train)
        train, validation, test = scaler.apply(train), scaler.apply(validation), scaler.apply(test)
    as_images = options.net != "mlp" or MODELS[options.model].images
    shape = dataset.image_shape if as_images and dataset.image_shape else tuple(train.shape[1:])
    train, validation, test = (part.reshape(len(part), *shape) for part in (train, validation, test))
    model, classes = MODELS[options.model], None
    if model.labels is not None:
        classes = class_names(dataset)
        assert codes["train"] is not None  # `decide` has looked
        codes["train"] = keep_labels(codes["train"], classes, options)
    elif model.clusters:
        classes = tuple(range(int(options.clusters or 0)))
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
        divisor=float(dataset.source.get("divided_by", 1)) if likelihood.density else 1.0,
    )


def keep_labels(codes: Tensor, classes: Sequence[str | int], options: Options) -> Tensor:
    """Class numbers of training rows, all but --labelled of them hidden (-1). OptionError where there are not as many.

    Equally many of each class, one more of the first classes where that does not come out even; drawn by the seed.
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
                f"--labelled {wanted} takes {share} rows of each class, and {name} has {len(rows)} in training: ask for fewer."
            )
        kept[rows[torch.randperm(len(rows), generator=generator)[:share]]] = code
    return kept


def class_values(dataset: Dataset, codes: Tensor) -> Array:
    """Class numbers as the source writes the classes; -1, unknown, stays -1, or "unknown" among names."""
    if dataset.classes is None:
        return np.asarray(codes)
    unknown: str | int = "unknown" if any(isinstance(c, str) for c in dataset.classes) else -1
    return np.asarray([dataset.classes[code] if code >= 0 else unknown for code in codes.tolist()])


def describe_run(dataset: Dataset, options: Options, rows: Rows) -> str:
    """What was decided, in one line."""
    counts = f"{len(rows.train)} training, {0 if rows.validation is None else len(rows.validation)} validation, "
    binarised = (
        " on rows binarised anew at every step" if dataset.kind == "unit" and options.likelihood == "bernoulli" else ""
    )
    model = MODELS[options.model]
    told = f"model {options.model}"
    if model.clusters:
        told += f" of {options.clusters} clusters"
    elif rows.argument is not None:
        labels = rows.batch("train")[rows.argument]
        told += f" of {rows.num_classes} classes, {int((labels >= 0).sum())} training rows labelled"
    latent = ", ".join(map(str, options.levels or (options.latent,)))
    prior = "normal for each class" if model.labels or model.clusters else "normal"
    nets = options.net
    if options.groups is not None:
        latent, nets = f"groups of {','.join(map(str, options.groups))} maps of {latent}", "residual cells"
    return (
        f"{dataset.name}: {counts}{len(rows.test)} test rows of {dataset.x.shape[1]} ({dataset.kind}); {told}, likelihood "
        f"{options.likelihood}{binarised}, prior {options.prior if 'prior' in model.takes else prior}, guide "
        f"{options.guide}, {latent} latent dimensions, {nets}"
    )

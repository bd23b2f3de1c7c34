"""Recipes: which standard VAE a data set gets, and its rows as that model takes them.

This is a face: it puts parts of the model tower together. What it decides by itself it says (`describe_run`) and a run
records.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pyrovae import families, priors
from pyrovae.conditionals import Conditional, conv, mlp
from pyrovae.data import Dataset, Standardize
from pyrovae.errors import CheckpointError, DataError, OptionError
from pyrovae.infer.splits import Split
from pyrovae.models import VAE
from pyrovae.nets import Rescaled

PRIORS: dict[str, Callable[[int], nn.Module]] = {
    "normal": priors.StandardNormal,
    "mixture": priors.MixtureOfNormals,
}
Event = int | tuple[int, ...]
LIKELIHOODS: dict[str, Callable[[Event, int], families.Family]] = {
    "bernoulli": lambda event, total_count: families.Bernoulli(event),
    "binomial": families.Binomial,
    "beta-binomial": families.BetaBinomial,
    "normal": lambda event, total_count: families.Normal(event, scale="column"),
}
NETS = ("mlp", "conv")
Array = NDArray[Any]


@dataclass(frozen=True)
class Options:
    """What a person may choose. None: decided from the data (see `decide`)."""

    prior: str = "normal"
    likelihood: str | None = None
    total_count: int | None = None
    net: str = "mlp"
    latent: int = 10
    hidden: tuple[int, ...] = (400,)
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    kl_warmup: float = 0.0
    clip_norm: float | None = None
    patience: int | None = None
    test_fraction: float = 0.2
    validation_fraction: float = 0.1
    num_samples: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Rows:
    """The rows of a run as the model takes them, and how to get back: `restore` turns model rows into the data's own units."""

    train: Tensor
    validation: Tensor | None
    test: Tensor
    labels: Array | None  # of the test rows, as the source writes them
    scaler: Standardize | None
    image_shape: tuple[int, ...] | None
    columns: tuple[str, ...] | None
    test_index: Tensor  # where the test rows stand in the source, as `encode` numbers its rows
    divisor: float  # what the source was divided by when it was read, undone for densities of real rows

    def restore(self, rows: Tensor) -> Tensor:
        flat = rows.flatten(1)
        return self.scaler.invert(flat) * self.divisor if self.scaler is not None else flat

    @property
    def log_abs_det(self) -> float:
        """What turns a log-density of standardised rows into one of the data's own units: subtract it."""
        if self.scaler is None:
            return 0.0
        return float(self.scaler.log_abs_det) + len(self.scaler.scale) * math.log(self.divisor)


# --- decisions -------------------------------------------------------------------------------------------------------


def choose(name: str, value: str, known: Any) -> str:
    """The value, or OptionError with the known ones."""
    if value not in known:
        raise OptionError(f"--{name} {value!r} is not known; known: {', '.join(known)}.")
    return value


def decide(options: Options, dataset: Dataset, num_rows: int) -> Options:
    """Fill in what was left open, from the data: the likelihood from their kind, the length of the fit from their number.

    Epochs: about 3,000 steps, at least 20 and at most 500 epochs.
    """
    choose("prior", options.prior, PRIORS)
    choose("net", options.net, NETS)
    bounded = options.total_count if options.total_count is not None else dataset.total_count
    kinds = {
        "binary": "bernoulli",
        "unit": "bernoulli",
        "count": "beta-binomial" if bounded is not None else "normal",
        "real": "normal",
    }
    likelihood = options.likelihood or kinds[dataset.kind]
    choose("likelihood", likelihood, LIKELIHOODS)
    if likelihood in ("binomial", "beta-binomial") and bounded is None:
        raise OptionError(f"--likelihood {likelihood} needs --total-count, the largest count that can occur.")
    if options.latent < 1 or any(width < 1 for width in options.hidden):
        raise OptionError(f"--latent and --hidden must be positive, got {options.latent} and {options.hidden}.")
    for name in ("epochs", "batch_size", "num_samples", "total_count"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise OptionError(f"--{name.replace('_', '-')} must be at least 1, got {value}.")
    for name in ("learning_rate", "clip_norm"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise OptionError(f"--{name.replace('_', '-')} must be positive, got {value}.")
    if not options.kl_warmup >= 0:
        raise OptionError(f"--kl-warmup is a number of epochs, 0 for none, got {options.kl_warmup}.")
    batch_size = options.batch_size or min(num_rows, 256 if num_rows >= 20_000 else 128)
    filled = {
        "likelihood": likelihood,
        "total_count": bounded if likelihood in ("binomial", "beta-binomial") else None,
        "batch_size": batch_size,
        "epochs": options.epochs or max(20, min(500, math.ceil(3000 * batch_size / num_rows))),
        "learning_rate": options.learning_rate or 3e-3,
    }
    return Options(**{**asdict(options), **filled})


def build(options: Options, event_shape: tuple[int, ...]) -> VAE:
    """The standard VAE of these options for rows of that shape. Counts enter the encoder divided by their bound."""
    event: Event = event_shape[0] if len(event_shape) == 1 else event_shape
    total = options.total_count or 1
    likelihood_family = LIKELIHOODS[str(options.likelihood)](event, total)
    guide_family = families.Normal(options.latent)
    if options.net == "conv":
        if len(event_shape) < 2:
            raise OptionError("--net conv needs images, and these rows have no image shape; use --net mlp.")
        encoder, likelihood = conv(event_shape, guide_family), conv(options.latent, likelihood_family)
    else:
        encoder = mlp(event_shape[0], guide_family, hidden=options.hidden)
        likelihood = mlp(options.latent, likelihood_family, hidden=options.hidden)
    if total > 1:
        encoder = Conditional(Rescaled(encoder.net, 1 / total), guide_family)
    return VAE(prior=PRIORS[options.prior](options.latent), likelihood=likelihood, encoder=encoder)


def split_rows(dataset: Dataset, options: Options) -> Split:
    test = 0.0 if dataset.x_test is not None else options.test_fraction
    if dataset.x_test is None and not test > 0:
        raise OptionError("--test-fraction must be above 0: this data set has no test rows of its own.")
    return Split(len(dataset.x), test_fraction=test, validation_fraction=options.validation_fraction, seed=options.seed)


def make_rows(dataset: Dataset, split: Split, options: Options, scaler: Standardize | None = None) -> Rows:
    """Split, standardise by the training rows where the likelihood is a density, and shape rows for the network."""
    train, validation = dataset.x[split.train], dataset.x[split.validation]
    test = dataset.x[split.test] if dataset.x_test is None else dataset.x_test
    codes = dataset.y_test if dataset.x_test is not None else None if dataset.y is None else dataset.y[split.test]
    if options.likelihood == "normal":
        scaler = scaler or Standardize.fit(train)
        train, validation, test = scaler.apply(train), scaler.apply(validation), scaler.apply(test)
    shape = dataset.image_shape if options.net == "conv" and dataset.image_shape else tuple(train.shape[1:])
    train, validation, test = (part.reshape(len(part), *shape) for part in (train, validation, test))
    return Rows(
        train=train,
        validation=validation if len(validation) else None,
        test=test,
        labels=None if codes is None else class_values(dataset, codes),
        scaler=scaler,
        image_shape=dataset.image_shape,
        columns=dataset.columns,
        test_index=split.test if dataset.x_test is None else len(dataset.x) + torch.arange(len(dataset.x_test)),
        divisor=float(dataset.source.get("divided_by", 1)),
    )


def class_values(dataset: Dataset, codes: Tensor) -> Array:
    """Class numbers as the source writes the classes; -1, unknown, stays -1, or "unknown" among names."""
    if dataset.classes is None:
        return np.asarray(codes)
    unknown: str | int = "unknown" if any(isinstance(c, str) for c in dataset.classes) else -1
    return np.asarray([dataset.classes[code] if code >= 0 else unknown for code in codes.tolist()])


def read_options(info: Mapping[str, Any]) -> Options:
    """The options of a run.json. CheckpointError when they are not whole."""
    try:
        found = dict(info["options"])
        names = {f.name for f in fields(Options)}
        if set(found) != names:
            raise KeyError(f"options {sorted(set(found) ^ names)}")
        return Options(**{**found, "hidden": tuple(found["hidden"])})
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"The run's options are damaged or missing ({error!r}): was it made by `pyrovae fit`?"
        ) from error


def refuse_missing(dataset: Dataset) -> None:
    """DataError for missing entries, by their place in the source: the standard VAE does not take them."""
    for part in (dataset.x, dataset.x_test):
        if part is not None and bool(part.isnan().any()):
            row, column = part.isnan().nonzero()[0].tolist()
            name = dataset.columns[column] if dataset.columns else f"column {column}"
            raise DataError(
                f"{dataset.name} has {int(part.isnan().sum())} missing entries (NaN) in {int(part.isnan().any(1).sum())} rows, "
                f"the first in row {row} (counted from 0), {name}. Fill or drop them; in Python, pv.observed_only(likelihood) "
                "leaves them out of the density."
            )


def describe_run(dataset: Dataset, options: Options, rows: Rows) -> str:
    """What was decided, in one line."""
    counts = f"{len(rows.train)} training, {0 if rows.validation is None else len(rows.validation)} validation, "
    binarised = (
        " on rows binarised anew at every step" if dataset.kind == "unit" and options.likelihood == "bernoulli" else ""
    )
    return (
        f"{dataset.name}: {counts}{len(rows.test)} test rows of {dataset.x.shape[1]} ({dataset.kind}); likelihood "
        f"{options.likelihood}{binarised}, prior {options.prior}, {options.latent} latent dimensions, {options.net}"
    )

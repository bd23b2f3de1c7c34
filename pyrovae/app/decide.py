"""What a data set and the options together decide: defaults filled in, combinations that cannot be refused."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

from torch import Tensor, nn

from pyrovae.app.catalogue import CONDITION, FLOWS, LIKELIHOODS, NETS, Likelihood, Model, Prior, choose, is_own, part
from pyrovae.app.models import MODELS, Pieces
from pyrovae.app.options import Options
from pyrovae.data import Dataset
from pyrovae.errors import DataError, OptionError


def decide(options: Options, dataset: Dataset, num_rows: int) -> Options:
    """Fill in what was left open, from the data: the likelihood from their kind, the length of the fit from their number.

    Epochs: about 3,000 steps, at least 20 and at most 500 epochs.
    """
    clusters = _fitting_model(options, dataset)
    prior: Prior = part("prior", options.prior)
    guide = options.guide or prior.guides[0]
    part("guide", guide)
    if guide not in (fitting := prior.guides) and not is_own(guide) and not is_own(options.prior):
        raise OptionError(
            f"--guide {guide} has not the support of --prior {options.prior}; that prior takes {', '.join(fitting)}."
        )
    if guide in FLOWS and options.net != "mlp":
        raise OptionError(f"--guide {guide} stands behind --net mlp; with --net {options.net} take another guide.")
    choose("net", options.net, NETS)
    if options.net == "conv" and options.hidden != (400,):
        raise OptionError("--hidden is for --net mlp and resnet: a convolutional net has its channels.")
    bounded = options.total_count if options.total_count is not None else dataset.total_count
    kinds = {
        "binary": "bernoulli",
        "unit": "bernoulli",
        "count": "beta-binomial" if bounded is not None else "negative-binomial",
        "real": "normal",
    }
    likelihood = options.likelihood or kinds[dataset.kind]
    chosen: Likelihood = part("likelihood", likelihood)
    if options.total_count is not None and not chosen.needs_total:
        takes = ", ".join(name for name, other in LIKELIHOODS.items() if other.needs_total)
        raise OptionError(f"--total-count does not go with --likelihood {likelihood}; it is for {takes}.")
    if chosen.needs_total and bounded is None:
        raise OptionError(f"--likelihood {likelihood} needs --total-count, the largest count that can occur.")
    levels = options.levels
    if levels is None and "levels" in MODELS[options.model].takes:
        levels = (options.latent, max(1, options.latent // 2))
    latent = levels[0] if levels else options.latent
    if levels == () or any(size < 1 for size in (latent, *options.hidden, *(levels or ()))):
        raise OptionError(
            f"--latent, --levels and --hidden must be positive, got {latent}, {levels} and {options.hidden}."
        )
    if options.model == "ladder" and not options.hidden:
        raise OptionError("--model ladder needs --hidden of at least one width: what goes up the levels.")
    for name in ("epochs", "batch_size", "num_samples", "total_count"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise OptionError(f"--{name.replace('_', '-')} must be at least 1, got {value}.")
    for name in ("learning_rate", "clip_norm"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise OptionError(f"--{name.replace('_', '-')} must be positive, got {value}.")
    for name, what in (
        ("kl_warmup", "a number of epochs"),
        ("kl_cycles", "how often the KL weight rises"),
        ("free_bits", "nats a row"),
        ("lagging", "a number of epochs"),
    ):
        if not 0 <= getattr(options, name) < math.inf:
            raise OptionError(f"--{name.replace('_', '-')} is {what}, 0 for none, got {getattr(options, name)}.")
    if options.patience is not None and not options.validation_fraction:
        raise OptionError("--patience needs rows to watch: give --validation-fraction 0.1, or leave it out.")
    if options.kl_warmup and options.kl_cycles:
        raise OptionError("--kl-warmup and --kl-cycles are two schedules of one weight: choose one.")
    batch_size = options.batch_size or min(num_rows, 256 if num_rows >= 20_000 else 128)
    groups = options.groups
    if groups is None and "groups" in MODELS[options.model].takes:
        groups = (1, 2)
    if groups is not None and (not groups or min(groups) < 1):
        raise OptionError(f"--groups are whole numbers of at least 1, the coarsest resolution first, got {groups}.")
    epochs = options.epochs or max(20, min(500, math.ceil(3000 * batch_size / num_rows)))
    for name in ("kl_warmup", "lagging"):
        if getattr(options, name) > epochs:
            raise OptionError(
                f"--{name.replace('_', '-')} {getattr(options, name):g} is longer than the fit of {epochs} epochs: take half "
                "of them, or more --epochs."
            )
    # without it most groups of maps are switched off before they are of use
    warms_up = MODELS[options.model].images and not options.kl_cycles
    filled = {
        "clusters": clusters,
        "levels": levels,
        "groups": groups,
        "latent": latent,
        "prior": _found(options.prior),
        "likelihood": _found(likelihood),
        "guide": None if MODELS[options.model].images else _found(guide),
        "total_count": bounded if chosen.needs_total else None,
        "batch_size": batch_size,
        "epochs": epochs,
        "kl_warmup": options.kl_warmup or (epochs / 3 if warms_up else 0.0),
        "learning_rate": options.learning_rate or 3e-3,
    }
    return Options(**{**asdict(options), **filled})


def _fitting_model(options: Options, dataset: Dataset) -> int | None:
    """How many clusters, if the model has some. OptionError for options that the model does not take, and missing labels."""
    model: Model = MODELS[choose("model", options.model, MODELS)]
    for name in ("prior", "net", "labelled", "clusters", "levels", "groups"):
        value = getattr(options, name)
        if value != getattr(Options(), name) and name not in model.takes:
            those = ", ".join(known for known, other in MODELS.items() if name in other.takes)
            raise OptionError(f"--{name} {value} does not go with --model {options.model}; it is for {those}.")
    if model.images and (options.guide is not None or options.hidden != Options().hidden):
        raise OptionError(
            f"--model {options.model} has a guide and nets of its own, sized by --latent and --groups: leave out --guide and "
            "--hidden."
        )
    if options.model == "hierarchical" and options.free_bits and len(options.levels or (1, 1)) == 1:
        raise OptionError("--free-bits spares z1 of --model hierarchical, and there is no other level: leave it out.")
    if model.images and dataset.image_shape is None:
        raise OptionError(f"--model {options.model} needs images, and the rows of {dataset.name} have no image shape.")
    names = class_names(dataset)
    if model.clusters:
        if options.clusters is not None and options.clusters < 2:
            raise OptionError(f"--clusters must be at least 2, got {options.clusters}.")
        return options.clusters or (max(2, len(names)) if names else 10)
    if model.labels is not None and len(names) < 2:
        told = f"{dataset.name} has {'none' if not names else 'one class only'}"
        raise OptionError(
            f"--model {options.model} needs labels of at least two classes, and {told}: name their column with --label."
        )
    if model.labels == CONDITION:
        every = [(dataset.x, dataset.y)] + ([] if dataset.x_test is None else [(dataset.x_test, dataset.y_test)])
        unknown = sum(len(x) if y is None else int((y < 0).sum()) for x, y in every)
        if unknown:
            raise OptionError(
                f"--model {options.model} needs the label of every row, and {unknown} rows of {dataset.name} have none: drop "
                f"them, or take a model that does without ({', '.join(n for n, m in MODELS.items() if m.labels == 'y')})."
            )
    return None


def _found(name: str) -> str:
    """A part of one's own by its file's whole path, so that the run can be asked from anywhere."""
    return str(Path(name).resolve()) if is_own(name) else name


def build(options: Options, train: Tensor, num_classes: int) -> nn.Module:
    """The model of these options for such rows, of so many classes or clusters, if it has some."""
    pair: nn.Module = MODELS[options.model].build(Pieces(options, train, num_classes))
    return pair


def class_names(dataset: Dataset) -> tuple[str | int, ...]:
    """What the classes 0, 1, ... are called; () without labels."""
    if dataset.classes is not None:
        return dataset.classes
    codes = [int(y.max()) for y in (dataset.y, dataset.y_test) if y is not None]
    return tuple(range(max(codes, default=-1) + 1))


def refuse_missing(dataset: Dataset) -> None:
    """DataError for missing entries, by their place in the source: the standard VAE does not take them."""
    for x in (dataset.x, dataset.x_test):
        if x is not None and bool(x.isnan().any()):
            row, column = x.isnan().nonzero()[0].tolist()
            name = dataset.columns[column] if dataset.columns else f"column {column}"
            raise DataError(
                f"{dataset.name} has {int(x.isnan().sum())} missing entries (NaN) in {int(x.isnan().any(1).sum())} rows, "
                f"the first in row {row} (counted from 0), {name}. Fill or drop them; in Python, pv.observed_only(likelihood) "
                "leaves them out of the density."
            )

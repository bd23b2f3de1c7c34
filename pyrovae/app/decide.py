"""What the options and a data set decide together: defaults are filled in, and impossible combinations refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pyrovae._files import real
from pyrovae._lazily import Lazily
from pyrovae.app.catalogue import (
    BY_COLUMN,
    CODEBOOKS,
    CONDITION,
    ESTIMATORS,
    FLOWS,
    LIKELIHOODS,
    NETS,
    NORMS,
    TABLES,
    Model,
    Prior,
    choose,
    is_own,
    part,
)
from pyrovae.app.declared import Widths
from pyrovae.app.likelihoods import MOST_COLUMNS, choose_likelihood
from pyrovae.app.models import MODELS, SIZED
from pyrovae.app.options import OPTIONS, Options
from pyrovae.app.pieces import WIDTHS
from pyrovae.errors import DataError, OptionError, counted

if TYPE_CHECKING:
    from pyrovae.batching import transforms
    from pyrovae.data import Dataset
    from pyrovae.tables import recipe, starts
    from pyrovae.tables.schema import Schema
else:
    transforms, recipe = Lazily("pyrovae.batching.transforms"), Lazily("pyrovae.tables.recipe")
    starts = Lazily("pyrovae.tables.starts")


def decide(options: Options, dataset: Dataset, num_rows: int) -> Options:
    """The options of `pyrovae fit` for a data set, with everything decided that was left open.

    The likelihood follows from the kind of the values, the length of the fit from the number of rows: about 3,000 steps, in
    20 to 500 epochs, and 9,000 for tables of many rows. Of other tables a fit stops where the validation ELBO has not become
    better for a quarter of its epochs, since later ones seldom do, and the best one is kept.

    Args:
        num_rows: the number of training rows.

    Raises:
        OptionError: a value is impossible, options contradict each other, or the data lack what the model needs.
    """
    check_names(options)
    options = replace(options, net="mlp" if options.net is None else options.net)
    if dataset.c is not None and options.model == "vae":
        options = replace(options, model="cvae")
    if dataset.labels and options.model == "vae":
        options = replace(options, model="labels")
    model: Model = MODELS[options.model]
    _check_model(model, options, dataset)
    likelihood, total_count = choose_likelihood(options, dataset)
    table = dataset.schema if likelihood in BY_COLUMN else None
    if table is not None:
        options = _for_a_table(options, table, num_rows, given=dataset.conditions is not None)
    options = replace(
        options,
        prior="normal" if options.prior is None else options.prior,
        latent=LATENT if options.latent is None and not options.levels else options.latent,
        hidden=WIDTHS if options.hidden is None else options.hidden,
    )
    guide = _guide(options)
    size_factor = _size_factor(options, dataset, likelihood, guide)
    levels = options.levels
    if levels is None and "levels" in model.takes:
        levels = (int(options.latent or 0), max(1, int(options.latent or 0) // 2))
    latent = levels[0] if levels else options.latent
    check_sizes(options.latent, options.levels, options.hidden or ())
    if options.levels and options.latent not in (None, latent):
        raise OptionError(f"--latent {options.latent} is not the first of --levels: leave --latent out.")
    if options.model == "ladder" and not options.hidden:
        raise OptionError("--model ladder needs --hidden of at least one width: what goes up the levels.")
    if options.patience is not None and not options.validation_fraction:
        raise OptionError(
            "--patience needs validation rows to watch: give --validation-fraction 0.1, or leave out --patience."
        )
    usual = min(num_rows, 256 if num_rows >= 20_000 else 128 if table is None else max(32, min(128, num_rows // 8)))
    batch_size = options.batch_size or usual
    steps = 9000 if table is not None and num_rows >= ENOUGH_FOR_MORE_STEPS else 3000
    epochs = options.epochs or max(20, min(500 if table is None else 1000, math.ceil(steps * batch_size / num_rows)))
    dropout = _dropout(options, model, table, num_rows, dataset.x[0].numel())
    patience = options.patience
    if patience is None and table is not None and num_rows < ENOUGH_FOR_MORE_STEPS and _may_stop_early(options):
        patience = max(LEAST_PATIENCE, math.ceil(epochs / 4))
    _check_schedule(options, epochs)
    # unless the KL weight rises slowly, most groups of maps are switched off before they become useful
    warms_up = model.grouped and not options.kl_cycles
    return replace(
        options,
        clusters=_number_of_clusters(model, options, dataset),
        size_factor=size_factor,
        levels=levels,
        groups=(1, 2) if options.groups is None and model.grouped else options.groups,
        codebook="fsq" if options.codebook is None and model.quantised else options.codebook,
        categories=10 if options.categories is None and "categories" in model.takes else options.categories,
        estimator="relaxed" if options.estimator is None and "estimator" in model.takes else options.estimator,
        latent=latent,
        prior=_absolute(str(options.prior)),
        likelihood=_absolute(likelihood),
        guide=None if model.grouped or model.own_guide else _absolute(guide),
        total_count=total_count,
        dropout=dropout,
        batch_size=batch_size,
        epochs=epochs,
        patience=patience,
        kl_warmup=(epochs / 3 if warms_up else 0.0) if options.kl_warmup is None else options.kl_warmup,
        learning_rate=options.learning_rate or 3e-3,
    )


LATENT = 10  # dimensions where nothing else is said
ENOUGH_FOR_MORE_STEPS = 2000  # training rows of a table; two tables of some 5,000 rows gained 0.1 and 0.4 nats a row
DROPOUT = 0.2  # share of hidden units left out, where few rows would be learned by heart
# training rows, and those for each number of a row, from which on dropout costs more than it saves; benchmarks/dropout.py
ENOUGH_WITHOUT_DROPOUT, ENOUGH_A_NUMBER = 2500, 8
LEAST_PATIENCE = 50  # epochs of a small table without a better validation ELBO, after which a fit may stop


def _may_stop_early(options: Options) -> bool:
    """Whether a fit keeps its best epoch anyway, so that those after it change nothing, and nobody has said how long it is."""
    warms_up = options.kl_warmup or options.kl_cycles or options.lagging
    keeps_best = options.keep is None and MODELS[options.model].labels != "y"
    return options.epochs is None and keeps_best and bool(options.validation_fraction) and not warms_up


def _dropout(options: Options, model: Model, table: Schema | None, num_rows: int, width: int) -> float | None:
    """The share of hidden units left out, by default of a VAE's perceptrons of few rows. OptionError where it has no place."""
    own = table is not None and options.guide == "full" and options.prior != "vamp" and options.net == "mlp"
    if options.dropout is None:
        few = num_rows < min(ENOUGH_WITHOUT_DROPOUT, ENOUGH_A_NUMBER * width)
        return DROPOUT if few and table is None and options.model == "vae" and options.net == "mlp" else 0.0
    if options.dropout and options.norm != "none":
        raise OptionError("--dropout does not go with --norm: leave out one of the two.")
    if options.dropout and own and options.model in ("vae", "cvae"):
        raise OptionError(
            "--dropout does not go with the networks of a table, which start as copies of its columns: leave it out. Fewer "
            "--epochs or a smaller --hidden hold back a fit that overfits."
        )
    return options.dropout


def check_names(options: Options) -> None:
    """OptionError for a name that is not known, or a value that is impossible by itself: no data are needed to see that."""
    known: dict[str, Any] = {"model": MODELS, "net": NETS, "norm": NORMS, **TABLES}
    known |= {"codebook": CODEBOOKS, "estimator": ESTIMATORS}
    for name, table in known.items():
        value = getattr(options, name)
        if value is not None and not is_own(value):
            choose(name, value, table)
    options.check("fit")


def _for_a_table(options: Options, schema: Schema, num_rows: int, given: bool) -> Options:
    """The options of a table's model that are left open: what `pyrovae.tables.vae`, or with columns given `cvae`, takes."""
    plain = options.model in ("vae", *(["cvae"] if given else [])) and options.net in (None, "mlp")
    start = "full-mixture-nsf" if starts.usual(num_rows) == starts.FLOW else "full-mixture"
    prior = options.prior or (start if plain and not given else "normal")
    copies = (
        plain
        and options.guide is None
        and not is_own(prior)
        and not options.shared_prior
        and (given or "full" in part("prior", prior).guides)
    )
    wide = len(schema.modelled) > MOST_COLUMNS
    return replace(
        options,
        prior="normal" if wide and options.prior is None else prior,
        guide="full" if copies and not wide else options.guide,
        latent=(recipe.latent_size(schema) if copies and not wide else LATENT)
        if options.latent is None
        else options.latent,
        hidden=(64,) if options.hidden is None and options.net == "mlp" and not wide else options.hidden,
    )


def binarisation(options: Options, dataset: Dataset) -> transforms.Binarize | None:
    """The transform that draws binary rows anew at every step, where a Bernoulli is to model values between 0 and 1."""
    shares = dataset.kind == "unit" or (
        dataset.kind == "real"
        and all(x.min() >= 0 and x.max() <= 1 for x in (dataset.x, dataset.x_test) if x is not None)
    )
    return transforms.Binarize() if shares and options.likelihood == "bernoulli" else None


def check_sizes(latent: int | None, levels: Widths | None, hidden: Widths) -> None:
    """OptionError for sizes of layers that are not positive."""
    given = {"--latent": () if latent is None else (latent,), "--levels": levels, "--hidden": hidden}
    for flag, sizes in given.items():
        if sizes is not None and (any(size < 1 for size in sizes) or (flag == "--levels" and not sizes)):
            got = ",".join(map(str, sizes)) or "none"
            raise OptionError(f"{flag} must be positive, got {got}.")


def _check_model(model: Model, options: Options, dataset: Dataset) -> None:
    """OptionError for options that the model does not take, and for data that lack what it needs."""
    for option in OPTIONS.values():
        value = getattr(options, option.name)
        usual = "normal" if option.name == "prior" else option.before  # what a run records, also of a model without it
        if option.by_model and option.name not in model.takes and value not in (option.default, usual):
            those = ", ".join(models_taking(option.name))
            raise OptionError(f"{option.flag} {value} does not go with --model {options.model}; it is for {those}.")
    if options.model == "cvae" and options.prior not in (None, "normal") and not options.shared_prior:
        raise OptionError(
            f"--prior {options.prior} is a p(z), and --model cvae has p(z | c), Normals: add --shared-prior, for one prior "
            "whatever c is, or leave --prior out."
        )
    if model.grouped and (options.guide is not None or options.hidden not in (None, WIDTHS)):
        raise OptionError(
            f"--model {options.model} has a guide and nets of its own, sized by --latent and --groups: leave out --guide and "
            "--hidden."
        )
    if model.quantised and options.net == "resnet":
        raise OptionError(f"--net resnet does not go with --model {options.model}; choose mlp, or conv for images.")
    if model.quantised and options.net == "conv" and options.latent not in (None, LATENT):
        raise OptionError(
            f"--model {options.model} has codes at a quarter of each side of an image with --net conv: leave out --latent."
        )
    if model.own_guide and options.guide is not None:
        raise OptionError(f"--model {options.model} has a guide of its own: leave out --guide.")
    if options.estimator == "score" and options.free_bits:
        raise OptionError(
            "--free-bits needs draws with a gradient, and --estimator score has none: choose relaxed or straight-through."
        )
    if options.model == "hierarchical" and options.free_bits and len(options.levels or (1, 1)) == 1:
        raise OptionError("--free-bits spares z1 of --model hierarchical, and there is no other level: leave it out.")
    if model.images and dataset.image_shape is None:
        raise OptionError(f"--model {options.model} needs images, and the rows of {dataset.name} have no image shape.")
    _check_several(model, options, dataset)
    if dataset.c is not None:
        if model.labels != CONDITION:
            raise OptionError(
                f"--condition is for the model cvae, p(x | c), and does not go with --model {options.model}: leave out one."
            )
        if dataset.y is not None and dataset.captions is None:
            raise OptionError(
                "--condition takes the place of --label: name that column by --condition, too, or --drop it."
            )
    elif model.labels is not None:
        _check_labels(model, options, dataset)


MOST_LABELS, MOST_COMBINATIONS = (
    4,
    1000,
)  # of columns of labels, and of their classes, which rows without labels sum over


def _check_several(model: Model, options: Options, dataset: Dataset) -> None:
    """OptionError unless a model of several columns of labels, and no other, has them, and few enough to sum them out."""
    names = [column.name for column in dataset.labels]
    if dataset.c is not None and names:
        raise OptionError("--condition does not go with several columns of labels: leave out one of the two.")
    if model.several and not names:
        raise OptionError(
            f"--model {options.model} needs several columns of labels of a table: name them with --label, with commas between "
            "them. Of one column the model is m2."
        )
    if names and not model.several:
        raise OptionError(
            f"--model {options.model} does not take several columns of labels ({', '.join(names)}), which --model labels does: "
            "name one of them by --label."
        )
    sizes = [len(column.classes) for column in dataset.labels]
    if len(names) > MOST_LABELS:
        raise OptionError(
            f"--label names {counted(len(names), 'column')}, and at most {MOST_LABELS} are possible: {', '.join(names)}."
        )
    if math.prod(sizes) > MOST_COMBINATIONS:
        raise OptionError(
            f"The columns {', '.join(names)} have {' x '.join(map(str, sizes))} = {math.prod(sizes)} combinations of classes, "
            f"which are summed over in rows without a label: at most {MOST_COMBINATIONS} are possible. Name fewer columns, or "
            "merge rare classes."
        )


def _check_labels(model: Model, options: Options, dataset: Dataset) -> None:
    names = class_names(dataset)
    if len(names) < 2:
        found = f"{dataset.name} has {'none' if not names else 'one class only'}"
        raise OptionError(
            f"--model {options.model} needs labels of at least two classes, and {found}: name their column with --label."
        )
    if model.labels == CONDITION:
        every = [(dataset.x, dataset.y)] + ([] if dataset.x_test is None else [(dataset.x_test, dataset.y_test)])
        unknown = sum(len(x) if y is None else int((y < 0).sum()) for x, y in every)
        if unknown:
            raise OptionError(
                f"--model {options.model} needs the label of every row, and {counted(unknown, 'row')} of {dataset.name} "
                f"{'has' if unknown == 1 else 'have'} none: drop them, or take a model that does without "
                f"({', '.join(n for n, m in MODELS.items() if m.labels == 'y')})."
            )


def _number_of_clusters(model: Model, options: Options, dataset: Dataset) -> int | None:
    if not model.clusters:
        return None
    names = class_names(dataset)
    return options.clusters or (max(2, len(names)) if names else 10)


def _size_factor(options: Options, dataset: Dataset, likelihood: str, guide: str) -> str:
    """What the size of a row is: by default latent, where the likelihood is one of counts without an upper bound."""
    chosen = part("likelihood", likelihood)
    counts = not is_own(likelihood) and chosen.takes == "count"
    fits = options.model in SIZED and guide in ("normal", "low-rank", "full") and dataset.image_shape is None
    if options.size_factor is None:
        return "latent" if counts and fits and options.net == "mlp" else "none"
    if options.size_factor == "none":
        return "none"
    if not counts or options.net != "mlp":
        those = ", ".join(name for name, one in LIKELIHOODS.items() if one.takes == "count")
        raise OptionError(
            f"--size-factor is for --net mlp and counts without an upper bound ({those}), not for {likelihood}."
        )
    if not fits:
        raise OptionError(
            f"--size-factor {options.size_factor} needs a guide with a mean (normal, low-rank or full), rows that are no "
            f"images, and one of the models {', '.join(SIZED)}."
        )
    known = () if dataset.conditions is None else dataset.conditions.names
    if options.size_column is not None and options.size_column not in known:
        raise OptionError(
            f"--size-factor {options.size_column}: give the sizes' column by its name"
            + (f", one of {', '.join(known)}." if known else ", and load the data with it among their conditions.")
        )
    return options.size_factor


def _guide(options: Options) -> str:
    """The guide's family, by default the first that fits the prior. OptionError where it does not fit prior or network."""
    prior: Prior = part("prior", str(options.prior))
    guide = options.guide or prior.guides[0]
    part("guide", guide)
    if guide not in (fitting := prior.guides) and not is_own(guide) and not is_own(options.prior):
        raise OptionError(
            f"--guide {guide} does not have the support of --prior {options.prior}; that prior takes {', '.join(fitting)}."
        )
    if guide in FLOWS and options.net != "mlp":
        raise OptionError(f"--guide {guide} works with --net mlp only; with --net {options.net} choose another guide.")
    if options.net == "conv" and options.hidden not in (None, WIDTHS):
        raise OptionError(
            "--hidden is for perceptrons: a convolutional net has channels instead of widths. Leave it out."
        )
    return guide


def _check_schedule(options: Options, epochs: int) -> None:
    if options.kl_warmup and options.kl_cycles:
        raise OptionError("--kl-warmup and --kl-cycles are two schedules of one weight: choose one.")
    for name in ("kl_warmup", "lagging"):
        if (getattr(options, name) or 0) > epochs:
            raise OptionError(
                f"{OPTIONS[name].flag} {getattr(options, name):g} is longer than the fit of {counted(epochs, 'epoch')}: "
                "take half of "
                "them, or more --epochs."
            )


def models_taking(name: str) -> list[str]:
    """The models that an option is meant for."""
    return [model for model, entry in MODELS.items() if not OPTIONS[name].by_model or name in entry.takes]


def _absolute(name: str) -> str:
    """A part in a file of the user's by the file's absolute path, so that the run can be opened from any folder."""
    return str(real(name)) if is_own(name) else name


def class_names(dataset: Dataset) -> tuple[str | int, ...]:
    """What the classes 0, 1, ... are called; () without labels."""
    if dataset.classes is not None:
        return dataset.classes
    codes: list[Any] = [int(y.max()) for y in (dataset.y, dataset.y_test) if y is not None]
    return tuple(range(max(codes, default=-1) + 1))


def refuse_missing(dataset: Dataset) -> None:
    """DataError for missing values that the models do not take, those of images; it names the first by row and column."""
    if dataset.kind == "table" or dataset.image_shape is None:
        return
    for x in (dataset.x, dataset.x_test):
        if x is not None and bool(x.isnan().any()):
            row, column = x.isnan().nonzero()[0].tolist()
            name = dataset.columns[column] if dataset.columns else f"column {column}"
            raise DataError(
                f"{dataset.name} has {counted(int(x.isnan().sum()), 'missing entry', 'missing entries')} (NaN) in "
                f"{counted(int(x.isnan().any(1).sum()), 'row')}, "
                f"the first in row {row} (counted from 0), {name}. Fill or drop them; in Python, pv.observed_only(likelihood) "
                "leaves them out of the density."
            )

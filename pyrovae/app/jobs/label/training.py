"""How `pyrovae label` trains: what is decided for such rows, the rows as the model sees them, and the fit."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrovae import conditionals, families, models, nets, priors
from pyrovae.app.catalogue import LIKELIHOODS, choose
from pyrovae.app.decide import binarisation, check_sizes
from pyrovae.app.jobs.label.ensemble import too_many
from pyrovae.app.jobs.label.reading import Job
from pyrovae.app.likelihoods import choose_likelihood
from pyrovae.app.options import OPTIONS, Options
from pyrovae.app.pieces import Pieces
from pyrovae.app.rows import Rows, divisor_of, model_rows
from pyrovae.errors import OptionError
from pyrovae.fitted.fitted import Fit
from pyrovae.fitted.folder import load
from pyrovae.tables.schema import Schema
from pyrovae.training import schedules
from pyrovae.training.fit import fit

OF_MODEL = ("likelihood", "total_count", "net", "latent", "hidden", "passes", "batch_size", "learning_rate")
CONV_FROM = 16  # pixels a side from which convolutions are better than a perceptron
# Floating-point operations of a fit by default, at least, for each row, and at most: a minute or two on two cores.
LEAST_WORK, ROW_WORK, MOST_WORK = 5e11, 2.5e8, 5e12
PASSES = 20  # over the rows, if these are more steps than the first of the two
FEWEST, STEPS = 100, (300, 2000)  # the fewest steps, and the most by default for few and for many rows


def decide_labelling(options: Options, job: Job) -> Options:
    """The options of `pyrovae label` for such rows, with everything decided that was left open.

    - The likelihood is that of the kind of the data, as for `fit`.
    - Images of 16 x 16 pixels or more get convolutions and 50 latent dimensions, other rows neither and 10.
    - alpha, the weight of the classifier's own loss, is 0.6 D for rows of D numbers, and at least 50: the more numbers a row
      has, the further apart are log p(x | y) of two classes, and the labels must count against that.
    - Where the ensemble can answer, no model is fitted, which is 0 steps, unless an option of the model says otherwise: then
      300 steps, or 20 passes over the rows up to 2,000 steps; but for up to 2,000 rows no more than make 5e11 floating-point
      operations, and for 20,000 rows and more 5e12, and at least 100 steps.
    - Where the classifier answers alone, without the ensemble, as many steps as make 5e12 operations, from 300 to 2,000.

    Raises:
        OptionError: a value is impossible, or there is neither a model nor an ensemble.
    """
    if options.likelihood is not None:
        choose("likelihood", options.likelihood, LIKELIHOODS)
    options.check("label")
    asked = _asks_for_model(options)
    check_sizes(options.latent, None, options.hidden or ())
    if len(options.hidden or ()) != 1:
        raise OptionError(f"--hidden is one width here, such as 200, got {options.hidden}.")
    likelihood, total_count = choose_likelihood(options, job.dataset, tables=False)
    shape = job.dataset.image_shape
    net = options.net or ("conv" if shape is not None and min(shape[-2:]) >= CONV_FROM else "mlp")
    choose("net", net, ("mlp", "conv"))
    if net == "conv" and shape is None:
        raise OptionError("--net conv needs images, and these rows have no image shape; use --net mlp.")
    options = replace(
        options,
        likelihood=likelihood,
        total_count=total_count,
        net=net,
        latent=(50 if net == "conv" else 10) if options.latent is None else options.latent,
        alpha=max(50.0, 0.6 * job.x.shape[1]) if options.alpha is None else options.alpha,
    )
    if options.steps is None:
        options = replace(options, steps=_steps(options, job) if asked or _alone(options, job) else 0)
    if options.steps == 0 and _alone(options, job):
        why = (
            "--neighbors 0 leaves the ensemble out"
            if options.neighbors == 0
            else "there are too many rows for the ensemble"
        )
        raise OptionError(
            f"--steps 0 fits no model, and {why}: nothing is left that could answer. Leave out --steps 0."
        )
    return options


def _asks_for_model(options: Options) -> bool:
    """Whether an option has been given that is for the model alone."""
    return any(getattr(options, name) != OPTIONS[name].default_of("label") for name in OF_MODEL)


def _alone(options: Options, job: Job) -> bool:
    """Whether the model's classifier answers alone."""
    return options.neighbors == 0 or too_many(job)


def _schema(job: Job) -> Schema | None:
    """What the columns are, of rows that a schema has encoded."""
    return job.dataset.schema if job.dataset.kind == "table" else None


def _steps(options: Options, job: Job) -> int:
    """The steps of a fit where none are given: few rows have an answer soon, in which the classifier counts little."""
    rows, (fewest, most) = len(job.x), STEPS
    if _alone(options, job):
        return min(most, max(fewest, round(MOST_WORK / _work(options, job))))
    work = min(MOST_WORK, max(LEAST_WORK, ROW_WORK * rows))
    passes = math.ceil(PASSES * rows / int(options.batch_size or 1))
    return min(most, max(fewest, passes), max(FEWEST, round(work / _work(options, job))))


def _work(options: Options, job: Job) -> float:
    """Floating-point operations of a step, about: three times those of a forward pass, which takes two for each weight."""
    shape, classes, (hidden,) = job.dataset.image_shape, len(job.labels.classes), options.hidden or (1,)
    dense = hidden * job.x.shape[1]
    encoder = dense
    if options.net == "conv" and shape is not None:
        pixels, channels = shape[-1] * shape[-2], 1 if len(shape) == 2 else shape[0]
        encoder = 9 * 32 * channels * pixels // 4 + 9 * 32 * 64 * pixels // 16 + 64 * pixels // 16 * hidden
    unlabelled, labelled = int(options.batch_size or 1), options.labelled_batch_size
    return 6.0 * ((unlabelled + labelled) * 2 * encoder + (unlabelled * classes + labelled) * dense)


def labelling_rows(job: Job, options: Options, held: Tensor) -> Rows:
    """All rows as training rows; those held out, whose labels the model may not see, are the test rows, too."""
    (x,), scaler = model_rows(job.dataset, options, [job.x])
    known = job.labels.y.clone()
    known[held] = -1
    return Rows(
        train=x,
        validation=None,
        test=x[held],
        argument="y",
        codes={"train": known, "validation": None, "test": job.labels.y[held]},
        classes=job.labels.classes,
        labels=None,
        scaler=scaler,
        image_shape=job.dataset.image_shape,
        columns=job.dataset.columns,
        test_index=held,
        divisor=divisor_of(job.dataset, options),
    )


def build_labeller(
    options: Options, train: Tensor, num_classes: int, schema: Schema | None = None, gaps: bool = False
) -> models.SSVAE:
    """The model of `pyrovae label`: M2 with p(y) = 1 / C, one hidden layer a network, and dropout in the classifier.

    With --net conv, convolutions precede the classifier and the encoder.
    """
    of, (hidden,) = Pieces(options, train, num_classes, schema, gaps), options.hidden or ()
    event: Any = of.event
    guide, labels = families.Normal(of.latent), families.Categorical((), num_classes=num_classes)
    dropout = nets.ReLUDropout(options.dropout or 0.0)
    encoder: Any
    classifier: Any
    if options.net == "conv":
        encoder = nets.Behind(
            nets.ConvEncoder(event, hidden), nets.MLP((hidden, num_classes), guide.param_shape, (hidden,))
        )
        classifier = nets.Behind(
            nets.ConvEncoder(event, hidden), nets.MLP(hidden, labels.param_shape, (hidden,), dropout)
        )
    else:
        encoder = nets.MLP((event, num_classes), guide.param_shape, (hidden,))
        classifier = nets.MLP(event, labels.param_shape, (hidden,), dropout)
    return models.SSVAE(
        label_prior=torch.distributions.Categorical(logits=torch.zeros(num_classes)),
        prior=priors.StandardNormal(of.latent),
        likelihood=of.observed(conditionals.mlp((of.latent, num_classes), of.family, (hidden,))),
        encoder=of.seeing(conditionals.Conditional(encoder, guide)),
        classifier=of.seeing(conditionals.Conditional(classifier, labels)),
        code=nets.OneHot(num_classes),
        alpha=float(options.alpha or 0),
    )


def train(
    job: Job,
    rows: Rows,
    options: Options,
    earlier: Path | None,
    device: str,
    engine: str,
    threads: int | None,
    progress: bool | None,
) -> Fit:
    """Fit the model to the rows, from the weights of the run in the folder `earlier`, if given."""
    torch.manual_seed(options.seed)
    batch, steps, rate = rows.batch("train"), int(options.steps or 1), float(options.learning_rate or 0)
    if earlier is None:
        pair: Any = build_labeller(options, rows.train, rows.num_classes, _schema(job), rows.gaps)
    else:
        pair, steps, rate = load(earlier).pair, math.ceil(steps / 2), rate / 3
    known, num = int((batch["y"] >= 0).sum()), len(batch["y"])
    batch_size = int(options.batch_size or 1)
    sizes = {"y": min(known, options.labelled_batch_size), "": min(num - known, batch_size)}
    largest, size = max((known, sizes["y"]), (num - known, sizes[""]))  # an epoch is a pass over the largest group
    return fit(
        pair,
        batch,
        epochs=math.ceil(steps * size / largest),
        batch_size=min(num, batch_size),
        group_size=sizes,
        schedule=schedules.one_cycle(rate),
        transform=binarisation(options, job.dataset),
        seed=options.seed,
        device=device,
        engine=engine,
        threads=threads,
        progress=progress,
    )

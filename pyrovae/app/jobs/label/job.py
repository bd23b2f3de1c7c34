"""The job of `pyrovae label`: fit a semi-supervised VAE to labelled and unlabelled rows, and predict all labels.

Its run folder keeps the weights and what was decided, so that a later call, with more labels, goes on from there.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from pyrovae._files import beside, swap, write_beside
from pyrovae.app.catalogue import LIKELIHOODS, choose
from pyrovae.app.decide import binarisation, check_sizes, choose_likelihood
from pyrovae.app.jobs.label.neighbors import pooled, spread
from pyrovae.app.jobs.label.reading import Job
from pyrovae.app.jobs.label.report import (
    committee,
    draw_report,
    features,
    held_out_report,
    logistic_regression,
    tabulate,
)
from pyrovae.app.models import build_labeller
from pyrovae.app.options import OPTIONS, Options
from pyrovae.app.rows import Rows, divisor_of, model_rows
from pyrovae.app.run import Run, reading
from pyrovae.criticism.calibration import share_interval
from pyrovae.data.labels import Labels, about_lone_labels, hold_out, split_labels
from pyrovae.errors import CheckpointError, OptionError
from pyrovae.fitted.files import claim_folder, is_mark, read_run
from pyrovae.fitted.fitted import Fit
from pyrovae.fitted.folder import load, write_fit
from pyrovae.tables.schema import Schema
from pyrovae.training import schedules
from pyrovae.training.fit import fit

CONV_FROM = 16  # pixels a side from which convolutions are better than a perceptron
WORK = 5e12  # floating-point operations of a fit by default: a minute or two on two cores
STEPS = (300, 2000)  # the fewest and the most steps by default
SHAPE = ("likelihood", "total_count", "net", "latent", "hidden", "dropout")  # options that decide the weights' shapes
FEW = 50  # held-out rows; with fewer, all labelled rows are predicted by cross-validation instead
FOLDS, FOLD_STEPS = 3, 1 / 3  # its fits, and their steps as a share of those of the fit itself
AFTER = ("passes", "holdout", "neighbors")  # options without influence on the weights


@dataclass(frozen=True, eq=False)
class Answer:
    """What the job leaves.

    Args:
        run: the fitted model and its rows; the test rows are those held out.
        table: one line a row, see `tabulate`.
        report: the numbers of the held-out rows, see `held_out_report`.
        pictures: the files that were drawn.
    """

    run: Run
    table: pd.DataFrame
    report: dict[str, Any]
    pictures: list[Path]


@dataclass(frozen=True)
class Earlier:
    """What the run in a folder has recorded.

    Args:
        options: the options, with everything decided.
        classes: the labels, as text.
        held_out: the positions of the held-out rows.
        known: the digest of the labels that it was fitted with.
    """

    options: Options
    classes: list[str]
    held_out: list[int]
    known: str


def label_rows(
    job: Job,
    options: Options,
    folder: str | Path,
    *,
    to: str | Path | None = None,
    fresh: bool = False,
    force: bool = False,
    device: str = "auto",
    engine: str = "auto",
    threads: int | None = None,
    progress: bool | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> Answer:
    """Fit, or go on with the run in the folder; predict the label of every row; write a table, a report and pictures.

    The rows held out for the report are chosen by the first run in the folder and stay the same; the fit sees them as
    unlabelled rows. Labels that are added later are all used for training. Where fewer than 50 rows would be held out, the
    report is made by cross-validation instead, with three shorter fits that each see two thirds of the labels, and the fit
    itself sees all of them. If the first labels were of rows drawn at random, the report is valid for all rows.

    A later run of the same rows, classes and network shapes starts from the weights of the earlier one, with half the steps
    and a third of the learning rate. With other classes or shapes training starts anew.

    Args:
        options: as of `Options.of("label", ...)`.
        to: the table to write; by default labels.csv in the folder.
        fresh: start anew, with other rows held out, and replace the run in the folder, whatever its rows are.
        force: replace the file `to`, even if it is not what this job wrote.
        say: called with messages.

    Raises:
        OptionError: an option is impossible, or a file would be overwritten.
        CheckpointError: the folder holds another run.
        DataError: the rows are outside the likelihood's support.
    """
    folder = Path(folder)
    to = folder / "labels.csv" if to is None else Path(to)
    options = decide_labelling(options, job)
    recorded = _recorded(folder)
    before = None if recorded is None or fresh else _earlier(recorded, folder, job)
    written = {} if recorded is None else recorded["written"]
    _refuse_file(to, written, force)
    held, goes_on = _held_out(job, options, before, say)
    rows = labelling_rows(job, options, held)
    known = _digest(rows.batch("train")["y"])
    say(_describe(job, options, held, goes_on))
    if warning := about_lone_labels(job.labels):
        say(warning)
    same = before is not None and goes_on and _same(before, options, known)
    if same:
        say(f"The labels are those of the run in {folder}: its weights are asked again.")
        fitted = load(folder, device=device)
    else:
        fitted = _train(job, rows, options, folder if goes_on else None, device, engine, threads, progress)
    passes = committee(fitted, rows.train, options.passes, seed=options.seed)
    passes = pooled(passes, spread(job, rows.codes["train"], options.neighbors))
    judged = None
    if not len(held) and options.holdout > 0:
        alike = same and before is not None and before.options.neighbors == options.neighbors
        judged = _judged_before(recorded) if alike else None
        judged = judged or _cross_validate(job, options, goes_on, device, engine, threads, progress, say)
    report, temperature = _report(job, passes, held, judged, options)
    table = tabulate(job, passes, temperature)
    content = table.to_csv(index=False, float_format="%.6g").encode()
    fitted.info = {
        "job": "label",
        "data": job.dataset.source,
        "rows": job.digest(),
        "options": options.to_json("label"),
        "classes": list(job.labels.classes),
        "held_out": held.tolist(),
        "known_labels": known,
        **({"cross_validation": judged.to_json()} if judged is not None else {}),
        "results": report,
        "written": written | {str(to.absolute()): hashlib.sha256(content).hexdigest()},
    }
    claim_folder(folder, force=True)
    write_beside(to, content)
    write_fit(folder, fitted, anew=True)
    swap(to)
    pictures = draw_report(job, report, table, folder)
    return Answer(Run(options, job.dataset, rows, fitted, folder), table, report, pictures)


def decide_labelling(options: Options, job: Job) -> Options:
    """The options of `pyrovae label` for such rows, with everything decided that was left open.

    - The likelihood is that of the kind of the data, as for `fit`.
    - Images of 16 x 16 pixels or more get convolutions and 50 latent dimensions, other rows neither and 10.
    - alpha, the weight of the classifier's own loss, is 0.6 D for rows of D numbers, and at least 50: the more numbers a row
      has, the further apart are log p(x | y) of two classes, and the labels must count against that.
    - As many steps as make 5e12 floating-point operations, from 300 to 2,000.

    Raises:
        OptionError: a value is impossible.
    """
    if options.likelihood is not None:
        choose("likelihood", options.likelihood, LIKELIHOODS)
    options.check("label")
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
    return replace(options, steps=options.steps or min(STEPS[1], max(STEPS[0], round(WORK / _work(options, job)))))


def _schema(job: Job) -> Schema | None:
    """What the columns are, of rows that a schema has encoded."""
    return job.dataset.schema if job.dataset.kind == "table" else None


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


@dataclass(frozen=True, eq=False)
class Judged:
    """What cross-validation found: `rows`, positions `(n,)`, each predicted by a fit that had not seen its label.

    Args:
        probabilities: of the classes, `(n, C)`.
        yardstick: the class by a logistic regression on the same labels as the fit, `(n,)`.
    """

    rows: Tensor
    probabilities: Tensor
    yardstick: Tensor

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name).tolist() for name in ("rows", "probabilities", "yardstick")}


def _judged_before(recorded: Mapping[str, Any] | None) -> Judged | None:
    """The cross-validation that a run with these labels has recorded, if it has."""
    found = (recorded or {}).get("cross_validation")
    if not found:
        return None
    return Judged(
        torch.tensor(found["rows"], dtype=torch.int64),
        torch.tensor(found["probabilities"], dtype=torch.float64),
        torch.tensor(found["yardstick"], dtype=torch.int64),
    )


def _cross_validate(
    job: Job,
    options: Options,
    goes_on: bool,
    device: str,
    engine: str,
    threads: int | None,
    progress: bool | None,
    say: Callable[[str], None],
) -> Judged | None:
    """Predict each labelled row by a shorter fit that has not seen its label; None where no class has two labels."""
    folds = [fold for fold in split_labels(job.labels, FOLDS, options.seed) if len(fold)]
    if not folds:
        return None
    steps = math.ceil(int(options.steps or 1) * FOLD_STEPS / (2 if goes_on else 1))
    say(f"Cross-validation: {len(folds)} fits of {steps} steps, each of which sees about two thirds of the labels.")
    found = []
    for fold in folds:
        rows = labelling_rows(job, options, fold)
        fitted = _train(job, rows, replace(options, steps=steps), None, device, engine, threads, progress)
        field = spread(job, rows.codes["train"], options.neighbors)
        passes = pooled(
            committee(fitted, rows.test, options.passes, seed=options.seed), None if field is None else field[fold]
        )
        found.append((fold, passes.mean(0), logistic_regression(features(job), job.labels.y.clone(), fold)))
    return Judged(*(torch.cat(column) for column in zip(*found)))


def _report(
    job: Job, passes: Tensor, held: Tensor, judged: Judged | None, options: Options
) -> tuple[dict[str, Any], float]:
    """The report of the held-out rows or of those that cross-validation predicted, and the temperature."""
    yardstick = None
    if judged is not None:
        passes, held, yardstick = passes.clone(), judged.rows, judged.yardstick
        passes[:, held] = judged.probabilities
    elif len(held):
        yardstick = logistic_regression(features(job), job.labels.y.clone(), held)
    report, temperature = held_out_report(passes, job.labels, held, seed=options.seed)
    if yardstick is not None:
        right = (yardstick == job.labels.y[held]).double().mean().item()
        low, high = share_interval(right, len(held))
        report |= {"logistic_regression": right, "logistic_regression_low": low, "logistic_regression_high": high}
    return report | {"folds": FOLDS if judged is not None else 0}, temperature


def _train(
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


# --- going on with an earlier run


def _recorded(folder: Path) -> Mapping[str, Any] | None:
    """What the run in a folder has recorded, None for a new folder. CheckpointError unless it is a run of this job."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    run = read_run(folder)
    if is_mark(run):
        return None
    info = run.get("info", {})
    if not isinstance(info, dict) or info.get("job") != "label":
        raise CheckpointError(f"{folder} holds another kind of run: choose a folder of its own by --run.")
    info = {"options": info.get("settings"), "known_labels": info.get("taught"), **info}  # their names in version 0.1
    wanted = {"options": dict, "classes": list, "held_out": list, "known_labels": str, "written": dict}
    wanted |= {"data": dict, "rows": str}
    if not all(isinstance(info.get(name), kind) for name, kind in wanted.items()) or any(
        not isinstance(row, int) for row in info["held_out"]
    ):
        raise CheckpointError(f"The run.json in {folder} is damaged: restore it, or remove the folder.")
    return info


def _earlier(info: Mapping[str, Any], folder: Path, job: Job) -> Earlier:
    """The earlier run by what it has recorded. CheckpointError unless it is one of these rows."""
    if info["rows"] != job.digest():
        sized = " (or --size is another)" if job.is_folder else ""
        raise CheckpointError(
            f"{folder} holds a run of other rows ({info['data'].get('path') or info['data'].get('name')}), or they have "
            f"changed since{sized}: give another folder by --run, or --fresh to start anew in this one."
        )
    with reading(folder):
        options = Options.from_json(info["options"], "label")
    return Earlier(options, info["classes"], info["held_out"], info["known_labels"])


def _held_out(job: Job, options: Options, before: Earlier | None, say: Callable[[str], None]) -> tuple[Tensor, bool]:
    """The positions of the held-out rows, `(n,)`, and whether training goes on from the weights of the earlier run."""
    held = hold_out(job.labels, options.holdout, options.seed)
    if len(held) < FEW:
        held = held[:0]  # cross-validation tells more
    if before is None:
        return held, False
    stays = torch.tensor([row for row in before.held_out if job.labels.y[row] >= 0], dtype=torch.int64)
    if not _leaves_two(job.labels, stays):
        say(
            "Training starts anew, with other rows held out: apart from those held out before, some class has too few labels."
        )
        return held, False
    goes_on = _goes_on(before, options, job, say)
    if len(stays) and options.holdout != before.options.holdout:
        say(f"The {len(stays)} rows held out before stay so, whatever --holdout says; --fresh draws them anew.")
    return stays, goes_on


def _leaves_two(labels: Labels, held: Tensor) -> bool:
    """Whether at least two labels of each class are not held out, or its only one."""
    left = labels.y.clone()
    left[held] = -1
    counts, every = (torch.bincount(y[y >= 0], minlength=len(labels.classes)) for y in (left, labels.y))
    return bool((counts >= every.clamp_max(2)).all())


def _goes_on(before: Earlier, options: Options, job: Job, say: Callable[[str], None]) -> bool:
    """Whether the weights of the earlier run fit the model; if not, it says why."""
    other = [name for name in SHAPE if getattr(before.options, name) != getattr(options, name)]
    if before.classes != list(job.labels.classes):
        other.append("classes")
    if other:
        plural = len(other) > 1 or other == ["classes"]
        say(f"Training starts anew: {', '.join(other)} {'are' if plural else 'is'} not as before.")
    return not other


def _same(before: Earlier, options: Options, known: str) -> bool:
    """Whether the earlier run was trained as this one would be."""
    after = {name: OPTIONS[name].default for name in AFTER}
    return replace(before.options, **after) == replace(options, **after) and before.known == known


def _refuse_file(to: Path, written: Mapping[str, str], force: bool) -> None:
    """OptionError where writing the table would destroy something."""
    if to.suffix.lower() != ".csv":
        raise OptionError(f"--out {to}: the table is written as .csv.")
    if os.path.lexists(to) and not force:
        found = written.get(str(to.absolute()))
        if found is None:
            raise OptionError(f"{to} exists: choose another name, or --force.")
        waiting = beside(to)  # what a run that was stopped between its two last writes left there
        if found not in [hashlib.sha256(path.read_bytes()).hexdigest() for path in (to, waiting) if path.is_file()]:
            raise OptionError(
                f"{to} has changed since it was written: if labels were filled in, give it as --labels and another name as "
                "--out; --force replaces it."
            )


def _digest(y: Tensor) -> str:
    return hashlib.sha256(y.numpy().astype("<i8").tobytes()).hexdigest()


def _describe(job: Job, options: Options, held: Tensor, goes_on: bool) -> str:
    """What was decided, in one line."""
    shape = job.dataset.image_shape
    what = f"images of {shape[-1]} x {shape[-2]}, " + ("gray" if len(shape) == 2 else "colour") if shape else "rows"
    if job.ids is None:
        what += ", numbered from 0"
    steps = f"{options.steps} steps"
    if goes_on:
        steps = f"{math.ceil(int(options.steps or 1) / 2)} steps from the weights of before"
    out = f"{len(held) or 'none'} of them held out"
    return (
        f"{job.dataset.name}: {len(job.x)} {what}; {len(job.labels.known)} labels of {len(job.labels.classes)} classes, "
        f"{out}; likelihood {options.likelihood}, {options.net}, {options.latent} latent dimensions, "
        f"{steps}"
    )

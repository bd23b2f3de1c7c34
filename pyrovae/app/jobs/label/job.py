"""The job of `pyrovae label`: predict the labels of all rows from a few, by ensembles, and by a semi-supervised VAE if asked.

A first answer is written as soon as there is one; if more time is given, better ones replace it. The run folder keeps what was
decided, and the weights of the model, so that a later call, with more labels, goes on from there.
"""

from __future__ import annotations

import hashlib
import math
import os
import time as times
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrovae._files import beside
from pyrovae.app.budget import MOST, Budget
from pyrovae.app.jobs.label.ensemble import Ensemble, too_many
from pyrovae.app.jobs.label.judging import FOLDS, Judged, cross_validate, judged_before, judged_by
from pyrovae.app.jobs.label.reading import Job
from pyrovae.app.jobs.label.report import committee, draw_report
from pyrovae.app.jobs.label.rounds import Rounds, rounds_before
from pyrovae.app.jobs.label.training import decide_labelling, labelling_rows, train
from pyrovae.app.jobs.label.writing import Answer, Writer
from pyrovae.app.options import OPTIONS, Options
from pyrovae.app.recorded import reading
from pyrovae.data.labels import Labels, about_lone_labels, hold_out
from pyrovae.errors import CheckpointError, OptionError, counted
from pyrovae.fitted.files import is_mark, read_run
from pyrovae.fitted.fitted import Fit
from pyrovae.fitted.folder import load
from pyrovae.fitted.lock import locked
from pyrovae.training.console import interruptible

SHAPE = ("likelihood", "total_count", "net", "latent", "hidden", "dropout")  # options that decide the weights' shapes
FEW = 50  # held-out rows; with fewer, all labelled rows are predicted by cross-validation instead
LABELS = "labels.csv"  # in the run folder: the table, or the labels that people gave on the page
PREDICTIONS = "predictions.csv"  # there, too: the table, where labels.csv is not this job's
ENDING = 1.5  # seconds for pictures, and for the end of the process
AFTER = ("passes", "holdout", "neighbors")  # options without influence on the weights


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
    time: float | str | None = None,
    rounds: int | None = None,
    say: Callable[[str], None] = lambda message: None,
    show: Callable[[str], None] = lambda message: None,
    began: float | None = None,
    clock: Callable[[], float] = times.monotonic,
) -> Answer:
    """Predict the label of every row; write a table, a report and pictures.

    An ensemble answers, see `pv.LabelEnsemble`, and with `options.steps` the classifier of a semi-supervised VAE beside it.
    The rows held out for the report are chosen by the first run in the folder and stay the same; both see them as unlabelled
    rows. Labels that are added later are all learned from. Where fewer than 50 rows would be held out, the report is made by
    cross-validation instead, three times with two thirds of the labels and shorter fits, and the answer itself is by all of
    them. If the first labels were of rows drawn at random, the report is valid for all rows.

    A later fit of the same rows, classes and network shapes starts from the weights of the earlier one, with half the steps
    and a third of the learning rate. With other classes or shapes training starts anew. Where an earlier run has a model, a
    later one has, too, unless it is given 0 steps.

    With `time` or `rounds`, the answer of the ensemble is written at once, and then more ensembles are added, each of which
    holds out other parts of the labels, and sees images turned and moved a little. Their geometric mean answers, unless it
    predicts labels that it has not seen clearly worse than the first does. What is written is whole at all times, and a later
    call with the same labels goes on with the ensembles of this one. Ctrl-C ends them, and those so far answer.

    Args:
        options: as of `Options.of("label", ...)`.
        to: the table to write; by default labels.csv in the folder.
        fresh: start anew, with other rows held out, and replace the run in the folder, whatever its rows are.
        force: replace the file `to`, even if it is not what this job wrote.
        time: how long the whole answer may take: seconds, or a text such as "5m" or "1h30m". The first one is not cut short,
            and no ensemble is begun that would not end in time.
        rounds: how many ensembles answer at most, those of earlier calls with the same labels among them. On one machine the
            answer of so many is the same bit for bit.
        say: called with messages.
        show: called with one line after each ensemble: how good the answer is by now.
        began: when the answer began, by the clock; None for now.
        clock: seconds since any moment.

    Raises:
        OptionError: an option is impossible, or a file would be overwritten.
        CheckpointError: the folder holds another run.
        DataError: the rows are outside the likelihood's support.
    """
    budget = Budget(time, rounds, began, clock)
    folder = Path(folder)
    to = folder / LABELS if to is None else Path(to)
    recorded = _recorded(folder)
    before = None if recorded is None or fresh else _earlier(recorded, folder, job)
    if before is not None and before.options.steps and options.steps is None:
        options = replace(options, steps=before.options.steps)  # its model goes on
    options = decide_labelling(options, job)
    if budget.open and (options.neighbors == 0 or too_many(job)):
        why = "--neighbors 0 leaves them out" if options.neighbors == 0 else "there are too many rows for one"
        raise OptionError(
            f"--time and --rounds are for ensembles, and {why}. Leave them out; --steps is for the model."
        )
    written = {} if recorded is None else recorded["written"]
    _refuse_file(to, written, force)
    held, goes_on = _held_out(job, options, before, say)
    rows_of_job = labelling_rows(job, options, held)
    known = _digest(rows_of_job.batch("train")["y"])
    say(_describe(job, options, held, goes_on))
    if warning := about_lone_labels(job.labels):
        say(warning)
    same = before is not None and goes_on and _same(before, options, known)
    fitted: Fit | None = None
    q: Tensor | None = None
    if options.steps:
        if same:
            say(f"The labels are those of the run in {folder}: its weights are asked again.")
            fitted = load(folder, device=device)
        else:
            fitted = train(job, rows_of_job, options, folder if goes_on else None, device, engine, threads, progress)
        q = committee(fitted, rows_of_job.train, options.passes, seed=options.seed).mean(0)
    alike = same and before is not None and before.options.neighbors == options.neighbors
    judged = judged_before(recorded) if alike and not len(held) and options.holdout > 0 else None
    ensembles: Rounds | None = None
    if alike and recorded is not None and recorded.get("rounds", 0) > 1:
        num = len(held) if judged is None else len(judged.rows)
        ensembles = rounds_before(folder, len(job.x), len(job.labels.classes), num)
        judged = judged if ensembles is not None else None  # which is of all of them
    if ensembles is not None:
        whose = counted(ensembles.number, "ensemble answers", "ensembles answer")
        say(f"The labels are those of the run in {folder}, whose {whose} again.")
    else:
        begun, ensemble = clock(), Ensemble(job, options.neighbors)
        if ensemble.why_not:
            say(ensemble.why_not)
        f, took = ensemble(rows_of_job.codes["train"]), clock() - begun
        if judged is None and not len(held) and options.holdout > 0:
            judged = cross_validate(job, options, ensemble, goes_on, device, engine, threads, progress, say)
        if f is not None:
            several = took * (1 if judged is None else 1 + FOLDS)  # another round has no fits of the model
            seconds = several if options.steps else clock() - begun
            ensembles = Rounds.begin(f, _of_judged(f, held, judged), seconds)
    writer = Writer(job, options, folder, to, fitted, q, held, judged, known, written)
    answer = writer.write(ensembles)
    if ensembles is not None and budget.open:
        answer = _better(writer, answer, ensembles, budget, say, show)
    return replace(answer, pictures=draw_report(job, answer.report, answer.table, folder))


def _of_judged(f: Tensor, held: Tensor, judged: Judged | None) -> Tensor:
    """What the ensemble says of the rows that it is judged by, `(n, C)`."""
    return f[held] if judged is None or judged.ensemble is None else judged.ensemble


def _better(
    writer: Writer,
    answer: Answer,
    ensembles: Rounds,
    budget: Budget,
    say: Callable[[str], None],
    show: Callable[[str], None],
) -> Answer:
    """Add ensembles, and write each answer, for as long as the budget allows, or until Ctrl-C: the last answer."""
    job, options = writer.job, writer.options
    if budget.seconds is not None and budget.spent() > budget.seconds:
        say(f"The first answer took {budget.spent():.0f} s, which is more than --time allows.")
    known = job.labels.y.clone()
    known[writer.held] = -1
    with locked(writer.folder, "labelling job"), interruptible():
        try:
            while budget.allows(ensembles.number, ensembles.seconds + ENDING):
                begun = budget.clock()
                ensemble = Ensemble(job, options.neighbors, ensembles.number)
                f = ensemble(known)
                assert f is not None  # there was a first one
                of_judged = f[writer.held] if writer.judged is None else judged_by(job, options, ensemble)
                assert of_judged is not None
                ensembles = ensembles.plus(f, of_judged, budget.clock() - begun)
                answer = writer.write(ensembles)
                show(writer.line(ensembles, answer, budget.spent()))
        except KeyboardInterrupt:
            answer = writer.write(ensembles)  # which may have been cut short
            say(f"Stopped: the answer is that of {counted(ensembles.number, 'ensemble')}.")
    if ensembles.number == MOST:
        say(f"{MOST} ensembles have answered; another would change next to nothing.")
    return answer


# --- going on with an earlier run


def refuse_folder(folder: Path, job: Job, *, fresh: bool) -> None:
    """CheckpointError unless the folder is new, or holds a run of this job, and of these rows if it is to go on.

    OptionError where its predictions, which each fit replaces, are not as they were written: labels may be filled in there.
    """
    recorded = _recorded(folder)
    if recorded is not None and not fresh:
        _earlier(recorded, folder, job)
    table, written = folder / PREDICTIONS, {} if recorded is None else recorded["written"]
    if table.exists() and not any(digest in written.values() for digest in _digests(table)):
        raise OptionError(
            f"{table} has changed since it was written, and would be replaced: move it to another folder, and give it as "
            "--labels if labels were filled in."
        )


def steps_before(folder: Path, job: Job) -> int:
    """The steps of the model that the run in a folder has, with which a later run goes on; 0 without one."""
    recorded = _recorded(folder)
    return 0 if recorded is None else int(_earlier(recorded, folder, job).options.steps or 0)


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
        type(row) is not int or row < 0 for row in info["held_out"]
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
        if max(info["held_out"], default=0) >= len(job.x):
            raise ValueError("a row is held out that is not there")
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
        say(
            f"The {counted(len(stays), 'row')} held out before stay so, whatever --holdout says; --fresh draws them anew."
        )
    return stays, goes_on


def _leaves_two(labels: Labels, held: Tensor) -> bool:
    """Whether at least two labels of each class are not held out, or its only one."""
    left = labels.y.clone()
    left[held] = -1
    counts, every = (torch.bincount(y[y >= 0], minlength=len(labels.classes)) for y in (left, labels.y))
    return bool((counts >= every.clamp_max(2)).all())


def _goes_on(before: Earlier, options: Options, job: Job, say: Callable[[str], None]) -> bool:
    """Whether this run goes on with the earlier one, and its weights, if any, fit the model; if not, it says why."""
    if bool(before.options.steps) != bool(options.steps):
        return False
    other = [name for name in SHAPE if getattr(before.options, name) != getattr(options, name)]
    if before.classes != list(job.labels.classes):
        other.append("classes")
    if other:
        plural = len(other) > 1 or other == ["classes"]
        if options.steps:
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
        if found not in _digests(to):
            raise OptionError(
                f"{to} has changed since it was written: if labels were filled in, give it as --labels and another name as "
                "--out; --force replaces it."
            )


def _digests(path: Path) -> list[str]:
    """Those of a file, and of what a run that was stopped between its two last writes left beside it."""
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in (path, beside(path)) if file.is_file()]


def _digest(y: Tensor) -> str:
    return hashlib.sha256(y.numpy().astype("<i8").tobytes()).hexdigest()


def _describe(job: Job, options: Options, held: Tensor, goes_on: bool) -> str:
    """What was decided, in one line."""
    shape = job.dataset.image_shape
    what = f"images of {shape[-1]} x {shape[-2]}, " + ("gray" if len(shape) == 2 else "colour") if shape else "rows"
    if job.ids is None:
        what += ", numbered from 0"
    out = f"{len(held) or 'none'} of them held out"
    labels = f"{counted(len(job.labels.known), 'label')} of {len(job.labels.classes)} classes, {out}"
    rows = f"{job.dataset.name}: {len(job.x)} {what}; {labels}"
    if not options.steps:
        return f"{rows}; no model is fitted (--steps fits one)"
    steps = f"{options.steps} steps"
    if goes_on:
        steps = f"{math.ceil(options.steps / 2)} steps from the weights of before"
    return f"{rows}; likelihood {options.likelihood}, {options.net}, {options.latent} latent dimensions, {steps}"

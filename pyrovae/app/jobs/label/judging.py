"""How good the labels are: predictions of labelled rows by fits that have not seen their labels, and the report on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyrovae.app.jobs.label.ensemble import KIND, Ensemble, features
from pyrovae.app.jobs.label.reading import Job
from pyrovae.app.jobs.label.report import committee, held_out_report, logistic_regression
from pyrovae.app.jobs.label.training import labelling_rows, train
from pyrovae.app.options import Options
from pyrovae.criticism.calibration import share_interval
from pyrovae.criticism.ensembles import Weights
from pyrovae.data.labels import split_labels
from pyrovae.errors import counted

FOLDS, FOLD_STEPS = 3, 1 / 3  # fits of a cross-validation, and their steps as a share of those of the fit itself


@dataclass(frozen=True, eq=False)
class Judged:
    """What cross-validation found: `rows`, positions `(n,)`, each predicted without its label.

    Args:
        yardstick: the class by a logistic regression on the same labels, `(n,)`.
        classifier: the probabilities by the classifier of a model, `(n, C)`; None without one.
        ensemble: and by the ensemble; None without it.
    """

    rows: Tensor
    yardstick: Tensor
    classifier: Tensor | None = None
    ensemble: Tensor | None = None

    def to_json(self) -> dict[str, Any]:
        columns = {name: getattr(self, name) for name in ("rows", "yardstick", "classifier", "ensemble")}
        return {"kind": KIND} | {name: column.tolist() for name, column in columns.items() if column is not None}


def judged_before(recorded: Mapping[str, Any] | None) -> Judged | None:
    """The cross-validation that a run with these labels has recorded, if it has, and the ensemble is still such a one."""
    found = (recorded or {}).get("cross_validation")
    if not found or found.get("kind") != KIND:
        return None
    numbers, shares = torch.int64, torch.float64
    kinds = {"rows": numbers, "yardstick": numbers, "classifier": shares, "ensemble": shares}
    return Judged(**{name: torch.tensor(found[name], dtype=kind) for name, kind in kinds.items() if name in found})


def cross_validate(
    job: Job,
    options: Options,
    ensemble: Ensemble,
    goes_on: bool,
    device: str,
    engine: str,
    threads: int | None,
    progress: bool | None,
    say: Callable[[str], None],
) -> Judged | None:
    """Predict each labelled row without its label, by shorter fits; None where no class has two labels."""
    folds = _folds(job, options)
    if not folds:
        return None
    steps = math.ceil(int(options.steps or 0) * FOLD_STEPS / (2 if goes_on else 1))
    fits = f"{len(folds)} fits of {steps} steps" if steps else counted(len(folds), "ensemble")
    say(f"Cross-validation: {fits}, each of which sees about two thirds of the labels.")
    found: dict[str, list[Tensor]] = {"rows": folds, "yardstick": [], "classifier": [], "ensemble": []}
    for fold in folds:
        rows = labelling_rows(job, options, fold)
        found["yardstick"].append(logistic_regression(features(job), job.labels.y.clone(), fold))
        if steps:
            fitted = train(job, rows, replace(options, steps=steps), None, device, engine, threads, progress)
            found["classifier"].append(committee(fitted, rows.test, options.passes, seed=options.seed).mean(0))
        f = ensemble(rows.codes["train"])
        if f is not None:
            found["ensemble"].append(f[fold])
    return Judged(**{name: torch.cat(parts) for name, parts in found.items() if parts})


def _folds(job: Job, options: Options) -> list[Tensor]:
    """The labelled rows that are predicted together, without their labels."""
    return [fold for fold in split_labels(job.labels, FOLDS, options.seed) if len(fold)]


def judged_by(job: Job, options: Options, ensemble: Ensemble) -> Tensor | None:
    """The classes of the rows of a `Judged`, in its order, by another ensemble, `(n, C)`; None without one."""
    found = []
    for fold in _folds(job, options):
        known = job.labels.y.clone()
        known[fold] = -1
        f = ensemble(known)
        if f is None:
            return None
        found.append(f[fold])
    return torch.cat(found) if found else None


def judge(
    job: Job, q: Tensor | None, f: Tensor | None, held: Tensor, judged: Judged | None, options: Options
) -> tuple[dict[str, Any], Weights]:
    """The report of the held-out rows, or of those that cross-validation predicted; the weights of classifier and ensemble.

    Args:
        job: the rows.
        q: their classes by the classifier of a model, `(N, C)`; None without one.
        f: and by the ensemble, `(N, C)`; None without it.
        held: the positions of the held-out rows.
        judged: the cross-validation, if there was one.
        options: of the job.
    """
    yardstick, y = None, job.labels.y
    if judged is not None:
        held, yardstick, q, f = judged.rows, judged.yardstick, judged.classifier, judged.ensemble
    else:
        q, f = (None if p is None else p[held] for p in (q, f))
        if len(held):
            yardstick = logistic_regression(features(job), y.clone(), held)
    report, weights = held_out_report(q, f, y[held], seed=options.seed)
    if yardstick is not None:
        right = (yardstick == y[held]).double().mean().item()
        low, high = share_interval(right, len(held))
        report |= {"logistic_regression": right, "logistic_regression_low": low, "logistic_regression_high": high}
    return report | {"folds": FOLDS if judged is not None else 0}, weights

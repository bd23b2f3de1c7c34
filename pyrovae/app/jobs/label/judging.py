"""How good the labels are: predictions of labelled rows by fits that have not seen their labels, and the report on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyrovae.app.jobs.label.neighbors import Neighbors, Weights, features
from pyrovae.app.jobs.label.reading import Job
from pyrovae.app.jobs.label.report import committee, held_out_report, logistic_regression
from pyrovae.app.jobs.label.training import labelling_rows, train
from pyrovae.app.options import Options
from pyrovae.criticism.calibration import share_interval
from pyrovae.data.labels import split_labels

SIMILAR = "field and process"  # what answers for similar rows; earlier runs have recorded a field alone
FOLDS, FOLD_STEPS = 3, 1 / 3  # fits of a cross-validation, and their steps as a share of those of the fit itself


@dataclass(frozen=True, eq=False)
class Judged:
    """What cross-validation found: `rows`, positions `(n,)`, each predicted by a fit that had not seen its label.

    Args:
        probabilities: of the classes by the classifier, `(n, C)`.
        yardstick: the class by a logistic regression on the same labels as the fit, `(n,)`.
        field: the probabilities by neighbours, `(n, C)`; None without these.
    """

    rows: Tensor
    probabilities: Tensor
    yardstick: Tensor
    field: Tensor | None = None

    def to_json(self) -> dict[str, Any]:
        columns = {name: getattr(self, name) for name in ("rows", "probabilities", "yardstick", "field")}
        return {"similar": SIMILAR} | {name: column.tolist() for name, column in columns.items() if column is not None}


def judged_before(recorded: Mapping[str, Any] | None) -> Judged | None:
    """The cross-validation that a run with these labels has recorded, if it has, and similar rows are still asked so."""
    found = (recorded or {}).get("cross_validation")
    if not found or ("field" in found and found.get("similar") != SIMILAR):
        return None
    return Judged(
        torch.tensor(found["rows"], dtype=torch.int64),
        torch.tensor(found["probabilities"], dtype=torch.float64),
        torch.tensor(found["yardstick"], dtype=torch.int64),
        torch.tensor(found["field"], dtype=torch.float64) if "field" in found else None,
    )


def cross_validate(
    job: Job,
    options: Options,
    neighbors: Neighbors,
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
    found: dict[str, list[Tensor]] = {"rows": folds, "probabilities": [], "yardstick": [], "field": []}
    for fold in folds:
        rows = labelling_rows(job, options, fold)
        fitted = train(job, rows, replace(options, steps=steps), None, device, engine, threads, progress)
        found["probabilities"].append(committee(fitted, rows.test, options.passes, seed=options.seed).mean(0))
        found["yardstick"].append(logistic_regression(features(job), job.labels.y.clone(), fold))
        field = neighbors.spread(rows.codes["train"])
        if field is not None:
            found["field"].append(field[fold])
    return Judged(**{name: torch.cat(parts) for name, parts in found.items() if parts})


def judge(
    job: Job, q: Tensor, field: Tensor | None, held: Tensor, judged: Judged | None, options: Options
) -> tuple[dict[str, Any], Weights]:
    """The report of the held-out rows, or of those that cross-validation predicted, and the weights of classifier and field.

    Args:
        job: the rows.
        q: their classes by the classifier, `(N, C)`.
        field: and by neighbours, `(N, C)`; None without these.
        held: the positions of the held-out rows.
        judged: the cross-validation, if there was one.
        options: of the job.
    """
    yardstick, y = None, job.labels.y
    if judged is not None:
        q, held, yardstick = q.clone(), judged.rows, judged.yardstick
        q[held] = judged.probabilities
        if field is not None and judged.field is not None:
            field = field.clone()
            field[held] = judged.field
    elif len(held):
        yardstick = logistic_regression(features(job), y.clone(), held)
    here = None if field is None else field[held]
    report, weights = held_out_report(q[held], here, y[held], seed=options.seed)
    if yardstick is not None:
        right = (yardstick == y[held]).double().mean().item()
        low, high = share_interval(right, len(held))
        report |= {"logistic_regression": right, "logistic_regression_low": low, "logistic_regression_high": high}
    return report | {"folds": FOLDS if judged is not None else 0}, weights

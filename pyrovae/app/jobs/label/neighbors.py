"""What the nearest neighbours of a row say of its label, beside the classifier of the model."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrovae.app.jobs.label.reading import Job
from pyrovae.app.jobs.label.report import features
from pyrovae.criticism.fields import LabelField


def spread(job: Job, y: Tensor | None, num: int) -> Tensor | None:
    """`p(y | x)` of all rows by a `LabelField`, `(N, C)`, of labelled ones by the other labels; None for no neighbours.

    Distances are those of pixels, or for other rows of the columns as they are or of standardised ones, whichever predict
    labels better that are held out.

    Args:
        job: The rows.
        y: Their classes, `(N,)`, -1 where unknown.
        num: Neighbours of a row.
    """
    if num < 1 or len(job.x) < 2 or y is None:
        return None
    rows = features(job)
    units = [rows]
    if job.dataset.image_shape is None:
        units.append((rows - rows.mean(0)) / rows.std(0).clamp_min(1e-8))
    fields = [LabelField(x, y, len(job.labels.classes), num) for x in units]
    best = fields[-1] if len(fields) > 1 and not fields[0].score > fields[1].score else fields[0]
    return best.probabilities


def pooled(passes: Tensor, field: Tensor | None) -> Tensor:
    """The geometric mean of each pass's probabilities, `(S, N, C)`, and of those of a field, `(N, C)`, normalised."""
    if field is None:
        return passes
    tiny = torch.finfo(torch.float32).tiny
    return ((passes.clamp_min(tiny).log() + field.clamp_min(tiny).log()) / 2).softmax(-1)

"""What rows like a row say of its label, and how much that counts beside the classifier of the model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrovae._lazily import Lazily
from pyrovae.app.jobs.label.reading import Job
from pyrovae.criticism.fields import LabelField
from pyrovae.criticism.processes import LabelProcess, pooled_labels
from pyrovae.families import Features, Normal

optimize = Lazily("scipy.optimize")

TINY = torch.finfo(torch.float32).tiny  # in the place of a probability of 0
HELD_BACK = 20.0  # the pull of weights towards those by default, in nats for a distance of 1
LEAST, MOST = 0.02, 3.0  # a weight; with weights of 0 classes would no longer differ
# Squared rows times columns, two minutes of one core, and rows times classes.
MOST_WORK, MOST_VALUES = 3e12, 2e6
OF_CLASSIFIER = 0.1  # its weight before labels say more


@dataclass(frozen=True)
class Weights:
    """`p(y | x)` in proportion to `q(y | x)^classifier f(y | x)^neighbors`, of a classifier q and of rows alike, f.

    Where they add up to 1, this is a geometric mean. A smaller sum makes probabilities more even, as a temperature does. By
    default the classifier counts a tenth: with few labels it is far too sure of itself.
    """

    classifier: float
    neighbors: float

    @classmethod
    def default(cls, field: Tensor | None) -> Weights:
        """Those before any label has been held out; of the classifier alone where there is no field."""
        return cls(1.0, 0.0) if field is None else cls(OF_CLASSIFIER, 1 - OF_CLASSIFIER)

    def pooled(self, q: Tensor, field: Tensor | None) -> Tensor:
        """The probabilities, `(N, C)`, from those of the classifier and the field."""
        logits = self.classifier * q.clamp_min(TINY).log()
        if field is not None:
            logits = logits + self.neighbors * field.clamp_min(TINY).log()
        return logits.softmax(-1)


def fitted_weights(q: Tensor, field: Tensor | None, y: Tensor) -> Weights:
    """The weights with the best log score of labels y, `(n,)`, that neither has seen, and not far from those by default.

    The log score is concave in both. It is lowered by 20 nats times the squared distance from the default, so that it takes
    several rows to move the weights.
    """
    usual = Weights.default(field)
    start = np.array([usual.classifier] if field is None else [usual.classifier, usual.neighbors])
    logs = torch.stack([p.double().clamp_min(TINY).log() for p in ((q,) if field is None else (q, field))])
    wanted = logs[:, torch.arange(len(y)), y]  # (2, n)

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        w = torch.from_numpy(weights)
        logits = (w[:, None, None] * logs).sum(0)
        gradient = (logits.softmax(-1) * logs).sum((1, 2)) - wanted.sum(1)
        value = logits.logsumexp(-1).sum() - w @ wanted.sum(1)
        apart = weights - start
        return float(value) + HELD_BACK * float(apart @ apart), gradient.numpy() + 2 * HELD_BACK * apart

    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(LEAST, MOST)] * len(start)).x
    return Weights(float(found[0]), 0.0 if field is None else float(found[1]))


def features(job: Job) -> Tensor:
    """The rows as numbers without gaps, `(N, F)`: of a table with categories or gaps what an encoder sees of them."""
    schema, gaps = job.dataset.schema, bool(job.x.isnan().any())
    if job.dataset.kind == "table" and schema is not None:
        return Features(schema.family(job.x), mask=gaps)(job.x)
    return Features(Normal(job.x.shape[1]), mask=True)(job.x) if gaps else job.x


def too_many(job: Job) -> bool:
    """Whether rows like a row are not looked for, since this would take far longer than a fit."""
    rows = len(job.x)
    return rows**2 * job.x[0].numel() > MOST_WORK or rows * len(job.labels.classes) > MOST_VALUES


class Neighbors:
    """What rows like a row say of its label, for several choices of labels: a `LabelField` pooled with a `LabelProcess`.

    The field is one over pixels, or for other rows over the columns as they are or standardised ones, whichever predict labels
    better that are held out; the process takes pixels or standardised columns. Where the graph of the field would take far
    longer than a fit, there is neither, and `why_not` says so.

    Args:
        job: The rows.
        num: Neighbours of a row; 0 for none.
    """

    def __init__(self, job: Job, num: int) -> None:
        self.job, self.num, self.why_not = job, num, ""
        self.fields: list[LabelField] = []
        self.process: LabelProcess | None = None
        self.possible = num > 0 and len(job.x) > 1
        if self.possible and too_many(job):
            self.possible = False
            what = f"{len(job.x)} rows of {job.x[0].numel()} numbers and {len(job.labels.classes)} classes"
            self.why_not = f"Neighbours are left out: for {what} they would take too long."

    def spread(self, y: Tensor | None) -> Tensor | None:
        """`p(y | x)` of all rows, `(N, C)`, of labelled ones by other labels; None without a graph.

        Args:
            y: Their classes, `(N,)`, -1 where unknown.
        """
        if not self.possible or y is None:
            return None
        if self.process is not None:
            fields, process = [field.relabelled(y) for field in self.fields], self.process.relabelled(y)
        else:
            rows = features(self.job)
            units = [rows]
            if self.job.dataset.image_shape is None:
                units.append((rows - rows.mean(0)) / rows.std(0).clamp_min(1e-8))
            num_classes = len(self.job.labels.classes)
            fields = self.fields = [LabelField(x, y, num_classes, self.num) for x in units]
            process = self.process = LabelProcess(units[-1], y, num_classes)
        best = fields[-1] if len(fields) > 1 and not fields[0].score > fields[1].score else fields[0]
        return pooled_labels(best, process)

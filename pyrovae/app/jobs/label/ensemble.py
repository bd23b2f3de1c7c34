"""What ensembles say of labels, which needs no model, and how much they count beside the classifier of one."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrovae._lazily import Lazily
from pyrovae.app.jobs.label.reading import Job
from pyrovae.criticism.ensembles import LabelEnsemble, Weights
from pyrovae.errors import counted
from pyrovae.families import Features, Normal

optimize = Lazily("scipy.optimize")

KIND = "ensemble of field, process, mixture and trees, with normal scores"  # earlier runs have recorded others
TURN, ZOOM, SHIFT = 10.0, 0.1, 0.07  # of images: degrees, share of their size, and share of a side, at most
MOVED_FROM = 16  # pixels a side
TINY = torch.finfo(torch.float32).tiny  # in the place of a probability of 0
HELD_BACK = 20.0  # the pull of weights towards those by default, in nats for a distance of 1
LEAST, MOST = 0.02, 3.0  # a weight; with weights of 0 classes would no longer differ
# Of the search for neighbours, three minutes of one core: squared rows times columns and what sorting a distance costs, in
# columns. And rows times classes.
MOST_WORK, SORTING, MOST_VALUES = 6e12, 850, 2e6


def fitted_weights(q: Tensor | None, f: Tensor | None, y: Tensor) -> Weights:
    """The weights with the best log score of labels y, `(n,)`, that neither has seen, and not far from those by default.

    The log score is concave in both. It is lowered by 20 nats times the squared distance from the default, so that it takes
    several rows to move the weights.

    Args:
        q: Probabilities by the classifier of a model, `(n, C)`; None without one.
        f: And by the ensemble; None without it.
        y: The labels.
    """
    usual = Weights.default(q, f)
    both = [(weight, p) for weight, p in ((usual.classifier, q), (usual.ensemble, f)) if p is not None]
    start = np.array([weight for weight, _ in both])
    logs = torch.stack([p.double().clamp_min(TINY).log() for _, p in both])
    wanted = logs[:, torch.arange(len(y)), y]  # (1 or 2, n)

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        w = torch.from_numpy(weights)
        logits = (w[:, None, None] * logs).sum(0)
        gradient = (logits.softmax(-1) * logs).sum((1, 2)) - wanted.sum(1)
        value = logits.logsumexp(-1).sum() - w @ wanted.sum(1)
        apart = weights - start
        return float(value) + HELD_BACK * float(apart @ apart), gradient.numpy() + 2 * HELD_BACK * apart

    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(LEAST, MOST)] * len(start)).x
    return Weights(0.0 if q is None else float(found[0]), 0.0 if f is None else float(found[-1]))


def features(job: Job) -> Tensor:
    """The rows as numbers without gaps, `(N, F)`: of a table with categories or gaps what an encoder sees of them."""
    schema, gaps = job.dataset.schema, bool(job.x.isnan().any())
    if job.dataset.kind == "table" and schema is not None:
        return Features(schema.family(job.x), mask=gaps)(job.x)
    return Features(Normal(job.x.shape[1]), mask=True)(job.x) if gaps else job.x


def too_many(job: Job) -> bool:
    """Whether the ensemble is left out, since it would take far longer than a fit."""
    rows = len(job.x)
    return rows**2 * (job.x[0].numel() + SORTING) > MOST_WORK or rows * len(job.labels.classes) > MOST_VALUES


class Ensemble:
    """A `LabelEnsemble` of the rows of a job for several choices of labels; none where it would take too long.

    Each number makes another ensemble, which errs on other rows: labels are held out in other parts, and images of 16 x 16
    pixels or more are turned, scaled and moved a little, all of them alike, so that edges fall into other cells.

    Args:
        job: The rows.
        num_neighbors: Of a row in the graph of its field; 0 for no ensemble.
        number: Which one; 0 sees the rows as they are.
    """

    def __init__(self, job: Job, num_neighbors: int, number: int = 0) -> None:
        self.job, self.num_neighbors, self.number, self.why_not = job, num_neighbors, number, ""
        self.order = torch.arange(len(job.x))
        self.found: LabelEnsemble | None = None
        self.possible = num_neighbors > 0 and len(job.x) > 1
        if self.possible and too_many(job):
            self.possible = False
            rows, numbers = counted(len(job.x), "row"), counted(job.x[0].numel(), "number")
            what = f"{rows} of {numbers} and {len(job.labels.classes)} classes"
            self.why_not = f"The ensemble is left out: for {what} it would take too long."

    def __call__(self, y: Tensor | None) -> Tensor | None:
        """`p(y | x)` of all rows, `(N, C)`, of labelled ones by other labels; None without an ensemble.

        Args:
            y: Their classes, `(N,)`, -1 where unknown.
        """
        if not self.possible or y is None:
            return None
        if self.found is None:
            shape = self.job.dataset.image_shape
            rows = features(self.job) if shape is None else self.job.x
            if self.number:
                generator = torch.Generator().manual_seed(self.number)
                self.order = torch.randperm(len(rows), generator=generator)  # by which labels are in other parts
                if shape is not None and min(shape[-2:]) >= MOVED_FROM:  # others lose more than they gain
                    rows = moved(rows, shape, generator)
                rows = rows[self.order]
            classes = len(self.job.labels.classes)
            found = self.found = LabelEnsemble(rows, y[self.order], classes, self.num_neighbors, shape)
        else:
            found = self.found.relabelled(y[self.order])
        return torch.empty_like(found.probabilities).index_copy_(0, self.order, found.probabilities)


def moved(images: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Images turned, scaled and moved a little, all alike, at random; what comes in from outside is as their border.

    Args:
        images: `(N, D)`.
        shape: That of an image, `(height, width)` or `(channels, height, width)`.
        generator: Of the transform.
    """
    turn, zoom, across, down = (2 * torch.rand(4, generator=generator) - 1).tolist()
    angle, scale = math.radians(TURN * turn), 1 / (1 + ZOOM * zoom)
    cos, sin, (height, width) = scale * math.cos(angle), scale * math.sin(angle), shape[-2:]
    # in coordinates from -1 to 1 along each side
    matrix = [[cos, -sin * height / width, 2 * SHIFT * across], [sin * width / height, cos, 2 * SHIFT * down]]
    pixels = images.reshape(1, -1, height, width).float()  # all images are channels of one
    grid = torch.nn.functional.affine_grid(torch.tensor([matrix]), [1, 1, height, width], align_corners=False)
    found = torch.nn.functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    return found.view_as(images)

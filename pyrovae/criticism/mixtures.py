"""`LabelMixture`: class probabilities by one normal distribution a class, which sees rows without a label, too."""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from pyrovae.criticism.fields import checked, checked_labels, checked_rows
from pyrovae.criticism.processes import FOLDS, Scaling, averaged, parts, refuse_gaps, score_of
from pyrovae.pair.batch import names_of
from pyrovae.pair.parameters import fork_rng

__all__ = ["LabelMixture"]

WEIGHTS = (0.0, 0.1, 1.0)  # of a row without a label, beside one with a label
SHRINKAGE = (1.0, 4.0)  # rows a column that the diagonal covariance counts
STEPS = 20  # of expectation and maximisation
MOST_COLUMNS, MOST_ROWS = 50, 5_000  # principal components; rows without a label that are learned from
LEAST_VARIANCE = 1e-3  # of a column, as a share of their mean
FLAT = 1e-12  # the least of a variance, of rows that do not differ; those of others add up to 1
LEAST = 1e-6  # of a probability, since no class is as normal as that


class LabelMixture:
    """`p(y | x)` of `p(y) p(x | y)` with `x | y ~ N(mu_y, S)`, fitted to rows with a label and to those without one.

    The covariance S is that of all classes together, drawn towards a diagonal one, so that classes are parted by planes. An
    unlabelled row counts 0, 0.1 or 1 times as much as a labelled one, by expectation and maximisation: where classes are
    clusters, it says where these are; where they are not, it misleads. So each weight is tried, and so are two degrees of
    shrinkage. Each of these six predicts labels that are held out in five parts, and the answer is the average of all with
    weights in proportion to exp(log score of these labels). Of rows with more than fifty columns the first fifty principal
    components are taken.

    Args:
        x: Rows, `(N, *event)`, without gaps.
        y: Their class numbers, `(N,)`, from 0, and -1 where unknown. At most 5,000 rows of unknown class are learned from.
        num_classes: C; by default the largest class number plus 1.

    Attributes:
        probabilities: Of the rows x themselves, `(N, C)` float64: of labelled rows by mixtures that have not seen their label,
            except where no other row has its class.
        score: The log score of held-out labels, in nats per label; NaN if none was held out.
        weights: Those of the six mixtures.

    Raises:
        ShapeError: x and y do not have the same number of rows, or rows to be predicted another shape than those of x.
        DataError: No row has a label, a label is not a class number, there are fewer than two rows, or numbers are not finite.

    References:
        Nigam, McCallum, Thrun & Mitchell 2000, doi:10.1023/A:1007692713085 (the weight of unlabelled rows).

    Example:
        >>> x = torch.cat([torch.randn(50, 2), torch.randn(50, 2) + 8])
        >>> y = torch.full((100,), -1)
        >>> y[[0, 1, 50, 51]] = torch.tensor([0, 0, 1, 1])  # 4 labels
        >>> pv.LabelMixture(x, y)(torch.tensor([[0.0, 0.0], [8.0, 8.0]])).argmax(-1)
        tensor([0, 1])
    """

    def __init__(self, x: Tensor, y: Tensor, num_classes: int | None = None) -> None:
        self.columns = names_of(x)
        rows, y, self.num_classes = checked(x, y, num_classes, "mixture")
        refuse_gaps(rows, "mixture")
        self.num_columns = rows.shape[1]
        self.scaling = Scaling.of(rows)
        rows = self.scaling(rows)
        self.axes: Tensor | None = None
        if self.num_columns > MOST_COLUMNS:
            with fork_rng():  # the singular vectors are found by random projections
                torch.manual_seed(0)
                self.axes = torch.svd_lowrank(rows, min(MOST_COLUMNS, len(rows)), niter=4)[2]
            rows = rows @ self.axes
        self.x = rows
        self._learn(y)

    def relabelled(self, y: Tensor) -> LabelMixture:
        """The mixture of the same rows and classes with other labels `(N,)`."""
        other = copy(self)
        other._learn(checked_labels(y, len(self.x), self.num_classes, "mixture")[0])
        return other

    def __call__(self, x: Tensor) -> Tensor:
        """`p(y | x)` of rows `(M, *event)`: `(M, C)`, float64."""
        rows = checked_rows(x, "mixture", self.num_columns, self.columns)
        refuse_gaps(rows, "mixture")
        rows = self.scaling(rows)
        return self._predicted(rows if self.axes is None else rows @ self.axes)

    def _predicted(self, rows: Tensor) -> Tensor:
        return torch.stack([w * _soft(rows @ a + b) for w, (a, b) in zip(self.weights, self.planes)]).sum(0)

    def _learn(self, y: Tensor) -> None:
        rows = (y >= 0).nonzero().squeeze(1)
        known = y[rows]
        several, folds = parts(known)
        planes = _fitted(self.x, y, self.num_classes)
        held_out = torch.stack([_soft(self.x[rows] @ a + b) for a, b in planes])
        for fold in range(FOLDS):
            out = several & (folds == fold)
            if bool(out.any()):
                left = y.clone()
                left[rows[out]] = -1
                found = _fitted(self.x, left, self.num_classes)
                held_out[:, out] = torch.stack([_soft(self.x[rows[out]] @ a + b) for a, b in found])
        self.planes = planes
        self.weights, seen = averaged(held_out, known, several)
        self.score = score_of(seen[several], known[several])
        self.probabilities = self._predicted(self.x)
        self.probabilities[rows] = seen


def _soft(logits: Tensor) -> Tensor:
    p = logits.softmax(-1)
    return (p + LEAST) / (1 + p.shape[-1] * LEAST)


def _fitted(x: Tensor, y: Tensor, num_classes: int) -> list[tuple[Tensor, Tensor]]:
    """`(a, b)` of `p(y | x) = softmax(x a + b)`, `(D, C)` and `(C,)`, for each weight and shrinkage.

    A mean has one row at the mean of all before it, and a class one row, too.
    """
    unknown = (y < 0).nonzero().squeeze(1)
    if len(unknown) > MOST_ROWS:
        unknown = unknown[torch.randperm(len(unknown), generator=torch.Generator().manual_seed(0))[:MOST_ROWS]]
    known, others, (_, columns) = x[y >= 0], x[unknown], x.shape
    labels = torch.nn.functional.one_hot(y[y >= 0], num_classes).double()
    variance = x.var(0, correction=0)
    diagonal = torch.diag(variance + (LEAST_VARIANCE * variance.mean()).clamp_min(FLAT))
    scatter, other_scatter = known.T @ known, others.T @ others
    found = []
    for weight in WEIGHTS:
        for shrinkage in SHRINKAGE:
            of_others = None  # their classes, until a step has guessed them
            for _ in range(STEPS if weight > 0 and len(others) else 1):
                counts, sums, total = labels.sum(0), labels.T @ known, scatter
                if of_others is not None:
                    counts = counts + weight * of_others.sum(0)
                    sums = sums + weight * of_others.T @ others
                    total = total + weight * other_scatter
                means = (sums + x.mean(0)) / (counts + 1)[:, None]
                within = total - sums.T @ means - means.T @ sums + (counts[:, None] * means).T @ means
                prior = shrinkage * columns
                a = torch.linalg.solve((within + prior * diagonal) / (counts.sum() + prior), means.T)
                b = (counts + 1).log() - 0.5 * (means.T * a).sum(0)
                of_others = (others @ a + b).softmax(-1)
            found.append((a, b))
    return found

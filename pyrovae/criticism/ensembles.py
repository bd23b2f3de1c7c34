"""`LabelEnsemble`: class probabilities by several classifiers of few labels, weighed by labels that all of them held out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae._arguments import as_count
from pyrovae._lazily import Lazily
from pyrovae.criticism.calibration import with_temperature
from pyrovae.criticism.edges import LEAST_SIDE, checked_shape, gradient_histograms
from pyrovae.criticism.fields import FAR, LabelField, checked, checked_labels, checked_rows, sharpened
from pyrovae.criticism.mixtures import LabelMixture
from pyrovae.criticism.normal_scores import NormalScores
from pyrovae.criticism.processes import FOLDS, LabelProcess, parts, score_of
from pyrovae.errors import ShapeError
from pyrovae.pair.batch import names_of

sklearn_trees = Lazily("sklearn.ensemble")

__all__ = ["LabelEnsemble"]

SURENESS = 3.0  # odds of e in the weights are a third of a nat in the mean log score of held-out labels
TREES = 100
FLAT = 1e-8  # the standard deviation of a column that is constant, as a share of its mean; it is left out
LEAST = torch.finfo(torch.float32).tiny  # in the place of a probability of 0
PSEUDO_ROWS = (0.05, 0.5)  # of mixture and trees: how much a row of unknown class counts for their temperatures
STANDARD = 1  # the place of standardised columns among the views of a table
OF_MODEL = 0.1  # the weight of a fitted pair's classifier before labels say more


@dataclass(frozen=True)
class Weights:
    """`p(y | x)` in proportion to `q(y | x)^classifier f(y | x)^ensemble`, of a pair's classifier q and of an ensemble, f.

    Where they add up to 1, this is a geometric mean. A smaller sum makes probabilities more even, as a temperature does. By
    default the classifier counts a tenth: with few labels it is far too sure of itself.
    """

    classifier: float
    ensemble: float

    @classmethod
    def default(cls, q: Tensor | None, f: Tensor | None) -> Weights:
        """Those before any label has been held out."""
        share = 0.0 if q is None else 1.0 if f is None else OF_MODEL
        return cls(share, 1 - share)

    def pooled(self, q: Tensor | None, f: Tensor | None) -> Tensor:
        """The probabilities, `(N, C)` float64, from those of the classifier and the ensemble, either of which may be None."""
        both = ((self.classifier, q), (self.ensemble, f))
        logits = [w * p.detach().cpu().double().clamp_min(LEAST).log() for w, p in both if p is not None]
        return torch.stack(logits).sum(0).softmax(-1)


class LabelEnsemble:
    """`p(y | x)` from few labels by methods that err on different rows, as a geometric mean with cautious weights.

    - A `LabelField`: labels spread over a graph of nearest neighbours.
    - A `LabelProcess`: Gaussian processes, among them logistic regressions.
    - A `LabelMixture`: one normal distribution a class.
    - Of tables, a hundred extremely randomised trees.

    Each predicts labels that it has not seen, and `w_m ~ exp(3 s_m)` with the mean log score `s_m` of these labels in nats:
    what is worse counts less, but it still counts, since it errs on other rows. Field and process see images as pixels or as
    `gradient_histograms`, whichever predict held-out labels better, and the mixture sees the histograms; images with a side
    below four pixels are seen as pixels. A table is seen in standardised columns, without constant ones, or in their normal
    scores, in which the tails of a column do not count, and by the field also in its own units; each takes the view in which
    it predicts held-out labels best. The trees see standardised columns. Of tables, mixture and trees have the temperature
    with the best log score of held-out labels, as the field has it always: where classes are not normal, a mixture is far too
    sure of itself, and trees are not sure enough.

    Args:
        x: Rows, `(N, *event)`. The field leaves gaps (NaN) out of its distances; the others fill in the mean of the column.
        y: Their class numbers, `(N,)`, from 0, and -1 where unknown.
        num_classes: C; by default the largest class number plus 1.
        num_neighbors: Of a row in the graph of the field.
        image_shape: `(height, width)` or `(channels, height, width)` of rows that are images.

    Attributes:
        probabilities: Of the rows x themselves, `(N, C)` float64: of labelled rows by members that have not seen their label,
            except where no other row has its class.
        weights: By the name of a member; their sum is 1.
        score: The log score of held-out labels, in nats per label; NaN if none was held out. As these labels choose kernels,
            units and weights, too, the scores of new rows are lower; to know them, hold out labels before.

    Raises:
        ShapeError: x and y do not have the same number of rows, rows have another shape than `image_shape` or those of x, or
            `image_shape` is not that of an image.
        DataError: No row has a label, a label is not a class number, there are fewer than two rows, or numbers are infinite.
        OptionError: `num_neighbors` is no whole number of at least 1.

    References:
        Geurts, Ernst & Wehenkel 2006, doi:10.1007/s10994-006-6226-1 (the trees). Genest & Zidek 1986,
        doi:10.1214/ss/1177013825, section 3 (the geometric mean).

    Example:
        >>> x = torch.cat([torch.randn(50, 2), torch.randn(50, 2) + 8])
        >>> y = torch.full((100,), -1)
        >>> y[[0, 1, 50, 51]] = torch.tensor([0, 0, 1, 1])  # 4 labels
        >>> ensemble = pv.LabelEnsemble(x, y)
        >>> list(ensemble.weights)
        ['field', 'process', 'mixture', 'trees']
        >>> ensemble(torch.tensor([[0.0, 0.0], [8.0, 8.0]])).argmax(-1)
        tensor([0, 1])
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        num_classes: int | None = None,
        num_neighbors: int = 5,
        image_shape: Sequence[int] | None = None,
    ) -> None:
        num_neighbors = as_count("num_neighbors", num_neighbors)
        self.columns = names_of(x)
        rows, y, self.num_classes = checked(x, y, num_classes, "ensemble")
        self.num_columns, self.image_shape = rows.shape[1], None if image_shape is None else checked_shape(image_shape)
        if self.image_shape is not None and math.prod(self.image_shape) != self.num_columns:
            raise ShapeError(f"Images of shape {self.image_shape} cannot have {self.num_columns} numbers a row.")
        # in units of the largest numbers, whose sums and squares could be infinite
        self.unit = rows.abs().nan_to_num(0.0).amax(0)
        self.unit = torch.where(self.unit > 0, self.unit, 1.0)
        scaled = rows / self.unit
        self.mean = scaled.nanmean(0).nan_to_num(0.0)
        scale = (scaled - self.mean).square().nanmean(0).sqrt().nan_to_num(0.0)
        self.factor = torch.where(scale > FLAT * self.mean.abs(), 1 / scale, 0.0)
        self.scores = NormalScores.of(rows if image_shape is None else rows[:, :0])  # images are not seen by them
        views, how = self._views(rows), (y, self.num_classes)
        self.fields = [LabelField(gappy, *how, num_neighbors) for gappy, _ in views]
        images = self.image_shape is not None
        # variances of kernels are in standard units, which a table has in all views but the first
        self.processes = [LabelProcess(filled, *how) for _, filled in views[0 if images else 1 :]]
        self.mixtures: list[Any] = [LabelMixture(filled, *how) for _, filled in views[-1 if images else 1 :]]
        self.trees: Any = None
        if not images:
            self.mixtures = [_Calibrated(mixture, y, PSEUDO_ROWS[0]) for mixture in self.mixtures]
            self.trees = _Calibrated(_Trees(views[STANDARD][1], *how), y, PSEUDO_ROWS[1])
        self._weigh()

    def relabelled(self, y: Tensor) -> LabelEnsemble:
        """The ensemble of the same rows and classes with other labels `(N,)`."""
        y, _ = checked_labels(y, len(self.probabilities), self.num_classes, "ensemble")
        other = copy(self)
        other.fields = [field.relabelled(y) for field in self.fields]
        other.processes = [process.relabelled(y) for process in self.processes]
        other.mixtures = [mixture.relabelled(y) for mixture in self.mixtures]
        other.trees = None if self.trees is None else self.trees.relabelled(y)
        other._weigh()
        return other

    def __call__(self, x: Tensor) -> Tensor:
        """`p(y | x)` of rows `(M, *event)`: `(M, C)`, float64. Each row is a new one."""
        rows = checked_rows(x, "ensemble", self.num_columns, self.columns)
        views = self._views(rows)
        found = [self.fields[self._field](views[self._field][0])]
        for members, best in ((self.processes, self._process), (self.mixtures, self._mixture)):
            found.append(members[best](views[best - len(members)][1]))  # the last views are those of such members
        if self.trees is not None:
            found.append(self.trees(views[STANDARD][1]))
        return _pooled(found, list(self.weights.values()))

    def _views(self, rows: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The rows in each of their units: with gaps, and with means in their place."""
        gaps, shape = rows.isnan(), self.image_shape
        some = bool(gaps.any())
        filled = torch.where(gaps, self.mean * self.unit, rows) if some else rows
        if shape is None:
            standard = ((rows / self.unit).clamp(-FAR, FAR) - self.mean) * self.factor
            scores = self.scores(rows) * (self.factor > 0)  # without constant columns
            return [(rows, filled), *((view, view.nan_to_num(0.0) if some else view) for view in (standard, scores))]
        if min(shape[-2:]) < LEAST_SIDE:
            return [(rows, filled)]
        histograms = gradient_histograms(filled, shape).double()
        return [(rows, filled), (histograms, histograms)]

    def _weigh(self) -> None:
        self._field, self._process, self._mixture = _best(self.fields), _best(self.processes), _best(self.mixtures)
        process = self.processes[self._process]
        members: dict[str, Any] = {"field": self.fields[self._field], "process": process}
        members["mixture"] = self.mixtures[self._mixture]
        if self.trees is not None:
            members["trees"] = self.trees
        each = [member.probabilities for member in members.values()]
        rows, labels = process.held_out, process.labels
        scores = torch.stack([p[rows, labels].clamp_min(LEAST).log().sum() for p in each])
        self.weights = dict(zip(members, (SURENESS * scores / max(len(rows), 1)).softmax(0).tolist()))
        self.probabilities = _pooled(each, list(self.weights.values()))
        self.score = score_of(self.probabilities[rows], labels)


def _best(members: Sequence[Any]) -> int:
    """Which has the best score; the last where there is none."""
    scores = [-math.inf if math.isnan(member.score) else member.score for member in members]
    return len(scores) - 1 - scores[::-1].index(max(scores))


def _pooled(each: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return torch.stack([w * p.clamp_min(LEAST).log() for w, p in zip(weights, each)]).sum(0).softmax(-1)


class _Calibrated:
    """A member at the temperature with the best log score of labels that it has held out, and of a row of unknown class.

    Args:
        member: Which has probabilities of its rows, those of labelled ones without their label.
        y: The labels of its rows, `(N,)`.
        pseudo_row: How much the row of unknown class counts beside those with a label.
    """

    def __init__(self, member: Any, y: Tensor, pseudo_row: float) -> None:
        self.member, self.pseudo_row = member, pseudo_row
        rows = (y >= 0).nonzero().squeeze(1)
        held = rows[parts(y[rows])[0]]
        self.temperature, self.score = 1.0, math.nan
        if len(held):
            self.temperature, self.score = sharpened(member.probabilities[held], y[held], pseudo_row)
        self.probabilities = with_temperature(member.probabilities, self.temperature)

    def relabelled(self, y: Tensor) -> _Calibrated:
        return _Calibrated(self.member.relabelled(y), y, self.pseudo_row)

    def __call__(self, x: Tensor) -> Tensor:
        return with_temperature(self.member(x), self.temperature)


class _Trees:
    """Extremely randomised trees, whose shares have one row of each class beside the labelled rows."""

    def __init__(self, x: Tensor, y: Tensor, num_classes: int) -> None:
        self.x, self.num_classes = x, num_classes
        self.num = 0  # of the labels that it has learned from
        self.forest: Any = None
        rows = (y >= 0).nonzero().squeeze(1)
        known = y[rows]
        several, folds = parts(known)
        self._learn(rows, known)
        self.probabilities = self(x)
        forest = self.forest
        for fold in range(FOLDS):
            out = several & (folds == fold)
            if bool(out.any()):
                self._learn(rows[~out], known[~out])
                self.probabilities[rows[out]] = self(x[rows[out]])
        self.forest, self.num = forest, len(rows)

    def relabelled(self, y: Tensor) -> _Trees:
        return _Trees(self.x, y, self.num_classes)

    def _learn(self, rows: Tensor, known: Tensor) -> None:
        self.num = len(rows)
        self.forest = sklearn_trees.ExtraTreesClassifier(TREES, random_state=0)
        self.forest.fit(_single(self.x[rows]), known.numpy())

    def __call__(self, x: Tensor) -> Tensor:
        found = torch.zeros(len(x), self.num_classes, dtype=torch.float64)
        if len(x):
            found[:, self.forest.classes_] = torch.from_numpy(self.forest.predict_proba(_single(x)))
        return (self.num * found + 1) / (self.num + self.num_classes)


def _single(x: Tensor) -> Any:
    """Rows as the trees take them, in single precision."""
    largest = torch.finfo(torch.float32).max
    return x.clamp(-largest, largest).float().numpy()

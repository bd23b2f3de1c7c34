"""`LabelProcess`: class probabilities by Gaussian processes over the rows, whose kernels held-out labels weigh."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.criticism.fields import FAR, checked, checked_labels, checked_rows
from pyrovae.errors import DataError
from pyrovae.pair.batch import names_of

__all__ = ["LabelProcess"]

FOLDS = 5
LINEAR = (3.0, 10.0, 30.0, 100.0, 300.0)  # prior variances of f at a row of mean size
PRECISIONS, GAUSSIAN = (0.3, 1.0, 3.0), (10.0, 100.0)  # 1 / length scale^2 of the Gaussian kernel, and its variances
OFFSET = 10.0  # prior variance of what is added to a class everywhere
MOST_LABELS = 500  # beyond which some of the labelled rows are left out: the work is cubic
MOST_VALUES = 4_000_000  # of a kernel, in memory at once
MOST_UNKNOWNS = 2_000_000  # of problems that are solved together: L-BFGS holds some 28 numbers for each, 450 MB
FIRST = 1e-9  # the place of a class's second label, before all third ones
JITTER = 1e-6
CURVATURE = 0.005  # of the log score of a label in f, about, by which `_fitted` scales its unknowns
ITERATIONS, HISTORY, SLOPE = 100, 10, 1e-2  # of L-BFGS; it ends where no slope is larger
TINY = torch.finfo(torch.float64).tiny


class LabelProcess:
    """`p(y | x)` of Gaussian processes over rows: `f_c ~ GP(0, k)` for each class c, and `y ~ Categorical(softmax(f(x)))`.

    The functions are those of the highest posterior density, so that a linear kernel is a logistic regression with a quadratic
    penalty, and a Gaussian kernel is a smooth function of the distances to labelled rows. Eleven kernels are tried, linear and
    Gaussian ones of several variances and length scales. Each predicts labels that are held out in five parts; the answer is
    the average of all with weights in proportion to exp(log score of these labels), so that a few labels choose none of them
    too surely. Only labelled rows are learned from; the others give columns their mean and scale.

    Like a `LabelField` this sees rows and labels only, and no model. The rows may also be codes, as of `encode`.

    Args:
        x: Rows, `(N, *event)`, without gaps, in units in which a Euclidean distance has a meaning, as of standardised columns.
        y: Their class numbers, `(N,)`, from 0, and -1 where unknown. Of more than 500 labels, 500 are used, drawn by a
            fixed seed: two of each class, and of the rest each class in proportion, so that frequencies stay what they are.
        num_classes: C; by default the largest class number plus 1.

    Attributes:
        probabilities: Of the rows x themselves, `(N, C)` float64: of labelled rows by functions that have not seen their label,
            except where no other row has its class.
        score: The log score of held-out labels, in nats per label; NaN if none was held out. The weights were chosen by these
            labels, too, which makes it better by up to log(11) nats in all.
        held_out: The positions of the held-out labels.
        weights: Those of the eleven kernels.

    Raises:
        ShapeError: x and y do not have the same number of rows, or rows to be predicted another shape than those of x.
        DataError: No row has a label, a label is not a class number, there are fewer than two rows, or numbers are not finite.

    References:
        Rasmussen & Williams 2006, *Gaussian processes for machine learning*, section 3.5. Yao, Vehtari, Simpson & Gelman 2018,
        arXiv:1704.02030 (weights by held-out log scores).

    Example:
        >>> x = torch.cat([torch.randn(50, 2), torch.randn(50, 2) + 8])
        >>> y = torch.full((100,), -1)
        >>> y[[0, 1, 50, 51]] = torch.tensor([0, 0, 1, 1])  # 4 labels
        >>> pv.LabelProcess(x, y)(torch.tensor([[0.0, 0.0], [8.0, 8.0]])).argmax(-1)
        tensor([0, 1])
    """

    def __init__(self, x: Tensor, y: Tensor, num_classes: int | None = None) -> None:
        self.columns = names_of(x)
        rows, y, self.num_classes = checked(x, y, num_classes, "process")
        refuse_gaps(rows, "process")
        self.scaling = Scaling.of(rows)
        self.x = self.scaling(rows)
        self._learn(y)

    def relabelled(self, y: Tensor) -> LabelProcess:
        """The process of the same rows and classes with other labels `(N,)`."""
        other = copy(self)
        other._learn(checked_labels(y, len(self.x), self.num_classes, "process")[0])
        return other

    def __call__(self, x: Tensor) -> Tensor:
        """`p(y | x)` of rows `(M, *event)`: `(M, C)`, float64. Each row is a new one."""
        rows = checked_rows(x, "process", self.x.shape[1], self.columns)
        refuse_gaps(rows, "process")
        return self._predicted(self.scaling(rows))

    def _predicted(self, rows: Tensor) -> Tensor:
        return torch.cat([self._mixed(part) for part in rows.split(max(1, MOST_VALUES // len(self.seen)))])

    def _mixed(self, rows: Tensor) -> Tensor:
        weights, functions, found = iter(self.weights), iter(self.functions), []
        for kernel, variances in _kernels(rows, self.seen):
            for variance, weight, (a, b) in zip(variances, weights, functions):
                found.append(weight * (variance * kernel @ a + b).softmax(-1))
        return torch.stack(found).sum(0)

    def _learn(self, y: Tensor) -> None:
        rows = _chosen(y, MOST_LABELS)
        self.seen, known = self.x[rows], y[rows]
        one_hot = torch.nn.functional.one_hot(known, self.num_classes).double()
        several, folds = parts(known)
        out = several & (folds == torch.arange(FOLDS)[:, None])  # (folds, n)
        held_out, self.functions = [], []
        index = torch.where(several, folds + 1, 0)
        for kernel, variances in _kernels(self.seen, self.seen):
            found = _fitted(kernel, variances, one_hot, torch.cat([torch.zeros(1, len(rows)).bool(), out]))
            for a, b, f in zip(*found):
                self.functions.append((a[0].clone(), b[0].clone()))  # else the functions of all folds stay in memory
                held_out.append(f[index, torch.arange(len(rows))].softmax(-1))
        self.weights, seen = averaged(torch.stack(held_out), known, several)
        self.held_out, self.labels = rows[several], known[several]
        self.score = score_of(seen[several], known[several])
        self.probabilities = self._predicted(self.x)
        self.probabilities[rows] = seen


@dataclass(frozen=True)
class Scaling:
    """Rows times and plus one number a column, so that their mean is 0 and their squares have mean 1."""

    unit: float  # so that no square is too large or too small
    origin: Tensor
    size: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> Scaling:
        unit = (rows.abs().max().item() if rows.numel() else 1.0) or 1.0
        scaled = rows / unit
        if bool((scaled == scaled[:1]).all()):  # what is left of them would be rounding errors
            return cls(unit, scaled[0], rows.new_ones(()))
        origin = scaled.mean(0)
        return cls(unit, origin, (scaled - origin).square().sum(1).mean().sqrt().clamp_min(TINY))

    def __call__(self, rows: Tensor) -> Tensor:
        return ((rows / self.unit).clamp(-FAR, FAR) - self.origin) / self.size


def refuse_gaps(rows: Tensor, what: str) -> None:
    """DataError for rows with gaps."""
    if bool(rows.isnan().any()):
        raise DataError(f"Rows of a {what} must have no gaps: fill them in, or use a LabelField.")


def parts(known: Tensor) -> tuple[Tensor, Tensor]:
    """Whether a label's class has several, and its part, from 0 to 4, in which it is held out if so.

    Labels of one class are in different parts.
    """
    folds = torch.empty_like(known)
    folds[known.argsort(stable=True)] = torch.arange(len(known)) % FOLDS
    return torch.bincount(known)[known] > 1, folds


def averaged(each: Tensor, known: Tensor, held_out: Tensor) -> tuple[Tensor, Tensor]:
    """Weights in proportion to exp(log score of held-out labels), and the average of `each`, `(members, n, C)`, by them."""
    weights = each[:, held_out, known[held_out]].clamp_min(TINY).log().sum(1).softmax(0)
    return weights, (weights[:, None, None] * each).sum(0)


def score_of(p: Tensor, y: Tensor) -> float:
    """The mean log score, in nats; NaN of no labels."""
    return float(p.gather(1, y[:, None]).clamp_min(TINY).log().mean()) if len(y) else math.nan


def _chosen(y: Tensor, most: int) -> Tensor:
    """The positions of labelled rows, ascending, or of so many of them: of each class two, and of the rest in proportion.

    Within a class they are drawn at random, since neighbouring rows of a table may be alike.
    """
    known = (y >= 0).nonzero().squeeze(1)
    if len(known) <= most:
        return known
    mixed = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(0))]
    mixed = mixed[y[mixed].argsort(stable=True)]
    counts = torch.bincount(y[mixed])
    before = (counts.cumsum(0) - counts)[y[mixed]]
    number = torch.arange(len(mixed)) - before  # within its class
    place = torch.where(number == 1, FIRST, number.double() / counts[y[mixed]])
    return mixed[place.argsort(stable=True)[:most]].sort().values


def _kernels(x: Tensor, seen: Tensor) -> Iterator[tuple[Tensor, tuple[float, ...]]]:
    """`k(x, x')` of variance 1 by each kernel in turn, `(M, n)`, of rows whose squares have mean 1; and its variances."""
    products = x @ seen.T
    squares = (x.square().sum(1, keepdim=True) + seen.square().sum(1) - 2 * products).clamp_min(0.0)
    yield products, LINEAR
    for precision in PRECISIONS:
        yield (-0.5 * precision * squares).exp(), GAUSSIAN


def _fitted(kernel: Tensor, variances: Sequence[float], one_hot: Tensor, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The functions of highest posterior density, for V variances and each choice `out`, `(F, n)`, of rows to leave out.

    With K = v Q diag(l) Q^T the functions are f = Q u + b with u ~ N(0, v l) in the prior, a convex problem. Its unknowns are
    u sqrt((1 + w v l) / (v l)), in which the curvature is about 1 everywhere, for labels of which each has the curvature w.

    Returns:
        The weights of the columns of K, `(V, F, n, C)`, the offsets, `(V, F, 1, C)`, and f at these rows, `(V, F, n, C)`.
    """
    num, classes = one_hot.shape
    if num * classes * len(variances) * len(out) > MOST_UNKNOWNS and (len(variances) > 1 or len(out) > 1):
        # they do not depend on each other, and one after the other they need less memory
        if len(variances) > 1:
            each, dim = [_fitted(kernel, (variance,), one_hot, out) for variance in variances], 0
        else:
            each, dim = [_fitted(kernel, variances, one_hot, rows[None]) for rows in out], 1
        weights, offsets, values = (torch.cat(columns, dim) for columns in zip(*each))
        return weights, offsets, values
    jitter = JITTER * kernel.diagonal().mean().clamp_min(JITTER) * torch.eye(num, dtype=kernel.dtype)
    values, vectors = torch.linalg.eigh(kernel + jitter)
    values = values.clamp_min(TINY)[:, None, None, None] * torch.tensor(variances, dtype=kernel.dtype)[:, None, None]
    penalty = 1 / (1 + CURVATURE * values)
    scale = (values * penalty).sqrt()  # (n, V, 1, 1)
    wanted = (one_hot * ~out[..., None]).transpose(0, 1)[:, None]  # (n, 1, F, C)

    def times(matrix: Tensor, u: Tensor) -> Tensor:
        return (matrix @ u.flatten(1)).view_as(u)  # one product, where a batch of them would copy the matrix

    with torch.inference_mode(False), torch.enable_grad():
        # those that an inference mode has made would not do
        vectors, scale, penalty, wanted = (each.clone() for each in (vectors, scale, penalty, wanted))
        shapes = ((size, len(variances), len(out), classes) for size in (num, 1))
        u, b = (torch.zeros(shape, dtype=kernel.dtype, requires_grad=True) for shape in shapes)
        optimizer = torch.optim.LBFGS(
            [u, b], max_iter=ITERATIONS, history_size=HISTORY, line_search_fn="strong_wolfe", tolerance_grad=SLOPE
        )

        def loss() -> float:
            optimizer.zero_grad()
            logs = (times(vectors, scale * u) + b).log_softmax(-1)
            value = -(wanted * logs).sum() + 0.5 * (penalty * u.square()).sum() + 0.5 * b.square().sum() / OFFSET
            value.backward()
            return value.item()

        optimizer.step(loss)
    u, b = u.detach(), b.detach()
    found = times(vectors, scale / values * u), b, times(vectors, scale * u) + b
    return tuple(each.permute(1, 2, 0, 3) for each in found)  # type: ignore[return-value]

"""`LabelProcess`: class probabilities by Gaussian processes over the rows, whose kernels held-out labels weigh."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import copy

import torch
from torch import Tensor

from pyrovae.criticism.fields import LabelField, checked_labels, checked_rows
from pyrovae.errors import DataError, ShapeError

__all__ = ["LabelProcess"]

FOLDS = 5
LINEAR = (3.0, 10.0, 30.0, 100.0, 300.0)  # prior variances of f at a row of mean size
PRECISIONS, GAUSSIAN = (0.3, 1.0, 3.0), (10.0, 100.0)  # 1 / length scale^2 of the Gaussian kernel, and its variances
OFFSET = 10.0  # prior variance of what is added to a class everywhere
MOST_LABELS = 500  # beyond which some of the labelled rows are left out: the work is cubic
MOST_VALUES = 4_000_000  # of a kernel, in memory at once
JITTER = 1e-6
CURVATURE = 0.005  # of the log score of a label in f, about, by which `_fitted` scales its unknowns
CAUTION = 10.0  # nats by which the log score of held-out labels must differ, for odds of e in the weights of a pool
ITERATIONS, HISTORY = 100, 20  # of L-BFGS
TINY = torch.finfo(torch.float64).tiny
LEAST = torch.finfo(torch.float32).tiny  # in a pool, in the place of a probability of 0


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
            fixed seed: one of each class, and of the rest each class in proportion, so that frequencies stay what they are.
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
        x, y = torch.as_tensor(x), torch.as_tensor(y)
        if x.dim() < 2 or y.shape != x.shape[:1]:
            raise ShapeError(
                f"A process needs rows (N, *event) and labels (N,), got {tuple(x.shape)} and {tuple(y.shape)}."
            )
        if len(x) < 2:
            raise DataError(f"A process needs two rows or more, got {len(x)}.")
        self.num_classes = checked_labels(y, len(x), num_classes, "process")
        rows = _complete(x)
        self.unit = rows.abs().max().item() if rows.numel() else 1.0  # so that no square is too large or too small
        self.unit = self.unit or 1.0
        self.origin = (rows / self.unit).mean(0)
        self.size = (rows / self.unit - self.origin).square().sum(1).mean().sqrt().clamp_min(TINY)
        self.x = self._scaled(rows)  # squares have mean 1
        self._learn(y.detach().cpu().long())

    def relabelled(self, y: Tensor) -> LabelProcess:
        """The process of the same rows and classes with other labels `(N,)`."""
        y = torch.as_tensor(y)
        checked_labels(y, len(self.x), self.num_classes, "process")
        other = copy(self)
        other._learn(y.detach().cpu().long())
        return other

    def __call__(self, x: Tensor) -> Tensor:
        """`p(y | x)` of rows `(M, *event)`: `(M, C)`, float64. Each row is a new one."""
        rows = _complete(torch.as_tensor(x))
        if rows.shape[1] != self.x.shape[1]:
            raise ShapeError(f"A row of the process has {self.x.shape[1]} numbers, got rows with {rows.shape[1]}.")
        return self._predicted(self._scaled(rows))

    def _scaled(self, rows: Tensor) -> Tensor:
        return (rows / self.unit - self.origin) / self.size

    def _predicted(self, rows: Tensor) -> Tensor:
        return torch.cat([self._mixed(part) for part in rows.split(max(1, MOST_VALUES // len(self.seen)))])

    def _mixed(self, rows: Tensor) -> Tensor:
        kernels = _kernels(rows, self.seen)
        parts = [weight * (k @ a + b).softmax(-1) for weight, k, (a, b) in zip(self.weights, kernels, self.functions)]
        return torch.stack(parts).sum(0)

    def _learn(self, y: Tensor) -> None:
        rows = _chosen(y, MOST_LABELS)
        self.seen, known = self.x[rows], y[rows]
        one_hot = torch.nn.functional.one_hot(known, self.num_classes).double()
        folds = torch.empty_like(known)
        folds[known.argsort(stable=True)] = torch.arange(len(rows)) % FOLDS  # those of one class are in different folds
        several = torch.bincount(known, minlength=self.num_classes)[known] > 1
        out = several & (folds == torch.arange(FOLDS)[:, None])  # (folds, n)
        held_out, self.functions = [], []
        for kernel in _kernels(self.seen, self.seen):
            a, b, f = _fitted(kernel, one_hot, torch.cat([torch.zeros(1, len(rows)).bool(), out]))
            self.functions.append((a[0], b[0]))
            index = torch.where(several, folds + 1, 0)
            held_out.append(f[index, torch.arange(len(rows))].softmax(-1))
        each = torch.stack(held_out)  # (kernels, n, C)
        scores = each[:, several, known[several]].clamp_min(TINY).log().sum(1)
        self.weights = scores.softmax(0)
        seen = (self.weights[:, None, None] * each).sum(0)
        self.held_out, self.labels = rows[several], known[several]
        self.score = float(seen[several, known[several]].clamp_min(TINY).log().mean()) if several.any() else math.nan
        self.probabilities = self._predicted(self.x)
        self.probabilities[rows] = seen


def pooled_labels(field: LabelField, process: LabelProcess) -> Tensor:
    """`p(y | x)` of the rows of a field and a process, `(N, C)`: a geometric mean with weights by labels that both held out.

    Where no label is held out, both count alike. Each 10 nats by which the log score of these labels is better for one of them
    multiply the odds of its weight by e.
    """
    logs = torch.stack([p.clamp_min(LEAST).log() for p in (field.probabilities, process.probabilities)])
    by_field, by_process = logs[:, process.held_out, process.labels].sum(1)
    share = ((by_process - by_field) / CAUTION).sigmoid()
    return ((1 - share) * logs[0] + share * logs[1]).softmax(-1)


def _complete(x: Tensor) -> Tensor:
    """Rows as `(N, D)` float64 on the CPU. DataError for numbers that are not finite."""
    rows = checked_rows(x, "process")
    if bool(rows.isnan().any()):
        raise DataError("Rows of a process must have no gaps: fill them in, or use a LabelField.")
    return rows


def _chosen(y: Tensor, most: int) -> Tensor:
    """The positions of labelled rows, ascending, or of so many of them: of each class one, and of the rest in proportion.

    Within a class they are drawn at random, since neighbouring rows of a table may be alike.
    """
    known = (y >= 0).nonzero().squeeze(1)
    if len(known) <= most:
        return known
    mixed = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(0))]
    mixed = mixed[y[mixed].argsort(stable=True)]
    counts = torch.bincount(y[mixed])
    before = (counts.cumsum(0) - counts)[y[mixed]]
    place = (torch.arange(len(mixed)) - before).double() / counts[y[mixed]]  # within its class, from 0 to 1
    return mixed[place.argsort(stable=True)[:most]].sort().values


def _kernels(x: Tensor, seen: Tensor) -> Iterator[Tensor]:
    """`k(x, x')` by each kernel in turn, `(M, n)`, of rows whose squares have mean 1."""
    products = x @ seen.T
    squares = (x.square().sum(1, keepdim=True) + seen.square().sum(1) - 2 * products).clamp_min(0.0)
    for variance in LINEAR:
        yield variance * products
    for precision in PRECISIONS:
        for variance in GAUSSIAN:
            yield variance * (-0.5 * precision * squares).exp()


def _fitted(kernel: Tensor, one_hot: Tensor, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The functions of highest posterior density, for each choice `out`, `(F, n)`, of rows whose labels are not learned from.

    With K = Q diag(l) Q^T the functions are f = Q u + b with u ~ N(0, l) in the prior, a convex problem. Its unknowns are
    u sqrt((1 + w l) / l), in which the curvature is about 1 everywhere, for labels of which each has the curvature w.

    Returns:
        The weights of the kernel's columns, `(F, n, C)`, the offsets, `(F, 1, C)`, and f at these rows, `(F, n, C)`.
    """
    num, classes = one_hot.shape
    jitter = JITTER * kernel.diagonal().mean().clamp_min(JITTER) * torch.eye(num, dtype=kernel.dtype)
    values, vectors = torch.linalg.eigh(kernel + jitter)
    values = values.clamp_min(TINY)
    penalty = 1 / (1 + CURVATURE * values)[:, None]
    scale = (values * penalty[:, 0]).sqrt()
    root = vectors * scale
    wanted = one_hot * ~out[..., None]
    with torch.inference_mode(False), torch.enable_grad():
        # those that an inference mode has made would not do
        root, penalty, wanted = (each.clone() for each in (root, penalty, wanted))
        u, b = (torch.zeros(len(out), size, classes, dtype=kernel.dtype, requires_grad=True) for size in (num, 1))
        optimizer = torch.optim.LBFGS([u, b], max_iter=ITERATIONS, history_size=HISTORY, line_search_fn="strong_wolfe")

        def loss() -> float:
            optimizer.zero_grad()
            logs = (root @ u + b).log_softmax(-1)
            value = -(wanted * logs).sum() + 0.5 * (penalty * u.square()).sum() + 0.5 * b.square().sum() / OFFSET
            value.backward()
            return value.item()

        optimizer.step(loss)
    u, b = u.detach(), b.detach()
    return (vectors * (scale / values)) @ u, b, root @ u + b

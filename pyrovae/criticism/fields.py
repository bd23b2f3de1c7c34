"""`LabelField`: class probabilities that spread from labelled rows to the others over a graph of nearest neighbours."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor

from pyrovae._arguments import as_count
from pyrovae.criticism.calibration import temperature_at, with_temperature
from pyrovae.errors import DataError, ShapeError, counted
from pyrovae.pair.arrays import as_tensor
from pyrovae.pair.batch import check_columns, names_of

__all__ = ["LabelField"]

DAMPING = 0.99  # of each step of the walk; the rest ends in a class drawn at random
# How much a held-out row of unknown class, all classes equally likely, counts beside those with a label.
PSEUDO_ROW = 0.5
FOLDS = 5, 50  # few or many
WORK, MOST_UNKNOWNS = 5e5, 2e6  # the numbers to be solved for that cost little, and at most
MOST_DISTANCES = 2e7  # in memory at once
EXACT = 64  # columns up to which distances are float64, so that equal ones of whole numbers are equal
FAR = 1e100  # beyond which numbers are taken to be so large, since sums of larger ones could be infinite
TOLERANCE, MOST_STEPS = 1e-8, 2000  # of conjugate gradients
COLDEST, HOTTEST = 0.05, 20.0  # the bounds of the temperature


class LabelField:
    """`p(y | x)` by random walks on the graph of nearest neighbours, from each row until they meet a labelled one.

    Rows are nodes; W counts how often of two rows one is among the k nearest of the other, and D is diagonal with the row sums
    of W. The field f is 1 for the class of a labelled row and 0 for its other classes, and elsewhere solves

        f = 0.99 D^-1 W f + 0.01 / C,

    the harmonic function, or the mean of a Gaussian field: f_c(x) is the probability that the walk ends in class c. A new row
    steps to one of its k nearest rows with equal probability. Such probabilities order the classes well and are too even: they
    are sharpened by the temperature with the best log score of labels that are held out in turn (besides half a row of unknown
    class, so that a few right answers make nothing certain). A label whose class has no other is not held out, and without
    any the temperature is 1.

    A field sees rows and labels only, and no model, and so errs on other rows than q(y | x) of a fitted pair does: `pooled` is
    their geometric mean. The rows may also be codes, as of `encode`. Missing entries (NaN) are left out of a distance, which is
    then one per column that both rows have.

    Args:
        x: Rows, `(N, *event)`, in units in which a Euclidean distance has a meaning, such as standardised columns.
        y: Their class numbers, `(N,)`, from 0, and -1 where unknown.
        num_classes: C; by default the largest class number plus 1.
        num_neighbors: k, at most N - 1 of which are used.

    Attributes:
        temperature: See above.
        probabilities: Of the rows x themselves, `(N, C)` float64: of a labelled row what labels of others say of it, of which
            some are held out with it where labels are many; or its label where no other row has its class.
        score: The log score of held-out labels, in nats per label, with which a field in other units compares; NaN if none was
            held out.

    Raises:
        ShapeError: x and y do not have the same number of rows, or rows to be predicted another shape than those of x.
        DataError: No row has a label, a label is not a class number, there are fewer than two rows, or numbers are infinite.
        OptionError: `num_neighbors` is no whole number of at least 1.

    References:
        Zhu, Ghahramani & Lafferty 2003, "Semi-supervised learning using Gaussian fields and harmonic functions", ICML. The
        damping is that of Zhou et al. 2004, "Learning with local and global consistency", NIPS. Genest & Zidek 1986,
        doi:10.1214/ss/1177013825, section 3 (the geometric mean).

    Example:
        >>> x = torch.cat([torch.randn(50, 2), torch.randn(50, 2) + 8])
        >>> y = torch.full((100,), -1)
        >>> y[[0, 1, 50, 51]] = torch.tensor([0, 0, 1, 1])  # 4 labels
        >>> field = pv.LabelField(x, y)
        >>> field(torch.tensor([[0.0, 0.0], [8.0, 8.0]])).argmax(-1)
        tensor([0, 1])
        >>> guide = torch.tensor([[0.9, 0.1], [0.6, 0.4]])  # as of `pv.classify(fitted, rows).guide`
        >>> field.pooled(torch.tensor([[0.0, 0.0], [8.0, 8.0]]), guide).argmax(-1)
        tensor([0, 1])
    """

    def __init__(self, x: Tensor, y: Tensor, num_classes: int | None = None, num_neighbors: int = 5) -> None:
        num_neighbors = as_count("num_neighbors", num_neighbors)
        self.columns = names_of(x)
        rows, y, self.num_classes = checked(x, y, num_classes, "field")
        self.num_neighbors = min(num_neighbors, len(rows) - 1)
        # In a unit near most rows' largest numbers no square is too large or too small; as it is a power of two, equal
        # distances stay equal.
        sizes = rows.abs().nan_to_num(0.0).amax(1)
        self.unit = 2.0 ** (math.frexp(sizes.median().item())[1] - 1)
        # where columns are far from 0, squares would cancel; whole numbers stay whole
        rows = self._in_units(rows)
        self.origin = (rows.nanmean(0).nan_to_num(0.0) * self.unit).round() / self.unit
        self.x = rows - self.origin
        near, reached = nearest(self.x, self.x, self.num_neighbors, themselves=True)
        # a walk that cannot leave ends in any class
        self.near = torch.where(reached, near, torch.arange(len(near))[:, None])
        self._spread(y)

    def relabelled(self, y: Tensor) -> LabelField:
        """The field of the same rows and classes with other labels `(N,)`, whose neighbours are not looked for again."""
        other = copy(self)
        other._spread(checked_labels(y, len(self.x), self.num_classes)[0])
        return other

    def _in_units(self, rows: Tensor) -> Tensor:
        return (rows / self.unit).clamp(-FAR, FAR)

    def _spread(self, y: Tensor) -> None:
        near, known = self.near, y >= 0
        self.values = _harmonic(near, y, known[:, None], self.num_classes)[:, 0]
        seen = self.values.clone()
        held, folds = _folds(y, _num_folds(len(y) * self.num_classes))
        self.temperature, self.score = 1.0, math.nan
        if len(held):
            fixed = known[:, None].repeat(1, int(folds.max()) + 1)
            fixed[held, folds] = False
            found = _harmonic(near, y, fixed, self.num_classes)[held, folds]
            self.temperature, self.score = sharpened(found, y[held])
            seen[held] = found
        self.probabilities = with_temperature(seen, self.temperature)

    def __call__(self, x: Tensor) -> Tensor:
        """`p(y | x)` of rows `(M, *event)`: `(M, C)`, float64. Each row is a new one; labelled rows are among its nearest."""
        rows = checked_rows(x, "field", self.x.shape[1], self.columns)
        near, reached = nearest(self._in_units(rows) - self.origin, self.x, self.num_neighbors)
        values = torch.where(reached[..., None], self.values[near], 1 / self.num_classes)
        found = DAMPING * values.mean(1) + (1 - DAMPING) / self.num_classes
        return with_temperature(found, self.temperature)

    def pooled(self, x: Tensor, probabilities: Tensor) -> Tensor:
        """The geometric mean of `p(y | x)` and other class probabilities of the same rows, `(M, C)`, normalised, float64."""
        here = self(x)
        if probabilities.shape != here.shape:
            raise ShapeError(
                f"The field has probabilities {tuple(here.shape)}, got others {tuple(probabilities.shape)}."
            )
        tiny = torch.finfo(torch.float32).tiny
        logs = [p.detach().cpu().double().clamp_min(tiny).log() for p in (here, probabilities)]
        return ((logs[0] + logs[1]) / 2).softmax(-1)


def checked(x: Any, y: Any, num_classes: int | None, what: str) -> tuple[Tensor, Tensor, int]:
    """Rows `(N, D)`, float64, their class numbers, and the number of classes. ShapeError or DataError for what is none."""
    x, y = as_tensor("x", x, torch.float64), as_tensor("y", y, codes=True)
    if x.dim() < 2 or y.shape != x.shape[:1]:
        raise ShapeError(
            f"{_a(what)} needs rows (N, *event) and labels (N,), got {tuple(x.shape)} and {tuple(y.shape)}."
        )
    if len(x) < 2:
        raise DataError(f"{_a(what)} needs two rows or more, got {len(x)}.")
    return checked_rows(x, what), *checked_labels(y, len(x), num_classes, what)


def _a(what: str) -> str:
    return f"A{'n' if what[0] in 'aeiou' else ''} {what}"


def checked_labels(y: Any, num_rows: int, num_classes: int | None, what: str = "field") -> tuple[Tensor, int]:
    """Labels as int64 on the CPU, and the number of classes. ShapeError or DataError for what are none of so many rows."""
    y = torch.as_tensor(y)
    if y.shape != (num_rows,):
        raise ShapeError(
            f"{_a(what)} needs a label for each of its {counted(num_rows, 'row')}, got labels {tuple(y.shape)}."
        )
    if y.is_floating_point():
        raise DataError(f"Labels of {_a(what).lower()} must be class numbers, which are integers, got {y.dtype}.")
    if not bool((y >= 0).any()):
        raise DataError(f"{_a(what)} needs a label, got {counted(num_rows, 'row')}, 0 labelled.")
    count = int(y.max()) + 1 if num_classes is None else num_classes
    if not isinstance(count, numbers.Integral):
        raise DataError(f"num_classes must be a whole number, got {count!r}.")
    if int(y.max()) >= count:
        raise DataError(f"Labels must be below {count}, the number of classes, got {int(y.max())}.")
    return y.detach().cpu().long(), count


def checked_rows(x: Any, what: str, width: int | None = None, columns: Sequence[str] | None = None) -> Tensor:
    """Rows as `(N, D)` float64 on the CPU. ShapeError for what is no rows, and DataError for infinite numbers.

    Args:
        x: The rows.
        what: Takes them.
        width: D, if it is known.
        columns: The names that a table has to have, in this order; DataError where it has others.
    """
    check_columns("x", names_of(x), columns, f"the rows of the {what}", "these columns, in this order")
    rows = as_tensor("x", x, torch.float64).detach().cpu().double()
    if rows.dim() < 2:
        raise ShapeError(f"{_a(what)} needs rows (N, *event), got {tuple(rows.shape)}.")
    rows = rows.flatten(1)
    if not rows.shape[1]:
        raise ShapeError(f"{_a(what)} needs rows of one number or more, got rows without any.")
    if width is not None and rows.shape[1] != width:
        raise ShapeError(f"A row of the {what} has {counted(width, 'number')}, got rows with {rows.shape[1]}.")
    if bool(rows.isinf().any()):
        raise DataError(
            f"Rows of {_a(what).lower()} must be finite, or NaN where missing, and some numbers are infinite."
        )
    return rows


def nearest(x: Tensor, others: Tensor, num: int, themselves: bool = False) -> tuple[Tensor, Tensor]:
    """The positions of the nearest among the other rows, `(N, num)`, and whether their distance is finite.

    Where x are the others `themselves`, a row is not its own neighbour. A distance between rows with gaps is that over the
    columns which both have, per column; without such columns it is infinite.
    """
    gaps = bool(x.isnan().any()) or bool(others.isnan().any())
    if x.shape[1] > EXACT:  # where float64 would take minutes
        x, others = x.float(), others.float()
    if gaps:
        seen, other_seen = ((~rows.isnan()).to(x.dtype) for rows in (x, others))
        x, others = x.nan_to_num(0.0), others.nan_to_num(0.0)
    found = []
    size = max(1, int(MOST_DISTANCES / len(others)))
    for start in range(0, max(len(x), 1), size):
        rows = x[start : start + size]
        if gaps:
            here = seen[start : start + size]
            squares = rows.square() @ other_seen.T + here @ others.square().T - 2 * rows @ others.T
            distance = torch.where((shared := here @ other_seen.T) > 0, squares / shared, math.inf)
        else:
            # without the row's own square, beside which others may be too small to be seen
            distance = others.square().sum(1) - 2 * rows @ others.T
        if themselves:
            index = torch.arange(len(rows))
            distance[index, start + index] = math.inf
        found.append(distance.topk(num, largest=False))
    return torch.cat([one.indices for one in found]), torch.cat([one.values.isfinite() for one in found])


def _harmonic(near: Tensor, y: Tensor, fixed: Tensor, num_classes: int) -> Tensor:
    """The field, `(N, F, C)`, for F choices `fixed`, `(N, F)`, of the rows that keep their label.

    (D - 0.99 W) f = 0.01 D / C over the rows that are free is solved by conjugate gradients, preconditioned by D.
    """

    def spread(values: Tensor) -> Tensor:
        """W times the values of all rows."""
        total = torch.zeros_like(values)
        for column in near.T:
            total += values[column]
            total.index_add_(0, column, values)
        return total

    degree = spread(torch.ones(len(y), 1, 1, dtype=torch.float64))
    free = (~fixed)[..., None].double()
    labels = torch.nn.functional.one_hot(y.clamp_min(0), num_classes)[:, None].double()
    clamped = (1 - free) * labels
    f = free / num_classes
    residual = free * ((1 - DAMPING) * degree / num_classes + DAMPING * spread(clamped + f) - degree * f)
    step = torch.zeros_like(residual)
    before = torch.ones_like(residual[:1])
    for _ in range(MOST_STEPS):
        scaled = residual / degree
        squares = (residual * scaled).sum(0, keepdim=True)
        if bool(squares.max() < TOLERANCE**2 * len(y)):
            break
        step = scaled + squares / before.clamp_min(1e-300) * step
        ahead = free * (degree * step - DAMPING * spread(step))
        length = squares / (step * ahead).sum(0, keepdim=True).clamp_min(1e-300)
        f, residual, before = f + length * step, residual - length * ahead, squares
    return (clamped + f).clamp_min(0.0)


def _num_folds(size: int) -> int:
    """Parts in which labels are held out, for so many numbers to be solved for in each."""
    few, many = FOLDS
    return max(2, min(many, max(few, int(WORK / size)), int(MOST_UNKNOWNS / size)))


def _folds(y: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The labelled rows that are held out in turn, and the fold of each; no fold takes the last label of a class."""
    counts = torch.bincount(y[y >= 0])
    several = (y >= 0) & (counts[y.clamp_min(0)] > 1)
    held = several.nonzero().squeeze(1)
    held = held[y[held].argsort(stable=True)]  # neighbours in this order, of one class, are in different folds
    return held, torch.arange(len(held)) % min(most, max(len(held), 1))


def sharpened(p: Tensor, y: Tensor, pseudo_row: float = PSEUDO_ROW) -> tuple[float, float]:
    """The temperature with the best log score of labels and of a row of unknown class, and the score of the labels.

    Args:
        p: Probabilities, `(n, C)`.
        y: The labels, `(n,)`, n > 0.
        pseudo_row: How much the row of unknown class counts beside those with a label.
    """
    logits = p.clamp_min(1e-12).log()
    weight = pseudo_row / len(y)
    wanted = logits.gather(1, y[:, None]).mean() + weight * logits.mean()
    temperature = temperature_at(logits, wanted, COLDEST, HOTTEST, 1 + weight)
    tempered = (logits / temperature).log_softmax(-1)
    return temperature, float(tempered.gather(1, y[:, None]).mean())

"""Linear corruptions as matrices, in blocks that have no element of a row in common: `LinearMap`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pyrovae.errors import OptionError
from pyrovae.recover.corruptions import Corruption

AT_ONCE = 256  # unit vectors, whose images are the columns of A
SINGULAR = 1e-6  # of the variance of a seen element, what the others of its block must leave
CLOSE, ROUNDING = 1e-3, 1e-6  # of A x and f(x), and of the terms of a sum, which may be in float32


@dataclass(frozen=True)
class LinearMap:
    """`x_seen = A x + s e` for rows of D elements, of which M elements are seen.

    Two seen elements are in one block if they depend on the same element of x, or each on one that a third depends on, and so
    on. Given independent elements of x, the blocks are independent: a covariance matrix of M x M is B matrices of m x m, and
    of means of squares that do not overlap it is M numbers.

    Attributes:
        corruption: The function, which computes A x, and the noise.
        shape: The shape of x.
        dtype: The dtype that the function takes.
        rows: Which seen elements are in each block, `(B, m)`; 0 in places that are left over.
        real: Which places hold one, `(B, m)` bool. Elements that neither x nor noise can change say nothing, and are in none.
        columns: The elements of x that they depend on, `(B, d)`; 0 in places that are left over.
        parts: The entries of A, `(B, m, d)`; 0 in places that are left over.
        sd: s, `(B, m)`.
        place: Where an element of x is among the B d places of `columns`, `(D,)`; B d if it is in none.
        complete: Whether no entry of what was seen is missing.
    """

    corruption: Corruption
    shape: torch.Size
    dtype: torch.dtype
    rows: Tensor
    real: Tensor
    columns: Tensor
    parts: Tensor
    sd: Tensor
    place: Tensor
    complete: bool

    @staticmethod
    def of(corruption: Corruption, shape: torch.Size, seen: Tensor) -> LinearMap:
        """The map of a corruption of rows `(*batch, *shape)`, for what was seen of them, `(N, *seen)`.

        Raises:
            OptionError: The function is not linear, or some of what is seen follows from the rest without noise.
        """
        event, size = seen.shape[1:], shape.numel()
        sd = torch.as_tensor(corruption.sd, dtype=torch.float64, device=seen.device).expand(event).reshape(-1)
        i, j, values = _entries(corruption, shape, seen)
        _check_linear(corruption, shape, seen, (i, j, values))
        changing = torch.zeros_like(sd, dtype=torch.bool).index_fill(0, i, True) | (sd > 0)
        block, num = _blocks(i, j, changing, size)
        of_x = block.new_full((size,), num).index_copy(0, j, block[i])
        (rows, at), (columns, at_x) = _places(block, num), _places(of_x, num)
        if rows.numel() > 2 * len(sd) or columns.numel() > 2 * size:  # of very different sizes: all in one
            num, block, of_x = 1, (block == num).long(), (of_x == num).long()
            (rows, at), (columns, at_x) = _places(block, num), _places(of_x, num)
        parts = torch.zeros(*rows.shape, columns.shape[1], dtype=torch.float64, device=seen.device)
        parts[block[i], at[i], at_x[j]] = values
        found = LinearMap(
            corruption,
            shape,
            seen.dtype,
            rows.clamp_min(0),
            rows >= 0,
            columns.clamp_min(0),
            parts,
            torch.where(rows >= 0, sd[rows.clamp_min(0)], 0.0),
            torch.where(of_x < num, of_x * columns.shape[1] + at_x, columns.numel()),
            not bool(seen.isnan().any()),
        )
        found._check_regular()
        return found

    def _check_regular(self) -> None:
        covariance = self._covariance(self.parts.new_ones(self.shape.numel()), None)
        factor, failed = torch.linalg.cholesky_ex(covariance)
        left = factor.diagonal(dim1=-2, dim2=-1).square() / covariance.diagonal(dim1=-2, dim2=-1)
        if bool(failed.any()) or not bool((left > SINGULAR).all()):
            raise OptionError(
                "Some of what the corruption shows follows from the rest of it without noise, so that it has no density: give "
                "the corruption sd=..., or leave out what follows."
            )

    def times(self, x: Tensor) -> Tensor:
        """A x in blocks, `(*batch, B, m)`, for x `(*batch, D)`."""
        found = self.corruption.function(x.reshape(-1, *self.shape).to(self.dtype)).double()
        return self.pick(found.reshape(*x.shape[:-1], -1)).nan_to_num(0.0)

    def pick(self, seen: Tensor) -> Tensor:
        """What was seen in blocks, `(*batch, B, m)`, for rows `(*batch, M)`; NaN in places that are left over."""
        picked = seen.index_select(-1, self.rows.flatten()).unflatten(-1, self.rows.shape)
        return torch.where(self.real, picked, torch.nan)

    def transposed_times(self, y: Tensor) -> Tensor:
        """`A^T y`, `(*batch, D)`, for y in blocks, `(*batch, B, m)`."""
        found = torch.einsum("bmd,...bm->...bd", self.parts, y).flatten(-2)
        return F.pad(found, (0, 1)).index_select(-1, self.place)

    def factor(self, variance: Tensor, there: Tensor | None) -> Tensor:
        """Cholesky's factors of the covariance of what is seen, `(*batch, B, m, m)`.

        Args:
            variance: Of the elements of x, `(*batch, D)`, of size 1 along dimensions along which it does not change.
            there: What is not missing, `(*batch, B, m)` bool; None if nothing is.
        """
        covariance = self._covariance(variance, None if self.complete else there)
        return covariance.sqrt() if covariance.shape[-1] == 1 else torch.linalg.cholesky(covariance)

    def _covariance(self, variance: Tensor, there: Tensor | None) -> Tensor:
        """`A diag(v) A^T + diag(s^2)` in blocks, with rows and columns of the unit matrix for what is missing."""
        of_blocks = variance.index_select(-1, self.columns.flatten()).unflatten(-1, self.columns.shape)
        if self.parts.shape[1] == 1:
            covariance = (self.parts[:, 0].square() * of_blocks).sum(-1)[..., None, None]
        else:
            covariance = torch.einsum("...bid,bjd->...bij", self.parts * of_blocks[..., None, :], self.parts)
        eye = torch.eye(self.sd.shape[1], dtype=torch.float64, device=self.sd.device)
        there = self.real if there is None else there
        both = there[..., None] & there[..., None, :]
        return torch.where(both, covariance + torch.diag_embed(self.sd.square()), eye)


def solve(factor: Tensor, y: Tensor, *, transposed: bool = False) -> Tensor:
    """`L^-1 y`, or `L^-T y`, for triangular L `(*batch, B, m, m)` and y `(*batch, B, m)`.

    Along dimensions where L has size 1, y is taken for columns of one right-hand side: broadcasting would copy L.
    """
    if factor.shape[-1] == 1:
        return y / factor[..., 0]
    factor = factor[(None,) * (y.dim() + 1 - factor.dim())]
    shared = [dim for dim in range(y.dim() - 2) if factor.shape[dim] == 1]
    factor = factor.squeeze(shared)
    last = list(range(-len(shared), 0))
    columns = y.movedim(shared, last)
    sizes = columns.shape[columns.dim() - len(shared) :]
    columns = columns.reshape(*columns.shape[: columns.dim() - len(shared)], sizes.numel())
    solved = torch.linalg.solve_triangular(factor.mT if transposed else factor, columns, upper=transposed)
    return solved.reshape(*solved.shape[:-1], *sizes).movedim(last, shared)


def linear_guess(linear: LinearMap, examples: Tensor, variance: Tensor, seen: Tensor) -> Tensor:
    """`E[x | x_seen]` of a Normal with the mean and covariance of some examples, and independent noise in each element.

    It is computed as `x = m + sum_k a_k (x_k - m) / sqrt(n) + e` with standard normal a_k, so that no matrix is D x D.

    Args:
        linear: What happened to x.
        examples: x_k, `(n, D)` float64.
        variance: Of e, `(D,)`.
        seen: What was seen, `(N, M)`, NaN where it is missing.

    Returns:
        `(N, D)` float64.
    """
    mean = examples.mean(0)
    spread = (examples - mean) / len(examples) ** 0.5
    shown, difference = linear.times(spread), linear.pick(seen.double()) - linear.times(mean)
    patterns, pattern = (~difference.isnan()).unique(dim=0, return_inverse=True)
    found = torch.empty(len(seen), len(mean), dtype=torch.float64, device=seen.device)
    for i, there in enumerate(patterns):
        rows = (pattern == i).nonzero()[:, 0]
        factor = linear.factor(variance, there)
        v, w = (solve(factor, torch.where(there, part, 0.0)).flatten(1) for part in (shown, difference[rows]))
        inner = torch.linalg.cholesky(torch.eye(len(v), dtype=v.dtype, device=v.device) + v @ v.T)
        a = torch.cholesky_solve(v @ w.T, inner).T
        rest = solve(factor, (w - a @ v).unflatten(1, there.shape), transposed=True)
        found[rows] = mean + a @ spread + variance * linear.transposed_times(rest)
    return found


def _entries(corruption: Corruption, shape: torch.Size, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The entries of A that are not 0: rows, columns, and values."""
    size = shape.numel()
    if corruption.elementwise:
        factors = corruption.function(seen.new_ones(1, *shape)).double().reshape(-1).nan_to_num(0.0)
        where = factors.nonzero()[:, 0]
        return where, where, factors[where]
    found = []
    for columns in torch.arange(size, device=seen.device).split(AT_ONCE):
        units = F.one_hot(columns, size).to(seen.dtype).reshape(-1, *shape)
        images = corruption.function(units).double().reshape(len(columns), -1).nan_to_num(0.0)
        at, rows = images.nonzero(as_tuple=True)
        found.append((rows, columns[at], images[at, rows]))
    rows, columns, values = (torch.cat(part) for part in zip(*found))
    return rows, columns, values


def _check_linear(
    corruption: Corruption, shape: torch.Size, seen: Tensor, entries: tuple[Tensor, Tensor, Tensor]
) -> None:
    rows, columns, values = entries
    x = 100 * torch.arange(1.0, 1 + shape.numel(), dtype=torch.float64, device=seen.device).cos()  # beyond any clipping
    wanted = x.new_zeros(seen[0].numel()).index_add(0, rows, values * x[columns])
    got = corruption.function(x.reshape(1, *shape).to(seen.dtype)).double().reshape(-1).nan_to_num(0.0)
    terms = x.new_zeros(len(wanted)).index_add(
        0, rows, (values * x[columns]).abs()
    )  # which may cancel, but for rounding
    if not bool(((got - wanted).abs() <= CLOSE * (1 + wanted.abs()) + ROUNDING * terms).all()):
        raise OptionError(
            "The corruption says linear=True, and its function is not: f(a x + b y) = a f(x) + b f(y), so without a constant "
            "and without clipping. Leave linear=True out, or subtract the constant from what was seen."
        )


def _blocks(rows: Tensor, columns: Tensor, changing: Tensor, size: int) -> tuple[Tensor, int]:
    """The block of each seen element, `(M,)`, and how many there are, B, which is the block of elements that do not change."""
    label = torch.arange(len(changing), device=rows.device)
    while True:  # the smallest number goes round a block
        of_x = label.new_full((size,), len(label)).scatter_reduce(0, columns, label[rows], "amin")
        found = label.scatter_reduce(0, rows, of_x[columns], "amin")
        found = found[found]
        if torch.equal(found, label):
            break
        label = found
    kept, block = torch.where(changing, label, len(label)).unique(return_inverse=True)
    return block, int((kept < len(label)).sum())


def _places(block: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The members of each block, `(B, largest)`, -1 in places that are left over; and the place of each member."""
    order = block.argsort(stable=True)
    counts = block.bincount(minlength=num + 1)
    place = torch.empty_like(block)
    place[order] = torch.arange(len(block), device=block.device) - (counts.cumsum(0) - counts)[block[order]]
    table = block.new_full((num, max([1, *counts[:num].tolist()])), -1)
    member = (block < num).nonzero()[:, 0]
    table[block[member], place[member]] = member
    return table, place

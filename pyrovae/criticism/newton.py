"""Variational Newton steps: a Normal of u, of many dimensions, moved to each row's posterior by a few rounds of draws."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyrovae.criticism.coordinates import Coordinates
from pyrovae.criticism.refined import BOUND_DRAWS, bound, draws_of_a_step, log_joint, run_traced
from pyrovae.fitted.fitted import Fit
from pyrovae.pair.batch import Batch
from pyrovae.pair.layout import Layout
from pyrovae.pair.parameters import fork_rng

FIRST, SHARE, MOST = 0.2, 2 / 3, 256  # directions of the first round and of later ones, over up to so many dimensions
DRAWS = 260  # of the later rounds together
OUTLIER = 10.0  # times sqrt(d): the longest residual of a draw
LEAST_PIVOT = 0.05  # by which a round widens no direction much more than 4.5 times
HALVINGS = 8  # of a change that would widen more
TRUSTED = 0.5  # of the gain that a long step would have, if the posterior were Normal
MOVING = 1.0  # nats by which the last round has changed q, after which there are more


def by_newton(
    fitted: Fit,
    rows: Batch,
    layout: Layout,
    coordinates: Coordinates,
    loc: Tensor,
    scale: Tensor,
    traced: dict[Any, Any] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """A Normal q of u that is near the posterior, moved by rounds of Newton's method for the row's ELBO.

    With u = m + L e, e standard normal, and f(u) = log p(x, z(u)) + log |dz/du|, the residual `r(e) = L' grad f(u) + e` is the
    gradient of `log p - log q` in units of q, and vanishes where q is the posterior. A natural gradient step on the ELBO, in
    full length, takes its linear part `r_0 + A e` for the whole: the new precision is `L^-T (I - A) L^-1`, and the new mean
    `m + L (I - A)^-1 r_0`. Each round estimates A from S < d draws in orthogonal directions, as the symmetric matrix of the
    least Frobenius norm that takes each e to its residual, times a gain. The gain is the share of the linear part in the
    squares of the residuals. It is known from the draws themselves: where r is linear, `e_j' r(e_i)` is symmetric in i and j.

    The mean moves no further than draws of q are from it, sqrt(d) of their standard deviations, except where the ELBO grows by
    about as much as it would if the posterior were Normal.

    Args:
        fitted: The fitted pair.
        rows: N rows that have the same arguments.
        layout: The layout of the pair for them.
        coordinates: u.
        loc: m, `(M, d)`.
        scale: L, lower triangular, `(M, d, d)`.
        traced: Keeps the traced gradient; None runs eager ones.

    Returns:
        m, L, and whether the last round has still changed q by more than `MOVING` nats, `(M,)`.

    References:
        Khan & Nielsen 2018, arXiv:1807.04489 (natural gradients of a Normal). Roeder, Wu & Duvenaud 2017, arXiv:1703.09194
        (the residual). Powell 1970 (the least symmetric change).
    """
    size, at_once = loc.shape[-1], draws_of_a_step(loc.shape[-1])
    mask = coordinates.mask(loc)

    def gradients(inputs: dict[str, Tensor]) -> list[Tensor]:
        batch = {name: inputs[name] for name in rows}
        u = inputs[" u"].transpose(0, 1).detach().requires_grad_()
        with torch.enable_grad():
            log_p = log_joint(fitted.pair, batch, layout, coordinates, u)
            slope = torch.autograd.grad(log_p.sum(), u)[0]
        # where p overflows there is none, and that of `possible` would be 0
        return [torch.where(log_p.detach().isfinite()[..., None], slope, math.nan).transpose(0, 1)]

    def height(loc: Tensor, scale: Tensor, noise: Tensor) -> Tensor:
        with fork_rng():  # the same draws of global sites whenever it is asked for
            return bound(fitted, rows, layout, coordinates, loc, scale, noise[:BOUND_DRAWS, None])

    step = run_traced(fitted, gradients, rows, traced)
    moved = loc.new_full((len(loc),), math.inf)
    for count in rounds(size):
        directions, length = _directions(count, loc)
        noise = length[:, None] * directions  # (S, d), the same for all rows
        u = loc[:, None] + noise @ scale.mT  # (M, S, d)
        # all runs have one size, so that one trace serves them
        pieces = torch.arange(-(-count // at_once) * at_once, device=loc.device).remainder(count).split(at_once)
        slope = torch.cat([step({**rows, " u": u[:, piece]})[0] for piece in pieces], 1)[:, :count]
        centre, far_centre, linear = _parts(slope @ scale + noise)
        change = torch.where(mask, _least_change(linear / length[:, None], directions), 0.0)
        factor = _factor(change)
        scale = torch.linalg.solve_triangular(factor, scale, upper=False, left=False)
        # r_0 in units of the new q, and no further than its draws are, unless the posterior is as good as Normal that far
        ahead, whole = torch.linalg.solve_triangular(
            factor.mT, torch.stack([centre, far_centre], -1), upper=True
        ).unbind(-1)
        ahead = ahead * _at_most(math.sqrt(size), ahead)
        long = _at_most(math.sqrt(size), whole) < 1
        if bool(long.any()):
            gain = height(loc + (scale @ whole[..., None])[..., 0], scale, noise) - height(loc, scale, noise)
            as_normal = gain > TRUSTED * whole.square().sum(-1) / 2
            ahead = torch.where(long & as_normal[:, None], whole, ahead)
        loc = loc + (scale @ ahead[..., None])[..., 0]
        moved = ahead.square().sum(-1) / 2 + change.square().sum((-1, -2)) / 4
    return loc, scale, moved > MOVING


def _parts(residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of residuals, `(M, S, d)`: their mean without outliers and with them, `(M, d)`, and what is left of each, `(M, S, d)`.

    Draws at which the density overflows have no part in it.
    """
    possible = residual.isfinite().all(-1, keepdim=True)
    residual = torch.where(possible, residual, 0.0)
    shortened = residual * _at_most(OUTLIER * math.sqrt(residual.shape[-1]), residual)
    centre, far_centre = (part.sum(1) / possible.sum(1).clamp_min(1) for part in (shortened, residual))
    return centre, far_centre, torch.where(possible, shortened - centre[:, None], 0.0)


def _at_most(longest: float, vectors: Tensor) -> Tensor:
    """The factors, `(..., 1)`, by which vectors get a length of at most `longest`."""
    largest = vectors.abs().amax(-1, keepdim=True).clamp_min(1e-9)  # whose square may overflow
    return (longest / (vectors / largest).norm(dim=-1, keepdim=True) / largest).clamp_max(1.0)


def rounds(size: int) -> list[int]:
    """The number S of draws of each round, for a u of so many dimensions."""
    first, later = (max(2, round(share * min(size, MOST))) for share in (FIRST, SHARE))
    return [first, *[later] * max(2, round(DRAWS / later))]


def _directions(count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal vectors, `(S, d)`, and lengths, `(S,)`, whose products are standard normal vectors each."""
    normal = torch.randn(like.shape[-1], count, dtype=like.dtype, device=like.device)
    q, r = torch.linalg.qr(normal)
    length = torch.randn(count, like.shape[-1], dtype=like.dtype, device=like.device).norm(dim=-1)
    return (q * r.diagonal().sign()).T, length


def _least_change(image: Tensor, directions: Tensor) -> Tensor:
    """A from its images of S orthonormal directions, `(M, S, d)`, times the gain of each row: `(M, d, d)`."""
    count, size = directions.shape
    among = image @ directions.T  # q_j' A q_i
    odd = (among - among.mT) / 2
    noise = 2 * odd.square().sum((-1, -2)) / (count * (count - 1))  # mean square of an entry of the image
    gain = 1 - noise * count * size / image.square().sum((-1, -2)).clamp_min(1e-30)
    one = image.mT @ directions
    both = one + one.mT - directions.T @ ((among + among.mT) / 2) @ directions
    return gain.clamp(0, 1)[:, None, None] * both


def _factor(change: Tensor) -> Tensor:
    """The lower triangular V with `V' V = I - change`, the change halved where this is not positive, or far too wide a step."""
    one = torch.eye(change.shape[-1], dtype=change.dtype, device=change.device)
    share = torch.ones(len(change), 1, 1, dtype=change.dtype, device=change.device)
    for _ in range(HALVINGS):
        # Cholesky's factor of a matrix whose coordinates are in reversed order
        factor, failed = torch.linalg.cholesky_ex((one - share * change).flip(-1, -2))
        wrong = (failed > 0) | ~(factor.diagonal(dim1=-2, dim2=-1).square().amin(-1) > LEAST_PIVOT)
        if not bool(wrong.any()):
            break
        share = torch.where(wrong[:, None, None], share / 2, share)
    else:
        factor = torch.where(wrong[:, None, None], one, factor)
    return factor.flip(-1, -2).mT

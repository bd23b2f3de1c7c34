"""The log-density of numbers that are recorded to a step, with its derivatives written out.

A step of a fit computes both for each number of its rows. Autograd makes some two hundred small operations of it; here they are
sixty.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

THIN = 0.1  # of a Normal's scale near its mean, less in the tails: the mass of a narrower cell is its width times a density
LOG_ROOT = 0.5 * math.log(2 * math.pi)


class Cells(NamedTuple):
    """The numbers t that are recorded as some x: cells of a line, of middle t and width 0 where x is exact.

    Attributes:
        middle: The middle of each cell.
        width: Its width.
        log_rate: The logarithm of its width in t by its width in x, `log dt/dx` where that is 0.
        log_step: The logarithm of its width in x, of any value where that is 0.
        ends: 1 where a cell reaches to minus infinity, -1 where it reaches to infinity, else 0; None if all are 0.
    """

    middle: Tensor
    width: Tensor
    log_rate: Tensor
    log_step: Tensor
    ends: Tensor | None = None


def log_density(loc: Tensor, scale: Tensor, cells: Cells) -> Tensor:
    """`log int_cell N(t; loc, scale^2) dt / step`, or `log N(t; loc, scale^2) dt/dx` of exact numbers, element by element.

    It is precise in the tails and for thin cells, as are its derivatives.
    """
    given = [loc, scale, *(part for part in cells if part is not None)]
    found: Tensor = _LogDensity.apply(*torch.broadcast_tensors(*given))
    return found


class _Parts(NamedTuple):
    """What the density and its derivatives have in common; see `_parts`."""

    value: Tensor
    m: Tensor
    w: Tensor
    thin: Tensor
    curved: Tensor
    a: Tensor
    b: Tensor
    log_mass: Tensor
    at_end: Tensor | None


def _parts(
    loc: Tensor,
    scale: Tensor,
    middle: Tensor,
    width: Tensor,
    log_rate: Tensor,
    log_step: Tensor,
    ends: Tensor | None = None,
) -> _Parts:
    """The log-density, by operations whose own derivatives are finite.

    Within a thin cell the density changes little: its mass is width times density, times `1 + (m^2 - 1) w^2 / 24`. Others are
    taken to the lower tail, from `a` to `b`, where cumulative probabilities are small, and so is the error of a difference.
    """
    m, w = (middle - loc) / scale, width / scale
    nearer, at_end = torch.where(m > 0, -m, m), None
    thin = w * (1 - nearer) < THIN
    square = m.square()
    curved = ((square - 1) * w.square() / 24).clamp(-0.5, 0.5)
    as_density = log_rate - LOG_ROOT - scale.log() - 0.5 * square + torch.log1p(curved)
    if ends is not None:
        at_end = ends != 0
        thin = thin & ~at_end
        nearer = torch.where(at_end, ends * m, nearer)
    b = nearer + 0.5 * w
    a = b - w
    log_b = torch.special.log_ndtr(b)
    share = torch.exp((torch.special.log_ndtr(a) - log_b).clamp_max(-1e-6))
    if at_end is not None:
        share = torch.where(at_end, 0.0, share)
    log_mass = log_b + torch.log1p(-share)
    value = torch.where(thin, as_density, log_mass - log_step)
    return _Parts(value, m, w, thin, curved, a, b, log_mass, at_end)


class _LogDensity(torch.autograd.Function):
    """`_parts(...).value`, whose derivatives by loc and scale take few operations."""

    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> Tensor:
        parts = _parts(*given)
        kept = [part for part in parts[1:] if part is not None]
        ctx.given = len(given)
        ctx.save_for_backward(*given, *kept)
        return parts.value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        given, kept = ctx.saved_tensors[: ctx.given], ctx.saved_tensors[ctx.given :]
        if torch.is_grad_enabled() or any(ctx.needs_input_grad[2:]):  # of higher order, or by x
            return _by_autograd(given, ctx.needs_input_grad, gradient)
        m, w, thin, curved, a, b, log_mass, *at_end = kept
        # the density at each end of a cell, by the mass of the cell
        left, right = (torch.exp(-0.5 * end.square() - log_mass) * math.exp(-LOG_ROOT) for end in (a, b))
        slope = torch.where(m > 0, left - right, right - left)
        if at_end:
            left = torch.where(at_end[0], 0.0, left)
            slope = torch.where(at_end[0], given[6] * right, slope)
        by_m = torch.where(thin, m * (w.square() / (12 * (1 + curved)) - 1), slope)
        by_w = torch.where(thin, 1 + 2 * curved / (1 + curved), 0.5 * w * (left + right))  # times w
        share = -gradient / given[1]
        return (share * by_m, share * (by_w + m * by_m), *[None] * (len(given) - 2))


def _by_autograd(given: Any, needed: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """The derivatives by what needs one, which can be differentiated in turn."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        own = given if again else [one.detach().requires_grad_(need) for one, need in zip(given, needed)]
        total = (_parts(*own).value * gradient).sum()  # for a gradient of several outputs, torch imports its compilers
        wanted = [one for one, need in zip(own, needed) if need]
        found = iter(torch.autograd.grad(total, wanted, create_graph=again, allow_unused=True))
    return tuple(next(found) if need else None for need in needed)

"""Proposals of the latent sites of each row, fitted to that row's own posterior: how a `Refined` is found.

A guide predicts the posterior of a row that it may never have seen, and is often displaced. Here the continuous sites of a row
are taken together as one vector u without constraints, and a Normal of u is improved by steps on that row's own ELBO. Where the
guide's draws depend on one another, as in a hierarchy, u is the noise of its Normal draws, and not their values. The draws that
shape a proposal are not weighed: `weighing` draws fresh ones.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pyrovae._arguments import as_choice
from pyrovae.batching.chunks import chunks, even_size
from pyrovae.criticism.coordinates import MOST_JOINT, Coordinates, NotRefinable, PointGuide, Radial
from pyrovae.criticism.newton import by_newton
from pyrovae.criticism.refined import (
    BOUND_DRAWS,
    DRAWS,
    Refined,
    bound,
    draws_of_a_step,
    log_joint,
    looked_at,
    run_traced,
    widening,
)
from pyrovae.engine.adam import Adam
from pyrovae.engine.fused import gradients_as_by_backward
from pyrovae.errors import PairError
from pyrovae.fitted.fitted import Fit, FittedGroup
from pyrovae.fitted.runs import rows_at_once
from pyrovae.objectives.terms import terms
from pyrovae.pair.batch import Batch, num_rows, take_rows
from pyrovae.pair.checks import check_particles
from pyrovae.pair.common import same_for_rows, start_rows
from pyrovae.pair.layout import Layout
from pyrovae.pair.parameters import fork_rng

STEPS = 100  # of Adam; half as many to the mode, where Laplace's approximation is the start
RATE = 0.3  # of Adam, in units of the guide's standard deviations; it falls to a twentieth
SHAPE_RATE = 1.0  # over the dimensions: that of the scale matrix, whose many entries learn from noisy gradients
MODE_STEPS, MODE_RATE = 100, 0.15  # to the mode, for Laplace's approximation
NEGLIGIBLE = 20.0  # nats by which a class is less probable than another one
FAR, MORE_ROUNDS = 5.0, 5  # a move, in such units, after which there are more steps, in units of what has been found
MORE_STAGES = 10  # the first of their stages of random numbers
GROWING = 20.0  # nats by which the ELBO has grown in more steps, after which there are more again
WIDE = 20  # dimensions, beyond which Laplace's approximation is the start, and the steps are Newton's
UNHURRIED = 10  # dimensions, beyond which correlations are learned more slowly
ASTRAY = 3.0  # nats of the ELBO below the start of the steps, far beyond the noise of its few draws
START_DRAWS = 64  # draws of the guide, whose moments are the start
FLATTEST = 3.0  # of Laplace's approximation, in standard deviations of the guide
MOST_WEIGHTS = 2**24  # log-weights of a block of rows
MOST_ENTRIES = 2**23  # of the covariance matrices of a block of rows


def start(
    fitted: Fit, rows: Batch, layout: Layout, at_once: int, noise: bool = False
) -> tuple[Coordinates, Tensor, Tensor]:
    """The coordinates of these rows, and mean and standard deviation of u under the guide, `(M, d)`.

    Args:
        fitted: The fitted pair.
        rows: Rows that have the same arguments.
        layout: The layout of the pair for these rows.
        at_once: How many particles of a row may be drawn in one run.
        noise: Whether coordinates are the noise of the guide's draws, where it draws from Normals.

    Raises:
        NotRefinable: The latent sites of a row are no vector of real numbers.
    """
    starts, coordinates = [], None
    for k in pieces(START_DRAWS, min(at_once, DRAWS)):
        found = terms(fitted.pair, rows, k, layout=layout)
        if coordinates is None:
            coordinates = Coordinates.of(found, layout)
            if noise:
                coordinates = coordinates.by_noise(found)
            if coordinates.are_noise:  # whose moments are known
                none = torch.zeros_like(coordinates.join(found)[0])
                return coordinates, none, none + 1
        starts.append(coordinates.join(found))
    assert coordinates is not None
    u = torch.cat(starts).nan_to_num(0.0, posinf=30.0, neginf=-30.0)
    return coordinates, u.mean(0), u.std(0).clamp_min(1e-4)


def refine_rows(
    fitted: Fit, rows: Batch, layout: Layout, at_once: int, traced: dict[Any, Any], noise: bool = False
) -> Refined:
    """A proposal for each row: from the guide's moments, by gradient steps on the row's own ELBO.

    In up to `WIDE` dimensions these are the steps of `_by_adam`. Beyond, so many correlations cannot be learned in few of them:
    the start is Laplace's approximation near the mode, and the steps those of `by_newton`. Rows that are still far from where
    they lead take as many steps again, up to five times, from the Normal found so far. Where Newton's steps go astray, as they
    may where the posterior has kinks or is far from Normal, Adam's take their place.

    Args:
        fitted: The fitted pair.
        rows: Rows that have the same arguments.
        layout: The layout of the pair for these rows.
        at_once: How many particles of a row may be drawn in one run.
        traced: Keeps the traced steps from one call to the next, for blocks of the same number of rows.
        noise: Whether coordinates are the noise of the guide's draws, where it draws from Normals.

    Raises:
        NotRefinable: The latent sites of a row are no vector of real numbers.
    """
    coordinates, mean, spread = start(fitted, rows, layout, at_once, noise)
    improve: Improve = _by_adam
    if coordinates.size > WIDE and not _on_sphere(coordinates):
        improve = by_newton
        to_mode = traced.setdefault(" to the mode", {})
        # of noise in many dimensions the guide's scales are as good a start, for which a row takes no gradient a dimension
        curved = not (coordinates.are_noise and coordinates.size > MOST_JOINT)
        mean, spread = _laplace(fitted, rows, layout, coordinates, mean, spread, STEPS // 2, to_mode, curved)
    loc, scale, left, astray = _improved(improve, fitted, rows, layout, coordinates, mean, spread, traced)
    slow = astray if improve is by_newton else torch.zeros_like(astray)  # rows whose steps are Adam's from now on
    left = left | slow
    for number in range(MORE_ROUNDS):
        for kind, (steps, some) in enumerate(((improve, left & ~slow), (_by_adam, left & slow))):
            if not bool(some.any()):
                continue
            start_rows(stage=MORE_STAGES + 2 * number + kind)  # no row depends on how many steps others take
            which = some.nonzero().flatten()
            q = Refined(coordinates, loc, scale).rows(which)  # of all classes, where rows have a proposal for each
            index = torch.arange(len(loc), device=loc.device).unflatten(0, (-1, num_rows(rows)))[:, which].flatten()
            found = _improved(
                steps, fitted, take_rows(rows, which), layout, coordinates, q.loc, q.scale_tril, None, GROWING
            )
            loc[index], scale[index], left[which], astray = found
            if steps is by_newton:
                slow[which] = astray
                left[which] |= astray
    return Refined(coordinates, loc, widening(mean.shape[-1]) * scale)


# From the mean of a Normal of u, `(M, d)`, and its scale, a vector or a triangular matrix, to mean and matrix of a better one,
# and which rows have more to gain, `(M,)`.
Improve = Callable[
    [Fit, Batch, Layout, Coordinates, Tensor, Tensor, dict[Any, Any] | None], tuple[Tensor, Tensor, Tensor]
]


def _improved(
    improve: Improve,
    fitted: Fit,
    rows: Batch,
    layout: Layout,
    coordinates: Coordinates,
    mean: Tensor,
    spread: Tensor,
    traced: dict[Any, Any] | None,
    growing: float = math.inf,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A Normal that is better than its start, and what is left to do in each row.

    A class that is far less probable than another one for its row does not count for the row.

    Args:
        improve: The steps; the arguments between are theirs.
        growing: By how many nats the ELBO has grown where there is more to gain, however far the steps have led.

    Returns:
        The mean, `(M, d)`, and the scale matrix, `(M, d, d)`, that `improve` has found, or the start where it has gone astray;
        whether a row has more to gain by it, `(N,)`; and whether it has gone astray in a row, `(N,)`.
    """
    loc, scale, far = improve(fitted, rows, layout, coordinates, mean, spread, traced)
    root = spread if spread.dim() > 2 else torch.diag_embed(spread)
    with same_for_rows(1, len(loc)):
        noise = torch.randn(BOUND_DRAWS, *loc.shape, dtype=loc.dtype, device=loc.device)
    with fork_rng():  # the same draws of global sites for both
        here = bound(fitted, rows, layout, coordinates, loc, scale, noise)
    before = bound(fitted, rows, layout, coordinates, mean, root, noise)
    worse, far = here < before - ASTRAY, far | (here > before + growing)
    loc, scale = torch.where(worse[:, None], mean, loc), torch.where(worse[:, None, None], root, scale)
    by_class = torch.where(worse, before, here).unflatten(0, (-1, num_rows(rows)))
    counts = by_class > by_class.amax(0) - NEGLIGIBLE
    worse, far = (each.view_as(counts) & counts for each in (worse, far))
    return loc, scale, (far & ~worse).any(0), worse.any(0)


def _by_adam(
    fitted: Fit,
    rows: Batch,
    layout: Layout,
    coordinates: Coordinates,
    mean: Tensor,
    spread: Tensor,
    traced: dict[Any, Any] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """A Normal of u after some steps of Adam.

    With u = m + s (a + B e), where e is standard normal, Adam maximises `E[log p(x, z(u)) + log |dz/du| - log q(u)]` over a and
    the triangular matrix B of each row, without the score of q, as in Roeder, Wu & Duvenaud 2017, arXiv:1703.09194.

    Args:
        fitted: The fitted pair.
        rows: N rows that have the same arguments.
        layout: The layout of the pair for them.
        coordinates: u.
        mean: m, `(M, d)`.
        spread: s, `(M, d)`, or a matrix, `(M, d, d)`.
        traced: Keeps the traced step; None runs eager ones.

    Returns:
        The mean, `(M, d)`, the scale matrix, `(M, d, d)`, and whether a is large, `(M,)`.
    """
    mask, draws = coordinates.mask(mean).tril(-1), draws_of_a_step(mean.shape[-1])
    shift = torch.zeros_like(mean)
    shape = torch.zeros(*mean.shape, mean.shape[-1], dtype=mean.dtype, device=mean.device)  # log B_ii on its diagonal

    # a row of B has up to d entries: with steps of one size, their sum would outgrow its diagonal, and B become singular
    pace = min(1.0, math.sqrt(UNHURRIED / mean.shape[-1]))

    def triangle(shape: Tensor) -> Tensor:
        return torch.where(mask, pace * shape, 0.0) + torch.diag_embed(
            shape.diagonal(dim1=-2, dim2=-1).clamp(-7, 7).exp()
        )

    def gradients(inputs: dict[str, Tensor]) -> list[Tensor]:
        batch = {name: inputs[name] for name in rows}
        a, b = inputs[" shift"].detach().requires_grad_(), inputs[" shape"].detach().requires_grad_()
        noise, spread = inputs[" noise"].transpose(0, 1), inputs[" spread"]  # (S, M, d)
        with torch.enable_grad():
            scale = triangle(b)
            local = a + torch.einsum("nij,snj->sni", scale, noise)
            moved = torch.einsum("nij,snj->sni", spread, local) if spread.dim() > 2 else spread * local
            at = inputs[" mean"] + moved
            # -log q at the draws, its parameters held fixed: where q is the posterior, the gradient has no noise
            slope = torch.linalg.solve_triangular(scale.detach().mT, noise.permute(1, 2, 0), upper=True).permute(
                2, 0, 1
            )
            elbo = (log_joint(fitted.pair, batch, layout, coordinates, at) + (slope * local).sum(-1)).mean(0)
            return [-g.nan_to_num(0.0, 0.0, 0.0) for g in torch.autograd.grad(elbo.sum(), [a, b])]

    step = run_traced(fitted, gradients, rows, traced)
    optimizer = Adam([{"params": [shift]}, {"params": [shape]}], lr=RATE, betas=(0.9, 0.99))
    shares = 1.0, min(1.0, SHAPE_RATE / RATE / mean.shape[-1])
    for rate in _falling(STEPS, RATE):
        for group, share in zip(optimizer.param_groups, shares):
            group["lr"] = share * rate
        with same_for_rows(0, len(mean)):
            noise = torch.randn(len(mean), draws, mean.shape[-1], dtype=mean.dtype, device=mean.device)
        inputs = {" mean": mean, " spread": spread, " shift": shift, " shape": shape, " noise": noise}
        shift.grad, shape.grad = gradients_as_by_backward([shift, shape], step({**rows, **inputs}))
        optimizer.step()
    root = spread if spread.dim() > 2 else torch.diag_embed(spread)
    loc, scale = mean + torch.einsum("nij,nj->ni", root, shift), root @ triangle(shape)
    return loc, scale, shift.abs().amax(-1) > FAR


def laplace_rows(
    fitted: Fit, rows: Batch, layout: Layout, at_once: int, traced: dict[Any, Any], noise: bool = False
) -> Refined:
    """A proposal for each row by Laplace's approximation, see `_laplace`.

    On a sphere there is no such mode (the length of u would be 0), and the proposal is that of `refine_rows`. The arguments are
    the same, too.
    """
    coordinates, mean, sd = start(fitted, rows, layout, at_once, noise)
    if _on_sphere(coordinates):
        return refine_rows(fitted, rows, layout, at_once, traced, noise)
    loc, scale = _laplace(fitted, rows, layout, coordinates, mean, sd, MODE_STEPS, traced)
    return Refined(coordinates, loc, widening(mean.shape[-1]) * scale)


def _on_sphere(coordinates: Coordinates) -> bool:
    return any(isinstance(part.transform, Radial) for part in coordinates.parts)


def _laplace(
    fitted: Fit,
    rows: Batch,
    layout: Layout,
    coordinates: Coordinates,
    mean: Tensor,
    sd: Tensor,
    steps: int,
    traced: dict[Any, Any],
    curved: bool = True,
) -> tuple[Tensor, Tensor]:
    """A mode of `log p(x, z(u)) + log |dz/du|`, and a scale matrix by the curvature there, or by the guide's scales.

    The mode is looked for by gradient steps from the guide's mean. Directions in which the density is not concave, or flatter
    than `FLATTEST` standard deviations of the guide, get that standard deviation.
    """
    shift = torch.zeros_like(mean)

    def slope(inputs: dict[str, Tensor]) -> list[Tensor]:
        batch = {name: inputs[name] for name in rows}
        a = inputs[" shift"].detach().requires_grad_()
        with torch.enable_grad():
            at = (inputs[" mean"] + inputs[" sd"] * a)[None]
            (slope,) = torch.autograd.grad(log_joint(fitted.pair, batch, layout, coordinates, at).sum(), a)
        return [-slope.nan_to_num(0.0, 0.0, 0.0)]

    step = run_traced(fitted, slope, rows, traced)
    optimizer = Adam([shift], lr=MODE_RATE, betas=(0.9, 0.99))
    for rate in _falling(steps, MODE_RATE):
        optimizer.param_groups[0]["lr"] = rate
        found = step({**rows, " mean": mean, " sd": sd, " shift": shift})
        (shift.grad,) = gradients_as_by_backward([shift], found)
        optimizer.step()
    if not curved:
        return mean + sd * shift, torch.diag_embed(sd)
    with torch.enable_grad():
        a = shift.clone().requires_grad_()
        log_p = log_joint(fitted.pair, rows, layout, coordinates, (mean + sd * a)[None]).sum()
        (slopes,) = torch.autograd.grad(log_p, a, create_graph=True)
        columns = [
            torch.autograd.grad(slopes[:, i].sum(), a, retain_graph=True)[0] if slopes.requires_grad else 0 * a
            for i in range(a.shape[-1])
        ]
    curvature = -torch.stack(columns, -1).nan_to_num(0.0, 0.0, 0.0)
    curvature = torch.where(coordinates.mask(mean), (curvature + curvature.mT) / 2, 0.0)
    values, vectors = torch.linalg.eigh(curvature)
    half = vectors * values.clamp_min(FLATTEST**-2).rsqrt()[:, None]  # half half' is the covariance
    return mean + sd * shift, sd[..., None] * lower_factor(half)


def lower_factor(half: Tensor) -> Tensor:
    """The lower triangular L with `L L' = half half'`, `(M, d, d)`.

    Cholesky's algorithm fails in float32 where some directions are 1e3 times as wide as others.
    """
    triangle = torch.linalg.qr(half.mT).R.mT
    return triangle * triangle.diagonal(dim1=-2, dim2=-1).sign()[:, None]


ADAPTED: dict[str, Callable[[Fit, Batch, Layout, int, dict[Any, Any], bool], Refined]] = {
    "refined": refine_rows,
    "laplace": laplace_rows,
}


def _falling(steps: int, first: float) -> Iterator[float]:
    """The learning rate of each step."""
    for number in range(steps):
        yield first * (0.05 + 0.475 * (1 + math.cos(math.pi * number / steps)))


PROPOSALS = ("guide", *ADAPTED)


def check_proposal(proposal: str) -> None:
    """OptionError unless a proposal has this name."""
    as_choice("proposal", proposal, PROPOSALS)


def usable(fitted: Fit, part: FittedGroup, proposal: str, sites: Collection[str] = (), stacklevel: int = 6) -> str:
    """The proposal, or "guide", with a warning, where no other is possible for rows with these arguments.

    Args:
        fitted: The fitted pair.
        part: The rows.
        proposal: A name of `PROPOSALS`.
        sites: Enumerated sites of which values are needed, too.
        stacklevel: Of the warning.
    """
    latent = any(site.role != "observed" and site.local for site in part.layout.sites)
    if proposal == "guide" or not latent:
        return "guide"
    why = _why_not(fitted, part.batch, part.layout, sites)
    if why is not None:
        warnings.warn(
            f"The guide is the proposal, since none can be refined for these rows: {why} "
            'proposal="guide" to ask for the guide without this warning.',
            stacklevel=stacklevel,
        )
        return "guide"
    return proposal


CHECK = "Check k_hat, and pass"  # what to do with the guide as proposal: the end of a sentence


def _why_not(fitted: Fit, batch: Batch, layout: Layout, sites: Collection[str]) -> str | None:
    """Why no proposal can be refined for rows with these arguments, and what to do; None if it can be."""
    few = take_rows(batch, slice(0, 3))
    try:
        with fork_rng():
            check_particles(fitted.pair, few, layout)
            found = Coordinates.of(terms(fitted.pair, few, 2, layout=layout), layout)
    except PairError:
        return f"the pair does not keep several particles apart. {CHECK}"
    except PointGuide as error:
        return f"{error}. Pass"
    except NotRefinable as error:
        return f"{error}. {CHECK}"
    if found.classes is not None and (other := set(sites) - {found.classes.site, *found.names}):
        others = ", ".join(map(repr, sorted(other)))
        return f"it has another site that is not refined ({others}) besides {found.classes.site!r}. {CHECK}"
    return None


def adapted(
    fitted: Fit, batch: Batch, layout: Layout, weights: int, at_once: int, proposal: str, noise: bool = True
) -> Iterator[tuple[Batch, Refined]]:
    """The rows in blocks, each with its proposal; many blocks are refined together.

    Args:
        fitted: The fitted pair.
        batch: Rows that have the same arguments.
        layout: The layout of the pair for these rows.
        weights: How many log-weights of a row will be in memory.
        at_once: How many particles of a row may be drawn in one run.
        proposal: "refined" or "laplace".
        noise: Whether its coordinates may be the noise of the guide's draws, which is of no meaning for other rows.
    """
    together = rows_at_once(fitted, batch, layout, at_once)
    seen, noise = looked_at(fitted, batch, layout, noise)
    count = 1 if seen.classes is None else seen.classes.count
    size = min(fitted.chunk_size(batch, draws_of_a_step(seen.size)), num_rows(batch), max(1, MOST_WEIGHTS // weights))
    size = even_size(num_rows(batch), max(1, min(size, MOST_ENTRIES // (count * seen.size**2))))
    traced: dict[Any, Any] = {}
    for block in chunks(batch, size):
        padded = block
        if num_rows(block) < size:  # all have one size, so that one trace serves them
            index = torch.arange(size, device=next(iter(block.values())).device) % num_rows(block)
            padded = take_rows(block, index)
        start_rows()
        refined = ADAPTED[proposal](fitted, padded, layout, at_once, traced, noise)
        for start in range(0, num_rows(block), together):
            some = slice(start, min(start + together, num_rows(block)))
            start_rows(stage=1)
            yield take_rows(block, some), refined.rows(some)


def pieces(total: int, most: int) -> Sequence[int]:
    return [min(most, total - done) for done in range(0, total, most)]

"""Proposals of the latent sites of each row, fitted to that row's own posterior: `Refined`, and the weights of its draws.

A guide predicts the posterior of a row that it may never have seen, and is often displaced. Here the continuous sites of a row
are taken together as one vector u without constraints, and a Normal of u is improved by gradient steps on that row's own ELBO.
The draws that are weighed are fresh ones: of a t distribution with heavier tails, and of the guide if it enumerates nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae.batching.chunks import chunks
from pyrovae.criticism.coordinates import Coordinates, NotRefinable
from pyrovae.engine.tracing import TracedFunction
from pyrovae.errors import PairError
from pyrovae.fitted.fitted import Fit
from pyrovae.fitted.runs import drawn_terms, particles_at_once
from pyrovae.objectives.terms import Terms, terms
from pyrovae.objectives.weights import log_weights, row_bounds
from pyrovae.pair.batch import Batch, num_rows, take_rows
from pyrovae.pair.checks import check_particles
from pyrovae.pair.handlers import PutDraws, SetValues
from pyrovae.pair.layout import Layout
from pyrovae.pair.parameters import fork_rng
from pyrovae.pair.program import Pair, PairLike

STEPS, DRAWS = 200, 4  # gradient steps, and draws of each
RATE = 0.15  # of Adam, in units of the guide's standard deviations; it falls to a twentieth
START_DRAWS = 64  # draws of the guide, whose moments are the start
FREEDOM = 5.0  # degrees of freedom of the t distribution
GUIDE_SHARE = 0.1  # of the draws that are weighed
MOST_WEIGHTS = 2**24


@dataclass(frozen=True)
class Refined:
    """A distribution of u for each of N rows: multivariate t around `loc` with the scale matrix `scale_tril`."""

    coordinates: Coordinates
    loc: Tensor  # (N, d)
    scale_tril: Tensor  # (N, d, d)

    def rows(self, rows: slice) -> Refined:
        """The same for some of the rows."""
        return Refined(self.coordinates, self.loc[rows], self.scale_tril[rows])

    def sample(self, num: int) -> Tensor:
        """Draws of u, `(num, N, d)`."""
        noise = torch.randn(num, *self.loc.shape, dtype=self.loc.dtype, device=self.loc.device)
        shape = torch.full((num, len(self.loc)), FREEDOM / 2, dtype=self.loc.dtype, device=self.loc.device)
        chi2 = 2 * torch._standard_gamma(shape)
        noise = noise * (FREEDOM / chi2).sqrt()[..., None]
        return self.loc + torch.einsum("nij,knj->kni", self.scale_tril, noise)

    def log_prob(self, u: Tensor) -> Tensor:
        """The log-density at u, `(K, N)`."""
        d = self.loc.shape[-1]
        centred = (u - self.loc).permute(1, 2, 0)  # (N, d, K)
        squared = torch.linalg.solve_triangular(self.scale_tril, centred, upper=False).square().sum(1).T
        constant = math.lgamma((FREEDOM + d) / 2) - math.lgamma(FREEDOM / 2) - d / 2 * math.log(FREEDOM * math.pi)
        log_det = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return constant - log_det - (FREEDOM + d) / 2 * torch.log1p(squared / FREEDOM)


def log_joint(pair: PairLike, rows: Batch, layout: Layout, coordinates: Coordinates, u: Tensor) -> Tensor:
    """`log p(x, z) + log |dz/du|` at u for each particle and row, `(K, N)`, enumerated sites summed out."""
    values, log_det = coordinates.split(u)
    moved = Pair(pair.model, PutDraws(values)(pair.guide))
    return log_weights(terms(moved, rows, len(u), layout=layout)) + log_det


def refine_rows(fitted: Fit, rows: Batch, layout: Layout, at_once: int, traced: dict[Any, Any]) -> Refined:
    """A proposal for each row: from the guide's moments, by gradient steps on the row's own ELBO.

    With u = m + s (a + B e), where m and s are the mean and the standard deviation of u under the guide, and e is standard
    normal, Adam maximises `E[log p(x, z(u)) + log |dz/du|] + log |B|` over a and the triangular matrix B of each row.

    Args:
        fitted: The fitted pair.
        rows: Rows that have the same arguments.
        layout: The layout of the pair for these rows.
        at_once: How many particles of a row may be drawn in one run.
        traced: Keeps the traced step from one call to the next, for blocks of the same number of rows.

    Raises:
        NotRefinable: The latent sites of a row are no vector of real numbers.
    """
    starts, coordinates = [], None
    for found in drawn_terms(fitted, rows, layout, START_DRAWS, min(at_once, START_DRAWS)):
        coordinates = Coordinates.of(found, layout) if coordinates is None else coordinates
        starts.append(coordinates.join(found))
    assert coordinates is not None
    u = torch.cat(starts).nan_to_num(0.0, posinf=30.0, neginf=-30.0)
    mean, sd = u.mean(0), u.std(0).clamp_min(1e-4)
    mask = coordinates.mask(u).tril(-1)
    shift = torch.zeros_like(mean)
    shape = torch.zeros(*mean.shape, mean.shape[-1], dtype=u.dtype, device=u.device)  # its diagonal holds log B_ii

    def triangle(shape: Tensor) -> Tensor:
        return torch.where(mask, shape, 0.0) + torch.diag_embed(shape.diagonal(dim1=-2, dim2=-1).clamp(-7, 7).exp())

    def gradients(inputs: dict[str, Tensor]) -> list[Tensor]:
        batch = {name: inputs[name] for name in rows}
        a, b = inputs[" shift"].detach().requires_grad_(), inputs[" shape"].detach().requires_grad_()
        noise = inputs[" noise"].transpose(0, 1)  # (S, N, d)
        with torch.enable_grad():
            local = a + torch.einsum("nij,snj->sni", triangle(b), noise)
            at = inputs[" mean"] + inputs[" sd"] * local
            bound = log_joint(fitted.pair, batch, layout, coordinates, at).mean(0)
            bound = bound + b.diagonal(dim1=-2, dim2=-1).sum(-1)
            return [-g.nan_to_num(0.0, 0.0, 0.0) for g in torch.autograd.grad(bound.sum(), [a, b])]

    step = traced.setdefault((num_rows(rows), tuple(rows)), TracedFunction(gradients, (fitted.pair,)))
    if fitted.settings.get("engine") == "eager":
        step = gradients
    optimizer = torch.optim.Adam([shift, shape], lr=RATE, betas=(0.9, 0.99))
    for number in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (0.05 + 0.475 * (1 + math.cos(math.pi * number / STEPS)))
        noise = torch.randn(len(mean), DRAWS, mean.shape[-1], dtype=u.dtype, device=u.device)
        inputs = {" mean": mean, " sd": sd, " shift": shift, " shape": shape, " noise": noise}
        shift.grad, shape.grad = step({**rows, **inputs})
        optimizer.step()
    widen = math.sqrt(1 + min(0.44, 1 / math.sqrt(mean.shape[-1])))
    return Refined(coordinates, mean + sd * shift, widen * sd[..., None] * triangle(shape))


def why_not_refined(fitted: Fit, batch: Batch, layout: Layout) -> str | None:
    """Why no proposal can be refined for rows with these arguments; None if it can be."""
    few = take_rows(batch, slice(0, 3))
    try:
        with fork_rng():
            check_particles(fitted.pair, few, layout)
            Coordinates.of(terms(fitted.pair, few, 2, layout=layout, enumerate=False), layout)
    except PairError:
        return "the pair does not keep several particles apart"
    except NotRefinable as error:
        return str(error)
    return None


def refined_blocks(fitted: Fit, batch: Batch, layout: Layout, num_samples: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield block by block of n rows the log-weights of fresh draws, `(K, n)`, and ELBOs of draws of the guide, `(k, n)`.

    Raises:
        NotRefinable: See `why_not_refined`.
    """
    at_once = particles_at_once(fitted, batch, layout, max(num_samples, DRAWS))
    for rows, refined in _in_blocks(fitted, batch, layout, num_samples, at_once):
        yield _weigh(fitted, rows, layout, refined, num_samples, at_once)


def refined_runs(
    fitted: Fit, batch: Batch, layout: Layout, num_samples: int
) -> Iterator[Iterator[tuple[Tensor, Terms]]]:
    """Yield block by block of n rows runs at K fresh draws, enumerated sites drawn, too: log-weights `(k, n)` and the terms."""
    at_once = particles_at_once(fitted, batch, layout, max(num_samples, DRAWS))
    for rows, refined in _in_blocks(fitted, batch, layout, num_samples, at_once):
        yield _drawn(fitted, rows, layout, refined, num_samples, at_once)


def _in_blocks(
    fitted: Fit, batch: Batch, layout: Layout, num_samples: int, at_once: int
) -> Iterator[tuple[Batch, Refined]]:
    """The rows in blocks that K draws fit into, each with its proposal; many blocks are refined together."""
    size = min(fitted.chunk_size(batch, DRAWS), num_rows(batch), max(1, MOST_WEIGHTS // num_samples))
    together = fitted.chunk_size(batch, at_once)
    traced: dict[Any, Any] = {}
    for block in chunks(batch, size):
        padded = block
        if num_rows(block) < size:  # all have one size, so that one trace serves them
            index = torch.arange(size, device=next(iter(block.values())).device) % num_rows(block)
            padded = take_rows(block, index)
        refined = refine_rows(fitted, padded, layout, at_once, traced)
        for start in range(0, num_rows(block), together):
            some = slice(start, min(start + together, num_rows(block)))
            yield take_rows(block, some), refined.rows(some)


def _weigh(
    fitted: Fit, rows: Batch, layout: Layout, refined: Refined, num_samples: int, at_once: int
) -> tuple[Tensor, Tensor]:
    """Log-weights `(K, n)` of fresh draws of the refined proposal and the guide, and ELBOs `(k, n)` of draws of the guide."""
    coordinates, pair = refined.coordinates, fitted.pair
    from_guide = max(1, round(GUIDE_SHARE * num_samples))
    # a draw of the guide belongs to one value of the sites that it enumerates, and its density would, too
    share = 0.0 if any(site.enumerated == "guide" for site in layout.sites) else from_guide / num_samples
    elbos, log_w = [], []
    for k in _pieces(from_guide, at_once):
        found = terms(pair, rows, k, layout=layout)
        elbos.append(row_bounds(found))
        if share:
            log_w.append(_mixed(found, coordinates.join(found), refined, share))
    for k in _pieces(num_samples - (from_guide if share else 0), at_once):
        u = refined.sample(k)
        if share:
            moved = Pair(pair.model, SetValues(coordinates.split(u)[0])(pair.guide))
            log_w.append(_mixed(terms(moved, rows, k, layout=layout), u, refined, share))
        else:
            log_w.append(log_joint(pair, rows, layout, coordinates, u) - refined.log_prob(u))
    return torch.cat(log_w), torch.cat(elbos)


def _drawn(
    fitted: Fit, rows: Batch, layout: Layout, refined: Refined, num_samples: int, at_once: int
) -> Iterator[tuple[Tensor, Terms]]:
    pair, coordinates = fitted.pair, refined.coordinates
    from_guide = max(1, round(GUIDE_SHARE * num_samples))
    share = from_guide / num_samples
    for k in _pieces(from_guide, at_once):
        found = terms(pair, rows, k, layout=layout, enumerate=False)
        yield _mixed(found, coordinates.join(found), refined, share), found
    for k in _pieces(num_samples - from_guide, at_once):
        u = refined.sample(k)
        moved = Pair(pair.model, SetValues(coordinates.split(u)[0])(pair.guide))
        found = terms(moved, rows, k, layout=layout, enumerate=False)
        yield _mixed(found, u, refined, share), found


def _mixed(found: Terms, u: Tensor, refined: Refined, share: float) -> Tensor:
    """Log-weights of draws u at which a run stands, under the mixture of the guide and the refined proposal, `(k, n)`."""
    _, log_det = refined.coordinates.split(u)
    log_q = u.new_zeros(u.shape[:2])
    for part in refined.coordinates.parts:
        side = found.sites[part.name].q
        assert side is not None
        log_q = log_q + found.reduce(side.log_prob, True)
    log_p = log_weights(found) + log_q + log_det
    log_guide = (log_q + log_det).nan_to_num(-math.inf)
    other = refined.log_prob(u) + (math.log1p(-share) if share < 1 else -math.inf)
    return log_p - torch.logaddexp(math.log(share) + log_guide, other)


def _pieces(total: int, most: int) -> Sequence[int]:
    return [min(most, total - done) for done in range(0, total, most)]

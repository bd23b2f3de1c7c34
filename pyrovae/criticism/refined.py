"""A proposal that was fitted to each row, `Refined`, and the density that it is fitted to, `log_joint`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae.criticism.coordinates import Coordinates
from pyrovae.criticism.noise import PutNoise, SetNoise
from pyrovae.engine.compiled import CompiledFunction
from pyrovae.engine.tracing import TracedFunction
from pyrovae.fitted.fitted import Fit
from pyrovae.objectives.terms import Terms, terms
from pyrovae.objectives.weights import each_log_weight, log_weights
from pyrovae.pair.batch import Batch, num_rows, take_rows
from pyrovae.pair.common import same_for_rows
from pyrovae.pair.handlers import AnyOf, PutDraws, SetValues
from pyrovae.pair.layout import Layout
from pyrovae.pair.parameters import fork_rng
from pyrovae.pair.program import Pair, PairLike

DRAWS, MORE_DRAWS, MOST_DRAWS = 3, 30, 8  # of a gradient step: one more for every 30 dimensions, up to 8
BOUND_DRAWS = 8  # by which the ELBOs of two proposals of a row are compared
LOOKS, LOOK_DRAWS = 8, 4  # rows, and draws of each, by which it is seen whether the guide's draws depend on one another
FREEDOM = 5.0  # degrees of freedom of the t distribution in few dimensions


@dataclass(frozen=True)
class Refined:
    """A distribution of u for each of N rows: multivariate t around `loc` with the scale matrix `scale_tril`."""

    coordinates: Coordinates
    loc: Tensor  # (M, d)
    scale_tril: Tensor  # (M, d, d)

    def rows(self, rows: slice | Tensor) -> Refined:
        """The same for some of the rows."""
        count = 1 if self.coordinates.classes is None else self.coordinates.classes.count
        loc, scale = (part.unflatten(0, (count, -1))[:, rows].flatten(0, 1) for part in (self.loc, self.scale_tril))
        return Refined(self.coordinates, loc, scale)

    def sample(self, num: int) -> Tensor:
        """Draws of u, `(num, M, d)`."""
        with same_for_rows(1, len(self.loc)):
            noise = torch.randn(num, *self.loc.shape, dtype=self.loc.dtype, device=self.loc.device)
            nu = freedom(self.loc.shape[-1])
            shape = torch.full((num, len(self.loc)), nu / 2, dtype=self.loc.dtype, device=self.loc.device)
            chi2 = 2 * torch._standard_gamma(shape)
        noise = noise * (nu / chi2).sqrt()[..., None]
        return self.loc + torch.einsum("nij,knj->kni", self.scale_tril, noise)

    def log_prob(self, u: Tensor) -> Tensor:
        """The log-density at u, `(K, M)`."""
        d, nu = self.loc.shape[-1], freedom(self.loc.shape[-1])
        centred = (u - self.loc).permute(1, 2, 0)  # (M, d, K)
        squared = torch.linalg.solve_triangular(self.scale_tril, centred, upper=False).square().sum(1).T
        constant = math.lgamma((nu + d) / 2) - math.lgamma(nu / 2) - d / 2 * math.log(nu * math.pi)
        log_det = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return constant - log_det - (nu + d) / 2 * torch.log1p(squared / nu)


def log_joint(pair: PairLike, rows: Batch, layout: Layout, coordinates: Coordinates, u: Tensor) -> Tensor:
    """`log p(x, z) + log |dz/du|` at u, `(K, M)`, of each class where the coordinates have classes; other sites summed out."""
    return run_at(pair, rows, layout, coordinates, u)[1]


def run_at(pair: PairLike, rows: Batch, layout: Layout, coordinates: Coordinates, u: Tensor) -> tuple[Terms, Tensor]:
    """A run of which the log-weights are those of `log_joint`, and these."""
    moved, log_det = at(pair, coordinates, u, put=True)
    found = terms(moved, rows, len(u), layout=layout)
    return found, possible(weights_by_class(found, coordinates) + log_det)


def looked_at(fitted: Fit, batch: Batch, layout: Layout, noise: bool = True) -> tuple[Coordinates, bool]:
    """The coordinates of rows by the values of sites, and whether they are to be the noise of the guide's draws.

    They are where `Coordinates.depend` says so of a few rows, evenly spread, and the guide draws the same values once more at
    the same noise. It does not where a site depends on one that is no coordinate, such as a draw that fills gaps.
    """
    total = num_rows(batch)
    rows = max(1, min(total, LOOKS, fitted.chunk_size(batch, LOOK_DRAWS)))
    index = torch.linspace(0, total - 1, rows, dtype=torch.float64)
    few = take_rows(batch, index.round().long().to(next(iter(batch.values())).device))
    with fork_rng():
        found = terms(fitted.pair, few, LOOK_DRAWS, layout=layout)
        seen = Coordinates.of(found, layout)
        if not noise or not seen.depend(found):
            return seen, False
        coordinates = seen.by_noise(found)
        pair, _ = at(fitted.pair, coordinates, coordinates.join(found))
        return seen, coordinates.same(found, terms(pair, few, LOOK_DRAWS, layout=layout))


def bound(
    fitted: Fit, rows: Batch, layout: Layout, coordinates: Coordinates, loc: Tensor, scale: Tensor, noise: Tensor
) -> Tensor:
    """The ELBO of each row by a Normal of u, up to a constant, from a few draws; minus infinity where it is no number.

    The draws are those of standard normal noise, `(K, M, d)`, or of noise that all rows share, `(K, 1, d)`.
    """
    u = loc + (noise.transpose(0, 1) @ scale.mT).transpose(0, 1)
    with torch.no_grad():
        some = u.split(draws_of_a_step(u.shape[-1]))
        log_p = torch.cat([log_joint(fitted.pair, rows, layout, coordinates, part) for part in some])
    elbo = log_p.mean(0) + scale.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return torch.where(elbo.isnan(), -math.inf, elbo)


def at(pair: PairLike, coordinates: Coordinates, u: Tensor, put: bool = False) -> tuple[Pair, Tensor]:
    """The pair with u in the place of the guide's draws.

    Args:
        pair: The pair.
        coordinates: u.
        u: `(K, M, d)`.
        put: Whether log q of the sites is left out of the log-weights of a run, or, of sites by noise, is `-log |dz/du|`.

    Returns:
        The pair, and `log |dz/du|`, `(K, M)`, without that of sites by noise.
    """
    values, log_det = coordinates.split(u)
    guide: Callable[..., Any] = (PutDraws if put else SetValues)(values)(pair.guide)
    guide = (PutNoise if put else SetNoise)(coordinates.noise(u))(guide)
    if coordinates.classes is not None and coordinates.classes.local:
        # q(y) enters no weight, and may depend on draws, which are now others for each value of y
        guide = AnyOf(coordinates.classes.site, coordinates.classes.values)(guide)
    return Pair(pair.model, guide), log_det


def possible(log_p: Tensor) -> Tensor:
    """Log-densities at draws of a proposal, with probability 0 where overflow has made them infinite or undefined."""
    return torch.where(log_p < math.inf, log_p, -math.inf)


def weights_by_class(found: Terms, coordinates: Coordinates) -> Tensor:
    """The log-weights of a run, `(K, M)`, of each class where the coordinates have classes."""
    if coordinates.classes is None:
        return log_weights(found)
    return torch.cat(list(each_log_weight(found, coordinates.classes.site)), 1)


def widening(size: int) -> float:
    """By how much the scale of the t distribution is wider than that of the Normal which was fitted, in so many dimensions."""
    return math.sqrt(1 + min(0.44, 1 / math.sqrt(size)))


def freedom(size: int) -> float:
    """The degrees of freedom nu of the t distribution in d dimensions.

    The length of a standard normal vector has a relative standard deviation of 1 / sqrt(2 d), and the factor by which draws of
    a t distribution are longer one of about 1 / sqrt(2 nu). With 5 degrees of freedom in 200 dimensions, few draws would have a
    length that occurs under the posterior.
    """
    return max(FREEDOM, size / 2)


def draws_of_a_step(size: int) -> int:
    """How many draws of u, a vector of this size, each gradient step has for a row."""
    return min(DRAWS + size // MORE_DRAWS, MOST_DRAWS)


def run_traced(
    fitted: Fit, step: Callable[[dict[str, Tensor]], list[Tensor]], rows: Batch, traced: dict[Any, Any] | None
) -> Callable[[dict[str, Tensor]], list[Tensor]]:
    """The function traced, and kept from one call to the next for as many rows; as it is in eager fits, and with None."""
    if traced is None or fitted.settings.get("engine") == "eager":
        return step
    product = fitted.settings.get("chunk_product", 0.0)
    made: TracedFunction = traced.setdefault(
        (num_rows(rows), tuple(rows)), CompiledFunction(step, (fitted.pair,), product)
    )
    return made

"""log p(x) by a sum over a fine grid, for rows with one or two latent dimensions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae._arguments import as_count
from pyrovae._html import Told
from pyrovae.batching.checks import check_rows
from pyrovae.batching.chunks import chunks
from pyrovae.batching.memory import halving
from pyrovae.criticism.annealing import coordinates_of, log_densities, shared_sites
from pyrovae.criticism.coordinates import Coordinates, NotRefinable
from pyrovae.criticism.prior_as_guide import with_prior_as_guide
from pyrovae.engine.tracing import TracedFunction
from pyrovae.errors import OptionError, PairError
from pyrovae.fitted.fitted import FIXED_NOISE_SEED, Fit, FittedGroup, in_order, seeded
from pyrovae.fitted.runs import drawn_terms, particles_at_once
from pyrovae.pair.batch import Batch, num_rows

MOST_DIMENSIONS = 2
COARSE = {1: 65, 2: 25}  # points along each side while the box is sought
PRIOR_DRAWS, WIDTH = 256, 8.0  # draws of the prior, and how many of their standard deviations the first box reaches
NEGLIGIBLE = 30.0  # nats below the highest point
MOST_ROUNDS = 24
MOST_VALUES = 2**23  # log-densities of a block of rows


@dataclass(frozen=True, repr=False)
class Quadrature(Told):
    """log p(x) of N rows by numerical integration. All tensors are `(N,)` float64, on the CPU.

    Attributes:
        log_likelihood: log p(x), in nats.
        error: By how much it differs at most from the sums over every other point along each side, in nats. Where the density
            is smooth the error is far smaller; where this is not small, take more points.
        num_points: Points along each side of the grid.

    Example:
        >>> zeros = torch.zeros(3, dtype=torch.float64)
        >>> pv.Quadrature(zeros - 3.5, zeros + 1e-9, num_points=129).summary()
        {'log_likelihood': -3.5, 'largest_error': 1e-09}
    """

    log_likelihood: Tensor
    error: Tensor
    num_points: int

    def summary(self) -> dict[str, float]:
        """The mean of `log_likelihood` over the rows, and the largest `error`."""
        return {"log_likelihood": self.log_likelihood.mean().item(), "largest_error": self.error.max().item()}

    def _told(self) -> tuple[Any, ...]:
        title = f"Quadrature of {len(self.error)} rows, {self.num_points} points a side; nats per row"
        return (title, ("over rows", "value"), self.summary().items())


@halving
def quadrature(fitted: Fit, data: Any, *, num_points: int = 129) -> Quadrature:
    """Integrate `log p(x) = log ∫ p(x, z) dz` of each row over a grid, in one or two dimensions, with a stated error.

    The latent sites of a row are taken as one vector u without constraints. A box around the prior is widened and narrowed,
    for each row, until it ends where p(x, u) is below its highest value by a factor of e^30; in it, p(x, u) is added up over
    a regular grid (the trapezoidal rule, whose error falls exponentially where the density is smooth and ends within the
    box). Enumerated sites are summed out. Nothing depends on the guide, or on a seed.

    Args:
        fitted: The fitted pair.
        data: The rows, as for `pv.fit`. The transform of the fit is applied once, with a fixed seed.
        num_points: Points along each side of the grid, an odd number.

    Returns:
        log p(x) of each row, and how far it is converged, see `Quadrature`.

    Raises:
        OptionError: `num_points` is even, or less than 9.
        DataError: Values are outside the support of the likelihood, or missing where it does not allow that.
        PairError: A row has more than two latent dimensions, or a latent site that is neither continuous nor enumerated; or
            there is a global latent site; or the pair does not keep several particles of a row apart.

    References:
        Trefethen & Weideman 2014, *The exponentially convergent trapezoidal rule*, SIAM Review 56.

    Example:
        >>> vae = pv.VAE(pv.priors.StandardNormal(1), pv.mlp(1, fam.Bernoulli(6)), pv.mlp(6, fam.Normal(1)))
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> fitted = pv.fit(vae, x, epochs=1, engine="eager", progress=False)
        >>> exact = pv.quadrature(fitted, x)
        >>> estimate = pv.log_likelihood(fitted, x, num_samples=1000, seed=0)
        >>> bool((exact.log_likelihood - estimate).abs().max() < 0.1), bool(exact.error.max() < 0.01)
        (True, True)
    """
    num_points = as_count("num_points", num_points)
    if num_points < 9 or num_points % 2 == 0:
        raise OptionError(f"num_points must be odd and at least 9, got {num_points}.")
    prior = with_prior_as_guide(fitted)
    found = []
    with prior.scope(), seeded(FIXED_NOISE_SEED):
        parts = prior.parts(data)
        for part in parts:
            check_rows(prior.pair, part.batch, prior.chunk_size(part.batch), strict=False, numbers=part.rows)
            found.append(_integrate(prior, part, num_points))
    log_p, error = in_order(parts, found, 1)
    return Quadrature(log_p, error, num_points)


def _integrate(prior: Fit, part: FittedGroup, num_points: int) -> Tensor:
    """log p(x) and its error, `(2, n)`, of rows that have the same arguments."""
    coordinates = _coordinates(prior, part)
    fine = num_points**coordinates.size
    at_once = particles_at_once(prior, part.batch, part.layout, fine)
    density = _Density(prior, part, coordinates, at_once)
    size = min(prior.chunk_size(part.batch, at_once), max(1, MOST_VALUES // fine))
    columns = []
    for rows in chunks(part.batch, size):
        low, high = _box(prior, part, coordinates, density, rows)
        values = density(rows, low, high, num_points)
        step = (high - low) / (num_points - 1)
        spacing = step.log().sum(-1)
        sides = values.reshape(*[num_points] * coordinates.size, -1)
        whole = values.logsumexp(0) + spacing
        offsets = itertools.product((0, 1), repeat=coordinates.size)
        coarser = [sides[tuple(slice(first, None, 2) for first in each)].flatten(0, -2) for each in offsets]
        apart = [(grid.logsumexp(0) + spacing + coordinates.size * math.log(2) - whole).abs() for grid in coarser]
        columns.append(torch.stack([whole, torch.stack(apart).amax(0)]).cpu())
    return torch.cat(columns, 1)


def _coordinates(prior: Fit, part: FittedGroup) -> Coordinates:
    if shared := shared_sites(part.layout):
        raise PairError(
            f"A grid would have to run over {', '.join(map(repr, shared))} of all rows, too: estimate log p(x) with "
            "pv.importance or pv.ais."
        )
    try:
        coordinates = coordinates_of(prior, part.batch, part.layout)
    except NotRefinable as error:
        raise PairError(
            f"A grid runs over continuous latent sites of a row: {error}. Estimate log p(x) with pv.importance, whose "
            "proposal may be the guide."
        ) from error
    if coordinates.size > MOST_DIMENSIONS:
        raise PairError(
            f"A grid takes at most {MOST_DIMENSIONS} latent dimensions of a row, and here are {coordinates.size}: estimate "
            "log p(x) with pv.importance or pv.ais."
        )
    return coordinates


class _Density:
    """log p(x, u) on regular grids of u, each row's in its own box, some points at a time."""

    def __init__(self, prior: Fit, part: FittedGroup, coordinates: Coordinates, at_once: int) -> None:
        self.at_once, self.eager = at_once, prior.settings.get("engine") == "eager"
        self.traced: dict[int, TracedFunction] = {}

        def log_joint(inputs: dict[str, Tensor]) -> list[Tensor]:
            rows = {name: inputs[name] for name in part.batch}
            u = inputs[" u"].transpose(0, 1)
            return [log_densities(prior, rows, part.layout, coordinates, u, {})[0].T]

        self.log_joint: Callable[[dict[str, Tensor]], list[Tensor]] = log_joint
        self.pair = prior.pair

    def __call__(self, rows: Batch, low: Tensor, high: Tensor, num_points: int) -> Tensor:
        """The values on the grid, `(num_points^d, n)` float64; NaN counts as no density."""
        ticks = [torch.linspace(0, 1, num_points, dtype=low.dtype, device=low.device)] * low.shape[-1]
        points = torch.cartesian_prod(*ticks).reshape(-1, low.shape[-1])
        found = []
        for start in range(0, len(points), self.at_once):
            some = points[start : start + self.at_once]
            u = low[:, None] + (high - low)[:, None] * some  # (n, k, d)
            found.append(self._at(rows, u).T)
        return torch.cat(found).double().nan_to_num(-math.inf, posinf=math.inf, neginf=-math.inf)

    def _at(self, rows: Batch, u: Tensor) -> Tensor:
        inputs = {**rows, " u": u}
        if self.eager or u.shape[1] < self.at_once:
            return self.log_joint(inputs)[0]
        traced = self.traced.setdefault(len(u), TracedFunction(self.log_joint, (self.pair,)))
        return traced(inputs)[0]


def _box(
    prior: Fit, part: FittedGroup, coordinates: Coordinates, density: _Density, rows: Batch
) -> tuple[Tensor, Tensor]:
    """The lower and the upper end of a box for each row, `(n, d)` each, outside of which p(x, u) is negligible."""
    runs = drawn_terms(prior, rows, part.layout, PRIOR_DRAWS, min(density.at_once, PRIOR_DRAWS))
    u = torch.cat([coordinates.join(found) for found in runs]).nan_to_num(0.0, posinf=30.0, neginf=-30.0)
    reach = WIDTH * u.std(0).clamp_min(1e-3)
    low, high = u.mean(0) - reach, u.mean(0) + reach
    size, d = COARSE[coordinates.size], coordinates.size
    for _ in range(MOST_ROUNDS):
        values = density(rows, low, high, size)
        kept = (values >= values.amax(0) - NEGLIGIBLE).reshape(*[size] * d, num_rows(rows))
        step = (high - low) / (size - 1)
        settled = True
        ends = []
        for axis in range(d):
            along = kept.movedim(axis, 0).flatten(1, -2).any(1) if d > 1 else kept  # (size, n)
            first, last = along.int().argmax(0), size - 1 - along.flip(0).int().argmax(0)
            early, late = first == 0, last == size - 1  # the box ends too early: it becomes twice as wide there
            start = torch.where(early | late, early * (1.0 - size), first - 1.0)
            end = torch.where(early | late, (1.0 + late) * (size - 1), last + 1.0)
            settled &= not bool((early | late | (end - start < 0.7 * (size - 1))).any())
            ends.append((low[:, axis] + start * step[:, axis], low[:, axis] + end * step[:, axis]))
        if settled:
            break
        low, high = torch.stack([a for a, _ in ends], -1), torch.stack([b for _, b in ends], -1)
    return low, high

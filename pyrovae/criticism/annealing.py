"""Chains that move from a start density of each row's latent coordinates to its posterior: what `pv.ais` and `pv.bdmc` run.

Between the start f_0(u), which is normalised, and f_1(u) = p(x, u) lie f_b = f_0^(1 - b) f_1^b. A chain takes a step of
Hamiltonian Monte Carlo under each in turn, and the ratios that it passes on its way estimate p(x).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Normal

from pyrovae.criticism.coordinates import Coordinates
from pyrovae.engine.tracing import TracedFunction
from pyrovae.fitted.fitted import Fit
from pyrovae.fitted.runs import drawn_terms, particles_at_once
from pyrovae.guides.hmc import trajectory
from pyrovae.objectives.terms import Terms, terms
from pyrovae.objectives.weights import log_weights
from pyrovae.pair.batch import Batch, num_rows, take_rows
from pyrovae.pair.checks import check_particles
from pyrovae.pair.handlers import PutDraws, SetValues
from pyrovae.pair.layout import Layout
from pyrovae.pair.parameters import fork_rng
from pyrovae.pair.program import Pair

ACCEPTANCE = 0.65  # what step sizes are tuned to
PILOTS, GAIN = 4, 0.3  # chains of a row that tune its step sizes, and how fast
SHARPNESS = 4.0  # of the sigmoid by which b rises
MOMENT_DRAWS = 64  # draws whose standard deviations are the units of u


class Point(NamedTuple):
    """Where K chains of N rows are, and log f_0 and log f_1 there, with their gradients."""

    u: Tensor  # (N, K, d)
    log_start: Tensor  # (N, K)
    log_joint: Tensor  # (N, K)
    start_gradient: Tensor  # (N, K, d)
    joint_gradient: Tensor  # (N, K, d)

    def log_density(self, b: float) -> Tensor:
        """log f_b, `(N, K)`."""
        return (1 - b) * self.log_start + b * self.log_joint

    def gradient(self, b: float) -> Tensor:
        """The gradient of log f_b, `(N, K, d)`."""
        return (1 - b) * self.start_gradient + b * self.joint_gradient

    def log_ratio(self) -> Tensor:
        """log f_1 - log f_0, `(N, K)` float64; NaN counts as no density."""
        return (self.log_joint.double() - self.log_start.double()).nan_to_num(-math.inf, math.inf, -math.inf)

    def take(self, kept: Tensor) -> Point:
        """The chains of these numbers, `(N, K)`."""
        each = (kept if a.dim() == 2 else kept[..., None].expand_as(a) for a in self)
        return Point(*(a.gather(1, index) for a, index in zip(self, each)))

    def where(self, accepted: Tensor, other: Point) -> Point:
        """These chains where they are accepted, `(N, K)` bool, and the other ones elsewhere."""
        return Point(
            *(torch.where(accepted if a.dim() == 2 else accepted[..., None], a, b) for a, b in zip(self, other))
        )


def schedule(num_temperatures: int) -> list[float]:
    """0 = b_0 < b_1 < ... < b_T = 1, along a sigmoid: in small steps at both ends, where the densities change the fastest."""
    steps = torch.linspace(-SHARPNESS, SHARPNESS, num_temperatures + 1, dtype=torch.float64).sigmoid()
    return ((steps - steps[0]) / (steps[-1] - steps[0])).tolist()


@dataclass(frozen=True)
class Start:
    """Values of K chains of N rows before the first step."""

    u: Tensor  # (N, K, d)
    shared: dict[str, Tensor]  # global sites, one draw for each chain, as a run of K particles has them


class Annealed(NamedTuple):
    """What chains of one block of rows leave behind."""

    log_w: Tensor  # (N, K) float64
    acceptance: Tensor  # (N,)
    step_sizes: Tensor  # (T + 1, N)
    point: Point


@dataclass(frozen=True)
class Annealer:
    """The densities between a start and the posterior of rows that have the same arguments.

    Args:
        fitted: A fit whose guide draws the latent sites of a row from their priors, see `with_prior_as_guide`.
        layout: Its layout for these rows.
        coordinates: The latent sites of a row as one vector u.
        betas: b_0 to b_T.
        num_leapfrog: Leapfrog steps in a trajectory.
        guided: The fit with its own guide and its layout, if chains are to start from a Normal with the guide's moments;
            None if they start from the prior.
        traced: Keeps the traced densities, by the sizes of a run.
    """

    fitted: Fit
    layout: Layout
    coordinates: Coordinates
    betas: Sequence[float]
    num_leapfrog: int
    guided: tuple[Fit, Layout] | None
    traced: dict[tuple[int, ...], TracedFunction]

    def blocks(self, batch: Batch, num_chains: int) -> Iterator[tuple[Batch, int]]:
        """Rows in blocks of one size, which all chains fit into, and how many rows of each block count."""
        size = min(self.fitted.chunk_size(batch, num_chains), num_rows(batch))
        size = math.ceil(num_rows(batch) / math.ceil(num_rows(batch) / size))
        for first in range(0, num_rows(batch), size):
            index = torch.arange(first, first + size, device=next(iter(batch.values())).device)
            yield take_rows(batch, index % num_rows(batch)), min(size, num_rows(batch) - first)

    def pieces(self, batch: Batch, num_chains: int) -> list[int]:
        """How many chains of a row run together, one number for each run."""
        most = particles_at_once(self.fitted, batch, self.layout, num_chains)
        return [min(most, num_chains - done) for done in range(0, num_chains, most)]

    def path(self, rows: Batch) -> Path:
        """The path of these rows, with step sizes that PILOTS chains have found: other ones than those that are weighed."""
        u = torch.cat([self.coordinates.join(found) for found in self._moment_runs(rows)])
        u = u.nan_to_num(0.0, posinf=30.0, neginf=-30.0)
        return Path(self, rows, u.mean(0), u.std(0).clamp_min(1e-4)).tuned()

    def _moment_runs(self, rows: Batch) -> Iterator[Terms]:
        fitted, layout = self.guided or (self.fitted, self.layout)
        at_once = particles_at_once(fitted, rows, layout, MOMENT_DRAWS)
        return drawn_terms(fitted, rows, layout, MOMENT_DRAWS, at_once)


@dataclass(frozen=True)
class Path:
    """The densities f_b of one block of rows, and the steps of chains along them.

    Args:
        annealer: What the rows of all blocks have in common.
        rows: The rows.
        mean: Means of u under the start density, `(N, d)`.
        sd: Standard deviations of u under it, `(N, d)`: the unit of each coordinate.
        step_sizes: The step size under each b, `(T + 1, N)`, in these units; None before they are tuned.
    """

    annealer: Annealer
    rows: Batch
    mean: Tensor
    sd: Tensor
    step_sizes: Tensor | None = None

    def start(self, num_chains: int) -> Start:
        """Draws from f_0."""
        of, pair = self.annealer.coordinates, self.annealer.fitted.pair
        found = terms(pair, self.rows, num_chains, layout=self.annealer.layout, enumerate=False)
        shared = {name: found.sites[name].value for name in shared_sites(self.annealer.layout)}
        u = of.join(found).nan_to_num(0.0, posinf=30.0, neginf=-30.0)
        if self.annealer.guided is not None:
            u = self.mean + self.sd * torch.randn_like(u)
        return Start(u.transpose(0, 1), shared)

    def tuned(self) -> Path:
        """The same path with step sizes at which ACCEPTANCE of the trajectories of a row are accepted."""
        return replace(self, step_sizes=self._anneal(self.start(PILOTS), reverse=False).step_sizes)

    def weigh(self, start: Start, *, reverse: bool = False) -> tuple[Tensor, Tensor]:
        """Move chains along the path: their log-weights, `(N, K)` float64, and the share of accepted trajectories, `(N,)`.

        Forward, from draws of f_0, the mean weight of a row has the expectation p(x). In reverse, from draws of its posterior,
        the mean of 1 / weight has the expectation 1 / p(x).
        """
        return self._anneal(start, reverse=reverse)[:2]

    def resampled(self, start: Start) -> Point:
        """Where chains are that have moved along the path, drawn anew by their weights: about draws of the posterior.

        A chain that got stuck on its way has next to no weight, and modes have, on average, as many chains as they should.
        """
        found = self._anneal(start, reverse=False)
        shares = found.log_w.softmax(1).nan_to_num(1.0).clamp_min(torch.finfo(torch.float64).tiny)
        kept = torch.multinomial(shares, shares.shape[1], replacement=True)
        return found.point.take(kept)

    def _anneal(self, start: Start, reverse: bool) -> Annealed:
        betas, last = self.annealer.betas, len(self.annealer.betas) - 1
        point = self._point(start.u, start.shared)
        log_w = torch.zeros_like(point.log_joint, dtype=torch.float64)
        accepted = torch.zeros(len(log_w), dtype=torch.float64, device=log_w.device)
        size = torch.full((len(log_w),), start.u.shape[-1] ** -0.25, dtype=start.u.dtype, device=log_w.device)
        sizes = [size] * (last + 1)
        for t in range(last, 0, -1) if reverse else range(1, last + 1):
            if not reverse:
                log_w += (betas[t] - betas[t - 1]) * point.log_ratio()
            if t < last:
                sizes[t] = size if self.step_sizes is None else self.step_sizes[t]
                point, share = self.trajectory(point, start.shared, betas[t], sizes[t])
                accepted += share.double()
                if self.step_sizes is None:
                    size = size * (GAIN * (share - ACCEPTANCE)).exp()
            if reverse:
                log_w += (betas[t] - betas[t - 1]) * point.log_ratio()
        return Annealed(log_w, accepted / max(1, last - 1), torch.stack(sizes), point)

    def trajectory(self, at: Point, shared: Mapping[str, Tensor], b: float, size: Tensor) -> tuple[Point, Tensor]:
        """One step of Hamiltonian Monte Carlo under f_b, and the mean probability of acceptance of each row, `(N,)`."""
        moved, log_ratio = trajectory(
            at,
            log_density=lambda point: point.log_density(b),
            gradient=lambda point: point.gradient(b),
            move=lambda u: self._point(u, shared),
            step_size=size[:, None],
            unit=self.sd[:, None],
            num_leapfrog=self.annealer.num_leapfrog,
        )
        return moved.where(torch.rand_like(log_ratio).log() < log_ratio, at), log_ratio.exp().mean(1)

    def _point(self, u: Tensor, shared: Mapping[str, Tensor]) -> Point:
        """The densities at u, `(N, K, d)`."""
        keys = {name: f" global {name}" for name in shared}  # a site may have any name, such as "u" or "mean"
        inputs = {" u": u, " mean": self.mean, " sd": self.sd, **{keys[name]: value for name, value in shared.items()}}
        annealer, key = self.annealer, (*u.shape,)

        def densities(inputs: dict[str, Tensor]) -> list[Tensor]:
            rows = {name: inputs[name] for name in self.rows}
            values = {name: inputs[keys[name]] for name in shared}
            with torch.enable_grad():
                at = inputs[" u"].detach().requires_grad_()
                of, layout, fitted = annealer.coordinates, annealer.layout, annealer.fitted
                log_joint, log_start = log_densities(fitted, rows, layout, of, at.transpose(0, 1), values)
                if annealer.guided is not None:
                    log_start = Normal(inputs[" mean"], inputs[" sd"]).log_prob(at.transpose(0, 1)).sum(-1)
                (start,) = torch.autograd.grad(log_start.sum(), [at], retain_graph=True)
                (joint,) = torch.autograd.grad(log_joint.sum(), [at])
            gradients = [g.nan_to_num(0.0, posinf=0.0, neginf=0.0) for g in (start, joint)]
            return [log_start.detach().T, log_joint.detach().T, *gradients]

        if annealer.fitted.settings.get("engine") == "eager":
            found = densities({**self.rows, **inputs})
        else:
            traced = annealer.traced.setdefault(key, TracedFunction(densities, (annealer.fitted.pair,)))
            found = traced({**self.rows, **inputs})
        return Point(u, *found)


def log_densities(
    prior: Fit, rows: Batch, layout: Layout, coordinates: Coordinates, u: Tensor, shared: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """log p(x, u) and log p(u) at u, `(K, N, d)`: `(K, N)` each, enumerated sites summed out.

    Args:
        prior: A fit whose guide draws the latent sites of a row from their priors, see `with_prior_as_guide`.
        rows: The rows x.
        layout: The layout of its pair for them.
        coordinates: Those of the latent sites.
        u: The values.
        shared: Values of global latent sites, as a run of K particles has them.
    """
    values, log_det = coordinates.split(u)
    moved = Pair(prior.pair.model, PutDraws(values)(SetValues(shared)(prior.pair.guide)))
    found = terms(moved, rows, len(u), layout=layout)
    latent = replace(found, sites={name: term for name, term in found.sites.items() if term.q is not None})
    return log_weights(found) + log_det, log_weights(latent) + log_det


def shared_sites(layout: Layout) -> list[str]:
    """The global latent sites that are drawn: of each chain once, from the guide."""
    return [s.name for s in layout.sites if s.role == "latent" and not s.local and s.enumerated is None]


def coordinates_of(prior: Fit, batch: Batch, layout: Layout) -> Coordinates:
    """The coordinates of rows with these arguments.

    Args:
        prior: A fit whose guide draws the latent sites of a row from their priors, see `with_prior_as_guide`.
        batch: The rows.
        layout: The layout of its pair for them.

    Raises:
        NotRefinable: The latent sites of a row are no vector of real numbers.
        PairError: The pair does not keep several particles of a row apart.
    """
    few = take_rows(batch, slice(0, 3))
    with fork_rng():
        check_particles(prior.pair, few, layout)
        return Coordinates.of(terms(prior.pair, few, 2, layout=layout, enumerate=False), layout)

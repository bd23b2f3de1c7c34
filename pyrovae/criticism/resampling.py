"""Draws of p(z | x): some of the draws of a proposal, chosen by their weights, and moved afterwards where that is asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyrovae.batching.chunks import chunks
from pyrovae.criticism.averages import effective_sample_size
from pyrovae.criticism.coordinates import Coordinates
from pyrovae.criticism.kept import adapted
from pyrovae.criticism.proposals import usable
from pyrovae.criticism.refined import DRAWS, Refined, log_joint, run_at
from pyrovae.criticism.weighing import prior_for_gaps, weighed
from pyrovae.errors import NotFiniteError, OptionError
from pyrovae.fitted.fitted import Fit, FittedGroup
from pyrovae.fitted.runs import drawn_terms, particles_at_once
from pyrovae.objectives.terms import Terms
from pyrovae.objectives.weights import log_weights
from pyrovae.pair.batch import Batch, take_rows
from pyrovae.pair.common import same_for_rows, start_rows
from pyrovae.pair.layout import Layout

# Names that no site has, for what is chosen along with the values of sites.
U, CLASS = " u", " class"


@dataclass(frozen=True)
class Drawn:
    """Joint posterior draws for n rows.

    Attributes:
        rows: The rows.
        values: By site, `(S, n, *others, *event)`, where others are the plate dimensions of the pair without that of the rows.
        log_w: The log-weights `(K, n)` of the candidates that the draws were chosen from; several where each draw has its own.
    """

    rows: Batch
    values: dict[str, Tensor]
    log_w: tuple[Tensor, ...]

    @property
    def ess(self) -> Tensor:
        """The effective sample size of the weights, `(n,)`, summed over the draws that have candidates of their own."""
        return torch.stack([effective_sample_size(log_w.double()) for log_w in self.log_w]).sum(0)


def resampled(
    fitted: Fit,
    part: FittedGroup,
    num_samples: int,
    names: Sequence[str],
    num_particles: int,
    proposal: str,
    *,
    moves: int = 0,
    ess_below: float = math.inf,
    variants: Sequence[Fit] = (),
    stacklevel: int = 7,
) -> Iterator[Drawn]:
    """Yield, block by block of rows that have the same arguments, joint draws of latent sites from their posterior.

    Args:
        fitted: The fitted pair.
        part: The rows.
        num_samples: S.
        names: Local latent sites.
        num_particles: How many draws of the proposal there are to choose from.
        proposal: A name of `PROPOSALS`.
        moves: Steps of the Metropolis-adjusted Langevin algorithm that chosen draws take.
        ess_below: They take them in rows whose effective sample size is below this.
        variants: Fits of the same pair with different values of its global sites: then there is one draw for each of them,
            from `num_particles` candidates of its own, and S is their number.
        stacklevel: Of the warning that no proposal can be refined.

    Raises:
        OptionError: There is nothing to move, though all draws are to be moved.
        NotFiniteError: A row has probability 0 at every draw.
    """
    at_once = particles_at_once(fitted, part.batch, part.layout, max(num_particles, DRAWS))
    blocks: Iterator[tuple[Batch, Refined | None]]
    prior: Fit | None = None
    if usable(fitted, part, proposal, names, stacklevel) == "guide":
        if moves and ess_below == math.inf and any(s.role == "latent" and s.local for s in part.layout.sites):
            raise OptionError(
                "moves need a proposal that is refined for each row, and here the guide is it: leave moves out."
            )
        size = fitted.chunk_size(part.batch, num_particles)
        blocks = ((rows, None) for rows in chunks(part.batch, size))
    else:
        blocks = adapted(fitted, part.batch, part.layout, num_particles, at_once, proposal)
        prior = prior_for_gaps(fitted, part.batch, part.layout)
    for rows, refined in blocks:
        start_rows(stage=1)
        chosen, weights = [], []
        for one in variants or (fitted,):
            if refined is None:
                found = _of_the_guide(one, part, names, rows, num_particles, at_once)
            else:
                found = _refined(one, part, names, rows, refined, num_particles, at_once, prior)
            draws = 1 if variants else num_samples
            chosen.append(_chosen(one, part.layout, found, draws, names, moves, ess_below, at_once))
            weights.append(found.log_w)
        values = {name: torch.cat([each[name] for each in chosen]) for name in names}
        yield Drawn(rows, values, tuple(weights))


def in_a_run(value: Tensor, event_dim: int, data_dim: int) -> Tensor:
    """Values `(S, n, *others, *event)` shaped as in a run of S particles on n rows, the rows along `data_dim`."""
    rows = value.dim() - event_dim + data_dim
    moved = value.movedim(1, rows)
    return moved.squeeze(0) if len(moved) == 1 else moved


def _chosen(
    fitted: Fit,
    layout: Layout,
    block: _Candidates,
    num_samples: int,
    names: Sequence[str],
    moves: int,
    ess_below: float,
    at_once: int,
) -> dict[str, Tensor]:
    """Draws by site, `(S, n, *others, *event)`, chosen from candidates by their weights."""
    if not bool(torch.isfinite(block.log_w.logsumexp(0)).all()):
        raise NotFiniteError(
            "A row has probability 0 at every draw, so there is no posterior to draw from: look at it "
            "with importance(...), raise num_particles, or train on data that contain such rows."
        )
    with same_for_rows(0, block.log_w.shape[1]):
        picked = torch.multinomial(block.log_w.softmax(0).T, num_samples, replacement=True).T  # (S, n)
    chosen = {name: _gathered(value, picked) for name, value in block.values.items()}
    if block.refined is not None:
        if moves:
            chosen[U] = _where_poor(fitted, layout, block, chosen, moves, ess_below, at_once, set(names))
        others = [1] * (layout.plate_nesting - 1)
        values = _values(fitted, layout, block, chosen.pop(U), chosen.get(CLASS), at_once)
        for name, value in values.items():
            chosen[name] = value.reshape(*value.shape[:2], *others, *value.shape[2:])
    return chosen


def _values(
    fitted: Fit, layout: Layout, block: _Candidates, u: Tensor, index: Tensor | None, at_once: int
) -> dict[str, Tensor]:
    """The values of sites, `(S, n, *event)`, at u, `(S, n, d)`, given the number of a class for each, `(S, n)`."""
    assert block.refined is not None
    coordinates = block.refined.coordinates
    if not any(part.transform is None for part in coordinates.parts):
        return coordinates.by_row(u)[0]
    found = []
    for piece in torch.arange(len(u), device=u.device).split(at_once):
        values = coordinates.values(
            run_at(fitted.pair, block.rows, layout, coordinates, _for_each_class(u[piece], coordinates))[0]
        )
        found.append(
            values if index is None else {name: _of_class(each, index[piece]) for name, each in values.items()}
        )
    return {name: torch.cat([values[name] for values in found]) for name in found[0]}


def _for_each_class(u: Tensor, coordinates: Coordinates) -> Tensor:
    """u, `(K, n, d)`, for each class, `(K, M, d)`."""
    return u if coordinates.classes is None else u.repeat(1, coordinates.classes.count, 1)


def _of_class(values: Tensor, index: Tensor) -> Tensor:
    """What belongs to the class of each draw, `(K, n, ...)`, from `(K, C x n, ...)` and numbers of classes, `(K, n)`."""
    by_class = values.unflatten(1, (-1, index.shape[1]))
    at = index[:, None].reshape(len(index), 1, -1, *(1 for _ in by_class.shape[3:]))
    return by_class.gather(1, at.expand(-1, -1, *by_class.shape[2:]))[:, 0]


def _where_poor(
    fitted: Fit,
    layout: Layout,
    block: _Candidates,
    chosen: dict[str, Tensor],
    moves: int,
    ess_below: float,
    at_once: int,
    names: set[str],
) -> Tensor:
    """The chosen u, `(S, n, d)`, moved in the rows whose effective sample size is small."""
    assert block.refined is not None
    coordinates = block.refined.coordinates
    fixed = names - {*coordinates.names, *(() if coordinates.classes is None else (coordinates.classes.site,))}
    if ess_below == math.inf:
        if fixed:
            raise OptionError(
                f"moves are for continuous sites, and {', '.join(map(repr, sorted(fixed)))} is not: leave them out."
            )
        return _moved(fitted, layout, block, chosen, moves, at_once)
    poor = (effective_sample_size(block.log_w.double()) < ess_below).nonzero().squeeze(-1)
    if fixed or not len(poor):
        return chosen[U]
    few = replace(block, rows=take_rows(block.rows, poor), refined=block.refined.rows(poor))
    some = {name: chosen[name][:, poor] for name in (U, CLASS) if name in chosen}
    return chosen[U].index_copy(1, poor, _moved(fitted, layout, few, some, moves, at_once))


@dataclass(frozen=True)
class _Candidates:
    """Draws of n rows to choose from: log-weights `(K, n)`, and values `(K, n, ...)` by site, or as vectors u under `U`."""

    log_w: Tensor
    values: dict[str, Tensor]
    rows: Batch
    refined: Refined | None = None

    @staticmethod
    def joined(pieces: Sequence[_Candidates]) -> _Candidates:
        values = {name: torch.cat([piece.values[name] for piece in pieces]) for name in pieces[0].values}
        return _Candidates(torch.cat([piece.log_w for piece in pieces]), values, pieces[0].rows, pieces[0].refined)


def _gathered(value: Tensor, picked: Tensor) -> Tensor:
    """The chosen draws, `(S, n, ...)`, from `(K, n, ...)`."""
    event = value.shape[2:]
    index = picked.reshape(*picked.shape, *(1 for _ in event)).expand(-1, -1, *event)
    return torch.gather(value, 0, index)


def _of_the_guide(
    fitted: Fit, part: FittedGroup, names: Sequence[str], rows: Batch, num_particles: int, at_once: int
) -> _Candidates:
    runs = drawn_terms(fitted, rows, part.layout, num_particles, at_once)
    found = [_Candidates(log_weights(run), {name: _each_row(run, name) for name in names}, rows) for run in runs]
    return _Candidates.joined(found)


def _each_row(run: Terms, name: str) -> Tensor:
    term = run.sites[name]
    return run.each_row(term.value, len(term.either.fn.event_shape))


def _refined(
    fitted: Fit,
    part: FittedGroup,
    names: Sequence[str],
    rows: Batch,
    refined: Refined,
    num_particles: int,
    at_once: int,
    prior: Fit | None,
) -> _Candidates:
    """Draws of a refined proposal, the guide and perhaps the prior; where it has one for each class, draws of every class."""
    coordinates, layout = refined.coordinates, part.layout
    classes = coordinates.classes
    others = [name for name in names if name not in coordinates.names]
    num = num_particles if classes is None else math.ceil(num_particles / classes.count)
    found = []
    for _, run, u, log_w in weighed(fitted, rows, layout, refined, num, at_once, prior, enumerate=classes is not None):
        k = len(u)
        if classes is None:
            values = {name: _each_row(run, name) for name in others}
            found.append(_Candidates(log_w, {U: u, **values}, rows, refined))
            continue
        by_class = u.unflatten(1, (classes.count, -1)).flatten(0, 1)  # (k C, n, d)
        log_w = log_w.unflatten(1, (classes.count, -1)).flatten(0, 1)
        index = torch.arange(classes.count, device=u.device).repeat(k)[:, None].expand(log_w.shape)
        plates = [1] * (layout.plate_nesting - 1)
        each = classes.values[index]
        values = {CLASS: index} | dict.fromkeys(others, each.reshape(*index.shape, *plates, *each.shape[2:]))
        found.append(_Candidates(log_w, {U: by_class, **values}, rows, refined))
    return _Candidates.joined(found)


def _moved(
    fitted: Fit, layout: Layout, block: _Candidates, chosen: dict[str, Tensor], moves: int, at_once: int
) -> Tensor:
    """The chosen u, `(S, n, d)`, after some Metropolis-adjusted Langevin steps in the metric of the row's proposal."""
    refined = block.refined
    assert refined is not None
    coordinates, classes = refined.coordinates, refined.coordinates.classes
    scale = refined.scale_tril
    if classes is not None:
        rows = torch.arange(chosen[U].shape[1], device=scale.device)
        scale = scale.unflatten(0, (classes.count, -1))[chosen[CLASS], rows]  # (S, n, d, d)
    length = 1.2 * scale.shape[-1] ** (-1 / 6)

    def density(u: Tensor, index: Tensor | None) -> Tensor:
        if classes is None or index is None:
            return log_joint(fitted.pair, block.rows, layout, coordinates, u)
        every = log_joint(fitted.pair, block.rows, layout, coordinates, _for_each_class(u, coordinates))
        return _of_class(every, index)

    def slope(u: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            at = u.detach().requires_grad_()
            value = density(at, index)
            (gradient,) = torch.autograd.grad(value.sum(), at)
        return value.detach(), gradient.nan_to_num(0.0, 0.0, 0.0)

    done = []
    for piece in torch.arange(len(chosen[U]), device=scale.device).split(at_once):
        u, index = chosen[U][piece], None if classes is None else chosen[CLASS][piece]
        own = scale if classes is None else scale[piece]
        value, gradient = slope(u, index)
        for _ in range(moves):
            drift = length**2 / 2 * (own.mT @ gradient[..., None])[..., 0]  # in units of the proposal
            with same_for_rows(1, u.shape[1]):
                noise, level = torch.randn_like(u), torch.rand_like(u[..., 0]).log()
            there = u + (own @ (drift + length * noise)[..., None])[..., 0]
            value_there, gradient_there = slope(there, index)
            back = length**2 / 2 * (own.mT @ gradient_there[..., None])[..., 0]
            returned = (drift + length * noise + back) / length
            log_ratio = value_there - value - (returned.square() - noise.square()).sum(-1) / 2
            accepted = level < log_ratio.nan_to_num(-math.inf)
            u = torch.where(accepted[..., None], there, u)
            value = torch.where(accepted, value_there, value)
            gradient = torch.where(accepted[..., None], gradient_there, gradient)
        done.append(u)
    return torch.cat(done)

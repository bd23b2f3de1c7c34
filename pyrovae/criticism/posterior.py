"""`posterior`: draws of p(z | x) by importance resampling."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from pyrovae.batching.checks import check_rows
from pyrovae.batching.chunks import chunks
from pyrovae.criticism.importance import effective_sample_size
from pyrovae.criticism.proposals import (
    DRAWS,
    Refined,
    adapted,
    at,
    check_proposal,
    guide_draws,
    log_joint,
    mixed,
    pieces,
    possible,
    usable,
)
from pyrovae.errors import NotFiniteError, OptionError
from pyrovae.fitted.fitted import Fit, FittedGroup, in_order, seeded
from pyrovae.fitted.runs import drawn_terms, global_draw, particles_at_once
from pyrovae.objectives.terms import terms
from pyrovae.objectives.weights import log_weights
from pyrovae.pair.batch import Batch
from pyrovae.pair.layout import Layout, Site


@overload
def posterior(
    fitted: Fit,
    data: Any,
    num_samples: int = ...,
    *,
    site: str | None = ...,
    num_particles: int = ...,
    proposal: str = ...,
    moves: int = ...,
    seed: int | None = ...,
) -> Tensor: ...
@overload
def posterior(
    fitted: Fit,
    data: Any,
    num_samples: int = ...,
    *,
    site: list[str] | tuple[str, ...],
    num_particles: int = ...,
    proposal: str = ...,
    moves: int = ...,
    seed: int | None = ...,
) -> dict[str, Tensor]: ...


def posterior(
    fitted: Fit,
    data: Any,
    num_samples: int = 100,
    *,
    site: str | list[str] | tuple[str, ...] | None = None,
    num_particles: int = 1000,
    proposal: str = "refined",
    moves: int = 0,
    seed: int | None = None,
) -> Tensor | dict[str, Tensor]:
    """Draw from the posterior p(z | x) of a latent site by sampling-importance-resampling.

    From `num_particles` draws of a proposal, `num_samples` are chosen at random, with replacement and with probabilities
    proportional to their importance weights. The draws are exact as `num_particles` grows; do not rely on them for rows
    whose `pv.importance(..., proposal=proposal).k_hat` is above `pv.k_hat_threshold(num_particles)`. Sites that are
    enumerated elsewhere are drawn here, too.

    A global latent site is drawn from the guide, without weights: its posterior is that given all rows of the fit.

    Args:
        fitted: The fitted pair.
        data: The rows, as for `pv.fit`. The transform of the fit is applied once, with a fixed seed.
        num_samples: The number S of posterior draws for each row.
        site: The latent site, or a list of several, whose draws for a row are joint ones. It may be left out if there is only
            one that each row has.
        num_particles: The number of draws for each row to choose from.
        proposal: "refined", "laplace" or "guide", as for `pv.importance`.
        moves: Steps of the Metropolis-adjusted Langevin algorithm that each chosen draw takes afterwards, for continuous sites:
            they leave p(z | x) as it is, and part draws that were chosen twice. They need a refined proposal.
        seed: The seed of the draws; None continues torch's random state.

    Returns:
        The draws, `(S, N, *event)`, or `(S, *plates, *event)` of a global site, on the device of the weights; with a list of
        sites a dict of them.

    Raises:
        OptionError: `num_samples` or `num_particles` is less than 1, the proposal is not known, or there is nothing to move.
        DataError: Values are outside the support of the likelihood, or missing where it does not allow that.
        PairError: There is no such site, or there are several and none is named.
        NotFiniteError: A row has probability 0 at every draw.

    References:
        Rubin 1988, *Using the SIR algorithm to simulate posterior distributions*, Bayesian Statistics 3. Roberts &
        Tweedie 1996, *Exponential convergence of Langevin distributions*, Bernoulli 2 (the moves).

    Example:
        >>> vae = pv.VAE(
        ...     prior=pv.priors.StandardNormal(2),
        ...     likelihood=pv.mlp(2, fam.Bernoulli(6), hidden=(8,)),
        ...     encoder=pv.mlp(6, fam.Normal(2), hidden=(8,)),
        ... )
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> fitted = pv.fit(vae, x, epochs=1, engine="eager", progress=False)
        >>> pv.posterior(fitted, x, num_samples=5, num_particles=50, seed=0).shape
        torch.Size([5, 40, 2])
    """
    if num_particles < 1 or num_samples < 1:
        raise OptionError(f"num_samples and num_particles must be at least 1, got {num_samples} and {num_particles}.")
    check_proposal(proposal)
    if moves < 0 or (moves and proposal == "guide"):
        raise OptionError(
            f"moves must be at least 0, and need a refined proposal; got {moves} with proposal={proposal!r}."
        )
    with fitted.scope(), seeded(seed):
        parts = fitted.parts(data)
        listed = isinstance(site, (list, tuple))
        names = list(site) if isinstance(site, (list, tuple)) else [site]
        chosen = [parts[0].layout.latent(name) for name in names]
        of_rows = [one.name for one in chosen if one.local]
        found: dict[str, Tensor] = {}
        if of_rows:
            drawn = [_resampled(fitted, part, num_samples, of_rows, num_particles, proposal, moves) for part in parts]
            found = {name: in_order(parts, [one[name] for one in drawn], 1) for name in of_rows}
            _doubt(torch.cat([one[ESS] for one in drawn]), num_samples, proposal)
        if shared := [one for one in chosen if not one.local]:
            found |= _global_draws(fitted, parts[0], shared, num_samples)
    return {one.name: found[one.name] for one in chosen} if listed else found[chosen[0].name]


def _global_draws(fitted: Fit, part: FittedGroup, sites: Sequence[Site], num_samples: int) -> dict[str, Tensor]:
    """Joint draws of global sites from the guide, `(S, *plates, *event)`, by name."""
    for site in sites:
        part.layout.site(site.name, role="latent", guided=True)
    rows = next(iter(chunks(part.batch, fitted.chunk_size(part.batch))))
    draws = [global_draw(fitted, rows, part.layout) for _ in range(num_samples)]
    return {s.name: torch.stack([draw[s.name]["value"].reshape(s.shape) for draw in draws]) for s in sites}


# Names that no site has, for what is chosen along with the values of sites.
U, CLASS, ESS = " u", " class", " ess"
FEW = 100  # so many draws in effect are enough for any summary


def _doubt(ess: Tensor, num_samples: int, proposal: str) -> None:
    """Warn of rows for which the draws are worth fewer than half of as many independent ones."""
    enough = min(num_samples, FEW) / 2
    poor = ess < enough
    if bool(poor.any()):
        cure = "raise num_particles" if proposal != "guide" else 'raise num_particles, or take proposal="refined"'
        warnings.warn(
            f"The posterior draws of {int(poor.sum())} of {len(ess)} rows are worth fewer than {enough:g} independent ones "
            f"({ess.min().item():.1f} in the worst row, by the effective sample size of their weights): {cure}.",
            stacklevel=3,
        )


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


def _resampled(
    fitted: Fit,
    part: FittedGroup,
    num_samples: int,
    names: Sequence[str],
    num_particles: int,
    proposal: str,
    moves: int,
) -> dict[str, Tensor]:
    """Joint posterior draws, `(S, n, *event)`, by site, for rows that have the same arguments; and their ESS, `(n,)`."""
    shapes = {name: part.layout.site(name, role="latent", local=True).event_shape for name in names}
    check_rows(fitted.pair, part.batch, fitted.chunk_size(part.batch), strict=False)
    blocks: list[dict[str, Tensor]] = []
    at_once = particles_at_once(fitted, part.batch, part.layout, max(num_particles, DRAWS))
    if usable(fitted, part, proposal, names) == "guide":
        if moves and any(site.role == "latent" and site.local for site in part.layout.sites):
            raise OptionError(
                "moves need a proposal that is refined for each row, and here the guide is it: leave moves out."
            )
        candidates = _of_the_guide(fitted, part, shapes, num_particles, at_once)
    else:
        candidates = (
            _refined(fitted, part, shapes, rows, refined, num_particles, at_once)
            for rows, refined in adapted(fitted, part.batch, part.layout, num_particles, at_once, proposal)
        )
    for block in candidates:
        if not bool(torch.isfinite(block.log_w.logsumexp(0)).all()):
            raise NotFiniteError(
                "A row has probability 0 at every draw, so there is no posterior to draw from: look at it "
                "with importance(...), raise num_particles, or train on data that contain such rows."
            )
        picked = torch.multinomial(block.log_w.softmax(0).T, num_samples, replacement=True).T  # (S, n)
        chosen = {name: _gathered(value, picked) for name, value in block.values.items()}
        if block.refined is not None:
            if moves:
                chosen[U] = _moved(fitted, part.layout, block, chosen, moves, at_once, set(names))
            chosen |= block.refined.coordinates.by_row(chosen.pop(U))[0]
        blocks.append({name: chosen[name] for name in names} | {ESS: effective_sample_size(block.log_w.double())})
    return {name: torch.cat([block[name] for block in blocks], 0 if name == ESS else 1) for name in (*names, ESS)}


def _gathered(value: Tensor, picked: Tensor) -> Tensor:
    """The chosen draws, `(S, n, ...)`, from `(K, n, ...)`."""
    event = value.shape[2:]
    index = picked.reshape(*picked.shape, *(1 for _ in event)).expand(-1, -1, *event)
    return torch.gather(value, 0, index)


def _of_the_guide(
    fitted: Fit, part: FittedGroup, shapes: dict[str, tuple[int, ...]], num_particles: int, at_once: int
) -> Iterator[_Candidates]:
    for rows in chunks(part.batch, fitted.chunk_size(part.batch, num_particles)):
        runs = drawn_terms(fitted, rows, part.layout, num_particles, at_once)
        yield _Candidates.joined(
            [
                _Candidates(log_weights(run), {n: run.rows(run.sites[n].value, s) for n, s in shapes.items()}, rows)
                for run in runs
            ]
        )


def _refined(
    fitted: Fit,
    part: FittedGroup,
    shapes: dict[str, tuple[int, ...]],
    rows: Batch,
    refined: Refined,
    num_particles: int,
    at_once: int,
) -> _Candidates:
    """Draws of a refined proposal and the guide; where it has one for each class, draws of every class."""
    coordinates, pair, layout = refined.coordinates, fitted.pair, part.layout
    classes = coordinates.classes
    others = [name for name in shapes if name not in coordinates.names]
    num = num_particles if classes is None else math.ceil(num_particles / classes.count)
    from_guide = guide_draws(num)
    found = []
    for first, k in [(True, k) for k in pieces(from_guide, at_once)] + [
        (False, k) for k in pieces(num - from_guide, at_once)
    ]:
        u = refined.sample(k)
        moved = pair if first else at(pair, coordinates, u)[0]
        run = terms(moved, rows, k, layout=layout, enumerate=classes is not None)
        u = coordinates.join(run) if first else u
        log_w = mixed(run, u, refined, from_guide / num)
        log_w = log_w if first else possible(log_w)
        if classes is None:
            values = {name: run.rows(run.sites[name].value, shapes[name]) for name in others}
            found.append(_Candidates(log_w, {U: u, **values}, rows, refined))
            continue
        by_class = u.unflatten(1, (classes.count, -1)).flatten(0, 1)  # (k C, n, d)
        log_w = log_w.unflatten(1, (classes.count, -1)).flatten(0, 1)
        index = torch.arange(classes.count, device=u.device).repeat(k)[:, None].expand(log_w.shape)
        values = {CLASS: index} | dict.fromkeys(others, classes.values[index])
        found.append(_Candidates(log_w, {U: by_class, **values}, rows, refined))
    return _Candidates.joined(found)


def _moved(
    fitted: Fit,
    layout: Layout,
    block: _Candidates,
    chosen: dict[str, Tensor],
    moves: int,
    at_once: int,
    names: set[str],
) -> Tensor:
    """The chosen u, `(S, n, d)`, after some Metropolis-adjusted Langevin steps in the metric of the row's proposal."""
    refined = block.refined
    assert refined is not None
    coordinates, classes = refined.coordinates, refined.coordinates.classes
    if other := names - {*coordinates.names, *(() if classes is None else (classes.site,))}:
        raise OptionError(
            f"moves are for continuous sites, and {', '.join(map(repr, sorted(other)))} is not: leave them out."
        )
    scale = refined.scale_tril
    if classes is not None:
        rows = torch.arange(chosen[U].shape[1], device=scale.device)
        scale = scale.unflatten(0, (classes.count, -1))[chosen[CLASS], rows]  # (S, n, d, d)
    length = 1.2 * scale.shape[-1] ** (-1 / 6)

    def density(u: Tensor, index: Tensor | None) -> Tensor:
        if classes is None or index is None:
            return log_joint(fitted.pair, block.rows, layout, coordinates, u)
        every = log_joint(fitted.pair, block.rows, layout, coordinates, u.repeat(1, classes.count, 1))
        return every.unflatten(1, (classes.count, -1)).gather(1, index[:, None])[:, 0]

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
            noise = torch.randn_like(u)
            there = u + (own @ (drift + length * noise)[..., None])[..., 0]
            value_there, gradient_there = slope(there, index)
            back = length**2 / 2 * (own.mT @ gradient_there[..., None])[..., 0]
            returned = (drift + length * noise + back) / length
            log_ratio = value_there - value - (returned.square() - noise.square()).sum(-1) / 2
            accepted = torch.rand_like(log_ratio).log() < log_ratio.nan_to_num(-math.inf)
            u = torch.where(accepted[..., None], there, u)
            value = torch.where(accepted, value_there, value)
            gradient = torch.where(accepted[..., None], gradient_there, gradient)
        done.append(u)
    return torch.cat(done)

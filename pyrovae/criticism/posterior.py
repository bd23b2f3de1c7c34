"""`posterior`: draws of p(z | x) by importance resampling."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor

from pyrovae._arguments import as_count
from pyrovae.batching.checks import check_rows
from pyrovae.batching.chunks import chunks
from pyrovae.batching.memory import halving
from pyrovae.criticism.proposals import check_proposal
from pyrovae.criticism.resampling import resampled
from pyrovae.errors import OptionError
from pyrovae.fitted.diverged import cure_of_few_draws
from pyrovae.fitted.fitted import Fit, FittedGroup, in_order, seeded
from pyrovae.fitted.runs import global_draw
from pyrovae.pair.layout import Site

FEW = 100  # so many draws in effect are enough for any summary


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


@halving
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
        The draws, `(S, N, *plates, *event)`, or `(S, *plates, *event)` of a global site, on the device of the weights; with a
        list of sites a dict of them.

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
    num_samples, num_particles = as_count("num_samples", num_samples), as_count("num_particles", num_particles)
    check_proposal(proposal)
    moves = as_count("moves", moves, least=0)
    if moves and proposal == "guide":
        raise OptionError(f"moves need a refined proposal; got {moves} with proposal={proposal!r}.")
    with fitted.scope(), seeded(seed):
        parts = fitted.parts(data)
        listed = isinstance(site, (list, tuple))
        names = list(site) if isinstance(site, (list, tuple)) else [site]
        chosen = [parts[0].layout.latent(name) for name in names]
        of_rows = [one.name for one in chosen if one.local]
        found: dict[str, Tensor] = {}
        if of_rows:
            drawn, ess = [], []
            for part in parts:
                values, effective = _draws(fitted, part, num_samples, of_rows, num_particles, proposal, moves)
                drawn.append(values)
                ess.append(effective)
            found = {name: in_order(parts, [one[name] for one in drawn], 1) for name in of_rows}
            _doubt(fitted, torch.cat(ess), num_samples, proposal)
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


def _draws(
    fitted: Fit,
    part: FittedGroup,
    num_samples: int,
    names: Sequence[str],
    num_particles: int,
    proposal: str,
    moves: int,
) -> tuple[dict[str, Tensor], Tensor]:
    """Joint draws, `(S, n, *plates, *event)`, by site, for rows that have the same arguments; and their ESS, `(n,)`."""
    shapes = {name: part.layout.site(name, role="latent", local=True).shape for name in names}
    check_rows(fitted.pair, part.batch, fitted.chunk_size(part.batch), strict=False, numbers=part.rows)
    blocks = list(resampled(fitted, part, num_samples, names, num_particles, proposal, moves=moves))
    values = {
        name: torch.cat([block.values[name].reshape(num_samples, -1, *shape) for block in blocks], 1)
        for name, shape in shapes.items()
    }
    return values, torch.cat([block.ess for block in blocks])


def _doubt(fitted: Fit, ess: Tensor, num_samples: int, proposal: str) -> None:
    """Warn of rows for which the draws are worth fewer than half of as many independent ones."""
    enough = min(num_samples, FEW) / 2
    poor = ess < enough
    if bool(poor.any()):
        cure = "raise num_particles" if proposal != "guide" else 'raise num_particles, or take proposal="refined"'
        cure = cure_of_few_draws(fitted, cure)
        warnings.warn(
            f"The posterior draws of {int(poor.sum())} of {len(ess)} rows are worth fewer than {enough:g} independent ones "
            f"({ess.min().item():.1f} in the worst row, by the effective sample size of their weights): {cure}.",
            stacklevel=4,
        )

"""Log-densities in which sites that only the model enumerates have been summed out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyrovae.errors import PairError
from pyrovae.objectives.enumeration import Factor, Plates, connected, eliminate, expected, from_model
from pyrovae.objectives.terms import Density, Term, Terms


def zeros(terms: Terms, *shape: int) -> Tensor:
    """Zeros to add log-densities of a run to, on their device and of their dtype; without a shape a single one."""
    like = next((term.either.log_prob for term in terms.sites.values()), torch.zeros(()))
    return torch.zeros(shape, device=like.device, dtype=like.dtype)


def expected_term(side: Density, term: Term, terms: Terms, log_prob: Tensor) -> Tensor:
    """A log-density of one side of a site, averaged over the enumerated sites it depends on."""
    return expected(log_prob, side.plates, term.name, terms)


def count(term: Term, terms: Terms, rows: int) -> float:
    """N/B, or 1: how often a site counts in the bound, apart from its own scales."""
    return rows / terms.num_rows if term.local and not term.subsampled else 1.0


@dataclass(frozen=True)
class Cost:
    """A part of the bound, scaled by its own plates and handlers; it counts `weight` times, averaged over enumerated sites."""

    value: Tensor
    plates: Plates
    name: str
    weight: float
    latent: bool  # multiplied by the KL weight


@dataclass(frozen=True)
class Marginal:
    """`log sum_y` of the product of all p that depend on sites which only the model enumerates."""

    sites: tuple[str, ...]
    costs: tuple[Cost, ...]

    def guided(self, terms: Terms) -> str:
        """The one site of the guide whose prior is part of this marginal.

        Raises PairError for several, since the marginal is then the KL term of none of them alone.
        """
        names = [name for name in self.sites if terms.sites[name].q is not None]
        if len(names) > 1:
            raise PairError(
                f"The priors of {', '.join(map(repr, names))} share an enumerated site of the model, so they have no KL terms "
                "of their own for kl=function: use kl=None, or enumerate that site in the guide."
            )
        return names[0]


def marginals_of(terms: Terms, rows: int, split: bool) -> list[Marginal]:
    """One marginal for each connected set of sites that only the model sums out.

    With `split`, log p(z) and log p(x | z) are separate costs, since the KL weight multiplies the first only.
    """
    dims = from_model(terms)
    if not dims:
        return []
    factors = [Factor(log_p_of(t), t.p.plates, (t.name,)) for t in terms.sites.values() if t.p is not None]
    found = []
    for group in connected(factors, dims, terms):
        names = tuple(f.sites[0] for f in group)
        weight, scale = _common_scale(names, terms, rows)
        latent = [f for f in group if is_latent(terms.sites[f.sites[0]])]
        guided = any(terms.sites[name].q is not None for name in names)
        whole = eliminate(group, dims, terms)
        parts = [(1, guided and len(latent) == len(group), whole)]
        if split and guided and len(latent) < len(group):
            prior = eliminate(latent, dims, terms)
            parts += [(-1, False, prior), (1, True, prior)]
        costs = [
            Cost(sign * scale_and_mask(f.log_prob, scale, None), f.plates, f.sites[0], weight, is_latent)
            for sign, is_latent, factors in parts
            for f in factors
        ]
        found.append(Marginal(names, tuple(costs)))
    return found


def is_latent(term: Term) -> bool:
    """Whether a site is drawn or enumerated, and so is not observed."""
    return term.q is not None or term.enum_dim is not None


def _common_scale(names: tuple[str, ...], terms: Terms, rows: int) -> tuple[float, float | Tensor]:
    """(N/B, scale) shared by these sites: both are factors outside the sum over an enumerated site."""
    sides = [terms.sites[name].p for name in names]
    weights = [count(terms.sites[name], terms, rows) for name in names]
    scales = [side.scale for side in sides if side is not None]
    same = all(s is scales[0] for s in scales) or (
        all(not isinstance(s, Tensor) for s in scales) and len({float(s) for s in scales}) == 1
    )
    if same and len(set(weights)) == 1:
        return weights[0], scales[0]
    summed = next(name for name in names if terms.sites[name].enum_dim is not None and terms.sites[name].q is None)
    raise PairError(
        f"Site {summed!r} is summed out in the model together with {sorted(set(names) - {summed})}, and these count "
        f"{[w if isinstance(s, Tensor) else w * s for w, s in zip(weights, scales)]} times (N/B, subsampling plates, "
        "poutine.scale): the sum needs one number for all. Use all rows as one batch (batch_size=len(data)), draw the site "
        "in the guide, or scale all of them alike with one number."
    )


def prior_factor(term: Term) -> Factor:
    """log p of a site as a factor, unmasked where the site is enumerated."""
    assert term.p is not None
    log_p = term.p.whole if term.p.whole is not None else term.p.log_prob
    return Factor(log_p, term.p.plates, (term.name,))


def times(factor: Factor, weight: Tensor | float) -> Factor:
    return Factor(weight * factor.log_prob, factor.plates, factor.sites)


def log_p_of(term: Term) -> Tensor:
    """log p of a site that is summed by logsumexp: unscaled and masked; unmasked for the site that is itself enumerated."""
    assert term.p is not None
    return term.p.whole if term.p.whole is not None and term.q is None else term.p.log_prob

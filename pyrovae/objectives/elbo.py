"""The ELBO of a pair's terms, with the gradient of Pyro's `Trace_ELBO` or `TraceEnum_ELBO`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from pyro.infer.util import MultiFrameTensor
from torch import Tensor
from torch.distributions import kl_divergence

from pyrovae.errors import PairError
from pyrovae.objectives.enumeration import dims_of, expected, probability, upstream
from pyrovae.objectives.kl import KLFunction, repr_of, takes_weight
from pyrovae.objectives.marginals import Cost, Marginal, any_tensor, count, expected_term, marginals_of
from pyrovae.objectives.terms import Density, Term, Terms


class Bound(NamedTuple):
    """A lower bound on log p(data), in nats for the whole data set.

    `elbo`: the bound itself, detached, every KL weight and every site marked `objective_only` left out. `objective`: what
    to ascend; its value is the weighted bound, its gradient the estimator's (score-function surrogates included).
    """

    elbo: Tensor
    objective: Tensor


def elbo(
    terms: Terms,
    *,
    num_rows: int | None = None,
    kl_weight: Tensor | float | None = None,
    kl: str | KLFunction | None = None,
) -> Bound:
    """ELBO = E_q[log p(x, z) - log q(z | x)], with the gradient of Pyro's `Trace_ELBO`, and no host sync.

    Local terms of B rows count num_rows / B times (once, if their plate "data" has a subsample scale of its own), global
    terms once; particles are averaged. `kl_weight` b makes the objective E[log p(x | z)] - b KL. `kl`: None, the KL as
    drawn; "analytic", in closed form where PyTorch or Pyro knows it (then equal to `TraceMeanField_ELBO`); a function of
    the dict of per-site KL terms ((K, N) local, (K,) global) that returns it changed, (K, 1) meaning one value for every
    row; one of two required arguments is given b as well, as a 0-d tensor (see `pv.kl`). Its terms are closed
    forms where known, and as drawn, log q - log p, where model and guide draw their sites in different orders (a guide from
    the data upwards), since a closed form has integrated out a draw on which another site's prior depends.

    Enumerated sites of the guide are summed out by expectation, E_q[t] = sum_y q(y) t(y), with the gradient of q: equal to
    `TraceEnum_ELBO`. b weighs their log p - log q as any other, not the q that weighs the terms. Those that only the model
    has are part of the likelihood, log sum_y p(y) p(x | y, z): b does nothing to them, but where a latent prior depends on
    one it weighs that prior summed over y. N/B and scales stand outside of the logarithm.

    Sites that are not reparameterised get the score-function surrogate, Rao-Blackwellised along plates (Ranganath et al.
    2014, arXiv:1401.0118); unlike Pyro's, it counts auxiliary sites of the guide that depend on such a site. Raises
    PairError where closed-form KL would be wrong: a site that is not reparameterised, or, for "analytic", model and guide
    drawing their sites in different orders; where enumerated sites cannot be summed out exactly; and where a function `kl`
    names sites (its attribute `sites`) that the pair does not have, or returns others than it was given.
    """
    rows = terms.num_rows if num_rows is None else num_rows
    closed = kl is not None and _closed_form(terms, demanded=not callable(kl))
    zero = torch.zeros((), device=any_tensor(terms).device, dtype=any_tensor(terms).dtype)
    likelihood, latent, gradient_latent, beside = zero, zero, zero, zero
    divergences: dict[str, Tensor] = {}
    marginals = marginals_of(terms, rows, split=kl_weight is not None or callable(kl))
    summed = {name for m in marginals for name in m.sites}  # their log p stands in a marginal
    for term in terms.sites.values():
        weight = count(term, terms, rows)
        p = term.p if term.name not in summed else None
        if term.q is None:
            if p is not None:
                part = weight * expected_term(p, term, terms, p.scaled).sum()
                if term.objective_only:
                    beside = beside + part
                else:
                    likelihood = likelihood + part
            continue
        divergence = _kl(term) if closed and p is not None and term.enum_dim is None else None
        if divergence is not None:
            divergence = expected(divergence, term.q.plates, term.name, terms)
        if callable(kl):
            if divergence is None:
                divergence = expected_term(term.q, term, terms, term.q.scaled)
                if p is not None:
                    divergence = divergence - expected_term(p, term, terms, p.scaled)
            divergences[term.name] = terms.reduce(divergence, term.local)
        elif divergence is not None:
            latent = latent - weight * divergence.sum()
            gradient_latent = gradient_latent - weight * divergence.sum()
        else:
            log_p = weight * expected_term(p, term, terms, p.scaled).sum() if p is not None else zero
            latent = latent + log_p - weight * expected_term(term.q, term, terms, term.q.scaled).sum()
            pathwise = _pathwise(term.q, summed_out=bool(terms.enum_dims))
            gradient_latent = gradient_latent + log_p
            if pathwise is not None:
                gradient_latent = gradient_latent - weight * expected_term(term.q, term, terms, pathwise).sum()
    for marginal in marginals:
        for cost in marginal.costs:
            part = expected(cost.value, cost.plates, cost.name, terms)
            if not cost.latent:
                likelihood = likelihood + cost.weight * part.sum()
            elif callable(kl):
                name = marginal.guided(terms)
                divergences[name] = divergences[name] - terms.reduce(part, terms.sites[name].local)
            else:
                latent = latent + cost.weight * part.sum()
                gradient_latent = gradient_latent + cost.weight * part.sum()
    for name, divergence in divergences.items():
        term = terms.sites[name]
        latent = latent - count(term, terms, rows) * _rows(divergence, term, terms).sum()
    value = ((likelihood + latent) / terms.num_particles).detach()
    if callable(kl):
        gradient_latent = zero
        beta = zero + (1.0 if kl_weight is None else kl_weight)
        for name, divergence in _changed(kl, divergences, terms, beta).items():
            term = terms.sites[name]
            gradient_latent = gradient_latent - count(term, terms, rows) * _rows(divergence, term, terms).sum()
        latent = gradient_latent
    if kl_weight is not None:
        latent, gradient_latent = kl_weight * latent, kl_weight * gradient_latent
    weighted = (likelihood + beside + latent) / terms.num_particles
    scores = _score_surrogate(terms, rows, kl_weight, marginals)
    if scores is None:
        return Bound(value, weighted)
    surrogate = (likelihood + beside + gradient_latent + scores) / terms.num_particles
    return Bound(value, weighted.detach() + surrogate - surrogate.detach())


def _rows(divergence: Tensor, term: Term, terms: Terms) -> Tensor:
    shape = (terms.num_particles, terms.num_rows) if term.local else (terms.num_particles,)
    return divergence.expand(shape)


def _closed_form(terms: Terms, demanded: bool) -> bool:
    drawn = [t.name for t in terms.sites.values() if t.q is not None and t.q.score is not None]
    if drawn:  # an enumerated site has no score: its KL is a sum
        raise PairError(
            f"Site {drawn[0]!r} is not reparameterised, and closed-form KL terms need that every site is: "
            "use Trace_ELBO() with kl=None."
        )
    if demanded and not terms.aligned:
        raise PairError(
            "Closed-form KL terms need model and guide to draw their sites in the same order, else a prior may depend on "
            "a draw that its own posterior's KL has already integrated out: reorder the guide, or use kl=None."
        )
    return terms.aligned


def _changed(kl: KLFunction, divergences: dict[str, Tensor], terms: Terms, weight: Tensor) -> Mapping[str, Tensor]:
    unknown = sorted({*getattr(kl, "sites", ())} - terms.sites.keys())
    if unknown:  # a site that is observed in this group of rows is none of these
        raise PairError(
            f"kl={repr_of(kl)} names {unknown}, and the pair has no such site; latent: {sorted(divergences)}."
        )
    scaled = [name for name in divergences if terms.sites[name].subsampled]
    if scaled and hasattr(kl, "sites"):
        raise PairError(
            f"kl={repr_of(kl)} works in nats a row, and the plate 'data' of site {scaled[0]!r} has a subsample scale of its "
            "own: leave that to the fit (pyro.plate('data', len(x))), which scales by N/B."
        )
    changed = kl(dict(divergences), weight) if takes_weight(kl) else kl(dict(divergences))
    if changed.keys() != divergences.keys():
        raise PairError(
            f"The function kl must return the sites it was given, {sorted(divergences)}, got {sorted(changed)}."
        )
    return changed


def _kl(term: Term) -> Tensor | None:
    """KL(q || p) of a site over its batch shape, with the site's own scale and mask; None where no closed form is known.

    Where model and guide mask or scale the site differently the two log-densities do not belong together: there, as drawn.
    """
    assert term.p is not None and term.q is not None
    p, q = term.p, term.q
    base = q.fn
    while hasattr(base, "base_dist") and not isinstance(base, Delta):
        base = base.base_dist
    if isinstance(base, Delta):  # its log-density may hold a Jacobian, which Pyro's KL leaves out
        return None
    try:
        divergence = scale_and_mask(kl_divergence(q.fn, p.fn), q.scale, q.mask)
    except NotImplementedError:
        return None
    for a, b in ((p.scale, q.scale), (True if p.mask is None else p.mask, True if q.mask is None else q.mask)):
        if isinstance(a, Tensor) or isinstance(b, Tensor):
            if a is not b:
                divergence = torch.where(torch.as_tensor(a == b), divergence, _drawn_kl(term))
        elif a != b:
            return None
    return divergence


def _pathwise(q: Density, summed_out: bool) -> Tensor | None:
    """What of log q enters the gradient directly, scaled; None for nothing.

    Beside enumerated sites (`summed_out`) the values count as well: the probabilities that weigh them have a gradient.
    """
    part = None if q.pathwise is None else scale_and_mask(q.pathwise, q.scale, None)
    if q.score is None or not summed_out:
        return part
    return q.scaled.detach() if part is None else q.scaled.detach() + part - part.detach()


def _drawn_kl(term: Term) -> Tensor:
    assert term.q is not None
    return term.q.scaled - term.p.scaled if term.p is not None else term.q.scaled


def _score_surrogate(
    terms: Terms, rows: int, kl_weight: Tensor | float | None, marginals: list[Marginal]
) -> Tensor | None:
    """sum over sites drawn without reparameterisation of score * (what is downstream of them), as Pyro has it."""
    scored = [t for t in terms.sites.values() if t.q is not None and t.q.score is not None]
    if not scored:
        return None
    beta: Tensor | float = 1.0 if kl_weight is None else kl_weight
    if terms.enum_dims:
        return _pairwise_surrogate(scored, terms, rows, beta, marginals)
    reward = MultiFrameTensor()
    for term in terms.sites.values():
        weight = count(term, terms, rows)
        if term.q is None:
            assert term.p is not None
            log_r = weight * term.p.scaled
        else:
            log_r = -weight * beta * _drawn_kl(term)
        reward.add((term.either.frames, log_r.detach()))
    total: Tensor | None = None
    for term in scored:
        assert term.q is not None and term.q.score is not None
        part = (reward.sum_to(term.q.frames) * term.q.score).sum()
        total = part if total is None else total + part
    return total


def _pairwise_surrogate(
    scored: list[Term], terms: Terms, rows: int, beta: Tensor | float, marginals: list[Marginal]
) -> Tensor:
    """The same beside enumerated sites: sum over values y of q(y) score(y) term(y), for each drawn site and each term."""
    costs = [
        Cost(beta * cost.value if cost.latent else cost.value, cost.plates, cost.name, cost.weight, cost.latent)
        for marginal in marginals
        for cost in marginal.costs
    ]
    summed = {name for m in marginals for name in m.sites}
    for term in terms.sites.values():
        weight = count(term, terms, rows)
        share = 1.0 if term.q is None else beta
        if term.p is not None and term.name not in summed:
            costs.append(Cost(share * term.p.scaled, term.p.plates, term.name, weight, False))
        if term.q is not None:
            costs.append(Cost(-share * term.q.scaled, term.q.plates, term.name, weight, False))
    total = torch.zeros((), device=any_tensor(terms).device, dtype=any_tensor(terms).dtype)
    for term in scored:
        assert term.q is not None and term.q.score is not None
        keep = upstream(dims_of(term.q.score, terms), terms)
        weight_of = probability(keep, keep, term.name, term.q.plates, terms)
        for cost in costs:
            reward = cost.weight * expected(cost.value, cost.plates, cost.name, terms, keep).detach()
            out = [d for _, d in cost.plates - term.q.plates if reward.dim() >= -d]
            reward = reward.sum(out, keepdim=True) if out else reward
            if weight_of is not None:
                reward = weight_of.detach() * torch.where(weight_of > 0, reward, 0.0)
            total = total + (reward * term.q.score).sum()
    return total

"""The ELBO of a pair's terms, with the gradient of Pyro's `Trace_ELBO` or `TraceEnum_ELBO`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import Any, NamedTuple

import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer.util import MultiFrameTensor
from torch import Tensor

from pyrovae._shapes import broadcast_shapes
from pyrovae.errors import OptionError, PairError
from pyrovae.objectives.baselines import Signal
from pyrovae.objectives.divergences import closed_forms, closed_kl, drawn_kl
from pyrovae.objectives.enumeration import dims_of, expected, probability, upstream
from pyrovae.objectives.kl_functions import KLFunction, Minibatch, applies_weight, apply, repr_of
from pyrovae.objectives.marginals import Cost, Marginal, count, expected_term, marginals_of, zeros
from pyrovae.objectives.terms import Density, Term, Terms

# from the learning signal of a site to what multiplies its score, and an objective of the baseline's own, if it learns
Baseline = Callable[[Signal], tuple[Tensor, Tensor | None]]


class Bound(NamedTuple):
    """A lower bound on log p(data), and the number whose gradient a fit follows; both in nats for the whole data set.

    Attributes:
        elbo: The bound itself, a detached 0-d tensor. KL weights do not change it, and sites marked `objective_only` do
            not enter it.
        objective: What to maximise, a 0-d tensor. Its value is the weighted bound, `objective_only` sites included; its
            gradient is that of the estimator, score-function terms included.

    Example:
        >>> x = torch.rand(8, 4).round()
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(4)), pv.mlp(4, fam.Normal(2)))
        >>> bound = pv.Trace_ELBO()(vae, {"x": x})
        >>> bound.elbo.requires_grad, bound.objective.requires_grad
        (False, True)
        >>> torch.equal(bound.elbo, bound.objective.detach())
        True
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
    """`ELBO = E_q[log p(x, z) - log q(z | x)]` for the whole data set, from one run of model and guide.

    Local terms of a minibatch of B rows are multiplied by N / B (unless their plate "data" has a subsample scale of its
    own); terms of global sites count once; particles are averaged. Value and gradient equal those of Pyro's
    `Trace_ELBO`, `TraceMeanField_ELBO` (for `kl="analytic"`) and `TraceEnum_ELBO` (for enumerated sites), and no value is
    read on the host.

    Sites that are enumerated in the guide are summed out by expectation, `E_q[t] = sum_y q(y) t(y)`, with the gradient
    of q(y). Sites that are enumerated in the model alone belong to the likelihood, `log sum_y p(y) p(x | y, z)`, with N / B
    and scales outside the logarithm. Sites drawn without reparameterisation get a score-function term, Rao-Blackwellised along
    plates; unlike Pyro's, it counts auxiliary sites of the guide that depend on such a site.

    Args:
        terms: One run of the pair, from `pv.terms`.
        num_rows: N, the number of rows of the whole data set; the rows of this run if None.
        kl_weight: b in the objective `E[log p(x | z)] - b KL`, a number or a 0-d tensor. It multiplies log p - log q of
            every latent site and never changes the probabilities q(y) used for averaging. Where a latent prior depends on
            a site that only the model sums out, b multiplies that prior summed over the site.
        kl: How the KL terms are computed. None: log q - log p at the draws. "analytic": in closed form where torch or Pyro has
            one, an error where that would be wrong. "auto": in closed form where there is one and it is right, else log q - log
            p at the draws: a prior may depend on a draw that the guide makes later, as in models that are inferred from the
            bottom up, and where a site is not reparameterised, all terms are at the draws. Of relaxed codes the closed form is
            the KL of the discrete ones. A function: the objective has its result in place of the KL terms; it takes a dict from
            site to KL term, in nats, `(K, N)` for a local site and `(K,)` for a global one, and returns it changed, where
            `(K, 1)` is one value for every row. A function of two required arguments also gets b, as a 0-d tensor, and one of
            three also the run, see `pv.kl`. Its terms are closed forms where these are known and model and guide draw their
            sites in the same order, else log q - log p at the draws.

    Returns:
        The bound and the objective, see `Bound`.

    Raises:
        OptionError: `kl` is none of these.
        PairError: `kl` is given, and not "auto", and a site is not reparameterised; `kl="analytic"` and model and guide draw
            their sites in different orders; enumerated sites cannot be summed out exactly; the function `kl` names sites (its
            attribute `sites`) that the pair does not have, or returns other sites or shapes than it was given.

    References:
        Kingma and Welling 2014, arXiv:1312.6114; Ranganath, Gerrish and Blei 2014, arXiv:1401.0118 (score function).

    Example:
        >>> x = torch.rand(8, 4).round()
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(4)), pv.mlp(4, fam.Normal(2)))
        >>> run = pv.terms(vae, {"x": x}, num_particles=3)
        >>> one_batch = pv.elbo(run).elbo
        >>> whole_data = pv.elbo(run, num_rows=80).elbo  # these 8 rows represent 80
        >>> torch.allclose(whole_data, 10 * one_batch)
        True
        >>> pv.elbo(run, kl="analytic", kl_weight=0.5).objective.shape
        torch.Size([])
    """
    check_kl(kl)
    return bound_of(terms, num_rows, kl_weight, kl)


def check_kl(kl: Any) -> None:
    """OptionError unless `kl` is a way to compute KL terms."""
    if not (kl is None or kl in ("analytic", "auto") or callable(kl)):
        raise OptionError(f"kl must be None, 'analytic', 'auto' or a function of the per-site KL terms, got {kl!r}.")


def bound_of(
    terms: Terms,
    num_rows: int | None,
    kl_weight: Tensor | float | None,
    kl: str | KLFunction | None,
    dice: bool = False,
    baseline: Baseline | None = None,
    batch: Mapping[str, Tensor] | None = None,
) -> Bound:
    """`elbo`; if `dice`, with the gradient at drawn sites of Pyro's `TraceEnum_ELBO` (Foerster et al. 2018, arXiv:1802.05098).

    There log q is differentiated beside the score, which adds 0 on average, and a score meets only the terms that are in all
    plates of its site, which is right where nothing outside of a plate depends on what is drawn inside.

    A `baseline` is subtracted from what a score meets; `batch` are the arguments of the run, from which it may predict.
    """
    rows = terms.num_rows if num_rows is None else num_rows
    closed = closed_forms(terms, kl)
    marginals = marginals_of(terms, rows, split=kl_weight is not None or callable(kl))
    if callable(kl):
        divergences = _divergences(terms, marginals, closed)
        latent = pathwise = -_total(divergences, terms, rows)
    else:
        latent, pathwise = _latent_part(terms, rows, marginals, closed, dice)
    likelihood, extra = _likelihood_part(terms, rows, marginals)
    bound = ((likelihood + latent) / terms.num_particles).detach()
    if callable(kl):
        latent = -_total(_changed(kl, divergences, terms, rows, kl_weight), terms, rows)
    if kl_weight is not None and not applies_weight(kl):
        latent, pathwise = kl_weight * latent, kl_weight * pathwise
    objective = (likelihood + extra + latent) / terms.num_particles
    scores = _score_surrogate(terms, rows, kl_weight, marginals, dice, baseline, batch or {})
    if scores is None:
        return Bound(bound, objective)
    surrogate = (likelihood + extra + pathwise + scores) / terms.num_particles
    return Bound(bound, objective.detach() + surrogate - surrogate.detach())


def _likelihood_part(terms: Terms, rows: int, marginals: list[Marginal]) -> tuple[Tensor, Tensor]:
    """log p of what is observed, scaled and summed over particles, and the same of sites marked `objective_only`."""
    likelihood, extra = zeros(terms), zeros(terms)
    summed = _summed(marginals)
    for term in terms.sites.values():
        if term.q is None and term.p is not None and term.name not in summed:
            part = count(term, terms, rows) * expected_term(term.p, term, terms, term.p.scaled).sum()
            if term.objective_only:
                extra = extra + part
            else:
                likelihood = likelihood + part
    for cost in _costs(marginals, latent=False):
        likelihood = likelihood + cost.weight * expected(cost.value, cost.plates, cost.name, terms).sum()
    return likelihood, extra


def _latent_part(
    terms: Terms, rows: int, marginals: list[Marginal], closed: Set[str], dice: bool
) -> tuple[Tensor, Tensor]:
    """log p - log q of the latent sites, scaled and summed over particles: its value, and what to differentiate instead.

    The second differs from the first only where a site is drawn without reparameterisation: the score-function surrogate
    supplies the gradient of that site's log q, so it is left out here (unless `dice`, see `bound_of`).
    """
    scored = not dice and any(term.q is not None and term.q.score is not None for term in terms.sites.values())
    latent = pathwise = zeros(terms)
    summed = _summed(marginals)
    for term in terms.sites.values():
        if term.q is None:
            continue
        weight = count(term, terms, rows)
        p = term.p if term.name not in summed else None
        divergence = closed_kl(term, terms) if term.name in closed and p is not None else None
        if divergence is not None:
            latent = latent - weight * divergence.sum()
            continue
        log_p = weight * expected_term(p, term, terms, p.scaled).sum() if p is not None else zeros(terms)
        latent = latent + log_p - weight * expected_term(term.q, term, terms, term.q.scaled).sum()
        if scored:
            pathwise = pathwise + log_p
            log_q = _pathwise(term.q, summed_out=bool(terms.enum_dims))
            if log_q is not None:
                pathwise = pathwise - weight * expected_term(term.q, term, terms, log_q).sum()
    for cost in _costs(marginals, latent=True):
        log_p = cost.weight * expected(cost.value, cost.plates, cost.name, terms).sum()
        latent, pathwise = latent + log_p, pathwise + log_p
    return latent, pathwise if scored else latent


def _divergences(terms: Terms, marginals: list[Marginal], closed: Set[str]) -> dict[str, Tensor]:
    """The KL term of each latent site for a function `kl`: {site: (K, N) or (K,)}, N / B left out."""
    found: dict[str, Tensor] = {}
    summed = _summed(marginals)
    for term in terms.sites.values():
        if term.q is None:
            continue
        p = term.p if term.name not in summed else None
        divergence = closed_kl(term, terms) if term.name in closed and p is not None else None
        if divergence is None:
            divergence = expected_term(term.q, term, terms, term.q.scaled)
            if p is not None:
                divergence = divergence - expected_term(p, term, terms, p.scaled)
        found[term.name] = terms.reduce(divergence, term.local)
    for marginal in marginals:
        for cost in _costs([marginal], latent=True):
            name = marginal.guided(terms)
            log_p = expected(cost.value, cost.plates, cost.name, terms)
            found[name] = found[name] - terms.reduce(log_p, terms.sites[name].local)
    return found


def _changed(
    kl: KLFunction, divergences: dict[str, Tensor], terms: Terms, rows: int, kl_weight: Tensor | float | None
) -> Mapping[str, Tensor]:
    """What the function `kl` makes of the KL terms. Raises PairError for sites that do not fit."""
    unknown = sorted({*getattr(kl, "sites", ())} - terms.sites.keys())
    if unknown:  # a site that is observed in this group of rows is known, and has no KL term
        raise PairError(
            f"kl={repr_of(kl)} names {unknown}, but the pair has no such site. Name sites that are latent: "
            f"{sorted(divergences)}."
        )
    scaled = [name for name in divergences if terms.sites[name].subsampled]
    if scaled and hasattr(kl, "sites"):
        raise PairError(
            f"kl={repr_of(kl)} works in nats per row, but the plate 'data' of site {scaled[0]!r} has a subsample scale of its "
            "own. Write pyro.plate('data', len(x)) and leave the scale to the fit, which multiplies by N/B."
        )
    weight = zeros(terms) + (1.0 if kl_weight is None else kl_weight)
    changed = apply(kl, divergences, weight, Minibatch(terms, rows))
    if not isinstance(changed, Mapping) or changed.keys() != divergences.keys():
        got = list(changed) if isinstance(changed, Mapping) else type(changed).__name__
        raise PairError(
            f"The function kl must return a dict of the sites it was given, {sorted(divergences)}, got {got}."
        )
    for name, given in changed.items():
        shape, kind = _shape_of(terms.sites[name], terms), "local" if terms.sites[name].local else "global"
        own = tuple(given.shape) if isinstance(given, Tensor) else None
        if own is None or len(own) > len(shape) or any(a not in (1, b) for a, b in zip(own[::-1], shape[::-1])):
            raise PairError(
                f"The function kl must return a tensor of shape {shape}, particles and then rows, for the {kind} site "
                f"{name!r}, got {type(given).__name__ if own is None else own}."
            )
    return changed


def _shape_of(term: Term, terms: Terms) -> tuple[int, ...]:
    """(K, N) for a local site, (K,) for a global one."""
    return (terms.num_particles, terms.num_rows) if term.local else (terms.num_particles,)


def _total(divergences: Mapping[str, Tensor], terms: Terms, rows: int) -> Tensor:
    """All KL terms for the whole data set, summed over particles. A term of shape (K, 1) counts for each of the N rows."""
    total = zeros(terms)
    for name, divergence in divergences.items():
        term = terms.sites[name]
        total = total + count(term, terms, rows) * divergence.expand(_shape_of(term, terms)).sum()
    return total


def _pathwise(q: Density, summed_out: bool) -> Tensor | None:
    """The part of log q that is differentiated directly, scaled; None if there is none.

    With enumerated sites (`summed_out`) the value of log q counts too, since the probabilities that multiply it have a
    gradient.
    """
    part = None if q.pathwise is None else scale_and_mask(q.pathwise, q.scale, None)
    if q.score is None or not summed_out:
        return part
    return q.scaled.detach() if part is None else q.scaled.detach() + part - part.detach()


def _score_surrogate(
    terms: Terms,
    rows: int,
    kl_weight: Tensor | float | None,
    marginals: list[Marginal],
    dice: bool,
    baseline: Baseline | None,
    batch: Mapping[str, Tensor],
) -> Tensor | None:
    """Sum of score times downstream terms over sites drawn without reparameterisation, as Pyro has it; None without any."""
    scored = [t for t in terms.sites.values() if t.q is not None and t.q.score is not None]
    if not scored:
        return None
    beta: Tensor | float = 1.0 if kl_weight is None else kl_weight
    if terms.enum_dims or dice:
        if getattr(baseline, "trains", ()):
            raise PairError(
                f"Site {scored[0].name!r} is drawn beside enumerated sites, where {baseline!r} has no place: use "
                "Trace_ELBO without a baseline, or draw the enumerated sites as well."
            )
        return _enumerated_surrogate(scored, terms, rows, beta, marginals, dice)
    reward = MultiFrameTensor()
    for term in terms.sites.values():
        weight = count(term, terms, rows)
        if term.q is None:
            assert term.p is not None
            log_r = weight * term.p.scaled
        else:
            log_r = -weight * beta * drawn_kl(term)
        reward.add((term.either.frames, log_r.detach()))
    total: Tensor | None = None
    for term in scored:
        assert term.q is not None and term.q.score is not None
        signal, score, own = reward.sum_to(term.q.frames), term.q.score, None
        if baseline is not None:
            full = signal.expand(broadcast_shapes(signal.shape, score.shape))
            signal, own = baseline(Signal(full, term, terms, batch, count(term, terms, rows)))
        part = (signal * score).sum()
        part = part if own is None else part + own
        total = part if total is None else total + part
    return total


def _enumerated_surrogate(
    scored: list[Term], terms: Terms, rows: int, beta: Tensor | float, marginals: list[Marginal], dice: bool
) -> Tensor:
    """The same with enumerated sites y: sum_y q(y) score(y) term(y), for every pair of a drawn site and a term."""
    costs = [
        Cost(beta * cost.value if cost.latent else cost.value, cost.plates, cost.name, cost.weight, cost.latent)
        for marginal in marginals
        for cost in marginal.costs
    ]
    summed = _summed(marginals)
    for term in terms.sites.values():
        weight = count(term, terms, rows)
        share = 1.0 if term.q is None else beta
        if term.p is not None and term.name not in summed:
            costs.append(Cost(share * term.p.scaled, term.p.plates, term.name, weight, False))
        if term.q is not None:
            costs.append(Cost(-share * term.q.scaled, term.q.plates, term.name, weight, False))
    total = zeros(terms)
    for term in scored:
        assert term.q is not None and term.q.score is not None
        keep = upstream(dims_of(term.q.score, terms), terms)
        q_of_values = probability(keep, keep, term.name, term.q.plates, terms)
        for cost in costs:
            if dice and not term.q.plates <= cost.plates:
                continue
            reward = cost.weight * expected(cost.value, cost.plates, cost.name, terms, keep).detach()
            out = [d for _, d in cost.plates - term.q.plates if reward.dim() >= -d]
            reward = reward.sum(out, keepdim=True) if out else reward
            if q_of_values is not None:
                reward = q_of_values.detach() * torch.where(q_of_values > 0, reward, 0.0)
            total = total + (reward * term.q.score).sum()
    return total


def _summed(marginals: list[Marginal]) -> set[str]:
    """Sites whose log p is part of a marginal, and so is not counted by itself."""
    return {name for marginal in marginals for name in marginal.sites}


def _costs(marginals: list[Marginal], latent: bool) -> list[Cost]:
    return [cost for marginal in marginals for cost in marginal.costs if cost.latent is latent]

"""Objectives: folds of terms. `elbo` is what a fit ascends, `log_weights` what every evaluation starts from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro.infer
import torch
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from pyro.infer.util import MultiFrameTensor
from torch import Tensor
from torch.distributions import kl_divergence

from pyrovae.check import Layout
from pyrovae.errors import OptionError, PairError
from pyrovae.handlers import DATA_PLATE, PARTICLE_PLATE
from pyrovae.infer.direct import direct_log_q
from pyrovae.infer.enumeration import (
    Factor,
    Plates,
    connected,
    dims_of,
    eliminate,
    expected,
    from_model,
    probability,
    upstream,
)
from pyrovae.infer.kl import KLFunction, repr_of, takes_weight
from pyrovae.infer.terms import Density, Term, Terms, terms


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
    row; one of two required arguments is given b as well, as a 0-d tensor (see `pyrovae.infer.kl`). Its terms are closed
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
    zero = torch.zeros((), device=_any(terms).device, dtype=_any(terms).dtype)
    likelihood, latent, gradient_latent, beside = zero, zero, zero, zero
    divergences: dict[str, Tensor] = {}
    marginals = _marginals(terms, rows, split=kl_weight is not None or callable(kl))
    summed = {name for m in marginals for name in m.sites}  # their log p stands in a marginal
    for term in terms.sites.values():
        weight = count(term, terms, rows)
        p = term.p if term.name not in summed else None
        if term.q is None:
            if p is not None:
                part = weight * _expected(p, term, terms, p.scaled).sum()
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
                divergence = _expected(term.q, term, terms, term.q.scaled)
                if p is not None:
                    divergence = divergence - _expected(p, term, terms, p.scaled)
            divergences[term.name] = terms.reduce(divergence, term.local)
        elif divergence is not None:
            latent = latent - weight * divergence.sum()
            gradient_latent = gradient_latent - weight * divergence.sum()
        else:
            log_p = weight * _expected(p, term, terms, p.scaled).sum() if p is not None else zero
            latent = latent + log_p - weight * _expected(term.q, term, terms, term.q.scaled).sum()
            pathwise = _pathwise(term.q, summed_out=bool(terms.enum_dims))
            gradient_latent = gradient_latent + log_p
            if pathwise is not None:
                gradient_latent = gradient_latent - weight * _expected(term.q, term, terms, pathwise).sum()
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


def log_weights(terms: Terms, *, kl_weight: Tensor | float | None = None, keep: str | None = None) -> Tensor:
    """log w = log p(x, z) - log q(z | x), each row and particle alone: (K, N), nats, unscaled.

    Enumerated sites are summed out, log sum_y p(x, y, z) / q(z | x): their own q is not in the denominator. Global sites do
    not enter: they are drawn from the guide, or, enumerated, summed under it, so that the mean weight of a row estimates its
    predictive density under q(global). Sites marked `objective_only` do not enter either. `kl_weight` b makes it
    log p(x | z) - b (log q - log p) of the drawn sites.

    `keep` is an enumerated site y that is not summed out: (C, K, N), log p(x, y = c, z) - log q(z | x, y = c) for each of its
    C values, its q in no denominator, so that the mean weight of a value estimates p(x, y = c). The K vectors of C weights
    are independent; within one, values share the draws that do not depend on y.

    Raises PairError for a global site that only the model sums out: no row has a density of its own there; and for a `keep`
    that is not enumerated once a row.
    """
    sites = [t for t in terms.sites.values() if t.local and not t.objective_only]
    kept = None if keep is None else _kept_dim(keep, terms)
    dims = frozenset(terms.enum_dims) - {kept}

    def fold(factors: list[Factor]) -> Tensor:
        total = torch.zeros((), device=_any(terms).device, dtype=_any(terms).dtype)
        for factor in _eliminate_rows(factors, dims, terms) if dims else factors:
            total = total + _by_value(factor.log_prob, kept, terms)
        return total

    shape = (terms.num_particles, terms.num_rows)
    values = () if keep is None else (num_values(terms, keep),)
    return _weighed(sites, terms, kl_weight, fold).expand(*values, *shape)


def num_values(terms: Terms, name: str) -> int:
    """C, how many values an enumerated site has. PairError unless it is enumerated once a row."""
    dim, site = _kept_dim(name, terms), terms.sites[name]
    return int(site.value.shape[dim - len(site.either.fn.event_shape)])


def guide_probabilities(terms: Terms, name: str) -> Tensor:
    """What the guide says of an enumerated site: q(y = c | x, draws before it), (C, K, N), other enumerated sites averaged.

    Of a site that only the model has: p(y = c | x, z) at the guide's draws of z, the responsibilities, which is the best
    that a guide could say at these draws. PairError unless it is enumerated once a row.
    """
    dim, q = _kept_dim(name, terms), terms.sites[name].q
    if q is None:
        return log_weights(terms, keep=name).softmax(0)
    found = probability([dim], upstream([dim], terms), name, q.plates, terms)
    assert found is not None
    return _by_value(found, dim, terms).expand(num_values(terms, name), terms.num_particles, terms.num_rows)


def joint_log_weights(terms: Terms, *, kl_weight: Tensor | float | None = None) -> Tensor:
    """log w = log p(x, z) - log q(z | x) of all rows and global sites together: (K,), nats, unscaled."""

    def fold(factors: list[Factor]) -> Tensor:
        total = torch.zeros(terms.num_particles, device=_any(terms).device, dtype=_any(terms).dtype)
        for factor in eliminate(factors, frozenset(terms.enum_dims), terms):
            total = total + terms.reduce(factor.log_prob, False)
        return total

    return _weighed([t for t in terms.sites.values() if not t.objective_only], terms, kl_weight, fold)


def row_bounds(terms: Terms) -> Tensor:
    """Each row's and particle's share of the ELBO, unscaled, global sites left out: (K, N), nats.

    `log_weights` where nothing is enumerated. Enumerated sites of the guide are averaged under it, as `elbo` does.
    """
    if not terms.enum_dims:
        return log_weights(terms)
    total = torch.zeros((), device=_any(terms).device, dtype=_any(terms).dtype)
    sites = [t for t in terms.sites.values() if t.local and not t.objective_only]
    factors = [Factor(_log_p(t), t.p.plates, (t.name,)) for t in sites if t.p is not None]
    for factor in _eliminate_rows(factors, from_model(terms), terms, guide=False):
        total = total + terms.reduce(expected(factor.log_prob, factor.plates, factor.sites[0], terms), True)
    for term in sites:
        if term.q is not None:
            total = total - terms.reduce(_expected(term.q, term, terms, term.q.log_prob), True)
    return total.expand(terms.num_particles, terms.num_rows)


def row_kl(terms: Terms) -> dict[str, Tensor]:
    """The KL term of each latent site, each row and particle alone, as drawn: {site: (K, N)}, nats, unscaled.

    log q - log p at the draw, enumerated sites of the guide averaged under it; what only the model sums out is summed in
    log p. Only the expectation of all terms together is a divergence for sure: one alone may be negative, by the noise of the
    draw, or where the guide draws a site before one that its prior depends on. Left out are global sites, and sites whose
    priors share a site that only the model sums out: no term belongs to one of them alone.
    """
    latent = [t for t in terms.sites.values() if t.local and not t.objective_only and _is_latent(t)]
    found = {t.name: terms.reduce(_expected(t.q, t, terms, t.q.log_prob), True) for t in latent if t.q is not None}
    factors = [Factor(_log_p(t), t.p.plates, (t.name,)) for t in latent if t.p is not None]
    if terms.enum_dims:
        factors = _eliminate_rows(factors, from_model(terms), terms, guide=False)
    for factor in factors:
        names = [n for n in factor.sites if n in found]
        if len(names) > 1:
            for name in names:
                del found[name]
        elif names:
            log_p = expected(factor.log_prob, factor.plates, factor.sites[0], terms)
            found[names[0]] = found[names[0]] - terms.reduce(log_p, True)
    return found


def global_bound(terms: Terms, counted: Collection[str] = ()) -> Tensor:
    """log p - log q of the global sites, scaled, summed over particles: what belongs to no row, but for what was `counted`
    elsewhere."""
    total = torch.zeros((), device=_any(terms).device, dtype=_any(terms).dtype)
    for term in terms.sites.values():
        if not term.local and not term.objective_only and term.name not in counted:
            for side, sign in ((term.p, 1), (term.q, -1)):
                if side is not None:
                    total = total + sign * _expected(side, term, terms, side.scaled).sum()
    return total


class Trace_ELBO:
    """The one ELBO, as an object to pass to `fit`: `Trace_ELBO(num_particles=1, kl=None, gradient="standard")`.

    See `elbo` for `kl`, and `pv.kl` for functions to give it. `gradient="sticking_the_landing"` leaves out of
    d log q(z; phi) / d phi what phi does with z held fixed, whose expectation is zero (Roeder et al. 2017, arXiv:1703.09194):
    no noise is left where the guide is exact. The guide runs twice where it has several sites, at the same draws: it must be
    random at its sites only (no dropout). More particles steady the posterior scale of global latents, whose gradient is
    noisy under minibatches.
    """

    def __init__(self, num_particles: int = 1, kl: str | KLFunction | None = None, gradient: str = "standard") -> None:
        check_options(num_particles, gradient, "sticking_the_landing")
        if not (kl is None or kl == "analytic" or callable(kl)):
            raise OptionError(f"kl must be None, 'analytic' or a function of the per-site KL terms, got {kl!r}.")
        if callable(kl):
            takes_weight(kl)  # one of too many arguments is refused now, not in a step
        if kl is not None and gradient != "standard":
            raise OptionError(f"gradient={gradient!r} needs the KL as drawn: use kl=None, or gradient='standard'.")
        self.num_particles, self.kl, self.gradient = num_particles, kl, gradient

    def __call__(
        self,
        pair: Any,
        batch: Mapping[str, Tensor],
        *,
        num_rows: int | None = None,
        kl_weight: Tensor | float | None = None,
        layout: Layout | None = None,
    ) -> Bound:
        run = terms(pair, batch, self.num_particles, layout=layout)
        bound = elbo(run, num_rows=num_rows, kl_weight=kl_weight, kl=self.kl)
        if self.gradient == "standard":
            return bound
        check_reparameterised(run, self.gradient)
        direct = torch.zeros_like(bound.elbo)
        for name, log_q in direct_log_q(pair, batch, run).items():
            weight = count(run.sites[name], run, run.num_rows if num_rows is None else num_rows)
            direct = direct + weight * log_q.scaled.sum()
        direct = direct * (1.0 if kl_weight is None else kl_weight) / run.num_particles
        return Bound(bound.elbo, bound.objective + direct - direct.detach())

    def __repr__(self) -> str:
        gradient = "" if self.gradient == "standard" else f", gradient={self.gradient!r}"
        return f"Trace_ELBO(num_particles={self.num_particles}, kl={repr_of(self.kl)}{gradient})"


def as_loss(loss: Any) -> Any:
    """Ours for a loss: None is `Trace_ELBO()`; Pyro's Trace_ELBO, TraceEnum_ELBO and TraceMeanField_ELBO become their twin
    here."""
    if loss is None:
        return Trace_ELBO()
    sampled = (pyro.infer.Trace_ELBO, pyro.infer.JitTrace_ELBO, pyro.infer.TraceEnum_ELBO, pyro.infer.JitTraceEnum_ELBO)
    if type(loss) in sampled:
        return Trace_ELBO(loss.num_particles)
    if type(loss) in (pyro.infer.TraceMeanField_ELBO, pyro.infer.JitTraceMeanField_ELBO):
        return Trace_ELBO(loss.num_particles, kl="analytic")
    if isinstance(loss, pyro.infer.ELBO) or not callable(loss):
        raise OptionError(
            f"loss={type(loss).__name__} is not supported; known: pv.Trace_ELBO, pv.IWELBO, pyro.infer.Trace_ELBO, "
            "pyro.infer.TraceEnum_ELBO, pyro.infer.TraceMeanField_ELBO."
        )
    return loss


def check_options(num_particles: int, gradient: str, other: str) -> None:
    """OptionError for fewer than one particle, or a gradient that is neither "standard" nor the other one known."""
    if num_particles < 1:
        raise OptionError(f"num_particles must be at least 1, got {num_particles}.")
    if gradient not in ("standard", other):
        raise OptionError(f"gradient must be 'standard' or {other!r}, got {gradient!r}.")


def check_reparameterised(terms: Terms, gradient: str) -> None:
    """PairError unless every site of the guide is drawn, and drawn with reparameterisation."""
    for term in terms.sites.values():
        if term.enum_dim is not None:
            raise PairError(
                f"gradient={gradient!r} needs drawn sites, and {term.name!r} is enumerated: use gradient='standard'."
            )
        if term.q is not None and term.q.score is not None:
            raise PairError(
                f"gradient={gradient!r} needs reparameterised sites, and {term.name!r} is not: use gradient='standard'."
            )


# --- pieces ----------------------------------------------------------------------------------------------------------


def _any(terms: Terms) -> Tensor:
    return next(iter(terms.sites.values())).either.log_prob


def _expected(side: Density, term: Term, terms: Terms, log_prob: Tensor) -> Tensor:
    return expected(log_prob, side.plates, term.name, terms)


def _log_p(term: Term) -> Tensor:
    """log p of a site where it is summed by logsumexp: unscaled, masked; of a site that is itself enumerated, unmasked."""
    assert term.p is not None
    return term.p.whole if term.p.whole is not None and term.q is None else term.p.log_prob


def count(term: Term, terms: Terms, rows: int) -> float:
    """N/B: how often a site counts in the bound, its own scales left out."""
    return rows / terms.num_rows if term.local and not term.subsampled else 1.0


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
    total = torch.zeros((), device=_any(terms).device, dtype=_any(terms).dtype)
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


# --- what the model sums out -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """A part of the bound: scaled by its own plates and handlers, to count `weight` times, under E_q of enumerated sites."""

    value: Tensor
    plates: Plates
    name: str
    weight: float
    latent: bool  # weighed by the KL weight


@dataclass(frozen=True)
class Marginal:
    """log sum_y of all log p that depend on sites which only the model sums out."""

    sites: tuple[str, ...]
    costs: tuple[Cost, ...]

    def guided(self, terms: Terms) -> str:
        """The one latent site of the guide in it. PairError for several: then no KL term belongs to any of them alone."""
        names = [name for name in self.sites if terms.sites[name].q is not None]
        if len(names) > 1:
            raise PairError(
                f"The priors of {', '.join(map(repr, names))} share an enumerated site of the model, so they have no KL terms "
                "of their own for kl=function: use kl=None, or enumerate that site in the guide."
            )
        return names[0]


def _marginals(terms: Terms, rows: int, split: bool) -> list[Marginal]:
    """One for each connected set of sites that only the model sums out. `split`: log p(z) and log p(x | z) apart."""
    dims = from_model(terms)
    if not dims:
        return []
    factors = [Factor(_log_p(t), t.p.plates, (t.name,)) for t in terms.sites.values() if t.p is not None]
    found = []
    for group in connected(factors, dims, terms):
        names = tuple(f.sites[0] for f in group)
        weight, scale = _common_scale(names, terms, rows)
        latent = [f for f in group if _is_latent(terms.sites[f.sites[0]])]
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


def _is_latent(term: Term) -> bool:
    return term.q is not None or term.enum_dim is not None


def _common_scale(names: tuple[str, ...], terms: Terms, rows: int) -> tuple[float, float | Tensor]:
    """(N/B, scale) that these sites share: both stand outside of the sum over an enumerated site."""
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
        "poutine.scale): the sum needs one number for all. Take all rows in one batch (batch_size=len(data)), draw the site "
        "in the guide, or scale all of them alike with one number."
    )


def _weighed(
    sites: list[Term], terms: Terms, kl_weight: Tensor | float | None, fold: Callable[[list[Factor]], Tensor]
) -> Tensor:
    """log p(x | z) + b (log p - log q) of the drawn sites, `fold` summing out the enumerated ones; b = 1 for None."""
    priors = {t.name: _prior(t) for t in sites if t.p is not None}
    log_q = {
        t.name: Factor(-t.q.log_prob, t.q.plates, (t.name,)) for t in sites if t.q is not None and t.enum_dim is None
    }
    if kl_weight is None:
        return fold([side[t.name] for t in sites for side in (priors, log_q) if t.name in side])
    varying = {name: dims_of(factor.log_prob, terms) for name, factor in log_q.items()}
    if all(dims_of(priors[name].log_prob, terms) <= dims for name, dims in varying.items() if name in priors):
        # One draw for each value that the prior depends on, and so a weight for each.
        each = [_times(f, kl_weight) if name in log_q else f for name, f in priors.items()]
        return fold([*each, *(_times(f, kl_weight) for f in log_q.values())])
    for name, dims in varying.items():
        if dims:
            raise PairError(
                f"{name!r} is drawn for each value of an enumerated site, and the prior of another site depends on one that "
                "its draw does not: a KL weight has no place inside such a sum. Use Trace_ELBO, or no KL weight."
            )
    latent = [priors[t.name] for t in sites if t.name in priors and _is_latent(t)]
    return fold(list(priors.values())) + (kl_weight - 1) * fold(latent) + kl_weight * fold(list(log_q.values()))


def _kept_dim(name: str, terms: Terms) -> int:
    """The dimension of an enumerated site that has one value a row."""
    term = terms.sites.get(name)
    if term is None or term.enum_dim is None:
        listed = ", ".join(map(repr, terms.enum_dims.values())) or "none"
        raise PairError(
            f"{name!r} must be an enumerated site, whose values all stand side by side: this run has {listed}."
        )
    if {plate for plate, _ in term.either.plates} - {PARTICLE_PLATE} != {DATA_PLATE}:
        raise PairError(
            f"Site {name!r} must have one value a row, in the plate 'data' and in no other: it stands in "
            f"{sorted(plate for plate, _ in term.either.plates) or 'none'}."
        )
    return term.enum_dim


def _by_value(tensor: Tensor, dim: int | None, terms: Terms) -> Tensor:
    """`terms.reduce` for each value along an enumerated dimension: (C, K, N), or (K, N) where nothing varies along it."""
    if dim is None or dim not in dims_of(tensor, terms):
        return terms.reduce(tensor, True)
    return torch.stack([terms.reduce(part, True) for part in tensor.split(1, dim)])


def _prior(term: Term) -> Factor:
    assert term.p is not None
    log_p = term.p.whole if term.p.whole is not None else term.p.log_prob
    return Factor(log_p, term.p.plates, (term.name,))


def _times(factor: Factor, weight: Tensor | float) -> Factor:
    return Factor(weight * factor.log_prob, factor.plates, factor.sites)


def _eliminate_rows(factors: list[Factor], dims: frozenset[int], terms: Terms, guide: bool = True) -> list[Factor]:
    """Sum out `dims`, each row alone: an enumerated global site is weighed by the guide, in every row anew."""
    row = frozenset({(DATA_PLATE, terms.data_dim)})
    stands = {d: terms.sites[name].either.plates | row for d, name in terms.enum_dims.items()}
    made = list(factors)
    for dim, name in terms.enum_dims.items():
        term = terms.sites[name]
        if term.local:
            continue
        if term.q is None:
            raise PairError(
                f"Site {name!r} belongs to all rows and only the model sums it out: no row has a density of its own. Give it "
                "to the guide, marked infer={'enumerate': 'parallel'} there."
            )
        if guide and dim in dims:
            assert term.q.whole is not None
            made.append(Factor(term.q.whole, term.q.plates, (name,)))
    made = [Factor(f.log_prob, f.plates | row, f.sites) for f in made]
    return eliminate(made, dims, terms, stands)

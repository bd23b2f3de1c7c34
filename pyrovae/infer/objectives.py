"""Objectives: folds of terms. `elbo` is what a fit ascends, `log_weights` what every evaluation starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from pyrovae.infer.terms import Term, Terms, terms

KLFunction = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]


class Bound(NamedTuple):
    """A lower bound on log p(data), in nats for the whole data set.

    `elbo`: the bound itself, detached, every KL weight left out. `objective`: what to ascend; its value is the weighted
    bound, its gradient the estimator's (score-function surrogates included).
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
    the dict of per-site KL terms ((K, N) local, (K,) global; closed form where known) that returns it changed, (K, 1)
    meaning one value for every row.

    Sites that are not reparameterised get the score-function surrogate, Rao-Blackwellised along plates (Ranganath et al.
    2014, arXiv:1401.0118); unlike Pyro's, it counts auxiliary sites of the guide that depend on such a site. Raises
    PairError where closed-form KL would be wrong: a site that is not reparameterised, or model and guide drawing their
    sites in different orders.
    """
    rows = terms.num_rows if num_rows is None else num_rows
    closed = kl is not None and _closed_form(terms)
    zero = torch.zeros((), device=_any(terms).device, dtype=_any(terms).dtype)
    likelihood, latent, gradient_latent = zero, zero, zero
    divergences: dict[str, Tensor] = {}
    for term in terms.sites.values():
        weight = _weight(term, terms, rows)
        if term.q is None:
            assert term.p is not None
            likelihood = likelihood + weight * term.p.scaled.sum()
            continue
        divergence = _kl(term) if closed and term.p is not None else None
        if callable(kl):
            divergences[term.name] = terms.reduce(divergence if divergence is not None else _drawn_kl(term), term.local)
            latent = latent - weight * _rows(divergences[term.name], term, terms).sum()
        elif divergence is not None:
            latent = latent - weight * divergence.sum()
            gradient_latent = gradient_latent - weight * divergence.sum()
        else:
            log_p = weight * term.p.scaled.sum() if term.p is not None else zero
            latent = latent + log_p - weight * term.q.scaled.sum()
            pathwise = term.q.pathwise
            gradient_latent = gradient_latent + log_p
            if pathwise is not None:
                gradient_latent = gradient_latent - weight * scale_and_mask(pathwise, term.q.scale, None).sum()
    value = ((likelihood + latent) / terms.num_particles).detach()
    if callable(kl):
        changed = kl(dict(divergences))
        if changed.keys() != divergences.keys():
            raise PairError(
                f"The function kl must return the sites it was given, {sorted(divergences)}, got {sorted(changed)}."
            )
        gradient_latent = zero
        for name, divergence in changed.items():
            term = terms.sites[name]
            gradient_latent = gradient_latent - _weight(term, terms, rows) * _rows(divergence, term, terms).sum()
        latent = gradient_latent
    if kl_weight is not None:
        latent, gradient_latent = kl_weight * latent, kl_weight * gradient_latent
    weighted = (likelihood + latent) / terms.num_particles
    scores = _score_surrogate(terms, rows, kl_weight)
    if scores is None:
        return Bound(value, weighted)
    surrogate = (likelihood + gradient_latent + scores) / terms.num_particles
    return Bound(value, weighted.detach() + surrogate - surrogate.detach())


def log_weights(terms: Terms) -> Tensor:
    """log w = log p(x, z) - log q(z | x), each row and particle alone: (K, N), nats, unscaled.

    Global sites do not enter: they are drawn from the guide, so that the mean weight of a row estimates its predictive
    density under q(global). Sites marked `objective_only` do not enter either.
    """
    total = torch.zeros((), device=_any(terms).device, dtype=_any(terms).dtype)
    for term in terms.sites.values():
        if term.local and not term.objective_only:
            if term.p is not None:
                total = total + terms.reduce(term.p.log_prob, True)
            if term.q is not None:
                total = total - terms.reduce(term.q.log_prob, True)
    return total.expand(terms.num_particles, terms.num_rows)


class Trace_ELBO:
    """The one ELBO, as an object to pass to `fit`: `Trace_ELBO(num_particles=1, kl=None)`. See `elbo` for `kl`.

    More particles steady the posterior scale of global latents, whose gradient is noisy under minibatches.
    """

    def __init__(self, num_particles: int = 1, kl: str | KLFunction | None = None) -> None:
        if num_particles < 1:
            raise OptionError(f"num_particles must be at least 1, got {num_particles}.")
        if not (kl is None or kl == "analytic" or callable(kl)):
            raise OptionError(f"kl must be None, 'analytic' or a function of the per-site KL terms, got {kl!r}.")
        self.num_particles, self.kl = num_particles, kl

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
        return elbo(run, num_rows=num_rows, kl_weight=kl_weight, kl=self.kl)

    def __repr__(self) -> str:
        # A function by its name, not its address: the settings of a fit are compared when it is resumed elsewhere.
        name = getattr(self.kl, "__qualname__", None)
        kl = f"{self.kl.__module__}.{name}" if name else repr(self.kl)
        return f"Trace_ELBO(num_particles={self.num_particles}, kl={kl})"


def as_loss(loss: Any) -> Any:
    """Ours for a loss: None is `Trace_ELBO()`; Pyro's Trace_ELBO and TraceMeanField_ELBO become their twin here."""
    if loss is None:
        return Trace_ELBO()
    if type(loss) in (pyro.infer.Trace_ELBO, pyro.infer.JitTrace_ELBO):
        return Trace_ELBO(loss.num_particles)
    if type(loss) in (pyro.infer.TraceMeanField_ELBO, pyro.infer.JitTraceMeanField_ELBO):
        return Trace_ELBO(loss.num_particles, kl="analytic")
    if isinstance(loss, pyro.infer.ELBO) or not callable(loss):
        raise OptionError(
            f"loss={type(loss).__name__} is not supported; known: pv.Trace_ELBO, pyro.infer.Trace_ELBO, "
            "pyro.infer.TraceMeanField_ELBO."
        )
    return loss


# --- pieces ----------------------------------------------------------------------------------------------------------


def _any(terms: Terms) -> Tensor:
    term = next(iter(terms.sites.values()))
    side = term.p or term.q
    assert side is not None
    return side.log_prob


def _weight(term: Term, terms: Terms, rows: int) -> float:
    return rows / terms.num_rows if term.local and not term.subsampled else 1.0


def _rows(divergence: Tensor, term: Term, terms: Terms) -> Tensor:
    shape = (terms.num_particles, terms.num_rows) if term.local else (terms.num_particles,)
    return divergence.expand(shape)


def _closed_form(terms: Terms) -> bool:
    drawn = [t.name for t in terms.sites.values() if t.q is not None and t.q.score is not None]
    if drawn:
        raise PairError(
            f"Site {drawn[0]!r} is not reparameterised, and closed-form KL terms need that every site is: "
            "use Trace_ELBO() with kl=None."
        )
    if not terms.aligned:
        raise PairError(
            "Closed-form KL terms need model and guide to draw their sites in the same order, else a prior may depend on "
            "a draw that its own posterior's KL has already integrated out: reorder the guide, or use kl=None."
        )
    return True


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


def _drawn_kl(term: Term) -> Tensor:
    assert term.q is not None
    return term.q.scaled - term.p.scaled if term.p is not None else term.q.scaled


def _score_surrogate(terms: Terms, rows: int, kl_weight: Tensor | float | None) -> Tensor | None:
    """sum over sites drawn without reparameterisation of score * (what is downstream of them), as Pyro has it."""
    scored = [t for t in terms.sites.values() if t.q is not None and t.q.score is not None]
    if not scored:
        return None
    beta: Tensor | float = 1.0 if kl_weight is None else kl_weight
    reward = MultiFrameTensor()
    for term in terms.sites.values():
        weight = _weight(term, terms, rows)
        side = term.p if term.p is not None else term.q
        assert side is not None
        if term.q is None:
            assert term.p is not None
            log_r = weight * term.p.scaled
        else:
            log_r = -weight * beta * _drawn_kl(term)
        reward.add((side.frames, log_r.detach()))
    total: Tensor | None = None
    for term in scored:
        assert term.q is not None and term.q.score is not None
        part = (reward.sum_to(term.q.frames) * term.q.score).sum()
        total = part if total is None else total + part
    return total

"""The losses that `fit` takes: `Trace_ELBO`, and Pyro's own losses translated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro.infer
import torch
from torch import Tensor

from pyrovae.errors import OptionError, PairError
from pyrovae.objectives.elbo import Bound, elbo
from pyrovae.objectives.fixed_draws import direct_log_q
from pyrovae.objectives.kl import KLFunction, repr_of, takes_weight
from pyrovae.objectives.marginals import count
from pyrovae.objectives.terms import Terms, terms
from pyrovae.pair.layout import Layout


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

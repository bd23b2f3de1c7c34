"""The importance-weighted bound: K draws of the guide count together, by their weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyrovae._arguments import as_choice, as_count
from pyrovae.errors import PairError
from pyrovae.objectives.baselines import leave_one_out
from pyrovae.objectives.elbo import Bound, bound_of
from pyrovae.objectives.enumeration import dims_of, expected
from pyrovae.objectives.fixed_draws import log_q_at
from pyrovae.objectives.losses import check_reparameterised
from pyrovae.objectives.marginals import count
from pyrovae.objectives.terms import Term, Terms, terms, with_densities
from pyrovae.objectives.weights import joint_log_weights, log_weights
from pyrovae.pair.handlers import SetValues, with_particles
from pyrovae.pair.layout import Layout
from pyrovae.pair.program import PairLike, sample_sites


class IWELBO:
    """The importance-weighted bound `E log (1/K) sum_k w_k` of each row, `w = p(x, z) / q(z | x)`, as a loss for `pv.fit`.

    It is at least the ELBO and approaches log p(x) as K grows; K = 1 is `Trace_ELBO`. N/B and the scales of plates are
    factors outside the logarithm, masks apply inside. A KL weight b makes it `log w = log p(x | z) - b (log q - log p)`. If
    rows share a latent variable, the weights are those of all rows together, a bound only where the batch is the whole data
    set. Sites marked `objective_only` are added to the objective, outside the logarithm. Validation rows, and so `patience` and
    `keep_best` of `pv.fit`, are judged by the same bound of as many draws, or by the ELBO where rows share a latent variable.

    Enumerated sites y are summed out within w, `log sum_y p(x, y, z) / q(z | x)`, for any K. Their own q does not enter, so an
    enumerated classifier learns nothing from it; `Trace_ELBO` trains one. Sites drawn without reparameterisation get a
    score-function gradient with VIMCO's leave-one-out baseline.

    Args:
        num_particles: K, the number of draws of the guide for each row.
        gradient: "standard", or "doubly_reparameterised": the guide's gradient flows through the draws alone, multiplied by the
            squared normalised weights `v_k^2` (by `v_k (1 - b + b v_k)` with a KL weight b), so that it does not drown in noise
            as K grows. The guide must be random at its sites only (no dropout).

    Raises:
        OptionError: An argument is unknown.
        PairError: When called: rows share a latent variable and the batch is not the whole data set; sites are scaled
            differently; a site that is not reparameterised is used in a way that has no known gradient; for
            "doubly_reparameterised", enumerated sites and sites that are not reparameterised.

    References:
        Burda, Grosse and Salakhutdinov 2016, arXiv:1509.00519; Mnih and Rezende 2016, arXiv:1602.06725 (VIMCO); Tucker, Lawson,
        Gu and Maddison 2019, arXiv:1810.04152 and Bauer and Mnih 2021, arXiv:2101.11046 (doubly reparameterised).

    Example:
        >>> x = torch.rand(32, 4).round()
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(4)), pv.mlp(4, fam.Normal(2)))
        >>> loss = pv.IWELBO(num_particles=5, gradient="doubly_reparameterised")
        >>> fitted = pv.fit(vae, x, epochs=2, loss=loss, progress=False)
        >>> loss
        IWELBO(num_particles=5, gradient='doubly_reparameterised')
    """

    def __init__(self, num_particles: int, gradient: str = "standard") -> None:
        self.num_particles = as_count("num_particles", num_particles)
        self.gradient = as_choice("gradient", gradient, ("standard", "doubly_reparameterised"))

    def __call__(
        self,
        pair: PairLike,
        batch: Mapping[str, Tensor],
        *,
        num_rows: int | None = None,
        kl_weight: Tensor | float | None = None,
        layout: Layout | None = None,
    ) -> Bound:
        run = terms(pair, batch, self.num_particles, layout=layout)
        guided = any(t.enum_dim is not None and t.q is not None for t in run.sites.values())
        if self.gradient == "doubly_reparameterised":
            check_reparameterised(run, self.gradient)
        elif self.num_particles == 1 and not guided:
            return bound_of(run, num_rows, kl_weight, None, baseline=leave_one_out)
        rows = run.num_rows if num_rows is None else num_rows
        scale = scale_of(run, rows)
        log_w = weights_of(run, kl_weight)
        observed, objective_only = outside_of(run, rows, log_w)
        outside = observed + objective_only
        mean = scale_and_mask(log_mean(log_w).sum(), scale, None) + outside
        unweighted = log_w if kl_weight is None else weights_of(run, None)
        plain = scale_and_mask(log_mean(unweighted).sum(), scale, None) + observed
        if self.gradient == "standard":
            scores = _vimco(run, log_w.detach())
            if scores is not None:
                scores = scale_and_mask(scores, scale, None)
                mean = mean + scores - scores.detach()
            return Bound(plain.detach(), mean)
        share = log_w.detach().softmax(0)
        beta = 1.0 if kl_weight is None else kl_weight
        again = weights_of(_doubly(pair, batch, run, 1 - beta + beta * share), kl_weight)
        surrogate = scale_and_mask((share * again).sum(), scale, None) + outside
        return Bound(plain.detach(), mean.detach() + surrogate - surrogate.detach())

    def __repr__(self) -> str:
        gradient = "" if self.gradient == "standard" else f", gradient={self.gradient!r}"
        return f"IWELBO(num_particles={self.num_particles}{gradient})"


def _is_joint(run: Terms) -> bool:
    """Whether rows share a latent variable: only the weight of all rows together is then well defined."""
    return any(
        not t.local and not t.objective_only and (t.q is not None or t.enum_dim is not None) for t in run.sites.values()
    )


def weights_of(run: Terms, kl_weight: Tensor | float | None) -> Tensor:
    """log w, `(K, N)`, or `(K,)` where rows share a latent variable."""
    return (joint_log_weights if _is_joint(run) else log_weights)(run, kl_weight=kl_weight)


def log_mean(log_w: Tensor) -> Tensor:
    """`log (1/K) sum_k w_k`."""
    return torch.logsumexp(log_w, 0) - math.log(len(log_w))


def _within(run: Terms) -> list[str]:
    """The sites that are part of the weights."""
    joint = _is_joint(run)
    return [name for name, t in run.sites.items() if not t.objective_only and (joint or t.local)]


def scale_of(run: Terms, rows: int) -> float | Tensor:
    """N/B and the scale of plates, which all sites of a weight must share: factors outside the logarithm."""
    names = _within(run)
    if _is_joint(run):
        shared = next(n for n, t in run.sites.items() if not t.local and (t.q is not None or t.enum_dim is not None))
        if rows != run.num_rows or any(t.subsampled for t in run.sites.values()):
            raise PairError(
                f"Site {shared!r} belongs to all rows, so an importance-weighted bound needs all rows in one batch: use "
                "batch_size=len(data), or Trace_ELBO."
            )
    sides = [(name, side) for name in names for side in (run.sites[name].p, run.sites[name].q) if side is not None]
    _, first = sides[0]
    for name, side in sides:
        both = (first.scale, side.scale)
        tensors = any(isinstance(s, Tensor) for s in both)
        if side.scale is not first.scale and (tensors or float(both[0]) != float(both[1])):
            raise PairError(
                f"Sites {sides[0][0]!r} and {name!r} count {both[0]} and {both[1]} times (poutine.scale, subsampling "
                "plates), but an importance weight needs one number for all of its sites: scale all alike, or use Trace_ELBO."
            )
    return count(run.sites[names[0]], run, rows) * first.scale


def outside_of(run: Terms, rows: int, log_w: Tensor) -> tuple[Tensor, Tensor]:
    """What is outside the weights, averaged over particles: sites observed once for all rows; `objective_only` sites."""
    observed, objective_only = log_w.new_zeros(()), log_w.new_zeros(())
    within = set(_within(run))
    for name, term in run.sites.items():
        if name not in within:
            for side, sign in ((term.p, 1), (term.q, -1)):
                if side is not None:
                    part = expected(side.scaled, side.plates, name, run).sum()
                    part = sign * count(term, run, rows) * part / run.num_particles
                    if term.objective_only:
                        objective_only = objective_only + part
                    else:
                        observed = observed + part
    return observed, objective_only


def _vimco(run: Terms, log_w: Tensor) -> Tensor | None:
    """`sum_k (L - L without k) log q(z_k)` over sites drawn without reparameterisation; None if there are none.

    "Without k" means that the weight of draw k is replaced by the geometric mean of the others. log_w is detached.
    """
    scores: Tensor | None = None
    for term in run.sites.values():
        if term.q is None or term.q.score is None:
            continue
        if any(t.objective_only for t in run.sites.values()):
            raise PairError(
                f"Site {term.name!r} is drawn without reparameterisation and other sites are marked objective_only, a "
                "combination that IWELBO does not support: use Trace_ELBO."
            )
        if dims_of(term.q.score, run):
            raise PairError(
                f"Site {term.name!r} is drawn without reparameterisation for each value of an enumerated site, which IWELBO "
                "does not support: use Trace_ELBO, or enumerate it as well."
            )
        if term.q.pathwise is not None:
            raise PairError(
                f"Site {term.name!r} is only partly reparameterised, which IWELBO does not support: use Trace_ELBO."
            )
        part = run.reduce(term.q.score, term.local)
        part = part.sum(1) if part.dim() > log_w.dim() else part.unsqueeze(1) if part.dim() < log_w.dim() else part
        scores = part if scores is None else scores + part
    if scores is None:
        return None
    signal = log_mean(log_w)
    if len(log_w) > 1:
        signal = signal - _leave_one_out(log_w)
    return (signal * scores).sum()


def _leave_one_out(log_w: Tensor) -> Tensor:
    """`log (1/K) (sum of the other weights + their geometric mean)` for each k, computed without subtraction."""
    num = len(log_w)
    nothing = torch.full_like(log_w[:1], -math.inf)
    before = torch.cat([nothing, torch.logcumsumexp(log_w, 0)[:-1]])
    after = torch.cat([torch.logcumsumexp(log_w.flip(0), 0).flip(0)[1:], nothing])
    zero = torch.zeros_like(log_w[:1])
    sums = torch.cat([zero, log_w.cumsum(0)[:-1]]) + torch.cat([log_w.flip(0).cumsum(0).flip(0)[1:], zero])
    return torch.logaddexp(torch.logaddexp(before, after), sums / (num - 1)) - math.log(num)


def _doubly(pair: PairLike, batch: Mapping[str, Tensor], run: Terms, weight: Tensor) -> Terms:
    """The terms again, at the same draws, for the doubly reparameterised gradient of `sum_k v_k log w_k`.

    Gradients that flow back from log w into the draws are multiplied by `weight`, `(K, N)` or `(K,)`. log q has a gradient in
    the guide's parameters through the draws only.
    """
    hooked = {name: _weigh_gradient(term, weight, run) for name, term in run.sites.items() if term.q is not None}
    model = with_particles(pair.model, run.num_particles, run.plate_nesting)
    trace = poutine.trace(SetValues(hooked)(model)).get_trace(**batch)
    log_q = log_q_at(pair, batch, run, hooked)
    direct = log_q_at(pair, batch, run, {name: value.detach() for name, value in hooked.items()})
    through = {
        name: replace(q, log_prob=q.log_prob - direct[name].log_prob + direct[name].log_prob.detach())
        for name, q in log_q.items()
    }
    return with_densities(run, sample_sites(trace), through)


def _weigh_gradient(term: Term, weight: Tensor, run: Terms) -> Tensor:
    """The value of a site; gradients that reach it are multiplied by the weight of its particle, and row."""
    value: Tensor = term.value
    if len(weight) == 1 or not value.requires_grad:
        return value
    shape = [len(weight), *(1 for _ in range(run.plate_nesting))]
    if weight.dim() == 2:
        shape[run.data_dim] = weight.shape[1]
    weight = weight.reshape(*shape, *(1 for _ in term.either.fn.event_shape))
    through = value.view_as(value)
    through.register_hook(lambda gradient: gradient * weight)
    return through

"""Wake-sleep and reweighted wake-sleep: the model and the guide each have an objective of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyrovae._arguments import as_count, as_number
from pyrovae.errors import OptionError, PairError
from pyrovae.objectives.elbo import Bound, bound_of
from pyrovae.objectives.iwelbo import log_mean, outside_of, scale_of, weights_of
from pyrovae.objectives.losses import innermost_of
from pyrovae.objectives.marginals import count
from pyrovae.objectives.terms import Density, Term, Terms, terms
from pyrovae.pair.handlers import DetachDraws, SetValues
from pyrovae.pair.layout import Layout, describe
from pyrovae.pair.parameters import fork_rng, statistics_kept
from pyrovae.pair.program import Pair, PairLike, distribution_name
from pyrovae.pair.simulated import Simulated, check_simulated, observed_arguments, simulated


class WakeSleep:
    """Wake-sleep as a loss for `pv.fit`: the model learns from rows that the guide explains, the guide from the model's own.

    The model's parameters ascend `E_q[log p(x, z)]` of the rows given (wake): the gradient of the ELBO in them. The guide's
    ascend `E_p(x', z')[log q(z' | x')]` at rows that the model draws, one for each row given (sleep): they descend
    KL(p(z | x) || q(z | x)) of the model's rows, where the ELBO has the other direction and the rows given. No gradient passes
    through a draw, so discrete sites need neither enumeration nor a score function. The two are no gradient of one function.
    A parameter that both sides use gets the sum of both, each with the other side held fixed.

    In the sleep phase, arguments that sites observe are drawn; others, which are conditions, stay as they are, and so do gaps
    (NaN), as if they did not depend on the values. The running means of batch normalisation are those of the wake phase, since
    it is rows given that a fit is asked about. N/B, scales and masks count as in the ELBO, with those of the guide's sites
    in the sleep phase. Sites that are enumerated are summed out in the wake phase and drawn in the sleep phase. Sites marked
    `objective_only` are added to the objective, and a site that stands for missing entries (`fills`) has no guide to train.

    Args:
        num_particles: K, the number of draws of the guide for each row in the wake phase.

    Raises:
        OptionError: `num_particles` is no whole number of at least 1. When called: a KL weight is given.
        PairError: When called, or before the first step of a fit: the guide has a site that rows share, or one that the model
            does not have, or one that is a point (`Delta`); a latent site is marked `objective_only`; a site observes something
            else than an argument; the model reads what it should draw; the guide gives probability 0 to what it draws; or draws
            of the guide are relaxed.

    References:
        Hinton, Dayan, Frey and Neal 1995, *The wake-sleep algorithm for unsupervised neural networks*, Science 268.

    Example:
        >>> x = torch.rand(32, 4).round()
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(4)), pv.mlp(4, fam.Normal(2)))
        >>> fitted = pv.fit(vae, x, epochs=2, loss=pv.WakeSleep(), engine="eager", progress=False)
        >>> fitted.settings["loss"]
        {'class': 'pyrovae.WakeSleep', 'args': {'num_particles': 1}}
    """

    def __init__(self, num_particles: int = 1) -> None:
        self.num_particles = as_count("num_particles", num_particles)

    def check(self, pair: PairLike, batch: Mapping[str, Tensor], layout: Layout) -> None:
        """Raise PairError for a pair that this loss cannot fit; `batch` are a few of its rows."""
        _check_sleep(pair, batch, layout)

    def __call__(
        self,
        pair: PairLike,
        batch: Mapping[str, Tensor],
        *,
        num_rows: int | None = None,
        kl_weight: Tensor | float | None = None,
        layout: Layout | None = None,
    ) -> Bound:
        layout = _described(pair, batch, layout, kl_weight)
        run = _wake(pair, batch, self.num_particles, layout)
        rows = run.num_rows if num_rows is None else num_rows
        bound = bound_of(_guide_turned(run, 0.0), rows, None, None)
        asleep = _sleep(pair, batch, layout, rows)
        return Bound(bound.elbo, bound.objective + asleep - asleep.detach())

    def __repr__(self) -> str:
        return f"WakeSleep(num_particles={self.num_particles})"


class RWS:
    """Reweighted wake-sleep as a loss for `pv.fit`: draws of the guide count by their weights, for the model and for the guide.

    With draws z_k of the guide and normalised weights `v_k` proportional to `p(x, z_k) / q(z_k | x)`, held fixed, the model's
    parameters ascend `sum_k v_k log p(x, z_k)`, which is the gradient of `pv.IWELBO` in them. The guide's ascend

        (1 - s) sum_k v_k log q(z_k | x) + s E_p(x', z')[log q(z' | x')],

    its wake phase, and its sleep phase as in `pv.WakeSleep`. Both descend KL(p(z | x) || q(z | x)), the first of the rows
    given, up to a bias that vanishes as K grows, the second of rows that the model draws, without bias. So more draws do not
    spoil the guide, whose gradient drowns in noise under `IWELBO`, and no gradient passes through a draw: discrete sites need
    neither enumeration nor a score function. A parameter that both sides use gets the sum of both gradients, each with the
    other side held fixed.

    Enumerated sites y are summed out within the weights, `log sum_y p(x, y, z) / q(z | x)`, and q(y | x) ascends its mean under
    the weights of its values, so that they need no draws. If rows share a latent variable, the weights are those of all rows
    together, which needs all rows in one batch, and there is no sleep phase. What the sleep phase does with conditions and
    gaps, and what is counted and how, is as in `pv.WakeSleep`; the value of the objective is that of `IWELBO`.

    Args:
        num_particles: K, the number of draws of the guide for each row, at least 2 unless the guide enumerates a site.
        sleep: s, the share of the sleep phase in the gradient of the guide, from 0 (wake alone) to 1 (sleep alone).

    Raises:
        OptionError: An argument is not possible; a KL weight is given; or a single draw, whose weight is 1 wherever it is,
            should teach the guide.
        PairError: As `IWELBO`; with a sleep phase as `WakeSleep`; the guide has a site that is a point (`Delta`), or one with
            relaxed draws, or a latent site is marked `objective_only`.

    References:
        Bornschein and Bengio 2015, arXiv:1406.2751; Le, Kosiorek, Siddharth, Teh and Wood 2018, arXiv:1805.10469.

    Example:
        >>> x = torch.rand(32, 4).round()
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(4)), pv.mlp(4, fam.Normal(2)))
        >>> loss = pv.RWS(num_particles=5, sleep=0.5)
        >>> fitted = pv.fit(vae, x, epochs=2, loss=loss, engine="eager", progress=False)
        >>> loss
        RWS(num_particles=5, sleep=0.5)
    """

    def __init__(self, num_particles: int, sleep: float = 0.0) -> None:
        self.num_particles = as_count("num_particles", num_particles)
        self.sleep = float(as_number("sleep, the share of the sleep phase,", sleep, least=0, most=1))

    def check(self, pair: PairLike, batch: Mapping[str, Tensor], layout: Layout) -> None:
        """Raise OptionError or PairError for a pair that this loss cannot fit; `batch` are a few of its rows."""
        self._check_draws({s.name: s.enumerated for s in layout.sites if s.role != "observed"})
        if self.sleep > 0:
            _check_sleep(pair, batch, layout)

    def _check_draws(self, latent: Mapping[str, str | None]) -> None:
        """OptionError where the weight of a draw is 1 wherever it is; by name, in which side latent sites are enumerated."""
        drawn, summed = [name for name, side in latent.items() if side is None], "guide" in latent.values()
        if self.num_particles == 1 and self.sleep < 1 and drawn and not summed:
            raise OptionError(
                f"RWS weighs the draws of a row against one another, and a single one of {drawn[0]!r} would teach the guide "
                "nothing: take num_particles=2 or more, or WakeSleep()."
            )

    def __call__(
        self,
        pair: PairLike,
        batch: Mapping[str, Tensor],
        *,
        num_rows: int | None = None,
        kl_weight: Tensor | float | None = None,
        layout: Layout | None = None,
    ) -> Bound:
        layout = _described(pair, batch, layout, kl_weight)
        run = _wake(pair, batch, self.num_particles, layout)
        guided = [term for term in run.sites.values() if term.q is not None]
        self._check_draws({term.name: None if term.enum_dim is None else "guide" for term in guided})
        rows = run.num_rows if num_rows is None else num_rows
        log_w = weights_of(_guide_turned(run, 1 - self.sleep), None)
        observed, objective_only = outside_of(run, rows, log_w)
        bound = scale_and_mask(log_mean(log_w).sum(), scale_of(run, rows), None) + observed
        objective = bound + objective_only
        if self.sleep > 0:
            asleep = self.sleep * _sleep(pair, batch, layout, rows)
            objective = objective + asleep - asleep.detach()
        return Bound(bound.detach(), objective)

    def __repr__(self) -> str:
        return f"RWS(num_particles={self.num_particles}, sleep={self.sleep})"


# --- wake ------------------------------------------------------------------------------------------------------------


def _described(
    pair: PairLike, batch: Mapping[str, Tensor], layout: Layout | None, kl_weight: Tensor | float | None
) -> Layout:
    if kl_weight is not None:
        raise OptionError(
            "Wake-sleep trains model and guide by two objectives, and neither has a KL term to weigh: leave the schedule of "
            "the KL weight out, or use Trace_ELBO."
        )
    if layout is not None:
        return layout
    with fork_rng():
        return describe(pair, batch)


def _wake(pair: PairLike, batch: Mapping[str, Tensor], num_particles: int, layout: Layout) -> Terms:
    """A run in which no gradient passes through a draw, so that each density has that of its own parameters alone."""
    with DetachDraws():
        run = terms(pair, batch, num_particles, layout=layout)
    for term in run.sites.values():
        if term.objective_only and term.q is not None:
            raise PairError(
                f"Site {term.name!r} is latent and marked objective_only, which wake-sleep has no place for: use Trace_ELBO."
            )
        innermost = innermost_of(term)
        if getattr(innermost, "borrows_gradient", False) and not getattr(innermost, "hard", True):
            raise PairError(
                f"Draws of site {term.name!r} are relaxed, and have not the density of the guide, by which wake-sleep weighs "
                "and teaches them. It needs no gradient of a draw: draw codes, by a family such as OneHotCategorical."
            )
        if _is_taught_point(innermost):
            raise PairError(
                f"The guide puts site {term.name!r} at a point, which has no density to learn by where no gradient passes "
                "through a draw: use Trace_ELBO, or a guide with a density."
            )
    return run


def _is_taught_point(fn: Any) -> bool:
    """Whether a distribution is a point whose place has parameters. That of an AutoGuide follows from another draw."""
    return isinstance(fn, Delta) and fn.v.requires_grad


def _guide_turned(run: Terms, share: float) -> Terms:
    """The same terms, of the same value, in which the guide's densities have `share` times the gradient that raises them.

    A log-weight `log p - log q` then has the gradient of `log p + share log q`. That of an enumerated site, whose own q is
    not in the weight, is added to its p. The probabilities by which enumerated sites are averaged have none.
    """
    return replace(run, sites={name: _turned(term, share) for name, term in run.sites.items()})


def _turned(term: Term, share: float) -> Term:
    p, q = term.p, term.q
    if q is None:
        return term
    log_q, fixed = q.log_prob, q.log_prob.detach()
    if term.fills is not None:  # it is drawn from the likelihood, and has no guide of its own
        share = 0.0
    if term.enum_dim is not None and p is not None and share:
        raised = torch.where(fixed.isinf(), 0.0, log_q - torch.where(fixed.isinf(), 0.0, fixed))
        whole = None if p.whole is None else p.whole + share * raised
        p = replace(p, log_prob=p.log_prob + share * raised, whole=whole)
    turned: Density = replace(
        q,
        log_prob=fixed - share * (log_q - fixed) if share and term.enum_dim is None else fixed,
        score=None,
        pathwise=None,
        whole=None if q.whole is None else q.whole.detach(),
    )
    return replace(term, p=p, q=turned)


# --- sleep -----------------------------------------------------------------------------------------------------------


def _sleep(pair: PairLike, batch: Mapping[str, Tensor], layout: Layout, rows: int) -> Tensor:
    """log q(z' | x') at rows that the model draws, for the whole data set."""
    _check_sites(layout)
    with statistics_kept(pair):
        asleep = _asleep(pair, simulated(pair, batch, layout), layout)
    parts = [count(term, asleep, rows) * q.scaled.sum() for term, q in _trained(asleep)]
    return torch.stack(parts).sum() if parts else torch.zeros((), device=next(iter(batch.values())).device)


def _asleep(pair: PairLike, found: Simulated, layout: Layout) -> Terms:
    guide = SetValues(found.latent)(pair.guide)
    return terms(Pair(_nothing, guide), found.rows, plate_nesting=layout.plate_nesting, enumerate=False)


def _trained(asleep: Terms) -> list[tuple[Term, Density]]:
    return [(term, term.q) for term in asleep.sites.values() if term.q is not None and term.fills is None]


def _check_sites(layout: Layout) -> None:
    """PairError unless the guide draws what each row of the model has, from the row."""
    for site in layout.sites:
        if site.role != "observed" and not site.local and site.enumerated != "model":
            raise PairError(
                f"All rows share {site.name!r}, and its guide, which does not depend on them, would learn the prior from what "
                "the model draws: use Trace_ELBO, or RWS(num_particles=10) on all rows in one batch, without a sleep phase."
            )
        if site.role == "auxiliary":
            raise PairError(
                f"The guide draws {site.name!r}, which the model does not have, so that rows drawn from the model have no "
                "value for it: give the model that site, or use RWS(num_particles=10), without a sleep phase."
            )
    observed_arguments(layout)


def _check_sleep(pair: PairLike, batch: Mapping[str, Tensor], layout: Layout) -> None:
    _check_sites(layout)
    # a value outside the support of the guide has the density NaN or 0, which is told below
    with fork_rng(), torch.no_grad(), pyro.validation_enabled(False):
        asleep = _asleep(pair, check_simulated(pair, batch, layout), layout)
    for term, q in _trained(asleep):
        if not bool(q.log_prob.isfinite().all()):
            raise PairError(
                f"The guide gives site {term.name!r} of a row that the model draws the log-density "
                f"{q.log_prob[~q.log_prob.isfinite()][0].item()}, and could not learn from it: give it a family that has a "
                f"density wherever the prior has one, in place of {distribution_name(q.fn)}."
            )


def _nothing(**_: Tensor) -> None:
    """A model without sites, for a run of the guide alone."""

"""log p(x) by Monte Carlo with the prior as proposal: what a model says of a row without the help of a guide."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyrovae.criticism.importance import log_likelihood
from pyrovae.fitted.fitted import Fit
from pyrovae.pair.handlers import Replay
from pyrovae.pair.layout import Layout
from pyrovae.pair.parameters import modules


def prior_log_likelihood(fitted: Fit, data: Any, num_samples: int = 1000, *, seed: int | None = None) -> Tensor:
    """log (1/K) sum_k p(x | z_k), z_k ~ p(z), K = `num_samples`: (N,) float64, nats per row.

    With conditions, z_k ~ p(z | c) and p(x | z_k, c). Its expectation is at most log p(x). Where the posterior is much
    narrower than the prior it stays far below, and `log_likelihood`, whose draws come from the guide, is nearer; the
    two agree as K grows. `importance(with_prior_as_guide(fitted), ...)` says how far to trust it.

    Enumerated sites are summed out. Global latent variables are drawn from the guide, so that a row's estimate is its log
    predictive density, as in `importance`. The fit's transform is applied once, from a fixed seed. `seed` of the draws;
    None continues torch's global state. Raises OptionError for num_samples < 1, and DataError for values outside the
    likelihood's support, and for missing ones that it does not take.
    Sohn, Lee & Yan 2015, *Learning structured output representation using deep conditional generative models*, section 4.
    """
    return log_likelihood(with_prior_as_guide(fitted), data, num_samples, seed=seed)


def with_prior_as_guide(fitted: Fit) -> Fit:
    """The same fit with q(z | x) = p(z): its model, and a guide that draws a row's latent sites from their priors.

    For everything that asks about rows: `importance`, `posterior` (sampling-importance-resampling from the prior). The
    weights are those of `fitted`, not a copy.
    """
    layout, *more = (_drawn_from_prior(layout) for layout in fitted.layouts)
    pair = _PriorAsGuide(fitted.pair, fitted.layouts)
    return replace(fitted, pair=pair, layout=layout, more_layouts=tuple(more))


def _drawn_from_prior(layout: Layout) -> Layout:
    sites = tuple(
        replace(site, enumerated="guide" if site.enumerated else None)
        for site in layout.sites
        if site.role != "auxiliary" or not site.local
    )
    return replace(layout, sites=sites)


class _PriorAsGuide(nn.Module):
    """A pair's model, and as its guide the model itself with its observed sites hidden."""

    def __init__(self, pair: Any, layouts: tuple[Layout, ...]) -> None:
        super().__init__()
        self.held = nn.ModuleList(modules(pair).values())  # weights and modes of both, found as those of any module
        self.model, self.own_guide = pair.model, pair.guide
        # A site that some rows observe and others do not is passed, drawn or observed, in either.
        drawn = [s for layout in layouts for s in _drawn_from_prior(layout).sites if s.role != "observed"]
        self.from_guide = frozenset(s.name for s in drawn if not s.local)
        self.from_prior = frozenset(s.name for s in drawn if s.local)
        self.enumerated = frozenset(s.name for s in drawn if s.enumerated)

    def guide(self, **batch: Tensor) -> None:
        model = self.model
        if self.from_guide:
            exposed = poutine.block(self.own_guide, expose=self.from_guide)
            model = Replay(poutine.trace(exposed).get_trace(**batch))(model)
        if not self.from_prior:
            return
        marked = poutine.infer_config(
            _Until(self.from_prior)(model),
            config_fn=lambda site: {"enumerate": "parallel"} if site["name"] in self.enumerated else {},
        )
        with contextlib.suppress(_AllDrawn):
            poutine.block(marked, hide_fn=self._is_hidden)(**batch)

    def _is_hidden(self, site: Any) -> bool:
        if site["type"] != "sample" or site_is_subsample(site):
            return False
        return site["is_observed"] or site["name"] in self.from_guide


class _AllDrawn(Exception):
    pass


class _Until(Messenger):  # type: ignore[misc]  # Pyro has no types
    """Ends a run once all of these sites have their values: what follows, the likelihood above all, costs the most."""

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__()
        self.names = names

    def __enter__(self) -> Any:
        self.missing = set(self.names)
        return super().__enter__()

    def _pyro_post_sample(self, msg: Any) -> None:
        self.missing.discard(msg["name"])
        if not self.missing:
            raise _AllDrawn

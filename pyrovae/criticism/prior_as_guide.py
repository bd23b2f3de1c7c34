"""A fit whose guide draws from the prior: `with_prior_as_guide`."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyrovae.fitted.fitted import Fit
from pyrovae.pair.handlers import AllDrawn, Replay, Until
from pyrovae.pair.layout import Layout
from pyrovae.pair.parameters import modules
from pyrovae.pair.program import PairLike


def with_prior_as_guide(fitted: Fit) -> Fit:
    """The same fit with a guide that draws the latent sites of a row from their priors, `q(z | x) = p(z)`.

    It can be passed to the functions that estimate something for rows, such as `pv.importance` and `pv.posterior`, which then
    resamples draws from the prior. Model and weights are those of `fitted`, not copies.

    Args:
        fitted: The fitted pair.

    Returns:
        A fit of the model and the new guide.

    Example:
        >>> vae = pv.VAE(
        ...     prior=pv.priors.StandardNormal(2),
        ...     likelihood=pv.mlp(2, fam.Bernoulli(6), hidden=(8,)),
        ...     encoder=pv.mlp(6, fam.Normal(2), hidden=(8,)),
        ... )
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> fitted = pv.fit(vae, x, epochs=1, engine="eager", progress=False)
        >>> from pyrovae.criticism.prior_as_guide import with_prior_as_guide
        >>> pv.importance(with_prior_as_guide(fitted), x, num_samples=100).k_hat.shape
        torch.Size([40])
    """
    with fitted.scope():  # which checks the weights
        layout, *more = (_drawn_from_prior(layout) for layout in fitted.layouts)
        pair = _PriorAsGuide(fitted.pair, fitted.layouts)
        made = replace(fitted, pair=pair, layout=layout, more_layouts=tuple(more))
        made.keep_weights()
    return made


def _drawn_from_prior(layout: Layout) -> Layout:
    """The layout of the pair with its new guide, which has no auxiliary sites of rows and enumerates all marked sites."""
    sites = tuple(
        replace(site, enumerated="guide" if site.enumerated else None)
        for site in layout.sites
        if site.role != "auxiliary" or not site.local
    )
    return replace(layout, sites=sites)


class _PriorAsGuide(nn.Module):
    """The model of a pair, with a guide that is the model itself with its observed sites hidden."""

    def __init__(self, pair: PairLike, layouts: tuple[Layout, ...]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules(pair).values())  # registered, so that their weights and modes are found
        self.model, self.own_guide = pair.model, pair.guide
        # A site that is observed in some rows and latent in others is among them: a run passes it in either case.
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
            Until(self.from_prior)(model),
            config_fn=lambda site: {"enumerate": "parallel"} if site["name"] in self.enumerated else {},
        )
        with contextlib.suppress(AllDrawn):
            poutine.block(marked, hide_fn=self._is_hidden)(**batch)

    def _is_hidden(self, site: Any) -> bool:
        if site["type"] != "sample" or site_is_subsample(site):
            return False
        return site["is_observed"] or site["name"] in self.from_guide

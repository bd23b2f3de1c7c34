"""`global_posterior`: draws of what all rows share, such as the weights of a Bayesian decoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from pyrovae._arguments import as_count
from pyrovae.batching.memory import halving
from pyrovae.errors import OptionError, PairError
from pyrovae.fitted.fitted import Fit, seeded
from pyrovae.fitted.runs import global_sites
from pyrovae.pair.layout import union
from pyrovae.predict.latent import draw_globals
from pyrovae.predict.missing import with_placeholders


@halving
def global_posterior(
    fitted: Fit, num_samples: int = 100, *, site: str | Sequence[str] | None = None, seed: int | None = None
) -> dict[str, Tensor]:
    """Draw from q(w | all rows of the fit), the approximate posterior of the global latent sites, jointly.

    No rows are needed, since the guide of a fit has already seen them all. Where a guide reads the rows for a global site,
    take `pv.posterior(fitted, rows, site=...)`.

    Args:
        fitted: The fitted pair, such as one of `pv.bayesian`.
        num_samples: The number S of draws.
        site: The global latent site, or a list of several; None for all.
        seed: The seed of the draws; None continues torch's random state.

    Returns:
        The draws, `(S, *plates, *event)`, by site, on the device of the weights.

    Raises:
        OptionError: `num_samples` is less than 1, or `site` is an empty list.
        PairError: The pair has no global latent sites, or none of that name, or the guide reads the rows for one.

    Example:
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6), hidden=()), pv.mlp(6, fam.Normal(2)))
        >>> fitted = pv.fit(pv.bayesian(vae), x, epochs=1, engine="eager", progress=False)
        >>> {name: tuple(draws.shape) for name, draws in pv.global_posterior(fitted, 50, seed=0).items()}
        {'w.likelihood.net.first.0.weight': (50, 6, 2), 'w.likelihood.net.first.0.bias': (50, 6)}
    """
    num_samples = as_count("num_samples", num_samples)
    layout = union(fitted.layouts)
    known = [one.name for one in global_sites(layout)]
    if site is not None and not isinstance(site, Iterable):
        raise OptionError(f"site must be the name of a global latent site, or a list of several, got {site!r}.")
    names = known if site is None else [site] if isinstance(site, str) else list(site)
    if not known:
        raise PairError(
            "This pair has no global latent site: all that it draws belongs to a row. pv.bayesian(pair) draws weights."
        )
    if not names:
        raise OptionError(f"site=... names no site; leave it out for all, which are {known}.")
    if unknown := [name for name in names if name not in known]:
        raise PairError(f"{unknown[0]!r} is no global latent site that the guide draws; there are {known}.")
    with fitted.scope(), seeded(seed):
        rows = with_placeholders(fitted, 2, {}, None)
        draws = [draw_globals(fitted, rows, {}) for _ in range(num_samples)]
    shapes = {name: layout.site(name, role="latent").shape for name in names}
    return {name: torch.stack([draw[name].reshape(shape) for draw in draws]) for name, shape in shapes.items()}

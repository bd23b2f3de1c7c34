"""The parts of the ELBO of a fit: the KL term of each latent site, active dimensions, and collapsed sites."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyrovae.criticism.importance import weight_blocks
from pyrovae.errors import OptionError, ShapeError
from pyrovae.fitted.fitted import Fit, in_order, seeded
from pyrovae.objectives.terms import Terms
from pyrovae.objectives.weights import row_kl
from pyrovae.pair.batch import num_rows


def active_units(
    means: Tensor, threshold: float = 0.01, again: Tensor | None = None, prior_variance: Tensor | None = None
) -> Tensor:
    """Which latent dimensions vary with the data: `Var_n(E_q[z_l | x_n]) > threshold * Var_p(z_l)`.

    Args:
        means: The posterior means of N rows, `(N, L)`, from `pv.encode`.
        threshold: The variance over rows, as a share of the prior's, above which a dimension counts as active.
        again: The means once more from other draws (`pv.encode` with another seed), `(N, L)`. Use it if `means` are
            averages of S draws, as for the upper levels of a hierarchy: their noise adds 1/S of the variance within a row
            to the variance over rows, but nothing to the covariance of the two, which is then compared with the threshold.
        prior_variance: The variance of each dimension under the prior, `(L,)`. By default 1, that of a standard normal.

    Returns:
        Whether each dimension is active, `(L,)` bool.

    Raises:
        ShapeError: The means are not `(N, L)` with N >= 2, or `again` or `prior_variance` has another shape.

    References:
        Burda, Grosse & Salakhutdinov 2016, arXiv:1509.00519, section 5.2.

    Example:
        >>> means = torch.tensor([[-1.0, 0.0], [0.0, 0.01], [1.0, 0.0]])
        >>> pv.active_units(means)
        tensor([ True, False])
    """
    again = means if again is None else again
    if means.dim() != 2 or len(means) < 2 or again.shape != means.shape:
        raise ShapeError(
            f"active_units takes posterior means of shape (N, L) with N >= 2, got {tuple(means.shape)}"
            + ("." if again.shape == means.shape else f" and, again, {tuple(again.shape)}.")
        )
    if prior_variance is not None and prior_variance.shape != means.shape[1:]:
        raise ShapeError(f"prior_variance must be {tuple(means.shape[1:])}, got {tuple(prior_variance.shape)}.")
    spread = (means - means.mean(0)) * (again - again.mean(0))
    scale = 1.0 if prior_variance is None else prior_variance.to(spread)
    return spread.sum(0) / (len(means) - 1) > threshold * scale


def kl_by_site(fitted: Fit, data: Any, num_samples: int = 10, seed: int | None = 0) -> dict[str, Tensor]:
    """The KL term of each latent site for each row, `E_q[log q(z | ...) - log p(z | ...)]`, in nats.

    The ELBO of a row is its expected log-likelihood minus these terms. A single term is a divergence, and so not negative in
    expectation, if the guide draws its sites in the order of the model.

    Args:
        fitted: The fitted pair.
        data: The rows, as for `pv.fit`. The transform of the fit is applied once, with a fixed seed.
        num_samples: The number of draws of the guide to average over.
        seed: The seed of the draws; None continues torch's random state.

    Returns:
        The terms by site, `(N,)` each, on the CPU; 0 in rows where the site is observed. Global sites are left out, and
        sites whose priors share a site that only the model enumerates, since no term belongs to one of them alone.

    Raises:
        OptionError: `num_samples` is less than 1.
        DataError: The rows have another shape or dtype than those of the fit.

    Example:
        >>> vae = pv.VAE(
        ...     prior=pv.priors.StandardNormal(2),
        ...     likelihood=pv.mlp(2, fam.Bernoulli(6), hidden=(8,)),
        ...     encoder=pv.mlp(6, fam.Normal(2), hidden=(8,)),
        ... )
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> fitted = pv.fit(vae, x, epochs=1, engine="eager", progress=False)
        >>> {site: terms.shape for site, terms in pv.kl_by_site(fitted, x).items()}
        {'z': torch.Size([40])}
    """
    if num_samples < 1:
        raise OptionError(f"num_samples must be at least 1, got {num_samples}.")
    found: list[dict[str, Tensor]] = []
    with fitted.scope(), seeded(seed):
        parts = fitted.parts(data)
        for part in parts:
            sites: list[str] = []

            def kl_terms(terms: Terms, sites: list[str] = sites) -> list[Tensor]:
                kl = row_kl(terms)
                sites[:] = list(kl)
                return list(kl.values())

            blocks = [
                [kl.mean(0) for kl in block]
                for block in weight_blocks(fitted, part.batch, part.layout, num_samples, kl_terms)
            ]
            found.append({site: torch.cat([block[i] for block in blocks]).cpu() for i, site in enumerate(sites)})
    names = dict.fromkeys(site for kl in found for site in kl)
    empty = [torch.zeros(num_rows(part.batch)) for part in parts]
    return {site: in_order(parts, [kl.get(site, none) for kl, none in zip(found, empty)]) for site in names}


def collapsed(fitted: Fit, threshold: float = 0.1) -> dict[str, float]:
    """The latent sites that have collapsed to their priors and so say almost nothing about a row.

    A site counts as collapsed if its KL term in the history, of the epoch whose weights were kept, is near 0. If the guide
    draws its sites in another order than the model (from the data upwards), the terms of all sites but the top one are not
    divergences, and one of them may be near 0 by chance: check with `pv.active_units`.

    Args:
        fitted: The fitted pair.
        threshold: The absolute value of the KL term below which a site counts as collapsed, in nats per row.

    Returns:
        The KL terms of the collapsed sites, in nats per row.

    References:
        Bowman, Vilnis, Vinyals, Dai, Jozefowicz & Bengio 2016, arXiv:1511.06349.

    Example:
        >>> vae = pv.VAE(
        ...     prior=pv.priors.StandardNormal(2),
        ...     likelihood=pv.mlp(2, fam.Bernoulli(6), hidden=(8,)),
        ...     encoder=pv.mlp(6, fam.Normal(2), hidden=(8,)),
        ... )
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> fitted = pv.fit(vae, x, epochs=1, engine="eager", progress=False)
        >>> list(pv.collapsed(fitted, threshold=1000.0))
        ['z']
    """
    kept = int(fitted.settings.get("best_epoch", len(fitted.history)))
    terms: dict[str, float] = {}
    for row in reversed(fitted.history[:kept]):  # not every short epoch is measured
        terms = {name.removeprefix("kl/"): value for name, value in row.items() if name.startswith("kl/")}
        if terms:
            break
    return {site: value for site, value in terms.items() if abs(value) < threshold}

"""What a fitted ELBO is made of: the KL term of each latent site, which dimensions are in use, which sites have collapsed."""

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


def active_units(means: Tensor, threshold: float = 0.01, again: Tensor | None = None) -> Tensor:
    """Which latent dimensions move with the data: Var_n(E_q[z_l | x_n]) > threshold. means: (N, L) -> bool (L,).

    `means` is what `encode` gives. Where that is an average of draws, as of an upper level of a hierarchy, their noise adds
    1/S of the spread within a row: give the same means of other draws (another seed) as `again`, and the variance becomes
    their covariance over rows, which no such noise enters. Burda et al. 2016, arXiv:1509.00519, section 5.2. Raises
    ShapeError for another shape or fewer than 2 rows.
    """
    again = means if again is None else again
    if means.dim() != 2 or len(means) < 2 or again.shape != means.shape:
        raise ShapeError(
            f"active_units takes posterior means of shape (N, L) with N >= 2, got {tuple(means.shape)}"
            + ("." if again.shape == means.shape else f" and, again, {tuple(again.shape)}.")
        )
    spread = (means - means.mean(0)) * (again - again.mean(0))
    return spread.sum(0) / (len(means) - 1) > threshold


def kl_by_site(fitted: Fit, data: Any, num_samples: int = 10, seed: int | None = 0) -> dict[str, Tensor]:
    """E_q[log q(z | ...) - log p(z | ...)] of each latent site and row, by `num_samples` draws: {site: (N,)}, nats.

    The terms add up to what the likelihood loses in the ELBO; 0 in rows where the site is observed. One term alone is a
    divergence, and so not negative, where the guide draws its sites in the model's order. Sites whose priors share a site
    that only the model sums out have no term each, and are left out. Raises DataError as `encode` does.
    """
    if num_samples < 1:
        raise OptionError(f"num_samples must be at least 1, got {num_samples}.")
    found: list[dict[str, Tensor]] = []
    with fitted.scope(), seeded(seed):
        parts = fitted.parts(data)
        for part in parts:
            sites: list[str] = []

            def fold(terms: Terms, sites: list[str] = sites) -> list[Tensor]:
                kl = row_kl(terms)
                sites[:] = list(kl)
                return list(kl.values())

            blocks = [
                [kl.mean(0) for kl in block]
                for block in weight_blocks(fitted, part.batch, part.layout, num_samples, fold)
            ]
            found.append({site: torch.cat([block[i] for block in blocks]).cpu() for i, site in enumerate(sites)})
    names = dict.fromkeys(site for kl in found for site in kl)
    empty = [torch.zeros(num_rows(part.batch)) for part in parts]
    return {site: in_order(parts, [kl.get(site, none) for kl, none in zip(found, empty)]) for site in names}


def collapsed(fitted: Fit, threshold: float = 0.1) -> dict[str, float]:
    """The latent sites that say next to nothing of a row: {site: KL term} where that is nearer 0 than the threshold, in nats a
    row, as the history has it of the epoch whose weights were kept. Bowman et al. 2016, arXiv:1511.06349.

    Where the guide draws its sites in another order than the model (from the data upwards), the terms below the top are no
    divergences: strongly negative ones say much, and one may stand near 0 by chance. There `active_units` has the last word.
    """
    kept = int(fitted.settings.get("best_epoch", len(fitted.history)))
    row = fitted.history[kept - 1] if fitted.history else {}
    terms = {name.removeprefix("kl/"): value for name, value in row.items() if name.startswith("kl/")}
    return {site: value for site, value in terms.items() if abs(value) < threshold}

"""`reconstruct`: the mean of the likelihood at draws of the guide."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyrovae.batching.chunks import chunks
from pyrovae.errors import OptionError
from pyrovae.fitted.fitted import Fit, FittedGroup, in_order, seeded
from pyrovae.fitted.runs import drawn_terms, particles_at_once
from pyrovae.predict.forward import site_to_generate
from pyrovae.predict.points import average, point_of


def reconstruct(
    fitted: Fit, data: Any, *, site: str | None = None, num_samples: int = 10, seed: int | None = 0
) -> Tensor:
    """The reconstruction of each row, `E_q(z|x)[E[x | z]]`: the mean of the likelihood, averaged over the guide.

    Where the likelihood has no finite mean, its draws are averaged. For a class label, or a column of them, the result is
    the class that is most probable in most draws. A row is reconstructed as the
    transform of the fit, if there is one, makes it.

    Args:
        fitted: The fitted pair.
        data: The rows, as for `pv.fit`. The transform of the fit is applied once, with a fixed seed.
        site: The observed site. It may be left out if there is only one, or one whose argument is never missing.
        num_samples: The number of draws of the guide for each row.
        seed: The seed of the draws; None continues torch's random state.

    Returns:
        The reconstructions in the order of the rows, `(N, *event)`, on the device of the weights.

    Raises:
        OptionError: `num_samples` is less than 1.
        DataError: The rows have another shape or dtype than those of the fit.
        PairError: There is no such site, or there are several and none is named.

    Example:
        >>> vae = pv.VAE(
        ...     prior=pv.priors.StandardNormal(2),
        ...     likelihood=pv.mlp(2, fam.Bernoulli(6), hidden=(8,)),
        ...     encoder=pv.mlp(6, fam.Normal(2), hidden=(8,)),
        ... )
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> fitted = pv.fit(vae, x, epochs=1, engine="eager", progress=False)
        >>> pv.reconstruct(fitted, x).shape  # probabilities of ones
        torch.Size([40, 6])
    """
    if num_samples < 1:
        raise OptionError(f"num_samples must be at least 1, got {num_samples}.")
    with fitted.scope(), seeded(seed):
        parts = fitted.parts(data)
        return in_order(parts, [_reconstruct(fitted, part, site, num_samples) for part in parts])


def _reconstruct(fitted: Fit, part: FittedGroup, site: str | None, num_samples: int) -> Tensor:
    """The reconstructions of rows that have the same arguments."""
    name = (
        part.layout.site(site, role="observed", local=True).name if site else site_to_generate(fitted, part.layout, {})
    )
    at_once = particles_at_once(fitted, part.batch, part.layout, num_samples)
    done = []
    for rows in chunks(part.batch, fitted.chunk_size(part.batch, at_once)):
        points, labels = [], None
        for found in drawn_terms(fitted, rows, part.layout, num_samples, at_once):
            likelihood = found.sites[name].p
            assert likelihood is not None
            points.append(point_of(found, likelihood.fn, None))
            labels = getattr(likelihood.fn, "labels", None)
        done.append(average(torch.cat(points), labels))
    return torch.cat(done)

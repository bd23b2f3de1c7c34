"""`reconstruct`: the mean of the likelihood at draws of the guide."""

from __future__ import annotations

from typing import Any, overload

import torch
from torch import Tensor

from pyrovae._arguments import as_count
from pyrovae.batching.chunks import chunks
from pyrovae.batching.memory import halving
from pyrovae.errors import PairError
from pyrovae.fitted.fitted import Fit, FittedGroup, in_order, seeded
from pyrovae.fitted.runs import drawn_terms, particles_at_once
from pyrovae.pair.batch import num_rows
from pyrovae.predict.points import average, point_of
from pyrovae.predict.rows import checked, completed
from pyrovae.predict.sites import Names, Several, as_named, observed_sites, sites_to_generate


@overload
def reconstruct(
    fitted: Fit, data: Any, *, site: str | None = ..., num_samples: int = ..., seed: int | None = ...
) -> Tensor: ...
@overload
def reconstruct(
    fitted: Fit, data: Any, *, site: Several, num_samples: int = ..., seed: int | None = ...
) -> dict[str, Tensor]: ...


@halving
def reconstruct(
    fitted: Fit, data: Any, *, site: Names = None, num_samples: int = 10, seed: int | None = 0
) -> Tensor | dict[str, Tensor]:
    """The reconstruction of each row, `E_q(z|x)[E[x | z]]`: the mean of the likelihood, averaged over the guide.

    Where the likelihood has no finite mean, its draws are averaged. For a class label, or a column of them, the result is
    the class that is most probable in most draws. A row is reconstructed as the transform of the fit, if
    there is one, makes it. A site whose argument may be None is predicted for rows that lack it, `E_q(z|x1)[E[x2 | z]]`.

    Args:
        fitted: The fitted pair.
        data: The rows, as for `pv.fit`. The transform of the fit is applied once, with a fixed seed.
        site: The observed site, or a list of several. It may be left out if there is only one, or one whose argument is never
            missing.
        num_samples: The number of draws of the guide for each row.
        seed: The seed of the draws; None continues torch's random state.

    Returns:
        The reconstructions in the order of the rows, `(N, *event)`, on the device of the weights; with a list of sites a
        dict of them.

    Raises:
        OptionError: `num_samples` is less than 1.
        DataError: The rows have another shape or dtype than those of the fit, or values outside the support of their site.
        PairError: There is no such site, there are several and none is named, or it is latent in rows that lack it.

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
    num_samples = as_count("num_samples", num_samples)
    with fitted.scope(), seeded(seed):
        parts = fitted.parts(data)
        chosen = sites_to_generate(fitted, (), site, [part.layout for part in parts])
        for name in chosen:
            if not observed_sites(fitted.layouts)[name].local:
                raise PairError(f"Site {name!r} has one value for all rows, so that no row has a reconstruction of it.")
        found = [_reconstruct(fitted, part, chosen, num_samples) for part in parts]
        return as_named({name: in_order(parts, [one[name] for one in found]) for name in chosen}, site)


def _reconstruct(fitted: Fit, part: FittedGroup, names: list[str], num_samples: int) -> dict[str, Tensor]:
    """The reconstructions of rows that have the same arguments, by site."""
    drawing = completed(fitted, part.batch, part.layout, names)
    at_once = particles_at_once(drawing, part.batch, part.layout, num_samples)
    done: dict[str, list[Tensor]] = {name: [] for name in names}
    start = 0
    for rows in chunks(part.batch, fitted.chunk_size(part.batch, at_once)):
        points: dict[str, list[Tensor]] = {name: [] for name in names}
        labels: dict[str, Any] = {}
        numbers, start = part.rows[start : start + num_rows(rows)], start + num_rows(rows)
        runs = drawn_terms(drawing, rows, part.layout, num_samples, at_once)
        for found in checked(fitted, part.layout, rows, numbers, runs):
            for name in names:
                likelihood = found.sites[name].p
                assert likelihood is not None
                points[name].append(point_of(found, likelihood.fn, None))
                labels[name] = getattr(likelihood.fn, "labels", None)
        for name in names:
            done[name].append(average(torch.cat(points[name]), labels[name]))
    return {name: torch.cat(parts) for name, parts in done.items()}

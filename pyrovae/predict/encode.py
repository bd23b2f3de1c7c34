"""`encode`: the mean of a latent site under the guide, for each row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pyrovae.batching.chunks import chunks
from pyrovae.errors import OptionError
from pyrovae.fitted.fitted import Fit, FittedGroup, in_order, seeded
from pyrovae.fitted.runs import drawn_terms, particles_at_once
from pyrovae.objectives.terms import Terms, terms
from pyrovae.predict.points import average, mean_of, point_of, probabilities_of


def encode(fitted: Fit, data: Any, *, site: str | None = None, num_samples: int = 100, seed: int | None = 0) -> Tensor:
    """The mean of a latent site under the guide, `E_q[z | x]`, for each row; for a class label its most probable class.

    The mean is exact if the guide draws this site only, from a distribution with a mean. Otherwise it is an average over
    runs of the guide: of the site's mean given what was drawn before it, or of the draws themselves where a mean is not
    finite.

    Args:
        fitted: The fitted pair.
        data: The rows, as for `pv.fit`. The transform of the fit is applied once, with a fixed seed.
        site: The latent site. It may be left out if there is only one.
        num_samples: The number of runs of the guide to average over.
        seed: The seed of the draws; None continues torch's random state.

    Returns:
        The codes in the order of the rows, `(N, *event)`, on the device of the weights.

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
        >>> pv.encode(fitted, x).shape
        torch.Size([40, 2])
    """
    if num_samples < 1:
        raise OptionError(f"num_samples must be at least 1, got {num_samples}.")
    with fitted.scope(), seeded(seed):
        parts = fitted.parts(data)
        return in_order(parts, [_encode(fitted, part, site, num_samples) for part in parts])


def _encode(fitted: Fit, part: FittedGroup, site: str | None, num_samples: int) -> Tensor:
    """The codes of rows that have the same arguments."""
    chosen = part.layout.site(site, role="latent", local=True, guided=True)
    guided = [s.name for s in part.layout.sites if s.role != "observed" and s.enumerated != "model"]
    done = []
    for rows in chunks(part.batch, fitted.chunk_size(part.batch)):
        exact = None
        if guided == [chosen.name]:  # nothing is drawn before it, so that the mean, if there is one, is exact
            found = terms(fitted.pair, rows, layout=part.layout, enumerate=False)
            term = found.sites[chosen.name]
            assert term.q is not None
            if probabilities_of(term.q.fn) is not None or mean_of(term.q.fn) is not None:
                exact = _code([found], chosen.name)
        if exact is None:
            at_once = particles_at_once(fitted, rows, part.layout, num_samples)
            for few in chunks(rows, fitted.chunk_size(rows, at_once)):
                done.append(_code(drawn_terms(fitted, few, part.layout, num_samples, at_once), chosen.name))
        else:
            done.append(exact)
    return torch.cat(done)


def _code(runs: Iterable[Terms], name: str) -> Tensor:
    """The average over all particles of some runs of the site's means, or the most probable class; `(N, *event)`."""
    points, classes = [], False
    for found in runs:
        term = found.sites[name]
        assert term.q is not None
        probabilities = probabilities_of(term.q.fn)
        classes = probabilities is not None
        if probabilities is not None:
            points.append(found.rows(probabilities, tuple(probabilities.shape[-1:])))
        else:
            points.append(point_of(found, term.q.fn, term.value))
    return average(torch.cat(points)).argmax(-1) if classes else average(torch.cat(points))

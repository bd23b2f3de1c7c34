"""`encode`: the mean of a latent site under the guide, for each row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, overload

import torch
from torch import Tensor

from pyrovae._arguments import as_count
from pyrovae.batching.chunks import chunks
from pyrovae.batching.memory import halving
from pyrovae.fitted.fitted import Fit, FittedGroup, in_order, seeded
from pyrovae.fitted.runs import drawn_terms, global_draw, particles_at_once
from pyrovae.objectives.terms import Terms
from pyrovae.pair.batch import num_rows
from pyrovae.pair.common import start_rows
from pyrovae.pair.layout import Site
from pyrovae.predict.points import average, mean_of, mean_or, point_of, probabilities_of
from pyrovae.predict.rows import checked
from pyrovae.predict.sites import Names, Several, as_named


@overload
def encode(
    fitted: Fit, data: Any, *, site: str | None = ..., num_samples: int = ..., seed: int | None = ...
) -> Tensor: ...
@overload
def encode(
    fitted: Fit, data: Any, *, site: Several, num_samples: int = ..., seed: int | None = ...
) -> dict[str, Tensor]: ...


@halving
def encode(
    fitted: Fit, data: Any, *, site: Names = None, num_samples: int = 100, seed: int | None = 0
) -> Tensor | dict[str, Tensor]:
    """The mean of a latent site under the guide, `E_q[z | x]`, for each row; for a class label its most probable class.

    The mean is exact if the guide draws this site only, from a distribution with a mean. Otherwise it is an average over
    runs of the guide: of the site's mean given what was drawn before it, or of the draws themselves where a mean is not
    finite.

    Args:
        fitted: The fitted pair.
        data: The rows, as for `pv.fit`. The transform of the fit is applied once, with a fixed seed.
        site: The latent site, or a list of several. It may be left out if there is only one that each row has. A global one
            is drawn from the guide at rows as given, at most as many as fit into one run.
        num_samples: The number of runs of the guide to average over.
        seed: The seed of the draws; None continues torch's random state.

    Returns:
        The codes in the order of the rows, `(N, *event)`, or `(*plates, *event)` of a global site, on the device of the
        weights; with a list of sites a dict of them.

    Raises:
        OptionError: `num_samples` is less than 1.
        DataError: The rows have another shape or dtype than those of the fit, or values outside the support of their site.
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
    num_samples = as_count("num_samples", num_samples)
    with fitted.scope(), seeded(seed):
        parts = fitted.parts(data)
        names = site if isinstance(site, (list, tuple)) else [parts[0].layout.latent(site, guided=True).name]
        return as_named({name: _all_rows(fitted, parts, name, num_samples) for name in names}, site)


def _all_rows(fitted: Fit, parts: list[FittedGroup], name: str, num_samples: int) -> Tensor:
    """The codes of rows of all kinds, in their order."""
    chosen = parts[0].layout.latent(name, guided=True)
    if chosen.local:
        return in_order(parts, [_encode(fitted, part, name, num_samples) for part in parts])
    return _global_code(fitted, parts[0], chosen, num_samples)


def _global_code(fitted: Fit, part: FittedGroup, chosen: Site, num_samples: int) -> Tensor:
    """The average over draws of a global site's means, or its most probable class, `(*plates, *event)`."""
    rows = next(iter(chunks(part.batch, fitted.chunk_size(part.batch))))
    first = part.layout.sites[0].name == chosen.name  # nothing is drawn before it, so that its mean is exact
    points, classes = [], None
    for _ in range(num_samples):
        node = global_draw(fitted, rows, part.layout)[chosen.name]
        classes = probabilities_of(node["fn"])
        points.append(mean_or(node["fn"], node["value"]) if classes is None else classes)
        if first and (classes is not None or mean_of(node["fn"]) is not None):
            break
    found = average(torch.stack(points))
    return (found if classes is None else found.argmax(-1)).reshape(chosen.shape)


def _encode(fitted: Fit, part: FittedGroup, site: str, num_samples: int) -> Tensor:
    """The codes of rows that have the same arguments."""
    chosen = part.layout.site(site, role="latent", local=True, guided=True)
    guided = [s.name for s in part.layout.sites if s.role != "observed" and s.enumerated != "model"]
    done, start = [], 0
    for rows in chunks(part.batch, fitted.chunk_size(part.batch)):
        numbers, start = part.rows[start : start + num_rows(rows)], start + num_rows(rows)
        exact = None
        if guided == [chosen.name]:  # nothing is drawn before it, so that the mean, if there is one, is exact
            (found,) = checked(fitted, part.layout, rows, numbers, drawn_terms(fitted, rows, part.layout, 1, 1))
            term = found.sites[chosen.name]
            assert term.q is not None
            if probabilities_of(term.q.fn) is not None or mean_of(term.q.fn) is not None:
                exact = _code([found], chosen.name)
        if exact is None:
            at_once = particles_at_once(fitted, rows, part.layout, num_samples)
            few_at_once = fitted.chunk_size(rows, at_once)
            for few, those in zip(chunks(rows, few_at_once), numbers.split(few_at_once)):
                start_rows()
                runs = drawn_terms(fitted, few, part.layout, num_samples, at_once)
                done.append(_code(checked(fitted, part.layout, few, those, runs), chosen.name))
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

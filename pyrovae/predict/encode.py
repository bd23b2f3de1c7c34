"""Codes: the guide's mean of a latent site for each row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyrovae.batching.chunks import chunk_size, chunks
from pyrovae.errors import OptionError
from pyrovae.fitted.fitted import Fit, FittedGroup, in_order, seeded
from pyrovae.objectives.terms import terms
from pyrovae.predict.points import average, mean_of, point_of, probabilities_of


def encode(fitted: Fit, data: Any, *, site: str | None = None, num_samples: int = 100, seed: int | None = 0) -> Tensor:
    """E_q[z | x], the guide's posterior mean of a latent site: (N, *event).

    Exact where the guide draws this site alone from a family with a mean; else an average over `num_samples` runs of the
    guide (from a fixed `seed`) of the mean given what was drawn before, or of the draws themselves where a mean is not
    finite; for class labels the most probable class. The fit's transform is not applied. `site` may be left out when there is
    only one.
    """
    if num_samples < 1:
        raise OptionError(f"num_samples must be at least 1, got {num_samples}.")
    with fitted.scope(), seeded(seed):
        parts = fitted.parts(data, transformed=False)
        return in_order(parts, [_encode(fitted, part, site, num_samples) for part in parts])


def _encode(fitted: Fit, part: FittedGroup, site: str | None, num_samples: int) -> Tensor:
    chosen = part.layout.site(site, role="latent", local=True, guided=True)
    guided = [s.name for s in part.layout.sites if s.role != "observed" and s.enumerated != "model"]
    alone = guided == [chosen.name]
    done = []
    for rows in chunks(part.batch, chunk_size(fitted.pair, part.batch)):
        points: list[Tensor] = []
        while len(points) < num_samples:
            found = terms(fitted.pair, rows, layout=part.layout, enumerate=False)
            term = found.sites[chosen.name]
            assert term.q is not None
            classes = probabilities_of(term.q.fn)
            if classes is not None:
                points.append(found.rows(classes, tuple(classes.shape[-1:]))[0])
            else:
                points.append(point_of(found, term.q.fn, term.value))
            if alone and (classes is not None or mean_of(term.q.fn) is not None):
                break  # exact: nothing was drawn before it
        done.append(average(points) if classes is None else average(points).argmax(-1))
    return torch.cat(done)

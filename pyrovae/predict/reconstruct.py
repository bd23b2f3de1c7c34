"""Reconstructions: the likelihood's mean at the guide's draws."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyrovae.batching.chunks import chunk_size, chunks
from pyrovae.errors import OptionError
from pyrovae.fitted.fitted import Fit, FittedGroup, in_order, seeded
from pyrovae.objectives.terms import terms
from pyrovae.predict.forward import site_to_draw
from pyrovae.predict.points import average, point_of


def reconstruct(
    fitted: Fit, data: Any, *, site: str | None = None, num_samples: int = 10, seed: int | None = 0
) -> Tensor:
    """E_q[E[x' | z] | x], what the model makes of a row it has seen: (N, *event).

    An average over `num_samples` draws of the guide (from a fixed `seed`) of the likelihood's mean, or of its draws where it
    has none; for class labels, and columns of them, the most frequent of the most probable classes. The fit's transform
    is not applied: the guide sees the data as given.
    """
    if num_samples < 1:
        raise OptionError(f"num_samples must be at least 1, got {num_samples}.")
    with fitted.scope(), seeded(seed):
        parts = fitted.parts(data, transformed=False)
        return in_order(parts, [_reconstruct(fitted, part, site, num_samples) for part in parts])


def _reconstruct(fitted: Fit, part: FittedGroup, site: str | None, num_samples: int) -> Tensor:
    name = part.layout.site(site, role="observed", local=True).name if site else site_to_draw(fitted, part.layout, {})
    done = []
    for rows in chunks(part.batch, chunk_size(fitted.pair, part.batch)):
        points, labels = [], None
        for _ in range(num_samples):
            found = terms(fitted.pair, rows, layout=part.layout, enumerate=False)
            likelihood = found.sites[name].p
            assert likelihood is not None
            points.append(point_of(found, likelihood.fn, None))
            labels = getattr(likelihood.fn, "labels", None)
        done.append(average(points, labels))
    return torch.cat(done)

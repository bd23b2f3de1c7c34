"""Runs of a fitted pair on many rows and draws, with as many particles in one run as fit into a chunk."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyrovae.batching.chunks import TensorSizes, chunk_size, elements_per_row
from pyrovae.errors import PairError
from pyrovae.fitted.fitted import Fit
from pyrovae.objectives.terms import Terms, terms
from pyrovae.objectives.weights import log_weights
from pyrovae.pair.batch import Batch, num_rows, take_rows
from pyrovae.pair.checks import check_particles
from pyrovae.pair.handlers import AllDrawn, Until
from pyrovae.pair.layout import Layout, Site
from pyrovae.pair.parameters import fork_rng
from pyrovae.pair.program import sample_sites


def particles_at_once(fitted: Fit, batch: Batch, layout: Layout, num_particles: int) -> int:
    """How many particles of a row to draw in one run: all, as far as a chunk holds them, in runs of equal size.

    It is 1, with a warning since that is slow, if the pair does not treat several particles in one run correctly.
    """
    if num_particles == 1:
        return 1
    try:
        with fork_rng():
            check_particles(fitted.pair, take_rows(batch, slice(0, 3)), layout)
    except PairError as error:
        warnings.warn(f"Particles are run one at a time, which is slow. {error}", stacklevel=5)
        return 1
    # where weights are global sites, each particle has weights of its own
    largest = max((math.prod(site.shape) for site in global_sites(layout)), default=1)
    fits = min(num_particles, fitted.chunk_size(batch), chunk_size(largest, fitted.device))
    return math.ceil(num_particles / math.ceil(num_particles / fits))


def need_particles(fitted: Fit, batch: Batch, layout: Layout, num_particles: int = 2) -> None:
    """PairError if a question takes several particles in one run, and the pair does not treat them correctly."""
    if num_particles > 1:
        with fork_rng():
            check_particles(fitted.pair, take_rows(batch, slice(0, 3)), layout)


def rows_at_once(fitted: Fit, batch: Batch, layout: Layout, at_once: int) -> int:
    """How many rows fit into one run of so many particles.

    It follows from what a row takes with one particle, and what it takes more with each further one, which may be far less:
    a guide may have a matrix for each row, and draw a vector for each particle.
    """
    least = fitted.chunk_size(batch, at_once)
    if least >= num_rows(batch):
        return least
    rows, sizes = take_rows(batch, slice(0, 2)), []
    with torch.no_grad(), fork_rng():
        for particles in (2, 4):
            with TensorSizes(stored=True) as seen:
                log_weights(terms(fitted.pair, rows, particles, layout=layout))
            sizes.append(seen.sizes)
    each = elements_per_row(sizes[1], sizes[0], 2 * num_rows(rows))
    if each is None:
        return least
    of_one = fitted.row_elements[tuple(batch)]
    return max(least, chunk_size(of_one + (at_once - 1) * min(each, of_one), fitted.device))


def drawn_terms(fitted: Fit, rows: Batch, layout: Layout, num_particles: int, at_once: int) -> Iterator[Terms]:
    """The terms of all particles, at most `at_once` of them in a run, with enumerated sites drawn."""
    for done in range(0, num_particles, at_once):
        some = min(at_once, num_particles - done)
        yield terms(fitted.pair, rows, some, layout=layout, enumerate=False)


def global_sites(layout: Layout) -> list[Site]:
    """The global latent sites that the guide draws."""
    return [s for s in layout.sites if s.role == "latent" and not s.local and s.enumerated != "model"]


def global_draw(fitted: Fit, batch: Mapping[str, Tensor], layout: Layout) -> dict[str, Any]:
    """One draw of each global latent site from the guide, the approximate posterior: its nodes in the guide's trace, by name.

    The guide's run ends with the last of them, since what it draws for the rows is not needed.
    """
    names = frozenset(site.name for site in global_sites(layout))
    if not names:
        return {}
    with poutine.trace() as tracer, suppress(AllDrawn):
        Until(names)(fitted.pair.guide)(**batch)
    return {name: node for name, node in sample_sites(tracer.trace).items() if name in names}

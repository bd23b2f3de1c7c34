"""Runs of a fitted pair on many rows and draws, with as many particles in one run as fit into a chunk."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from pyro import poutine
from torch import Tensor

from pyrovae.batching.chunks import chunk_size
from pyrovae.errors import PairError
from pyrovae.fitted.fitted import Fit
from pyrovae.objectives.terms import Terms, terms
from pyrovae.pair.batch import Batch, take_rows
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

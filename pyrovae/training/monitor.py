"""The ELBO and KL terms of validation rows, or of some training rows, after each epoch."""

from __future__ import annotations

from torch import Tensor

from pyrovae.batching.chunks import chunk_size
from pyrovae.engine.tracing import TracedFunction
from pyrovae.fitted.fitted import Fit, FittedGroup
from pyrovae.objectives.terms import terms
from pyrovae.objectives.weights import global_bound, row_bounds, row_kl
from pyrovae.pair.batch import Batch, num_rows

MONITORED_ROWS = 256  # of the training rows, whose KL terms the history holds where no rows are held out


class MonitoredGroup:
    """How bounds and KL terms of rows of the same arguments are computed: in chunks of one size, by one graph."""

    def __init__(self, fitted: Fit, part: FittedGroup, traces: bool, counted: frozenset[str]) -> None:
        self.fitted, self.rows, self.layout = fitted, part.batch, part.layout
        self.counted = counted  # sites that belong to no row and stand in the bounds of other parts
        self.chunk = min(num_rows(part.batch), chunk_size(fitted.pair, part.batch))
        self.evaluate = TracedFunction(self.bounds, (fitted.pair,)) if traces else self.bounds
        self.sites: list[str] = []  # the latent ones, in the order of their KL terms

    def bounds(self, rows: Batch) -> list[Tensor]:
        """What all rows share of the ELBO, each row's share, and each row's KL term of each latent site."""
        found = terms(self.fitted.pair, rows, layout=self.layout)
        divergences = row_kl(found)
        self.sites = list(divergences)
        return [global_bound(found, self.counted), row_bounds(found)[0], *(kl[0] for kl in divergences.values())]

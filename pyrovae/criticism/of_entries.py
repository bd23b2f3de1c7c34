"""Densities of the entries of an observed site, one by one, in a run."""

from __future__ import annotations

from torch import Tensor

from pyrovae.distributions.combine import log_prob_of_entries
from pyrovae.errors import PairError
from pyrovae.objectives.terms import Terms
from pyrovae.pair.masks import without_masked
from pyrovae.pair.program import distribution_name


def of_entries(found: Terms, name: str) -> Tensor:
    """The log-density of each entry of an observed site, `(S, n, *event)`; NaN where it is missing, or masked.

    PairError where entries are not independent.
    """
    term = found.sites[name]
    assert term.p is not None
    entries = log_prob_of_entries(term.p.fn, term.value)
    if entries is None:
        raise PairError(
            f"The entries of site {name!r} have no densities of their own: {distribution_name(term.p.fn)} is a joint density "
            "of all. Look at rows as a whole (pv.anomaly_score), or take a likelihood of independent entries."
        )
    entries = without_masked(term.p.fn, term.p.mask, entries)
    return found.rows(entries, tuple(term.p.fn.event_shape))

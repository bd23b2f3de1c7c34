"""Log-densities of the guide at given values, held fixed: the direct effect of its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyrovae.objectives.terms import Density, Terms
from pyrovae.pair.handlers import SetValues, with_particles
from pyrovae.pair.program import PairLike, sample_sites


def log_q_at(
    pair: PairLike, batch: Mapping[str, Tensor], terms: Terms, values: Mapping[str, Tensor]
) -> dict[str, Density]:
    """`log q(z; phi)` of each site of the guide, at values given for all of them.

    The guide runs again, so that each site depends on the given values of the sites before it. A single site needs no
    second run.
    """
    drawn = {name: term.q for name, term in terms.sites.items() if term.q is not None}
    if len(drawn) > 1:
        guide = with_particles(pair.guide, terms.num_particles, terms.plate_nesting)
        nodes = sample_sites(poutine.trace(SetValues(values)(guide)).get_trace(**batch))
    found = {}
    for name, q in drawn.items():
        fn = q.fn if len(drawn) == 1 else nodes[name]["fn"]
        mask = q.mask if len(drawn) == 1 else nodes[name]["mask"]
        found[name] = replace(q, fn=fn, log_prob=scale_and_mask(fn.log_prob(values[name]), 1.0, mask))
    return found


def direct_log_q(pair: PairLike, batch: Mapping[str, Tensor], terms: Terms) -> dict[str, Density]:
    """`log q(z; phi)` at the draws of `terms`, held fixed: only the parameters of the guide itself have a gradient."""
    fixed = {name: term.value.detach() for name, term in terms.sites.items() if term.q is not None}
    return log_q_at(pair, batch, terms, fixed)

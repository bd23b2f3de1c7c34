"""Fresh draws of a refined proposal and of the guide, and their log-weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from pyrovae.criticism.coordinates import log_prob_of
from pyrovae.criticism.proposals import DRAWS, Refined, adapted, at, pieces, possible, weights_by_class
from pyrovae.fitted.fitted import Fit
from pyrovae.fitted.runs import particles_at_once
from pyrovae.objectives.terms import Terms, terms
from pyrovae.objectives.weights import log_weights, num_values, row_bounds
from pyrovae.pair.batch import Batch, take_rows
from pyrovae.pair.layout import Layout
from pyrovae.pair.parameters import fork_rng

GUIDE_SHARE = 0.1  # of the draws that are weighed
LEAST_FOR_BOUND = 20  # draws of the guide for its ELBO


def refined_blocks(
    fitted: Fit, batch: Batch, layout: Layout, num_samples: int, proposal: str, keep: str | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield block by block of n rows the log-weights of fresh draws, `(K, n)`, and ELBOs of draws of the guide, `(k, n)`.

    With `keep`, the name of an enumerated site, the log-weights are those of each of its values, `(C, K, n)`.

    Raises:
        NotRefinable: See `usable`.
    """
    at_once = particles_at_once(fitted, batch, layout, max(num_samples, DRAWS))
    values = 1
    if keep is not None:
        with fork_rng():
            values = num_values(terms(fitted.pair, take_rows(batch, slice(0, 1)), layout=layout), keep)
    for rows, refined in adapted(fitted, batch, layout, values * num_samples, at_once, proposal):
        yield _weigh(fitted, rows, layout, refined, num_samples, at_once, keep)


def _weigh(
    fitted: Fit, rows: Batch, layout: Layout, refined: Refined, num_samples: int, at_once: int, keep: str | None
) -> tuple[Tensor, Tensor]:
    """Log-weights of fresh draws of the refined proposal and the guide, and ELBOs `(k, n)` of draws of the guide."""
    pair, classes = fitted.pair, refined.coordinates.classes
    shared = guide_draws(num_samples)
    elbos: list[Tensor] = []
    log_w: list[Tensor] = []

    def weigh(found: Terms, u: Tensor, checked: Callable[[Tensor], Tensor] = lambda log_w: log_w) -> None:
        each = checked(mixed(found, u, refined, shared / num_samples, keep))
        if classes is not None:
            each = each.unflatten(-1, (classes.count, -1)).transpose(-3, -2)  # (C, k, n)
            each = each if keep == classes.site else each.logsumexp(-3)
        log_w.append(each)

    # an ELBO of fewer draws would be all noise
    for k in [*pieces(shared, at_once), *pieces(min(LEAST_FOR_BOUND, num_samples) - shared, at_once)]:
        found = terms(pair, rows, k, layout=layout)
        elbos.append(row_bounds(found))
        if sum(part.shape[-2] for part in log_w) < shared:
            weigh(found, refined.coordinates.join(found))
    for k in pieces(num_samples - shared, at_once):
        u = refined.sample(k)
        weigh(terms(at(pair, refined.coordinates, u)[0], rows, k, layout=layout), u, possible)
    return torch.cat(log_w, -2), torch.cat(elbos)


def guide_draws(num_samples: int) -> int:
    """How many of K draws are the guide's."""
    return max(1, round(GUIDE_SHARE * num_samples))


def mixed(found: Terms, u: Tensor, refined: Refined, share: float, keep: str | None = None) -> Tensor:
    """Log-weights of draws u at which a run stands, under the mixture of the guide and the refined proposal.

    Args:
        found: The run.
        u: The draws, `(K, M, d)`.
        refined: The proposal.
        share: The share of the guide's draws.
        keep: An enumerated site that is not summed out.

    Returns:
        `(K, M)`, or `(C, K, N)` with `keep` where rows do not have a proposal for each class.
    """
    coordinates = refined.coordinates
    log_det = coordinates.by_row(u)[1]
    apart = coordinates.classes is None and keep is not None
    log_q = u.new_zeros(u.shape[:2])
    sites = dict(found.sites)
    for name in coordinates.names:
        term = sites[name]
        assert term.q is not None
        log_q = log_q + log_prob_of(found, term.q.log_prob, coordinates.classes)
        # log p alone: to add log q again would cost its digits, and it is huge where a narrow guide is far away
        sites[name] = replace(term, q=replace(term.q, log_prob=torch.zeros_like(term.q.log_prob)))
    bare = replace(found, sites=sites)
    log_p = log_weights(bare, keep=keep) if apart else weights_by_class(bare, coordinates)
    log_guide = (log_q + log_det).nan_to_num(-math.inf)
    other = refined.log_prob(u) + (math.log1p(-share) if share < 1 else -math.inf)
    return log_p + log_det - torch.logaddexp(math.log(share) + log_guide, other)

"""Fresh draws of a refined proposal, of the guide and of the prior, and their log-weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from pyrovae.criticism.coordinates import log_prob_of
from pyrovae.criticism.kept import adapted
from pyrovae.criticism.prior_as_guide import with_prior_as_guide
from pyrovae.criticism.proposals import pieces
from pyrovae.criticism.refined import DRAWS, Refined, at, possible, weights_by_class
from pyrovae.distributions import ObservedOnly
from pyrovae.fitted.fitted import Fit
from pyrovae.fitted.runs import particles_at_once
from pyrovae.objectives.terms import Terms, terms
from pyrovae.objectives.weights import log_weights, num_values, row_bounds
from pyrovae.pair.batch import Batch, take_rows
from pyrovae.pair.handlers import SetValues
from pyrovae.pair.layout import Layout
from pyrovae.pair.parameters import fork_rng
from pyrovae.pair.program import Pair

GUIDE, PRIOR, REFINED = "guide", "prior", "refined"  # where the draws that are weighed are from
GUIDE_SHARE = 0.1  # of them; the prior has the same share where entries may be missing
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
    prior = prior_for_gaps(fitted, batch, layout)
    for rows, refined in adapted(fitted, batch, layout, values * num_samples, at_once, proposal):
        yield _weigh(fitted, rows, layout, refined, num_samples, at_once, keep, prior)


def _weigh(
    fitted: Fit,
    rows: Batch,
    layout: Layout,
    refined: Refined,
    num_samples: int,
    at_once: int,
    keep: str | None,
    prior: Fit | None,
) -> tuple[Tensor, Tensor]:
    """Log-weights of fresh draws of the proposal, and ELBOs `(k, n)` of draws of the guide."""
    classes = refined.coordinates.classes
    elbos: list[Tensor] = []
    log_w: list[Tensor] = []
    for source, found, _, each in weighed(fitted, rows, layout, refined, num_samples, at_once, prior, keep):
        if source == GUIDE:
            elbos.append(row_bounds(found))
        if classes is not None:
            each = each.unflatten(-1, (classes.count, -1)).transpose(-3, -2)  # (C, k, n)
            each = each if keep == classes.site else each.logsumexp(-3)
        log_w.append(each)
    # an ELBO of fewer draws would be all noise
    for k in pieces(min(LEAST_FOR_BOUND, num_samples) - guide_draws(num_samples), at_once):
        elbos.append(row_bounds(terms(fitted.pair, rows, k, layout=layout)))
    return torch.cat(log_w, -2), torch.cat(elbos)


def weighed(
    fitted: Fit,
    rows: Batch,
    layout: Layout,
    refined: Refined,
    num_samples: int,
    at_once: int,
    prior: Fit | None,
    keep: str | None = None,
    enumerate: bool = True,
) -> Iterator[tuple[str, Terms, Tensor, Tensor]]:
    """Yield K draws of the mixture of the guide, the prior and the refined proposal, some at a time.

    Args:
        fitted: The fitted pair.
        rows: n rows.
        layout: The layout of the pair for them.
        refined: Their proposal.
        num_samples: K.
        at_once: How many draws a run may have.
        prior: What `prior_for_gaps` has found.
        keep: An enumerated site that is not summed out.
        enumerate: Whether marked sites are enumerated in the runs.

    Returns:
        Where the draws are from, the run at them, the draws u, `(k, M, d)`, and their log-weights, see `mixed`.
    """
    coordinates = refined.coordinates
    counts = {GUIDE: guide_draws(num_samples), PRIOR: 0 if prior is None else round(GUIDE_SHARE * num_samples)}
    counts[REFINED] = num_samples - counts[GUIDE] - counts[PRIOR]
    shares = {source: count / num_samples for source, count in counts.items()}
    for source, count in counts.items():
        for k in pieces(count, at_once):
            if source == GUIDE:
                found = terms(fitted.pair, rows, k, layout=layout, enumerate=enumerate)
                u = coordinates.join(found)
                yield source, found, u, mixed(found, u, refined, shares, keep)
                continue
            if source == PRIOR:
                assert prior is not None
                drawn = terms(prior.pair, rows, k, layout=prior.layout_of(rows), enumerate=False)
                values = {name: drawn.sites[name].value for name in coordinates.names}
                pair = Pair(fitted.pair.model, SetValues(values)(fitted.pair.guide))
                found = terms(pair, rows, k, layout=layout, enumerate=enumerate)
                u = coordinates.join(found)
            else:
                u = refined.sample(k)
                found = terms(at(fitted.pair, coordinates, u)[0], rows, k, layout=layout, enumerate=enumerate)
            yield source, found, u, possible(mixed(found, u, refined, shares, keep))


def prior_for_gaps(fitted: Fit, batch: Batch, layout: Layout) -> Fit | None:
    """The pair with its prior as the guide, where entries of its rows may be missing; None where a share of it is of no use.

    What is observed of a row with gaps may agree with codes that are far apart, of which a Normal around one sees one only. Its
    prior reaches all of them. Where sites are enumerated, proposals have a Normal for each class instead.
    """
    if layout.shared or any(site.enumerated for site in layout.sites):
        return None
    with fork_rng():
        sites = terms(fitted.pair, take_rows(batch, slice(0, 1)), layout=layout).sites
    if any(site.fills for site in sites.values()) or not any(
        isinstance(site.either.fn, ObservedOnly) for site in sites.values()
    ):
        return None
    return with_prior_as_guide(fitted)


def guide_draws(num_samples: int) -> int:
    """How many of K draws are the guide's."""
    return max(1, round(GUIDE_SHARE * num_samples))


def mixed(found: Terms, u: Tensor, refined: Refined, shares: Mapping[str, float], keep: str | None = None) -> Tensor:
    """Log-weights of draws u at which a run stands, under the mixture of the guide, the prior and the refined proposal.

    Args:
        found: The run.
        u: The draws, `(K, M, d)`.
        refined: The proposal.
        shares: The share of each in the draws.
        keep: An enumerated site that is not summed out.

    Returns:
        `(K, M)`, or `(C, K, N)` with `keep` where rows do not have a proposal for each class.
    """
    coordinates = refined.coordinates
    log_q, log_det = coordinates.densities(found, u)
    apart = coordinates.classes is None and keep is not None
    log_prior = u.new_zeros(u.shape[:2])
    sites = dict(found.sites)
    for name in coordinates.names:
        term = sites[name]
        assert term.q is not None
        if shares[PRIOR]:
            assert term.p is not None
            log_prior = log_prior + log_prob_of(found, term.p.log_prob, None)
        # log p alone: to add log q again would cost its digits, and it is huge where a narrow guide is far away
        sites[name] = replace(term, q=replace(term.q, log_prob=torch.zeros_like(term.q.log_prob)))
    bare = replace(found, sites=sites)
    log_p = log_weights(bare, keep=keep) if apart else weights_by_class(bare, coordinates)
    log_r = math.log(shares[GUIDE]) + log_q.nan_to_num(-math.inf)
    if shares[PRIOR]:
        log_r = torch.logaddexp(log_r, math.log(shares[PRIOR]) + (log_prior + log_det).nan_to_num(-math.inf))
    if shares[REFINED]:
        log_r = torch.logaddexp(log_r, math.log(shares[REFINED]) + refined.log_prob(u))
    return log_p + log_det - log_r

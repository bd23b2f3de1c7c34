"""KL terms of sites in closed form: where they are right, and what they are."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask, sum_rightmost
from torch import Tensor
from torch.distributions import kl_divergence
from torch.distributions.transforms import Transform

from pyrovae.errors import PairError
from pyrovae.objectives.enumeration import expected
from pyrovae.objectives.kl_functions import KLFunction
from pyrovae.objectives.terms import Term, Terms

# transformed distributions of which torch knows the KL as such, and those whose map depends on no parameter: 1 / x, and |x| of
# a symmetric density, which loses nothing either
OWN_KL = (torch.distributions.Gumbel, torch.distributions.Pareto, torch.distributions.HalfNormal)
SAME_MAP = (torch.distributions.HalfCauchy, dist.InverseGamma)


def closed_forms(terms: Terms, kl: str | KLFunction | None) -> Set[str]:
    """The sites whose KL terms in closed form are right for this run. Raises PairError where nothing else would do."""
    if kl is None:
        return frozenset()
    drawn = [t.name for t in terms.sites.values() if t.q is not None and t.q.score is not None]
    if drawn and kl == "auto":
        return frozenset()
    if drawn:  # an enumerated site has no score: its KL is a sum
        raise PairError(
            f"Site {drawn[0]!r} is not reparameterised, and KL terms in closed form need every drawn site to be: "
            "use Trace_ELBO() with kl=None."
        )
    if kl == "auto" or terms.in_order >= {t.name for t in terms.sites.values() if t.p is not None and t.q is not None}:
        return terms.in_order
    if not callable(kl):
        raise PairError(
            "KL terms in closed form need model and guide to draw their sites in the same order. Otherwise a prior may depend "
            "on a draw that the KL of another site has already integrated out. Reorder the guide, or use kl=None."
        )
    return frozenset()


def closed_kl(term: Term, terms: Terms) -> Tensor | None:
    """KL(q || p) of a drawn site in closed form, enumerated sites it depends on averaged; None where there is none."""
    divergence = _kl(term) if term.enum_dim is None else None
    if divergence is None or term.q is None:
        return None
    return expected(divergence, term.q.plates, term.name, terms)


def _kl(term: Term) -> Tensor | None:
    """KL(q || p) of a site over its batch shape, with the site's own scale and mask; None where no closed form is known.

    Where model and guide mask or scale the site differently, it is log q - log p at the draw: the two densities then do
    not count for the same elements.
    """
    assert term.p is not None and term.q is not None
    p, q = term.p, term.q
    base = q.fn
    while hasattr(base, "base_dist") and not isinstance(base, dist.Delta):
        base = base.base_dist
    if isinstance(base, dist.Delta):  # its log-density may contain a Jacobian, which Pyro's KL leaves out
        return None
    try:
        divergence = scale_and_mask(_divergence(q.fn, p.fn, term), q.scale, q.mask)
    except NotImplementedError:
        return None
    for a, b in ((p.scale, q.scale), (True if p.mask is None else p.mask, True if q.mask is None else q.mask)):
        if isinstance(a, Tensor) or isinstance(b, Tensor):
            if a is not b:
                divergence = torch.where(torch.as_tensor(a == b), divergence, drawn_kl(term))
        elif a != b:
            return None
    return divergence


def _divergence(q: Any, p: Any, term: Term) -> Tensor:
    """KL(q || p) over the batch shape, or NotImplementedError; at the drawn value for elements that only one of both masks."""
    if isinstance(q, dist.Independent) and isinstance(p, dist.Independent):
        shared = min(q.reinterpreted_batch_ndims, p.reinterpreted_batch_ndims)
        inner = (_without_dims(one, shared) for one in (q, p))
        return sum_rightmost(_divergence(next(inner), next(inner), term), shared)
    if isinstance(q, dist.MaskedDistribution) and isinstance(p, dist.MaskedDistribution):
        divergence = _divergence(q.base_dist, p.base_dist, term)
        here, there = (torch.as_tensor(one._mask, device=divergence.device) for one in (q, p))
        drawn = q.log_prob(term.value) - p.log_prob(term.value)
        return torch.where(here == there, scale_and_mask(divergence, 1.0, here), drawn)
    if isinstance(q, dist.TransformedDistribution) and isinstance(p, dist.TransformedDistribution):
        if isinstance(q, SAME_MAP) and type(q) is type(p):
            return _registered(q.base_dist, p.base_dist, term)
        if not (isinstance(q, OWN_KL) and isinstance(p, OWN_KL)) and not _same_map(q, p):
            raise NotImplementedError
    return _registered(q, p, term)


def _registered(q: Any, p: Any, term: Term) -> Tensor:
    """KL(q || p) by the function that is registered for the two kinds, or NotImplementedError.

    Raises:
        PairError: it is no value for each element of the batch, of which a sum, say, would count once for every row.
    """
    found: Any = kl_divergence(q, p)
    wanted = torch.broadcast_shapes(q.batch_shape, p.batch_shape)
    if not isinstance(found, Tensor) or found.shape != wanted:
        got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise PairError(
            f"Site {term.name!r}: the function that is registered as the KL of {type(q).__name__} and {type(p).__name__} must "
            f"return a tensor of shape {tuple(wanted)}, their batch shape, got {got}. Leave batch dimensions unsummed, or use "
            "kl=None."
        )
    return found


def _without_dims(fn: Any, dims: int) -> Any:
    """An Independent with so many event dimensions less."""
    left = fn.reinterpreted_batch_ndims - dims
    return dist.Independent(fn.base_dist, left) if left else fn.base_dist


def _same_map(q: Any, p: Any) -> bool:
    """Whether both are images under one bijective map, under which KL does not change, as far as no value must be read."""
    if len(q.transforms) != len(p.transforms):
        return False
    pairs = zip(q.transforms, p.transforms)
    return all(a.bijective and (a is b or (not _has_tensors(a) and not _has_tensors(b) and a == b)) for a, b in pairs)


def _has_tensors(transform: Any) -> bool:
    """Whether to compare a transform would be to compare tensors, which a traced step could do only once."""
    found, seen = [transform], set()
    while found:
        one = found.pop()
        if isinstance(one, Tensor):
            return True
        if isinstance(one, list):
            found += one
        elif isinstance(one, Transform) and id(one) not in seen:  # one and its inverse may hold each other
            seen.add(id(one))
            found += vars(one).values()
    return False


def drawn_kl(term: Term) -> Tensor:
    """log q - log p at the draw, scaled."""
    assert term.q is not None
    return term.q.scaled - term.p.scaled if term.p is not None else term.q.scaled

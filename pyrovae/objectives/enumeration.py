"""Enumerated sites summed out exactly: by expectation under the guide, or by logsumexp under the model.

Each enumerated site has a tensor dimension of its own, to the left of plates and particles. A term that depends on such a
site must be inside all plates of the site; otherwise the rows of one term would share a value that each row has for itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from pyrovae.errors import PairError
from pyrovae.objectives.terms import Term, Terms
from pyrovae.pair.handlers import PARTICLE_PLATE, PYRO_ENUMERATES

Plates = frozenset[tuple[str, int]]


@dataclass(frozen=True)
class Factor:
    """A log-density with its plates; it may vary along enumerated dimensions."""

    log_prob: Tensor
    plates: Plates
    sites: tuple[str, ...]


def dims_of(tensor: Tensor, terms: Terms) -> frozenset[int]:
    """The enumerated dimensions along which a tensor of log-densities varies."""
    return frozenset(d for d in terms.enum_dims if tensor.dim() >= -d and tensor.shape[d] > 1)


def from_model(terms: Terms) -> frozenset[int]:
    """The dimensions of enumerated sites that the guide does not have; they are summed by logsumexp."""
    return frozenset(d for d, name in terms.enum_dims.items() if terms.sites[name].q is None)


def upstream(dims: Iterable[int], terms: Terms) -> frozenset[int]:
    """These dimensions and those of all enumerated sites on which their probabilities depend."""
    found: set[int] = set()
    todo = list(dims)
    while todo:
        dim = todo.pop()
        if dim not in found:
            found.add(dim)
            todo.extend(dims_of(_whole(terms, dim), terms))
    return frozenset(found)


def probability(dims: Collection[int], of: Collection[int], name: str, plates: Plates, terms: Terms) -> Tensor | None:
    """The product of q over the enumerated sites `of`, summed over the dimensions that are not in `dims`; None for no site.

    It is a probability, not a log-probability: a value of probability 0 has a gradient here, but none in logarithms.
    """
    for dim in of:
        _check_inside(terms.sites[terms.enum_dims[dim]], name, plates)
    factors = [_whole(terms, dim).exp() for dim in of]
    out = set(of) - set(dims)
    while out:
        varying = [dims_of(f, terms) for f in factors]
        dim = min(out, key=lambda d: (len(_joined(varying, d)), d))
        together = [f for f in factors if dim in dims_of(f, terms)]
        factors = [f for f in factors if dim not in dims_of(f, terms)]
        if together:
            factors.append(reduce(torch.mul, together).sum(dim, keepdim=True))
        out.remove(dim)
    return reduce(torch.mul, factors) if factors else None


def expected(log_prob: Tensor, plates: Plates, name: str, terms: Terms, keep: frozenset[int] = frozenset()) -> Tensor:
    """E_q of a term over the enumerated sites it depends on: a sum weighted by q, with the gradient of q.

    Dimensions in `keep` are not summed. A term that depends on no enumerated site is returned as it is.
    """
    dims = dims_of(log_prob, terms)
    if not dims:
        return log_prob
    weight = probability(dims | keep, upstream(dims, terms) - keep, name, plates, terms)
    if weight is not None:
        # a value of probability 0 contributes nothing, even if its log-density is infinite
        log_prob = weight * torch.where(weight > 0, log_prob, 0.0)
        out = sorted(dims_of(log_prob, terms) - keep)
        log_prob = log_prob.sum(out, keepdim=True) if out else log_prob
    if keep:
        return log_prob
    return log_prob.reshape(log_prob.shape[log_prob.dim() - terms.depth :])  # enumerated dimensions now have size 1


def _whole(terms: Terms, dim: int) -> Tensor:
    """log q of the site enumerated along a dimension, unmasked, so that its probabilities sum to one."""
    q = terms.sites[terms.enum_dims[dim]].q
    if q is None:
        raise PairError(
            f"A term outside the sum over site {terms.enum_dims[dim]!r} depends on that site, which only the model sums out: "
            f"enumerate it in the guide, or {PYRO_ENUMERATES}."
        )
    assert q.whole is not None
    return q.whole


def eliminate(
    factors: Iterable[Factor], dims: frozenset[int], terms: Terms, plates: Mapping[int, Plates] | None = None
) -> list[Factor]:
    """`log sum exp` of a product of factors over the enumerated dimensions `dims`; one factor for each connected set of them.

    The deepest plates come first: a factor is summed over the plates that a site is not in before that site is summed out.
    `plates` gives the plates of each enumerated dimension where these are not the site's own. Raises PairError where sums and
    plates cannot be exchanged.
    """
    left = [(f, dims_of(f.log_prob, terms)) for f in factors]
    places = {d: _plates(terms, d) if plates is None else plates[d] for d in terms.enum_dims}
    out = set(dims)
    while out:
        # the deepest; among these the one whose joint factor is smallest
        varying = [dims for _, dims in left]
        dim = min(out, key=lambda d: (-len(places[d]), len(_joined(varying, d)), d))
        out.remove(dim)
        together = [f for f, dims in left if dim in dims]
        if not together:
            continue
        left = [(f, dims) for f, dims in left if dim not in dims]
        sites = tuple(name for f in together for name in f.sites)
        joint = reduce(torch.add, [_sum_plates(f, dim, places, terms) for f in together])
        summed = Factor(torch.logsumexp(joint, dim, keepdim=True), places[dim], sites)
        left.append((summed, dims_of(summed.log_prob, terms)))
    return [factor for factor, _ in left]


def connected(factors: Iterable[Factor], dims: frozenset[int], terms: Terms) -> list[list[Factor]]:
    """Factors grouped by shared dimensions of `dims`; factors that depend on none of them are left out."""
    groups: list[tuple[frozenset[int], list[Factor]]] = []
    for factor in factors:
        shared = dims_of(factor.log_prob, terms) & dims
        if not shared:
            continue
        touching = [g for g in groups if g[0] & shared]
        groups = [g for g in groups if not g[0] & shared]
        members = [f for _, group in touching for f in group]
        groups.append((shared.union(*(d for d, _ in touching)), [*members, factor]))
    return [group for _, group in groups]


def _sum_plates(factor: Factor, dim: int, places: Mapping[int, Plates], terms: Terms) -> Tensor:
    """A factor's log-density, summed over the plates that the site enumerated along `dim` is not in."""
    name = terms.enum_dims[dim]
    if not places[dim] <= factor.plates:
        raise _outside(factor.sites[0], name, places[dim] - factor.plates)
    extra = factor.plates - places[dim]
    for other in dims_of(factor.log_prob, terms) - {dim}:
        if places[other] & extra:
            raise PairError(
                f"Sites {name!r} and {terms.enum_dims[other]!r} cannot be summed out together: the second is in the "
                f"plate {_names(places[other] & extra)}, the first is not, and {factor.sites[0]!r} depends on both. Add "
                f"{name!r} to the guide and mark it there, or remove the mark of one of them to draw it."
            )
    out = [d for _, d in extra if factor.log_prob.dim() >= -d]
    return factor.log_prob.sum(out, keepdim=True) if out else factor.log_prob


def _plates(terms: Terms, dim: int) -> Plates:
    return terms.sites[terms.enum_dims[dim]].either.plates


def _joined(varying: Iterable[frozenset[int]], dim: int) -> frozenset[int]:
    """The dimensions of all tensors that vary along `dim`, taken together; `varying` has those of each tensor."""
    return frozenset().union(*(dims for dims in varying if dim in dims))


def _check_inside(site: Term, name: str, plates: Plates) -> None:
    """PairError unless a term with these plates is inside all plates of an enumerated site."""
    own = site.either.plates
    if not own <= plates:
        raise _outside(name, site.name, own - plates)


def _names(plates: Plates) -> str:
    return ", ".join(repr(name) for name, _ in sorted(plates) if name != PARTICLE_PLATE)


def _outside(name: str, enumerated: str, plates: Plates) -> PairError:
    return PairError(
        f"Site {name!r} depends on the enumerated site {enumerated!r} but is outside of its plate {_names(plates)}: put "
        f"{name!r} into that plate, or remove the mark of {enumerated!r} to draw it."
    )

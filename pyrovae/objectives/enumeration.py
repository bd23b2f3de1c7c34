"""Enumerated sites summed out exactly: by expectation under the guide, or by logsumexp under the model.

Each stands along a dimension of its own on the left of plates and particles. A site that a term depends on must stand in
no plate that the term is outside of: rows of one term would otherwise share a value that each has for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.errors import PairError
from pyrovae.objectives.terms import Term, Terms
from pyrovae.pair.handlers import PARTICLE_PLATE, PYRO_ENUMERATES

Plates = frozenset[tuple[str, int]]


@dataclass(frozen=True)
class Factor:
    """A log-density over its plates and those enumerated dimensions that it varies along."""

    log_prob: Tensor
    plates: Plates
    sites: tuple[str, ...]


def dims_of(tensor: Tensor, terms: Terms) -> frozenset[int]:
    """The enumerated dimensions that a tensor of log-densities varies along."""
    return frozenset(d for d in terms.enum_dims if tensor.dim() >= -d and tensor.shape[d] > 1)


def from_model(terms: Terms) -> frozenset[int]:
    """The dimensions of sites that the guide does not have: they are summed by logsumexp."""
    return frozenset(d for d, name in terms.enum_dims.items() if terms.sites[name].q is None)


def upstream(dims: Iterable[int], terms: Terms) -> frozenset[int]:
    """These dimensions and those of every enumerated site that their probabilities depend on."""
    found: set[int] = set()
    todo = list(dims)
    while todo:
        dim = todo.pop()
        if dim not in found:
            found.add(dim)
            todo.extend(dims_of(_whole(terms, dim), terms))
    return frozenset(found)


def probability(dims: Collection[int], of: Collection[int], name: str, plates: Plates, terms: Terms) -> Tensor | None:
    """prod q over the enumerated sites `of`, summed over those dimensions that are not in `dims`; None for no site.

    Not log-densities: a value of probability 0 has a gradient here, and none there.
    """
    for dim in of:
        _check_inside(terms.sites[terms.enum_dims[dim]], name, plates)
    factors = [_whole(terms, dim).exp() for dim in of]
    product = torch.mul
    out = set(of) - set(dims)
    while out:
        dim = min(out, key=lambda d: (len(_joined(factors, d, terms)), d))
        together = [f for f in factors if dim in dims_of(f, terms)]
        factors = [f for f in factors if dim not in dims_of(f, terms)]
        if together:
            factors.append(_fold(product, together).sum(dim, keepdim=True))
        out.remove(dim)
    return _fold(product, factors) if factors else None


def expected(log_prob: Tensor, plates: Plates, name: str, terms: Terms, keep: frozenset[int] = frozenset()) -> Tensor:
    """E_q over the enumerated sites that a term depends on, `keep` left standing: a sum weighed by q, with its gradient.

    Other enumerated sites sum to one. The term itself where it depends on none.
    """
    dims = dims_of(log_prob, terms)
    if not dims:
        return log_prob
    weight = probability(dims | keep, upstream(dims, terms) - keep, name, plates, terms)
    if weight is not None:
        # What cannot happen counts for nothing, were its log-density infinite.
        log_prob = weight * torch.where(weight > 0, log_prob, 0.0)
        out = sorted(dims_of(log_prob, terms) - keep)
        log_prob = log_prob.sum(out, keepdim=True) if out else log_prob
    return (
        log_prob if keep else log_prob.reshape(log_prob.shape[log_prob.dim() - terms.depth :])
    )  # the rest is of size 1


def _whole(terms: Terms, dim: int) -> Tensor:
    """log q of the site enumerated along a dimension, no mask in it: its probabilities sum to one."""
    q = terms.sites[terms.enum_dims[dim]].q
    if q is None:
        raise PairError(
            f"A term that counts outside of its sum depends on site {terms.enum_dims[dim]!r}, which only the model sums out: "
            f"enumerate it in the guide, or {PYRO_ENUMERATES}."
        )
    assert q.whole is not None
    return q.whole


def eliminate(
    factors: Iterable[Factor], dims: frozenset[int], terms: Terms, plates: Mapping[int, Plates] | None = None
) -> list[Factor]:
    """log sum exp of a product of factors over the enumerated dimensions `dims`: one factor for each connected set of them.

    Deepest plates first: a factor's plates beyond a site's own are summed before the site is. `plates` says of a dimension
    where its site counts as standing, where that is not where it does. Raises PairError where sums and plates cannot be
    exchanged.
    """
    left = list(factors)
    stands = {d: _plates(terms, d) if plates is None else plates[d] for d in terms.enum_dims}
    out = set(dims)
    while out:
        # The deepest; of these the one that leaves the smallest factor.
        dim = min(out, key=lambda d: (-len(stands[d]), len(_joined([f.log_prob for f in left], d, terms)), d))
        out.remove(dim)
        together = [f for f in left if dim in dims_of(f.log_prob, terms)]
        if not together:
            continue
        left = [f for f in left if dim not in dims_of(f.log_prob, terms)]
        sites = tuple(name for f in together for name in f.sites)
        joint = _fold(torch.add, [_sum_plates(f, dim, stands, terms) for f in together])
        left.append(Factor(torch.logsumexp(joint, dim, keepdim=True), stands[dim], sites))
    return left


def connected(factors: Iterable[Factor], dims: frozenset[int], terms: Terms) -> list[list[Factor]]:
    """Factors in groups that share dimensions of `dims`; what depends on none of these stands in no group."""
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


def _sum_plates(factor: Factor, dim: int, stands: Mapping[int, Plates], terms: Terms) -> Tensor:
    name = terms.enum_dims[dim]
    if not stands[dim] <= factor.plates:
        raise _outside(factor.sites[0], name, stands[dim] - factor.plates)
    extra = factor.plates - stands[dim]
    for other in dims_of(factor.log_prob, terms) - {dim}:
        if stands[other] & extra:
            raise PairError(
                f"Sites {name!r} and {terms.enum_dims[other]!r} cannot be summed out together: the second stands in the "
                f"plate {_names(stands[other] & extra)}, the first does not, and {factor.sites[0]!r} depends on both. Mark "
                f"{name!r} in the guide, which must then have it, or remove the mark of one to draw it."
            )
    out = [d for _, d in extra if factor.log_prob.dim() >= -d]
    return factor.log_prob.sum(out, keepdim=True) if out else factor.log_prob


def _plates(terms: Terms, dim: int) -> Plates:
    return terms.sites[terms.enum_dims[dim]].either.plates


def _fold(operation: Callable[[Tensor, Tensor], Tensor], tensors: list[Tensor]) -> Tensor:
    total = tensors[0]
    for tensor in tensors[1:]:
        total = operation(total, tensor)
    return total


def _joined(tensors: list[Tensor], dim: int, terms: Terms) -> frozenset[int]:
    """The dimensions of all tensors that vary along `dim`, taken together."""
    found: frozenset[int] = frozenset()
    for tensor in tensors:
        dims = dims_of(tensor, terms)
        if dim in dims:
            found = found | dims
    return found


def _check_inside(site: Term, name: str, plates: Plates) -> None:
    own = site.either.plates
    if not own <= plates:
        raise _outside(name, site.name, own - plates)


def _names(plates: Plates) -> str:
    return ", ".join(repr(name) for name, _ in sorted(plates) if name != PARTICLE_PLATE)


def _outside(name: str, enumerated: str, plates: Plates) -> PairError:
    return PairError(
        f"Site {name!r} depends on the enumerated site {enumerated!r} and stands outside of its plate {_names(plates)}: put "
        f"{name!r} into that plate, or remove the mark of {enumerated!r} to draw it."
    )

"""All continuous latent sites of a row as one vector without constraints: `Coordinates`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to

from pyrovae.objectives.terms import Term, Terms
from pyrovae.pair.handlers import DATA_PLATE, PARTICLE_PLATE
from pyrovae.pair.layout import Layout

MOST_JOINT = 100  # coordinates with a full covariance; with more, sites are independent of one another


class NotRefinable(Exception):
    """The latent sites of a row are no vector of real numbers. The message says which one is not."""


@dataclass(frozen=True)
class Coordinate:
    """A latent site as `size` real numbers, which `transform` takes to its values."""

    name: str
    event_shape: tuple[int, ...]
    shape: tuple[int, ...]
    transform: Any

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Coordinates:
    """All continuous local latent sites of a row as one vector u of d real numbers."""

    parts: tuple[Coordinate, ...]
    plate_nesting: int
    data_dim: int

    @property
    def size(self) -> int:
        """d, the length of u."""
        return sum(part.size for part in self.parts)

    @staticmethod
    def of(found: Terms, layout: Layout) -> Coordinates:
        """The coordinates of the latent sites that a run has drawn, but for those that are summed out elsewhere.

        Raises:
            NotRefinable: A site is discrete, or in another plate, or has a support that is not the image of all real numbers.
        """
        summed = {site.name for site in layout.sites if site.enumerated is not None}
        latent = [t for t in found.sites.values() if t.local and t.q is not None and t.name not in summed]
        if not latent:
            raise NotRefinable("the guide draws no latent site for each row")
        return Coordinates(tuple(_coordinate(term, found) for term in latent), found.plate_nesting, found.data_dim)

    def join(self, found: Terms) -> Tensor:
        """u at the values of a run, `(K, N, d)`."""
        flat = []
        for part in self.parts:
            value = found.rows(found.sites[part.name].value, part.event_shape)
            flat.append(part.transform.inv(value).reshape(*value.shape[:2], part.size))
        return torch.cat(flat, -1)

    def split(self, u: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The sites' values, shaped as in a run of K particles, and `log |dz/du|`, `(K, N)`."""
        values, log_det = {}, u.new_zeros(u.shape[:2])
        for part, flat in zip(self.parts, u.split([part.size for part in self.parts], -1)):
            free = flat.reshape(*u.shape[:2], *part.shape)
            value = part.transform(free)
            jacobian = part.transform.log_abs_det_jacobian(free, value)
            log_det = log_det + (jacobian.flatten(2).sum(-1) if jacobian.dim() > 2 else jacobian)
            values[part.name] = value.reshape(*self._batch(u), *part.event_shape)
        return values, log_det

    def _batch(self, u: Tensor) -> list[int]:
        shape = [1] * self.plate_nesting
        shape[self.data_dim] = u.shape[1]
        return shape if len(u) == 1 else [len(u), *shape]

    def mask(self, like: Tensor) -> Tensor:
        """Which entries of a covariance matrix of u are not zero, `(d, d)` bool: all, or those within a site that is small."""
        if self.size <= MOST_JOINT:
            return torch.ones(self.size, self.size, dtype=torch.bool, device=like.device)
        blocks = [torch.ones(p.size, p.size) if p.size <= MOST_JOINT else torch.eye(p.size) for p in self.parts]
        return torch.block_diag(*blocks).bool().to(like.device)


def _coordinate(term: Term, found: Terms) -> Coordinate:
    assert term.q is not None
    fn, event = term.q.fn, tuple(term.q.fn.event_shape)
    where = {plate for plate, _ in term.q.plates} - {PARTICLE_PLATE}
    if term.p is None:
        raise NotRefinable(f"site {term.name!r} is in the guide only")
    if where != {DATA_PLATE}:
        raise NotRefinable(f"site {term.name!r} is in other plates than 'data', too")
    support = fn.support
    if type(fn).__name__ == "Delta" or support.is_discrete:
        raise NotRefinable(f"site {term.name!r} is not continuous")
    if any(isinstance(value, Tensor) for value in vars(_inner(support)).values()):
        raise NotRefinable(f"the support of site {term.name!r} depends on the row")
    try:
        transform = biject_to(support)
    except NotImplementedError as error:
        raise NotRefinable(f"no vector of real numbers stands for site {term.name!r} ({support})") from error
    value = found.rows(term.value, event)[0, 0]
    return Coordinate(term.name, event, tuple(transform.inv(value).shape), transform)


def _inner(support: Any) -> Any:
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support

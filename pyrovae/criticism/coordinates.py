"""All continuous latent sites of a row as one vector without constraints: `Coordinates`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.distributions.constraints import sphere
from torch import Tensor
from torch.distributions import biject_to

from pyrovae.criticism.noise import from_noise, noise_shape, of_noise, to_noise
from pyrovae.objectives.enumeration import dims_of
from pyrovae.objectives.terms import Term, Terms
from pyrovae.objectives.weights import by_value
from pyrovae.pair.common import same_for_rows
from pyrovae.pair.handlers import DATA_PLATE, PARTICLE_PLATE
from pyrovae.pair.layout import Layout
from pyrovae.pair.supports import innermost, of_components

MOST_JOINT = 256  # coordinates with a full covariance; with more, sites are independent of one another
SAME = 1e-3  # standard deviations by which rounding may move a Normal that depends on no other draw


class NotRefinable(Exception):
    """The latent sites of a row are no vector of real numbers. The message says which one is not."""


class PointGuide(NotRefinable):
    """The guide of a discrete site is a single point, so that k_hat says nothing of it."""


class Radial:
    """A point z of the unit sphere in R^D as a vector u with z = u / |u|.

    The length of u is a variable of its own, independent of z, and chi-distributed with D degrees of freedom, as if u were
    standard normal. So a density p(z) becomes `p(z) A N(u; 0, I)`, where A is the area of the sphere.
    """

    def __call__(self, u: Tensor) -> Tensor:
        return u / u.norm(dim=-1, keepdim=True).clamp_min(1e-20)

    def inv(self, z: Tensor) -> Tensor:
        """u for a drawn z, its length drawn, too."""
        half = torch.full(z.shape[:-1], z.shape[-1] / 2, dtype=z.dtype, device=z.device)
        with same_for_rows(1, z.shape[1] if z.dim() > 2 else -1):  # z is (K, M, D)
            return z * (2 * torch._standard_gamma(half)).sqrt()[..., None]

    def log_abs_det_jacobian(self, u: Tensor, z: Tensor) -> Tensor:
        """log A + log N(u; 0, I): what a log-density of z lacks."""
        half = u.shape[-1] / 2
        area = math.log(2) + half * math.log(math.pi) - math.lgamma(half)
        return area - half * math.log(2 * math.pi) - u.square().sum(-1) / 2


class Angle(Radial):
    """An angle as a vector u of the plane in its direction: on the line, a density of angles has no end of periods."""

    def __call__(self, u: Tensor) -> Tensor:
        return torch.atan2(u[..., 1], u[..., 0])

    def inv(self, z: Tensor) -> Tensor:
        return super().inv(torch.stack([z.cos(), z.sin()], -1))


@dataclass(frozen=True)
class Coordinate:
    """A latent site as `size` real numbers: `transform` takes them to its values, or they are the noise of the guide's draw."""

    name: str
    event_shape: tuple[int, ...]
    shape: tuple[int, ...]
    transform: Any  # None of noise
    dtype: torch.dtype = torch.float64

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Classes:
    """An enumerated site for each of whose C values the guide draws the latent sites anew."""

    site: str
    count: int
    dim: int  # of the enumerated values in a run of several particles
    values: Tensor  # (C, *event)
    local: bool = True  # whether each row has a value of its own; else all rows share one, as a member of an ensemble


@dataclass(frozen=True)
class Coordinates:
    """All continuous local latent sites of a row as one vector u of d real numbers.

    They stand for the values of the sites, but for those that are `by_noise`: of these, u is the noise from which the guide
    draws them, given what it has drawn before, `z = t(u; z before, x)`.

    Where the guide draws them for each of C classes, a row has a vector for each class: C x N vectors for N rows, those of
    the first class first. Below, M is N or C x N.
    """

    parts: tuple[Coordinate, ...]
    plate_nesting: int
    data_dim: int
    classes: Classes | None = None

    @property
    def size(self) -> int:
        """d, the length of u."""
        return sum(part.size for part in self.parts)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(part.name for part in self.parts)

    @staticmethod
    def of(found: Terms, layout: Layout) -> Coordinates:
        """The coordinates of the latent sites that a run has drawn, but for those that are summed out.

        Raises:
            NotRefinable: A site is discrete, masked, or in another plate, its support depends on the row or is not known, or
                the guide draws sites for each value of several enumerated sites.
        """
        skipped = {site.name for site in layout.sites if site.enumerated is not None}
        skipped |= {term.name for term in found.sites.values() if term.objective_only}  # no part of a log-weight
        # missing entries: the guide draws them from the likelihood at whatever values the other sites have
        skipped |= {term.name for term in found.sites.values() if term.fills is not None}
        latent = [t for t in found.sites.values() if t.local and t.q is not None and t.name not in skipped]
        if not latent:
            raise NotRefinable("the guide draws no latent site for each row")
        dims: frozenset[int] = frozenset().union(*(dims_of(t.q.log_prob, found) for t in latent if t.q is not None))
        if len(dims) > 1:
            names = ", ".join(repr(found.enum_dims[dim]) for dim in sorted(dims, reverse=True))
            raise NotRefinable(f"the guide draws sites for each value of several enumerated sites ({names})")
        classes = _classes(max(dims), found) if dims else None
        parts = tuple(_coordinate(term, found, classes) for term in latent)
        return Coordinates(parts, found.plate_nesting, found.data_dim, classes)

    def by_noise(self, found: Terms) -> Coordinates:
        """The same, with noise in the place of the values of sites that a run of the guide draws from Normals."""
        return replace(self, parts=tuple(_by_noise(part, found) for part in self.parts))

    def depend(self, found: Terms) -> bool:
        """Whether the guide draws some Normal site given other draws, and not as the prior does: then noise is better.

        Where a guide goes down the levels of a hierarchy, the posterior of a level is about as narrow as the guide's, around a
        place that moves with the levels above. No Normal of all values follows that; in noise, levels are independent wherever
        the guide is right. Where no draw depends on another one, noise differs from values by a constant affine map. The prior
        as guide is right in rows only that say little: in others, values have the simpler posterior. Where the guide draws
        global sites, the map from noise to values is random, and values are taken.

        Args:
            found: A run of at least two particles.
        """
        drawn = [term for term in found.sites.values() if term.q is not None and term.enum_dim is None]
        parts = self.by_noise(found).parts
        return all(term.local for term in drawn) and any(
            self._moves(part, found) and not _as_prior(found.sites[part.name])
            for part in parts
            if part.transform is None
        )

    def _moves(self, part: Coordinate, found: Terms) -> bool:
        """Whether the Normal of a site is another one in some particle."""
        fn = _guide_of(part, found)
        none = found.sites[part.name].value.new_zeros(*fn.batch_shape, *part.shape)
        # not the same in all directions, so that changes of a covariance matrix do not cancel
        one = torch.linspace(0.6, 1.4, part.size, dtype=none.dtype, device=none.device).view(part.shape)
        low, high = (_values(found, from_noise(fn, none + e)[0], part.event_shape, self.classes) for e in (none, one))
        least = SAME * (high - low).abs()
        return any(bool(((at - at[:1]).abs() > least + SAME**2 * at.abs()).any()) for at in (low, high))

    def same(self, found: Terms, again: Terms) -> bool:
        """Whether the sites by noise have the same values in two runs, up to rounding."""
        one, other = self.values(found), self.values(again)
        names = [part.name for part in self.parts if part.transform is None]
        return all(bool(((one[n] - other[n]).abs() <= SAME * (one[n].abs() + one[n].std())).all()) for n in names)

    @property
    def are_noise(self) -> bool:
        """Whether all of u is noise."""
        return all(part.transform is None for part in self.parts)

    def join(self, found: Terms) -> Tensor:
        """u at the values of a run, `(K, M, d)`."""
        flat = []
        for part in self.parts:
            value = found.sites[part.name].value
            if part.transform is None:
                free = _values(found, to_noise(_guide_of(part, found), value), part.shape, self.classes)
            else:
                free = part.transform.inv(_values(found, value, part.event_shape, self.classes))
            flat.append(free.reshape(*free.shape[:2], part.size))
        return torch.cat(flat, -1)

    def _parts(self, u: Tensor) -> Iterator[tuple[Coordinate, Tensor]]:
        """Each part with its numbers, `(K, M, *shape)`."""
        for part, flat in zip(self.parts, u.split([part.size for part in self.parts], -1)):
            yield part, flat.reshape(*u.shape[:2], *part.shape)

    def by_row(self, u: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The values of sites that are not by noise, `(K, M, *event)`, and their part of `log |dz/du|`, `(K, M)`."""
        values, log_det = {}, u.new_zeros(u.shape[:2])
        for part, free in self._parts(u):
            if part.transform is None:
                continue
            value = part.transform(free)
            jacobian = part.transform.log_abs_det_jacobian(free, value)
            log_det = log_det + (jacobian.flatten(2).sum(-1) if jacobian.dim() > 2 else jacobian)
            values[part.name] = value.to(part.dtype)
        return values, log_det

    def split(self, u: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The same, the values shaped as in a run of K particles."""
        values, log_det = self.by_row(u)
        shapes = {part.name: part.event_shape for part in self.parts}
        return {name: self._as_in_a_run(value, shapes[name]) for name, value in values.items()}, log_det

    def noise(self, u: Tensor) -> dict[str, Tensor]:
        """The noise of the other sites, shaped as in a run of K particles."""
        return {
            part.name: self._as_in_a_run(free.to(part.dtype), part.shape)
            for part, free in self._parts(u)
            if part.transform is None
        }

    def values(self, found: Terms) -> dict[str, Tensor]:
        """The sites' values in a run, `(K, M, *event)`."""
        return {
            part.name: _values(found, found.sites[part.name].value, part.event_shape, self.classes)
            for part in self.parts
        }

    def densities(self, found: Terms, u: Tensor) -> tuple[Tensor, Tensor]:
        """The guide's log-density of u, and `log |dz/du|`, `(K, M)` each, from a run at u."""
        noise, log_det = self.noise(u), self.by_row(u)[1]
        log_q = log_det
        for part, free in self._parts(u):
            if part.transform is None:
                # u is standard normal: to add log q to log |dz/du| would cost digits
                each = from_noise(_guide_of(part, found), noise[part.name])[1]
                log_det = log_det + log_prob_of(found, each, self.classes)
                log_q = (
                    log_q - free.reshape(*u.shape[:2], -1).square().sum(-1) / 2 - part.size / 2 * math.log(2 * math.pi)
                )
            else:
                side = found.sites[part.name].q
                assert side is not None
                log_q = log_q + log_prob_of(found, side.log_prob, self.classes)
        return log_q, log_det

    def _as_in_a_run(self, value: Tensor, event: tuple[int, ...]) -> Tensor:
        particles, rows = value.shape[:2]
        plates = [1] * self.plate_nesting
        particle = [particles] if particles > 1 else []
        if self.classes is None:
            plates[self.data_dim] = rows
            return value.reshape(*particle, *plates, *event)
        count = self.classes.count
        plates[self.data_dim] = rows // count
        between = [1] * (-self.classes.dim - self.plate_nesting - 2)  # other enumerated sites
        by_class = value.reshape(particles, count, rows // count, *event).transpose(0, 1)
        return by_class.reshape(count, *between, *particle, *plates, *event)

    def mask(self, like: Tensor) -> Tensor:
        """Which entries of a covariance matrix of u are not zero, `(d, d)` bool: all, or those within a site that is small."""
        if self.size <= MOST_JOINT:
            return torch.ones(self.size, self.size, dtype=torch.bool, device=like.device)
        blocks = [torch.ones(p.size, p.size) if p.size <= MOST_JOINT else torch.eye(p.size) for p in self.parts]
        return torch.block_diag(*blocks).bool().to(like.device)


def _classes(dim: int, found: Terms) -> Classes:
    """The site that is enumerated along a dimension; NotRefinable unless the guide has it, once for each row or for all."""
    term = found.sites[found.enum_dims[dim]]
    if term.q is None or {plate for plate, _ in term.either.plates} - {PARTICLE_PLATE} - {DATA_PLATE}:
        raise NotRefinable(
            f"the guide draws sites for each value of {term.name!r}, which has no single value for a row"
        )
    event = tuple(term.q.fn.event_shape)
    count = int(term.value.shape[dim - len(event)])
    values = term.value.reshape(count, -1, *event)[:, 0]
    return Classes(term.name, count, dim - (found.num_particles == 1), values, term.local)


def _guide_of(part: Coordinate, found: Terms) -> Any:
    """The distribution from which the guide draws a site."""
    side = found.sites[part.name].q
    assert side is not None
    return side.fn


def _as_prior(term: Term) -> bool:
    """Whether the guide draws a site as the model does."""
    assert term.p is not None and term.q is not None
    return torch.allclose(term.p.log_prob, term.q.log_prob, rtol=SAME**2, atol=SAME**2)


def _by_noise(part: Coordinate, found: Terms) -> Coordinate:
    """The site by its noise, if it is drawn from a Normal or from a Normal that is transformed."""
    fn = _guide_of(part, found)
    if not of_noise(fn):
        return part
    try:
        to_noise(fn, found.sites[part.name].value)
    except NotImplementedError:  # the transform has no inverse
        return part
    return replace(part, shape=noise_shape(fn), transform=None)


def _values(found: Terms, value: Tensor, event: tuple[int, ...], classes: Classes | None) -> Tensor:
    """The values of a site in a run, `(K, M, *event)`."""
    if classes is None:
        return found.rows(value, event)
    dim = classes.dim + (found.num_particles == 1) - len(event)
    if value.dim() >= -dim and value.shape[dim] > 1:
        each = [found.rows(part, event) for part in value.split(1, dim)]
    else:
        each = [found.rows(value, event)] * classes.count
    return torch.cat(each, 1)


def log_prob_of(found: Terms, log_prob: Tensor, classes: Classes | None) -> Tensor:
    """A log-density of each row, `(K, M)`."""
    if classes is None:
        return found.reduce(log_prob, True)
    each = by_value(log_prob, classes.dim + (found.num_particles == 1), found)
    return torch.cat([each] * classes.count if each.dim() == 2 else list(each), 1)


def _coordinate(term: Term, found: Terms, classes: Classes | None) -> Coordinate:
    assert term.q is not None
    fn, event = term.q.fn, tuple(term.q.fn.event_shape)
    kinds = _kinds(fn)
    where = {plate for plate, _ in term.q.plates} - {PARTICLE_PLATE}
    if term.p is None:
        raise NotRefinable(f"site {term.name!r} is in the guide only")
    if where != {DATA_PLATE}:
        raise NotRefinable(f"site {term.name!r} is in other plates than 'data', too")
    if any(isinstance(side.mask, Tensor) or side.mask is False for side in (term.p, term.q)) or (
        "MaskedDistribution" in (*kinds, *_kinds(term.p.fn))
    ):
        raise NotRefinable(f"site {term.name!r} is masked, so that in some rows it may have no density")
    try:
        support = of_components(fn.support)
    except NotImplementedError as error:
        raise NotRefinable(f"the support of site {term.name!r} is not known") from error
    if "Delta" in kinds and getattr(term.p.fn.support, "is_discrete", False):
        raise PointGuide(
            f"the guide of site {term.name!r} is a single point, so that log p(x) is estimated by the ELBO, a lower bound, "
            "whatever its standard error and k_hat say"
        )
    if "Delta" in kinds or support.is_discrete:
        raise NotRefinable(f"site {term.name!r} is not continuous")
    if any(isinstance(value, Tensor) for value in vars(innermost(support)).values()):
        raise NotRefinable(f"the support of site {term.name!r} depends on the row")
    try:
        transform = Radial() if support is sphere else Angle() if CIRCULAR & set(kinds) else biject_to(support)
        value = _values(found, term.value, event, classes)[0, 0]
        free = transform.inv(value)
        transform.log_abs_det_jacobian(free, value)
    except NotImplementedError as error:
        raise NotRefinable(f"no vector of real numbers stands for site {term.name!r} ({support})") from error
    return Coordinate(term.name, event, tuple(free.shape), transform, value.dtype)


# Distributions of angles, whose support is said to be the whole line.
CIRCULAR = {"VonMises", "SineBivariateVonMises", "SineSkewed"}


def _kinds(fn: Any) -> list[str]:
    """The names of the classes of a distribution and of those that it wraps without a change of its values."""
    names = [type(fn).__name__]
    while hasattr(fn, "base_dist") and not hasattr(fn, "transforms"):
        fn = fn.base_dist
        names.append(type(fn).__name__)
    return names


def is_delta(fn: Any) -> bool:
    """Whether all draws of a distribution are one."""
    return "Delta" in _kinds(fn)

"""Which site observes which entries of an argument, and draws of the missing ones at given values of latent sites."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.criticism.resampling import in_a_run
from pyrovae.distributions.missing import draw_missing, mean_missing
from pyrovae.errors import DataError
from pyrovae.fitted.fitted import Fit
from pyrovae.pair.batch import Batch, num_rows
from pyrovae.pair.common import commonly
from pyrovae.pair.handlers import DATA_PLATE, SetValues, with_particles
from pyrovae.pair.layout import Layout
from pyrovae.pair.parameters import fork_rng
from pyrovae.pair.program import is_local, sample_sites
from pyrovae.predict.dependence import site_parents

FILLS = "fills"  # the mark of a latent site that stands for the missing entries of an argument


@dataclass(frozen=True)
class Observers:
    """How the sites of a model belong to its arguments, as a run on a few rows shows it.

    Attributes:
        argument_of: The argument that a local site observes, or None if that is no part of one.
        fills: By argument, the latent site marked `infer={"fills": argument}`.
        parents: The local latent sites that the distribution of an observed site depends on; all of them where that is unknown.
        data_dim: The dimension of the rows, counted from the right.
        event_dims: Of all sites.
    """

    argument_of: dict[str, str | None]
    fills: dict[str, str]
    parents: dict[str, list[str]]
    data_dim: int
    event_dims: dict[str, int]

    def sites(self, argument: str) -> list[str]:
        return [site for site, name in self.argument_of.items() if name == argument]

    def needed(self, arguments: Sequence[str]) -> list[str]:
        """The latent sites at whose values missing entries of these arguments have a distribution."""
        found = [self.fills[name] for name in arguments if name in self.fills]
        for name in arguments:
            if name not in self.fills:
                found += [parent for site in self.sites(name) for parent in self.parents[site]]
        return list(dict.fromkeys(found))


def observers(fitted: Fit, rows: Batch, layout: Layout, absent: Sequence[str] = ()) -> Observers:
    """See `Observers`; a site whose argument is `absent` is drawn, and belongs to the argument that other rows know it by."""
    with fork_rng():
        nodes = sample_sites(poutine.trace(fitted.pair.model).get_trace(**rows))
    elsewhere = {
        s.name: s.argument for one in fitted.layouts for s in one.sites if s.argument in absent and s.role == "observed"
    }
    argument_of: dict[str, str | None] = {}
    for name, node in nodes.items():
        if not is_local(node) or node["infer"].get("objective_only"):
            continue
        if node["is_observed"]:
            found = [a for a, v in rows.items() if entries(node["value"], v) is not None]
            argument_of[name] = found[0] if found else None
        elif name in elsewhere:
            argument_of[name] = elsewhere[name]
    latent = [s.name for s in layout.sites if s.role == "latent" and s.local]
    above = site_parents(fitted, rows, {})
    parents = {}
    for name in argument_of:
        known = [parent for parent in above.get(name, ()) if parent in latent]
        parents[name] = known or latent
    frames = [f for node in nodes.values() for f in node["cond_indep_stack"] if f.name == DATA_PLATE]
    return Observers(
        argument_of=argument_of,
        fills={node["infer"][FILLS]: name for name, node in nodes.items() if node["infer"].get(FILLS)},
        parents=parents,
        data_dim=int(frames[0].dim),
        event_dims={name: len(node["fn"].event_shape) for name, node in nodes.items()},
    )


def entries(value: Any, argument: Tensor) -> Tensor | None:
    """Where the elements of an observed value stand in an argument, as flat indices of the value's shape; None if nowhere.

    The value is the argument, a part of its memory, or equal to it wherever that is not NaN, as where gaps were filled.
    """
    if not isinstance(value, Tensor):
        return None
    every = torch.arange(argument.numel(), device=argument.device).reshape(argument.shape)
    if value is argument:
        return every
    if value.dtype == argument.dtype and value.untyped_storage().data_ptr() == argument.untyped_storage().data_ptr():
        # where each place of the memory stands in the argument, whose rows need not follow one another there
        places = torch.full((_reach(argument),), -1, device=argument.device)
        addresses = torch.arange(len(places), device=argument.device).as_strided(argument.shape, argument.stride())
        if len(addresses.unique()) < argument.numel():  # several elements in one place, as of an expanded tensor
            return None
        places[addresses] = every
        first = value.storage_offset() - argument.storage_offset()
        inside = value.numel() > 0 and first >= 0 and first + _reach(value) <= len(places)
        index = places.as_strided(value.shape, value.stride(), first) if inside else None
        return None if index is None or bool((index < 0).any()) else index
    if value.shape != argument.shape or not argument.is_floating_point():
        return None
    there = ~torch.isnan(argument)
    same = bool(there.any()) and bool((value[there] == argument[there]).all())
    return every if same else None


def _reach(x: Tensor) -> int:
    """How many places of memory a tensor lies across, from its first element to its last."""
    return 1 + sum((size - 1) * step for size, step in zip(x.shape, x.stride()))


@dataclass
class Completed:
    """Draws and means of the missing entries of an argument, for n rows.

    Attributes:
        where: The missing entries, as flat indices of `(n, *event)`, `(M,)`.
        draws: `(S, M)`.
        mean: `(M,)`, of classes the most frequent one.
        classes: Which entries are classes, `(M,)` bool.
    """

    where: Tensor
    draws: Tensor
    mean: Tensor
    classes: Tensor


@dataclass
class _Sum:
    """What is gathered over runs of some particles."""

    where: Tensor
    total: Tensor
    count: int = 0
    kept: list[Tensor] = field(default_factory=list)
    classes: Tensor | None = None
    drawn_classes: list[Tensor] = field(default_factory=list)


def complete(
    fitted: Fit,
    rows: Batch,
    layout: Layout,
    how: Observers,
    missing: Mapping[str, Tensor],
    values: Mapping[str, Tensor],
    num_samples: int,
    num_kept: int,
    shared: Sequence[Mapping[str, Tensor]],
    at_once: int,
) -> dict[str, Completed]:
    """Draw the missing entries of arguments at values of latent sites.

    Args:
        fitted: The fitted pair, whose model draws sites whose arguments the rows lack.
        rows: n rows that have the same arguments.
        layout: Their layout.
        how: How sites belong to arguments.
        missing: By argument, which entries are missing, `(n, *event)` bool.
        values: By latent site, `(S, n, *others, *event)`; sites without values are drawn from the model.
        num_samples: S, of which all count in the mean.
        num_kept: How many of them are kept as draws.
        shared: Values of the global latent sites for each of the S draws; empty if there are none.
        at_once: How many particles may be in one run.

    Raises:
        DataError: No site observes some of the missing entries.
    """
    sums = {
        name: _Sum(where := gap.flatten().nonzero().squeeze(-1), torch.zeros(len(where), dtype=torch.float64))
        for name, gap in missing.items()
    }
    for start, stop in _pieces(num_samples, 1 if shared else at_once):
        held = {name: in_a_run(value[start:stop], how.event_dims[name], how.data_dim) for name, value in values.items()}
        held |= dict(shared[start]) if shared else {}
        model = with_particles(SetValues(held)(fitted.pair.model), stop - start, layout.plate_nesting)
        nodes = sample_sites(poutine.trace(commonly(model)).get_trace(**rows))
        for name, gap in missing.items():
            fixed, site = None, how.fills.get(name)
            if site is not None:  # of rows of which nothing is observed it is drawn in this run
                fixed = values[site][start:stop] if site in values else nodes[site]["value"]
            _add(sums[name], name, gap, [nodes[site] for site in how.sites(name)], rows, stop - start, num_kept, fixed)
    return {name: _finished(one) for name, one in sums.items()}


def _pieces(total: int, most: int) -> Iterator[tuple[int, int]]:
    for start in range(0, total, most):
        yield start, min(start + most, total)


def _add(
    found: _Sum,
    name: str,
    gap: Tensor,
    nodes: Sequence[Any],
    rows: Batch,
    particles: int,
    num_kept: int,
    fixed: Tensor | None,
) -> None:
    """Add a run's draws of the entries of one argument, and their means."""
    wide = torch.zeros(particles, gap.numel(), dtype=torch.float64, device=gap.device)
    means, covered = wide.clone(), torch.zeros_like(gap).flatten()
    classes = torch.zeros_like(covered)
    for node in nodes:
        index = entries(node["value"], rows[name]) if name in rows else None
        if index is None:  # the rows lack the argument, and the site is drawn
            index = torch.arange(gap.numel(), device=gap.device).reshape(gap.shape)
            value = torch.full(gap.shape, float("nan"), device=gap.device)
        else:
            value = torch.where(gap.flatten()[index], float("nan"), node["value"])
        drawn = draw_missing(node["fn"], value)
        mean = mean_missing(node["fn"], value)
        each = [_flat(part, particles, index) for part in (drawn, drawn if mean is None else mean)]
        wide[:, index.flatten()] = each[0]
        means[:, index.flatten()] = torch.where(each[1].isfinite(), each[1], each[0])
        classes[index.flatten()] = _classes(node["fn"], index.shape).flatten().to(gap.device)
        covered[index.flatten()] = True
    if fixed is not None:
        wide = means = fixed.reshape(particles, -1).double()
        covered[:] = True
    if bool((gap.flatten() & ~covered).any()):
        raise DataError(
            f"{name!r} has missing entries that no site of the model observes, so that there is no distribution to draw them "
            "from: fill them in, or drop these rows."
        )
    if found.count < num_kept:
        found.kept.append(wide[: num_kept - found.count, found.where])
    found.total = found.total.to(gap.device) + means[:, found.where].sum(0)
    found.classes = classes[found.where]
    found.drawn_classes.append(wide[:, found.where][:, found.classes])
    found.count += particles


def _flat(part: Tensor, particles: int, index: Tensor) -> Tensor:
    """A value of a run as `(K, numel)`, for an argument of which the value's elements stand at `index`."""
    between = [1] * (part.dim() - index.dim() - 1)
    return part.expand(particles, *between, *index.shape).reshape(particles, -1).double()


def _classes(fn: Any, shape: torch.Size) -> Tensor:
    """Which elements are classes, of a value of this shape."""
    labels = getattr(fn, "labels", None)
    while hasattr(fn, "whole") or hasattr(fn, "base_dist"):
        fn = fn.whole if hasattr(fn, "whole") else fn.base_dist
    if labels is None:
        return torch.full(shape, isinstance(fn, (dist.Categorical, torch.distributions.Categorical)))
    return torch.tensor(labels).expand(shape)


def _finished(found: _Sum) -> Completed:
    assert found.classes is not None
    mean = found.total / found.count
    if bool(found.classes.any()):
        mean[found.classes] = torch.cat(found.drawn_classes).mode(0).values
    return Completed(found.where, torch.cat(found.kept), mean, found.classes)


def rows_without_anything(rows: Batch, how: Observers) -> Tensor:
    """The rows of which no site observes anything, `(n,)` bool."""
    empty = torch.ones(num_rows(rows), dtype=torch.bool, device=next(iter(rows.values())).device)
    for name in how.argument_of.values():
        if name is None:
            return torch.zeros_like(empty)
        if name in rows:
            value = rows[name]
            gone = torch.isnan(value) if value.is_floating_point() else torch.zeros_like(value, dtype=torch.bool)
            empty = empty & gone.reshape(len(value), -1).all(1)
    return empty

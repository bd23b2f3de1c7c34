"""Rows of all kinds in runs at many draws: what `to_arviz` collects, by site and with the plates that each value is in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyrovae.batching.chunks import chunks
from pyrovae.criticism.trees import Values, by_plates
from pyrovae.fitted.fitted import Fit, in_order
from pyrovae.objectives.terms import Density, terms
from pyrovae.pair.batch import Batch, group_rows, num_rows, take_group, take_rows
from pyrovae.pair.handlers import DATA_PLATE
from pyrovae.pair.layout import Layout, Site
from pyrovae.pair.masks import without_masked
from pyrovae.pair.parameters import fork_rng
from pyrovae.pair.program import sample_sites, unwritten
from pyrovae.pair.turns import turn

# Values by name, each with the names of the plates that it is in.
Placed = dict[str, tuple[Tensor, tuple[str, ...]]]

# --- rows with the same arguments


@dataclass(frozen=True)
class Kind:
    """Rows with the same arguments: as they were given, and as the pair takes them."""

    rows: Tensor  # (n,) int64, their indices in the data
    given: Batch
    batch: Batch
    layout: Layout

    @property
    def latent(self) -> list[Site]:
        return [s for s in self.layout.sites if s.role == "latent" and s.local]


def kinds_of(fitted: Fit, given: Batch) -> Iterator[Kind]:
    for group in group_rows(fitted.pair, given):
        own = take_group(given, group)
        (part,) = fitted.parts(own)
        yield Kind(group.rows, own, part.batch, part.layout)


def together(kinds: Sequence[Kind], found: Sequence[Mapping[str, Values]]) -> dict[str, Values]:
    """The variables of all rows, in their order; NaN, or -1 among integers, where rows do not have one."""
    joined = {}
    for name in {name: None for variables in found for name in variables}:
        one = next(variables[name] for variables in found if name in variables)
        if DATA_PLATE not in one.dims:
            joined[name] = one
            continue
        axis = int(one.drawn)
        columns = []
        for kind, variables in zip(kinds, found):
            values = variables[name].values if name in variables else None
            if values is None:
                shape = [*one.values.shape[:axis], len(kind.rows), *one.values.shape[axis + 1 :]]
                values = one.values.new_full(shape, math.nan if one.values.is_floating_point() else -1)
            columns.append(values)
        parts: Any = kinds  # of which only the rows' indices are read
        joined[name] = replace(one, values=in_order(parts, columns, axis))
    return joined


# --- many runs

Run = Callable[[int, int, Batch], Placed]


def stacked(batch: Batch, size: int, num_samples: int, run: Run) -> Placed:
    """What `run` gives for each draw and each chunk of rows, `(S, n, ...)`, or `(S, ...)` where it has no rows."""
    draws: dict[str, list[Tensor]] = {}
    dims: dict[str, tuple[str, ...]] = {}
    for s in range(num_samples):
        parts: dict[str, list[Tensor]] = {}
        start = 0
        for rows in chunks(batch, size):
            for name, (value, plates) in run(s, start, rows).items():
                parts.setdefault(name, []).append(value)
                dims[name] = plates
            start += num_rows(rows)
        for name, several in parts.items():
            draws.setdefault(name, []).append(torch.cat(several) if DATA_PLATE in dims[name] else several[0])
    return {name: (torch.stack(several), dims[name]) for name, several in draws.items()}


def run_model(model: Any, rows: Batch) -> Placed:
    """One run of a model: the values of its sites, and the plates that each is in."""
    with turn(), unwritten(rows, "model"):
        nodes = sample_sites(poutine.trace(model).get_trace(**rows))
    return {
        name: by_plates(node["value"], node["cond_indep_stack"], len(node["fn"].event_shape))
        for name, node in nodes.items()
        if node["value"].numel() and not node["infer"].get("objective_only")
    }


# --- sites and arguments that hold data


def is_data(site: Site) -> bool:
    """Whether a site observes data, and is no factor, whose events are empty."""
    return site.role == "observed" and not site.objective_only and not site.is_factor


def observed_arguments(fitted: Fit, kinds: Sequence[Kind]) -> set[str | None]:
    layouts = [*fitted.layouts, *(kind.layout for kind in kinds)]
    return {s.argument for layout in layouts for s in layout.sites if is_data(s)}


def observed_in_parts(fitted: Fit, kind: Kind) -> set[str]:
    """The arguments of which a site observes a part, as `obs=x[:, t]`: what else the model reads of them is no condition."""
    rows = take_rows(kind.batch, slice(0, 2))
    with fork_rng():
        nodes = sample_sites(poutine.trace(fitted.pair.model).get_trace(**rows))
    values = [
        node["value"] for node in nodes.values() if node["is_observed"] and not node["infer"].get("objective_only")
    ]
    memory = {value.untyped_storage().data_ptr() for value in values if isinstance(value, Tensor) and value.numel()}
    return {name for name, value in rows.items() if value.untyped_storage().data_ptr() in memory}


def data_names(fitted: Fit) -> set[str]:
    return {s.name for layout in fitted.layouts for s in layout.sites if is_data(s)}


def absent_arguments(fitted: Fit, kind: Kind) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """The arguments that these rows lack, and without which the model does not draw some site that it observes elsewhere."""
    here = {s.name for s in kind.layout.sites}
    sites = [s for layout in fitted.layouts for s in layout.sites if is_data(s) and s.name not in here]
    return {s.argument: fitted.arguments[s.argument] for s in sites if s.argument and s.argument not in kind.batch}


def filled(absent: Mapping[str, tuple[tuple[int, ...], torch.dtype]], rows: Batch) -> Batch:
    device = next(iter(rows.values())).device
    return {name: placeholder((num_rows(rows), *shape), dtype, device) for name, (shape, dtype) in absent.items()}


def placeholder(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """What stands for data that are to be drawn: NaN, so that reading them shows."""
    return torch.full(tuple(shape), math.nan if dtype.is_floating_point else 0, dtype=dtype, device=device)


def _seen(side: Density, value: Tensor) -> Tensor:
    """What a site observes, with NaN where it is masked; integers, which have none, as they are."""
    return without_masked(side.fn, side.mask, value) if value.is_floating_point() else value


def observed_values(fitted: Fit, kind: Kind) -> dict[str, Values]:
    """The values of the observed sites of these rows, `(n, *plates, *event)`, or of a global site without the rows."""
    names = {s.name for s in kind.layout.sites if is_data(s)}

    def run(s: int, start: int, rows: Batch) -> Placed:
        found = terms(fitted.pair, rows, 1, layout=kind.layout, enumerate=False)
        return {
            t.name: by_plates(_seen(t.p, t.value), t.p.frames, len(t.p.fn.event_shape))
            for t in found.sites.values()
            if t.name in names and t.p is not None
        }

    made = stacked(kind.batch, fitted.chunk_size(kind.batch), 1, run)
    return {name: Values(value[0], plates, False) for name, (value, plates) in made.items()}

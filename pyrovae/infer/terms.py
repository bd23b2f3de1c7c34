"""Terms: what one run of a pair says, site by site. Every objective and every evaluation is a fold of these.

For K particles and N rows, a site in the plate "data" has log-densities of shape (K, N), a global one (K,), once its
other plates are summed out. Nothing here leaves the device: no value is ever read by the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyrovae.check import Layout, describe
from pyrovae.errors import PairError
from pyrovae.handlers import DATA_PLATE
from pyrovae.pair import fork_rng, is_local, num_rows, run, sample_sites


@dataclass(frozen=True)
class Density:
    """One side of a site: log p or log q at the drawn value, over the full batch shape, masked but unscaled.

    `score` is the log-density whose gradient is the score function, None where the draw is reparameterised; `pathwise`
    is the part of log q that enters the gradient directly (Schulman et al. 2015, arXiv:1506.05254).
    """

    fn: Any
    log_prob: Tensor
    scale: float | Tensor
    mask: Any
    frames: tuple[Any, ...]
    score: Tensor | None = None
    pathwise: Tensor | None = None

    @property
    def scaled(self) -> Tensor:
        """log-density times the scale of the site's own plates and handlers."""
        return scale_and_mask(self.log_prob, self.scale, None)


@dataclass(frozen=True)
class Term:
    """A site: its model side `p`, its guide side `q` (either may be missing), and where it stands."""

    name: str
    value: Any
    local: bool
    subsampled: bool  # its plate "data" carries a subsample scale of its own
    objective_only: bool
    p: Density | None
    q: Density | None

    def reduce_global(self) -> Tensor:
        """log p - log q summed over everything: a global site's share of the bound, averaged by nobody."""
        total = self.value.new_zeros(())
        if self.p is not None:
            total = total + self.p.scaled.sum()
        if self.q is not None:
            total = total - self.q.scaled.sum()
        return total


@dataclass(frozen=True)
class Terms:
    """All terms of one run: `sites` in the order of the guide, then of the model."""

    sites: dict[str, Term]
    num_particles: int
    num_rows: int
    plate_nesting: int
    aligned: bool  # model and guide draw their shared sites in one order

    def reduce(self, log_prob: Tensor, local: bool) -> Tensor:
        """Sum out every plate but "data": (K, N) for a local site, (K,) for a global one."""
        depth = self.plate_nesting + (self.num_particles > 1)
        full = log_prob.reshape((1,) * (depth - log_prob.dim()) + tuple(log_prob.shape))
        if self.num_particles == 1:
            full = full.unsqueeze(0)
        full = full.expand(self.num_particles, *full.shape[1:])
        if not local:
            return full.flatten(1).sum(1)
        others = [d for d in range(1, full.dim()) if d - full.dim() != self._data_dim]
        rows = full.sum(others) if others else full
        return rows.expand(self.num_particles, self.num_rows)

    def rows(self, value: Tensor, event_shape: tuple[int, ...]) -> Tensor:
        """A local site's value, or a tensor of its batch shape (event_shape ()), as (K, N, *event_shape)."""
        shape = (self.num_particles, self.num_rows, *event_shape)
        if value.numel() != torch.Size(shape).numel():
            value = value.expand(*_broadcast_batch(value, len(event_shape), self), *event_shape)
        try:
            return value.reshape(shape)
        except RuntimeError as error:
            raise PairError(
                f"A site in another plate beside 'data' has no single value a row: shape {tuple(value.shape)}, wanted {shape}. "
                "Make that plate a dimension of the event."
            ) from error

    @property
    def _data_dim(self) -> int:
        for term in self.sites.values():
            side = term.p or term.q
            for frame in side.frames if side else ():
                if frame.name == DATA_PLATE:
                    return int(frame.dim)
        raise PairError("No site is in the plate 'data'.")


def _broadcast_batch(value: Tensor, event_dim: int, terms: Terms) -> tuple[int, ...]:
    # What does not depend on the draw lacks the particle dimension: the mean of a prior, say.
    batch = value.shape[: value.dim() - event_dim]
    full = [1] * (terms.plate_nesting + (terms.num_particles > 1))
    if terms.num_particles > 1:
        full[0] = terms.num_particles
    full[terms._data_dim] = terms.num_rows
    return tuple(torch.broadcast_shapes(batch, full))


def _density(node: Any, guide: bool) -> Density:
    fn, mask = node["fn"], node["mask"]
    frames = tuple(f for f in node["cond_indep_stack"] if f.vectorized)
    if not guide:
        log_prob = scale_and_mask(fn.log_prob(node["value"], *node["args"], **node["kwargs"]), 1.0, mask)
        return Density(fn, log_prob, node["scale"], mask, frames)
    parts = fn.score_parts(node["value"], *node["args"], **node["kwargs"])
    log_prob = scale_and_mask(parts.log_prob, 1.0, mask)
    # Pyro marks an absent part by the number 0.
    score = parts.score_function if isinstance(parts.score_function, Tensor) else None
    reparameterised = parts.entropy_term is parts.log_prob
    pathwise = (
        log_prob
        if reparameterised
        else scale_and_mask(parts.entropy_term, 1.0, mask)
        if isinstance(parts.entropy_term, Tensor)
        else None
    )
    return Density(fn, log_prob, node["scale"], mask, frames, score, pathwise)


def terms(pair: Any, batch: Mapping[str, Tensor], num_particles: int = 1, *, layout: Layout | None = None) -> Terms:
    """Run guide and model once for K particles and return every site's log-densities, unfolded.

    `layout` (from `describe`) saves the extra run that K > 1 needs to find how deep plates nest. Raises PairError for
    a site marked for enumeration: drawing it instead would silently change the estimator.
    """
    if layout is None and num_particles > 1:
        with fork_rng():
            layout = describe(pair, batch)
    nesting = layout.plate_nesting if layout else 0
    model_trace, guide_trace = run(pair, batch, num_particles=num_particles, plate_nesting=nesting)
    model_sites, guide_sites = sample_sites(model_trace), sample_sites(guide_trace)
    found: dict[str, Term] = {}
    for name in [*guide_sites, *(n for n in model_sites if n not in guide_sites)]:
        node = model_sites.get(name) or guide_sites[name]
        guide_node = guide_sites.get(name)
        for side in (node, guide_node or node):
            if side["infer"].get("enumerate") is not None:
                raise PairError(
                    f"Site {name!r} is marked infer={{'enumerate': ...}}; this loss draws sites and would ignore the "
                    "mark. Remove it to train by the score function."
                )
        found[name] = Term(
            name=name,
            value=node["value"],
            local=is_local(node),
            subsampled=any(
                f.name == DATA_PLATE and f.full_size not in (None, f.size) for f in node["cond_indep_stack"]
            ),
            objective_only=bool(node["infer"].get("objective_only")),
            p=_density(node, guide=False) if name in model_sites else None,
            q=_density(guide_node, guide=True) if guide_node is not None else None,
        )
    dims = [f.dim for t in found.values() for side in (t.p, t.q) if side for f in side.frames]
    if num_particles == 1:
        nesting = max((-dim for dim in dims), default=0)
    shared = [n for n in model_sites if n in guide_sites]
    return Terms(
        sites=found,
        num_particles=num_particles,
        num_rows=num_rows(batch),
        plate_nesting=nesting,
        aligned=shared == [n for n in guide_sites if n in model_sites],
    )

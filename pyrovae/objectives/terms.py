"""Terms: the log-densities of one run of a pair, site by site. Every objective and every evaluation is computed from them.

For K particles and N rows, a site in the plate "data" has log-densities of shape `(K, N)` and a global site `(K,)`, once its
other plates are summed out. Each enumerated site adds a dimension on the left, which `objectives/enumeration.py` sums out.
Nothing here reads a value on the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyrovae._arguments import as_count
from pyrovae._shapes import broadcast_shapes
from pyrovae.errors import PairError
from pyrovae.pair import program
from pyrovae.pair.batch import num_rows
from pyrovae.pair.handlers import DATA_PLATE
from pyrovae.pair.layout import Layout, check_marks, describe
from pyrovae.pair.parameters import fork_rng
from pyrovae.pair.program import PairLike, is_local, is_marked, run, sample_sites, unwritten_value


@dataclass(frozen=True)
class Density:
    """One side of a site, log p or log q at its value, over the full batch shape, masked but unscaled.

    `score` is the log-density whose gradient is the score function, None for a reparameterised draw. `pathwise` is the part of
    log q that is differentiated directly (Schulman et al. 2015, arXiv:1506.05254). `whole` is the unmasked log-density of an
    enumerated site, whose exponentials sum to one along the site's dimension.
    """

    fn: Any
    log_prob: Tensor
    scale: float | Tensor
    mask: Any
    frames: tuple[Any, ...]
    score: Tensor | None = None
    pathwise: Tensor | None = None
    whole: Tensor | None = None

    @property
    def plates(self) -> frozenset[tuple[str, int]]:
        """(name, dimension) of every plate that the site is in, that of the particles included."""
        return frozenset((f.name, f.dim) for f in self.frames)

    @property
    def scaled(self) -> Tensor:
        """The log-density times the scale of the site's own plates and handlers."""
        return scale_and_mask(self.log_prob, self.scale, None)


@dataclass(frozen=True)
class Term:
    """A site of the model (`p`), of the guide (`q`) or of both, with its value."""

    name: str
    value: Any
    local: bool
    subsampled: bool  # its plate "data" has a subsample scale of its own
    objective_only: bool
    p: Density | None
    q: Density | None
    enum_dim: int | None = None  # the dimension of its enumerated values; None where it was drawn
    fills: str | None = None  # the argument for whose missing entries it stands

    @property
    def either(self) -> Density:
        """The model's side, or the guide's where the model does not have the site."""
        side = self.p if self.p is not None else self.q
        assert side is not None
        return side


@dataclass(frozen=True)
class Terms:
    """The log-densities of one run of a pair, as `pv.terms` returns them.

    Attributes:
        sites: A dict from name to term, sites of the guide first. A term has `value`, `local` (in the plate "data") and the two
            sides `p` (model) and `q` (guide), each None if that side does not have the site; `term.p.log_prob` and
            `term.q.log_prob` are log-densities over the full batch shape.
        num_particles: K, the number of draws for each row.
        num_rows: B, the number of rows of this run.
        plate_nesting: How deep plates nest.
        in_order: The sites before which the guide draws all that the model draws before them, so that their priors depend on
            nothing that is drawn later. With all shared sites among them, model and guide draw these in the same order.
        enum_dims: The enumerated sites, by the tensor dimension of their values.

    Example:
        >>> x = torch.rand(8, 4).round()
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(4)), pv.mlp(4, fam.Normal(2)))
        >>> run = pv.terms(vae, {"x": x}, num_particles=3)
        >>> list(run.sites), run.num_particles, run.num_rows
        (['z', 'x'], 3, 8)
        >>> z = run.sites["z"]
        >>> kl = run.reduce(z.q.log_prob - z.p.log_prob, z.local)  # at the draws, nats
        >>> kl.shape
        torch.Size([3, 8])
        >>> run.sites["x"].q is None
        True
    """

    sites: dict[str, Term]
    num_particles: int
    num_rows: int
    plate_nesting: int
    in_order: frozenset[str]
    enum_dims: dict[int, str] = field(default_factory=dict)  # dimension -> the site enumerated along it

    @property
    def depth(self) -> int:
        """Number of dimensions of a log-density without enumerated ones."""
        return self.plate_nesting + (self.num_particles > 1)

    def reduce(self, log_prob: Tensor, local: bool) -> Tensor:
        """Sum a log-density over every plate but "data": `(K, N)` for a local site, `(K,)` for a global one."""
        # enumerated dimensions, further to the left, have been summed out: they are of size 1
        own = tuple(log_prob.shape)[max(0, log_prob.dim() - self.depth) :]
        full = log_prob.reshape((1,) * (self.depth - len(own)) + own)
        if self.num_particles == 1:
            full = full.unsqueeze(0)
        full = full.expand(self.num_particles, *full.shape[1:])
        if not local:
            return full.reshape(self.num_particles, -1).sum(1)
        rows_dim = self.data_dim
        others = [d for d in range(1, full.dim()) if d - full.dim() != rows_dim]
        rows = full.sum(others) if others else full
        return rows.expand(self.num_particles, self.num_rows)

    def rows(self, value: Tensor, event_shape: tuple[int, ...]) -> Tensor:
        """A local site's value, or a tensor of its batch shape (event_shape ()), as `(K, N, *event_shape)`."""
        shape = (self.num_particles, self.num_rows, *event_shape)
        if value.numel() != torch.Size(shape).numel():
            value = value.expand(*_broadcast_batch(value, len(event_shape), self), *event_shape)
        try:
            return value.reshape(shape)
        except RuntimeError as error:
            raise PairError(
                f"A site that is in another plate besides 'data' has no single value for each row: it has shape "
                f"{tuple(value.shape)}, but {shape} is needed. Make that plate a dimension of the event, with .to_event(n)."
            ) from error

    def each_row(self, value: Tensor, event_dim: int) -> Tensor:
        """A local site's value as `(K, N, *others, *event)`, with a dimension for each plate dimension but that of the rows."""
        event = value.shape[value.dim() - event_dim :]
        batch = [1] * self.depth
        for dim, size in enumerate(reversed(value.shape[: value.dim() - event_dim]), 1):
            batch[-dim] = size
        full = value.reshape(*(1,) * (self.num_particles == 1), *batch, *event)
        rows = full.dim() - event_dim + self.data_dim
        sizes = [-1] * full.dim()
        sizes[0], sizes[rows] = self.num_particles, self.num_rows
        return full.expand(sizes).movedim(rows, 1)

    @property
    def data_dim(self) -> int:
        """The dimension of the rows, counted from the right."""
        for term in self.sites.values():
            for frame in term.either.frames:
                if frame.name == DATA_PLATE:
                    return int(frame.dim)
        raise PairError(
            "No site is in a vectorised plate 'data': write `with pyro.plate('data', len(x)):`, not a loop over the plate."
        )


def _broadcast_batch(value: Tensor, event_dim: int, terms: Terms) -> tuple[int, ...]:
    # what does not depend on the draw, such as the mean of a prior, has no dimension of particles
    batch = value.shape[: value.dim() - event_dim]
    full = [1] * terms.depth
    if terms.num_particles > 1:
        full[0] = terms.num_particles
    full[terms.data_dim] = terms.num_rows
    return tuple(broadcast_shapes(batch, full))


def _density(node: Any, guide: bool, summed: bool) -> Density:
    """One side of a site of a trace; `summed` where the site is enumerated."""
    with unwritten_value(node["name"], node):
        return _scored(node, guide, summed)


def _scored(node: Any, guide: bool, summed: bool) -> Density:
    fn, mask = node["fn"], node["mask"]
    frames = tuple(f for f in node["cond_indep_stack"] if f.vectorized)
    if not guide and not summed:
        log_prob = scale_and_mask(fn.log_prob(node["value"], *node["args"], **node["kwargs"]), 1.0, mask)
        return Density(fn, log_prob, node["scale"], mask, frames)
    parts = fn.score_parts(node["value"], *node["args"], **node["kwargs"])
    log_prob = scale_and_mask(parts.log_prob, 1.0, mask)
    # Pyro sets an absent part to the number 0
    score = parts.score_function if isinstance(parts.score_function, Tensor) else None
    if summed:  # its score function is the unmasked log-density
        whole = score if score is not None else parts.log_prob
        return Density(fn, log_prob, node["scale"], mask, frames, None, log_prob, whole)
    reparameterised = parts.entropy_term is parts.log_prob
    pathwise = (
        log_prob
        if reparameterised
        else scale_and_mask(parts.entropy_term, 1.0, mask)
        if isinstance(parts.entropy_term, Tensor)
        else None
    )
    return Density(fn, log_prob, node["scale"], mask, frames, score, pathwise)


def terms(
    pair: PairLike,
    batch: Mapping[str, Tensor],
    num_particles: int = 1,
    *,
    layout: Layout | None = None,
    plate_nesting: int | None = None,
    enumerate: bool = True,
) -> Terms:
    """Run guide and model once, for K particles, and return the log-densities of every site.

    `pv.elbo` and `pv.log_weights` are computed from the result. Sites marked `infer={"enumerate": "parallel"}` take all of
    their values at once, in the guide, or in the model where the guide does not have them. Any static Pyro program will do.

    Args:
        pair: A pair, with methods `model` and `guide`.
        batch: The arguments of model and guide by name, tensors of shape `(B, ...)`; empty if they take none.
        num_particles: K, the number of draws for each row.
        layout: The layout of the pair, such as `fitted.layout`. Giving it, or `plate_nesting`, saves an extra run if K > 1
            or a site is enumerated.
        plate_nesting: How deep plates nest at most.
        enumerate: If False, marked sites are drawn instead: from the guide, or, where the guide does not have them, from the
            model's prior, which is then their proposal as well.

    Returns:
        The terms, see `pv.Terms`.

    Raises:
        PairError: A site is marked for enumeration that cannot be enumerated, or `plate_nesting` is too small.

    Example:
        >>> x = torch.rand(8, 4).round()
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(4)), pv.mlp(4, fam.Normal(2)))
        >>> run = pv.terms(vae, {"x": x}, num_particles=3)
        >>> run.sites["z"].value.shape
        torch.Size([3, 8, 2])
        >>> run.sites["x"].p.log_prob.shape
        torch.Size([3, 8])
    """
    num_particles = as_count("num_particles", num_particles)
    nesting = None if plate_nesting is None else as_count("plate_nesting", plate_nesting, least=0)
    summed = nesting is not None
    if layout is None and nesting is None and num_particles > 1:
        with fork_rng():
            if batch:
                layout = describe(pair, batch)
            else:
                alone = _sites(run(pair, batch))
                nesting, summed = program.plate_nesting(*alone), _marked(*alone)
    if layout is not None:
        nesting, summed = (layout.plate_nesting if nesting is None else nesting), layout.enumerates
    summed = summed and enumerate
    model_sites, guide_sites = _sites(
        run(pair, batch, num_particles=num_particles, plate_nesting=nesting or 0, enumerate=summed)
    )
    marked = enumerate and _marked(model_sites, guide_sites)
    if marked and not summed:  # run again, now that the nesting of plates is known
        nesting = program.plate_nesting(model_sites, guide_sites)
        model_sites, guide_sites = _sites(
            run(pair, batch, num_particles=num_particles, plate_nesting=nesting, enumerate=True)
        )
    summed = marked
    deepest = program.plate_nesting(model_sites, guide_sites) if summed or num_particles == 1 else 0
    if summed and deepest > (nesting or 0):
        raise PairError(
            f"plate_nesting={nesting} is too small: plates nest {deepest} deep. Pass plate_nesting={deepest}."
        )
    if summed:
        check_marks(model_sites, guide_sites)
    found: dict[str, Term] = {}
    for name in [*guide_sites, *(n for n in model_sites if n not in guide_sites)]:
        node = model_sites.get(name) or guide_sites[name]
        dim = (guide_sites.get(name) or node)["infer"].get("_enumerate_dim") if summed else None
        # a marked site of the model alone that is drawn nevertheless: its prior is the proposal
        guide_node = guide_sites.get(name) or (node if not enumerate and is_marked(node) else None)
        found[name] = Term(
            name=name,
            value=node["value"],
            local=is_local(node),
            subsampled=any(
                f.name == DATA_PLATE and f.full_size not in (None, f.size) for f in node["cond_indep_stack"]
            ),
            objective_only=bool(node["infer"].get("objective_only")),
            fills=node["infer"].get("fills"),
            p=_density(node, False, dim is not None) if name in model_sites else None,
            q=_density(guide_node, True, dim is not None) if guide_node is not None else None,
            enum_dim=dim,
        )
    if num_particles == 1 and not summed:
        nesting = deepest
    enum_dims = {term.enum_dim: name for name, term in found.items() if term.enum_dim is not None}
    if enum_dims:
        _check_shapes(found, enum_dims)
    shared = [n for n in model_sites if n in guide_sites]
    return Terms(
        sites=found,
        num_particles=num_particles,
        num_rows=_num_rows(model_sites, guide_sites, batch),
        plate_nesting=nesting or 0,
        in_order=_in_order(shared, [n for n in guide_sites if n in model_sites]),
        enum_dims=enum_dims,
    )


def _in_order(by_model: Sequence[str], by_guide: Sequence[str]) -> frozenset[str]:
    """The sites before which the guide draws all that the model draws before them."""
    place = {name: at for at, name in enumerate(by_guide)}
    found, latest = set(), -1
    for name in by_model:
        if place[name] > latest:
            found.add(name)
        latest = max(latest, place[name])
    return frozenset(found)


def _check_shapes(sites: Mapping[str, Term], enum_dims: Mapping[int, str]) -> None:
    """PairError unless every dimension of a log-density belongs to a plate or to an enumerated site; others would be summed."""
    for name, term in sites.items():
        for side in (term.p, term.q):
            shape = () if side is None else tuple(side.log_prob.shape)
            known = set(enum_dims) if side is None else {*enum_dims, *(dim for _, dim in side.plates)}
            if any(shape[dim] != 1 and dim not in known for dim in range(-len(shape), 0)):
                raise PairError(
                    f"Site {name!r} has a log-density of shape {shape}, but its plates and the enumerated sites "
                    f"{sorted(enum_dims.values())} explain dimensions {sorted(known)} only: put it into the plate of what it "
                    "depends on, or declare the other dimensions part of one event with .to_event(n)."
                )


def with_densities(found: Terms, model_sites: Mapping[str, Any], guide: Mapping[str, Density]) -> Terms:
    """The same terms with the log-densities of another run of the model, and given ones of the guide; not enumerated."""
    sites = {
        name: replace(
            term,
            value=model_sites[name]["value"] if name in model_sites else term.value,
            p=_density(model_sites[name], False, False) if name in model_sites else None,
            q=guide.get(name),
        )
        for name, term in found.sites.items()
    }
    return replace(found, sites=sites)


def _sites(traces: tuple[Any, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    return sample_sites(traces[0]), sample_sites(traces[1])


def _marked(*sides: Mapping[str, Any]) -> bool:
    return any(is_marked(node) for sites in sides for node in sites.values())


def _num_rows(model_sites: Mapping[str, Any], guide_sites: Mapping[str, Any], batch: Mapping[str, Tensor]) -> int:
    for node in (*model_sites.values(), *guide_sites.values()):
        for frame in node["cond_indep_stack"]:
            if frame.name == DATA_PLATE:
                return int(frame.size)
    return num_rows(batch) if batch else 1

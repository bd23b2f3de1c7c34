"""The layout of a pair: its sites, plates and arguments, found by running it once on a batch (`describe`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyrovae._html import table
from pyrovae._shapes import broadcast_shapes
from pyrovae.errors import PairError, PyrovaeError, ShapeError
from pyrovae.pair.batch import num_rows
from pyrovae.pair.devices import cure_of_devices, cure_of_indices, indices_in_range
from pyrovae.pair.dtypes import cure_of_dtypes
from pyrovae.pair.handlers import (
    DATA_PLATE,
    PARTICLE_PLATE,
    MakeParamsOn,
    OnlyDistributions,
    Replay,
    check_mark,
    no_nameless_draws,
    same_memory,
)
from pyrovae.pair.mistakes import (
    cure_by_trying,
    cure_of_gaps,
    cure_of_shapes,
    cure_of_weights,
    in_words,
    listed,
    not_one_event,
    observes,
    where_it_failed,
)
from pyrovae.pair.parameters import dtype_of, evaluating, every_module, fork_rng, modules, param_scope
from pyrovae.pair.program import (
    PairLike,
    arguments,
    distribution_name,
    is_local,
    is_marked,
    plate_nesting,
    sample_sites,
    unwritten,
)
from pyrovae.pair.supports import kind_of

COLUMNS = ("site", "role", "plate", "event", "observes", "enumerated in")


@dataclass(frozen=True)
class Site:
    """A sample site of a pair."""

    name: str
    role: str  # "observed", "latent" (in the model, and in the guide unless enumerated) or "auxiliary" (in the guide only)
    local: bool  # whether it is inside the plate "data", and so has one value for each row
    event_shape: tuple[int, ...]  # of one row
    argument: str | None  # the argument of the model that an observed site observes
    objective_only: bool  # counted in what a fit maximises, but not in the ELBO that it reports
    enumerated: str | None = None  # "guide" or "model" if the site is summed out there, None if it is drawn
    plates: tuple[tuple[str, int], ...] = ()  # name and size of each plate other than "data", from left to right
    # whether it is there only in rows that have its argument; known where rows of both kinds are
    optional: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of its value, `(*plates, *event)`, for each row or, of a global site, for all rows."""
        return (*(size for _, size in self.plates), *self.event_shape)

    @property
    def is_factor(self) -> bool:
        """Whether it is a `pyro.factor`, a number to be added and no distribution: it observes a value without elements."""
        return self.role == "observed" and 0 in self.event_shape


@dataclass(frozen=True)
class Layout:
    """The structure of a pair, as one run on a batch shows it. Printed, it has one line per site.

    `check_pair` returns a layout, and a `Fit` keeps that of its pair.

    Args:
        sites: The sample sites, those of the guide first. Each has a `name`, a `role` ("latent", "auxiliary" or "observed"),
            `local` (whether it has one value for each row), `event_shape`, the `plates` other than "data" that it is in, the
            `argument` that it observes, and the side in which it is `enumerated`, if it is.
        plate_nesting: How many dimensions the plates of the pair take up, at least 1.
        arguments: The shape of one row and the dtype of each argument, by name.

    Example:
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6)), pv.mlp(6, fam.Normal(2)))
        >>> layout = pv.check_pair(vae, torch.zeros(5, 6))
        >>> print(layout)
        z  latent     per row  event (2,)
        x  observed   per row  event (6,) <- x
        >>> layout.plate_nesting, layout.arguments
        (1, {'x': ((6,), torch.float32)})
    """

    sites: tuple[Site, ...]
    plate_nesting: int
    arguments: dict[str, tuple[tuple[int, ...], torch.dtype]]

    @property
    def shared(self) -> list[str]:
        """The names of the global latent sites: those outside the plate "data", whose one value all rows share."""
        return [s.name for s in self.sites if s.role != "observed" and not s.local]

    @property
    def global_sites(self) -> list[str]:
        """The names of all sites outside the plate "data": global latent sites, observed ones, and factors."""
        return [s.name for s in self.sites if not s.local]

    @property
    def enumerates(self) -> bool:
        """Whether any site is enumerated."""
        return any(s.enumerated is not None for s in self.sites)

    def site(self, name: str | None, *, role: str, local: bool | None = None, guided: bool = False) -> Site:
        """The site of this name, or for None the only site of this role.

        Args:
            name: Name of the site, or None where the pair has one candidate only.
            role: "latent", "auxiliary" or "observed".
            local: Whether the site is inside the plate "data"; None allows both.
            guided: Leave out the sites that the guide does not have, because the model sums them out.

        Raises:
            PairError: There is no such site, or several. The message lists the candidates.
        """
        choices = [
            s
            for s in self.sites
            if s.role == role and (local is None or s.local == local) and not (guided and s.enumerated == "model")
        ]
        if name is None and len(choices) == 1:
            return choices[0]
        for s in choices:
            if s.name == name:
                return s
        listed = ", ".join(repr(s.name) for s in choices) or "none"
        if local and role == "latent" and (shared := [s.name for s in self.sites if s.role == role and not s.local]):
            listed += f" of each row, and {', '.join(map(repr, shared))} of all rows together"
        got = "no name was given" if name is None else f"got {name!r}"
        summed = any(s.name == name and s.enumerated == "model" for s in self.sites)
        why = ", which the model sums out and the guide does not have" if guided and summed else ""
        cure = (
            ""
            if choices or "together" not in listed
            else " pv.global_posterior(fitted) draws those of all rows together."
        )
        raise PairError(f"Choose one {role} site with site=...: this pair has {listed}; {got}{why}.{cure}")

    def latent(self, name: str | None, *, guided: bool = False) -> Site:
        """The latent site of this name, local or global; for None the only one that each row has.

        Raises:
            PairError: There is no such site, or there are several and none is named.
        """
        return self.site(name, role="latent", local=True if name is None else None, guided=guided)

    def __str__(self) -> str:
        width = max(len(s.name) for s in self.sites)
        rows = []
        for s in self.sites:
            of = f" <- {s.argument}{', where it is known' if s.optional else ''}" if s.argument else ""
            plates = "".join(f", {name} ({size})" for name, size in s.plates)
            summed = f"  enumerated in the {s.enumerated}" if s.enumerated else ""
            place = "per row" if s.local else "global"
            role, event = ("factor", "") if s.is_factor else (s.role, f"  event {tuple(s.event_shape)}")
            rows.append(f"{s.name:<{width}}  {role:<9}  {place}{plates}{event}{of}{summed}")
        return "\n".join(rows)

    def _repr_html_(self) -> str:
        return table("Sites", COLUMNS, self.rows())

    def rows(self) -> list[tuple[str, ...]]:
        """A row of a table for each site, under `COLUMNS`."""
        plates = ["per row" if s.local else "global" for s in self.sites]
        kinds = ["factor" if s.is_factor else s.role for s in self.sites]
        return [
            (s.name, kind, plate, str(tuple(s.event_shape)), s.argument or "", s.enumerated or "")
            for s, kind, plate in zip(self.sites, kinds, plates)
        ]


def union(layouts: Sequence[Layout]) -> Layout:
    """The sites and arguments of rows with different arguments as one layout; of each site as the first of them has it.

    Sites marked `objective_only`, which are no part of the model's distribution, are only those of the first.
    """
    sites: dict[str, Site] = {}
    others = (site for layout in layouts[1:] for site in layout.sites if not site.objective_only)
    for site in (*layouts[0].sites, *others):
        missing = site.argument is not None and any(site.argument not in layout.arguments for layout in layouts)
        sites.setdefault(site.name, replace(site, optional=missing))
    arguments = {name: what for layout in layouts for name, what in layout.arguments.items()}
    return Layout(tuple(sites.values()), max(layout.plate_nesting for layout in layouts), arguments)


def _module_parameters(pair: PairLike) -> dict[int, Tensor]:
    return {id(p): p for module in modules(pair).values() for p in module.parameters()}


def describe(pair: PairLike, batch: Mapping[str, Tensor]) -> Layout:
    """The layout of a pair, from one run on a batch in the current param store, in evaluation mode.

    The run creates parameters that did not exist before (of AutoGuides, or by `pyro.param`), on the batch's device.

    Raises:
        PairError: The sites of model and guide do not match each other or the batch, as `check_pair` explains.
    """
    with evaluating(pair):  # a run to look at may not move running means, and relaxed guides are discrete ones in truth
        return describe_run(pair, batch)[0]


def describe_run(
    pair: PairLike, batch: Mapping[str, Tensor], during: AbstractContextManager[Any] | None = None
) -> tuple[Layout, tuple[Any, Any]]:
    """The layout as `describe` finds it, and the (model trace, guide trace) of the run, which takes place inside `during`."""
    arguments(pair)
    try:
        return _describe_run(pair, batch, during)
    except (PairError, ShapeError) as error:
        with fork_rng(), param_scope({}):
            cure = cure_by_trying(batch, lambda other: _describe_run(pair, other, None))
        if not cure:
            raise
        end = "" if str(error).endswith(".") else "."
        raise PairError(f"{error}{end}{cure}") from error


def _describe_run(
    pair: PairLike, batch: Mapping[str, Tensor], during: AbstractContextManager[Any] | None
) -> tuple[Layout, tuple[Any, Any]]:
    before = _module_parameters(pair)
    try:
        device = next(iter(batch.values())).device
        with (
            unwritten(batch, "pair", by_value=True),
            OnlyDistributions(),
            MakeParamsOn(device),
            indices_in_range(device),
            no_nameless_draws(every_module(pair).values()),
            during or nullcontext(),
        ):
            with unwritten(batch, "guide"):
                guide_trace = poutine.trace(pair.guide).get_trace(**batch)
            for name, node in sample_sites(guide_trace).items():
                if node["is_observed"]:
                    raise PairError(f"The guide {observes(name, node)}")
            with unwritten(batch, "model"):
                model_trace = poutine.trace(Replay(guide_trace)(pair.model)).get_trace(**batch)
    except PyrovaeError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, NotImplementedError) as error:
        came = ", ".join(f"{name}: {tuple(v.shape)} {str(v.dtype)[6:]}" for name, v in batch.items())
        what = in_words(error) + where_it_failed(error)  # without the table of all shapes that Pyro adds
        what += cure_of_shapes(error, num_rows(batch), next(iter(batch.values())).shape[1:])
        gaps = [name for name, v in batch.items() if v.is_floating_point() and bool(v.isnan().any())]
        if "nan" in str(error) and gaps:
            what += f"; {' and '.join(map(repr, gaps))} has NaN, which this pair does not take. {cure_of_gaps(gaps)}"
        dtypes = {p.dtype for module in modules(pair).values() for p in module.parameters()}
        cure = cure_of_devices(error, device) or cure_of_dtypes(error, batch, dtype_of(pair))
        cure = cure or cure_of_indices(error, batch) or cure_of_weights(error, dtypes)
        raise PairError(f"Running the pair on a batch ({came}) failed: {what}{cure}") from error
    if before.keys() - _module_parameters(pair).keys():
        raise PairError(
            "Model and guide have different parameters under one Pyro name, so that one of them was lost. "
            "Give one of the two PyroModules a name of its own: PyroModule(name='guide')."
        )
    model_sites, guide_sites = sample_sites(model_trace), sample_sites(guide_trace)
    _check_sites(model_sites, guide_sites, num_rows(batch))
    sites = []
    for name, node in {**guide_sites, **model_sites}.items():
        observed = bool(node["is_observed"])
        source = next((a for a, v in batch.items() if observed and same_memory(node["value"], v)), None)
        if source is not None and is_local(node):
            not_one_event(name, node)
        sites.append(
            Site(
                name=name,
                role="observed" if observed else "latent" if name in model_sites else "auxiliary",
                local=is_local(node),
                event_shape=tuple(node["fn"].event_shape),
                argument=source,
                objective_only=bool(node["infer"].get("objective_only")),
                enumerated=_enumerated(name, model_sites, guide_sites),
                plates=_other_plates(node),
            )
        )
    layout = Layout(
        sites=tuple(sites),
        plate_nesting=plate_nesting(guide_sites, model_sites),
        arguments={name: (tuple(v.shape[1:]), v.dtype) for name, v in batch.items()},
    )
    return layout, (model_trace, guide_trace)


def _other_plates(node: Any) -> tuple[tuple[str, int], ...]:
    frames = [f for f in node["cond_indep_stack"] if f.vectorized and f.name not in (DATA_PLATE, PARTICLE_PLATE)]
    return tuple((f.name, int(f.size)) for f in sorted(frames, key=lambda f: f.dim))


def _enumerated(name: str, model_sites: Mapping[str, Any], guide_sites: Mapping[str, Any]) -> str | None:
    side, node = ("guide", guide_sites[name]) if name in guide_sites else ("model", model_sites[name])
    if not is_marked(node):
        return None
    check_mark(name, node["fn"], node["infer"])
    return side


def check_marks(model_sites: Mapping[str, Any], guide_sites: Mapping[str, Any]) -> None:
    """Raise PairError if the model marks a site for enumeration and the guide draws it, so that the mark would be ignored."""
    for name, node in model_sites.items():
        if is_marked(node) and name in guide_sites and not is_marked(guide_sites[name]):
            raise PairError(
                f"Site {name!r} is marked infer={{'enumerate': ...}} in the model only, and the guide draws it: mark it in "
                "the guide, take it out of the guide, or remove the mark so that it is drawn."
            )


def _check_supports(name: str, guide: Any, model: Any) -> None:
    """Raise PairError if the guide draws where the prior has no density, or a density of another kind of value."""
    if type(guide["fn"]).__name__ == "Delta" or guide["infer"].get("is_auxiliary"):
        return
    try:
        drawn, wanted = (kind_of(node["fn"].support) for node in (guide, model))
        value = guide["value"]
        # values that are not finite come from missing or infinite data, for which there is another error
        inside = bool(model["fn"].support.check(value).all()) or not bool(torch.isfinite(value).all())
    except (NotImplementedError, AttributeError, RuntimeError):  # a distribution without a support
        return
    if drawn != wanted or not inside:
        raise PairError(
            f"Site {name!r}: the guide draws {drawn} from {distribution_name(guide['fn'])}, but the prior "
            f"{distribution_name(model['fn'])} is a distribution of {wanted}"
            f"{'' if drawn != wanted else ' with a smaller support'}. Give the guide a family with the prior's support."
        )


def _check_sites(model_sites: Mapping[str, Any], guide_sites: Mapping[str, Any], rows: int) -> None:
    check_marks(model_sites, guide_sites)
    for name, node in guide_sites.items():
        if name not in model_sites and not node["infer"].get("is_auxiliary"):
            raise PairError(
                f"The guide draws {name!r}, which the model does not have (its sites are {listed(sorted(model_sites))}). "
                "Use the same name in both, or mark the guide's site infer={'is_auxiliary': True}."
            )
        if name in model_sites and model_sites[name]["is_observed"]:
            raise PairError(
                f"The model observes {name!r}, and the guide draws it too: draw it in the guide only where it is not observed."
            )
    for name, node in model_sites.items():
        enumerated = node["infer"].get("enumerate") is not None
        if not node["is_observed"] and name not in guide_sites and not enumerated:
            raise PairError(
                f"The model draws {name!r}, and the guide does not (its sites are {listed(sorted(guide_sites))}). "
                "Draw it in the guide, observe it, or, if it is discrete, mark it infer={'enumerate': 'parallel'}."
            )
        if name in guide_sites:
            drawn, wanted = tuple(guide_sites[name]["fn"].event_shape), tuple(node["fn"].event_shape)
            if drawn != wanted:
                raise PairError(
                    f"Site {name!r}: the guide draws events of shape {drawn}, but the model's are of shape {wanted}. "
                    "Give both the same dimensions, and use .to_event(...) on both."
                )
            _check_supports(name, guide_sites[name], node)
            if is_local(guide_sites[name]) != is_local(node):
                inside, outside = ("model", "guide") if is_local(node) else ("guide", "model")
                raise PairError(
                    f"Site {name!r} is inside plate 'data' in the {inside} and outside of it in the {outside}: "
                    "it needs one value per row in both, or one value for all rows in both."
                )
    if not any(is_local(node) for node in model_sites.values()):
        frames = [f for node in model_sites.values() for f in node["cond_indep_stack"]]
        if other := next((f.name for f in frames if f.vectorized and f.dim == -1 and f.size == rows), None):
            raise PairError(
                f"The plate over the rows is to be named 'data': it is {other!r} here. Rename it in both programs."
            )
        raise PairError(
            "No site of the model is in the plate 'data': put the sites that each row has of its own inside "
            f"`with pyro.plate('data', len(x)):` (the sites are {listed(sorted(model_sites))}). That is one site for all rows, "
            "and no loop over them."
        )
    _check_sizes(model_sites, guide_sites)
    for name, node in [*guide_sites.items(), *model_sites.items()]:
        _check_shape(name, node, rows)


def _check_sizes(model_sites: Mapping[str, Any], guide_sites: Mapping[str, Any]) -> None:
    """Raise PairError if the plate "data" has several sizes, of which some terms would count more often than others.

    Pyro takes the rows of the guide's plate for a subsample of a larger one in the model, and scales only the model's terms.
    """
    sizes = {
        (f.full_size or f.size): side
        for side, sites in (("guide", guide_sites), ("model", model_sites))
        for node in sites.values()
        for f in node["cond_indep_stack"]
        if f.name == DATA_PLATE and f.vectorized
    }
    if len(sizes) > 1:
        found = " and ".join(f"{size} in the {side}" for size, side in sizes.items())
        raise PairError(
            f"The plate 'data' has size {found}, so that their terms would count differently often: write "
            "`pyro.plate('data', len(x))` in both, where x is an argument. A fit scales minibatches itself."
        )


def _check_shape(name: str, node: Any, rows: int) -> None:
    frames = {f.dim: f for f in node["cond_indep_stack"] if f.vectorized}
    for frame in frames.values():
        if frame.name == DATA_PLATE and frame.size != rows:
            raise PairError(
                f"Plate 'data' at site {name!r} has size {frame.size}, the batch has {rows} rows: "
                "write `pyro.plate('data', len(x))`, where x is an argument."
            )
    fn = node["fn"]
    shape = tuple(fn.batch_shape)
    if node["is_observed"] and isinstance(node["value"], Tensor):
        value = tuple(node["value"].shape)
        event = len(fn.event_shape)
        if value[len(value) - event :] != tuple(fn.event_shape) or len(value) < event:
            raise PairError(
                f"Site {name!r} observes rows of shape {value[1:]}, but its distribution has events of shape "
                f"{tuple(fn.event_shape)}: give the likelihood the event shape of the data."
            )
        try:
            shape = broadcast_shapes(shape, value[: len(value) - event])
        except RuntimeError:
            raise PairError(
                f"Site {name!r} observes a value of batch shape {value[: len(value) - event]}, but its distribution has "
                f"batch shape {shape}: one has a dimension too many or too few. Check the argument of .to_event(...)."
            ) from None
    for dim in range(-len(shape), 0):
        if shape[dim] != 1 and dim not in frames:
            raise PairError(
                f"Site {name!r} has batch shape {tuple(shape)}, but its plates "
                f"{[f.name for f in frames.values()]} cover only the dimensions {sorted(frames)}: "
                "declare the others as part of one event with .to_event(n), or add a plate."
            )

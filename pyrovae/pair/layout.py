"""What a pair is made of (`describe`), found by running it once on a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.constraints import sphere
from torch import Tensor
from torch.distributions import constraints

from pyrovae.errors import PairError, PyrovaeError
from pyrovae.pair.batch import num_rows
from pyrovae.pair.handlers import DATA_PLATE, Replay, check_mark, same_memory
from pyrovae.pair.parameters import modules
from pyrovae.pair.program import arguments, distribution_name, is_local, is_marked, plate_nesting, sample_sites


@dataclass(frozen=True)
class Site:
    """What one sample site is. Shapes are those of one row: without particles, without the rows' dimension."""

    name: str
    role: str  # "observed", "latent" (model and guide) or "auxiliary" (guide only)
    local: bool  # inside the plate "data": one value a row
    event_shape: tuple[int, ...]
    argument: str | None  # the argument that an observed site observes
    objective_only: bool
    enumerated: str | None = None  # "guide" or "model": the side whose mark has it summed out exactly; None: drawn


@dataclass(frozen=True)
class Layout:
    """What running a pair once tells: its sites, how deep its plates nest, and each argument's row shape and dtype."""

    sites: tuple[Site, ...]
    plate_nesting: int
    arguments: dict[str, tuple[tuple[int, ...], torch.dtype]]

    @property
    def shared(self) -> list[str]:
        """The latent sites that belong to no row."""
        return [s.name for s in self.sites if s.role != "observed" and not s.local]

    @property
    def rowless(self) -> list[str]:
        """The sites that belong to no row, observed ones and factors among them."""
        return [s.name for s in self.sites if not s.local]

    @property
    def enumerates(self) -> bool:
        return any(s.enumerated is not None for s in self.sites)

    def site(self, name: str | None, *, role: str, local: bool | None = None, guided: bool = False) -> Site:
        """The site of that name; for None, the only one of that role (`guided`: only those that the guide has, too).

        PairError lists the choices otherwise.
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
        got = "no name was given" if name is None else f"got {name!r}"
        summed = any(s.name == name and s.enumerated == "model" for s in self.sites)
        why = ", which the model sums out and the guide does not have" if guided and summed else ""
        raise PairError(f"Name one {role} site with site=...: this pair has {listed}; {got}{why}.")

    def __str__(self) -> str:
        width = max(len(s.name) for s in self.sites)
        rows = []
        for s in self.sites:
            of = f" <- {s.argument}" if s.argument else ""
            plate = "per row" if s.local else "global"
            summed = f"  enumerated in the {s.enumerated}" if s.enumerated else ""
            rows.append(f"{s.name:<{width}}  {s.role:<9}  {plate}  event {tuple(s.event_shape)}{of}{summed}")
        return "\n".join(rows)


def _module_parameters(pair: Any) -> dict[int, Tensor]:
    return {id(p): p for module in modules(pair).values() for p in module.parameters()}


def describe(pair: Any, batch: Mapping[str, Tensor]) -> Layout:
    """Run the pair once on a batch, in the active param store, and say what it is made of.

    Raises PairError for sites that do not fit: see `check_pair`. Modules with lazily made parameters (AutoGuides,
    `pyro.param`) have them afterwards.
    """
    arguments(pair)
    before = _module_parameters(pair)
    try:
        guide_trace = poutine.trace(pair.guide).get_trace(**batch)
        for name, node in sample_sites(guide_trace).items():
            if node["is_observed"]:
                raise PairError(f"The guide observes site {name!r}: a guide only draws; put obs=... into the model.")
        model_trace = poutine.trace(Replay(guide_trace)(pair.model)).get_trace(**batch)
    except PyrovaeError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, NotImplementedError) as error:
        came = ", ".join(f"{name}: {tuple(v.shape)} {str(v.dtype)[6:]}" for name, v in batch.items())
        what = (str(error).splitlines() or [type(error).__name__])[0]  # Pyro adds a table of all shapes below
        if what.startswith("Shape mismatch inside plate"):
            what += "; declare dimensions that are not rows part of one event with .to_event(n)"
        raise PairError(f"Running the pair on a batch ({came}) failed: {what}") from error
    if before.keys() - _module_parameters(pair).keys():
        raise PairError(
            "Model and guide hold different parameters under one Pyro name, and one was lost. "
            "Give one of the two PyroModules a name of its own: PyroModule(name='guide')."
        )
    model_sites, guide_sites = sample_sites(model_trace), sample_sites(guide_trace)
    _check_sites(model_sites, guide_sites, num_rows(batch))
    sites = []
    for name, node in {**guide_sites, **model_sites}.items():
        observed = bool(node["is_observed"])
        source = next((a for a, v in batch.items() if observed and same_memory(node["value"], v)), None)
        sites.append(
            Site(
                name=name,
                role="observed" if observed else "latent" if name in model_sites else "auxiliary",
                local=is_local(node),
                event_shape=tuple(node["fn"].event_shape),
                argument=source,
                objective_only=bool(node["infer"].get("objective_only")),
                enumerated=_enumerated(name, model_sites, guide_sites),
            )
        )
    return Layout(
        sites=tuple(sites),
        plate_nesting=plate_nesting(guide_sites, model_sites),
        arguments={name: (tuple(v.shape[1:]), v.dtype) for name, v in batch.items()},
    )


def _enumerated(name: str, model_sites: Mapping[str, Any], guide_sites: Mapping[str, Any]) -> str | None:
    side, node = ("guide", guide_sites[name]) if name in guide_sites else ("model", model_sites[name])
    if not is_marked(node):
        return None
    check_mark(name, node["fn"], node["infer"])
    return side


def check_marks(model_sites: Mapping[str, Any], guide_sites: Mapping[str, Any]) -> None:
    """PairError for a site that the model marks for enumeration and the guide draws unmarked: the mark would be ignored."""
    for name, node in model_sites.items():
        if is_marked(node) and name in guide_sites and not is_marked(guide_sites[name]):
            raise PairError(
                f"Site {name!r} is marked infer={{'enumerate': ...}} in the model only, and the guide draws it: mark it in "
                "the guide, take it out of the guide, or remove the mark to draw it."
            )


def _check_supports(name: str, guide: Any, model: Any) -> None:
    """PairError for a guide that draws where the prior has no density, or a density of another kind."""
    if type(guide["fn"]).__name__ == "Delta" or guide["infer"].get("is_auxiliary"):
        return
    try:
        drawn, wanted = (_kind(node["fn"].support) for node in (guide, model))
        value = guide["value"]
        # what comes from missing or infinite data has an error of its own
        inside = bool(model["fn"].support.check(value).all()) or not bool(torch.isfinite(value).all())
    except (NotImplementedError, AttributeError, RuntimeError):  # a support that is not stated
        return
    if drawn != wanted or not inside:
        raise PairError(
            f"Site {name!r}: the guide draws {drawn}, from {distribution_name(guide['fn'])}, and the prior, "
            f"{distribution_name(model['fn'])}, is of {wanted}{'' if drawn != wanted else ' of a smaller support'}. Give the "
            "guide a family of the prior's support."
        )


def _kind(support: Any) -> str:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if getattr(support, "is_discrete", False):
        return "integers"
    if support is constraints.simplex:
        return "shares that sum to 1"
    return "points on a sphere" if support is sphere else "real numbers"


def _check_sites(model_sites: Mapping[str, Any], guide_sites: Mapping[str, Any], rows: int) -> None:
    check_marks(model_sites, guide_sites)
    for name, node in guide_sites.items():
        if name not in model_sites and not node["infer"].get("is_auxiliary"):
            raise PairError(
                f"The guide draws {name!r}, which the model does not have (it has {sorted(model_sites)}). "
                "Use the same name in both, or mark the guide's site infer={'is_auxiliary': True}."
            )
        if name in model_sites and model_sites[name]["is_observed"]:
            raise PairError(
                f"The model observes {name!r} and the guide draws it too: draw it where it is unknown only."
            )
    for name, node in model_sites.items():
        enumerated = node["infer"].get("enumerate") is not None
        if not node["is_observed"] and name not in guide_sites and not enumerated:
            raise PairError(
                f"The model draws {name!r}, and the guide does not (it has {sorted(guide_sites)}). "
                "Draw it in the guide, observe it, or mark it infer={'enumerate': 'parallel'} if it is discrete."
            )
        if name in guide_sites:
            drawn, wanted = tuple(guide_sites[name]["fn"].event_shape), tuple(node["fn"].event_shape)
            if drawn != wanted:
                raise PairError(
                    f"Site {name!r}: the guide draws events of shape {drawn}, the model's prior wants {wanted}. "
                    "Give both the same number of dimensions, and .to_event(...) on both."
                )
            _check_supports(name, guide_sites[name], node)
            if is_local(guide_sites[name]) != is_local(node):
                inside, outside = ("model", "guide") if is_local(node) else ("guide", "model")
                raise PairError(
                    f"Site {name!r} is inside plate 'data' in the {inside} and outside of it in the {outside}: "
                    "one value a row in both, or one value for all in both."
                )
    if not any(is_local(node) for node in model_sites.values()):
        raise PairError(
            "No site of the model is in the plate 'data': wrap what belongs to a row in "
            f"`with pyro.plate('data', len(x)):` (sites: {sorted(model_sites)})."
        )
    for name, node in [*guide_sites.items(), *model_sites.items()]:
        _check_shape(name, node, rows)


def _check_shape(name: str, node: Any, rows: int) -> None:
    frames = {f.dim: f for f in node["cond_indep_stack"] if f.vectorized}
    for frame in frames.values():
        if frame.name == DATA_PLATE and frame.size != rows:
            raise PairError(
                f"Plate 'data' at site {name!r} has size {frame.size}, the batch has {rows} rows: "
                "write `pyro.plate('data', len(x))`."
            )
    fn = node["fn"]
    shape = tuple(fn.batch_shape)
    if node["is_observed"] and isinstance(node["value"], Tensor):
        value = tuple(node["value"].shape)
        event = len(fn.event_shape)
        if value[len(value) - event :] != tuple(fn.event_shape) or len(value) < event:
            raise PairError(
                f"Site {name!r} observes rows of shape {value[1:]}, its distribution has events of shape "
                f"{tuple(fn.event_shape)}: give the likelihood the data's event shape."
            )
        try:
            shape = torch.broadcast_shapes(shape, value[: len(value) - event])
        except RuntimeError:
            raise PairError(
                f"Site {name!r} observes a value of batch shape {value[: len(value) - event]}, its distribution has "
                f"batch shape {shape}: one of them has a dimension too many or too few; look at .to_event(...)."
            ) from None
    for dim in range(-len(shape), 0):
        if shape[dim] != 1 and dim not in frames:
            raise PairError(
                f"Site {name!r} has batch shape {tuple(shape)}, but its plates "
                f"{[f.name for f in frames.values()]} cover dimensions {sorted(frames)} only: "
                "declare the others part of one event with .to_event(n), or add a plate."
            )

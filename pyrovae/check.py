"""What a pair is made of (`describe`), and whether it holds together (`check_pair`). Both run it on a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.constraints import sphere
from torch import Tensor
from torch.distributions import constraints

from pyrovae.errors import PairError, PyrovaeError
from pyrovae.handlers import DATA_PLATE, PARTICLE_PLATE, Replay, SetValues, check_mark, same_memory
from pyrovae.pair import (
    Batch,
    Pair,
    arguments,
    as_batch,
    distribution_name,
    evaluating,
    fork_rng,
    group_rows,
    is_local,
    is_marked,
    modules,
    num_rows,
    param_scope,
    plate_nesting,
    run,
    sample_sites,
    take_group,
    take_rows,
    trainable,
)


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


# --- checks ----------------------------------------------------------------------------------------------------------


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


def check_pair(pair: Any, data: Any) -> Layout:
    """Check everything about a model/guide pair that can be checked on one batch, and say what it is made of.

    Rows that lack an argument which may be None (-1, or NaN) are looked at apart; the layout is that of the rows with the
    fewest arguments.

    The two take the same arguments; every latent site of the model is drawn by the guide with the same event shape and
    plates; one plate "data" has as many rows as the batch; batch shapes are explained by plates; log-densities are
    finite; an extra particle dimension on the left is carried through; every parameter gets a finite gradient.

    Returns the `Layout` (print it: a line a site). Raises PairError naming the site, shape, parameter or argument, and
    DataError when the batch itself is unfit. Leaves weights, the random state and the global param store untouched.
    """
    batch = as_batch(pair, data)
    parts = [take_group(batch, group) for group in group_rows(pair, batch)]
    with fork_rng(), param_scope({}), evaluating(pair):
        layouts = [describe(pair, part) for part in parts]
        for part in parts:
            check_fewer_rows(pair, part)
        check_gradients(pair, parts)
        for part, layout in zip(parts, layouts):
            check_particles(pair, part, layout)
            check_enumeration(pair, part, layout)
    return layouts[0]


def check_fewer_rows(pair: Any, batch: Batch) -> None:
    """PairError unless the pair runs on other rows than those it was first run on: a parameter per row cannot be trained
    on shuffled rows, and knows no new ones."""
    if num_rows(batch) < 2:
        return
    try:
        for trace in run(pair, take_rows(batch, slice(0, num_rows(batch) // 2))):
            for node in sample_sites(trace).values():
                node["fn"].log_prob(node["value"])
    except (RuntimeError, ValueError, IndexError) as error:
        raise PairError(
            f"The pair runs on {num_rows(batch)} rows and not on {num_rows(batch) // 2} of them "
            f"({(str(error).splitlines() or [''])[0]}): it holds something of its first batch's size. Use len(x), and for "
            "latent variables of a row a guide that reads the row; an AutoGuide keeps one parameter a row, so give it the "
            "global latents only."
        ) from error


def check_gradients(pair: Any, parts: Sequence[Batch]) -> None:
    """PairError unless every log-density is finite and every parameter, found or used, gets a finite gradient of their sum.

    `parts` are batches that may differ in their arguments: a classifier may learn from labelled rows alone.
    """
    total = torch.zeros(())
    for side, trace in ((side, trace) for part in parts for side, trace in zip(_SIDES, run(pair, part))):
        for name, node in sample_sites(trace).items():
            try:
                log_prob = node["fn"].log_prob(node["value"])
            except ValueError as error:
                raise PairError(f"Site {name!r} of the {side}: {error}") from error
            if not torch.isfinite(log_prob).all():
                raise PairError(
                    f"Site {name!r} of the {side} has a log-density that is not finite in "
                    f"{int((~torch.isfinite(log_prob)).sum())} of {log_prob.numel()} places: {node['fn']}."
                )
            total = total.to(log_prob) + log_prob.sum()
    named = trainable(pair)
    if not total.requires_grad:
        if named:
            raise PairError(f"No parameter reaches the loss: {sorted(named)} get no gradient.")
        return
    known = {id(p) for p in named.values()}
    for leaf in _leaves(total):
        if id(leaf) not in known:
            raise PairError(
                f"The loss depends on a parameter of shape {tuple(leaf.shape)} that nobody trains. Hold its module in "
                "the pair, or call pyro.module('name', module) in the model (its weights must be contiguous: Pyro "
                "copies others, and the copy would be trained)."
            )
    gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    without = [name for name, g in zip(named, gradients) if g is None]
    if without:
        raise PairError(
            f"No gradient reaches {', '.join(map(repr, without))}: use it in the model or guide, "
            "freeze it with .requires_grad_(False), or remove it."
        )
    broken = [name for name, g in zip(named, gradients) if g is not None and not torch.isfinite(g).all()]
    if broken:
        raise PairError(f"The gradient of {', '.join(map(repr, broken))} is not finite on the first batch.")


def model_only(pair: Any, parts: Sequence[Batch]) -> dict[str, Tensor]:
    """The parameters that only the model uses, by name: no draw of the guide, and no log q, has a gradient by them.

    `parts` as in `check_gradients`. PairError where there is none, or where the guide has none.
    """
    total = torch.zeros(())
    for part in parts:
        for node in sample_sites(run(pair, part)[1]).values():
            total = total + node["value"].sum() + node["fn"].log_prob(node["value"]).sum()
    named = trainable(pair)
    leaves = list(named.values())
    gradients = torch.autograd.grad(total, leaves, allow_unused=True) if total.requires_grad else [None] * len(leaves)
    found = {name: leaf for (name, leaf), gradient in zip(named.items(), gradients) if gradient is None}
    if not found or len(found) == len(named):
        what = "all parameters are the model's alone" if found else "the guide uses every parameter"
        raise PairError(
            "A schedule of the weight 'model' (lagging) moves the guide's parameters apart from those which only the model "
            f"uses, and here {what}: give each parameters of its own, or leave that schedule out."
        )
    return found


def _leaves(total: Tensor) -> list[Tensor]:
    """Leaf tensors that `total` depends on: what autograd would accumulate into."""
    found: list[Tensor] = []
    seen, stack = set(), [total.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found.append(leaf)
        stack.extend(parent for parent, _ in node.next_functions)
    return found


def check_particles(pair: Any, batch: Batch, layout: Layout, num_particles: int = 2) -> None:
    """PairError unless the pair gives every particle of a run the log-densities that it has when run alone.

    An extra dimension on the left of the plates either breaks a model, or, worse, is mistaken for another one: a softmax over
    dim 1, a mean over dim 0.
    """
    try:
        together = run(pair, batch, num_particles=num_particles, plate_nesting=layout.plate_nesting)
        sums = [
            _by_particle(node, num_particles, layout) for trace in together for node in sample_sites(trace).values()
        ]
    except (RuntimeError, ValueError, IndexError) as error:
        raise PairError(
            f"The pair cannot carry a particle dimension on the left of its plates: {error} {_CURE}"
        ) from error
    names = [name for trace in together for name in sample_sites(trace)]
    # What only the model has is drawn there when it is not enumerated.
    own = {name: node for name, node in sample_sites(together[0]).items() if not node["is_observed"]}
    drawn = {**own, **sample_sites(together[1])}
    for name, node in drawn.items():
        shape = tuple(node["value"].shape)
        if len(shape) != len(node["fn"].event_shape) + layout.plate_nesting + 1 or shape[0] != num_particles:
            raise PairError(
                f"Site {name!r} lost the particle dimension: with {num_particles} particles its shape is {shape}."
            )
    for k in range(num_particles):
        # A global site keeps singleton dimensions where the plates would stand; alone it has none.
        values = {name: _one_particle(node, k) for name, node in drawn.items()}
        alone = run(Pair(SetValues(values)(pair.model), SetValues(values)(pair.guide)), batch)
        nodes = [node for trace in alone for node in sample_sites(trace).values()]
        for name, node, found in zip(names, nodes, sums):
            wanted = node["fn"].log_prob(node["value"]).sum()
            if not torch.allclose(found[k], wanted, rtol=1e-3, atol=1e-3):
                raise PairError(
                    f"Site {name!r} has another log-density beside other particles ({found[k].item():.6g}) than alone "
                    f"({wanted.item():.6g}): something mistakes the particle dimension for another one. {_CURE}"
                )


def check_enumeration(pair: Any, batch: Batch, layout: Layout) -> None:
    """PairError unless the pair gives every value of its enumerated sites the log-densities that it has with that value drawn.

    Each adds a dimension on the left of all plates. The first and the last value of each are tried.
    """
    if not layout.enumerates:
        return
    with fork_rng(), torch.no_grad():
        _check_enumeration(pair, batch, layout)


def _check_enumeration(pair: Any, batch: Batch, layout: Layout) -> None:
    try:
        together = run(pair, batch, plate_nesting=layout.plate_nesting, enumerate=True)
        nodes = {(side, n): node for side, t in zip(_SIDES, together) for n, node in sample_sites(t).items()}
        log_probs = {key: node["fn"].log_prob(node["value"]) for key, node in nodes.items()}
    except PyrovaeError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        what = (str(error).splitlines() or [""])[0]
        raise PairError(
            f"The pair cannot carry an enumerated dimension on the left of its plates: {what}. {_CURE}"
        ) from error
    dims = {node["infer"]["_enumerate_dim"] for node in nodes.values() if "_enumerate_dim" in node["infer"]}
    for last in (False, True):
        at = dict.fromkeys(dims, -1 if last else 0)
        values = {name: _value_at(node, at, layout) for (_, name), node in nodes.items() if not node["is_observed"]}
        alone = run(Pair(SetValues(values)(pair.model), SetValues(values)(pair.guide)), batch)
        for side, trace in zip(_SIDES, alone):
            for name, node in sample_sites(trace).items():
                wanted = node["fn"].log_prob(node["value"]).sum()
                found = _by_value(log_probs[side, name], at).sum()
                if log_probs[side, name].numel() and not torch.allclose(found, wanted, rtol=1e-3, atol=1e-3):
                    raise PairError(
                        f"Site {name!r} has another log-density beside all values of the enumerated sites "
                        f"({found.item():.6g}) than alone ({wanted.item():.6g}): something mistakes an enumerated dimension "
                        f"for another one. {_CURE}"
                    )


_SIDES = ("model", "guide")
_CURE = (
    "Write networks and indices for any number of left-hand dimensions, (*batch, D), and index from the right (dim=-1)."
)


def _by_particle(node: Any, num_particles: int, layout: Layout) -> Tensor:
    log_prob = node["fn"].log_prob(node["value"])
    depth = layout.plate_nesting + 1
    full = log_prob.reshape((1,) * (depth - log_prob.dim()) + tuple(log_prob.shape))
    return full.expand(num_particles, *full.shape[1:]).flatten(1).sum(1)


def _by_value(tensor: Tensor, at: Mapping[int, int], event_dim: int = 0) -> Tensor:
    """The tensor at one value of each enumerated dimension that it has."""
    for dim, index in at.items():
        if tensor.dim() >= -dim + event_dim:
            tensor = tensor.narrow(dim - event_dim, tensor.shape[dim - event_dim] - 1 if index else 0, 1)
    return tensor


def _value_at(node: Any, at: Mapping[int, int], layout: Layout) -> Tensor:
    event = tuple(node["fn"].event_shape)
    value = _by_value(node["value"], at, len(event))
    batch = value.shape[: value.dim() - len(event)]
    sizes = {f.dim: f.size for f in node["cond_indep_stack"] if f.vectorized}
    # A site alone has the dimensions of its plates, and no more.
    depth = max((-dim for dim in sizes), default=0)
    own = (1,) * (depth - len(batch)) + tuple(batch[len(batch) - min(depth, len(batch)) :])
    full = [max(size, sizes.get(i - depth, 1)) for i, size in enumerate(own)]
    return value.reshape((*own, *event)).expand((*full, *event)).clone()


def _one_particle(node: Any, k: int) -> Tensor:
    value: Tensor = node["value"][k]
    if any(f.vectorized and f.name != PARTICLE_PLATE for f in node["cond_indep_stack"]):
        return value
    return value.reshape(node["fn"].event_shape)

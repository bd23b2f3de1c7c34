"""Does a pair hold together (`check_pair`)? Everything that can be found out by running it on one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from pyrovae.errors import PairError, PyrovaeError
from pyrovae.pair.batch import Batch, as_batch, group_rows, num_rows, take_group, take_rows
from pyrovae.pair.handlers import PARTICLE_PLATE, SetValues
from pyrovae.pair.layout import Layout, describe_run
from pyrovae.pair.parameters import evaluating, fork_rng, param_scope, trainable
from pyrovae.pair.program import Pair, run, sample_sites


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
        layouts, traces = zip(*(describe_run(pair, part) for part in parts))
        for part in parts:
            check_fewer_rows(pair, part)
        check_gradients(pair, traces)
        for part, layout in zip(parts, layouts):
            check_particles(pair, part, layout)
            check_enumeration(pair, part, layout)
    found: Layout = layouts[0]
    return found


def check_fewer_rows(pair: Any, batch: Batch, during: AbstractContextManager[Any] | None = None) -> int:
    """PairError unless the pair runs on other rows than those it was first run on: a parameter per row cannot be trained
    on shuffled rows, and knows no new ones. The run happens inside the context `during`.

    Returns how many of the rows were left out, 0 where there is only one and nothing was run.
    """
    if num_rows(batch) < 2:
        return 0
    half = take_rows(batch, slice(0, num_rows(batch) // 2))
    try:
        with during or nullcontext():
            log_densities(run(pair, half))
    except (RuntimeError, ValueError, IndexError) as error:
        raise PairError(
            f"The pair runs on {num_rows(batch)} rows and not on {num_rows(batch) // 2} of them "
            f"({(str(error).splitlines() or [''])[0]}): it holds something of its first batch's size. Use len(x), and for "
            "latent variables of a row a guide that reads the row; an AutoGuide keeps one parameter a row, so give it the "
            "global latents only."
        ) from error
    return num_rows(batch) - num_rows(half)


def log_densities(traces: tuple[Any, Any]) -> list[Tensor]:
    """The log-density of every site of a run, model first."""
    return [node["fn"].log_prob(node["value"]) for trace in traces for node in sample_sites(trace).values()]


def check_gradients(pair: Any, runs: Sequence[tuple[Any, Any]]) -> None:
    """PairError unless every log-density is finite and every parameter, found or used, gets a finite gradient of their sum.

    `runs` are (model trace, guide trace) of batches that may differ in their arguments: a classifier may learn from labelled
    rows alone.
    """
    total = torch.zeros(())
    for side, trace in ((side, trace) for traces in runs for side, trace in zip(_SIDES, traces)):
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
    gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True, retain_graph=True)
    without = [name for name, g in zip(named, gradients) if g is None]
    if without:
        raise PairError(
            f"No gradient reaches {', '.join(map(repr, without))}: use it in the model or guide, "
            "freeze it with .requires_grad_(False), or remove it."
        )
    broken = [name for name, g in zip(named, gradients) if g is not None and not torch.isfinite(g).all()]
    if broken:
        raise PairError(f"The gradient of {', '.join(map(repr, broken))} is not finite on the first batch.")


def model_only(pair: Any, runs: Sequence[tuple[Any, Any]]) -> dict[str, Tensor]:
    """The parameters that only the model uses, by name: no draw of the guide, and no log q, has a gradient by them.

    `runs` as in `check_gradients`. PairError where there is none, or where the guide has none.
    """
    total = torch.zeros(())
    for _, guide_trace in runs:
        for node in sample_sites(guide_trace).values():
            total = total + node["value"].sum() + node["fn"].log_prob(node["value"]).sum()
    named = trainable(pair)
    leaves = list(named.values())
    gradients = (
        torch.autograd.grad(total, leaves, allow_unused=True, retain_graph=True)
        if total.requires_grad
        else [None] * len(leaves)
    )
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

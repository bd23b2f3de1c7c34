"""Checks of a pair that need no more than runs on one batch: `check_pair`, and the single checks that it consists of."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from pyrovae.errors import PairError, PyrovaeError
from pyrovae.pair.apart import depends_on_others, in_a_loop
from pyrovae.pair.batch import Batch, as_batch, cast, columns_of, group_rows, num_rows, take_group, take_rows
from pyrovae.pair.casts import find_casts
from pyrovae.pair.counted import warn_of_counts
from pyrovae.pair.datasets import is_streamed
from pyrovae.pair.devices import cure_of_devices
from pyrovae.pair.dtypes import cure_of_dtypes
from pyrovae.pair.handlers import PARTICLE_PLATE, DetachDraws
from pyrovae.pair.layout import Layout, describe_run, union
from pyrovae.pair.mistakes import CHECK_SCALE, cure_of_gaps, cure_of_scale, in_words, unfit_parameters, where_it_failed
from pyrovae.pair.parameters import default_dtype, dtype_of, evaluating, every_module, fork_rng, param_scope, trainable
from pyrovae.pair.program import PairLike, at_values, run, sample_sites, sites_by_side, unwritten_value
from pyrovae.pair.scales import warn_of_scales
from pyrovae.pair.supports import is_real


def check_pair(pair: PairLike, data: Any) -> Layout:
    """Check that a model p(x, z) and its guide q(z | x) match, by running them on one batch.

    These conditions are checked:

    - Model and guide take the same arguments.
    - The guide draws every latent site of the model, with the same event shape, inside the same plate, and where the prior
      has a density. Sites that are enumerated in the model are excepted.
    - The plate "data" has as many rows as the batch, and all other batch dimensions belong to plates, too.
    - All log-densities and gradients are finite. A parameter that gets no gradient is worth a warning.
    - The pair also runs on fewer rows, where rows have the log-densities that they have among all (if not, that is worth a
      warning), and with all values of enumerated sites at once, and the log-densities are the same as
      when it runs on each value alone. A pair that does not run with several particles can be fitted, one particle at a time,
      and is worth a warning.
    - What a fit calls the ELBO is a bound on log p(x). Sites that count otherwise than once, by `poutine.scale`, and factors
      (`pyro.factor`) are worth a warning, which says what it is instead.
    - Columns of real numbers are not far from what their likelihood expects before the fit, such as 1000 ± 300 under a Normal
      that starts near 0 ± 1. A column that is, in 20 rows or more, is worth a warning, which names the cure.

    Rows in which an argument with default None is missing (-1 or NaN) are checked separately. Weights, the random state and
    Pyro's global param store stay as they were.

    Args:
        pair: An object with a callable `model` and a callable `guide`.
        data: A few rows, each argument `(N, *event)`: a dict by argument, or one array for the model's first argument.

    Returns:
        The sites, plates and arguments of the pair. Printed, it has one line per site. Where arguments are missing in some
        rows, it has the sites of all rows, each as in the rows with the fewest arguments that have it.

    Raises:
        PairError: A condition is violated. The message names the site, parameter or argument.
        DataError: The data cannot be bound to the arguments of the model.

    Example:
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6)), pv.mlp(6, fam.Normal(2)))
        >>> print(pv.check_pair(vae, torch.zeros(5, 6)))
        z  latent     per row  event (2,)
        x  observed   per row  event (6,) <- x
        >>> other = pv.VAE(pv.priors.StandardNormal(3), vae.likelihood, vae.encoder)
        >>> pv.check_pair(other, torch.zeros(5, 6))
        Traceback (most recent call last):
        pyrovae.errors.PairError: Site 'z': the guide draws events of shape (2,), but the model's are of shape (3,). ...
    """
    batch = as_batch(pair, data)
    batch = cast(pair, batch, find_casts(pair, batch))
    parts = [take_rows(take_group(batch, group), slice(None)) for group in group_rows(pair, batch)]
    with fork_rng(), param_scope({}), default_dtype(pair), evaluating(pair):
        layouts, traces = zip(*(describe_run(pair, part) for part in parts))
        for part in parts:
            check_fewer_rows(pair, part)
        check_gradients(pair, traces)
        warn_of_counts(traces, stacklevel=2)
        for part, trace in zip(parts, traces):
            if looped := in_a_loop(trace):
                warnings.warn(
                    f"Site {looped!r} is in a loop, `for i in pyro.plate('data', ...)`, which makes a site of every row. It "
                    "can be fitted, slowly, and no question about rows be asked. Write `with pyro.plate('data', len(x))` once, "
                    "and sites that hold all rows of the batch along their first dimension.",
                    stacklevel=2,
                )
            elif found := depends_on_others(pair, part, trace):
                warnings.warn(
                    f"{found}. Something is computed across rows, such as x.mean(0), or by an `if` on what the rows are, and "
                    "log p(x) of a row is then not defined. Compute for each row alone: torch.where(...) in place of an `if`, "
                    "statistics of the training rows in place of those of a batch.",
                    stacklevel=2,
                )
        alone: dict[str, None] = {}
        for part, layout in zip(parts, layouts):
            try:
                check_particles(pair, part, layout)
            except PairError as error:
                alone[str(error)] = None
            check_enumeration(pair, part, layout)
        for text in alone:
            warnings.warn(f"Only one particle can be run at a time, which is slow. {text}", stacklevel=2)
        named = {} if is_streamed(data) else columns_of(pair, data)
        scales = [(layout, model, part, part) for layout, (model, _), part in zip(layouts, traces, parts)]
        warn_of_scales(pair, scales, named, transforms=False, may_be_first=True, stacklevel=2)
    return union(layouts)


def check_fewer_rows(pair: PairLike, batch: Batch, during: AbstractContextManager[Any] | None = None) -> int:
    """Raise PairError unless the pair also runs on half of the rows.

    A pair that does not, such as one with a parameter for each row, cannot be trained on minibatches or applied to new rows.

    Args:
        pair: Model and guide.
        batch: The rows on which the pair has run.
        during: A context inside which the run takes place.

    Returns:
        How many rows were left out; 0 if there is only one row, so that nothing was run.
    """
    if num_rows(batch) < 2:
        return 0
    half = take_rows(batch, slice(0, num_rows(batch) // 2))
    try:
        with during or nullcontext():
            log_densities(run(pair, half))
    except (RuntimeError, ValueError, IndexError) as error:
        if cure := cure_of_devices(error, next(iter(batch.values())).device):
            raise PairError(f"The pair failed: {str(error).splitlines()[0]}{cure}") from error
        if not _has_densities(pair, batch):
            return num_rows(batch) - num_rows(half)
        raise PairError(
            f"The pair runs on {num_rows(batch)} rows but not on {num_rows(batch) // 2} of them "
            f"({(str(error).splitlines() or [''])[0]}), because something in it has the size of the first batch. Write len(x) "
            "for the number of rows. If the guide is an AutoGuide, it has one parameter a row: use it for global latent "
            "sites only, and a guide that computes the local ones from the row."
        ) from error
    return num_rows(batch) - num_rows(half)


def _has_densities(pair: PairLike, batch: Batch) -> bool:
    """Whether all rows have log-densities; where they do not, as with an unknown class, it is not for their number."""
    try:
        log_densities(run(pair, batch))
    except (RuntimeError, ValueError, IndexError):
        return False
    return True


def log_densities(traces: tuple[Any, Any]) -> list[Tensor]:
    """The log-densities of all sites of a run, those of the model first."""
    return [_log_density(name, node) for (_, name), node in sites_by_side(traces).items()]


def _log_density(name: str, node: Any) -> Tensor:
    """The log-density of a site at its value. PairError for a flow without an inverse, which knows only its own last draw."""
    try:
        log_prob: Tensor = node["fn"].log_prob(node["value"])
        return log_prob
    except (KeyError, NotImplementedError) as error:
        flow = node["fn"]
        while hasattr(flow, "base_dist") and not hasattr(flow, "transforms"):
            flow = flow.base_dist
        if not hasattr(flow, "transforms"):
            raise
        which = ", ".join(type(transform).__name__ for transform in flow.transforms)
        raise PairError(
            f"Site {name!r} has no log-density at values other than its last draw, since its flow has no inverse ({which}). "
            "Take one that has, such as Pyro's affine_autoregressive or spline_coupling, or pv.flow."
        ) from error


def check_gradients(pair: PairLike, runs: Sequence[tuple[Any, Any]]) -> None:
    """Raise PairError unless all log-densities are finite and the parameters get finite gradients of their sum.

    A parameter that gets none, such as that of a module that is not used, is worth a warning.

    `runs` are the (model trace, guide trace) of batches with different arguments, since some parameters, such as those of a
    classifier, may be used for labelled rows only.
    """
    total = torch.zeros(())
    for traces in runs:
        for (side, name), node in sites_by_side(traces).items():
            try:
                with unwritten_value(name, node):
                    log_prob = _log_density(name, node)
            except PairError:
                raise
            except (RuntimeError, ValueError, IndexError) as error:
                cure = cure_of_dtypes(error, {name: node["value"]}, dtype_of(pair))
                raise PairError(f"Site {name!r} of the {side}: {error}{cure}") from error
            if not torch.isfinite(log_prob).all():
                value = node["value"]
                gaps = node["is_observed"] and value.is_floating_point() and bool(value.isnan().any())
                raise PairError(
                    f"Site {name!r} of the {side} has a log-density that is not finite in "
                    f"{int((~torch.isfinite(log_prob)).sum())} of {log_prob.numel()} places: {node['fn']}."
                    f"{f' It observes NaN. {cure_of_gaps([name])}' if gaps else unfit_parameters(node['fn'])}"
                )
            total = total.to(log_prob) + log_prob.sum()
    named = trainable(pair)
    if not total.requires_grad:
        if named:
            raise PairError(
                f"The loss depends on no parameter: {sorted(named)} get no gradient. Use them in the model or guide."
            )
        return
    known = {id(p) for p in named.values()}
    for leaf in _leaves(total):
        if id(leaf) not in known:
            names = {id(p): prefix + n for prefix, m in every_module(pair).items() for n, p in m.named_parameters()}
            name = f"{names[id(leaf)]!r}" if id(leaf) in names else f"a parameter of shape {tuple(leaf.shape)}"
            raise PairError(
                f"The loss depends on {name}, which nobody trains. Call pyro.module('name', module) in the model, or make its "
                "module part of the pair: pass the module's own methods, not functions that call them; or freeze it with "
                ".requires_grad_(False). Weights that are registered by pyro.module must be contiguous, because Pyro copies "
                "others, and the copy would be trained."
            )
    gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True, retain_graph=True)
    without = [name for name, g in zip(named, gradients) if g is None]
    if without:
        which = ", ".join(map(repr, without[:6])) + (", ..." if len(without) > 6 else "")
        warnings.warn(
            f"No gradient reaches {which}, which will stay as it is. If it is to be trained, use it in the model or guide, "
            "and not under torch.no_grad() or before .detach(); otherwise freeze it with .requires_grad_(False), or remove it.",
            stacklevel=2,
        )
    sparse = [name for name, g in zip(named, gradients) if g is not None and g.layout is not torch.strided]
    if sparse:
        raise PairError(
            f"The gradient of {', '.join(map(repr, sparse))} is sparse, which fits do not take: leave sparse=True out of "
            "nn.Embedding and of functional.embedding."
        )
    broken = [name for name, g in zip(named, gradients) if g is not None and not torch.isfinite(g).all()]
    if broken:
        raise PairError(
            f"The gradient of {', '.join(map(repr, broken))} is not finite on the first batch: "
            + (
                cure_of_scale(n["value"] for t in runs for n in t[0].nodes.values() if n.get("is_observed"))
                or CHECK_SCALE
            )
        )


def model_only(pair: PairLike, runs: Sequence[tuple[Any, Any]]) -> dict[str, Tensor]:
    """The parameters that only the model uses, by name: neither the guide's draws nor their log q depend on them.

    `runs` are as in `check_gradients`.

    Raises:
        PairError: All parameters are used by the guide, or none.
    """
    named = trainable(pair)
    used = _reached([guide_trace for _, guide_trace in runs], named)
    found = {name: leaf for name, leaf in named.items() if name not in used}
    if not found or len(found) == len(named):
        what = "only the model uses any parameters" if found else "the guide uses all parameters"
        raise PairError(
            "A schedule of the weight 'model' (lagging) sets the learning rate of the parameters that only the model uses "
            f"apart from that of the guide's, but here {what}: give both parameters of their own, or leave that schedule out."
        )
    return found


def sides_of(pair: PairLike, batches: Sequence[Batch]) -> tuple[set[str], set[str]]:
    """The names of the parameters on which densities of the model depend at fixed draws, and of those that the guide uses."""
    named = trainable(pair)
    with fork_rng():
        guides = [run(pair, batch)[1] for batch in batches]
        with DetachDraws():
            models = [run(pair, batch)[0] for batch in batches]
    return _reached(models, named), _reached(guides, named)


def _reached(traces: Sequence[Any], named: Mapping[str, Tensor]) -> set[str]:
    """The names of the parameters on which draws or log-densities of these traces depend."""
    total = torch.zeros(())
    for node in (node for trace in traces for node in sample_sites(trace).values()):
        total = total + node["value"].sum() + node["fn"].log_prob(node["value"]).sum()
    if not total.requires_grad:
        return set()
    gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True, retain_graph=True)
    return {name for name, gradient in zip(named, gradients) if gradient is not None}


def _leaves(total: Tensor) -> list[Tensor]:
    """The leaf tensors that `total` depends on: those whose `.grad` a call of `backward` would change."""
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


def check_particles(pair: PairLike, batch: Batch, layout: Layout) -> None:
    """Raise PairError unless each particle of a run has the log-densities that it has when it runs alone.

    Code that does not expect a particle dimension to the left of the plates either fails or, worse, takes it for another
    dimension, as a softmax over dim 1 or a mean over dim 0 would.
    """
    try:
        together = run(pair, batch, num_particles=PARTICLES, plate_nesting=layout.plate_nesting)
        nodes = sites_by_side(together)
        sums = [_by_particle(name, node, layout) for (_, name), node in nodes.items()]
    except (RuntimeError, ValueError, IndexError) as error:
        raise PairError(
            "The pair does not run with a particle dimension to the left of its plates: "
            f"{in_words(error)}{where_it_failed(error)}. {_CURE}"
        ) from error
    names = [name for _, name in nodes]
    # Sites that only the model has are drawn in the model, since nothing is enumerated here.
    own = {name: node for name, node in sample_sites(together[0]).items() if not node["is_observed"]}
    drawn = {**own, **sample_sites(together[1])}
    for name, node in drawn.items():
        shape = tuple(node["value"].shape)
        if len(shape) != len(node["fn"].event_shape) + layout.plate_nesting + 1 or shape[0] != PARTICLES:
            raise PairError(
                f"Site {name!r} lost the particle dimension: with {PARTICLES} particles its shape is {shape}."
            )
    for k in range(PARTICLES):
        # In the joint run, a global site has dimensions of size 1 in place of the plates; alone it has none.
        values = {name: _one_particle(node, k) for name, node in drawn.items()}
        alone = _sums_at(pair, batch, values)
        for index, (name, found, wanted) in enumerate(zip(names, sums, alone)):
            close = torch.allclose(found[k], wanted, rtol=1e-3, atol=1e-3, equal_nan=True)
            if not close and not _is_rounding(pair, batch, drawn, values, index, found[k] - wanted):
                raise PairError(
                    f"Site {name!r} has another log-density among several particles ({found[k].item():.6g}) than alone "
                    f"({wanted.item():.6g}), because the particle dimension is taken for another one. {_CURE}"
                )


def _sums_at(pair: PairLike, batch: Batch, values: Mapping[str, Tensor]) -> list[Tensor]:
    """The log-density of each site of guide and model at values of the latent ones, summed over rows."""
    return [log_prob.sum() for log_prob in log_densities(run(at_values(pair, values), batch))]


def _is_rounding(
    pair: PairLike, batch: Batch, drawn: Mapping[str, Any], values: Mapping[str, Tensor], index: int, off: Tensor
) -> bool:
    """Whether two log-densities of a site differ by no more than rounding in the values explains, or overflow.

    A row far from all others may have a code of 1e8 whose scale is 1e-8: its density is then made of rounding errors.
    """
    moved = {
        name: value * (1 + ROUNDING * torch.finfo(value.dtype).eps) if is_real(drawn[name]["fn"]) else value
        for name, value in values.items()
    }
    before, after = (_sums_at(pair, batch, at)[index] for at in (values, moved))
    return not bool((off.abs() > (after - before).abs()).item()) or not bool(before.isfinite())


def check_enumeration(pair: PairLike, batch: Batch, layout: Layout) -> None:
    """Raise PairError unless log-densities at each value of the enumerated sites are those with that value alone.

    Each enumerated site adds a dimension to the left of all plates. Its first and its last value are tried.
    """
    if not layout.enumerates:
        return
    with fork_rng(), torch.no_grad():
        _check_enumeration(pair, batch, layout)


def _check_enumeration(pair: PairLike, batch: Batch, layout: Layout) -> None:
    try:
        together = run(pair, batch, plate_nesting=layout.plate_nesting, enumerate=True)
        nodes = sites_by_side(together)
        log_probs = {(side, name): _log_density(name, node) for (side, name), node in nodes.items()}
    except PyrovaeError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        raise PairError(
            "The pair does not run with an enumerated dimension to the left of its plates: "
            f"{in_words(error)}{where_it_failed(error)}. {_CURE}"
        ) from error
    dims = {node["infer"]["_enumerate_dim"] for node in nodes.values() if "_enumerate_dim" in node["infer"]}
    for last in (False, True):
        at = dict.fromkeys(dims, -1 if last else 0)
        values = {name: _value_at(node, at, layout) for (_, name), node in nodes.items() if not node["is_observed"]}
        for (side, name), node in sites_by_side(run(at_values(pair, values), batch)).items():
            wanted = _log_density(name, node).sum()
            found = _by_value(log_probs[side, name], at).sum()
            if log_probs[side, name].numel() and not torch.allclose(found, wanted, rtol=1e-3, atol=1e-3):
                raise PairError(
                    f"Site {name!r} has another log-density with all values of the enumerated sites at once "
                    f"({found.item():.6g}) than with one value alone ({wanted.item():.6g}), because an enumerated "
                    f"dimension is taken for another one. {_CURE}"
                )


PARTICLES = 2  # that run together, and then each alone
ROUNDING = 256  # units in the last place by which values are off at most, after a few sums
_CURE = (
    "Write code for any number of dimensions on the left, (*batch, D), and count dimensions from the right (dim=-1)."
)


def _by_particle(name: str, node: Any, layout: Layout) -> Tensor:
    log_prob = _log_density(name, node)
    depth = layout.plate_nesting + 1
    full = log_prob.reshape((1,) * (depth - log_prob.dim()) + tuple(log_prob.shape))
    return full.expand(PARTICLES, *full.shape[1:]).flatten(1).sum(1)


def _by_value(tensor: Tensor, at: Mapping[int, int], event_dim: int = 0) -> Tensor:
    """The tensor at one index of each enumerated dimension that it has."""
    for dim, index in at.items():
        if tensor.dim() >= -dim + event_dim:
            tensor = tensor.narrow(dim - event_dim, tensor.shape[dim - event_dim] - 1 if index else 0, 1)
    return tensor


def _value_at(node: Any, at: Mapping[int, int], layout: Layout) -> Tensor:
    event = tuple(node["fn"].event_shape)
    value = _by_value(node["value"], at, len(event))
    batch = value.shape[: value.dim() - len(event)]
    sizes = {f.dim: f.size for f in node["cond_indep_stack"] if f.vectorized}
    # When it runs alone, a site has the dimensions of its plates only.
    depth = max((-dim for dim in sizes), default=0)
    own = (1,) * (depth - len(batch)) + tuple(batch[len(batch) - min(depth, len(batch)) :])
    full = [max(size, sizes.get(i - depth, 1)) for i, size in enumerate(own)]
    return value.reshape((*own, *event)).expand((*full, *event)).clone()


def _one_particle(node: Any, k: int) -> Tensor:
    value: Tensor = node["value"][k]
    if any(f.vectorized and f.name != PARTICLE_PLATE for f in node["cond_indep_stack"]):
        return value
    return value.reshape(node["fn"].event_shape)

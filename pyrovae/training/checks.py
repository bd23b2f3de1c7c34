"""What is checked of a pair and its rows before the first step of a fit."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pyro
import torch
from torch import Tensor

from pyrovae.batching.checks import check_rows
from pyrovae.batching.chunks import TensorSizes, elements_per_row
from pyrovae.batching.incoming import Incoming
from pyrovae.batching.memory import halving
from pyrovae.batching.stream import watched
from pyrovae.batching.transforms import Transform
from pyrovae.engine import ranks
from pyrovae.engine.tracing import undone
from pyrovae.errors import OptionError, PairError
from pyrovae.fitted.fitted import Fit, transform_once
from pyrovae.objectives.baselines import learned
from pyrovae.objectives.codes import warn_of_unused_codes
from pyrovae.objectives.iwelbo import IWELBO
from pyrovae.objectives.losses import as_loss, check_learns
from pyrovae.objectives.wake_sleep import RWS
from pyrovae.pair.batch import Batch, Group, group_rows, num_rows, take_group, take_rows
from pyrovae.pair.checks import (
    check_enumeration,
    check_fewer_rows,
    check_gradients,
    check_particles,
    log_densities,
)
from pyrovae.pair.counted import warn_of_counts
from pyrovae.pair.devices import indices_in_range
from pyrovae.pair.handlers import DATA_PLATE
from pyrovae.pair.layout import Layout, describe_run
from pyrovae.pair.parameters import evaluating, every_module, fork_rng, named_tensors, place
from pyrovae.pair.program import PairLike, run, sample_sites
from pyrovae.pair.scales import most_rows, warn_of_scales
from pyrovae.training.bind import FitData
from pyrovae.training.fit_options import FitOptions
from pyrovae.training.groups import TrainingGroup
from pyrovae.training.labels import warn_of_labels
from pyrovae.training.moving import moving_modules

Traces = tuple[Any, Any]  # of the model and of the guide


def check(fitted: Fit, data: FitData, groups: Sequence[TrainingGroup], options: FitOptions) -> list[Traces]:
    """Everything that can be known before the first step, of the pair and of every row; the layouts go into `fitted`.

    The pair runs twice on the first minibatch of each group (on all of its rows, then on half of them), and once over the
    rows; the first run also serves for the gradients, and both together for what a row costs. Returns the first runs.
    """
    pair, transform = fitted.pair, options.transform
    for module in moving_modules(pair):
        if not (module.started or module.training):
            raise OptionError(
                f"{type(module).__name__} has no codes before its first step of training, and is in evaluation mode, in which "
                "it takes none: call .train() before the fit."
            )
    if data.epochs:
        for part in {id(part): part for root in every_module(pair).values() for part in root.modules()}.values():
            check_fit: Any = getattr(part, "check_fit", None)
            if check_fit is not None:
                check_fit(data.training.rows, as_loss(options.loss), ranks.world_size())
    firsts = [one.first_batch(data) for one in groups]
    seen = [transform_once(pair, first, transform) for first in firsts]
    if transform is not None:
        fitted.untransformed = {n: (tuple(v.shape[1:]), v.dtype) for first in firsts for n, v in first.items()}
    place(pair, data.device)
    with evaluating(pair), indices_in_range(data.device):
        costs = [TensorSizes() for _ in seen]
        with pyro.validation_enabled(False):  # check_rows has the better words for unfit data
            found = [describe_run(pair, first, during=cost) for first, cost in zip(seen, costs)]
        layouts, runs = [layout for layout, _ in found], [traces for _, traces in found]
        fitted.layout, fitted.more_layouts = layouts[0], tuple(layouts[1:])
        place(pair, data.device)
        with fork_rng():
            for layout, traces, first, cost in zip(layouts, runs, seen, costs):
                _check_fewer(fitted, layout, traces, first, cost)
            for batch, numbers in _all_rows(pair, data, groups, firsts):
                few = transform_once(pair, take_rows(batch, slice(0, 2)), transform)
                _check_all(fitted, batch, few, transform, numbers)
            check_gradients(pair, runs)
        if data.epochs:  # of none nothing is to be learned
            spread_out = [_from_all_over(data, one) if transform is None else {} for one in groups]
            scales = zip(layouts, (model for model, _ in runs), seen, spread_out)
            changed = transform is not None
            warn_of_scales(pair, scales, data.columns, transforms=changed, stacklevel=5)  # at the call of fit
            warn_of_labels(pair, data, groups, layouts, [model for model, _ in runs])
        warn_of_counts(runs, stacklevel=5)
        warn_of_unused_codes(zip(runs, map(num_rows, seen), (one.num_rows for one in groups)))
        objective = as_loss(options.loss)
        parts: list[Any] = [objective, getattr(objective, "kl", None)]
        for part in parts:
            for layout, first in zip(layouts, seen):
                if hasattr(part, "check"):
                    part.check(pair, first, layout)
        particles = getattr(objective, "num_particles", 1)
        data.product = particles * max(cost.product for cost in costs)
        data.chunk_product = max(
            cost.product / num_rows(batch) * fitted.chunk_size(batch) for cost, batch in zip(costs, seen)
        )
        for first, layout in zip(firsts, layouts):
            if layout.enumerates:
                check_enumeration(pair, transform_once(pair, take_rows(first, slice(0, 2)), transform), layout)
            if particles > 1:
                check_particles(pair, transform_once(pair, take_rows(first, slice(0, 2)), transform), layout)
        if len(groups) > 1:
            for layout, traces in zip(layouts, runs):
                _check_shared(layout, traces, objective)
        _check_weights(layouts, groups)
        if data.epochs:
            _check_plates(runs, groups)
        if isinstance(data.training, Incoming):
            _check_total(data.training, layouts, options)
            data.training.examine = functools.partial(_examine, fitted, options.transform)
    if isinstance(getattr(objective, "baseline", None), learned):
        # in training mode, in which relaxed draws have a gradient and need no baseline
        with undone([*named_tensors(pair, buffers=True).values()]):
            check_learns(objective, [run(pair, first)[1] for first in seen])
    return runs


@halving
def _check_all(fitted: Fit, batch: Batch, few: Batch, transform: Transform | None, numbers: Tensor) -> None:
    """`check_rows`, of which `few` are some as the pair has them."""
    check_rows(fitted.pair, batch, fitted.chunk_size(few), transform=transform, numbers=numbers)


def start(pair: PairLike, data: FitData, groups: Sequence[TrainingGroup], options: FitOptions) -> None:
    """Let modules that set their state by the rows of their first step do so, on some rows, so that steps can be traced.

    Random state and all other buffers stay as they are.
    """
    waiting = [module for module in moving_modules(pair) if not module.started]
    if not data.epochs or not waiting:
        return
    own = {id(buffer) for module in waiting for buffer in module.buffers()}
    others = [t for t in named_tensors(pair, buffers=True).values() if id(t) not in own]
    with undone(others), torch.enable_grad(), pyro.validation_enabled(False):
        for one in groups:
            rows = data.training.take(one.rows[watched(len(one.rows), one.size)].to(data.device))
            known = {name: value for name, value in rows.items() if name in one.names}
            run(pair, transform_once(pair, known, options.transform))


def _from_all_over(data: FitData, group: TrainingGroup) -> Batch:
    """Some rows of a group, evenly spread over the data; none where they come batch by batch."""
    if data.training.rows is None:
        return {}
    most = most_rows(max(value[0].numel() for value in data.training.rows.values()))
    return data.training.take(group.rows[watched(len(group.rows), most)].to(data.device))


def _check_fewer(fitted: Fit, layout: Layout, traces: Traces, first: Batch, cost: TensorSizes) -> None:
    """Run the pair on half of the rows, too; what the other half adds to its tensors is what rows cost."""
    half = TensorSizes()
    with pyro.validation_enabled(False):
        added = check_fewer_rows(fitted.pair, first, during=half)
        with cost, suppress(RuntimeError, ValueError, IndexError):  # of values that check_rows is about to refuse
            log_densities(traces)
    elements = None if layout.enumerates else elements_per_row(cost.sizes, half.sizes, added)
    if elements is not None:  # else measured when first asked for
        fitted.row_elements[tuple(first)] = elements


def _all_rows(
    pair: PairLike, data: FitData, groups: Sequence[TrainingGroup], firsts: Sequence[Batch]
) -> list[tuple[Batch, Tensor]]:
    """All rows that are at hand, in groups, each with where its rows stand in the data."""
    found = [(first, one.rows) for first, one in zip(firsts, groups)]
    if data.training.rows is not None:
        training = data.training.rows
        placed = [Group(one.names, one.rows.to(data.device)) for one in groups]
        found = [(take_group(training, known), known.rows) for known in placed]
    for rows in (data.validation, data.checked):
        if rows is not None:
            here = {name: value.to(data.device) for name, value in rows.items()}
            found += [(take_group(here, known), known.rows) for known in group_rows(pair, here)]
    return found


def _check_shared(layout: Layout, traces: Traces, objective: Any) -> None:
    """PairError, or OptionError, for a global site that cannot be drawn for one group of rows and used for all."""
    if not layout.shared:
        return
    if isinstance(objective, (IWELBO, RWS)):
        raise OptionError(
            f"{type(objective).__name__} weighs all rows together where they share {layout.shared[0]!r}, and here rows come in "
            "groups: use Trace_ELBO."
        )
    guide = sample_sites(traces[1])
    for site in layout.sites:
        if site.name in layout.shared and (site.enumerated or not guide[site.name]["fn"].has_rsample):
            what = "enumerated" if site.enumerated else "not reparameterised"
            raise PairError(
                f"Site {site.name!r} belongs to no row and is {what}, and the rows come in groups, which share one draw: give "
                "it a reparameterised family, or fit the groups apart."
            )


def _check_weights(layouts: Sequence[Layout], groups: Sequence[TrainingGroup]) -> None:
    """OptionError for weights of rows where the pair has terms that belong to no row, which are part of the same number."""
    outside = [name for layout in layouts for name in layout.global_sites]
    if outside and any(one.weight != 1 for one in groups):
        raise OptionError(
            f"group_weight weighs rows, and site {outside[0]!r} belongs to no row: leave out group_weight, or, where the "
            "site is a prior on parameters, give penalty=... in its place."
        )


def _check_plates(runs: Sequence[Traces], groups: Sequence[TrainingGroup]) -> None:
    """PairError where the plate "data" says that it is a subsample of another number of rows than those of the fit.

    Its scale is kept, as Pyro has it: all terms of rows would count so many times too often against what belongs to no row, and
    the ELBO that is reported would be as many times too large.
    """
    for traces, one in zip(runs, groups):
        frames = [f for t in traces for node in sample_sites(t).values() for f in node["cond_indep_stack"]]
        for frame in frames:
            stated = frame.full_size
            if frame.name == DATA_PLATE and stated not in (None, frame.size) and int(stated) != one.num_rows:
                what = f"training rows that have {', '.join(one.names)}" if len(groups) > 1 else "training rows"
                raise PairError(
                    f"The plate 'data' is made as a subsample of {int(stated)} rows, and the fit has {one.num_rows} {what}, so "
                    "that each of them would count for several: write `pyro.plate('data', len(x))` in model and guide, where x "
                    "is an argument. A fit scales minibatches itself."
                )


def _check_total(training: Incoming, layouts: Sequence[Layout], options: FitOptions) -> None:
    """OptionError where something counts once for all rows, and nobody says how many these are."""
    outside = [f"site {name!r} belongs to no row" for layout in layouts for name in layout.global_sites]
    outside += ["the penalty counts once for all rows"] if options.penalty is not None else []
    if outside and training.known is None:
        raise OptionError(
            f"{outside[0][0].upper()}{outside[0][1:]}, and how many rows the batches stand for is not known: give "
            "num_rows=..., the number of rows against which it counts once."
        )


def _examine(fitted: Fit, transform: Transform | None, batch: Batch, numbers: Tensor) -> None:
    """Check a batch of a fit under way as the first was checked."""
    device = fitted.device
    here = {name: value.to(device) for name, value in batch.items()}
    with fitted.evaluation_mode(), fork_rng():
        few = transform_once(fitted.pair, take_rows(here, slice(0, 2)), transform)
        check_rows(fitted.pair, here, fitted.chunk_size(few), transform=transform, numbers=numbers)

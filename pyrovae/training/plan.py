"""From a pair and its data to a plan: the rows grouped, the pair checked, the program of a step made.

`fit` calls these functions one after the other. One group of rows is the ordinary case; where rows lack an optional
argument there are several, each with its own share of every minibatch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor

from pyrovae._launch import job
from pyrovae.batching.batches import GroupedBatches, group_sizes, group_weights
from pyrovae.batching.checks import check_rows
from pyrovae.batching.chunks import TensorSizes, elements_per_row
from pyrovae.batching.incoming import Counted, Incoming
from pyrovae.batching.stream import watched
from pyrovae.batching.transforms import Transform
from pyrovae.engine import ranks
from pyrovae.engine.adam import Adam, rate_of, set_model_apart
from pyrovae.engine.compiled import choose_engine
from pyrovae.engine.fused import check_fused, is_dense
from pyrovae.engine.precision import as_precision
from pyrovae.engine.program import Clip, Program, clip_by_norm
from pyrovae.engine.threads import threads_for
from pyrovae.engine.tracing import undone
from pyrovae.errors import DataError, OptionError, PairError
from pyrovae.fitted.fitted import Fit, transform_once
from pyrovae.fitted.spec import to_spec
from pyrovae.objectives.baselines import learned
from pyrovae.objectives.codes import warn_of_unused_codes
from pyrovae.objectives.iwelbo import IWELBO
from pyrovae.objectives.losses import as_loss, check_learns, loss_tensors, modules_of
from pyrovae.objectives.wake_sleep import RWS
from pyrovae.pair.batch import Batch, Group, group_rows, num_rows, take_group, take_rows
from pyrovae.pair.checks import (
    check_enumeration,
    check_fewer_rows,
    check_gradients,
    check_particles,
    log_densities,
    model_only,
)
from pyrovae.pair.devices import indices_in_range
from pyrovae.pair.layout import Layout, describe_run
from pyrovae.pair.parameters import evaluating, every_module, fork_rng, named_tensors, place, trainable
from pyrovae.pair.program import PairLike, arguments, run, sample_sites
from pyrovae.training.bind import FitData
from pyrovae.training.fit_options import FitOptions, OptimizerFactory
from pyrovae.training.minibatch import GroupTerms, MinibatchLoss
from pyrovae.training.moving import moves_on, moving_modules
from pyrovae.training.not_finite import without_what_is_not_finite
from pyrovae.training.schedules import Schedule, Step, as_schedule, weights_at
from pyrovae.training.together import check_shares

Traces = tuple[Any, Any]  # of the model and of the guide


# --- group -----------------------------------------------------------------------------------------------------------


@dataclass
class TrainingGroup:
    """Training rows of which the same arguments are known: `size` of the rows with these indices are in each minibatch.

    `weight` is how many times each of them counts.
    """

    names: tuple[str, ...]
    rows: Tensor
    size: int
    weight: float
    num_rows: int  # N_g, which is more than are known of where rows come batch by batch

    @property
    def key(self) -> str:
        """The name of this group's indices among the inputs of a step."""
        return f"index of {','.join(self.names)}"

    def first_batch(self, data: FitData) -> Batch:
        """The first rows as they come, as many as a rank takes of a minibatch."""
        rows = data.training.take(self.rows[: -(-self.size // ranks.world_size())].to(data.device))
        return {name: value for name, value in rows.items() if name in self.names}


def group(pair: PairLike, data: FitData, options: FitOptions) -> list[TrainingGroup]:
    """Group the training rows by which of their arguments are known; groups with fewer arguments first.

    Raises DataError for a stream whose rows lack an argument: which rows do is not known before all have been read.
    """
    training = data.training
    if training.rows is not None:
        found = group_rows(pair, training.rows)
    else:
        with fork_rng():
            first = training.take(torch.arange(data.batch_size))
        found = group_rows(pair, first)
        if len(found) > 1 or len(found[0].names) < len(first):
            raise DataError(
                "Rows of which some lack an argument (-1, or NaN) are grouped, which needs all of them at hand: pass arrays or "
                "tensors in place of a Dataset, a DataLoader or batches."
            )
    sizes = [data.batch_size]
    optional = [name for name, parameter in arguments(pair).items() if parameter.default is None]
    weights = group_weights(found, optional, {} if options.group_weight is None else options.group_weight)
    if isinstance(training, Incoming) and options.group_size:
        raise OptionError("group_size chooses among rows at hand, and these come batch by batch: leave it out.")
    if len(found) > 1 or options.group_size:
        sizes = group_sizes(found, optional, data.batch_size, options.group_size or {})
    if isinstance(training, Incoming):
        return [TrainingGroup(found[0].names, found[0].rows, sizes[0], weights[0], training.num_rows)]
    rows = [one.rows for one in found] if training.rows is not None else [torch.arange(training.num_rows)]
    own = zip(found, rows, sizes, weights)
    return [TrainingGroup(one.names, index, size, weight, len(index)) for one, index, size, weight in own]


# --- check -----------------------------------------------------------------------------------------------------------


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
                check_rows(pair, batch, fitted.chunk_size(few), transform=transform, numbers=numbers)
            check_gradients(pair, runs)
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
        if isinstance(data.training, Incoming):
            _check_total(data.training, layouts, options)
            data.training.examine = functools.partial(_examine, fitted, options.transform)
    if isinstance(getattr(objective, "baseline", None), learned):
        # in training mode, in which relaxed draws have a gradient and need no baseline
        with undone([*named_tensors(pair, buffers=True).values()]):
            check_learns(objective, [run(pair, first)[1] for first in seen])
    return runs


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


# --- plan ------------------------------------------------------------------------------------------------------------


@dataclass
class Plan:
    """How a fit is run: the program of a step, its schedule and engine, and the order of the rows."""

    program: Program
    schedule: Schedule
    steps: Step
    batches: GroupedBatches | Counted
    engine: str
    threads: int
    relaxed: list[Any]  # the families whose draws carry a gradient at a temperature
    loss_tensors: dict[str, Tensor]  # of modules that the loss trains
    weighed: int | None  # draws that count together in the bound of a validation row; None for its ELBO
    on_nan: str


def plan(
    fitted: Fit, data: FitData, groups: Sequence[TrainingGroup], runs: Sequence[Traces], options: FitOptions
) -> Plan:
    """Choose loss, optimizer, schedule and engine; write what was chosen into the settings of the fit."""
    pair, rows, device = fitted.pair, data.training.num_rows, data.device
    leaves = trainable(pair)
    objective, schedule = as_loss(options.loss), as_schedule(options.schedule)
    weighs, shared = isinstance(objective, (IWELBO, RWS)), [n for layout in fitted.layouts for n in layout.shared]
    shares = {", ".join(one.names) if len(groups) > 1 else "": one.size for one in groups}
    moving = [type(module).__name__ for module in moving_modules(pair)] if moves_on(pair, runs) else []
    check_shares(shares, moving, shared[0] if weighs and shared else None)
    if not leaves:
        raise OptionError("The pair has no parameter to train.")
    for module in modules_of(objective).values():
        module.to(device)
    of_loss = {name: t for name, t in loss_tensors(objective).items() if t.requires_grad}
    leaves |= of_loss
    largest = max(groups, key=lambda one: len(one.rows))
    steps = Step(0, len(largest.rows) / largest.size, data.epochs * len(largest.rows) // largest.size)
    if data.steps is not None:
        steps = Step(0, data.steps[1], int(data.steps[0]))
    weights, relaxed = weights_at(schedule, steps), relaxed_families(pair)
    if "temperature" in weights and not relaxed:
        raise OptionError(
            "The schedule gives a temperature, and no family of the pair in training mode has one: give the guide a relaxed "
            "family, such as families.RelaxedOneHotCategorical, or leave the schedule out."
        )
    precision = as_precision(options.precision, next(iter(leaves.values())).dtype)
    optimizer = _make_optimizer(options.optimizer, list(leaves.values()), options.learning_rate)
    if "model" in weights:
        set_model_apart(optimizer, list(model_only(pair, runs).values()))
    terms = {
        one.key: GroupTerms(one.names, ranks.stands_for(one.num_rows, one.size), layout, one.weight)
        for one, layout in zip(groups, fitted.layouts)
    }
    program = Program(
        pair=pair,
        objective=MinibatchLoss(
            pair,
            objective,
            rows,
            terms,
            data.training.rows,
            transform=options.transform,
            penalty=options.penalty,
            precision=precision,
        ),
        parameters=leaves,
        optimizer=optimizer,
        weights=tuple(name for name in weights if name not in ("lr", "model", "temperature")),
        clip=ranks.averaged(_clip(options, {id(t) for t in of_loss.values()})),
        reads=(objective, options.transform, options.penalty),
        precision=precision,
    )
    engine = _engine_of(options, data, steps.total)
    threads = _threads_of(options, data)
    indices = {one.key: one.rows for one in groups}
    batches: GroupedBatches | Counted = (
        GroupedBatches(indices, {one.key: one.size for one in groups}, data.seed, device)
        if data.steps is None
        else Counted(steps.total, steps.per_epoch)
    )
    sizes = [one.size for one in groups]
    fitted.settings |= {
        "epochs": data.epochs,
        **({"steps": options.steps} if options.steps is not None else {}),
        "batch_size": sizes[0] if len(sizes) == 1 else data.batch_size,
        "seed": data.seed,
        **({"num_rows": rows} if getattr(data.training, "known", rows) is not None else {}),
        "loss": to_spec(objective),
        "schedule": to_spec(options.schedule),
        "clip_norm": options.clip_norm,
        **({"on_nan": options.on_nan} if options.on_nan != "stop" else {}),
        **({"ranks": ranks.world_size()} if ranks.world_size() > 1 else {}),
        **({"job": job()} if job() is not None else {}),
        **({"group_size": sizes} if len(sizes) > 1 else {}),
        **({"group_weight": [one.weight for one in groups]} if any(one.weight != 1 for one in groups) else {}),
        "patience": options.patience,
        "keep_best": options.patience is not None if options.keep_best is None else options.keep_best,
        "penalty": to_spec(options.penalty),
        "transform": to_spec(options.transform),
        "validation_split": data.split.to_json() if data.split else None,
        "engine": engine,
        "precision": precision,
        "device": device.type,
        "threads": threads,
        "chunk_product": data.chunk_product,
        "optimizer": {"class": type(optimizer).__name__, "lr": rate_of(optimizer)},
        "torch": str(torch.__version__),
    }
    # where rows share a latent variable, only all of them together have such a bound, and here they come in chunks
    weighed = objective.num_particles if weighs and not shared else None
    state = loss_tensors(objective)
    return Plan(program, schedule, steps, batches, engine, threads, relaxed, state, weighed, options.on_nan)


def _engine_of(options: FitOptions, data: FitData, total: int) -> str:
    """The engine of so many steps: a resumed fit goes on with its own."""
    engine = options.engine
    if options.resume and engine == "auto" and options.recorded("device") == data.device.type:
        engine = options.recorded("engine") or engine
    return choose_engine(engine, data.device, total, data.product)


def _threads_of(options: FitOptions, data: FitData) -> int:
    """The number of CPU threads: that which was asked for, or that of the fit which goes on, or by the size of the work."""
    if options.threads is not None:
        return options.threads
    if options.resume and options.recorded("threads") is not None:
        return min(options.recorded("threads"), torch.get_num_threads())
    return threads_for(data.product) if data.device.type == "cpu" else torch.get_num_threads()


def relaxed_families(pair: PairLike) -> list[Any]:
    """The families in training mode whose draws carry a gradient at a temperature, which a schedule may set."""
    parts = {id(part): part for root in every_module(pair).values() for part in root.modules() if part.training}
    return [part for part in parts.values() if isinstance(getattr(part, "current_temperature", None), Tensor)]


def _clip(options: FitOptions, apart: set[int]) -> Clip | None:
    """What is done to gradients: clipped by their norm, and none taken of a step that has one that is not finite."""
    clip = None
    if options.clip_norm is not None:
        clip = functools.partial(clip_by_norm, largest=options.clip_norm, apart=apart)
    return without_what_is_not_finite(clip) if options.on_nan == "skip" else clip


def _make_optimizer(
    factory: OptimizerFactory | None, leaves: list[Tensor], learning_rate: float
) -> torch.optim.Optimizer:
    if factory is None:
        if all(map(is_dense, leaves)):
            return Adam(leaves, learning_rate)
        return torch.optim.Adam(leaves, lr=learning_rate)
    made = factory(leaves)
    if not isinstance(made, torch.optim.Optimizer):
        raise OptionError(
            "optimizer must be a function from a list of tensors to a torch optimizer, e.g. "
            f"lambda leaves: torch.optim.AdamW(leaves, lr=1e-3, fused=True); it returned {type(made).__name__}."
        )
    check_fused(made)
    return made

"""From a pair and its data to a plan: the program of a step, and how, in what order and how often it is run."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor

from pyrovae._launch import job
from pyrovae.batching.batches import GroupedBatches
from pyrovae.batching.incoming import Counted
from pyrovae.engine import ranks
from pyrovae.engine.adam import Adam, rate_of, set_model_apart
from pyrovae.engine.compiled import choose_engine
from pyrovae.engine.fused import check_fused, is_dense
from pyrovae.engine.precision import as_precision, warn_of_slow_products
from pyrovae.engine.program import Clip, Program, clip_by_norm
from pyrovae.engine.threads import threads_for
from pyrovae.errors import OptionError
from pyrovae.fitted.fitted import Fit
from pyrovae.fitted.spec import to_spec
from pyrovae.objectives.iwelbo import IWELBO
from pyrovae.objectives.losses import as_loss, loss_tensors, modules_of
from pyrovae.objectives.wake_sleep import RWS
from pyrovae.pair.checks import (
    model_only,
)
from pyrovae.pair.parameters import every_module, trainable
from pyrovae.pair.program import PairLike
from pyrovae.training.bind import FitData
from pyrovae.training.checks import Traces
from pyrovae.training.fit_options import FitOptions, OptimizerFactory
from pyrovae.training.groups import TrainingGroup
from pyrovae.training.minibatch import GroupTerms, MinibatchLoss
from pyrovae.training.moving import moves_on, moving_modules
from pyrovae.training.not_finite import without_what_is_not_finite
from pyrovae.training.schedules import Schedule, Step, as_schedule, weights_at
from pyrovae.training.together import check_shares


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
    objective, schedule = as_loss(options.loss), as_schedule(options.schedule)
    weighs, shared = isinstance(objective, (IWELBO, RWS)), [n for layout in fitted.layouts for n in layout.shared]
    _check_ranks(fitted.pair, groups, runs, shared[0] if weighs and shared else None)
    leaves, of_loss = _leaves(fitted.pair, objective, data.device)
    steps = _steps(data, groups)
    weights, relaxed = weights_at(schedule, steps), relaxed_families(fitted.pair)
    if "temperature" in weights and not relaxed:
        raise OptionError(
            "The schedule gives a temperature, and no family of the pair in training mode has one: give the guide a relaxed "
            "family, such as families.RelaxedOneHotCategorical, or leave the schedule out."
        )
    precision = as_precision(options.precision, next(iter(leaves.values())).dtype, data.device, data.product)
    warn_of_slow_products(str(options.precision), data.device, data.product, stacklevel=5)  # at the call of fit
    optimizer = _make_optimizer(options.optimizer, list(leaves.values()), options.learning_rate)
    if "model" in weights:
        set_model_apart(optimizer, list(model_only(fitted.pair, runs).values()))
    program = Program(
        pair=fitted.pair,
        objective=_loss_of_a_minibatch(fitted, data, groups, options, objective, precision),
        parameters=leaves,
        optimizer=optimizer,
        weights=tuple(name for name in weights if name not in ("lr", "model", "temperature")),
        clip=ranks.averaged(_clip(options, {id(t) for t in of_loss.values()})),
        reads=(objective, options.transform, options.penalty),
        precision=precision,
    )
    chosen = Plan(
        program=program,
        schedule=schedule,
        steps=steps,
        batches=_batches(data, groups, steps),
        engine=_engine_of(options, data, steps.total),
        threads=_threads_of(options, data),
        relaxed=relaxed,
        loss_tensors=loss_tensors(objective),
        # where rows share a latent variable, only all of them together have such a bound, and here they come in chunks
        weighed=objective.num_particles if weighs and not shared else None,
        on_nan=options.on_nan,
    )
    fitted.settings |= _settings(data, groups, options, chosen)
    return chosen


def _check_ranks(
    pair: PairLike, groups: Sequence[TrainingGroup], runs: Sequence[Traces], weighed_together: str | None
) -> None:
    """OptionError where ranks cannot share a minibatch; `weighed_together` is a site of which all rows have one draw."""
    shares = {", ".join(one.names) if len(groups) > 1 else "": one.size for one in groups}
    moving = [type(module).__name__ for module in moving_modules(pair)] if moves_on(pair, runs) else []
    check_shares(shares, moving, weighed_together)


def _leaves(pair: PairLike, objective: Any, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the fit trains, and of these the parameters of modules that belong to the loss, which are moved to the device."""
    leaves = trainable(pair)
    if not leaves:
        raise OptionError("The pair has no parameter to train.")
    for module in modules_of(objective).values():
        module.to(device)
    of_loss = {name: t for name, t in loss_tensors(objective).items() if t.requires_grad}
    return leaves | of_loss, of_loss


def _steps(data: FitData, groups: Sequence[TrainingGroup]) -> Step:
    """The first step, the steps of an epoch, in which the largest group is seen once, and those of the fit."""
    if data.steps is not None:
        return Step(0, data.steps[1], int(data.steps[0]))
    largest = max(groups, key=lambda one: len(one.rows))
    return Step(0, len(largest.rows) / largest.size, data.epochs * len(largest.rows) // largest.size)


def _loss_of_a_minibatch(
    fitted: Fit, data: FitData, groups: Sequence[TrainingGroup], options: FitOptions, objective: Any, precision: str
) -> MinibatchLoss:
    """The loss of the rows with given indices, with what each group of them stands for."""
    terms = {
        one.key: GroupTerms(one.names, ranks.stands_for(one.num_rows, one.size), layout, one.weight)
        for one, layout in zip(groups, fitted.layouts)
    }
    return MinibatchLoss(
        fitted.pair,
        objective,
        data.training.num_rows,
        terms,
        data.training.rows,
        transform=options.transform,
        penalty=options.penalty,
        precision=precision,
    )


def _batches(data: FitData, groups: Sequence[TrainingGroup], steps: Step) -> GroupedBatches | Counted:
    """The order of the rows; of rows that come batch by batch only their number is known."""
    if data.steps is not None:
        return Counted(steps.total, steps.per_epoch)
    indices, sizes = {one.key: one.rows for one in groups}, {one.key: one.size for one in groups}
    return GroupedBatches(indices, sizes, data.seed, data.device)


def _settings(data: FitData, groups: Sequence[TrainingGroup], options: FitOptions, chosen: Plan) -> dict[str, Any]:
    """What run.json tells of how the fit is run."""
    rows, sizes, optimizer = data.training.num_rows, [one.size for one in groups], chosen.program.optimizer
    return {
        "epochs": data.epochs,
        **({"steps": options.steps} if options.steps is not None else {}),
        "batch_size": sizes[0] if len(sizes) == 1 else data.batch_size,
        "seed": data.seed,
        **({"num_rows": rows} if getattr(data.training, "known", rows) is not None else {}),
        "loss": to_spec(as_loss(options.loss)),
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
        "engine": chosen.engine,
        "precision": chosen.program.precision,
        "device": data.device.type,
        "threads": chosen.threads,
        "chunk_product": data.chunk_product,
        "optimizer": {"class": type(optimizer).__name__, "lr": rate_of(optimizer)},
        "torch": str(torch.__version__),
    }


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
    maker = callable(factory) and not isinstance(factory, (torch.optim.Optimizer, PyroOptim))
    made = factory(leaves) if maker else factory
    if not maker or not isinstance(made, torch.optim.Optimizer):
        got = f"it returned {type(made).__name__}" if maker else f"got {type(factory).__name__}, an object that is none"
        raise OptionError(
            "optimizer must be a function from a list of tensors to a torch optimizer, e.g. "
            f"lambda leaves: torch.optim.AdamW(leaves, lr=1e-3, fused=True); {got}."
        )
    check_fused(made)
    return made

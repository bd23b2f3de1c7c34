"""fit: stochastic variational inference for any model/guide pair."""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pyrovae.batching.batches import Batches, GroupedBatches, digest_of, group_sizes
from pyrovae.batching.checks import check_rows
from pyrovae.batching.splits import Split
from pyrovae.batching.stream import Resident, Stream, is_streamed
from pyrovae.batching.transforms import Transform
from pyrovae.engine.adam import set_model_apart
from pyrovae.engine.compiled import choose_engine
from pyrovae.engine.precision import as_precision
from pyrovae.engine.program import Program, clip_by_norm
from pyrovae.errors import DataError, OptionError, PairError
from pyrovae.fitted import folder as store
from pyrovae.fitted.fitted import Fit, transform_once
from pyrovae.fitted.spec import to_spec
from pyrovae.objectives.iwelbo import IWELBO
from pyrovae.objectives.losses import as_loss
from pyrovae.pair.batch import Batch, Group, as_batch, group_rows, take_group, take_rows
from pyrovae.pair.checks import check_enumeration, check_fewer_rows, check_gradients, check_particles, model_only
from pyrovae.pair.layout import Layout, describe
from pyrovae.pair.parameters import evaluating, find_device, fork_rng, param_scope, place, trainable
from pyrovae.pair.program import arguments, run, sample_sites
from pyrovae.training.minibatch import GroupTerms, MinibatchLoss
from pyrovae.training.schedules import Schedule, Step, as_schedule, weights_at
from pyrovae.training.trainer import Callback, Trainer, rate_of

OptimizerFactory = Callable[[list[Tensor]], torch.optim.Optimizer]


def fit(
    pair: Any,
    data: Any,
    *,
    epochs: int,
    batch_size: int | None = None,
    learning_rate: float = 1e-3,
    loss: Any = None,
    optimizer: OptimizerFactory | None = None,
    validation: Any = None,
    patience: int | None = None,
    schedule: Schedule | Sequence[Schedule] | None = None,
    transform: Transform | None = None,
    penalty: Callable[[Any], Tensor] | None = None,
    clip_norm: float | None = None,
    group_size: Mapping[str, int] | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    checkpoint_every: float = 30.0,
    seed: int | None = None,
    device: str | torch.device = "auto",
    engine: str = "auto",
    precision: str | None = None,
    progress: bool | None = None,
    info: Mapping[str, Any] | None = None,
) -> Fit:
    """Maximise the ELBO of any model/guide pair over its parameters, in place, and return it as a `Fit`.

    The loss of a step with B of N rows is -(1/N) [global terms + (N/B) sum of the rows' local terms] + penalty/N, in nats
    per row. Parameters are found by running the pair once: `nn.Module`, `PyroModule`, AutoGuides and bare `pyro.param`s;
    the last live in a param store of this fit's own. Modules keep the mode, training or evaluation, that they are in.

    An argument that may be None (`y=None`) may be unknown in some rows: -1, or NaN. Rows are grouped by what is known of
    them; a step takes B_g of the N_g rows of each group, without what they lack, and their terms count N_g/B_g times in
    one sum.

    data: an array or tensor of rows for the model's first argument, or a dict of them by argument; floating arrays become
        the default dtype. They are moved to the device whole. A map-style `torch.utils.data.Dataset`, or a `DataLoader` of
        one, is streamed: loaded batch by batch, with the loader's workers, while the device works; then only the first rows
        are checked beforehand.
    batch_size: rows a step; None is 128, or all rows where there are fewer.
    learning_rate, optimizer: fused Adam at that rate, or a function from a list of leaf tensors to a torch optimizer.
    loss: `pv.Trace_ELBO(...)`, `pv.IWELBO(...)`, or Pyro's `Trace_ELBO`, `TraceEnum_ELBO` or `TraceMeanField_ELBO`, which
        are translated.
    validation: a fraction of the rows to hold out, or data. Its ELBO, KL weight left out, is written to the history;
        with `patience` the fit stops after that many epochs without a better one and keeps the best epoch's weights.
    schedule: step -> {"lr": ..., "kl": ..., "model": ...}, or several; see `pv.schedules`. "model" multiplies the learning
        rate of the parameters which only the model uses, put into groups of the optimizer of their own.
    transform: batch -> batch, tensors only, inside the step; at evaluation applied once, from a fixed seed.
    penalty: pair -> 0-d tensor in nats for the whole data set, e.g. a negative log prior of weights.
    clip_norm: largest global norm of the gradient.
    group_size: rows a step of a group, by what it knows: {"y": 50} for the rows whose y is known, "" for those of which
        nothing optional is. By default min(N_g, max(B/4, B N_g/N)). An epoch is one pass over the largest group.
    callbacks: called with the `Fit` after each epoch; one that returns True stops the fit.
    checkpoint: a new folder for the run, written every `checkpoint_every` seconds and at the end, on Ctrl-C and when the
        loss turns NaN. `resume=True` goes on with the fit in it: 2N epochs stopped at N and resumed equal the
        uninterrupted ones bit for bit. `force=True` replaces the run in it.
    loss: besides these any function (pair, batch, *, num_rows, kl_weight, layout) -> `pv.Bound`.
    seed: of shuffling and noise; None draws one from torch's global state, which is otherwise left alone, or goes on with
        that of the run that is resumed.
    engine: how a step is run, "eager", "traced", "compiled" or "graphed" (CUDA); see `pyrovae.engine`. "auto": CUDA
        graphed; a CPU compiled from 5,000 steps on where there is a C++ compiler, else traced. On a CPU all draw the same
        noise; on CUDA that of compiled and graphed steps comes from another generator, seeded by torch's. Pair, transform,
        penalty and loss run as Python once an epoch, not at every step: side effects do not repeat, unless eager.
    precision: "bfloat16" computes products of matrices in bfloat16, parameters and log-densities in float32.
    progress: a bar with the ELBO; None shows it on a terminal.
    info: anything JSON to keep with the run.

    Raises DataError, PairError or OptionError before the first step; NotFiniteError when the loss turns NaN, with the
    weights put back to the last good epoch; CheckpointError for the folder; KeyboardInterrupt after Ctrl-C (a second
    one stops at once).
    """
    epochs, batch_size, patience = _whole(epochs=epochs, batch_size=batch_size, patience=patience)
    _check_options(patience, validation, checkpoint, resume, clip_norm, learning_rate, callbacks, info)
    where = find_device(device)
    if isinstance(data, DataLoader) and batch_size is None:
        batch_size = data.batch_size
    source: Resident | Stream = (
        Stream(pair, data, where) if is_streamed(data) else Resident(as_batch(pair, data), torch.device("cpu"))
    )
    if seed is None:
        seed = int(_recorded(checkpoint, "seed") or 0) if resume else int(torch.randint(2**31, ()))
    held_out, split = None, None
    if isinstance(validation, (int, float)):
        split = Split(source.num_rows, test_fraction=0.0, validation_fraction=float(validation), seed=seed)
        held_out, source = source.take(split.validation), source.subset(split.train)
    elif validation is not None:
        held_out = Stream(pair, validation, where).take() if is_streamed(validation) else as_batch(pair, validation)
    rows = source.num_rows
    batch_size = min(128, rows) if batch_size is None else batch_size
    if batch_size > rows:
        raise DataError(f"batch_size={batch_size} is larger than the {rows} training rows: use at most {rows}.")
    objective = as_loss(loss)
    groups = _groups(pair, source, batch_size)
    sizes = [batch_size]
    if len(groups) > 1 or group_size:
        optional = [name for name, parameter in arguments(pair).items() if parameter.default is None]
        sizes = group_sizes(groups, optional, batch_size, group_size or {})
    if len(groups) == 1:
        batch_size = sizes[0]
    settings = {
        "epochs": epochs,
        "batch_size": batch_size,
        "seed": seed,
        "num_rows": rows,
        "loss": to_spec(objective),
        "schedule": to_spec(schedule),
        "clip_norm": clip_norm,
        **({"group_size": sizes} if len(groups) > 1 else {}),
        "patience": patience,
        "penalty": to_spec(penalty),
        "transform": to_spec(transform),
        "validation_split": split.to_json() if split else None,
    }
    fitted = Fit(pair=pair, layout=None, settings=settings, transform=transform, info=dict(info or {}))  # type: ignore[arg-type]
    with fork_rng(), param_scope(fitted.store):
        torch.manual_seed(seed)
        place(pair, where)
        source.place(where)
        groups = [Group(group.names, group.rows.to(where)) for group in groups]
        firsts = [
            {name: value for name, value in source.take(group.rows[:size]).items() if name in group.names}
            for group, size in zip(groups, sizes)
        ]
        if transform is not None and not isinstance(transform_once(firsts[0], transform), dict):
            raise OptionError("transform takes a batch, a dict of tensors, and returns one: {**batch, 'x': changed}.")
        if held_out is not None:
            held_out = {name: value.to(where) for name, value in held_out.items()}
        with evaluating(pair):
            with pyro.validation_enabled(False):  # check_rows has the better words for unfit data
                fitted.layout, *more = (describe(pair, transform_once(first, transform)) for first in firsts)
            fitted.more_layouts = tuple(more)
            place(pair, where)
            seen = [(first, group.rows) for first, group in zip(firsts, groups)]
            if source.rows is not None:
                seen = [(take_group(source.rows, group), group.rows) for group in groups]
            if held_out is not None:
                seen += [(take_group(held_out, group), group.rows) for group in group_rows(pair, held_out)]
            _check_all(pair, firsts, seen, transform)
            for first, layout in zip(firsts, fitted.layouts):
                if layout.enumerates:
                    check_enumeration(pair, transform_once(take_rows(first, slice(0, 2)), transform), layout)
                if getattr(objective, "num_particles", 1) > 1:
                    check_particles(pair, transform_once(take_rows(first, slice(0, 2)), transform), layout)
            if len(groups) > 1:
                for first, layout in zip(firsts, fitted.layouts):
                    _check_shared(pair, first, layout, objective)
        parts = {
            "index" if len(groups) == 1 else f"index of {','.join(group.names)}": GroupTerms(
                group.names, len(group.rows), layout
            )
            for group, layout in zip(groups, fitted.layouts)
        }
        largest = max(range(len(groups)), key=lambda i: len(groups[i].rows))
        leaves = trainable(pair)
        if not leaves:
            raise OptionError("The pair has no parameter to train.")
        scheduled = as_schedule(schedule)
        dtype = next(iter(leaves.values())).dtype
        most, at_once = len(groups[largest].rows), sizes[largest]
        steps = Step(0, most / at_once, epochs * most // at_once)
        weights = weights_at(scheduled, steps)
        precision = as_precision(precision, dtype)
        made = _make_optimizer(optimizer, list(leaves.values()), learning_rate)
        if "model" in weights:
            with evaluating(pair), fork_rng():
                apart = model_only(pair, [transform_once(first, transform) for first in firsts])
            set_model_apart(made, list(apart.values()))
        program = Program(
            pair=pair,
            objective=MinibatchLoss(
                pair,
                objective,
                rows,
                parts,
                source.rows,
                transform=transform,
                penalty=penalty,
                precision=precision,
            ),
            parameters=leaves,
            optimizer=made,
            weights=tuple(name for name in weights if name not in ("lr", "model")),
            clip=None if clip_norm is None else functools.partial(clip_by_norm, largest=clip_norm),
            watched=(objective, transform, penalty),
            precision=precision,
        )
        if resume and engine == "auto" and _recorded(checkpoint, "device") == where.type:
            engine = _recorded(checkpoint, "engine") or engine
        chosen = choose_engine(engine, where, steps.total)
        batches: Batches | GroupedBatches = Batches(rows, batch_size, seed, where)
        if len(groups) > 1:
            named = dict(zip(parts, groups))
            batches = GroupedBatches({n: g.rows for n, g in named.items()}, dict(zip(parts, sizes)), seed, where)
        trainer = Trainer(fitted, program, scheduled, steps, source, batches, held_out, chosen)
        settings |= {
            "engine": chosen,
            "precision": precision,
            "device": where.type,
            "optimizer": {"class": type(program.optimizer).__name__, "lr": rate_of(program.optimizer)},
            "torch": str(torch.__version__),
        }
        folder = None
        if checkpoint is not None:
            identity = {**settings, "data": source.digest(), "validation": digest_of(held_out or {})}
            if precision == "float32":
                del identity["precision"]  # of no run before it could be chosen
            if schedule is None:
                del identity["epochs"]  # without a schedule, a longer fit begins as a shorter one does
            if resume:
                folder = trainer.resume(Path(checkpoint), identity)
            else:
                folder = store.claim_folder(checkpoint, force=force)
                trainer.begin(folder, identity)
        trainer.run(list(callbacks), folder, checkpoint_every, progress)
        for leaf in leaves.values():
            leaf.grad = None
    if folder is not None:
        store.write_fit(folder, fitted)
    return fitted


def _whole(**options: Any) -> tuple[Any, ...]:
    """Whole numbers of at least 1, or None, as Python's own; OptionError names the one that is not."""
    found: list[int | None] = []
    for name, value in options.items():
        try:
            number = None if value is None and name != "epochs" else operator.index(value)
        except TypeError:
            number = 0
        if isinstance(value, bool) or (number is not None and number < 1):
            raise OptionError(f"{name} must be a whole number of at least 1, got {value!r}.")
        found.append(number)
    return tuple(found)


def _check_options(
    patience: int | None,
    validation: Any,
    checkpoint: Any,
    resume: bool,
    clip_norm: float | None,
    learning_rate: float,
    callbacks: Any,
    info: Any,
) -> None:
    for name, number in (("clip_norm", clip_norm), ("learning_rate", learning_rate)):
        if number is not None and not number > 0:
            raise OptionError(f"{name} must be positive, got {number!r}.")
    if isinstance(validation, (int, float)) and not 0 < validation < 1:
        raise OptionError(
            f"validation must be a fraction between 0 and 1, or data, got {validation!r}; None does without."
        )
    if patience is not None and validation is None:
        raise OptionError("patience needs rows to watch: give validation=0.1 (a fraction), or data.")
    if resume and checkpoint is None:
        raise OptionError("resume=True needs checkpoint=..., the folder of the run to go on with.")
    if not isinstance(callbacks, Sequence):
        raise OptionError(f"callbacks is a list of functions of the Fit, got {callbacks!r}: write callbacks=[f].")
    try:
        json.dumps(info)
    except (TypeError, ValueError) as error:
        raise OptionError(f"info is kept as JSON, and this is not JSON ({error}): use numbers, text, lists.") from error


def _recorded(checkpoint: Any, setting: str) -> Any:
    """A setting of the run that is to be resumed."""
    return store.read_run(checkpoint).get("settings", {}).get(setting)


def _groups(pair: Any, source: Resident | Stream, batch_size: int) -> list[Group]:
    """The rows by what is known of them. DataError for a stream of which that cannot be known before it is read."""
    if source.rows is not None:
        return group_rows(pair, source.rows)
    with fork_rng():
        first = source.take(torch.arange(batch_size))
    found = group_rows(pair, first)
    if len(found) > 1 or len(found[0].names) < len(first):
        raise DataError(
            "Rows of which some lack an argument (-1, or NaN) are grouped, which needs all of them at hand: pass arrays or "
            "tensors in place of a Dataset or DataLoader."
        )
    return [Group(found[0].names, torch.arange(source.num_rows))]


def _check_shared(pair: Any, first: Batch, layout: Layout, objective: Any) -> None:
    """PairError, or OptionError, for what belongs to no row and cannot be drawn in one group and used in all."""
    if not layout.shared:
        return
    if isinstance(objective, IWELBO):
        raise OptionError(
            f"IWELBO weighs all rows together where they share {layout.shared[0]!r}, and here rows come in groups: use "
            "Trace_ELBO."
        )
    with fork_rng():
        guide = sample_sites(run(pair, first)[1])
    for site in layout.sites:
        if site.name in layout.shared and (site.enumerated or not guide[site.name]["fn"].has_rsample):
            what = "enumerated" if site.enumerated else "not reparameterised"
            raise PairError(
                f"Site {site.name!r} belongs to no row and is {what}, and the rows come in groups, which share one draw: give "
                "it a reparameterised family, or fit the groups apart."
            )


def _check_all(pair: Any, firsts: list[Batch], data: list[tuple[Batch, Tensor]], transform: Transform | None) -> None:
    """What can be known before the first step: of the pair on the first batches, and of every row, with its number."""
    with fork_rng():
        for first in firsts:
            with pyro.validation_enabled(False):
                check_fewer_rows(pair, transform_once(first, transform))
        for batch, numbers in data:
            check_rows(pair, batch, transform=transform, numbers=numbers)
        check_gradients(pair, [transform_once(first, transform) for first in firsts])


def _make_optimizer(
    factory: OptimizerFactory | None, leaves: list[Tensor], learning_rate: float
) -> torch.optim.Optimizer:
    if factory is None:
        return torch.optim.Adam(leaves, lr=learning_rate, fused=True)
    made = factory(leaves)
    if not isinstance(made, torch.optim.Optimizer):
        raise OptionError(
            "optimizer must be a function from a list of tensors to a torch optimizer, e.g. "
            f"lambda leaves: torch.optim.AdamW(leaves, lr=1e-3, fused=True); it returned {type(made).__name__}."
        )
    return made

"""A fit that several ranks take the steps of: what must be the same in all of them, and how a job goes on after a failure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrovae._files import real
from pyrovae._launch import job
from pyrovae.engine import ranks
from pyrovae.errors import CheckpointError, DataError, OptionError, RankError
from pyrovae.fitted.files import is_mark, read_run
from pyrovae.fitted.fitted import Fit, checksums
from pyrovae.pair.parameters import named_tensors, seed_torch
from pyrovae.pair.program import PairLike
from pyrovae.training.fit_options import FitOptions

# The settings that ranks may differ in, and a run that is resumed from what it was.
LOCAL = ("device", "torch", "threads", "chunk_product", "ranks", "job")
# The options by which ranks know what the others do next, and which are compared before anything is done.
ALIKE = ("epochs", "steps", "seed", "resume", "force", "engine", "threads")

_begun: set[Path] = set()  # the run folders into which this process has written


def begun(folder: Path) -> None:
    """Remember that this process writes into a run folder."""
    _begun.add(real(folder))


def goes_on(folder: Path) -> bool:
    """Whether this job has begun the run in a folder itself, before torchrun started its processes again."""
    return bool(ranks.first(lambda: is_of_this_job(folder) and not is_mark(read_run(folder))))


def is_of_this_job(folder: Path) -> bool:
    """Whether this job has begun the run in a folder, or was stopped before it could, asked by one process alone."""
    if job() is None or real(folder) in _begun:
        return False
    try:
        run = read_run(folder)
    except CheckpointError:
        return False
    return bool(job() == (run if is_mark(run) else run.get("settings", {})).get("job"))


def check_options(options: FitOptions) -> None:
    """OptionError unless all ranks are about to do the same: one that does not would leave the others waiting."""
    if ranks.world_size() > 1:
        folder = None if options.checkpoint is None else str(options.checkpoint)
        _compare({name: getattr(options, name) for name in ALIKE} | {"checkpoint": folder}, OptionError)


def _compare(own: Mapping[str, Any], kind: type[DataError] | type[OptionError]) -> None:
    """Raise the error, in all ranks, where they have not the same."""
    of_first, *others = ranks.everywhere(dict(own))
    for number, theirs in enumerate(others, 1):
        if differing := [name for name in of_first | theirs if of_first.get(name) != theirs.get(name)]:
            raise kind(
                f"Process {number} has other {', '.join(differing)} than process 0: give all processes that fit together the "
                "same pair, options and whole data. Each takes its share of the rows of every step by itself."
            )


def begin_together(fitted: Fit, loss_tensors: Mapping[str, Tensor], identity: Mapping[str, Any]) -> None:
    """Let all ranks have the same data, options and weights, and each its own noise.

    Raises:
        DataError: they have not the same data or options.
    """
    tensors = named_tensors(fitted.pair, buffers=True) | {f"loss/{n}": t for n, t in loss_tensors.items()}
    shapes = {name: [*tensor.shape, str(tensor.dtype)] for name, tensor in tensors.items()}
    own = {name: value for name, value in identity.items() if name not in (*LOCAL, "engine")} | {"parameters": shapes}
    _compare(own, DataError)
    ranks.copy_from_first(tensors)
    if ranks.rank():
        seed_torch(ranks.own_seed(fitted.settings["seed"]))


@contextmanager
def changing(pair: PairLike) -> Iterator[None]:
    """Inside, callbacks may change the weights: all ranks then have the first one's, since each may draw noise of its own."""
    before = checksums(named_tensors(pair, buffers=True)) if ranks.world_size() > 1 else {}
    yield
    if ranks.world_size() > 1:
        tensors = named_tensors(pair, buffers=True)
        if any(ranks.everywhere(checksums(tensors) != before)):
            ranks.copy_from_first(tensors)


def state_of_all(tensors: dict[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """The state of a fit with what is each rank's own: the tensors of these names, such as its noise."""
    if ranks.world_size() == 1:
        return tensors
    each = ranks.everywhere({name: tensors[name].cpu() for name in own if name in tensors})
    mean = {n: torch.stack([theirs[n] for theirs in each]).mean(0) for n in ("epoch_elbos",) if n in tensors}
    return tensors | mean | {f"rank/{k}/{n}": t for k, theirs in enumerate(each) for n, t in theirs.items()}


def state_of_rank(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """This rank's part of what `state_of_all` wrote, and whether as many ranks wrote it; else what they have in common."""
    wrote = len({name.split("/")[1] for name in tensors if name.startswith("rank/")}) or 1
    common = {name: tensor for name, tensor in tensors.items() if not name.startswith("rank/")}
    prefix = f"rank/{ranks.rank()}/"
    if wrote != ranks.world_size():
        return common, False
    return common | {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}, True


def check_shares(sizes: Mapping[str, int], moving: Sequence[str], joint: str | None = None) -> None:
    """OptionError where several ranks cannot share the steps of a fit.

    Args:
        sizes: how many rows a step takes of each group, by the names of what they have.
        moving: the modules, by name, whose state a step sets by its rows.
        joint: a site that rows share, where the loss weighs all of them together.
    """
    size = ranks.world_size()
    names = min(sizes, key=lambda name: sizes[name])
    if size > sizes[names]:
        raise OptionError(
            f"{size} processes share the rows of each step, and a step takes {sizes[names]}"
            f"{f' of those that have {names}' if names else ''}: start fewer processes, or raise batch_size (group_size where "
            "rows are grouped)."
        )
    if size > 1 and joint is not None:
        raise OptionError(
            f"Rows share {joint!r}, so an importance-weighted bound needs all of them in one process: take one, or Trace_ELBO."
        )
    if size > 1 and moving:
        raise OptionError(
            f"{moving[0]} moves its codes to the rows that its process sees, and {size} processes would end with as many "
            "codebooks: take one process, or pv.nets.FSQ or pv.nets.SimVQ."
        )


@contextmanager
def resumable(folder: Path | None) -> Iterator[None]:
    """Say of a fit that lost one of its processes how it can go on."""
    try:
        with ranks.together():
            yield
    except RankError as error:
        if folder is None:
            raise
        raise RankError(f"{error} The run in {folder} can be resumed, by any number of processes.") from error

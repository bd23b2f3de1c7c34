"""A fit that several ranks take the steps of: what must be the same in all of them, and how a job goes on after a failure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from pyrovae._launch import job
from pyrovae.engine import ranks
from pyrovae.errors import CheckpointError, DataError, OptionError, RankError
from pyrovae.fitted.files import read_run
from pyrovae.fitted.fitted import Fit
from pyrovae.pair.parameters import named_tensors, seed_torch

# The settings that ranks may differ in, and a run that is resumed from what it was.
LOCAL = ("device", "torch", "threads", "chunk_product", "ranks", "job")

_begun: set[Path] = set()  # the run folders into which this process has written


def begun(folder: Path) -> None:
    """Remember that this process writes into a run folder."""
    _begun.add(folder.resolve())


def goes_on(folder: Path) -> bool:
    """Whether this job has begun the run in a folder itself, before torchrun started its processes again."""
    return bool(ranks.first(lambda: is_of_this_job(folder)))


def is_of_this_job(folder: Path) -> bool:
    """The same, asked by one process alone."""
    if job() is None or folder.resolve() in _begun:
        return False
    try:
        return bool(read_run(folder).get("settings", {}).get("job") == job())
    except CheckpointError:
        return False


def begin_together(fitted: Fit, loss_tensors: Mapping[str, Tensor], identity: Mapping[str, Any]) -> None:
    """Let all ranks have the same data, options and weights, and each its own noise.

    Raises:
        DataError: they have not the same data or options.
    """
    tensors = named_tensors(fitted.pair, buffers=True) | {f"loss/{n}": t for n, t in loss_tensors.items()}
    shapes = {name: [*tensor.shape, str(tensor.dtype)] for name, tensor in tensors.items()}
    own = {name: value for name, value in identity.items() if name not in (*LOCAL, "engine")} | {"parameters": shapes}
    of_first, *others = ranks.everywhere(own)
    for number, theirs in enumerate(others, 1):
        if differing := [name for name in own if of_first.get(name) != theirs.get(name)]:
            raise DataError(
                f"Process {number} has other {', '.join(differing)} than process 0: give all processes that fit together the "
                "same pair, options and whole data. Each takes its share of the rows of every step by itself."
            )
    ranks.copy_from_first(tensors)
    if ranks.rank():
        seed_torch(ranks.own_seed(fitted.settings["seed"]))


def check_shares(sizes: Mapping[str, int], moving: Sequence[str]) -> None:
    """OptionError where several ranks cannot share the steps of a fit.

    Args:
        sizes: how many rows a step takes of each group, by the names of what they have.
        moving: the modules, by name, whose state a step sets by its rows.
    """
    size = ranks.world_size()
    names = min(sizes, key=lambda name: sizes[name])
    if size > sizes[names]:
        raise OptionError(
            f"{size} processes share the rows of each step, and a step takes {sizes[names]}"
            f"{f' of those that have {names}' if names else ''}: start fewer processes, or raise batch_size (group_size where "
            "rows are grouped)."
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

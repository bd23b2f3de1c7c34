"""Rows of a dtype with which a pair does not compute: which arguments these are, and what they become."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import pyro
import torch

from pyrovae.errors import PyrovaeError
from pyrovae.pair.batch import Batch, cast, group_rows, take_group, take_rows
from pyrovae.pair.dtypes import cure_of_dtypes
from pyrovae.pair.parameters import default_dtype, dtype_of, evaluating, fork_rng, param_scope, seed_torch
from pyrovae.pair.program import PairLike, arguments, run, sample_sites

FEW = 2  # rows of each group on which the pair is tried
MOST = 4  # arguments of which all combinations are tried; of more, each alone and all together


def find_casts(
    pair: PairLike, batch: Batch, seed: int = 0, transform: Callable[[Batch], Batch] = lambda rows: rows
) -> dict[str, torch.dtype]:
    """The arguments that the pair takes only in the dtype of its weights, and have another one.

    A pair that runs on its rows as they are gets them so: integers may be classes, and a float64 may be meant. Where it does
    not, it is tried on rows of which as few arguments as possible are cast, and those are named. Rows of the dtype of the
    weights, and labels of which some may be unknown, raise no question, and the pair is not run.

    Args:
        pair: Model and guide.
        batch: The rows; the first few of each group are looked at.
        seed: Of the noise of these runs, which change no random state.
        transform: What the pair sees of a batch.

    Returns:
        The dtype of the weights by argument; empty where nothing is to be cast, or no cast would help.
    """
    dtype = dtype_of(pair)
    taken = arguments(pair)
    doubtful = []
    for name, value in batch.items():
        label = name in taken and taken[name].default is None and value.dim() == 1 and not value.is_floating_point()
        if value.dtype != dtype and not label:
            doubtful.append(name)
    if not doubtful:
        return {}
    with (
        fork_rng(),
        param_scope({}),
        default_dtype(pair),
        evaluating(pair),
        torch.no_grad(),
        pyro.validation_enabled(False),
    ):
        groups = [take_group(batch, group) for group in group_rows(pair, batch)]
        few = [take_rows(rows, slice(0, FEW)) for rows in groups]

        try:
            for rows in few:
                transform(rows)
        except _ERRORS:  # what a transform does not take, the fit says in the transform's words
            return {}

        def attempt(names: Sequence[str]) -> tuple[Exception | None, bool]:
            """How the pair fails if these are cast, and whether by a dtype."""
            seed_torch(seed)
            seen = few[0]
            try:
                for rows in few:
                    seen = transform(cast(pair, rows, dict.fromkeys(names, dtype)))
                    for trace in run(pair, seen):
                        for node in sample_sites(trace).values():
                            node["fn"].log_prob(node["value"])
            except _ERRORS as error:
                return error, bool(cure_of_dtypes(error, seen, dtype))
            return None, False

        error, by_dtype = attempt(())
        if error is None:
            return {}
        sizes = range(1, len(doubtful) + 1) if len(doubtful) <= MOST else (1, len(doubtful))
        found = {names: attempt(names) for size in sizes for names in combinations(doubtful, size)}
    runs = [names for names, (failed, _) in found.items() if failed is None]
    fails_otherwise = [names for names, (_, another) in found.items() if by_dtype and not another]
    return dict.fromkeys(next(iter(runs or fails_otherwise), ()), dtype)


_ERRORS = (PyrovaeError, RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, NotImplementedError)

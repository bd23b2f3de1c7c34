"""Batches: user data bound to the arguments of a model, and rows grouped by which arguments are known.

A batch is a dict. Its keys are the arguments of `model` and `guide`, and the first dimension of every value is the rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.errors import DataError
from pyrovae.pair.program import arguments

Batch = dict[str, Tensor]


def as_tensor(name: str, value: Any, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of rows. Floating arrays come as `dtype`, or the default dtype; a tensor is left as it is."""
    if not isinstance(value, Tensor):
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise DataError(
                f"{name!r} must hold numbers, got dtype {array.dtype} ({type(value).__name__}). "
                "Encode text and categories as numbers first."
            )
        value = torch.from_numpy(np.require(array, requirements=["C", "W"])).reshape(array.shape)
        if value.is_floating_point():
            value = value.to(dtype if dtype is not None else torch.get_default_dtype())
    if value.dim() == 0:
        raise DataError(f"{name!r} must have one row per datum as its first dimension, got a single number.")
    return value


def as_batch(pair: Any, data: Any, dtypes: Mapping[str, torch.dtype] | None = None) -> Batch:
    """Bind data to the model's arguments: a mapping by name, anything else to the first argument.

    Floating arrays become the argument's dtype in `dtypes`, or the default dtype.

    Raises DataError for empty data, unequal numbers of rows, unknown or missing arguments.
    """
    wanted = arguments(pair)
    given = dict(data) if isinstance(data, Mapping) else {next(iter(wanted)): data}
    unknown = [name for name in given if name not in wanted]
    missing = [name for name, p in wanted.items() if p.default is p.empty and name not in given]
    if unknown or missing:
        problem = f"does not take {unknown}" if unknown else f"also needs {missing}"
        raise DataError(f"The model takes ({', '.join(wanted)}); it {problem}. Pass a dict with these names as keys.")
    batch = {
        name: as_tensor(name, value, (dtypes or {}).get(name)) for name, value in given.items() if value is not None
    }
    rows = {name: len(value) for name, value in batch.items()}
    if len(set(rows.values())) > 1:
        raise DataError(f"Every argument needs the same number of rows, got {rows}.")
    if not rows or not next(iter(rows.values())):
        raise DataError("The data are empty: at least one row is needed.")
    return batch


def num_rows(batch: Mapping[str, Tensor]) -> int:
    return len(next(iter(batch.values())))


def take_rows(batch: Mapping[str, Tensor], rows: slice | Tensor) -> Batch:
    return {name: value[rows] for name, value in batch.items()}


MOST_GROUPS = 8


@dataclass(frozen=True)
class Group:
    """The rows of a batch that have the same arguments: their `names`, in order, and where they stand, (n,) int64."""

    names: tuple[str, ...]
    rows: Tensor


def known_rows(value: Tensor) -> Tensor:
    """(N,) bool: rows that are not -1 (integers) or NaN throughout."""
    missing = torch.isnan(value) if value.is_floating_point() else value == -1
    return ~missing.flatten(1).all(1) if missing.dim() > 1 else ~missing


def group_rows(pair: Any, batch: Mapping[str, Tensor]) -> list[Group]:
    """Rows by what is observed of them: an argument that may be None is unknown in a row of -1 (integers) or NaN only.

    Groups with fewer arguments first. DataError for more than 8 of them.
    """
    known = {}
    for name, parameter in arguments(pair).items():
        value = batch.get(name)
        if value is not None and parameter.default is None and value.dtype != torch.bool:
            known[name] = known_rows(value)
    if not known:
        return [Group(tuple(batch), torch.arange(num_rows(batch), device=next(iter(batch.values())).device))]
    patterns, which = torch.stack(list(known.values()), 1).unique(dim=0, return_inverse=True)
    if len(patterns) > MOST_GROUPS:
        raise DataError(
            f"The rows have {len(patterns)} combinations of known and unknown arguments ({', '.join(known)}), and at most "
            f"{MOST_GROUPS} are possible: leave single missing entries to pv.observed_only(likelihood)."
        )
    found = []
    for number, pattern in enumerate(patterns.tolist()):
        unknown = {name for name, there in zip(known, pattern) if not there}
        names = tuple(name for name in batch if name not in unknown)
        if not names:
            raise DataError(f"{int((which == number).sum())} rows have nothing observed at all: drop them.")
        found.append(Group(names, (which == number).nonzero().squeeze(1)))
    return sorted(found, key=lambda group: (len(group.names), group.names))


def take_group(batch: Mapping[str, Tensor], group: Group) -> Batch:
    """The rows of a group, with its arguments alone."""
    if len(group.rows) == num_rows(batch):
        return {name: batch[name] for name in group.names}
    return {name: batch[name].index_select(0, group.rows) for name in group.names}

"""From data to batches: data are bound to the arguments of a model, and rows are grouped by which arguments are known.

A batch is a dict of tensors. Its keys are arguments of `model` and `guide`, and the first dimension of every value is the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae.errors import DataError, counted
from pyrovae.pair.arrays import as_dtype, as_tensor
from pyrovae.pair.datasets import Items, by_argument, is_batches, is_streamed
from pyrovae.pair.parameters import dtype_of
from pyrovae.pair.program import PairLike, arguments
from pyrovae.pair.stored import Stored, loaded

Batch = dict[str, Tensor]


def as_batch(
    pair: PairLike,
    data: Any,
    dtypes: Mapping[str, torch.dtype] | None = None,
    *,
    transforms: bool = False,
    casts: Mapping[str, torch.dtype] | None = None,
) -> Batch:
    """Bind data to the arguments of a model.

    Args:
        pair: Model and guide.
        data: A mapping from arguments to arrays or tensors, in which None means that an argument is absent; or one array or
            tensor, which is the model's first argument; or a tuple of arrays, which are the arguments in their order; or a
            map-style `Dataset`, or a `DataLoader` of one, or rows in files, all of which are loaded.
        dtypes: The dtype that floating-point arrays become, by argument; for arguments not named that of the pair's weights.
        transforms: Whether a transform follows, which may read other names, and add arguments that the data lack.
        casts: The dtype that values of any other become, see `cast`, by argument.

    Returns:
        Tensors by argument, each `(N, *event)`.

    Raises:
        DataError: There are no rows, the arguments have different numbers of rows, or an argument is unknown or missing.
    """
    wanted = arguments(pair)
    if dtypes is None or not set(wanted) <= set(dtypes):
        dtypes = dict.fromkeys(wanted, dtype_of(pair)) | dict(dtypes or {})
    if isinstance(data, Stored):
        return loaded(data, lambda piece: as_batch(pair, piece, dtypes, transforms=transforms, casts=casts))
    if is_batches(data):
        raise DataError(
            "Rows that come batch by batch are for pv.fit. Ask of one batch after the other here, as in "
            "[pv.encode(fitted, batch) for batch in batches]."
        )
    check_names(pair, data)
    if is_streamed(data):
        data = by_argument(Items(data).load(), list(wanted), dtypes)
    given = dict(data) if isinstance(data, Mapping) else in_order_of_arguments(data, list(wanted))
    unknown = [name for name in given if name not in wanted]
    missing = [name for name, p in wanted.items() if p.default is p.empty and name not in given]
    if (unknown or missing) and not transforms:
        problem = f"does not take {unknown}" if unknown else f"also needs {missing}"
        needed = [name for name, p in wanted.items() if p.default is p.empty]
        keys = ", ".join(f"{name!r}: ..." for name in needed) + ", ..." * (len(needed) < len(wanted))
        raise DataError(
            f"The model takes ({', '.join(wanted)}); it {problem}. Pass a dict whose keys are these names, {{{keys}}}."
        )
    batch = {
        name: as_tensor(name, value, dtypes.get(name), codes=name in wanted and wanted[name].default is None)
        for name, value in given.items()
        if value is not None
    }
    rows = {name: len(value) for name, value in batch.items()}
    if len(set(rows.values())) > 1:
        raise DataError(f"Every argument needs the same number of rows, got {rows}.")
    if not rows or not next(iter(rows.values())):
        raise DataError("The data are empty: at least one row is needed.")
    return cast(pair, batch, casts or {})


def cast(pair: PairLike, batch: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]) -> Batch:
    """The rows with other dtypes, by argument: floating-point numbers, or other whole ones where no value changes.

    Rows of an argument that may be unknown, and is so by -1 throughout, become NaN among floating-point numbers.

    Raises:
        DataError: A finite value is beyond its new dtype.
    """
    found, taken = dict(batch), arguments(pair)
    for name in [name for name in batch if dtypes.get(name, batch[name].dtype) != batch[name].dtype]:
        given, dtype = batch[name], dtypes[name]
        if not dtype.is_floating_point:
            made = given.to(dtype)
            whole = not given.is_floating_point() and torch.equal(made.to(given.dtype), given)
            found[name] = made if whole else given
            continue
        found[name] = as_dtype(name, given, dtype)
        if name in taken and taken[name].default is None and not given.is_floating_point():
            found[name][~known_rows(given)] = torch.nan
    return found


def in_order_of_arguments(data: Any, names: Sequence[str]) -> dict[str, Any]:
    """Name a tuple of arrays by the arguments in their order; anything else is the first argument."""
    arrays = isinstance(data, tuple) and all(
        hasattr(part, "__array__") or hasattr(part, "__dlpack__") or part is None for part in data
    )
    if not arrays or not data:
        return {names[0]: data}
    if len(data) > len(names):
        raise DataError(
            f"The model takes ({', '.join(names)}), got a tuple of {len(data)} arrays. Pass a dict with these names as keys; "
            "rows that are apart become one array by torch.stack."
        )
    return dict(zip(names, data))


def columns_of(pair: PairLike, data: Any) -> dict[str, list[str]]:
    """The names of the columns of each argument that is a table with names, such as a DataFrame, or a table in a file."""
    if isinstance(data, Stored):
        first = next(iter(arguments(pair)))
        return {name or first: [one[:60] for one in names] for name, names in data.columns.items()}
    given = dict(data) if isinstance(data, Mapping) else in_order_of_arguments(data, list(arguments(pair)))
    named = {name: names_of(value) for name, value in given.items()}
    return {name: found for name, found in named.items() if found is not None}


def names_of(table: Any) -> list[str] | None:
    """The names of the columns of a table, None of what has no such names."""
    found = getattr(table, "column_names", getattr(table, "columns", None))
    return [str(one)[:60] for one in found] if isinstance(found, Iterable) else None


def check_columns(
    argument: str, given: Sequence[str] | None, wanted: Sequence[str] | None, whose: str, cure: str
) -> None:
    """DataError where a table has not the columns that are wanted, or not in their order: numbers would change places unsaid.

    A table of which no column has a wanted name, such as one whose columns are numbered, is read by places.
    """
    if not given or not wanted or list(given) == list(wanted) or not set(given) & set(wanted):
        return
    absent, more = ([name for name in of if name not in others] for of, others in ((wanted, given), (given, wanted)))
    if absent or more or len(given) != len(wanted):
        said = [f"lacks {_listed(absent)}" if absent else "", f"has {_listed(more)} besides" if more else ""]
        what = f"other columns than {whose}: it {' and '.join(filter(None, said)) or 'has some twice'}"
    else:
        what = f"the columns of {whose} in another order: {_listed(given)} in place of {_listed(wanted)}"
    raise DataError(f"{argument!r} has {what}. Give {cure}.")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")


def named_by(pair: PairLike) -> dict[str, list[str]]:
    """The names of columns that a pair gives itself: its `column_names`, where that is a dict of lists of names."""
    given = getattr(pair, "column_names", None)
    if not isinstance(given, Mapping) or not all(isinstance(names, list | tuple) for names in given.values()):
        return {}
    return {str(argument): [str(name) for name in names] for argument, names in given.items()}


def check_names(pair: PairLike, data: Any) -> None:
    """DataError where a pair names its columns, and a table has others, or these in another order."""
    known = named_by(pair)
    named = columns_of(pair, data) if known and not is_batches(data) and not is_streamed(data) else {}
    for argument, names in known.items():
        cure = f"the rows that its schema makes, schema.encode(table), or else table[pair.column_names[{argument!r}]]"
        check_columns(argument, named.get(argument), names, "the pair", cure)


def num_rows(batch: Mapping[str, Tensor]) -> int:
    """N, the number of rows of a batch."""
    return len(next(iter(batch.values())))


def take_rows(batch: Mapping[str, Tensor], rows: slice | Tensor) -> Batch:
    """The rows at these indices, of every argument, as copies: what a pair is given is never the memory of the data."""
    return {name: value[rows].clone() if isinstance(rows, slice) else value[rows] for name, value in batch.items()}


MOST_GROUPS = 16  # each is a run of the pair in every step


@dataclass(frozen=True)
class Group:
    """Rows for which the same arguments are known."""

    names: tuple[str, ...]  # the arguments, in the order of the batch
    rows: Tensor  # (n,) int64, the rows' indices in the batch


def known_rows(value: Tensor) -> Tensor:
    """Which rows of an argument are known, `(N,)` bool: those that do not consist of -1 (integers) or NaN (floats) alone."""
    missing = torch.isnan(value) if value.is_floating_point() else value == -1
    return ~missing.flatten(1).all(1) if missing.dim() > 1 else ~missing


def group_rows(pair: PairLike, batch: Mapping[str, Tensor]) -> list[Group]:
    """Partition the rows of a batch by which arguments are known.

    An argument of the model with default None may be missing in some rows, which are then -1 (integers) or NaN (floats)
    throughout. All other arguments are known in every row.

    Returns:
        The groups, those with the fewest arguments first.

    Raises:
        DataError: There are more than 16 groups, or a row of which nothing is known.
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
            f"{MOST_GROUPS} are possible. Missing entries of one argument need no groups: use pv.observed_only(likelihood)."
        )
    found = []
    for number, pattern in enumerate(patterns.tolist()):
        unknown = {name for name, there in zip(known, pattern) if not there}
        names = tuple(name for name in batch if name not in unknown)
        if not names:
            raise DataError(
                f"{counted(int((which == number).sum()), 'row has', 'rows have')} nothing observed: drop them."
            )
        found.append(Group(names, (which == number).nonzero().squeeze(1)))
    return sorted(found, key=lambda group: (len(group.names), group.names))


def take_group(batch: Mapping[str, Tensor], group: Group) -> Batch:
    """The batch of a group: its rows, and only the arguments that are known for them."""
    if len(group.rows) == num_rows(batch):
        return {name: batch[name] for name in group.names}
    return {name: batch[name].index_select(0, group.rows) for name in group.names}

"""Values put into the gaps of data, in the form in which the data were given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrovae.pair.batch import in_order_of_arguments

Array = NDArray[Any]


@dataclass(frozen=True)
class Given:
    """Data as a caller gave them: by argument, and how they were put together."""

    by_name: dict[str, Any]
    put_together: type  # dict, tuple, or object for one array alone

    @staticmethod
    def of(data: Any, names: Sequence[str]) -> Given:
        """Data that may be bound to arguments with these names, in their order."""
        if isinstance(data, Mapping):
            return Given(dict(data), dict)
        by_name = in_order_of_arguments(data, names)
        alone = len(by_name) == 1 and next(iter(by_name.values())) is data
        return Given(by_name, object if alone else tuple)

    def filled(self, whole: Mapping[str, Tensor], where: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Any:
        """The data with values filled in.

        Args:
            whole: By argument, all rows as tensors with the values, for data of a kind that cannot be filled in.
            where: The gaps, as flat indices, `(M,)`.
            values: What stands there, `(M,)`.
        """
        found = {}
        for name, value in self.by_name.items():
            known = value is not None and name in whole
            found[name] = fill(value, where[name], values[name], whole[name]) if known else value
        if self.put_together is dict:
            return found
        return tuple(found.values()) if self.put_together is tuple else next(iter(found.values()))


def fill(given: Any, where: Tensor, values: Tensor, whole: Tensor) -> Any:
    """An array, a tensor or a table with values in its gaps; `whole` itself in place of anything else.

    Dtypes stay, unless integers would have to hold something else.
    """
    if isinstance(given, Tensor):
        filled = given.detach().clone(memory_format=torch.contiguous_format)
        if not filled.is_floating_point() and not _whole_numbers(values.numpy()):
            filled = filled.to(torch.get_default_dtype())
        filled.view(-1)[where.to(filled.device)] = values.to(filled)
        return filled
    if hasattr(given, "iloc"):
        return _of_pandas(given, where.numpy(), values.numpy())
    if isinstance(given, np.ndarray) and given.dtype.kind in "biuf":
        array = np.array(np.ma.getdata(given), order="C")
        return _put(array, where.numpy(), values.numpy())
    return whole


def _whole_numbers(values: Array) -> bool:
    return bool((values == np.round(values)).all())


def _put(array: Array, where: Array, values: Array) -> Array:
    if array.dtype.kind not in "fO" and not _whole_numbers(values):
        array = array.astype(np.float64)
    array.reshape(-1)[where] = values.astype(array.dtype)
    return array


def _of_pandas(given: Any, where: Array, values: Array) -> Any:
    """A Series, or a DataFrame column by column, with its index and dtypes."""
    if not hasattr(given, "columns"):
        return _of_column(given, where, values)
    filled, width = given.copy(), given.shape[1]
    for column in np.unique(where % width):
        there = where % width == column
        filled.isetitem(int(column), _of_column(given.iloc[:, int(column)], where[there] // width, values[there]))
    return filled


def _of_column(column: Any, rows: Array, values: Array) -> Any:
    if isinstance(column.dtype, np.dtype):
        array = column.to_numpy(copy=True)
        if array.dtype == object:  # numbers and None
            array[rows] = values.astype(np.int64) if _of_integers(column) and _whole_numbers(values) else values
        else:
            array = _put(array, rows, values)
        return type(column)(array, index=column.index, name=column.name)
    # of pandas' own dtypes, in which integers have gaps
    found = column.copy()
    if not _whole_numbers(values) and "Int" in str(column.dtype):
        found = found.astype("Float64")
    as_given = values.astype(bool) if str(column.dtype) == "boolean" else values
    found.iloc[rows] = as_given.astype(np.int64) if "Int" in str(found.dtype) else as_given
    return found


def _of_integers(column: Any) -> bool:
    return all(isinstance(v, (bool, int, np.integer)) for v in column if v is not None and v == v)

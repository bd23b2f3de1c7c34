"""Whatever holds numbers, as a tensor: arrays, tables, lists, with what they say about missing values."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrovae.errors import DataError

Array = NDArray[Any]
_NUMBERS = (bool, int, float, np.bool_, np.integer, np.floating, Decimal, Fraction)


def as_tensor(name: str, value: Any, dtype: torch.dtype | None = None, *, codes: bool = False) -> Tensor:
    """Data for one argument as a tensor. Floating-point arrays become `dtype` or torch's default; a tensor is kept.

    Entries that an array marks as missing (masked, None, pandas' NA, the fill value of an xarray) become NaN, or -1 among
    integers, one for each row, of an argument that holds `codes`, which may be unknown.

    Raises:
        DataError: these are no numbers, or the tensor would say something else than they do.
    """
    if isinstance(value, (list, tuple)) and value and all(isinstance(row, Tensor) for row in value):
        value = _stacked(name, value)
    if isinstance(value, Tensor):
        found = _dense(name, value)
    else:
        found = _from_array(name, value, dtype if dtype is not None else torch.get_default_dtype(), codes)
    if found.dim() == 0:
        raise DataError(f"{name!r} must have one row per datum along its first dimension, got a single number.")
    return found


def _dense(name: str, value: Tensor) -> Tensor:
    """The tensor itself, out of the graph that computed it. DataError unless it has a number at each place."""
    cure = None
    if value.is_nested:
        cure = "rows of different lengths: pad them, for example by torch.nested.to_padded_tensor(x, float('nan'))"
    elif value.layout != torch.strided:
        cure = "a sparse layout: give x.to_dense()"
    elif hasattr(value, "get_mask"):
        cure = "a mask: give x.to_tensor(float('nan')), where NaN is missing"
    elif value.is_complex():
        cure = "complex numbers: give real and imaginary parts as columns, torch.view_as_real(x).flatten(1)"
    elif value.is_quantized:
        cure = "quantized numbers: give x.dequantize()"
    if cure is not None:
        raise DataError(f"{name!r} must be a plain tensor, got one with {cure}.")
    return value.detach() if value.requires_grad else value


def _stacked(name: str, rows: Sequence[Tensor]) -> Tensor:
    if len({row.shape for row in rows}) > 1:
        raise DataError(_ragged(name))
    return torch.stack([_dense(name, row) for row in rows])


def _ragged(name: str) -> str:
    return (
        f"{name!r} must have rows of one shape, got rows of different lengths. Fill them up to one length (NaN is missing), "
        "or make each row the same summary."
    )


def _from_array(name: str, value: Any, dtype: torch.dtype, codes: bool) -> Tensor:
    array, missing = _numbers(name, value)
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"{name!r} must hold numbers, got values of dtype {array.dtype} ({type(value).__name__}). "
            "Encode text and categories as numbers first."
        )
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:  # torch computes with signed integers
        if array.size and array.max() > np.iinfo(np.int64).max:
            raise DataError(f"{name!r} has integers beyond 2^63, which no tensor holds. Subtract an offset.")
        array = array.astype(np.int64)
    if missing is not None and array.dtype.kind != "f":
        if codes and array.ndim == 1 and array.dtype.kind != "b":
            array = np.where(missing, -1, array)
        else:
            array = _exactly(name, array, missing, dtype)
    elif missing is not None:
        array = np.where(missing, np.nan, array)
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    found = torch.from_numpy(np.require(array, requirements=["C", "W"])).reshape(array.shape)
    if not found.is_floating_point():
        return found
    given, found = found, found.to(dtype)
    if torch.finfo(dtype).max < torch.finfo(given.dtype).max and bool((found.isinf() & given.isfinite()).any()):
        row = int((found.isinf() & given.isfinite()).nonzero()[0, 0]) if given.dim() else 0
        raise DataError(
            f"{name!r} has values beyond {str(dtype)[6:]}, {torch.finfo(dtype).max:.3g}, the first in row {row}. Change their "
            "unit, take logarithms, or drop these rows."
        )
    return found


def _exactly(name: str, array: Array, missing: Array, dtype: torch.dtype) -> Array:
    """Integers with gaps as floating numbers. DataError if one of them would be rounded."""
    kept = torch.from_numpy(np.where(missing, 0, array).astype(np.int64))
    if not bool((kept.to(dtype).double().numpy() == kept.numpy()).all()) or bool((kept.abs() > 2**53).any()):
        raise DataError(
            f"{name!r} has integers and missing entries, and {str(dtype)[6:]}, which can say both, would round the integers. "
            "Subtract an offset, or change their unit."
        )
    return np.where(missing, np.nan, array.astype(np.float64))


def _numbers(name: str, value: Any) -> tuple[Array, Array | None]:
    """An array of the values, and where they are missing, unless no entry is or NaN says it already."""
    if isinstance(value, (list, tuple)) and any(isinstance(row, np.ma.MaskedArray) for row in value):
        value = np.ma.array(value)
    if isinstance(value, np.ma.MaskedArray):
        mask = np.ma.getmaskarray(value)
        array = value.data if value.dtype != object else _of_objects(name, value.filled(None), value)[0]
        return np.asarray(array), mask if mask.any() else None
    if hasattr(value, "nnz") or (hasattr(value, "todense") and not hasattr(value, "__array__")):
        dense = "toarray" if hasattr(value, "toarray") else "todense"
        raise DataError(f"{name!r} must be a dense array, got a sparse {type(value).__name__}. Give x.{dense}().")
    if hasattr(value, "isna"):  # of pandas, whose own dtypes lose digits and gaps on the way to numpy's
        kinds = np.asarray(value.dtypes if hasattr(value, "dtypes") else value.dtype, dtype=object).ravel()
        value = value if all(isinstance(kind, np.dtype) for kind in kinds) else value.astype(object)
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        if "inhomogeneous" in str(error):
            raise DataError(_ragged(name)) from error
        raise DataError(
            f"{name!r} must be an array of numbers, got {type(value).__name__}, which numpy does not read "
            f"({str(error).splitlines()[0]}). Make it a tensor or an array."
        ) from error
    if array.dtype == object:
        return _of_objects(name, array, value)
    attributes = getattr(value, "attrs", None)
    marks = [attributes[key] for key in ("_FillValue", "missing_value") if key in attributes] if attributes else []
    missing = np.isin(array, marks) if marks and array.dtype.kind in "biuf" else None
    return array, missing if missing is not None and missing.any() else None


def _of_objects(name: str, array: Array, given: Any) -> tuple[Array, Array | None]:
    """Numbers that stand in an array of objects, such as a table's columns of several types."""
    cells = array.ravel().tolist()
    absent = [cell is None or cell is np.ma.masked or type(cell).__name__ == "NAType" for cell in cells]
    for place, (cell, gone) in enumerate(zip(cells, absent)):
        if not gone and not isinstance(cell, _NUMBERS):
            if isinstance(cell, (list, tuple, np.ndarray, Tensor)):
                raise DataError(_ragged(name))
            where = [int(i) for i in np.unravel_index(place, array.shape)]
            column = (
                f", column {getattr(given, 'columns', range(array.shape[1]))[where[1]]!r}" if len(where) > 1 else ""
            )
            raise DataError(
                f"{name!r} must hold numbers, got {cell!r} ({type(cell).__name__})"
                + (f" in row {where[0]}{column}. " if where else ". ")
                + "Encode text and categories as numbers first."
            )
    known = [cell for cell, gone in zip(cells, absent) if not gone]
    kind: Any = np.float64
    if all(isinstance(cell, (bool, np.bool_)) for cell in known):
        kind = np.bool_
    elif all(isinstance(cell, (bool, int, np.bool_, np.integer)) for cell in known):
        kind = np.int64
    missing = np.array(absent, dtype=bool).reshape(array.shape)
    try:
        found = np.array([kind(0) if gone else kind(cell) for cell, gone in zip(cells, absent)], dtype=kind)
    except OverflowError as error:
        raise DataError(f"{name!r} has integers beyond 2^63, which no tensor holds. Subtract an offset.") from error
    if kind is np.float64 and any(isinstance(c, (int, np.integer)) and int(float(c)) != int(c) for c in known):
        raise DataError(f"{name!r} mixes reals with integers that float64 would round. Subtract an offset.")
    if not known:
        found = np.zeros(len(cells))
    return found.reshape(array.shape), missing if any(absent) else None

"""Whatever holds numbers, as a tensor: arrays, tables, lists, with what they say about missing values."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from pyrovae.errors import DataError

Array = NDArray[Any]
_NUMBERS = (bool, int, float, np.bool_, np.integer, np.floating, Decimal, Fraction)


def as_tensor(name: str, value: Any, dtype: torch.dtype | None = None, *, codes: bool = False) -> Tensor:
    """Data for one argument as a tensor. Floating-point arrays become `dtype` or torch's default; a tensor is kept.

    Entries that an array marks as missing (masked, None, pandas' NA, an Arrow null, the fill value of an xarray) become NaN,
    or -1 among integers, one for each row, of an argument that holds `codes`, which may be unknown.

    Raises:
        DataError: these are no numbers, or the tensor would say something else than they do.
    """
    if isinstance(value, (list, tuple)) and value and all(isinstance(row, Tensor) for row in value):
        value = _stacked(name, value)
    elif hasattr(value, "__dlpack__") and not _reads_as_array(value):
        value = from_dlpack(value)
        value = value.to(dtype or torch.get_default_dtype()) if value.is_floating_point() else value
    if isinstance(value, Tensor):
        found = _dense(name, value)
    else:
        found = _from_array(name, value, dtype or torch.get_default_dtype(), codes)
    if found.dim() == 0:
        raise DataError(f"{name!r} must have one row per datum along its first dimension, got a single number.")
    return found


def _reads_as_array(value: Any) -> bool:
    """Whether numpy can read what an object holds; not from another device, nor in a dtype that numpy lacks."""
    dtype = getattr(value, "dtype", None)
    return hasattr(value, "__array__") and not hasattr(value, "__cuda_array_interface__") and str(dtype) != "bfloat16"


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
            f"{name!r} must hold numbers, got values of dtype {array.dtype} ({type(value).__name__}). {_cure(array.dtype)}"
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
    return as_dtype(name, found, dtype) if found.is_floating_point() and dtype.is_floating_point else found


def as_dtype(name: str, given: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor as floating-point numbers of a dtype; the tensor itself if it is so already.

    Raises:
        DataError: A finite value is beyond the dtype.
    """
    if given.dtype == dtype:
        return given
    found = given.to(dtype)
    if not given.is_floating_point() or torch.finfo(dtype).max >= torch.finfo(given.dtype).max:
        return found
    if bool((beyond := found.isinf() & given.isfinite()).any()):
        row = int(beyond.nonzero()[0, 0]) if given.dim() else 0
        raise DataError(
            f"{name!r} has values beyond {str(dtype)[6:]}, {torch.finfo(dtype).max:.3g}, the first in row {row}. Change their "
            "unit, take logarithms, or drop these rows."
        )
    return found


def _cure(dtype: np.dtype[Any], of_table: bool = False) -> str:
    if of_table and dtype.kind == "O":
        return "pv.tables.infer(table).encode(table) makes numbers of a table, and pv.tables.vae a model of them."
    if dtype.names:
        return "Make its fields columns: numpy.lib.recfunctions.structured_to_unstructured(x)."
    if dtype.kind in "mM":
        return "Give times as numbers, such as days since the first."
    if dtype.kind == "c":
        return "Give real and imaginary parts as columns."
    return "Encode text and categories as numbers first."


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
    if hasattr(value, "nnz") or (hasattr(value, "todense") and not hasattr(value, "__array__")):
        dense = "toarray" if hasattr(value, "toarray") else "todense"
        raise DataError(f"{name!r} must be a dense array, got a sparse {type(value).__name__}. Give x.{dense}().")
    read = value
    if hasattr(value, "isna"):  # of pandas, whose own dtypes lose digits and gaps on the way to numpy's
        kinds = np.asarray(value.dtypes if hasattr(value, "dtypes") else value.dtype, dtype=object).ravel()
        plain = all(isinstance(kind, np.dtype) for kind in kinds)
        read = value if plain else value.astype(object)
        if plain and len(set(kinds)) > 1:
            _check_mixture(name, [np.asarray(value.iloc[:, i]) for i, kind in enumerate(kinds) if kind.kind in "iu"])
    elif hasattr(value, "collect") or counts_nulls(value):
        read = _of_arrow(name, value)
    try:
        array = np.asanyarray(read)
    except (ValueError, TypeError, RuntimeError) as error:
        if "inhomogeneous" in str(error):
            raise DataError(_ragged(name)) from error
        raise DataError(
            f"{name!r} must be an array of numbers, got {type(value).__name__}, which numpy does not read "
            f"({str(error).splitlines()[0]}). Make it a tensor or an array."
        ) from error
    if array.dtype.names:
        return array, None
    mask = getattr(array, "mask", False)  # of numpy's masked arrays, and of others that work like them
    if isinstance(array, np.ma.MaskedArray):
        mask, array = np.ma.getmaskarray(array), array.filled(None) if array.dtype == object else array.data
    array = np.asarray(array)
    if array.dtype == object:
        return _of_objects(name, array, value)
    if array.dtype.kind == "V" and array.dtype.type is not np.void:  # of other packages, such as bfloat16
        array = array.astype(np.float32)
    attributes = getattr(value, "attrs", None)
    marks = [attributes[key] for key in ("_FillValue", "missing_value") if key in attributes] if attributes else []
    missing = np.asarray(mask, dtype=bool) | (np.isin(array, marks) if marks and array.dtype.kind in "biuf" else False)
    return array, np.broadcast_to(missing, array.shape) if missing.any() else None


def counts_nulls(value: Any) -> bool:
    """Whether this is a table, or a column, in Arrow's memory, as those of polars and pyarrow are."""
    parts = value.get_columns() if hasattr(value, "get_columns") else getattr(value, "columns", None)
    return any(hasattr(part, "null_count") for part in (value, *(parts if isinstance(parts, list) else [])))


def _of_arrow(name: str, value: Any) -> Array:
    """An array of a table, or a column, in Arrow's memory. Columns with nulls become objects, among which None is a null."""
    if hasattr(value, "collect"):
        raise DataError(f"{name!r} must hold rows, got a {type(value).__name__}, a query of them: give x.collect().")
    is_table = hasattr(value, "columns")
    found = []
    for part in value.get_columns() if hasattr(value, "get_columns") else value.columns if is_table else [value]:
        nulls = part.null_count() if callable(part.null_count) else part.null_count
        array = np.asarray(part) if nulls == 0 else np.empty(0, dtype=object)
        # perhaps of integers with nulls
        inner = array.ndim > 1 and array.dtype.kind == "f" and bool(np.isnan(array).any())
        if array.dtype.kind not in "biuf" or inner:
            array = np.empty(len(part), dtype=object)
            array[:] = part.to_list() if hasattr(part, "to_list") else part.to_pylist()
        found.append(array)
    if not is_table:
        return found[0]
    if not found:
        return np.empty((0, 0))
    if any(array.dtype == object for array in found):
        found = [array.astype(object) for array in found]
    elif len({array.dtype for array in found}) > 1:
        _check_mixture(name, [array for array in found if array.dtype.kind in "iu"])
    return np.stack(found, 1)


def _check_mixture(name: str, columns: Sequence[Array]) -> None:
    """DataError if columns of integers cannot stand beside others in float64."""
    if any(len(column) and max(int(column.max()), -int(column.min())) > 2**53 for column in columns):
        raise DataError(f"{name!r} mixes reals with integers that float64 would round. Subtract an offset.")


def _of_objects(name: str, array: Array, given: Any) -> tuple[Array, Array | None]:
    """Numbers that stand in an array of objects, such as a table's columns of several types."""
    cells = array.ravel().tolist()
    if array.ndim == 1 and any(isinstance(cell, (list, tuple, np.ndarray, Tensor)) for cell in cells):
        return _numbers(name, [cell.detach().cpu().numpy() if isinstance(cell, Tensor) else cell for cell in cells])
    absent = [cell is None or cell is np.ma.masked or type(cell).__name__ == "NAType" for cell in cells]
    for place, (cell, gone) in enumerate(zip(cells, absent)):
        if not gone and not isinstance(cell, _NUMBERS):
            if isinstance(cell, (list, tuple, np.ndarray, Tensor)):
                raise DataError(_ragged(name))
            where = [int(i) for i in np.unravel_index(place, array.shape)]
            columns = getattr(given, "column_names", None) or getattr(given, "columns", None)
            column = (
                f", column {(range(array.shape[1]) if columns is None else columns)[where[1]]!r}" if where[1:] else ""
            )
            raise DataError(
                f"{name!r} must hold numbers, got {cell!r} ({type(cell).__name__})"
                + (f" in row {where[0]}{column}. " if where else ". ")
                + _cure(
                    np.dtype("M8[s]" if isinstance(cell, (date, time, timedelta)) else object), of_table=bool(column)
                )
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

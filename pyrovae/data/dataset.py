"""`Dataset`: rows, the kind of their values, their labels, and the source they were read from.

The readers of the other modules hand their arrays to `make_dataset`, which checks them and finds out the kind.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrovae._lazily import Lazily
from pyrovae.errors import DataError, counted

# pandas takes seconds to import
if TYPE_CHECKING:
    import pandas as pd

    from pyrovae.data.captions import Captions
    from pyrovae.tables.schema import Schema
else:
    pd = Lazily("pandas")

Kind = Literal["binary", "unit", "count", "real", "table"]
Array = NDArray[Any]
KINDS: tuple[Kind, ...] = ("binary", "unit", "count", "real", "table")


@dataclass(frozen=True, eq=False)
class LabelColumn:
    """One of several columns of labels.

    Args:
        name: The name of the column.
        y: The class number of each row, `(N,)` int64, -1 where unknown.
        classes: The original labels of the classes 0, 1, ...
    """

    name: str
    y: Tensor
    classes: tuple[str | int, ...]


@dataclass(frozen=True, eq=False)
class Dataset:
    """N rows of D values, the kind of the values, and where the rows came from.

    Args:
        name: The name that messages and run folders use.
        x: The rows to train and validate on, `(N, D)` float32. NaN marks a missing value.
        kind: What the values are: "binary" (0 and 1), "unit" (reals in [0, 1]), "count" (integers >= 0), "real", or "table":
            columns of several kinds, as `schema` encodes them.
        source: What `load_again` needs, in JSON's types: the name or the absolute path, the label column, the SHA-256
            checksum of the file (of the values where there is no single file), the kind, what was found out about the
            columns of a table (`header`, `ids`, `drop`), and `divided_by` where pixels were scaled.
        x_test: The test rows, `(N_test, D)` float32, or None if the source has no test set of its own.
        y: The class number of each row, `(N,)` int64, -1 where unknown, or None if the source has no labels.
        y_test: The class number of each test row, `(N_test,)` int64, or None.
        total_count: The largest count that can occur, if it is known.
        columns: The names of the D columns, or None.
        classes: The original labels of the classes 0, 1, ..., or None.
        labels: The columns of labels where there are several; then `y` is None.
        image_shape: The shape of a row that is an image, `(H, W)` or `(C, H, W)`, or None.
        ids: The names of the N rows, or None if they are numbered from 0.
        notes: What was found out about the file and may surprise, in sentences.
        schema: What each column of a table is, or None.
        encoded: The rows as `schema` encodes them, `(N, D')`, or None.
        conditions: What each column is that a model is given with every row, and that is not among the rows, or None.
        c: What a model is given with every row: the columns of `conditions`, as it encodes them, `(N, C)`, or the numbers of
            the words of `captions`, `(N, T)` int64; or None.
        c_test: The same for the test rows, `(N_test, T)`, or None.
        captions: How the captions of images are made, and their vocabulary, or None.
        factors: What each of the N rows was made from, `(N, K)`, where that is known, or None.
        factor_names: The names of the K factors, or None.

    Example:
        >>> from pyrovae.data import Dataset
        >>> data = Dataset(name="coins", x=torch.tensor([[0.0, 1.0], [1.0, 1.0]]), kind="binary", source={})
        >>> data.x.shape, data.y is None
        (torch.Size([2, 2]), True)
    """

    name: str
    x: Tensor
    kind: Kind
    source: dict[str, Any]
    x_test: Tensor | None = None
    y: Tensor | None = None
    y_test: Tensor | None = None
    total_count: int | None = None
    columns: tuple[str, ...] | None = None
    classes: tuple[str | int, ...] | None = None
    image_shape: tuple[int, ...] | None = None
    ids: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    schema: Schema | None = None
    encoded: Tensor | None = None
    conditions: Schema | None = None
    c: Tensor | None = None
    c_test: Tensor | None = None
    captions: Captions | None = None
    factors: Tensor | None = None
    factor_names: tuple[str, ...] | None = None
    labels: tuple[LabelColumn, ...] = ()


def make_dataset(
    path: Path,
    x: Array,
    x_test: Array | None = None,
    y: Array | None = None,
    y_test: Array | None = None,
    *,
    label: str | None,
    columns: tuple[str, ...] | None = None,
    ids: tuple[str, ...] | None = None,
    kind: Kind | None = None,
    one_class: bool = False,
) -> Dataset:
    """Check the arrays that a reader found in the file `path`, and make a `Dataset` of them.

    Args:
        kind: what the values are, if that is known: "table" of rows that a schema has encoded.
        one_class: whether labels may be of one class, while others are unknown.
    """
    parts = [x] if x_test is None else [x, x_test]
    _check_shapes(path, x, x_test, y, y_test)
    kind, divisor = (kind, 1) if kind is not None else kind_of(path, parts)
    image_shape = image_shape_of(x)
    source: dict[str, Any] = {"path": str(path), "label": label, "checksum": file_checksum(path), "kind": kind}
    if divisor != 1:
        source["divided_by"] = divisor
    rows_of = [torch.from_numpy(flat(part)).div_(divisor) for part in parts]
    if infinite := sum(int(rows.isinf().sum()) for rows in rows_of):
        raise DataError(
            f"{path}: {counted(infinite, 'value is', 'values are')} infinite (or beyond float32, 3.4e38). "
            "Make them NaN (missing), drop their rows, or change their unit."
        )
    for part, read in zip(parts, rows_of):
        refuse_rounding(path, part, read, divisor, columns, part.dtype.kind in "iu" or kind == "count")
    codes, classes = class_codes(path, [part for part in (y, y_test) if part is not None], one_class)
    return Dataset(
        name=path.stem,
        x=rows_of[0],
        x_test=rows_of[1] if len(rows_of) > 1 else None,
        y=None if y is None else codes[0],
        y_test=None if y_test is None else codes[-1],
        kind=kind,
        columns=columns,
        classes=classes,
        image_shape=image_shape,
        ids=ids,
        source=source,
    )


def _check_shapes(path: Path, x: Array, x_test: Array | None, y: Array | None, y_test: Array | None) -> None:
    """DataError unless the rows are numbers of one shape, and each label belongs to a row."""
    for part in (x, x_test):
        if part is None:
            continue
        if part.dtype.kind not in "biuf":
            raise DataError(f"{path}: rows must be numbers, got an array of dtype {part.dtype}. Convert it to float32.")
        if part.ndim < 2 or part.size == 0:
            raise DataError(
                f"{path}: rows must have the shape (N, D) or (N, *event), none of them 0, got {part.shape}. "
                "Reshape a single column with array.reshape(-1, 1)."
            )
    if x_test is not None and x_test.shape[1:] != x.shape[1:]:
        raise DataError(
            f"{path}: a row has shape {x.shape[1:]}, a test row {x_test.shape[1:]}. "
            "Training and test rows must have the same shape."
        )
    for rows, labels in ((x, y), (x_test, y_test)):
        if labels is not None and (rows is None or labels.shape != rows.shape[:1]):
            wanted = "rows to label" if rows is None else f"the shape {rows.shape[:1]}, one class per row"
            raise DataError(
                f"{path}: labels of shape {labels.shape} need {wanted}. Give class numbers, not one-hot rows."
            )


def kind_of(path: Path, parts: list[Array]) -> tuple[Kind, int]:
    """The kind of the values, and the divisor that brings them to [0, 1]: 255 for 8-bit pixels, else 1.

    Values of dtype uint8 are pixels if they reach 255, or exceed 127 in rows that have the shape of images. Reals in [0, 1]
    are pixels in rows that have the shape of images, or where all are grey levels; elsewhere they are measurements.
    """
    values = np.concatenate([part.reshape(-1) for part in parts])
    if values.dtype.kind == "f":
        values = values[~np.isnan(values)]
    if values.size == 0:
        raise DataError(f"{path}: no value is observed, all are NaN. Give a file that has values.")
    low, high = values.min(), values.max()
    if values.dtype == np.uint8 and (high == 255 or (high > 127 and parts[0].ndim > 2)):
        return "unit", 255
    integral = values.dtype.kind in "biu" or bool((values == np.floor(values)).all())
    if low < 0 or (not integral and high > 1):
        return "real", 1
    if not integral:
        return ("unit" if parts[0].ndim > 2 or are_grey_levels(values) else "real"), 1
    return ("binary" if high <= 1 else "count"), 1


def are_grey_levels(values: Array) -> bool:
    """Whether values in [0, 1] are grey levels: multiples of 1/L, where L is 15, 16, 255 or 65535.

    They must not be multiples of something larger, as 0.2 is of 3/15, and there must be several: most of the levels where L
    is small. Quarters, percentages and the like are measurements.
    """
    for top in (15, 16, 255, 65535):
        counts = np.zeros(top + 1, dtype=np.int64)
        for part in np.array_split(values, len(values) // 1_000_000 + 1):
            scaled = part.astype(np.float64) * top
            levels = np.rint(scaled)
            if np.abs(scaled - levels).max() > 0.01:  # float32 is off by 0.004 of 65535
                break
            counts += np.bincount(levels.astype(np.int64), minlength=top + 1)
        else:
            found = np.flatnonzero(counts)
            return len(found) > max(3, top / 2 if top < 255 else 0) and np.gcd.reduce([*found, top]) == 1
    return False


def image_shape_of(x: Array) -> tuple[int, ...] | None:
    """The shape `(H, W)` or `(C, H, W)` of rows of rank 2 and 3; rows of rank 1 are no images."""
    if x.ndim == 3:
        return x.shape[1:]
    if x.ndim != 4 or not {x.shape[1], x.shape[-1]} & {1, 3, 4}:
        return None
    channels, height, width = x.shape[1:] if x.shape[1] in (1, 3, 4) else (x.shape[-1], *x.shape[1:-1])
    return (height, width) if channels == 1 else (channels, height, width)


def flat(x: Array, dtype: type = np.float32) -> Array:
    """The rows as `(N, D)`; images with channels last are turned to channels first."""
    if x.ndim == 4 and x.shape[1] not in (1, 3, 4) and x.shape[-1] in (1, 3, 4):
        x = np.moveaxis(x, -1, 1)
    with np.errstate(over="ignore"):  # an overflow becomes infinite, which `make_dataset` refuses
        return np.array(x.reshape(len(x), -1), dtype=dtype)  # always a copy, which is divided in place


def refuse_rounding(
    path: Path, given: Array, rows: Tensor, divisor: int, columns: tuple[str, ...] | None, exactly: bool
) -> None:
    """DataError if float32, with its 7 digits, would lose what varies in a column, as in 1e9 +- 1.

    Whole numbers must be kept `exactly` where the array is one of integers, or they are counts.
    """
    if given.dtype.kind == "b" or given.dtype.itemsize <= 2 or (given.dtype.kind == "f" and given.dtype.itemsize <= 4):
        return
    given = flat(given, given.dtype.type)
    wrong = _rounded(given, rows) if exactly else np.zeros(given.shape[1], dtype=bool)
    lost = np.nanmax(np.abs(given - rows.double().numpy() * divisor), axis=0, initial=0.0)
    spread = np.nanstd(given.astype(np.float64), axis=0)
    low, high = np.fmin.reduce(given, axis=0), np.fmax.reduce(given, axis=0)
    bad = np.flatnonzero(wrong | ((lost > 0.01 * spread) & (high > low)))  # rounding lets constants vary, too
    if len(bad):
        name = columns[bad[0]] if columns else f"column {bad[0]}"
        raise DataError(
            f"{path}: {name} varies by {spread[bad[0]]:.3g} around {np.nanmean(given[:, bad[0]]):.6g}, "
            + (
                "and float32 holds whole numbers up to 2^24 only"
                if wrong[bad[0]]
                else "less than float32 can tell apart"
            )
            + ". Subtract an offset from the column, change its unit, or leave it out if it holds names of rows."
        )


def _rounded(given: Array, rows: Tensor) -> Array:
    """Which columns hold a whole number that is another one in float32, `(D,)`."""
    kept = rows.double().numpy()
    if given.dtype.kind != "f":  # float64 may not hold them either
        with np.errstate(invalid="ignore"):  # what was rounded up may be beyond the integers
            back = kept.astype(given.dtype)
        beyond = 2.0 ** (8 * given.dtype.itemsize - (given.dtype.kind == "i"))
        return ((given != back) | (kept >= beyond)).any(0, keepdims=True)[0]
    return ((given != kept) & ~np.isnan(given)).any(0, keepdims=True)[0]


def class_codes(
    path: Path, parts: list[Array], one_class: bool = False
) -> tuple[list[Tensor], tuple[str | int, ...] | None]:
    """Class numbers in ascending order of the labels, and the labels; missing labels and -1 become -1."""
    if not parts:
        return [], None
    for part in parts:
        if part.dtype.kind not in "biufUSO":
            raise DataError(
                f"{path}: labels are whole numbers or names, got an array of dtype {part.dtype}. Convert it."
            )
    parts = [np.char.decode(part, "utf-8", "backslashreplace") if part.dtype.kind == "S" else part for part in parts]
    values = pd.Series(np.concatenate(parts))
    unknown = values.isna() | values.astype(str).isin(("", "-1", "-1.0"))
    known = values[~unknown]
    if pd.api.types.is_float_dtype(known) and not ((known == np.floor(known)) & (known.abs() <= 2**53)).all():
        raise DataError(
            f"{path}: labels are classes, got the numbers {known.unique()[:3].tolist()}, ... "
            "Give whole numbers or names."
        )
    if pd.api.types.is_numeric_dtype(known):
        if len(known) and int(known.max()) > np.iinfo(np.int64).max:
            raise DataError(f"{path}: labels are whole numbers of at most 63 bits, got {known.max()}. Give names.")
        known = known.astype(np.int64)
    if known.dtype == object:
        known = known.map(_class_name)
    numbers, found = pd.factorize(known.to_numpy(), sort=True)
    classes = tuple(np.asarray(found).tolist())
    if len(classes) == 1 and unknown.any() and not one_class:
        raise DataError(
            f"{path}: the only class is {classes[0]!r}; all other labels are -1 or missing, which mean unknown. "
            "Code two classes as 0 and 1, or leave the labels out."
        )
    codes = np.full(len(values), -1, dtype=np.int64)
    codes[(~unknown).to_numpy()] = numbers
    ends = np.cumsum([len(part) for part in parts])[:-1]
    return [torch.from_numpy(part) for part in np.split(codes, ends)], classes


def _class_name(label: Any) -> str | int:
    """A label as JSON can keep it: a truth, a whole number, or a text."""
    if isinstance(label, Decimal) and label == label.to_integral_value():
        return int(label)
    return label if isinstance(label, bool | int | str) else str(label)


def label_column(path: Path, name: str, cells: Array) -> LabelColumn:
    """One of several columns of labels. DataError unless it has two classes at least, as something to tell apart."""
    try:
        (codes,), classes = class_codes(path, [cells], one_class=True)
    except DataError as error:
        raise DataError(f"Column {name!r} of {error}") from error
    if classes is None or len(classes) < 2:
        what = "no label" if not classes else f"one class only, {classes[0]!r}"
        raise DataError(f"Column {name!r} of {path} has {what}. Name columns of two classes or more.")
    return LabelColumn(name, codes, classes)


def file_checksum(path: Path) -> str:
    """The SHA-256 checksum of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""What holds numbers becomes a tensor that says the same; what cannot is refused, with what to do."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
import xarray

import pyrovae as pv
from pyrovae.pair.arrays import as_tensor
from pyrovae.pair.batch import as_batch

NAN = float("nan")


class OnlyArray:
    """As netCDF's variables are: numpy reads them, and what comes may be masked."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.array


class OnlyDLPack:
    """As arrays of another device, or of another library, are."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    def __dlpack__(self, **how: Any) -> Any:
        return self.tensor.__dlpack__(**how)

    def __dlpack_device__(self) -> Any:
        return self.tensor.__dlpack_device__()


class Column(OnlyArray):
    """A column as pyarrow has it: numpy gets NaN for a null, and integers become reals."""

    def __init__(self, cells: list[Any]) -> None:
        super().__init__(np.array([NAN if cell is None else cell for cell in cells]))
        self.cells, self.null_count = cells, cells.count(None)

    def __len__(self) -> int:
        return len(self.cells)

    def to_pylist(self) -> list[Any]:
        return self.cells


class Table:
    """A table as pyarrow has it."""

    def __init__(self, **columns: Any) -> None:
        self.column_names, self.columns = list(columns), [Column(cells) for cells in columns.values()]


class Series(OnlyArray):
    """A column as polars has it."""

    def __init__(self, cells: list[Any]) -> None:
        super().__init__(Column(cells).array)
        self.cells = cells

    def __len__(self) -> int:
        return len(self.cells)

    def null_count(self) -> int:
        return self.cells.count(None)

    def to_list(self) -> list[Any]:
        return self.cells


class Frame:
    """A table as polars has it."""

    def __init__(self, **columns: Any) -> None:
        self.columns, self.parts = list(columns), [Series(cells) for cells in columns.values()]

    def get_columns(self) -> list[Series]:
        return self.parts

    def null_count(self) -> Any:
        return NotImplemented


class LazyFrame:
    def collect(self) -> Any:
        return NotImplemented


X = np.array([[1.5, 2.0], [3.0, 4.25]])
GONE = np.array([[False, True], [False, False]])
FRAME = pd.DataFrame({"a": [1.5, 3.0], "b": [2.0, 4.25]})

SAME = {
    "array": X,
    "float32": X.astype(np.float32),
    "half": X.astype(np.float16),
    "long double": X.astype(np.longdouble),
    "other byte order": X.astype(">f8"),
    "other byte order, single": X.astype(">f4"),
    "columns first": np.asfortranarray(X),
    "backwards": X[::-1][::-1],
    "read only": np.broadcast_to(X, X.shape),
    "objects": X.astype(object),
    "list": X.tolist(),
    "list of arrays": list(X),
    "list of tensors": list(torch.tensor(X, dtype=torch.float32)),
    "decimals": [[Decimal("1.5"), 2], [3, Fraction(17, 4)]],
    "frame": FRAME,
    "nullable frame": FRAME.astype("Float64"),
    "mixed frame": FRAME.astype({"a": "Float64"}),
    "sparse frame": FRAME.astype(pd.SparseDtype("float64", 0.0)),
    "masked nowhere": np.ma.array(X, mask=False),
    "xarray": xarray.DataArray(X),
    "array of another kind": OnlyArray(X),
    "memory of another library": OnlyDLPack(X),
    "its bfloat16": OnlyDLPack(torch.tensor(X, dtype=torch.bfloat16)),
    "Arrow's table": Table(a=[1.5, 3], b=[2, 4.25]),
    "Arrow's frame": Frame(a=[1.5, 3], b=[2, 4.25]),
    "rows in a column": pd.Series(X.tolist()),
    "arrays in a column": pd.Series(list(X)),
    "tensors in a column": pd.Series(list(torch.tensor(X, requires_grad=True))),
    "lists in a column": Series(X.tolist()),
    "columns of three types": pd.DataFrame({"a": X[:, 0], "b": X[:, 1].astype(np.float32)}),
    "tensor with a gradient": torch.tensor(X, dtype=torch.float32, requires_grad=True),
}


@pytest.mark.parametrize("given", SAME.values(), ids=SAME.keys())
def test_numbers_are_kept_however_they_are_held(given: Any) -> None:
    found = as_tensor("x", given)
    assert found.tolist() == X.tolist() and found.dtype == torch.float32 and not found.requires_grad


GAPS = {
    "masked": np.ma.array(X, mask=GONE),
    "masked integers": np.ma.array(X.astype(int) * 4, mask=GONE),
    "masked truths": np.ma.array(X > 2, mask=GONE),
    "list of masked rows": [np.ma.array(row, mask=gone) for row, gone in zip(X, GONE)],
    "None": [[1.5, None], [3.0, 4.25]],
    "NaN": np.where(GONE, NAN, X),
    "pandas' NA": FRAME.astype("Float64").mask(pd.DataFrame(GONE, columns=["a", "b"])),
    "nullable integers": pd.DataFrame({"a": [6, 12], "b": [None, 16]}).astype("Int64"),
    "nullable truths": pd.DataFrame({"a": [True, False], "b": [None, True]}).astype("boolean"),
    "objects": np.array([[1.5, None], [3.0, 4.25]], dtype=object),
    "variable that is masked": OnlyArray(np.ma.array(X, mask=GONE)),
    "Arrow's null": Table(a=[1.5, 3.0], b=[None, 4.25]),
    "Arrow's null among integers": Frame(a=[6, 12], b=[None, 16]),
    "Arrow's null among truths": Table(a=[True, False], b=[None, True]),
    "Arrow's null among decimals": Frame(a=[Decimal("1.5"), Decimal(3)], b=[None, Decimal(4)]),
    "Arrow's null within rows": Series([[6, None], [12, 16]]),
    "xarray's fill value": xarray.DataArray(np.where(GONE, -999, X), attrs={"_FillValue": -999}),
    "xarray's missing value": xarray.DataArray(np.where(GONE, -9, X), attrs={"missing_value": -9}),
}


@pytest.mark.parametrize("given", GAPS.values(), ids=GAPS.keys())
def test_what_is_missing_stays_missing(given: Any) -> None:
    found = as_tensor("x", given)
    assert found.dtype == torch.float32 and torch.equal(found.isnan(), torch.tensor(GONE))


CODES = {
    "masked": np.ma.array([2, 0, 1], mask=[False, True, False]),
    "nullable": pd.Series([2, None, 1], dtype="Int64"),
    "nullable array": pd.array([2, None, 1], dtype="Int8"),
    "categories": pd.Series([2, None, 1], dtype="Int64").astype("category"),
    "variable": OnlyArray(np.ma.array([2, 0, 1], mask=[False, True, False])),
    "Arrow's column": Column([2, None, 1]),
    "Arrow's series": Series([2, None, 1]),
    "None": [2, None, 1],
    "-1": np.array([2, -1, 1]),
}


@pytest.mark.parametrize("given", CODES.values(), ids=CODES.keys())
def test_unknown_classes_are_minus_one_where_they_may_be_unknown(given: Any) -> None:
    assert as_tensor("y", given, codes=True).tolist() == [2, -1, 1]
    assert as_tensor("y", given, codes=True).dtype == torch.int64
    if not isinstance(given, np.ndarray) or isinstance(given, np.ma.MaskedArray):
        assert as_tensor("y", given).isnan().tolist() == [False, True, False]


def test_dummies_of_a_table_are_numbers() -> None:
    frame = pd.get_dummies(pd.DataFrame({"a": [1.5, 2.5], "kind": ["rose", "tulip"]}))
    assert as_tensor("x", frame).tolist() == [[1.5, 1, 0], [2.5, 0, 1]]
    assert as_tensor("x", pd.get_dummies(pd.Series(["u", "v"]))).dtype == torch.bool


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64, ">i8", ">u2", np.int64])
def test_integers_stay_integers_with_which_torch_computes(dtype: Any) -> None:
    found = as_tensor("x", np.array([3, 2**15], dtype=dtype))
    assert found.dtype == torch.int64 and found.tolist() == [3, 2**15]


LARGE = 2**53 + 1
REFUSED = {
    "text": (["a", "b"], "must hold numbers, got values of dtype <U1.*Encode text"),
    "a column of text": (pd.DataFrame({"a": [1.0], "kind": ["rose"]}), "got 'rose' .str. in row 0, column 'kind'"),
    "dates": (np.array(["2020-01-01"], dtype="datetime64[D]"), "got values of dtype datetime64.*Give times as numbers"),
    "dates in a table": (pd.DataFrame({"a": [1.0], "t": [pd.Timestamp(0)]}), "Timestamp.*column 't'.*times as numbers"),
    "durations": (pd.Series(pd.to_timedelta([1], unit="s")), "timedelta64.*Give times as numbers"),
    "dates of Arrow": (Table(a=[1.0], t=[pd.Timestamp(0)]), "Timestamp.*row 0, column 't'.*times as numbers"),
    "text of Arrow": (Frame(a=[1.0, 2.0], kind=["rose", None]), "got 'rose' .str. in row 0, column 'kind'"),
    "a query": (LazyFrame(), r"a LazyFrame, a query of them: give x.collect\(\)"),
    "records": (np.array([(1.0, 2)], dtype=[("a", float), ("b", int)]), r"structured_to_unstructured\(x\)"),
    "masked records": (
        np.ma.array([(1.0, 2)], mask=[(True, False)], dtype=[("a", float), ("b", int)]),
        r"structured_to_unstructured\(x\)",
    ),
    "complex": (X + 1j, "dtype complex128.*real and imaginary parts"),
    "complex tensor": (torch.zeros(2, 2) + 1j, "complex numbers: give real and imaginary parts"),
    "ragged": ([[1.0, 2.0], [1.0]], "rows of different lengths. Fill them up"),
    "ragged arrays": ([np.ones(2), np.ones(3)], "rows of different lengths"),
    "ragged tensors": ([torch.ones(2), torch.ones(3)], "rows of different lengths"),
    "ragged objects": (np.array([[1, 2], [1]], dtype=object), "rows of different lengths"),
    "nested": (torch.nested.as_nested_tensor([torch.ones(2)], layout=torch.jagged), "pad them"),
    "sparse": (torch.eye(2).to_sparse(), r"sparse layout: give x.to_dense\(\)"),
    "rows of a matrix": (scipy.sparse.csr_matrix(X), r"a sparse csr_matrix. Give x.toarray\(\)"),
    "coordinates of a matrix": (scipy.sparse.coo_array(X), r"a sparse coo_array. Give x.toarray\(\)"),
    "beyond 63 bits": (np.array([2**63 + 1], dtype=np.uint64), "integers beyond 2.63"),
    "beyond 63 bits, as objects": ([2**70, 1], "integers beyond 2.63"),
    "large integers and gaps": ([LARGE, None], "float32, which can say both, would round the integers"),
    "large nullable integers": (pd.Series([LARGE, None], dtype="Int64"), "would round the integers"),
    "large masked integers": (np.ma.array([2**24 + 1, 1], mask=[False, True]), "would round the integers"),
    "large integers of Arrow": (Column([LARGE, None]), "would round the integers"),
    "large integers in rows of Arrow": (Series([[LARGE, None], [1, 2]]), "would round the integers"),
    "large integers beside reals": (pd.DataFrame({"a": [LARGE], "b": [0.5]}), "integers that float64 would round"),
    "large integers beside Arrow's": (Frame(a=[-LARGE], b=[0.5]), "integers that float64 would round"),
    "rows that lack": (pd.Series([[1.0, 2.0], None]), "rows of different lengths"),
    "large integers among reals": ([[LARGE, 0.5, None]], "integers that float64 would round"),
    "beyond float32": ([[1.0, 2.0], [1e39, 1.0]], r"beyond float32, 3.4e\+38, the first in row 1.*Change their unit"),
    "a number": (3.0, "one row per datum"),
    "a dict": ({"a": [1.0]}, "must hold numbers"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
def test_what_a_tensor_cannot_say_is_refused(case: tuple[Any, str]) -> None:
    given, message = case
    with pytest.raises(pv.DataError, match=message):
        as_tensor("x", given)


def test_a_dtype_that_can_hold_more_is_used() -> None:
    assert as_tensor("x", [LARGE - 1, None], torch.float64)[0] == LARGE - 1
    assert as_tensor("x", [1e300], torch.float64).tolist() == [1e300]


def test_the_given_is_not_changed() -> None:
    masked, frame = np.ma.array(X.copy(), mask=GONE), FRAME.astype("Float64")
    for given in (masked, frame):
        as_tensor("x", given).zero_()
    assert masked.data.tolist() == X.tolist() and frame.to_numpy(dtype=float).tolist() == X.tolist()


def test_a_tuple_may_have_arrays_of_any_kind() -> None:
    torch.manual_seed(0)
    pair = pv.VAE(
        pv.priors.StandardNormal(1), pv.mlp(1, pv.families.Normal(2), ()), pv.mlp(2, pv.families.Normal(1), ())
    )
    for x in (OnlyDLPack(X), Table(a=[1.5, 3.0], b=[2.0, 4.25])):
        batch = as_batch(pair, (x,) if isinstance(x, OnlyDLPack) else x)
        assert batch["x"].tolist() == X.tolist()


@pytest.mark.parametrize("library", ["polars", "pyarrow"])
def test_tables_of_other_libraries_say_what_they_hold(library: str) -> None:
    """The stand-ins above, held against the libraries where they are installed."""
    module: Any = pytest.importorskip(library)
    make = module.DataFrame if library == "polars" else module.table
    cells = {"a": [6, 12], "b": [None, 16]}
    assert torch.equal(as_tensor("x", make(cells)).isnan(), torch.tensor(GONE))
    assert as_tensor("x", make({"a": [1.5, 3.0], "b": [2.0, 4.25]})).tolist() == X.tolist()
    codes = module.Series([2, None, 1]) if library == "polars" else module.array([2, None, 1])
    assert as_tensor("y", codes, codes=True).tolist() == [2, -1, 1]
    with pytest.raises(pv.DataError, match="got 'u' .str. in row 0, column 'b'"):
        as_tensor("x", make({"a": [1.5, 3.0], "b": ["u", None]}))
    with pytest.raises(pv.DataError, match="would round the integers"):
        as_tensor("x", make({"a": [LARGE, None]}))

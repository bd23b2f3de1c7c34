"""What tests of objectives and estimates compare by: tolerances, and how two sets of values and gradients are equal."""

from typing import Any

import pytest
from torch import Tensor

from support.pairs import Row, relative_difference

TOLERANCE = 1e-10  # relative, in float64
BOUND = 4.5  # standard errors of an estimate: false alarms 7e-6 for each number compared
MANY = 50  # rows of the whole data set that a batch stands for


def named(rows: list[Row]) -> Any:
    """Run a test for each of these pairs."""
    return pytest.mark.parametrize("row", rows, ids=lambda row: row.name)


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    """Value and gradient of each parameter are equal, and none of them is zero."""
    assert a.keys() == b.keys() and len(a) > 1
    for name in b:
        assert b[name].abs().max() > 1e-6, f"{name} is zero: nothing is compared"
        assert relative_difference(a[name], b[name]) <= TOLERANCE, name

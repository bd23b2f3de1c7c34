"""Errors of torch about dtypes, with the cure: rows of integers or bools where a network or a density computes with reals."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from pyrovae._shapes import how_to_cast

_TWO_DTYPES = re.compile(
    r"same dtype|of that dtype|result type \w+ can't be cast|with (two|a) bool tensors? is not supported|expected scalar type"
    r"|could not infer output dtype|not implemented for '(Bool|Byte|Char|Short|Int|Long)'|Input type .*should be the same"
)


def cure_of_dtypes(error: Exception, rows: Mapping[str, Tensor], dtype: torch.dtype) -> str:
    """What to do about an error of two dtypes, to follow torch's words; empty for any other error.

    Args:
        error: What torch raised.
        rows: What was computed with, by name.
        dtype: That of the weights.
    """
    others = [f"{name} is {str(value.dtype)[6:]}" for name, value in rows.items() if value.dtype != dtype]
    if not others or not _TWO_DTYPES.search(str(error)):
        return ""
    stop = "" if str(error).rstrip().endswith(".") else "."
    return (
        f"{stop} The weights are {str(dtype)[6:]}, and {', '.join(others)}: rows that enter a network, or a density of reals, "
        f"counts or bits, need the dtype of the weights. Cast them: {how_to_cast(dtype)}."
    )

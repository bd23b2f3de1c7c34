"""Matrix products in bfloat16, everything else in float32."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyrovae.errors import OptionError

PRECISIONS = ("float32", "bfloat16")


class _Float32Results(TorchFunctionMode):
    """Convert results in bfloat16 back to float32, so that only matrix products lose precision."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        return made.float() if isinstance(made, Tensor) and made.dtype == torch.bfloat16 else made


class low_precision(ExitStack):
    """`torch.autocast` to bfloat16, with every result converted to float32 (Micikevicius et al. 2018, arXiv:1710.03740)."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __enter__(self) -> low_precision:
        super().__enter__()
        self.enter_context(torch.autocast(self.device.type, dtype=torch.bfloat16))
        self.enter_context(_Float32Results())
        return self


def as_precision(precision: str | None, dtype: torch.dtype) -> str:
    """The precision by name; None and "float32" mean the parameters' own dtype.

    Raises:
        OptionError: The precision is unknown, or bfloat16 for parameters that are not float32.
    """
    if precision is None:
        return PRECISIONS[0]
    if precision not in PRECISIONS:
        raise OptionError(f"precision={precision!r} is not known; known: {', '.join(PRECISIONS)}.")
    if precision == "bfloat16" and dtype != torch.float32:
        raise OptionError(
            f"precision='bfloat16' needs float32 parameters, and these are {str(dtype)[6:]}: convert the pair to float32."
        )
    return precision

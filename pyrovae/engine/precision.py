"""Matrix products in bfloat16, everything else in float32."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyrovae.errors import OptionError

PRECISIONS = ("float32", "bfloat16")
# Floating-point operations of the largest product of a step from which "auto" takes bfloat16. Products of 160 million made fits
# of MNIST a third to a half shorter, compiling included, at no loss that three seeds show (`benchmarks/precision.py`).
WORTH_IT = 5e7
# From so many on, a processor without instructions for bfloat16 loses time that a user notices.
NOTICED = 1e6


class _Float32Results(TorchFunctionMode):
    """Convert results in bfloat16 back to float32, so that only matrix products lose precision."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        return made.float() if isinstance(made, Tensor) and made.dtype == torch.bfloat16 else made


@contextmanager
def low_precision(device: torch.device) -> Iterator[None]:
    """`torch.autocast` to bfloat16, with every result converted to float32 (Micikevicius et al. 2018, arXiv:1710.03740)."""
    with torch.autocast(device.type, dtype=torch.bfloat16), _Float32Results():
        yield


def as_precision(
    precision: str | None, dtype: torch.dtype, device: torch.device | None = None, product: float = 0
) -> str:
    """The precision by name; None and "float32" mean the parameters' own dtype.

    Args:
        precision: "float32", "bfloat16", or, where the device is given, "auto": bfloat16 where the device has instructions for
            it, the parameters are float32 and products are large. That is a rule which measures nothing, so that a seed
            determines the result.
        dtype: Of the parameters.
        device: Where the steps run.
        product: Floating-point operations of the largest product of matrices of a step.

    Raises:
        OptionError: The precision is unknown, or bfloat16 for parameters that are not float32.
    """
    if precision is None:
        return PRECISIONS[0]
    if precision == "auto" and device is not None:
        gains = dtype == torch.float32 and product >= WORTH_IT and has_bfloat16(device)
        return PRECISIONS[gains]
    known = PRECISIONS if device is None else ("auto", *PRECISIONS)
    if precision not in known:
        raise OptionError(f"precision={precision!r} is not known; known: {', '.join(known)}.")
    if precision == "bfloat16" and dtype != torch.float32:
        raise OptionError(
            f"precision='bfloat16' needs float32 parameters, and these are {str(dtype)[6:]}: convert the pair to float32."
        )
    return precision


def warn_of_slow_products(precision: str, device: torch.device, product: float = NOTICED, *, stacklevel: int) -> None:
    """Warn where bfloat16 was asked for and the processor has no instructions for it: there float32 is faster.

    Args:
        precision: What was asked for.
        device: Where the steps run.
        product: Floating-point operations of the largest product of matrices of a step.
        stacklevel: As of `warnings.warn`, of this function's caller.
    """
    if precision == PRECISIONS[1] and product >= NOTICED and not has_bfloat16(device):
        warnings.warn(
            "precision='bfloat16' makes this fit several times slower, since this processor has no instructions for bfloat16: "
            "leave precision out, or give 'auto', which takes bfloat16 only where it saves time.",
            stacklevel=stacklevel + 1,
        )


def has_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 have instructions of their own on a device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    asked = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(ask() for ask in asked if ask is not None)

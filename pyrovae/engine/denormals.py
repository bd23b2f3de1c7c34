"""Denormal numbers, those below 1.2e-38 in float32: a processor is many times slower on them, and a fit is full of them.

Where a gradient stays zero (a pixel that is seldom on, a unit that is off), Adam's first moment shrinks by a factor of 0.9 a
step, is denormal after 800 steps, and stays so. XLA flushes such numbers to zero; torch does when told to.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

SOFT = 1  # omp_pause_soft


def flushes_denormals() -> bool:
    """Whether this thread flushes denormals; torch has no name for asking."""
    return bool((torch.full((), 1e-40, dtype=torch.float32, device="cpu") * 1.0 == 0.0).item())


def flush_denormals(flush: bool) -> None:
    """`torch.set_flush_denormal`, for torch's worker threads too.

    A thread takes the mode of the one that starts it, and torch starts its workers at its first parallel operation. So
    those that run are let go (OpenMP 5.0, section 3.6.1); the next parallel operation starts new ones, in some 0.1 ms.
    """
    if flushes_denormals() == flush or not torch.set_flush_denormal(flush):
        return
    with suppress(AttributeError, OSError, TypeError):  # without OpenMP running workers stay as they are
        ctypes.CDLL(None).omp_pause_resource_all(SOFT)


@contextmanager
def flushed_denormals(device: torch.device) -> Iterator[None]:
    """Flush denormals inside, on a CPU; a GPU is not slower on them."""
    before = flushes_denormals()
    flush_denormals(before or device.type == "cpu")
    try:
        yield
    finally:
        flush_denormals(before)

"""Flushing denormal numbers to zero: processors are many times slower on them, and fits produce many of them.

In float32 these are the numbers below 1.2e-38. Where a gradient stays zero, as for a pixel that is rarely on, Adam's first
moment shrinks by a factor of 0.9 per step, is denormal after some 800 steps, and stays so. XLA always flushes such numbers to
zero; torch does so on request.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

SOFT = 1  # OpenMP's omp_pause_soft


def flushes_denormals() -> bool:
    """Whether this thread flushes denormals, found by a computation because torch has no function that tells."""
    return bool((torch.full((), 1e-40, dtype=torch.float32, device="cpu") * 1.0 == 0.0).item())


def flush_denormals(flush: bool) -> None:
    """`torch.set_flush_denormal` for this thread and for torch's worker threads.

    A thread inherits the mode of the thread that starts it, and torch starts its workers at the first parallel operation.
    Running workers are therefore ended (OpenMP 5.0, section 3.6.1), and the next parallel operation starts new ones, which
    takes some 0.1 ms.
    """
    if flushes_denormals() == flush or not torch.set_flush_denormal(flush):
        return
    with suppress(AttributeError, OSError, TypeError):  # without OpenMP, workers that run keep their mode
        ctypes.CDLL(None).omp_pause_resource_all(SOFT)


@contextmanager
def flushed_denormals(device: torch.device) -> Iterator[None]:
    """Flush denormals inside if the device is a CPU. GPUs are not slower on them."""
    before = flushes_denormals()
    flush_denormals(before or device.type == "cpu")
    try:
        yield
    finally:
        flush_denormals(before)

"""Flushing denormal numbers to zero: processors are many times slower on them, and fits produce many of them.

In float32 these are the numbers below 1.2e-38. Where a gradient stays zero, as for a pixel that is rarely on, Adam's first
moment shrinks by a factor of 0.9 per step, is denormal after some 800 steps, and stays so. XLA always flushes such numbers to
zero; torch does so on request.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

SOFT = 1  # OpenMP's omp_pause_soft


def flushes_denormals() -> bool:
    """Whether this thread flushes denormals, found by a computation because torch has no function that tells."""
    return sys.float_info.min * 0.5 == 0.0


def flush_denormals(flush: bool) -> None:
    """`torch.set_flush_denormal` for this thread and for torch's worker threads."""
    if flushes_denormals() != flush and torch.set_flush_denormal(flush):
        end_workers()


def end_workers() -> None:
    """End torch's worker threads, in place of which the next parallel operation starts others, in some 0.1 ms.

    A thread inherits the mode of the thread that starts it, and workers that run cannot be told another (OpenMP 5.0, section
    3.6.1). Without OpenMP they go on as they are.
    """
    with suppress(AttributeError, OSError, TypeError):
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


@contextmanager
def flushed_here() -> Iterator[None]:
    """Flush denormals inside, in this thread alone and at next to no cost: for a single step.

    Workers that are started inside go on flushing afterwards.
    """
    before = flushes_denormals()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)

"""How many threads a fit computes with on a CPU: a rule by size, so that one seed means one result.

At the end of every parallel operation its threads wait for each other. Beside another busy process, one of them is not running
at times, for some milliseconds, and all of them wait. A step of operations that are shorter than that becomes several times
slower than with one thread, which only shares its core.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pyrovae._arguments import as_count

# Floating-point operations of the largest product of matrices, or convolution, of a step. GRAIN keeps a core busy for about a
# millisecond, so that another thread pays; what is LONG lasts for many of the time slices in which a thread may have to wait.
GRAIN = 5e7
LONG = 4e9
MOST = 1024  # threads that may be asked for: a system that has none left ends the process


def as_threads(threads: Any) -> int | None:
    """A number of threads, or None. OptionError unless it is a whole number from 1 to `MOST`."""
    return None if threads is None else as_count("threads", threads, most=MOST)


def threads_for(product: float) -> int:
    """How many of torch's threads a step should use, from the number of operations of its largest product.

    There is one for each `GRAIN`. One core is left to other processes, unless the product is `LONG`.
    """
    most = torch.get_num_threads()
    spared = most if product >= LONG else most - 1
    return max(1, min(spared, int(product / GRAIN)))


@contextmanager
def computing_with(threads: int | None) -> Iterator[None]:
    """Let torch use so many threads inside; None leaves their number as it is."""
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        yield
    finally:
        if threads is not None:
            torch.set_num_threads(before)

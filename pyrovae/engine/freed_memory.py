"""Memory that is freed and taken again at once, operation by operation, without the system in between."""

from __future__ import annotations

import functools
import sys

import torch

# glibc raises its limits at most up to blocks of 32 MB, and a block is a little larger than what was asked for.
LARGEST = 31 * 2**20


@functools.cache
def keep_freed_memory() -> None:
    """Let the C library keep freed blocks of up to 32 MB for the next operation, on Linux.

    glibc takes a block above some size from the system and gives it back as soon as it is free, so that every operation on a
    large array waits for the system to clear new pages, which can take as long as the arithmetic. The size starts at 128 KB. A
    block above it that is freed raises it to its own size, and the size of what is kept free to twice that, up to 32 MB: here
    that is done by a block that nobody has touched, so that it costs nothing. What is free at the end of the heap goes back to
    the system beyond 64 MB. More may stay between small objects: 130 MB after 24 questions, each
    `pv.log_likelihood(fitted, x[:100], 500)` of a VAE of 784-400-20.
    Where MALLOC_TRIM_THRESHOLD_ or MALLOC_MMAP_THRESHOLD_ is set, these hold, and elsewhere than on Linux nothing changes.
    """
    if sys.platform == "linux":
        torch.UntypedStorage(LARGEST, device="cpu")  # no operation, which whoever watches operations would see

"""What the environment says of a process that a launcher, such as torchrun, has started together with others; without torch."""

from __future__ import annotations

import os
import socket

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def _started() -> bool:
    """Whether a launcher has started this process; other tools leave some of its variables, or other words in them."""
    number, size = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    numbers = number.isdecimal() and size.isdecimal() and int(number) < int(size)
    return numbers and all(os.environ.get(name) for name in NEEDED)


def launched() -> bool:
    """Whether this process is one of several that were started to work together."""
    return _started() and int(os.environ["WORLD_SIZE"]) > 1


def launched_rank() -> int:
    """The number of this process among them; 0 for one that is alone."""
    return int(os.environ["RANK"]) if launched() else 0


def job() -> str | None:
    """What all starts of a job under torchrun have in common, those after a failure too; None without torchrun."""
    if not _started():
        return None
    name = os.environ.get("TORCHELASTIC_RUN_ID") or None
    # without --rdzv-id or --standalone every job is called "none", and has a torchrun of its own, which outlives its processes
    return f"{socket.gethostname()}, process {os.getppid()}" if name == "none" else name

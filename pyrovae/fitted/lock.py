"""A lock on a folder: while one process fits or answers there, another is refused."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pyrovae.errors import CheckpointError

try:
    import fcntl
except ImportError:  # Windows: two fits in one folder are the user's to avoid
    fcntl: Any = None  # type: ignore[no-redef]

LOCK = ".lock"
TAKEN = (errno.EWOULDBLOCK, errno.EACCES)
_held: set[int] = set()  # descriptors


def _let_go() -> None:
    """In a child, such as a worker that loads data, which would keep the locks of a parent that was killed."""
    while _held:
        with suppress(OSError):
            os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextmanager
def locked(folder: Path, what: str = "fit") -> Iterator[None]:
    """Hold the lock of a folder. The system lets it go when the process ends, however that is.

    Where the system, or the file system, has no such locks, nothing is locked.

    Args:
        folder: A run folder, or one in which answers are kept.
        what: What holds such a lock, as an error calls it.

    Raises:
        CheckpointError: Another process holds it.
    """
    held = None if fcntl is None else _take(folder, what)
    if held is not None:
        _held.add(held)
    try:
        yield
    finally:
        if held in _held:  # not in a child
            _held.remove(held)
            try:
                with suppress(OSError):  # while it is held, so that nobody locks a file that is removed
                    (folder / LOCK).unlink(missing_ok=True)
            finally:
                os.close(held)


def _take(folder: Path, what: str) -> int | None:
    path, process = folder / LOCK, ""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        except OSError:  # it cannot be written to, of which the fit's first write tells more
            return None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise CheckpointError(f"{path} is a pipe or a device, and no file: remove it.")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            with suppress(OSError):
                process = os.read(descriptor, 20).decode(errors="replace").strip()
            os.close(descriptor)
            if error.errno not in TAKEN:
                return None
            raise CheckpointError(
                f"Another {what} is at work in {folder}{f' (process {process})' if process.isdecimal() else ''}: wait until it "
                "has ended, or choose another folder."
            ) from None
        found, here = os.fstat(descriptor), None
        with suppress(OSError):
            here = os.stat(path)
        if here is not None and os.path.samestat(found, here):
            with suppress(OSError):  # on a full disk it is held without the number of the process
                os.ftruncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
            return descriptor
        os.close(descriptor)  # its holder removed it between the two calls: there is none, or another, by now

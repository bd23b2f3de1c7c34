"""The entry point of the command line: Ctrl-C is answered in one line from here on, before anything large is imported.

A traceback of whatever was being imported says nothing to the person who pressed the keys. Each file that a command writes
takes its name when it is whole (`_files.py`), so that the process can end anywhere.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pyrovae._launch import launched_rank

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_process = os.getpid()
_advice: list[Callable[[], str]] = []  # what the last of them returns is said when the process is stopped


@contextmanager
def advising(advice: Callable[[], str]) -> Iterator[None]:
    """Say, when the process is stopped inside, how to go on."""
    _advice.append(advice)
    try:
        yield
    finally:
        _advice.pop()


def leave(number: int, frame: Any) -> None:
    """End the process by a signal: with one line, and the exit code that shells expect, 130 for Ctrl-C."""
    for one in SIGNALS:
        signal.signal(one, signal.SIG_IGN)  # a second one would say it twice
    # a child, such as a loader of data, for which its parent speaks, or one of several processes that fit together
    if os.getpid() != _process or launched_rank() > 0:
        os._exit(128 + number)
    with suppress(Exception):
        if "pyrovae._files" in sys.modules:
            sys.modules["pyrovae._files"].remove_temporary_folders()
    said = "stopped"
    with suppress(Exception):
        said = _advice[-1]() if _advice else said
    with suppress(Exception):
        sys.stdout.flush()
    with suppress(OSError):
        os.write(2, f"Error: {said}\n".encode(errors="backslashreplace"))
    os._exit(128 + number)


def main() -> None:
    """Run a command, see `pyrovae.app.cli.main`."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            # ignored by a process that is to go on without its terminal; or handled outside of Python, which cannot be put back
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, leave)
    atexit.register(gc.freeze)  # at the end nobody has to look for garbage in all of torch, which takes half a second
    try:
        importlib.import_module("pyrovae.app.cli").main()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def program() -> None:
    """Run a command as a process of its own, whose end, too, is answered for.

    Once the command is done, all is written, and a signal only makes the rest shorter. What is left then is to take torch
    apart, in which Python no longer answers signals, and which the end of a process does as well: that is left out.
    """
    code: Any = 1

    def end(*signalled: Any) -> None:
        _end(code if isinstance(code, int) else int(code is not None))

    atexit.register(end)  # before all libraries, so that what they have to do comes first
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code
        raise
    finally:
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                signal.signal(number, end)


def _end(status: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    program()

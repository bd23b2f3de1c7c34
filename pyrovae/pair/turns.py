"""Threads take turns: pairs run in one thread at a time, since Pyro's handlers and stores and torch's random state are global.

A fit keeps its turn from its call to its end, but lends it while its callbacks run, because they may wait for other threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Turn:
    """The right to run pairs, held by one thread any number of times over, or by none."""

    def __init__(self) -> None:
        self.holder: int | None = None
        self.times = 0


class _Turns:
    """The turns that have been lent, one inside the other; only the last can be taken."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.lent = [_Turn()]


_TURNS = _Turns()


def _begin_anew() -> None:
    """In a process that was forked while another thread had its turn, nobody would ever give it back."""
    global _TURNS
    _TURNS = _Turns()


if hasattr(os, "register_at_fork"):  # not on Windows, where no process is forked
    os.register_at_fork(after_in_child=_begin_anew)


@contextmanager
def turn() -> Iterator[None]:
    """Wait until no other thread runs a pair, and have them wait while this one does. It may be nested."""
    here, last = threading.get_ident(), _TURNS.lent[-1]
    if last.holder != here:
        with _TURNS.changed:
            _TURNS.changed.wait_for(lambda: _TURNS.lent[-1].holder in (None, here))
            last = _TURNS.lent[-1]
            last.holder = here
    last.times += 1
    try:
        yield
    finally:
        last.times -= 1
        if not last.times:
            with _TURNS.changed:
                last.holder = None
                _TURNS.changed.notify_all()


@contextmanager
def lent_turn() -> Iterator[None]:
    """Let other threads run pairs in between, one at a time; at the end, wait until they have finished."""
    lent, here = _Turn(), threading.get_ident()
    with _TURNS.changed:
        _TURNS.lent.append(lent)
        _TURNS.changed.notify_all()
    try:
        yield
    finally:
        with _TURNS.changed:
            _TURNS.changed.wait_for(lambda: lent.holder in (None, here))
            _TURNS.lent.remove(lent)
            _TURNS.changed.notify_all()

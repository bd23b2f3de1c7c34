"""What a person at a terminal sees and presses while a fit runs: a progress bar, and Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pyrovae._lazily import Lazily

display = Lazily("IPython.display")

MEASURED_WITHIN = 10  # epochs, of which one at least has a validation ELBO


class Asked:
    """Whether the process has been asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.by: int | None = None

    def is_set(self) -> bool:
        return self.by is not None


@contextmanager
def stop_on_interrupt(*, terminate: bool = False) -> Iterator[Asked]:
    """The first Ctrl-C asks the loop to stop between two steps, where the state is whole; a second one stops at once.

    A signal that the process ignores, such as Ctrl-C of one that a shell has put into the background, stays ignored, and one
    that is handled outside of Python is left to its handler, which could not be put back.

    Args:
        terminate: whether SIGTERM, by which schedulers of clusters announce that they end a process, asks for the same.
    """
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # only the main thread may handle signals
        return

    process = os.getpid()

    def handle(number: int, frame: Any) -> None:
        if (
            number == signal.SIGTERM and os.getpid() != process
        ):  # a child has the handler, too, and is to end when it is told
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if asked.is_set():
            raise KeyboardInterrupt
        asked.by = number

    numbers = (signal.SIGINT, signal.SIGTERM) if terminate else (signal.SIGINT,)
    left_alone = (signal.SIG_IGN, None)
    before = {one: signal.signal(one, handle) for one in numbers if signal.getsignal(one) not in left_alone}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if asked.by == signal.SIGTERM:  # now that all is written, the process ends as it was told to
            signal.raise_signal(signal.SIGTERM)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C raises a KeyboardInterrupt inside, also where the command line would end the process."""
    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):  # ignored, or handled outside of Python
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def say(progress: bool | None, message: str) -> None:
    """A line on stderr, unless nothing is to be shown."""
    if progress is not False:
        Console(stderr=True).print(message, markup=False, highlight=False, soft_wrap=True)


History = list[dict[str, float]]
LINE_EVERY = 30.0  # seconds between two lines where there is no terminal
NOTEBOOK_EVERY = 0.2  # seconds between two changes of the bar in a notebook


@contextmanager
def progress_bar(progress: bool | None, epochs: int) -> Iterator[Callable[[History], None]]:
    """What shows how far a fit has come: a bar on a terminal or in a notebook, else a line on stderr every half a minute.

    Args:
        progress: False shows nothing. True adds a line at the end where there is no bar.
        epochs: How many there will be.
    """
    console = Console(stderr=True)
    if progress is False:
        yield lambda history: None
    elif console.is_jupyter:
        paced = _Paced(NOTEBOOK_EVERY, _in_a_notebook(epochs))
        yield paced
        paced.last()
    elif console.is_terminal:
        with _on_a_terminal(console, epochs) as update:
            yield update
    else:
        paced = _Paced(LINE_EVERY, _in_lines(epochs))
        yield paced
        if progress:
            paced.last()


@contextmanager
def _on_a_terminal(console: Console, epochs: int) -> Iterator[Callable[[History], None]]:
    columns = (
        TextColumn("epoch {task.completed}/{task.total}"),
        BarColumn(bar_width=16),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("ELBO ...", total=epochs)

        def update(history: History) -> None:
            if history:
                bar.update(task, completed=len(history), description=_elbo(history))

        yield update


def _in_a_notebook(epochs: int) -> Callable[[History], None]:
    """A bar that needs nothing but the notebook itself."""
    shown = display.display(display.HTML(""), display_id=True)

    def write(history: History) -> None:
        bar = f'<progress value="{len(history)}" max="{epochs}"></progress>'
        shown.update(display.HTML(f"{bar} epoch {len(history)}/{epochs}, {_elbo(history)}"))

    return write


def _in_lines(epochs: int) -> Callable[[History], None]:
    began = time.monotonic()

    def write(history: History) -> None:
        seconds = time.monotonic() - began
        print(f"epoch {len(history)}/{epochs}, {_elbo(history)}, {seconds:.0f} s", file=sys.stderr, flush=True)

    return write


class _Paced:
    """Writes after an epoch, but not before some seconds have passed since it did so last, or since the beginning."""

    def __init__(self, every: float, write: Callable[[History], None]) -> None:
        self.every, self.write = every, write
        self.written = time.monotonic()
        self.history: History = []

    def __call__(self, history: History) -> None:
        self.history = history
        if time.monotonic() - self.written >= self.every:
            self.last()

    def last(self) -> None:
        self.written = time.monotonic()
        self.write(self.history)


def _elbo(history: History) -> str:
    if not history:
        return "ELBO ..."
    measured = [row["validation_elbo"] for row in history[-MEASURED_WITHIN:] if "validation_elbo" in row]
    held_out = f" (validation {measured[-1]:.2f})" if measured else ""
    return f"ELBO {history[-1]['elbo']:.2f}{held_out}"

"""What a person at a terminal sees and presses while a fit runs: a progress bar, and Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def stop_on_interrupt() -> Iterator[threading.Event]:
    """The first Ctrl-C asks the loop to stop between two steps, where the state is whole; a second one stops at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # only the main thread may handle signals
        return

    def handle(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def progress_bar(progress: bool | None, epochs: int) -> Iterator[Callable[[list[dict[str, float]]], None]]:
    """A progress bar on stderr with the ELBO; shown when asked for, or when stderr is a terminal."""
    console = Console(stderr=True)
    shown = console.is_terminal if progress is None else progress
    columns = (
        TextColumn("epoch {task.completed}/{task.total}"),
        BarColumn(bar_width=16),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) if shown else nullcontext() as bar:
        if bar is None:
            yield lambda history: None
            return
        task = bar.add_task("ELBO ...", total=epochs)

        def update(history: list[dict[str, float]]) -> None:
            if history:
                last = history[-1]
                text = f"ELBO {last['elbo']:.2f}"
                if "validation_elbo" in last:
                    text += f" (validation {last['validation_elbo']:.2f})"
                bar.update(task, completed=len(history), description=text)

        yield update

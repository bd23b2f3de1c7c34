"""Ctrl-C and SIGTERM: one line, the exit code that shells expect, and a run to go on with, wherever the process is."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.programs import binary, vae

import pyrovae as pv
from pyrovae import _start
from pyrovae.training.console import stop_on_interrupt

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
# The command line is replaced by a module that sends its process a signal, as if it came while something heavy is imported.
IMPORTING = """
import importlib, os, signal, sys, types
from pyrovae import _start

def stopped(name):
    os.kill(os.getpid(), signal.{signal})
    while True:
        pass

{more}
importlib.import_module = stopped
_start.main()
"""


@pytest.mark.parametrize("number", list(CODES))
@pytest.mark.parametrize("advice", ["", "go on with: x"])
def test_a_signal_during_imports_is_answered_in_one_line(number: signal.Signals, advice: str) -> None:
    more = f"_start._advice.append(lambda: 'stopped; {advice}')" if advice else ""
    code = IMPORTING.format(signal=number.name, more=more)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (CODES[number], "")
    assert done.stderr == f"Error: stopped{'; ' + advice if advice else ''}\n"


# A command that is done, and a signal that comes while the interpreter ends.
ENDING = """
import atexit, os, signal, sys, time, types
from pyrovae import _start

def last():
    os.kill(os.getpid(), signal.{signal})
    time.sleep(60)

def command():
    print("done", end="")
    sys.exit({code})

atexit.register(last)
_start.importlib = types.SimpleNamespace(import_module=lambda name: types.SimpleNamespace(main=command))
_start.program()
"""


@pytest.mark.parametrize("number", list(CODES))
@pytest.mark.parametrize(("code", "status"), [("", 0), ("0", 0), ("3", 3)])
def test_a_command_that_is_done_ends_as_it_would_have(number: signal.Signals, code: str, status: int) -> None:
    program = ENDING.format(signal=number.name, code=code)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (status, "done", "")


def test_handlers_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [signal.getsignal(number) for number in CODES]
    inside: list[Any] = []

    class Command:
        @staticmethod
        def main() -> None:
            inside.extend(signal.getsignal(number) for number in CODES)
            raise SystemExit(3)

    monkeypatch.setattr(_start.importlib, "import_module", lambda name: Command)
    with pytest.raises(SystemExit):
        _start.main()
    assert inside == [_start.leave, _start.leave]
    assert [signal.getsignal(number) for number in CODES] == before


def test_a_process_that_ignores_ctrl_c_goes_on_doing_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a shell starts what runs in the background."""
    inside: list[Any] = []
    command = type("Command", (), {"main": staticmethod(lambda: inside.append(signal.getsignal(signal.SIGINT)))})
    monkeypatch.setattr(_start.importlib, "import_module", lambda name: command)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _start.main()
    finally:
        signal.signal(signal.SIGINT, before)
    assert inside == [signal.SIG_IGN]


def sending(number: int) -> Callable[[pv.Fit], None]:
    return lambda fitted: os.kill(os.getpid(), number) if len(fitted.history) == 2 else None


@pytest.mark.parametrize("number", list(CODES))
def test_a_fit_that_is_stopped_can_be_resumed(number: signal.Signals, tmp_path: Path) -> None:
    how: dict[str, Any] = {"batch_size": 20, "seed": 0, "device": "cpu", "progress": False, "epochs": 4}
    torch.manual_seed(0)
    x, got = binary(), []
    before = signal.signal(signal.SIGTERM, lambda *_: got.append(signal.SIGTERM))
    try:
        torch.manual_seed(1)
        with pytest.raises(KeyboardInterrupt, match="stopped in epoch 3, after step 4; the run in .* can be resumed"):
            pv.fit(vae(), x, checkpoint=tmp_path / "run", callbacks=[sending(number)], **how)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert got == [number] * (number == signal.SIGTERM)  # the signal comes again, once all is written
    torch.manual_seed(1)
    whole = pv.fit(vae(), x, **how)
    torch.manual_seed(1)
    resumed = pv.fit(vae(), x, checkpoint=tmp_path / "run", resume=True, **how)
    assert [row["elbo"] for row in resumed.history] == [row["elbo"] for row in whole.history]


def test_a_fit_without_a_folder_leaves_sigterm_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_interrupt() as asked:
        assert signal.getsignal(signal.SIGTERM) is before and signal.getsignal(signal.SIGINT) is not before
        assert not asked.is_set()


HOW: dict[str, Any] = {"batch_size": 20, "seed": 0, "device": "cpu", "progress": False, "engine": "eager"}


@pytest.mark.parametrize("number", list(CODES))
def test_a_fit_goes_on_where_its_process_ignores_the_signal(number: signal.Signals, tmp_path: Path) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        fitted = pv.fit(vae(), binary(), checkpoint=tmp_path / "run", callbacks=[sending(number)], epochs=3, **HOW)
        assert len(fitted.history) == 3 and signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_handler_from_outside_of_python_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python tells None of it, which cannot be given back."""
    put: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(signal, "getsignal", lambda number: None)
        patch.setattr(signal, "signal", lambda number, handler: put.append(number))
        with stop_on_interrupt(terminate=True) as asked:
            assert not asked.is_set()
        patch.setattr(
            _start.importlib, "import_module", lambda name: type("C", (), {"main": staticmethod(lambda: None)})
        )
        _start.main()
    assert not put


def wait(ready: Any) -> None:
    ready.send(True)
    signal.pause()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_of_a_fit_ends_when_it_is_told_to(tmp_path: Path) -> None:
    """As workers that load data, which are forked with the handlers of the fit."""
    fork = multiprocessing.get_context("fork")
    with stop_on_interrupt(terminate=True) as asked:
        here, there = fork.Pipe()
        child = fork.Process(target=wait, args=(there,))
        child.start()
        assert here.recv()
        child.terminate()
        child.join(10)
        code = child.exitcode
        child.kill()
        child.join()
    assert code == -signal.SIGTERM and not asked.is_set()


def test_the_last_advice_is_given() -> None:
    with _start.advising(lambda: "outer"):
        with _start.advising(lambda: "inner"):
            assert _start._advice[-1]() == "inner"
        assert _start._advice[-1]() == "outer"
    assert not _start._advice

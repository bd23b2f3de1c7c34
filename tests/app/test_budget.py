"""How long an answer may take: what is a time, and when there is no more of it."""

import io
import math
from typing import Any

import pytest
from rich.console import Console
from support.command import Command

from pyrovae.app.budget import LONGEST, MOST, Budget, seconds_of
from pyrovae.app.cli import tables
from pyrovae.app.cli.tables import LINE_EVERY, OneLine
from pyrovae.errors import OptionError

TIMES = {
    "90": 90,
    " 90 s ": 90,
    "5m": 300,
    "1.5h": 5400,
    "1h30m": 5400,
    "1h 1m 1s": 3661,
    ".5m": 30,
    "2M": 120,
    "1e2": 100,
    20: 20,
    0.25: 0.25,
    "168h": LONGEST,
}
NO_TIMES = ["soon", "", " ", "0", "0m", "-1", "-5m", "nan", "inf", "1e12", "5x", "5mm", "1m1h", "1m1m", "1m1", "m"]
NO_TIMES += ["1h30", "1,5", "169h", "9" * 400, 0, -1.0, math.nan, math.inf, 1e12, True, None, [5], b"5"]


@pytest.mark.parametrize("time", list(TIMES), ids=repr)
def test_a_time_is_seconds_or_has_units(time: str | float) -> None:
    assert seconds_of(time) == pytest.approx(TIMES[time])


@pytest.mark.parametrize("time", NO_TIMES, ids=lambda time: repr(time)[:12])
def test_what_is_no_time_is_refused(time: Any) -> None:
    with pytest.raises(OptionError, match="--time is a number of seconds, or such as 5m or 1h30m, above 0"):
        seconds_of(time)


@pytest.mark.parametrize("rounds", [0, -1, 1.5, MOST + 1, "3"])
def test_rounds_are_a_whole_number(rounds: Any) -> None:
    with pytest.raises(OptionError, match=f"--rounds must be a whole number from 1 to {MOST}, got"):
        Budget(rounds=rounds)


def test_a_round_is_begun_only_if_it_would_end_in_time() -> None:
    now = [100.0]
    budget = Budget("1m", clock=lambda: now[0])
    assert budget.allows(1, 60) and not budget.allows(1, 60.5) and not budget.allows(MOST, 1)
    now[0] = 150.0
    assert budget.spent() == 50 and budget.allows(1, 10) and not budget.allows(1, 11)
    early = Budget(60, rounds=3, began=95.0, clock=lambda: now[0])
    assert early.allows(2, 5) and not early.allows(2, 6) and not early.allows(3, 1)
    endless = Budget(rounds=3, clock=lambda: now[0])
    assert endless.allows(2, 1e9) and not endless.allows(3, 0)
    assert not Budget().open and not Budget().allows(1, 0)


def test_a_line_comes_every_half_a_minute_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    now = [5.0]
    with OneLine(lambda: now[0]) as line:
        for message, seconds in (("one", 1.0), ("two", LINE_EVERY - 2), ("three", 1.0), ("four", 1.0), ("five", 1.0)):
            line(message)
            now[0] += seconds
    assert capsys.readouterr().err.split() == ["one", "four", "five"]
    with OneLine() as line:
        line("only")
    assert capsys.readouterr().err.split() == ["only"]
    with OneLine():
        pass
    assert capsys.readouterr().err == ""


def test_a_line_replaces_the_one_before_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=30, color_system=None, legacy_windows=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(tables, "err", console)
    with OneLine() as line:
        line("one and a half")
        line("two")
        line("a line that is longer than the terminal is wide")
        line.inform("Stopped.")
    lines = screen.getvalue().split("\r")
    assert lines[:3] == ["", "one and a half", "two           "]  # which covers what stood there
    assert lines[3] == "a line that is longer than the terminal is wide"[:29]
    assert lines[4] == " " * 29  # and the whole line is kept
    assert lines[5:] == ["a line that is longer than the terminal is wide\nStopped.\n"]


@pytest.mark.parametrize("time", ["0", "-5", "nan", "soon", "1e12"])
def test_a_time_that_cannot_be_gets_one_error_before_anything_is_read(pyrovae: Command, time: str) -> None:
    code, out, err = pyrovae("label", "digits", f"--time={time}")
    assert code == 2 and err.count("Error:") == 1 and "--time is a number of seconds" in err and not out


def test_time_is_for_the_ensemble_alone(pyrovae: Command) -> None:
    code, _, err = pyrovae("label", "digits", "--rounds", 101)
    assert code == 2 and "--rounds must be a whole number from 1 to 100, got 101" in err
    code, _, err = pyrovae("label", "digits", "--page", "--time", "5m")
    assert code == 2 and "--page has no --time and no --rounds" in err

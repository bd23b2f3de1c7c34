"""How far a fit has come is shown on terminals, in notebooks and in logs."""

import sys
from typing import Any

import pytest
from support.programs import binary, vae

import pyrovae as pv
from pyrovae.training import console

HISTORY = [{"epoch": i, "elbo": -80.0 - i, "validation_elbo": -90.0} for i in range(1, 4)]


class Display:
    """What IPython's display would show."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def HTML(self, text: str) -> str:
        return text

    def display(self, text: str, display_id: bool) -> "Display":
        assert display_id
        self.shown.append(text)
        return self

    def update(self, text: str) -> None:
        self.shown.append(text)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def watch(progress: bool | None, clock: list[float], step: float) -> None:
    with console.progress_bar(progress, 5) as bar:
        bar([])
        for done in range(1, 4):
            clock[0] += step
            bar(HISTORY[:done])


@pytest.mark.parametrize(
    ("progress", "step", "lines"),
    [(None, 20.0, 1), (None, 31.0, 3), (None, 1.0, 0), (True, 1.0, 1), (True, 20.0, 2), (False, 31.0, 0)],
)
def test_a_log_gets_a_line_every_half_a_minute(
    progress: bool | None, step: float, lines: int, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    watch(progress, clock, step)
    out, err = capsys.readouterr()
    assert not out and len(err.splitlines()) == lines
    if lines:
        assert "epoch " in err and "/5, ELBO -8" in err and "(validation -90.00)" in err


@pytest.mark.parametrize(("progress", "step", "changes"), [(None, 1.0, 4), (True, 0.01, 1), (False, 1.0, 0)])
def test_a_notebook_gets_a_bar(
    progress: bool | None, step: float, changes: int, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a widget, a few times a second at most, and at the end."""
    shown = Display()
    monkeypatch.setattr(console, "display", shown)
    monkeypatch.setattr(console, "Console", lambda stderr: type("Notebook", (), {"is_jupyter": True})())
    watch(progress, clock, step)
    assert len(shown.shown) == (changes + 1 if progress is not False else 0)
    if changes:
        assert shown.shown[-1] == '<progress value="3" max="5"></progress> epoch 3/5, ELBO -83.00 (validation -90.00)'


def test_a_fit_says_in_a_log_how_far_it_has_come(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "LINE_EVERY", 0.0)
    options: dict[str, Any] = {"epochs": 2, "batch_size": 20, "engine": "eager"}
    pv.fit(vae(), binary(), **options)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["epoch 0/2", "epoch 1/2", "epoch 2/2"]
    pv.fit(vae(), binary(), progress=False, **options)
    assert not capsys.readouterr().err and not sys.stderr.isatty()

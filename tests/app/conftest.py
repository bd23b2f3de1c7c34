"""Data and pictures of these tests.

The digits are the first 300, unless a test is marked `all_digits`, or `digits(100)`: what a command does with rows does not
depend on how many there are. Pictures, which take most of the time of a short fit, are drawn where a test is marked `pictures`;
elsewhere an empty one stands for each. log p(x) of training rows and means of codes are estimates by few draws.
"""

import functools
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from support.command import invoke

NUM_DIGITS = 300


@functools.cache
def whole_digits() -> Any:
    """The digits, which take long to read, once a process."""
    return importlib.import_module("pyrovae.data.load").load_digits()


def take_few_digits(patch: pytest.MonkeyPatch, number: int = NUM_DIGITS) -> None:
    """Let `load("digits")` return the first rows only."""
    home = importlib.import_module("pyrovae.data.load")
    whole = whole_digits()

    def load_few() -> object:
        source = {**whole.source, "checksum": f"of {number} rows"}
        return replace(whole, x=whole.x[:number].clone(), y=whole.y[:number].clone(), source=source)

    patch.setattr(home, "load_digits", load_few)


@pytest.fixture(autouse=True)
def few_digits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("all_digits") is None:
        marked = request.node.get_closest_marker("digits")
        take_few_digits(monkeypatch, *(marked.args if marked else ()))


_savefig = Figure.savefig


def sketch(figure: Figure, path: Any, **options: Any) -> None:
    """Write an empty picture in place of the figure."""
    _savefig(Figure(figsize=(1, 1)), path, format="png", dpi=10)


@pytest.fixture(autouse=True)
def few_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("pictures") is None:
        monkeypatch.setattr(Figure, "savefig", sketch)


@pytest.fixture(autouse=True, scope="package")
def few_draws() -> Iterator[None]:
    """A tenth of those that users have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("pyrovae.app.scores"), "TRAINING_DRAWS", 10)
        encode = inspect.unwrap(importlib.import_module("pyrovae.predict.encode").encode)
        patch.setitem(encode.__kwdefaults__, "num_samples", 10)
        yield


@pytest.fixture(scope="package")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the digits, which tests copy."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        take_few_digits(patch)
        patch.setattr(Figure, "savefig", sketch)
        patch.chdir(folder)
        quick = ("--epochs", 2, "--hidden", 16, "--engine", "eager", "--proposal", "guide", "--num-samples", 30)
        code, _, err = invoke("fit", "digits", *quick)
    assert code == 0, err
    return folder / "runs" / "digits"

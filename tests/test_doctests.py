"""Every example in a docstring runs and prints what it says, and every public name has one."""

import doctest
import functools
import importlib
import inspect
import pkgutil
from typing import Any

import numpy as np
import pytest
import torch

import pyrovae as pv

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
HOMES = (
    *("", "families", "priors", "nets", "distributions", "plots", "sklearn", "weights", "guides"),
    *("schedules", "kl", "penalties", "transforms", "acquisition", "calibration", "corruptions", "tracking"),
)


def modules() -> list[str]:
    return sorted(m.name for m in pkgutil.walk_packages(pv.__path__, "pyrovae.") if not m.name.endswith("__main__"))


@pytest.mark.slow
@pytest.mark.parametrize("name", modules())
def test_examples_of_docstrings(name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(name)
    monkeypatch.chdir(tmp_path)
    given = {"pv": pv, "fam": pv.families, "torch": torch, "np": np}
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for test in finder.find(module, name, globs=dict(given)):
        torch.manual_seed(0)
        torch.set_printoptions(precision=4)
        said: list[str] = []
        runner.run(test, out=said.append)
        assert not runner.failures, "".join(said)


@functools.cache
def public() -> dict[str, Any]:
    """Public functions and classes by the name under which users know them; errors say in their name what they are."""
    found: dict[str, Any] = {}
    for home in HOMES:
        room = getattr(pv, home) if home else pv
        for name in getattr(room, "__all__", vars(room)):
            value = getattr(room, name)
            is_error = inspect.isclass(value) and issubclass(value, Exception)
            is_ours = getattr(value, "__module__", "").startswith("pyrovae")
            if (
                is_ours
                and not is_error
                and not name.startswith("_")
                and (inspect.isclass(value) or inspect.isfunction(value))
            ):
                found[".".join(filter(None, ("pv", home, name)))] = value
    return found


@pytest.mark.parametrize("name", public())
def test_a_public_name_has_an_example(name: str) -> None:
    assert ">>>" in (inspect.getdoc(public()[name]) or ""), f"{name} has no runnable example in its docstring"

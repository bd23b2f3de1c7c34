"""Every example in a docstring runs and prints what it says, and every public name has one."""

import doctest
import importlib
import inspect
import pkgutil
from typing import Any

import numpy as np
import pytest
import torch

import pyrovae as pv

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
HOMES = ("", "families", "priors", "nets", "distributions", "plots", "schedules", "kl", "penalties", "transforms")


def modules() -> list[str]:
    return sorted(m.name for m in pkgutil.walk_packages(pv.__path__, "pyrovae.") if not m.name.endswith("__main__"))


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


def public() -> dict[str, Any]:
    """Public functions and classes by the name under which users know them."""
    found = {}
    for home in HOMES:
        room = getattr(pv, home) if home else pv
        names = getattr(room, "__all__", [n for n, v in vars(room).items() if v.__class__ is type or inspect.isfunction(v)])
        for name in names:
            value = getattr(room, name)
            if name.startswith("_") or not (inspect.isclass(value) or inspect.isfunction(value)):
                continue
            if value.__module__.startswith("pyrovae") and not issubclass(value if inspect.isclass(value) else int, Exception):
                found.setdefault(".".join(filter(None, ("pv", home, name))), value)
    return found


@pytest.mark.parametrize("name", public())
def test_a_public_name_has_an_example(name: str) -> None:
    assert ">>>" in (inspect.getdoc(public()[name]) or ""), f"{name} has no runnable example in its docstring"

"""Every test starts from one seed and leaves the process as it found it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pyro
import pytest
import torch
from support.command import Command, invoke

os.environ["COLUMNS"] = "100"  # of the terminal that the command line finds when it is imported

# Tensors here are tiny: a second thread would only wait, and wait long where tests run beside one another.
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full-swap", action="store_true", help="every prior x likelihood x guide, some 1,700 fits")


@pytest.fixture(autouse=True)
def seeded_and_clean() -> Iterator[None]:
    """A seed per test; a test fails that changes torch's validation flag, the default dtype or Pyro's global param store."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    validates = torch.distributions.Distribution._validate_args
    dtype = torch.get_default_dtype()
    yield
    left = list(pyro.get_param_store().keys())
    changed = []
    if torch.distributions.Distribution._validate_args != validates:
        torch.distributions.Distribution.set_default_validate_args(validates)
        changed.append("torch's validation flag")
    if torch.get_default_dtype() != dtype:
        torch.set_default_dtype(dtype)
        changed.append("the default dtype")
    if left:
        pyro.clear_param_store()
        changed.append(f"the global param store (it holds {left})")
    assert not changed, f"this test left changed: {', '.join(changed)}"


@pytest.fixture
def pyrovae(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Run a command in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    return invoke

"""Every test starts from one seed and leaves the process as it found it."""

import gc
import inspect
import os
import random
import signal

# Tensors here are tiny: a second thread would only wait, and wait long where tests run beside one another. NumPy's libraries
# read this when they are imported.
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
# These are tests of the CPU, on machines with a GPU, too, of which benchmarks/device_checks.py asks the same questions.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or each process that a test starts compiles all modules
os.environ["COLUMNS"] = "100"  # of the terminal that the command line finds when it is imported
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a shell, and some tests stop a fit by it
    signal.signal(signal.SIGINT, signal.default_int_handler)

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from support.command import Command, invoke

from pyrovae.criticism import ensembles, evidence, intervals, newton, predictive, processes, proposals
from pyrovae.engine.compiled import choose_engine
from pyrovae.engine.denormals import flushes_denormals
from pyrovae.pair.parameters import seed_torch
from pyrovae.recover.impute import impute
from pyrovae.recover.restore import restore
from pyrovae.training import plan

torch.set_num_threads(1)
# Torch's and Pyro's own objects are many: to look through them took a tenth of all time.
gc.set_threshold(100_000, 50, 100)


def pytest_collection_finish() -> None:
    """What has been imported and collected stays: the garbage collector need not look at it again."""
    gc.collect()
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full-swap", action="store_true", help="every prior x likelihood x guide, some 1,700 fits")


@pytest.fixture(autouse=True, scope="module")
def short_fits_run_eagerly(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let `engine="auto"` be "eager" for fewer than 100 steps, which take less time than it takes to trace one.

    Tests and modules that are marked `auto_engine` have the engine that users have.
    """
    with pytest.MonkeyPatch.context() as patch:
        if request.node.get_closest_marker("auto_engine") is None:

            def chosen(name: str, device: torch.device, steps: int, product: float = 0) -> str:
                return "eager" if name == "auto" and steps < 100 else choose_engine(name, device, steps, product)

            patch.setattr(plan, "choose_engine", chosen)
        yield


@pytest.fixture(autouse=True, scope="session")
def home_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is kept for a user, such as the list of data that were read, is kept in a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(autouse=True)
def seeded_and_clean() -> Iterator[None]:
    """A seed per test; a test fails that changes one of torch's modes or Pyro's global param store."""
    pyro.clear_param_store()
    random.seed(0)
    np.random.seed(0)
    seed_torch(0)
    validates = torch.distributions.Distribution._validate_args
    dtype = torch.get_default_dtype()
    flushes = flushes_denormals()
    yield
    left = list(pyro.get_param_store().keys())
    changed = []
    if torch.distributions.Distribution._validate_args != validates:
        torch.distributions.Distribution.set_default_validate_args(validates)
        changed.append("torch's validation flag")
    if torch.get_default_dtype() != dtype:
        torch.set_default_dtype(dtype)
        changed.append("the default dtype")
    if flushes_denormals() != flushes:
        torch.set_flush_denormal(flushes)
        changed.append("whether denormals are flushed")
    if left:
        pyro.clear_param_store()
        changed.append(f"the global param store (it holds {left})")
    assert not changed, f"this test left changed: {', '.join(changed)}"


@pytest.fixture(autouse=True)
def engine_of_users(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for a single test that is marked `auto_engine`."""
    if request.node.get_closest_marker("auto_engine") is not None:
        monkeypatch.setattr(plan, "choose_engine", choose_engine)


@pytest.fixture(autouse=True)
def few_steps_of_refinement(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let proposals take 2 gradient steps from moments of 16 draws: estimates have no bias whatever the proposal.

    To a mode they take 20; Newton's steps are of a tenth of the draws; rows that are still far away take no more steps; and
    what is filled in takes 2 Langevin steps, but in tests/recover. All is as users have it in tests/criticism, and in
    docstrings, whose results are compared. So are those of the README, to a nat, for which 20 steps do.
    """
    readme = request.path.name == "test_readme.py"
    with pytest.MonkeyPatch.context() as patch:
        if "criticism" not in request.path.parts and request.path.name != "test_doctests.py":
            patch.setattr(proposals, "STEPS", 20 if readme else 2)
            patch.setattr(proposals, "MODE_STEPS", 20)
            patch.setattr(proposals, "START_DRAWS", 16)
            patch.setattr(proposals, "MORE_ROUNDS", proposals.MORE_ROUNDS if readme else 0)
            patch.setattr(newton, "DRAWS", 20)
            if "recover" not in request.path.parts:
                for question in (impute, restore):
                    patch.setitem(inspect.unwrap(question).__kwdefaults__, "moves", 2)
        yield


@pytest.fixture
def pyrovae(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Run a command in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    return invoke


@pytest.fixture
def small_ensembles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the ensembles that give labels be small, where they are fitted many times and how good they are is not asked."""
    monkeypatch.setattr(ensembles, "TREES", 10)
    monkeypatch.setattr(processes, "ITERATIONS", 10)


@pytest.fixture
def quick_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a report draw fewer rows from the model, and leave out fewer entries, where it does not matter what it finds."""
    monkeypatch.setattr(predictive, "REPLICATES", 10)
    monkeypatch.setattr(evidence, "SIMULATED", 200)
    monkeypatch.setattr(intervals, "LEFT_OUT", 40)
    monkeypatch.setattr(intervals, "FEWEST", 10)


@pytest.fixture
def without_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let "compiled" run the graph of the whole step as it is, for tests of what is in it: to compile one takes ten seconds."""
    monkeypatch.setattr(torch._inductor, "compile", lambda module, inputs, options: module)

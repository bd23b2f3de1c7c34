"""Jobs: what launchers leave in the environment, how a job goes on with its run, and commands that refuse several processes."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from support.command import invoke
from support.programs import vae

import pyrovae as pv
from pyrovae import _launch
from pyrovae.app.cli import entry, tables
from pyrovae.app.run import default_folder
from pyrovae.engine import ranks
from pyrovae.fitted.files import claim_folder
from pyrovae.training import together

HOW: dict[str, Any] = {"batch_size": 20, "device": "cpu", "progress": False, "engine": "eager"}
ROWS = torch.bernoulli(torch.full((40, 6), 0.4), generator=torch.Generator().manual_seed(0))


def start(patch: pytest.MonkeyPatch, job: str) -> None:
    """As torchrun starts a single process."""
    named = {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1, "TORCHELASTIC_RUN_ID": job}
    for name, value in named.items():
        patch.setenv(name, str(value))


@pytest.mark.parametrize(
    "left",
    [
        {"RANK": "1", "WORLD_SIZE": "8"},
        {"RANK": "rows", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
        {"RANK": "1", "WORLD_SIZE": "many", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
        {"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
        {"RANK": "", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
    ],
)
def test_what_other_tools_leave_in_the_environment_starts_nothing(
    left: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**left, "TORCHELASTIC_RUN_ID": "one"}.items():
        monkeypatch.setenv(name, value)
    assert not _launch.launched() and _launch.launched_rank() == 0 and _launch.job() is None
    ranks.join()  # and does not wait


def test_a_job_that_was_stopped_before_it_wrote_anything_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    start(monkeypatch, "one")
    claim_folder("runs/x")
    how: dict[str, Any] = {**HOW, "epochs": 1, "seed": 0, "checkpoint": "runs/x"}
    assert default_folder("x") == Path("runs/x")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "two")
    assert default_folder("x") == Path("runs/x-2")
    with pytest.raises(pv.CheckpointError, match="exists and is not empty"):
        pv.fit(vae(), ROWS, **how)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    assert len(pv.fit(vae(), ROWS, **how).history) == 1


def test_a_job_that_is_started_again_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    start(monkeypatch, "one")
    how: dict[str, Any] = {**HOW, "seed": 0, "checkpoint": "runs/x"}
    first = pv.fit(vae(), ROWS, epochs=1, **how)
    with pytest.raises(pv.CheckpointError, match="exists and is not empty"):
        pv.fit(vae(), ROWS, epochs=2, **how)  # by the same process
    assert default_folder("x") == Path("runs/x-2")
    monkeypatch.setattr(together, "_begun", set())  # another process
    assert default_folder("x") == Path("runs/x")
    again = pv.fit(vae(), ROWS, epochs=2, force=True, **how)
    assert again.history[0]["elbo"] == first.history[0]["elbo"] and len(again.history) == 2
    monkeypatch.setattr(together, "_begun", set())
    for other in ("two", None):
        if other is None:
            monkeypatch.delenv("TORCHELASTIC_RUN_ID")
        else:
            monkeypatch.setenv("TORCHELASTIC_RUN_ID", other)
        with pytest.raises(pv.CheckpointError, match="exists and is not empty"):
            pv.fit(vae(), ROWS, epochs=3, **how)


def test_a_job_without_a_name_is_that_of_its_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    start(monkeypatch, "none")
    assert str(os.getppid()) in str(_launch.job())


@pytest.mark.parametrize("number", [0, 1])
def test_other_commands_refuse_in_one_sentence(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": number, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(entry, "UNTIL_ENDED", 0)
    for console in (tables.out, tables.err):
        monkeypatch.setattr(console, "quiet", False)  # and as it was afterwards
    for command in (("sweep", "digits"), ("label", "digits"), ("evaluate", "runs/x"), ("impute", "runs/x", "x.csv")):
        code, out, err = invoke(*command)
        assert (code, out) == (2, "")
        if number:
            assert err == ""  # the first process has said it
        else:
            assert err == (
                f"Error: `pyrovae {command[0]}` is for one process: start it without torchrun. Of the commands only `pyrovae "
                "fit` takes several.\n"
            )

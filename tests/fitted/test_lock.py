"""One fit at a time in a run folder, and a run that is removed while its fit goes on."""

import errno
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from support.programs import binary, vae

import pyrovae as pv
from pyrovae._files import real
from pyrovae.fitted import files, lock
from pyrovae.fitted import folder as folders
from pyrovae.fitted.lock import LOCK, locked

fcntl = pytest.importorskip("fcntl")
OPTIONS: dict[str, Any] = {"epochs": 3, "batch_size": 20, "seed": 0, "device": "cpu", "progress": False}


def fit_in(folder: Path, **how: Any) -> pv.Fit:
    torch.manual_seed(0)
    return pv.fit(vae(), binary(), checkpoint=folder, **OPTIONS | how)


def test_a_second_fit_in_a_folder_is_refused(tmp_path: Path) -> None:
    refused = []

    def another(fitted: pv.Fit) -> None:
        for how in ({"resume": True}, {"force": True}):
            with pytest.raises(pv.CheckpointError, match=f"Another fit is at work in .*process {os.getpid()}"):
                fit_in(tmp_path / "run", **how)
            refused.append(how)

    fit_in(tmp_path / "run", callbacks=[another], epochs=1)
    assert len(refused) == 2
    left = ["checkpoint.safetensors", "history.csv", "run.json", "weights.safetensors"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == left
    assert len(fit_in(tmp_path / "run", resume=True, epochs=2).history) == 2


def test_a_folder_of_a_fit_that_was_killed_before_it_wrote_anything_is_free(tmp_path: Path) -> None:
    folder = files.claim_folder(tmp_path / "run")
    with locked(folder), pytest.raises(pv.CheckpointError, match="Another fit is at work"):
        fit_in(folder)
    (folder / LOCK).touch()  # as kill -9 leaves it
    (folder / ".run.json.new").touch()
    assert len(fit_in(folder, epochs=1).history) == 1
    with pytest.raises(pv.CheckpointError, match="exists and is not empty"):
        fit_in(folder)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "run.json").touch()
    assert len(fit_in(tmp_path / "empty", epochs=1).history) == 1
    mine = files.claim_folder(tmp_path / "other")
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(pv.CheckpointError, match="exists and is not empty"):
        fit_in(mine)


def hold(folder: Path, ready: Any) -> None:
    with locked(folder):
        ready.send(True)
        signal.pause()


def test_a_process_that_is_killed_leaves_no_lock(tmp_path: Path) -> None:
    here, there = multiprocessing.get_context("fork").Pipe()
    holder = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path, there))
    holder.start()
    assert here.recv() and (tmp_path / LOCK).exists()
    with pytest.raises(pv.CheckpointError, match=f"process {holder.pid}"), locked(tmp_path):
        pass
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert (tmp_path / LOCK).exists()  # the file, which nobody holds
    with locked(tmp_path):
        pass
    assert not (tmp_path / LOCK).exists()


def hold_with_a_worker(folder: Path, ready: Any) -> None:
    with locked(folder):
        worker = multiprocessing.get_context("fork").Process(target=signal.pause)
        worker.start()
        ready.send(worker.pid)
        signal.pause()


def test_a_worker_that_outlives_its_parent_keeps_no_lock(tmp_path: Path) -> None:
    here, there = multiprocessing.get_context("fork").Pipe()
    holder = multiprocessing.get_context("fork").Process(target=hold_with_a_worker, args=(tmp_path, there))
    holder.start()
    worker = here.recv()
    try:
        assert holder.pid is not None
        os.kill(holder.pid, signal.SIGKILL)
        holder.join()
        os.kill(worker, 0)  # it is there
        with locked(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_lock_is_not_taken_through_a_link(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(mine)
    with locked(tmp_path / "run"):
        pass
    assert mine.read_text() == "mine"


def test_a_run_that_is_removed_under_its_fit_is_written_anew(tmp_path: Path) -> None:
    def remove(fitted: pv.Fit) -> None:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)

    fitted = fit_in(tmp_path / "run", callbacks=[remove], checkpoint_every=0.0)
    again = pv.load(tmp_path / "run")
    x = binary()
    assert torch.equal(pv.encode(again, x), pv.encode(fitted, x))
    whole = fit_in(tmp_path / "whole", epochs=4)
    assert fit_in(tmp_path / "run", resume=True, epochs=4).history[-1]["elbo"] == whole.history[-1]["elbo"]


def test_a_state_that_cannot_be_written_on_the_way_costs_no_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = folders.replace_files

    def full(*args: Any, **how: Any) -> None:
        if not fails:
            return writes(*args, **how)
        fails.pop()
        raise pv.CheckpointError("Cannot write the run: No space left on device.")

    fails: list[int] = []
    monkeypatch.setattr(folders, "replace_files", full)
    with pytest.warns(UserWarning, match="No space left on device. The fit goes on"):
        fit_in(
            tmp_path / "run",
            checkpoint_every=0.0,
            callbacks=[lambda fitted: fails.append(1) or len(fitted.history) > 1],
        )
    assert len(pv.load(tmp_path / "run").history) == 2


def test_what_stands_in_the_place_of_a_lock_does_not_hold_a_fit_up(tmp_path: Path) -> None:
    fit_in(tmp_path / "run")
    os.mkfifo(tmp_path / "run" / LOCK)
    with pytest.raises(pv.CheckpointError, match=r"\.lock is a pipe or a device, and no file: remove it"):
        fit_in(tmp_path / "run", resume=True, epochs=4)
    (tmp_path / "run" / LOCK).unlink()
    assert len(fit_in(tmp_path / "run", resume=True, epochs=4).history) == 4


def test_a_lock_is_held_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        descriptor = lock._take(tmp_path, "fit")
    assert descriptor is not None
    with pytest.raises(pv.CheckpointError, match=r"Another fit is at work in \S+: wait"):
        lock._take(tmp_path, "fit")
    os.close(descriptor)


@pytest.mark.parametrize("to", ["run", "nowhere"])
def test_a_link_that_leads_to_no_folder_is_refused(to: str, tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to(tmp_path / to)
    with pytest.raises(pv.CheckpointError, match="is a link that leads to no folder"):
        fit_in(tmp_path / "run")
    assert real(tmp_path / "run").name == to

"""A crash or a full disk at any write leaves the old run or the new one, whole, and the next write cleans up."""

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.crash import Crash, crashing
from support.programs import binary, vae

import pyrovae as pv

FILES = {"weights.safetensors", "run.json", "history.csv"}
OPTIONS: dict[str, Any] = {"batch_size": 20, "device": "cpu", "progress": False}
Fits = dict[int, pv.Fit]


@pytest.fixture(scope="module")
def fits() -> Fits:
    """Fits of one and of two epochs."""
    return {epochs: pv.fit(vae(), binary(), epochs=epochs, seed=0, **OPTIONS) for epochs in (1, 2)}


def is_whole(folder: Path, fit: pv.Fit) -> bool:
    """Whether the run in the folder is this fit."""
    loaded = pv.load(folder)
    same = all(torch.equal(a, b) for a, b in zip(loaded.pair.parameters(), fit.pair.parameters()))
    return same and loaded.history == fit.history


def crashes(
    monkeypatch: pytest.MonkeyPatch, work: Callable[[], Any], begin: Callable[[], Any], every: int = 1
) -> Iterator[int]:
    """Begin, and work until a crash at the first write, then at the second one, until no write is left."""
    for number in range(1, 200, every):
        begin()
        with monkeypatch.context() as patch:
            crashing(patch, number)
            try:
                work()
            except Crash:
                pass
            else:
                return
        yield number


@pytest.mark.slow
def test_a_crash_while_a_run_is_replaced(tmp_path: Path, fits: Fits, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for _ in crashes(
        monkeypatch,
        lambda: pv.save(fits[2], tmp_path / "run", force=True),
        lambda: pv.save(fits[1], tmp_path / "run", force=(tmp_path / "run").exists()),
    ):
        old, new = (is_whole(tmp_path / "run", fit) for fit in fits.values())
        assert old != new
        found.append(new)
    assert len(found) > 10 and found == sorted(found) and found[-1]  # the old one, and from some write on the new one
    assert {p.name for p in (tmp_path / "run").iterdir()} == FILES


@pytest.mark.slow
def test_a_crash_while_a_crash_is_mended(tmp_path: Path, fits: Fits, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new weights still stand beside the old ones when the next run is written."""
    run = tmp_path / "run"

    def replace(epochs: int) -> Path:
        return pv.save(fits[epochs], run, force=run.exists())

    for _ in crashes(monkeypatch, lambda: replace(2), lambda: replace(1)):
        if is_whole(run, fits[2]):
            break
    assert {p.name for p in run.iterdir()} == FILES | {".weights.safetensors.new", ".history.csv.new"}
    shutil.copytree(run, tmp_path / "halfway")

    def halfway() -> None:
        shutil.rmtree(run)
        shutil.copytree(tmp_path / "halfway", run)

    for _ in crashes(monkeypatch, lambda: replace(1), halfway, every=3):
        assert is_whole(run, fits[1]) != is_whole(run, fits[2])
    assert {p.name for p in run.iterdir()} == FILES


@pytest.mark.slow
def test_a_crash_of_a_forced_fit(tmp_path: Path, fits: Fits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands there afterwards can be opened, or resumed to the end."""
    run, x, ended = tmp_path / "run", binary(), []

    def fit(**how: Any) -> pv.Fit:
        torch.manual_seed(0)
        return pv.fit(vae(), x, epochs=1, seed=1, checkpoint=run, **how, **OPTIONS)

    def weights(fitted: pv.Fit) -> list[torch.Tensor]:
        return [p.detach() for p in fitted.pair.parameters()]

    new = fit()
    for _ in crashes(monkeypatch, lambda: fit(force=True), lambda: pv.save(fits[2], run, force=True), every=4):
        try:
            loaded = pv.load(run)
            old = is_whole(run, fits[2])
            ended.append("old" if old else "new")
        except pv.CheckpointError as error:
            assert "has not finished" in str(error)
            loaded, old = fit(resume=True), False
            ended.append("resumed")
        assert old or all(map(torch.equal, weights(loaded), weights(new)))
    assert [name for name, before in zip(ended, ["", *ended]) if name != before] == ["old", "resumed", "new"]
    assert {p.name for p in run.iterdir()} == FILES | {"checkpoint.safetensors"}


def test_a_full_disk_leaves_the_old_run(tmp_path: Path, fits: Fits, monkeypatch: pytest.MonkeyPatch) -> None:
    run = pv.save(fits[1], tmp_path / "run")
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    sync, number = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal number
        number -= 1
        if number <= 0 and not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    for fails in (1, 2, 3):
        for replace in (
            lambda: pv.save(fits[2], run, force=True),
            lambda: pv.fit(vae(), binary(), epochs=1, checkpoint=run, force=True, **OPTIONS),
        ):
            number = fails
            with pytest.raises(pv.CheckpointError, match=r"Cannot write the run in .*No space left.*still whole"):
                replace()
            assert {p.name: p.read_bytes() for p in run.iterdir()} == before


def test_a_run_that_was_stopped_before_its_first_write_says_how_to_start_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        crashing(patch, 3)
        with pytest.raises(Crash):
            pv.fit(vae(), binary(), epochs=1, checkpoint=run, **OPTIONS)
    with pytest.raises(pv.CheckpointError, match="stopped before.*start the fit again with force=True"):
        pv.fit(vae(), binary(), epochs=1, checkpoint=run, resume=True, **OPTIONS)
    pv.fit(vae(), binary(), epochs=1, checkpoint=run, force=True, **OPTIONS)
    assert len(pv.load(run).history) == 1 and not [p for p in run.iterdir() if p.name.endswith(".new")]

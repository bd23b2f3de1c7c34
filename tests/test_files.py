"""Files are replaced whole, and nothing is written through a link."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.crash import Crash, crashing

import pyrovae as pv
from pyrovae._files import write_file
from pyrovae.errors import CheckpointError


def picture(path: Path) -> None:
    pv.plots.save(pv.plots.images(torch.linspace(0, 1, 32).reshape(2, 16), image_shape=(4, 4)), path)


WRITERS = {
    "a file": (lambda path: write_file(path, b"new"), "some.bin"),
    "a picture": (picture, "some.png"),
}


@pytest.mark.parametrize(("write", "name"), list(WRITERS.values()), ids=list(WRITERS))
@pytest.mark.parametrize("link", ["to a file", "to nothing", "hard"])
def test_a_link_is_replaced_and_not_followed(tmp_path: Path, write: Any, name: str, link: str) -> None:
    victim, path = tmp_path / "victim", tmp_path / name
    if link != "to nothing":
        victim.write_text("mine")
    os.link(victim, path) if link == "hard" else path.symlink_to(victim)
    path.with_name(f".{name}.new").symlink_to(victim)  # a name that nobody but us would use, and that is known
    write(path)
    assert path.is_file() and not path.is_symlink()
    assert victim.exists() == (link != "to nothing") and (not victim.exists() or victim.read_text() == "mine")
    assert {p.name for p in tmp_path.iterdir()} <= {"victim", name}


@pytest.mark.parametrize(("write", "name"), list(WRITERS.values()), ids=list(WRITERS))
def test_a_crash_leaves_the_old_file_or_the_new(
    tmp_path: Path, write: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    write(path)
    new = path.read_bytes()
    for number in range(1, 20):
        path.write_bytes(b"old")
        with monkeypatch.context() as patch:
            crashing(patch, number)
            try:
                write(path)
            except Crash:
                assert path.read_bytes() in (b"old", new)
            else:
                break
    assert number > 2
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_file(path, b"new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_inside_a_run_may_be_a_link_only_into_it(tmp_path: Path) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    for folder in (run, outside, run / "real"):
        folder.mkdir()
    (run / "run.json").write_text("{}")
    (run / "inside").symlink_to(run / "real")
    (run / "away").symlink_to(outside)
    (tmp_path / "short").symlink_to(run)
    for path in (run / "away" / "x", run / "away" / "deeper" / "x", tmp_path / "short" / "away" / "x"):
        with pytest.raises(CheckpointError, match="leads out of it"):
            write_file(path, b"")
    assert not list(outside.iterdir())
    for path in (run / "x", run / "inside" / "x", tmp_path / "short" / "x", run / ".." / "x", outside / "x"):
        write_file(path, b"new")
        assert path.read_bytes() == b"new"


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(IsADirectoryError):
        write_file(tmp_path / "x", b"")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_the_graph_is_written_whole(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    for name in ("graph.png", "graph.gv"):
        (tmp_path / name).symlink_to(tmp_path / "victim")
    pair = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, pv.families.Bernoulli(6)), pv.mlp(6, pv.families.Normal(2)))
    written = pv.draw_graph(pair, {"x": torch.zeros(2, 6)}, tmp_path / "graph.png")
    assert not written.is_symlink() and (tmp_path / "victim").read_text() == "mine"
    assert np.all([not p.name.endswith(".new") for p in tmp_path.iterdir()])

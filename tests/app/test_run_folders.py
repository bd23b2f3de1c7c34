"""Run folders on the command line: what was received from somebody else runs no code and leads nowhere, and what is replaced
is whole at every moment."""

import hashlib
import importlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.command import Command
from support.crash import Crash, crashing

import pyrovae as pv
from pyrovae.app import known
from pyrovae.app.jobs import label as labelling
from pyrovae.app.options import Options
from pyrovae.app.run import ARTEFACTS, fit_run, open_run, resume_run
from pyrovae.data import load, tables
from pyrovae.errors import CheckpointError
from pyrovae.fitted.files import sealed

loading = importlib.import_module("pyrovae.data.load")  # whose name is that of its function, too
QUICK = ("--epochs", "2", "--hidden", "16", "--latent", "2", "--proposal", "guide", "--num-samples", "5")
OWN = """
import pathlib
import pyro.distributions as dist
import torch
from torch import nn
from pyrovae import families as fam

pathlib.Path("ran").touch()


class Prior(nn.Module):
    def __init__(self, latent):
        super().__init__()
        self.latent = latent

    def forward(self):
        return dist.Normal(torch.zeros(self.latent), 1.0).to_event(1)


class Family(fam.Normal):
    pass
"""


def recorded(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "run.json").read_text()))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a small table, and its data."""
    folder = tmp_path_factory.mktemp("saved")
    generator = torch.Generator().manual_seed(0)
    np.save(folder / "rows.npy", torch.randn(60, 4, generator=generator).numpy())
    plain = {"prior": "normal", "likelihood": "normal", "guide": "normal"}
    options = Options.of("fit", epochs=2, hidden=(16,), latent=2, proposal="guide", num_samples=5, **plain)  # QUICK
    dataset = load(str(folder / "rows.npy"))
    fit_run(dataset, options, folder / "run", progress=False)
    return folder


@pytest.fixture
def received(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, in a place where it was not made, and for a user who has read no data yet."""
    monkeypatch.setattr(known, "_list", lambda: tmp_path / "user" / "data-of-runs")
    return Path(shutil.copytree(saved / "run", tmp_path / "received"))


@pytest.fixture
def run(received: Path) -> Path:
    """A run in the place where it was made, as far as it says."""
    info = recorded(received)
    info["info"]["folder"] = str(received)
    (received / "run.json").write_bytes(sealed(info))
    return received


PLAIN = ("--prior", "normal", "--likelihood", "normal", "--guide", "normal")
COMMANDS = {
    "evaluate": ("evaluate",),
    "generate": ("generate", "-n", "5"),
    "reconstruct": ("reconstruct",),
    "encode": ("encode",),
    "compare": ("compare", "received"),
    "check": ("check", "--rows", "10", "--num-samples", "30", "--proposal", "guide"),
    "report": ("report", "--rows", "10", "--num-samples", "30", "--proposal", "guide"),
    "resume": ("fit", "--resume"),
}


def names_a_file(run: Path, kind: str) -> Path:
    """Make the run one with a part in a file of its own, as one who wrote the folder could."""
    path = run.parent / "shared" / "parts.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(OWN)
    info = recorded(run)
    info["info"]["options"][kind] = f"{path}:{'Prior' if kind == 'prior' else 'Family'}"
    info["info"]["own"] = {kind: hashlib.sha256(path.read_bytes()).hexdigest()}
    (run / "run.json").write_bytes(sealed(info))
    return path


@pytest.mark.parametrize("kind", ["prior", "likelihood", "guide"])
@pytest.mark.parametrize("words", list(COMMANDS.values()), ids=list(COMMANDS))
def test_a_file_that_a_run_names_is_not_run(pyrovae: Command, run: Path, words: tuple[str, ...], kind: str) -> None:
    path = names_a_file(run, kind)
    code, _, err = pyrovae(*words, "received")
    said = " ".join(err.split())
    assert code == 2 and "Traceback" not in err, err
    assert "--trust" in said and str(path) in said.replace(" ", "") and "read the code first" in said
    assert not Path("ran").exists()


@pytest.mark.parametrize("words", list(COMMANDS.values()), ids=list(COMMANDS))
def test_data_that_a_received_run_names_are_not_read_unasked(
    pyrovae: Command, received: Path, saved: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    monkeypatch.setattr(tables, "load_arrays", lambda path, *_: read.append(path))
    monkeypatch.setattr(loading, "file_checksum", lambda path: read.append(path))
    code, _, err = pyrovae(*words, "received")
    assert code == 2 and f"--data{saved / 'rows.npy'}" in "".join(err.split()), err
    assert not read


def test_data_that_the_user_names_are_read_where_they_are_the_same(
    pyrovae: Command, received: Path, saved: Path
) -> None:
    shutil.copy(saved / "rows.npy", "mine.npy")
    code, _, err = pyrovae("encode", "received", "--data", "mine.npy")
    assert code == 0, err
    np.save("other.npy", np.zeros((60, 4)))
    code, _, err = pyrovae("encode", "received", "--data", "other.npy", "--out", "x.csv")
    assert code == 2 and "has changed" in err
    code, _, err = pyrovae("fit", saved / "rows.npy", "--data", "mine.npy")
    assert code == 2 and "--data is for --resume" in " ".join(err.split())


def test_a_run_of_data_that_were_read_before_can_be_moved(pyrovae: Command, received: Path, saved: Path) -> None:
    """By this user, at the same place and with the same content: once they have been named, or fitted to."""
    assert "--data" in pyrovae("encode", "received")[2]
    assert pyrovae("encode", "received", "--data", saved / "rows.npy")[0] == 0
    received.rename("renamed")
    code, _, err = pyrovae("encode", "renamed", "--out", "codes.csv")
    assert code == 0 and f"Data, as recorded in the run: {saved / 'rows.npy'}" in err
    info = recorded(Path("renamed"))
    for change in ({"path": str(saved / "others.npy")}, {"checksum": "0" * 64}):
        info["info"]["data"] |= change
        Path("renamed/run.json").write_bytes(sealed(info))
        code, _, err = pyrovae("encode", "renamed", "--out", "other.csv")
        assert code == 2 and "are not read unasked" in " ".join(err.split())


@pytest.mark.usefixtures("received")
def test_a_new_run_can_be_renamed_and_its_data_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", np.arange(60.0).reshape(30, 2) % 7)
    plain = {"prior": "normal", "likelihood": "normal", "guide": "normal"}
    options = Options.of("fit", epochs=1, hidden=(8,), latent=2, **plain)
    fit_run(load("rows.npy"), options, Path("run"), engine="eager", progress=False)
    Path("run").rename("renamed")
    assert len(resume_run(Path("renamed"), progress=False).rows.train) > 0  # and now it is where it was made
    Path("renamed").rename("again")
    assert len(open_run(Path("again")).rows.train) > 0
    Path("rows.npy").rename("moved.npy")
    with pytest.raises(pv.DataError, match=r"not at .*rows.npy any more: .* by --data FILE"):
        open_run(Path("again"))
    assert len(open_run(Path("again"), data=Path("moved.npy")).rows.train) > 0


def test_a_run_folder_that_cannot_be_written_to_is_told_of_before_any_work(
    pyrovae: Command, received: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files can be written elsewhere. Root may write everywhere, so that the answer is given here."""
    access = os.access
    cannot = lambda path, mode: access(path, mode) and not (mode & os.W_OK and Path(path).name == "received")  # noqa: E731
    monkeypatch.setattr(os, "access", cannot)
    for command in ("check", "report", "encode"):
        code, _, err = pyrovae(command, "received", "--data", saved / "rows.npy")
        assert code == 2 and "its folder is read-only: give the name of a file elsewhere by --out" in " ".join(
            err.split()
        )
    assert pyrovae("encode", "received", "--data", saved / "rows.npy", "--out", "codes.csv")[0] == 0


def test_a_list_that_cannot_be_kept_costs_nothing(
    pyrovae: Command, received: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").touch()
    monkeypatch.setattr(known, "_list", lambda: Path("file/data-of-runs").absolute())
    assert pyrovae("encode", "received", "--data", saved / "rows.npy")[0] == 0
    assert "--data" in pyrovae("encode", "received", "--out", "codes.csv")[2]


def test_a_file_with_another_checksum_is_not_looked_into(
    pyrovae: Command, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = run.parent / "secret.npy"
    np.save(secret, np.ones((60, 4)))
    info = recorded(run)
    info["info"]["data"]["path"] = str(secret)
    (run / "run.json").write_bytes(sealed(info))
    looked: list[Path] = []
    monkeypatch.setattr(tables, "load_arrays", lambda path, *_: looked.append(path))
    code, _, err = pyrovae("encode", "received")
    assert code == 2 and "has changed" in err and f"Data, as recorded in the run: {secret}" in err and not looked


def test_a_download_goes_to_no_folder_that_a_received_run_names(received: Path) -> None:
    info = recorded(received)
    info["info"]["data"] = {"name": "mnist", "data_root": str(received.parent), "checksum": "", "kind": "unit"}
    (received / "run.json").write_bytes(sealed(info))
    before = sorted(received.parent.rglob("*"))
    for opens in (open_run, resume_run):
        with pytest.raises(CheckpointError, match="--data-root"):
            opens(received)
    assert sorted(received.parent.rglob("*")) == before


def test_options_that_leave_something_open_are_refused(received: Path, saved: Path) -> None:
    """What is decided before a fit is recorded. That of a damaged file is not decided anew."""
    for name in ("net", "prior", "hidden"):
        info = recorded(saved / "run")
        info["info"]["options"][name] = None
        (received / "run.json").write_bytes(sealed(info))
        with pytest.raises(CheckpointError, match=f"(damaged: they have no|cannot be right).*{name}"):
            resume_run(received, data=saved / "rows.npy", progress=False)


def test_codes_in_the_names_of_files_do_not_reach_the_terminal(pyrovae: Command) -> None:
    for name in ("a\x1b[31mb\x07.csv", "a\u202eb.csv", os.fsdecode(b"a\xff.csv")):
        Path(name).write_text("x,y\n1,2\n")
        for words in (("fit", name), ("fit", f"{name}c"), ("evaluate", name)):
            code, out, err = pyrovae(*words)
            assert code == 2 and "Error: " in err and "Traceback" not in err
            assert not {"\x1b", "\x07", "\u202e", "\udcff"} & set(out + err)


def test_the_checksum_of_a_file_comes_before_trust(pyrovae: Command, run: Path) -> None:
    path = names_a_file(run, "prior")
    path.write_text(OWN + "\n# changed\n")
    code, _, err = pyrovae("evaluate", "received", "--trust")
    assert code == 2 and "has changed since the fit" in " ".join(err.split()) and not Path("ran").exists()
    path.unlink()
    code, _, err = pyrovae("evaluate", "received", "--trust")
    assert code == 2 and "there is no file" in " ".join(err.split())
    names_a_file(run, "prior")
    code, _, err = pyrovae("evaluate", "received", "--trust")
    assert code == 0 and Path("ran").exists(), err


def test_python_asks_too(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names_a_file(run, "prior")
    for opens in (open_run, resume_run):
        with pytest.raises(CheckpointError, match="--trust"):
            opens(run)
    assert not Path("ran").exists()
    assert open_run(run, trust=True).fitted.pair.prior.latent == 2


@pytest.mark.slow
def test_ones_own_part_needs_no_trust_when_it_is_typed(pyrovae: Command, run: Path, saved: Path) -> None:
    Path("parts.py").write_text(OWN)
    words = ("--prior", "parts.py:Prior", *PLAIN[2:], *QUICK)
    code, out, err = pyrovae("fit", saved / "rows.npy", *words, "--out", "own")
    assert code == 0 and "Run folder: own (to open it again, add --trust" in " ".join(out.split()), out + err
    code, _, err = pyrovae("evaluate", "own")
    assert code == 2 and "add --trust to the command" in " ".join(err.split())
    assert pyrovae("evaluate", "own", "--trust")[0] == 0
    Path("sweep").mkdir()
    shutil.move("own", "sweep/Prior+normal+normal")
    code, _, err = pyrovae("sweep", saved / "rows.npy", *words, "--out", "sweep")  # it opens what is there
    assert code == 0 and "there already" in err, err


def test_a_sweep_does_not_open_what_was_not_typed(pyrovae: Command, run: Path, saved: Path) -> None:
    there = shutil.copytree(run, "sweep/normal+normal+normal")
    code, _, err = pyrovae("sweep", saved / "rows.npy", *PLAIN, *QUICK, "--out", "sweep")
    assert code == 0 and "there already" in err, err
    names_a_file(Path(there).absolute(), "prior")
    code, _, err = pyrovae("sweep", saved / "rows.npy", *PLAIN, *QUICK, "--out", "sweep")
    assert code == 2 and "other options" in err and not Path("ran").exists()


def victims(folder: Path, names: list[str]) -> dict[str, Path]:
    """A file outside the run for each name, to which the name in the run is a link."""
    found = {}
    for name in names:
        outside = folder.parent / "home" / name.lstrip(".")
        outside.parent.mkdir(exist_ok=True)
        if (folder / name).is_file():  # what is there can be read through the link
            shutil.copy(folder / name, outside)
        else:
            outside.write_text("mine")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(outside)
        found[name] = outside
    return found


INSIDE = [*ARTEFACTS, "labels.csv", "run.json", "weights.safetensors", "history.csv", "checkpoint.safetensors"]
WRITING = {
    **{name: (*words, "received") for name, words in COMMANDS.items() if name not in ("compare", "report")},
    "generate to a file": ("generate", "received", "--out", "received/generated.csv", "--force"),
    "encode to a file": ("encode", "received", "--out", "received/codes.npy", "--force"),
    "evaluate to a file": ("evaluate", "received", "--out", "received/scores.csv", "--force"),
    "reconstruct to a file": ("reconstruct", "received", "--out", "received/rows.npy", "--force"),
    "fit": ("fit", "rows.npy", "--out", "received", "--force", *QUICK),
}


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(words, id=name, marks=[pytest.mark.slow] * (name in ("fit", "check")))
        for name, words in WRITING.items()
    ],
)
@pytest.mark.usefixtures("quick_reports")
def test_nothing_is_written_through_a_link(pyrovae: Command, run: Path, saved: Path, words: tuple[str, ...]) -> None:
    shutil.copy(saved / "rows.npy", "rows.npy")
    names = [*INSIDE, "scores.csv", "codes.npy", "rows.npy"]
    found = victims(run, [*names, *(f".{name}.new" for name in names)])
    before = {path: path.read_bytes() for path in found.values()}
    code, _, err = pyrovae(*words)
    assert code == 0 or (code == 1 and words[0] == "check"), err  # 1: the fit is bad
    assert {path: path.read_bytes() for path in before} == before
    assert {path.name for path in (run.parent / "home").iterdir()} == {path.name for path in before}
    if "--out" in words and words[0] != "fit":
        assert not (run.parent / words[words.index("--out") + 1]).is_symlink()


def test_a_folder_that_leads_out_of_a_run_is_refused(pyrovae: Command, run: Path, saved: Path) -> None:
    Path("home").mkdir()
    (run / "more").symlink_to(Path("home").absolute())
    for words in (("generate", "-n", 3), ("encode",), ("evaluate",), ("reconstruct",)):
        code, _, err = pyrovae(*words, "received", "--out", "received/more/x.csv")
        assert code == 2 and "leads out of it" in " ".join(err.split()), err
    assert not list(Path("home").iterdir())
    Path("sweep").mkdir()
    Path("sweep/normal+normal+normal").symlink_to(Path("home").absolute())
    code, _, err = pyrovae("sweep", saved / "rows.npy", *PLAIN, *QUICK, "--out", "sweep")
    assert code == 2 and "leads out of sweep" in " ".join(err.split()) and not list(Path("home").iterdir())


def test_a_link_to_nothing_is_a_file_that_is_there(pyrovae: Command, run: Path) -> None:
    Path("x.csv").symlink_to("nothing")
    code, _, err = pyrovae("encode", "received", "--out", "x.csv")
    assert code == 2 and "exists" in err and not Path("nothing").exists()


# --- labelling


def label(rows: Path, **how: Any) -> labelling.Answer:
    job = labelling.read_job(str(rows), rows.with_name("labels.csv"))
    options = Options.of("label", steps=3, hidden=(4,), latent=2, holdout=0.0, passes=how.pop("passes", 2))
    return labelling.label_rows(job, options, "run", engine="eager", progress=False, **how)


@pytest.mark.slow
@pytest.mark.usefixtures("small_ensembles")
def test_a_crash_of_a_second_labelling_leaves_a_run_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows, table = tmp_path / "rows.csv", Path("run/labels.csv")
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    rows.write_text("id,a,b,c\n" + "".join(f"{n},{a},{b},{c}\n" for n, (a, b, c) in enumerate(x.tolist())))
    (tmp_path / "labels.csv").write_text("id,label\n" + "".join(f"{n},{'ab'[n % 2]}\n" for n in range(8)))
    label(rows)
    old = table.read_bytes()
    label(rows, passes=3)  # the weights are asked again, three times
    new = table.read_bytes()
    kinds = set()
    for number in range(1, 60, 4):
        label(rows)
        assert table.read_bytes() == old
        with monkeypatch.context() as patch:
            crashing(patch, number)
            try:
                label(rows, passes=3)
            except Crash:
                pass
            else:
                break
        pv.load("run")
        kinds.add((recorded(Path("run"))["info"]["options"]["passes"], table.read_bytes() == new))
    assert kinds == {(2, False), (3, False), (3, True)}
    assert not [p for p in Path("run").iterdir() if p.name.endswith(".new")]


@pytest.mark.slow
@pytest.mark.usefixtures("small_ensembles")
def test_a_labelling_that_was_stopped_before_its_first_write_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = tmp_path / "rows.csv"
    rows.write_text("id,a,b\n" + "".join(f"{n},{n % 3},{n * 0.37}\n" for n in range(20)))
    (tmp_path / "labels.csv").write_text("id,label\n" + "".join(f"{n},{'ab'[n % 2]}\n" for n in range(8)))
    with monkeypatch.context() as patch:
        crashing(patch, 4)
        with pytest.raises(Crash):
            label(rows)
    assert os.listdir("run")
    label(rows)
    assert len(pv.load("run").history) > 0

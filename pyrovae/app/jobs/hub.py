"""Pushing a run to the Hugging Face Hub, and pulling one from there.

What is pushed was learned from data, and is not the data: weights, how the model is built, the curve of the fit, and pictures
that the model draws. A folder of a run holds more: where it was made, names and categories of columns, codes of rows, and
pictures of rows. All that is left out unless it is asked for by name.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pyrovae._files import RUN, real, temporary_folder
from pyrovae._lazily import Lazily
from pyrovae._sources import NAMES
from pyrovae.app.jobs.card import is_short, model_card
from pyrovae.app.models import MODELS
from pyrovae.app.options import SIZES
from pyrovae.app.recorded import reading
from pyrovae.app.run import COLUMNS
from pyrovae.errors import CheckpointError, DataError, OptionError, shortened
from pyrovae.fitted import hub
from pyrovae.fitted.files import (
    FILES,
    HISTORY,
    STATE,
    WEIGHTS,
    content_of,
    digest,
    key_of,
    read_run,
    sealed,
)
from pyrovae.fitted.folder import WITHOUT_PAIR
from pyrovae.fitted.spec import renamed

library = Lazily("huggingface_hub")

CARD = "README.md"
ATTRIBUTES = ".gitattributes"  # which the Hub puts into every model
# Pictures that the model draws, and those of its graph and of its curve, which show no row.
GRAPHS = ("graph.png", "graph.gv", "graph-labelled.png", "graph-labelled.gv")
SHOWN = (*GRAPHS, "training.png", "samples.png", "levels.png", "manifold.png")
NAMED_SHOWN = ("samples.png",)  # with the names of classes above them
PULLED = (*hub.RUN_FILES, CARD, COLUMNS, *SHOWN, "reconstructions.png", "latent.png")

# What of run.json says how the model is built and what it has reached. Of `info` see `_info`.
BUILT = ("pair", "frozen", "evaluating", "transform", "layout", "more_layouts", "untransformed", "status", "stopped")
LOCAL = ("job", "engine_notes")  # of the settings: the name of a machine, and errors of a compiler, which name files
NAMING = ("id", "drop", "columns", "condition")  # options that name columns, or a file
PLACES = ("path", "data_root")  # where data are
ROWS_AT_FIRST = "pyrovae.priors.VampPrior"
WHY = {
    STATE: "the state of the fit, from which only it goes on",
    COLUMNS: "names and categories of columns; --describe-data pushes it",
    "reconstructions.png": "it shows rows",
    "latent.png": "codes of rows",
    "samples.png": "names of classes; --describe-data pushes it",
}
OTHER = "it may hold rows, or what is known of them"


@dataclass
class Parcel:
    """What of a run is pushed: the content of each file by its name, or its path; and why other files are left out."""

    files: dict[str, bytes | Path] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def size(self, name: str) -> int:
        """In bytes."""
        content = self.files[name]
        return len(content) if isinstance(content, bytes) else content.stat().st_size

    def text(self, name: str) -> str:
        """The content of a file as text."""
        content = self.files[name]
        return (content if isinstance(content, bytes) else content.read_bytes()).decode()


def pack(
    folder: Path,
    repo: str,
    *,
    license: str | None = None,
    describe_data: bool = False,
    include: Sequence[str] = (),
) -> Parcel:
    """Gather what of a run is pushed.

    Args:
        folder: the run folder.
        repo: user/name, for the model card.
        license: under which others may use the weights.
        describe_data: push also what the run records of its data: names, categories and scales of columns, how rows were
            split, and the checksum of the file, so that all commands work for those who have the same file.
        include: names of further files in the folder.

    Raises:
        CheckpointError: there is no finished run in the folder, or it is damaged, or its weights began as rows and are not
            included by name.
        OptionError: a file that is to be included is not there, or is one that cannot be pushed.
    """
    run, wanted = read_run(folder), _included(folder, include)
    with reading(folder):
        return _packed(folder, run, repo, license, describe_data, wanted)


def _packed(
    folder: Path, run: Mapping[str, Any], repo: str, license: str | None, describe_data: bool, wanted: set[str]
) -> Parcel:
    if run.get("status") == WITHOUT_PAIR:
        raise CheckpointError(f"The run in {folder} has fitted no pair, and there is nothing in it for others.")
    if run.get("status") != "finished":
        raise CheckpointError(f"The fit in {folder} has not finished: continue it first with --resume.")
    for name in (RUN, WEIGHTS, HISTORY):  # of which runs of version 0.1 have no checksum of all
        if (folder / name).is_symlink():
            raise CheckpointError(f"{folder / name} is a link, and could lead to any file: put the file itself there.")
    contents = {name: content_of(folder, name, run) for name in (WEIGHTS, HISTORY)}
    before = _recorded(run)
    public = before.get("data", {}).get("name") in NAMES  # of those data there is nothing to hide
    described = describe_data or public
    rows = [] if public or not _began_as_rows(renamed(run["pair"])) else [WEIGHTS]
    if rows and WEIGHTS not in wanted:
        raise CheckpointError(
            f"The prior of the run in {folder} began as rows of the data, and the weights may hold these nearly as they were. "
            f"If others may see them, add --include {WEIGHTS}."
        )
    info = _info(before, described)
    hidden = () if described or not _has_classes(before) else NAMED_SHOWN
    shown = [name for name in SHOWN if name not in hidden] if before else []  # what others draw is unknown
    kept = {name: _without_texts(run[name]) for name in BUILT if name in run}
    kept["settings"] = {name: value for name, value in run["settings"].items() if name not in LOCAL}
    if described and "columns" in run:
        kept["columns"] = run["columns"]
    sums = {key_of(name): digest(content) for name, content in contents.items()}
    written = {"format": run["format"], "pyrovae": run.get("pyrovae"), **kept, "info": info, **sums}
    parcel = Parcel({RUN: sealed(written), **contents})
    added = rows
    for path in sorted(folder.iterdir()):
        name = path.name
        if name in (RUN, WEIGHTS, HISTORY, CARD) or name.startswith("."):
            continue
        known = name in shown or (name == COLUMNS and describe_data)
        if path.is_file() and not path.is_symlink() and (known or name in wanted):
            parcel.files[name] = path
            added += [] if known else [name]
        else:
            parcel.left_out[name] = WHY.get(name, OTHER) if before else OTHER
    parcel.files[CARD] = model_card(folder, written, info, repo, license, list(parcel.files), added).encode()
    return parcel


class Pushed(NamedTuple):
    """Where a run was pushed to, who sees it, and which files are there that are not of this push."""

    address: str
    private: bool
    others: list[str]


def push(parcel: Parcel, repo: str, *, public: bool = False) -> Pushed:
    """Write a run to the Hub, in place of one that is there.

    Files that an earlier push had included, or that somebody else has put there, stay.

    Args:
        public: whether everybody may see a model that is new; one that is there stays as it is.

    Raises:
        DataError: it may not be written by this user, or the Hub does not answer; or a model that is no run is there.
    """
    hub.check_repo(repo)
    with hub.talking(repo):
        client = hub.client()
        made = client.create_repo(repo, private=not public, exist_ok=True)
        there = [name for name in client.list_repo_files(repo) if name != ATTRIBUTES]
        if there and RUN not in there and there != [CARD]:
            raise DataError(
                f"{repo} on the Hub holds something else, such as {shortened(there[0])}, and no run: choose another name."
            )
        work = [library.CommitOperationAdd(name, content) for name, content in parcel.files.items()]
        old = [name for name in there if name in PULLED and name not in parcel.files]  # of an earlier run
        work += [library.CommitOperationDelete(name) for name in old]
        client.create_commit(repo, work, commit_message="Push a run of pyrovae")
        others = sorted(set(there) - {*parcel.files, *old})
        return Pushed(str(made), client.model_info(repo).private, others)


def pull(repo: str, folder: Path, *, revision: str | None = None, say: Callable[[str], None] | None = None) -> None:
    """Copy a run from the Hub into a new folder: the files of known names, and no other.

    Args:
        repo: user/name.
        folder: the folder, which is made.
        revision: a branch, a tag or a commit.
        say: called with what it does.

    Raises:
        CheckpointError: the folder is not empty, or what is on the Hub is no run, or damaged.
        DataError: it is not there, or the Hub does not answer.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is not empty: choose another folder for what is pulled.")
    if say is not None:
        say(f"Downloading {repo}.")
    source = hub.download(repo, PULLED, revision)
    try:
        run = read_run(source)
        contents = {name: content_of(source, name, run) for name in FILES if (source / name).is_file()}
    except CheckpointError as error:
        raise CheckpointError(f"{repo} on the Hub holds no whole run: {error}") from error
    folder = real(folder)  # also where a link leads to, or `.`
    folder.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(dir=folder.parent, prefix=f".{folder.name}.") as place:
        made = place / "run"
        made.mkdir()
        for name in PULLED:
            if name in contents:
                (made / name).write_bytes(contents[name])
            elif (source / name).is_file():
                shutil.copyfile(source / name, made / name)
        if not folder.exists():
            os.replace(made, folder)
            return
        for name in sorted((path.name for path in made.iterdir()), key=lambda name: name == RUN):  # without it, no run
            os.replace(made / name, folder / name)


def describes_data(folder: Path) -> bool:
    """Whether a run says to what data it was fitted, which the commands need."""
    return "data" in (_recorded(read_run(folder)) or {})


def _included(folder: Path, names: Sequence[str]) -> set[str]:
    for name in names:
        path = folder / name
        if path.parent != folder or not path.is_file() or path.is_symlink():
            raise OptionError(f"--include {name}: there is no such file in {folder}.")
        if path.name in (STATE, CARD) or path.name.startswith("."):
            raise OptionError(f"--include {name}: this file is not for others, and cannot be pushed.")
    return {Path(name).name for name in names}


def _recorded(run: Mapping[str, Any]) -> dict[str, Any]:
    """What `pyrovae fit` has recorded with a run; nothing of a run of something else, whose notes are unknown."""
    info = run.get("info")
    if not isinstance(info, dict) or "job" in info or not {"data", "options", "split"} <= info.keys():
        return {}
    return info if all(isinstance(info[name], dict) for name in ("data", "options", "split")) else {}


def _began_as_rows(spec: Any) -> bool:
    """Whether some of the weights are rows of the data that were then learned on, as the pseudo-inputs of a VampPrior."""
    if isinstance(spec, dict):
        return spec.get("class") == ROWS_AT_FIRST or any(map(_began_as_rows, spec.values()))
    return isinstance(spec, list) and any(map(_began_as_rows, spec))


def _has_classes(before: Mapping[str, Any]) -> bool:
    """Whether pictures may have the names of classes above them."""
    model = MODELS.get(before.get("options", {}).get("model", "vae"))
    return before.get("data", {}).get("label") is not None or model is None or model.labels is not None or model.several


def _info(before: Mapping[str, Any], describe: bool) -> dict[str, Any]:
    """What was recorded with a run, without places; and without what it says of data that are not to be described."""
    if not before:
        return {"pushed": True}
    options = {name: _without_place(value) for name, value in before["options"].items()}
    options["columns"] = None
    if not describe:
        options |= dict.fromkeys((name for name in NAMING if name in options), None)
        if options.get("size_factor") not in (None, *SIZES):
            options["size_factor"] = None
    kept = {name: before[name] for name in ("results", "search", "scaler") if name in before}
    if not describe and "results" in kept:  # those of several columns of labels have the names of these
        told = {name: value for name, value in kept["results"].items() if isinstance(value, int | float)}
        kept["results"] = told | {name: kept["results"][name] for name in ("proposal",) if name in kept["results"]}
    made = {"pushed": True, "options": options, "own": {}, **kept}
    if describe:
        data = {name: value for name, value in before["data"].items() if name not in PLACES}
        if "path" in before["data"]:
            data["path"] = f"data{Path(before['data']['path']).suffix}"  # its ending says how it is read
        made |= {"data": data, "split": before["split"]}
    return made


def _without_place(value: Any) -> Any:
    """An option; of a part of the user's own, folder/parts.py:Cauchy, without the folder."""
    file, colon, part = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    return f"{Path(file).name}:{part}" if colon and file.endswith(".py") else value


def _without_texts(spec: Any) -> Any:
    """A specification in which parts of the user's own are named, but say what they were given only if that is few numbers.

    Texts may be places of files, or words of the data; who builds such a part again passes it to `pv.load`.
    """
    if isinstance(spec, list):
        return [_without_texts(one) for one in spec]
    if not isinstance(spec, dict):
        return spec
    if "external" in spec and spec.get("args") and not all(map(_is_number, spec["args"].values())):
        return {**spec, "args": None}
    return {name: _without_texts(value) for name, value in spec.items()}


def _is_number(spec: Any) -> bool:
    """Whether an argument is a number, or a few sizes, or a part, which is looked at by itself."""
    if isinstance(spec, dict):
        if "tuple" in spec:
            return is_short(spec["tuple"]) and all(map(_is_number, spec["tuple"]))
        return not spec.keys() & {"dict", "tensor"}
    return spec is None or isinstance(spec, bool | int | float)

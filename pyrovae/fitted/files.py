"""Files of a run that change together, and checksums by which damage to them is noticed.

The new files are written beside the old ones, then run.json is replaced, then the others take their names. A crash before the
second step leaves the old run, and one after it the new run, of which some files still stand beside the old ones. Runs of
version 0.1 and 0.2.0 have a checksum of the weights only: other damage to them is not noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyrovae._arguments import as_path
from pyrovae._files import RUN, beside, refuse_no_run, swap, sync_folder, write_beside, write_file
from pyrovae._json import of_json
from pyrovae._launch import job
from pyrovae._version import __version__
from pyrovae.errors import CheckpointError

FORMAT = 1
WEIGHTS, HISTORY, STATE = "weights.safetensors", "history.csv", "checkpoint.safetensors"
FILES = (WEIGHTS, HISTORY, STATE)
SEAL = b'"sha256": "'  # before the checksum of what stands above it in run.json


def claim_folder(folder: str | Path, *, force: bool = False) -> Path:
    """Create a run folder. With `force`, it may hold a run, which stays until another is written in its place.

    A folder that was marked by a run which a crash ended before its first state is free; if that run is still at work, its lock
    keeps others out.

    Raises:
        CheckpointError: The folder is not empty, unless `force` is set and it contains a run; or it cannot be created.
    """
    folder = as_path("folder", folder)
    if not folder.is_dir() and (folder.exists() or folder.is_symlink()):
        what = "a file" if folder.exists() else "a link that leads to no folder"
        raise CheckpointError(f"{folder} is {what}, and a run needs a folder of its own: choose another.")
    if folder.is_dir() and any(folder.iterdir()):
        if _nothing_but_a_mark(folder):
            return folder
        if not force:
            raise CheckpointError(
                f"{folder} exists and is not empty: choose another folder, replace the run in it with force=True (--force on "
                "the command line), or continue that run with resume=True (--resume)."
            )
        if not (folder / RUN).exists():
            raise CheckpointError(
                f"{folder} is not a run folder (it has no {RUN}) and will not be overwritten: choose another folder."
            )
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / RUN).open("xb") as file:  # mode "x": of two processes only one succeeds
            of_job = {} if job() is None else {"job": job()}
            file.write(sealed({"format": FORMAT, "pyrovae": __version__, "status": "running", **of_job}))
        sync_folder(folder.absolute().parent)
    except FileExistsError as error:
        raise CheckpointError(f"Another run has just started in {folder}: choose another folder.") from error
    except OSError as error:
        raise CheckpointError(f"Cannot create the run folder {folder}: {error.strerror or error}.") from error
    return folder


def _nothing_but_a_mark(folder: Path) -> bool:
    """Whether a fit was ended here before it wrote anything; the mark of a job that torchrun started is that job's."""
    if not all(path.name == RUN or path.name.startswith(".") for path in folder.iterdir()):
        return False
    with suppress(CheckpointError, OSError):
        if (folder / RUN).is_file() and not (folder / RUN).stat().st_size:  # killed before the mark itself was written
            return True
        run = read_run(folder)
        return is_mark(run) and "job" not in run
    return False


def read_run(folder: str | Path) -> dict[str, Any]:
    """The content of a folder's run.json. CheckpointError if there is none, it is damaged, or a newer version wrote it."""
    path = Path(folder) / RUN
    refuse_no_run(Path(folder))
    try:
        content = _read(path)
        run = of_json(content)
        version = run["format"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): restore it, or fit again.") from error
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise CheckpointError(f"{path} is damaged (format {version!r}): restore it, or fit again.")
    if version > FORMAT:  # told first, since its checksums may be others
        raise CheckpointError(
            f"{folder} was written by a newer pyrovae ({run.get('pyrovae', '?')}, format {version}), and this version reads "
            f"up to format {FORMAT}: upgrade with `pip install -U pyrovae`."
        )
    above, _, seal = content.rpartition(SEAL)
    if _has_checksums(run) and seal != digest(above).encode() + b'"\n}\n':
        raise CheckpointError(
            f"{path} is damaged, or was changed by hand: its checksum is not that of its content. Restore it, or fit again."
        )
    return dict(run)


def is_mark(run: Mapping[str, Any]) -> bool:
    """Whether run.json only marks the folder of a run that was stopped before it was first written."""
    return not set(run) - {"format", "pyrovae", "status", "job", "sha256"}


def _has_checksums(run: Mapping[str, Any]) -> bool:
    """Whether run.json has checksums of all files: those of versions 0.1 and 0.2.0 have not."""
    return any(name in run for name in ("sha256", key_of(HISTORY), key_of(STATE)))


def key_of(name: str) -> str:
    """Where run.json has the checksum of a file."""
    return f"{name.partition('.')[0]}_sha256"


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def sealed(run: Mapping[str, Any]) -> bytes:
    """The content of run.json, which ends in the checksum of all that stands above it."""
    content = {**{key: value for key, value in run.items() if key != "sha256"}, "sha256": ""}
    above, _, _ = json.dumps(content, indent=1).encode().rpartition(SEAL)
    return above + SEAL + digest(above).encode() + b'"\n}\n'


def _read(path: Path) -> bytes:
    if not path.is_file():  # opening a pipe would wait forever
        raise OSError("it is not a file")
    return path.read_bytes()


def replace_files(folder: Path, run: Mapping[str, Any], contents: Mapping[str, bytes], *, anew: bool) -> None:
    """Replace files of a run and its run.json, so that a crash leaves the old run or the new one.

    Args:
        folder: the run folder.
        run: the content of run.json, but for versions and the checksums of `contents`.
        contents: the new content of files, by name.
        anew: whether it is another run, so that files which it lacks are removed.

    Raises:
        CheckpointError: A file cannot be written; the run is as it was.
    """
    checksums = {key_of(name): digest(content) for name, content in contents.items()}
    content_of_run = sealed({"format": FORMAT, "pyrovae": __version__, **run, **checksums})  # first, since it may fail
    try:
        if not folder.is_dir():  # it was removed while a fit runs
            folder.mkdir(parents=True, exist_ok=True)
        _finish_swap(folder)
        for name, content in contents.items():
            write_beside(folder / name, content)
        write_file(folder / RUN, content_of_run)
    except OSError as error:
        for name in contents:
            with suppress(OSError):
                beside(folder / name).unlink(missing_ok=True)
        raise CheckpointError(
            f"Cannot write the run in {folder}: {error.strerror or error}. What was written there before is still whole."
        ) from error
    for name in FILES:
        if name in contents:
            swap(folder / name)
        elif anew:
            (folder / name).unlink(missing_ok=True)


def _finish_swap(folder: Path) -> None:
    """Do what a crash left undone: files of the run that still stand beside the old ones take their names."""
    for name in FILES:
        if beside(folder / name).exists():
            with suppress(CheckpointError):
                wanted = read_run(folder).get(key_of(name))
                if digest(_read(beside(folder / name))) == wanted:
                    swap(folder / name)
            beside(folder / name).unlink(missing_ok=True)


def content_of(folder: Path, name: str, run: Mapping[str, Any]) -> bytes:
    """The content of a file of a run, which has the checksum in run.json."""
    path, wanted = folder / name, run.get(key_of(name))
    if not path.exists() and not beside(path).exists():
        raise CheckpointError(
            f"{folder} has no {name}: the fit stopped before it was written, or it was removed. Restore it, or start the fit "
            "again with force=True (--force)."
        )
    try:
        content = _read(path) if path.exists() else b""
        if wanted is None and name != WEIGHTS and not _has_checksums(run):
            return content
        if digest(content) != wanted and beside(path).is_file():  # a crash came before it took its name
            content = _read(beside(path))
    except OSError as error:
        raise CheckpointError(f"{path} is damaged ({error}): restore it, or fit again.") from error
    if digest(content) != wanted:
        raise CheckpointError(
            f"{path} is damaged, or was changed: its checksum is not the one in {RUN}. Restore it, or fit again."
        )
    return content


def take_over(run: Path, folder: Path, info: Mapping[str, Any], more: Sequence[str] = ()) -> None:
    """Put a finished run that is elsewhere in the place of the run in a folder, as a fit would with the same results.

    Args:
        run: the folder of the run, which stays.
        folder: the run folder in which it is to be.
        info: the entries of "info" in its run.json that become others, such as where it is.
        more: the names of other files to bring, where they are there.

    Raises:
        CheckpointError: The run is damaged, or a file cannot be written.
    """
    content = read_run(run)
    contents = {name: content_of(run, name, content) for name in FILES if key_of(name) in content}
    replace_files(folder, {**content, "info": {**content["info"], **info}}, contents, anew=True)
    for name in more:
        with suppress(FileNotFoundError):
            write_file(folder / name, (run / name).read_bytes())

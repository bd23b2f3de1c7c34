"""Files that are replaced whole: a crash leaves the old content or the new, and nothing is written through a link.

What is to become a file is written beside it, down to the disk, and then takes its name. A link of that name is replaced, not
followed: a run folder may come from somebody else.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pyrovae._near import near_paths
from pyrovae.errors import CheckpointError

RUN = "run.json"  # the file that makes a folder a run folder
_temporary: list[str] = []  # folders that are removed when the process is stopped


def refuse_no_run(folder: Path) -> None:
    """CheckpointError unless there is a run in the folder."""
    if not (folder / RUN).exists():
        near = "" if folder.exists() else near_paths(folder, (), folders=True, also=[Path("runs") / folder])
        why = f"it has no {RUN}" if folder.exists() else f"there is none of that name{near}"
        raise CheckpointError(f"{folder} is not a run folder: {why}. Create one with `pyrovae fit` or pv.save.")


def real(path: str | Path) -> Path:
    """Where a path leads to by links; unlike `Path.resolve`, also where these lead in a circle."""
    return Path(os.path.realpath(path))


def beside(path: Path) -> Path:
    """Where the next content of a file is written before it takes the file's name."""
    return path.with_name(f".{path.name}.new")


def write_beside(path: Path, content: bytes) -> None:
    """Write the next content of a file beside it. What an earlier crash left there is replaced."""
    refuse_leaving(path)
    if path.is_dir() and not path.is_symlink():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    temporary = beside(path)
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("xb") as file:  # mode "x" makes a new file, and follows no link
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def swap(path: Path) -> None:
    """Give what was written beside a file the file's name."""
    os.replace(beside(path), path)
    sync_folder(path.parent)


def write_file(path: Path, content: bytes) -> None:
    """Write a file, or replace it."""
    write_beside(path, content)
    swap(path)


@contextmanager
def temporary_folder(**how: Any) -> Iterator[Path]:
    """A folder that is removed at the end, also where a signal ends the process; the arguments are those of `tempfile`."""
    with tempfile.TemporaryDirectory(**how) as place:
        _temporary.append(place)
        try:
            yield Path(place)
        finally:
            _temporary.remove(place)


def remove_temporary_folders() -> None:
    """Do what `temporary_folder` can do no more, since the process ends at once."""
    for place in _temporary:
        shutil.rmtree(place, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder down to the disk, where the system can do that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def refuse_leaving(path: Path) -> None:
    """CheckpointError where the path goes through a run folder, and a link in that folder leads out of it."""
    path = path.absolute()
    for folder in path.parents[1:]:
        inside = (folder / RUN).exists() and Path(os.path.normpath(path)).is_relative_to(folder)
        if inside and not real(path.parent).is_relative_to(real(folder)):
            raise CheckpointError(
                f"{path} is in the run folder {folder}, but a link there leads out of it, to {real(path.parent)}: give "
                "the path of that folder itself."
            )

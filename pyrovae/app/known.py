"""The data of a run, which is opened without a question wherever its folder is now, if this user has read the same before.

A run folder from somebody else can name any file. What it names is read unasked where the run was made, and where it is data,
place and content, that the user has read for a fit before, or has named for a run; so folders can be renamed and moved. The
list is a file in the user's own folder, a checksum a line, from which nobody learns what the data are.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from platformdirs import user_data_path

from pyrovae.data import Dataset, load_again
from pyrovae.errors import CheckpointError, DataError


def data_of(
    folder: Path,
    info: Mapping[str, Any],
    data: Path | None,
    data_root: Path | None,
    say: Callable[[str], None],
) -> Dataset:
    """The data of a run: what the user names, or else those that are recorded, if this is the user's own run.

    A folder from somebody else says which file of this machine is read. So one that is not where it was made, and names no data
    that the user has read for a run before, needs the name of the file from the user; and no file is looked into whose checksum
    is not the recorded one.
    """
    source = info["data"]
    file, root = (None, source.get("data_root")) if source.get("name") else (source["path"], None)
    asked = data is not None or (data_root is not None and file is None)
    if not asked and (file or root):
        if not (_is_made_here(folder, info) or is_known(source)):
            option = f"--data {file}" if file else f"--data-root {root}"
            raise CheckpointError(
                f"{folder} is not where its run was made ({info.get('folder', 'not recorded')}), so that the data that it "
                f"names are not read unasked. If {file or root} are the data that you mean, add {option}, once; if they are "
                "elsewhere, give that place."
            )
        if file and not os.path.exists(file):
            raise DataError(
                f"the data of {folder} are not at {file} any more: give the place where they are by --data FILE."
            )
        say(f"Data, as recorded in the run: {file or root}")
    dataset = load_again(source, data=data, data_root=data_root)
    remember(dataset.source)
    return dataset


def _is_made_here(folder: Path, info: Mapping[str, Any]) -> bool:
    recorded = info.get("folder")
    return isinstance(recorded, str) and os.path.realpath(recorded) == os.path.realpath(folder)


def is_known(source: Mapping[str, Any]) -> bool:
    """Whether the data that a `Dataset.source` describes are those of an earlier run of this user."""
    with suppress(OSError, ValueError):
        return _line(source) in _list().read_text().split()
    return False


def remember(source: Mapping[str, Any]) -> None:
    """Add the data to the list; where it cannot be written to, they are asked for again."""
    if _place(source) is None or is_known(source):
        return
    with suppress(OSError):
        _list().parent.mkdir(parents=True, exist_ok=True)
        with _list().open("a") as file:
            file.write(f"{_line(source)}\n")


def _list() -> Path:
    return user_data_path("pyrovae", appauthor=False) / "data-of-runs"


def _place(source: Mapping[str, Any]) -> str | None:
    """The file of the data, or their folder; None for data that come with the package."""
    place: str | None = source.get("data_root") if source.get("name") else source["path"]
    return place


def _line(source: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([_place(source), source["checksum"]]).encode()).hexdigest()

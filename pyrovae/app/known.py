"""Which data this user has read for a run: a run of the same data is opened without a question, wherever its folder is now.

A run folder from somebody else can name any file. What it names is read unasked where the run was made, and where it is data,
place and content, that the user has read for a fit before, or has named for a run; so folders can be renamed and moved. The
list is a file in the user's own folder, a checksum a line, from which nobody learns what the data are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from platformdirs import user_data_path


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

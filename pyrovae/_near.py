"""Names and paths as people type them: where they lead, and what was meant by one that leads nowhere."""

from __future__ import annotations

import difflib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

MOST_BESIDE = 10_000  # files of a folder that are looked at
ALIKE = 0.6  # two names, from 0 to 1, of which one is suggested for the other


def expanded(path: str | Path) -> Path:
    """The path with ~ as a folder; as it is where there is no such user, who would be an error of `Path.expanduser`."""
    return Path(os.path.expanduser(path))


def near_names(word: str, words: Sequence[str]) -> str:
    """The end of an error message: " (did you mean ...?)", or nothing if no word is similar."""
    return did_you_mean(similar_names(word, words))


def near_paths(
    path: str | Path, endings: Sequence[str] | None = None, *, folders: bool = False, also: Sequence[str | Path] = ()
) -> str:
    """The same for a file or folder that is not there, see `similar_paths`.

    Args:
        also: other paths that would do, such as a folder in its usual place; those that exist are suggested first.
    """
    there = [str(other) for other in also if Path(other).exists()]
    return did_you_mean([*there, *similar_paths(path, endings, folders=folders)])


def absent(path: str | Path, endings: Sequence[str] | None = None, *, folders: bool = False) -> str:
    """The beginning of an error message of a path that leads to no file: that there is none of this name, or what there is.

    Args:
        path: as it was typed.
        endings: as for `similar_paths`.
        folders: as for `similar_paths`.
    """
    there = expanded(path)
    if there.is_dir():
        return f"{path} is a folder, and no file"
    if there.exists():
        return f"{path} is a pipe, a socket or a device, and no file"
    if there.is_symlink():
        return f"{path} is a link that leads to no file"
    return f"there is no file {path}{near_paths(path, endings, folders=folders)}"


def did_you_mean(near: Sequence[str]) -> str:
    """The end of an error message: " (did you mean ...?)" with the first three suggestions, or nothing without any."""
    return f" (did you mean {' or '.join(list(dict.fromkeys(near))[:3])}?)" if near else ""


def similar_names(word: str, words: Sequence[str]) -> list[str]:
    """Up to three words like the one that was typed, the most similar first."""
    return difflib.get_close_matches(word, words)


def similar_paths(path: str | Path, endings: Sequence[str] | None = None, *, folders: bool = False) -> list[str]:
    """Up to three paths like one that does not exist, the most similar first, written as it was typed.

    Where a folder on the way is not there, folders like it are looked for. Of an absolute path, which is long, only the name is
    given where all before it is right.

    Args:
        endings: of the files that would do, in lower case; None for any.
        folders: whether folders would do, too.
    """
    typed = Path(path)
    try:
        missing = next((one for one in (typed, *typed.parents) if one.name and expanded(one.parent).is_dir()), None)
        beside = [] if missing is None else list(itertools.islice(expanded(missing.parent).iterdir(), MOST_BESIDE))
    except OSError:  # a name that is too long, a folder that may not be read
        return []
    if missing is None:
        return []
    scores = {}
    for found in beside:
        score = _alike(missing, found)
        if score >= ALIKE and (_would_do(found, endings, folders) if missing == typed else found.is_dir()):
            scores[found.name] = score
    best = [missing.with_name(name) for name in sorted(scores, key=lambda name: (-scores[name], name))[:3]]
    if missing == typed and typed.is_absolute():
        return [one.name for one in best]
    rest = typed.relative_to(missing)
    return [str(one / rest if expanded(one / rest).exists() else one) for one in best]


def _would_do(found: Path, endings: Sequence[str] | None, folders: bool) -> bool:
    return folders if found.is_dir() else endings is None or found.suffix.lower() in endings


def _alike(typed: Path, found: Path) -> float:
    """How similar two names are, from 0 to 1. Endings, which many files have in common, count little."""
    if found.name.startswith(".") and not typed.name.startswith("."):
        return 0.0  # a hidden file
    same = typed.suffix.lower() == found.suffix.lower()
    return difflib.SequenceMatcher(None, typed.stem.lower(), found.stem.lower()).ratio() - (0.0 if same else 0.05)

"""The names of data sets and the endings of files that `pyrovae.data.load` knows, and the refusal of others.

They stand here, since to import anything from `pyrovae.data` takes torch, for which a typing mistake should not wait.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from pyrovae.errors import DataError, OptionError

NAMES = ("digits", "sprites", "mnist", "fashion-mnist")
TABLES = (".csv", ".data", ".tsv", ".txt", ".parquet", ".xlsx", ".xls")
SUFFIXES = (".npz", ".npy", *TABLES)
ARROW = (".arrow", ".feather")  # which only questions about tables read, and `pyrovae.data.open`


def check_source(source: str, also: tuple[str, ...] = ()) -> None:
    """OptionError or DataError unless `load` knows the name, or there is such a file, or one that ends in one of `also`."""
    if source in NAMES:
        return
    path = Path(source).expanduser().absolute()
    if path.suffix.lower() not in (*SUFFIXES, *also):
        raise OptionError(
            f"unknown data {source!r}{near_names(source, NAMES)}. Known names: {', '.join(NAMES)}; "
            f"or give the path of a file that ends in {', '.join((*SUFFIXES, *also))}."
            + (" A folder of images is for `pyrovae label`." if path.is_dir() else "")
        )
    if not path.is_file():
        raise DataError(f"{absent(path)}. Check the name and the folder.")


def absent(path: Path) -> str:
    """The beginning of an error message of a path that leads to no file: that there is none of this name, or what there is."""
    if path.is_dir():
        return f"{path} is a folder, and no file"
    if path.exists():
        return f"{path} is a pipe, a socket or a device, and no file"
    if path.is_symlink():
        return f"{path} is a link that leads to no file"
    here = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
    return f"there is no file {path}{near_names(path.name, here)}"


def near_names(word: str, words: tuple[str, ...] | list[str]) -> str:
    """The end of an error message: " (did you mean ...?)", or nothing if no word is similar."""
    near = difflib.get_close_matches(word, words)
    return f" (did you mean {' or '.join(near)}?)" if near else ""

"""The names of data sets and the endings of files that `pyrovae.data.load` knows, and the refusal of others.

They stand here, since to import anything from `pyrovae.data` takes torch, for which a typing mistake should not wait.
"""

from __future__ import annotations

from pyrovae._foreign import cure_of
from pyrovae._near import absent, did_you_mean, expanded, near_paths, similar_names, similar_paths
from pyrovae.errors import DataError, OptionError

NAMES = ("digits", "sprites", "mnist", "fashion-mnist")
TABLES = (".csv", ".data", ".tsv", ".txt", ".parquet", ".xlsx", ".xls")
SUFFIXES = (".npz", ".npy", *TABLES)
ARROW = (".arrow", ".feather")  # which only questions about tables read, and `pyrovae.data.open`


def check_source(source: str, also: tuple[str, ...] = (), *, folders: bool = False) -> None:
    """OptionError or DataError unless `load` knows the name, or there is such a file.

    Args:
        also: other endings that the file may have.
        folders: whether a folder of images would do, too.
    """
    if source in NAMES:
        return
    path, endings = expanded(source).absolute(), (*SUFFIXES, *also)
    if folders and path.is_dir():
        return
    if folders and source.endswith(("/", "\\")):
        raise DataError(
            f"there is no folder {source}{near_paths(source, (), folders=True)}. Check the name, and where you are."
        )
    if path.is_dir() and path.suffix.lower() not in endings:
        raise OptionError(
            f"{source} is a folder, and rows are read from a file that ends in {', '.join(endings)}. "
            "A folder of images is for `pyrovae fit`, `sweep` and `label`, and for questions about a run of images."
        )
    if path.suffix.lower() not in endings:
        if path.is_file() and (cure := cure_of(path)):
            raise OptionError(cure)
        near = similar_names(source, NAMES) + similar_paths(source, endings, folders=folders)
        raise OptionError(
            f"unknown data {source!r}{did_you_mean(near)}. Known names: {', '.join(NAMES)}; "
            f"or give the path of {'a folder of images, or ' if folders else ''}a file that ends in {', '.join(endings)}."
        )
    if not path.is_file():
        raise DataError(f"{absent(source, endings, folders=folders)}. Check the name and the folder.")

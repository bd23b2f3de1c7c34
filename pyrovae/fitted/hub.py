"""Runs on the Hugging Face Hub: what of them is downloaded, and its errors in our words.

A run from there is a folder from somebody else: only files of known names are taken, and opening it runs no code.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyrovae._files import RUN
from pyrovae._lazily import Lazily
from pyrovae._version import __version__
from pyrovae.errors import (
    CheckpointError,
    DataError,
    MissingPackageError,
    OptionError,
    PyrovaeError,
    shortened,
    without_password,
)
from pyrovae.fitted.files import HISTORY, WEIGHTS

library = Lazily("huggingface_hub")
failures = Lazily("huggingface_hub.errors")

PREFIX = "hub:"
RUN_FILES = (RUN, WEIGHTS, HISTORY)
LIBRARIES = ("huggingface_hub", "httpx", "requests", "urllib3")  # hf_xet raises RuntimeError
NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*", re.ASCII)  # the Hub itself is stricter


def check_name(repo: str) -> None:
    """OptionError unless a name is of the form user/name."""
    if NAME.fullmatch(repo) is None:
        raise OptionError(f"A run on the Hub is named user/name, got {repo!r}.")


def check_repo(repo: str) -> None:
    """OptionError unless a name is of the form user/name; MissingPackageError unless the Hub's library is installed."""
    check_name(repo)
    if importlib.util.find_spec("huggingface_hub") is None:
        raise MissingPackageError("The Hub needs huggingface_hub: pip install 'pyrovae[hub]'.")


def client() -> Any:
    """What talks to the Hub, with the token that this user has logged in with, if any."""
    return library.HfApi(library_name="pyrovae", library_version=__version__)


def download(repo: str, names: Sequence[str] = RUN_FILES, revision: str | None = None) -> Path:
    """Download files of a run into the Hub's cache, or find them there.

    Args:
        repo: user/name.
        names: the files that are taken, where they are there.
        revision: a branch, a tag or a commit.

    Returns:
        The folder in the cache.

    Raises:
        DataError: it is not there, or may not be read by this user, or the Hub does not answer.
        CheckpointError: it holds no run.
    """
    check_repo(repo)
    with talking(repo):
        folder = Path(client().snapshot_download(repo, revision=revision, allow_patterns=list(names)))
    if missing := [name for name in (RUN, WEIGHTS) if not (folder / name).is_file()]:
        raise CheckpointError(f"{repo} on the Hub holds no run of pyrovae: it has no {missing[0]}.")
    return folder


@contextmanager
def talking(repo: str) -> Iterator[None]:
    """Turns what the Hub's library raises into one error that says what can be done."""
    try:
        yield
    except PyrovaeError:
        raise
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, failures.RevisionNotFoundError):
            raise DataError(f"{repo} on the Hub has no such revision: {shortened(error)}") from error
        if isinstance(error, failures.RepositoryNotFoundError) or status in (401, 403):
            raise DataError(
                f"{repo} is not on the Hub, or you may not read or write it: check the name, and log in by `hf auth login` or "
                "by a token in HF_TOKEN."
            ) from error
        if isinstance(error, failures.HFValidationError):
            raise OptionError(f"The Hub takes no such name as {repo}: {shortened(error)}") from error
        raised_there = type(error).__module__.startswith(LIBRARIES)
        if not raised_there and not isinstance(error, OSError | ValueError | RuntimeError | failures.HTTPError):
            raise
        raise DataError(f"The Hub did not do it for {repo}: {shortened(without_password(error))}") from error

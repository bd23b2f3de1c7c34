"""What the run.json of a fit has recorded: read, checked, and refused where it cannot be trusted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyrovae.app.catalogue import own_files, own_paths
from pyrovae.app.options import Options
from pyrovae.errors import CheckpointError, OptionError, PyrovaeError
from pyrovae.fitted.files import read_run


def recorded_info(folder: Path) -> dict[str, Any]:
    """What a run of `fit` has recorded. CheckpointError for a run of `label`."""
    info: dict[str, Any] = read_run(folder)["info"]
    if info.get("job") == "label":
        raise CheckpointError(f"{folder} is a run of `pyrovae label`: only that command reads it, and goes on with it.")
    if info.get("pushed") and "data" not in info:
        raise CheckpointError(
            f"{folder} does not say to what data it was fitted, since it was pushed without --describe-data: pv.load opens it."
        )
    return info


def recorded_options(folder: Path, info: Mapping[str, Any], trust: bool) -> Options:
    """The options of a run, before anything that they name is run.

    A part of the user's own is a Python file, and whoever wrote the run.json chose which. It is run only if it is as it was at
    the fit, and the user, who may have received the folder from somebody else, says that it may be.
    """
    try:
        options = Options.from_json(info["options"], "fit")
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    paths = own_paths(options)
    gone = sorted(path for path in paths.values() if not Path(path).is_file())
    if gone:
        raise CheckpointError(
            f"{folder} was fitted with parts of your own, and there is no file {gone[0]}: put it back."
        )
    if info.get("own", {}) != own_files(options):
        raise CheckpointError(f"{folder}: the file of a part of your own has changed since the fit. Put it back.")
    if paths and not trust:
        which = " and ".join(dict.fromkeys(paths.values()))
        raise CheckpointError(
            f"{folder} was fitted with parts of your own, and opening it runs Python code in {which}. If that is your code, "
            "unchanged since the fit, add --trust to the command; if the folder is from somebody else, read the code first."
        )
    return options


def check_decided(options: Options, decided: Options) -> None:
    """CheckpointError unless the recorded options of a run leave nothing open that is decided before a fit."""
    if left := [name for name, value in vars(options).items() if value is None and getattr(decided, name) is not None]:
        raise CheckpointError(f"The options in the run.json are damaged: they have no {', '.join(left)}.")


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turns whatever a run.json that was changed by hand can raise into one clear error."""
    try:
        yield
    except OptionError as error:  # of the options that are recorded
        raise CheckpointError(
            f"The options in the run.json in {folder} cannot be right, so restore it, or fit again: {error}"
        ) from error
    except PyrovaeError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(f"The run.json in {folder} is damaged ({error!r}): restore it, or fit again.") from error

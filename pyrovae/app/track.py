"""Where `--track` keeps the numbers of a fit: the trackers that its names stand for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pyrovae._files import real
from pyrovae._lazily import Lazily
from pyrovae.errors import OptionError

if TYPE_CHECKING:
    from pyrovae.training import tracking
    from pyrovae.training.tracking import Tracker
else:  # so that a mistake need not wait for torch
    tracking = Lazily("pyrovae.training.tracking")

LOG, STAGE_1 = "log.jsonl", "stage-1"
LOGS = (LOG, f"log-{STAGE_1}.jsonl")  # the latter of the first of two stages
KINDS = ("tensorboard", "mlflow", "json")


def check_track(names: Sequence[str], *, several: bool = False) -> None:
    """OptionError for a name that is none, or that is given twice; `several`: for a file that several runs would share."""
    kinds = [name.partition(":")[0] for name in names]
    for name, kind in zip(names, kinds):
        if kind not in KINDS or name.endswith(":"):
            raise OptionError(f"--track {name}: must be {', '.join(KINDS)}, or one of them, a colon and a place.")
        if kinds.count(kind) > 1:
            raise OptionError(f"--track {kind} is given twice: leave one out.")
        if several and kind == "json" and name != kind:
            raise OptionError(f"--track {name}: each run of a sweep has a file of its own, so leave the place out.")


def with_log(names: Sequence[str] | None) -> tuple[str, ...]:
    """What was typed, and the log that every run of the command line has, where it was not typed with a place of its own."""
    typed = tuple(names or ())
    return typed if any(name.partition(":")[0] == "json" for name in typed) else (*typed, "json")


def trackers(names: Sequence[str], folder: Path, part: str = "") -> list[Tracker]:
    """The trackers of a run in a folder.

    Args:
        names: as they were typed, such as "tensorboard" or "mlflow:http://127.0.0.1:5000".
        folder: the run folder.
        part: which part of the run it is, where it is fitted in several.
    """
    check_track(names)
    made: list[Tracker] = []
    end = f"-{part}" if part else ""
    title = real(folder).name + end
    for name in names:
        kind, _, place = name.partition(":")
        at = Path(os.path.expanduser(place))  # which leaves a user that is unknown as it is
        if kind == "tensorboard":
            made.append(tracking.TensorBoard(at / title if place else folder / f"{kind}{end}"))
        elif kind == "mlflow":
            made.append(tracking.MLflow(place or None, name=title))
        else:
            path = at if place else folder / LOG
            made.append(tracking.JSONLines(path.with_name(f"{path.stem}{end}{path.suffix}")))
    return made

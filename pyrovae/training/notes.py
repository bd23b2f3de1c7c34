"""The notes of a fit's state, as JSON has them: whether they can be those of a fit, and what older versions left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyrovae.errors import shortened


def check_notes(notes: Mapping[str, Any]) -> None:
    """TypeError unless the notes of a state are of the types that `Trainer.state` writes."""
    wanted: dict[str, Any] = {"step": int, "in_epoch": bool, "seconds": int | float, "best_elbo": int | float | None}
    wanted |= {"best_epoch": int, "history": list, "rollbacks": int, "damping": int | float}
    wanted["taken"] = int
    later = {"rollbacks": 0, "damping": 1.0, "taken": 0}
    for name, kind in wanted.items():
        value = notes[name] if name not in later else notes.get(name, later[name])
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise TypeError(f"{name} is {shortened(repr(value))}")
    last = 0
    for row in notes["history"]:
        if not isinstance(row, dict) or not all(type(value) in (int, float) for value in row.values()):
            raise TypeError("its history is no table of numbers")
        if "elbo" not in row or "seconds" not in row or row.get("epoch") != last + 1:
            raise TypeError("its history is not one of epochs")
        last += 1
    if not (
        0 <= notes["step"] < 2**53
        and 0 <= notes.get("taken", 0) < 2**53
        and 0 <= notes["best_epoch"] <= last
        and 0 < notes.get("damping", 1.0) <= 1
    ):
        raise TypeError("its counts of steps and epochs cannot be")


def with_baseline(before: Any, now: Any) -> Any:
    """The loss of a state; of a version that knew no baseline, with that of today's loss, unless it has learned something."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return before
    known, chosen = before.get("args", {}), now.get("args", {}).get("baseline", ...)
    if "baseline" in known or not (chosen is None or chosen == "leave_one_out"):
        return before
    return {**before, "args": {**known, "baseline": chosen}}

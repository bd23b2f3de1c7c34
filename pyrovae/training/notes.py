"""Notes of a fit: the rows of its history, and those of its state, as JSON has them, also of older versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pyrovae.errors import OptionError, PairError, shortened


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
    course = notes.get("course", {"start": None, "late": [0.0] * last})
    late = course["late"]
    if not (isinstance(course["start"], int | float | None) and isinstance(late, list) and len(late) == last):
        raise TypeError("its course is not one of these epochs")
    if not all(value is None or type(value) in (int, float) for value in late):
        raise TypeError("its course is no list of numbers")


def is_true(answer: Any) -> bool:
    """Whether a callback returned a truth, which may be that of an array or a tensor, such as `losses.mean() < 1`."""
    return answer is True or (str(getattr(answer, "dtype", "")) in ("bool", "torch.bool") and bool(answer.all()))


def with_baseline(before: Any, now: Any) -> Any:
    """The loss of a state; of a version that knew no baseline, with that of today's loss, unless it has learned something."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return before
    known, chosen = before.get("args", {}), now.get("args", {}).get("baseline", ...)
    if "baseline" in known or not (chosen is None or chosen == "leave_one_out"):
        return before
    return {**before, "args": {**known, "baseline": chosen}}


def as_numbers(row: dict[str, Any]) -> None:
    """Make numbers of what callbacks wrote into a row of the history, such as a tensor; OptionError where it is none."""
    for name, value in list(row.items()):
        if type(value) in (int, float):
            continue
        try:
            row[name] = float("a text" if isinstance(value, str) else value)
        except (TypeError, ValueError, RuntimeError) as error:
            del row[name]
            raise OptionError(
                f"A callback wrote {shortened(repr(value))} into the history as {name!r}, which is kept as a table of numbers: "
                "write a number, and keep other things elsewhere."
            ) from error


def noted_by(part: Any, row: Mapping[str, float]) -> dict[str, float]:
    """What a module adds to a row of the history: numbers, under names that are free."""
    found = {name: value.item() if isinstance(value, Tensor) else value for name, value in part.in_history().items()}
    for name, value in found.items():
        if name in row or isinstance(value, bool) or not isinstance(value, (int, float)):
            raise PairError(
                f"{type(part).__name__}.in_history() gives {name!r}: {value!r}, which "
                + ("the history has already: give it another name." if name in row else "is no number.")
            )
    return found

"""Rounds of an answer: each adds an ensemble of its own, and their geometric mean answers.

What a round finds depends on its number, the rows, the labels and the options only. So the answer of so many rounds is the
same, bit for bit, by one call or by several, some of which were killed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pyrovae.app.jobs.label.ensemble import KIND, TINY
from pyrovae.errors import CheckpointError
from pyrovae.fitted.folder import read_state, state_of

NAMES = ("first", "total", "judged_first", "judged_total")  # of the tensors in the file


@dataclass(frozen=True, eq=False)
class Rounds:
    """What the ensembles of all rounds say.

    Args:
        number: How many rounds there were.
        seconds: What the slowest took; of the first, which has more to do, if there is no other.
        first: `p(y | x)` of all rows by the first, `(N, C)`.
        total: The sum of the logarithms of all, `(N, C)`.
        judged_first: As `first`, of rows that were predicted without their labels, `(n, C)`.
        judged_total: As `total`, of these rows.
    """

    number: int
    seconds: float
    first: Tensor
    total: Tensor
    judged_first: Tensor
    judged_total: Tensor

    @classmethod
    def begin(cls, p: Tensor, judged: Tensor, seconds: float) -> Rounds:
        """Those of one ensemble, by its probabilities of all rows and of the judged ones."""
        return cls(1, seconds, p, _log(p), judged, _log(judged))

    def plus(self, p: Tensor, judged: Tensor, seconds: float) -> Rounds:
        """With another ensemble."""
        slowest = seconds if self.number == 1 else max(self.seconds, seconds)
        totals = self.total + _log(p), self.judged_total + _log(judged)
        return Rounds(self.number + 1, slowest, self.first, totals[0], self.judged_first, totals[1])

    def gain(self, y: Tensor) -> tuple[float, float]:
        """By how much all predict the labels `(n,)` of the judged rows better than the first, in nats a row, and its error."""
        if self.number == 1 or not len(y):
            return 0.0, 0.0
        several = (self.judged_total / self.number).log_softmax(-1)
        differences = (several - _log(self.judged_first)).gather(1, y[:, None])[:, 0]
        error = differences.std().item() / math.sqrt(len(y)) if len(y) > 1 else math.inf
        return differences.mean().item(), error

    def answer(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The probabilities of all rows and of the judged ones: those by all, unless these are clearly worse than the first.

        Args:
            y: The labels of the judged rows, `(n,)`.
        """
        gain, error = self.gain(y)
        if self.number == 1 or gain < -error:
            return self.first, self.judged_first
        return tuple((total / self.number).softmax(-1) for total in (self.total, self.judged_total))  # type: ignore[return-value]

    def content(self) -> bytes:
        """The file that keeps them."""
        notes = {"kind": KIND, "number": self.number, "seconds": self.seconds}
        return state_of({name: getattr(self, name) for name in NAMES}, notes)


def _log(p: Tensor) -> Tensor:
    return p.double().clamp_min(TINY).log()


def rounds_before(folder: Path, num_rows: int, num_classes: int, num_judged: int) -> Rounds | None:
    """The rounds that the run in a folder has; None without any, if the file is damaged, or if ensembles were others then."""
    try:
        tensors, notes = read_state(folder)
        number, seconds = int(notes["number"]), float(notes["seconds"])
    except (CheckpointError, KeyError, TypeError, ValueError):
        return None
    shapes = {name: (num_judged if name.startswith("judged") else num_rows, num_classes) for name in NAMES}
    if notes.get("kind") != KIND or any(name not in tensors or tensors[name].shape != shapes[name] for name in NAMES):
        return None
    return Rounds(number, seconds, **{name: tensors[name] for name in NAMES})

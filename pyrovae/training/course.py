"""The course of a fit: where its ELBO began, and whether it got anywhere."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pyrovae.fitted.diverged import CURE, diverged
from pyrovae.fitted.fitted import Fit

LOST = 0.5  # of what an ELBO had gained, and of its own size
LEAST = 1.0  # nats a row; less than that nobody need hear of
# Of rows with heavy tails, means over minibatches differ by much more than what few steps change. And a callback may make
# another model of the one that was fitted before, by setting an attribute of it.
FEW_STEPS, LOST_AT_LEAST = 10, 100.0


class Course:
    """What ELBOs of steps say of a fit besides the history, in nats per row.

    A mean over the rows of an epoch is that of its worst rows, where a few are all but impossible, and the first minibatch may
    lack these. So the first step is compared with the best one of the second half of an epoch, too.

    Args:
        relaxed: Whether what steps ascend is no ELBO.
    """

    def __init__(self, *, relaxed: bool) -> None:
        self.relaxed = relaxed
        self.start: float | None = None  # of the first step, before any weight was changed
        self.late: list[float | None] = []  # the best one of the second half of each epoch
        self.bound = math.nan  # of rows after the last step

    def note(self, elbos: Tensor) -> None:
        """Note the ELBOs of an epoch's steps, all of them finite. There is none where all were skipped."""
        known = len(elbos) > 0 and not self.relaxed
        if not self.late and known:
            self.start = elbos[0].item()
        self.late.append(elbos[len(elbos) // 2 :].max().item() if known else None)

    def state(self) -> dict[str, Any]:
        return {"start": self.start, "late": list(self.late)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` returned; of a version that noted nothing, {}."""
        self.start, self.late = state.get("start"), list(state.get("late", ()))

    def end(self, fitted: Fit, *, elbo: bool, same: bool = True) -> None:
        """Note in `settings["diverged"]`, with a warning, that the weights that were kept are far worse than earlier ones.

        Args:
            fitted: A fit that has ended.
            elbo: Whether the fit ascended the ELBO. Else, as with a floor under KL terms, these are left out at its end.
            same: Whether the model was the same all the time.
        """
        fitted.settings.pop("diverged", None)
        history = fitted.history
        if not history:
            return
        number = int(fitted.settings.get("best_epoch") or len(history))
        kept, is_last = history[number - 1], number == len(history)
        found = [
            kept["elbo"],
            kept.get("validation_elbo"),
            self.bound if is_last else None,
            *self.late[number - 1 : number],
        ]
        end = max((bound for bound in found if bound is not None and not math.isnan(bound)), default=math.nan)
        if not elbo or kept.get("kl_weight", 1.0) != 1.0:
            end += sum(max(kl, 0.0) for name, kl in kept.items() if name.startswith("kl/"))
        first = history[0]["elbo"] if self.start is None else self.start
        highest = max(first, *(row["elbo"] for row in history))
        times = LOST if same and history[-1].get("steps", FEW_STEPS) >= FEW_STEPS else LOST_AT_LEAST
        if highest - end > max(LEAST, times * abs(highest)) and highest - end > LOST * (highest - first):
            fitted.settings["diverged"] = {"start": self.start, "highest": highest, "end": end}
            said = diverged(fitted)
            warnings.warn(f"{said[0].upper()}{said[1:]}. To mend it, {CURE}.", stacklevel=7)  # at the call of fit

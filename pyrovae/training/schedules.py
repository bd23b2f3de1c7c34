"""Schedules: functions of the step that give weights, written into 0-d tensors before each step.

A schedule takes a `Step` and returns a dict with any of the keys "lr" (learning rate), "kl" (weight of the KL terms) and
"model" (what the learning rate of the parameters that only the model uses is multiplied by).
A function of one's own does as well: `schedule=lambda step: {"kl": min(1.0, step.epoch / 10)}`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from pyrovae.errors import OptionError

WEIGHTS = ("lr", "kl", "model")


class Step(NamedTuple):
    """Where a fit stands: steps done, steps in an epoch (a mean, rows / batch size), steps in the whole fit."""

    number: int
    per_epoch: float
    total: int

    @property
    def epoch(self) -> float:
        """Epochs done, as a fraction."""
        return self.number / self.per_epoch

    @property
    def progress(self) -> float:
        """Share of the fit that is done, 0 to 1."""
        return min(1.0, self.number / max(1, self.total - 1))


Schedule = Callable[[Step], Mapping[str, float]]


class kl_warmup:
    """KL weight from `start` to 1, linear over the first `epochs` (Sonderby et al. 2016, arXiv:1602.02282)."""

    def __init__(self, epochs: float, start: float = 0.0) -> None:
        if epochs <= 0 or not 0 <= start <= 1:
            raise OptionError(f"kl_warmup needs epochs > 0 and 0 <= start <= 1, got epochs={epochs}, start={start}.")
        self.epochs, self.start = epochs, start

    def __call__(self, step: Step) -> dict[str, float]:
        return {"kl": min(1.0, self.start + (1 - self.start) * step.epoch / self.epochs)}


class kl_cycles:
    """KL weight from 0 to 1, linear over the first `ramp` of each of `cycles` equal shares of the fit, and 1 for the rest of
    it, its last step at least: after each return to 0 the guide's codes may become of use anew (Fu et al. 2019,
    arXiv:1903.10145). Raises OptionError, also, at the first step, for a fit of fewer than two steps a cycle."""

    def __init__(self, cycles: int = 4, ramp: float = 0.5) -> None:
        if not (1 <= cycles < math.inf and cycles == int(cycles) and 0 < ramp <= 1):
            raise OptionError(
                f"kl_cycles needs a whole number of cycles >= 1 and 0 < ramp <= 1, got cycles={cycles}, ramp={ramp}."
            )
        self.cycles, self.ramp = int(cycles), ramp

    def __call__(self, step: Step) -> dict[str, float]:
        if step.total < 2 * self.cycles:
            raise OptionError(
                f"kl_cycles({self.cycles}) needs at least {2 * self.cycles} steps, and the fit has {step.total}: take fewer "
                "cycles, more epochs or smaller batches."
            )
        number = min(step.number, step.total - 1)
        cycle = number * self.cycles // step.total
        first, end = (-(-c * step.total // self.cycles) for c in (cycle, cycle + 1))  # rounded up
        return {"kl": min(1.0, (number - first) / (self.ramp * (end - 1 - first)))}


class lagging:
    """Lagging inference (He et al. 2019, arXiv:1901.05534): for the first `epochs` epochs only the last of every `steps`
    batches moves the parameters that only the model uses, while all move the guide; then all move all.

    It gives the weight "model", 0 or 1, by which a fit multiplies those parameters' learning rate. Their gradients are
    computed at every step, and an optimizer's moments go on: Adam moves the model by an average gradient of the inner steps,
    decay follows the rate. The paper stops when the mutual information no longer grows; here it is after `epochs`.
    """

    def __init__(self, steps: int = 10, epochs: float = 5) -> None:
        if steps < 1 or steps != int(steps) or epochs <= 0:
            raise OptionError(
                f"lagging needs a whole number of steps >= 1 and epochs > 0, got steps={steps}, epochs={epochs}."
            )
        self.steps, self.epochs = int(steps), epochs

    def __call__(self, step: Step) -> dict[str, float]:
        return {"model": float(step.epoch >= self.epochs or (step.number + 1) % self.steps == 0)}


class one_cycle:
    """Learning rate up to `max_lr` over the first `warmup` share of the fit and down to nearly 0, both by a cosine
    (Smith & Topin 2018, arXiv:1708.07120). Starts at max_lr / 25, ends at max_lr / 25e4."""

    def __init__(self, max_lr: float, warmup: float = 0.3) -> None:
        if max_lr <= 0 or not 0 < warmup < 1:
            raise OptionError(f"one_cycle needs max_lr > 0 and 0 < warmup < 1, got max_lr={max_lr}, warmup={warmup}.")
        self.max_lr, self.warmup = max_lr, warmup

    def __call__(self, step: Step) -> dict[str, float]:
        low, last = self.max_lr / 25, self.max_lr / 25e4
        if step.progress < self.warmup:
            return {"lr": _cosine(low, self.max_lr, step.progress / self.warmup)}
        return {"lr": _cosine(self.max_lr, last, (step.progress - self.warmup) / (1 - self.warmup))}


class combine:
    """Several schedules as one; where two give the same weight, the later one wins."""

    def __init__(self, *schedules: Schedule) -> None:
        self.schedules = schedules

    def __call__(self, step: Step) -> dict[str, float]:
        return {name: value for schedule in self.schedules for name, value in schedule(step).items()}


def as_schedule(schedule: Schedule | Sequence[Schedule] | None) -> Schedule:
    """None gives no weights, a sequence is combined."""
    if schedule is None:
        return combine()
    several = (schedule,) if callable(schedule) else tuple(schedule) if isinstance(schedule, Sequence) else ()
    if not several or not all(callable(s) for s in several):
        raise OptionError(f"schedule must be a function of the step or a list of them, got {schedule!r}.")
    return several[0] if len(several) == 1 else combine(*several)


def weights_at(schedule: Schedule, step: Step) -> dict[str, float]:
    """The schedule's weights at a step; OptionError for a weight that is not known, negative or not finite."""
    given = schedule(step)
    if not isinstance(given, Mapping):
        raise OptionError(f"A schedule returns a dict of weights ({', '.join(WEIGHTS)}), got {type(given).__name__}.")
    found = {name: float(value) for name, value in given.items()}
    for name, value in found.items():
        if name not in WEIGHTS:
            raise OptionError(f"A schedule gave the weight {name!r}; known: {', '.join(WEIGHTS)}.")
        if not (math.isfinite(value) and value >= 0):
            raise OptionError(
                f"A schedule gave {name}={value} at step {step.number}; it must be finite and not negative."
            )
    return found


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2

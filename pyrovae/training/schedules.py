"""Schedules: functions of the step that give the learning rate, the KL weight and other numbers of `fit(schedule=...)`.

A schedule takes a `Step` and returns a dict with any of the keys "lr" (learning rate), "kl" (weight of the KL terms), "model"
(a factor for the learning rate of the parameters that only the model uses) and "temperature" (of relaxed families). A function
of your own is a schedule, too: `schedule=lambda step: {"kl": min(1.0, step.epoch / 10)}`. It must give the same keys at every
step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from pyrovae._arguments import as_count, as_function, as_number
from pyrovae.errors import OptionError

__all__ = [
    "Step",
    "as_schedule",
    "combine",
    "cooling",
    "kl_cycles",
    "kl_warmup",
    "lagging",
    "one_cycle",
    "weights_at",
]

WEIGHTS = ("lr", "kl", "model", "temperature")


class Step(NamedTuple):
    """Where a fit is: how many steps have been done, how many there are in an epoch (on average) and in the whole fit.

    Example:
        >>> step = pv.schedules.Step(number=50, per_epoch=100, total=1000)
        >>> step.epoch
        0.5
    """

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
    """KL warm-up: the KL weight rises linearly from `start` to 1 over the first `epochs`, and stays 1.

    Args:
        epochs: length of the warm-up, above 0.
        start: the KL weight at the first step, from 0 to 1.

    Raises:
        OptionError: an argument outside its range.

    References:
        Sonderby et al. 2016, arXiv:1602.02282.

    Example:
        >>> warmup = pv.schedules.kl_warmup(10)
        >>> warmup(pv.schedules.Step(number=50, per_epoch=10, total=1000))
        {'kl': 0.5}
    """

    def __init__(self, epochs: float, start: float = 0.0) -> None:
        self.epochs, self.start = as_number("epochs", epochs, above=0), as_number("start", start, least=0, most=1)

    def __call__(self, step: Step) -> dict[str, float]:
        return {"kl": min(1.0, self.start + (1 - self.start) * step.epoch / self.epochs)}


class kl_cycles:
    """Cyclical annealing: the KL weight rises from 0 to 1 in each of `cycles` equal parts of the fit.

    It rises linearly over the first `ramp` of a cycle and is 1 for the rest of it, at its last step in any case. After each
    return to 0 the latent variables may become useful anew.

    Args:
        cycles: how often the weight rises, at least 1.
        ramp: share of a cycle in which it rises, above 0 and at most 1.

    Raises:
        OptionError: an argument outside its range; at the first step, a fit of fewer than two steps a cycle.

    References:
        Fu et al. 2019, arXiv:1903.10145.

    Example:
        >>> cycles = pv.schedules.kl_cycles(2)
        >>> [cycles(pv.schedules.Step(number, 10, 40))["kl"] for number in (0, 5, 19, 20, 39)]
        [0.0, 0.526..., 1.0, 0.0, 1.0]
    """

    def __init__(self, cycles: int = 4, ramp: float = 0.5) -> None:
        self.cycles, self.ramp = as_count("cycles", cycles), as_number("ramp", ramp, above=0, most=1)

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
    """Aggressive training of the guide: at first the model is updated only every few steps, the guide at every step.

    For the first `epochs`, only the last of every `steps` minibatches moves the parameters that only the model uses, while all
    minibatches move the guide; then all move everything. It gives the weight "model", 0 or 1, by which a fit multiplies those
    parameters' learning rate. Their gradients are computed at every step and Adam's moments go on, so that the model moves by
    an average gradient of the steps in between. The paper stops when the mutual information no longer grows; here it is after
    `epochs`.

    Args:
        steps: the model is updated once in so many steps, at least 1.
        epochs: how long this lasts, above 0.

    Raises:
        OptionError: an argument outside its range.

    References:
        He et al. 2019, arXiv:1901.05534.

    Example:
        >>> lagging = pv.schedules.lagging(steps=3, epochs=1)
        >>> [lagging(pv.schedules.Step(number, 6, 60))["model"] for number in range(8)]
        [0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    """

    def __init__(self, steps: int = 10, epochs: float = 5) -> None:
        self.steps, self.epochs = as_count("steps", steps), as_number("epochs", epochs, above=0)

    def __call__(self, step: Step) -> dict[str, float]:
        return {"model": float(step.epoch >= self.epochs or (step.number + 1) % self.steps == 0)}


class cooling:
    """The temperature of relaxed families falls from `start` to `end` over the first `epochs`, by the same factor at each step.

    It is that of all families of the pair that have one, such as `families.RelaxedOneHotCategorical`: at a high temperature
    gradients have less noise, at a low one less bias.

    Args:
        start: the temperature at the first step, above 0.
        end: the temperature from `epochs` on, above 0.
        epochs: how long it falls, above 0.

    Raises:
        OptionError: an argument that is not positive.

    References:
        Jang, Gu and Poole 2017, arXiv:1611.01144, section 3.2; they go from 1 to 0.5.

    Example:
        >>> cooling = pv.schedules.cooling(1.0, 0.25, epochs=10)
        >>> [cooling(pv.schedules.Step(number, 10, 1000))["temperature"] for number in (0, 50, 100, 500)]
        [1.0, 0.5, 0.25, 0.25]
    """

    def __init__(self, start: float = 1.0, end: float = 0.5, epochs: float = 10) -> None:
        cure = "A temperature of 0 has no gradient."
        self.start, self.end = (
            as_number(name, value, above=0, cure=cure) for name, value in (("start", start), ("end", end))
        )
        self.epochs = as_number("epochs", epochs, above=0)

    def __call__(self, step: Step) -> dict[str, float]:
        return {"temperature": self.start * (self.end / self.start) ** min(1.0, step.epoch / self.epochs)}


class one_cycle:
    """The one-cycle policy: the learning rate rises to `max_lr` in the first `warmup` share of the fit, then falls to almost 0.

    Both by a cosine, from max_lr / 25 at the first step to max_lr / 250,000 at the last.

    Args:
        max_lr: the highest learning rate, above 0.
        warmup: share of the steps in which it rises, between 0 and 1.

    Raises:
        OptionError: an argument outside its range.

    References:
        Smith & Topin 2018, arXiv:1708.07120.

    Example:
        >>> rate = pv.schedules.one_cycle(0.01, warmup=0.5)
        >>> round(rate(pv.schedules.Step(number=0, per_epoch=10, total=101))["lr"], 6)
        0.0004
        >>> round(rate(pv.schedules.Step(number=50, per_epoch=10, total=101))["lr"], 6)
        0.01
    """

    def __init__(self, max_lr: float, warmup: float = 0.3) -> None:
        self.max_lr, self.warmup = as_number("max_lr", max_lr, above=0), as_number("warmup", warmup, above=0, below=1)

    def __call__(self, step: Step) -> dict[str, float]:
        low, last = self.max_lr / 25, self.max_lr / 25e4
        if step.progress < self.warmup:
            return {"lr": _cosine(low, self.max_lr, step.progress / self.warmup)}
        return {"lr": _cosine(self.max_lr, last, (step.progress - self.warmup) / (1 - self.warmup))}


class combine:
    """Several schedules as one; where two give the same weight, the later one wins.

    Args:
        schedules: functions of the step.

    Example:
        >>> both = pv.schedules.combine(pv.schedules.one_cycle(0.01), pv.schedules.kl_warmup(10))
        >>> sorted(both(pv.schedules.Step(0, 10, 100)))
        ['kl', 'lr']
    """

    def __init__(self, *schedules: Schedule) -> None:
        self.schedules = schedules

    def __call__(self, step: Step) -> dict[str, float]:
        return {name: value for schedule in self.schedules for name, value in schedule(step).items()}


def as_schedule(schedule: Schedule | Sequence[Schedule] | None) -> Schedule:
    """One schedule of what `fit(schedule=...)` was given.

    Args:
        schedule: None, which gives no weights; a function of the step; or a sequence of them, which is combined.

    Raises:
        OptionError: anything else.

    Example:
        >>> pv.schedules.as_schedule(None)(pv.schedules.Step(0, 10, 100))
        {}
    """
    if schedule is None:
        return combine()
    several = (schedule,) if callable(schedule) else tuple(schedule) if isinstance(schedule, Sequence) else ()
    if not several or not all(callable(s) for s in several):
        raise OptionError(f"schedule must be a function of the step or a list of them, got {schedule!r}.")
    return several[0] if len(several) == 1 else combine(*several)


def weights_at(schedule: Schedule, step: Step) -> dict[str, float]:
    """The weights that a schedule gives at a step, checked.

    Args:
        schedule: a function of the step.
        step: where the fit is.

    Returns:
        The weights by name, as finite numbers of at least 0.

    Raises:
        OptionError: a weight that is not known, negative or not finite.

    Example:
        >>> pv.schedules.weights_at(lambda step: {"kl": 0.5}, pv.schedules.Step(0, 10, 100))
        {'kl': 0.5}
    """
    given = as_function("schedule", schedule, "the step")(step)
    if not isinstance(given, Mapping):
        raise OptionError(f"A schedule returns a dict of weights ({', '.join(WEIGHTS)}), got {type(given).__name__}.")
    found = {name: float(value) for name, value in given.items()}
    for name, value in found.items():
        if name not in WEIGHTS:
            raise OptionError(f"A schedule gave the weight {name!r}; known: {', '.join(WEIGHTS)}.")
        if not (math.isfinite(value) and value >= 0 and (value > 0 or name != "temperature")):
            wanted = "positive" if name == "temperature" else "not negative"
            raise OptionError(f"A schedule gave {name}={value} at step {step.number}; it must be finite and {wanted}.")
    return found


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2

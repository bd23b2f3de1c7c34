"""How long an answer may take: so many seconds, or so many rounds, whichever is reached first."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Callable
from time import monotonic

from pyrovae.errors import OptionError

UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0}
PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([hms])\s*")
LONGEST = 7 * 24 * 3600.0  # seconds
LETTERS = 40  # of a text
MOST = 100  # rounds, after which another one changes next to nothing


def seconds_of(time: float | str) -> float:
    """A time in seconds: a number of them, or a text such as "90", "5m" or "1h30m".

    Raises:
        OptionError: It is no time, or not above 0, or longer than a week.

    Example:
        >>> from pyrovae.app.budget import seconds_of
        >>> seconds_of("1h30m"), seconds_of("2.5m"), seconds_of(20)
        (5400.0, 150.0, 20.0)
    """
    seconds = math.nan
    if isinstance(time, str) and len(time) <= LETTERS:
        text = time.strip().lower()
        units = [unit for _, unit in PART.findall(text)]
        try:
            seconds = float(text)
        except ValueError:
            # each unit once, the longest first, and nothing beside them
            if units and not PART.sub("", text) and units == sorted(set(units), key="hms".index):
                seconds = math.fsum(float(number) * UNITS[unit] for number, unit in PART.findall(text))
    elif isinstance(time, numbers.Real) and not isinstance(time, bool):
        seconds = float(time)
    if not 0 < seconds <= LONGEST:
        shown = f"{time!r:.{LETTERS}}"
        raise OptionError(
            f"--time is a number of seconds, or such as 5m or 1h30m, above 0 and at most a week, got {shown}."
        )
    return seconds


class Budget:
    """What may be spent on an answer.

    Args:
        time: How long the answer may take, see `seconds_of`; None for any time.
        rounds: How many rounds it may have, those of earlier calls among them; None for any number.
        began: When it began, by the clock; None for now.
        clock: Seconds since any moment.

    Raises:
        OptionError: One of the two cannot be.
    """

    def __init__(
        self,
        time: float | str | None = None,
        rounds: int | None = None,
        began: float | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.seconds = None if time is None else seconds_of(time)
        if rounds is not None and (not isinstance(rounds, numbers.Integral) or not 1 <= rounds <= MOST):
            raise OptionError(f"--rounds must be a whole number from 1 to {MOST}, got {rounds!r}.")
        self.rounds = MOST if rounds is None else int(rounds)
        self.open = time is not None or rounds is not None  # whether more than a first answer is asked for
        self.clock = clock
        self.began = clock() if began is None else began

    def spent(self) -> float:
        """The seconds since the beginning."""
        return self.clock() - self.began

    def allows(self, done: int, takes: float) -> bool:
        """Whether there may be another round after so many, which takes so many seconds, about."""
        return self.open and done < self.rounds and (self.seconds is None or self.spent() + takes <= self.seconds)

"""What a question about a fit is answered with: a finding, and how many of them are judged together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pyrovae._lazily import Lazily

stats = Lazily("scipy.stats")

OK, LOOK, BAD, NONE = "ok", "look", "bad", "none"
LEVEL = 0.01  # of all tests of a report together


@dataclass(frozen=True)
class Finding:
    """The answer to one question about a fit.

    Attributes:
        name: The question, such as "draws of the guide".
        part: The part of the report that it belongs to: "bounds", "predictions", "latent variables" or "guide".
        says: What was found, in a sentence with its numbers.
        good: What it says of a good fit.
        verdict: "ok"; "look" for what may be as it should be, and may not; "bad"; or "none" where the question could not be
            asked of this pair.
        advice: What to try where the verdict is not "ok".
        values: The numbers, by name.
        p_value: Of the test that the finding rests on, after a correction for the numbers within it; None if it rests on none.
        adjusted: The p-value after Holm's correction for all tests of the report.
        curves: What a picture of the finding shows, lists of numbers by name.

    Example:
        >>> found = pv.Finding("active units", "latent variables", "2 of 2 units", "all of them", verdict="ok")
        >>> print(found.name, found.verdict)
        active units ok
    """

    name: str
    part: str
    says: str
    good: str
    verdict: str = OK
    advice: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    p_value: float | None = None
    adjusted: float | None = None
    curves: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The finding as JSON takes it: numbers that are not finite are None."""
        return {
            "name": self.name,
            "part": self.part,
            "verdict": self.verdict,
            "says": self.says,
            "good": self.good,
            "advice": self.advice,
            "values": plain_numbers(dict(self.values)),
            "p_value": plain_numbers(self.p_value),
            "adjusted_p_value": plain_numbers(self.adjusted),
            "curves": plain_numbers(dict(self.curves)),
        }


def grade(effect: float, look: float, bad: float) -> str:
    """The verdict on the size of an effect, from the least sizes that are "look" and "bad". NaN is "none"."""
    if math.isnan(effect):
        return NONE
    return BAD if effect >= bad else LOOK if effect >= look else OK


def judged(findings: Sequence[Finding], level: float = LEVEL) -> list[Finding]:
    """Keep the verdict of a finding that rests on a test only where the test is significant among all tests of the report.

    Holm's procedure: the smallest of m p-values is multiplied by m, the next by m - 1, and so on, and none is made smaller than
    the one before it. If the model were exactly right, any of the tests would change a verdict with probability `level` at
    most, however the tests depend on one another. What is significant, and too small to matter, stays "ok".

    References:
        Holm 1979, *A simple sequentially rejective multiple test procedure*, Scandinavian Journal of Statistics 6.
    """
    tested = sorted(
        (i for i, f in enumerate(findings) if f.p_value is not None), key=lambda i: findings[i].p_value or 0.0
    )
    made, largest = list(findings), 0.0
    for rank, i in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * float(findings[i].p_value or 0.0)))
        significant = largest < level
        made[i] = replace(findings[i], adjusted=largest, verdict=findings[i].verdict if significant else OK)
    return [f if f.verdict in (LOOK, BAD) else replace(f, advice="") for f in made]


def normal_p(z: float) -> float:
    """The two-sided p-value of a standard normal; 1 for NaN."""
    return 1.0 if math.isnan(z) else math.erfc(abs(z) / math.sqrt(2))


def plain_numbers(value: Any) -> Any:
    """The value with numbers that are not finite replaced by None, as JSON has no others."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: plain_numbers(one) for name, one in value.items()}
    return [plain_numbers(one) for one in value] if isinstance(value, (list, tuple)) else value

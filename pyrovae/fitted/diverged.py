"""What is said of a fit that diverged with numbers that stayed finite."""

from __future__ import annotations

from pyrovae.fitted.fitted import Fit

CURE = "lower the learning rate, set clip_norm=10, or standardise columns that are far from 0 ± 1, and fit again"


def diverged(fitted: Fit) -> str:
    """That a fit diverged, and how far, as a clause; "" if it did not. `training.course` finds it out when a fit ends."""
    known = fitted.settings.get("diverged")
    if not known:
        return ""
    before, end = known["highest"], known["end"]
    when = "before the first step" if known["highest"] == known["start"] else "in an earlier epoch"
    return f"the fit diverged: its ELBO was {before:.6g} {when} and is {end:.6g} nats per row with the weights that were kept"


def cure_of_few_draws(fitted: Fit, cure: str) -> str:
    """What to do where few draws count: `cure`, unless the fit diverged."""
    said = diverged(fitted)
    return f"{said}. More draws do not help: {CURE}" if said else cure

"""What a user was told, in tests that count warnings."""

import warnings
from collections.abc import Iterable


def told(caught: Iterable[warnings.WarningMessage]) -> list[str]:
    """The messages of warnings that are addressed to users.

    Code that is imported for the first time while warnings are recorded may tell of its own deprecations, which Python hides
    from users: torch 2.11 has fourteen for whoever compiles first.
    """
    return [
        str(w.message) for w in caught if not issubclass(w.category, (DeprecationWarning, PendingDeprecationWarning))
    ]

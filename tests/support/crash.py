"""A process that dies at one of its writes: from then on it does nothing to the disk."""

import os
from typing import Any

import pytest


class Crash(BaseException):
    """Not an Exception, so that nothing handles it."""


def crashing(patch: pytest.MonkeyPatch, number: int) -> None:
    """Die at the given operation, from 1 on, among those that bring content and names to the disk."""
    left = [number]

    def dying(operation: Any) -> Any:
        def done(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] <= 0:
                raise Crash
            return operation(*args, **kwargs)

        return done

    for name in ("replace", "fsync", "unlink", "mkdir", "rmdir"):
        patch.setattr(os, name, dying(getattr(os, name)))

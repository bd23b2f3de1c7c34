"""The one door to zuko, opened at the first flow: importing zuko switches off torch's validation for the whole process."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from torch.distributions import Distribution

_CHANGED = ("_validate_args", "arg_constraints")  # what zuko sets on torch's class


def zuko() -> Any:
    """The module zuko; torch's own settings are afterwards as they were before."""
    if "zuko" in sys.modules:
        return sys.modules["zuko"]
    before = {name: vars(Distribution)[name] for name in _CHANGED}
    try:
        return importlib.import_module("zuko")
    finally:
        for name, value in before.items():
            setattr(Distribution, name, value)

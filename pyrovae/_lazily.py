"""Libraries that take a second to import and that few calls need: imported when first used.

Module objects that load themselves (importlib's LazyLoader) stand in `sys.modules`, where torch's registration of operators
touches, and so imports, each of them. What is held here is seen by nobody else.
"""

from __future__ import annotations

import importlib
from typing import Any


class Lazily:
    """A module that is imported at its first use: `sklearn = Lazily("sklearn.datasets")`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)

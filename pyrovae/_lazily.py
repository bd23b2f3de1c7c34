"""What takes a second to import and few calls need: imported when first used.

Module objects that load themselves (importlib's LazyLoader) stand in `sys.modules`, where torch's registration of operators
touches, and so imports, each of them. What is held here is seen by nobody else.
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from pyrovae._near import did_you_mean, similar_names


def imported(name: str) -> ModuleType:
    """A module, imported without a search for garbage.

    torch, Pyro and scikit-learn make 400,000 objects, of which nearly all stay. To look among them for garbage while they are
    imported takes a fifth of the time.
    """
    if name in sys.modules or not gc.isenabled():
        return importlib.import_module(name)
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        gc.enable()


class Lazily:
    """A module that is imported at its first use: `sklearn = Lazily("sklearn.datasets")`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):  # what tools look for in any object; it may not even be installed
            raise AttributeError(attribute)
        return getattr(imported(self._name), attribute)


# What somebody who comes from another library may look for, and is called otherwise here.
CALLED_HERE = {
    "compare": ("log_likelihood", "stacking_weights"),
    "evaluate": ("importance", "criticise"),
    "loo": ("log_likelihood", "to_arviz"),
    "posterior_predictive": ("reconstruct", "to_arviz"),
    "prior_predictive": ("simulate", "from_pyro_svi"),
    "sample": ("generate", "posterior"),
    "standardize": ("data.Standardize",),
    "train": ("fit",),
    "waic": ("log_likelihood", "to_arviz"),
}


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package that imports its names, and its submodules, when they are first asked for.

    Args:
        package: the package's name.
        homes: by module, the names that come from there, separated by blanks. A name may be that of a submodule.
    """
    home_of = {name: module for module, names in homes.items() for name in names.split()}

    def find(name: str) -> Any:
        if name.startswith("__") and name not in home_of:  # what tools look for in any object, and no module's name
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = home_of.get(name, package)
        found = vars(imported(home)).get(name)
        if found is None:
            try:
                found = imported(f"{home}.{name}")
            except ModuleNotFoundError as error:
                if error.name != f"{home}.{name}":
                    raise
                known = CALLED_HERE.get(name, ()) or similar_names(name, list(home_of))
                near = "" if name.startswith("_") else did_you_mean(known)
                raise AttributeError(f"module {package!r} has no attribute {name!r}{near}") from None
        setattr(sys.modules[package], name, found)
        return found

    return find

"""Specifications: an object as JSON, from which it can be built again without running any pickled code.

The convention is scikit-learn's: a class keeps its constructor's arguments as attributes of the same name. So a part is
{"class": name, "args": {...}}, nested. Classes are written under their public names (`pyrovae.families.Bernoulli`), so that
moving a file breaks no saved run; the names in runs from before that are read through one table, `RENAMED`. Only this
package's own classes, and distributions and activation classes of torch and Pyro, are built from a specification; a class of
the user's own is recorded by its import path as {"external": ...}.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent

from pyrovae.errors import CheckpointError

BUILT_HERE = ("pyrovae.",)


# Where the public names are, in the order in which they are looked up.
PUBLIC = (
    "pyrovae",
    *(f"pyrovae.{name}" for name in ("families", "priors", "nets", "distributions")),
    *(f"pyrovae.{name}" for name in ("transforms", "schedules", "kl", "penalties")),
)


# What a file may have built: parts of models, and the hooks of a fit. Not whatever a module happens to import.
ROOMS = ("nets", "families", "priors", "conditionals", "distributions", "models")


HOOKS = ("batching.transforms", "training.schedules", "objectives.kl", "objectives.penalties")
PARTS = tuple(f"pyrovae.{room}." for room in (*ROOMS, *HOOKS))


# Where the classes are to be found now whose modules runs of version 0.1 name.
OLD_MODULES = {
    "pyrovae": """conditionals infer.objectives infer.iwelbo models.vae models.cvae models.regression models.ssvae
        models.ssregression models.stacked models.adgm models.gmvae models.vade models.jointvae models.hierarchical
        models.ladder models.nvae""",
    "pyrovae.families": """families.base families.columns families.continuous families.counts families.elementwise
        families.images families.multivariate families.ordinal families.text""",
    "pyrovae.priors": "priors.base priors.flexible priors.simple",
    "pyrovae.nets": "nets.cells nets.codes nets.conv nets.dropout nets.flows nets.mlp nets.residual",
    "pyrovae.distributions": """distributions.bernoulli distributions.categorical distributions.columns
        distributions.combine distributions.continuous distributions.discretized distributions.multinomial
        distributions.normals distributions.pushforward distributions.sphere distributions.student""",
    "pyrovae.transforms": "infer.transforms",
    "pyrovae.schedules": "infer.schedules",
    "pyrovae.kl": "infer.kl",
    "pyrovae.penalties": "infer.penalties",
}


RENAMED = {f"pyrovae.{module}": home for home, modules in OLD_MODULES.items() for module in modules.split()}
ACTIVATIONS = ("torch.nn.modules.",)
IDENTITY = (
    f"{nn.Identity.__module__}.{nn.Identity.__qualname__}"  # a condition that is its own code; takes any arguments
)
DISTRIBUTIONS = ("pyro.distributions.", "torch.distributions.")


def to_spec(value: Any) -> Any:
    """The JSON form of a value. A module met twice is written once and referred to by its path the second time."""
    return _write(value, "", {})


def from_spec(spec: Any) -> Any:
    """Build a value from `to_spec`'s JSON. CheckpointError names what only its author can build."""
    return _read(spec, "", {})


def externals(spec: Any) -> list[str]:
    """Import paths of the parts that `from_spec` cannot build."""
    if isinstance(spec, dict):
        if "external" in spec:
            return [spec["external"]]
        return [path for value in spec.values() for path in externals(value)]
    return [path for value in spec for path in externals(value)] if isinstance(spec, list) else []


def renamed(spec: Any) -> Any:
    """A specification with the names that its classes have now: two runs of one fit, written by two versions, are equal."""
    if isinstance(spec, dict):
        return {
            k: _now(v) if k in ("class", "external") and isinstance(v, str) else renamed(v) for k, v in spec.items()
        }
    return [renamed(value) for value in spec] if isinstance(spec, list) else spec


def _now(name: str) -> str:
    module, _, qualname = name.rpartition(".")
    moved = f"{RENAMED.get(module, module)}.{qualname}"
    return moved if module in RENAMED and _reached(moved) is not None else name


def _reached(name: str) -> Any:
    """What a dotted name stands for, None where there is no such thing."""
    top, *rest = name.split(".")
    found: Any = importlib.import_module(top)
    for part in rest:
        found = getattr(found, part, None)
    return found


def public_name(cls: Any) -> str:
    """The name under which users know a class of pyrovae; of other objects, and of private classes, the module's path."""
    name = _path(cls)
    if name.startswith(BUILT_HERE):
        for home in PUBLIC:
            if _reached(f"{home}.{cls.__qualname__}") is cls:
                return f"{home}.{cls.__qualname__}"
    return name


def _path(cls: Any) -> str:
    return f"{getattr(cls, '__module__', '?')}.{getattr(cls, '__qualname__', type(cls).__qualname__)}"


def _write(value: Any, path: str, seen: dict[int, str]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list, nn.ModuleList)):
        return {"tuple": [_write(v, f"{path}.{i}", seen) for i, v in enumerate(value)]}
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {"dict": {k: _write(v, f"{path}.{k}", seen) for k, v in value.items()}}
    if isinstance(value, type):
        name = _path(value)
        return {"type": name} if name.startswith(ACTIVATIONS) else {"external": name}
    if isinstance(value, nn.Parameter):  # its values come from the weights
        return {"parameter": list(value.shape), "dtype": str(value.dtype)[6:]}
    if isinstance(value, Tensor):
        return {"tensor": value.detach().cpu().tolist(), "dtype": str(value.dtype)[6:]}
    if isinstance(value, Distribution):
        return _write_distribution(value, path, seen)
    name = public_name(type(value))
    if name == IDENTITY:
        return {"class": name, "args": {}}
    if not name.startswith(BUILT_HERE) or "<locals>" in name:
        return {"external": _path(value) if inspect.isroutine(value) else name}
    if id(value) in seen:
        return {"same_as": seen[id(value)]}
    seen[id(value)] = path
    args: dict[str, Any] = {}
    for parameter in inspect.signature(type(value).__init__).parameters.values():
        if parameter.name == "self":
            continue
        if not hasattr(value, parameter.name):
            return {"external": name}
        args[parameter.name] = _write(getattr(value, parameter.name), f"{path}.{parameter.name}", seen)
    return {"class": name, "args": args}


def _write_distribution(value: Any, path: str, seen: dict[int, str]) -> Any:
    name = _path(type(value))
    if isinstance(value, Independent):
        args = {
            "base_distribution": _write(value.base_dist, f"{path}.base", seen),
            "reinterpreted_batch_ndims": value.reinterpreted_batch_ndims,
        }
        return {"class": name, "args": args}
    given = [a for a in value.arg_constraints if a in value.__dict__]
    # Of parameters that say the same thing, the others were computed on demand and cached.
    for same in (("logits", "probs"), ("scale_tril", "covariance_matrix", "precision_matrix")):
        present = [a for a in same if a in given]
        original = [a for a in present if getattr(value, "_param", None) is value.__dict__[a]] or present
        given = [a for a in given if a not in present or a == original[0]]
    wanted = inspect.signature(type(value).__init__).parameters
    if not name.startswith(DISTRIBUTIONS) or not given or any(a not in wanted for a in given):
        return {"external": name}
    return {"class": name, "args": {a: _write(getattr(value, a), f"{path}.{a}", seen) for a in given}}


def _read(spec: Any, path: str, built: dict[str, Any]) -> Any:
    if not isinstance(spec, dict):
        return spec
    if "tuple" in spec:
        return tuple(_read(v, f"{path}.{i}", built) for i, v in enumerate(spec["tuple"]))
    if "dict" in spec:
        return {k: _read(v, f"{path}.{k}", built) for k, v in spec["dict"].items()}
    if "tensor" in spec:
        return torch.tensor(spec["tensor"], dtype=getattr(torch, spec["dtype"]))
    if "parameter" in spec:
        return nn.Parameter(torch.zeros(spec["parameter"], dtype=getattr(torch, spec["dtype"])))
    if "same_as" in spec:
        return built[spec["same_as"]]
    if "type" in spec:
        return _class(spec["type"], ACTIVATIONS)
    if "external" in spec:
        raise CheckpointError(
            f"This run's model has a part of your own, {spec['external']}: build the pair and pass it, "
            "pv.load(folder, pair=...)."
        )
    args = {name: _read(v, f"{path}.{name}", built) for name, v in spec["args"].items()}
    cls = _class(spec["class"], (*PARTS, *DISTRIBUTIONS, IDENTITY))
    spread = next(
        (p.name for p in inspect.signature(cls.__init__).parameters.values() if p.kind is p.VAR_POSITIONAL), ""
    )
    made = cls(*args.pop(spread, ()), **args)
    built[path] = made
    return made


def _class(name: str, allowed: tuple[str, ...]) -> Any:
    name = _now(name)
    if not name.startswith(allowed) and name.rpartition(".")[0] not in PUBLIC:
        raise CheckpointError(
            f"{name!r} is not a class that a run folder may name: the run.json was not written by pyrovae."
        )
    module, _, qualname = name.rpartition(".")
    try:
        found = _reached(name) if name.startswith(BUILT_HERE) else getattr(importlib.import_module(module), qualname)
        if found is None:
            raise AttributeError(f"no {qualname!r} in {module!r}")
    except (ImportError, AttributeError) as error:
        raise CheckpointError(
            f"The run names {name!r}, which this version of pyrovae does not have: {error}."
        ) from error
    if not isinstance(found, type) or not _path(found).startswith(allowed):
        raise CheckpointError(
            f"{name!r} is not a class that a run folder may name: the run.json was not written by pyrovae."
        )
    return found

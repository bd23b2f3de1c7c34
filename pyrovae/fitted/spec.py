"""Specifications: an object as JSON, from which it can be built again without running pickled code.

This rests on scikit-learn's convention that a class keeps its constructor's arguments as attributes of the same names. An
object becomes `{"class": name, "args": {...}}`, and so do its arguments. Classes are written under their public names, such as
`pyrovae.families.Bernoulli`, so that runs stay readable when a module moves. Names in runs of version 0.1, which were those of
modules, are looked up in one table, `RENAMED`. Only classes of pyrovae, and distributions and activations of torch and Pyro,
are built from a specification. A class of the user's own is recorded by its import path, as `{"external": ...}`, and is
imported only for one who trusts it.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent

from pyrovae.errors import CheckpointError

BUILT_HERE = ("pyrovae.",)

# The modules that have public names, in the order in which they are searched.
PUBLIC = (
    "pyrovae",
    *(f"pyrovae.{name}" for name in ("families", "priors", "nets", "distributions", "weights", "guides")),
    *(f"pyrovae.{name}" for name in ("transforms", "schedules", "baselines", "kl", "penalties")),
)

# The modules that define what a file may build: parts of models, and hooks of a fit. Names that a module imports do not count.
MODELS = ("nets", "families", "priors", "conditionals", "distributions", "models", "weights", "guides")
HOOKS = (
    *("batching.transforms", "training.schedules", "objectives.baselines", "objectives.penalties"),
    *("objectives.kl", "objectives.kl_functions", "objectives.disentangling"),
)
PARTS = tuple(f"pyrovae.{module}." for module in (*MODELS, *HOOKS))

# Where to find the classes today whose modules were written in runs of version 0.1.
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
    f"{nn.Identity.__module__}.{nn.Identity.__qualname__}"  # its constructor takes any arguments, and they mean nothing
)
DISTRIBUTIONS = ("pyro.distributions.", "torch.distributions.")


def to_spec(value: Any, *, own: bool = False) -> Any:
    """A value as JSON. An object that occurs twice is written once, and the second time as a reference.

    Args:
        own: whether the arguments of the user's own classes are written, too, where they are attributes of the same names.
    """
    return _write(value, "", {}, own)


def from_spec(spec: Any, *, trust: bool = False) -> Any:
    """Build a value from what `to_spec` returned. CheckpointError names a part that is not built from a specification.

    Args:
        trust: whether the user's own classes and functions are imported, which runs their code.
    """
    return _read(spec, "", {}, trust)


def externals(spec: Any) -> list[str]:
    """The import paths of the parts that `from_spec` does not build."""
    if isinstance(spec, dict):
        if "external" in spec:
            return [spec["external"]]
        return [path for value in spec.values() for path in externals(value)]
    return [path for value in spec for path in externals(value)] if isinstance(spec, list) else []


def renamed(spec: Any) -> Any:
    """A specification with today's names of its classes, so that those written by two versions can be compared."""
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
    """The object with this dotted name, or None if there is none."""
    top, *rest = name.split(".")
    found: Any = importlib.import_module(top)
    for part in rest:
        found = getattr(found, part, None)
    return found


def public_name(cls: Any) -> str:
    """The public name of a class of pyrovae. For other objects and private classes, the name in the module that defines it."""
    name = _path(cls)
    if name.startswith(BUILT_HERE):
        for home in PUBLIC:
            if _reached(f"{home}.{cls.__qualname__}") is cls:
                return f"{home}.{cls.__qualname__}"
    return name


def _path(cls: Any) -> str:
    return f"{getattr(cls, '__module__', '?')}.{getattr(cls, '__qualname__', type(cls).__qualname__)}"


def _write(value: Any, path: str, seen: dict[int, str], own: bool) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list, nn.ModuleList)):
        return {"tuple": [_write(v, f"{path}.{i}", seen, own) for i, v in enumerate(value)]}
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {"dict": {k: _write(v, f"{path}.{k}", seen, own) for k, v in value.items()}}
    if isinstance(value, type):
        name = _path(value)
        return {"type": name} if name.startswith(ACTIVATIONS) else {"external": name}
    if isinstance(value, nn.Parameter):  # its values are among the weights
        return {"parameter": list(value.shape), "dtype": str(value.dtype)[6:]}
    if isinstance(value, Tensor):
        return {"tensor": value.detach().cpu().tolist(), "dtype": str(value.dtype)[6:]}
    if isinstance(value, Distribution):
        return _write_distribution(value, path, seen, own)
    name = public_name(type(value))
    if name == IDENTITY:
        return {"class": name, "args": {}}
    kind = "class" if name.startswith(BUILT_HERE) and "<locals>" not in name else "external"
    if kind == "external" and (not own or inspect.isroutine(value)):
        return {"external": _path(value) if inspect.isroutine(value) else name}
    if id(value) in seen:
        return {"same_as": seen[id(value)]}
    arguments = _arguments(value)
    if arguments is None or (kind == "external" and any(isinstance(a, Tensor) for a in arguments.values())):
        return {"external": name, **({"args": None} if own else {})}  # None: an object that cannot be built again
    seen[id(value)] = path
    return {kind: name, "args": {n: _write(a, f"{path}.{n}", seen, own) for n, a in arguments.items()}}


def _arguments(value: Any) -> dict[str, Any] | None:
    """The arguments of an object's constructor, by its attributes of the same names; None where one is missing."""
    try:
        names = [name for name in inspect.signature(type(value).__init__).parameters if name != "self"]
        return {name: getattr(value, name) for name in names}
    except Exception:  # whatever an attribute of the user's own class raises
        return None


def _write_distribution(value: Any, path: str, seen: dict[int, str], own: bool) -> Any:
    name = _path(type(value))
    if isinstance(value, Independent):
        args = {
            "base_distribution": _write(value.base_dist, f"{path}.base", seen, own),
            "reinterpreted_batch_ndims": value.reinterpreted_batch_ndims,
        }
        return {"class": name, "args": args}
    given = [a for a in value.arg_constraints if a in value.__dict__]
    # Where several parameters describe the same distribution, one was given, and the others were computed from it and cached.
    for same in (("logits", "probs"), ("scale_tril", "covariance_matrix", "precision_matrix")):
        present = [a for a in same if a in given]
        original = [a for a in present if getattr(value, "_param", None) is value.__dict__[a]] or present
        given = [a for a in given if a not in present or a == original[0]]
    wanted = inspect.signature(type(value).__init__).parameters
    if not name.startswith(DISTRIBUTIONS) or not given or any(a not in wanted for a in given):
        return {"external": name}
    return {"class": name, "args": {a: _write(getattr(value, a), f"{path}.{a}", seen, own) for a in given}}


def _read(spec: Any, path: str, built: dict[str, Any], trust: bool) -> Any:
    if not isinstance(spec, dict):
        return spec
    if "tuple" in spec:
        return tuple(_read(v, f"{path}.{i}", built, trust) for i, v in enumerate(spec["tuple"]))
    if "dict" in spec:
        return {k: _read(v, f"{path}.{k}", built, trust) for k, v in spec["dict"].items()}
    if "tensor" in spec:
        return torch.tensor(spec["tensor"], dtype=getattr(torch, spec["dtype"]))
    if "parameter" in spec:
        return nn.Parameter(torch.zeros(spec["parameter"], dtype=getattr(torch, spec["dtype"])))
    if "same_as" in spec:
        return built[spec["same_as"]]
    if "type" in spec:
        return _class(spec["type"], ACTIVATIONS)
    if "external" in spec:
        if not trust:
            raise CheckpointError(
                f"This run's model has a part of your own, {spec['external']}: build the pair and pass it with "
                "pv.load(folder, pair=...), or import that code with trust=True, if you trust it and it can be imported."
            )
        built[path] = _import(spec, path, built)
        return built[path]
    args = {name: _read(v, f"{path}.{name}", built, trust) for name, v in spec["args"].items()}
    cls = _class(spec["class"], (*PARTS, *DISTRIBUTIONS, IDENTITY))
    spread = next(
        (p.name for p in inspect.signature(cls.__init__).parameters.values() if p.kind is p.VAR_POSITIONAL), ""
    )
    made = cls(*args.pop(spread, ()), **args)
    built[path] = made
    return made


def _import(spec: Any, path: str, built: dict[str, Any]) -> Any:
    """A class or function of the user's own, or an object of such a class, whose arguments are in the specification."""
    try:
        found = pkgutil.resolve_name(spec["external"])
        if "args" not in spec:
            return found
        if spec["args"] is None:
            raise TypeError("its arguments are not among its attributes")
        return found(**{name: _read(v, f"{path}.{name}", built, True) for name, v in spec["args"].items()})
    except Exception as error:  # whatever that code raises
        raise CheckpointError(
            f"{spec['external']} cannot be imported and built again ({error!r}): build the pair and pass it with "
            "pv.load(folder, pair=...)."
        ) from error


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
            f"The run contains {name!r}, which this version of pyrovae does not have: {error}."
        ) from error
    kind = Distribution if name.startswith(DISTRIBUTIONS) else nn.Module if name.startswith(ACTIVATIONS) else object
    if not isinstance(found, type) or not issubclass(found, kind) or not _path(found).startswith(allowed):
        raise CheckpointError(
            f"{name!r} is not a class that a run folder may name: the run.json was not written by pyrovae."
        )
    return found

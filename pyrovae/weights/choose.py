"""Which parameters of a pair are meant: by default those that its model reads and its guide does not."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from pyro.nn import PyroModule
from torch import nn

from pyrovae.errors import OptionError, counted
from pyrovae.pair.parameters import every_module
from pyrovae.pair.program import PairLike
from pyrovae.pair.reach import UNTOLD, modules_in, unwrapped

Names = str | Sequence[str] | None
# A module, and the name under which it keeps a parameter.
Place = tuple[nn.Module, str]


@dataclass(frozen=True)
class Chosen:
    """A parameter of a pair by the places where modules keep it: a shared one has several."""

    places: tuple[Place, ...]

    @property
    def parameter(self) -> nn.Parameter:
        module, name = self.places[0]
        found: Any = module._parameters[name]
        return found


def choose(pair: PairLike, expose: Names, hide: Names) -> dict[str, Chosen]:
    """The chosen parameters by name, in the order in which the pair's modules have them.

    A name is that of a parameter, `likelihood.net.rest.1.weight`, of a module, which means all of its parameters,
    `likelihood`, or a pattern, `*.bias`. Parameters that are frozen (`requires_grad=False`) are never chosen.

    Args:
        pair: Model and guide.
        expose: Names of what is chosen; None chooses the parameters that the model reads and the guide does not.
        hide: Names of what is left out of that.

    Raises:
        OptionError: A name fits no parameter, or nothing is chosen, or a chosen parameter cannot be exchanged.
    """
    for side in ("model", "guide"):
        if not callable(getattr(pair, side, None)):
            raise OptionError(
                f"A pair has a callable `model` and a callable `guide`, and {type(pair).__name__} has not."
            )
    expose, hide = _listed_names(expose, "expose"), _listed_names(hide, "hide")
    places = _places(pair)
    named = {name: parameter for name, parameter in _named(pair) if parameter.requires_grad}
    if expose is None:
        of_guide = read_by(pair.guide)
        of_model = read_by(pair.model) - of_guide
        found = {name: parameter for name, parameter in named.items() if id(parameter) in of_model}
    else:
        found = _fitting(named, expose, "expose")
    hidden = {} if hide is None else _fitting(named, hide, "hide")
    found = {name: parameter for name, parameter in found.items() if name not in hidden}
    if not found:
        raise OptionError(
            "No parameter is chosen: the modules of the pair have none that the model reads and the guide does not. Name some "
            f"by expose=..., such as expose='likelihood'; there are {_listed(named)}."
        )
    for name, parameter in found.items():
        if why := not_exchangeable(places[id(parameter)]):
            raise OptionError(f"Parameter {name!r} cannot be exchanged ({why}): leave it out, hide={name!r}.")
    return {name: Chosen(tuple(places[id(parameter)])) for name, parameter in found.items()}


def not_exchangeable(places: Iterable[Place]) -> str:
    """Why a module would not take another value for a parameter; empty if it does."""
    modules = [module for module, _ in places]
    if any(isinstance(module, nn.RNNBase) for module in modules):
        return "nn.RNNBase keeps a list of its weights"
    if any(isinstance(module, PyroModule) for module in modules):
        return "Pyro stores those of a PyroModule, which takes pyro.nn.PyroSample in the place of a parameter"
    return ""


def every_parameter(pair: PairLike) -> dict[str, Chosen]:
    """All parameters of the modules that a pair runs, frozen ones included."""
    places = _places(pair)
    return {name: Chosen(tuple(places[id(parameter)])) for name, parameter in _named(pair)}


def _named(pair: PairLike) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of all modules that a pair runs, each once."""
    seen: set[int] = set()
    for prefix, module in every_module(pair).items():
        for name, parameter in module.named_parameters():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield prefix + name, parameter


def _places(pair: PairLike) -> dict[int, list[Place]]:
    """Where the modules of a pair keep each parameter, by its identity."""
    found: dict[int, list[Place]] = {}
    seen: set[int] = set()
    for root in every_module(pair).values():
        for module in root.modules():
            if id(module) in seen:
                continue
            seen.add(id(module))
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    found.setdefault(id(parameter), []).append((module, name))
    return found


def _listed_names(names: Any, option: str) -> list[str] | None:
    listed = [names] if isinstance(names, str) else list(names) if isinstance(names, Iterable) else names
    if listed is not None and not (isinstance(listed, list) and all(isinstance(name, str) for name in listed)):
        raise OptionError(f"{option} must be a name of a parameter or module, or a list of names, got {names!r}.")
    return listed


def _fitting(named: Mapping[str, nn.Parameter], wanted: Iterable[str], option: str) -> dict[str, nn.Parameter]:
    found: set[str] = set()
    for one in wanted:
        fits = {name for name in named if name == one or name.startswith(f"{one}.") or fnmatchcase(name, one)}
        if not fits:
            raise OptionError(f"{option}={one!r} is the name of no trainable parameter or module: {_listed(named)}.")
        found |= fits
    return {name: parameter for name, parameter in named.items() if name in found}


def _listed(named: Iterable[str]) -> str:
    names = list(named)
    return (
        ", ".join(names[:8]) + (f" and {counted(len(names) - 8, 'other')}" if len(names) > 8 else "")
        if names
        else "none"
    )


def read_by(function: Any) -> set[int]:
    """The identities of the parameters that a side of a pair may read, by the names in its code.

    Of a module whose method it is, these are the parameters of the attributes that this method, and the methods that it
    calls, name.
    """
    function = unwrapped(function)
    if isinstance(function, nn.Module):
        return {id(p) for p in function.parameters()}
    owner = getattr(function, "__self__", None)
    plain = getattr(function, "__func__", function)
    found = {id(p) for module in modules_in(function=plain).values() for p in module.parameters()}
    if isinstance(owner, nn.Module):
        names = _names_in(plain, type(owner))
        for name, part in [*owner._modules.items(), *owner._parameters.items()]:
            if part is not None and (name in names or names & UNTOLD):
                found |= {id(part)} if isinstance(part, nn.Parameter) else {id(p) for p in part.parameters()}
    return found


def _names_in(function: Any, cls: type) -> set[str]:
    """All names that a method reads, and that the methods and properties read that these names mean in its class."""
    found: set[str] = set()
    waiting = [code for code in [getattr(function, "__code__", None)] if code is not None]
    while waiting:
        code = waiting.pop()
        waiting += [const for const in code.co_consts if isinstance(const, types.CodeType)]
        new = set(code.co_names) - found
        found |= new
        for name in new:
            for base in cls.__mro__:
                if base is nn.Module:
                    break
                part = vars(base).get(name)
                for inner in (part, *(getattr(part, slot, None) for slot in ("fget", "func", "__func__"))):
                    if isinstance(inner, types.FunctionType):
                        waiting.append(inner.__code__)
    return found

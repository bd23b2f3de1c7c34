"""What a program can reach: attributes, containers, closures, defaults, and the globals that its code names."""

from __future__ import annotations

import dis
import functools
import random
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, Protocol

import numpy as np
import pyro.infer
import torch
from pyro.nn import PyroModule
from pyro.optim import PyroOptim
from pyro.poutine import Trace
from pyro.poutine.messenger import _context_wrap
from torch import Tensor, nn

MOST_ENTRIES = 4096  # plain values, arrays and tensors; where these are passed over, other objects

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size, np.generic)
GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
SKIPPED = (Trace, types.ModuleType, torch.optim.Optimizer, PyroOptim, pyro.infer.SVI)
LIBRARY_NAMES = ("torch", "pyro", "numpy", "pyrovae", "vector_quantize_pytorch")
PLAIN_LIBRARIES = ("builtins", "numpy", "weakref", "collections", "threading")
HIDDEN = (
    *("_parameters", "_buffers", "_modules", "_pyro"),
    *("_backward", "_forward", "_state_dict", "_load_state", "_non_"),
)
# Classes that add nothing to what code reads of an object.
BARE = (object, nn.Module, PyroModule, Generic, Protocol)
# Names that all programs read, and names by which code reads what its own names do not tell.
ALWAYS = {"model", "guide", "forward"}
# Methods that no program runs.
OUTSIDE = {"__init__", "__new__", "__post_init__", "__init_subclass__", "__repr__", "__str__", "__del__"}
UNTOLD = {"getattr", "setattr", "hasattr", "vars", "__dict__", "eval", "exec", "attrgetter", "methodcaller", "asdict"}
HOLDERS: tuple[type, ...] = (Mapping, list, tuple, set, frozenset, types.MethodType, functools.partial)
ENDS = (*PLAIN, Tensor, np.ndarray, type, *GENERATORS)
# a mapping in which Python looks a name up, the name, and the value found there
Slot = tuple[Mapping[Any, Any], Any, Any]
# name, part, and the mapping in which Python looks the name up, if any
Part = tuple[str, Any, Mapping[Any, Any] | None]


def reach(
    *roots: Any, paths: Sequence[str] | None = None, ends: bool = True
) -> tuple[list[tuple[str, Any]], list[Slot]]:
    """All that code could read from these objects: (path, object), each but plain values once, and where names are looked up.

    Of an object whose class a user wrote, only the attributes count that some function found here names. `paths` are those of
    the roots; without them, paths begin at the parts of the roots. Without `ends`, objects without parts, which are most of
    all, are passed over, and so are the places where names are looked up.
    """
    found: list[tuple[str, Any]] = []
    slots: list[Slot] = []
    seen: set[int] = set()
    queue: list[tuple[str, Any]] = list(zip(paths or [""] * len(roots), roots, strict=True))
    names = _Names()
    entries = 0

    def enqueue(path: str, part: Part) -> None:
        name, value, holder = part
        queue.append((f"{path}.{name}" if path else name, value))
        if ends and holder is not None:
            slots.append((holder, name, value))

    while queue and entries < MOST_ENTRIES:
        path, value = queue.pop()
        kind: Any = type(value)
        if not _is_one_of(kind, PLAIN):
            if id(value) in seen or _is_one_of(kind, SKIPPED) or getattr(kind, "runs_programs", False):
                continue
            seen.add(id(value))
        found.append((path, value))
        if _is_one_of(kind, ENDS):
            entries += 1
            continue
        entries += not ends
        for part in _parts(value):
            if ends or not _is_end(part[1]):
                enqueue(path, part)
        for code in _codes(value):
            for released in names.learn(code):
                enqueue(*released)
        bare = _is_bare(kind)
        for part in _attributes(value):
            if (ends or not _is_end(part[1])) and (not bare or names.admit(path, part)):
                enqueue(path, part)
    return found, slots


def modules_in(**roots: Any) -> dict[str, nn.Module]:
    """The modules that code could read from these objects, by path; those that are part of another are left out."""
    reached, _ = reach(*roots.values(), paths=list(roots), ends=False)
    found = {path: value for path, value in reached if isinstance(value, nn.Module)}
    inside = parts_of(*(part for module in found.values() for part in module.children()))
    return {path: module for path, module in found.items() if id(module) not in inside}


def parts_of(*roots: nn.Module) -> dict[int, nn.Module]:
    """Modules and all that is inside of them, once each, by identity: `module.modules()` without the search for their names."""
    found: dict[int, nn.Module] = {}
    stack = list(reversed(roots))
    while stack:
        module = stack.pop()
        if id(module) not in found:
            found[id(module)] = module
            stack.extend(part for part in reversed(module._modules.values()) if part is not None)
    return found


def unwrapped(function: Any) -> Any:
    """The function inside of `functools.partial` objects, Pyro's handlers, and decorators that use `functools.wraps`."""
    while isinstance(function, functools.partial) or hasattr(function, "__wrapped__"):
        if not isinstance(function, functools.partial):
            function = function.__wrapped__
        else:
            function = function.args[1] if function.func is _context_wrap else function.func
    return function


class _Names:
    """The names that the functions found so far read, and the parts of objects that wait until theirs is among them."""

    def __init__(self) -> None:
        self.read = set(ALWAYS)
        self.waiting: dict[str, list[tuple[str, Part]]] = {}

    def learn(self, code: types.CodeType) -> Iterator[tuple[str, Part]]:
        """Read the names in a function's code, and give up the parts that they release."""
        names = set(code.co_names)
        new = set(self.waiting) if names & UNTOLD else names - self.read
        if names & UNTOLD:
            self.read |= UNTOLD
        self.read |= names
        for name in new:
            yield from self.waiting.pop(name, ())
        for inner in code.co_consts:
            if isinstance(inner, types.CodeType):
                yield from self.learn(inner)

    def admit(self, path: str, part: Part) -> bool:
        """Whether some function reads a part's name; else it waits for one that does."""
        if part[0] in self.read or self.read >= UNTOLD:
            return True
        self.waiting.setdefault(part[0], []).append((path, part))
        return False


@functools.cache
def _is_one_of(kind: type, kinds: tuple[type, ...]) -> bool:
    """`isinstance` for the many objects of few types of which a pair consists, in a fraction of the time."""
    return issubclass(kind, kinds)


def _is_end(value: Any) -> bool:
    kind: Any = type(value)
    return _is_one_of(kind, ENDS)


@functools.cache
def _is_bare(kind: type) -> bool:
    """Whether all of an object's behaviour is code that a user wrote, so that its functions name what is read of it."""
    own = [cls for cls in kind.__mro__ if cls not in BARE]
    asks = any(name in vars(cls) for cls in own for name in ("__getattr__", "__getattribute__", "__torch_function__"))
    return bool(own) and not asks and not any(_is_of_library(cls) for cls in own)


def _is_of_library(value: Any) -> bool:
    return (getattr(value, "__module__", None) or "").split(".")[0] in (*LIBRARY_NAMES, *PLAIN_LIBRARIES)


def _is_holder(value: Any) -> bool:
    kind: Any = type(value)
    return _is_one_of(kind, HOLDERS)


def _own_classes(value: Any) -> tuple[type, ...]:
    kind: Any = type(value)
    return _classes_of_users(kind)


@functools.cache
def _classes_of_users(kind: type) -> tuple[type, ...]:
    """The class and its bases, as far as a user wrote them."""
    return tuple(cls for cls in kind.__mro__ if cls not in BARE and not _is_of_library(cls))


def _codes(value: Any) -> Iterator[types.CodeType]:
    """The code that runs when an object is called, read or computed with, as far as a user wrote it."""
    if isinstance(value, types.FunctionType):
        if not _is_of_library(value):
            yield value.__code__
    elif not _is_holder(value):
        for cls in _own_classes(value):
            for name, part in vars(cls).items():
                if name in OUTSIDE:
                    continue
                inner = [getattr(part, slot, None) for slot in ("fget", "func", "__func__", "__wrapped__")] + [part]
                special = name.startswith("__") or any(isinstance(f, types.FunctionType) for f in inner[:-1])
                yield from (f.__code__ for f in inner if special and isinstance(f, types.FunctionType))


def _parts(value: Any) -> Iterator[Part]:
    """The parts of an object that may be read in any case."""
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", part, None) for key, part in list(value.items()) if isinstance(key, (str, int)))
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from ((f"[{i}]", part, None) for i, part in enumerate(value))
    elif isinstance(value, types.MethodType):
        yield value.__func__.__name__, value.__func__, None
        yield "self", value.__self__, None
    elif isinstance(value, types.FunctionType):
        if value.__module__ and value.__module__.split(".")[0] in LIBRARY_NAMES:
            return
        yield from ((f"default {i}", part, None) for i, part in enumerate(value.__defaults__ or ()))
        yield from ((name, part, None) for name, part in (value.__kwdefaults__ or {}).items())
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or ()):
            try:
                yield name, cell.cell_contents, None
            except ValueError:  # not assigned yet
                continue
        for name in _globals_of(value.__code__):
            if name in value.__globals__:
                yield name, value.__globals__[name], value.__globals__
                yield from _networks_in(value.__globals__[name], value.__code__)
    elif isinstance(value, functools.partial):
        yield from (("func", value.func, None), ("args", value.args, None), ("keywords", value.keywords, None))
    elif isinstance(value, nn.Module):
        yield from ((name, part, value._modules) for name, part in value._modules.items())
        yield from ((name, part, value._parameters) for name, part in value._parameters.items() if part is not None)


def _networks_in(value: Any, code: types.CodeType) -> Iterator[Part]:
    """The networks that code may read from a module of Python, as in `nets.encoder(x)`."""
    if isinstance(value, types.ModuleType) and not value.__name__.startswith(LIBRARY_NAMES):
        kept = vars(value)
        yield from ((name, kept[name], kept) for name in code.co_names if isinstance(kept.get(name), nn.Module))


@functools.cache
def _globals_of(code: types.CodeType) -> tuple[str, ...]:
    """The names of the globals that code reads, also in the functions that are defined in it."""
    names = [step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"]
    names += [name for inner in code.co_consts if isinstance(inner, types.CodeType) for name in _globals_of(inner)]
    return tuple(dict.fromkeys(names))


def _attributes(value: Any) -> Iterator[Part]:
    """The attributes of an object and of its class, where a user wrote that."""
    if isinstance(value, types.FunctionType) or _is_holder(value):
        return
    library = type(value).__module__.split(".")[0]
    if not isinstance(value, nn.Module) and library in PLAIN_LIBRARIES:
        return
    own = getattr(value, "__dict__", {})
    yield from ((name, part, own) for name, part in list(own.items()) if not name.startswith(HIDDEN))
    # the methods of a class that a user wrote may read globals
    if library not in LIBRARY_NAMES:
        for cls in _own_classes(value):
            methods = vars(cls)
            yield from (
                (name, part, methods)
                for name, part in methods.items()
                if isinstance(part, (types.FunctionType, *PLAIN)) and not name.startswith("__")
            )

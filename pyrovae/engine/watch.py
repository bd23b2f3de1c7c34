"""The Python values that a traced function may have read (attributes, closures, globals), and whether they have changed."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pyro.poutine import Trace
from torch import Tensor, nn

MOST_ENTRIES = 4096  # of one snapshot


class _Same:
    """An object that is compared by identity. It is kept alive, so that no other object can get its address."""

    def __init__(self, kept: Any) -> None:
        self.kept = kept

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.kept is other.kept

    def __hash__(self) -> int:
        return id(self.kept)

    def __repr__(self) -> str:
        return f"a {type(self.kept).__name__}"


PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size, np.generic)
SKIPPED = (Trace, types.ModuleType, torch.Generator, np.random.Generator, np.random.RandomState)
LIBRARY_NAMES = ("torch", "pyro", "numpy", "pyrovae")
PLAIN_LIBRARIES = ("builtins", "numpy", "weakref", "collections", "threading")
HIDDEN = (
    "_parameters",
    "_buffers",
    "_modules",
    "_pyro",
    "_backward",
    "_forward",
    "_state_dict",
    "_load_state",
    "_non_",
)
Slot = tuple[
    Mapping[Any, Any], Any, Any
]  # a mapping in which Python looks a name up, the name, and the value found there


def snapshot(*roots: Any) -> dict[str, Any]:
    """All plain values that code could read from these objects, by path.

    Plain values are numbers, text, dtypes, arrays and tensors. They are looked for in attributes, containers, closures,
    defaults, and the globals that functions name.
    """
    return _walk(roots)[0]


def change_detector(*roots: Any) -> Callable[[], bool]:
    """A fast function that says whether all attributes and globals of these objects are still the same objects.

    It does not notice that the content of a list or an array has changed; comparing two snapshots does.
    """
    slots = _walk(roots)[1]

    def unchanged() -> bool:
        return all(mapping.get(key) is value for mapping, key, value in slots)

    return unchanged


def _walk(roots: Sequence[Any]) -> tuple[dict[str, Any], list[Slot]]:
    found: dict[str, Any] = {}
    slots: list[Slot] = []
    seen: set[int] = set()
    queue: list[tuple[str, Any]] = [("", root) for root in roots]
    while queue and len(found) < MOST_ENTRIES:
        path, value = queue.pop()
        if isinstance(value, PLAIN):
            found[path] = repr(value) if isinstance(value, float) else value
            continue
        if id(value) in seen or isinstance(value, SKIPPED):
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            found[path] = value.requires_grad if isinstance(value, nn.Parameter) else _Same(value)
        elif isinstance(value, np.ndarray):
            found[path] = (value.shape, hash(value.tobytes())) if value.nbytes < 2**20 else _Same(value)
        elif isinstance(value, type):
            found[path] = value
        else:
            for name, part, holder in _parts(value):
                queue.append((f"{path}.{name}" if path else name, part))
                if holder is not None:
                    slots.append((holder, name, part))
    return found, slots


def _parts(value: Any) -> Iterator[tuple[str, Any, Mapping[Any, Any] | None]]:
    """The parts of an object: name, part, and the mapping in which Python looks that name up, if there is one."""
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
        for name in value.__code__.co_names:
            if name in value.__globals__:
                yield name, value.__globals__[name], value.__globals__
    elif isinstance(value, functools.partial):
        yield from (("func", value.func, None), ("args", value.args, None), ("keywords", value.keywords, None))
    else:
        if isinstance(value, nn.Module):
            yield from ((name, part, value._modules) for name, part in value._modules.items())
            yield from ((name, part, value._parameters) for name, part in value._parameters.items() if part is not None)
        elif type(value).__module__.split(".")[0] in PLAIN_LIBRARIES:
            return
        own = getattr(value, "__dict__", {})
        yield from ((name, part, own) for name, part in list(own.items()) if not name.startswith(HIDDEN))
        # the methods of a class that a user wrote may read globals
        if type(value).__module__.split(".")[0] not in LIBRARY_NAMES:
            methods = vars(type(value))
            yield from (
                (name, part, methods)
                for name, part in methods.items()
                if isinstance(part, (types.FunctionType, *PLAIN)) and not name.startswith("__")
            )


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The paths of `before` whose values are now others, or gone."""
    return [path for path, value in before.items() if path not in now or not _equal(now[path], value)]


def steady(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a run of the function left as they were. What it changes itself, such as a counter, is not compared."""
    return {path: value for path, value in after.items() if path in before and _equal(before[path], value)}


def _equal(a: Any, b: Any) -> bool:
    return type(a) is type(b) and bool(a == b)

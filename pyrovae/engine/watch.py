"""The Python values that a traced function may have read (attributes, closures, globals), and whether they have changed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor, nn

from pyrovae.pair.reach import GENERATORS, PLAIN, reach


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


def snapshot(*roots: Any) -> dict[str, Any]:
    """All plain values that code could read from these objects, by path.

    Plain values are numbers, text, dtypes, arrays and tensors. They are looked for in attributes, containers, closures,
    defaults, and the globals that functions name. Of an object whose class a user wrote, only the attributes count that some
    function found here names: what else it keeps, such as a history or the optimizer, is none of the program's.
    """
    return _values(reach(*roots)[0])


def change_detector(*roots: Any) -> Callable[[], bool]:
    """A fast function that says whether all attributes and globals of these objects are still the same objects.

    It does not notice that the content of a list or an array has changed; comparing two snapshots does.
    """
    slots = reach(*roots)[1]

    def unchanged() -> bool:
        return all(mapping.get(key) is value for mapping, key, value in slots)

    return unchanged


def _values(reached: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """What is compared of each plain value, array and tensor, by path."""
    found: dict[str, Any] = {}
    for path, value in reached:
        if isinstance(value, float):
            found[path] = repr(value)
        elif isinstance(value, (*PLAIN, type)):
            found[path] = value
        elif isinstance(value, Tensor):
            found[path] = value.requires_grad if isinstance(value, nn.Parameter) else _Same(value)
        elif isinstance(value, np.ndarray):
            found[path] = (value.shape, hash(value.tobytes())) if value.nbytes < 2**20 else _Same(value)
    return found


@contextmanager
def rewound(*roots: Any) -> Iterator[None]:
    """Set NumPy's and Python's generators, and those that code could reach from these objects, back afterwards."""
    held = [value for _, value in reach(*roots)[0] if isinstance(value, GENERATORS)]
    states = [_state_of(generator) for generator in held]
    numpys, pythons = np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        np.random.set_state(numpys)
        random.setstate(pythons)
        for generator, state in zip(held, states):
            if isinstance(generator, np.random.Generator):
                generator.bit_generator.state = state
            elif isinstance(generator, random.Random):
                generator.setstate(state)
            else:
                generator.set_state(state)


def _state_of(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state()


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The paths of `before` whose values are now others, or gone."""
    return [path for path, value in before.items() if path not in now or not _equal(now[path], value)]


def steady(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a run of the function left as they were. What it changes itself, such as a counter, is not compared."""
    return {path: value for path, value in after.items() if path in before and _equal(before[path], value)}


def _equal(a: Any, b: Any) -> bool:
    return type(a) is type(b) and bool(a == b)

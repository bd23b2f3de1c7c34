"""What the arguments of a step are: tensors, which may change from call to call, and everything else, for which it is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils import _pytree as pytree

from pyrovae.pair.batch import Batch

Rebuild = Callable[[Batch], Any]


def signature_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Batch, Any, Rebuild]:
    """The tensors among arguments, a key of everything else, and how to put them together again."""
    leaves, structure = pytree.tree_flatten((args, kwargs))
    inputs: Batch = {}
    key: list[Any] = [structure]
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            inputs[str(i)] = leaf
            key.append((leaf.shape, leaf.dtype, leaf.device))
        else:
            key.append(_Plain(leaf))

    def rebuild(tensors: Batch) -> Any:
        return pytree.tree_unflatten([tensors.get(str(i), leaf) for i, leaf in enumerate(others)], structure)

    others = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    return inputs, tuple(key), rebuild


class _Plain:
    """An argument as a key: numbers and text by value, anything else by identity."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.by_value = isinstance(value, (bool, int, float, complex, str, bytes, type(None)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Plain) or type(self.value) is not type(other.value):
            return False
        return bool(self.value == other.value) if self.by_value else self.value is other.value

    def __hash__(self) -> int:
        return hash(self.value) if self.by_value else id(self.value)


def has_arrays(arguments: Any) -> bool:
    return any(isinstance(part, np.ndarray) for part in pytree.tree_leaves(arguments))

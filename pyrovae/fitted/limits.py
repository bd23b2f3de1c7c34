"""What building a pair from a file may cost: it is bounded by the weights that the file comes with."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

from pyrovae._dispatch import DispatchMode
from pyrovae._shapes import broadcast_shapes
from pyrovae.errors import CheckpointError, OptionError, PyrovaeError

# One tensor may have so many elements (256 MiB of float32), or so many times those of all weights; all new ones together four
# times as many. So many operations may be run, and so many more for each tensor among the weights and each place along the
# longest side of a row: a model of sequences runs its networks at each of their steps (`DeepMarkovVAE` takes 77 operations).
ELEMENTS, TIMES, NEW = 2**26, 16, 4
OPERATIONS, EACH, EACH_PLACE, MOST_PLACES = 20_000, 500, 200, 10_000
JOINS = (torch.ops.aten.cat.default, torch.ops.aten.stack.default)
PRODUCTS = (  # of their last two tensors
    *(torch.ops.aten.mm.default, torch.ops.aten.addmm.default),
    *(torch.ops.aten.bmm.default, torch.ops.aten.baddbmm.default),
)


class Bounded(DispatchMode):
    """Inside, tensors and operations are no more than was said: an error before one is, and not when memory is at its end.

    Args:
        largest: the most elements of a tensor.
        new: the most elements of all tensors that are made of nothing, such as parameters.
        operations: the most operations.
        refuse: of what there is too much, to the error.
    """

    def __init__(self, largest: float, new: float, operations: float, refuse: Callable[[str], PyrovaeError]) -> None:
        super().__init__()
        self.most, self.new, self.operations, self.refuse = largest, new, operations, refuse

    @classmethod
    def by_weights(cls, weights: Mapping[str, Tensor], longest: int = 0) -> Bounded:
        """What a pair of these weights needs, when it is built from a run.json; `longest` is the longest side of its rows.

        A run.json is text: a number in it costs nothing to write, and a layer of a million units, or a million layers, would
        take all memory, or hours, before the weights show that they do not fit.
        """
        most = max(ELEMENTS, TIMES * sum(tensor.numel() for tensor in weights.values()))
        operations = OPERATIONS + EACH * len(weights) + EACH_PLACE * min(longest, MOST_PLACES)
        return cls(most, NEW * most, operations, _of_a_run)

    @classmethod
    def by_memory(cls) -> Bounded:
        """What has room in the memory of this machine, with gradients and Adam's moments."""
        memory = memory_of(torch.device("cpu"))
        return cls(memory / 16, memory / 16, math.inf, _of_memory)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        self.operations -= 1
        if self.operations < 0:
            raise self.refuse("more layers or steps")
        leaves = [*_leaves(args), *_leaves(kwargs.values())]
        tensors = [leaf.numel() for leaf in leaves if isinstance(leaf, Tensor)]
        made = math.prod(max(1, abs(leaf)) for leaf in leaves if type(leaf) is int) * math.prod(tensors)  # or fewer
        if made > min(self.most / 64, ELEMENTS):
            made = _elements(func, args, kwargs)
        self.new -= 0 if tensors else made
        if max(made, *tensors, 0) > self.most or self.new < 0:
            raise self.refuse("larger tensors")
        return func(*args, **kwargs)


def _leaves(values: Iterable[Any]) -> Iterator[Any]:
    """What an operation is given, and the entries of its lists; torch's `tree_flatten` takes as long as a small operation."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from _leaves(value)
        else:
            yield value


def memory_of(device: torch.device) -> float:
    """The bytes of memory that a device has, infinity where that is not known."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # not known on this system
        return math.inf


def _elements(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """The elements of the largest tensor that an operation makes, without making it; 0 where that follows from values."""
    leaves = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    if func in JOINS:
        return sum(leaf.numel() for leaf in leaves)
    if func in PRODUCTS:
        *_, left, right = leaves
        return math.prod(left.shape[:-1]) * right.shape[-1]
    if torch.Tag.pointwise in func.tags:  # to ask torch, as below, imports its compilers, which takes a second
        with suppress(RuntimeError):  # of lists of tensors, and of shapes that do not fit
            return broadcast_shapes(*(leaf.shape for leaf in leaves)).numel()

    def empty(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")

    try:
        known = {**kwargs, "device": torch.device("meta")} if "device" in kwargs else kwargs
        made = func(*tree_map_only(Tensor, empty, args), **tree_map_only(Tensor, empty, known))
    except (NotImplementedError, RuntimeError, TypeError):
        return 0
    return max((leaf.numel() for leaf in tree_flatten(made)[0] if isinstance(leaf, Tensor)), default=0)


def _of_a_run(what: str) -> PyrovaeError:
    return CheckpointError(
        f"The run.json describes a pair of {what} than the weights of the run can be of: restore it, or fit again. If it is "
        "right, build the pair and pass it with pv.load(folder, pair=...), or say trust=True."
    )


def _of_memory(what: str) -> PyrovaeError:
    return OptionError(
        f"The model has {what} than this machine has memory for, gradients and moments included: choose smaller sizes, such as "
        "--latent and --hidden."
    )

"""Indices that are not there, or count from the end, and tensors on two devices: what torch says badly, or not at all."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.overrides import TorchFunctionMode

Found = Iterator[tuple[Tensor, int]]

_TWO_DEVICES = re.compile(r"same device|expected device|Input type \(.*weight type \(")


def cure_of_devices(error: Exception, device: torch.device) -> str:
    """What to do about an error of tensors on two devices, to follow torch's words; empty for any other error."""
    if not _TWO_DEVICES.search(str(error)):
        return ""
    return (
        f". The rows are on {device}, and the pair makes or keeps a tensor elsewhere: make constants where the rows are "
        "(x.new_zeros(2), or torch.zeros(2, device=x.device)), and let modules register the tensors that they keep "
        "(self.register_buffer('name', tensor)); or fit with device='cpu'."
    )


def indices_in_range(device: torch.device) -> AbstractContextManager[Any]:
    """Inside, an index out of range raises IndexError on a GPU, too. On a CPU it does so anyway.

    On CUDA the kernel would assert, after which nothing in the process can use the GPU any more. Each look makes the host wait
    for the device, so this is for the runs that check a pair, not for steps.
    """
    return nullcontext() if device.type == "cpu" else IndicesInRange()


class IndicesInRange(TorchFunctionMode):
    """Raise IndexError before a lookup at an index that is not there. Inside of `torch.vmap` no values can be looked at."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        look = _LOOKUPS.get(getattr(func, "__name__", ""))
        for index, size in look(list(args), given) if look else ():
            if index.dtype in (torch.int64, torch.int32) and index.numel() and not is_functorch_wrapped_tensor(index):
                lowest, highest = (int(value) for value in torch.aminmax(index))
                least = -size if func is torch.Tensor.__getitem__ else 0
                if lowest < least or highest >= size:
                    wrong = lowest if lowest < least else highest
                    raise IndexError(f"index out of range: {wrong}, where there are {size}")
        return func(*args, **given)


class Indexing(TorchFunctionMode):
    """Show `look` each tensor of whole numbers that indexes another, as in `a[g]`, where torch takes -1 for the last one."""

    def __init__(self, look: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.look = look

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.__getitem__:
            for index, _ in _getitem(list(args), {}):
                if index.dtype in _WHOLE and not is_functorch_wrapped_tensor(index):
                    self.look(index)
        return func(*args, **(kwargs or {}))


def cure_of_indices(error: Exception, batch: Mapping[str, Tensor]) -> str:
    """What to do about an index that is not there, or no whole number, to follow torch's words; empty for another error."""
    text = str(error)
    if "used as indices must be" in text:
        whole = [n for n, v in batch.items() if v.is_floating_point() and bool((v == v.round()).all())]
        return (
            f". Of whole numbers in floating point make integers: {', '.join(f'{n}.long()' for n in whole)}."
            if whole
            else ""
        )
    numbers = {n: v for n, v in batch.items() if v.dtype in _WHOLE and v.numel()}
    if not numbers or not re.search(r"index (-?\d+ is )?out of (bounds|range)", text):
        return ""
    spans = " and ".join(f"{n!r} goes from {int(v.min())} to {int(v.max())}" for n, v in numbers.items())
    return f". {spans}: classes and groups are numbered from 0, and the pair is to be built for as many as there are."


_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8)


def _argument(args: list[Any], given: Mapping[str, Any], place: int, name: str) -> Any:
    return args[place] if len(args) > place else given.get(name)


def _embedding(args: list[Any], given: dict[str, Any]) -> Found:
    input, weight = _argument(args, given, 0, "input"), _argument(args, given, 1, "weight")
    yield input, len(weight)


def _one_hot(args: list[Any], given: dict[str, Any]) -> Found:
    classes = _argument(args, given, 1, "num_classes")
    if classes is not None and classes > 0:
        yield args[0], classes


def _along(args: list[Any], given: dict[str, Any]) -> Found:
    """`gather(self, dim, index)` and its kind."""
    dim, index = _argument(args, given, 1, "dim"), _argument(args, given, 2, "index")
    if isinstance(args[0], Tensor) and isinstance(dim, int) and isinstance(index, Tensor) and args[0].dim():
        yield index, args[0].shape[dim]


def _getitem(args: list[Any], given: dict[str, Any]) -> Found:
    """`x[index]`: which dimension of x each part of the index is about."""
    x, index = args
    parts = list(index) if isinstance(index, tuple) else [index]
    taken = [_dimensions(part) for part in parts]
    dim = 0
    for part, count in zip(parts, taken):
        if isinstance(part, Tensor) and count == 1 and part.dtype != torch.bool and dim < x.dim():
            yield part, x.shape[dim]
        dim += x.dim() - sum(taken) if part is Ellipsis else count


def _dimensions(part: Any) -> int:
    if part is None or part is Ellipsis or isinstance(part, bool):
        return 0
    return part.dim() if isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8) else 1


_LOOKUPS: dict[str, Callable[[list[Any], dict[str, Any]], Found]] = {
    "embedding": _embedding,
    "one_hot": _one_hot,
    "__getitem__": _getitem,
    **dict.fromkeys(("gather", "index_select", "scatter", "scatter_", "scatter_add", "scatter_add_"), _along),
}

"""Counts how often the host reads a tensor's values, each of which would wait for a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# What reads a value back, or has a shape that depends on one.
READS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.unique_consecutive.default,
}


class Reads(TorchDispatchMode):
    """Counts the operations that wait for the device, backward included."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in READS
        return func(*args, **(kwargs or {}))


@contextmanager
def counted_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reads]:
    reads = Reads()
    with monkeypatch.context() as patch:
        for method in ("item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__"):
            original = getattr(torch.Tensor, method)

            def spy(self: Tensor, *args: Any, _original: Any = original, **kwargs: Any) -> Any:
                reads.count += 1
                return _original(self, *args, **kwargs)

            patch.setattr(torch.Tensor, method, spy)
        with pyro.validation_enabled(False), reads:
            yield reads

"""Chunks of rows, whose size follows from the memory that one row takes, so that memory does not grow with the data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor

from pyrovae._dispatch import DispatchMode
from pyrovae._lazily import Lazily
from pyrovae.batching.memory import halvings
from pyrovae.pair.batch import Batch, num_rows, take_rows
from pyrovae.pair.checks import log_densities
from pyrovae.pair.parameters import fork_rng
from pyrovae.pair.program import PairLike, is_marked, plate_nesting, run, sample_sites

# Elements of the largest tensor of a chunk. 2^20 numbers in float32 take 4 MB, and more would not stay in the caches of a CPU.
# A GPU needs larger tensors to be busy.
CHUNK_ELEMENTS = 2**20
GPU_CHUNK_ELEMENTS = 2**25

aten = torch.ops.aten
FACTORS = {aten.mm: 0, aten.bmm: 0, aten.addmm: 1, aten.baddbmm: 1}  # products, and which argument is the first factor
flop_counter = Lazily(
    "torch.utils.flop_counter"
)  # which knows the other ones, and imports Triton where that is installed


class TensorSizes(DispatchMode):
    """Record the number of elements of every tensor that is computed inside, operation by operation.

    Args:
        stored: whether elements are those in memory, of which a tensor that was expanded has fewer.

    Attributes:
        sizes: the numbers of elements.
        product: floating-point operations of the largest product of matrices, or convolution.
    """

    def __init__(self, stored: bool = False) -> None:
        super().__init__()
        self.stored = stored
        self.sizes: list[int] = []
        self.product = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.sizes.append(self._elements(made) if isinstance(made, Tensor) else 0)
        self.product = max(self.product, _operations(func, args, kwargs or {}, made))
        return made

    def _elements(self, made: Tensor) -> int:
        if not self.stored or made.layout != torch.strided:
            return made.numel()
        return min(made.numel(), made.untyped_storage().nbytes() // made.element_size())


def _operations(func: Any, args: Any, kwargs: Any, made: Any) -> int:
    """The floating-point operations of a product of matrices, a convolution or attention; 0 of anything else."""
    if func.overloadpacket in FACTORS:
        return int(2 * made.numel() * args[FACTORS[func.overloadpacket]].shape[-1])
    if not any(part in func.name() for part in ("mm", "conv", "attention")):
        return 0
    operations = flop_counter.flop_registry.get(func.overloadpacket)
    return 0 if operations is None else int(operations(*args, **kwargs, out_val=made))


def elements_per_row(more: Sequence[int], less: Sequence[int], rows: int) -> int | None:
    """How many elements one more row adds to the largest tensor, from the sizes of all tensors of two runs.

    Tensors that do not grow with the number of rows, such as weights, do not count.

    Args:
        more: Sizes in the run with more rows, operation by operation.
        less: Sizes in the run with fewer rows.
        rows: By how many rows they differ.

    Returns:
        The number of elements, at least 1; None if the two runs did not perform the same operations.
    """
    if len(more) != len(less) or rows < 1:
        return None
    return max([1, *((a - b) // rows for a, b in zip(more, less))])


def row_elements(pair: PairLike, batch: Mapping[str, Tensor]) -> int:
    """How many elements one more row adds to the largest tensor of a run, be it data, a hidden layer or a feature map.

    The pair is run on 4 and on 8 copies of the first row, and the tensors are compared operation by operation.
    """
    with torch.no_grad(), fork_rng(), pyro.validation_enabled(False):
        one = [sample_sites(trace) for trace in run(pair, take_rows(batch, slice(0, 1)))]
        # With enumerated sites, tensors grow by the number of their values.
        marked = any(is_marked(node) for sites in one for node in sites.values())
        less, more = (_sizes(pair, batch, copies, plate_nesting(*one), marked) for copies in (4, 8))
    return max([1, *((a - b) // 4 for a, b in zip(more, less))])


def _sizes(pair: PairLike, batch: Mapping[str, Tensor], copies: int, nesting: int, enumerate: bool) -> list[int]:
    rows = take_rows(batch, torch.zeros(copies, dtype=torch.long, device=next(iter(batch.values())).device))
    with TensorSizes() as seen:
        log_densities(run(pair, rows, plate_nesting=nesting, enumerate=enumerate))
    return seen.sizes


def chunk_size(elements: int, device: torch.device, num_particles: int = 1) -> int:
    """How many rows fit into one chunk, at least 1, if one row adds `elements` elements to the largest tensor of a run."""
    most = CHUNK_ELEMENTS if device.type == "cpu" else GPU_CHUNK_ELEMENTS
    return max(1, (most >> halvings()) // (elements * num_particles))


def chunks(batch: Mapping[str, Tensor], size: int) -> Iterator[Batch]:
    """Copies of the rows of a batch in order, `size` at a time."""
    for start in range(0, num_rows(batch), size):
        yield take_rows(batch, slice(start, start + size))


def even_size(total: int, most: int) -> int:
    """The size of the fewest chunks of at most so many rows, all of one size but for the last, which has hardly fewer."""
    return math.ceil(total / math.ceil(total / most))

"""Rows that stay in files: read in runs of neighbouring rows, and mixed in a buffer, so that memory does not grow with them."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from pyrovae.errors import DataError

BUFFER_BYTES = 2**27  # of one buffer; a second one is filled meanwhile
Rows = dict[str, Tensor]


class Stored:
    """N rows that stay in files, and how a fit takes them: `pyrovae.data.open` makes such objects.

    The rows lie in runs of neighbours, such as the row groups of a Parquet file. A pass takes the runs in a random order, fills
    a buffer with their rows, and deals the rows of the buffer in a random order, while the next buffer is filled. Where one
    buffer holds all rows, they come in the order in which a fit takes rows that are in memory. The order follows from the
    seed, so that a fit can be resumed at any row without reading those before its buffer.

    Attributes:
        name: What messages call the source.
        runs: The number of rows of each run.
        buffer: The number of rows of a buffer; None for as many as fit into 128 MiB.
        shuffle: Whether rows are mixed; else they come in their order.
        columns: Of a table, the names of the columns of each argument, under "" of the model's first argument.
    """

    name: str
    runs: Sequence[int]
    buffer: int | None = None
    shuffle: bool = True
    columns: Mapping[str, Sequence[str]] = MappingProxyType({})

    def pieces(self, run: int, skip: int = 0) -> Iterator[Any]:
        """The rows of a run in their order, but for the first `skip`, piece by piece: arrays by argument, or one array."""
        raise NotImplementedError

    @property
    def num_rows(self) -> int:
        """N, the number of rows."""
        return sum(self.runs)

    def __len__(self) -> int:
        return self.num_rows

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}: {self.num_rows} rows)"

    def all_pieces(self, order: Sequence[int], start: int = 0) -> Iterator[Any]:
        """The rows of the runs in this order, from row number `start` on. DataError if a run has not as many as it had."""
        before = 0
        for run in order:
            size, skip = self.runs[run], max(0, start - before)
            before += size
            if skip >= size:
                continue
            found = skip
            for piece in self.pieces(run, skip):
                found += len(next(iter(piece.values())) if isinstance(piece, Mapping) else piece)
                yield piece
            if found != size:
                raise DataError(f"{self.name} has changed: a part of {size} rows has {found} now. Open it again.")


def loaded(source: Stored, bind: Callable[[Any], Rows]) -> Rows:
    """All rows of a source, in their order."""
    pieces = [bind(piece) for piece in source.all_pieces(range(len(source.runs)))]
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


def mixed(source: Stored, bind: Callable[[Any], Rows], batch_size: int, seed: int, skip: int = 0) -> Iterator[Rows]:
    """Batches of a source's rows, pass after pass, without end; rows that are left at the end of a pass go into the next.

    Args:
        source: The rows.
        bind: Makes tensors of a piece.
        batch_size: B.
        seed: Of the order.
        skip: How many batches are left out at the start.
    """
    left: Rows = {}
    for rows, order in _ahead(_buffers(source, bind, batch_size, seed, skip * batch_size)):
        start = 0
        if left:
            start = min(batch_size - _length(left), len(order))
            more = _taken(rows, order[:start])
            left = {name: torch.cat([left[name], more[name]]) for name in left}
            if _length(left) < batch_size:
                continue
            yield left
        end = start + (len(order) - start) // batch_size * batch_size
        for place in range(start, end, batch_size):
            yield _taken(rows, order[place : place + batch_size])
        left = _taken(rows, order[end:]) if end < len(order) else {}


def _taken(rows: Rows, index: Tensor) -> Rows:
    return {name: values.index_select(0, index) for name, values in rows.items()}


def _length(rows: Rows) -> int:
    return len(next(iter(rows.values())))


def _buffers(
    source: Stored, bind: Callable[[Any], Rows], batch_size: int, seed: int, skip: int
) -> Iterator[tuple[Rows, Tensor]]:
    """Buffers of rows, each with the order in which they are dealt; the first lacks what comes before row `skip`."""
    total = source.num_rows
    size = buffer_rows(source, bind, batch_size)
    passed, inside = divmod(skip, total)
    if size >= total:
        rows = loaded(source, bind)
        generator = torch.Generator().manual_seed(seed)  # as rows in memory are shuffled
        for order in itertools.islice(_orders(total, generator, source.shuffle), passed, None):
            yield rows, order[inside:]
            inside = 0
    for number in itertools.count(passed):
        runs = _order(len(source.runs), seed, (number,), source.shuffle).tolist()
        first, inside = divmod(inside, size)
        pieces = map(bind, source.all_pieces(runs, first * size))
        for place, rows in enumerate(_filled(pieces, size, total - first * size), first):
            order = _order(_length(rows), seed, (number, place), source.shuffle)
            yield rows, order[inside:]
            inside = 0


def _filled(pieces: Iterator[Rows], size: int, total: int) -> Iterator[Rows]:
    """The rows of the pieces, `total` of them, in buffers of `size` rows."""
    buffer: Rows = {}
    filled, wanted = 0, 0
    for piece in pieces:
        rows, start = _length(piece), 0
        while start < rows:
            if not buffer:
                wanted = min(size, total)
                buffer = {name: v.new_empty(wanted, *v.shape[1:]) for name, v in piece.items()}
            taken = min(rows - start, wanted - filled)
            for name, values in buffer.items():
                values[filled : filled + taken] = piece[name][start : start + taken]
            start, filled = start + taken, filled + taken
            if filled == wanted:
                yield buffer
                total -= wanted
                buffer, filled = {}, 0


def buffer_rows(source: Stored, bind: Callable[[Any], Rows], batch_size: int) -> int:
    """How many rows a buffer takes: at least a batch."""
    if source.buffer is not None:
        return max(batch_size, source.buffer)
    first = bind(next(source.all_pieces(range(len(source.runs)))))
    bytes_of_row = sum(v.element_size() * v[0].numel() for v in first.values())
    return max(batch_size, BUFFER_BYTES // max(1, bytes_of_row))


def _orders(total: int, generator: torch.Generator, shuffle: bool) -> Iterator[Tensor]:
    while True:
        yield torch.randperm(total, generator=generator) if shuffle else torch.arange(total)


def _order(total: int, seed: int, place: tuple[int, ...], shuffle: bool) -> Tensor:
    """A permutation that follows from the seed and the place in the data."""
    if not shuffle:
        return torch.arange(total)
    digest = hashlib.sha256(repr((seed, *place)).encode()).digest()
    return torch.randperm(total, generator=torch.Generator().manual_seed(int.from_bytes(digest[:7], "little")))


def _ahead(items: Iterator[Any]) -> Iterator[Any]:
    """The items, of which the next is made by a thread of its own while one is used."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items)
        while True:
            found = coming.result()
            coming = pool.submit(next, items)
            yield found

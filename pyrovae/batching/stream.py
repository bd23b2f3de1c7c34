"""Where a fit reads its rows from: tensors on the device (`Resident`), or a `Dataset` that is loaded meanwhile (`Stream`).

Rows that come batch by batch are in `batching/incoming.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pyrovae.batching.batches import digest_of
from pyrovae.pair.batch import Batch, as_batch, num_rows, take_rows
from pyrovae.pair.datasets import Items, by_argument, by_workers
from pyrovae.pair.parameters import dtype_of
from pyrovae.pair.program import PairLike, arguments

WATCHED_SEED = 20_130_620  # of the choice of rows by which a pair is watched


def watched(num_rows: int, most: int) -> Tensor:
    """The indices of the rows by which a pair is watched, at most so many."""
    return torch.randperm(num_rows, generator=torch.Generator().manual_seed(WATCHED_SEED))[:most]


class Resident:
    """Rows that are on the device as a whole. The inputs of a step are the indices of its rows."""

    repeats = True  # steps that were taken can be taken again, on the same rows

    def __init__(self, batch: Batch, device: torch.device) -> None:
        self.rows: Batch | None = batch
        self.num_rows = num_rows(batch)
        self.place(device)

    def place(self, device: torch.device) -> None:
        """Move the rows to a device."""
        assert self.rows is not None
        self.rows = {name: value.to(device) for name, value in self.rows.items()}
        self.device = device

    def take(self, rows: Tensor) -> Batch:
        """The rows at these indices."""
        assert self.rows is not None
        return take_rows(self.rows, rows.to(self.device))

    def some(self, most: int) -> Batch:
        """Some rows, by which the pair is watched: always the same."""
        return self.take(watched(self.num_rows, most))

    def subset(self, rows: Tensor) -> Resident:
        """A source of the rows at these indices only."""
        return Resident(self.take(rows), self.device)

    def begin(self, coming: Sequence[Tensor]) -> None:
        """Prepare for the batches that are left in an epoch. There is nothing to do."""

    def inputs(self, index: dict[str, Tensor]) -> Batch:
        """The inputs of a step on the next batch: the indices of its rows, by group."""
        return index

    def digest(self) -> dict[str, Any]:
        """See `digest_of`."""
        assert self.rows is not None
        return digest_of(self.rows)


class Stream:
    """Rows of a map-style dataset, which are loaded batch by batch while the device works, through pinned memory for CUDA.

    An item of the dataset is a tensor or array (the model's first argument), a tuple (the model's arguments in order; further
    entries, such as a label that the model does not take, are dropped), or a dict of arguments. From a `DataLoader`, its
    items (see `pair.datasets.Items`), `collate_fn`, workers and `prefetch_factor` are used, but not its order of rows: a
    stopped fit could not be resumed exactly.

    Args:
        pair: Model and guide.
        source: A map-style `Dataset`, or a `DataLoader` of one.
        device: Where batches are moved.
        rows: Positions of the rows of this source among the items; None for all.
        transforms: As for `as_batch`.
        casts: As for `as_batch`.
    """

    repeats = True

    def __init__(
        self,
        pair: PairLike,
        source: Any,
        device: torch.device,
        rows: Sequence[int] | None = None,
        *,
        transforms: bool = False,
        casts: Mapping[str, torch.dtype] | None = None,
    ) -> None:
        self.pair, self.source, self.device, self.transforms = pair, source, device, transforms
        self.casts = dict(casts or {})
        self.dtypes = dict.fromkeys(arguments(pair), dtype_of(pair))
        self.items = Items(source)
        self.rows: Batch | None = None
        self.kept: Sequence[int] = range(len(self.items.kept)) if rows is None else rows
        self.num_rows = len(self.kept)
        self._coming: list[list[int]] = []
        self._batches: Iterator[Any] | None = None
        more: dict[str, Any] = {"collate_fn": self.items.collate}
        if isinstance(source, DataLoader):
            more |= {"num_workers": source.num_workers, "persistent_workers": source.num_workers > 0}
            more |= {name: getattr(source, name) for name in ("worker_init_fn", "timeout")}
            if source.num_workers:
                more |= {name: getattr(source, name) for name in ("prefetch_factor", "multiprocessing_context")}
        # the seeds of workers come from a generator of their own, so that the fit's random numbers do not depend on them
        self.loader: DataLoader[Any] = DataLoader(
            self.items.dataset,
            batch_sampler=_Coming(self._coming),
            pin_memory=device.type == "cuda",
            generator=torch.Generator().manual_seed(0),
            **more,
        )

    def place(self, device: torch.device) -> None:
        """Nothing to do: batches are moved when they are loaded."""

    def subset(self, rows: Tensor) -> Stream:
        """A source of the rows at these indices only."""
        kept = [self.kept[i] for i in rows.tolist()]
        return Stream(self.pair, self.source, self.device, kept, transforms=self.transforms, casts=self.casts)

    def take(self, rows: Tensor) -> Batch:
        """The rows at these indices, loaded at once."""
        return self._bind(self.items.load([self.kept[i] for i in rows.tolist()]))

    def some(self, most: int) -> Batch:
        """Some rows, by which the pair is watched: always the same."""
        return self.take(watched(self.num_rows, most))

    def begin(self, coming: Sequence[Tensor]) -> None:
        """Begin to load the batches that are left in an epoch."""
        items = self.items.kept
        self._coming[:] = [[items[self.kept[i]] for i in index.tolist()] for index in coming]
        with by_workers():
            self._batches = iter(self.loader)

    def inputs(self, index: dict[str, Tensor]) -> Batch:
        """The inputs of a step on the next batch: its rows."""
        assert self._batches is not None
        with by_workers():
            found = next(self._batches)
        return self._bind(found)

    def _bind(self, found: Any) -> Batch:
        named = by_argument(found, list(self.dtypes), self.dtypes)
        batch = as_batch(self.pair, named, self.dtypes, transforms=self.transforms, casts=self.casts)
        return {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}

    def digest(self) -> dict[str, Any]:
        """A digest of the rows' indices and of the first four rows. Reading all rows would take as long as an epoch."""
        digest = hashlib.sha256(b"[")
        for start in range(0, self.num_rows, 100_000):  # as of a printed list, which may be larger than memory
            part = ", ".join(str(self.items.kept[i]) for i in self.kept[start : start + 100_000])
            digest.update((", " * bool(start) + part).encode())
        digest.update(b"]")
        return {
            "rows": self.num_rows,
            "sha256": digest.hexdigest(),
            "first": digest_of(self.take(torch.arange(min(4, self.num_rows)))),
        }


class _Coming:
    """A `DataLoader`'s sampler that gives the batches of the current epoch."""

    def __init__(self, batches: list[list[int]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return iter(list(self.batches))

    def __len__(self) -> int:
        return len(self.batches)

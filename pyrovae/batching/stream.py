"""Rows where they are: on the device, gathered by index within a step, or streamed to it by a DataLoader."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from pyrovae.batching.batches import digest_of
from pyrovae.errors import DataError
from pyrovae.pair.batch import Batch, as_batch, num_rows, take_rows
from pyrovae.pair.program import arguments


class Resident:
    """Rows on the device; a step's input is the index of its rows."""

    def __init__(self, batch: Batch, device: torch.device) -> None:
        self.rows: Batch | None = batch
        self.num_rows = num_rows(batch)
        self.place(device)

    def place(self, device: torch.device) -> None:
        assert self.rows is not None
        self.rows = {name: value.to(device) for name, value in self.rows.items()}
        self.device = device

    def take(self, rows: Tensor) -> Batch:
        """These rows."""
        assert self.rows is not None
        return take_rows(self.rows, rows.to(self.device))

    def subset(self, rows: Tensor) -> Resident:
        """The same, of some of the rows."""
        return Resident(self.take(rows), self.device)

    def begin(self, coming: Sequence[Tensor]) -> None:
        """Told before an epoch, or the rest of one, which batches will be asked for."""

    def inputs(self, index: Tensor | dict[str, Tensor]) -> Batch:
        """What a step takes for the next batch, whose rows are `index`."""
        return index if isinstance(index, dict) else {"index": index}

    def digest(self) -> dict[str, Any]:
        assert self.rows is not None
        return digest_of(self.rows)


class Stream:
    """Rows of a map-style dataset, loaded batch by batch while the device works, by way of pinned memory on CUDA.

    An item is a tensor or array (the model's first argument), a tuple (its arguments in order; what is beyond them, as a
    label that the model does not take, is left) or a dict by argument. Of a DataLoader its dataset, collate_fn, workers and
    prefetch_factor are used; the order of rows is this package's own, so that a stopped fit can be resumed exactly.
    """

    def __init__(self, pair: Any, source: Any, device: torch.device, rows: Sequence[int] | None = None) -> None:
        loader = source if isinstance(source, DataLoader) else None
        dataset: Any = loader.dataset if loader is not None else source
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise DataError(
                f"{type(dataset).__name__} has no length and no order to shuffle: a streamed fit needs a map-style Dataset, "
                "with __len__ and __getitem__."
            )
        if not len(dataset):
            raise DataError("The data are empty: at least one row is needed.")
        self.pair, self.source, self.dataset, self.device = pair, source, dataset, device
        self.rows: Batch | None = None
        self.kept = list(range(len(dataset))) if rows is None else list(rows)
        self.num_rows = len(self.kept)
        self._coming: list[list[int]] = []
        self._batches: Iterator[Any] | None = None
        workers = loader.num_workers if loader is not None else 0
        more: dict[str, Any] = {"prefetch_factor": loader.prefetch_factor} if loader is not None and workers else {}
        if loader is not None:
            more["collate_fn"] = loader.collate_fn
            more["worker_init_fn"] = loader.worker_init_fn
        # seeds of workers come from a generator of their own: the fit's random numbers are left alone
        self.loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=_Coming(self._coming),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            generator=torch.Generator().manual_seed(0),
            **more,
        )

    def place(self, device: torch.device) -> None:
        """Batches already go to the device they were made for."""

    def subset(self, rows: Tensor) -> Stream:
        """The same, of some of the rows."""
        return Stream(self.pair, self.source, self.device, [self.kept[i] for i in rows.tolist()])

    def take(self, rows: Tensor | None = None) -> Batch:
        """These rows, or all, at once."""
        kept = self.kept if rows is None else [self.kept[i] for i in rows.tolist()]
        return self._bind(self.loader.collate_fn([self.dataset[i] for i in kept]))

    def begin(self, coming: Sequence[Tensor]) -> None:
        self._coming[:] = [[self.kept[i] for i in index.tolist()] for index in coming]
        self._batches = iter(self.loader)

    def inputs(self, index: Tensor | dict[str, Tensor]) -> Batch:
        assert self._batches is not None
        return self._bind(next(self._batches))

    def _bind(self, found: Any) -> Batch:
        if isinstance(found, (tuple, list)):
            found = dict(zip(arguments(self.pair), found))
        elif not isinstance(found, Mapping):
            found = {next(iter(arguments(self.pair))): found}
        dtype = torch.get_default_dtype()
        ready = {n: v.to(dtype) if isinstance(v, Tensor) and v.dtype == torch.float64 else v for n, v in found.items()}
        return {name: value.to(self.device, non_blocking=True) for name, value in as_batch(self.pair, ready).items()}

    def digest(self) -> dict[str, Any]:
        """Of the number of rows and the first few: reading all would take as long as an epoch."""
        digest = hashlib.sha256(str(self.kept).encode()).hexdigest()
        return {
            "rows": self.num_rows,
            "sha256": digest,
            "first": digest_of(self.take(torch.arange(min(4, self.num_rows)))),
        }


class _Coming:
    """The batches of the epoch under way, as a DataLoader asks for them."""

    def __init__(self, batches: list[list[int]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return iter(list(self.batches))

    def __len__(self) -> int:
        return len(self.batches)


def is_streamed(data: Any) -> bool:
    """Whether data are a Dataset or a DataLoader."""
    return isinstance(data, (Dataset, DataLoader))

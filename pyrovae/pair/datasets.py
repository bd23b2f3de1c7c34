"""The rows of a `Dataset` or a `DataLoader`: which items they are, and how they are loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    default_collate,
)

from pyrovae.errors import DataError


def is_streamed(data: Any) -> bool:
    """Whether data are a `Dataset` or a `DataLoader`."""
    return isinstance(data, (Dataset, DataLoader))


class Items:
    """The items of a map-style dataset that are rows, and how several of them become a batch.

    Args:
        source: A map-style `Dataset`, or a `DataLoader` of one. Of a `DataLoader`, `collate_fn` is used, and the items of a
            `SubsetRandomSampler`; not their order, nor `drop_last`, since batches here are all of one size.

    Raises:
        DataError: The dataset has no length or is empty, or the loader draws rows in a way that cannot be kept.
    """

    def __init__(self, source: Any) -> None:
        loader = source if isinstance(source, DataLoader) else None
        self.dataset: Any = getattr(loader, "dataset", source)
        if isinstance(self.dataset, IterableDataset) or not hasattr(self.dataset, "__len__"):
            raise DataError(
                f"{type(self.dataset).__name__} has no length and no order to shuffle: rows are read from a map-style Dataset, "
                "which has __len__ and __getitem__."
            )
        self.collate: Any = default_collate if loader is None else loader.collate_fn
        self.kept: list[int] = list(range(len(self.dataset))) if loader is None else _sampled(loader)
        if not self.kept:
            raise DataError("The data are empty: at least one row is needed.")

    def load(self, rows: Sequence[int] | None = None) -> Any:
        """What the collate function makes of the items at these positions among the rows, or of all."""
        kept = self.kept if rows is None else [self.kept[i] for i in rows]
        return self.collate([self.dataset[i] for i in kept])


def _sampled(loader: DataLoader[Any]) -> list[int]:
    """The items that a loader gives out in an epoch. DataError unless it gives out each of them once, in batches."""
    dataset: Any = loader.dataset
    batches: Any = loader.batch_sampler
    plain = type(batches) is BatchSampler and type(loader).__iter__ is DataLoader.__iter__
    sampler: Any = batches.sampler if plain else None
    if type(sampler) is SubsetRandomSampler:
        return [int(i) for i in sampler.indices]
    whole = type(sampler) is SequentialSampler or (type(sampler) is RandomSampler and not sampler.replacement)
    if whole and len(sampler) == len(dataset):
        return list(range(len(dataset)))
    if plain:
        what = f"sampler={type(sampler).__name__}(...)"
    else:
        what = "batch_size=None" if batches is None else f"batch_sampler={type(batches).__name__}(...)"
    raise DataError(
        f"A DataLoader with {what} chooses rows in a way that would be lost, since all rows count equally here, and a fit "
        "shuffles them itself: pass the Dataset, or torch.utils.data.Subset(dataset, indices) of the rows to use, an index "
        "twice where a row is to count twice, and batch_size=... to the fit."
    )


def by_argument(found: Any, taken: Sequence[str], dtypes: Mapping[str, torch.dtype]) -> dict[str, Any]:
    """Name what was loaded: a dict by argument stays, a tuple has the arguments in order, anything else is the first.

    Further entries of a tuple, such as a label that the model does not take, are dropped. float64 becomes the dtype in
    `dtypes`, or torch's default, as it does in arrays.
    """
    if isinstance(found, (tuple, list)):
        named = dict(zip(taken, found))
    else:
        named = dict(found) if isinstance(found, Mapping) else {taken[0]: found}
    for name, value in named.items():
        if isinstance(value, Tensor) and value.dtype == torch.float64:
            named[name] = value.to(dtypes.get(name, torch.get_default_dtype()))
    return named

"""Data that are read as they are needed: which these are, and how the rows of map-style ones are loaded."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Any

import numpy as np
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

from pyrovae.errors import DataError, shortened
from pyrovae.pair.arrays import as_tensor, counts_nulls
from pyrovae.pair.stored import Stored

# What arrays, tables and queries of them have, and data sets of rows have not.
OF_ARRAYS = (
    *("__array__", "__array_interface__", "__dlpack__", "__dataframe__"),
    *("dtype", "isna", "nnz", "todense", "collect"),
)


@contextmanager
def by_workers() -> Iterator[None]:
    """Say of worker processes of a loader, whose rows are taken inside, why they could not begin, or that one has ended."""
    try:
        yield
    except (RuntimeError, AttributeError, TypeError, pickle.PicklingError) as error:
        said = shortened(error, 200)
        if isinstance(error, RuntimeError) and "DataLoader worker" in said and ("exited" in said or "killed" in said):
            raise DataError(
                f"A process that loads rows has ended ({said}): the machine may have too little memory for num_workers of "
                "them, or code of the data set ends the process, of which num_workers=0 says more. A fit with checkpoint= can "
                "be resumed."
            ) from error
        if not isinstance(error, RuntimeError) and ("pickle" in said or "local object" in said):
            raise DataError(
                f"Processes that load rows cannot be started, since what they are to do cannot be sent to them ({said}): "
                "define the data set, its transforms and collate_fn at the top level of a module, or set num_workers=0."
            ) from error
        raise


def is_streamed(data: Any) -> bool:
    """Whether data are map-style: a `Dataset`, a `DataLoader` of one, or another object with rows by number."""
    if isinstance(data, (Dataset, DataLoader)):
        return not is_batches(data)
    return (
        not isinstance(data, Stored)
        and hasattr(data, "__getitem__")
        and hasattr(data, "__len__")
        and not _is_array(data)
    )


def is_batches(data: Any) -> bool:
    """Whether data come batch by batch: an iterator, an iterable without rows by number, a function that makes one, or a list
    of dicts."""
    if isinstance(data, (list, tuple)):
        return bool(data) and all(isinstance(part, Mapping) for part in data)
    if isinstance(data, DataLoader) and isinstance(data.dataset, IterableDataset):
        return data.batch_size is not None or data.batch_sampler is None
    if isinstance(data, (Dataset, DataLoader, Stored)) or _is_array(data):
        return False
    if isinstance(data, Iterator) or (isinstance(data, Iterable) and not hasattr(data, "__getitem__")):
        return True
    return callable(data) and not isinstance(data, (type, torch.nn.Module))


def _is_array(data: Any) -> bool:
    """Whether data are an array, a table, or something made of them."""
    if isinstance(data, (Tensor, Mapping, Sequence, Set)) or any(hasattr(data, name) for name in OF_ARRAYS):
        return True
    try:
        return memoryview(data) is not None
    except TypeError:
        return counts_nulls(data)


class Items:
    """The items of a map-style dataset that are rows, and how several of them become a batch.

    Args:
        source: A map-style `Dataset` or another object with `__len__` and `__getitem__`, such as a data set of Hugging Face,
            or a `DataLoader` of one. Of a `DataLoader`, `collate_fn` is used, and the items of a `SubsetRandomSampler`; not
            their order, nor `drop_last`, since batches here are all of one size.

    Raises:
        DataError: The dataset has no length or is empty, or the loader draws rows in a way that cannot be kept.
    """

    def __init__(self, source: Any) -> None:
        loader = source if isinstance(source, DataLoader) else None
        self.dataset: Any = getattr(loader, "dataset", source)
        if isinstance(self.dataset, IterableDataset) or not hasattr(self.dataset, "__len__"):
            raise DataError(
                f"{type(self.dataset).__name__} has no length and no order to shuffle: rows are read from a map-style Dataset, "
                "which has __len__ and __getitem__. One that only gives row after row is read in batches: pass "
                "DataLoader(dataset, batch_size=128), or, where it gives batches, batch_size=None, with steps=... to the fit."
            )
        self.collate: Any = collate if loader is None or loader.collate_fn is default_collate else loader.collate_fn
        self.kept: Sequence[int] = range(len(self.dataset)) if loader is None else _sampled(loader)
        if not self.kept:
            raise DataError("The data are empty: at least one row is needed.")

    def load(self, rows: Sequence[int] | None = None) -> Any:
        """What the collate function makes of the items at these positions among the rows, or of all."""
        kept = self.kept if rows is None else [self.kept[i] for i in rows]
        many = getattr(self.dataset, "__getitems__", None)  # as torch's loaders ask for it
        return self.collate([self.dataset[i] for i in kept] if many is None else many(list(kept)))


def collate(items: Sequence[Any]) -> Any:
    """torch's `default_collate`, after lists of numbers and pictures have become arrays, as in data sets of Hugging Face."""
    return default_collate([_with_arrays(item) for item in items])


def _with_arrays(item: Any) -> Any:
    if isinstance(item, dict):
        return {name: _array(name, value) for name, value in item.items()}
    numbers = isinstance(item, list) and all(isinstance(part, (int, float, type(None))) for part in item)
    return _array("an item", item) if numbers else item  # a list of arrays has the arguments in their order


def _array(name: str, value: Any) -> Any:
    if isinstance(value, list):
        return as_tensor(name, value, torch.float64)  # `by_argument` makes it the dtype of the argument
    if hasattr(value, "__array_interface__") and not isinstance(value, np.ndarray | np.generic):  # a picture of PIL
        return torch.from_numpy(np.array(value))
    return value


def _sampled(loader: DataLoader[Any]) -> Sequence[int]:
    """The items that a loader gives out in an epoch. DataError unless it gives out each of them once, in batches."""
    dataset: Any = loader.dataset
    batches: Any = loader.batch_sampler
    plain = type(batches) is BatchSampler and type(loader).__iter__ is DataLoader.__iter__
    sampler: Any = batches.sampler if plain else None
    if type(sampler) is SubsetRandomSampler:
        return [int(i) for i in sampler.indices]
    whole = type(sampler) is SequentialSampler or (type(sampler) is RandomSampler and not sampler.replacement)
    if whole and len(sampler) == len(dataset):
        return range(len(dataset))
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

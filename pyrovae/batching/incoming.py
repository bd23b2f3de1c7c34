"""Rows that come batch by batch, from an iterator or from files that are larger than memory: a fit sees each batch once a pass.

A step takes B rows, whatever the number of rows in which they come: what is left of a batch goes into the next.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pyrovae.batching.batches import digest_of
from pyrovae.errors import DataError, OptionError, counted
from pyrovae.pair.batch import Batch, as_batch, cast, known_rows, num_rows, take_rows
from pyrovae.pair.datasets import by_argument, by_workers
from pyrovae.pair.parameters import dtype_of
from pyrovae.pair.program import PairLike, arguments
from pyrovae.pair.stored import Stored, mixed

STEPS = 100  # an epoch of a fit whose length is given in steps: so often it is measured and written into the history
BATCH_ROWS = 128  # of a step on rows in files, as on rows in memory


class Incoming:
    """Rows of a fit that come batch by batch.

    Args:
        pair: Model and guide.
        source: An iterator of batches; an iterable of them, or a function that makes one, which are started again where they
            end; or rows in files. A batch is what `as_batch` takes.
        device: Where batches are moved.
        batch_size: B, the rows of a step; None for as many as the first batch has.
        total: N, the number of rows that the data stand for; None if it is not known.
        seed: Of the random numbers of torch that the source draws, which are apart from those of the fit, and of the order of
            rows in files.
        transforms: As for `as_batch`.
        find_casts: Finds for the first batch which arguments are cast, and to which dtype.

    Attributes:
        num_rows: N, or B where N is not known: then the objective is the mean over rows, and no term may belong to all rows.
        taken: How many batches steps have taken.
        block_rows: How many rows the first batch of the source has.
        examine: A check of a batch whose values lie beyond those of all batches before, set by the fit.
    """

    rows: Batch | None = None
    repeats = False  # what steps have taken is gone

    def __init__(
        self,
        pair: PairLike,
        source: Any,
        device: torch.device,
        batch_size: int | None,
        total: int | None,
        seed: int,
        *,
        transforms: bool = False,
        find_casts: Callable[[Batch], Mapping[str, torch.dtype]] = lambda first: {},
    ) -> None:
        self.pair, self.source, self.device, self.seed, self.transforms = pair, source, device, seed, transforms
        self.find_casts, self.casts = find_casts, dict[str, torch.dtype]()
        self.dtypes = dict.fromkeys(arguments(pair), dtype_of(pair))
        self.optional = [name for name, parameter in arguments(pair).items() if parameter.default is None]
        self.form: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        self.came = 0  # batches of the source in this pass
        self.taken = 0
        self.examine: Callable[[Batch, Tensor], None] = lambda batch, numbers: None
        # of each argument the least and the largest value, and whether there was a NaN
        self.seen: dict[str, tuple[float, float, bool]] = {}
        self._noise = torch.Generator().manual_seed(seed).get_state()
        if isinstance(source, Stored):
            self.batch_size = min(BATCH_ROWS, source.num_rows) if batch_size is None else batch_size
            if self.batch_size > source.num_rows:
                raise DataError(
                    f"batch_size={batch_size} is larger than the {counted(source.num_rows, 'row')}: use at most "
                    f"{source.num_rows}."
                )
            self.block_rows = self.batch_size
            self._dealt = mixed(source, self._bind, self.batch_size, seed)
        else:
            blocks = self._blocks()
            first = next(blocks)
            self.block_rows = num_rows(first)
            self.batch_size = self.block_rows if batch_size is None else batch_size
            self._dealt = _in_batches(first, blocks, self.batch_size)
        first = next(self._dealt)
        self.first: Batch = {name: value.clone() for name, value in first.items()}
        self._held: Batch | None = self.first
        self.known = known_total(source, total)
        self.num_rows = self.batch_size if self.known is None else self.known

    # what a fit asks of a source of rows

    def place(self, device: torch.device) -> None:
        """Nothing to do: batches are moved as they come."""

    def begin(self, coming: Sequence[Tensor]) -> None:
        """Nothing to do: which rows come is not for the fit to say."""

    def take(self, rows: Tensor) -> Batch:
        """Rows of the first batch."""
        return self._moved(take_rows(self.first, rows.to("cpu")))

    def some(self, most: int) -> Batch:
        """The first rows, by which the pair is watched."""
        return self._moved(take_rows(self.first, slice(0, most)))

    def inputs(self, index: Mapping[str, Tensor]) -> Batch:
        """The inputs of a step: the next batch, checked."""
        batch = self._next()
        self._check(batch)
        self.taken += 1
        return self._moved(batch)

    def digest(self) -> dict[str, Any]:
        """What is known of the data before they have been read: their number, the first batch, and how files are mixed."""
        found = {"rows": self.known, "first": digest_of(self.first)}
        if isinstance(self.source, Stored):
            runs = len(self.source.runs)
            found["order"] = {"runs": runs, "buffer": self.source.buffer, "shuffle": self.source.shuffle}
        return found

    def wind(self, taken: int) -> None:
        """Go forward to where a fit was that had taken so many batches. For a source that has just been opened."""
        if isinstance(self.source, Stored):
            self._held = None
            self._dealt = mixed(self.source, self._bind, self.batch_size, self.seed, taken)
        else:
            for _ in range(taken):
                self._next()
        self.taken = taken

    # batches

    def _next(self) -> Batch:
        held, self._held = self._held, None
        return next(self._dealt) if held is None else held

    def _moved(self, batch: Batch) -> Batch:
        if self.device.type != "cuda":
            return {name: value.to(self.device) for name, value in batch.items()}
        pinned = {n: v if v.device.type == "cuda" else v.pin_memory() for n, v in batch.items()}
        return {name: value.to(self.device, non_blocking=True) for name, value in pinned.items()}

    def _blocks(self) -> Iterator[Batch]:
        """What the source gives, bound and of one form, pass after pass."""
        again, passes = can_start_again(self.source), 0
        while True:
            self.came = 0
            for given in self._pass():
                self.came += 1
                yield self._bind(given)
            passes += 1
            if not self.came:
                when = "" if passes == 1 else f" when it was started for pass {passes}"
                once = "" if passes == 1 else " It can be read only once: give a function that makes it anew."
                raise DataError(f"The data gave no batch{when}.{once or ' At least one row is needed.'}")
            if not again:
                raise DataError(
                    f"The data ended after {counted(self.came, 'batch', 'batches')}, and the fit is not at its end. Ask "
                    "for fewer steps, or give "
                    "something that can be started again: a list, a DataLoader, or a function that makes the iterator, "
                    "pv.fit(pair, lambda: batches(), ...)."
                )

    def _pass(self) -> Iterator[Any]:
        with self._own_noise(), by_workers():
            batches = iter(self.source if isinstance(self.source, Iterable) else _made(self.source))
        while True:
            with self._own_noise(), by_workers():
                try:
                    found = next(batches)
                except StopIteration:
                    return
            yield found

    @contextmanager
    def _own_noise(self) -> Iterator[None]:
        """Inside, torch's random numbers are the source's own."""
        before = torch.get_rng_state()
        torch.set_rng_state(self._noise)
        try:
            yield
        finally:
            self._noise = torch.get_rng_state()
            torch.set_rng_state(before)

    # checks

    def _bind(self, given: Any) -> Batch:
        """A batch as tensors. DataError unless it has the form of the first."""
        if isinstance(self.source, DataLoader):
            given = by_argument(given, list(self.dtypes), self.dtypes)
        given = self._quickly(given) if self.form else given
        where = self.source.name if isinstance(self.source, Stored) else f"Batch {self.came}"
        if not self.form or _form(given) != self.form:
            try:
                given = as_batch(self.pair, given, self.dtypes, transforms=self.transforms, casts=self.casts)
                if not self.form:
                    self.casts = dict(self.find_casts(given))
                    given = cast(self.pair, given, self.casts)
            except DataError as error:
                raise DataError(f"{where}: {error}") from error
            form = _form(given) or {}
            if self.form and form != self.form:
                raise DataError(f"{where} has rows of {_told(form)}, and those before had {_told(self.form)}.")
            self.form = form
        batch: Batch = given
        for name in self.optional:
            if name in batch and not bool(known_rows(batch[name]).all()):
                raise DataError(
                    f"{where} has rows whose {name!r} is unknown. Rows of which some lack an argument (-1, or NaN) are "
                    "grouped, which needs all of them at hand: pass arrays or tensors, or leave such rows out."
                )
        return batch

    def _quickly(self, given: Any) -> Any:
        """Plain arrays of floating numbers as tensors, since `as_batch` looks at everything anew."""
        first = next(iter(self.dtypes))
        if isinstance(given, (np.ndarray, Tensor)) and list(self.form) == [first]:
            given = {first: given}
        if type(given) is not dict:
            return given
        return {name: self._plainly(name, value) for name, value in given.items()}

    def _plainly(self, name: str, value: Any) -> Any:
        dtype = self.form[name][1] if name in self.form else torch.bool
        if type(value) is not np.ndarray or not dtype.is_floating_point or value.dtype not in (np.float32, np.float64):
            return value
        plain = value.flags.c_contiguous and value.flags.writeable and value.dtype.isnative
        return torch.from_numpy(value).to(dtype) if plain else value

    def _check(self, batch: Batch) -> None:
        """Examine a batch that has values beyond those of all batches before it, such as the first NaN."""
        new = False
        for name, value in batch.items():
            if value.device.type != "cpu" or value.dtype == torch.bool or not value.numel():
                continue
            low, high, gaps = _extremes(value)
            before = self.seen.get(name, (math.inf, -math.inf, False))
            if low < before[0] or high > before[1] or gaps > before[2]:
                self.seen[name], new = (min(low, before[0]), max(high, before[1]), gaps or before[2]), True
        if new and self.taken:
            first = self.taken * self.batch_size
            self.examine(batch, torch.arange(first, first + num_rows(batch)))


class Counted:
    """In place of the order of rows: how many steps an epoch has, where rows come as they come.

    Args:
        total: Steps in all.
        per_epoch: Steps of an epoch, on average.
    """

    def __init__(self, total: int, per_epoch: float) -> None:
        self.total, self.per_epoch = total, per_epoch
        self.begun, self.given, self.left = 0, 0, 0  # epochs, steps, and steps of this epoch that are still to come

    @property
    def ended(self) -> bool:
        """Whether all steps have been taken."""
        return self.given >= self.total

    @property
    def to_come(self) -> int:
        """How many epochs are still to end."""
        return max(0, math.ceil(self.total / self.per_epoch - 1e-9) - int(self.given / self.per_epoch + 1e-9))

    def begin_epoch(self) -> None:
        if self.given >= self._end():  # else a shorter fit ended within this epoch, which goes on
            self.begun += 1
        self.left = max(0, min(self.total, self._end()) - self.given)

    def _end(self) -> int:
        """The number of steps after the epoch that was begun last."""
        return int(self.begun * self.per_epoch + 1e-9)

    def __len__(self) -> int:
        return self.left

    def deal(self) -> dict[str, Tensor]:
        self.left -= 1
        self.given += 1
        return {}

    def coming(self) -> list[Tensor]:
        return []

    def state_dict(self) -> dict[str, Tensor]:
        return {name: torch.tensor(getattr(self, name)) for name in ("begun", "given", "left")}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.begun, self.given, self.left = (int(state[name]) for name in ("begun", "given", "left"))
        if min(self.begun, self.given, self.left) < 0:
            raise ValueError("the steps of an epoch cannot be fewer than none")
        self.left = max(0, min(self.left, self.total - self.given))  # of a fit that is to be shorter now


def _made(source: Callable[[], Any]) -> Iterable[Any]:
    """What a function that gives the data makes. DataError unless that is an iterable of batches."""
    try:
        inspect.signature(source).bind()
    except TypeError as error:
        raise DataError(
            f"A function that gives the data is called without arguments, and this one cannot be ({error}): pass "
            "lambda: batches(...), with its arguments inside."
        ) from error
    except ValueError:  # not every function says what it takes
        pass
    made = source()
    if not isinstance(made, Iterable) or isinstance(made, (Tensor, Mapping, str, bytes)) or hasattr(made, "__array__"):
        raise DataError(
            f"A function that gives the data must make an iterable of batches, this one returned {type(made).__name__}. A "
            "single batch is a list of one, [batch]; data that are at hand are passed as they are."
        )
    return made


def _extremes(value: Tensor) -> tuple[float, float, bool]:
    """The least and the largest value that is not NaN, and whether there is a NaN."""
    low, high = (bound.item() for bound in value.aminmax())
    if not math.isnan(low):
        return low, high, False
    known = value[~value.isnan()]
    if not known.numel():
        return math.inf, -math.inf, True
    low, high = (bound.item() for bound in known.aminmax())
    return low, high, True


def can_start_again(source: Any) -> bool:
    """Whether batches can be read a second time: not those of a bare iterator."""
    return not isinstance(source, Iterator)


def known_total(source: Any, given: int | None) -> int | None:
    """N, the number of rows that batches stand for, as given, or as the source says; None if it is not known."""
    if given is not None or isinstance(source, Stored):
        return source.num_rows if given is None else given
    if isinstance(source, (list, tuple)):
        return sum(next((len(v) for v in batch.values() if hasattr(v, "__len__")), 0) for batch in source)
    return None


def length(incoming: Incoming, epochs: int | None, steps: int | None) -> tuple[int, int, float]:
    """Epochs, steps in all, and steps of an epoch on average.

    Raises:
        OptionError: Neither is given, or epochs are, and how many rows there are is not known.
    """
    if epochs == 0:
        return 0, 0, float(STEPS)
    if steps is not None:
        return math.ceil(steps / STEPS), steps, float(STEPS)
    if epochs is None:
        raise OptionError("How long is the fit? Rows that come batch by batch need steps=..., such as steps=10_000.")
    rows = incoming.known
    if rows is None:
        loader = isinstance(incoming.source, DataLoader)
        batches = _number_of(incoming.source) if not loader or isinstance(incoming.source.dataset, Sized) else None
        if batches is None:
            raise OptionError(
                "An epoch is a pass over the rows, and how many there are is not known: give steps=..., the number of batches "
                "that the fit takes, or num_rows=... and data that can be started again."
            )
        rows = batches * incoming.block_rows
        if loader and incoming.source.batch_size is not None:
            rows = min(rows, len(incoming.source.dataset))  # the last batch may be smaller
        if rows < incoming.batch_size:
            raise DataError(
                f"batch_size={incoming.batch_size} is larger than the {counted(rows, 'row')}: use at most {rows}."
            )
    return epochs, epochs * rows // incoming.batch_size, rows / incoming.batch_size


def _number_of(source: Any) -> int | None:
    try:
        return len(source)
    except TypeError:
        return None


def _in_batches(first: Batch, blocks: Iterator[Batch], size: int) -> Iterator[Batch]:
    """Blocks of rows as batches of `size` rows. What waits for the next block is copied, which may come in the same memory."""
    left: list[Batch] = []
    have = 0

    def all_blocks() -> Iterator[Batch]:
        yield first
        yield from blocks

    for block in all_blocks():
        rows, start = num_rows(block), 0
        if have:
            start = min(size - have, rows)
            left.append(_part(block, 0, start))
            have += start
            if have < size:
                left[-1] = {name: value.clone() for name, value in left[-1].items()}
                continue
            yield {name: torch.cat([part[name] for part in left]) for name in block}
            left, have = [], 0
        while rows - start >= size:
            yield block if rows == size else _part(block, start, start + size)
            start += size
        if start < rows:
            left, have = [{n: v.clone() for n, v in _part(block, start, rows).items()}], rows - start


def _part(block: Batch, start: int, end: int) -> Batch:
    return {name: value[start:end] for name, value in block.items()}


def _form(given: Any) -> dict[str, tuple[tuple[int, ...], torch.dtype]] | None:
    """The shape of a row and the dtype of each argument of a batch of tensors with the same rows; None for anything else."""
    if type(given) is not dict or not all(isinstance(v, Tensor) and _is_plain(v) for v in given.values()):
        return None
    rows = {len(value) for value in given.values()}
    return {n: (tuple(v.shape[1:]), v.dtype) for n, v in given.items()} if len(rows) == 1 and rows != {0} else None


def _is_plain(value: Tensor) -> bool:
    """Whether `as_batch` would keep a tensor as it is."""
    if value.is_nested or value.layout != torch.strided or value.is_quantized or hasattr(value, "get_mask"):
        return False
    return value.dim() > 0 and not value.requires_grad


def _told(form: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> str:
    return ", ".join(f"{name}: {shape} {str(dtype)[6:]}" for name, (shape, dtype) in form.items())

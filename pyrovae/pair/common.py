"""Common random numbers: all rows of a run get the same noise, so that what is found out about a row depends on it alone.

Inside of `common_draws` the random numbers of a sample site in the plate "data" are those of one row, repeated for every row,
and each block of rows starts again from the same seed. Then neither the order of rows, nor the company in which they are, nor
the size of the blocks in which they are computed has an influence on a result, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyrovae._dispatch import DispatchMode
from pyrovae.errors import PairError
from pyrovae.pair.handlers import DATA_PLATE
from pyrovae.pair.turns import turn

_SEEDS: list[int] = []
STAGES = 1_000_003  # between the seeds of two stages of one computation


@contextmanager
def common_draws(seed: int) -> Iterator[None]:
    """Inside, all rows get the same noise, which follows from the seed. For the CPU."""
    with turn(), torch.random.fork_rng(devices=[]):
        _SEEDS.append(seed)
        try:
            yield
        finally:
            _SEEDS.pop()


def are_common() -> bool:
    """Whether rows get the same noise now."""
    return bool(_SEEDS)


def start_rows(stage: int = 0) -> None:
    """Before a new block of rows: start again from the same random numbers, other ones at each stage of a computation."""
    if _SEEDS:
        torch.default_generator.manual_seed((_SEEDS[-1] + STAGES * stage) % 2**63)


def same_for_rows(dim: int, num_rows: int) -> AbstractContextManager[Any]:
    """Inside, tensors of random numbers with so many rows along `dim`, counted from the left, hold the same for each row."""
    return _SameForRows((num_rows,), 0, lead=dim) if _SEEDS else nullcontext()


def commonly(function: Callable[..., Any]) -> Callable[..., Any]:
    """A model or a guide whose sites in the plate "data" draw the same for every row, where that is asked for."""
    return CommonDraws()(function) if _SEEDS else function


class CommonDraws(Messenger):  # type: ignore[misc]  # Pyro has no types
    """Draw the sites of the plate "data" with the same noise for each row. It has to be outside of all plates."""

    def _pyro_sample(self, msg: Any) -> None:
        rows = [f for f in msg["cond_indep_stack"] if f.vectorized and f.name == DATA_PLATE]
        if not rows or msg["done"] or msg["is_observed"] or msg["value"] is not None:
            return
        batch = tuple(msg["fn"].batch_shape)
        lead = int(distribution_of(msg["fn"]) == "VonMises")  # for each row it takes three numbers, the first dimension
        with _apart(), _SameForRows(batch, len(batch) + rows[0].dim, lead):
            msg["value"] = msg["fn"](*msg["args"], **msg["kwargs"])


def distribution_of(fn: Any) -> str:
    """The class of a distribution, inside of those that wrap it."""
    while hasattr(fn, "base_dist") and not hasattr(fn, "transforms"):
        fn = fn.base_dist
    return type(fn).__name__


@contextmanager
def _apart() -> Iterator[int]:
    """Random numbers of their own inside, however many are taken, as by rejection: those that follow are the same."""
    seed = int(torch.randint(2**62, ()))
    after = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    yield seed
    torch.set_rng_state(after)


class _SameForRows(DispatchMode):
    """Give all random numbers that torch draws inside the same values for each row.

    Args:
        batch: the batch shape of what is drawn; a tensor of random numbers has it after `lead` other dimensions.
        dim: where the rows are in it.
        lead: how many dimensions precede it.
    """

    def __init__(self, batch: tuple[int, ...], dim: int, lead: int = 0) -> None:
        super().__init__()
        self.batch, self.dim, self.lead = batch, dim, lead

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, kind, first = kwargs or {}, func.overloadpacket, args[0] if args else None
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        if kind is _aten.multinomial:
            return self._one_of(*args)
        if kind in (_aten.randn, _aten.rand, _aten.randint):  # whose shape comes first, or after the bounds
            return self._made(func, args, kwargs)
        shape = tuple(first.shape) if isinstance(first, Tensor) else ()
        if not self._has_rows(shape):
            if any(isinstance(a, Tensor) and self._has_rows(tuple(a.shape)) for a in args):
                return self._each(func, torch.broadcast_tensors(*(torch.as_tensor(a) for a in args)), kwargs)
            return func(*args, **kwargs)
        assert isinstance(first, Tensor)
        if kind is _aten.normal:
            return first + args[1] * self._noise(first, torch.randn)
        if kind is _aten.bernoulli and len(args) == 1:
            return (self._noise(first, torch.rand) < first).to(first.dtype)
        if any(isinstance(a, Tensor) for a in args[1:]) or kind in _OF_THEIR_VALUES:
            return self._each(func, args, kwargs)
        one = func(self._row(first, 0).clone(memory_format=torch.contiguous_format), *args[1:], **kwargs)
        alike = one.expand(shape)
        return first.copy_(alike) if func._schema.is_mutable else alike.clone()

    @property
    def _place(self) -> int:
        return self.lead + self.dim

    def _has_rows(self, shape: tuple[int, ...]) -> bool:
        return shape[self.lead : self.lead + len(self.batch)] == self.batch

    def _row(self, tensor: Tensor, row: int) -> Tensor:
        return tensor.narrow(self._place, row, 1)

    def _noise(self, like: Tensor, make: Callable[..., Tensor]) -> Tensor:
        """Random numbers of the shape of a tensor, alike for all rows."""
        shape = list(like.shape)
        shape[self._place] = 1
        return make(shape, dtype=like.dtype).expand(like.shape)

    def _made(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        where = next(i for i, a in enumerate(args) if isinstance(a, Sequence))
        shape = tuple(args[where])
        few = list(shape)
        if self._has_rows(shape):
            few[self._place] = 1
        made: Tensor = func(*args[:where], few, *args[where + 1 :], **kwargs)
        return made if tuple(few) == shape else made.expand(shape).clone()

    def _one_of(self, probabilities: Tensor, num_samples: int, *_: Any) -> Tensor:
        """Draws of classes by the inverse of their distribution function, from probabilities `(rows of all plates, C)`."""
        shape = (*self.batch, probabilities.shape[-1])
        if self.lead or probabilities.numel() != torch.Size(shape).numel():
            raise PairError(
                f"Rows cannot get the same draws of a multinomial of shape {tuple(probabilities.shape)}, whose plates are "
                f"{self.batch}: draw classes by a Categorical."
            )
        noise = self._noise(probabilities.new_empty((*self.batch, num_samples)), torch.rand)
        total = probabilities.reshape(shape).cumsum(-1)
        found = torch.searchsorted(total, noise * total[..., -1:], right=True)
        return found.clamp_max(shape[-1] - 1).reshape(-1, num_samples)

    def _each(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        """Row by row, each from the same seed: for what rejects draws, such as those of a Gamma distribution."""
        first, made = args[0], []
        with _apart() as seed:
            for row in range(first.shape[self._place]):
                torch.default_generator.manual_seed(seed)
                these = [self._row(a.expand(first.shape), row) if isinstance(a, Tensor) else a for a in args]
                made.append(func(*these, **kwargs))
        rows = torch.cat(made, self._place)
        return first.copy_(rows) if func._schema.is_mutable else rows


_aten = torch.ops.aten
# Random numbers whose distribution depends on the values of the first argument, which are others for each row.
_OF_THEIR_VALUES = (_aten._standard_gamma, _aten._sample_dirichlet, _aten.poisson, _aten.binomial, _aten.bernoulli)

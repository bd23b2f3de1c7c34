"""Fit: a pair with its trained weights, and all that is known about how it came to be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from pyrovae.errors import DataError
from pyrovae.pair.batch import Batch, as_batch, group_rows, take_group
from pyrovae.pair.layout import Layout, describe
from pyrovae.pair.parameters import evaluating, fork_rng, named_tensors, param_scope

EVALUATION_SEED = 20_130_620


class FittedGroup(NamedTuple):
    """Rows that have the same arguments: where they stand in the data, (n,), and what the pair is made of for them."""

    rows: Tensor
    batch: Batch
    layout: Layout


@dataclass(repr=False)
class Fit:
    """What `fit` returns, and what everything that asks a fitted pair takes.

    `history` has one dict per epoch: the ELBO in nats per row, the KL weight left out, and under "kl/SITE" the KL term of each
    latent site, of the validation rows or of up to 256 training rows. `settings` says how the fit was run, `info` what the
    caller wanted kept with it. The weights are the modules' own, and bare `pyro.param`s live in `store`, away from Pyro's
    global param store. `layout` is that of the rows with the fewest arguments; `more_layouts` are those of the others, where
    some rows have an argument that others lack.
    """

    pair: Any
    layout: Layout
    store: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    transform: Callable[[Batch], Batch] | None = None
    info: dict[str, Any] = field(default_factory=dict)
    stopped: str = ""
    more_layouts: tuple[Layout, ...] = ()

    def __repr__(self) -> str:
        last = f", ELBO {self.history[-1]['elbo']:.2f} nats per row" if self.history else ""
        sites = ", ".join(site.name for site in self.layout.sites)
        return f"Fit({type(self.pair).__name__} of {sites}: {len(self.history)} epochs{last})"

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Ask, do not train: the fit's own param store and `evaluation_mode`; all put back afterwards."""
        with param_scope(self.store), self.evaluation_mode():
            yield

    @contextmanager
    def evaluation_mode(self) -> Iterator[None]:
        """Modules in evaluation mode, no gradients, no validation."""
        with evaluating(self.pair), torch.no_grad(), pyro.validation_enabled(False):
            yield

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        with param_scope(self.store):
            tensors = named_tensors(self.pair, buffers=True)
        return next((t.device for t in tensors.values()), torch.device("cpu"))

    @property
    def layouts(self) -> tuple[Layout, ...]:
        return (self.layout, *self.more_layouts)

    @property
    def arguments(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Row shape and dtype of every argument that some rows of the fit had."""
        return {name: what for layout in self.layouts for name, what in layout.arguments.items()}

    def batch(self, data: Any) -> Batch:
        """Bind data to the model's arguments, on the device of the weights. DataError when rows have another shape or
        dtype than those of the fit."""
        known = self.arguments
        batch = as_batch(self.pair, data, {name: dtype for name, (_, dtype) in known.items()})
        for name, value in batch.items():
            shape, dtype = known.get(name, (tuple(value.shape[1:]), value.dtype))
            if tuple(value.shape[1:]) != shape or value.dtype != dtype:
                raise DataError(
                    f"{name!r} must have rows of shape {shape} and dtype {str(dtype)[6:]} as in the fit, "
                    f"got {tuple(value.shape[1:])} {str(value.dtype)[6:]}."
                )
        device = self.device
        return {name: value.to(device) for name, value in batch.items()}

    def evaluation_batch(self, data: Any) -> Batch:
        """As `batch`, with the fit's transform applied once, from a fixed seed."""
        return transform_once(self.batch(data), self.transform)

    def parts(self, data: Any, *, transformed: bool = True) -> list[FittedGroup]:
        """The rows in groups of the same arguments, by `evaluation_batch` or by `batch`; `in_order` undoes it."""
        batch = self.evaluation_batch(data) if transformed else self.batch(data)
        found = []
        for group in group_rows(self.pair, batch):
            rows = take_group(batch, group)
            found.append(FittedGroup(group.rows, rows, self.layout_of(rows)))
        return found

    def layout_of(self, batch: Batch) -> Layout:
        """What the pair is made of for rows with these arguments; found by a run where the fit had no such rows."""
        for layout in self.layouts:
            if layout.arguments.keys() == batch.keys():
                return layout
        with fork_rng():
            return describe(self.pair, batch)


def in_order(parts: list[FittedGroup], found: list[Tensor], dim: int = 0) -> Tensor:
    """What was found for the rows of each part, as the rows stand in the data."""
    if len(parts) == 1:
        return found[0]
    order = torch.cat([part.rows for part in parts]).argsort()
    return torch.cat(found, dim).index_select(dim, order.to(found[0].device))


def transform_once(batch: Batch, transform: Callable[[Batch], Batch] | None) -> Batch:
    """The transform's draw for evaluation: always the same, and the caller's random state is left alone."""
    if transform is None:
        return batch
    with fork_rng():
        torch.manual_seed(EVALUATION_SEED)
        return transform(batch)


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """torch's random state set to `seed` inside, and put back afterwards; for None it simply goes on."""
    if seed is None:
        yield
        return
    with fork_rng():
        torch.manual_seed(seed)
        yield

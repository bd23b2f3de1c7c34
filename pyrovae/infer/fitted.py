"""Fit: a pair with its trained weights, and all that is known about how it came to be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch

from pyrovae.check import Layout
from pyrovae.errors import DataError
from pyrovae.pair import Batch, as_batch, evaluating, fork_rng, named_tensors, param_scope

EVALUATION_SEED = 20_130_620


@dataclass(repr=False)
class Fit:
    """What `fit` returns, and what everything that asks a fitted pair takes.

    `history` has one dict per epoch (ELBO in nats per row, the KL weight left out); `settings` how the fit was run;
    `info` what the caller wanted kept with it. The weights are the modules' own, and bare `pyro.param`s live in `store`,
    away from Pyro's global param store.
    """

    pair: Any
    layout: Layout
    store: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    transform: Callable[[Batch], Batch] | None = None
    info: dict[str, Any] = field(default_factory=dict)
    stopped: str = ""

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

    def batch(self, data: Any) -> Batch:
        """Bind data to the model's arguments, on the device of the weights. DataError when rows have another shape or
        dtype than those of the fit."""
        batch = as_batch(self.pair, data, {name: dtype for name, (_, dtype) in self.layout.arguments.items()})
        for name, value in batch.items():
            shape, dtype = self.layout.arguments.get(name, (tuple(value.shape[1:]), value.dtype))
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

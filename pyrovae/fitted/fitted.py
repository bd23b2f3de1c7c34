"""A pair with its trained weights and a record of the fit (`Fit`), and how its rows are evaluated in groups."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from pyrovae._arguments import as_seed
from pyrovae._html import table
from pyrovae.batching.checks import check_doubtful_rows
from pyrovae.batching.chunks import chunk_size, row_elements
from pyrovae.batching.transformed import in_evaluation, transformed
from pyrovae.batching.transforms import Transform
from pyrovae.engine.freed_memory import keep_freed_memory
from pyrovae.engine.threads import computing_with, threads_for
from pyrovae.errors import DataError, PairError, counted
from pyrovae.pair.batch import Batch, as_batch, check_columns, columns_of, group_rows, take_group, take_rows
from pyrovae.pair.datasets import is_batches, is_streamed
from pyrovae.pair.graph import graph_text
from pyrovae.pair.layout import COLUMNS, Layout, describe
from pyrovae.pair.parameters import (
    default_dtype,
    evaluating,
    fork_rng,
    modules_remembered,
    named_tensors,
    param_scope,
    seed_torch,
)
from pyrovae.pair.program import PairLike

# For what is random in an evaluation that must always give the same result: a transform's draw, and the monitored rows.
FIXED_NOISE_SEED = 20_130_620
FEW = 256  # rows of a run of a size that has not been measured


class FittedGroup(NamedTuple):
    """Rows for which the same arguments are known, and the layout of the pair for them."""

    rows: Tensor  # (n,) int64, the rows' indices in the data
    batch: Batch
    layout: Layout


@dataclass(repr=False)
class Fit:
    """A fitted pair, with a record of how it was fitted.

    `pv.fit` and `pv.load` return it, and all functions that evaluate a pair or predict with it take it.

    Args:
        pair: Model and guide. The weights of modules are in the modules themselves.
        layout: The sites and arguments of the pair. Where arguments are missing in some rows, this is the layout for the rows
            with the fewest arguments.
        store: The parameters that the pair made by `pyro.param`, which are kept out of Pyro's global param store.
        history: One dict per epoch: "epoch", "steps", "elbo" and, with validation rows, "validation_elbo", both in nats per
            row and without KL weight (where the loss is `IWELBO` or `RWS`, its bound); "learning_rate", "kl_weight" and
            "seconds"; and for each latent site, as "kl/z", its KL term in nats per row, of the validation rows or else of up
            to 256 training rows; and for each site of codes, as "perplexity/z", the perplexity of the codes that these rows use
            ("perplexity/z/1" and so on for residual levels), unless classes are summed out. After 200 short epochs not each one
            has these, see `validation` of `pv.fit`. Where the draws of a guide are relaxed, then "relaxed_elbo" is what the
            steps ascended, which is no bound on log p(x), and "elbo" is that of the discrete guide on up to 256 training rows.
            Of rows that come batch by batch "first_rows_elbo" is that of up to 256 of the first: where it falls while "elbo"
            rises, the data drift. A module of the pair may add numbers, under other names, by a method `in_history()`,
            as `pv.guides.MonteCarloEM` does.
        settings: The options of the fit, the engine that ran it, and the device. Of a fit that diverged with numbers that
            stayed finite, "diverged" holds the ELBO of its first step ("start"), the best of an epoch ("highest"), and that of
            the weights which were kept ("end").
        transform: The transform of batches that the fit used, or None.
        info: What the caller of `pv.fit` wanted to keep with the run, as JSON.
        stopped: Why the fit ended before its last epoch; empty if it did not.
        more_layouts: The layouts for rows with other arguments than those of `layout`.
        row_elements: For each set of arguments, how many elements one row adds to the largest tensor of a run.
        untransformed: The shape of one row and the dtype of each argument before the transform, as the data have them.
        columns: The names of the columns of each argument, as far as the data, or the `column_names` of the pair, tell them.
        checksums: Of each weight as the fit left it, by name; empty while it runs.
        threads: Of the CPU that questions compute with; None takes as many as the sizes of their products keep busy.

    Example:
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6)), pv.mlp(6, fam.Normal(2)))
        >>> fitted = pv.fit(vae, x, epochs=2, batch_size=20, seed=0, progress=False)
        >>> fitted
        Fit(VAE of z, x: 2 epochs, ELBO ... nats per row)
        >>> [row["epoch"] for row in fitted.history], sorted(fitted.history[0])
        ([1, 2], ['elbo', 'epoch', 'kl/z', 'kl_weight', 'learning_rate', 'seconds', 'steps'])
        >>> fitted.settings["batch_size"], fitted.stopped
        (20, '')
        >>> with fitted.scope():  # evaluation mode, the fit's own parameters, and no gradients
        ...     fitted.pair.likelihood(torch.zeros(2, device=fitted.device)).mean.shape
        torch.Size([6])
    """

    pair: PairLike
    layout: Layout
    store: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    transform: Transform | None = None
    info: dict[str, Any] = field(default_factory=dict)
    stopped: str = ""
    more_layouts: tuple[Layout, ...] = ()
    row_elements: dict[tuple[str, ...], int] = field(default_factory=dict)
    untransformed: dict[str, tuple[tuple[int, ...], torch.dtype]] = field(default_factory=dict)
    columns: dict[str, list[str]] = field(default_factory=dict)
    checksums: dict[str, int] = field(default_factory=dict)
    threads: int | None = None

    def __repr__(self) -> str:
        last = f", ELBO {self.history[-1]['elbo']:.2f} nats per row" if self.history else ""
        sites = ", ".join(site.name for site in self.layout.sites)
        epochs = counted(len(self.history), "epoch")
        return f"Fit({type(self.pair).__name__} of {sites}: {epochs}{last})"

    def _repr_html_(self) -> str:
        last = self.history[-1] if self.history else {}
        kept = [f"{name}: {value:.4g}" for name, value in last.items()] + ([self.stopped] if self.stopped else [])
        return table(repr(self), COLUMNS, self.layout.rows(), [*self.factorisations(), ", ".join(kept)])

    def factorisations(self) -> list[str]:
        """The factorisations of model and guide, as text, if these run on rows of zeros; no lines if they do not."""
        with suppress(Exception), param_scope(self.store):  # a notebook shows what there is, and no error
            rows = {
                name: torch.zeros(2, *shape, dtype=dtype, device=self.device)
                for name, (shape, dtype) in self.layout.arguments.items()
            }
            return [line for line in graph_text(self.pair, rows).splitlines() if not line.startswith(" ")]
        return []

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Use the fit's own param store and `evaluation_mode` inside, and restore everything afterwards."""
        keep_freed_memory()
        with (
            param_scope(self.store),
            modules_remembered(self.pair),
            default_dtype(self.pair),
            self.evaluation_mode(),
            computing_with(self._threads()),
        ):
            self.check_weights()
            yield

    def _threads(self) -> int | None:
        """How many threads a question computes with on a CPU: as a fit does, by the largest product of a full chunk."""
        if self.threads is not None:
            return self.threads
        product = self.settings.get("chunk_product")  # which a run of an earlier version has not recorded
        return None if product is None or self.device.type != "cpu" else threads_for(product)

    def keep_weights(self) -> None:
        """Take the weights as they are now for those of this fit, as after a change on purpose."""
        with param_scope(self.store):
            self.checksums = checksums(named_tensors(self.pair, buffers=False))

    def check_weights(self) -> None:
        """Raise PairError if weights have changed since the fit, as by another fit of the same modules."""
        with param_scope(self.store):
            now = checksums(named_tensors(self.pair, buffers=False)) if self.checksums else {}
        changed = [name for name, checksum in self.checksums.items() if now.get(name) != checksum]
        if changed:
            others = f" and {counted(len(changed) - 1, 'other')}" if len(changed) > 1 else ""
            raise PairError(
                f"The weights are no longer those of this Fit: {changed[0]!r}{others} changed after it, as by another fit of "
                "the same modules. Fit a copy where you need both (copy.deepcopy(pair)), or pv.save a fit before the next one "
                "and pv.load it again without pair=. If you changed them on purpose, call fitted.keep_weights()."
            )

    @contextmanager
    def evaluation_mode(self) -> Iterator[None]:
        """Put modules into evaluation mode, and switch off gradients and Pyro's validation."""
        with evaluating(self.pair), torch.no_grad(), pyro.validation_enabled(False):
            yield

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        with param_scope(self.store):
            tensors = named_tensors(self.pair, buffers=False) or named_tensors(self.pair, buffers=True)
        return next((t.device for t in tensors.values()), torch.device("cpu"))

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """The layouts for all sets of arguments that rows of the fit had."""
        return (self.layout, *self.more_layouts)

    @property
    def arguments(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """The shape of one row and the dtype of each argument that any row of the fit had, by name."""
        return {name: what for layout in self.layouts for name, what in layout.arguments.items()}

    def batch(self, data: Any) -> Batch:
        """Bind data to the model's arguments, on the device of the weights.

        Raises:
            DataError: The data cannot be bound, or their rows have another shape or dtype than those of the fit, or a table has
                other columns, or those in another order.
        """
        self.check_columns(data)
        known = {**self.arguments, **self.untransformed}
        dtypes = {name: dtype for name, (_, dtype) in known.items()}
        batch = as_batch(self.pair, data, dtypes, transforms=self.transform is not None, casts=dtypes)
        for name, value in batch.items():
            shape, dtype = known.get(name, (tuple(value.shape[1:]), value.dtype))
            if tuple(value.shape[1:]) != shape or value.dtype != dtype:
                one = f" For one row, give {name}[None]." if tuple(value.shape) == shape else ""
                steps = tuple(value.shape[2:]) == shape[1:] != () and value.shape[1] < shape[0]
                if steps and value.dtype == dtype and value.is_floating_point():
                    one = f" Of sequences, fill up those of fewer than {counted(shape[0], 'step')} with NaN at their ends."
                raise DataError(
                    f"{name!r} must have rows of shape {shape} and dtype {str(dtype)[6:]}, as in the fit, "
                    f"got {tuple(value.shape[1:])} {str(value.dtype)[6:]}.{one}"
                )
        device = self.device
        return {name: value.to(device) for name, value in batch.items()}

    def check_columns(self, data: Any) -> None:
        """Raise DataError for a table with other columns than the one of the fit, or with the same in another order."""
        if self.columns and not is_batches(data) and not is_streamed(data):
            for name, given in columns_of(self.pair, data).items():
                cure = f"table[fitted.columns[{name!r}]], or, where a schema made the rows of the fit, schema.encode(table)"
                check_columns(name, given, self.columns.get(name), "the fit", cure)

    def evaluation_batch(self, data: Any) -> Batch:
        """Like `batch`, with the fit's transform applied. Its random numbers come from a fixed seed."""
        return transform_once(self.pair, self.batch(data), self.transform)

    def parts(self, data: Any, draw: int = 0, *, known: bool = False) -> list[FittedGroup]:
        """The rows of data in groups with the same known arguments, each transformed as in `evaluation_batch`.

        `in_order` puts results back into the order of the data. `draw` is the number of a random transform's draw. Unless these
        rows are `known` to be fit for the pair, those that may not be are looked at.

        Raises:
            DataError: A row has values that are not finite, which the pair does not take, or classes that it does not have.
        """
        batch = self.batch(data)
        found = []
        for group in group_rows(self.pair, batch):
            rows = transform_once(self.pair, take_group(batch, group), self.transform, draw)
            if not known:
                # to measure what a row costs is to run the pair, which may fail on these
                chunk = self.chunk_size(rows) if tuple(rows) in self.row_elements else FEW
                with fork_rng():
                    check_doubtful_rows(self.pair, rows, chunk, group.rows)
            found.append(FittedGroup(group.rows, rows, self.layout_of(rows)))
        return found

    def chunk_size(self, batch: Batch, num_particles: int = 1) -> int:
        """How many rows with these arguments fit into one run. The cost of a row is measured at the first call."""
        names = tuple(batch)
        if names not in self.row_elements:
            self.row_elements[names] = row_elements(self.pair, batch)
        return chunk_size(self.row_elements[names], next(iter(batch.values())).device, num_particles)

    def layout_of(self, batch: Batch) -> Layout:
        """The layout of the pair for rows with these arguments, found by running it if the fit had no such rows."""
        for layout in self.layouts:
            if layout.arguments.keys() == batch.keys():
                return layout
        with fork_rng():
            return describe(self.pair, take_rows(batch, slice(0, 2)))


def checksums(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """A CRC-32 of the content of each tensor; torch's version counters miss what fused optimizers and `.data` write."""
    flat = {name: tensor.detach().cpu().contiguous().flatten() for name, tensor in tensors.items()}
    # a single element may have any stride, and still counts as contiguous
    dense = {n: v if v.stride() == (1,) else v.clone(memory_format=torch.contiguous_format) for n, v in flat.items()}
    return {name: zlib.crc32(values.view(torch.uint8).numpy().data) for name, values in dense.items()}


def in_order(parts: list[FittedGroup], found: list[Tensor], dim: int = 0) -> Tensor:
    """Join results for the rows of each part along `dim`, in the order of the data."""
    if len(parts) == 1:
        return found[0]
    order = torch.cat([part.rows for part in parts]).argsort()
    return torch.cat(found, dim).index_select(dim, order.to(found[0].device))


def transform_once(pair: PairLike, batch: Batch, transform: Transform | None, draw: int = 0) -> Batch:
    """Apply a transform for evaluation: with the same random numbers each time, and without touching the random state.

    Other numbers of a draw give other random numbers.
    """
    transform = in_evaluation(transform)
    if transform is None:
        return batch
    with fork_rng():
        seed_torch(FIXED_NOISE_SEED + draw)
        return transformed(pair, batch, transform)


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seed torch's random state inside and restore it afterwards. For None, leave it alone."""
    if seed is None:
        yield
        return
    with fork_rng():
        seed_torch(as_seed(seed))
        yield

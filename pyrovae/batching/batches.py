"""Minibatches of shuffled rows, all of the same size: the rest of an epoch's rows goes into the next epoch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from pyrovae.errors import OptionError
from pyrovae.pair.batch import Group


class Batches:
    """Minibatches as indices of rows.

    An epoch appends a new permutation of all rows to those left from the epoch before, and gives out whole batches. All
    batches have the same size, so that one traced program serves the whole fit, and over the epochs all rows are seen
    equally often, to within one.

    Args:
        num_rows: N, the number of rows.
        batch_size: B, at most N.
        seed: Seed of the permutations.
        device: Where the indices are kept.
    """

    def __init__(self, num_rows: int, batch_size: int, seed: int, device: torch.device | None = None) -> None:
        self.num_rows, self.batch_size = num_rows, batch_size
        # permutations are drawn on the CPU, so that a seed gives the same order on every device
        self.generator = torch.Generator().manual_seed(seed)
        self.queue = torch.empty(0, dtype=torch.long, device=device)

    def begin_epoch(self) -> None:
        """Append all rows in a new order."""
        self.queue = torch.cat(
            [self.queue, torch.randperm(self.num_rows, generator=self.generator).to(self.queue.device)]
        )

    def __len__(self) -> int:
        """The number of batches left in this epoch."""
        return len(self.queue) // self.batch_size

    def deal(self) -> Tensor:
        """The indices of the next batch, `(batch_size,)`."""
        dealt, self.queue = self.queue[: self.batch_size], self.queue[self.batch_size :]
        return dealt

    def coming(self) -> list[Tensor]:
        """The batches that are left in this epoch."""
        return list(self.queue[: len(self) * self.batch_size].split(self.batch_size)) if len(self) else []

    def state_dict(self) -> dict[str, Tensor]:
        return {"queue": self.queue.clone(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        queue = state["queue"]
        if queue.dtype != torch.long or queue.dim() != 1 or not ((queue >= 0) & (queue < self.num_rows)).all():
            raise ValueError(f"the rows that are left in an epoch are none of {self.num_rows}")
        self.queue = state["queue"].to(self.queue.device, copy=True)
        self.generator.set_state(state["generator"])


class GroupedBatches:
    """Minibatches that take a fixed number of rows from each of several groups.

    An epoch is one pass over the largest group. The others are shuffled anew whenever they run out.

    Args:
        groups: The rows of each group, `(n,)` int64, by name.
        sizes: The number of rows of a batch that come from each group, by name.
        seed: Seed of the permutations.
        device: Where the indices are kept.
    """

    def __init__(
        self, groups: Mapping[str, Tensor], sizes: Mapping[str, int], seed: int, device: torch.device | None = None
    ) -> None:
        # None if a group is all rows in order, so that indices within the group are indices of rows
        self.rows = {
            name: None if torch.equal(rows, torch.arange(len(rows), device=rows.device)) else rows.to(device)
            for name, rows in groups.items()
        }
        self.parts = {
            name: Batches(len(rows), sizes[name], seed + number, device)
            for number, (name, rows) in enumerate(groups.items())
        }
        self.largest = max(self.parts.values(), key=lambda part: part.num_rows)

    def begin_epoch(self) -> None:
        """Append all rows of the largest group in a new order."""
        self.largest.begin_epoch()

    def __len__(self) -> int:
        return len(self.largest)

    def deal(self) -> dict[str, Tensor]:
        """The indices of the next batch by group, each `(size,)`."""
        for part in self.parts.values():
            if not len(part):
                part.begin_epoch()
        dealt: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            rows, index = self.rows[name], part.deal()
            dealt[name] = index if rows is None else rows[index]
        return dealt

    def coming(self) -> list[Tensor]:
        """The batches that are left in this epoch, for a `Stream` to load ahead. Streamed rows are all in one group."""
        return self.largest.coming()

    def state_dict(self) -> dict[str, Tensor]:
        return {f"{name}/{k}": v for name, part in self.parts.items() for k, v in part.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, part in self.parts.items():
            # version 0.1 wrote the state of a single group without its name
            prefix = f"{name}/" if f"{name}/queue" in state else ""
            part.load_state_dict({k: state[f"{prefix}{k}"] for k in ("queue", "generator")})


def group_sizes(groups: list[Group], optional: list[str], batch_size: int, chosen: Mapping[str, int]) -> list[int]:
    """The number of rows that a minibatch takes from each group.

    Args:
        groups: The groups of rows, N_g of N rows each.
        optional: The arguments that may be missing in some rows.
        batch_size: B.
        chosen: Numbers that the user has chosen, by the optional arguments that are known in a group: "y", "y,w", or "" for
            none of them.

    Returns:
        The chosen number, else min(N_g, max(B/4, B N_g/N)), for each group.

    Raises:
        OptionError: There is no such group, or it does not have that many rows.
    """
    known = _named("group_size", "the number of rows per step", groups, optional, chosen)
    total = sum(len(group.rows) for group in groups)
    sizes = []
    for name, group in zip(known, groups):
        rows = len(group.rows)
        size = chosen.get(name, min(rows, max(round(batch_size / 4), round(batch_size * rows / total), 1)))
        if not isinstance(size, int) or not 1 <= size <= rows:
            raise OptionError(
                f"group_size={{{name!r}: {size!r}}} must be a whole number from 1 to {rows}, the rows of that group."
            )
        sizes.append(size)
    return sizes


def group_weights(groups: list[Group], optional: list[str], chosen: Mapping[str, float]) -> list[float]:
    """How many times each row of each group counts, 1 where nothing was chosen; groups are named as in `group_sizes`.

    Raises:
        OptionError: There is no such group, or a weight is not a positive number.
    """
    known = _named("group_weight", "how many times each row counts", groups, optional, chosen)
    for name, weight in chosen.items():
        if isinstance(weight, bool) or not isinstance(weight, Real) or not 0 < weight < math.inf:
            raise OptionError(f"group_weight={{{name!r}: {weight!r}}} must be a positive number.")
    return [float(chosen.get(name, 1.0)) for name in known]


def _named(option: str, what: str, groups: list[Group], optional: list[str], chosen: Any) -> list[str]:
    """The names of the groups. OptionError unless `chosen` is a dict with some of them."""
    known = [",".join(name for name in optional if name in group.names) for group in groups]
    if not isinstance(chosen, Mapping):
        raise OptionError(f"{option} takes {what} by group, a dict of {known}; got {chosen!r}.")
    if unknown := [name for name in chosen if name not in known]:
        raise OptionError(
            f"{option} names {unknown[0]!r}, but the groups of rows are {', '.join(map(repr, known))}: name a group by the "
            "optional arguments that are known in it."
        )
    return known


def digest_of(batch: dict[str, Tensor]) -> dict[str, Any]:
    """Shape, dtype and SHA-256 of each argument, by which a resumed fit recognises the data with which it began."""
    return {
        name: {
            "shape": list(value.shape),
            "dtype": str(value.dtype)[6:],
            "sha256": hashlib.sha256(value.detach().cpu().contiguous().numpy().tobytes()).hexdigest(),
        }
        for name, value in batch.items()
    }

"""Rows in shuffled order, in batches of one shape: an incomplete last batch is carried over into the next epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyrovae.errors import OptionError
from pyrovae.pair.batch import Group


class Batches:
    """Indices of rows. An epoch puts a new permutation of all rows behind what was carried over, and deals whole batches.

    Every batch has the same size, so that one traced graph serves the whole fit; over the epochs each row is seen
    equally often (to within one).
    """

    def __init__(self, num_rows: int, batch_size: int, seed: int, device: torch.device | None = None) -> None:
        self.num_rows, self.batch_size = num_rows, batch_size
        # drawn on the CPU, so that a seed means one order everywhere, and moved once an epoch
        self.generator = torch.Generator().manual_seed(seed)
        self.queue = torch.empty(0, dtype=torch.long, device=device)

    def begin_epoch(self) -> None:
        """Shuffle all rows behind those carried over."""
        self.queue = torch.cat(
            [self.queue, torch.randperm(self.num_rows, generator=self.generator).to(self.queue.device)]
        )

    def __len__(self) -> int:
        """Batches to deal before the epoch ends."""
        return len(self.queue) // self.batch_size

    def deal(self) -> Tensor:
        """The next (batch_size,) indices."""
        dealt, self.queue = self.queue[: self.batch_size], self.queue[self.batch_size :]
        return dealt

    def coming(self) -> list[Tensor]:
        """The batches that are left to deal in this epoch."""
        return list(self.queue[: len(self) * self.batch_size].split(self.batch_size)) if len(self) else []

    def state_dict(self) -> dict[str, Tensor]:
        return {"queue": self.queue.clone(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.queue = state["queue"].to(self.queue.device, copy=True)
        self.generator.set_state(state["generator"])


class GroupedBatches:
    """Batches of several groups of rows at once, so many of each: `deal` gives indices by group.

    An epoch is one pass over the largest group; the others are shuffled anew whenever they run out.
    """

    def __init__(
        self, groups: Mapping[str, Tensor], sizes: Mapping[str, int], seed: int, device: torch.device | None = None
    ) -> None:
        self.rows = {name: rows.to(device) for name, rows in groups.items()}
        self.parts = {
            name: Batches(len(rows), sizes[name], seed + number, device)
            for number, (name, rows) in enumerate(groups.items())
        }
        self.largest = max(self.parts.values(), key=lambda part: part.num_rows)

    def begin_epoch(self) -> None:
        self.largest.begin_epoch()

    def __len__(self) -> int:
        return len(self.largest)

    def deal(self) -> dict[str, Tensor]:
        """The next indices of each group, (size,)."""
        for part in self.parts.values():
            if not len(part):
                part.begin_epoch()
        return {name: self.rows[name][part.deal()] for name, part in self.parts.items()}

    def coming(self) -> list[Tensor]:
        """Nothing that a stream could load ahead: groups are of rows at hand."""
        return []

    def state_dict(self) -> dict[str, Tensor]:
        return {f"{name}/{k}": v for name, part in self.parts.items() for k, v in part.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict({k: state[f"{name}/{k}"] for k in ("queue", "generator")})


def group_sizes(groups: list[Group], optional: list[str], batch_size: int, chosen: Mapping[str, int]) -> list[int]:
    """How many rows of each group a step has: as `chosen` for the group in which just those optional arguments are known
    ("y", "y,w", "" for none), else min(N_g, max(B/4, B N_g/N)). OptionError for a name or number that cannot be."""
    known = [",".join(name for name in optional if name in group.names) for group in groups]
    if not isinstance(chosen, Mapping):
        raise OptionError(f"group_size takes rows a step by group, a dict of {known}; got {chosen!r}.")
    total = sum(len(group.rows) for group in groups)
    if unknown := [name for name in chosen if name not in known]:
        raise OptionError(
            f"group_size names {unknown[0]!r}, and the groups of rows are {', '.join(map(repr, known))}: name what they know."
        )
    sizes = []
    for name, group in zip(known, groups):
        rows = len(group.rows)
        size = chosen.get(name, min(rows, max(round(batch_size / 4), round(batch_size * rows / total), 1)))
        if not isinstance(size, int) or not 1 <= size <= rows:
            raise OptionError(f"group_size={{{name!r}: {size!r}}} must be a whole number from 1 to {rows}, its rows.")
        sizes.append(size)
    return sizes


def digest_of(batch: dict[str, Tensor]) -> dict[str, Any]:
    """Name, shape, dtype and SHA-256 of each argument: tells whether a resumed fit sees the rows it began with."""
    return {
        name: {
            "shape": list(value.shape),
            "dtype": str(value.dtype)[6:],
            "sha256": hashlib.sha256(value.detach().cpu().contiguous().numpy().tobytes()).hexdigest(),
        }
        for name, value in batch.items()
    }

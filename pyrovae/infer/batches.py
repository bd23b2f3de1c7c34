"""Rows in shuffled order, in batches of one shape: an incomplete last batch is carried over into the next epoch."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor


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


def fingerprint(batch: dict[str, Tensor]) -> dict[str, Any]:
    """Name, shape, dtype and SHA-256 of each argument: tells whether a resumed fit sees the rows it began with."""
    return {
        name: {
            "shape": list(value.shape),
            "dtype": str(value.dtype)[6:],
            "sha256": hashlib.sha256(value.detach().cpu().contiguous().numpy().tobytes()).hexdigest(),
        }
        for name, value in batch.items()
    }

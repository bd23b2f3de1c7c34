"""Transforms of a batch inside the step: tensors in, tensors out, fresh noise each time the rows are seen."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyrovae.errors import DataError
from pyrovae.pair.batch import Batch


class Binarize:
    """Dynamic binarisation: x in [0, 1] becomes a draw of Bernoulli(x), anew at every step (Salakhutdinov & Murray 2008,
    doi:10.1145/1390156.1390266). At evaluation it is drawn once, from a fixed seed."""

    def __init__(self, argument: str = "x") -> None:
        self.argument = argument

    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        x = batch[self.argument]
        return {**batch, self.argument: (torch.rand_like(x) < x).to(x.dtype)}

    def check(self, batch: dict[str, Tensor]) -> None:
        """DataError unless every value is a probability."""
        if self.argument not in batch:
            raise DataError(f"Binarize({self.argument!r}): the batch has {sorted(batch)}.")
        low, high = (end.item() for end in batch[self.argument].aminmax())
        if not (low >= 0 and high <= 1):
            raise DataError(
                f"Binarize({self.argument!r}) takes values in [0, 1], got {low:g} to {high:g}. "
                "Divide by the largest possible value (255 for 8-bit images) and fill missing entries first."
            )


Transform = Callable[[Batch], Batch]

"""How much each element of a batch counts in a layer's statistics of the batch, while a run enumerates values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Enumerated:
    """The dimensions along which a run enumerates values, counted from the right, and the probabilities of these values.

    A batch then has each row once for each value, and stands for data only so far as the values are probable.
    """

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}
        self.log_probs: dict[int, Callable[[], Tensor]] = {}
        self.plates: dict[int, Mapping[int, int]] = {}

    def add(self, dim: int, size: int, log_prob: Callable[[], Tensor], plates: Mapping[int, int]) -> None:
        """So many values; `log_prob()`, whose dimensions are those of a batch, is computed only where a layer asks for it.

        `plates` are the sizes of the plates that the site is in, by their dimensions.
        """
        self.sizes[dim], self.log_probs[dim], self.plates[dim] = size, log_prob, plates

    def weights(self, batch: torch.Size) -> tuple[Tensor | None, int]:
        """The weights of the elements of a batch, of its shape, which sum to 1, and how many rows they stand for.

        Dimensions on the right may be the network's own, such as the steps of a sequence. None where nothing is enumerated
        along any of the others: then all count alike.
        """
        for own in range(len(batch)):
            rows = batch[: len(batch) - own]
            along = [dim for dim in self.log_probs if -dim <= len(rows) and 1 < rows[dim] == self.sizes[dim]]
            plates = [plate for dim in along for plate in self.plates[dim].items()]
            if along and all(rows[dim] in (1, size) for dim, size in plates if -dim <= len(rows)):
                shares, number = self._weights(rows, along)
                shares = shares.reshape(*rows, *[1] * own).expand(batch)
                return shares / shares.sum(), number * (batch.numel() // rows.numel())
        return None, batch.numel()

    def _weights(self, batch: torch.Size, along: list[int]) -> tuple[Tensor, int]:
        """The probabilities of the elements of a batch, and of how many rows they are."""
        found: dict[int, Tensor] = {}
        wanted = list(along)
        while wanted:  # the probabilities of a value may depend on other enumerated ones
            dim = wanted.pop()
            found[dim] = self.log_probs[dim]().detach()
            shape = found[dim].shape
            wanted += [d for d in self.log_probs if d not in found and -d <= len(shape) and shape[d] > 1]
        total = torch.stack(torch.broadcast_tensors(*found.values())).sum(0).exp()
        whole = torch.broadcast_shapes(total.shape, batch)
        rows = torch.Size([size for dim, size in enumerate(whole, -len(whole)) if dim not in self.log_probs]).numel()
        short = (1,) * (len(whole) - len(batch)) + tuple(batch)
        total = total.reshape((1,) * (len(whole) - total.dim()) + tuple(total.shape))
        if absent := [dim for dim, size in enumerate(short) if size < total.shape[dim]]:  # what the layer does not see
            total = total.sum(absent, keepdim=True)
        return total.reshape(total.shape[len(whole) - len(batch) :]).expand(batch), rows


_RUNS: list[Enumerated] = []


@contextmanager
def weighed_by(enumerated: Enumerated) -> Iterator[None]:
    """Inside, the statistics of layers are weighed by the probabilities of these values."""
    _RUNS.append(enumerated)
    try:
        yield
    finally:
        _RUNS.pop()


def weights_of(batch: torch.Size) -> tuple[Tensor | None, int]:
    """As `Enumerated.weights`, of the run that is under way; all elements count alike where there is none."""
    return _RUNS[-1].weights(batch) if _RUNS else (None, batch.numel())

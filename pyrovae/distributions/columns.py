"""A distribution of the rows of a table whose columns are of different kinds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions import Categorical
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyrovae._shapes import broadcast_shapes
from pyrovae.distributions.rounded import Between


class EachColumn(constraints.Constraint):
    """One constraint for each block of columns. `check` answers element by element, for values `(*batch, D)`."""

    def __init__(self, blocks: Sequence[Any], sizes: Sequence[int]) -> None:
        self.blocks, self.sizes = tuple(blocks), tuple(sizes)
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        return torch.cat([b.check(v) for b, v in zip(self.blocks, value.split(self.sizes, -1))], -1)

    def of_column(self, column: int) -> Any:
        """The constraint of one column."""
        places = [(block, i) for block, size in zip(self.blocks, self.sizes) for i in range(size)]
        block, place = places[column]
        return block.of_element(place) if isinstance(block, Between) else block

    def __repr__(self) -> str:
        return "by column: " + ", ".join(f"{b} x {n}" if n > 1 else str(b) for b, n in zip(self.blocks, self.sizes))


class ProductOfColumns(TorchDistribution):  # type: ignore[misc]  # Pyro has no types
    """`p(row) = prod_b prod_d p_b(row_bd)`: independent columns, in blocks b that each have a distribution of their own.

    A row has shape `(*batch, D)` with `D = sum_b d_b`. A column of classes has no mean: `mean` has its most probable class
    instead, and `variance` is NaN there.

    Args:
        blocks: Distributions without event dimensions, each of batch shape `(*batch, d_b)`.

    Example:
        >>> real = torch.distributions.Normal(torch.zeros(5, 2), 1.0)
        >>> label = pv.distributions.Categorical(logits=torch.zeros(5, 1, 3))
        >>> table = pv.distributions.ProductOfColumns([real, label])
        >>> table.batch_shape, table.event_shape
        (torch.Size([5]), torch.Size([3]))
        >>> table.log_prob(torch.tensor([0.5, -0.5, 2.0])).shape
        torch.Size([5])
        >>> table.labels
        [False, False, True]
    """

    arg_constraints: dict[str, Any] = {}  # torch's name and form  # noqa: RUF012

    def __init__(self, blocks: Sequence[Any]) -> None:
        self.blocks = tuple(blocks)
        self.sizes = tuple(b.batch_shape[-1] for b in self.blocks)
        shape = broadcast_shapes(*(b.batch_shape[:-1] for b in self.blocks))
        super().__init__(shape, torch.Size([sum(self.sizes)]), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ProductOfColumns:
        shape = torch.Size(batch_shape)
        return ProductOfColumns([b.expand((*shape, n)) for b, n in zip(self.blocks, self.sizes)])

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> Any:
        return constraints.independent(EachColumn([b.support for b in self.blocks], self.sizes), 1)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override, unused-ignore]
        return all(b.has_rsample for b in self.blocks)

    @property
    def labels(self) -> list[bool]:
        """For each column, whether it contains classes, whose numbers have no mean."""
        return [isinstance(b, Categorical) for b, n in zip(self.blocks, self.sizes) for _ in range(n)]

    def log_prob_elements(self, value: Tensor) -> Tensor:
        """The log-density of each element, shape `(*batch, D)`."""
        parts = value.split(self.sizes, -1) if len(self.sizes) > 1 else [value]
        return self._cat([b.log_prob(v) for b, v in zip(self.blocks, parts)])

    def log_prob(self, value: Tensor) -> Tensor:
        return self.log_prob_elements(value).sum(-1)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # torch's signature  # noqa: B008
        with torch.no_grad():
            return self._cat([b.sample(sample_shape) for b in self.blocks])

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return self._cat([b.rsample(sample_shape) for b in self.blocks])

    @property
    def mean(self) -> Tensor:
        return self._moment(lambda b: b.logits.argmax(-1).to(b.logits) if isinstance(b, Categorical) else b.mean)

    @property
    def variance(self) -> Tensor:
        return self._moment(lambda b: b.variance)

    def _moment(self, of: Callable[[Any], Tensor]) -> Tensor:
        return self._cat([of(b) for b in self.blocks])

    def _cat(self, blocks: list[Tensor]) -> Tensor:
        if len(blocks) == 1:
            return blocks[0]
        if all(b.shape[:-1] == blocks[0].shape[:-1] for b in blocks):
            return torch.cat(blocks, -1)
        shape = broadcast_shapes(*(b.shape[:-1] for b in blocks))
        return torch.cat([b.expand(*shape, -1) for b in blocks], -1)

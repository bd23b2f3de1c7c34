"""A family for tables whose columns are of different kinds."""

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae.distributions.columns import ProductOfColumns
from pyrovae.errors import OptionError
from pyrovae.families.base import Elementwise, Family
from pyrovae.families.counts import Counts, fits, per_row


class Columns(Family):
    """p(row) = prod_b p_b(row_b; params_b): every column, or block of columns, of a table has its own family.

    `families` are families of independent elements: Normal(()) for one column, Normal(5) for a block of 5, in the order
    of the columns. event_shape is (D,), D the number of columns; params: (*batch, n), n the sum of what the families
    take; rows: (*batch, D), classes coded as integers, 0, 1, 2, ... `library`, for counts, is (*batch): see
    `families.counts`. The mean of a categorical or ordinal column is the code of its most probable class. Raises
    ShapeError, and OptionError for a family whose elements are not independent.
    Nazabal et al. 2020, arXiv:1807.03653.
    """

    def __init__(self, families: Sequence[Family]) -> None:
        wrong = [f for f in families if not isinstance(f, Elementwise) or len(f.event_shape) > 1]
        if wrong or not families:
            raise OptionError(
                "Columns needs families of independent elements, as Normal(()) for a column or Bernoulli(5) for 5 of them, "
                f"got {wrong[0] if wrong else 'none'}."
            )
        super().__init__(sum(f.event_shape.numel() for f in families))
        self.families = tuple(families)
        self.parts = nn.ModuleList(families)  # so that their parameters are found

    @property
    def param_shape(self) -> torch.Size:
        return torch.Size([sum(f.param_shape.numel() for f in self.families)])

    def forward(self, params: Tensor, library: Tensor | None = None) -> TorchDistributionMixin:  # type: ignore[override]
        self.check(params)
        if library is not None and not any(isinstance(f, Counts) for f in self.families):
            raise OptionError(
                f"{self} has no column of counts without an upper end, which library is for. Leave it out."
            )
        if library is not None:
            batch = params.shape[:-1]
            library = library if fits(library.shape, batch) else per_row(self, library, batch)[..., 0]
        blocks: list[Any] = []
        for family, raw in zip(self.families, params.split([f.param_shape.numel() for f in self.families], -1)):
            # one column is a block of one: its dim stands among the batch dims of its family
            dims = () if family.event_shape else (1,)
            given = {}
            if library is not None and isinstance(family, Counts):
                given = {"library": library.reshape(library.shape + dims)}
            part: Any = family(raw.reshape(*raw.shape[:-1], *dims, *family.param_shape), **given)
            blocks.append(part.base_dist if family.event_shape else part)
        return ProductOfColumns(blocks)

    def __repr__(self) -> str:
        return f"Columns([{', '.join(map(repr, self.families))}])"

"""Families of bags of words."""

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyrovae.distributions.multinomial import Multinomial as MultinomialMass
from pyrovae.errors import ShapeError
from pyrovae.families.base import Family, positive


class Multinomial(Family):
    """p(x | n) = n! / prod_v x_v! prod_v p_v^x_v, p = softmax(parameters): how often each of V words stands in a text.

    The density takes each row's total n from x. Draws and the mean need it: total_count of forward, of shape (*batch),
    or, one for all rows, that of the constructor; without both they raise PairError. params: (*batch, V); x: (*batch,
    V), event_shape V. Raises ShapeError, and OptionError if total_count is not a positive int.
    Miao, Yu & Blunsom 2016, arXiv:1511.06038.
    """

    def __init__(self, event_shape: int, total_count: int | None = None) -> None:
        super().__init__(event_shape)
        if len(self.event_shape) != 1:
            raise ShapeError(
                f"Multinomial needs one dim, the words, got event_shape={tuple(self.event_shape)}. Flatten it."
            )
        self.total_count = None if total_count is None else positive(self, "total_count", total_count)

    @property
    def param_shape(self) -> torch.Size:
        return self.event_shape

    def forward(self, params: Tensor, total_count: Tensor | None = None) -> TorchDistributionMixin:  # type: ignore[override]
        self.check(params)
        if total_count is None and self.total_count is not None:
            total_count = params.new_full((), self.total_count)
        if total_count is not None:
            batch = params.shape[:-1]
            try:
                torch.broadcast_shapes(batch, total_count.shape)
            except RuntimeError:
                raise ShapeError(
                    f"{self} needs total_count of shape {tuple(batch)}, one for each row, got {tuple(total_count.shape)}. "
                    "Sum the counts of each row, x.sum(-1)."
                ) from None
        return MultinomialMass(params, total_count)

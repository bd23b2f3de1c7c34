"""Families for documents as bags of words."""

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyrovae._shapes import broadcast_shapes
from pyrovae.distributions.multinomial import Multinomial as MultinomialMass
from pyrovae.errors import ShapeError
from pyrovae.families.base import Family, positive


class Multinomial(Family):
    """`p(x | n) = n! / prod_v x_v! prod_v p_v^x_v`, `p = softmax(parameters)`: how often each of V words occurs in a document.

    Parameters `(*batch, V)`: the logits. Rows `(*batch, V)`: whole numbers from 0. The density takes the length n of each
    document from x itself. Draws and the mean need n: either the `total_count` of the call, `(*batch)`, or that of the
    constructor, the same for all documents.

    Args:
        event_shape: The size V of the vocabulary.
        total_count: The length n of every document drawn, if a call gives no other.

    Raises:
        ShapeError: `event_shape` is not a positive int, or `params` or `total_count` has another shape than a call needs.
        OptionError: `total_count` is not a positive int.
        PairError: A draw or the mean is asked for without any `total_count`.

    References:
        Miao, Yu and Blunsom 2016, arXiv:1511.06038.

    Example:
        >>> decoder = pv.mlp(2, fam.Multinomial(1000), hidden=(16,))
        >>> x = decoder(torch.zeros(2, 2), total_count=torch.tensor([10, 20])).sample()
        >>> x.shape, x.sum(-1)
        (torch.Size([2, 1000]), tensor([10., 20.]))
    """

    def __init__(self, event_shape: int, total_count: int | None = None) -> None:
        super().__init__(event_shape)
        if len(self.event_shape) != 1:
            raise ShapeError(
                f"Multinomial needs an event_shape of one dim, the vocabulary, got {tuple(self.event_shape)}. Flatten it."
            )
        self.total_count = None if total_count is None else positive(self, "total_count", total_count)

    @property
    def param_shape(self) -> torch.Size:
        return self.event_shape

    def forward(self, params: Tensor, total_count: Tensor | None = None) -> TorchDistributionMixin:  # type: ignore[override]
        """The distribution with these parameters.

        Args:
            params: Logits, `(*batch, V)`.
            total_count: Length of each document for draws and the mean, `(*batch)`; None takes that of the constructor.

        Returns:
            A distribution with batch shape `(*batch)` and event shape `(V,)`.

        Raises:
            ShapeError: `params` or `total_count` has another shape.
        """
        self.check(params)
        if total_count is None and self.total_count is not None:
            total_count = params.new_full((), self.total_count)
        if total_count is not None:
            batch = params.shape[:-1]
            try:
                broadcast_shapes(batch, total_count.shape)
            except RuntimeError:
                raise ShapeError(
                    f"{self} needs total_count of shape {tuple(batch)}, one for each row, got {tuple(total_count.shape)}. "
                    "Sum the counts of each row, x.sum(-1)."
                ) from None
        return MultinomialMass(params, total_count)

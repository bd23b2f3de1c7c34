"""Priors over code numbers whose places depend on one another."""

from collections.abc import Sequence

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import nn

from pyrovae._html import Shown
from pyrovae.distributions import Autoregressive as Sequential
from pyrovae.nets.causal import CausalTransformer
from pyrovae.nets.mlp import as_size


class Autoregressive(Shown, nn.Module):
    """`p(k) = prod_i p(k_i | k_0, ..., k_(i-1))` over arrays of classes, by a transformer; uniform at the start.

    It is the prior of the code numbers of a `VQVAE`. A density takes one pass, a draw one pass for each place.

    Args:
        num_classes: K, the number of classes of each place.
        event_shape: Shape of one array of classes, an int or a tuple of ints, ordered by rows.
        width: Number of features of a place in the transformer.
        layers: Number of its blocks.
        heads: Number of heads of its attention, which divides `width`.

    Raises:
        ShapeError: A number is not a positive int.
        OptionError: `heads` does not divide `width`.

    References:
        van den Oord et al. 2017, arXiv:1711.00937, section 3.3; Vaswani et al. 2017, arXiv:1706.03762.

    Example:
        >>> prior = pv.priors.Autoregressive(6, (2, 2), width=8, layers=1, heads=2)
        >>> prior().sample((5,)).shape
        torch.Size([5, 2, 2])
    """

    def __init__(
        self, num_classes: int, event_shape: int | Sequence[int], width: int = 64, layers: int = 2, heads: int = 4
    ) -> None:
        super().__init__()
        self.event_shape = as_size(event_shape)
        self.num_classes, self.width, self.layers, self.heads = num_classes, width, layers, heads
        self.net = CausalTransformer(num_classes, self.event_shape.numel(), width, layers, heads)

    def forward(self) -> TorchDistributionMixin:
        return Sequential(self.net, self.num_classes, self.event_shape)

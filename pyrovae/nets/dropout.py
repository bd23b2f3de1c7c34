"""Dropout: hidden units set to zero at random, during training and where several draws of a network are wanted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from pyrovae._arguments import as_number


class ReLUDropout:
    """Makes activation layers `max(0, u)` that set a share p of the units to zero at random during training.

    Pass it as `activation` to `MLP` or any other network.

    Args:
        p: Probability that a unit is set to zero, `0 <= p < 1`.

    Raises:
        OptionError: p is outside of this range.

    References:
        Srivastava et al. 2014, Journal of Machine Learning Research 15.

    Example:
        >>> net = pv.nets.MLP(4, 2, hidden=(8,), activation=pv.nets.ReLUDropout(0.5))
        >>> net.eval()(torch.zeros(5, 4)).shape
        torch.Size([5, 2])
    """

    def __init__(self, p: float = 0.5) -> None:
        self.p = float(as_number("p, the share of units that are set to zero,", p, least=0, below=1))

    def __call__(self) -> nn.Module:
        return nn.Sequential(nn.ReLU(), nn.Dropout(self.p))


@contextmanager
def dropping(net: nn.Module) -> Iterator[None]:
    """Keep dropout of `net` active although the network is in evaluation mode.

    Each call of the network is then a draw from an approximate posterior of its weights. Gal and Ghahramani 2016,
    arXiv:1506.02142.
    """
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Dropout)]
    before = [layer.training for layer in layers]
    try:
        for layer in layers:
            layer.train()
        yield
    finally:
        for layer, training in zip(layers, before):
            layer.train(training)

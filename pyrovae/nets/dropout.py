"""Dropout: hidden units left out at random, in training, and wherever several opinions of one network are wanted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from pyrovae.errors import OptionError


class ReLUDropout:
    """Makes activations for a network: max(0, x), of whose units a share `p` is left out at random while training.

    Give it as `activation` to `MLP` and the others: nets.ReLUDropout(0.5). Raises OptionError unless 0 <= p < 1.
    Srivastava et al. 2014, Journal of Machine Learning Research 15.
    """

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p < 1:
            raise OptionError(f"dropout leaves out a share of the units from 0 to below 1, got {p!r}.")
        self.p = float(p)

    def __call__(self) -> nn.Module:
        return nn.Sequential(nn.ReLU(), nn.Dropout(self.p))


@contextmanager
def dropping(net: nn.Module) -> Iterator[None]:
    """Dropout of `net` in effect although it is in evaluation mode: each call is another network of those that were trained,
    a draw of an approximate posterior of its weights (Gal & Ghahramani 2016, arXiv:1506.02142)."""
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Dropout)]
    before = [layer.training for layer in layers]
    try:
        for layer in layers:
            layer.train()
        yield
    finally:
        for layer, training in zip(layers, before):
            layer.train(training)

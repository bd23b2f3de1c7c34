"""p(child | parents): a network that ends in a family, and builders of the common ones."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae.errors import ShapeError
from pyrovae.families import Family
from pyrovae.nets import MLP, ConvDecoder, ConvEncoder


class Conditional(nn.Module):
    """p(child | parents) = family(net(parents)): a decoder, an encoder, a classifier, one level of a hierarchy.

    parents: what `net` takes; result: a distribution with batch_shape (*batch), event_shape that of the family.
    Whatever is `given` by name goes to the family. Raises ShapeError if the network states an `out_shape` that is not
    the family's `param_shape`. Koller & Friedman 2009, *Probabilistic Graphical Models*, chapter 5.
    """

    def __init__(self, net: nn.Module, family: Family) -> None:
        super().__init__()
        self.net, self.family = net, family
        out_shape = getattr(net, "out_shape", family.param_shape)
        if tuple(out_shape) != tuple(family.param_shape):
            raise ShapeError(
                f"{family} needs a network with out_shape={tuple(family.param_shape)}, got {tuple(out_shape)}. "
                "Give the network out_shape=family.param_shape."
            )

    @property
    def event_shape(self) -> torch.Size:
        """The shape of one row of the child."""
        return self.family.event_shape

    def forward(self, *parents: Tensor, **given: Any) -> TorchDistributionMixin:
        distribution: TorchDistributionMixin = self.family(self.net(*parents), **given)
        return distribution


def mlp(
    in_features: int | tuple[int, ...],
    family: Family,
    hidden: Sequence[int] = (400,),
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> Conditional:
    """p(child | parents) = family(MLP(parents)). parents: (*batch, in_features), one for each int of `in_features`.

    Kingma & Welling 2014, arXiv:1312.6114, appendix C. Raises ShapeError, when it is called, as `MLP` does.
    """
    return Conditional(MLP(in_features, family.param_shape, hidden, activation), family)


def conv(
    in_features: int | tuple[int, ...],
    family: Family,
    channels: Sequence[int] = (32, 64),
    hidden: Sequence[int] = (),
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> Conditional:
    """p(child | image) or p(image | parent): family(ConvEncoder(x)) or family(ConvDecoder(z)).

    A tuple (C, H, W) or (H, W) of in_features makes an encoder, x: (*batch, C, H, W) or (*batch, H, W). An int makes
    a decoder, z: (*batch, in_features), whose `channels` are used in reverse, so that one tuple serves both; the event
    of its family must be an image, (C, H, W) or (H, W), else ShapeError. For several parents build a `Conditional`
    of a `ConvDecoder`. Radford, Metz & Chintala 2016, arXiv:1511.06434, without its transposed convolutions.
    """
    net: nn.Module
    if not isinstance(in_features, int):
        net = ConvEncoder(in_features, family.param_shape, channels, hidden, activation)
    elif len(family.event_shape) in (2, 3) and family.param_shape[-2:] == family.event_shape[-2:]:
        net = ConvDecoder(in_features, family.param_shape, channels[::-1], hidden, activation)
    else:
        raise ShapeError(
            f"conv({in_features}, ...) makes a decoder and needs a family of images, such as Bernoulli((1, 28, 28)) "
            f"or Bernoulli((28, 28)), got {family}. Give the family an image's shape, or use mlp."
        )
    return Conditional(net, family)

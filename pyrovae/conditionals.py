"""p(child | parents): a network that ends in a family, and builders of the common ones."""

from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn import functional as F

from pyrovae.distributions import Flow
from pyrovae.errors import OptionError, ShapeError
from pyrovae.families import Family
from pyrovae.nets import MLP, ConvDecoder, ConvEncoder, ResidualMLP, ResNetDecoder, ResNetEncoder
from pyrovae.nets.flows import transform
from pyrovae.nets.mlp import as_size


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


def resnet(
    in_features: int | tuple[int, ...],
    family: Family,
    channels: Sequence[int] = (32, 64),
    hidden: Sequence[int] | None = None,
    activation: Callable[[], nn.Module] = nn.ReLU,
    blocks: int = 1,
) -> Conditional:
    """A residual network, chosen by shape: an image encoder, an image decoder, or a perceptron, with `blocks` a layer.

    A tuple (C, H, W) or (H, W) of in_features makes an encoder of images; an int makes a decoder where the family's event
    is an image, and else a `ResidualMLP` with `hidden` layers, by default (400,). See `conv` and `mlp`; `channels` are not
    used for vectors. He et al. 2016, arXiv:1603.05027. Raises ShapeError.
    """
    net: nn.Module
    layers = tuple(hidden or ())
    if not isinstance(in_features, int):
        net = ResNetEncoder(in_features, family.param_shape, channels, layers, activation, blocks)
    elif len(family.event_shape) in (2, 3) and family.param_shape[-2:] == family.event_shape[-2:]:
        net = ResNetDecoder(in_features, family.param_shape, channels[::-1], layers, activation, blocks)
    else:
        net = ResidualMLP(in_features, family.param_shape, (400,) if hidden is None else layers, activation, blocks)
    return Conditional(net, family)


class ConditionalFlow(nn.Module):
    """p(z | parents): z = t(u; c), u ~ N(m, diag(s^2)), (m, raw s, c) = net(parents), t a normalising flow. z: (*batch, L).

    t starts near the identity: at first it is the diagonal Normal of `mlp`, s = softplus(raw) + 1e-4, and then bends. It
    goes the way that a guide needs: one pass to draw, the density of its own draw for nothing, and L passes (2 of a
    coupling) to score anything else. `kind`: "iaf", autoregressive and affine; "nsf", autoregressive splines on
    [-5, 5]; "coupling", affine, two passes either way. `net` has out_shape (2 L + C,), C the size of the context c. It
    has no mean in closed form. Raises ShapeError if `net` states no such out_shape, OptionError.
    Kingma et al. 2016, arXiv:1606.04934; Durkan et al. 2019, arXiv:1906.04032.
    """

    def __init__(
        self, net: nn.Module, latent: int, kind: str = "iaf", transforms: int = 2, flow_hidden: Sequence[int] = (64,)
    ) -> None:
        super().__init__()
        (self.latent,) = self.event_shape = as_size(latent)
        out = getattr(net, "out_shape", None)
        if out is None or len(out) != 1 or out[0] <= 2 * self.latent:
            raise ShapeError(
                f"ConditionalFlow needs a network with out_shape=(2 * {self.latent} + C,): location, scale, and C >= 1 numbers "
                f"for the flow; got {out if out is None else tuple(out)}."
            )
        if kind == "maf":
            raise OptionError("A conditional flow is of kind 'iaf', 'nsf' or 'coupling', got 'maf': say 'iaf'.")
        self.net, self.kind, self.transforms, self.flow_hidden = net, kind, transforms, tuple(flow_hidden)
        self.context = out[0] - 2 * self.latent
        self.transform = transform(self.latent, self.context, kind, transforms, self.flow_hidden)

    def forward(self, *parents: Tensor) -> TorchDistributionMixin:
        loc, raw, context = self.net(*parents).split([self.latent, self.latent, self.context], -1)
        base = dist.Normal(loc, F.softplus(raw) + 1e-4).to_event(1)
        return Flow(self.transform(context), base, draws=True)


def flow(
    in_features: int | tuple[int, ...],
    latent: int,
    kind: str = "iaf",
    hidden: Sequence[int] = (400,),
    transforms: int = 2,
    context: int = 64,
    flow_hidden: Sequence[int] = (64,),
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> ConditionalFlow:
    """p(z | parents) = a flow with base and context from MLP(parents). parents: (*batch, in_features); z: (*batch, latent).

    `hidden` are the perceptron's layers, `context` is how many numbers it gives the flow beside location and scale;
    `flow_hidden` are the layers of each of the `transforms`. Kingma et al. 2016, arXiv:1606.04934. Raises ShapeError and
    OptionError as `ConditionalFlow` does.
    """
    net = MLP(in_features, 2 * as_size(latent)[0] + context, hidden, activation)
    return ConditionalFlow(net, latent, kind, transforms, flow_hidden)

"""Conditional distributions `p(child | parents)`: a network followed by a family, and builders of the common ones.

A conditional is any module that maps tensors to a distribution over the rows of a batch. Decoders, encoders,
classifiers and the levels of a hierarchy are all conditionals, and each can take the place of another of the same shapes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn import functional as F

from pyrovae._arguments import MOST_LAYERS, as_count, as_widths, index_of
from pyrovae.distributions import Flow, LowRankNormal
from pyrovae.errors import OptionError, PairError, ShapeError
from pyrovae.families import Family
from pyrovae.families.base import as_family
from pyrovae.nets import MLP, ConvDecoder, ConvEncoder, ResidualMLP, ResNetDecoder, ResNetEncoder
from pyrovae.nets.flows import transform
from pyrovae.nets.mlp import as_length


class Conditional(nn.Module):
    """`p(child | parents) = family(net(parents))`: a decoder, an encoder, a classifier, or one level of a hierarchy.

    Calling it with the parents returns a distribution with batch shape `(*batch)` and the event shape of the family.
    Keyword arguments of the call, such as `library` for counts, are passed on to the family.

    Args:
        net: A module that maps the parents to parameters `(*batch, *family.param_shape)`.
        family: The family of the child, see `pyrovae.families`.

    Raises:
        ShapeError: `net` has an attribute `out_shape` that differs from `family.param_shape`.
        OptionError: `family` is none.

    References:
        Koller and Friedman 2009, *Probabilistic Graphical Models*, chapter 5.

    Example:
        >>> family = fam.Normal(2)
        >>> encoder = pv.Conditional(pv.nets.MLP(784, family.param_shape, hidden=(16,)), family)
        >>> q = encoder(torch.zeros(5, 784))
        >>> q.batch_shape, q.event_shape
        (torch.Size([5]), torch.Size([2]))
    """

    def __init__(self, net: nn.Module, family: Family) -> None:
        super().__init__()
        self.net, self.family = net, as_family(family)
        out_shape = getattr(net, "out_shape", family.param_shape)
        if tuple(out_shape) != tuple(family.param_shape):
            raise ShapeError(
                f"{family} needs a network with out_shape={tuple(family.param_shape)}, got {tuple(out_shape)}. "
                "Give the network out_shape=family.param_shape."
            )

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one row of the child."""
        return self.family.event_shape

    def forward(self, *parents: Tensor, **given: Any) -> TorchDistributionMixin:
        distribution: TorchDistributionMixin = self.family(self.net(*parents), **given)
        return distribution


def mlp(
    in_features: int | tuple[int, ...],
    family: Family,
    hidden: int | Sequence[int] = (400,),
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> Conditional:
    """A perceptron as a conditional: `p(child | parents) = family(MLP(parents))`.

    Args:
        in_features: Number of features of the parent, which is a tensor `(*batch, in_features)`; or a tuple with one such
            number for each of several parents.
        family: The family of the child.
        hidden: Widths of the hidden layers, an int for one layer; `()` makes the parameters a linear function of the parents.
        activation: Builds the activation after each hidden layer.

    Returns:
        A `Conditional`.

    Raises:
        ShapeError: `in_features` holds something else than positive ints; or, raised by a call, the parents have another
            number, trailing shape or dtype than it says.
        OptionError: `hidden` holds something else than positive ints, `family` is none, or `activation` does not make a layer.

    References:
        Kingma and Welling 2014, arXiv:1312.6114, appendix C.

    Example:
        >>> decoder = pv.mlp(2, fam.Bernoulli(784), hidden=(16,))
        >>> decoder(torch.zeros(5, 2)).sample().shape
        torch.Size([5, 784])
        >>> encoder = pv.mlp((784, 10), fam.Normal(2), hidden=(16,))  # two parents: an image and a one-hot label
        >>> encoder(torch.zeros(5, 784), torch.zeros(5, 10)).mean.shape
        torch.Size([5, 2])
    """
    return Conditional(MLP(in_features, as_family(family).param_shape, hidden, activation), family)


def conv(
    in_features: int | tuple[int, ...],
    family: Family,
    channels: int | Sequence[int] = (32, 64),
    hidden: int | Sequence[int] = (),
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> Conditional:
    """A convolutional network as a conditional: an image encoder or an image decoder, depending on `in_features`.

    An image shape for `in_features` makes the encoder `p(child | x) = family(ConvEncoder(x))`; an int makes the decoder
    `p(x | z) = family(ConvDecoder(z))`. For a decoder with several parents build a `Conditional` from `nets.ConvDecoder`.

    Args:
        in_features: `(C, H, W)` or `(H, W)` for an encoder of images `(*batch, C, H, W)` or `(*batch, H, W)`; an int for a
            decoder of vectors `(*batch, in_features)`.
        family: The family of the child. For a decoder its event is an image, `(C, H, W)` or `(H, W)`.
        channels: Channels of the convolutions, listed from the image inwards, an int for one. A decoder uses them in reverse,
            so that the same tuple serves both.
        hidden: Widths of fully connected layers, an int for one, between the convolutions and the vector at the other end.
        activation: Builds the activation after each hidden layer.

    Returns:
        A `Conditional`.

    Raises:
        ShapeError: `in_features` is an int but the event of `family` is not an image.
        OptionError: As `mlp`, also of `channels`.

    References:
        Radford, Metz and Chintala 2016, arXiv:1511.06434; here with upsampling in place of transposed convolutions.

    Example:
        >>> encoder = pv.conv((8, 8), fam.Normal(2), channels=(4, 8))
        >>> decoder = pv.conv(2, fam.Bernoulli((8, 8)), channels=(4, 8))
        >>> z = encoder(torch.zeros(5, 8, 8)).sample()
        >>> decoder(z).sample().shape
        torch.Size([5, 8, 8])
    """
    net: nn.Module
    family, channels = as_family(family), as_widths("channels", channels, one="convolution")
    in_features = in_features if (size := index_of(in_features)) is None else size
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
    channels: int | Sequence[int] = (32, 64),
    hidden: int | Sequence[int] | None = None,
    activation: Callable[[], nn.Module] = nn.ReLU,
    blocks: int = 1,
) -> Conditional:
    """A residual network as a conditional: an image encoder, an image decoder, or a perceptron, chosen by the shapes.

    Args:
        in_features: `(C, H, W)` or `(H, W)` for an encoder of images; an int for a decoder if the event of `family` is an
            image, and for a `nets.ResidualMLP` otherwise.
        family: The family of the child.
        channels: Channels of the convolutions as in `conv`; not used by the perceptron.
        hidden: Widths of the fully connected layers, an int for one. `None` means `()` for images and `(400,)` for the
            perceptron.
        activation: Builds the activation after each hidden layer.
        blocks: Residual blocks per layer.

    Returns:
        A `Conditional`.

    Raises:
        ShapeError: `in_features` or the event of `family` has a shape that none of the three networks takes.
        OptionError: As `mlp`, also of `channels` and `blocks`.

    References:
        He et al. 2016, arXiv:1603.05027.

    Example:
        >>> encoder = pv.resnet((8, 8), fam.Normal(2), channels=(4, 8))
        >>> decoder = pv.resnet(2, fam.Bernoulli(64), hidden=(16,), blocks=2)
        >>> decoder(encoder(torch.zeros(5, 8, 8)).mean).sample().shape
        torch.Size([5, 64])
    """
    net: nn.Module
    family, channels = as_family(family), as_widths("channels", channels, one="convolution")
    layers = as_widths("hidden", () if hidden is None else hidden)
    in_features = in_features if (size := index_of(in_features)) is None else size
    if not isinstance(in_features, int):
        net = ResNetEncoder(in_features, family.param_shape, channels, layers, activation, blocks)
    elif len(family.event_shape) in (2, 3) and family.param_shape[-2:] == family.event_shape[-2:]:
        net = ResNetDecoder(in_features, family.param_shape, channels[::-1], layers, activation, blocks)
    else:
        net = ResidualMLP(in_features, family.param_shape, (400,) if hidden is None else layers, activation, blocks)
    return Conditional(net, family)


class ConditionalFlow(nn.Module):
    """A normalising flow as a guide: `z = t(u; c)` with `u ~ N(m, diag(s^2))` and `(m, r, c) = net(parents)`.

    The transform `t` starts near the identity, so that the distribution starts as the diagonal Normal with
    `s = softplus(r) + 1e-4` that `mlp` would give, and becomes more flexible in training. The direction of the transform is the
    one that a guide needs: a draw takes one pass, and the density of that draw comes with it. Scoring any other value
    inverts `t`, which takes L passes, or 2 for a coupling. The mean has no closed form.

    Args:
        net: A module that maps the parents to `(*batch, 2 * L + C)`, with `out_shape = (2 * L + C,)`: location, scale
            before the softplus, and C >= 1 numbers as the context of the flow.
        latent: Dimension L of z.
        kind: `"iaf"`, autoregressive and affine; `"nsf"`, autoregressive rational-quadratic splines on [-5, 5];
            `"coupling"`, affine, two passes in either direction.
        transforms: Number of transforms composed in `t`.
        flow_hidden: Widths of the hidden layers of each transform's network, an int for one.

    Raises:
        ShapeError: `net.out_shape` is missing or leaves no context.
        OptionError: `kind` is unknown, or a number is not a positive int.

    References:
        Kingma et al. 2016, arXiv:1606.04934; Durkan et al. 2019, arXiv:1906.04032.

    Example:
        >>> net = pv.nets.MLP(784, 2 * 3 + 8, hidden=(16,))
        >>> encoder = pv.ConditionalFlow(net, latent=3, kind="nsf", flow_hidden=(8,))
        >>> q = encoder(torch.zeros(5, 784))
        >>> z = q.rsample()
        >>> z.shape, q.log_prob(z).shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(
        self,
        net: nn.Module,
        latent: int,
        kind: str = "iaf",
        transforms: int = 2,
        flow_hidden: int | Sequence[int] = (64,),
    ) -> None:
        super().__init__()
        self.latent = as_length("latent", latent)
        self.event_shape = torch.Size([self.latent])
        out = getattr(net, "out_shape", None)
        if out is None or len(out) != 1 or out[0] <= 2 * self.latent:
            raise ShapeError(
                f"ConditionalFlow needs a network with out_shape=(2 * {self.latent} + C,), for the location, the scale and a "
                f"context of C >= 1 numbers, got {out if out is None else tuple(out)}."
            )
        if kind == "maf":
            raise OptionError("A conditional flow has kind 'iaf', 'nsf' or 'coupling', got 'maf'. Use kind='iaf'.")
        self.net, self.kind, self.transforms = net, kind, as_count("transforms", transforms, most=MOST_LAYERS)
        self.flow_hidden = as_widths("flow_hidden", flow_hidden)
        self.context = out[0] - 2 * self.latent
        self.transform = transform(self.latent, self.context, kind, self.transforms, self.flow_hidden)

    def forward(self, *parents: Tensor) -> TorchDistributionMixin:
        loc, raw, context = self.net(*parents).split([self.latent, self.latent, self.context], -1)
        base = dist.Normal(loc, F.softplus(raw) + 1e-4).to_event(1)
        return Flow(self.transform(context), base, draws=True)


def flow(
    in_features: int | tuple[int, ...],
    latent: int,
    kind: str = "iaf",
    hidden: int | Sequence[int] = (400,),
    transforms: int = 2,
    context: int = 64,
    flow_hidden: int | Sequence[int] = (64,),
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> ConditionalFlow:
    """A `ConditionalFlow` whose base and context come from one perceptron of the parents.

    Args:
        in_features: Number of features of the parent, `(*batch, in_features)`, or a tuple with one for each parent.
        latent: Dimension L of z, `(*batch, L)`.
        kind: `"iaf"`, `"nsf"` or `"coupling"`, see `ConditionalFlow`.
        hidden: Widths of the perceptron's hidden layers, an int for one.
        transforms: Number of transforms in the flow.
        context: How many numbers the perceptron passes to the flow, in addition to the location and scale of its base.
        flow_hidden: Widths of the hidden layers of each transform's network, an int for one.
        activation: Builds the perceptron's activations.

    Returns:
        A `ConditionalFlow`.

    Raises:
        ShapeError: `latent` or `context` is not positive.
        OptionError: `kind` is unknown, or a number is not a positive int.

    References:
        Kingma et al. 2016, arXiv:1606.04934.

    Example:
        >>> encoder = pv.flow(784, 3, kind="iaf", hidden=(16,), context=8, flow_hidden=(8,))
        >>> encoder(torch.zeros(5, 784)).rsample().shape
        torch.Size([5, 3])
    """
    net = MLP(in_features, 2 * as_length("latent", latent) + as_length("context", context), hidden, activation)
    return ConditionalFlow(net, latent, kind, transforms, flow_hidden)


def _numbers(name: str, dims: Sequence[int] | Tensor) -> tuple[int, ...]:
    """Dimensions as ints, given by their numbers or by a mask. OptionError unless there are some, none of them twice."""
    try:
        found = torch.as_tensor(dims)
    except (TypeError, ValueError, RuntimeError):
        found = torch.zeros(0)
    if found.dtype == torch.bool:
        found = found.nonzero().squeeze(-1)
    numbers = tuple(found.tolist()) if found.dim() == 1 and not found.is_floating_point() else ()
    if not numbers or min(numbers) < 0 or len(set(numbers)) < len(numbers):
        raise OptionError(
            f"{name} takes dimensions as different ints from 0, or as a mask of bools with at least one True, got {dims!r}."
        )
    return numbers


class Marginal(nn.Module):
    """`q(z_k | parents)`: an encoder of some of its latent dimensions, the others integrated out.

    Together with `Padded` it makes a VAE of those dimensions that vary with the data (`pv.active_units`).

    Args:
        encoder: A conditional whose distribution is a Normal of vectors: `fam.Normal`, `fam.FullNormal`, `fam.LowRankNormal`.
        dims: The numbers k of the dimensions, in the order that they are to have, or a mask with a bool for each of them.

    Raises:
        OptionError: `dims` is empty, or names a dimension twice.
        PairError: In the forward method: the distribution is no such Normal, or has no dimension of such a number.

    Example:
        >>> encoder = pv.mlp(6, fam.Normal(4))
        >>> some = pv.Marginal(encoder, (2, 0))
        >>> x = torch.rand(5, 6)
        >>> torch.equal(some(x).mean, encoder(x).mean[:, [2, 0]])
        True
    """

    index: Tensor

    def __init__(self, encoder: nn.Module, dims: Sequence[int] | Tensor) -> None:
        super().__init__()
        self.encoder, self.dims = encoder, _numbers("Marginal", dims)
        self.event_shape = torch.Size((len(self.dims),))
        self.register_buffer("index", torch.tensor(self.dims), persistent=False)

    def forward(self, *parents: Tensor) -> TorchDistributionMixin:
        whole = self.encoder(*parents)
        size = whole.event_shape[0] if len(whole.event_shape) == 1 else 0
        if size <= max(self.dims):
            raise PairError(
                f"Marginal of dimensions {self.dims}: the encoder's events have shape {tuple(whole.event_shape)}."
            )
        if isinstance(whole, torch.distributions.Independent) and isinstance(
            whole.base_dist, torch.distributions.Normal
        ):
            base = whole.base_dist
            return dist.Normal(self._of(base.loc), self._of(base.scale)).to_event(1)
        if isinstance(whole, LowRankNormal):
            return LowRankNormal(self._of(whole.loc), self._of(whole.scale), whole.factor.index_select(-2, self.index))
        if isinstance(whole, torch.distributions.MultivariateNormal):
            covariance = self._of(whole.covariance_matrix).index_select(-2, self.index)
            return dist.MultivariateNormal(self._of(whole.loc), covariance_matrix=covariance)
        raise PairError(
            f"Marginal takes an encoder that returns a Normal, whose dimensions come apart, got {type(whole).__name__}: use "
            "fam.Normal, fam.FullNormal or fam.LowRankNormal, or keep all dimensions."
        )

    def _of(self, values: Tensor) -> Tensor:
        return values.index_select(-1, self.index)


class Padded(nn.Module):
    """`p(child | z, others)` with given numbers for some dimensions of z, and 0, the mean of N(0, 1), for the others.

    Where the guide says nothing of the other dimensions, the likelihood has learned to ignore them, and this is the likelihood
    of a VAE of the dimensions that are left; see `Marginal`.

    Args:
        likelihood: A conditional whose first parent is z, `(*batch, size)`.
        dims: The numbers k of the dimensions, as for `Marginal`.
        size: The number of dimensions of z.

    Raises:
        OptionError: `dims` is empty, names a dimension twice or one that is not below `size`, or is a mask of another length.
        ShapeError: In the forward method: z has not one column for each of `dims`.

    Example:
        >>> decoder = pv.mlp(4, fam.Bernoulli(6))
        >>> some = pv.Padded(decoder, (2, 0), size=4)
        >>> torch.equal(some(torch.tensor([[1.0, 2.0]])).mean, decoder(torch.tensor([[2.0, 0.0, 1.0, 0.0]])).mean)
        True
    """

    index: Tensor

    def __init__(self, likelihood: nn.Module, dims: Sequence[int] | Tensor, size: int) -> None:
        super().__init__()
        self.likelihood, self.dims, self.size = likelihood, _numbers("Padded", dims), as_length("size", size)
        whole = torch.as_tensor(dims)
        if max(self.dims) >= self.size or (whole.dtype == torch.bool and len(whole) != self.size):
            raise OptionError(
                f"Padded to {size} dimensions takes numbers from 0 to {size - 1}, or a mask of {size} bools, got {dims!r}."
            )
        place = {number: i for i, number in enumerate(self.dims)}  # the column after the last is one of zeros
        self.register_buffer(
            "index", torch.tensor([place.get(i, len(place)) for i in range(self.size)]), persistent=False
        )

    def forward(self, z: Tensor, *others: Tensor, **given: Any) -> TorchDistributionMixin:
        if z.shape[-1:] != (len(self.dims),):
            raise ShapeError(
                f"Padded of dimensions {self.dims} takes z of shape (*batch, {len(self.dims)}), got {tuple(z.shape)}."
            )
        padded = F.pad(z, (0, 1)).index_select(-1, self.index)
        distribution: TorchDistributionMixin = self.likelihood(padded, *others, **given)
        return distribution

"""Priors that adapt to the aggregate posterior: the variational mixture of posteriors, and flows."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae._arguments import MOST_LAYERS, as_count, as_widths
from pyrovae._html import Shown
from pyrovae.distributions import Flow
from pyrovae.errors import ShapeError
from pyrovae.nets.flows import transform
from pyrovae.nets.mlp import as_size


class VampPrior(Shown, nn.Module):
    """`p(z) = (1/K) sum_k q(z | u_k)`: a mixture of the encoder's own distributions at K learned pseudo-inputs u_k.

    The same module can be the encoder of the model and of this prior; it is then saved once. The density of a mixture of flows
    inverts the flow at K points per draw; if the encoder is a flow, give the prior a separate, simpler conditional.

    Args:
        encoder: A conditional that maps the pseudo-inputs to distributions of z with batch shape `(K,)`.
        pseudo_inputs: Initial values of the u_k, `(K, *event)` where `event` is the shape of one row x; rows of the training
            data work best. Training may move them outside the range of the data.

    Raises:
        ShapeError: `pseudo_inputs` is not a tensor with at least one row.

    References:
        Tomczak and Welling 2018, arXiv:1705.07120.

    Example:
        >>> encoder = pv.mlp(6, fam.Normal(3), hidden=(8,))
        >>> prior = pv.priors.VampPrior(encoder, pseudo_inputs=torch.rand(4, 6))
        >>> vae = pv.VAE(prior, likelihood=pv.mlp(3, fam.Bernoulli(6), hidden=(8,)), encoder=encoder)
        >>> prior().sample((5,)).shape
        torch.Size([5, 3])
    """

    logits: Tensor

    def __init__(self, encoder: nn.Module, pseudo_inputs: Tensor) -> None:
        super().__init__()
        if not isinstance(pseudo_inputs, Tensor) or pseudo_inputs.dim() < 1 or not len(pseudo_inputs):
            raise ShapeError(f"VampPrior needs pseudo_inputs of shape (K, *event of x), got {pseudo_inputs!r:.80}.")
        self.encoder = encoder
        self.pseudo_inputs = nn.Parameter(pseudo_inputs.detach().clone())
        self.register_buffer("logits", torch.zeros(len(pseudo_inputs)), persistent=False)

    def forward(self) -> TorchDistributionMixin:
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), self.encoder(self.pseudo_inputs))


class FlowPrior(Shown, nn.Module):
    """`p(z) = p_0(t(z)) |det dt/dz|`, t a learned normalising flow, and `p_0` the standard normal or another prior.

    t starts near the identity, so that the prior starts near `p_0`.

    Args:
        event_shape: Dimension L of one row z, an int.
        kind: `"nsf"`, rational-quadratic splines on [-5, 5], the most flexible; `"maf"`, affine; or `"coupling"`, affine, one
            half of z given the other. The first two are autoregressive: scoring takes one pass and drawing L passes; a
            coupling takes two passes for drawing.
        transforms: Number of transforms composed in t.
        hidden: Widths of the hidden layers of each transform's network, an int for one.
        base: `p_0`, a prior over vectors of the same dimension, such as `MixtureOfNormals(L)`; by default N(0, I).

    Raises:
        ShapeError: `event_shape` is not a positive int, or `base` has rows of another shape.
        OptionError: `kind` is unknown, or a number is not a positive int.

    References:
        Papamakarios et al. 2017, arXiv:1705.07057; Durkan et al. 2019, arXiv:1906.04032; Dinh et al. 2017, arXiv:1605.08803.

    Example:
        >>> prior = pv.priors.FlowPrior(3, kind="maf", transforms=2, hidden=(8,))
        >>> p = prior()
        >>> z = p.sample((5,))
        >>> z.shape, p.log_prob(z).shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    zero: Tensor
    one: Tensor

    def __init__(
        self,
        event_shape: int | Sequence[int],
        kind: str = "nsf",
        transforms: int = 3,
        hidden: int | Sequence[int] = (64, 64),
        base: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.event_shape = as_size(event_shape)
        if len(self.event_shape) != 1:
            raise ShapeError(
                f"FlowPrior needs vectors as rows, got event_shape {event_shape!r}. Use FlowPrior(num_latent)."
            )
        self.kind, self.transforms, self.hidden = (
            kind,
            as_count("transforms", transforms, most=MOST_LAYERS),
            as_widths("hidden", hidden),
        )
        self.transform = transform(self.event_shape[0], 0, kind, self.transforms, self.hidden)
        self.base = base
        shape = getattr(base, "event_shape", self.event_shape)
        if shape != self.event_shape:
            raise ShapeError(
                f"FlowPrior({event_shape!r}) needs a base over such vectors, got one of shape {tuple(shape)}."
            )
        self.register_buffer("zero", torch.zeros(self.event_shape), persistent=False)
        self.register_buffer("one", torch.ones(self.event_shape), persistent=False)

    def forward(self) -> TorchDistributionMixin:
        base = dist.Normal(self.zero, self.one).to_event(1) if self.base is None else self.base()
        return Flow(self.transform(), base, draws=False)

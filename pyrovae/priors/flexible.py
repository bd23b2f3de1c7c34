"""Priors that take the shape of the codes: the mixture of posteriors, and flows."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae.distributions import Flow
from pyrovae.errors import ShapeError
from pyrovae.nets.flows import transform
from pyrovae.nets.mlp import as_size


class VampPrior(nn.Module):
    """p(z) = (1/K) sum_k q(z | u_k): the mixture of the encoder's own distributions at K learned pseudo-inputs u_k.

    pseudo_inputs: (K, *event of x), what the u_k start at, rows of data best; they are free, and may leave the data's
    range. `encoder` is a conditional whose distribution has batch_shape (K,); one module may be prior and guide at
    once, and is saved once. A flow as encoder has to be inverted at K points a draw: give the prior a conditional of
    its own then. Raises ShapeError for pseudo-inputs that are no rows. Tomczak & Welling 2018, arXiv:1705.07120.
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


class FlowPrior(nn.Module):
    """p(z) = N(t(z); 0, I) |dt/dz|, t a learned normalising flow. z: (L,).

    `kind`: "nsf", rational-quadratic splines on [-5, 5], the most flexible; "maf", affine; both autoregressive, so
    cheap to score and L passes to draw; "coupling", affine, one half of z given the other, cheap both ways. `transforms`
    of them are composed, each by a network with `hidden` units. Raises ShapeError unless L is an int, OptionError.
    Papamakarios et al. 2017, arXiv:1705.07057; Durkan et al. 2019, arXiv:1906.04032; Dinh et al. 2017, arXiv:1605.08803.
    """

    zero: Tensor
    one: Tensor

    def __init__(
        self, event_shape: int | Sequence[int], kind: str = "nsf", transforms: int = 3, hidden: Sequence[int] = (64, 64)
    ) -> None:
        super().__init__()
        self.event_shape = as_size(event_shape)
        if len(self.event_shape) != 1:
            raise ShapeError(f"FlowPrior is of vectors, got event_shape {event_shape!r}: use FlowPrior(num_latent).")
        self.kind, self.transforms, self.hidden = kind, transforms, tuple(hidden)
        self.transform = transform(self.event_shape[0], 0, kind, transforms, self.hidden)
        self.register_buffer("zero", torch.zeros(self.event_shape), persistent=False)
        self.register_buffer("one", torch.ones(self.event_shape), persistent=False)

    def forward(self) -> TorchDistributionMixin:
        return Flow(self.transform(), dist.Normal(self.zero, self.one).to_event(1), draws=False)

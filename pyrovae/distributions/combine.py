"""Combinations of densities: a likelihood of what was observed of a row."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import biject_to, constraints

from pyrovae.errors import PairError


class ObservedOnly(TorchDistribution):  # type: ignore[misc]  # Pyro has no types
    """log p(x_observed) = sum over the elements d that are not NaN of log p(x_d), for independent elements.

    Missing elements are integrated out, which for independent ones is to leave them out (Mattei & Frellsen 2019,
    arXiv:1812.02633). They are filled with a value inside the support before the density is taken and left out
    afterwards, so that value and gradient are free of NaN. x: (*batch, *event). Draws and moments are the whole row's.
    Raises PairError for a distribution whose elements are not independent.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  # torch's name and form

    def __init__(self, whole: Any) -> None:
        if not isinstance(whole, dist.Independent) or whole.base_dist.event_shape:
            raise PairError(
                f"observed_only needs a likelihood of independent elements, as Normal(D) or Bernoulli(D), got {whole}: "
                "a joint density has no marginal that could be taken element by element."
            )
        self.whole = whole
        super().__init__(whole.batch_shape, whole.event_shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        observed = ~torch.isnan(value)
        elements = self.whole.base_dist
        filled = torch.where(observed, value, _inside(elements.support, value))
        log_prob = torch.where(observed, elements.log_prob(filled), value.new_zeros(()))
        summed = log_prob.flatten(log_prob.dim() - len(self.event_shape)).sum(-1)
        return summed

    @property
    def support(self) -> Any:
        return self.whole.support

    @property
    def has_rsample(self) -> bool:
        return bool(self.whole.has_rsample)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008  # torch's signature
        return self.whole.sample(sample_shape)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return self.whole.rsample(sample_shape)

    @property
    def mean(self) -> Tensor:
        return self.whole.mean

    @property
    def variance(self) -> Tensor:
        return self.whole.variance

    def expand(self, batch_shape: Any, _instance: Any = None) -> ObservedOnly:
        return ObservedOnly(self.whole.expand(batch_shape))


def _inside(support: Any, like: Tensor) -> Tensor:
    """A value of the support at which densities are smooth."""
    if getattr(support, "is_discrete", False):
        low = getattr(support, "lower_bound", 0)
        return torch.as_tensor(low, dtype=like.dtype, device=like.device)
    return biject_to(support)(like.new_zeros(())) if support is not constraints.real else like.new_zeros(())


class observed_only(nn.Module):
    """p(x_observed | parents) for any conditional with independent elements: NaN in a row is left out of its density.

    `VAE(prior, observed_only(likelihood), encoder)`, with an encoder that takes NaN: see `nets.WithMask`.
    """

    def __init__(self, likelihood: nn.Module) -> None:
        super().__init__()
        self.likelihood = likelihood

    def forward(self, *parents: Tensor, **given: Any) -> ObservedOnly:
        return ObservedOnly(self.likelihood(*parents, **given))

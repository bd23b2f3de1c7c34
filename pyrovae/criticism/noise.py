"""Draws of a site as functions of standard normal noise, `z = t(e; draws before)`, and runs of a guide at given noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import sum_rightmost
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, TransformedDistribution

# These classes themselves, torch's and Pyro's: one that is derived from them may draw in a way of its own.
INDEPENDENT = (Independent, dist.Independent)
NORMAL = (torch.distributions.Normal, dist.Normal, MultivariateNormal, dist.MultivariateNormal)
TRANSFORMED = (TransformedDistribution, dist.TransformedDistribution, torch.distributions.LogNormal, dist.LogNormal)


def of_noise(fn: Any) -> bool:
    """Whether draws of a distribution are known functions of standard normal noise, which have inverses."""
    if type(fn) in INDEPENDENT:
        return of_noise(fn.base_dist)
    if type(fn) in TRANSFORMED:
        return of_noise(fn.base_dist) and all(part.bijective for part in fn.transforms)
    return type(fn) in NORMAL


def noise_shape(fn: Any) -> tuple[int, ...]:
    """The event shape of the noise: that of the draws, unless a transform changes it."""
    if isinstance(fn, TransformedDistribution):
        return noise_shape(fn.base_dist)
    if isinstance(fn, Independent):
        batch = tuple(fn.base_dist.batch_shape)
        return (*batch[len(batch) - fn.reinterpreted_batch_ndims :], *noise_shape(fn.base_dist))
    return tuple(fn.event_shape)


def from_noise(fn: Any, e: Tensor) -> tuple[Tensor, Tensor]:
    """The draw z at noise e, `(*batch, *event)`, and `log |dz/de|`, `(*batch)`; batch shapes are broadcast."""
    if isinstance(fn, Independent):
        z, log_det = from_noise(fn.base_dist, e)
        return z, sum_rightmost(log_det, fn.reinterpreted_batch_ndims)
    if isinstance(fn, TransformedDistribution):
        z, log_det = from_noise(fn.base_dist, e)
        event = len(fn.base_dist.event_shape)
        for part in fn.transforms:
            x, z = z, part(z)
            log_det = log_det + sum_rightmost(part.log_abs_det_jacobian(x, z), event - part.domain.event_dim)
            event += part.codomain.event_dim - part.domain.event_dim
        return z, log_det
    if isinstance(fn, MultivariateNormal):
        z = fn.loc + (fn.scale_tril @ e[..., None])[..., 0]
        log_det = fn.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return z, log_det.expand(z.shape[:-1])
    z = fn.loc + fn.scale * e
    return z, fn.scale.log().expand(z.shape)


def to_noise(fn: Any, z: Tensor) -> Tensor:
    """The noise at which z is drawn, `(*batch, *event)`."""
    if isinstance(fn, Independent):
        return to_noise(fn.base_dist, z)
    if isinstance(fn, TransformedDistribution):
        for part in reversed(fn.transforms):
            z = part.inv(z)
        return to_noise(fn.base_dist, z)
    if isinstance(fn, MultivariateNormal):
        return torch.linalg.solve_triangular(fn.scale_tril, (z - fn.loc)[..., None], upper=False)[..., 0]
    return (z - fn.loc) / fn.scale


class SetNoise(Messenger):  # type: ignore[misc]  # Pyro has no types
    """Let the sites of a guide be what it draws at this noise, each given what has been drawn before it. They stay latent."""

    def __init__(self, noise: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.noise = noise

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.noise:
            msg["value"], log_det = from_noise(msg["fn"], self.noise[msg["name"]])
            msg["done"] = True
            self._score(msg, log_det)

    def _score(self, msg: Any, log_det: Tensor) -> None:
        """The density stays that of the guide."""


class PutNoise(SetNoise):
    """The same, with the density `1 / |dz/de|`, so that the log-weights of a run are `log p(x, z(e)) + log |dz/de|`."""

    def _score(self, msg: Any, log_det: Tensor) -> None:
        msg["fn"] = dist.Delta(msg["value"], log_density=-log_det, event_dim=len(msg["fn"].event_shape))

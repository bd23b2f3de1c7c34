"""Approximate posteriors of weights, for `pv.bayesian(guide=...)`: around the pair's own parameters, which are the means."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae._arguments import as_count, as_number


class MeanField:
    """`q(w) = prod_i N(w_i; m_i, s_i^2)`: independent Normals. The means m are the pair's own parameters.

    Args:
        scale: Every s_i at the start; positive.

    Raises:
        OptionError: The scale is not positive and finite.

    References:
        Kingma and Welling 2014, arXiv:1312.6114, appendix F; Blundell et al. 2015, arXiv:1505.05424.

    Example:
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6)), pv.mlp(6, fam.Normal(2)))
        >>> pair = pv.bayesian(vae, guide=pv.weights.MeanField(scale=0.05))
        >>> pv.check_pair(pair, torch.zeros(5, 6)).sites[0].event_shape
        (400, 2)
    """

    def __init__(self, scale: float = 0.01) -> None:
        self.scale = _positive("MeanField", scale)

    def __call__(self, parameters: Mapping[str, Tensor]) -> nn.Module:
        return _MeanField(parameters, self.scale)

    def __repr__(self) -> str:
        return f"MeanField(scale={self.scale!r})"


class _MeanField(nn.Module):
    """A Normal for each parameter, by name."""

    def __init__(self, parameters: Mapping[str, Tensor], scale: float) -> None:
        super().__init__()
        start = math.log(scale)
        self.log_scale = nn.ParameterDict(
            {_key(name): nn.Parameter(torch.full_like(value, start)) for name, value in parameters.items()}
        )

    def forward(self, parameters: Mapping[str, Tensor]) -> dict[str, Any]:
        return {
            name: dist.Normal(mean, self.log_scale[_key(name)].exp()).to_event(mean.dim())
            for name, mean in parameters.items()
        }


class LowRank:
    """`q(w) = N(m, F F^T + D)` of all P chosen weights together, with F of shape `(P, rank)` and D diagonal.

    Unlike with `MeanField`, weights may be correlated, also between layers. The means m are the pair's own parameters.

    Args:
        rank: Columns of F; at least 1.
        scale: Every standard deviation at the start, about half of it by F; positive.

    Raises:
        OptionError: The rank is less than 1, or the scale is not positive and finite.

    References:
        Ong, Nott and Smith 2018, arXiv:1701.03208 (factor covariances).

    Example:
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6), hidden=(8,)), pv.mlp(6, fam.Normal(2)))
        >>> pair = pv.bayesian(vae, guide=pv.weights.LowRank(rank=3))
        >>> pair.approximation.factor.shape  # 16 + 8 + 48 + 6 weights
        torch.Size([78, 3])
    """

    def __init__(self, rank: int = 5, scale: float = 0.01) -> None:
        self.rank, self.scale = as_count("rank of LowRank", rank), _positive("LowRank", scale)

    def __call__(self, parameters: Mapping[str, Tensor]) -> nn.Module:
        return _LowRank(parameters, self.rank, self.scale)

    def __repr__(self) -> str:
        return f"LowRank(rank={self.rank!r}, scale={self.scale!r})"


class _LowRank(nn.Module):
    """One Normal of all parameters, flattened one after the other."""

    def __init__(self, parameters: Mapping[str, Tensor], rank: int, scale: float) -> None:
        super().__init__()
        first = next(iter(parameters.values()))
        size = sum(value.numel() for value in parameters.values())
        each = scale / math.sqrt(2)
        self.factor = nn.Parameter(
            torch.randn(size, rank, dtype=first.dtype, device=first.device) * each / math.sqrt(rank)
        )
        self.log_scale = nn.Parameter(torch.full((size,), math.log(each), dtype=first.dtype, device=first.device))

    def forward(self, parameters: Mapping[str, Tensor]) -> Any:
        mean = torch.cat([value.flatten() for value in parameters.values()])
        return dist.LowRankMultivariateNormal(mean, self.factor, (2 * self.log_scale).exp())


class Visited:
    """`q(w) = N(m, S / 2 + D D' / (2 (R - 1)))`, by the weights that a fit has visited; see `pv.swag`, which makes it.

    Args:
        rank: The most columns of D; R is the number of those that have been filled.

    Raises:
        OptionError: The rank is less than 2.

    Example:
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6), hidden=(8,)), pv.mlp(6, fam.Normal(2)))
        >>> pair = pv.bayesian(vae, guide=pv.weights.Visited(rank=3))
        >>> for _ in range(5):
        ...     pair.approximation.visit(torch.randn(78))
        >>> pair.approximation.deviations.shape
        torch.Size([78, 3])
    """

    def __init__(self, rank: int) -> None:
        self.rank = as_count("rank of Visited", rank, 2)

    def __call__(self, parameters: Mapping[str, Tensor]) -> nn.Module:
        return _Visited(parameters, self.rank)

    def __repr__(self) -> str:
        return f"Visited(rank={self.rank!r})"


class _Visited(nn.Module):
    """Moments of the weights that were visited, in float64 until they are asked for; a fit does not train them."""

    count: Tensor
    mean: Tensor
    square: Tensor
    deviations: Tensor

    def __init__(self, parameters: Mapping[str, Tensor], rank: int) -> None:
        super().__init__()
        first = next(iter(parameters.values()))
        size = sum(value.numel() for value in parameters.values())
        zeros = torch.zeros(size, dtype=torch.float64, device=first.device)
        self.register_buffer("count", torch.zeros((), dtype=torch.float64, device=first.device))
        self.register_buffer("mean", zeros)
        self.register_buffer("square", zeros.clone())  # the sum of squared deviations from the mean
        self.register_buffer("deviations", zeros[:, None].repeat(1, rank))

    def visit(self, flat: Tensor) -> None:
        """Count these weights, `(P,)`."""
        flat = flat.to(self.mean)
        self.count += 1
        before = flat - self.mean
        self.mean += before / self.count
        after = flat - self.mean
        self.square += before * after
        self.deviations.copy_(torch.cat([self.deviations[:, 1:], after[:, None]], 1))

    def means(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The mean of each parameter."""
        found = split(self.mean, {name: value.shape for name, value in parameters.items()})
        return {name: value.to(parameters[name]) for name, value in found.items()}

    def forward(self, parameters: Mapping[str, Tensor]) -> Any:
        mean = torch.cat([value.flatten() for value in parameters.values()])
        columns = self.count.clamp(2, self.deviations.shape[1])  # the others, not visited so far, are zero
        factor = (self.deviations / (2 * (columns - 1)).sqrt()).to(mean)
        variance = self.square / self.count.clamp_min(1) / 2
        return dist.LowRankMultivariateNormal(mean, factor, (variance + 1e-12).to(mean))


def split(flat: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """A vector of all weights, `(*batch, P)`, as the parameters that it consists of, `(*batch, *shape)`, by name."""
    parts = flat.split([shape.numel() for shape in shapes.values()], -1)
    return {name: part.reshape(*part.shape[:-1], *shape) for (name, shape), part in zip(shapes.items(), parts)}


def _positive(who: str, scale: float) -> float:
    return as_number(f"scale of {who}", scale, above=0)


def _key(name: str) -> str:
    return name.replace(".", "/")  # torch takes no dots

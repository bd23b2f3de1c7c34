"""Families of dependent elements, for guides above all: correlated Normals, mixtures, the sphere, the simplex."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.nn import functional as F

from pyrovae import distributions
from pyrovae.errors import ShapeError
from pyrovae.families.base import Family, positive


class Vector(Family):
    """A family of vectors with a flat parameter: `sizes` says how it splits. params: (*batch, sum of sizes); rows: (*batch, D).

    Raises ShapeError if D is no int, or below `least`.
    """

    least = 1

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__(event_shape)
        if len(self.event_shape) != 1 or self.event_shape[0] < self.least:
            raise ShapeError(
                f"{type(self).__name__} is of vectors of at least {self.least} element(s), got {event_shape!r}."
            )

    @property
    def sizes(self) -> list[int]:
        """How many numbers each parameter has."""
        raise NotImplementedError

    @property
    def param_shape(self) -> torch.Size:
        return torch.Size((sum(self.sizes),))

    def split(self, params: Tensor) -> tuple[Tensor, ...]:
        """The parameters one by one. Raises ShapeError if params has another trailing shape."""
        self.check(params)
        return params.split(self.sizes, -1)


def _scale(raw: Tensor) -> Tensor:
    return F.softplus(raw) + 1e-4


def _bounded(raw: Tensor) -> Tensor:
    # free near 0, at most 10: a factor far above what stands on the diagonal is singular in single precision
    return 10 * torch.tanh(raw / 10)


class FullNormal(Vector):
    """p(z) = N(z; m, L L'), L = S (I + A), A strictly lower triangular, s = softplus(raw) + 1e-4.

    The entropy depends on s alone, so that correlations are learned without a price on it; A is bounded by 10 / sqrt(D), at
    A = 0 it is `Normal`. params: (*batch, 2 D + D (D - 1) / 2), split into m, raw and sqrt(D) A; z: (*batch, D). Raises
    ShapeError. Kingma & Welling 2019, arXiv:1906.02691, section 2.5.1.
    """

    place: Tensor

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__(event_shape)
        (d,) = self.event_shape
        rows, columns = torch.tril_indices(d, d, -1)
        place = torch.full((d, d), len(rows))  # where each entry stands in (a, 1, 0): 0 above the diagonal
        place[rows, columns] = torch.arange(len(rows))
        self.register_buffer("place", place + torch.ones(d, d).triu(1).long(), persistent=False)

    @property
    def sizes(self) -> list[int]:
        (d,) = self.event_shape
        return [d, d, d * (d - 1) // 2]

    def forward(self, params: Tensor) -> TorchDistributionMixin:  # type: ignore[override]
        loc, raw, factor = self.split(params)
        ends = [factor.new_full((*factor.shape[:-1], 1), end) for end in (1.0, 0.0)]
        entries = torch.cat([_bounded(factor) / self.event_shape[0] ** 0.5, *ends], -1)
        rows = entries.index_select(-1, self.place.flatten()).unflatten(-1, tuple(self.place.shape))
        return dist.MultivariateNormal(loc, scale_tril=_scale(raw).unsqueeze(-1) * rows)


class LowRankNormal(Vector):
    """p(z) = N(z; m, S (I + A A') S), A: D x rank, |A| <= 10, s = softplus(raw) + 1e-4.

    params: (*batch, 2 D + D rank), split into m, raw and A by rows; z: (*batch, D). At A = 0 it is `Normal`. Raises
    ShapeError, and OptionError if rank is not a positive int. Rezende, Mohamed & Wierstra 2014, arXiv:1401.4082, 4.3.
    """

    def __init__(self, event_shape: int | Sequence[int], rank: int = 1) -> None:
        super().__init__(event_shape)
        self.rank = positive(self, "rank", rank)

    @property
    def sizes(self) -> list[int]:
        (d,) = self.event_shape
        return [d, d, d * self.rank]

    def forward(self, params: Tensor) -> TorchDistributionMixin:  # type: ignore[override]
        loc, raw, factor = self.split(params)
        shape = (self.event_shape[0], self.rank)
        return distributions.LowRankNormal(loc, _scale(raw), _bounded(factor).unflatten(-1, shape))


class MixtureOfNormals(Vector):
    """p(z) = sum_k w_k N(z; m_k, diag(s_k^2)), w = softmax(l), s = softplus(raw) + 1e-4, with pathwise gradients for all.

    params: (*batch, K + 2 K D), split into l, m and raw; z: (*batch, D). Raises ShapeError, and OptionError if
    num_components is not a positive int. Morningstar et al. 2021, arXiv:2003.01687; `distributions.MixtureOfNormals`.
    """

    def __init__(self, event_shape: int | Sequence[int], num_components: int = 5) -> None:
        super().__init__(event_shape)
        self.num_components = positive(self, "num_components", num_components)

    @property
    def sizes(self) -> list[int]:
        each = self.num_components * self.event_shape[0]
        return [self.num_components, each, each]

    def forward(self, params: Tensor) -> TorchDistributionMixin:  # type: ignore[override]
        logits, loc, raw = self.split(params)
        shape = (self.num_components, self.event_shape[0])
        return distributions.MixtureOfNormals(logits, loc.unflatten(-1, shape), _scale(raw).unflatten(-1, shape))


class PowerSpherical(Vector):
    """p(z) = C (1 + m.z)^k on the unit sphere in R^D, D >= 2.

    m is the first D parameters brought to unit length; the last one, r, is the concentration on a logarithmic scale
    with ends, log k = log 0.1 + s(r) (log 2000 - log 0.1), s the logistic function, so that k = 14 at r = 0; above 2000
    single precision cancels in log C. params: (*batch, D + 1); z: (*batch, D). Raises ShapeError.
    De Cao & Aziz 2020, arXiv:2006.04437.
    """

    least = 2

    @property
    def sizes(self) -> list[int]:
        return [self.event_shape[0], 1]

    def forward(self, params: Tensor) -> TorchDistributionMixin:  # type: ignore[override]
        direction, raw = self.split(params)
        # at zero, where no direction is given, it is that of the ones
        square = direction.square().sum(-1, keepdim=True)
        direction = direction + (square < 1e-12).to(direction.dtype)
        loc = direction / direction.square().sum(-1, keepdim=True).sqrt()
        concentration = 0.1 * 20000 ** torch.sigmoid(raw.squeeze(-1))
        return distributions.PowerSpherical(loc, concentration)


class LogisticNormal(Vector):
    """p(z): z = softmax(u_1, ..., u_(D-1), 0), u ~ N(m, diag(s^2)), s = softplus(raw) + 1e-4: on the simplex, D >= 2.

    params: (*batch, 2 (D - 1)), split into m and raw; z: (*batch, D). Raises ShapeError.
    Aitchison & Shen 1980, Biometrika 67(2); Srivastava & Sutton 2017, arXiv:1703.01488.
    """

    least = 2

    @property
    def sizes(self) -> list[int]:
        return [self.event_shape[0] - 1] * 2

    def forward(self, params: Tensor) -> TorchDistributionMixin:  # type: ignore[override]
        loc, raw = self.split(params)
        return distributions.LogisticNormal(dist.Normal(loc, _scale(raw)).to_event(1))

"""Families of vectors with dependent elements, mostly for guides: correlated Normals, mixtures, the sphere, the simplex."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.nn import functional as F

from pyrovae import distributions
from pyrovae.distributions.normals import MultivariateNormal
from pyrovae.errors import ShapeError
from pyrovae.families.base import Family, positive


class Vector(Family):
    """Base class of families of vectors: parameters `(*batch, n)` are split into parts of the lengths `sizes`.

    A subclass defines `sizes` and `forward`, which calls `split`; `least` is the smallest dimension D that it supports.
    Rows `(*batch, D)`.

    Args:
        event_shape: Dimension D of one row, an int.

    Raises:
        ShapeError: `event_shape` is not a positive int, D is below `least`, or `params` has another trailing shape.

    Example:
        >>> family = fam.LowRankNormal(3, rank=2)
        >>> isinstance(family, fam.Vector), family.sizes, family.param_shape
        (True, [3, 3, 6], torch.Size([12]))
        >>> [tuple(part.shape) for part in family.split(torch.zeros(5, 12))]
        [(5, 3), (5, 3), (5, 6)]
    """

    least = 1

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__(event_shape)
        if len(self.event_shape) != 1 or self.event_shape[0] < self.least:
            raise ShapeError(
                f"{type(self).__name__} needs vectors of at least {self.least} element(s) as rows, got event_shape "
                f"{event_shape!r}. Give it the number of elements."
            )

    @property
    def sizes(self) -> list[int]:
        """Lengths of the parts that the parameters of one row are split into."""
        raise NotImplementedError

    @property
    def param_shape(self) -> torch.Size:
        return torch.Size((sum(self.sizes),))

    def split(self, params: Tensor) -> tuple[Tensor, ...]:
        """The parts of the parameters, one by one.

        Args:
            params: Raw network output, `(*batch, n)`, n the sum of `sizes`.

        Returns:
            One tensor `(*batch, size)` for each of `sizes`.

        Raises:
            ShapeError: `params` has another trailing shape.
        """
        self.check(params)
        return params.split(self.sizes, -1)


def _scale(raw: Tensor) -> Tensor:
    return F.softplus(raw) + 1e-4


def _bounded(raw: Tensor, unit: float = 1.0) -> Tensor:
    # about raw near 0, and at most 10: entries far above the diagonal's make the matrix singular in float32
    return (10 * unit) * torch.tanh(raw / 10)


class FullNormal(Vector):
    """`p(z) = N(z; m, L L')` with `L = S (I + A)`, A strictly lower triangular: a Normal with full covariance.

    Parameters `(*batch, 2 D + D (D - 1) / 2)`: m, r and `sqrt(D) A`, with `S = diag(softplus(r) + 1e-4)` and the entries of A
    bounded by `10 / sqrt(D)`. The entropy depends on S alone, so that learning correlations does not cost entropy. At A = 0
    it is `Normal`. Rows `(*batch, D)`.

    Args:
        event_shape: Dimension D of one row z, an int.

    Raises:
        ShapeError: `event_shape` is not a positive int, or `params` has another trailing shape.

    References:
        Kingma and Welling 2019, arXiv:1906.02691, section 2.5.1.

    Example:
        >>> encoder = pv.mlp(784, fam.FullNormal(3), hidden=(16,))
        >>> encoder(torch.zeros(5, 784)).covariance_matrix.shape
        torch.Size([5, 3, 3])
    """

    place: Tensor

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__(event_shape)
        (d,) = self.event_shape
        rows, columns = torch.tril_indices(d, d, -1)
        self.register_buffer("place", d * rows + columns, persistent=False)  # of A's entries in the whole matrix

    @property
    def sizes(self) -> list[int]:
        (d,) = self.event_shape
        return [d, d, d * (d - 1) // 2]

    def forward(self, params: Tensor) -> TorchDistributionMixin:  # type: ignore[override]
        loc, raw, factor = self.split(params)
        (d,) = self.event_shape
        empty = factor.new_zeros((*factor.shape[:-1], d * d))
        below = empty.index_copy(-1, self.place, _bounded(factor, d**-0.5)).unflatten(-1, (d, d))
        scale = _scale(raw)
        scale_tril = torch.diag_embed(scale) + scale.unsqueeze(-1) * below
        return MultivariateNormal(loc, scale_tril, diagonal=scale)


class LowRankNormal(Vector):
    """`p(z) = N(z; m, S (I + A A') S)`, A of shape (D, R): a Normal whose correlations have rank R.

    Parameters `(*batch, 2 D + D R)`: m, r and the entries of A row by row, with `S = diag(softplus(r) + 1e-4)` and the entries
    of A bounded by 10. At A = 0 it is `Normal`. Rows `(*batch, D)`.

    Args:
        event_shape: Dimension D of one row z, an int.
        rank: The rank R.

    Raises:
        ShapeError: `event_shape` is not a positive int, or `params` has another trailing shape.
        OptionError: `rank` is not a positive int.

    References:
        Rezende, Mohamed and Wierstra 2014, arXiv:1401.4082, section 4.3.

    Example:
        >>> encoder = pv.mlp(784, fam.LowRankNormal(3, rank=2), hidden=(16,))
        >>> encoder(torch.zeros(5, 784)).rsample().shape
        torch.Size([5, 3])
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
    """`p(z) = sum_k w_k N(z; m_k, diag(s_k^2))`: a mixture whose draws have pathwise gradients with respect to w, m and s.

    Parameters `(*batch, K + 2 K D)`: l, m and r, with `w = softmax(l)` and `s = softplus(r) + 1e-4`. Rows `(*batch, D)`.

    Args:
        event_shape: Dimension D of one row z, an int.
        num_components: The number of components K.

    Raises:
        ShapeError: `event_shape` is not a positive int, or `params` has another trailing shape.
        OptionError: `num_components` is not a positive int.

    References:
        Morningstar et al. 2021, arXiv:2003.01687.

    Example:
        >>> family = fam.MixtureOfNormals(3, num_components=2)
        >>> params = torch.zeros(5, *family.param_shape, requires_grad=True)
        >>> z = family(params).rsample()
        >>> z.shape, z.requires_grad
        (torch.Size([5, 3]), True)
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
    """`p(z) = C (1 + m.z)^k` on the unit sphere in R^D: directions concentrated around the unit vector m.

    Parameters `(*batch, D + 1)`: a vector that is normalised to give m, and r, which sets the concentration k between 0.1 and
    2000 on a logarithmic scale: `log k = log 0.1 + s(r) (log 2000 - log 0.1)`, s the logistic function, so that k = 14 at
    r = 0. Above 2000 the normalising constant C loses its digits in float32. Rows `(*batch, D)`: unit vectors.

    Args:
        event_shape: Dimension D of one row z, an int of at least 2.

    Raises:
        ShapeError: `event_shape` is not a positive int, D is 1, or `params` has another trailing shape.

    References:
        De Cao and Aziz 2020, arXiv:2006.04437.

    Example:
        >>> encoder = pv.mlp(784, fam.PowerSpherical(3), hidden=(16,))
        >>> z = encoder(torch.zeros(5, 784)).rsample()
        >>> torch.allclose(z.norm(dim=-1), torch.ones(5))
        True
    """

    least = 2

    @property
    def sizes(self) -> list[int]:
        return [self.event_shape[0], 1]

    def forward(self, params: Tensor) -> TorchDistributionMixin:  # type: ignore[override]
        direction, raw = self.split(params)
        # the zero vector has no direction: take that of (1, ..., 1)
        square = direction.square().sum(-1, keepdim=True)
        direction = direction + (square < 1e-12).to(direction.dtype)
        loc = direction / direction.square().sum(-1, keepdim=True).sqrt()
        concentration = 0.1 * 20000 ** torch.sigmoid(raw.squeeze(-1))
        return distributions.PowerSpherical(loc, concentration)


class LogisticNormal(Vector):
    """`z = softmax(u_1, ..., u_(D-1), 0)` with `u ~ N(m, diag(s^2))`: proportions that sum to 1.

    Parameters `(*batch, 2 (D - 1))`: m and r, with `s = softplus(r) + 1e-4`. Rows `(*batch, D)`: on the simplex.

    Args:
        event_shape: Dimension D of one row z, an int of at least 2.

    Raises:
        ShapeError: `event_shape` is not a positive int, D is 1, or `params` has another trailing shape.

    References:
        Aitchison and Shen 1980, Biometrika 67(2); Srivastava and Sutton 2017, arXiv:1703.01488.

    Example:
        >>> encoder = pv.mlp(784, fam.LogisticNormal(3), hidden=(16,))
        >>> z = encoder(torch.zeros(5, 784)).rsample()
        >>> torch.allclose(z.sum(-1), torch.ones(5))
        True
    """

    least = 2

    @property
    def sizes(self) -> list[int]:
        return [self.event_shape[0] - 1] * 2

    def forward(self, params: Tensor) -> TorchDistributionMixin:  # type: ignore[override]
        loc, raw = self.split(params)
        return distributions.LogisticNormal(dist.Normal(loc, _scale(raw)).to_event(1))

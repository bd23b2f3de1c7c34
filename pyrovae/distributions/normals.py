"""Normals with a full covariance, and one of low rank plus a diagonal, and mixtures of Normals with a pathwise gradient."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Categorical, Distribution, constraints


class MultivariateNormal(dist.MultivariateNormal):  # type: ignore[misc]  # Pyro has no types
    """`N(z; m, L L')`: Pyro's own, but for how shapes are broadcast, for which torch imports SymPy (0.4 s).

    The noise of the last draw is kept, so that `log_prob` of that very tensor solves no system of equations. Its gradient is
    then the total one, of a draw that moves with m and L. A draw that was made without gradients is scored as any other value
    where they are wanted.

    Args:
        loc: m, shape `(*batch, D)`.
        scale_tril: L, lower triangular, shape `(*batch, D, D)`.
        diagonal: That of L, `(*batch, D)`, where it is at hand, from which its gradient takes less.
    """

    _last: tuple[Tensor | None, Any, bool] = (None, None, False)  # a draw, its noise, and whether it has a gradient

    def __init__(self, loc: Tensor, scale_tril: Tensor, diagonal: Tensor | None = None) -> None:
        self._diagonal = diagonal
        self.loc, _ = torch.broadcast_tensors(loc, scale_tril[..., 0])
        self.scale_tril = scale_tril.expand(*self.loc.shape, scale_tril.shape[-1])
        self._unbroadcasted_scale_tril = scale_tril
        Distribution.__init__(self, self.loc.shape[:-1], self.loc.shape[-1:])

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        new: Any = super().expand(batch_shape, _instance or type(self).__new__(type(self)))
        new._diagonal = self._diagonal
        return new

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # torch's signature  # noqa: B008
        noise = torch.empty(self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device).normal_()
        z: Tensor = self.loc + _times(self._unbroadcasted_scale_tril, noise)
        self._last = (z, noise, torch.is_grad_enabled())
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        z, noise, differentiable = self._last
        if value is not z or (torch.is_grad_enabled() and not differentiable):
            found: Tensor = super().log_prob(value)
            return found
        # with the noise fixed, m and z - m have no part in it, so that the gradient by L is that of its diagonal alone
        of = self._unbroadcasted_scale_tril.diagonal(dim1=-2, dim2=-1) if self._diagonal is None else self._diagonal
        log_det = of.log().sum(-1)
        return -0.5 * (noise.square().sum(-1) + noise.shape[-1] * math.log(2 * math.pi)) - log_det


def _times(matrix: Tensor, vectors: Tensor) -> Tensor:
    """Products of matrices `(*batch, D, D)` and vectors `(*many, *batch, D)`, in which no matrix is copied for its vectors."""
    many = vectors.dim() - (matrix.dim() - 1)
    if many < 1:
        return (matrix @ vectors.unsqueeze(-1)).squeeze(-1)
    side_by_side = vectors.flatten(0, many - 1).movedim(0, -2)
    return (side_by_side @ matrix.mT).movedim(-2, 0).reshape(vectors.shape)


class LowRankNormal(TorchDistribution):  # type: ignore[misc]  # Pyro has no types
    """`N(z; m, S (I + A A') S)` with `S = diag(s)`: a Normal with correlations of rank R.

    The density costs O(D R^2), by Woodbury's identity and the Cholesky factor of `I + A'A`. torch's
    LowRankMultivariateNormal has the same density, but its Cholesky factorisation makes the host wait for the device.

    Args:
        loc: m, shape `(*batch, D)`.
        scale: s, positive, shape `(*batch, D)`.
        factor: A, shape `(*batch, D, R)`.

    Example:
        >>> p = pv.distributions.LowRankNormal(torch.zeros(5, 3), torch.ones(5, 3), torch.ones(5, 3, 1))
        >>> p.rsample((10,)).shape, p.log_prob(torch.zeros(3)).shape
        (torch.Size([10, 5, 3]), torch.Size([5]))
        >>> p.variance[0]
        tensor([2., 2., 2.])
    """

    has_rsample = True
    arg_constraints: dict[str, Any] = {}  # torch's name and form  # noqa: RUF012
    support = constraints.real_vector

    def __init__(self, loc: Tensor, scale: Tensor, factor: Tensor) -> None:
        self.loc, self.scale, self.factor = loc, scale, factor
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        batch = torch.Size(batch_shape)
        loc, scale = (p.expand(*batch, p.shape[-1]) for p in (self.loc, self.scale))
        return type(self)(loc, scale, self.factor.expand(*batch, *self.factor.shape[-2:]))

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # torch's signature  # noqa: B008
        shape = self._extended_shape(sample_shape)
        kind: Any = {"dtype": self.loc.dtype, "device": self.loc.device}
        few = torch.randn(*shape[:-1], self.factor.shape[-1], 1, **kind)
        return self.loc + self.scale * (torch.randn(shape, **kind) + (self.factor @ few).squeeze(-1))

    def log_prob(self, value: Tensor) -> Tensor:
        e = (value - self.loc) / self.scale
        rank = torch.arange(self.factor.shape[-1], device=e.device)
        identity = (rank[:, None] == rank).to(e.dtype)
        tril = torch.linalg.cholesky_ex(identity + self.factor.mT @ self.factor).L
        along = torch.linalg.solve_triangular(tril, self.factor.mT @ e.unsqueeze(-1), upper=False).squeeze(-1)
        log_det = self.scale.log().sum(-1) + tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        square = e.square().sum(-1) - along.square().sum(-1)
        return -0.5 * (square + self.event_shape[0] * math.log(2 * math.pi)) - log_det

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return self.scale.square() * (1 + self.factor.square().sum(-1))


class MixtureOfNormals(TorchDistribution):  # type: ignore[misc]
    """`p(z) = sum_k w_k N(z; m_k, diag(s_k^2))`, reparameterised in w, m and s; w = softmax(logits).

    A draw chooses a component and then a value. Its gradient is implicit, through the distributional transform: with
    `F_d(z) = p(Z_d <= z_d | z_1, ..., z_(d-1))`, a draw solves F(z) = u for a fixed u, so `dz = -(dF/dz)^-1 dF`, a triangular
    system. All parameters get a gradient of low variance, at a cost of O(K D^2) for each draw. Pyro's MixtureOfDiagNormals
    divides by the density itself, which underflows, and does not support D = 1.

    Args:
        logits: Unnormalised log-weights, shape `(*batch, K)`.
        loc: m, shape `(*batch, K, D)`.
        scale: s, positive, shape `(*batch, K, D)`.

    References:
        Graves 2016, arXiv:1607.05690; Figurnov, Mohamed and Mnih 2018, arXiv:1805.08498.

    Example:
        >>> loc = torch.tensor([[-1.0], [3.0]])
        >>> logits = torch.zeros(2, requires_grad=True)
        >>> p = pv.distributions.MixtureOfNormals(logits, loc, torch.ones(2, 1))
        >>> p.mean.detach(), p.variance.detach()
        (tensor([1.]), tensor([5.]))
        >>> p.rsample((100,)).mean().backward()  # the weights have a gradient, too
        >>> bool(logits.grad[1] > 0)
        True
    """

    has_rsample = True
    arg_constraints: dict[str, Any] = {}  # torch's name and form  # noqa: RUF012
    support = constraints.real_vector

    def __init__(self, logits: Tensor, loc: Tensor, scale: Tensor) -> None:
        self.logits, self.loc, self.scale = logits.log_softmax(-1), loc, scale
        super().__init__(loc.shape[:-2], loc.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        batch = torch.Size(batch_shape)
        tail = self.loc.shape[-2:]
        wide = self.logits.expand(*batch, tail[0]), self.loc.expand(*batch, *tail), self.scale.expand(*batch, *tail)
        return type(self)(*wide)

    def _each(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """`(z_d - m_kd) / s_kd` and `log N(z_d; m_kd, s_kd^2)`, each `(*batch, K, D)`."""
        e = (value.unsqueeze(-2) - self.loc) / self.scale
        return e, -0.5 * (e.square() + math.log(2 * math.pi)) - self.scale.log()

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.logsumexp(self.logits + self._each(value)[1].sum(-1), -1)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # torch's signature  # noqa: B008
        with torch.no_grad():
            which = Categorical(logits=self.logits, validate_args=False).sample(sample_shape)[..., None, None]
            shape = self._extended_shape(sample_shape)
            index = which.expand(*shape[:-1], 1, shape[-1])
            wide = (*shape[:-1], *self.loc.shape[-2:])
            loc, scale = (p.expand(wide).gather(-2, index).squeeze(-2) for p in (self.loc, self.scale))
            return loc + scale * torch.randn_like(loc)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        z = self.sample(sample_shape)
        return z + self._moves(z) if torch.is_grad_enabled() else z

    def _moves(self, z: Tensor) -> Tensor:
        """Zeros of shape `(*batch, D)` whose gradient is that of the draw z."""
        e, log_each = self._each(z)
        before = torch.cumsum(log_each, -1) - log_each
        weights = torch.softmax(self.logits.unsqueeze(-1) + before, -2)  # p(k | z_1, ..., z_(d-1))
        below = 0.5 * torch.erfc(-e / math.sqrt(2))
        above = 0.5 * torch.erfc(e / math.sqrt(2))
        # the smaller tail is the accurate one; F and F - 1 have the same gradient
        upper = ((weights * below).sum(-2, keepdim=True) > 0.5).detach()
        parts = weights * torch.where(upper, -above, below)
        total = parts.sum(-2)
        with torch.no_grad():
            density = (weights * log_each.exp()).sum(-2).clamp_min(1e-30)
            score = -e / self.scale
            cross = parts.mT @ score - total.unsqueeze(-1) * (weights.mT @ score)
            jacobian = (cross / density.unsqueeze(-1)).tril(-1)  # its diagonal is 1
        slope = (total - total.detach()) / density
        return -torch.linalg.solve_triangular(jacobian, slope.unsqueeze(-1), upper=False, unitriangular=True).squeeze(
            -1
        )

    @property
    def mean(self) -> Tensor:
        return (self.logits.exp().unsqueeze(-1) * self.loc).sum(-2)

    @property
    def variance(self) -> Tensor:
        apart = self.loc - self.mean.unsqueeze(-2)  # the difference of second moments may have no digits left
        return (self.logits.exp().unsqueeze(-1) * (self.scale.square() + apart.square())).sum(-2)

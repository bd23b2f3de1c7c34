"""Distributions of `x = g(u)` by change of variables, which know the log-density of their last draw without inverting g."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyrovae.distributions.inverting import inverse


class Pushforward(TorchDistribution):  # type: ignore[misc]  # Pyro has no types
    """`log p(x) = log p(u) - log |dx/du|` for `x = g(u)` and u from a base distribution: a base class.

    The log-density of the last draw is kept, so `log_prob` of that very tensor is exact and needs no inverse of g. For a draw
    made without gradients it is computed again where gradients are wanted. A subclass defines `map` and `unmap`.

    Args:
        base: The distribution of u, batch shape `(*batch)`.
        event_shape: Shape of one x.

    References:
        Papamakarios et al. 2021, Journal of Machine Learning Research 22(57).

    Example:
        >>> import pyro.distributions as dist
        >>> class LogNormal(pv.distributions.Pushforward):
        ...     def map(self, u):
        ...         return u.exp(), u.sum(-1)
        ...     def unmap(self, x):
        ...         return x.log(), x.log().sum(-1)
        >>> p = LogNormal(dist.Normal(torch.zeros(2), 1.0).to_event(1), torch.Size([2]))
        >>> x = p.rsample()
        >>> exact = torch.distributions.LogNormal(torch.zeros(2), 1.0).log_prob(x).sum()
        >>> torch.allclose(p.log_prob(x), exact)
        True
    """

    arg_constraints: dict[str, Any] = {}  # torch's name and form  # noqa: RUF012

    def __init__(self, base: Any, event_shape: torch.Size) -> None:
        self.base = base
        self._last: tuple[Tensor, Tensor, bool] | None = None
        super().__init__(base.batch_shape, event_shape, validate_args=False)

    def map(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """From u to `x = g(u)` and `log |dx/du|`, the latter of shape `(*batch)`."""
        raise NotImplementedError

    def unmap(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """From x to the u with `g(u) = x` and `log |dx/du|`, the latter of shape `(*batch)`."""
        raise NotImplementedError

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        new = self._get_checked_instance(type(self), _instance)
        new.__dict__.update(self.__dict__)
        Pushforward.__init__(new, self.base.expand(batch_shape), self.event_shape)
        return new

    @property
    def has_rsample(self) -> bool:  # type: ignore[override, unused-ignore]
        return bool(self.base.has_rsample)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # torch's signature  # noqa: B008
        return self._keeping(self.base.rsample(sample_shape))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        with torch.no_grad():  # a mixture can be drawn from, though not by reparametrisation
            return self._keeping(self.base.sample(sample_shape))

    def _keeping(self, u: Tensor) -> Tensor:
        """`x = g(u)`, whose log-density is kept."""
        x, ladj = self.map(u)
        self._last = (x, self.base.log_prob(u) - ladj, torch.is_grad_enabled())
        return x

    def log_prob(self, value: Tensor) -> Tensor:
        if self._last is not None and value is self._last[0] and (self._last[2] or not torch.is_grad_enabled()):
            return self._last[1]
        u, ladj = self.unmap(value)
        log_prob: Tensor = self.base.log_prob(u) - ladj
        return log_prob


class Flow(Pushforward):
    """A normalising flow on R^L: u ~ N(0, I), transformed by an invertible network.

    Args:
        transform: An invertible transform t of zuko, with `call_and_ladj` and `inv`.
        base: The distribution of u, batch shape `(*batch)` and event shape `(L,)`.
        draws: The direction of t. True: `x = t(u)`, cheap to draw and exact at its own draws, right for a guide. False:
            `u = t(x)`, cheap to score, right for a prior. The other direction inverts t, which takes L passes of an
            autoregressive network and 2 of a coupling.

    References:
        Kingma et al. 2016, arXiv:1606.04934; Papamakarios, Pavlakou and Murray 2017, arXiv:1705.07057.

    Example:
        >>> prior = pv.priors.FlowPrior(2, transforms=2, hidden=(8,))
        >>> p = prior()
        >>> isinstance(p, pv.distributions.Flow), p.draws
        (True, False)
        >>> p.log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(self, transform: Any, base: Any, draws: bool) -> None:
        self.transform, self.draws = transform, draws
        super().__init__(base, base.event_shape)

    @property
    def support(self) -> Any:
        return constraints.real_vector

    def map(self, u: Tensor) -> tuple[Tensor, Tensor]:
        if self.draws:
            return self.transform.call_and_ladj(u)
        x = inverse(self.transform, u)
        return x, -self.transform.call_and_ladj(x)[1]

    def unmap(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.draws:
            u = inverse(self.transform, x)
            return u, self.transform.call_and_ladj(u)[1]
        u, ladj = self.transform.call_and_ladj(x)
        return u, -ladj


class LogisticNormal(Pushforward):
    """`x = softmax(u_1, ..., u_(D-1), 0)`, u Normal on R^(D-1): a distribution on the simplex.

    `log p(x) = log N(u; ...) - sum_d log x_d`, the density over the first D - 1 coordinates, with `u_d = log x_d - log x_D`.
    torch's distribution of that name breaks sticks instead, which treats the D shares differently. Shares below 1e-30
    count as 1e-30.

    Args:
        base: The distribution of u, batch shape `(*batch)` and event shape `(D - 1,)`.

    References:
        Aitchison and Shen 1980, Biometrika 67(2).

    Example:
        >>> import pyro.distributions as dist
        >>> base = dist.Normal(torch.zeros(5, 2), 1.0).to_event(1)
        >>> p = pv.distributions.LogisticNormal(base)
        >>> shares = p.sample()
        >>> shares.shape, torch.allclose(shares.sum(-1), torch.ones(5))
        (torch.Size([5, 3]), True)
    """

    def __init__(self, base: Any) -> None:
        super().__init__(base, torch.Size((base.event_shape[0] + 1,)))

    @property
    def support(self) -> Any:
        return constraints.simplex

    def map(self, u: Tensor) -> tuple[Tensor, Tensor]:
        log_x = torch.log_softmax(torch.nn.functional.pad(u, (0, 1)), -1)
        return log_x.exp(), log_x.sum(-1)

    def unmap(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_x = x.clamp_min(1e-30).log()
        return log_x[..., :-1] - log_x[..., -1:], log_x.sum(-1)

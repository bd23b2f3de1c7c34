"""x = g(u), u from a base: densities by change of variables that score what they have just drawn without inverting g."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class Pushforward(TorchDistribution):  # type: ignore[misc]  # Pyro has no types
    """log p(x) = log p(u) - log |dx/du|, x = g(u). x: (*batch, *event).

    The log-density of the last draw is kept: `log_prob` of that very tensor costs nothing and is exact. A draw made
    without gradients is scored anew where gradients are wanted, since what was kept has none. A subclass gives `map`
    and `unmap`. Papamakarios et al. 2021, JMLR 22(57).
    """

    has_rsample = True
    arg_constraints: dict[str, Any] = {}  # torch's name and form  # noqa: RUF012

    def __init__(self, base: Any, event_shape: torch.Size) -> None:
        self.base = base
        self._last: tuple[Tensor, Tensor, bool] | None = None
        super().__init__(base.batch_shape, event_shape, validate_args=False)

    def map(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """u -> x = g(u) and log |dx/du|, (*batch)."""
        raise NotImplementedError

    def unmap(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x -> u with g(u) = x, and log |dx/du|, (*batch)."""
        raise NotImplementedError

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        new = self._get_checked_instance(type(self), _instance)
        new.__dict__.update(self.__dict__)
        Pushforward.__init__(new, self.base.expand(batch_shape), self.event_shape)
        return new

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # torch's signature  # noqa: B008
        u = self.base.rsample(sample_shape)
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
    """A normalising flow on R^L: u ~ N(0, I), pushed through a transform of zuko's. x: (*batch, L).

    `draws` says which way the transform itself goes: x = t(u), cheap to draw and exact at its own draws, where a guide
    belongs; or u = t(x), cheap to score, where a prior does. The other way inverts t: L passes of an autoregressive
    network, 2 of a coupling. Kingma et al. 2016, arXiv:1606.04934; Papamakarios et al. 2017, arXiv:1705.07057.
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
        x = self.transform.inv(u)
        return x, -self.transform.call_and_ladj(x)[1]

    def unmap(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.draws:
            u = self.transform.inv(x)
            return u, self.transform.call_and_ladj(u)[1]
        u, ladj = self.transform.call_and_ladj(x)
        return u, -ladj


class LogisticNormal(Pushforward):
    """x = softmax(u_1, ..., u_(D-1), 0), u ~ `base`, a Normal on R^(D-1). x on the simplex: (*batch, D).

    log p(x) = log N(u; ...) - sum_d log x_d, the density over the first D-1 coordinates, u_d = log x_d - log x_D. It is
    the additive form; torch's distribution of that name breaks sticks, so that its classes are not alike. Values below
    1e-30 count as 1e-30. Aitchison & Shen 1980, Biometrika 67(2).
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

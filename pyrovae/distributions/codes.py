"""Distributions of codes: of their numbers, one place after another, and of the vectors that they stand for."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F

from pyrovae._shapes import broadcast_shapes


class Autoregressive(TorchDistribution):  # type: ignore[misc]  # Pyro has no types
    """`p(k) = prod_i p(k_i | k_0, ..., k_(i-1))` over arrays of classes k, in the order of their memory.

    A density takes one pass of the network, a draw one pass for each place.

    Args:
        net: Maps class numbers `(*batch, n)` to logits `(*batch, n, K)`, of which row i depends on what is before place i only,
            as `nets.CausalTransformer` does.
        num_classes: K, the number of classes of each place.
        event_shape: Shape of one array of classes.
        batch_shape: The batch shape.

    References:
        van den Oord, Kalchbrenner and Kavukcuoglu 2016, arXiv:1601.06759.

    Example:
        >>> p = pv.distributions.Autoregressive(pv.nets.CausalTransformer(3, length=4), 3, (2, 2))
        >>> k = p.sample((5,))
        >>> k.shape, torch.allclose(p.log_prob(k), torch.tensor(3.0).log() * -4)  # uniform at the start
        (torch.Size([5, 2, 2]), True)
    """

    arg_constraints: dict[str, Any] = {}  # torch's name and form  # noqa: RUF012

    def __init__(self, net: Any, num_classes: int, event_shape: Any, batch_shape: Any = ()) -> None:
        self.net, self.num_classes = net, num_classes
        super().__init__(torch.Size(batch_shape), torch.Size(event_shape), validate_args=False)

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.integer_interval(0, self.num_classes - 1), len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        flat = value.flatten(value.dim() - len(self.event_shape)).long()
        inside = flat.clamp(0, self.num_classes - 1)
        log_p = F.log_softmax(self.net(inside), -1).gather(-1, inside.unsqueeze(-1)).squeeze(-1)
        total = log_p.masked_fill(inside != flat, -torch.inf).sum(-1)
        return total.expand(broadcast_shapes(total.shape, self.batch_shape))

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # torch's signature  # noqa: B008
        n = self.event_shape.numel()
        shape = self._extended_shape(torch.Size(sample_shape))
        device = next(self.net.parameters()).device
        k = torch.zeros(*shape[: len(shape) - len(self.event_shape)], n, dtype=torch.long, device=device)
        for i in range(n):
            logits = self.net(k[..., : i + 1])[..., i, :]
            k[..., i] = torch.distributions.Categorical(logits=logits).sample()
        return k.reshape(shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Autoregressive:
        return Autoregressive(self.net, self.num_classes, self.event_shape, batch_shape)


class Codes(TorchDistribution):  # type: ignore[misc]
    """`z = c(k)`, k drawn from a distribution of code numbers: `p(z)` is the probability of the number of z.

    It is a distribution of the vectors themselves, not of their numbers, so that a gradient can pass through a value. A value
    that is no code, which its support tells, has the probability of the nearest one, so that rounding does no harm.

    Args:
        indices: A distribution of code numbers, batch shape `(*batch)` and event shape `quantiser.index_shape`.
        quantiser: What translates between numbers and codes, see `nets.Quantiser`.

    References:
        van den Oord et al. 2017, arXiv:1711.00937.

    Example:
        >>> quantiser = pv.nets.FSQ((5, 3), grid=2)
        >>> p = pv.distributions.Codes(pv.priors.Categorical(15, event_shape=2)(), quantiser)
        >>> z = p.sample((4,))
        >>> z.shape, torch.allclose(p.log_prob(z), torch.tensor(15.0).log() * -2)
        (torch.Size([4, 2, 2]), True)
        >>> p.support.check(z).all(), p.support.check(z + 0.1).any()
        (tensor(True), tensor(False))
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, indices: Any, quantiser: Any) -> None:
        self.indices, self.quantiser = indices, quantiser
        super().__init__(indices.batch_shape, quantiser.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return _IsCode(self.quantiser)

    @property
    def num_codes(self) -> int:
        """K, the number of codes, of each level where the quantiser has several."""
        return int(self.quantiser.num_codes)

    def numbers(self, value: Tensor) -> Tensor:
        """The numbers of codes z, `(*batch, Q, M)`: on each of Q levels those of M places; Q is 1 without levels."""
        found: Tensor = self.quantiser.indices(value)
        batch, depth = value.shape[: value.dim() - len(self.event_shape)], getattr(self.quantiser, "depth", 1)
        return found.reshape(*batch, depth, self.quantiser.index_shape.numel() // depth)

    def log_prob(self, value: Tensor) -> Tensor:
        log_p: Tensor = self.indices.log_prob(self.quantiser.indices(value))
        return log_p

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        with torch.no_grad():
            found: Tensor = self.quantiser.lookup(self.indices.sample(sample_shape))
        return found

    def expand(self, batch_shape: Any, _instance: Any = None) -> Codes:
        return Codes(self.indices.expand(batch_shape), self.quantiser)


class _IsCode(constraints.Constraint):
    """Whether each vector is a code, but for rounding."""

    is_discrete = True

    def __init__(self, quantiser: Any) -> None:
        self.quantiser = quantiser
        self.event_dim = len(quantiser.event_shape)
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        with torch.no_grad():
            code = self.quantiser.lookup(self.quantiser.indices(value))
            far = (value - code).abs() > 1e-4 * (1 + code.abs())
        return ~far.flatten(far.dim() - self.event_dim).any(-1)

    def __repr__(self) -> str:
        return f"codes of {type(self.quantiser).__name__}"

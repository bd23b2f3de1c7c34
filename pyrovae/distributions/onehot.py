"""One-hot codes, and draws of codes and bits that carry a gradient: relaxed ones, and hard ones with the gradient of others.

A log mass here is linear in its value. At a code it is the logarithm of a probability, and at a relaxed draw what lies between
those of the codes. So a guide of these distributions changes how a gradient is estimated, and no model has to know of it.
`borrows_gradient` says that the gradient of a draw is not that of a density.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.kl import register_kl
from torch.nn import functional as F

from pyrovae.distributions.bernoulli import Bernoulli

MOST_VALUES = 2**16  # codes of a row that are listed in order to be summed out


class OneHotCategorical(TorchDistribution):  # type: ignore[misc]  # Pyro has no types
    """`p(z) = prod_l prod_k p_lk^z_lk` with `p_l = softmax(logits_l)`: one-hot codes z_l of K categories each.

    The log mass, `sum_lk z_lk log p_lk`, is linear in z. That is what it is at the relaxed codes of a
    `RelaxedOneHotCategorical`, too, where it is no density.

    All `K^L` values of L codes can be listed, so that a site is summed out exactly where there are at most 65,536 of them.

    Args:
        logits: Unnormalised log-probabilities, shape `(*batch, *event)`; the categories are along the last dimension.
        event_dim: How many dimensions belong to a row: 1 for a single code `(K,)`, 2 for `(L, K)`.

    References:
        Bishop 2006, *Pattern Recognition and Machine Learning*, section 2.2.

    Example:
        >>> p = pv.distributions.OneHotCategorical(torch.zeros(5, 3, 4), event_dim=2)  # rows of 3 codes of 4 categories
        >>> z = p.sample()
        >>> z.shape, torch.equal(z.sum(-1), torch.ones(5, 3)), torch.allclose(p.log_prob(z).exp(), torch.tensor(1 / 64))
        (torch.Size([5, 3, 4]), True, True)
        >>> p.enumerate_support(expand=False).shape
        torch.Size([64, 1, 3, 4])
    """

    arg_constraints: dict[str, Any] = {}  # torch's name and form  # noqa: RUF012

    def __init__(self, logits: Tensor, event_dim: int = 1) -> None:
        self.logits, place = logits, logits.dim() - event_dim
        super().__init__(logits.shape[:place], logits.shape[place:], validate_args=False)

    @property
    def log_probs(self) -> Tensor:
        """Normalised log-probabilities, `(*batch, *event)`; that of an impossible category is the least number."""
        return F.log_softmax(self.logits, -1).clamp_min(torch.finfo(self.logits.dtype).min)

    @property
    def probs(self) -> Tensor:
        """Probabilities, `(*batch, *event)`."""
        return self.logits.softmax(-1)

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.one_hot, len(self.event_shape) - 1)

    @property
    def mean(self) -> Tensor:
        return self.probs

    @property
    def variance(self) -> Tensor:
        return self.probs * (1 - self.probs)

    @property
    def mode(self) -> Tensor:
        return _hard(self.logits)

    def entropy(self) -> Tensor:
        return self._sum(-self.probs * self.log_probs)

    def log_prob(self, value: Tensor) -> Tensor:
        return self._sum(value * self.log_probs)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # torch's signature  # noqa: B008
        with torch.no_grad():
            return _hard(self._perturbed(sample_shape))

    @property
    def has_enumerate_support(self) -> bool:
        return self._num_values <= MOST_VALUES

    def enumerate_support(self, expand: bool = True) -> Tensor:
        k = self.event_shape[-1]
        codes = self.event_shape[:-1].numel()
        number = torch.arange(self._num_values, device=self.logits.device).unsqueeze(-1)
        digits = number // k ** torch.arange(codes, device=self.logits.device) % k
        values = (digits.unsqueeze(-1) == torch.arange(k, device=self.logits.device)).to(self.logits.dtype)
        values = values.reshape(-1, *(1 for _ in self.batch_shape), *self.event_shape)
        return values.expand(-1, *self.batch_shape, *self.event_shape) if expand else values

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        return self._with(self.logits.expand(*batch_shape, *self.event_shape))

    def _with(self, logits: Tensor) -> Any:
        """The same kind of distribution of other logits."""
        return OneHotCategorical(logits, len(self.event_shape))

    @property
    def _num_values(self) -> int:
        return int(self.event_shape[-1] ** self.event_shape[:-1].numel())

    def _sum(self, of_codes: Tensor) -> Tensor:
        return of_codes.sum(tuple(range(-len(self.event_shape), 0)))

    def _perturbed(self, sample_shape: Any) -> Tensor:
        """Logits plus Gumbel noise: the largest of them is a draw of the category."""
        wide = self.logits.expand(self._extended_shape(torch.Size(sample_shape)))
        return wide + _gumbel(wide)


class RelaxedOneHotCategorical(OneHotCategorical):
    """`z = softmax((logits + g) / t)`, g Gumbel noise: draws of `OneHotCategorical` that are relaxed, or `hard`.

    At temperature t = 0 these are draws of the one-hot codes. With `hard` a draw is the code `argmax(logits + g)` whatever the
    temperature is, an exact draw, and only its gradient is that of z. The log mass is that of `OneHotCategorical`, not the
    density of z, and so is the divergence in closed form.

    Args:
        logits: Unnormalised log-probabilities, shape `(*batch, *event)`; the categories are along the last dimension.
        temperature: t, positive, a number or a 0-d tensor.
        hard: Whether draws are codes.
        event_dim: How many dimensions belong to a row.

    References:
        Jang, Gu and Poole 2017, arXiv:1611.01144; Maddison, Mnih and Teh 2017, arXiv:1611.00712.

    Example:
        >>> q = pv.distributions.RelaxedOneHotCategorical(torch.zeros(5, 3), temperature=0.5)
        >>> z = q.rsample()
        >>> torch.allclose(z.sum(-1), torch.ones(5)), bool(z.max() < 1)
        (True, True)
    """

    has_rsample = borrows_gradient = True

    def __init__(
        self, logits: Tensor, temperature: Tensor | float = 0.5, hard: bool = False, event_dim: int = 1
    ) -> None:
        super().__init__(logits, event_dim)
        self.temperature, self.hard = temperature, hard

    @property
    def support(self) -> Any:
        kind = constraints.one_hot if self.hard else constraints.simplex
        return constraints.independent(kind, len(self.event_shape) - 1)

    @property
    def has_enumerate_support(self) -> bool:
        return False

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        perturbed = self._perturbed(sample_shape)
        soft = (perturbed / self.temperature).softmax(-1)
        return _straight_through(_hard(perturbed), soft) if self.hard else soft

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        with torch.no_grad():
            return self.rsample(sample_shape)

    def _with(self, logits: Tensor) -> Any:
        return RelaxedOneHotCategorical(logits, self.temperature, self.hard, len(self.event_shape))


class StraightThroughOneHotCategorical(OneHotCategorical):
    """Draws of `OneHotCategorical` with the gradient of its probabilities: `dz / dlogits = dp / dlogits`.

    Args:
        logits: Unnormalised log-probabilities, shape `(*batch, *event)`; the categories are along the last dimension.
        event_dim: How many dimensions belong to a row.

    References:
        Bengio, Leonard and Courville 2013, arXiv:1308.3432.

    Example:
        >>> logits = torch.zeros(3, requires_grad=True)
        >>> z = pv.distributions.StraightThroughOneHotCategorical(logits).rsample()
        >>> float(z.detach().max())
        1.0
        >>> torch.autograd.grad(z[0], logits)[0]  # that of p_0 = 1 / 3
        tensor([ 0.2222, -0.1111, -0.1111])
    """

    has_rsample = borrows_gradient = True

    @property
    def has_enumerate_support(self) -> bool:
        return False

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        return _straight_through(self.sample(sample_shape), self.probs)

    def _with(self, logits: Tensor) -> Any:
        return StraightThroughOneHotCategorical(logits, len(self.event_shape))


class RelaxedBernoulli(Bernoulli):
    """`z = s((l + g) / t)`, g logistic noise and s the logistic function: draws of `Bernoulli` that are relaxed, or `hard`.

    It is `RelaxedOneHotCategorical` for bits: with `hard` a draw is `1[l + g > 0]`, with the gradient of z. The log mass is
    that of `Bernoulli`, which is linear in z.

    Args:
        logits: l, any real numbers, shape `(*batch)`.
        temperature: t, positive, a number or a 0-d tensor.
        hard: Whether draws are 0 or 1.

    References:
        Maddison, Mnih and Teh 2017, arXiv:1611.00712.

    Example:
        >>> z = pv.distributions.RelaxedBernoulli(torch.zeros(5), temperature=0.5).rsample()
        >>> bool(((z > 0) & (z < 1)).all())
        True
    """

    has_rsample = borrows_gradient = True
    has_enumerate_support = False

    def __init__(self, logits: Tensor, temperature: Tensor | float = 0.5, hard: bool = False) -> None:
        super().__init__(logits, validate_args=False)
        self.temperature, self.hard = temperature, hard

    @property
    def support(self) -> Any:
        return constraints.boolean if self.hard else constraints.unit_interval

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        return RelaxedBernoulli(self.logits.expand(batch_shape), self.temperature, self.hard)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        wide = self.logits.expand(self._extended_shape(torch.Size(sample_shape)))
        perturbed = wide + _gumbel(wide) - _gumbel(wide)
        soft = torch.sigmoid(perturbed / self.temperature)
        return _straight_through((perturbed > 0).to(soft), soft) if self.hard else soft

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        with torch.no_grad():
            return self.rsample(sample_shape)


class StraightThroughBernoulli(Bernoulli):
    """Draws of `Bernoulli` with the gradient of its probabilities, `dz / dl = dp / dl`.

    Args:
        logits: l, any real numbers, shape `(*batch)`.

    References:
        Bengio, Leonard and Courville 2013, arXiv:1308.3432.

    Example:
        >>> logits = torch.zeros((), requires_grad=True)
        >>> z = pv.distributions.StraightThroughBernoulli(logits).rsample()
        >>> float(z.detach()) in (0.0, 1.0), torch.autograd.grad(z, logits)[0]
        (True, tensor(0.2500))
    """

    has_rsample = borrows_gradient = True
    has_enumerate_support = False

    def __init__(self, logits: Tensor) -> None:
        super().__init__(logits, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        return StraightThroughBernoulli(self.logits.expand(batch_shape))

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        return _straight_through(self.sample(sample_shape), torch.sigmoid(self.logits))


def _gumbel(like: Tensor) -> Tensor:
    """Standard Gumbel noise of the shape of a tensor: a draw of `argmax_k(l_k + g_k)` has the probabilities softmax(l)."""
    noise = torch.empty_like(like, memory_format=torch.contiguous_format).exponential_()
    return -noise.clamp_min(torch.finfo(like.dtype).tiny).log()


def _straight_through(value: Tensor, through: Tensor) -> Tensor:
    """Exactly `value`, with the gradient of `through`. Bengio, Leonard and Courville 2013, arXiv:1308.3432."""
    return value.detach() + (through - through.detach())


def _hard(scores: Tensor) -> Tensor:
    """The one-hot code of the largest score along the last dimension."""
    return torch.zeros_like(scores).scatter_(-1, scores.argmax(-1, keepdim=True), 1.0)


@register_kl(OneHotCategorical, OneHotCategorical)  # type: ignore[untyped-decorator]
def _kl(q: OneHotCategorical, p: OneHotCategorical) -> Tensor:
    total: Tensor = q._sum(q.probs * (q.log_probs - p.log_probs))
    return total

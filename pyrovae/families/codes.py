"""Families of discrete codes: exact ones, and those by which a gradient passes through the draws of a guide.

The latter are the same distributions in evaluation mode, so that every bound and every draw outside of a fit is that of the
discrete guide.
"""

from collections.abc import Sequence

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyrovae._arguments import as_number
from pyrovae.distributions import onehot
from pyrovae.distributions.bernoulli import Bernoulli as BernoulliMass
from pyrovae.errors import ShapeError
from pyrovae.families.base import Elementwise, Family


class OneHotCategorical(Family):
    """`p(z) = prod_l prod_k p_lk^z_lk` with `p_l = softmax(logits_l)`: one-hot codes, such as `(L, K)`, L of K categories.

    Parameters `(*batch, *event_shape)`: the logits. Rows `(*batch, *event_shape)`: 0 or 1, a single 1 along the last dimension.
    As a guide its gradient is that of the score function, with the baseline that the loss takes, see `Trace_ELBO` and
    `IWELBO`.

    Args:
        event_shape: Shape of one row z, an int K for a single code, or a tuple `(..., K)`; K is at least 2.

    Raises:
        ShapeError: `event_shape` is not a shape whose last number is at least 2, or `params` has another trailing shape.

    References:
        Bishop 2006, *Pattern Recognition and Machine Learning*, section 2.2.

    Example:
        >>> encoder = pv.mlp(784, fam.OneHotCategorical((20, 10)), hidden=(16,))
        >>> z = encoder(torch.zeros(5, 784)).sample()
        >>> z.shape, float(z.sum())
        (torch.Size([5, 20, 10]), 100.0)
    """

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__(event_shape)
        if not self.event_shape or self.event_shape[-1] < 2:
            raise ShapeError(
                f"{type(self).__name__} needs an event_shape whose last number is that of the categories, at least 2, such as "
                f"(20, 10) for 20 codes of 10, got {event_shape!r}."
            )

    @property
    def param_shape(self) -> torch.Size:
        return self.event_shape

    def forward(self, params: Tensor) -> TorchDistributionMixin:  # type: ignore[override]
        self.check(params)
        return onehot.OneHotCategorical(params, len(self.event_shape))


class RelaxedOneHotCategorical(OneHotCategorical):
    """`z = softmax((logits + g) / t)`, g Gumbel noise: `OneHotCategorical`, in training mode with relaxed or hard draws.

    What a fit then ascends is a relaxed bound, `E log p(x, z) - log q(z)` at relaxed codes, where both log masses are taken to
    be linear in z: no bound on log p(x). The history of a fit has it as "relaxed_elbo". With `hard` the draws are codes and
    the bound is the ELBO; only the gradient is that of relaxed draws. The gradient is biased: with relaxed draws the less the
    lower t is, at the price of more noise, and with hard ones at any t, where log p(x | z) is not linear in z. In evaluation
    mode this is `OneHotCategorical`.

    The KL term is at the draws, or with `Trace_ELBO(kl="analytic")` that of the two categorical distributions, as in the first
    reference. The second one takes densities of relaxed codes in the model as well, which would be another model.

    Args:
        event_shape: Shape of one row z, an int K for a single code, or a tuple `(..., K)`; K is at least 2.
        temperature: t, positive. `schedules.cooling` lowers it during a fit; it is kept in the buffer `current_temperature`.
        hard: Whether draws are codes, with the gradient of relaxed ones (the straight-through Gumbel-softmax).

    Raises:
        ShapeError: `event_shape` is not a shape whose last number is at least 2, or `params` has another trailing shape.
        OptionError: `temperature` is not a positive number.

    References:
        Jang, Gu and Poole 2017, arXiv:1611.01144; Maddison, Mnih and Teh 2017, arXiv:1611.00712.

    Example:
        >>> family = fam.RelaxedOneHotCategorical((20, 10), temperature=0.5)
        >>> z = family(torch.zeros(5, 20, 10)).rsample()
        >>> bool(z.max() < 1), family.eval()(torch.zeros(5, 20, 10)).sample().unique()
        (True, tensor([0., 1.]))
    """

    current_temperature: Tensor

    def __init__(self, event_shape: int | Sequence[int], temperature: float = 0.5, hard: bool = False) -> None:
        super().__init__(event_shape)
        self.temperature, self.hard = _positive(self, temperature), hard
        self.register_buffer("current_temperature", torch.tensor(float(temperature)))

    @property
    def relaxes(self) -> bool:
        """Whether draws are no codes, so that a fit ascends a relaxed bound."""
        return self.training and not self.hard

    def forward(self, params: Tensor) -> TorchDistributionMixin:  # type: ignore[override]
        if not self.training:
            return super().forward(params)
        self.check(params)
        event_dim = len(self.event_shape)
        return onehot.RelaxedOneHotCategorical(params, self.current_temperature, self.hard, event_dim)


class StraightThroughOneHotCategorical(OneHotCategorical):
    """`OneHotCategorical` whose draws have the gradient of the probabilities in training mode: `dz / dlogits = dp / dlogits`.

    Draws and bounds are exact, and the gradient is biased where log p(x | z) is not linear in z.

    Args:
        event_shape: Shape of one row z, an int K for a single code, or a tuple `(..., K)`; K is at least 2.

    Raises:
        ShapeError: `event_shape` is not a shape whose last number is at least 2, or `params` has another trailing shape.

    References:
        Bengio, Leonard and Courville 2013, arXiv:1308.3432.

    Example:
        >>> family = fam.StraightThroughOneHotCategorical((20, 10))
        >>> family(torch.zeros(5, 20, 10)).rsample().unique()
        tensor([0., 1.])
    """

    def forward(self, params: Tensor) -> TorchDistributionMixin:  # type: ignore[override]
        if not self.training:
            return super().forward(params)
        self.check(params)
        return onehot.StraightThroughOneHotCategorical(params, len(self.event_shape))


class RelaxedBernoulli(Elementwise):
    """`z_d = s((l_d + g) / t)`, g logistic noise: `Bernoulli`, in training mode with relaxed or hard draws.

    For bits what `RelaxedOneHotCategorical` is for codes, and with the same words about its bound.

    Args:
        event_shape: Shape of one row z, an int or a tuple of ints; `()` for a single bit.
        temperature: t, positive. `schedules.cooling` lowers it during a fit; it is kept in the buffer `current_temperature`.
        hard: Whether draws are bits, with the gradient of relaxed ones.

    Raises:
        ShapeError: `event_shape` is not a shape, or `params` has another trailing shape.
        OptionError: `temperature` is not a positive number.

    References:
        Maddison, Mnih and Teh 2017, arXiv:1611.00712.

    Example:
        >>> family = fam.RelaxedBernoulli(20, temperature=0.5)
        >>> z = family(torch.zeros(5, 1, 20)).rsample()
        >>> bool(z.max() < 1), family.eval()(torch.zeros(5, 1, 20)).sample().unique()
        (True, tensor([0., 1.]))
    """

    num_params = 1
    current_temperature: Tensor

    def __init__(self, event_shape: int | Sequence[int], temperature: float = 0.5, hard: bool = False) -> None:
        super().__init__(event_shape)
        self.temperature, self.hard = _positive(self, temperature), hard
        self.register_buffer("current_temperature", torch.tensor(float(temperature)))

    @property
    def relaxes(self) -> bool:
        """Whether draws are no bits, so that a fit ascends a relaxed bound."""
        return self.training and not self.hard

    def link(self, logits: Tensor) -> TorchDistributionMixin:
        if not self.training:
            return BernoulliMass(logits)
        return onehot.RelaxedBernoulli(logits, self.current_temperature, self.hard)


class StraightThroughBernoulli(Elementwise):
    """`Bernoulli` whose draws have the gradient of the probabilities in training mode: `dz / dl = dp / dl`.

    Args:
        event_shape: Shape of one row z, an int or a tuple of ints; `()` for a single bit.

    Raises:
        ShapeError: `event_shape` is not a shape, or `params` has another trailing shape.

    References:
        Bengio, Leonard and Courville 2013, arXiv:1308.3432.

    Example:
        >>> fam.StraightThroughBernoulli(20)(torch.zeros(5, 1, 20)).rsample().unique()
        tensor([0., 1.])
    """

    num_params = 1

    def link(self, logits: Tensor) -> TorchDistributionMixin:
        return onehot.StraightThroughBernoulli(logits) if self.training else BernoulliMass(logits)


def _positive(family: Family, temperature: float) -> float:
    return float(as_number(f"temperature of {type(family).__name__}", temperature, above=0))

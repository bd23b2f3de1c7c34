"""Families for real numbers with heavy tails, positive numbers, and numbers between 0 and 1."""

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae._arguments import number_of, told
from pyrovae.distributions.continuous import ContinuousBernoulli as ContinuousBernoulliDensity
from pyrovae.distributions.student import StudentT as StudentTDensity
from pyrovae.errors import OptionError
from pyrovae.families.base import Elementwise, soft_exp
from pyrovae.families.elementwise import LocationScale, concentrations


class Laplace(LocationScale):
    """`p(x_d) = exp(-|x_d - m_d| / s_d) / (2 s_d)`: real numbers with tails heavier than a Normal's.

    Parameters `(*batch, P, *event_shape)`: the median m and, if `scale="net"`, r. Rows `(*batch, *event_shape)`.

    Args:
        event_shape: Shape of one row x, an int or a tuple of ints; `()` for a single number.
        scale: `"net"`: `s = softplus(r) + floor`, r the second parameter; `"column"`: one learned scale for each element of the
            row; `"shared"`: one learned scale; a positive number: that scale, fixed. Learned scales start at `1 + floor`.
        floor: Lower bound of scales from the network and of learned ones, positive.

    Raises:
        ShapeError: `event_shape` is not a shape, or `params` has another trailing shape.
        OptionError: `scale` is unknown, or `floor` is not positive.

    References:
        Johnson, Kotz and Balakrishnan 1995, *Continuous Univariate Distributions* 2, chapter 24.

    Example:
        >>> family = fam.Laplace(3, scale=0.5)
        >>> family(torch.zeros(5, 1, 3)).log_prob(torch.zeros(5, 3))  # each element has density 1 at its median
        tensor([0., 0., 0., 0., 0.])
    """

    def link(self, loc: Tensor, raw: Tensor | None = None) -> TorchDistributionMixin:
        return dist.Laplace(loc, self.scale_of(loc, raw))


class StudentT(LocationScale):
    """`p(x_d) = t(x_d; v_d, m_d, s_d)`, Student's t with v degrees of freedom: real numbers with outliers.

    Parameters `(*batch, P, *event_shape)`: the location m, then r if `scale="net"`, then the parameter of v if `df="net"`.
    Rows `(*batch, *event_shape)`.

    Args:
        event_shape: Shape of one row x, an int or a tuple of ints; `()` for a single number.
        df: Where v comes from. `"column"`: one learned value for each element of the row; `"shared"`: one learned value;
            `"net"`: the last parameter; a positive number: that value, fixed. Unless fixed, `v = 1 + 4 exp(c tanh(r / c))`
            with `c = log 100` and r the learned number or parameter: v is 5 at the start, and stays between 1.04 and 401.
        scale: `"net"`: `s = softplus(r) + floor`, r the second parameter; `"column"`: one learned scale for each element of the
            row; `"shared"`: one learned scale; a positive number: that scale, fixed. Learned scales start at `1 + floor`.
        floor: Lower bound of scales from the network and of learned ones, positive.

    Raises:
        ShapeError: `event_shape` is not a shape, or `params` has another trailing shape.
        OptionError: `df` or `scale` is unknown, or `floor` is not positive.

    References:
        Lange, Little and Taylor 1989, JASA 84(408).

    Example:
        >>> fam.StudentT(3).param_shape, fam.StudentT(3, df="net").param_shape
        (torch.Size([2, 3]), torch.Size([3, 3]))
        >>> fam.StudentT(3)(torch.zeros(5, 2, 3)).sample().shape
        torch.Size([5, 3])
    """

    raw_df: Tensor

    def __init__(
        self,
        event_shape: int | Sequence[int],
        df: str | float = "column",
        scale: str | float = "net",
        floor: float = 1e-4,
    ) -> None:
        super().__init__(event_shape, scale, floor)
        number = number_of(df)
        if df not in ("net", "column", "shared") if number is None else not 0 < number < math.inf:
            raise OptionError(
                f"StudentT needs df to be 'column', 'shared', 'net' or a positive number, got {told(df)}."
            )
        self.df = df
        self.num_params += df == "net"
        shapes = {"column": self.event_shape, "shared": torch.Size()}
        learned = isinstance(df, str) and df in shapes
        self.register_parameter("raw_df", nn.Parameter(torch.zeros(shapes[str(df)])) if learned else None)

    def link(self, loc: Tensor, *raw: Tensor) -> TorchDistributionMixin:
        scale = self.scale_of(loc, raw[0] if self.scale == "net" else None)
        if not isinstance(self.df, str):
            return StudentTDensity(loc.new_full((), self.df), loc, scale)
        raw_df = raw[-1] if self.df == "net" else self.of_elements(self.raw_df, self.df)
        return StudentTDensity(1 + 4 * soft_exp(raw_df, 100), loc, scale)


class LogNormal(LocationScale):
    """`p(x_d) = N(log x_d; m_d, s_d^2) / x_d` for `x_d > 0`: positive numbers.

    Parameters `(*batch, P, *event_shape)`: the mean m of log x and, if `scale="net"`, r.
    Rows `(*batch, *event_shape)`: positive.

    Args:
        event_shape: Shape of one row x, an int or a tuple of ints; `()` for a single number.
        scale: `"net"`: `s = softplus(r) + floor`, r the second parameter; `"column"`: one learned scale for each element of the
            row; `"shared"`: one learned scale; a positive number: that scale, fixed. Learned scales start at `1 + floor`.
        floor: Lower bound of scales from the network and of learned ones, positive.

    Raises:
        ShapeError: `event_shape` is not a shape, or `params` has another trailing shape.
        OptionError: `scale` is unknown, or `floor` is not positive.

    References:
        Johnson, Kotz and Balakrishnan 1994, *Continuous Univariate Distributions* 1, chapter 14.

    Example:
        >>> x = fam.LogNormal(3, scale=1.0)(torch.zeros(5, 1, 3)).sample()
        >>> x.shape, bool((x > 0).all())
        (torch.Size([5, 3]), True)
    """

    def link(self, loc: Tensor, raw: Tensor | None = None) -> TorchDistributionMixin:
        return dist.LogNormal(loc, self.scale_of(loc, raw))


class Gamma(Elementwise):
    """`p(x_d) = Gamma(x_d; k_d, k_d / m_d)` with shape k and rate k / m: positive numbers with mean m and variance `m^2 / k`.

    Parameters `(*batch, 2, *event_shape)`: the logarithm of m, clamped to [-50, 50], and r with `k = exp(c tanh(r / c))`,
    `c = log 1000`, so that k is 1 at the start (an exponential distribution) and stays between 0.001 and 1000.
    Rows `(*batch, *event_shape)`: positive.

    Args:
        event_shape: Shape of one row x, an int or a tuple of ints; `()` for a single number.

    Raises:
        ShapeError: `event_shape` is not a shape, or `params` has another trailing shape.

    References:
        McCullagh and Nelder 1989, *Generalized Linear Models*, chapter 8.

    Example:
        >>> fam.Gamma(3)(torch.zeros(2, 3)).mean
        tensor([1., 1., 1.])
    """

    num_params = 2

    def link(self, log_mean: Tensor, raw: Tensor) -> TorchDistributionMixin:
        shape = soft_exp(raw, 1000)
        return dist.Gamma(shape, shape * torch.exp(-log_mean.clamp(-50.0, 50.0)))


class Beta(Elementwise):
    """`p(x_d) = x_d^(a_d - 1) (1 - x_d)^(b_d - 1) / B(a_d, b_d)` for `0 < x_d < 1`: proportions.

    Parameters `(*batch, 2, *event_shape)`: the logit l of the mean, and r. `a = c s(l)` and `b = c s(-l)` as in
    `BetaBinomial`, s the logistic function and c between 0.2 and 1000 depending on r: nearly uniform at the start.
    Rows `(*batch, *event_shape)`: strictly between 0 and 1. At exactly 0 or 1 the density is 0 or infinite; move such values
    inwards or use `ContinuousBernoulli`.

    Args:
        event_shape: Shape of one row x, an int or a tuple of ints; `()` for a single number.

    Raises:
        ShapeError: `event_shape` is not a shape, or `params` has another trailing shape.

    References:
        Ferrari and Cribari-Neto 2004, Journal of Applied Statistics 31(7).

    Example:
        >>> fam.Beta(3)(torch.zeros(2, 3)).mean
        tensor([0.5000, 0.5000, 0.5000])
    """

    num_params = 2

    def link(self, logits: Tensor, raw: Tensor) -> TorchDistributionMixin:
        return dist.Beta(*concentrations(logits, raw))


class ContinuousBernoulli(Elementwise):
    """`p(x_d) = C(l_d) s(l_d)^x_d (1 - s(l_d))^(1 - x_d)` for x_d in [0, 1], s the logistic function: grey values.

    C is the normalising constant that a Bernoulli likelihood of grey values, a common but unnormalised choice, lacks.
    Parameters `(*batch, 1, *event_shape)`: l, which is not the logit of the mean. Rows `(*batch, *event_shape)`: 0 to 1.

    Args:
        event_shape: Shape of one row x, an int or a tuple of ints; `()` for a single number.

    Raises:
        ShapeError: `event_shape` is not a shape, or `params` has another trailing shape.

    References:
        Loaiza-Ganem and Cunningham 2019, arXiv:1907.06845.

    Example:
        >>> family = fam.ContinuousBernoulli((8, 8))
        >>> family.param_shape
        torch.Size([1, 8, 8])
        >>> x = family(torch.zeros(5, 1, 8, 8)).sample()
        >>> x.shape, bool((0 <= x).all() and (x <= 1).all())
        (torch.Size([5, 8, 8]), True)
    """

    num_params = 1

    def link(self, logits: Tensor) -> TorchDistributionMixin:
        return ContinuousBernoulliDensity(logits)

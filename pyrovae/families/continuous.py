"""Families of independent numbers: heavy tails, positive numbers, and numbers between 0 and 1."""

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae.distributions.continuous import ContinuousBernoulli as ContinuousBernoulliDensity
from pyrovae.distributions.student import StudentT as StudentTDensity
from pyrovae.errors import OptionError
from pyrovae.families.base import Elementwise, soft_exp
from pyrovae.families.elementwise import LocationScale, concentrations


class Laplace(LocationScale):
    """p(x_d) = exp(-|x_d - m_d| / s_d) / (2 s_d). m is the first parameter; `scale` as for Normal.

    params: (*batch, P, *event_shape), P = 2 for scale="net", else 1; x: (*batch, *event_shape). Raises ShapeError, and
    OptionError as Normal does. Johnson, Kotz & Balakrishnan 1995, *Continuous Univariate Distributions* 2, chapter 24.
    """

    def link(self, loc: Tensor, raw: Tensor | None = None) -> TorchDistributionMixin:
        return dist.Laplace(loc, self.scale_of(loc, raw))


class StudentT(LocationScale):
    """p(x_d) = t(x_d; v_d, m_d, s_d): a Normal with heavy tails. m is the first parameter; `scale` as for Normal.

    `df` says where the degrees of freedom v come from: "column": learned, one per dimension; "shared": one learned
    number; "net": the last parameter; a positive float: that number, fixed. Where they are not fixed,
    v = 1 + 4 exp(c tanh(r / c)), c = log 100: 5 at the start, from 1.04 to 401. params: (*batch, P, *event_shape), P =
    1, and 1 more for each "net"; x: (*batch, *event_shape). Raises ShapeError and OptionError.
    Lange, Little & Taylor 1989, JASA 84(408).
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
        known = df in ("net", "column", "shared") if isinstance(df, str) else 0 < df < math.inf
        if not known or isinstance(df, bool):
            raise OptionError(f"StudentT knows df='column', 'shared', 'net' or a positive number, got {df!r}.")
        self.df = df
        self.num_params += df == "net"
        shapes = {"column": self.event_shape, "shared": torch.Size()}
        learned = isinstance(df, str) and df in shapes
        self.register_parameter("raw_df", nn.Parameter(torch.zeros(shapes[str(df)])) if learned else None)

    def link(self, loc: Tensor, *raw: Tensor) -> TorchDistributionMixin:
        scale = self.scale_of(loc, raw[0] if self.scale == "net" else None)
        if not isinstance(self.df, str):
            return StudentTDensity(loc.new_full((), self.df), loc, scale)
        return StudentTDensity(1 + 4 * soft_exp(raw[-1] if self.df == "net" else self.raw_df, 100), loc, scale)


class LogNormal(LocationScale):
    """p(x_d) = N(log x_d; m_d, s_d^2) / x_d for x_d > 0. m is the first parameter; `scale`, of log x, as for Normal.

    params: (*batch, P, *event_shape), P = 2 for scale="net", else 1; x: (*batch, *event_shape). Raises ShapeError, and
    OptionError as Normal does. Johnson, Kotz & Balakrishnan 1994, *Continuous Univariate Distributions* 1, chapter 14.
    """

    def link(self, loc: Tensor, raw: Tensor | None = None) -> TorchDistributionMixin:
        return dist.LogNormal(loc, self.scale_of(loc, raw))


class Gamma(Elementwise):
    """p(x_d) = Gamma(x_d; shape k_d, rate k_d / m_d) for x_d > 0: mean m_d, variance m_d^2 / k_d.

    m = exp(first parameter), cut at exp(+-50); k = exp(c tanh(r / c)) of the second one, r, c = log 1000: 1 at the
    start, the exponential distribution. params: (*batch, 2, *event_shape); x: (*batch, *event_shape). Raises
    ShapeError. McCullagh & Nelder 1989, *Generalized Linear Models*, chapter 8.
    """

    num_params = 2

    def link(self, log_mean: Tensor, raw: Tensor) -> TorchDistributionMixin:
        shape = soft_exp(raw, 1000)
        return dist.Gamma(shape, shape * torch.exp(-log_mean.clamp(-50.0, 50.0)))


class Beta(Elementwise):
    """p(x_d) = x_d^(a_d - 1) (1 - x_d)^(b_d - 1) / B(a_d, b_d) for 0 < x_d < 1: mean s(l_d), l the first parameter.

    a = c s(l), b = c s(-l), c between 0.2 and 1000 by the second parameter as for BetaBinomial: nearly uniform at the
    start. At exactly 0 or 1 the density is 0 or infinite: move such values inside, or take ContinuousBernoulli.
    params: (*batch, 2, *event_shape); x: (*batch, *event_shape). Raises ShapeError.
    Ferrari & Cribari-Neto 2004, Journal of Applied Statistics 31(7).
    """

    num_params = 2

    def link(self, logits: Tensor, raw: Tensor) -> TorchDistributionMixin:
        return dist.Beta(*concentrations(logits, raw))


class ContinuousBernoulli(Elementwise):
    """p(x_d) = s(l_d)^x_d (1 - s(l_d))^(1 - x_d) C(l_d) for x_d in [0, 1], l the parameters, C the normaliser.

    The likelihood of grey values that a Bernoulli, which is not normalised there, is often given. `logits` is not the
    logit of the mean. params: (*batch, 1, *event_shape); x: (*batch, *event_shape). Raises ShapeError.
    Loaiza-Ganem & Cunningham 2019, arXiv:1907.06845.
    """

    num_params = 1

    def link(self, logits: Tensor) -> TorchDistributionMixin:
        return ContinuousBernoulliDensity(logits)

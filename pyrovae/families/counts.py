"""Families of independent counts without an upper end.

All have a logarithmic link: the mean is library * exp(first parameter). `library`, a size factor of each row (its
sequencing depth, its exposure), is given by name: likelihood(z, library=n), with n of shape (*batch) or
(*batch, 1, ..., 1), one 1 for each dim of the row; none is 1. Lopez et al. 2018, Nature Methods 15 (scVI).
"""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae.errors import OptionError, ShapeError
from pyrovae.families.base import Elementwise, Family, soft_exp


def fits(shape: torch.Size, batch: torch.Size) -> bool:
    """Whether a tensor of this shape can be expanded to the batch."""
    return len(shape) <= len(batch) and all(n in (1, m) for n, m in zip(shape[::-1], batch[::-1]))


def per_row(family: Family, library: Tensor, batch: torch.Size) -> Tensor:
    """library as (*batch, 1, ..., 1), one 1 for each dim of a row, from that or from (*batch). Raises ShapeError."""
    n = len(family.event_shape)
    ones, split = torch.Size([1] * n), library.dim() - n
    if split >= 0 and library.shape[split:] == ones and fits(library.shape[:split], batch):
        return library
    if fits(library.shape, batch) or fits(batch, library.shape):
        return library.reshape(library.shape + ones)
    raise ShapeError(
        f"{family} needs library of shape {tuple(batch)}, one size factor for each row, got {tuple(library.shape)}. "
        "Sum the counts of each row, x.sum(-1), say."
    )


class Counts(Elementwise):
    """A family of counts with a mean on a logarithmic scale, the first parameter, and a size factor of the row."""

    def forward(self, params: Tensor, library: Tensor | None = None) -> TorchDistributionMixin:  # type: ignore[override]
        """library: (*batch) or (*batch, 1, ..., 1), positive, multiplies the mean. Raises ShapeError."""
        self.check(params)
        log_mean, *raw = params.unbind(-1 - len(self.event_shape))
        if library is not None:
            batch = params.shape[: params.dim() - len(self.param_shape)]
            log_mean = log_mean + torch.log(per_row(self, library, batch).to(params.dtype).clamp_min(1e-30))
        # beyond e^30 samplers lose count; below e^-60 a count would have log-probability -inf
        return self.link(log_mean.clamp(-60.0, 30.0), *raw).to_event(len(self.event_shape))


class Poisson(Counts):
    """P(x_d) = r_d^x_d exp(-r_d) / x_d!, r = library * exp(parameters), x_d = 0, 1, 2, ...

    params: (*batch, 1, *event_shape); x: (*batch, *event_shape). Raises ShapeError.
    McCullagh & Nelder 1989, *Generalized Linear Models*, chapter 6.
    """

    num_params = 1

    def link(self, log_mean: Tensor) -> TorchDistributionMixin:
        return dist.Poisson(torch.exp(log_mean))


class NegativeBinomial(Counts):
    """P(x_d) = NB(x_d; mean m_d, dispersion t_d): variance m_d + m_d^2 / t_d, a Poisson with more spread.

    m = library * exp(first parameter). `dispersion` says where t comes from: "column": learned, one per dimension;
    "net": the last parameter. t = exp(c tanh(r / c)) with c = log 1000 and r what is learned or put out: 1 at the
    start, near the Poisson at 1000. params: (*batch, P, *event_shape), P = 1 or 2; x: (*batch, *event_shape). Raises
    ShapeError, and OptionError for an unknown dispersion. Hilbe 2011, *Negative Binomial Regression*.
    """

    raw_dispersion: Tensor

    def __init__(self, event_shape: int | Sequence[int], dispersion: str = "column") -> None:
        super().__init__(event_shape)
        if dispersion not in ("column", "net"):
            raise OptionError(f"{type(self).__name__} knows dispersion='column' or 'net', got {dispersion!r}.")
        self.dispersion = dispersion
        self.num_params = 2 if dispersion == "net" else 1
        start = nn.Parameter(torch.zeros(self.event_shape)) if dispersion == "column" else None
        self.register_parameter("raw_dispersion", start)

    def link(self, log_mean: Tensor, raw: Tensor | None = None) -> TorchDistributionMixin:
        total_count = soft_exp(self.raw_dispersion if raw is None else raw, 1000)
        return dist.NegativeBinomial(total_count, logits=log_mean - total_count.log())


class ZeroInflatedPoisson(Counts):
    """P(x_d) = g_d 1[x_d = 0] + (1 - g_d) Poisson(x_d; r_d), r = library * exp(first parameter), g = s(second one).

    params: (*batch, 2, *event_shape); x: (*batch, *event_shape). s is the logistic function; a half of the zeros comes
    from g at the start. Raises ShapeError. Lambert 1992, Technometrics 34(1).
    """

    num_params = 2

    def link(self, log_mean: Tensor, gate_logits: Tensor) -> TorchDistributionMixin:
        return dist.ZeroInflatedDistribution(dist.Poisson(torch.exp(log_mean)), gate_logits=gate_logits)


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    """P(x_d) = g_d 1[x_d = 0] + (1 - g_d) NB(x_d; m_d, t_d): NegativeBinomial's, with more zeros; g = s(second parameter).

    params: (*batch, P, *event_shape): the logarithm of m, the logit of g and, for dispersion="net", what t is of;
    x: (*batch, *event_shape). Raises ShapeError and OptionError. Lopez et al. 2018, Nature Methods 15.
    """

    def __init__(self, event_shape: int | Sequence[int], dispersion: str = "column") -> None:
        super().__init__(event_shape, dispersion)
        self.num_params += 1

    def link(self, log_mean: Tensor, gate_logits: Tensor, raw: Tensor | None = None) -> TorchDistributionMixin:  # type: ignore[override]
        return dist.ZeroInflatedDistribution(super().link(log_mean, raw), gate_logits=gate_logits)

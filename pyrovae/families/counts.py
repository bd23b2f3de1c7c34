"""Families for unbounded counts, elements independent.

All have a logarithmic link: the mean is `library * exp(first parameter)`. The library, a positive size factor of each row
such as its sequencing depth or exposure, is passed by name, `likelihood(z, library=n)`, with n of shape `(*batch)` or
`(*batch, 1, ..., 1)`, one 1 for each dim of the row; it is 1 by default. Lopez et al. 2018, Nature Methods 15 (scVI).
"""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae._arguments import as_choice
from pyrovae.errors import ShapeError
from pyrovae.families.base import Elementwise, Family, soft_exp


def fits(shape: torch.Size, batch: torch.Size) -> bool:
    """Whether a tensor of this shape can be expanded to the batch shape."""
    return len(shape) <= len(batch) and all(n in (1, m) for n, m in zip(shape[::-1], batch[::-1]))


def per_row(family: Family, library: Tensor, batch: torch.Size) -> Tensor:
    """Reshape `library` to `(*batch, 1, ..., 1)`, with one 1 for each dim of a row, or raise ShapeError."""
    n = len(family.event_shape)
    ones, split = torch.Size([1] * n), library.dim() - n
    if split >= 0 and library.shape[split:] == ones and fits(library.shape[:split], batch):
        return library
    if fits(library.shape, batch) or fits(batch, library.shape):
        return library.reshape(library.shape + ones)
    raise ShapeError(
        f"{family} needs library of shape {tuple(batch)}, one size factor for each row, got {tuple(library.shape)}. "
        "For example, sum the counts of each row, x.sum(-1)."
    )


class Counts(Elementwise):
    """Base class of families of unbounded counts: the first parameter is the log-mean, to which the row's log-library is added.

    Args:
        event_shape: Shape of one row x, an int or a tuple of ints; `()` for a single number.

    Raises:
        ShapeError: `event_shape` is not a shape, or `params` has another trailing shape.
    """

    def features(self, x: Tensor) -> Tensor:
        """`log(1 + x)`, of the shape of x."""
        return torch.log1p(x)

    def forward(self, params: Tensor, library: Tensor | None = None) -> TorchDistributionMixin:  # type: ignore[override]
        """The distribution with these parameters.

        Args:
            params: Raw network output, `(*batch, *param_shape)`.
            library: Positive factor of the mean, `(*batch)` or `(*batch, 1, ..., 1)`; None is 1.

        Returns:
            A distribution with batch shape `(*batch)` and event shape `event_shape`.

        Raises:
            ShapeError: `params` or `library` has another shape.
        """
        self.check(params)
        log_mean, *raw = params.unbind(-1 - len(self.event_shape))
        if library is not None:
            batch = params.shape[: params.dim() - len(self.param_shape)]
            log_mean = log_mean + torch.log(per_row(self, library, batch).to(params.dtype).clamp_min(1e-30))
        # above e^30 samplers are no longer exact; below e^-60 a positive count would have log-probability -inf
        return self.link(log_mean.clamp(-60.0, 30.0), *raw).to_event(len(self.event_shape))


class Poisson(Counts):
    """`P(x_d) = m_d^x_d exp(-m_d) / x_d!` with `m = library * exp(parameters)`: unbounded counts.

    Parameters `(*batch, 1, *event_shape)`: the logarithm of the mean m. Rows `(*batch, *event_shape)`: whole numbers from 0.
    A call takes a size factor of each row as `library`, `(*batch)`, see `pyrovae.families.counts`.

    Args:
        event_shape: Shape of one row x, an int or a tuple of ints; `()` for a single number.

    Raises:
        ShapeError: `event_shape` is not a shape, or `params` or `library` has another shape than a call needs.

    References:
        McCullagh and Nelder 1989, *Generalized Linear Models*, chapter 6.

    Example:
        >>> decoder = pv.mlp(2, fam.Poisson(100), hidden=(16,))
        >>> decoder(torch.zeros(5, 2)).sample().shape
        torch.Size([5, 100])
        >>> fam.Poisson(3)(torch.zeros(2, 1, 3), library=torch.tensor([10.0, 20.0])).mean
        tensor([[10., 10., 10.],
                [20., 20., 20.]])
    """

    num_params = 1

    def link(self, log_mean: Tensor) -> TorchDistributionMixin:
        return dist.Poisson(torch.exp(log_mean))


class NegativeBinomial(Counts):
    """`P(x_d) = NB(x_d; m_d, t_d)` with variance `m_d + m_d^2 / t_d`: unbounded counts, more dispersed than a Poisson.

    Parameters `(*batch, P, *event_shape)`: the log-mean, `m = library * exp(first parameter)`, and r if `dispersion="net"`.
    `t = exp(c tanh(r / c))` with `c = log 1000`: 1 at the start, and close to the Poisson at its upper bound of 1000.
    Rows `(*batch, *event_shape)`: whole numbers from 0. For `library` see `pyrovae.families.counts`.

    Args:
        event_shape: Shape of one row x, an int or a tuple of ints; `()` for a single number.
        dispersion: Where r comes from. `"column"`: one learned number for each element of the row; `"net"`: the network.

    Raises:
        ShapeError: `event_shape` is not a shape, or `params` or `library` has another shape than a call needs.
        OptionError: `dispersion` is unknown.

    References:
        Hilbe 2011, *Negative Binomial Regression*.

    Example:
        >>> fam.NegativeBinomial(3, dispersion="net").param_shape
        torch.Size([2, 3])
        >>> p = fam.NegativeBinomial(3)(torch.zeros(1, 3))
        >>> p.mean.tolist(), p.variance.tolist()
        ([1.0, 1.0, 1.0], [2.0, 2.0, 2.0])
    """

    raw_dispersion: Tensor

    def __init__(self, event_shape: int | Sequence[int], dispersion: str = "column") -> None:
        super().__init__(event_shape)
        self.dispersion = as_choice(f"dispersion of {type(self).__name__}", dispersion, ("column", "net"))
        self.num_params = 2 if dispersion == "net" else 1
        start = nn.Parameter(torch.zeros(self.event_shape)) if dispersion == "column" else None
        self.register_parameter("raw_dispersion", start)

    def link(self, log_mean: Tensor, raw: Tensor | None = None) -> TorchDistributionMixin:
        total_count = soft_exp(self.raw_dispersion if raw is None else raw, 1000)
        return dist.NegativeBinomial(total_count, logits=log_mean - total_count.log())


class ZeroInflatedPoisson(Counts):
    """`P(x_d) = g_d 1[x_d = 0] + (1 - g_d) Poisson(x_d; m_d)`: unbounded counts with extra zeros.

    Parameters `(*batch, 2, *event_shape)`: the log-mean, `m = library * exp(first parameter)`, and the logit of g, the
    probability of an extra zero, which is 1/2 at the start. Rows `(*batch, *event_shape)`: whole numbers from 0. For
    `library` see `pyrovae.families.counts`.

    Args:
        event_shape: Shape of one row x, an int or a tuple of ints; `()` for a single number.

    Raises:
        ShapeError: `event_shape` is not a shape, or `params` or `library` has another shape than a call needs.

    References:
        Lambert 1992, Technometrics 34(1).

    Example:
        >>> family = fam.ZeroInflatedPoisson(3)
        >>> family(torch.zeros(5, *family.param_shape)).mean[0]
        tensor([0.5000, 0.5000, 0.5000])
    """

    num_params = 2

    def link(self, log_mean: Tensor, gate_logits: Tensor) -> TorchDistributionMixin:
        return dist.ZeroInflatedDistribution(dist.Poisson(torch.exp(log_mean)), gate_logits=gate_logits)


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    """`P(x_d) = g_d 1[x_d = 0] + (1 - g_d) NB(x_d; m_d, t_d)`: a `NegativeBinomial` with extra zeros.

    Parameters `(*batch, P, *event_shape)`: the log-mean, the logit of g, the probability of an extra zero, and, if
    `dispersion="net"`, r. m, t and `library` as in `NegativeBinomial`. Rows `(*batch, *event_shape)`: whole numbers from 0.

    Args:
        event_shape: Shape of one row x, an int or a tuple of ints; `()` for a single number.
        dispersion: `"column"` or `"net"`, as in `NegativeBinomial`.

    Raises:
        ShapeError: `event_shape` is not a shape, or `params` or `library` has another shape than a call needs.
        OptionError: `dispersion` is unknown.

    References:
        Lopez et al. 2018, Nature Methods 15.

    Example:
        >>> family = fam.ZeroInflatedNegativeBinomial(3, dispersion="net")
        >>> family.param_shape
        torch.Size([3, 3])
        >>> family(torch.zeros(5, *family.param_shape)).mean[0]
        tensor([0.5000, 0.5000, 0.5000])
    """

    def __init__(self, event_shape: int | Sequence[int], dispersion: str = "column") -> None:
        super().__init__(event_shape, dispersion)
        self.num_params += 1

    def link(self, log_mean: Tensor, gate_logits: Tensor, raw: Tensor | None = None) -> TorchDistributionMixin:  # type: ignore[override]
        return dist.ZeroInflatedDistribution(super().link(log_mean, raw), gate_logits=gate_logits)

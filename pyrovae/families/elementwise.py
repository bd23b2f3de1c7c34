"""Families of independent elements: one distribution for each element of a row."""

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn import functional as F

from pyrovae.distributions.bernoulli import Bernoulli as BernoulliMass
from pyrovae.distributions.categorical import Categorical as CategoricalMass
from pyrovae.errors import OptionError
from pyrovae.families.base import Elementwise, positive


class Bernoulli(Elementwise):
    """p(x_d) = s(l_d)^x_d (1 - s(l_d))^(1 - x_d), s the logistic function, l the parameters.

    params: (*batch, 1, *event_shape); x in {0, 1}: (*batch, *event_shape). Raises ShapeError.
    Bishop 2006, *Pattern Recognition and Machine Learning*, section 2.1.
    """

    num_params = 1

    def link(self, logits: Tensor) -> TorchDistributionMixin:
        return BernoulliMass(logits)


class LocationScale(Elementwise):
    """Families whose first parameter is a location and whose `scale` comes from where `scale` says.

    "net": s_d = softplus(second parameter) + floor, per row and dimension; "column": one learned number per
    dimension; "shared": one learned number; a positive float: that number, fixed. Learned numbers are
    softplus(raw_scale) + floor and start at 1 + floor. Raises OptionError for an unknown scale or a floor that is not
    positive.
    """

    raw_scale: Tensor

    def __init__(self, event_shape: int | Sequence[int], scale: str | float = "net", floor: float = 1e-4) -> None:
        super().__init__(event_shape)
        name = type(self).__name__
        known = scale in ("net", "column", "shared") if isinstance(scale, str) else 0 < scale < math.inf
        if not known or isinstance(scale, bool):
            raise OptionError(f"{name} knows scale='net', 'column', 'shared' or a positive number, got {scale!r}.")
        if not floor > 0:
            raise OptionError(f"{name} needs a positive floor, got {floor!r}. A scale of 0 is no density.")
        self.scale, self.floor = scale, floor
        self.num_params = 2 if scale == "net" else 1
        shapes = {"column": self.event_shape, "shared": torch.Size()}
        learned = isinstance(scale, str) and scale in shapes
        start = nn.Parameter(torch.full(shapes[str(scale)], math.log(math.expm1(1)))) if learned else None
        self.register_parameter("raw_scale", start)

    def scale_of(self, loc: Tensor, raw: Tensor | None) -> Tensor:
        """The scale: of the shape of loc, or one that broadcasts to it."""
        if not isinstance(self.scale, str):
            return loc.new_full((), self.scale)
        return F.softplus(self.raw_scale if raw is None else raw) + self.floor


class Normal(LocationScale):
    """p(x_d) = N(x_d; m_d, s_d^2). m is the first parameter; `scale` says where s comes from, see LocationScale.

    params: (*batch, P, *event_shape), P = 2 for scale="net", else 1; x: (*batch, *event_shape). Raises ShapeError, and
    OptionError for an unknown scale or a floor that is not positive.
    Bishop 2006, *Pattern Recognition and Machine Learning*, section 2.3.
    """

    def link(self, loc: Tensor, raw: Tensor | None = None) -> TorchDistributionMixin:
        return dist.Normal(loc, self.scale_of(loc, raw))


class Binomial(Elementwise):
    """p(x_d) = C(n, x_d) s(l_d)^x_d (1 - s(l_d))^(n - x_d), s the logistic function, l the parameters, n = total_count.

    params: (*batch, 1, *event_shape); x in {0, ..., n}: (*batch, *event_shape). Raises ShapeError, and OptionError if
    total_count is not a positive int. Bishop 2006, *Pattern Recognition and Machine Learning*, section 2.1.
    """

    num_params = 1

    def __init__(self, event_shape: int | Sequence[int], total_count: int) -> None:
        super().__init__(event_shape)
        self.total_count = positive(self, "total_count", total_count)

    def link(self, logits: Tensor) -> TorchDistributionMixin:
        return dist.Binomial(logits.new_full((), self.total_count), logits=logits)


def concentrations(logits: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
    """a = c s(l) and b = c s(-l), log c = log 0.2 + s(r - 1) (log 1000 - log 0.2): see BetaBinomial."""
    c = 0.2 * torch.exp(math.log(1000 / 0.2) * torch.sigmoid(raw - 1))
    # s(-l), since 1 - s(l) is 0 from l = 17 on; 1e-30 only matters where s underflows
    return c * torch.sigmoid(logits) + 1e-30, c * torch.sigmoid(-logits) + 1e-30


class BetaBinomial(Elementwise):
    """p(x_d) = C(n, x_d) B(x_d + a_d, n - x_d + b_d) / B(a_d, b_d), n = total_count: a Binomial with more spread.

    a = c s(l) and b = c s(-l), s the logistic function: the first parameter l is the logit of the mean, as in
    Binomial; the second one, r, is the concentration on a logarithmic scale with ends,
    log c = log 0.2 + s(r - 1) (log 1000 - log 0.2). At l = r = 0 it is nearly uniform (a = b = 0.99). Below 0.2
    torch's sampler of the Beta underflows, above 1000 float32 cancels in log B (error 1e-3 nats an element); 1000 is
    near the Binomial. params: (*batch, 2, *event_shape); x in {0, ..., n}: (*batch, *event_shape). Raises ShapeError,
    and OptionError if total_count is not a positive int. Griffiths 1973, Biometrics 29(4).
    """

    num_params = 2

    def __init__(self, event_shape: int | Sequence[int], total_count: int) -> None:
        super().__init__(event_shape)
        self.total_count = positive(self, "total_count", total_count)

    def link(self, logits: Tensor, raw: Tensor) -> TorchDistributionMixin:
        a, b = concentrations(logits, raw)
        return dist.BetaBinomial(a, b, logits.new_full((), self.total_count))


class Categorical(Elementwise):
    """p(x_d = k) = exp(l_kd) / sum_j exp(l_jd), l the parameters, k = 0, ..., num_classes - 1.

    params: (*batch, num_classes, *event_shape); x, coded as integers: (*batch, *event_shape). Raises ShapeError, and
    OptionError if num_classes is not a positive int. Bishop 2006, *Pattern Recognition and Machine Learning*, 2.2.
    """

    def __init__(self, event_shape: int | Sequence[int], num_classes: int) -> None:
        super().__init__(event_shape)
        self.num_params = self.num_classes = positive(self, "num_classes", num_classes)

    def forward(self, params: Tensor) -> TorchDistributionMixin:  # type: ignore[override]
        self.check(params)
        # all classes at once: to take them apart would cost one tensor each
        logits = params.movedim(-1 - len(self.event_shape), -1)
        return CategoricalMass(logits=logits).to_event(len(self.event_shape))

"""Families with one univariate distribution for each element of a row: binary, real, binomial and categorical."""

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn import functional as F

from pyrovae._arguments import as_number, number_of, told
from pyrovae.distributions.bernoulli import Bernoulli as BernoulliMass
from pyrovae.distributions.categorical import Categorical as CategoricalMass
from pyrovae.errors import OptionError
from pyrovae.families.base import Elementwise, positive
from pyrovae.nets.mlp import one_hot


class Bernoulli(Elementwise):
    """`p(x_d) = s(l_d)^x_d (1 - s(l_d))^(1 - x_d)`, s the logistic function: binary data.

    Parameters `(*batch, 1, *event_shape)`: the logits l. Rows `(*batch, *event_shape)`: 0 or 1.

    Args:
        event_shape: Shape of one row x, an int or a tuple of ints; `()` for a single number.

    Raises:
        ShapeError: `event_shape` is not a shape, or `params` has another trailing shape.

    References:
        Bishop 2006, *Pattern Recognition and Machine Learning*, section 2.1.

    Example:
        >>> decoder = pv.mlp(2, fam.Bernoulli((28, 28)), hidden=(16,))
        >>> decoder(torch.zeros(5, 2)).sample().shape
        torch.Size([5, 28, 28])
        >>> fam.Bernoulli(3)(torch.zeros(1, 3)).mean
        tensor([0.5000, 0.5000, 0.5000])
    """

    num_params = 1

    def link(self, logits: Tensor) -> TorchDistributionMixin:
        return BernoulliMass(logits)


class LocationScale(Elementwise):
    """Base class of families with a location, the first parameter, and a scale whose origin the user chooses.

    Parameters `(*batch, P, *event_shape)`, P = 2 if `scale="net"` and 1 otherwise.

    Args:
        event_shape: Shape of one row x, an int or a tuple of ints; `()` for a single number.
        scale: `"net"`: `s = softplus(r) + floor`, r the second parameter; `"column"`: one learned scale for each element of the
            row; `"shared"`: one learned scale; a positive number: that scale, fixed. Learned scales start at `1 + floor`.
        floor: Lower bound of scales from the network and of learned ones, positive.

    Raises:
        ShapeError: `event_shape` is not a shape, or `params` has another trailing shape.
        OptionError: `scale` is unknown, or `floor` is not positive.
    """

    raw_scale: Tensor

    def __init__(self, event_shape: int | Sequence[int], scale: str | float = "net", floor: float = 1e-4) -> None:
        super().__init__(event_shape)
        name = type(self).__name__
        number = number_of(scale)
        if scale not in ("net", "column", "shared") if number is None else not 0 < number < math.inf:
            raise OptionError(
                f"{name} needs scale to be 'net', 'column', 'shared' or a positive number, got {told(scale)}."
            )
        self.scale = scale
        self.floor = as_number(f"floor of {name}", floor, above=0, cure="A scale of 0 has no density.")
        self.num_params = 2 if scale == "net" else 1
        shapes = {"column": self.event_shape, "shared": torch.Size()}
        learned = isinstance(scale, str) and scale in shapes
        start = nn.Parameter(torch.full(shapes[str(scale)], math.log(math.expm1(1)))) if learned else None
        self.register_parameter("raw_scale", start)

    def scale_of(self, loc: Tensor, raw: Tensor | None) -> Tensor:
        """The scale of each element.

        Args:
            loc: Locations, `(*batch, *event_shape)`.
            raw: The network's scale parameters, of the same shape, or None if the scale does not come from the network.

        Returns:
            Scales that broadcast to `loc`.
        """
        if not isinstance(self.scale, str):
            return loc.new_full((), self.scale)
        return F.softplus(self.of_elements(self.raw_scale, self.scale) if raw is None else raw) + self.floor

    def of_elements(self, learned: Tensor, kind: str) -> Tensor:
        """A learned parameter as it broadcasts to elements, also where it is a draw for each particle, `(*batch, *shape)`."""
        return learned[(..., *(None for _ in self.event_shape))] if kind == "shared" else learned


class Normal(LocationScale):
    """`p(x_d) = N(x_d; m_d, s_d^2)`: real numbers, and the usual guide, a Normal with diagonal covariance.

    Parameters `(*batch, P, *event_shape)`: the mean m and, if `scale="net"`, r. Rows `(*batch, *event_shape)`.

    Args:
        event_shape: Shape of one row x, an int or a tuple of ints; `()` for a single number.
        scale: `"net"`: `s = softplus(r) + floor`, r the second parameter; `"column"`: one learned scale for each element of the
            row; `"shared"`: one learned scale; a positive number: that scale, fixed. Learned scales start at `1 + floor`.
        floor: Lower bound of scales from the network and of learned ones, positive.

    Raises:
        ShapeError: `event_shape` is not a shape, or `params` has another trailing shape.
        OptionError: `scale` is unknown, or `floor` is not positive.

    References:
        Bishop 2006, *Pattern Recognition and Machine Learning*, section 2.3.

    Example:
        >>> fam.Normal(4).param_shape, fam.Normal(4, scale="shared").param_shape
        (torch.Size([2, 4]), torch.Size([1, 4]))
        >>> encoder = pv.mlp(784, fam.Normal(4), hidden=(16,))
        >>> encoder(torch.zeros(5, 784)).rsample().shape
        torch.Size([5, 4])
    """

    def link(self, loc: Tensor, raw: Tensor | None = None) -> TorchDistributionMixin:
        return dist.Normal(loc, self.scale_of(loc, raw))


class Binomial(Elementwise):
    """`p(x_d) = C(n, x_d) s(l_d)^x_d (1 - s(l_d))^(n - x_d)`, s the logistic function: counts out of n.

    Parameters `(*batch, 1, *event_shape)`: the logits l. Rows `(*batch, *event_shape)`: whole numbers from 0 to n.

    Args:
        event_shape: Shape of one row x, an int or a tuple of ints; `()` for a single number.
        total_count: The number of trials n.

    Raises:
        ShapeError: `event_shape` is not a shape, or `params` has another trailing shape.
        OptionError: `total_count` is not a positive int.

    References:
        Bishop 2006, *Pattern Recognition and Machine Learning*, section 2.1.

    Example:
        >>> family = fam.Binomial(64, total_count=16)  # the grey values of scikit-learn's digits
        >>> family(torch.zeros(5, 1, 64)).mean[0, :3]
        tensor([8., 8., 8.])
    """

    num_params = 1

    def __init__(self, event_shape: int | Sequence[int], total_count: int) -> None:
        super().__init__(event_shape)
        self.total_count = positive(self, "total_count", total_count)

    def link(self, logits: Tensor) -> TorchDistributionMixin:
        return dist.Binomial(logits.new_full((), self.total_count), logits=logits)


def concentrations(logits: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
    """Concentrations `a = c s(l)` and `b = c s(-l)` with `log c = log 0.2 + s(r - 1) (log 1000 - log 0.2)`."""
    c = 0.2 * torch.exp(math.log(1000 / 0.2) * torch.sigmoid(raw - 1))
    # s(-l) rather than 1 - s(l), which rounds to 0 from l = 17 on; 1e-30 matters only where s underflows
    return c * torch.sigmoid(logits) + 1e-30, c * torch.sigmoid(-logits) + 1e-30


class BetaBinomial(Elementwise):
    """`p(x_d) = C(n, x_d) B(x_d + a_d, n - x_d + b_d) / B(a_d, b_d)`: counts out of n, more dispersed than a Binomial.

    Parameters `(*batch, 2, *event_shape)`: l and r, with `a = c s(l)`, `b = c s(-l)` and s the logistic function. As in
    `Binomial`, l is the logit of the mean. r sets the concentration c between two bounds on a logarithmic scale:
    `log c = log 0.2 + s(r - 1) (log 1000 - log 0.2)`. At `l = r = 0` the distribution is nearly uniform (`a = b = 0.99`).
    Below c = 0.2 torch's sampler of the Beta distribution underflows; above 1000, where the distribution is close to the
    Binomial, rounding in float32 would cost more than 1e-3 nats per element. Rows `(*batch, *event_shape)`: whole numbers
    from 0 to n.

    Args:
        event_shape: Shape of one row x, an int or a tuple of ints; `()` for a single number.
        total_count: The number of trials n.

    Raises:
        ShapeError: `event_shape` is not a shape, or `params` has another trailing shape.
        OptionError: `total_count` is not a positive int.

    References:
        Griffiths 1973, Biometrics 29(4).

    Example:
        >>> family = fam.BetaBinomial(64, total_count=16)
        >>> family.param_shape
        torch.Size([2, 64])
        >>> family(torch.zeros(5, 2, 64)).mean[0, :3]
        tensor([8., 8., 8.])
    """

    num_params = 2

    def __init__(self, event_shape: int | Sequence[int], total_count: int) -> None:
        super().__init__(event_shape)
        self.total_count = positive(self, "total_count", total_count)

    def link(self, logits: Tensor, raw: Tensor) -> TorchDistributionMixin:
        a, b = concentrations(logits, raw)
        return dist.BetaBinomial(a, b, logits.new_full((), self.total_count))


class Categorical(Elementwise):
    """`p(x_d = k) = exp(l_kd) / sum_j exp(l_jd)`: classes k = 0, ..., C - 1.

    Parameters `(*batch, C, *event_shape)`: the logits l. Rows `(*batch, *event_shape)`: class numbers.

    Args:
        event_shape: Shape of one row x, an int or a tuple of ints; `()` for a single number.
        num_classes: The number of classes C.

    Raises:
        ShapeError: `event_shape` is not a shape, or `params` has another trailing shape.
        OptionError: `num_classes` is not a positive int.

    References:
        Bishop 2006, *Pattern Recognition and Machine Learning*, section 2.2.

    Example:
        >>> classifier = pv.mlp(784, fam.Categorical((), num_classes=10), hidden=(16,))
        >>> y = classifier(torch.zeros(5, 784))
        >>> y.sample().shape, y.probs.shape
        (torch.Size([5]), torch.Size([5, 10]))
    """

    def __init__(self, event_shape: int | Sequence[int], num_classes: int) -> None:
        super().__init__(event_shape)
        self.num_params = self.num_classes = positive(self, "num_classes", num_classes)

    def forward(self, params: Tensor) -> TorchDistributionMixin:  # type: ignore[override]
        self.check(params)
        # not through `link`, which would unbind one tensor for each class
        logits = params.movedim(-1 - len(self.event_shape), -1)
        return CategoricalMass(logits=logits).to_event(len(self.event_shape))

    def features(self, x: Tensor) -> Tensor:
        """One-hot codes, `(*batch, *event_shape, num_classes)`; zeros where x is missing."""
        return one_hot(x, self.num_classes, x.dtype if x.is_floating_point() else None)

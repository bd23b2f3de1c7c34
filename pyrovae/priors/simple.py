"""Priors with independent elements, on the sphere, on the simplex, and over classes."""

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn import functional as F

from pyrovae._arguments import as_number
from pyrovae._html import Shown
from pyrovae.distributions import Bernoulli as BernoulliMass
from pyrovae.distributions import Categorical as CategoricalMass
from pyrovae.distributions import HypersphericalUniform as Uniform
from pyrovae.distributions import LogisticNormal as SoftmaxNormal
from pyrovae.distributions import OneHotCategorical as OneHotMass
from pyrovae.distributions import StudentT as Student
from pyrovae.errors import ShapeError
from pyrovae.families import OneHotCategorical as OneHotFamily
from pyrovae.nets.mlp import as_length, as_size


def _positive(prior: nn.Module, name: str, value: float) -> float:
    """The value as a number if it is a finite positive one, else OptionError."""
    return as_number(f"{name} of priors.{type(prior).__name__}", value, above=0)


def _vector(prior: nn.Module, event_shape: int | Sequence[int]) -> torch.Size:
    """The shape of vectors of at least two elements, or ShapeError."""
    size = as_size(event_shape)
    if len(size) != 1 or size[0] < 2:
        raise ShapeError(f"priors.{type(prior).__name__} needs vectors of at least 2 elements, got {event_shape!r}.")
    return size


class Normal(Shown, nn.Module):
    """`p(z) = N(z; m, diag(s^2))`, m and `s = softplus(raw_scale) + 1e-3` learned; initially the standard normal.

    A decoder whose first layer is linear can rescale z itself, so that this prior adds nothing there. Use it if the likelihood
    takes z as it is, or to compare posteriors with a prior in the units of z.

    Args:
        event_shape: Shape of one row z, an int or a tuple of ints.

    Raises:
        ShapeError: `event_shape` is not a positive int or a tuple of them.

    References:
        Kingma and Welling 2014, arXiv:1312.6114.

    Example:
        >>> prior = pv.priors.Normal(3)
        >>> sorted(name for name, _ in prior.named_parameters())
        ['loc', 'raw_scale']
        >>> torch.allclose(prior().stddev, torch.ones(3))
        True
    """

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.event_shape = as_size(event_shape)
        self.loc = nn.Parameter(torch.zeros(self.event_shape))
        self.raw_scale = nn.Parameter(torch.full(self.event_shape, math.log(math.expm1(1 - 1e-3))))

    def forward(self) -> TorchDistributionMixin:
        return dist.Normal(self.loc, F.softplus(self.raw_scale) + 1e-3).to_event(len(self.event_shape))


class Laplace(Shown, nn.Module):
    """`p(z) = prod_d exp(-|z_d| / b) / (2 b)`, b = `scale`: a prior for sparse codes. Nothing is learned.

    Args:
        event_shape: Shape of one row z, an int or a tuple of ints.
        scale: The scale b, positive.

    Raises:
        ShapeError: `event_shape` is not a positive int or a tuple of them.
        OptionError: `scale` is not a positive number.

    References:
        Olshausen and Field 1996, Nature 381.

    Example:
        >>> prior = pv.priors.Laplace(3, scale=0.5)
        >>> prior().log_prob(torch.zeros(3))  # density 1 at 0
        tensor(0.)
    """

    loc: Tensor

    def __init__(self, event_shape: int | Sequence[int], scale: float = 1.0) -> None:
        super().__init__()
        self.event_shape, self.scale = as_size(event_shape), _positive(self, "scale", scale)
        self.register_buffer("loc", torch.zeros(self.event_shape), persistent=False)

    def forward(self) -> TorchDistributionMixin:
        return dist.Laplace(self.loc, self.loc.new_full((), self.scale)).to_event(len(self.event_shape))


class StudentT(Shown, nn.Module):
    """`p(z) = prod_d t(z_d; df, 0, scale)`: heavy tails, proportional to `|z_d|^-(df + 1)`. Nothing is learned.

    Args:
        event_shape: Shape of one row z, an int or a tuple of ints.
        df: Degrees of freedom, positive.
        scale: The scale, positive.

    Raises:
        ShapeError: `event_shape` is not a positive int or a tuple of them.
        OptionError: `df` or `scale` is not a positive number.

    References:
        Chen et al. 2020, arXiv:2004.02581.

    Example:
        >>> prior = pv.priors.StudentT(3, df=4.0)
        >>> prior().variance  # df / (df - 2)
        tensor([2., 2., 2.])
    """

    loc: Tensor

    def __init__(self, event_shape: int | Sequence[int], df: float = 4.0, scale: float = 1.0) -> None:
        super().__init__()
        self.event_shape = as_size(event_shape)
        self.df, self.scale = _positive(self, "df", df), _positive(self, "scale", scale)
        self.register_buffer("loc", torch.zeros(self.event_shape), persistent=False)

    def forward(self) -> TorchDistributionMixin:
        df, scale = self.loc.new_full((), self.df), self.loc.new_full((), self.scale)
        return Student(df, self.loc, scale).to_event(len(self.event_shape))


class Horseshoe(Shown, nn.Module):
    """`p(z) = prod_d int N(z_d; 0, scale^2 l^2) C+(l; 0, 1) dl`: sparse codes. Nothing is learned.

    The density has Cauchy tails and a pole at 0: at scale 1 it is `exp(z^2/2) E_1(z^2/2) / sqrt(2 pi^3)`. The integral
    over log l, whose density is `sech(log l) / pi`, is therefore approximated by the trapezoid rule at 41 nodes from -10
    to 10. The result is a mixture of 41 Normals: it is normalised, can be drawn from exactly, has a finite peak, and is
    within 0.1 % of the true density for `0.001 < |z_d| / scale < 1000`.

    Args:
        event_shape: Shape of one row z, an int or a tuple of ints.
        scale: The scale, positive.

    Raises:
        ShapeError: `event_shape` is not a positive int or a tuple of them.
        OptionError: `scale` is not a positive number.

    References:
        Carvalho, Polson and Scott 2010, Biometrika 97(2).

    Example:
        >>> prior = pv.priors.Horseshoe(3)
        >>> prior().sample((5,)).shape
        torch.Size([5, 3])
        >>> bool(prior().log_prob(torch.zeros(3)) > pv.priors.Laplace(3)().log_prob(torch.zeros(3)))
        True
    """

    log_node: Tensor

    def __init__(self, event_shape: int | Sequence[int], scale: float = 1.0) -> None:
        super().__init__()
        self.event_shape, self.scale = as_size(event_shape), _positive(self, "scale", scale)
        self.register_buffer("log_node", torch.linspace(-10, 10, 41), persistent=False)

    def forward(self) -> TorchDistributionMixin:
        wide = (*self.event_shape, len(self.log_node))
        logits = -F.softplus(2 * self.log_node) + self.log_node  # log sech up to a constant
        normals = dist.Normal(self.log_node.new_zeros(wide), (self.scale * self.log_node.exp()).expand(wide))
        mixture = dist.MixtureSameFamily(dist.Categorical(logits=logits.expand(wide)), normals)
        return mixture.to_event(len(self.event_shape))


class HypersphericalUniform(Shown, nn.Module):
    """`p(z) = Gamma(D/2) / (2 pi^(D/2))`, the uniform distribution on the unit sphere in R^D. Nothing is learned.

    A guide of the same support has the family `families.PowerSpherical`.

    Args:
        event_shape: Dimension D of one row z, an int of at least 2.

    Raises:
        ShapeError: `event_shape` is not an int of at least 2.

    References:
        Davidson et al. 2018, arXiv:1804.00891.

    Example:
        >>> z = pv.priors.HypersphericalUniform(3)().sample((5,))
        >>> torch.allclose(z.norm(dim=-1), torch.ones(5))
        True
    """

    like: Tensor

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.event_shape = _vector(self, event_shape)
        self.register_buffer("like", torch.zeros(self.event_shape), persistent=False)

    def forward(self) -> TorchDistributionMixin:
        return Uniform(self.like)


class LogisticNormal(Shown, nn.Module):
    """`z = softmax(u_1, ..., u_(D-1), 0)` with `u ~ N(m, diag(s^2))`: proportions, such as the topics of a document.

    m and `s = softplus(raw_scale) + 1e-3` are learned, and start at 0 and 1. A guide of the same support has the family
    `families.LogisticNormal`.

    Args:
        event_shape: Dimension D of one row z, an int of at least 2.

    Raises:
        ShapeError: `event_shape` is not an int of at least 2.

    References:
        Blei and Lafferty 2007, Annals of Applied Statistics 1(1); Srivastava and Sutton 2017, arXiv:1703.01488.

    Example:
        >>> z = pv.priors.LogisticNormal(3)().sample((5,))
        >>> z.shape, torch.allclose(z.sum(-1), torch.ones(5))
        (torch.Size([5, 3]), True)
    """

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.event_shape = _vector(self, event_shape)
        free = self.event_shape[0] - 1
        self.loc = nn.Parameter(torch.zeros(free))
        self.raw_scale = nn.Parameter(torch.full((free,), math.log(math.expm1(1 - 1e-3))))

    def forward(self) -> TorchDistributionMixin:
        return SoftmaxNormal(dist.Normal(self.loc, F.softplus(self.raw_scale) + 1e-3).to_event(1))


class Categorical(Shown, nn.Module):
    """`p(y = c) = softmax(logits)_c`: a prior over classes c = 0, ..., C - 1, uniform unless learned.

    Classes are equally probable by default, for two reasons: the frequencies among a few labels are unreliable, and early in
    training a model's guesses of the unknown labels should not shift the proportions of the classes. With an `event_shape` it
    is over arrays of independent classes, such as the code numbers of a `VQVAE`.

    Args:
        num_classes: The number of classes C.
        learned: Whether the logits, one set for each element, are trained.
        event_shape: Shape of one row y, an int or a tuple of ints; `()` for a single class.

    Raises:
        ShapeError: `num_classes` is not a positive int, or `event_shape` is no shape.

    References:
        Bishop 2006, *Pattern Recognition and Machine Learning*, section 2.2.

    Example:
        >>> pv.priors.Categorical(4)().probs
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
        >>> len(list(pv.priors.Categorical(4, learned=True).parameters()))
        1
        >>> pv.priors.Categorical(4, event_shape=(2, 3))().sample((5,)).shape
        torch.Size([5, 2, 3])
    """

    logits: Tensor

    def __init__(self, num_classes: int, learned: bool = False, event_shape: int | Sequence[int] = ()) -> None:
        super().__init__()
        self.num_classes = as_length("num_classes", num_classes)
        self.learned, self.event_shape = learned, as_size(event_shape)
        start = torch.zeros(*self.event_shape, self.num_classes)
        if learned:
            self.logits = nn.Parameter(start)
        else:
            self.register_buffer("logits", start, persistent=False)

    def forward(self) -> TorchDistributionMixin:
        one: TorchDistributionMixin = CategoricalMass(logits=self.logits)
        return one.to_event(len(self.event_shape)) if self.event_shape else one


class OneHotCategorical(Shown, nn.Module):
    """`p(z) = prod_l Cat(z_l; softmax(logits_l))`: a prior over rows of one-hot codes, uniform unless learned.

    Args:
        event_shape: Shape of one row z, an int K for a single code, or a tuple `(..., K)`, such as (20, 10) for 20 codes of 10
            categories.
        learned: Whether the logits, one set for each code, are trained.

    Raises:
        ShapeError: `event_shape` is not a shape whose last number is at least 2.

    References:
        Jang, Gu and Poole 2017, arXiv:1611.01144.

    Example:
        >>> prior = pv.priors.OneHotCategorical((3, 4))
        >>> z = prior().sample((5,))
        >>> z.shape, torch.allclose(prior().log_prob(z), torch.tensor(4.0).log() * -3)
        (torch.Size([5, 3, 4]), True)
    """

    logits: Tensor

    def __init__(self, event_shape: int | Sequence[int], learned: bool = False) -> None:
        super().__init__()
        self.event_shape, self.learned = OneHotFamily(event_shape).event_shape, learned
        if learned:
            self.logits = nn.Parameter(torch.zeros(self.event_shape))
        else:
            self.register_buffer("logits", torch.zeros(self.event_shape), persistent=False)

    def forward(self) -> TorchDistributionMixin:
        return OneHotMass(self.logits, len(self.event_shape))


class Bernoulli(Shown, nn.Module):
    """`p(z) = prod_d s(l_d)^z_d (1 - s(l_d))^(1 - z_d)`, s the logistic function: a prior over bits, even unless learned.

    Args:
        event_shape: Shape of one row z, an int or a tuple of ints.
        learned: Whether the logits l, one for each bit, are trained.

    Raises:
        ShapeError: `event_shape` is not a positive int or a tuple of them.

    References:
        Mnih and Gregor 2014, arXiv:1402.0030.

    Example:
        >>> z = pv.priors.Bernoulli(20)().sample((5,))
        >>> z.shape, z.unique()
        (torch.Size([5, 20]), tensor([0., 1.]))
    """

    logits: Tensor

    def __init__(self, event_shape: int | Sequence[int], learned: bool = False) -> None:
        super().__init__()
        self.event_shape, self.learned = as_size(event_shape), learned
        if learned:
            self.logits = nn.Parameter(torch.zeros(self.event_shape))
        else:
            self.register_buffer("logits", torch.zeros(self.event_shape), persistent=False)

    def forward(self) -> TorchDistributionMixin:
        # relaxed bits have a mass, too, see `families.RelaxedBernoulli`
        return BernoulliMass(self.logits, validate_args=False).to_event(len(self.event_shape))

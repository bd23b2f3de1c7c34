"""Priors of independent elements, on the sphere and on the simplex."""

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn import functional as F

from pyrovae.distributions import Categorical as CategoricalMass
from pyrovae.distributions import HypersphericalUniform as Uniform
from pyrovae.distributions import LogisticNormal as SoftmaxNormal
from pyrovae.distributions import StudentT as Student
from pyrovae.errors import OptionError, ShapeError
from pyrovae.nets.mlp import as_size


def _positive(prior: nn.Module, name: str, value: float) -> float:
    if isinstance(value, bool) or not 0 < value < math.inf:
        raise OptionError(f"priors.{type(prior).__name__} needs {name} to be a positive number, got {value!r}.")
    return value


def _vector(prior: nn.Module, event_shape: int | Sequence[int]) -> torch.Size:
    size = as_size(event_shape)
    if len(size) != 1 or size[0] < 2:
        raise ShapeError(f"priors.{type(prior).__name__} is of vectors of at least 2 elements, got {event_shape!r}.")
    return size


class Normal(nn.Module):
    """p(z) = N(z; m, diag(s^2)), m and s = softplus(raw_scale) + 1e-3 learned. z: (*event_shape). Raises ShapeError.

    It starts as the standard normal. What it can say the decoder's first layer can say as well; it serves where the
    likelihood takes z as it is, or where posteriors are compared with a prior in units of their own.
    Kingma & Welling 2014, arXiv:1312.6114.
    """

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.event_shape = as_size(event_shape)
        self.loc = nn.Parameter(torch.zeros(self.event_shape))
        self.raw_scale = nn.Parameter(torch.full(self.event_shape, math.log(math.expm1(1 - 1e-3))))

    def forward(self) -> TorchDistributionMixin:
        return dist.Normal(self.loc, F.softplus(self.raw_scale) + 1e-3).to_event(len(self.event_shape))


class Laplace(nn.Module):
    """p(z) = prod_d exp(-|z_d| / b) / (2 b), b = scale: sparse codes. z: (*event_shape).

    Nothing is learned. Raises ShapeError, and OptionError for a scale that is not positive.
    Olshausen & Field 1996, Nature 381.
    """

    loc: Tensor

    def __init__(self, event_shape: int | Sequence[int], scale: float = 1.0) -> None:
        super().__init__()
        self.event_shape, self.scale = as_size(event_shape), _positive(self, "scale", scale)
        self.register_buffer("loc", torch.zeros(self.event_shape), persistent=False)

    def forward(self) -> TorchDistributionMixin:
        return dist.Laplace(self.loc, self.loc.new_full((), self.scale)).to_event(len(self.event_shape))


class StudentT(nn.Module):
    """p(z) = prod_d t(z_d; df, 0, scale), heavy tails: p(z_d) falls as |z_d|^-(df + 1). z: (*event_shape).

    Nothing is learned. Raises ShapeError, and OptionError for a df or scale that is not positive.
    Chen et al. 2020, arXiv:2004.02581.
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


class Horseshoe(nn.Module):
    """p(z) = prod_d int N(z_d; 0, scale^2 l^2) C+(l; 0, 1) dl: sparse codes, a spike at 0 and Cauchy tails. z: (*event_shape).

    The marginal has a pole at 0 (it is exp(z^2/2) E_1(z^2/2) / sqrt(2 pi^3) at scale 1), so the integral over log l,
    whose density is sech(log l) / pi, is taken by the trapezoid rule at 41 nodes from -10 to 10. That is a mixture of
    41 Normals: normalised, drawn from exactly, with a finite peak, and within 1 part in 1,000 of the marginal for
    0.001 < |z_d| / scale < 1,000. Nothing is learned. Raises ShapeError, and OptionError for a scale that is not positive.
    Carvalho, Polson & Scott 2010, Biometrika 97(2).
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


class HypersphericalUniform(nn.Module):
    """p(z) = Gamma(D/2) / (2 pi^(D/2)) on the unit sphere in R^D. z: (D,). Raises ShapeError unless D is an int above 1.

    Its guide is `families.PowerSpherical`. Nothing is learned. Davidson et al. 2018, arXiv:1804.00891.
    """

    like: Tensor

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.event_shape = _vector(self, event_shape)
        self.register_buffer("like", torch.zeros(self.event_shape), persistent=False)

    def forward(self) -> TorchDistributionMixin:
        return Uniform(self.like)


class LogisticNormal(nn.Module):
    """p(z): z = softmax(u_1, ..., u_(D-1), 0), u ~ N(m, diag(s^2)), on the simplex: shares of topics. z: (D,).

    m and s = softplus(raw_scale) + 1e-3 are learned and start at 0 and 1. Its guide is `families.LogisticNormal`.
    Raises ShapeError unless D is an int above 1. Blei & Lafferty 2007, Annals of Applied Statistics 1(1);
    Srivastava & Sutton 2017, arXiv:1703.01488.
    """

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.event_shape = _vector(self, event_shape)
        free = self.event_shape[0] - 1
        self.loc = nn.Parameter(torch.zeros(free))
        self.raw_scale = nn.Parameter(torch.full((free,), math.log(math.expm1(1 - 1e-3))))

    def forward(self) -> TorchDistributionMixin:
        return SoftmaxNormal(dist.Normal(self.loc, F.softplus(self.raw_scale) + 1e-3).to_event(1))


class Categorical(nn.Module):
    """p(y = c) = softmax(logits)_c, c = 0, ..., num_classes - 1. y: ().

    Equal, and not learned unless `learned`: with few labels their frequencies say little, and what a model makes of
    unlabelled rows should not change the labels' shares at first. Raises ShapeError. Bishop 2006, *Pattern Recognition and
    Machine Learning*, 2.2.
    """

    logits: Tensor

    def __init__(self, num_classes: int, learned: bool = False) -> None:
        super().__init__()
        (self.num_classes,) = as_size(num_classes)
        self.learned = learned
        start = torch.zeros(self.num_classes)
        if learned:
            self.logits = nn.Parameter(start)
        else:
            self.register_buffer("logits", start, persistent=False)

    @property
    def event_shape(self) -> torch.Size:
        return torch.Size(())

    def forward(self) -> TorchDistributionMixin:
        return CategoricalMass(logits=self.logits)

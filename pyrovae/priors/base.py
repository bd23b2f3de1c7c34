"""The standard normal, mixtures of Normals, and given distributions as priors."""

import copy
import inspect
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn import functional as F

from pyrovae._arguments import as_choice
from pyrovae._html import Shown
from pyrovae.distributions.normals import MultivariateNormal
from pyrovae.errors import PairError, ShapeError
from pyrovae.nets.mlp import as_length, as_size


class StandardNormal(Shown, nn.Module):
    """`p(z) = N(z; 0, I)`.

    Args:
        event_shape: Shape of one row z, an int or a tuple of ints.

    Raises:
        ShapeError: `event_shape` is not a positive int or a tuple of them.

    References:
        Kingma and Welling 2014, arXiv:1312.6114.

    Example:
        >>> prior = pv.priors.StandardNormal(3)
        >>> p = prior()
        >>> p.event_shape, p.mean, p.variance
        (torch.Size([3]), tensor([0., 0., 0.]), tensor([1., 1., 1.]))
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.event_shape = as_size(event_shape)
        self.register_buffer("loc", torch.zeros(self.event_shape), persistent=False)
        self.register_buffer("scale", torch.ones(self.event_shape), persistent=False)

    def forward(self) -> TorchDistributionMixin:
        return dist.Normal(self.loc, self.scale).to_event(len(self.event_shape))


class MixtureOfNormals(Shown, nn.Module):
    """`p(z) = sum_k w_k N(z; m_k, S_k)`, all learned; the covariances `S_k` are diagonal or full.

    `w = softmax(logits)`, and the scales are `s = softplus(raw_scale) + 1e-3`. It starts with equal weights, `s = sqrt(1/2)`
    and means drawn from `N(0, 1/2)`: the components differ, and the mixture has about the mean and variance of the standard
    normal. A full covariance is `S = L L'` with `L = diag(s) (I + A)`, A strictly lower triangular and 0 at the start.

    Args:
        event_shape: Shape of one row z, an int or a tuple of ints; an int where the covariances are full.
        num_components: The number of components K.
        covariance: "diag" or "full".

    Raises:
        ShapeError: `event_shape` or `num_components` is not positive, or rows with full covariances are no vectors.
        OptionError: `covariance` is unknown.

    References:
        Dilokthanakul et al. 2016, arXiv:1611.02648; Bishop 2006, *Pattern Recognition and Machine Learning*, section 9.2.

    Example:
        >>> prior = pv.priors.MixtureOfNormals(3, num_components=4)
        >>> prior.loc.shape, prior().sample((5,)).shape
        (torch.Size([4, 3]), torch.Size([5, 3]))
    """

    below: Tensor

    def __init__(self, event_shape: int | Sequence[int], num_components: int = 10, covariance: str = "diag") -> None:
        super().__init__()
        self.event_shape = as_size(event_shape)
        self.num_components = as_length("num_components", num_components)
        self.covariance = as_choice("covariance of MixtureOfNormals", covariance, ("diag", "full"))
        if covariance == "full" and len(self.event_shape) != 1:
            raise ShapeError(f"MixtureOfNormals needs vectors for covariance='full', got event_shape {event_shape!r}.")
        shape = (self.num_components, *self.event_shape)
        self.logits = nn.Parameter(torch.zeros(self.num_components))
        self.loc = nn.Parameter(math.sqrt(0.5) * torch.randn(shape))
        self.raw_scale = nn.Parameter(torch.full(shape, math.log(math.expm1(math.sqrt(0.5)))))
        below = torch.zeros(*shape, *self.event_shape) if covariance == "full" else None
        self.register_parameter("below", None if below is None else nn.Parameter(below))

    def start_from(self, weights: Tensor, loc: Tensor, covariance: Tensor) -> None:
        """Set the components to given ones, such as those that scikit-learn's `GaussianMixture` has found.

        Args:
            weights: w, `(K,)`, positive.
            loc: m, `(K, D)`.
            covariance: S, `(K, D, D)`; a prior with diagonal covariances keeps the diagonals.

        Raises:
            ShapeError: The shapes are others.
        """
        k, (d,) = self.num_components, self.event_shape
        if weights.shape != (k,) or loc.shape != (k, d) or covariance.shape != (k, d, d):
            raise ShapeError(
                f"start_from needs weights ({k},), loc ({k}, {d}) and covariance ({k}, {d}, {d}), got {tuple(weights.shape)}, "
                f"{tuple(loc.shape)} and {tuple(covariance.shape)}."
            )
        full = self.covariance == "full"
        root = torch.linalg.cholesky(covariance.double())
        s = root.diagonal(dim1=-2, dim2=-1) if full else covariance.double().diagonal(dim1=-2, dim2=-1).sqrt()
        with torch.no_grad():
            self.logits.copy_(weights.log())
            self.loc.copy_(loc)
            self.raw_scale.copy_(torch.log(torch.expm1((s - 1e-3).clamp_min(1e-6))))
            if full:
                self.below.copy_((root / s.unsqueeze(-1)).tril(-1))

    def forward(self) -> TorchDistributionMixin:
        scale = F.softplus(self.raw_scale) + 1e-3
        weights = dist.Categorical(logits=self.logits)
        if self.covariance == "diag":
            return dist.MixtureSameFamily(weights, dist.Normal(self.loc, scale).to_event(len(self.event_shape)))
        one = torch.eye(self.event_shape[0], dtype=scale.dtype, device=scale.device)
        root = scale.unsqueeze(-1) * (self.below.tril(-1) + one)
        return dist.MixtureSameFamily(weights, MultivariateNormal(self.loc, scale_tril=root))


class Fixed(Shown, nn.Module):
    """A given distribution of Pyro or torch as a prior that is not trained.

    Moving the module moves the tensors of the distribution with it. They are not in the `state_dict`.

    Args:
        distribution: A distribution with batch shape `()`, whose event is one row z.

    Raises:
        PairError: The distribution has a batch shape, or one of its tensors requires a gradient.

    Example:
        >>> import pyro.distributions as dist
        >>> prior = pv.priors.Fixed(dist.Laplace(torch.zeros(3), 1.0).to_event(1))
        >>> prior().sample((5,)).shape
        torch.Size([5, 3])
    """

    def __init__(self, distribution: torch.distributions.Distribution) -> None:
        super().__init__()
        if distribution.batch_shape:
            raise PairError(
                f"A prior needs batch_shape () and a whole row as its event, got {distribution} with batch_shape "
                f"{tuple(distribution.batch_shape)} and event_shape {tuple(distribution.event_shape)}. "
                f"Call .to_event({len(distribution.batch_shape)})."
            )
        self.distribution: torch.distributions.Distribution = _mapped(distribution, _refuse_learned)

    def forward(self) -> TorchDistributionMixin:
        if isinstance(self.distribution, TorchDistributionMixin):
            return self.distribution
        return dist.MaskedDistribution(
            self.distribution, True
        )  # torch's own classes lack methods that pyro.sample calls

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Fixed":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.distribution = _mapped(self.distribution, fn)
        return self


def as_prior(prior: Any) -> nn.Module:
    """A prior from either a module or a distribution, as the constructors of all models take it.

    Args:
        prior: A module whose `forward()` returns a distribution, or a distribution.

    Returns:
        The module itself, or the distribution as `Fixed`.

    Raises:
        PairError: It is neither of the two, or a distribution that `Fixed` rejects.

    Example:
        >>> import pyro.distributions as dist
        >>> type(pv.priors.as_prior(dist.Normal(torch.zeros(3), 1.0).to_event(1))).__name__
        'Fixed'
    """
    if isinstance(prior, nn.Module):
        return prior
    if isinstance(prior, torch.distributions.Distribution):
        return Fixed(prior)
    raise PairError(
        "A prior is a distribution, or a module whose forward() returns one without arguments, "
        f"got {type(prior).__name__}. Use priors.StandardNormal(num_latent), for example."
    )


def as_conditional_prior(prior: Any) -> nn.Module:
    """A prior called with the code of c: `p(z|c)` as it is, and a `p(z)`, which takes no parents, the same whatever c is.

    Args:
        prior: A module called as `prior(code)`, or a prior as `as_prior` takes it.

    Returns:
        A module called as `prior(code)`.

    Raises:
        PairError: It is neither a module nor a distribution.

    Example:
        >>> prior = pv.priors.as_conditional_prior(pv.priors.StandardNormal(2))
        >>> prior(torch.zeros(5, 3)).event_shape
        torch.Size([2])
    """
    made = as_prior(prior)
    return made if inspect.signature(made.forward).parameters else _Shared(made)


class _Shared(nn.Module):
    """p(z) for all values of c."""

    def __init__(self, prior: nn.Module) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, code: Tensor) -> torch.distributions.Distribution:
        return self.prior()


def _refuse_learned(tensor: Tensor) -> Tensor:
    if tensor.requires_grad:
        raise PairError(
            "A distribution used as a prior stays fixed, but a tensor of this one requires a gradient and would never "
            "be trained. Detach it, or write a module that has it as a parameter and returns the distribution."
        )
    return tensor


_PARTS = (torch.distributions.Distribution, torch.distributions.Transform, torch.distributions.constraints.Constraint)


def _mapped(value: Any, fn: Callable[[Tensor], Tensor], done: dict[int, Any] | None = None) -> Any:
    """A copy of `value`, a distribution or a part of one, with `fn` applied to every tensor in it at any depth."""
    done = {} if done is None else done  # a transform and its inverse refer to each other
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, (list, tuple)):
        return type(value)([_mapped(v, fn, done) for v in value])
    if isinstance(value, dict):
        return type(value)((k, _mapped(v, fn, done)) for k, v in value.items())
    if isinstance(value, weakref.ref):
        return None  # older versions of torch cache the inverse so; it is recreated on demand
    if isinstance(value, _PARTS):
        done[id(value)] = new = copy.copy(value)
        new.__dict__.update((k, _mapped(v, fn, done)) for k, v in vars(value).items())
        return new
    return value

"""Combinations of distributions: the likelihood of observed elements, products of Normals, Normals relative to a prior."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import biject_to, constraints
from torch.nn import functional as F

from pyrovae._shapes import broadcast_shapes
from pyrovae.distributions.columns import EachColumn
from pyrovae.distributions.rounded import Between
from pyrovae.errors import PairError


class ObservedOnly(TorchDistribution):  # type: ignore[misc]  # Pyro has no types
    """`log p(x_observed)`: elements of x that are NaN are integrated out of a distribution.

    For independent elements that means leaving the missing ones out; for a mixture of products (MixtureSameFamily) they are
    left out of each component, `log sum_k pi_k prod_{d observed} p_k(x_d)`. Before the density is computed, missing elements
    are replaced by a value inside their support, so that neither value nor gradient is NaN. Draws and moments are those of
    the whole row.

    Args:
        whole: A distribution of rows, batch shape `(*batch)` and event shape `(*event)`, whose elements are independent, or a
            mixture of such distributions.

    Raises:
        PairError: The distribution has no such marginal: Multinomial, MultivariateNormal, and colours of a pixel that depend
            on one another.

    References:
        Mattei and Frellsen 2019, arXiv:1812.02633.

    Example:
        >>> import pyro.distributions as dist
        >>> whole = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        >>> observed = pv.distributions.ObservedOnly(whole)
        >>> nan = float("nan")
        >>> observed.log_prob(torch.tensor([[0.0, 0.0], [0.0, nan], [nan, nan]]))
        tensor([-1.8379, -0.9189,  0.0000])
    """

    arg_constraints: dict[str, Any] = {}  # torch's name and form  # noqa: RUF012

    def __init__(self, whole: Any) -> None:
        if not has_marginals(whole):
            raise PairError(
                "observed_only needs a likelihood of independent elements, such as Normal(D), Columns([...]) or Bernoulli(D), "
                f"or a mixture of these, got {type(whole).__name__}: missing elements cannot be integrated out of a joint "
                "density one by one. Use a family of independent elements (Poisson(V) for a bag of words, "
                "DiscretizedLogistic((C, H, W)) for colours), or fill or drop rows with gaps."
            )
        self.whole = whole
        super().__init__(whole.batch_shape, whole.event_shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        return marginal(self.whole, value, ~torch.isnan(value))

    @property
    def support(self) -> Any:
        return self.whole.support

    @property
    def has_rsample(self) -> bool:
        return bool(self.whole.has_rsample)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # torch's signature  # noqa: B008
        return self.whole.sample(sample_shape)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return self.whole.rsample(sample_shape)

    @property
    def mean(self) -> Tensor:
        return self.whole.mean

    @property
    def variance(self) -> Tensor:
        return self.whole.variance

    @property
    def labels(self) -> Any:
        """For each column of a mixed table, whether it contains classes; None for other distributions."""
        return getattr(self.whole, "labels", None)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ObservedOnly:
        return ObservedOnly(self.whole.expand(batch_shape))


def _elements(whole: Any) -> Any:
    """A function from values to the log-density of each independent element, `(*batch, *event)`; None if there is none."""
    if not whole.event_shape:
        return whole.log_prob
    if isinstance(whole, dist.Independent) and not whole.base_dist.event_shape:
        return whole.base_dist.log_prob
    return getattr(whole, "log_prob_elements", None)


def log_prob_of_entries(fn: Any, value: Tensor) -> Tensor | None:
    """The log-density of each entry of a value, `(*batch, *event)`, NaN where it is missing; None unless they are independent.

    Args:
        fn: A distribution with batch shape `(*batch)` and event shape `(*event)`.
        value: Its value, `(*batch, *event)`.
    """
    found: Tensor | None
    if isinstance(fn, ObservedOnly):
        observed = ~torch.isnan(value)
        found = log_prob_of_entries(fn.whole, torch.where(observed, value, inside_support(fn.support, value)))
        return None if found is None else torch.where(observed, found, torch.nan)
    entries = _elements(fn)
    if entries is not None:
        found = entries(value)
        return found
    if isinstance(fn, dist.Independent):
        return log_prob_of_entries(fn.base_dist, value)
    return None


def has_marginals(whole: Any) -> bool:
    if isinstance(whole, dist.MixtureSameFamily):
        return has_marginals(whole.component_distribution)
    if isinstance(whole, dist.Independent) and whole.base_dist.event_shape:
        return has_marginals(whole.base_dist)
    return _elements(whole) is not None


def marginal(whole: Any, value: Tensor, observed: Tensor) -> Tensor:
    """`log p` of the observed elements of a value, shape `(*batch)`."""
    n = len(whole.event_shape)
    if isinstance(whole, dist.MixtureSameFamily) and n:
        dim = -1 - n
        inside = marginal(whole.component_distribution, value.unsqueeze(dim), observed.unsqueeze(dim))
        return torch.logsumexp(inside + F.log_softmax(whole.mixture_distribution.logits, -1), -1)
    if isinstance(whole, dist.Independent) and whole.base_dist.event_shape:
        parts = marginal(whole.base_dist, value, observed)
        return parts.flatten(parts.dim() - whole.reinterpreted_batch_ndims).sum(-1)
    filled = torch.where(observed, value, inside_support(whole.support, value))
    log_prob = _elements(whole)(filled)
    log_prob = torch.where(observed, log_prob, log_prob.new_zeros(()))
    return log_prob.flatten(log_prob.dim() - n).sum(-1) if n else log_prob


def inside_support(support: Any, like: Tensor) -> Tensor:
    """A value in the support where densities are smooth, for each element of `like` or one for all."""
    while hasattr(support, "base_constraint"):  # wrapped by Independent and by mixtures
        support = support.base_constraint
    if isinstance(support, EachColumn):
        if len(support.blocks) == 1:
            return inside_support(support.blocks[0], like)
        blocks = zip(support.blocks, like.split(support.sizes, -1))
        return torch.cat([inside_support(block, v).expand(v.shape) for block, v in blocks], -1)
    if isinstance(support, Between):
        return support.inside.to(like)
    if support is constraints.real:
        return like.new_zeros(())
    if support is constraints.boolean or getattr(support, "is_discrete", False):
        low = getattr(support, "lower_bound", 0)
        return low.to(like) if isinstance(low, Tensor) else like.new_full((), low)
    return biject_to(support)(like.new_zeros(()))


def product_of_normals(a: Any, b: Any) -> TorchDistribution:
    """`c N(z; m_a, diag(s_a^2)) N(z; m_b, diag(s_b^2))`, normalised: a Normal whose precision is the sum of the two.

    `1/s^2 = 1/s_a^2 + 1/s_b^2` and `m/s^2 = m_a/s_a^2 + m_b/s_b^2`. It combines what a prior and an observation, or two
    levels of a hierarchy, say about z.

    Args:
        a: A Normal of independent elements, batch shape `(*batch)` and event shape `(*event)`.
        b: Another one of the same event shape; batch shapes broadcast.

    Returns:
        The Normal of independent elements, of the same event shape.

    Raises:
        PairError: One of the two is not a Normal of independent elements, or event shapes differ.

    References:
        Bishop 2006, *Pattern Recognition and Machine Learning*, section 2.3.6.

    Example:
        >>> import pyro.distributions as dist
        >>> prior = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        >>> evidence = dist.Normal(2 * torch.ones(2), 1.0).to_event(1)
        >>> posterior = pv.distributions.product_of_normals(prior, evidence)
        >>> posterior.mean, posterior.variance
        (tensor([1., 1.]), tensor([0.5000, 0.5000]))
    """
    one, two = normals_within("product_of_normals", a, b)
    s = torch.hypot(one.scale, two.scale)
    share = (two.scale / s).square()  # of the precision, that of the first
    loc = share * one.loc + (1 - share) * two.loc
    return dist.Normal(loc, one.scale * two.scale / s).to_event(len(a.event_shape))


def normal_where(condition: Tensor, a: Any, b: Any) -> TorchDistribution:
    """`a` in rows where the condition holds, and `b` elsewhere: a Normal of independent elements.

    Args:
        condition: Boolean, `(*batch)`.
        a: A Normal of independent elements, batch shape `(*batch)` and event shape `(*event)`.
        b: Another one of the same event shape; batch shapes broadcast.

    Returns:
        The Normal of independent elements, of the same event shape.

    Raises:
        PairError: One of the two is not a Normal of independent elements, or event shapes differ.

    Example:
        >>> import pyro.distributions as dist
        >>> a, b = (dist.Normal(m * torch.ones(2, 1), 1.0).to_event(1) for m in (1.0, 2.0))
        >>> pv.distributions.normal_where(torch.tensor([True, False]), a, b).mean
        tensor([[1.],
                [2.]])
    """
    one, two = normals_within("normal_where", a, b)
    event = len(a.event_shape)
    choice = condition.reshape(*condition.shape, *[1] * event)
    loc, scale = (torch.where(choice, getattr(one, name), getattr(two, name)) for name in ("loc", "scale"))
    return dist.Normal(loc, scale).to_event(event)


def normals_within(asking: str, *given: Any) -> list[Any]:
    """The Normals of elements within some distributions; PairError unless they are such, of one event shape."""
    inner = [d.base_dist if isinstance(d, dist.Independent) else d for d in given]
    if not given or not all(isinstance(one, dist.Normal) for one in inner) or len({d.event_shape for d in given}) > 1:
        shapes = [f" {tuple(d.event_shape)}" if hasattr(d, "event_shape") else "" for d in given]
        got = " and ".join(f"{type(one).__name__}{shape}" for one, shape in zip(inner, shapes)) or "none"
        raise PairError(
            f"{asking} needs Normals of independent elements and of the same event_shape, got {got}. Use the family Normal(L), "
            "with the same L, for all."
        )
    return inner


def experts_within(
    asking: str, experts: Sequence[Any], seen: Sequence[Tensor | None] | None
) -> tuple[list[Any], list[Tensor | None]]:
    """The Normals of some experts, and for each of them where it counts; PairError unless these belong together."""
    if not isinstance(experts, Sequence):
        raise PairError(f"{asking} needs a list of experts, got {type(experts).__name__}: write [prior, expert].")
    normals = normals_within(asking, *experts)
    counts: list[Tensor | None] = [None] * len(experts) if seen is None else list(seen)
    if len(counts) != len(experts):
        raise PairError(f"{len(experts)} experts need as many entries of `seen`, got {len(counts)}.")
    for number, rows in enumerate(counts):
        if rows is not None and not isinstance(rows, Tensor):
            raise PairError(
                f"{asking} needs a tensor for each entry of `seen`, or None for an expert that counts everywhere, got "
                f"{type(rows).__name__} for expert {number}."
            )
    shapes = [tuple(d.batch_shape) for d in experts], [tuple(rows.shape) for rows in counts if rows is not None]
    try:
        broadcast_shapes(*shapes[0], *shapes[1])
    except RuntimeError as error:
        raise PairError(
            f"{asking} needs experts and entries of `seen` for the same rows, got experts of batch shapes {shapes[0]} and "
            f"entries of shapes {shapes[1]}."
        ) from error
    return normals, counts


def product_of_experts(experts: Sequence[Any], seen: Sequence[Tensor | None] | None = None) -> TorchDistribution:
    """`c prod_i N(z; m_i, diag(s_i^2))^(w_i)`, normalised: a Normal to which every expert with data adds precision.

    `1/s^2 = sum_i w_i / s_i^2` and `m/s^2 = sum_i w_i m_i / s_i^2`. One of the experts is usually the prior, which is always
    there, so that the product is a distribution where all others have seen nothing.

    Args:
        experts: Normals of independent elements, batch shape `(*batch)` and event shape `(*event)`; batch shapes broadcast.
        seen: For each expert 1 where it counts and 0 where it does not (w), `(*batch)`, boolean or numbers from 0 on; None for
            one that counts everywhere. By default all do.

    Returns:
        The Normal of independent elements, of the same event shape.

    Raises:
        PairError: There is no expert, one is not a Normal of independent elements, event shapes differ, or `seen` has another
            length, other rows, or an entry that is no tensor.

    References:
        Hinton 2002, doi:10.1162/089976602760128018. Wu and Goodman 2018, arXiv:1802.05335.

    Example:
        >>> import pyro.distributions as dist
        >>> prior, expert = (dist.Normal(m * torch.ones(3, 2), 1.0).to_event(1) for m in (0.0, 2.0))
        >>> posterior = pv.distributions.product_of_experts([prior, expert], [None, torch.tensor([True, True, False])])
        >>> posterior.mean[:, 0], posterior.variance[:, 0]
        (tensor([1., 1., 0.]), tensor([0.5000, 0.5000, 1.0000]))
    """
    inner, weights = experts_within("product_of_experts", experts, seen)
    event = experts[0].event_shape
    precision, weighted = torch.zeros(()), torch.zeros(())
    for one, weight in zip(inner, weights):
        own = one.scale.square().reciprocal()
        if weight is not None:
            own = own * weight.to(own.dtype).reshape(*weight.shape, *[1] * len(event))
        precision, weighted = precision + own, weighted + own * one.loc
    return dist.Normal(weighted / precision, precision.rsqrt()).to_event(len(event))


class observed_only(nn.Module):
    """`p(x_observed | parents)`: a likelihood that leaves out the missing (NaN) elements of a row.

    It wraps a conditional, and its forward method returns an `ObservedOnly` distribution. The encoder must accept NaN as
    well: `nets.WithMask` replaces it by zeros and adds a mask.

    Args:
        likelihood: A conditional whose elements are independent given its parents, or a mixture of such.

    Raises:
        PairError: In the forward method, if the distribution has no marginal of single elements, such as Multinomial.

    References:
        Mattei and Frellsen 2019, arXiv:1812.02633.

    Example:
        >>> net = pv.nets.WithMask(pv.nets.MLP((4, 4), fam.Normal(2).param_shape))
        >>> encoder = pv.Conditional(net, fam.Normal(2))
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.observed_only(pv.mlp(2, fam.Normal(4))), encoder)
        >>> x = torch.randn(8, 4)
        >>> x[0, :2] = float("nan")
        >>> bool(pv.Trace_ELBO()(vae, {"x": x}).elbo.isfinite())
        True
    """

    def __init__(self, likelihood: nn.Module) -> None:
        super().__init__()
        self.likelihood = likelihood

    def forward(self, *parents: Tensor, **given: Any) -> ObservedOnly:
        return ObservedOnly(self.likelihood(*parents, **given))


def residual_normal(prior: Any, delta_loc: Tensor, delta_log_scale: Tensor) -> TorchDistribution:
    """`N(z; m + d, diag(s^2 e^{2c}))`, a Normal relative to the prior `N(z; m, diag(s^2))`.

    d is `delta_loc` and `c = 5 tanh(delta_log_scale / 5)`. With deltas of 0 it is the prior itself, and its KL divergence
    from the prior is `1/2 sum [d^2 / s^2 + e^{2c} - 2c - 1]` nats: a guide follows a prior that is still being learned, and
    pays only for what it changes. The log-scale is bounded because a chain of many such Normals is unstable otherwise.

    Args:
        prior: A Normal of independent elements, batch shape `(*batch)` and event shape `(*event)`.
        delta_loc: d, shape `(*batch, *event)`.
        delta_log_scale: Any real numbers, which bounded give c, shape `(*batch, *event)`; batch shapes broadcast.

    Returns:
        A Normal of independent elements, of the prior's event shape.

    Raises:
        PairError: The prior is not a Normal of independent elements.

    References:
        Vahdat and Kautz 2020, arXiv:2007.03898, section 3.2.

    Example:
        >>> import pyro.distributions as dist
        >>> prior = dist.Normal(torch.ones(3), 2.0).to_event(1)
        >>> guide = pv.distributions.residual_normal(prior, torch.full((3,), 0.5), torch.zeros(3))
        >>> guide.mean, guide.stddev
        (tensor([1.5000, 1.5000, 1.5000]), tensor([2., 2., 2.]))
    """
    normal = prior.base_dist if isinstance(prior, dist.Independent) else prior
    if not isinstance(normal, dist.Normal):
        raise PairError(
            f"residual_normal needs a Normal prior of independent elements, got {type(normal).__name__}. "
            "Take the family Normal(L), or priors.StandardNormal(L)."
        )
    scale = normal.scale * torch.exp(5 * torch.tanh(delta_log_scale / 5))
    return dist.Normal(normal.loc + delta_loc, scale).to_event(len(prior.event_shape))

"""Combinations of densities: a likelihood of what was observed of a row; products of Normals; Normals relative to others."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import biject_to, constraints
from torch.nn import functional as F

from pyrovae.distributions.columns import EachColumn
from pyrovae.errors import PairError


class ObservedOnly(TorchDistribution):  # type: ignore[misc]  # Pyro has no types
    """log p(x_observed): elements of x that are NaN are integrated out. x: (*batch, *event).

    For independent elements that is to leave them out (Mattei & Frellsen 2019, arXiv:1812.02633), for a mixture of
    products, MixtureSameFamily, to leave them out of each component: log sum_k pi_k prod_{d observed} p_k(x_d). Missing
    elements are filled with a value inside their own support before the density is taken and left out afterwards, so
    that value and gradient are free of NaN. Draws and moments are the whole row's. Raises PairError for a density with
    no such marginal: Multinomial, MultivariateNormal, channels that depend on one another.
    """

    arg_constraints: dict[str, Any] = {}  # torch's name and form  # noqa: RUF012

    def __init__(self, whole: Any) -> None:
        if not _has_marginals(whole):
            raise PairError(
                "observed_only needs a likelihood of independent elements, as Normal(D), Columns([...]) or Bernoulli(D), "
                f"or a mixture of such, got {type(whole).__name__}: a joint density has no marginal that could be taken "
                "element by element. Take a family of independent elements (Poisson(V) for a bag of words, "
                "DiscretizedLogistic((C, H, W)) for colours), or fill or drop rows with gaps."
            )
        self.whole = whole
        super().__init__(whole.batch_shape, whole.event_shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        return _marginal(self.whole, value, ~torch.isnan(value))

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
        """Which columns of a mixed table are classes; None for what is no such table."""
        return getattr(self.whole, "labels", None)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ObservedOnly:
        return ObservedOnly(self.whole.expand(batch_shape))


def _elements(whole: Any) -> Any:
    """value -> the log-density of each element, (*batch, *event), of independent elements; None for others."""
    if not whole.event_shape:
        return whole.log_prob
    if isinstance(whole, dist.Independent) and not whole.base_dist.event_shape:
        return whole.base_dist.log_prob
    return getattr(whole, "log_prob_elements", None)


def _has_marginals(whole: Any) -> bool:
    if isinstance(whole, dist.MixtureSameFamily):
        return _has_marginals(whole.component_distribution)
    if isinstance(whole, dist.Independent) and whole.base_dist.event_shape:
        return _has_marginals(whole.base_dist)
    return _elements(whole) is not None


def _marginal(whole: Any, value: Tensor, observed: Tensor) -> Tensor:
    """log p(value where observed): (*batch)."""
    n = len(whole.event_shape)
    if isinstance(whole, dist.MixtureSameFamily) and n:
        dim = -1 - n
        inside = _marginal(whole.component_distribution, value.unsqueeze(dim), observed.unsqueeze(dim))
        return torch.logsumexp(inside + F.log_softmax(whole.mixture_distribution.logits, -1), -1)
    if isinstance(whole, dist.Independent) and whole.base_dist.event_shape:
        parts = _marginal(whole.base_dist, value, observed)
        return parts.flatten(parts.dim() - whole.reinterpreted_batch_ndims).sum(-1)
    filled = torch.where(observed, value, inside_support(whole.support, value))
    log_prob = _elements(whole)(filled)
    log_prob = torch.where(observed, log_prob, log_prob.new_zeros(()))
    return log_prob.flatten(log_prob.dim() - n).sum(-1) if n else log_prob


def inside_support(support: Any, like: Tensor) -> Tensor:
    """A value of the support, for each element of `like` or for all, at which densities are smooth."""
    while hasattr(support, "base_constraint"):  # of whole rows, and of mixtures
        support = support.base_constraint
    if isinstance(support, EachColumn):
        blocks = zip(support.blocks, like.split(support.sizes, -1))
        return torch.cat([inside_support(block, v).expand(v.shape) for block, v in blocks], -1)
    if support is constraints.real:
        return like.new_zeros(())
    if support is constraints.boolean or getattr(support, "is_discrete", False):
        low = getattr(support, "lower_bound", 0)
        return low.to(like) if isinstance(low, Tensor) else like.new_full((), low)
    return biject_to(support)(like.new_zeros(()))


def product_of_normals(a: Any, b: Any) -> TorchDistribution:
    """c N(z; m_a, diag(s_a^2)) N(z; m_b, diag(s_b^2)), normalised: precisions add, m is weighed by them. z: (*batch, *event).

    1/s^2 = 1/s_a^2 + 1/s_b^2 and m/s^2 = m_a/s_a^2 + m_b/s_b^2; batch shapes broadcast. Takes two Normals of independent
    elements and one event_shape, else PairError. Bishop 2006, *Pattern Recognition and Machine Learning*, section 2.3.6.
    """
    one, two = (d.base_dist if isinstance(d, dist.Independent) else d for d in (a, b))
    if not (isinstance(one, dist.Normal) and isinstance(two, dist.Normal) and a.event_shape == b.event_shape):
        got = " and ".join(f"{type(inner).__name__} {tuple(d.event_shape)}" for d, inner in ((a, one), (b, two)))
        raise PairError(
            f"product_of_normals needs two Normals of independent elements and one event_shape, got {got}. "
            "Take the family Normal(L), with the same L, for both."
        )
    s = torch.hypot(one.scale, two.scale)
    share = (two.scale / s).square()  # the first one's share of the precision
    loc = share * one.loc + (1 - share) * two.loc
    return dist.Normal(loc, one.scale * two.scale / s).to_event(len(a.event_shape))


class observed_only(nn.Module):
    """p(x_observed | parents) for a conditional of independent elements, or a mixture of such: NaN is left out.

    `VAE(prior, observed_only(likelihood), encoder)`, with an encoder that takes NaN: see `nets.WithMask`.
    """

    def __init__(self, likelihood: nn.Module) -> None:
        super().__init__()
        self.likelihood = likelihood

    def forward(self, *parents: Tensor, **given: Any) -> ObservedOnly:
        return ObservedOnly(self.likelihood(*parents, **given))


def residual_normal(prior: Any, delta_loc: Tensor, delta_log_scale: Tensor) -> TorchDistribution:
    """N(z; m + d, diag(s^2 e^{2c})) relative to a prior N(z; m, diag(s^2)): d = delta_loc, c = 5 tanh(delta_log_scale / 5).

    Both deltas and z: (*batch, *event), batch shapes broadcast. With deltas of 0 it is the prior, and KL to it is
    1/2 sum [d^2 / s^2 + e^{2c} - 2c - 1] nats: where a guide says nothing, it follows the prior, which may move. The log-scale
    is bounded, since a chain of many such Normals is unstable otherwise. Raises PairError unless the prior is a Normal of
    independent elements. Vahdat & Kautz 2020, arXiv:2007.03898, section 3.2.
    """
    normal = prior.base_dist if isinstance(prior, dist.Independent) else prior
    if not isinstance(normal, dist.Normal):
        raise PairError(
            f"residual_normal needs a Normal prior of independent elements, got {type(normal).__name__}. "
            "Take the family Normal(L), or priors.StandardNormal(L)."
        )
    scale = normal.scale * torch.exp(5 * torch.tanh(delta_log_scale / 5))
    return dist.Normal(normal.loc + delta_loc, scale).to_event(len(prior.event_shape))

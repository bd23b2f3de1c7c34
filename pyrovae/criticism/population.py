"""Population Monte Carlo: log p of rows whose posterior is far from a Normal, by proposals that are adapted in rounds.

Each round draws from a mixture, and what it finds shapes the mixture of the next. Only the draws of the last round are weighed:
they had no part in shaping the mixture that they come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.criticism.averages import effective_sample_size, log_mean
from pyrovae.criticism.proposals import lower_factor
from pyrovae.criticism.psis import k_hat_threshold, pareto_k
from pyrovae.criticism.refined import FREEDOM, widening

ROUND_DRAWS = 400
CENTRES = 0.5  # kernels for each draw of a round
ROUNDS = 8  # at most
# Of the draws of a round: first guess, kernels at starts, one t distribution, other kernels.
SHARES = (0.05, 0.05, 0.3, 0.6)
LEAST = 30.0  # draws in effect of which a mixture is made
ENOUGH = 0.25  # draws in effect for each draw, with which the next round is the last
HALVINGS = 12  # in the search for a temper


@dataclass(frozen=True)
class Kernels:
    """An equal mixture of J multivariate t distributions of one scale, for each of M rows."""

    centres: Tensor  # (J, M, d)
    scale_tril: Tensor  # (M, d, d)

    def rows(self, index: Tensor) -> Kernels:
        """The same for some of the rows."""
        return Kernels(self.centres[:, index], self.scale_tril[index])

    def sample(self, num: int) -> Tensor:
        """Draws of u, `(num, M, d)`."""
        count, rows, d = self.centres.shape
        picked = torch.randint(count, (num, rows, 1), device=self.centres.device)
        chi2 = 2 * torch._standard_gamma(self.centres.new_full((num, rows, 1), FREEDOM / 2))
        noise = torch.randn_like(self.centres[:1].expand(num, -1, -1)) * (FREEDOM / chi2).sqrt()
        near = torch.einsum("nij,knj->kni", self.scale_tril, noise)
        return self.centres.gather(0, picked.expand(-1, -1, d)) + near

    def log_prob(self, u: Tensor) -> Tensor:
        """The log-density at u, `(K, M)`."""
        d = u.shape[-1]
        origin = self.centres.mean(0)
        points, centres = (_in_units(self.scale_tril, at - origin) for at in (u, self.centres))  # (M, K, d), (M, J, d)
        squared = torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist").square()
        constant = math.lgamma((FREEDOM + d) / 2) - math.lgamma(FREEDOM / 2) - d / 2 * math.log(FREEDOM * math.pi)
        each = constant - (FREEDOM + d) / 2 * torch.log1p(squared / FREEDOM)
        log_det = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return each.logsumexp(-1).T - math.log(len(self.centres)) - log_det


@dataclass(frozen=True)
class Estimated:
    """Estimates of log p of M rows, `(M,)` float64 each: the number, its standard error, draws in effect, and k-hat.

    And the draws that they rest on, those of each row's last round, `(K, M, d)`, and the log-weights of these, `(K, M)`.
    """

    log_p: Tensor
    error: Tensor
    ess: Tensor
    k_hat: Tensor
    u: Tensor
    log_w: Tensor

    @classmethod
    def from_weights(cls, u: Tensor, log_w: Tensor) -> Estimated:
        """The estimates from draws and their log-weights."""
        log_p, error, ess = log_mean(log_w.double())
        return cls(log_p.cpu(), error.cpu(), ess.cpu(), pareto_k(log_w), u, log_w)

    def rows(self, index: Tensor) -> Estimated:
        """Those of some rows, by their numbers or as bools."""
        at = index.cpu()
        numbers = (self.log_p[at], self.error[at], self.ess[at], self.k_hat[at])
        return Estimated(*numbers, self.u[:, index], self.log_w[:, index])

    def put(self, index: Tensor, new: Estimated) -> Estimated:
        """The same with new estimates of the rows with these numbers."""
        at = index.cpu()
        for name in ("log_p", "error", "ess", "k_hat"):
            getattr(self, name)[at] = getattr(new, name)
        self.u[:, index], self.log_w[:, index] = new.u, new.log_w
        return self

    def suffice(self, ess: float) -> Tensor:
        """Whether as many draws are in effect, and k-hat says nothing against it, `(M,)`."""
        return (self.ess >= ess) & ~(self.k_hat > k_hat_threshold(len(self.log_w)))

    @classmethod
    def of(cls, parts: Sequence[Estimated]) -> Estimated:
        """The estimates of the rows of several parts."""
        return cls(
            log_p=torch.cat([one.log_p for one in parts]),
            error=torch.cat([one.error for one in parts]),
            ess=torch.cat([one.ess for one in parts]),
            k_hat=torch.cat([one.k_hat for one in parts]),
            u=torch.cat([one.u for one in parts], 1),
            log_w=torch.cat([one.log_w for one in parts], 1),
        )


LogJoint = Callable[[Tensor, Tensor], Tensor]


def population_monte_carlo(
    log_joint: LogJoint,
    whole: Kernels,
    starts: Tensor,
    scale: Tensor,
    draws: int,
    first: tuple[Tensor, Tensor] | None = None,
) -> Estimated:
    """Estimate `log p = log ∫ p(u) du` of each of M rows, by importance sampling from a mixture that is adapted in rounds.

    Each round draws from a share of a mixture that stays as it is, of `whole` and of kernels around some of the `starts`; a t
    distribution with mean and covariance of all draws so far, and of the starts; and a mixture of kernels, t distributions
    around some of these. They count with their weights, those of starts by the density of the kernels around them, to a power
    of at most 1 by which at least `LEAST` are in effect, so that a lucky one does not take all.

    A kernel has the width of `scale` in directions in which the draws are spread more widely, and their own width in others;
    centres are drawn towards the mean, so that the mixture has the covariance of the draws. If p(u) is itself a mixture, over
    values of an unknown number, of distributions of about that scale, as the posterior without one entry is a mixture of
    posteriors over values of the entry, then such kernels have its shape.

    Args:
        log_joint: log p(u) at u, `(K, m, d)`, of the m rows with the numbers `(m,)`: `(K, m)`.
        whole: A first guess.
        starts: Where p(u) may be, `(J, M, d)`.
        scale: S, `(M, d, d)`, lower triangular.
        draws: K, for each round.
        first: Draws that there are, `(L, M, d)`, and their log-weights, `(L, M)`, from which the first round learns in place of
            the starts.

    Returns:
        The estimates, from the draws of each row's last round. A mode that no start and no draw came near is missed, and no
        diagnostic tells.

    References:
        Cappé, Guillin, Marin & Robert 2004, *Population Monte Carlo*, Journal of Computational and Graphical Statistics 13.
        West 1993, *Approximating posterior distributions by mixtures*, Journal of the Royal Statistical Society B 55 (kernels
        that keep the covariance). Koblents & Míguez 2015, *A population Monte Carlo scheme with transformed weights*,
        Statistics and Computing 25.
    """
    rows = len(scale)
    index, last = torch.arange(rows, device=scale.device), torch.zeros(rows, dtype=torch.bool, device=scale.device)
    count = max(1, int(CENTRES * draws))
    near = Kernels(starts[:: max(1, len(starts) // count)], whole.scale_tril)
    if first is None:
        log_q = torch.cat([near.log_prob(some) for some in starts.split(draws)])
        first = starts, weights_of(log_joint(starts, index), log_q)
    u, log_w = first
    held: Estimated | None = None
    for _ in range(ROUNDS):
        parts = (whole.rows(index), near.rows(index), *adapted_kernels(u, log_w, scale[index], count))
        here = list(zip(SHARES, parts))
        drawn, log_q = drawn_from(here, draws)
        weights = weights_of(log_joint(drawn, index), log_q)
        found = Estimated.from_weights(drawn, weights)
        held = found if held is None else held.put(index, found)  # the first round has all rows
        kept = (~last).nonzero().flatten()
        good = found.suffice(ENOUGH * len(weights)).to(index.device)
        index, last = index[kept], good[kept]
        if not len(kept):
            break
        u, log_w = torch.cat([u, drawn])[:, kept], torch.cat([log_w, weights])[:, kept]
    assert held is not None
    return held


def adapted_kernels(u: Tensor, log_w: Tensor, scale: Tensor, count: int) -> tuple[Kernels, Kernels]:
    """One t distribution, and so many kernels, from draws `(K, M, d)` with log-weights `(K, M)`."""
    weights, ess = _tempered(log_w)
    d, origin = u.shape[-1], torch.einsum("km,kmi->mi", weights, u)
    places = ((torch.rand(u.shape[1], 1, device=u.device) + torch.arange(count, device=u.device)) / count).to(u.dtype)
    picked = torch.searchsorted(weights.cumsum(0).T.contiguous(), places).clamp_max(len(u) - 1).T
    centred = _in_units(scale, u - origin)  # (M, K, d)
    covariance = torch.einsum("km,mki,mkj->mij", weights, centred, centred)
    # of few draws, a covariance of many dimensions is known badly: that of `scale` counts as d of them
    share = (ess / (ess + d)).to(u.dtype)[:, None, None]
    covariance = share * covariance + (1 - share) * torch.eye(d, dtype=u.dtype, device=u.device)
    values, vectors = torch.linalg.eigh((covariance + covariance.mT) / 2)
    values = values.clamp_min(1e-2)
    one = lower_factor(scale @ vectors * values.sqrt()[:, None])
    width = values.clamp_max(1.0)
    kernel = lower_factor(scale @ vectors * width.sqrt()[:, None])
    some = centred.gather(1, picked.T[..., None].expand(-1, -1, d))
    drawn_in = (some @ vectors * (1 - width / values).clamp_min(0.0).sqrt()[:, None]) @ vectors.mT
    centres = origin + torch.einsum("mij,mkj->kmi", scale, drawn_in)
    return Kernels(origin[None], widening(d) * one), Kernels(centres, kernel)


def drawn_from(mixture: Sequence[tuple[float, Kernels]], num: int) -> tuple[Tensor, Tensor]:
    """Draws, `(K, M, d)`, of which each part has its share, and at least one, and the log-density of the mixture there."""
    counts = [max(1, round(share * num)) for share, _ in mixture[:-1]]
    counts.append(max(1, num - sum(counts)))
    u, total = torch.cat([part.sample(count) for count, (_, part) in zip(counts, mixture)]), sum(counts)
    return u, torch.stack([part.log_prob(u) + math.log(n / total) for n, (_, part) in zip(counts, mixture)]).logsumexp(
        0
    )


def weights_of(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Log-weights of draws, of 0 where a density is none."""
    return (log_p - log_q).nan_to_num(-math.inf, posinf=-math.inf, neginf=-math.inf)


def _tempered(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """Weights `(K, M)` that add up to 1, to a power of at most 1 by which `LEAST` draws are in effect; and how many are."""
    log_w = torch.where(torch.isfinite(log_w.amax(0)), log_w, 0.0)
    least = min(LEAST, len(log_w) / 2)
    power = torch.ones_like(log_w[0])
    ess = effective_sample_size(log_w.double())
    poor = (ess < least).nonzero().flatten()
    if len(poor):
        some = log_w[:, poor].double()
        low, high = torch.zeros_like(some[0]), torch.ones_like(some[0])
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            enough = effective_sample_size(middle * some) >= least
            low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
        power[poor] = low.to(power.dtype).clamp_min(1e-3)
    tempered = power * log_w
    return tempered.softmax(0), effective_sample_size(tempered.double())


def _in_units(scale: Tensor, u: Tensor) -> Tensor:
    """`S^-1 u` for u, `(K, M, d)`: `(M, K, d)`."""
    return torch.linalg.solve_triangular(scale, u.permute(1, 2, 0), upper=False).mT

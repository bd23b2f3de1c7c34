"""How much of a row's log p(x) the guide loses, and why: `refine`, the gaps of amortisation and approximation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae._arguments import as_count
from pyrovae._html import Told
from pyrovae.batching.checks import check_rows
from pyrovae.batching.memory import halving
from pyrovae.criticism.averages import log_mean, of_mean, over_rows
from pyrovae.criticism.coordinates import NotRefinable
from pyrovae.criticism.importance import tell_undefined
from pyrovae.criticism.proposals import adapted, pieces
from pyrovae.criticism.psis import pareto_k
from pyrovae.criticism.refined import DRAWS, Refined, log_joint, run_at, widening
from pyrovae.errors import PairError
from pyrovae.fitted.fitted import Fit, FittedGroup, in_order, seeded
from pyrovae.fitted.runs import particles_at_once
from pyrovae.objectives.terms import terms
from pyrovae.objectives.weights import row_bounds
from pyrovae.pair.batch import Batch, num_rows, take_rows
from pyrovae.pair.checks import check_particles
from pyrovae.pair.layout import Layout
from pyrovae.pair.parameters import fork_rng


@dataclass(frozen=True, repr=False)
class Refinement(Told):
    """The guide of N rows beside a q that was fitted to each row by itself. Tensors are `(N,)` float64, on the CPU, in nats.

    Attributes:
        elbo: The guide's ELBO, averaged over its draws.
        refined_elbo: The ELBO of the refined q, averaged over fresh draws of it.
        log_likelihood: log p(x) by importance sampling from a t distribution around the refined q.
        elbo_error: The standard error of `elbo`.
        refined_elbo_error: The standard error of `refined_elbo`.
        standard_error: The standard error of `log_likelihood`, by the delta method.
        k_hat: The diagnostic of `log_likelihood`, see `pv.importance`.
        mean: The posterior mean of each continuous latent site, `(N, *event)` by name.
        sd: The posterior standard deviation of each, in the same form.
        num_samples: The number K of draws for each of the three.

    References:
        Cremer, Li & Duvenaud 2018, *Inference suboptimality in variational autoencoders*, arXiv:1801.03558.

    Example:
        >>> zeros = torch.zeros(3, dtype=torch.float64)
        >>> errors = (zeros + 0.1, zeros + 0.1, zeros)
        >>> found = pv.Refinement(zeros - 88, zeros - 85, zeros - 84.5, *errors, zeros, {}, {}, num_samples=1000)
        >>> found.amortisation_gap[0].item(), found.approximation_gap[0].item()
        (3.0, 0.5)
    """

    elbo: Tensor
    refined_elbo: Tensor
    log_likelihood: Tensor
    elbo_error: Tensor
    refined_elbo_error: Tensor
    standard_error: Tensor
    k_hat: Tensor
    mean: dict[str, Tensor]
    sd: dict[str, Tensor]
    num_samples: int

    @property
    def amortisation_gap(self) -> Tensor:
        """`refined_elbo - elbo`, `(N,)`: what the guide loses since it predicts q from x instead of fitting it to the row."""
        return self.refined_elbo - self.elbo

    @property
    def amortisation_gap_error(self) -> Tensor:
        """The standard error of `amortisation_gap`, `(N,)`."""
        return (self.elbo_error.square() + self.refined_elbo_error.square()).sqrt()

    @property
    def approximation_gap(self) -> Tensor:
        """`log_likelihood - refined_elbo`, `(N,)`: what even the best q of the family loses. It may be negative by noise."""
        return self.log_likelihood - self.refined_elbo

    @property
    def approximation_gap_error(self) -> Tensor:
        """The standard error of `approximation_gap`, `(N,)`."""
        return (self.standard_error.square() + self.refined_elbo_error.square()).sqrt()

    def summary(self) -> dict[str, float]:
        """Means over the rows whose density is defined, by name.

        Returns:
            The means of `elbo`, `refined_elbo`, `log_likelihood`, `amortisation_gap` and `approximation_gap`. Those of the gaps
            have a standard error of the mean over rows, sd / sqrt(N), as `amortisation_gap_se`, and the part of it that more
            draws would remove, as `amortisation_gap_monte_carlo_se`.
        """
        defined = ~self.elbo.isnan()
        bounds = {"elbo": self.elbo, "refined_elbo": self.refined_elbo, "log_likelihood": self.log_likelihood}
        found = {name: values[defined].mean().item() for name, values in bounds.items()}
        for name in ("amortisation_gap", "approximation_gap"):
            gap, error = getattr(self, name)[defined], getattr(self, f"{name}_error")[defined]
            found |= {name: gap.mean().item(), f"{name}_se": over_rows(gap), f"{name}_monte_carlo_se": of_mean(error)}
        return found

    def _told(self) -> tuple[Any, ...]:
        title = f"The guide of {len(self.elbo)} rows and a q refined for each, {self.num_samples} draws; nats per row"
        return (title, ("mean over rows", "value"), self.summary().items())


@halving
def refine(fitted: Fit, data: Any, num_samples: int = 1000, *, seed: int | None = None) -> Refinement:
    """Improve q for each row by itself, and split what the guide loses into amortisation and approximation.

    `log p(x) - ELBO = [log p(x) - ELBO(q*)] + [ELBO(q*) - ELBO(q)]`, where q is the guide and q* a Normal with full covariance
    of all continuous latent sites of the row together, without constraints (of up to 256 dimensions; with more, sites are
    independent of one another), which starts at the guide's moments and takes gradient steps on the row's own ELBO. Where the
    guide draws Normal sites given others, q* is a Normal of the noise of these draws, see `pv.importance`. The first bracket is
    the approximation gap, of the family of q*; the second is the amortisation gap. It is small on training rows; on others, it
    tells how far the encoder generalises. It may be negative where the guide's family is richer than q*.

    All numbers come from fresh draws, not from those by which q* was fitted. Where the guide draws for each value of a class,
    q* has a Normal for each, and the best probabilities of the values; other enumerated sites are summed out. Global latent
    sites are drawn from the guide.

    Args:
        fitted: The fitted pair.
        data: The rows, as for `pv.fit`. The transform of the fit is applied once, with a fixed seed.
        num_samples: The number K of draws for each row: of the guide, of q*, and for log p(x).
        seed: The seed of the draws; None continues torch's random state.

    Returns:
        Bounds, gaps and posterior moments of each row, see `Refinement`. A row whose density is undefined, as of values so
        large that it overflows, has NaN for its bounds and gaps, and a warning tells how many there are.

    Raises:
        OptionError: `num_samples` is less than 2.
        DataError: Values are outside the support of the likelihood, or missing where it does not allow that.
        PairError: A row has a latent site that is neither continuous nor enumerated, or one in a plate beside "data"; or the
            pair does not keep several particles of a row apart.

    References:
        Cremer, Li & Duvenaud 2018, arXiv:1801.03558. Kim, Wiseman, Miller, Sontag & Rush 2018, arXiv:1802.02550 (from the
        guide's q by gradient steps).

    Example:
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6)), pv.mlp(6, fam.Normal(2)))
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> fitted = pv.fit(vae, x, epochs=1, engine="eager", progress=False)
        >>> found = pv.refine(fitted, x, num_samples=100, seed=0)
        >>> bool((found.amortisation_gap > -4 * found.amortisation_gap_error).all()), found.mean["z"].shape
        (True, torch.Size([40, 2]))
    """
    num_samples = as_count("num_samples", num_samples, least=2)
    with fitted.scope(), seeded(seed):
        parts = fitted.parts(data)
        for part in parts:
            check_rows(fitted.pair, part.batch, fitted.chunk_size(part.batch), strict=False, numbers=part.rows)
        found = [_refined(fitted, part, num_samples) for part in parts]
    columns = in_order(parts, [torch.stack(columns) for columns, _, _ in found], 1)
    undefined = (columns[2] - columns[0]).isnan()  # the difference of the two bounds
    numbers = columns.masked_fill(undefined, math.nan).unbind(0)
    mean, sd = _by_site(parts, [mean for _, mean, _ in found]), _by_site(parts, [sd for _, _, sd in found])
    tell_undefined(numbers[0])
    elbo, elbo_error, refined, refined_error, log_p, error, k_hat = numbers
    return Refinement(elbo, refined, log_p, elbo_error, refined_error, error, k_hat, mean, sd, num_samples)


Moments = dict[str, Tensor]


def _refined(fitted: Fit, part: FittedGroup, num_samples: int) -> tuple[list[Tensor], Moments, Moments]:
    """The columns of `Refinement` and the posterior moments, for rows that have the same arguments."""
    with fork_rng():
        check_particles(fitted.pair, take_rows(part.batch, slice(0, 3)), part.layout)
    at_once = particles_at_once(fitted, part.batch, part.layout, max(num_samples, DRAWS))
    columns: list[list[Tensor]] = []
    means: list[Moments] = []
    sds: list[Moments] = []
    try:
        for rows, q in adapted(fitted, part.batch, part.layout, num_samples, at_once, "refined"):
            run = _Rows(fitted, part.layout, rows, q, pieces(num_samples, at_once))
            log_w, mean, sd = run.weigh()
            log_p, error, _ = log_mean(log_w)
            columns.append([*run.guides_bound(), *run.bound(), log_p, error, pareto_k(log_w)])
            means.append(mean)
            sds.append(sd)
    except NotRefinable as error:
        raise PairError(
            f"Only a q of continuous latent sites can be refined for a row: {error}. Estimate log p(x) with "
            'pv.importance(..., proposal="guide").'
        ) from error
    joined = [torch.cat([value.cpu() for value in column]) for column in zip(*columns)]
    return joined, _joined(means), _joined(sds)


def _joined(blocks: Sequence[Moments]) -> Moments:
    return {name: torch.cat([one[name] for one in blocks]) for name in blocks[0]}


@dataclass(frozen=True)
class _Rows:
    """A block of n rows with the q of each, and how many draws each run of it takes."""

    fitted: Fit
    layout: Layout
    rows: Batch
    q: Refined
    runs: Sequence[int]

    def guides_bound(self) -> tuple[Tensor, Tensor]:
        """The guide's ELBO and its standard error, `(n,)` each."""
        found = [row_bounds(terms(self.fitted.pair, self.rows, k, layout=self.layout)) for k in self.runs]
        bounds = torch.cat(found).double()
        return bounds.mean(0), bounds.std(0) / math.sqrt(len(bounds))

    def bound(self) -> tuple[Tensor, Tensor]:
        """The ELBO of the Normal, not of the t distribution that is wider, and its standard error, `(n,)` each."""
        d = self.q.coordinates.size
        scale = self.q.scale_tril / widening(d)
        constant = d / 2 * math.log(2 * math.pi) + scale.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        draws = []
        for k in self.runs:
            noise = torch.randn(k, *self.q.loc.shape, dtype=scale.dtype, device=scale.device)
            u = self.q.loc + torch.einsum("nij,knj->kni", scale, noise)
            draws.append(self._by_class(self._log_joint(u) + noise.square().sum(-1) / 2 + constant))
        each = torch.cat(draws).double()
        by_class = each.mean(0)  # with the best probabilities of C classes, the bound is log sum_c exp(ELBO_c)
        weighed = (by_class.softmax(0) * each.nan_to_num(neginf=0.0)).sum(1)
        return by_class.logsumexp(0), weighed.std(0) / math.sqrt(len(weighed))

    def weigh(self) -> tuple[Tensor, Moments, Moments]:
        """Log-weights `(K, n)` of draws of the t distribution, and by them the posterior mean and sd of each site."""
        draws: list[tuple[Tensor, dict[str, Tensor]]] = []
        for k in self.runs:
            u = self.q.sample(k)
            found, log_p = run_at(self.fitted.pair, self.rows, self.layout, self.q.coordinates, u)
            log_w = self._by_class(log_p - self.q.log_prob(u)).double()
            values = self.q.coordinates.values(found)
            draws.append((log_w, {name: self._by_class(value).double() for name, value in values.items()}))
        log_w = torch.cat([weights for weights, _ in draws])  # (K, C, n)
        share = log_w.flatten(0, 1).softmax(0)
        mean, sd = {}, {}
        for name in draws[0][1]:
            value = torch.cat([values[name] for _, values in draws]).flatten(0, 1)
            w = share.reshape(*share.shape, *(1 for _ in value.shape[2:]))
            mean[name] = (w * value).sum(0).cpu()
            sd[name] = (w * (value - (w * value).sum(0)).square()).sum(0).sqrt().cpu()
        return log_w.logsumexp(1), mean, sd

    def _log_joint(self, u: Tensor) -> Tensor:
        return log_joint(self.fitted.pair, self.rows, self.layout, self.q.coordinates, u)

    def _by_class(self, value: Tensor) -> Tensor:
        """`(K, M, ...)` as `(K, C, n, ...)`."""
        return value.unflatten(1, (-1, num_rows(self.rows)))


def _by_site(parts: Sequence[FittedGroup], found: Sequence[Moments]) -> Moments:
    """The moments of all parts in the order of the data; NaN in rows that do not have the site."""
    like = {name: value for one in found for name, value in one.items()}
    return {
        name: in_order(
            list(parts),
            [
                one[name] if name in one else value.new_full((len(part.rows), *value.shape[1:]), math.nan)
                for part, one in zip(parts, found)
            ],
        )
        for name, value in like.items()
    }

"""Importance sampling: estimates of log p(x) of each row, and how reliable they are."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae._arguments import as_count
from pyrovae._html import Told
from pyrovae.batching.checks import check_rows
from pyrovae.batching.memory import halving
from pyrovae.criticism.averages import log_mean, of_mean, over_rows
from pyrovae.criticism.proposals import check_proposal, usable
from pyrovae.criticism.psis import k_hat_threshold, pareto_k
from pyrovae.criticism.weighing import refined_blocks
from pyrovae.engine.compiled import CompiledFunction
from pyrovae.errors import NotFiniteError, counted
from pyrovae.fitted.fitted import Fit, seeded
from pyrovae.fitted.runs import particles_at_once
from pyrovae.objectives.terms import Terms, terms
from pyrovae.objectives.weights import log_weights, row_bounds
from pyrovae.pair.batch import Batch, num_rows, take_rows
from pyrovae.pair.common import are_common, start_rows
from pyrovae.pair.layout import Layout

# The most log-weights that are in memory at once: those of all particles of a block of rows.
WEIGHT_ELEMENTS = 2**24
# The number of equal runs from which tracing one, which takes about 0.2 s, pays off.
TRACE_FROM = 100


@dataclass(frozen=True, repr=False)
class Importance(Told):
    """Estimates for N rows by importance sampling, with weights `w_k = p(x, z_k) / r(z_k | x)` of K draws from a proposal r.

    A site y that is enumerated has no draws: the weights sum over it, `w_k = sum_y p(x, y, z_k) / r(z_k | x)`.
    All tensors are `(N,)`, float64, on the CPU; NaN for a row whose density is undefined, since those of draws overflow.

    Attributes:
        log_likelihood: The estimate `log (1/K) sum_k w_k` of log p(x), in nats. Its expectation is at most log p(x).
        standard_error: The Monte Carlo standard error of `log_likelihood`, in nats, by the delta method; NaN for K = 1.
        elbo: The ELBO of the row under the guide in nats, averaged over draws of the guide (a tenth of K, and at least 20 or
            K, with a refined proposal); a site enumerated in the guide is averaged over q(y | x).
        ess: The effective sample size `(sum_k w_k)^2 / sum_k w_k^2`, from 1 to K (0 if all weights are zero).
        k_hat: The estimated shape of the weights' tail. Above `pv.k_hat_threshold(K)` the estimate cannot be trusted, and is
            too low by more than it says; NaN for K < 25.
        num_samples: K.
        proposal: What the draws are of: "refined", "laplace" or "guide".
        factors: The names of factors of rows (`pyro.factor`), whose numbers are part of `log_likelihood` and `elbo`. These are
            about log p(x) only if the factors are log-densities of the rows, and no penalties.

    References:
        Burda, Grosse & Salakhutdinov 2016, arXiv:1509.00519. Vehtari, Simpson, Gelman, Yao & Gabry 2024, arXiv:1507.02646.

    Example:
        >>> zeros = torch.zeros(3, dtype=torch.float64)
        >>> found = pv.Importance(zeros - 80, zeros, zeros - 85, zeros + 400, zeros + 0.5, num_samples=1000)
        >>> found.summary()["log_likelihood"], found.summary()["k_hat_above_threshold"]
        (-80.0, 0.0)
    """

    log_likelihood: Tensor
    standard_error: Tensor
    elbo: Tensor
    ess: Tensor
    k_hat: Tensor
    num_samples: int
    proposal: str = "guide"
    factors: tuple[str, ...] = ()

    def summary(self) -> dict[str, float]:
        """Means over the rows whose density is defined, by name.

        Returns:
            The means of `elbo`, `log_likelihood` and `ess`; `elbo_se` and `log_likelihood_se`, the standard errors of these
            means over rows, sd / sqrt(N); `log_likelihood_mc_se`, the Monte Carlo standard error of the mean of
            `log_likelihood` over these rows; `k_hat_above_threshold`, the share of rows whose k-hat is above
            `k_hat_threshold`, see `pv.k_hat_threshold`; and `undefined_rows`, the number of rows that are left out.
        """
        defined = ~self.log_likelihood.isnan()
        log_p, elbo, ess = self.log_likelihood[defined], self.elbo[defined], self.ess[defined]
        k_hat = self.k_hat[defined]
        threshold = k_hat_threshold(self.num_samples)
        return {
            "elbo": elbo.mean().item(),
            "elbo_se": over_rows(elbo),
            "log_likelihood": log_p.mean().item(),
            "log_likelihood_se": over_rows(log_p),
            "log_likelihood_mc_se": of_mean(self.standard_error[defined]),
            "k_hat_threshold": threshold,
            "k_hat_above_threshold": (
                (k_hat > threshold).double().mean().item() if self.num_samples >= 25 else float("nan")
            ),
            "ess": ess.mean().item(),
            "undefined_rows": len(self.log_likelihood) - len(log_p),
        }

    def _told(self) -> tuple[Any, ...]:
        title = f"Importance sampling of {counted(len(self.elbo), 'row')}, {self.num_samples} draws each; nats per row"
        if self.factors:
            title += f", with the factors {', '.join(map(repr, self.factors))}, so of log p(x) only if they are part of p(x, z)"
        return (title, ("mean over rows", "value"), self.summary().items())


@halving
def importance(
    fitted: Fit, data: Any, num_samples: int = 1000, *, proposal: str = "refined", seed: int | None = None
) -> Importance:
    """Estimate log p(x) of each row by importance sampling, and how reliable the estimate is.

    The estimate is `log (1/K) sum_k p(x, z_k) / r(z_k)` with `z_k ~ r`. A guide is often displaced on rows that it was not
    trained on, so r is refined for each row: a Normal of all continuous latent sites of the row together, without constraints
    and with a full covariance (of up to 256 dimensions), is moved from the guide's moments by 100 gradient steps on the row's
    own ELBO, or some hundreds where these lead far (in more than 20 dimensions, from Laplace's approximation by some rounds of
    Newton's method, and by gradient steps where these fail); then r is a mixture of a t distribution around it, of the guide (a
    tenth of the draws) and, where entries of rows may be missing, of the prior (another tenth). The t distribution has 5
    degrees of freedom, or half as many as there are dimensions, if that is more. The draws that are weighed are not those that
    shaped r. Where the guide draws the latent sites for each class of an enumerated site, r is refined for each class. Where it
    draws a Normal site whose location or scale depends on other draws, as in a hierarchy, and not as its prior does, the Normal
    that is refined is one of the noise e of such draws, `z = m(z above, x) + s(z above, x) e`, and not of their values.

    Densities count once, whatever `poutine.scale` says. The number of a `pyro.factor` of a row is added to log p(x, z), as if
    it were a likelihood; where it is a penalty, the estimate is of the unnormalised integral, see `Importance.factors`.

    Latent sites of a row are integrated out; global latent sites are drawn from the guide, so that the estimate of a row is
    its log predictive density. For a row with a known label y, it is log p(x, y).

    Rows and draws are processed in chunks, so that memory does not grow with N, and hardly with K. If the pair does not
    treat several particles in one run correctly, they are run one by one, with a warning.

    Args:
        fitted: The fitted pair.
        data: The rows, as for `pv.fit`. The transform of the fit is applied once, with a fixed seed.
        num_samples: The number K of draws for each row.
        proposal: "refined"; "laplace", a t distribution around a mode of the row's posterior, by its curvature there, which
            takes less time and is less reliable; or "guide", which takes least and often is a lower bound only. Where a row
            has latent sites that are neither continuous nor summed out, the guide is used, with a warning. Where all draws of
            the guide are one, as of a `VQVAE`, the estimate is the ELBO, a lower bound, whatever its standard error says.
        seed: The seed of the draws; None continues torch's random state.

    Returns:
        The estimates for each row, see `Importance`. The ELBO is always that of the guide. A row whose density is undefined, as
        of values so large that it overflows, has NaN, and a warning tells how many there are.

    Raises:
        OptionError: `num_samples` is less than 1, or the proposal is not known.
        DataError: Values are outside the support of the likelihood, or missing where it does not allow that.

    References:
        Burda, Grosse & Salakhutdinov 2016, arXiv:1509.00519 (the estimate). Cremer, Li & Duvenaud 2018, arXiv:1801.03558
        (inference that is refined for each row). Vehtari, Simpson, Gelman, Yao & Gabry 2024,
        arXiv:1507.02646 (k-hat).

    Example:
        >>> vae = pv.VAE(
        ...     prior=pv.priors.StandardNormal(2),
        ...     likelihood=pv.mlp(2, fam.Bernoulli(6), hidden=(8,)),
        ...     encoder=pv.mlp(6, fam.Normal(2), hidden=(8,)),
        ... )
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> fitted = pv.fit(vae, x, epochs=1, engine="eager", progress=False)
        >>> found = pv.importance(fitted, x, num_samples=100, seed=0)
        >>> found.log_likelihood.shape, bool((found.log_likelihood.mean() >= found.elbo.mean()))
        (torch.Size([40]), True)
        >>> found.proposal, found.summary()["k_hat_above_threshold"] < 0.1
        ('refined', True)
    """
    found = silently(fitted, data, num_samples, proposal, seed)
    tell_undefined(found.log_likelihood)
    return found


def silently(fitted: Fit, data: Any, num_samples: int, proposal: str, seed: int | None) -> Importance:
    """`importance`, without a word about rows whose density is undefined: for those who say it themselves, or cannot go on."""
    blocks, used = [], "guide"
    for rows, log_w, bounds, source in _weights(fitted, data, num_samples, seed, proposal, bounds=True):
        used = source if used == "guide" else used
        undefined = log_w.isnan().any(0)
        log_w = log_w.masked_fill(undefined, 0.0)  # else such a row would have an effective size of 0, instead of none
        log_p, error, ess = log_mean(log_w.double())
        found = (log_p, error, bounds.double().mean(0), ess, pareto_k(log_w))
        blocks.append((rows, *(column.masked_fill(undefined, math.nan) for column in found)))
    log_p, error, elbo, ess, k_hat = _in_row_order(blocks)
    return Importance(log_p, error, elbo, ess, k_hat, num_samples, used, factors_of(fitted))


def factors_of(fitted: Fit) -> tuple[str, ...]:
    """The names of the factors of rows, which `log_weights` adds to log p(x, z) as if they were likelihoods."""
    sites = (site for layout in fitted.layouts for site in layout.sites)
    return tuple(dict.fromkeys(s.name for s in sites if s.is_factor and s.local and not s.objective_only))


@halving
def log_likelihood(
    fitted: Fit, data: Any, num_samples: int = 1000, *, proposal: str = "refined", seed: int | None = None
) -> Tensor:
    """Estimate log p(x) of each row by importance sampling: `pv.importance` without its diagnostics, from the same draws.

    Args:
        fitted: The fitted pair.
        data: The rows, as for `pv.fit`. The transform of the fit is applied once, with a fixed seed.
        num_samples: The number K of draws for each row.
        proposal: "refined", "laplace" or "guide", as for `pv.importance`.
        seed: The seed of the draws; None continues torch's random state.

    Returns:
        The estimate for each row in nats, `(N,)` float64, on the CPU; NaN, with a warning, as for `pv.importance`.

    Raises:
        OptionError: `num_samples` is less than 1.
        DataError: Values are outside the support of the likelihood, or missing where it does not allow that.

    References:
        Burda, Grosse & Salakhutdinov 2016, arXiv:1509.00519.

    Example:
        >>> vae = pv.VAE(
        ...     prior=pv.priors.StandardNormal(2),
        ...     likelihood=pv.mlp(2, fam.Bernoulli(6), hidden=(8,)),
        ...     encoder=pv.mlp(6, fam.Normal(2), hidden=(8,)),
        ... )
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> fitted = pv.fit(vae, x, epochs=1, engine="eager", progress=False)
        >>> pv.log_likelihood(fitted, x, num_samples=100, seed=0).shape
        torch.Size([40])
    """
    blocks = [
        (rows, torch.logsumexp(log_w.double(), 0))
        for rows, log_w, *_ in _weights(fitted, data, num_samples, seed, proposal)
    ]
    (total,) = _in_row_order(blocks)
    tell_undefined(total)
    return total - math.log(num_samples)


def _in_row_order(blocks: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    """The columns of all blocks, on the CPU, in the order of the rows, whose indices are the first column."""
    order, *columns = (torch.cat([part.cpu() for part in column]) for column in zip(*blocks))
    return [column[order.argsort()] for column in columns]


def _weights(
    fitted: Fit, data: Any, num_samples: int, seed: int | None, proposal: str, bounds: bool = False
) -> Iterator[tuple[Tensor, Tensor, Tensor, str]]:
    """Check options and rows, and yield, block by block, the indices of n rows, `(n,)`, and their log-weights, `(K, n)`.

    The third tensor is the ELBO of each row and some draws of the guide, `(k, n)`, if `bounds`, and else of no meaning. The
    last is the proposal that the draws are of.
    """
    num_samples = as_count("num_samples", num_samples)
    check_proposal(proposal)
    with fitted.scope(), seeded(seed):
        parts = fitted.parts(data)
        for part in parts:
            check_rows(fitted.pair, part.batch, fitted.chunk_size(part.batch), strict=False, numbers=part.rows)
        for part in parts:
            done = 0
            summarise = (
                (lambda found: [log_weights(found), row_bounds(found)]) if bounds and part.layout.enumerates else None
            )
            blocks: Iterator[Sequence[Tensor]]
            used = usable(fitted, part, proposal)
            if used != "guide":
                blocks = refined_blocks(fitted, part.batch, part.layout, num_samples, proposal)
            else:
                elements = 2 if summarise else 1
                blocks = weight_blocks(fitted, part.batch, part.layout, num_samples, summarise, elements)
            for block in blocks:
                rows = part.rows[done : done + block[0].shape[1]]
                yield rows, block[0], block[-1], used
                done += block[0].shape[1]


def tell_undefined(values: Tensor, error: bool = False) -> None:
    """Warn of rows whose value, such as log p(x), is NaN, `(N,)`; or raise NotFiniteError, where all rows are needed.

    -inf is none: it is that of a row that is impossible.
    """
    undefined = values.isnan().nonzero().flatten().tolist()
    if not undefined:
        return
    of = (
        f"row {undefined[0]}"
        if len(undefined) == 1
        else f"{counted(len(undefined), 'row')}, the first of which is row {undefined[0]},"
    )
    cure = "Look for values that are far from all others, or fit in float64, pair.double()."
    if error:
        raise NotFiniteError(f"The density of {of} is undefined: densities of draws overflow there. {cure}")
    warnings.warn(
        f"The density of {of} is undefined: densities of draws overflow there. Its estimate is NaN, and means are over the "
        f"other rows, {len(values) - len(undefined)} of {len(values)}. {cure}",
        stacklevel=4,
    )


Summary = Callable[[Terms], list[Tensor]]


def weight_blocks(
    fitted: Fit, batch: Batch, layout: Layout, num_samples: int, summarise: Summary | None = None, elements: int = 1
) -> Iterator[list[Tensor]]:
    """Yield what `summarise` computes from the terms of the pair, tensors `(..., K, n)`, block by block of n rows.

    A run takes as many particles of a row as fit into a chunk, and then as many rows, since what depends on the row only,
    such as the output of the encoder, is computed once in a run. Many runs of one shape are traced.

    Args:
        fitted: The fitted pair.
        batch: Rows that have the same arguments.
        layout: The layout of the pair for these rows.
        num_samples: The number K of draws of the guide for each row.
        summarise: Computes a list of tensors from the terms of one run. By default, the log-weights alone.
        elements: How many numbers the caller will keep for each row and draw; it limits the size of a block.
    """
    at_once = particles_at_once(fitted, batch, layout, num_samples)
    together = fitted.chunk_size(batch, at_once)

    def run(rows: Batch, particles: int) -> list[Tensor]:
        found = terms(fitted.pair, rows, particles, layout=layout)
        return [log_weights(found)] if summarise is None else summarise(found)

    whole_runs = (num_rows(batch) // together) * (num_samples // at_once)
    traced = CompiledFunction(
        lambda rows: run(rows, at_once), (fitted.pair,), fitted.settings.get("chunk_product", 0.0), whole_runs
    )
    traces = fitted.settings.get("engine") != "eager" and whole_runs >= TRACE_FROM and not are_common()
    size = max(1, WEIGHT_ELEMENTS // (elements * num_samples * together)) * together
    for first in range(0, num_rows(batch), size):
        block = {name: value[first : first + size] for name, value in batch.items()}  # not copied: its parts are, below
        gathered: list[Tensor] = []
        for start in range(0, num_rows(block), together):
            rows = take_rows(block, slice(start, start + together))
            start_rows()
            for done in range(0, num_samples, at_once):
                some = min(at_once, num_samples - done)
                whole = some == at_once and num_rows(rows) == together
                found = traced(rows) if traces and whole else run(rows, some)
                if not gathered:
                    gathered = [part.new_empty(*part.shape[:-2], num_samples, num_rows(block)) for part in found]
                for kept, part in zip(gathered, found):
                    kept[..., done : done + some, start : start + together] = part
        yield gathered

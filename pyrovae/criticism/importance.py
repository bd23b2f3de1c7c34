"""Importance sampling with the guide as proposal: estimates of log p(x), their reliability, and draws of p(z | x)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from pyrovae._html import table
from pyrovae.batching import chunks as chunking
from pyrovae.batching.checks import check_rows
from pyrovae.criticism.proposals import refined_blocks, refined_runs, why_not_refined
from pyrovae.criticism.psis import pareto_k
from pyrovae.engine.tracing import TracedFunction
from pyrovae.errors import NotFiniteError, OptionError
from pyrovae.fitted.fitted import Fit, FittedGroup, in_order, seeded
from pyrovae.fitted.runs import drawn_terms, global_draw, particles_at_once
from pyrovae.objectives.terms import Terms, terms
from pyrovae.objectives.weights import log_weights, row_bounds
from pyrovae.pair.batch import Batch, num_rows, take_rows
from pyrovae.pair.layout import Layout, Site

# The most log-weights that are in memory at once: those of all particles of a block of rows.
WEIGHT_ELEMENTS = 2**24
# The number of equal runs from which tracing one, which takes about 0.2 s, pays off.
TRACE_FROM = 100


@dataclass(frozen=True)
class Importance:
    """Estimates for N rows by importance sampling, with weights `w_k = p(x, z_k) / q(z_k | x)` of K draws from the guide.

    A site y that is enumerated has no draws: the weights sum over it, `w_k = sum_y p(x, y, z_k) / q(z_k | x)`.
    All tensors are `(N,)`, float64, on the CPU.

    Attributes:
        log_likelihood: The estimate `log (1/K) sum_k w_k` of log p(x), in nats. Its expectation is at most log p(x).
        standard_error: The Monte Carlo standard error of `log_likelihood`, in nats, by the delta method; NaN for K = 1.
        elbo: The ELBO of the row in nats, averaged over the draws; a site enumerated in the guide is averaged over q(y | x).
        ess: The effective sample size `(sum_k w_k)^2 / sum_k w_k^2`, from 1 to K (0 if all weights are zero).
        k_hat: The estimated shape of the weights' tail. Above 0.7 the estimate cannot be trusted; NaN for K < 25.
        num_samples: K.
        proposal: What the draws are of: "guide" or "refined".

    References:
        Burda, Grosse & Salakhutdinov 2016, arXiv:1509.00519. Vehtari, Simpson, Gelman, Yao & Gabry 2024, arXiv:1507.02646.

    Example:
        >>> zeros = torch.zeros(3, dtype=torch.float64)
        >>> found = pv.Importance(zeros - 80, zeros, zeros - 85, zeros + 400, zeros + 0.5, num_samples=1000)
        >>> found.summary()["log_likelihood"], found.summary()["k_hat_above_0.7"]
        (-80.0, 0.0)
    """

    log_likelihood: Tensor
    standard_error: Tensor
    elbo: Tensor
    ess: Tensor
    k_hat: Tensor
    num_samples: int
    proposal: str = "guide"

    def summary(self) -> dict[str, float]:
        """Means over the rows, by name.

        Returns:
            The means of `elbo`, `log_likelihood` and `ess`; `elbo_se` and `log_likelihood_se`, the standard errors of these
            means over rows, sd / sqrt(N); and `k_hat_above_0.7`, the share of rows with k-hat above 0.7.
        """

        def error(values: Tensor) -> float:
            return values.std().item() / math.sqrt(len(values)) if len(values) > 1 else float("nan")

        return {
            "elbo": self.elbo.mean().item(),
            "elbo_se": error(self.elbo),
            "log_likelihood": self.log_likelihood.mean().item(),
            "log_likelihood_se": error(self.log_likelihood),
            "k_hat_above_0.7": (self.k_hat > 0.7).double().mean().item() if self.num_samples >= 25 else float("nan"),
            "ess": self.ess.mean().item(),
        }

    def _repr_html_(self) -> str:
        title = f"Importance sampling of {len(self.elbo)} rows, {self.num_samples} draws each; nats per row"
        return table(title, ("mean over rows", "value"), self.summary().items())


def importance(
    fitted: Fit, data: Any, num_samples: int = 1000, *, proposal: str = "guide", seed: int | None = None
) -> Importance:
    """Estimate log p(x) of each row by importance sampling, and how reliable the estimate is.

    The estimate is `log (1/K) sum_k p(x, z_k) / r(z_k)` with `z_k ~ r`. The proposal r is the guide q(z | x), or, as a guide is
    often displaced on rows that it was not trained on, one that is refined for each row: a Normal of all continuous latent
    sites of the row together, without constraints and with a full covariance (of up to 100 dimensions), is moved from the
    guide's moments by 200 gradient steps on the row's own ELBO; then r is a mixture of the t distribution of 5 degrees of
    freedom around it and, unless the guide enumerates a site, the guide (a tenth of the draws). The draws that are weighed are
    not those that shaped r.

    Latent sites of a row are integrated out; global latent sites are drawn from the guide, so that the estimate of a row is
    its log predictive density. For a row with a known label y, it is log p(x, y).

    Rows and draws are processed in chunks, so that memory does not grow with N, and hardly with K. If the pair does not
    treat several particles in one run correctly, they are run one by one, with a warning.

    Args:
        fitted: The fitted pair.
        data: The rows, as for `pv.fit`. The transform of the fit is applied once, with a fixed seed.
        num_samples: The number K of draws for each row.
        proposal: "guide", or "refined", which takes two to three times as long. Where a row has latent sites that are not
            continuous and not summed out, the guide is used, with a warning.
        seed: The seed of the draws; None continues torch's random state.

    Returns:
        The estimates for each row, see `Importance`. The ELBO is always that of the guide.

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
        >>> found.log_likelihood.shape, bool((found.log_likelihood >= found.elbo).all())
        (torch.Size([40]), True)
        >>> better = pv.importance(fitted, x, num_samples=100, proposal="refined", seed=0)
        >>> better.k_hat.median() < found.k_hat.median()
        tensor(True)
    """
    blocks, used = [], ["guide"]
    for rows, log_w, bounds in _weights(fitted, data, num_samples, seed, proposal, bounds=True, used=used):
        log_p = torch.logsumexp(log_w.double(), 0) - math.log(num_samples)
        ess = _effective_sample_size(log_w.double())
        blocks.append((rows, log_p, _standard_error(ess, num_samples), bounds.double().mean(0), ess, pareto_k(log_w)))
    log_p, error, elbo, ess, k_hat = _in_row_order(blocks)
    return Importance(log_p, error, elbo, ess, k_hat, num_samples, used[-1])


def log_likelihood(
    fitted: Fit, data: Any, num_samples: int = 1000, *, proposal: str = "guide", seed: int | None = None
) -> Tensor:
    """Estimate log p(x) of each row by importance sampling: `pv.importance` without its diagnostics, from the same draws.

    Args:
        fitted: The fitted pair.
        data: The rows, as for `pv.fit`. The transform of the fit is applied once, with a fixed seed.
        num_samples: The number K of draws for each row.
        proposal: "guide" or "refined", as for `pv.importance`.
        seed: The seed of the draws; None continues torch's random state.

    Returns:
        The estimate for each row in nats, `(N,)` float64, on the CPU.

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
        for rows, log_w, _ in _weights(fitted, data, num_samples, seed, proposal)
    ]
    (total,) = _in_row_order(blocks)
    return total - math.log(num_samples)


@overload
def posterior(
    fitted: Fit,
    data: Any,
    num_samples: int = ...,
    *,
    site: str | None = ...,
    num_particles: int = ...,
    proposal: str = ...,
    seed: int | None = ...,
) -> Tensor: ...
@overload
def posterior(
    fitted: Fit,
    data: Any,
    num_samples: int = ...,
    *,
    site: list[str] | tuple[str, ...],
    num_particles: int = ...,
    proposal: str = ...,
    seed: int | None = ...,
) -> dict[str, Tensor]: ...


def posterior(
    fitted: Fit,
    data: Any,
    num_samples: int = 100,
    *,
    site: str | list[str] | tuple[str, ...] | None = None,
    num_particles: int = 1000,
    proposal: str = "guide",
    seed: int | None = None,
) -> Tensor | dict[str, Tensor]:
    """Draw from the posterior p(z | x) of a latent site by sampling-importance-resampling.

    From `num_particles` draws of the guide, or of a proposal that is refined for each row, `num_samples` are chosen at random,
    with replacement and with probabilities proportional to their importance weights. The draws are exact as `num_particles`
    grows; do not rely on them for rows whose `pv.importance(..., proposal=proposal).k_hat` is above 0.7. Sites that are
    enumerated elsewhere are drawn here: from the guide, or, if it does not have them, from their priors.

    A global latent site is drawn from the guide, without weights: its posterior is that given all rows of the fit.

    Args:
        fitted: The fitted pair.
        data: The rows, as for `pv.fit`. The transform of the fit is applied once, with a fixed seed.
        num_samples: The number S of posterior draws for each row.
        site: The latent site, or a list of several, whose draws for a row are joint ones. It may be left out if there is only
            one that each row has.
        num_particles: The number of draws for each row to choose from.
        proposal: "guide" or "refined", as for `pv.importance`.
        seed: The seed of the draws; None continues torch's random state.

    Returns:
        The draws, `(S, N, *event)`, or `(S, *plates, *event)` of a global site, on the device of the weights; with a list of
        sites a dict of them.

    Raises:
        OptionError: `num_samples` or `num_particles` is less than 1.
        DataError: Values are outside the support of the likelihood, or missing where it does not allow that.
        PairError: There is no such site, or there are several and none is named.
        NotFiniteError: A row has probability 0 at every draw of the guide.

    References:
        Rubin 1988, *Using the SIR algorithm to simulate posterior distributions*, Bayesian Statistics 3.

    Example:
        >>> vae = pv.VAE(
        ...     prior=pv.priors.StandardNormal(2),
        ...     likelihood=pv.mlp(2, fam.Bernoulli(6), hidden=(8,)),
        ...     encoder=pv.mlp(6, fam.Normal(2), hidden=(8,)),
        ... )
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> fitted = pv.fit(vae, x, epochs=1, engine="eager", progress=False)
        >>> pv.posterior(fitted, x, num_samples=5, num_particles=50, seed=0).shape
        torch.Size([5, 40, 2])
    """
    if num_particles < 1 or num_samples < 1:
        raise OptionError(f"num_samples and num_particles must be at least 1, got {num_samples} and {num_particles}.")
    _check_proposal(proposal)
    with fitted.scope(), seeded(seed):
        parts = fitted.parts(data)
        listed = isinstance(site, (list, tuple))
        names = list(site) if isinstance(site, (list, tuple)) else [site]
        chosen = [parts[0].layout.latent(name) for name in names]
        of_rows = [one.name for one in chosen if one.local]
        drawn = [_resampled(fitted, part, num_samples, of_rows, num_particles, proposal) for part in parts if of_rows]
        found = {name: in_order(parts, [one[name] for one in drawn], 1) for name in of_rows}
        if shared := [one for one in chosen if not one.local]:
            found |= _global_draws(fitted, parts[0], shared, num_samples)
    return {one.name: found[one.name] for one in chosen} if listed else found[chosen[0].name]


def _global_draws(fitted: Fit, part: FittedGroup, sites: Sequence[Site], num_samples: int) -> dict[str, Tensor]:
    """Joint draws of global sites from the guide, `(S, *plates, *event)`, by name."""
    for site in sites:
        part.layout.site(site.name, role="latent", guided=True)
    rows = next(iter(chunking.chunks(part.batch, fitted.chunk_size(part.batch))))
    draws = [global_draw(fitted, rows, part.layout) for _ in range(num_samples)]
    return {s.name: torch.stack([draw[s.name]["value"].reshape(s.shape) for draw in draws]) for s in sites}


def _effective_sample_size(log_w: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 of each row, `(N,)`, from log-weights `(K, N)`; 0 if all weights are zero."""
    return torch.exp(2 * torch.logsumexp(log_w, 0) - torch.logsumexp(2 * log_w, 0)).nan_to_num(0.0)


def _standard_error(ess: Tensor, num_samples: int) -> Tensor:
    """The standard error of the log of the mean weight; by the delta method, that of the mean weight divided by it."""
    if num_samples == 1:
        return torch.full_like(ess, float("nan"))
    # The relative variance of the mean weight, (mean w^2 / (mean w)^2 - 1) / (K - 1), where K / ESS = mean w^2 / (mean w)^2.
    return ((num_samples / ess - 1).clamp_min(0) / (num_samples - 1)).sqrt()


def _in_row_order(blocks: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    """The columns of all blocks, on the CPU, in the order of the rows, whose indices are the first column."""
    order, *columns = (torch.cat([part.cpu() for part in column]) for column in zip(*blocks))
    return [column[order.argsort()] for column in columns]


def _resampled(
    fitted: Fit, part: FittedGroup, num_samples: int, names: Sequence[str], num_particles: int, proposal: str
) -> dict[str, Tensor]:
    """Joint posterior draws, `(S, n, *event)`, by site, for rows that have the same arguments."""
    shapes = {name: part.layout.site(name, role="latent", local=True).event_shape for name in names}
    check_rows(fitted.pair, part.batch, fitted.chunk_size(part.batch), strict=False)
    picks: dict[str, list[Tensor]] = {name: [] for name in names}
    for runs in _weighted_runs(fitted, part, num_particles, proposal):
        drawn = [(log_w, *(run.rows(run.sites[n].value, shape) for n, shape in shapes.items())) for log_w, run in runs]
        log_w, *values = (torch.cat(of_runs) for of_runs in zip(*drawn))
        if not bool(torch.isfinite(log_w.logsumexp(0)).all()):
            raise NotFiniteError(
                "A row has probability 0 at every draw, so there is no posterior to draw from: look at it "
                "with importance(...), raise num_particles, or train on data that contain such rows."
            )
        picked = torch.multinomial(log_w.softmax(0).T, num_samples, replacement=True).T  # (S, n)
        for (name, shape), value in zip(shapes.items(), values):
            index = picked.reshape(*picked.shape, *(1 for _ in shape)).expand(-1, -1, *shape)
            picks[name].append(torch.gather(value, 0, index))
    return {name: torch.cat(blocks, 1) for name, blocks in picks.items()}


def _weighted_runs(
    fitted: Fit, part: FittedGroup, num_particles: int, proposal: str
) -> Iterator[Iterator[tuple[Tensor, Terms]]]:
    """Block by block of n rows, runs at draws of the proposal, `(k, n)` log-weights and the terms; nothing is summed out."""
    if proposal == "refined" and _can_be_refined(fitted, part):
        yield from refined_runs(fitted, part.batch, part.layout, num_particles)
        return
    most = particles_at_once(fitted, part.batch, part.layout, num_particles)
    for rows in chunking.chunks(part.batch, fitted.chunk_size(part.batch, num_particles)):
        yield ((log_weights(run), run) for run in drawn_terms(fitted, rows, part.layout, num_particles, most))


PROPOSALS = ("guide", "refined")


def _check_proposal(proposal: str) -> None:
    if proposal not in PROPOSALS:
        raise OptionError(f"proposal must be one of {', '.join(map(repr, PROPOSALS))}, got {proposal!r}.")


def _weights(
    fitted: Fit,
    data: Any,
    num_samples: int,
    seed: int | None,
    proposal: str,
    bounds: bool = False,
    used: list[str] | None = None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Check options and rows, and yield, block by block, the indices of n rows, `(n,)`, and their log-weights, `(K, n)`.

    The third tensor is the ELBO of each row and some draws of the guide, `(k, n)`, if `bounds`, and else of no meaning. The
    proposal is appended to `used` where it is not the guide.
    """
    if num_samples < 1:
        raise OptionError(f"num_samples must be at least 1, got {num_samples}.")
    _check_proposal(proposal)
    with fitted.scope(), seeded(seed):
        parts = fitted.parts(data)
        for part in parts:
            check_rows(fitted.pair, part.batch, fitted.chunk_size(part.batch), strict=False)
        for part in parts:
            done = 0
            summarise = (
                (lambda found: [log_weights(found), row_bounds(found)]) if bounds and part.layout.enumerates else None
            )
            blocks: Iterator[Sequence[Tensor]]
            if proposal == "refined" and _can_be_refined(fitted, part):
                blocks = refined_blocks(fitted, part.batch, part.layout, num_samples)
                if used is not None:
                    used.append(proposal)
            else:
                elements = 2 if summarise else 1
                blocks = weight_blocks(fitted, part.batch, part.layout, num_samples, summarise, elements)
            for block in blocks:
                yield part.rows[done : done + block[0].shape[1]], block[0], block[-1]
                done += block[0].shape[1]


def _can_be_refined(fitted: Fit, part: FittedGroup) -> bool:
    if not any(site.role != "observed" and site.local for site in part.layout.sites):
        return False  # there is nothing to refine
    why = why_not_refined(fitted, part.batch, part.layout)
    if why is not None:
        warnings.warn(f"The guide is the proposal, since no other can be refined for a row: {why}.", stacklevel=5)
    return why is None


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

    traced = TracedFunction(lambda rows: run(rows, at_once), (fitted.pair,))
    whole_runs = (num_rows(batch) // together) * (num_samples // at_once)
    traces = fitted.settings.get("engine") != "eager" and whole_runs >= TRACE_FROM
    size = max(1, WEIGHT_ELEMENTS // (elements * num_samples * together)) * together
    for first in range(0, num_rows(batch), size):
        block = {name: value[first : first + size] for name, value in batch.items()}  # not copied: its parts are, below
        gathered: list[Tensor] = []
        for start in range(0, num_rows(block), together):
            rows = take_rows(block, slice(start, start + together))
            for done in range(0, num_samples, at_once):
                some = min(at_once, num_samples - done)
                whole = some == at_once and num_rows(rows) == together
                found = traced(rows) if traces and whole else run(rows, some)
                if not gathered:
                    gathered = [part.new_empty(*part.shape[:-2], num_samples, num_rows(block)) for part in found]
                for kept, part in zip(gathered, found):
                    kept[..., done : done + some, start : start + together] = part
        yield gathered

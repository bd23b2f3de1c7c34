"""log p(x) by importance sampling with the guide as proposal, and how far to trust it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae.batching import chunks as chunking
from pyrovae.batching.checks import check_rows
from pyrovae.criticism.psis import pareto_k
from pyrovae.engine.tracing import TracedFunction
from pyrovae.errors import NotFiniteError, OptionError, PairError
from pyrovae.fitted.fitted import Fit, FittedGroup, in_order, seeded
from pyrovae.objectives.terms import Terms, terms
from pyrovae.objectives.weights import log_weights, row_bounds
from pyrovae.pair.batch import Batch, num_rows, take_rows
from pyrovae.pair.checks import check_particles
from pyrovae.pair.layout import Layout
from pyrovae.pair.parameters import fork_rng

# Log-weights held at once while the particles of a block of rows are gathered.
WEIGHT_ELEMENTS = 2**24
# Runs of one shape from which a trace, some 0.2 s, is won back.
TRACE_FROM = 100


@dataclass(frozen=True)
class Importance:
    """Per row, each (N,), float64, on the CPU; in nats, with K = `num_samples` draws from the guide.

    log_likelihood: log (1/K) sum_k w_k, w = p(x, z) / q(z | x); its expectation is at most log p(x).
    standard_error: of that number, Monte Carlo, by the delta method. elbo: mean of the ELBO's share, which is log w but where
    the guide sums sites out: w is then summed over them, sum_y p(x, y, z) / q(z | x), and the ELBO averages over q(y | x).
    ess: effective sample size (sum w)^2 / sum w^2, 1 to K. k_hat: tail index of the weights (see `pareto_k`).
    """

    log_likelihood: Tensor
    standard_error: Tensor
    elbo: Tensor
    ess: Tensor
    k_hat: Tensor
    num_samples: int

    def summary(self) -> dict[str, float]:
        """Means over rows with their standard errors (sd / sqrt(N)), and the share of rows with k-hat above 0.7."""

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


def importance(fitted: Fit, data: Any, num_samples: int = 1000, *, seed: int | None = None) -> Importance:
    """Estimate log p(x) of each row with K = `num_samples` draws of the guide, in memory that does not grow with N or,
    but for 8 bytes a row under way, with K: rows and particles go in chunks.

    Latent variables of a row are integrated out; global ones are drawn from the guide, so that a row's estimate is its
    log predictive density. A row whose y is known (an argument that may be None, and is neither -1 nor NaN) gives
    log p(x, y). The fit's transform is applied once, from a fixed seed. `seed` of the draws; None continues torch's
    global state. A pair that does not carry a particle dimension is run particle by particle, with a warning.
    Raises DataError for values outside the likelihood's support, and for missing ones that it does not take.
    Burda et al. 2016, arXiv:1509.00519; Vehtari et al. 2024, arXiv:1507.02646.
    """
    blocks: list[tuple[Tensor, ...]] = []
    for rows, weights, bounds in _weights(fitted, data, num_samples, seed, bounds=True):
        k_hat = pareto_k(weights)
        log_w = weights.double()
        total = torch.logsumexp(log_w, 0)
        # NaN where no draw has any weight: none is effective
        ess = torch.exp(2 * total - torch.logsumexp(2 * log_w, 0)).nan_to_num(0.0)
        # relative variance of the mean weight: (mean w^2 / mean(w)^2 - 1) / (K - 1)
        relative = (num_samples / ess - 1).clamp_min(0) / max(1, num_samples - 1)
        error = relative.sqrt() if num_samples > 1 else torch.full_like(total, float("nan"))
        found = (rows, total - math.log(num_samples), error, bounds.double().mean(0), ess, k_hat)
        blocks.append(tuple(t.cpu() for t in found))
    order, *columns = (torch.cat(column) for column in zip(*blocks))
    log_p, error, elbo, ess, k_hat = (column[order.argsort()] for column in columns)
    return Importance(log_p, error, elbo, ess, k_hat, num_samples)


def log_likelihood(fitted: Fit, data: Any, num_samples: int = 1000, *, seed: int | None = None) -> Tensor:
    """log p(x) of each row, nats: (N,) float64, the draws of `importance`, which also says how far to trust it."""
    blocks = [
        (rows.cpu(), torch.logsumexp(weights.double(), 0).cpu())
        for rows, weights, _ in _weights(fitted, data, num_samples, seed)
    ]
    order, found = (torch.cat(column) for column in zip(*blocks))
    return found[order.argsort()] - math.log(num_samples)


def posterior(
    fitted: Fit,
    data: Any,
    num_samples: int = 100,
    *,
    site: str | None = None,
    num_particles: int = 1000,
    seed: int | None = None,
) -> Tensor:
    """Draws of p(z | x) by sampling-importance-resampling: (num_samples, N, *event) of a latent site.

    Of `num_particles` draws of the guide per row, `num_samples` are drawn again with probability proportional to w. Exact
    as `num_particles` grows; trust it where `importance(...).k_hat` is below 0.7. A site that is summed out elsewhere is
    drawn here, from the guide, or from its prior where the guide does not have it. Rubin 1988, *Bayesian Statistics 3*.
    """
    if num_particles < 1 or num_samples < 1:
        raise OptionError(f"num_samples and num_particles must be at least 1, got {num_samples} and {num_particles}.")
    with fitted.scope(), seeded(seed):
        parts = fitted.parts(data)
        drawn = [_resampled(fitted, part, num_samples, site, num_particles) for part in parts]
    return in_order(parts, drawn, 1)


def _resampled(fitted: Fit, part: FittedGroup, num_samples: int, site: str | None, num_particles: int) -> Tensor:
    chosen = part.layout.site(site, role="latent", local=True)
    check_rows(fitted.pair, part.batch, strict=False)
    most = _particles_at_once(fitted, part.batch, part.layout, num_particles)
    picks = []
    for rows in chunking.chunks(part.batch, chunking.chunk_size(fitted.pair, part.batch, num_particles)):
        runs = _runs(fitted, rows, part.layout, num_particles, most)
        found = [(log_weights(run), run.rows(run.sites[chosen.name].value, chosen.event_shape)) for run in runs]
        log_w, value = (torch.cat(part) for part in zip(*found))
        if not bool(torch.isfinite(log_w.logsumexp(0)).all()):
            raise NotFiniteError(
                "A row has probability 0 at every draw of the guide, so there is no posterior to draw from: look at it "
                "with importance(...), raise num_particles, or train on data that contain such rows."
            )
        picked = torch.multinomial(log_w.softmax(0).T, num_samples, replacement=True).T  # (S, n)
        index = picked.reshape(*picked.shape, *(1 for _ in chosen.event_shape)).expand(-1, -1, *chosen.event_shape)
        picks.append(torch.gather(value, 0, index))
    return torch.cat(picks, 1)


def _weights(
    fitted: Fit, data: Any, num_samples: int, seed: int | None, bounds: bool = False
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Check what was asked and the rows, then give where rows stand, (n,), their log-weights, (K, n), and, where `bounds` are
    asked for, their shares of the ELBO, (K, n), else the weights again: a block after the other."""
    if num_samples < 1:
        raise OptionError(f"num_samples must be at least 1, got {num_samples}.")
    with fitted.scope(), seeded(seed):
        parts = fitted.parts(data)
        for part in parts:
            check_rows(fitted.pair, part.batch, strict=False)
        for part in parts:
            done = 0
            fold = (
                (lambda found: [log_weights(found), row_bounds(found)]) if bounds and part.layout.enumerates else None
            )
            for block in weight_blocks(fitted, part.batch, part.layout, num_samples, fold, 2 if fold else 1):
                yield part.rows[done : done + block[0].shape[1]], block[0], block[-1]
                done += block[0].shape[1]


Fold = Callable[[Terms], list[Tensor]]


def weight_blocks(
    fitted: Fit, batch: Batch, layout: Layout, num_samples: int, fold: Fold | None = None, elements: int = 1
) -> Iterator[list[Tensor]]:
    """What `fold` makes of the terms, (..., K, n) each, by default the log-weights: a block of rows after the other.

    `elements`: numbers a row and draw that the caller will hold at once. A run has as many of a row's particles as fit
    into a chunk, and then as many rows: what depends on the row alone, as the encoder, is computed once a run. Many runs of
    one shape are traced.
    """
    fit_in = chunking.chunk_size(fitted.pair, batch)
    at_once = min(_particles_at_once(fitted, batch, layout, num_samples), fit_in)
    at_once = math.ceil(num_samples / math.ceil(num_samples / at_once))  # runs of one size, as near as can be
    together = max(1, fit_in // at_once)

    def run(rows: Batch, particles: int) -> list[Tensor]:
        found = terms(fitted.pair, rows, particles, layout=layout)
        return [log_weights(found)] if fold is None else fold(found)

    traced = TracedFunction(lambda rows: run(rows, at_once), (fitted.pair,))
    whole_runs = (num_rows(batch) // together) * (num_samples // at_once)
    traces = fitted.settings.get("engine") != "eager" and whole_runs >= TRACE_FROM
    size = max(1, WEIGHT_ELEMENTS // (elements * num_samples * together)) * together
    for block in chunking.chunks(batch, size):
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


def _runs(fitted: Fit, rows: Batch, layout: Layout, num_particles: int, at_once: int) -> Iterator[Terms]:
    for done in range(0, num_particles, at_once):
        some = min(at_once, num_particles - done)
        yield terms(fitted.pair, rows, some, layout=layout, enumerate=False)


def _particles_at_once(fitted: Fit, batch: Batch, layout: Layout, num_particles: int) -> int:
    """All of them where the pair carries a particle dimension rightly, else 1, with a warning: right, and slow."""
    if num_particles == 1:
        return 1
    try:
        with fork_rng():
            check_particles(fitted.pair, take_rows(batch, slice(0, 3)), layout)
    except PairError as error:
        warnings.warn(f"Particles are run one at a time, which is slow. {error}", stacklevel=4)
        return 1
    return num_particles

"""Whether ranks are uniform: the largest departure of their distribution function, with its exact p-value."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrovae._lazily import Lazily

stats = Lazily("scipy.stats")
MOST_POINTS = 64  # at which the distribution function is looked at
Array = NDArray[Any]


def grid(most: int) -> Array:
    """The ranks at which the distribution function is looked at: all of 1 to `most`, or equally many between each two."""
    return np.unique(np.linspace(1, most, min(most, MOST_POINTS)).round().astype(int))


def smallest_p(ranks: Array, most: int) -> Array:
    """For each column of ranks, the smallest of the two-sided binomial p-values of its distribution function.

    Args:
        ranks: Whole numbers from 0 to `most`, `(N, D)`.
        most: The largest rank, L.

    Returns:
        `min_i 2 min(P(C_i <= c_i), P(C_i >= c_i))`, `(D,)`, where c_i is the number of ranks below grid point i and
        C_i ~ Binomial(N, i / (L + 1)).
    """
    points = grid(most)
    below = (ranks[None] < points[:, None, None]).sum(1)  # (points, D)
    share = points[:, None] / (most + 1)
    low, high = stats.binom.cdf(below, len(ranks), share), stats.binom.sf(below - 1, len(ranks), share)
    found: Array = np.minimum(1.0, 2 * np.minimum(low, high)).min(0)
    return found


def p_value(smallest: float, num: int, most: int) -> float:
    """The probability that `smallest_p` of N uniform ranks from 0 to `most` is at most `smallest`, exactly.

    The counts below the grid points are a Markov chain; it is the probability that the chain leaves the band in which every
    pointwise p-value is larger.

    References:
        Saeilynoja, Buerkner & Vehtari 2022, *Graphical test for discrete uniformity*, arXiv:2103.10522.
    """
    low, high = _band(smallest, num, most)
    if (high < low).any():
        return 1.0
    points = np.concatenate([[0.0], grid(most) / (most + 1)])
    now, reached = np.zeros(1, dtype=int), np.ones(1)
    for i, step in enumerate(np.diff(points) / (1 - points[:-1])):
        then = np.arange(low[i], high[i] + 1)
        reached = _binomial(then[:, None] - now[None], num - now[None], step) @ reached
        now = then
    return float(np.clip(1 - reached.sum(), 0.0, 1.0))


def _binomial(k: Array, n: Array, share: float) -> Array:
    """`P(K = k)` of K ~ Binomial(n, share); 0 for k outside of 0 to n."""
    logs = _log_factorials(int(n.max()))
    inside = (k >= 0) & (k <= n)
    k = np.where(inside, k, 0)
    log_p = logs[n] - logs[k] - logs[n - k] + k * np.log(share) + (n - k) * np.log1p(-share)
    found: Array = np.where(inside, np.exp(log_p), 0.0)
    return found


@lru_cache(maxsize=8)
def _log_factorials(most: int) -> Array:
    return np.concatenate([[0.0], np.log(np.arange(1, most + 1)).cumsum()])


def _band(smallest: float, num: int, most: int) -> tuple[Array, Array]:
    """The smallest and the largest count at each grid point whose two-sided p-value is above `smallest`."""
    inside = _two_sided(num, most) > smallest * (1 + 1e-9)
    low = np.where(inside.any(1), inside.argmax(1), num + 1)
    high = np.where(inside.any(1), num - inside[:, ::-1].argmax(1), -1)
    return low, high


@lru_cache(maxsize=8)
def _two_sided(num: int, most: int) -> Array:
    """The two-sided p-value of each count at each grid point, `(points, N + 1)`."""
    share = grid(most)[:, None] / (most + 1)
    counts = np.arange(num + 1)[None]
    found: Array = 2 * np.minimum(stats.binom.cdf(counts, num, share), stats.binom.sf(counts - 1, num, share))
    return found


@lru_cache(maxsize=64)
def band(num: int, most: int, level: float) -> tuple[list[float], list[float], list[float]]:
    """The band that the distribution function of N uniform ranks leaves with probability `level` at most.

    Returns:
        The grid points as shares of L + 1, and the lower and the upper end of the function minus the uniform one.
    """
    smallest, largest = level / (2 * MOST_POINTS), level
    for _ in range(12):  # bisection on the logarithm
        middle = float(np.sqrt(smallest * largest))
        smallest, largest = (middle, largest) if p_value(middle, num, most) <= level else (smallest, middle)
    low, high = _band(smallest, num, most)
    at = grid(most) / (most + 1)
    return at.tolist(), (low / num - at).tolist(), (high / num - at).tolist()


def difference(ranks: Array, most: int) -> Array:
    """The distribution function of ranks `(N, D)` minus the uniform one, at the grid points: `(points, D)`."""
    points = grid(most)
    found: Array = (ranks[None] < points[:, None, None]).mean(1) - points[:, None] / (most + 1)
    return found

"""Mixtures of Normals with full covariances, fitted by EM, with as many components as BIC finds best.

These are the numbers of scikit-learn's `GaussianMixture(k, n_init=2)`: the same draws from the same seed, the same k-means at
the start, the same EM. To import scikit-learn takes longer than most of these fits.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

STARTS = 2  # of each number of components, by k-means
MOST_STEPS, ENOUGH = 100, 1e-3  # of EM, and by how many nats per row its last step has to be better
MOST_ROUNDS, CLOSE = 300, 1e-4  # of k-means, and how little its centres move at the end, in mean variances of columns


class Gaussians(NamedTuple):
    """`p(x) = sum_k w_k N(x; m_k, S_k)`: weights `(K,)`, means `(K, D)`, covariances `(K, D, D)`, float64."""

    weights: Array
    means: Array
    covariances: Array

    def joint(self, x: Array) -> Array:
        """`log w_k N(x; m_k, S_k)` of rows `(N, D)`, shape `(K, N)`."""
        factors = np.linalg.cholesky(self.covariances)
        log_det = np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(1)
        z = (x - self.means[:, None]) @ np.linalg.inv(factors).transpose(0, 2, 1)
        constant = np.log(self.weights) - log_det - 0.5 * x.shape[1] * math.log(2 * math.pi)
        joint: Array = constant[:, None] - 0.5 * np.square(z).sum(2)
        return joint

    def log_prob(self, x: Array) -> Array:
        """`log p(x)` of rows `(N, D)`, shape `(N,)`."""
        return _log_sum_exp(self.joint(x))

    def bic(self, x: Array) -> float:
        """The Bayesian information criterion on the rows of the fit; less is better."""
        k, d = self.means.shape
        parameters = k - 1 + k * d + k * d * (d + 1) // 2
        return float(-2 * self.log_prob(x).sum() + parameters * math.log(len(x)))


def best_by_bic(x: Array, most: int, *, floor: float = 1e-6, seed: int = 0) -> Gaussians:
    """The mixture of 1 to `most` components that BIC finds best.

    Args:
        x: Rows, `(N, D)`, float64.
        most: The largest number of components; at most N.
        floor: Added to all variances.
        seed: Seed of the starts of each number of components.

    References:
        Schwarz 1978, Annals of Statistics 6(2); Arthur and Vassilvitskii 2007, *k-means++*, on the starts.
    """
    return min((mixture(x, k, floor, seed) for k in range(1, most + 1)), key=lambda one: one.bic(x))


def mixture(x: Array, k: int, floor: float = 1e-6, seed: int = 0) -> Gaussians:
    """The mixture of k components: of a few starts the one whose rows are most probable."""
    if k == 1:
        return _fitted(x, np.ones((1, len(x))), floor)
    random = np.random.RandomState(seed)  # whose draws are those of scikit-learn
    found = [em(x, nearest(x, k, random), k, floor) for _ in range(STARTS)]
    return max(found, key=lambda one: one[1])[0]


def em(x: Array, clusters: Array, k: int, floor: float) -> tuple[Gaussians, float]:
    """EM from a cluster of each row, `(N,)`: the mixture, and the mean log p(x) of the rows before its last step."""
    found = _fitted(x, np.eye(k)[clusters].T, floor)
    bound = -math.inf
    for _ in range(MOST_STEPS):
        joint = found.joint(x)
        log_p = _log_sum_exp(joint)
        found = _fitted(x, np.exp(joint - log_p), floor)
        before, bound = bound, float(log_p.mean())
        if abs(bound - before) < ENOUGH:
            break
    return found, bound


def _fitted(x: Array, responsibilities: Array, floor: float) -> Gaussians:
    """Weights, means and covariances, given the probability of each component for each row, `(K, N)`."""
    sizes = responsibilities.sum(1) + 10 * np.finfo(float).eps
    means = responsibilities @ x / sizes[:, None]
    away = x - means[:, None]
    covariances = (responsibilities[..., None] * away).transpose(0, 2, 1) @ away / sizes[:, None, None]
    return Gaussians(sizes / sizes.sum(), means, covariances + floor * np.eye(x.shape[1]))


def _log_sum_exp(joint: Array) -> Array:
    largest = joint.max(0)
    total: Array = largest + np.log(np.exp(joint - largest).sum(0))
    return total


def nearest(x: Array, k: int, random: np.random.RandomState) -> Array:
    """The cluster of each row by k-means, `(N,)`, from centres that k-means++ draws."""
    x = x - x.mean(0)
    centres = x[_seeds(x, k, random)]
    close = CLOSE * x.var(0).mean()
    clusters = np.full(len(x), -1)
    for _ in range(MOST_ROUNDS):
        before, clusters = clusters, _distances(x, centres).argmin(0)
        members = np.eye(k)[clusters].T
        sizes = members.sum(1)[:, None]
        last, centres = centres, np.where(sizes > 0, members @ x / np.maximum(sizes, 1), centres)
        if (clusters == before).all():
            return clusters
        if np.square(centres - last).sum() <= close:
            break
    found: Array = _distances(x, centres).argmin(0)
    return found


def _seeds(x: Array, k: int, random: np.random.RandomState) -> list[int]:
    """The rows at which k-means starts: each is far from those before, as the best of a few draws."""
    rows = len(x)
    seeds = [int(random.choice(rows, p=np.full(rows, 1.0) / rows))]
    distance = _distances(x, x[seeds])[0]
    for _ in range(1, k):
        drawn = random.uniform(size=2 + int(math.log(k))) * distance.sum()
        tried = np.minimum(np.searchsorted(np.cumsum(distance), drawn), rows - 1)
        closer = np.minimum(distance, _distances(x, x[tried]))
        best = int(closer.sum(1).argmin())
        distance = closer[best]
        seeds.append(int(tried[best]))
    return seeds


def _distances(x: Array, centres: Array) -> Array:
    """The squared distance of each row to each centre, `(K, N)`."""
    squares = np.square(centres).sum(1)[:, None] + np.square(x).sum(1) - 2 * centres @ x.T
    distances: Array = np.maximum(squares, 0.0)
    return distances

"""Mixtures of Normals with full covariances, fitted by EM, with as many components as BIC finds best.

From the same start scikit-learn's `GaussianMixture` gives the same numbers. To import it takes longer than these fits do.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

STARTS = 4  # of each number of components, by k-means
MOST_STEPS = 100  # of EM, and of k-means
ENOUGH = 1e-3  # nats per row, by which the last step of EM has to be better


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
        seed: Seed of the starts.

    References:
        Schwarz 1978, Annals of Statistics 6(2); Arthur and Vassilvitskii 2007, *k-means++*, on the starts.
    """
    random = np.random.default_rng(seed)
    tried = []
    for k in range(1, most + 1):
        starts = [em(x, nearest(x, k, random), k, floor) for _ in range(STARTS if k > 1 else 1)]
        tried.append(max(starts, key=lambda one: one[1])[0])
    return min(tried, key=lambda one: one.bic(x))


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


def nearest(x: Array, k: int, random: np.random.Generator) -> Array:
    """The cluster of each row by k-means, `(N,)`, from centres that k-means++ draws, each the best of a few."""
    centres = x[random.integers(len(x), size=1)]
    distance = _distances(x, centres)[0]
    for _ in range(k - 1):
        chance = distance + 1e-12  # rows may all be equal
        drawn = random.choice(len(x), 2 + int(math.log(k)), p=chance / chance.sum())
        closer = np.minimum(distance, _distances(x, x[drawn]))
        best = int(closer.sum(1).argmin())
        distance, centres = closer[best], np.concatenate([centres, x[drawn[best : best + 1]]])
    clusters = _distances(x, centres).argmin(0)
    for _ in range(MOST_STEPS):
        members = np.eye(k)[clusters].T
        sizes = members.sum(1)[:, None]
        centres = np.where(sizes > 0, members @ x / np.maximum(sizes, 1), centres)
        before, clusters = clusters, _distances(x, centres).argmin(0)
        if (clusters == before).all():
            break
    return clusters


def _distances(x: Array, centres: Array) -> Array:
    """The squared distance of each row to each centre, `(K, N)`."""
    squares = np.square(centres).sum(1)[:, None] + np.square(x).sum(1) - 2 * centres @ x.T
    distances: Array = np.maximum(squares, 0.0)
    return distances

"""What densities without a latent variable reach on a table: scikit-learn's, on the same rows and in the same units."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA, FactorAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity
from torch import Tensor

from pyrovae._arguments import as_names, as_seed
from pyrovae.errors import DataError, OptionError
from pyrovae.pair.arrays import as_tensor
from pyrovae.tables.schema import Schema

Array = NDArray[Any]

MOST_COMPONENTS = 15
COPIES = 16  # of the test rows, over which the density of a cell is averaged
MOST_ROWS = 5000  # that a mixture or a kernel estimate is fitted to


def baselines(
    schema: Schema, train: Tensor, test: Tensor, *, names: Collection[str] = ("gaussian mixture",), seed: int = 0
) -> dict[str, Tensor]:
    """log p(x) of test rows by densities that scikit-learn fits, to be compared with that of a model of the same schema.

    Where a column is recorded to a step d, or is one of classes (d = 1), uniform noise on [-d/2, d/2) is added to the rows that
    a density is fitted to, and the density of a test row is the mean over its cell, `log (1/S) sum_s p(x + d u_s)`: what
    `RoundedNormal` gives, and for classes their probability. Columns are standardised first, and densities are in the units
    of the data.

    Args:
        schema: What the columns are.
        train: Rows to fit to, `(N, D)`, without gaps.
        test: Rows to score, `(M, D)`, without gaps.
        names: Which: "gaussian mixture" (full covariances, up to 15 components by BIC), "factor analysis" and "pca" (numbers
            of factors by cross-validation), "kernel density" (a Gaussian kernel, its width by cross-validation).
        seed: Seed of the noise and of the fits.

    Returns:
        For each name log p(x) of the test rows, `(M,)` float64, nats.

    Raises:
        DataError: A cell is missing, or there are fewer than five rows.
        OptionError: A name is unknown.

    References:
        Theis, van den Oord and Bethge 2016, arXiv:1511.01844, section 3.1, on noise for numbers that are recorded to a step.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"x": torch.randn(60).tolist(), "kind": ["a", "b", "b"] * 20})
        >>> schema = pv.tables.infer(table)
        >>> rows = schema.encode(table)
        >>> found = pv.tables.baselines(schema, rows[:40], rows[40:])
        >>> found["gaussian mixture"].shape
        torch.Size([20])
    """
    names = as_names("names", names) or ()
    train, test, seed = as_tensor("train", train), as_tensor("test", test), as_seed(seed, least=0, most=2**32 - 1)
    if unknown := sorted(set(names) - set(FITTED)):
        raise OptionError(f"baselines knows {', '.join(map(repr, FITTED))}, got {unknown[0]!r}.")
    if bool(train.isnan().any()) or bool(test.isnan().any()) or len(train) < 5:
        raise DataError(
            "baselines needs at least five rows to fit to, and rows without gaps: fill or drop those that have any."
        )
    random = np.random.default_rng(seed)
    step = np.array([column.step if column.is_number else 1.0 for column in schema.modelled])

    def spread(rows: Tensor) -> Array:
        values = rows.double().numpy()
        noisy: Array = values + step * (random.random(values.shape) - 0.5)
        return noisy

    x = spread(train[torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:MOST_ROWS]])
    centre, scale = x.mean(0), np.maximum(x.std(0), 1e-12)
    copies = [(spread(test) - centre) / scale for _ in range(COPIES)]
    found = {}
    for name in names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            score = FITTED[name]((x - centre) / scale, seed)
        each = np.stack([score(copy) for copy in copies])
        log_p = np.logaddexp.reduce(each, 0) - math.log(COPIES) - np.log(scale).sum()
        found[name] = torch.from_numpy(log_p)
    return found


Score = Callable[[Array], Array]


def gaussian_mixture(x: Array, seed: int) -> Score:
    """The log density of scikit-learn's Gaussian mixture with as many components as BIC finds best."""
    most = max(1, min(MOST_COMPONENTS, len(x) // (x.shape[1] + 1)))
    tried = [GaussianMixture(k, n_init=2, random_state=seed).fit(x) for k in range(1, most + 1)]
    score: Score = min(tried, key=lambda one: float(one.bic(x))).score_samples
    return score


def _chosen(estimator: Any, grid: dict[str, list[Any]], x: Array) -> Score:
    score: Score = GridSearchCV(estimator, grid, cv=5).fit(x).best_estimator_.score_samples
    return score


def _factors(x: Array) -> dict[str, list[Any]]:
    return {"n_components": list(range(1, max(2, min(x.shape[1], 16))))}


def _factor_analysis(x: Array, seed: int) -> Score:
    return _chosen(FactorAnalysis(random_state=seed), _factors(x), x)


def _pca(x: Array, seed: int) -> Score:
    return _chosen(PCA(random_state=seed), _factors(x), x)


def _kernel_density(x: Array, seed: int) -> Score:
    return _chosen(KernelDensity(), {"bandwidth": np.geomspace(0.03, 1, 16).tolist()}, x)


FITTED: dict[str, Callable[[Array, int], Score]] = {
    "gaussian mixture": gaussian_mixture,
    "factor analysis": _factor_analysis,
    "pca": _pca,
    "kernel density": _kernel_density,
}

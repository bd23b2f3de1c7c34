"""Groups of rows: `VAECluster`."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from sklearn.base import ClusterMixin
from sklearn.cluster import KMeans
from torch import Tensor

from pyrovae.criticism.classification import classify
from pyrovae.errors import DataError
from pyrovae.sklearn import _graphs
from pyrovae.sklearn._base import DRAW_SEED, Array, VAEEstimator, check_options

STARTS = 10  # of k-means


class VAECluster(ClusterMixin, VAEEstimator):
    """`argmax_y p(y | x)`: clusters y, in each of which rows vary as a VAE has it.

    By default a mixture of VAEs is fitted, `p(y) p(z) p(x|z,y)` with the cluster summed out (the semi-supervised "M2" without a
    label). A mixture can end in many ways, so that its networks are first trained on the clusters of k-means as if they were
    labels; then these are free. Missing entries (NaN) are left out of the likelihood.

    Args:
        n_clusters: The number of clusters C.
        n_components: L, the dimension of z; by default the number of columns, at most 10. Not used with a `graph`.
        graph: Another model and guide with one enumerated site y of each row, such as `pv.GMVAE` or `pv.VaDE`: a pair, of which
            a copy is fitted, or a function of the training rows, `(N, D)` float64, that returns one. It decides the number of
            clusters.
        standardize: Whether the model sees columns with mean 0 and standard deviation 1.
        hidden_layer_sizes: Widths of the hidden layers of the default networks, an int for one layer.
        max_iter: The most passes over the rows, of each of the two fits.
        batch_size: Rows of a gradient step.
        learning_rate_init: The highest learning rate of the one-cycle schedule.
        validation_fraction: The share of rows that is held out to find the best epoch, or None. Of fewer than 10 rows none
            are held out.
        n_iter_no_change: Stop after so many epochs without a better validation ELBO; None runs to the end.
        n_draws: Draws of z for each row.
        random_state: The seed of starting values, shuffling and noise.
        verbose: Whether to show the progress of the fit.

    Attributes:
        labels_: The cluster of each training row, `(N,)`, from 0, the largest, to the smallest that has rows.
        fit_: The `pv.Fit`, for all other questions; its rows are the standardised ones.
        n_iter_: How many passes over the rows the fit took.
        n_features_in_, feature_names_in_: As in scikit-learn.

    Raises:
        ValueError: Rows or options are refused, by scikit-learn's words or by one of pyrovae's errors, which are ValueErrors.

    References:
        Jiang et al. 2017, arXiv:1611.05148 (a start from other clusters); Kingma et al. 2014, arXiv:1406.5298 (the graph).

    Example:
        >>> from pyrovae.sklearn import VAECluster
        >>> X = np.random.default_rng(0).normal(size=(60, 3)) + 8 * (np.arange(60) % 3)[:, None]
        >>> labels = VAECluster(n_clusters=3, max_iter=10, random_state=0).fit_predict(X)
        >>> sorted(set(labels.tolist()))
        [0, 1, 2]
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        n_components: int | None = None,
        graph: Any = None,
        standardize: bool = True,
        hidden_layer_sizes: int | tuple[int, ...] = (64,),
        max_iter: int = 300,
        batch_size: int = 128,
        learning_rate_init: float = 5e-3,
        validation_fraction: float | None = 0.1,
        n_iter_no_change: int | None = 50,
        n_draws: int = 100,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.n_clusters, self.n_components, self.graph, self.standardize = n_clusters, n_components, graph, standardize
        self.hidden_layer_sizes, self.max_iter, self.batch_size = hidden_layer_sizes, max_iter, batch_size
        self.learning_rate_init, self.validation_fraction = learning_rate_init, validation_fraction
        self.n_iter_no_change, self.n_draws = n_iter_no_change, n_draws
        self.random_state, self.verbose = random_state, verbose

    def fit(self, X: Any, y: Any = None) -> VAECluster:
        """Fit the model to rows `(N, D)`. `y` is ignored."""
        check_options(self)
        rows = self._rows(X, reset=True)
        if self.graph is None and len(rows) < self.n_clusters:
            raise DataError(f"n_samples={len(rows)} should be >= n_clusters={self.n_clusters}.")
        self._learn_scale(rows)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "No training row has a label")  # which is what clusters are
            self._fit_pair([self._scaled(rows)], self._default)
        found = self._probabilities(rows).argmax(1)
        self._order = np.argsort(-np.bincount(found, minlength=found.max() + 1), kind="stable")
        self.labels_ = self._numbered(found)
        return self

    def _default(self, x: Tensor) -> Any:
        """The graph that is fitted where none is given, trained on the clusters of k-means as if they were labels."""
        seed = int(torch.randint(2**31, ()))
        start = KMeans(self.n_clusters, n_init=STARTS, random_state=seed).fit_predict(x.nan_to_num(0.0).numpy())
        pair = _graphs.clusters(x, self.n_clusters, self.n_components, self.hidden_layer_sizes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the second fit says it
            self._train(pair, [x, torch.from_numpy(start.astype(np.int64))], seed)
        return pair

    def _probabilities(self, rows: Array) -> Array:
        with self._asking() as fitted:
            found: Array = classify(fitted, self._scaled(rows), num_samples=self.n_draws, seed=DRAW_SEED).joint.numpy()
        return found

    def _numbered(self, found: Array) -> Array:
        """Clusters of the graph by their numbers here."""
        ranks = np.empty(max(len(self._order), int(found.max()) + 1), dtype=np.int64)
        ranks[len(self._order) :] = np.arange(len(self._order), len(ranks))
        ranks[self._order] = np.arange(len(self._order))
        return np.asarray(ranks[found])

    def predict(self, X: Any) -> Array:
        """The cluster of rows `(N, D)`: `(N,)`."""
        self._fitted()
        return self._numbered(self._probabilities(self._rows(X, reset=False)).argmax(1))

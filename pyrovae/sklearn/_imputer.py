"""Missing entries filled in: `VAEImputer`."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from sklearn.impute import MissingIndicator
from sklearn.utils.validation import _check_feature_names_in
from torch import Tensor

from pyrovae.fitted.fitted import Fit
from pyrovae.models.linear import LinearPosterior
from pyrovae.objectives.iwelbo import IWELBO
from pyrovae.pair.common import common_draws
from pyrovae.recover.imputation import Imputation
from pyrovae.recover.impute import impute
from pyrovae.sklearn import _graphs
from pyrovae.sklearn._base import DRAW_SEED, Array, VAEEstimator, VAETransformerMixin, float64, seed_of
from pyrovae.sklearn._search import MOST_HIDDEN, hidden_in_turn

PARTICLES = 5  # of the bound that is maximised


class VAEImputer(VAETransformerMixin, VAEEstimator):
    """`E[x_missing | x_observed]`, or draws: missing entries (NaN) filled in, as by `IterativeImputer`.

    By default two models are fitted to the observed entries, and judged by those of the validation rows, each of which is
    hidden once, a fifth of a row's at a time:

    - one Normal with full covariance, found by EM, which few rows, and columns that depend on one another linearly, are best
      described by,
    - a VAE that starts as a Gaussian mixture of the rows, as that of `VAEDensity` does, fitted by the importance-weighted bound
      of 5 draws, whose guide is told which entries are missing. It is kept where its squared error is lower by more than the
      standard error of the difference.

    Where no rows are held out, as of fewer than 100, nothing can be compared: the Normal is taken. With more than 32 columns
    the VAE starts at random, and with more than 64 it is fitted without a comparison. A filled entry is a mean over the
    posterior of z, by a proposal refined for each row, see `pv.impute`; that of the Normal is exact.

    Args:
        n_components: L, the dimension of z; by default the number of columns, at most 10. Not used with a `graph`.
        graph: Another model and guide whose likelihood leaves out missing entries, such as `pv.observed_only(...)`: a pair, of
            which a copy is fitted, or a function of the training rows, `(N, D)` float64, that returns one.
        search: "auto", or "none": the VAE is fitted, and nothing is compared.
        sample_posterior: Whether `transform` fills in one draw, other ones at each call unless `random_state` is a number,
            instead of means.
        n_draws: S, the complete tables that `draws` returns.
        add_indicator: Whether `transform` appends a column for each that had missing entries in training, 1 where one is.
        keep_empty_features: Whether columns without any observed entry in training are kept, filled with 0. By default they are
            left out.
        standardize: Whether the model sees columns with mean 0 and standard deviation 1.
        hidden_layer_sizes: Widths of the hidden layers of the default networks, an int for one layer.
        max_iter: The most passes over the rows.
        batch_size: Rows of a gradient step.
        learning_rate_init: The highest learning rate of the one-cycle schedule.
        validation_fraction: The share of rows that is held out to find the best epoch, or None. Of fewer than 10 rows none
            are held out.
        n_iter_no_change: Stop after so many epochs without a better bound of these rows; None runs to the end.
        n_particles: The draws of the proposal of each row from which those of z are chosen.
        proposal: Of these draws: "refined", "laplace" or "guide", as for `VAEDensity`.
        random_state: The seed of starting values, shuffling, noise and draws.
        verbose: Whether to show the progress of the fit.

    Attributes:
        indicator_: The `MissingIndicator`, or None.
        fit_: The `pv.Fit`, for all other questions; its rows are the standardised ones, without empty columns.
            `fit_.info["search"]` has minus the mean squared error of the hidden entries by each model that was compared.
        n_iter_: How many passes over the rows the fit took.
        n_features_in_, feature_names_in_: As in scikit-learn.

    Raises:
        ValueError: Rows or options are refused, by scikit-learn's words or by one of pyrovae's errors, which are ValueErrors.

    References:
        Mattei & Frellsen 2019, arXiv:1812.02633.

    Example:
        >>> from pyrovae.sklearn import VAEImputer
        >>> X = np.random.default_rng(0).normal(size=(60, 1)) + [[0.0, 10.0, -10.0]]
        >>> X[::6, 1] = np.nan
        >>> filled = VAEImputer(max_iter=5, proposal="guide", random_state=0).fit_transform(X)
        >>> filled.shape, bool(np.isfinite(filled).all())
        ((60, 3), True)
    """

    def __init__(
        self,
        n_components: int | None = None,
        *,
        graph: Any = None,
        search: str = "auto",
        sample_posterior: bool = False,
        n_draws: int = 20,
        add_indicator: bool = False,
        keep_empty_features: bool = False,
        standardize: bool = True,
        hidden_layer_sizes: int | tuple[int, ...] = (64,),
        max_iter: int = 300,
        batch_size: int = 128,
        learning_rate_init: float = 1e-2,
        validation_fraction: float | None = 0.1,
        n_iter_no_change: int | None = 50,
        n_particles: int = 400,
        proposal: str = "refined",
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.n_components, self.graph, self.search = n_components, graph, search
        self.sample_posterior, self.n_draws = sample_posterior, n_draws
        self.add_indicator, self.keep_empty_features, self.standardize = add_indicator, keep_empty_features, standardize
        self.hidden_layer_sizes, self.max_iter, self.batch_size = hidden_layer_sizes, max_iter, batch_size
        self.learning_rate_init, self.validation_fraction = learning_rate_init, validation_fraction
        self.n_iter_no_change, self.n_particles, self.proposal = n_iter_no_change, n_particles, proposal
        self.random_state, self.verbose = random_state, verbose

    def fit(self, X: Any, y: Any = None) -> VAEImputer:
        """Fit the model to the observed entries of rows `(N, D)`; NaN is missing. `y` is ignored."""
        rows = self._rows(X, reset=True)
        self._known = ~np.isnan(rows).all(0)
        self.indicator_ = MissingIndicator(error_on_new=False).fit(rows) if self.add_indicator else None
        some = rows[:, self._known]
        some = some[~np.isnan(some).all(1)]  # rows without anything say nothing
        self._learn_scale(some)
        starts = _graphs.imputers(
            some.shape[1], self.n_components, self.hidden_layer_sizes, compared=self.search == "auto"
        )
        self._fit_best(self._scaled(some), starts, self._judge, loss=IWELBO(num_particles=PARTICLES))
        return self

    def _judge(self, fitted: Fit, rows: Tensor) -> Tensor:
        """Minus the squared error of observed entries that are hidden in turn, a mean for each row, `(M,)`."""
        rows = rows[:MOST_HIDDEN]
        total, count = torch.zeros(len(rows)), torch.zeros(len(rows))
        for holed, where in hidden_in_turn(rows, DRAW_SEED):
            with common_draws(DRAW_SEED):
                mean = self._impute(fitted, holed, 1, DRAW_SEED).mean
            total += (mean - rows).square().where(where, 0.0).sum(1)
            count += where.sum(1)
        return -total / count

    def transform(self, X: Any) -> Array:
        """Rows `(N, D)` with their missing entries filled in, `(N, D')` float64, or float32 where the rows are."""
        self._fitted()
        given = self._given(X, reset=False)
        rows = given.astype(np.float64)
        if self.sample_posterior:
            filled = self._drawn(rows, 1)[0]
        else:
            with self._asking():
                found = self._imputed(rows, 1, DRAW_SEED)
            filled = self._whole(rows, rows[:, self._known] if found is None else self._unscaled(found.mean))
        if self.indicator_ is not None:
            filled = np.hstack([filled, self.indicator_.transform(rows).astype(np.float64)])
        return filled.astype(given.dtype)

    def draws(self, X: Any) -> Array:
        """`n_draws` complete tables, `(n_draws, N, D')`, for multiple imputation: analyse each, and combine by `pv.pool`."""
        self._fitted()
        given = self._given(X, reset=False)
        return self._drawn(given.astype(np.float64), self.n_draws).astype(given.dtype)

    def get_feature_names_out(self, input_features: Any = None) -> Array:
        """The names of the columns of `transform`."""
        self._fitted()
        given = _check_feature_names_in(self, input_features)
        names: Array = given if self.keep_empty_features else given[self._known]
        if self.indicator_ is None:
            return names
        return np.concatenate([names, self.indicator_.get_feature_names_out(given)])

    def _columns(self) -> list[str]:
        names = super()._columns()
        return [name for name, known in zip(names, np.atleast_1d(self._known)) if known]

    def _imputed(self, rows: Array, num: int, seed: int) -> Imputation | None:
        """What `pv.impute` says of the known columns; None where nothing is missing."""
        some = rows[:, self._known]
        if not np.isnan(some).any():
            return None
        return self._impute(self.fit_, self._scaled(some), num, seed)

    def _impute(self, fitted: Fit, x: Tensor, num: int, seed: int) -> Imputation:
        """What `pv.impute` says of standardised rows; a guide that is exact is a proposal that cannot be refined."""
        exact = isinstance(getattr(fitted.pair, "encoder", None), LinearPosterior)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="In .* rows fewer than")  # of draws: those of such rows are moved
            proposal = "guide" if exact else self.proposal
            return impute(fitted, x, num, num_particles=self.n_particles, proposal=proposal, seed=seed)

    def _drawn(self, rows: Array, num: int) -> Array:
        seed = seed_of(self.random_state)
        with float64():
            found = self._imputed(rows, num, seed)
        if found is None:
            return np.repeat(self._whole(rows, rows[:, self._known])[None], num, 0)
        return np.stack([self._whole(rows, self._unscaled(one)) for one in found.draws])

    def _whole(self, rows: Array, known: Array) -> Array:
        """Filled columns beside those that are empty, observed entries as they were."""
        filled = rows.copy()
        filled[:, self._known] = np.where(np.isnan(rows[:, self._known]), known, rows[:, self._known])
        return np.nan_to_num(filled, nan=0.0) if self.keep_empty_features else filled[:, self._known]

"""Rows that are unlike the others: `VAEOutlierDetector`."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import numpy as np
from sklearn.base import OutlierMixin

from pyrovae.criticism.importance import silently
from pyrovae.errors import counted
from pyrovae.sklearn import _graphs
from pyrovae.sklearn._base import DRAW_SEED, Array, check_options, is_auto, seed_of
from pyrovae.sklearn._density import Scored
from pyrovae.sklearn._search import Start

FOLDS = 5  # into which the training rows fall for the threshold
ENOUGH = 500  # rows held out, after which no further fold is fitted: their share below a threshold is off by some 1 %
LOWEST = np.finfo(np.float64).min / 4  # in the place of -inf, between which and a number no quantile lies


class VAEOutlierDetector(OutlierMixin, Scored):
    """Rows whose `log p(x)` is below a threshold, which calls a share `false_alarm_rate` of new ordinary rows.

    By default a VAE is fitted that is plainer than that of `VAEDensity`, so that it does not learn the outliers among the
    training rows: with a standard normal prior, and one standard deviation for each column.

    **The threshold.** A model gives the rows that it was fitted to a higher density than new ones, of few rows and many columns
    a far higher one, so that a quantile of these densities calls too many new rows. By default, `contamination="auto"`, the
    threshold rests on rows that were held out: the training rows fall into five folds at random, and the rows of each are
    scored by a model that is fitted to the others. Of n such scores, s_(1) <= ... <= s_(n), it is `offset_`,

        s_(k),   k = floor(a (n + 1)),   a = false_alarm_rate,

    and a row is called an outlier if `log p(x) < s_(k)`. If a new row is like the training rows (exchangeable with them), its
    score is equally likely to have any of the n + 1 ranks among theirs, so that `P(log p(x) < s_(k)) <= k / (n + 1) <= a`, on
    average over training rows. This would hold exactly if one and the same model had scored all of them; the model that answers
    has seen all rows, a quarter more than those of the folds, so that it gives new rows slightly higher scores and calls
    slightly fewer. Outliers among the training rows are among the lowest scores, and take from the share of ordinary rows that
    are called. Of more than 2,500 rows not all folds are needed: as soon as 500 rows or more are held out, no other model is
    fitted.

    A number as `contamination` means what it means in scikit-learn: the share of the *training* rows that is called, whatever
    that is for new ones. Choose it to find outliers in the very table that is fitted, of which you know the share, and "auto"
    to judge rows that come later.

    Args:
        n_components: L, the dimension of z; by default one less than there are columns, at most 10. Not used with a `graph`.
        contamination: "auto", or the share of outliers among the training rows, above 0 and at most 0.5.
        false_alarm_rate: a, the share of new ordinary rows that may be called outliers, above 0 and at most 0.5; for
            `contamination="auto"`.
        graph: Another model and guide: a pair, of which a copy is fitted, or a function of the training rows,
            `(N, D)` float64, that returns one.
        standardize: Whether the model sees columns with mean 0 and standard deviation 1.
        hidden_layer_sizes: Widths of the hidden layers of the default networks, an int for one layer.
        max_iter: The most passes over the rows, of each fit.
        batch_size: Rows of a gradient step.
        learning_rate_init: The highest learning rate of the one-cycle schedule.
        validation_fraction: The share of rows that is held out to find the best epoch, or None. Of fewer than 10 rows none
            are held out.
        n_iter_no_change: Stop after so many epochs without a better validation ELBO; None runs to the end.
        n_draws: K, the draws of z for each row.
        proposal: Of these draws, as for `VAEDensity`.
        random_state: The seed of starting values, shuffling, noise and folds.
        verbose: Whether to show the progress of the fits.

    Attributes:
        offset_: The threshold of `score_samples`, in nats: `decision_function = score_samples - offset_`.
        fit_, n_iter_, n_features_in_, feature_names_in_: As in `VAEDensity`.

    Raises:
        ValueError: Rows or options are refused, by scikit-learn's words or by one of pyrovae's errors, which are ValueErrors.

    Warns:
        UserWarning: There are too few rows for the `false_alarm_rate`, `a (n + 1) < 1`: the threshold is the lowest score then.

    References:
        Vovk 2015, *Cross-conformal predictors*, arXiv:1208.0806, and Barber, Candès, Ramdas & Tibshirani 2021, *Predictive
        inference with the jackknife+*, arXiv:1905.02928 (thresholds from models of folds). Nalisnick et al. 2019,
        arXiv:1810.09136, for where log p(x) misleads.

    Example:
        >>> from pyrovae.sklearn import VAEOutlierDetector
        >>> X = np.random.default_rng(0).normal(size=(60, 3))
        >>> found = VAEOutlierDetector(max_iter=5, proposal="guide", random_state=0).fit(X).predict([[0, 0, 0], [8, 8, 8]])
        >>> found.tolist()
        [1, -1]
    """

    def __init__(
        self,
        n_components: int | None = None,
        *,
        contamination: str | float = "auto",
        false_alarm_rate: float = 0.1,
        graph: Any = None,
        standardize: bool = True,
        hidden_layer_sizes: int | tuple[int, ...] = (64,),
        max_iter: int = 300,
        batch_size: int = 128,
        learning_rate_init: float = 1e-2,
        validation_fraction: float | None = 0.1,
        n_iter_no_change: int | None = 50,
        n_draws: int = 200,
        proposal: str = "refined",
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            n_components,
            graph=graph,
            standardize=standardize,
            hidden_layer_sizes=hidden_layer_sizes,
            max_iter=max_iter,
            batch_size=batch_size,
            learning_rate_init=learning_rate_init,
            validation_fraction=validation_fraction,
            n_iter_no_change=n_iter_no_change,
            n_draws=n_draws,
            proposal=proposal,
            random_state=random_state,
            verbose=verbose,
        )
        self.contamination, self.false_alarm_rate = contamination, false_alarm_rate

    def _starts(self, num_rows: int, num_columns: int) -> list[Start]:
        how = self.n_components, self.hidden_layer_sizes
        return [Start("the default", lambda x: _graphs.detector(x, *how))]

    def fit(self, X: Any, y: Any = None) -> VAEOutlierDetector:
        """Fit the model to rows `(N, D)`, outliers included, and find the threshold. `y` is ignored."""
        check_options(self)
        rows = self._fit_rows(X)
        if is_auto(self.contamination):
            self.offset_ = lowest(self._held_out(rows), self.false_alarm_rate)
        else:
            self.offset_ = share_below(self._log_p(rows), float(self.contamination))
        return self

    def _log_p(self, rows: Array) -> Array:
        """log p(x), -inf where it is undefined, since the densities of draws overflow: no row is stranger."""
        with self._asking() as fitted:
            log_p = silently(fitted, self._scaled(rows), self.n_draws, self.proposal, DRAW_SEED).log_likelihood.numpy()
        found: Array = np.where(np.isnan(log_p), -np.inf, log_p - self._log_abs_det(rows))
        return found

    def _held_out(self, rows: Array) -> Array:
        """log p(x) of training rows that a model has not seen, all of them or the first `ENOUGH` in random order, `(n,)`."""
        seed = seed_of(self.random_state)
        random = np.random.default_rng(seed)
        folds = np.array_split(random.permutation(len(rows)), min(FOLDS, len(rows)))
        found: list[Array] = []
        for fold in folds:
            other = copy.copy(self)  # with the options of this one, also where they are those of a subclass
            other.random_state = int(random.integers(2**31 - 1))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the fit to all rows has said it
                other._fit_checked(np.delete(rows, fold, axis=0))
                found.append(other._log_p(rows[fold]))
            if sum(map(len, found)) >= ENOUGH:
                break
        return np.concatenate(found)

    def decision_function(self, X: Any) -> Array:
        """`score_samples(X) - offset_`, `(N,)`: negative for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> Array:
        """-1 for outliers and 1 for other rows, `(N,)`."""
        return np.where(self.decision_function(X) >= 0, 1, -1)


def lowest(scores: Array, rate: float) -> float:
    """s_(k), the k-th lowest of n scores, with the largest k for which k / (n + 1) is at most `rate`, at least 1."""
    n = len(scores)
    k = math.floor(rate * (n + 1) * (1 + 1e-12))  # 0.1 * 30 is 3, whatever its last bit
    if k < 1:
        warnings.warn(
            f"false_alarm_rate={rate:g} asks for more rows than the {n} that were held out: the lowest score of {n} is a "
            f"threshold that calls one ordinary row in {n + 1} on average. It would take "
            f"{counted(math.ceil(1 / rate) - 1, 'row')}.",
            stacklevel=3,
        )
    return float(np.maximum(np.sort(scores)[max(k, 1) - 1], LOWEST))


def share_below(scores: Array, share: float) -> float:
    """The quantile of scores below which a share of them lies, as scikit-learn's detectors have it."""
    return float(np.percentile(np.maximum(scores, LOWEST), 100 * share))

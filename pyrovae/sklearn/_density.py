"""Codes and log p(x) of rows: `VAETransformer`, `VAEDensity`."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin, DensityMixin
from sklearn.utils import check_array
from torch import Tensor

from pyrovae._arguments import as_count
from pyrovae.criticism.importance import silently, tell_undefined
from pyrovae.errors import DataError
from pyrovae.fitted.fitted import Fit
from pyrovae.pair.common import common_draws
from pyrovae.predict.encode import encode
from pyrovae.predict.generate import generate
from pyrovae.sklearn import _graphs
from pyrovae.sklearn._base import DRAW_SEED, Array, VAEEstimator, VAETransformerMixin, as_tensor, float64, seed_of
from pyrovae.sklearn._search import Start


class VAETransformer(ClassNamePrefixFeaturesOutMixin, VAETransformerMixin, VAEEstimator):
    """`x -> E_q[z | x]`: rows become the means of the guide, their codes.

    By default a VAE is fitted with z ~ N(0, I), a Normal likelihood of the standardised columns whose mean and standard
    deviation depend on z, and a diagonal Normal guide. Missing entries (NaN) are left out of the likelihood, and the encoder is
    told which they are.

    Args:
        n_components: L, the dimension of a code z; by default the number of columns, at most 10. Not used with a `graph`.
        graph: Another model and guide: a pair, of which a copy is fitted, or a function of the training rows,
            `(N, D)` float64, that returns one.
        standardize: Whether the model sees columns with mean 0 and standard deviation 1. Leave it out where a likelihood of
            your own is not one of real numbers.
        hidden_layer_sizes: Widths of the hidden layers of the default networks, an int for one layer.
        max_iter: The most passes over the rows.
        batch_size: Rows of a gradient step.
        learning_rate_init: The highest learning rate of the one-cycle schedule.
        validation_fraction: The share of rows that is held out to find the best epoch, or None. Of fewer than 10 rows none
            are held out.
        n_iter_no_change: Stop after so many epochs without a better validation ELBO; None runs to the end.
        n_draws: How many draws of the guide are averaged where its mean has no closed form.
        random_state: The seed of starting values, shuffling and noise.
        verbose: Whether to show the progress of the fit.

    Attributes:
        fit_: The `pv.Fit`, for all other questions; its rows are the standardised ones.
        n_iter_: How many passes over the rows the fit took.
        n_features_in_, feature_names_in_: As in scikit-learn.

    Raises:
        ValueError: Rows or options are refused, by scikit-learn's words or by one of pyrovae's errors, which are ValueErrors.

    References:
        Kingma & Welling 2014, arXiv:1312.6114.

    Example:
        >>> from pyrovae.sklearn import VAETransformer
        >>> X = np.random.default_rng(0).normal(size=(40, 5))
        >>> codes = VAETransformer(n_components=2, max_iter=5, random_state=0).fit_transform(X)
        >>> codes.shape
        (40, 2)
    """

    def __init__(
        self,
        n_components: int | None = None,
        *,
        graph: Any = None,
        standardize: bool = True,
        hidden_layer_sizes: int | tuple[int, ...] = (64,),
        max_iter: int = 300,
        batch_size: int = 128,
        learning_rate_init: float = 1e-2,
        validation_fraction: float | None = 0.1,
        n_iter_no_change: int | None = 50,
        n_draws: int = 100,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.n_components, self.graph, self.standardize = n_components, graph, standardize
        self.hidden_layer_sizes, self.max_iter, self.batch_size = hidden_layer_sizes, max_iter, batch_size
        self.learning_rate_init, self.validation_fraction = learning_rate_init, validation_fraction
        self.n_iter_no_change, self.n_draws = n_iter_no_change, n_draws
        self.random_state, self.verbose = random_state, verbose

    def fit(self, X: Any, y: Any = None) -> VAETransformer:
        """Fit the model to rows `(N, D)`. `y` is ignored."""
        rows = self._rows(X, reset=True)
        self._learn_scale(rows)
        self._fit_pair([self._scaled(rows)], lambda x: _graphs.vae(x, self.n_components, self.hidden_layer_sizes))
        codes = self._codes(rows[:1])
        self._n_features_out = int(codes[0].size)
        return self

    def transform(self, X: Any) -> Array:
        """The codes of rows `(N, D)`: `(N, L)` float64, or float32 where the rows are."""
        self._fitted()
        given = self._given(X, reset=False)
        return self._codes(given.astype(np.float64)).astype(given.dtype)

    def inverse_transform(self, Z: Any) -> Array:
        """The mean of x given codes `(N, L)`, in the units of the training rows: `(N, D)`, float32 where the codes are."""
        fitted = self._fitted()
        site = fitted.layout.latent(None, guided=True)
        codes = check_array(Z, dtype=[np.float64, np.float32], estimator=self, input_name="Z")
        if codes.shape[1] != self._n_features_out:
            raise DataError(
                f"Z must be codes with {self._n_features_out} columns, as transform gives them, got {codes.shape[1]} columns."
            )
        z = as_tensor(codes).reshape(-1, *site.event_shape)
        with float64():
            found = generate(fitted, len(z), given={site.name: z}, mean=True, seed=DRAW_SEED)
        return self._unscaled(found).astype(codes.dtype)

    def _codes(self, rows: Array) -> Array:
        with self._asking() as fitted:
            site = fitted.layout.latent(None, guided=True).name
            codes: Array = encode(fitted, self._scaled(rows), site=site, num_samples=self.n_draws).flatten(1).numpy()
        return codes.astype(np.float64)


class Scored(VAEEstimator):
    """The base of those that answer by log p(x) of rows."""

    def __init__(
        self,
        n_components: int | None = None,
        *,
        graph: Any = None,
        standardize: bool = True,
        hidden_layer_sizes: int | tuple[int, ...] = (64,),
        max_iter: int = 300,
        batch_size: int = 128,
        learning_rate_init: float | None = None,
        validation_fraction: float | None = 0.1,
        n_iter_no_change: int | None = 50,
        n_draws: int = 200,
        proposal: str = "refined",
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.n_components, self.graph, self.standardize = n_components, graph, standardize
        self.hidden_layer_sizes, self.max_iter, self.batch_size = hidden_layer_sizes, max_iter, batch_size
        self.learning_rate_init, self.validation_fraction = learning_rate_init, validation_fraction
        self.n_iter_no_change, self.n_draws, self.proposal = n_iter_no_change, n_draws, proposal
        self.random_state, self.verbose = random_state, verbose

    def _fit_rows(self, X: Any) -> Array:
        rows = self._rows(X, reset=True)
        self._fit_checked(rows)
        return rows

    def _fit_checked(self, rows: Array) -> None:
        self._learn_scale(rows)
        self._fit_best(self._scaled(rows), self._starts(*rows.shape), self._judge)

    def _starts(self, num_rows: int, num_columns: int) -> list[Start]:
        """The graphs of which one is fitted where none is given, the usual one first."""
        raise NotImplementedError

    def _judge(self, fitted: Fit, rows: Tensor) -> Tensor:
        """log p(x) of standardised rows, `(M,)`."""
        with common_draws(DRAW_SEED):
            return silently(fitted, rows, self.n_draws, self.proposal, DRAW_SEED).log_likelihood

    def _log_p(self, rows: Array) -> Array:
        """log p(x) of the observed entries, in the units of the training rows."""
        with self._asking() as fitted:
            log_p = silently(fitted, self._scaled(rows), self.n_draws, self.proposal, DRAW_SEED).log_likelihood
        tell_undefined(log_p, error=True)  # NaN would pass for an inlier
        found: Array = log_p.numpy() - self._log_abs_det(rows)
        return found

    def _log_abs_det(self, rows: Array) -> Array:
        """log |dx/dz| of each row, over its observed columns."""
        return (~np.isnan(rows)) @ self._scaling.scale.log().numpy()

    def score_samples(self, X: Any) -> Array:
        """`log p(x)` of rows `(N, D)`, in nats and in the units of X; of the observed entries where some are missing: `(N,)`.

        An estimate by importance sampling with `n_draws` draws from a proposal that is refined for each row, see
        `pv.importance`, which also gives its error. All rows share the same base draws, so that the number of a row does not
        depend on the other rows.
        """
        self._fitted()
        return self._log_p(self._rows(X, reset=False))


class VAEDensity(DensityMixin, Scored):
    """`log p(x)` of rows, with the methods of `GaussianMixture`: `score_samples`, `score`, `sample`.

    By default a few VAEs are fitted, and the one is kept under which the validation rows are most probable:

    - one that starts as a Gaussian mixture of the rows, see `pyrovae.tables.vae`, and learns what that leaves,
    - the same with a flow in its prior, of 300 rows and more; of more than 2,000 in place of the first; once with noise of a
      tenth of a standard deviation at the start, and once with as little as the mixture leaves each column,
    - one that starts at random, with a mixture of 10 Normals as prior and a dimension of z for each column, at most 10.

    Of fewer than 100 rows none are held out, so that nothing can be compared: the first is fitted. Of more than 5,000 it is the
    second. With more than 32 columns, with `n_components`, or without hidden layers it is the third. In all, the likelihood of
    the standardised columns is a Normal whose mean and standard deviation depend on z, and the guide has a full covariance.
    Missing entries (NaN) are integrated out.

    Args:
        n_components: L, the dimension of z; by default the number of columns, at most 10. Not used with a `graph`.
        graph: Another model and guide: a pair, of which a copy is fitted, or a function of the training rows,
            `(N, D)` float64, that returns one.
        search: "auto", or "none": the first of these, or from 300 rows on the second, is fitted, and nothing is compared.
        standardize: Whether the model sees columns with mean 0 and standard deviation 1. Densities are always those of X.
        hidden_layer_sizes: Widths of the hidden layers of the default networks, an int for one layer.
        max_iter: The most passes over the rows.
        batch_size: Rows of a gradient step.
        learning_rate_init: The highest learning rate of the one-cycle schedule; by default 3e-3 for a prior with a flow, and
            1e-2 for others.
        validation_fraction: The share of rows that is held out to find the best epoch, or None. Of fewer than 10 rows none
            are held out.
        n_iter_no_change: Stop after so many epochs without a better validation ELBO; None runs to the end.
        n_draws: K, the draws of z for each row.
        proposal: Of these draws: "refined", "laplace", which is quicker and less reliable, or "guide", which is quickest and
            often too low. See `pv.importance`.
        random_state: The seed of starting values, shuffling and noise.
        verbose: Whether to show the progress of the fit.

    Attributes:
        fit_: The `pv.Fit`, for all other questions; its rows are the standardised ones. `fit_.info["search"]` has the mean log
            p(x) of the validation rows under each model that was compared, in nats per standardised row.
        n_iter_: How many passes over the rows the fit took.
        n_features_in_, feature_names_in_: As in scikit-learn.

    Raises:
        ValueError: Rows or options are refused, by scikit-learn's words or by one of pyrovae's errors, which are ValueErrors.

    References:
        Burda, Grosse & Salakhutdinov 2016, arXiv:1509.00519 (the estimate).

    Example:
        >>> from pyrovae.sklearn import VAEDensity
        >>> X = np.random.default_rng(0).normal(size=(40, 3))
        >>> density = VAEDensity(max_iter=5, proposal="guide", random_state=0).fit(X)
        >>> density.score_samples(X).shape, density.sample(2, random_state=0).shape
        ((40,), (2, 3))
    """

    def __init__(
        self,
        n_components: int | None = None,
        *,
        graph: Any = None,
        search: str = "auto",
        standardize: bool = True,
        hidden_layer_sizes: int | tuple[int, ...] = (64,),
        max_iter: int = 300,
        batch_size: int = 128,
        learning_rate_init: float | None = None,
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
        self.search = search

    def _starts(self, num_rows: int, num_columns: int) -> list[Start]:
        return _graphs.densities(
            num_rows, num_columns, self.n_components, self.hidden_layer_sizes, compared=self.search == "auto"
        )

    def fit(self, X: Any, y: Any = None) -> VAEDensity:
        """Fit the model to rows `(N, D)`. `y` is ignored."""
        self._fit_rows(X)
        return self

    def score(self, X: Any, y: Any = None) -> float:
        """The mean of `score_samples` over rows `(N, D)`."""
        return float(np.mean(self.score_samples(X)))

    def sample(self, n_samples: int = 1, random_state: Any = None) -> Array:
        """New rows drawn from the model, `(n_samples, D)`, in the units of X; by default seeded by the estimator's state."""
        fitted, num = self._fitted(), as_count("n_samples", n_samples)
        state = self.random_state if random_state is None else random_state
        seed = seed_of(state)
        with float64():
            return self._unscaled(generate(fitted, num, seed=seed).flatten(1))

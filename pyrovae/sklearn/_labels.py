"""Labels and numbers of which few are known: `SemiSupervisedVAEClassifier`, `VAERegressor`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils import _safe_indexing, check_array, check_consistent_length, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from torch import Tensor, nn

from pyrovae.batching.chunks import chunks
from pyrovae.criticism.classification import classify
from pyrovae.criticism.ensembles import LabelEnsemble, Weights
from pyrovae.errors import DataError, OptionError, PairError, counted
from pyrovae.fitted.fitted import Fit
from pyrovae.models import SSVAE
from pyrovae.nets.dropout import dropping
from pyrovae.pair.common import same_for_rows, start_rows
from pyrovae.pair.program import arguments
from pyrovae.predict.encode import encode
from pyrovae.sklearn import _graphs
from pyrovae.sklearn._base import DRAW_SEED, Array, VAEEstimator, as_tensor, check_options, with_nan

METHODS = ("guide", "joint")


class SemiSupervisedVAEClassifier(ClassifierMixin, VAEEstimator):
    """`p(y | x)` from a few labels and many rows without one, -1, as in `SelfTrainingClassifier`.

    By default the semi-supervised VAE "M2" is fitted, `p(y) p(z) p(x|z,y)` with the classifier q(y|x) as a part of its guide,
    which learns from the labelled rows and, by the bound, from the others. The probabilities of this graph, or of another
    `pv.SSVAE`, are averaged over passes with the dropout of its classifier. Missing entries (NaN) are left out of the
    likelihood. The answer is a geometric mean of q(y|x), which counts a tenth, and of a `pv.LabelEnsemble`, which needs no
    model; `pyrovae label` pools them by the same rule.

    Args:
        n_components: L, the dimension of z; by default the number of columns, at most 10. Not used with a `graph`.
        graph: Another model and guide, whose model takes (x, y=None) and has an enumerated site y: a pair, of which a copy is
            fitted, or a function of the training rows, `(N, D)` float64, and their class numbers, `(N,)`, -1 where unknown.
        method: "guide", the classifier q(y|x) of the guide, or "joint", Bayes' rule by importance sampling with `n_draws` draws
            for each class.
        alpha: How many times each labelled row counts in the classifier's own term; by default 0.6 D, and at least 50.
        dropout: The share of the classifier's units that are left out at random.
        n_neighbors: Neighbours of a row in the graph along which labels spread, a part of the ensemble; None leaves the
            ensemble out.
        image_shape: `(height, width)` or `(channels, height, width)` of rows that are images: the ensemble sees them as
            `pv.gradient_histograms`, too.
        standardize: Whether the model sees columns with mean 0 and standard deviation 1.
        hidden_layer_sizes: Widths of the hidden layers of the default networks, an int for one layer.
        max_iter: Passes over the larger of the two groups of rows, labelled and not.
        batch_size: Rows of a gradient step.
        learning_rate_init: The highest learning rate of the one-cycle schedule.
        validation_fraction: The share of rows that is held out to find the best epoch by the ELBO. By default none is: the last
            epoch of such models has better classes.
        n_iter_no_change: Stop after so many epochs without a better validation ELBO.
        n_draws: Passes with dropout, or draws of z.
        random_state: The seed of starting values, shuffling and noise.
        verbose: Whether to show the progress of the fit.

    Attributes:
        classes_: The labels, in ascending order, without -1.
        fit_: The `pv.Fit`, for all other questions; its rows are the standardised ones.
        ensemble_: The `pv.LabelEnsemble`, or None.
        n_iter_: How many passes over the rows the fit took.
        n_features_in_, feature_names_in_: As in scikit-learn.

    Raises:
        ValueError: Rows, labels or options are refused, by scikit-learn's words or by one of pyrovae's errors.

    References:
        Kingma, Rezende, Mohamed & Welling 2014, arXiv:1406.5298. Gal & Ghahramani 2016, arXiv:1506.02142 (the passes).

    Example:
        >>> from pyrovae.sklearn import SemiSupervisedVAEClassifier
        >>> rng = np.random.default_rng(0)
        >>> y = np.arange(60) % 2
        >>> X = rng.normal(size=(60, 3)) + 6 * y[:, None]
        >>> few = np.where(np.arange(60) < 10, y, -1)  # 10 labels
        >>> model = SemiSupervisedVAEClassifier(max_iter=15, learning_rate_init=0.03, random_state=0).fit(X, few)
        >>> model.predict_proba(X).shape, bool(model.score(X, y) > 0.9)
        ((60, 2), True)
    """

    def __init__(
        self,
        n_components: int | None = None,
        *,
        graph: Any = None,
        method: str = "guide",
        alpha: float | None = None,
        dropout: float = 0.5,
        n_neighbors: int | None = 5,
        image_shape: tuple[int, ...] | None = None,
        standardize: bool = True,
        hidden_layer_sizes: int | tuple[int, ...] = (64,),
        max_iter: int = 200,
        batch_size: int = 128,
        learning_rate_init: float = 5e-3,
        validation_fraction: float | None = None,
        n_iter_no_change: int | None = None,
        n_draws: int = 100,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.n_components, self.graph, self.standardize = n_components, graph, standardize
        self.method, self.alpha, self.dropout, self.n_neighbors = method, alpha, dropout, n_neighbors
        self.image_shape = image_shape
        self.hidden_layer_sizes, self.max_iter, self.batch_size = hidden_layer_sizes, max_iter, batch_size
        self.learning_rate_init, self.validation_fraction = learning_rate_init, validation_fraction
        self.n_iter_no_change, self.n_draws = n_iter_no_change, n_draws
        self.random_state, self.verbose = random_state, verbose

    def fit(self, X: Any, y: Any) -> SemiSupervisedVAEClassifier:
        """Fit the model to rows `(N, D)` and labels `(N,)`, numbers or text; -1 is unlabelled.

        In an array of text, "-1" is unlabelled, which is what NumPy makes of -1 there. Where all labels are -1 or 1, these
        are the two classes.
        """
        if self.method not in METHODS:
            raise OptionError(f"method must be one of {', '.join(map(repr, METHODS))}, got {self.method!r}.")
        check_options(self)
        rows = self._rows(X, reset=True)
        self.classes_, codes = class_codes(self, y, rows)
        self._learn_scale(rows)
        y_rows = torch.from_numpy(codes)
        ensemble = None
        if self.n_neighbors is not None:  # first, as it takes less time to refuse an argument
            how = len(self.classes_), self.n_neighbors, self.image_shape
            ensemble = LabelEnsemble(as_tensor(rows), y_rows, *how)
        self._fit_pair([self._scaled(rows), y_rows], self._default)
        self.ensemble_ = ensemble
        return self

    def _default(self, x: Tensor, y: Tensor) -> Any:
        """The graph that is fitted where none is given."""
        how = self.n_components, self.hidden_layer_sizes, self.dropout, self.alpha
        return _graphs.classifier(x, int(y.max()) + 1, *how)

    def predict_proba(self, X: Any) -> Array:
        """`p(y | x)` of rows `(N, D)`: `(N, C)`, in the order of `classes_`."""
        self._fitted()
        rows = self._rows(X, reset=False)
        with self._asking() as fitted:
            if self.method == "guide" and isinstance(fitted.pair, SSVAE):
                found = _passes(fitted, self._scaled(rows), self.n_draws)
            else:
                how: dict[str, Any] = {"num_samples": self.n_draws, "seed": DRAW_SEED}
                found = getattr(classify(fitted, self._scaled(rows), **how), self.method)
        if found.shape[1] != len(self.classes_):
            raise PairError(f"The graph has {found.shape[1]} classes, and y has {len(self.classes_)}.")
        if self.ensemble_ is not None:
            f = self.ensemble_(as_tensor(rows))
            found = Weights.default(found, f).pooled(found, f)
        probabilities: Array = found.numpy()
        return probabilities / probabilities.sum(1, keepdims=True)

    def predict(self, X: Any) -> Array:
        """The most probable class of rows `(N, D)`: `(N,)`."""
        self._fitted()
        return np.asarray(self.classes_[self.predict_proba(X).argmax(1)])

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The share of rows `(N, D)` whose label is predicted, among those that have one: -1 in `y`, `(N,)`, is unlabelled.

        So a cross-validation over rows of which few are labelled is right. Where -1 is a class, as beside 1, it counts.
        """
        self._fitted()
        labels = _labels(self, y, X)
        known = np.ones(len(labels), dtype=bool) if -1 in self.classes_.tolist() else _are_labels(labels)
        return float(super().score(*_of_known(known, X, labels, sample_weight)))


def _passes(fitted: Fit, x: Tensor, num: int) -> Tensor:
    """Class probabilities averaged over passes of the classifier with dropout, the same units left out for every row."""
    pair: Any = fitted.pair
    classifier, found = pair.classifier, []
    num = num if any(isinstance(layer, nn.Dropout) for layer in classifier.modules()) else 1
    with fitted.scope(), dropping(classifier):
        for batch in chunks({"x": x}, fitted.chunk_size({"x": x})):
            start_rows()
            with same_for_rows(0, len(batch["x"])):
                found.append(torch.stack([classifier(batch["x"]).probs for _ in range(num)]).mean(0))
    return torch.cat(found)


def class_codes(estimator: Any, y: Any, rows: Array) -> tuple[Array, Array]:
    """The classes in ascending order, and the number of each row's class, -1 where it is unlabelled."""
    labels = _labels(estimator, y, rows)
    known = _are_labels(labels)
    if not known.all() and known.any() and labels.dtype.kind not in "OUS" and bool((labels[known] == 1).all()):
        known[:] = True  # the usual numbers of two classes
    found = labels[known]
    if not len(found):
        raise DataError("All rows are unlabelled (-1): label some of at least two classes.")
    found = _of_one_type(found)
    check_classification_targets(found)
    classes, numbers = np.unique(found, return_inverse=True)
    if len(classes) < 2:
        more = "" if known.all() else " (-1 means unlabelled: if it is a class, code the two as 0 and 1)"
        raise DataError(
            f"Two classes or more are needed, and all labels are of one class, {classes.tolist()[0]!r}{more}."
        )
    codes = np.full(len(labels), -1, dtype=np.int64)
    codes[known] = numbers
    return classes, codes


def _labels(estimator: Any, y: Any, rows: Any) -> Array:
    """Labels and -1, `(N,)`, as many as rows. DataError where some are missing."""
    labels = _targets(estimator, y, rows)
    if labels.dtype.kind not in "OUS":
        check_array(labels[:, None], ensure_all_finite="allow-nan", input_name="y")
    gaps = sum(_is_gap(label) for label in labels.tolist())
    if gaps:
        raise DataError(
            f"Input y contains NaN, None or empty texts in {counted(gaps, 'row')}. If these are unlabelled, write -1, "
            "also among "
            "texts, as by y.fillna(-1) of a Series of numbers or y.fillna('-1') of one of texts."
        )
    return labels if any(isinstance(label, str) for label in labels.tolist()) else _of_one_type(labels)


def _is_gap(label: Any) -> bool:
    """Whether a label is None, NaN, pandas' NA, or a text without a letter."""
    return label is None or type(label).__name__ == "NAType" or label != label or str(label).strip() == ""


def _are_labels(labels: Array) -> Array:
    """Which labels are not -1, as a number or as the text that NumPy makes of it."""
    return np.array([str(label) not in ("-1", "-1.0") for label in labels], dtype=bool)


def _of_one_type(labels: Array) -> Array:
    """An array of objects, all texts or all numbers, as an array of those."""
    if labels.dtype.kind != "O":
        return labels
    if len({isinstance(label, str) for label in labels.tolist()}) > 1:
        raise DataError("Labels must be all texts or all numbers, and y has both: write y.astype(str) for texts.")
    return np.array(labels.tolist())


def _targets(estimator: Any, y: Any, rows: Array) -> Array:
    if y is None:
        raise ValueError(
            f"This {type(estimator).__name__} estimator requires y to be passed, but the target y is None."
        )
    targets: Array = column_or_1d(y, warn=True)
    check_consistent_length(rows, targets)
    return targets


def _numbers(estimator: Any, y: Any, rows: Any) -> Array:
    """Numbers to be predicted, `(N,)` float64, NaN where unknown."""
    targets = with_nan(_targets(estimator, with_nan(y), rows))  # masks first, and gaps that have become objects
    if targets.dtype.kind in "mM" or any(isinstance(number, str) for number in targets.tolist()):
        raise DataError(
            "y must be numbers, NaN where unknown, and has texts, dates or times: convert it, as by pandas.to_numeric, or "
            "take SemiSupervisedVAEClassifier if these are classes."
        )
    found: Array = check_array(targets[:, None], ensure_all_finite="allow-nan", dtype=np.float64, input_name="y")[:, 0]
    return found


class VAERegressor(RegressorMixin, VAEEstimator):
    """`E[y | x]` of a number that is known in some rows and NaN in others.

    By default semi-supervised regression is fitted, `p(y) p(z) p(x|z,y)` with a Normal q(y|x) as a part of its guide, whose
    mean is the prediction. It learns from the rows whose y is known and, by the bound, from the others. This mean is ridge
    regression, whose strength is chosen by cross-validation, plus a network with dropout that learns what is not linear, and
    whose weights are a priori N(0, 2/D), D the number of columns. Missing entries of x (NaN) are left out of the likelihood.

    Args:
        n_components: L, the dimension of z; by default the number of columns, at most 10. Not used with a `graph`.
        graph: Another model and guide, whose model takes (x, y=None): a pair, of which a copy is fitted, or a function of the
            training rows, `(N, D)` float64, and their standardised y, `(N,)`, NaN where unknown, that returns one.
        alpha: How many times each row with a known y counts in the regressor's own term; by default 0.6 D, and at least 50.
        dropout: The share of units of the network of q(y|x) that are left out at random in each step.
        standardize: Whether the model sees columns, and y, with mean 0 and standard deviation 1.
        hidden_layer_sizes: Widths of the hidden layers of the default networks, an int for one layer.
        max_iter: Passes over the larger of the two groups of rows, those with y and those without.
        batch_size: Rows of a gradient step.
        learning_rate_init: The highest learning rate of the one-cycle schedule.
        validation_fraction: The share of rows that is held out to find the best epoch by the ELBO; by default none is.
        n_iter_no_change: Stop after so many epochs without a better validation ELBO.
        n_draws: Draws of the guide that are averaged where its mean of y has no closed form.
        random_state: The seed of starting values, shuffling and noise.
        verbose: Whether to show the progress of the fit.

    Attributes:
        fit_: The `pv.Fit`, for all other questions; its rows and y are the standardised ones.
        n_iter_: How many passes over the rows the fit took.
        n_features_in_, feature_names_in_: As in scikit-learn.

    Raises:
        ValueError: Rows, y or options are refused, by scikit-learn's words or by one of pyrovae's errors.

    References:
        Kingma et al. 2014, arXiv:1406.5298, here with a density in place of classes.

    Example:
        >>> from pyrovae.sklearn import VAERegressor
        >>> X = np.random.default_rng(0).normal(size=(80, 3))
        >>> y = X @ [1.0, 2.0, 0.0]
        >>> y[40:] = np.nan  # known in half of the rows
        >>> model = VAERegressor(max_iter=30, learning_rate_init=0.03, random_state=0).fit(X, y)
        >>> bool(model.score(X[40:], X[40:] @ [1.0, 2.0, 0.0]) > 0.7)
        True
    """

    def __init__(
        self,
        n_components: int | None = None,
        *,
        graph: Any = None,
        alpha: float | None = None,
        dropout: float = 0.5,
        standardize: bool = True,
        hidden_layer_sizes: int | tuple[int, ...] = (128,),
        max_iter: int = 200,
        batch_size: int = 128,
        learning_rate_init: float = 5e-3,
        validation_fraction: float | None = None,
        n_iter_no_change: int | None = None,
        n_draws: int = 100,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.n_components, self.graph, self.standardize = n_components, graph, standardize
        self.alpha, self.dropout = alpha, dropout
        self.hidden_layer_sizes, self.max_iter, self.batch_size = hidden_layer_sizes, max_iter, batch_size
        self.learning_rate_init, self.validation_fraction = learning_rate_init, validation_fraction
        self.n_iter_no_change, self.n_draws = n_iter_no_change, n_draws
        self.random_state, self.verbose = random_state, verbose

    def fit(self, X: Any, y: Any) -> VAERegressor:
        """Fit the model to rows `(N, D)` and numbers `(N,)`; NaN is unknown."""
        rows = self._rows(X, reset=True)
        targets = _numbers(self, y, rows)[:, None]
        if np.isnan(targets).all():
            raise DataError("Input y contains NaN in every row: at least one number has to be known.")
        self._learn_scale(rows)
        self._y_scaling = self._scaling_of(targets)
        y_rows = self._y_scaling.apply(as_tensor(targets)).squeeze(1)
        how = self.n_components, self.hidden_layer_sizes, self.dropout, self.alpha
        options: dict[str, Any] = {"penalty": _graphs.small_weights} if self.graph is None else {}
        self._fit_pair([self._scaled(rows), y_rows], lambda x, y: _graphs.regressor(x, y, *how), **options)
        return self

    def predict(self, X: Any) -> Array:
        """`E[y | x]` of rows `(N, D)`: `(N,)`, in the units of y."""
        self._fitted()
        rows = self._rows(X, reset=False)
        with self._asking() as fitted:
            site = _observing(fitted, list(arguments(fitted.pair))[1])
            y = encode(fitted, self._scaled(rows), site=site, num_samples=self.n_draws, seed=DRAW_SEED)
        found: Array = self._y_scaling.invert(y.double().reshape(-1, 1)).squeeze(1).numpy()
        return found

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """R^2 of the predictions for rows `(N, D)`, among those whose `y`, `(N,)`, is known: NaN is unknown."""
        self._fitted()
        targets = _numbers(self, y, X)
        return float(super().score(*_of_known(~np.isnan(targets), X, targets, sample_weight)))


def _of_known(known: Array, X: Any, y: Array, sample_weight: Any) -> tuple[Any, Array, Any]:
    """What a score is taken of: the rows whose y is known."""
    if not known.any():
        raise DataError("No row has a known y, so that there is nothing to score: give rows with some.")
    kept = np.flatnonzero(known)
    return (
        _safe_indexing(X, kept),
        _of_one_type(y[kept]),
        None if sample_weight is None else np.asarray(sample_weight)[kept],
    )


def _observing(fitted: Fit, argument: str) -> str:
    """The site that observes an argument, where it is known."""
    for layout in fitted.layouts:
        for site in layout.sites:
            if site.argument == argument and not site.objective_only:
                return site.name
    raise PairError(
        f"No site of the graph observes {argument!r}: write pyro.sample({argument!r}, ..., obs={argument})."
    )

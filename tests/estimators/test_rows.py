"""Rows, labels and options of every form, as a user of scikit-learn has them: taken, or refused by one clear error."""

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import make_blobs
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import cross_val_score

from pyrovae.errors import DataError, OptionError
from pyrovae.sklearn import (
    SemiSupervisedVAEClassifier,
    VAECluster,
    VAEDensity,
    VAEImputer,
    VAEOutlierDetector,
    VAERegressor,
    VAETransformer,
)

SMALL: dict[str, Any] = {"hidden_layer_sizes": (8,), "max_iter": 2, "random_state": 0}
OWN: dict[type, dict[str, Any]] = {
    VAETransformer: {},
    VAEDensity: {"proposal": "guide", "n_draws": 20},
    VAEOutlierDetector: {"proposal": "guide", "n_draws": 20, "contamination": 0.1},
    VAECluster: {"n_clusters": 3, "n_draws": 20},
    VAEImputer: {"proposal": "guide", "n_particles": 20},
    SemiSupervisedVAEClassifier: {"n_neighbors": None, "n_draws": 20},
    VAERegressor: {},
}
EACH = pytest.mark.parametrize("kind", OWN)
X, Y = make_blobs(n_samples=60, n_features=4, centers=3, random_state=0)


def made(kind: type, **options: Any) -> Any:
    return kind(**SMALL | OWN[kind] | options)


def fitted(kind: type, rows: Any, **options: Any) -> Any:
    return made(kind, **options).fit(rows, {SemiSupervisedVAEClassifier: Y, VAERegressor: X[:, 0]}.get(kind))


def answer(model: Any, rows: Any) -> np.ndarray:
    names = ("score_samples", "predict_proba", "transform", "predict")
    return np.asarray(getattr(model, next(name for name in names if hasattr(model, name)))(rows))


# --- rows


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_transformers_answer_in_the_dtype_of_the_rows(dtype: Any) -> None:
    rows = X.astype(dtype)
    rows[::7, 1] = np.nan
    codes = fitted(VAETransformer, X).transform(rows)
    assert codes.dtype == dtype and fitted(VAETransformer, X).inverse_transform(codes).dtype == dtype
    imputer = fitted(VAEImputer, rows, n_draws=2)
    filled = imputer.transform(rows)
    assert filled.dtype == imputer.draws(rows).dtype == dtype and np.array_equal(filled[1], rows[1])
    frame = made(VAEImputer).set_output(transform="pandas").fit_transform(pd.DataFrame(rows, columns=list("abcd")))
    assert set(frame.dtypes) == {np.dtype(dtype)}
    assert fitted(VAETransformer, X).transform(rows.astype(np.float16)).dtype == np.float64


@EACH
def test_gaps_of_any_kind_are_gaps_and_what_is_given_stays(kind: type) -> None:
    gaps = X.copy()
    gaps[::7, 1] = np.nan
    expected = answer(fitted(kind, gaps), gaps)
    objects = pd.DataFrame(gaps).astype(object).where(~np.isnan(gaps), pd.NA)
    for given in (np.ma.masked_invalid(np.where(np.isnan(gaps), np.inf, X)), objects, objects.to_numpy()):
        before = given.copy()
        np.testing.assert_array_equal(answer(fitted(kind, given), given), expected)
        assert isinstance(given, np.ma.MaskedArray) or pd.DataFrame(before).equals(pd.DataFrame(given))


@EACH
def test_a_name_of_two_columns_is_refused(kind: type) -> None:
    for names in (["a", "a", "b", "c"], [0, 1, 0, 2]):
        with pytest.raises(DataError, match=f"several are called {names[0]!r}: rename them"):
            fitted(kind, pd.DataFrame(X.astype(object), columns=names))


@EACH
def test_rows_without_any_entry_are_refused(kind: type) -> None:
    with pytest.raises(DataError, match="NaN in every entry"):
        fitted(kind, np.full((60, 4), np.nan))


@EACH
def test_the_unit_of_a_column_may_be_extreme(kind: type) -> None:
    units = 2.0 ** np.array([700, -700, 0, 1000])
    one, other = answer(fitted(kind, X), X), answer(fitted(kind, X * units), X * units)
    assert np.isfinite(other).all()
    if kind not in (VAEImputer, VAEDensity, VAEOutlierDetector):
        np.testing.assert_array_equal(one, other)  # the others answer in these units


@EACH
def test_networks_may_be_linear(kind: type) -> None:
    assert np.isfinite(answer(fitted(kind, X, hidden_layer_sizes=()), X)).all()


@EACH
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"standardize": "no"}, "standardize must be True or False, got 'no'"),
        ({"validation_fraction": 0.999, "n_iter_no_change": 5}, "validation_fraction=0.999 leaves none of 60 rows"),
    ],
)
def test_options_of_all_that_cannot_be(kind: type, options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        fitted(kind, X, **options)


def test_a_number_of_samples_is_called_by_its_name() -> None:
    with pytest.raises(OptionError, match="n_samples must be at least 1, got 0"):
        fitted(VAEDensity, X).sample(0)


def test_of_equal_rows_one_warning_tells_that_they_are_one_cluster() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = fitted(VAECluster, np.ones((60, 4)))
    assert [one.category for one in caught] == [ConvergenceWarning] and set(model.labels_) == {0}


@pytest.mark.parametrize("kind", [VAEOutlierDetector, VAECluster])
def test_several_fits_warn_once(kind: type) -> None:
    options = {"contamination": "auto"} if kind is VAEOutlierDetector else {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted(kind, 1000 * X, standardize=False, **options)
    assert ["Before the fit" in str(one.message) for one in caught] == [True]


# --- labels and numbers


@pytest.mark.parametrize(
    ("y", "classes"),
    [
        (Y.astype(object), [0, 1, 2]),
        ((Y > 0).astype(object), [False, True]),
        (Y.astype(str), ["0", "1", "2"]),
        (pd.Series(Y.astype(str), dtype="string"), ["0", "1", "2"]),
        (pd.Series(pd.Categorical(np.where(Y > 1, "u", "v"))), ["u", "v"]),
    ],
    ids=["objects", "bools", "texts of numbers", "pandas' strings", "categories"],
)
def test_labels_of_any_type(y: Any, classes: list[Any]) -> None:
    model = made(SemiSupervisedVAEClassifier).fit(X, y)
    assert model.classes_.tolist() == classes and 0 <= model.score(X, y) <= 1


def test_labels_that_are_missing_or_of_two_types() -> None:
    y = pd.Series(Y.astype(str), dtype="string").where(Y > 0)
    with pytest.raises(DataError, match="Input y contains NaN"):
        made(SemiSupervisedVAEClassifier).fit(X, y)
    mixed = np.array([str(label) if label else label for label in Y], dtype=object)
    with pytest.raises(DataError, match="all texts or all numbers"):
        made(SemiSupervisedVAEClassifier).fit(X, mixed)


@pytest.mark.parametrize("unlabelled", [-1, -1.0, "-1"])
def test_a_score_is_of_the_labelled_rows(unlabelled: Any) -> None:
    names = Y.astype(str) if unlabelled == "-1" else Y.astype(type(unlabelled))
    few = np.where(np.arange(60) % 3 > 0, unlabelled, names)
    model = made(SemiSupervisedVAEClassifier, max_iter=20, learning_rate_init=0.05).fit(X, few)
    labelled = few == names
    weights = np.arange(60.0)
    right = model.predict(X[labelled]) == few[labelled]
    assert model.score(X, few) == right.mean() > 0.9
    assert model.score(pd.DataFrame(X), few, weights) == pytest.approx(np.average(right, weights=weights[labelled]))
    with pytest.raises(DataError, match="No row has a known y"):
        model.score(X[~labelled], few[~labelled])


def test_minus_one_counts_where_it_is_a_class() -> None:
    y = np.where(Y > 0, 1, -1)
    model = made(SemiSupervisedVAEClassifier).fit(X, y)
    assert model.score(X, y) == (model.predict(X) == y).mean()
    objects = made(SemiSupervisedVAEClassifier).fit(X, y.astype(object))
    assert objects.classes_.tolist() == [-1, 1] and objects.score(X, y.astype(object)) == model.score(X, y)


@pytest.mark.parametrize("kind", [SemiSupervisedVAEClassifier, VAERegressor])
def test_a_score_refuses_what_a_fit_does(kind: type) -> None:
    with pytest.raises(NotFittedError):
        made(kind).score(X, Y)
    model = fitted(kind, X)
    with pytest.raises(ValueError, match="requires y to be passed"):
        model.score(X, None)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        model.score(X, Y[:5])
    if kind is SemiSupervisedVAEClassifier:
        with pytest.raises(DataError, match="NaN, None or empty texts in 20 rows"):
            model.score(X, np.where(Y > 1, np.nan, Y))


def test_a_regression_of_few_numbers_can_be_cross_validated() -> None:
    y = np.where(np.arange(60) % 3 > 0, np.nan, X[:, 0])
    assert (cross_val_score(made(VAERegressor, max_iter=20), X, y, cv=3, error_score="raise") > 0.9).all()
    masked = np.ma.masked_invalid(y)
    one, other = (made(VAERegressor).fit(X, given) for given in (y, masked))
    np.testing.assert_array_equal(one.predict(X), other.predict(X))
    assert one.score(X, masked) == one.score(X[::3], X[::3, 0])


@pytest.mark.parametrize("y", [["a"] * 60, X[:, 0].astype(str), pd.Series(pd.date_range("2020", periods=60))])
def test_numbers_that_are_none(y: Any) -> None:
    with pytest.raises(DataError, match="y must be numbers"):
        made(VAERegressor).fit(X, y)

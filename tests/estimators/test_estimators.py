"""The estimators: their numbers are right, a row's answer depends on that row alone, and unusual input is taken or named."""

import copy
import math
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.validation import check_is_fitted

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.criticism import proposals
from pyrovae.errors import DataError, PairError, PyrovaeError
from pyrovae.sklearn import (
    SemiSupervisedVAEClassifier,
    VAECluster,
    VAEDensity,
    VAEImputer,
    VAEOutlierDetector,
    VAERegressor,
    VAETransformer,
    _graphs,
)

SMALL: dict[str, Any] = {"hidden_layer_sizes": (8,), "n_draws": 20, "max_iter": 5, "random_state": 0}
ALL = (
    VAETransformer,
    VAEDensity,
    VAEOutlierDetector,
    VAECluster,
    VAEImputer,
    SemiSupervisedVAEClassifier,
    VAERegressor,
)


def answer(model: Any, X: Any) -> np.ndarray:
    """The numbers of an estimator, one or more for each row."""
    for name in ("score_samples", "predict_proba", "transform", "predict"):
        if hasattr(model, name):
            return np.asarray(getattr(model, name)(X))
    raise AssertionError


@pytest.fixture(scope="module")
def X() -> np.ndarray:
    return make_blobs(n_samples=60, n_features=4, centers=3, random_state=0)[0]


@pytest.fixture(scope="module")
def y() -> np.ndarray:
    return make_blobs(n_samples=60, n_features=4, centers=3, random_state=0)[1]


def fitted(kind: type, X: Any, y: Any, **options: Any) -> Any:
    clusters = {"n_clusters": 3} if kind is VAECluster else {}
    return kind(**SMALL | clusters | options).fit(X, y)


# --- what the numbers are


class Line(torch.nn.Module):
    """`z ~ N(0, 1), x_d | z ~ N(w_d z, 1/4)`, in the units of standardised columns, with the exact posterior as guide."""

    def __init__(self, num: int) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.linspace(0.5, 1.0, num))

    def model(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.w.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z[..., None] * self.w, 0.5).to_event(1), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        precision = 1 + 4 * self.w.square().sum()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(4 * (x * self.w).sum(-1) / precision, precision.rsqrt()))


def exact(model: Any, X: np.ndarray) -> np.ndarray:
    """log p(x) of `Line`, in the units of X."""
    w = model.fit_.pair.w.detach()
    scale, mean = X.std(0), X.mean(0)
    marginal = dist.MultivariateNormal(
        torch.zeros(len(w)).double(), torch.outer(w, w) + 0.25 * torch.eye(len(w)).double()
    )
    return marginal.log_prob(torch.from_numpy((X - mean) / scale)).numpy() - np.log(scale).sum()


@pytest.mark.parametrize("proposal", ["guide", "laplace", "refined"])
def test_the_density_is_that_of_the_closed_form_in_the_units_of_X(X: np.ndarray, proposal: str) -> None:
    X = X * [1.0, 10.0, 100.0, 0.1] + 5
    model = VAEDensity(graph=Line(4), proposal=proposal, **SMALL | {"n_draws": 1000}).fit(X)
    np.testing.assert_allclose(model.score_samples(X), exact(model, X), atol=1e-6 if proposal == "guide" else 0.3)
    assert model.score(X) == pytest.approx(exact(model, X).mean(), abs=1e-6 if proposal == "guide" else 0.05)


@pytest.mark.slow
def test_samples_have_the_moments_of_the_rows() -> None:
    """Of a model that fits them; the test fails by chance less than once in 1,000 times."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 1)) @ [[1.0, 20.0, -3.0]] + rng.normal(size=(300, 3)) * [0.3, 5.0, 1.0] + [7, -100, 0]
    model = VAEDensity(graph=lambda x: Line(3), **SMALL | {"max_iter": 60}).fit(X)
    drawn = model.sample(4000, random_state=1)
    np.testing.assert_allclose(drawn.mean(0), X.mean(0), atol=4 * (drawn.std(0) / 4000**0.5).max())
    assert drawn.shape == (4000, 3) and np.array_equal(drawn, model.sample(4000, random_state=1))
    assert not np.array_equal(drawn, model.sample(4000, random_state=2))


@pytest.mark.slow
def test_missing_entries_are_integrated_out(X: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """The density of one column, the others missing, has a mass of 1."""
    monkeypatch.setattr(proposals, "STEPS", 100)
    model = fitted(VAEDensity, X, None, n_draws=300)
    gaps = X.copy()
    gaps[:, 1:] = np.nan
    one = model.score_samples(gaps)
    points = np.linspace(X[:, 0].min() - 6 * X[:, 0].std(), X[:, 0].max() + 6 * X[:, 0].std(), 200)
    grid = np.full((200, 4), np.nan)
    grid[:, 0] = points
    mass = np.trapezoid(np.exp(model.score_samples(grid)), points)
    assert np.isfinite(one).all() and mass == pytest.approx(1.0, abs=0.1)


def test_codes_are_the_means_of_the_guide_and_come_back(X: np.ndarray) -> None:
    model = fitted(VAETransformer, X, None, n_components=2)
    scaled = torch.from_numpy((X - X.mean(0)) / X.std(0))
    np.testing.assert_allclose(model.transform(X), pv.encode(model.fit_, scaled).numpy(), atol=1e-12)
    assert model.inverse_transform(model.transform(X)).shape == X.shape
    assert model.get_feature_names_out().tolist() == ["vaetransformer0", "vaetransformer1"]
    for columns in (1, 3, 4):  # four numbers of a row would be two codes
        with pytest.raises(DataError, match=f"codes with 2 columns, .* got {columns} columns"):
            model.inverse_transform(np.ones((5, columns)))


@pytest.mark.slow
def test_a_share_of_the_training_rows_are_outliers_and_a_far_row_is_one(X: np.ndarray) -> None:
    model = fitted(VAEOutlierDetector, X, None, contamination=0.2)
    assert (model.predict(X) == -1).sum() == 12
    np.testing.assert_allclose(model.decision_function(X), model.score_samples(X) - model.offset_)
    assert model.predict(X[:1] + 100).tolist() == [-1]


@pytest.mark.slow
def test_labels_of_a_few_rows_label_the_others(X: np.ndarray, y: np.ndarray) -> None:
    names = np.array(["rose", "tulip", "lily"], dtype=object)[y]
    few = names.copy()
    few[np.arange(60) % 5 > 0] = -1
    how = SMALL | {"max_iter": 25, "learning_rate_init": 0.05, "dropout": 0.0}
    for given in (few, few.astype(str), pd.Series(few)):
        model = SemiSupervisedVAEClassifier(**how).fit(X, given)
        assert model.classes_.tolist() == ["lily", "rose", "tulip"]
        assert model.score(X, names) > 0.9
        np.testing.assert_allclose(model.predict_proba(X).sum(1), 1)
    assert SemiSupervisedVAEClassifier(**SMALL).fit(X, np.where(y > 1, 1, -1)).classes_.tolist() == [-1, 1]
    joint = SemiSupervisedVAEClassifier(method="joint", **how).fit(X, few)
    assert joint.score(X, names) > 0.9


def test_an_ensemble_is_pooled_with_the_classifier_which_counts_a_tenth(X: np.ndarray, y: np.ndarray) -> None:
    few = np.where(np.arange(60) % 5 > 0, -1, y)
    how = SMALL | {"dropout": 0.0, "max_iter": 1}
    model = SemiSupervisedVAEClassifier(**how).fit(X, few)
    alone = copy.copy(model)
    alone.ensemble_ = None  # as n_neighbors=None leaves it
    f = pv.LabelEnsemble(torch.from_numpy(X), torch.from_numpy(few))(torch.from_numpy(X)).numpy()
    wanted = alone.predict_proba(X) ** 0.1 * f**0.9
    np.testing.assert_allclose(model.predict_proba(X), wanted / wanted.sum(1, keepdims=True), atol=1e-6)
    assert SemiSupervisedVAEClassifier(n_neighbors=None, **how).fit(X, few).ensemble_ is None
    with pytest.raises(pv.OptionError, match="n_neighbors must be a whole number of at least 1, or None, got 0"):
        SemiSupervisedVAEClassifier(n_neighbors=0).fit(X, few)
    for shape in ((4, 4), 3, (-1, -3)):
        model = SemiSupervisedVAEClassifier(image_shape=shape)
        with pytest.raises(pv.ShapeError):
            model.fit(X, few)
        assert not hasattr(model, "fit_")  # it is refused before the model is fitted


@pytest.mark.slow
def test_numbers_of_a_few_rows_predict_the_others() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 3))
    whole = 1000 + 50 * (X @ [1.0, 0.5, 0.0])
    few = np.where(np.arange(200) < 80, whole, np.nan)
    model = VAERegressor(**SMALL | {"max_iter": 25, "learning_rate_init": 0.05}).fit(X, few)
    assert model.score(X[80:], whole[80:]) > 0.8


def test_the_default_regressor_is_ridge_regression_and_a_network_of_small_weights() -> None:
    """Its linear part is that of `RidgeCV` of the rows whose y is known, which a fit leaves as it is."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 3)) * [1.0, 20.0, 0.1] + 5
    y = X @ [1.0, 0.1, 3.0] + rng.normal(size=60)
    y[40:] = np.nan
    X[3, 1] = np.nan
    model = VAERegressor(**SMALL | {"max_iter": 2}).fit(X, y)
    pair = model.fit_.pair
    scaled = ((X - np.nanmean(X, 0)) / np.nanstd(X, 0))[:40]
    exact = RidgeCV(np.logspace(-2, 4, 25)).fit(np.nan_to_num(scaled), (y[:40] - y[:40].mean()) / y[:40].std())
    np.testing.assert_allclose(pair.regressor.net.net.linear.weight.numpy(), exact.coef_[None], rtol=1e-8)
    net = pair.regressor.net.net.net
    weights = torch.cat([layer.weight.flatten() for layer in net.modules() if isinstance(layer, torch.nn.Linear)])
    prior = torch.distributions.Normal(0.0, math.sqrt(2 / 3))
    log_p = pair.alpha * (prior.log_prob(weights) - prior.log_prob(torch.zeros(()))).sum()
    torch.testing.assert_close(_graphs.small_weights(pair), -log_p)
    assert _graphs.ridge(torch.ones(4, 2), torch.tensor([1.0, 2.0, 3.0, torch.nan])).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("known", [1, 2, 6])
def test_a_regressor_takes_few_numbers(known: int) -> None:
    X = np.random.default_rng(0).normal(size=(20, 3))
    y = np.where(np.arange(20) < known, 7.0 + X[:, 0], np.nan)
    assert np.isfinite(VAERegressor(**SMALL | {"max_iter": 1}).fit(X, y).predict(X)).all()


class GapLine(Line):
    """`Line` for rows with gaps."""

    def model(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.w.new_zeros(()), 1.0))
            whole = dist.Normal(z[..., None] * self.w, 0.5).to_event(1)
            pyro.sample("x", pv.distributions.ObservedOnly(whole), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        there = (~x.isnan()).to(x.dtype)
        precision = 1 + 4 * (there * self.w.square()).sum(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(4 * (x.nan_to_num() * self.w).sum(-1) / precision, precision.rsqrt()))


def test_what_is_filled_in_is_the_conditional_mean(X: np.ndarray) -> None:
    """Of a Gaussian model, in the units of X. With 400 draws of a standard deviation of 0.3 the error is about 0.02."""
    gaps = with_gaps(X)
    model = VAEImputer(graph=GapLine(4), proposal="guide", n_particles=2000, **SMALL).fit(gaps)
    filled = model.transform(gaps)
    mean, scale = np.nanmean(gaps, 0), np.nanstd(gaps, 0)
    there = ~np.isnan(gaps)
    w = model.fit_.pair.w.detach().numpy()
    scaled = np.nan_to_num((gaps - mean) / scale)
    z = 4 * (scaled * there * w).sum(1) / (1 + 4 * (there * w**2).sum(1))
    np.testing.assert_allclose((filled - mean) / scale, np.where(there, scaled, z[:, None] * w), atol=0.1)
    assert np.array_equal(filled[there], gaps[there])
    draws = VAEImputer(graph=GapLine(4), proposal="guide", **SMALL | {"n_draws": 200}).fit(gaps).draws(gaps)
    assert draws.shape == (200, 60, 4) and np.array_equal(draws[7][there], gaps[there])
    np.testing.assert_allclose(draws.mean(0)[~there] / scale.mean(), filled[~there] / scale.mean(), atol=0.4)


@pytest.mark.slow
def test_an_imputer_keeps_its_columns_and_their_names(X: np.ndarray) -> None:
    frame = pd.DataFrame(with_gaps(X), columns=list("abcd")).assign(e=np.nan)
    how = SMALL | {"proposal": "guide", "n_particles": 50}
    plain = VAEImputer(**how).set_output(transform="pandas").fit(frame)
    assert list(plain.transform(frame)) == list("abcd") and plain.transform(frame).notna().all().all()
    kept = (
        VAEImputer(keep_empty_features=True, add_indicator=True, **how)
        .set_output(transform="pandas")
        .fit_transform(frame)
    )
    assert list(kept) == [*"abcde", *(f"missingindicator_{name}" for name in "abce")]
    assert (kept["e"] == 0).all() and kept["missingindicator_b"].sum() == 10
    one = VAEImputer(sample_posterior=True, **how).fit(frame)
    assert np.array_equal(one.transform(frame), one.transform(frame))  # random_state is a number
    assert not np.array_equal(one.transform(frame), plain.transform(frame).to_numpy())
    with pytest.raises(ValueError, match="every entry"):
        VAEImputer(**how).fit(np.full((5, 2), np.nan))


# --- repeatable, alone or in company


def with_gaps(X: np.ndarray) -> np.ndarray:
    gaps = X.copy()
    gaps[::7, 1] = np.nan
    gaps[5, :3] = np.nan
    return gaps


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALL)
def test_a_row_is_answered_by_itself(kind: type, X: np.ndarray, y: np.ndarray) -> None:
    gaps = with_gaps(X)
    model = fitted(kind, gaps, y)
    whole = answer(model, gaps)
    np.testing.assert_allclose(answer(model, gaps[::-1])[::-1], whole, atol=1e-8)
    for row in (0, 1, 5):
        np.testing.assert_allclose(answer(model, gaps[row : row + 1]), whole[row : row + 1], atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALL)
def test_a_state_repeats_exactly_and_global_states_are_left_alone(kind: type, X: np.ndarray, y: np.ndarray) -> None:
    torch.manual_seed(3)
    np.random.seed(3)  # the global state is what is tested
    X = with_gaps(X)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), torch.get_default_dtype()
    one = fitted(kind, X, y)
    first = answer(one, X)
    two = clone(one).fit(X, y)
    again = pickle.loads(pickle.dumps(two))
    assert torch.equal(before[0], torch.get_rng_state()) and before[2] == torch.get_default_dtype()
    assert np.array_equal(before[1], np.random.get_state()[1])
    np.testing.assert_array_equal(first, answer(two, X))
    np.testing.assert_array_equal(first, answer(again, X))
    other = clone(one).set_params(random_state=1).fit(X, y)
    alike = kind in (VAECluster, VAEImputer)  # which gives few rows one Normal, in closed form
    assert alike or not np.array_equal(first, answer(other, X))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALL)
def test_nothing_is_printed_or_warned_of(
    kind: type, X: np.ndarray, y: np.ndarray, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer(fitted(kind, X, y), X)
    assert capfd.readouterr() == ("", "")


# --- rows of every form


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALL)
def test_rows_in_any_form_give_the_same(kind: type, X: np.ndarray, y: np.ndarray, tmp_path: Path) -> None:
    X = np.round(X, 2)
    np.save(tmp_path / "rows.npy", X)
    model = fitted(kind, X, y)
    expected = answer(model, X)
    forms = {
        "lists": X.tolist(),
        "Fortran order": np.asfortranarray(X),
        "objects": X.astype(object),
        "read-only": np.load(tmp_path / "rows.npy", mmap_mode="r"),
        "strided": np.repeat(X, 2, axis=1)[:, ::2],
    }
    for form in forms.values():
        np.testing.assert_allclose(answer(model, form), expected, atol=1e-9)
    np.testing.assert_allclose(answer(model, X.astype(np.float32)), expected, rtol=1e-2, atol=1e-2)
    whole = X.astype(int)
    np.testing.assert_allclose(answer(model, whole), answer(model, whole.astype(float)), atol=1e-9)
    again = fitted(kind, forms["read-only"], y.tolist())
    np.testing.assert_allclose(answer(again, X), expected, atol=1e-9)


def test_a_frame_has_names_and_gaps(X: np.ndarray) -> None:
    frame = pd.DataFrame(X, columns=list("abcd"))
    frame.loc[3, "b"] = np.nan
    frame["c"] = frame["c"].round().astype("Int64")
    frame.loc[5, "c"] = pd.NA
    model = fitted(VAEDensity, frame, None)
    assert model.feature_names_in_.tolist() == list("abcd") and np.isfinite(model.score_samples(frame)).all()
    assert model.fit_.columns == {"x": list("abcd")} and fitted(VAEDensity, X, None).fit_.columns == {}
    assert fitted(VAEImputer, frame.assign(b=np.nan), None).fit_.columns == {
        "x": list("acd")
    }  # an empty one is left out
    with pytest.raises(ValueError, match="feature names"):
        model.score_samples(frame[list("dcba")])
    codes = fitted(VAETransformer, frame, None, n_components=2).set_output(transform="pandas").transform(frame)
    assert list(codes) == ["vaetransformer0", "vaetransformer1"] and len(codes) == 60


@pytest.mark.parametrize(
    "column", [["u", "v"] * 30, pd.Categorical(["u", "v"] * 30), pd.date_range("2020", periods=60)]
)
def test_columns_that_are_no_numbers_are_named(X: np.ndarray, column: Any) -> None:
    frame = pd.DataFrame(X, columns=list("abcd")).assign(kind=column)
    with pytest.raises(ValueError, match="'kind'"):
        VAEDensity(**SMALL).fit(frame)


def test_a_sparse_matrix_is_refused_as_scikit_learn_does(X: np.ndarray) -> None:
    with pytest.raises(TypeError, match="[Ss]parse"):
        VAEDensity(**SMALL).fit(sparse.csr_matrix(X))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (np.ones((1, 3)), "minimum of 2"),
        (np.ones(5), "2D"),
        (np.empty((0, 3)), "minimum of 2"),
        (np.full((5, 2), np.inf), "infinity"),
        ([["a", "b"], ["c", "d"]], "convert string to float"),
    ],
)
def test_rows_that_are_none(rows: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        VAEDensity(**SMALL).fit(rows)


@pytest.mark.slow
def test_constant_and_empty_columns_do_no_harm(X: np.ndarray) -> None:
    odd = np.c_[X, np.full(60, 7.0), np.full(60, np.nan)]
    for kind in (VAEDensity, VAETransformer, VAEOutlierDetector):
        assert np.isfinite(answer(fitted(kind, odd, None), odd)).all()


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([-1] * 60, "unlabelled"),
        ([2] * 60, "one class"),
        ([-1, 0] * 30, "-1 means unlabelled"),
        ([0.5, 1.5] * 30, "Unknown label type"),
        ([0, np.nan] * 30, "NaN"),
        (["a", None] * 30, "NaN"),
        (["a", "b", ""] * 20, "empty texts in 20 rows. If these are unlabelled, write -1"),
        (["a", "b", " "] * 20, "empty texts in 20 rows"),
        ([0, 1], "inconsistent numbers of samples"),
        (None, "requires y"),
    ],
)
def test_labels_that_cannot_be_learned_from(X: np.ndarray, labels: Any, words: str) -> None:
    given = np.array(labels, dtype=object) if labels and isinstance(labels[0], str) else labels
    with pytest.raises(ValueError, match=words):
        SemiSupervisedVAEClassifier(**SMALL).fit(X, given)


def test_a_regressor_without_any_number_is_refused(X: np.ndarray) -> None:
    with pytest.raises(ValueError, match="at least one number"):
        VAERegressor(**SMALL).fit(X, np.full(60, np.nan))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_iter": 0}, "max_iter"),
        ({"n_components": 1.5}, "n_components"),
        ({"validation_fraction": 2.0}, "validation_fraction"),
        ({"learning_rate_init": 0}, "learning_rate_init"),
        ({"proposal": "best"}, "proposal"),
        ({"graph": 3}, "graph must be"),
        ({"graph": pv.VAE}, "is a class"),
        ({"graph": lambda x: 3}, "has no `model`"),
    ],
)
def test_options_that_cannot_be(X: np.ndarray, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        VAEDensity(**SMALL | options).fit(X).score_samples(X)
    assert isinstance(caught.value, PyrovaeError)


def test_nothing_is_answered_before_a_fit(X: np.ndarray) -> None:
    for kind in ALL:
        with pytest.raises(NotFittedError):
            answer(kind(), X)
        with pytest.raises(NotFittedError):
            check_is_fitted(kind())


@pytest.mark.slow
def test_clusters_are_numbered_by_their_size(X: np.ndarray) -> None:
    X = X[np.r_[0:60, 0:10]]
    model = VAECluster(3, **SMALL | {"max_iter": 20}).fit(X)
    counts = np.bincount(model.labels_)
    assert (
        len(counts) == 3
        and sorted(counts, reverse=True) == counts.tolist()
        and (model.predict(X) == model.labels_).all()
    )


# --- other graphs, pipelines and searches


def ladder(x: torch.Tensor) -> pv.LadderVAE:
    """A hierarchy, whose means have no closed form."""
    d = x.shape[1]
    return pv.LadderVAE(
        prior=pv.priors.StandardNormal(1),
        lower=[pv.mlp(1, fam.Normal(2), hidden=(8,))],
        likelihood=pv.mlp(2, fam.Normal(d), hidden=(8,)),
        upward=[pv.nets.Activated(pv.nets.MLP(d, 8, (8,))), pv.nets.Activated(pv.nets.MLP(8, 8, (8,)))],
        evidence=[pv.mlp(8, fam.Normal(2), hidden=()), pv.mlp(8, fam.Normal(1), hidden=())],
    )


def clusters(x: torch.Tensor) -> pv.GMVAE:
    d = x.shape[1]
    return pv.GMVAE(
        cluster_prior=pv.priors.Categorical(3),
        prior=pv.mlp(3, fam.Normal(2), hidden=()),
        likelihood=pv.mlp(2, fam.Normal(d), hidden=(8,)),
        encoder=pv.mlp((d, 3), fam.Normal(2), hidden=(8,)),
        classifier=pv.mlp(d, fam.Categorical((), 3), hidden=(8,)),
        code=pv.nets.OneHot(3),
    )


def flowing(x: torch.Tensor) -> pv.VAE:
    d = x.shape[1]
    return pv.VAE(
        pv.priors.FlowPrior(2, hidden=(8,)), pv.mlp(2, fam.StudentT(d)), pv.flow(d, 2, hidden=(8,), flow_hidden=(8,))
    )


def bare(x: torch.Tensor) -> pv.Pair:
    """Plain functions, with bare parameters."""
    d = x.shape[1]

    def model(x: torch.Tensor) -> None:
        weight = pyro.param("weight", lambda: 0.1 * torch.ones(2, d))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight, 1.0).to_event(1), obs=x)

    def guide(x: torch.Tensor) -> None:
        weight = pyro.param("guide_weight", lambda: 0.1 * torch.ones(d, 2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ weight, 1.0).to_event(1))

    return pv.Pair(model, guide)


@pytest.mark.slow
@pytest.mark.parametrize("graph", [ladder, clusters, flowing, bare])
def test_any_graph_takes_the_place_of_the_default(X: np.ndarray, graph: Any) -> None:
    model = fitted(VAEDensity, X, None, graph=graph)
    whole = model.score_samples(X)
    np.testing.assert_allclose(model.score_samples(X[7:9]), whole[7:9], atol=1e-7)
    assert np.isfinite(whole).all() and np.isfinite(model.sample(3)).all()


@pytest.mark.slow
def test_a_pair_is_copied_and_may_have_several_sites(X: np.ndarray) -> None:
    pair = clusters(torch.zeros(2, 4))
    before = {name: value.clone() for name, value in pair.state_dict().items()}
    model = fitted(VAEDensity, X, None, graph=pair)
    assert all(
        torch.equal(before[name], value) and value.dtype != torch.float64 for name, value in pair.state_dict().items()
    )
    assert model.fit_.pair is not pair
    assert len(fitted(VAECluster, X, None, graph=pair).labels_) == 60
    codes = fitted(VAETransformer, X, None, graph=lambda x: flowing(x)).transform(X)
    assert codes.shape == (60, 2)
    with pytest.raises(PairError):
        fitted(VAETransformer, X, None, graph=ladder)  # two sites, and none is named


@pytest.mark.slow
def test_a_graph_of_labels(X: np.ndarray, y: np.ndarray) -> None:
    def graph(x: torch.Tensor, y: torch.Tensor) -> pv.SSVAE:
        c, d = int(y.max()) + 1, x.shape[1]
        return pv.SSVAE(
            label_prior=pv.priors.Categorical(c),
            prior=pv.priors.StandardNormal(2),
            likelihood=pv.mlp((2, c), fam.Normal(d), hidden=(8,)),
            encoder=pv.mlp((d, c), fam.Normal(2), hidden=(8,)),
            classifier=pv.mlp(d, fam.Categorical((), c), hidden=(8,)),
            code=pv.nets.OneHot(c),
        )

    for method in ("guide", "joint"):
        model = fitted(SemiSupervisedVAEClassifier, X, y, graph=graph, method=method, max_iter=20)
        assert model.predict_proba(X).shape == (60, 3)
    with pytest.raises(PairError, match="needs 2 arguments"):
        fitted(SemiSupervisedVAEClassifier, X, y, graph=lambda x, y: flowing(x))


@pytest.mark.slow
def test_pipelines_searches_and_cross_validation(X: np.ndarray, y: np.ndarray) -> None:
    pipeline = make_pipeline(VAETransformer(**SMALL), LogisticRegression())
    search = GridSearchCV(pipeline, {"vaetransformer__n_components": [1, 2]}, cv=2).fit(X, y)
    assert search.best_score_ > 0.5 and search.predict(X).shape == (60,)
    assert np.isfinite(cross_val_score(VAEDensity(**SMALL), X, cv=2)).all()


@pytest.mark.slow
def test_a_search_in_two_processes(X: np.ndarray) -> None:
    density = VAEDensity(proposal="guide", **SMALL)  # whose steps of refinement other processes would not take as few
    search = GridSearchCV(density, {"n_components": [1, 2]}, cv=2, n_jobs=2).fit(X)
    alone = GridSearchCV(density, {"n_components": [1, 2]}, cv=2).fit(X)
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"], atol=1e-6)


@pytest.mark.parametrize(
    "y",
    [
        np.array([0.0, np.nan, 1.0, 1.0]),
        np.array([0, np.nan, "b", "b"], dtype=object),
        np.array(["a", None, "b", "b"], dtype=object),
    ],
    ids=["numbers", "texts, NaN", "texts, None"],
)
def test_an_unlabelled_row_is_written_as_minus_one(y: np.ndarray) -> None:
    with pytest.raises(DataError, match="NaN, None or empty texts in 1 row. .*write -1"):
        SemiSupervisedVAEClassifier().fit(np.arange(8.0).reshape(4, 2), y)

"""The threshold of `VAEOutlierDetector`: from rows that no model has seen, or the share of the training rows."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer

from pyrovae.errors import OptionError
from pyrovae.sklearn import VAEDensity, VAEOutlierDetector, _outliers

SMALL: dict[str, Any] = {
    "hidden_layer_sizes": (8,),
    "n_draws": 20,
    "max_iter": 5,
    "proposal": "guide",
    "random_state": 0,
}


class ByHeart(VAEOutlierDetector):
    """log p(x) is the first column, and a million for a row that it was fitted to."""

    fits: list[np.ndarray]

    def _fit_checked(self, rows: np.ndarray) -> None:
        self.fits.append(rows[:, 0])
        self.fit_: Any = rows[:, 0]

    def _log_p(self, rows: np.ndarray) -> np.ndarray:
        return np.where(np.isin(rows[:, 0], self.fit_), 1e6, rows[:, 0])


def by_heart(rows: int, **options: Any) -> ByHeart:
    """Fitted to 0, 1, 2, ... in random order."""
    model = ByHeart(random_state=0, **options)
    model.fits = []
    return model.fit(
        np.random.default_rng(0).permutation(float(rows) * np.linspace(0, 1, rows, endpoint=False))[:, None]
    )


@pytest.mark.parametrize(("rows", "rate", "k"), [(99, 0.1, 10), (29, 0.1, 3), (30, 0.1, 3), (9, 0.1, 1), (60, 0.5, 30)])
def test_the_threshold_is_a_score_of_rows_that_were_held_out(rows: int, rate: float, k: int) -> None:
    model = by_heart(rows, false_alarm_rate=rate)
    assert model.offset_ == pytest.approx(k - 1)  # the k-th lowest of 0, 1, 2, ...
    assert len(model.fits) == 6 and [len(fit) for fit in model.fits[:1]] == [rows]
    assert sum(rows - len(fit) for fit in model.fits[1:]) == rows  # each is held out once
    assert by_heart(rows, contamination=0.1).offset_ == 1e6


def test_of_many_rows_as_many_are_held_out_as_it_takes() -> None:
    model = by_heart(2000)
    assert [len(fit) for fit in model.fits] == [2000, 1600, 1600]
    assert model.offset_ == pytest.approx(200, abs=70)  # 800 of 2,000: by chance once in 10,000 times
    assert [len(fit) for fit in by_heart(5000).fits] == [5000, 4000]


def test_a_new_score_is_below_the_threshold_as_often_as_said() -> None:
    """A share of 2 in 20; over 40,000 repetitions it is farther off than here less than once in 100,000 times."""
    rng = np.random.default_rng(0)
    called = [rng.normal() < _outliers.lowest(rng.normal(size=19), 0.1) for _ in range(40_000)]
    assert np.mean(called) == pytest.approx(0.1, abs=4.5 * math.sqrt(0.09 / 40_000))


def test_too_few_rows_for_a_rate_are_told() -> None:
    with pytest.warns(
        UserWarning, match=r"false_alarm_rate=0.01 .* the 60 that .* one ordinary row in 61 .* take 99 rows"
    ):
        model = by_heart(60, false_alarm_rate=0.01)
    assert model.offset_ == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        by_heart(99, false_alarm_rate=0.01)


def test_rows_without_a_density_give_a_finite_threshold_below_all_others() -> None:
    scores = np.repeat([-math.inf, -math.inf, -3.0, -2.0], 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for offset in (_outliers.lowest(scores, 0.3), _outliers.share_below(scores, 0.3)):
            assert math.isfinite(offset) and ((scores - offset < 0) == (scores == -math.inf)).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"contamination": "Auto"}, """contamination must be .* at most 0.5, or "auto", got 'Auto'"""),
        ({"contamination": 0.6}, "contamination must be"),
        ({"contamination": None}, "contamination must be"),
        ({"false_alarm_rate": 0}, "false_alarm_rate must be a number above 0 and at most 0.5, got 0"),
        ({"false_alarm_rate": "auto"}, "false_alarm_rate must be"),
    ],
)
def test_shares_that_cannot_be(options: dict[str, Any], words: str) -> None:
    model = VAEOutlierDetector(**SMALL | options)
    with pytest.raises(OptionError, match=words):
        model.fit(np.eye(4))
    assert not hasattr(model, "fit_")  # before anything is fitted


def test_the_threshold_changes_no_density_and_is_repeated() -> None:
    X = np.random.default_rng(0).normal(size=(40, 3))
    auto = VAEOutlierDetector(**SMALL).fit(X)
    given = VAEOutlierDetector(contamination=0.25, **SMALL).fit(X)
    assert np.array_equal(auto.score_samples(X), given.score_samples(X)) and (given.predict(X) == -1).sum() == 10
    assert auto.offset_ == clone(auto).fit(X).offset_ != clone(auto).set_params(random_state=1).fit(X).offset_
    assert auto.get_params()["random_state"] == 0


@pytest.mark.slow
def test_new_ordinary_rows_are_called_as_often_as_said() -> None:
    """Of 119 rows of 30 columns. With exchangeable scores the share is Beta(12, 108), above 0.21 once in 2,000 times."""
    table = load_breast_cancer()
    benign = np.random.default_rng(0).permutation(table.data[table.target == 1])
    model = VAEOutlierDetector(**SMALL | {"max_iter": 100, "hidden_layer_sizes": (64,)}).fit(benign[:119])
    share = (model.predict(benign[119:]) == -1).mean()
    assert 0.02 < share < 0.21
    by_training_rows = np.percentile(model.score_samples(benign[:119]), 10)
    assert (model.score_samples(benign[119:]) < by_training_rows).mean() > 1.5 * share
    assert (model.predict(table.data[table.target == 0]) == -1).mean() > 5 * share  # other rows


def test_a_row_far_from_all_others_leaves_their_answers_alone() -> None:
    """Its density is made of rounding errors, which once passed for a model that cannot run several particles."""
    X = np.random.default_rng(0).normal(size=(40, 5))
    for kind, options in ((VAEOutlierDetector, {"contamination": 0.1}), (VAEDensity, {"n_components": 3})):
        model = kind(**SMALL | {"max_iter": 20} | options).fit(X)
        expected = model.score_samples(X[:3])
        for far in (1e6, 1e9, 1e12, 1e150):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                found = model.score_samples(np.r_[far * X[5:6], X[:3]])
            np.testing.assert_allclose(found[1:], expected, atol=1e-8)
            assert found[0] < expected.min() - 1000


def test_a_row_whose_density_overflows_is_an_outlier() -> None:
    X = np.random.default_rng(0).normal(size=(40, 5))
    model = VAEOutlierDetector(contamination=0.1, **SMALL).fit(X)
    far = np.r_[1e300 * X[:1], X[:1]]
    assert model.score_samples(far)[0] == -math.inf and model.predict(far).tolist() == [-1, 1]

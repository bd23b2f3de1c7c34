"""scikit-learn's own checks of all estimators, none of which is expected to fail."""

from typing import Any

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from pyrovae.sklearn import (
    SemiSupervisedVAEClassifier,
    VAEDensity,
    VAEOutlierDetector,
    VAERegressor,
    VAETransformer,
)

SMALL: dict[str, Any] = {"hidden_layer_sizes": (8,), "n_draws": 10, "max_iter": 2}
# Small and short, as scikit-learn sets its own for these checks.
ESTIMATORS = [
    VAETransformer(**SMALL),
    VAEDensity(**SMALL),
    VAEOutlierDetector(proposal="guide", **SMALL),
    SemiSupervisedVAEClassifier(dropout=0.0, **SMALL | {"n_draws": 1}),
    VAERegressor(**SMALL),
]
# Where a check asks for a good fit, it gets one that is just long enough.
LONGER: dict[str, dict[str, Any]] = {
    "check_classifiers_train": {"max_iter": 10, "learning_rate_init": 0.1},
    "check_regressors_train": {"max_iter": 30, "learning_rate_init": 0.05},
}


@parametrize_with_checks(ESTIMATORS)
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator.set_params(**LONGER.get(name_of(check), {})))


def name_of(check: Any) -> str:
    """The name of a check, which may be a partial of a partial."""
    while hasattr(check, "func"):
        check = check.func
    return str(check.__name__)


DEFAULTS = [
    VAETransformer(),
    VAEDensity(),
    VAEOutlierDetector(),
    SemiSupervisedVAEClassifier(),
    VAERegressor(),
]


@pytest.mark.slow
@parametrize_with_checks(DEFAULTS)
def test_scikit_learns_checks_of_the_defaults(estimator: Any, check: Any) -> None:
    """Those in which the quality or the repeatability of a whole fit matters."""
    if name_of(check) not in (
        "check_methods_subset_invariance",
        "check_fit_idempotent",
        "check_outliers_train",
    ):
        pytest.skip("asked of the small ones")
    check(estimator)

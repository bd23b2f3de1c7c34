"""scikit-learn's own checks of all estimators, none of which is expected to fail."""

from typing import Any

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from pyrovae.sklearn import (
    SemiSupervisedVAEClassifier,
    VAECluster,
    VAEDensity,
    VAEImputer,
    VAEOutlierDetector,
    VAERegressor,
    VAETransformer,
)

SMALL: dict[str, Any] = {"hidden_layer_sizes": (8,), "n_draws": 10, "max_iter": 1}
# Small and short, as scikit-learn sets its own for these checks.
QUICK = [VAETransformer(**SMALL)]
SLOW = [
    VAEOutlierDetector(proposal="guide", **SMALL),
    VAEImputer(**SMALL, n_particles=20),
    SemiSupervisedVAEClassifier(dropout=0.0, **SMALL | {"n_draws": 1}),
    VAEDensity(proposal="guide", **SMALL),
    VAECluster(**SMALL),
    VAERegressor(**SMALL),
]
# Where a check asks for a good fit, it gets one that is just long enough.
LONGER: dict[str, dict[str, Any]] = {
    "check_clustering": {"max_iter": 5, "learning_rate_init": 0.05},
    "check_classifiers_train": {"max_iter": 6, "learning_rate_init": 0.1},
    "check_regressors_train": {"max_iter": 15, "learning_rate_init": 0.1},
}


@parametrize_with_checks(QUICK)
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator.set_params(**LONGER.get(name_of(check), {})))


@pytest.mark.slow
@pytest.mark.usefixtures("small_ensembles")
@parametrize_with_checks(SLOW)
def test_scikit_learns_checks_of_the_others(estimator: Any, check: Any) -> None:
    check(estimator.set_params(**LONGER.get(name_of(check), {})))


def name_of(check: Any) -> str:
    """The name of a check, which may be a partial of a partial."""
    while hasattr(check, "func"):
        check = check.func
    return str(check.__name__)

"""Fits whose answer is known: a conjugate mean, and probabilistic PCA."""

from __future__ import annotations

import pytest
from support.comparisons import BOUND
from support.pairs import (
    fit_global_mean,
    pca_comparison,
)

pytestmark = [pytest.mark.slow, pytest.mark.auto_engine]


@pytest.mark.parametrize("auto", [False, True], ids=["by hand", "AutoNormal"])
def test_conjugate_global_mean(auto: bool) -> None:
    # Seeded. Over seeds the ratio has sd 1 % (optimiser's noise): false alarms 1e-6. Without N/B it is 3.2.
    ratio, shift = fit_global_mean(auto)
    assert abs(ratio - 1) < 0.05
    assert abs(shift) < 0.5


def test_linear_vae_is_probabilistic_pca() -> None:
    found = pca_comparison(2, num_samples=500)
    assert abs(found["difference"]) < 0.1
    assert abs(found["closed_form_minus_importance"]) < 0.02
    assert found["importance_error"] < 0.02 / BOUND
    # the bound means something: a model without z is far away
    assert found["pca_score"] > -5 and found["k_hat_above_threshold"] == 0.0

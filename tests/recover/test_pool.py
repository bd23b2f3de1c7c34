"""Rubin's rules against figures worked out elsewhere."""

import numpy as np
import pytest
import torch
from scipy import stats

import pyrovae as pv


def test_of_one_estimate_everything_is_as_worked_out_by_hand() -> None:
    """Mean 1.1, within 0.13/3, between 0.01; l = (4/3) 0.01 / T; 30 degrees of freedom of complete data."""
    within, between = 0.13 / 3, 0.04 / 3
    total = within + between
    share = between / total
    old, observed = 2 / share**2, 31 / 33 * 30 * (1 - share)
    found = pv.pool([1.0, 1.2, 1.1], [0.04, 0.05, 0.04], df=30)
    freedom = old * observed / (old + observed)
    ratio = between / within
    missing = (ratio + 2 / (freedom + 3)) / (ratio + 1)
    for value, wanted in zip(
        (found.estimate, found.standard_error, found.df, found.missing_information),
        (1.1, np.sqrt(total), freedom, missing),
    ):
        assert float(value) == pytest.approx(wanted, rel=1e-12)
    assert float(pv.pool([1.0, 1.2, 1.1], [0.04, 0.05, 0.04]).df) == pytest.approx(old)
    low, high = found.interval(0.9)
    half = stats.t.ppf(0.95, freedom) * np.sqrt(total)
    assert float(low) == pytest.approx(1.1 - half) and float(high) == pytest.approx(1.1 + half)
    assert float(found.p_value(1.1 - half)) == pytest.approx(0.1)
    assert "missing information" in found._repr_html_()


def test_two_coefficients_are_pooled_as_by_statsmodels() -> None:
    """`MICE.combine` of statsmodels 0.15.0 on five regressions of 12 rows gave these estimates, standard errors and shares l of
    the variance between data sets; the degrees of freedom of Rubin 1987 are 4 / l^2."""
    q = [[1.0, 1.959154], [1.233333, 1.977846], [1.360917, 2.016981], [1.373833, 2.040538], [1.36925, 2.026942]]
    u = [
        [0.04808861, 0.1220711],
        [0.05613579, 0.14249854],
        [0.06621507, 0.1680844],
        [0.06082226, 0.15439496],
        [0.04636541, 0.11769681],
    ]
    found = pv.pool(q, u)
    share = np.array([0.35777915, 0.00995602])
    np.testing.assert_allclose(found.estimate, [1.26746667, 2.00429231], rtol=1e-6)
    np.testing.assert_allclose(found.standard_error, [0.2940382, 0.37731494], rtol=1e-6)
    np.testing.assert_allclose(found.df, 4 / share**2, rtol=1e-4)
    observed = 11 / 13 * 10 * (1 - share)  # of Barnard and Rubin 1999, with 10 degrees of freedom of complete data
    np.testing.assert_allclose(pv.pool(q, u, df=10).df, 1 / (share**2 / 4 + 1 / observed), rtol=1e-5)


def test_several_estimates_in_any_kind_of_array() -> None:
    q, u = torch.randn(5, 2, 3, dtype=torch.float64), torch.rand(5, 2, 3, dtype=torch.float64)
    found = pv.pool(list(q), u.numpy(), df=100)
    one = pv.pool(q[:, 1, 2], u[:, 1, 2], df=100)
    assert found.estimate.shape == (2, 3)
    assert found.df[1, 2] == pytest.approx(float(one.df)) and found.p_value()[1, 2] == pytest.approx(
        float(one.p_value())
    )


def test_estimates_that_agree_lose_nothing() -> None:
    found = pv.pool([2.0, 2.0], [0.09, 0.09])
    assert float(found.standard_error) == pytest.approx(0.3) and np.isinf(found.df) and found.missing_information == 0
    low, high = found.interval()
    assert float(high - low) == pytest.approx(2 * 1.959964 * 0.3, rel=1e-6)
    assert float(pv.pool([2.0, 2.0], [0.09, 0.09], df=10).df) == pytest.approx(11 / 13 * 10)
    assert float(pv.pool([1.0, 2.0], [0.0, 0.0]).missing_information) == 1


@pytest.mark.slow
def test_intervals_contain_the_truth_as_often_as_they_say() -> None:
    """A mean of 30 normals of which 10 are imputed by draws of their posterior predictive, 5 times; 2000 repetitions. The
    share is within 4.5 standard errors of 95 % (false alarms 7e-6) plus one percent, since the rules are approximate."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(2000):
        x = rng.normal(size=20)
        q, u = [], []
        for _ in range(5):
            variance = x.var(ddof=1) * 19 / rng.chisquare(19)
            mean = rng.normal(x.mean(), np.sqrt(variance / 20))
            whole = np.concatenate([x, rng.normal(mean, np.sqrt(variance), 10)])
            q.append(whole.mean())
            u.append(whole.var(ddof=1) / 30)
        low, high = pv.pool(q, u, df=29).interval(0.95)
        hits += int(low <= 0 <= high)
    assert abs(hits / 2000 - 0.95) < 4.5 * np.sqrt(0.95 * 0.05 / 2000) + 0.01


def test_what_cannot_be_pooled() -> None:
    with pytest.raises(pv.DataError, match="at least two data sets"):
        pv.pool([1.0], [0.1])
    with pytest.raises(pv.DataError, match=r"got \(2,\) and \(3,\)"):
        pv.pool([1.0, 2.0], [0.1, 0.1, 0.1])
    with pytest.raises(pv.DataError, match="must be finite"):
        pv.pool([1.0, float("nan")], [0.1, 0.1])
    with pytest.raises(pv.OptionError, match="df must be a positive number"):
        pv.pool([1.0, 2.0], [0.1, 0.1], df=0)
    with pytest.raises(pv.OptionError, match="level must be a number between 0 and 1"):
        pv.pool([1.0, 2.0], [0.1, 0.1]).interval(95)

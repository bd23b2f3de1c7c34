"""Reconstructed columns of a table: what is at the axes, and what is drawn for classes and for days."""

import numpy as np
import pandas as pd
import pytest

from pyrovae import plots

DAY_0 = np.datetime64("1970-01-01")


def of_columns(columns: dict, x: np.ndarray, x_hat: np.ndarray) -> list:
    axes = list(plots.reconstructions(x, x_hat, columns=columns))
    axes[0].get_figure(root=True).canvas.draw()
    return axes


def test_classes_have_their_names_and_discs_as_large_as_the_numbers_of_rows() -> None:
    x = np.array([[0.0], [0.0], [0.0], [1.0], [2.0], [np.nan]])
    (panel,) = of_columns(
        {"walks": ("never", "some$times_and_more", "often")}, x, np.array([[0.0], [0.0], [2.0], [1.0], [2.0], [0.0]])
    )
    assert panel.get_title(loc="left") == "walks, 80% right"
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["never", "some\\$tim…", "often"]
    drawn = panel.collections[0]
    np.testing.assert_array_equal(drawn.get_offsets(), [[0, 0], [0, 2], [1, 1], [2, 2]])
    np.testing.assert_allclose(drawn.get_sizes() / drawn.get_sizes()[1], [2, 1, 1, 1])
    right = (drawn.get_facecolors() == drawn.get_facecolors()[0]).all(1)
    assert right.tolist() == [True, False, True, True]


@pytest.mark.parametrize("shift", [0, 1000])
@pytest.mark.parametrize("span", [0.5, 2, 5, 20, 60, 200, 1000, 2000, 9000, 60_000])
def test_days_are_dates_at_the_axes(span: float, shift: int) -> None:
    days = np.linspace(19_005.3, 19_005.3 + span, 50)[:, None]
    (panel,) = of_columns({"seen": DAY_0 - np.timedelta64(shift, "D")}, days + shift, days + shift + 0.1 * span)
    assert panel.get_title(loc="left").startswith("seen, R² = 0.8")
    for axis in (panel.xaxis, panel.yaxis):
        low, high = axis.get_view_interval()
        assert high - low < 1.3 * span  # which the ticks have not stretched
        ticks = axis.get_major_ticks()
        assert 2 <= len(ticks) <= 6
        for tick in ticks:
            assert low <= tick.get_loc() <= high
            since = np.datetime64(tick.label1.get_text(), "ms") - DAY_0.astype("M8[ms]")
            assert tick.get_loc() - shift == pytest.approx(since / np.timedelta64(86_400_000, "ms"), abs=1e-6)


def test_days_far_from_any_calendar_stay_numbers() -> None:
    days = np.array([[0.0], [1e9]])
    (panel,) = of_columns({"seen": DAY_0}, days, days)
    assert all("-" not in tick.get_text() for tick in panel.get_xticklabels())


@pytest.mark.parametrize("span", [5, 100, 2000, 20_000, 90_000, 400_000])
def test_seconds_are_times_at_the_axes(span: float) -> None:
    seconds = np.linspace(20_005.0, 20_005.0 + span, 50)[:, None]
    (panel,) = of_columns({"starts": np.timedelta64(1, "s")}, seconds, seconds + 0.1 * span)
    for axis in (panel.xaxis, panel.yaxis):
        low, high = axis.get_view_interval()
        ticks = axis.get_major_ticks()
        assert 2 <= len(ticks) <= 6 and high - low < 1.3 * span
        for tick in ticks:
            parts = [int(part) for part in tick.label1.get_text().split(":")]
            assert len(parts) == (3 if span <= 100 else 2)
            assert low <= tick.get_loc() == sum(part * 60**place for place, part in zip((2, 1, 0), parts)) <= high


@pytest.mark.parametrize(("freq", "form"), [("M", "%Y-%m"), ("Q-DEC", "%YQ%q"), ("Y-DEC", "%Y")])
def test_periods_are_named_at_the_axes(freq: str, form: str) -> None:
    first = pd.Period(ordinal=0, freq=freq)
    numbers = np.linspace(640.0, 661.0, 22)[:, None]
    (panel,) = of_columns({"month": first}, numbers, numbers)
    for axis in (panel.xaxis, panel.yaxis):
        ticks = axis.get_major_ticks()
        assert 2 <= len(ticks) <= 6
        assert [tick.label1.get_text() for tick in ticks] == [(first + int(t.get_loc())).strftime(form) for t in ticks]


def test_numbers_beside_them_stay_numbers() -> None:
    x = np.random.default_rng(0).normal(size=(20, 2))
    numbers, classes = of_columns({"a": (), "b": ("x", "y")}, np.c_[x[:, 0], x[:, 1] > 0], np.c_[x[:, 0], x[:, 1] > 1])
    assert numbers.get_title(loc="left") == "a, R² = 1.00" and len(numbers.collections[0].get_offsets()) == 20
    assert classes.get_xlim() == (-0.6, 1.6)

"""What the numbers of a run say where few rows decide the mean, so that its ± says little."""

from typing import Any

import numpy as np
import pytest
import torch

from pyrovae.app.results import remarks_on_results, results_table
from pyrovae.app.scores import _typical, rows_that_dominate

USUAL: dict[str, Any] = {
    **dict.fromkeys(("elbo", "log_likelihood", "train_elbo", "train_log_likelihood", "mixture_log_likelihood"), -10.0),
    **dict.fromkeys(("elbo_se", "log_likelihood_se", "train_elbo_se", "train_log_likelihood_se"), 0.5),
    **{"mixture_log_likelihood_se": 50.0, "above_mixture": 20.0, "above_mixture_se": 50.0, "log_abs_det": 0.0},
    **{"log_likelihood_mc_se": 0.01, "k_hat_above_threshold": 0.0, "k_hat_threshold": 0.7, "num_samples": 100},
    **{"proposal": "refined", "test_rows": 60, "log_likelihood_rows": 60, "active_units": 2, "latent_units": 2},
}


def test_few_rows_are_told_from_many() -> None:
    """By the shares of the variance, in closed form: of n - 1 zeros and one number a the row of a has 1 - 1/n of it."""
    usual = torch.as_tensor(np.random.default_rng(0).normal(size=(200, 60)))
    assert not any(
        rows_that_dominate(rows) for rows in usual
    )  # the largest three of 60 would need half of the variance
    one = torch.zeros(60)
    one[7] = -3000.0
    assert rows_that_dominate(one) == 1
    assert rows_that_dominate(-one) == 0 and rows_that_dominate(-one, below=False) == 1
    one[11] = 2500.0
    assert rows_that_dominate(one) == 1 and rows_that_dominate(one + 1e3) == 1
    one[11] = -3000.0
    assert rows_that_dominate(one) == 2
    assert rows_that_dominate(torch.zeros(60)) == rows_that_dominate(one[:19]) == 0
    assert rows_that_dominate(torch.tensor([0.0, -torch.inf] * 20)) == 0


def test_the_median_stands_below_a_mean_of_few_rows() -> None:
    log_p = torch.cat([torch.full((59,), 12.25), torch.tensor([-3000.0])])
    results = USUAL | _typical("mixture_log_likelihood", log_p) | _typical("above_mixture", 15 - log_p, below=False)
    results |= _typical("log_likelihood", torch.linspace(-12, -8, 60))
    lines = results_table(results, "p(x)").lines
    place = [what for what, _ in lines].index("log p(x) of a Gaussian mixture")
    assert lines[place + 1 : place + 4] == (
        ("  median row", "12.25"),
        ("  how much the model is above it", "+20.00 ± 50.00"),
        ("  median row", "+2.75"),
    )
    said = " ".join(remarks_on_results(results))
    assert "1 under the Gaussian mixture (the least log p(x) is -3000.0, the median 12.2)" in said
    assert "under the model" not in said


@pytest.mark.parametrize("kept", [{}, _typical("mixture_log_likelihood", torch.linspace(-12, -8, 60))])
def test_usual_rows_and_runs_of_before_say_nothing_of_it(kept: dict[str, float]) -> None:
    results = USUAL | kept
    assert "median" not in str(results_table(results, "p(x)")) + " ".join(remarks_on_results(results))


def test_log_p_is_in_the_units_of_the_data() -> None:
    assert _typical("x", torch.tensor([1.0, 3.0, float("nan"), 2.0]), 0.5)["x_median"] == 1.5


def test_a_fit_of_few_steps_is_told_to_be_short() -> None:
    short = USUAL | {"steps": 98, "epochs": 10, "second_half_gain": 1.4}
    assert "The fit is short, 98 steps, in the second half of which the validation ELBO changed by +1.40" in " ".join(
        remarks_on_results(short)
    )
    stopped = {name: value for name, value in short.items() if name != "second_half_gain"}
    for other in (USUAL, stopped, short | {"steps": 1000}, short | {"steps": 500, "epochs": 500}):
        assert "short" not in " ".join(remarks_on_results(other))


@pytest.mark.parametrize(
    ("prior", "other"),
    [("full-mixture-nsf", "full-mixture,"), ("full-mixture", "full-mixture-nsf,"), (None, "full-mixture-nsf,")],
)
def test_where_a_mixture_is_better_another_prior_is_named_than_the_one_of_the_run(
    prior: str | None, other: str
) -> None:
    worse = USUAL | {"above_mixture": -1.0, "above_mixture_se": 0.1, "prior": prior}
    assert f"Try --prior {other} --hidden" in " ".join(remarks_on_results(worse))

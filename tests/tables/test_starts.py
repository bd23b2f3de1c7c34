"""Which starts of a table's model are compared, and one Normal in closed form."""

import pytest
import torch

import pyrovae as pv
from pyrovae.tables import linear, recipe, starts


def test_the_starts_depend_on_rows_and_columns() -> None:
    assert starts.usual(299) == starts.MIXTURE and starts.usual(300) == starts.FLOW
    assert starts.also(200, 220, 5) == ()
    assert starts.also(300, 330, 5) == (starts.MIXTURE,)
    assert starts.also(300, 330, 13) == (starts.MIXTURE, starts.RANDOM)
    assert starts.also(200, 220, 13) == starts.also(1900, 2001, 13) == (starts.RANDOM,)


def test_means_and_errors_of_scores_that_are_no_numbers_decide_nothing() -> None:
    assert starts.mean_of(torch.tensor([1.0, float("nan")])) == -float("inf")
    assert starts.error_of(torch.tensor([1.0])) == starts.error_of(torch.tensor([1.0, float("nan")])) == 0.0
    assert starts.error_of(torch.tensor([0.0, 2.0])) == pytest.approx(1.0)


def with_gaps() -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(60, 2, generator=random, dtype=torch.float64) @ torch.randn(2, 4, generator=random).double()
    x = x + 0.3 * torch.randn(60, 4, generator=random)
    return x.masked_fill(torch.rand(60, 4, generator=random) < 0.2, torch.nan)


def test_one_normal_is_that_of_em_and_fills_in_as_it_says() -> None:
    x = with_gaps()
    mean, covariance = recipe.normal_of_observed(x)
    fitted = pv.fit(linear.normal(x).double(), x, epochs=0, progress=False)
    row = x[(x.isnan().sum(1) == 1).nonzero()[0]]
    lost, known = row[0].isnan(), ~row[0].isnan()
    weights = torch.linalg.solve(covariance[known][:, known], covariance[known][:, lost])
    exact = mean[lost] + (row[0, known] - mean[known]) @ weights
    spread = (covariance[lost][:, lost] - covariance[lost][:, known] @ weights).sqrt()
    found = pv.impute(fitted, row, 1, num_particles=4000, proposal="guide", seed=0)
    assert float((found.mean[0, lost] - exact).abs() / spread) < 0.08  # 5 standard errors of 4,000 draws
    assert found.ess.item() == pytest.approx(4000)
    marginal = torch.distributions.MultivariateNormal(mean[known], covariance[known][:, known])
    exact_log_p = marginal.log_prob(row[0, known])
    log_p = pv.log_likelihood(fitted, row, 2, proposal="guide", seed=0)
    assert log_p.item() == pytest.approx(exact_log_p.item(), abs=1e-6)


def test_one_normal_is_saved_and_read(tmp_path) -> None:  # type: ignore[no-untyped-def]
    x = with_gaps()
    fitted = pv.fit(linear.normal(x).double(), x, epochs=0, progress=False)
    pv.save(fitted, tmp_path / "run")
    read = pv.load(tmp_path / "run")
    ask = {"proposal": "guide", "seed": 0}
    assert torch.equal(pv.log_likelihood(read, x, 2, **ask), pv.log_likelihood(fitted, x, 2, **ask))


def test_many_columns_are_held_by_few_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def of(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(len(x))
        return recipe.normal_of_observed(x)

    monkeypatch.setattr(linear, "normal_of_observed", of)
    monkeypatch.setattr(linear, "MOST_NUMBERS", 16 * 30)
    linear.normal(with_gaps())
    assert seen == [30]

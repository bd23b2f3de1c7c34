"""Calibration under the model: exact p-values, discrete codes, and correlations that margins do not show."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from support.pairs import LinearGaussian, linear_gaussian, normal, ones, unfitted, zeros
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.criticism import ecdf
from pyrovae.criticism.evidence import GUIDE_DRAWS, Codes
from pyrovae.criticism.sbc import joint_coverage, ranks

SBC = ("simulation_based_calibration", "symmetry", "joint_coverage")


def test_the_p_value_of_uniform_ranks_is_that_of_simulations() -> None:
    """Within 4.5 standard errors of 2,000 simulations, at three levels: false alarms 2e-5."""
    rng = np.random.default_rng(0)
    smallest = ecdf.smallest_p(rng.integers(0, 8, (60, 2000)), 7)
    for share in (0.02, 0.1, 0.4):
        limit = float(np.quantile(smallest, share))
        p = ecdf.p_value(limit, 60, 7)
        reached = (smallest <= limit).mean()
        assert abs(p - reached) < 4.5 * (p * (1 - p) / 2000) ** 0.5
    assert ecdf.p_value(1.0, 60, 7) == pytest.approx(1, abs=1e-4)


def test_the_p_value_of_one_grid_point_is_the_binomial_test() -> None:
    """Ranks 0 and 1 only: the distribution function is one count."""
    r = np.array([[0]] * 15 + [[1]] * 5)
    found = ecdf.p_value(float(ecdf.smallest_p(r, 1)[0]), 20, 1)
    assert found == pytest.approx(stats.binomtest(15, 20).pvalue, rel=1e-9)


def test_the_band_has_the_level_that_it_says() -> None:
    at, low, high = (np.array(ends) for ends in ecdf.band(200, 15, 0.05))
    rng = np.random.default_rng(1)
    out = 0
    for _ in range(1000):
        curve = ecdf.difference(rng.integers(0, 16, (200, 1)), 15)[:, 0]
        out += bool(((curve < low - 1e-12) | (curve > high + 1e-12)).any())
    # at most the level, and not far below it; 4.5 standard errors, false alarms 4e-6
    assert 0.02 < out / 1000 < 0.05 + 4.5 * (0.05 * 0.95 / 1000) ** 0.5
    assert len(at) == 15


def test_ranks_of_discrete_codes_are_uniform() -> None:
    """Truth and 15 draws of one Bernoulli: chi-squared of 16 ranks below its 1 - 1e-6 quantile."""
    torch.manual_seed(0)
    probs = torch.rand(4000, 1)
    truth, draws = torch.bernoulli(probs), torch.bernoulli(probs.expand(15, -1, -1))
    found = ranks(truth, draws, np.random.default_rng(0))[:, 0]
    counts = np.bincount(found, minlength=16)
    assert len(counts) == 16 and stats.chisquare(counts).pvalue > 1e-6


class Coin(nn.Module):
    """y ~ Bernoulli(0.3), x ~ N(2 y, 1); the guide is the posterior, or sharper than it by a factor on its logit."""

    def __init__(self, factor: float = 1.0, enumerate: bool = False) -> None:
        super().__init__()
        self.factor, self.mark = factor, {"enumerate": "parallel"} if enumerate else {}

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(torch.tensor(0.3)))
            pyro.sample("x", dist.Normal(2 * y, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        logit = torch.logit(torch.tensor(0.3)) + 2 * x - 2
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=self.factor * logit), infer=self.mark)


@pytest.mark.parametrize("enumerate", [False, True])
def test_a_discrete_guide_is_calibrated(enumerate: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(100)
    good = pv.criticise(unfitted(Coin(enumerate=enumerate), x), x, only=SBC)
    assert good.verdict == "ok" and len(good.findings) == 3 and not good.of("none")  # one unit has no joint coverage
    report = pv.criticise(unfitted(Coin(4.0, enumerate), x), x, only=SBC)
    assert (
        report["calibration of the guide, y"].values["departure"]
        > good["calibration of the guide, y"].values["departure"]
    )
    assert report["calibration of the guide, y"].p_value < 1e-4


class Correlated(LinearGaussian):
    """The posterior's margins without its correlations: units are independent in the guide."""

    def proposal(self, x: Tensor) -> dist.MultivariateNormal:
        exact = self.posterior(x)
        return dist.MultivariateNormal(exact.mean, torch.diag_embed(exact.covariance_matrix.diagonal(dim1=-2, dim2=-1)))


@pytest.mark.slow
def test_correlations_that_the_guide_lacks_are_found_where_margins_do_not_show_them() -> None:
    torch.manual_seed(0)
    pair = Correlated()
    # the data tell the sum of the units, and hardly their difference
    pair.weight[:, 1] = pair.weight[:, 0] + 0.1 * pair.weight[:, 1]
    x = pair.marginal().sample((100,))
    report = pv.criticise(unfitted(pair, x), x, only=SBC)
    found = report["calibration of the guide, log p(x | z)"]
    assert found.verdict == "bad" and "explain a row worse" in found.advice
    assert report["calibration of the guide, z"].verdict == report["bias of the guide, z"].verdict == "ok"


def test_joint_coverage_finds_regions_that_are_too_small() -> None:
    _, x, fitted = linear_gaussian(100, latent=4, columns=8, spread=0.6)
    assert pv.criticise(fitted, x, only=("joint_coverage",))["joint coverage of the guide"].verdict == "bad"


@pytest.mark.parametrize("seed", range(6))
def test_no_row_is_measured_from_its_own_code(seed: int) -> None:
    """From there no draw is nearer than the truth: of two rows both would have the rank 0."""
    truth = torch.randn(2, 2)
    codes = Codes("z", truth, truth + 1e-3 * torch.randn(GUIDE_DRAWS, 2, 2))
    evidence: Any = SimpleNamespace(codes=[codes], seed=seed)
    assert joint_coverage(evidence)[0].values["departure"] < 0.9


class TwoLevels(nn.Module):
    """z2 ~ N(0, 1), z1 ~ N(z2, 1), x ~ N(z1, 1), with the exact posterior z1 | x, z2 | z1."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", normal(zeros(1), 0.0))
            z1 = pyro.sample("z1", normal(z2, 0.0))
            pyro.sample("x", normal(z1, 0.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(2 / 3 * x, (2 / 3) ** 0.5 * ones(1)).to_event(1))
            pyro.sample("z2", dist.Normal(z1 / 2, 0.5**0.5 * ones(1)).to_event(1))


def test_each_site_of_a_hierarchy_is_calibrated() -> None:
    torch.manual_seed(0)
    x = 3**0.5 * torch.randn(100, 1, dtype=torch.float64)
    report = pv.criticise(unfitted(TwoLevels(), x), x, only=SBC)
    assert {f.name for f in report.findings} == {
        *(f"{what} of the guide, {site}" for what in ("calibration", "bias") for site in ("z1", "z2")),
        "calibration of the guide, log p(x | z)",
        "joint coverage of the guide",
    }
    assert report.verdict == "ok" and not report.of("none")

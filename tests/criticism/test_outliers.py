"""Strange rows: scores in closed form, p-values whose rate of false alarms is what they say, and densities of entries."""

import math
import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import binomtest, false_discovery_control
from support.programs import ROWS
from torch import Tensor

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.criticism.left_out import may_lack_entries
from pyrovae.criticism.outliers import adjusted_p_values
from pyrovae.errors import DataError, OptionError, PairError

W = torch.tensor([0.5, 1.0, -0.7, 0.0], dtype=torch.float64)


class Linear(torch.nn.Module):
    """`z ~ N(0, 1), x_d | z ~ N(w_d z, 1)`; the guide is the posterior, moved by `off` posterior standard deviations."""

    def __init__(self, off: float = 0.0, w: Tensor = W) -> None:
        super().__init__()
        self.w, self.off = torch.nn.Parameter(w.clone()), off

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.w.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z[..., None] * self.w, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        sd = (1 + self.w.square().sum()).rsqrt()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x * self.w).sum(-1) * sd.square() + self.off * sd, sd))


def fit_of(pair: Any, x: Tensor) -> pv.Fit:
    """A fit that leaves the weights as they are."""
    return pv.fit(pair, x, epochs=1, learning_rate=1e-13, engine="eager", progress=False)


def marginal(w: Tensor = W) -> Any:
    return dist.MultivariateNormal(torch.zeros(4).double(), torch.eye(4).double() + torch.outer(w, w))


@pytest.fixture(scope="module")
def x() -> Tensor:
    torch.manual_seed(0)
    rows = marginal().sample((60,))
    rows[0] += 5
    return rows


def test_the_score_is_minus_log_p(x: Tensor) -> None:
    found = pv.anomaly_score(fit_of(Linear(), x), x, num_samples=50, proposal="guide", seed=0)
    torch.testing.assert_close(found.score, -marginal().log_prob(x), atol=1e-6, rtol=0)
    assert found.ranks[0] == 1 and sorted(found.ranks.tolist()) == list(range(1, 61))
    assert found.method == "log_likelihood" and bool((found.error < 1e-6).all())
    assert "strangest of 60 rows" in found._repr_html_()


@pytest.mark.slow
def test_regret_is_what_the_guide_loses(x: Tensor) -> None:
    """Of a guide that is off by a posterior standard deviations, a^2 / 2 nats."""
    found = pv.anomaly_score(fit_of(Linear(off=1.5), x), x[:8], "regret", num_samples=200, seed=0)
    assert bool(((found.score - 1.5**2 / 2).abs() < 5 * found.error + 0.03).all())
    none = pv.anomaly_score(fit_of(Linear(), x), x[:8], "regret", num_samples=200, seed=0)
    assert bool((none.score.abs() < 0.05).all())


def test_typicality_is_the_distance_from_the_usual_density(x: Tensor) -> None:
    fitted, how = fit_of(Linear(), x), {"num_samples": 50, "proposal": "guide", "seed": 0}
    found = pv.anomaly_score(fitted, x, "typicality", reference=x[30:], **how)
    exact = marginal().log_prob(x)
    torch.testing.assert_close(found.score, (exact - exact[30:].mean()).abs(), atol=1e-6, rtol=0)
    spread = exact[30:].std() / math.sqrt(30)
    torch.testing.assert_close(found.error, spread.expand(60), atol=1e-6, rtol=0)


def test_typicality_needs_a_reference_row_with_a_density(x: Tensor) -> None:
    fitted, how = fit_of(Linear(), x), {"num_samples": 20, "proposal": "guide", "seed": 0}
    far = torch.cat([torch.full_like(x[:1], 1e200), x[1:2]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = pv.anomaly_score(fitted, x[:4], "typicality", reference=far, **how)  # one row is left, without a spread
        exact = marginal().log_prob(x)
        torch.testing.assert_close(found.score, (exact[:4] - exact[1]).abs(), atol=1e-6, rtol=0)
        with pytest.raises(pv.DataError, match="No row of the reference"):
            pv.anomaly_score(fitted, x[:4], "typicality", reference=far[:1], **how)


def test_the_ratio_is_that_of_two_models(x: Tensor) -> None:
    one, other = fit_of(Linear(), x), fit_of(Linear(w=2 * W), x)
    found = pv.anomaly_score(one, x, "ratio", background=other, num_samples=50, proposal="guide", seed=0)
    exact = marginal(2 * W).log_prob(x) - marginal().log_prob(x)
    torch.testing.assert_close(found.score, exact, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("method", "words"), [("typicality", "reference="), ("ratio", "background="), ("oddity", "'regret'")]
)
def test_what_a_score_needs_is_said(x: Tensor, method: str, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        pv.anomaly_score(fit_of(Linear(), x), x, method)


# --- p-values


def test_the_rate_of_false_alarms_of_conformal_p_values_is_exact() -> None:
    """Of a model that does not fit at all: the test itself fails by chance once in 10,000 times."""
    torch.manual_seed(1)
    pool = dist.StudentT(2.0, 1.0, 3.0).sample((400, 4)).double()
    scores = pv.anomaly_score(fit_of(Linear(), pool), pool, num_samples=20, proposal="guide", seed=0).score
    alarms, repeats, num = 0, 3000, 99
    for _ in range(repeats):
        drawn = scores[torch.randperm(len(scores))[: num + 1]]
        alarms += int(pv.conformal_p_values(drawn[:num], drawn[num:]).item() <= 0.1)
    assert binomtest(alarms, repeats, 0.1).pvalue > 1e-4, alarms / repeats


def test_p_values_count_ties_and_never_are_zero() -> None:
    found = pv.conformal_p_values([1.0, 2.0, 2.0], [0.0, 2.0, 3.0, math.inf])
    assert found.tolist() == [1.0, 0.75, 0.25, 0.25]


def test_the_share_of_false_discoveries_is_kept() -> None:
    """60 ordinary rows, 15 outliers, 500 repeats; by chance the test fails once in 10,000 times."""
    torch.manual_seed(2)
    shares, hits = [], []
    for _ in range(500):
        p = pv.conformal_p_values(torch.randn(200), torch.cat([torch.randn(60), 4 + torch.randn(15)]))
        called = pv.benjamini_hochberg(p, 0.2)
        shares.append(called[:60].sum() / called.sum().clamp_min(1))
        hits.append(called[60:].double().mean())
    false = torch.stack(shares)
    assert false.mean() <= 0.2 * 60 / 75 + 3.72 * false.std() / math.sqrt(500)
    assert false.mean() > 0.05 and torch.stack(hits).mean() > 0.5  # it does call rows


def test_benjamini_hochberg_agrees_with_scipy() -> None:
    torch.manual_seed(3)
    p = torch.rand(40, dtype=torch.float64) ** 3
    expected = torch.from_numpy(false_discovery_control(p.numpy(), method="bh"))
    torch.testing.assert_close(adjusted_p_values(p), expected)
    for rate in (0.01, 0.1, 0.5):
        assert torch.equal(pv.benjamini_hochberg(p, rate), expected <= rate)
    assert len(adjusted_p_values([])) == 0


def test_what_is_no_score_and_no_p_value_is_refused() -> None:
    with pytest.raises(DataError, match="no calibration scores"):
        pv.conformal_p_values([], [1.0])
    with pytest.raises(DataError, match="NaN"):
        pv.conformal_p_values([1.0, math.nan], [1.0])
    with pytest.raises(DataError, match="0 to 1"):
        pv.benjamini_hochberg([0.5, 1.5], 0.1)
    with pytest.raises(OptionError, match="rate"):
        pv.benjamini_hochberg([0.5], 1.0)


# --- entries


def test_the_densities_of_entries_are_those_of_the_closed_forms(x: Tensor) -> None:
    """Given its code, and given the other entries; 4,000 draws leave errors of up to 0.02 nats where the entry is usual."""
    rows = x[1:13]
    how = {"num_samples": 4000, "num_particles": 4000, "proposal": "guide", "seed": 0}
    found = pv.entry_densities(fit_of(Linear(), x), rows, **how)
    var = 1 / (1 + W.square().sum())
    mean = (rows @ W) * var
    gaps = rows - mean[:, None] * W
    expected = -0.5 * math.log(2 * math.pi) - (gaps.square() + W.square() * var) / 2
    torch.testing.assert_close(found.log_density, expected, atol=0.15, rtol=0)
    covariance = torch.eye(4).double() + torch.outer(W, W)
    for d in range(4):
        others = [e for e in range(4) if e != d]
        slope = torch.linalg.solve(covariance[others][:, others], covariance[others, d])
        scale = (covariance[d, d] - slope @ covariance[others, d]).sqrt()
        exact = dist.Normal(rows[:, others] @ slope, scale).log_prob(rows[:, d])
        torch.testing.assert_close(found.leave_one_out[:, d], exact, atol=0.15, rtol=0)
    assert found.leave_one_out.shape == (12, 4) and found.site == "x"


@pytest.mark.slow
def test_an_entry_that_does_not_go_with_the_others_is_found(x: Tensor) -> None:
    rows = x[1:21].clone()
    rows[:, 1] += 6
    found = pv.entry_densities(fit_of(Linear(), x), rows, num_samples=100, num_particles=400, seed=0)
    assert found.strangest(1).flatten().tolist() == [1] * 20


class Observed(Linear):
    """The same, with missing entries left out, and a guide that takes them for 0."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", pv.distributions.ObservedOnly(dist.Normal(z * self.w, 1.0).to_event(1)), obs=x)

    def guide(self, x: Tensor) -> None:
        var = 1 / (1 + self.w.square().sum())
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x.nan_to_num(0.0) @ self.w * var)[:, None], var.sqrt()).to_event(1))


def test_an_entry_that_alone_pulls_z_away_has_the_density_given_the_others() -> None:
    """Weights of 5 and noise of 1: z all but copies an entry, and no posterior draw is where the others say. Four standard
    errors of 200 draws are below 0.1 nats where the exact value is about -600."""
    w = torch.tensor([5.0, 0.7, -0.5], dtype=torch.float64)
    rows = torch.tensor([[40.0, 0.3, -0.2], [1.0, 0.1, 0.4], [2.0, math.nan, 0.1]], dtype=torch.float64)
    fitted = fit_of(Observed(w=w), rows[:2])
    covariance = torch.eye(3).double() + torch.outer(w, w)
    found = pv.entry_densities(fitted, rows, num_samples=50, seed=0).leave_one_out
    assert torch.equal(found.isnan(), rows.isnan())
    for row, own in zip(rows, found):
        for d in (~row.isnan()).nonzero().flatten().tolist():
            others = [e for e in range(3) if e != d and not bool(row[e].isnan())]
            slope = torch.linalg.solve(covariance[others][:, others], covariance[others, d])
            scale = (covariance[d, d] - slope @ covariance[others, d]).sqrt()
            exact = dist.Normal(row[others] @ slope, scale).log_prob(row[d])
            torch.testing.assert_close(own[d], exact, atol=0.1, rtol=0)


@pytest.mark.parametrize(
    ("name", "may"), [("vae", False), ("not-miwae", False), ("global-and-local", False), ("", True)]
)
def test_an_entry_is_left_out_only_where_that_says_nothing_else(name: str, may: bool) -> None:
    """Not where gaps are refused, where that an entry is missing is observed, or where global sites are drawn anew."""
    if name:
        pair, data = ROWS[name].build(), ROWS[name].data()
    else:
        pair = pv.VAE(pv.priors.StandardNormal(1), pv.observed_only(pv.mlp(1, fam.Normal(3))), pv.mlp(3, fam.Normal(1)))
        data = torch.randn(20, 3)
    fitted = pv.fit(pair, data, epochs=1, engine="eager", progress=False)
    with fitted.scope():
        part = fitted.parts(data)[0]
        site = next(s.name for s in part.layout.sites if s.role == "observed" and s.argument == "x")
        assert may_lack_entries(fitted, part, site) == may


@pytest.mark.filterwarnings("ignore:The posterior draws")
def test_missing_entries_have_no_density() -> None:
    torch.manual_seed(0)
    x = torch.randn(30, 3)
    x[:10, 1] = math.nan
    encoder = pv.Conditional(pv.nets.WithMask(pv.nets.MLP((3, 3), (2, 1))), fam.Normal(1))
    vae = pv.VAE(pv.priors.StandardNormal(1), pv.observed_only(pv.mlp(1, fam.Normal(3))), encoder)
    fitted = pv.fit(vae, x, epochs=1, engine="eager", progress=False)
    found = pv.entry_densities(fitted, x, num_samples=20, num_particles=20, proposal="guide", seed=0)
    assert torch.equal(found.leave_one_out.isnan(), x.isnan()) and torch.equal(found.log_density.isnan(), x.isnan())
    assert not bool((found.strangest(2)[:10] == 1).any())


def test_a_joint_density_has_no_entries() -> None:
    x = torch.randn(20, 3)
    vae = pv.VAE(pv.priors.StandardNormal(1), pv.mlp(1, fam.FullNormal(3)), pv.mlp(3, fam.Normal(1)))
    fitted = pv.fit(vae, x, epochs=1, engine="eager", progress=False)
    with pytest.raises(PairError, match="joint density"):
        pv.entry_densities(fitted, x, num_samples=5, num_particles=5, proposal="guide")


SOME = (
    "vae",
    "cvae-vector",
    "ladder",
    "global-and-local",
    "clusters-summed-out",
    "ssvae-none-labelled",
    "bare-functions",
)


@pytest.mark.filterwarnings("ignore:The posterior draws")
@pytest.mark.parametrize("name", SOME)
def test_rows_of_every_kind_of_pair(name: str) -> None:
    data = ROWS[name].data()
    fitted = pv.fit(ROWS[name].build(), data, epochs=1, batch_size=16, seed=1, engine="eager", progress=False)
    site = next(s.name for s in fitted.layout.sites if s.role == "observed" and not s.optional)
    found = pv.anomaly_score(fitted, data, num_samples=10, proposal="guide", seed=0)
    assert found.score.shape == (40,) and bool(found.score.isfinite().all())
    entries = pv.entry_densities(fitted, data, site=site, num_samples=10, num_particles=20, proposal="guide", seed=0)
    assert len(entries.log_density) == 40 and bool(entries.leave_one_out.isfinite().all())
    assert bool(
        (entries.leave_one_out <= entries.log_density + 1e-6).all()
    )  # Jensen: a harmonic mean is below a geometric one

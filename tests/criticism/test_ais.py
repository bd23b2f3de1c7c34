"""Annealed importance sampling, both ways, against closed forms of log p(x)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.poutine.messenger import Messenger
from support.comparisons import BOUND
from support.pairs import linear_gaussian, unfitted
from torch import Tensor

import pyrovae as pv
from pyrovae.batching import chunks as chunking
from pyrovae.criticism.annealing import schedule

N = 8
PARALLEL = {"enumerate": "parallel"}


def f64(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def in_plate(function: Callable[..., Any]) -> Callable[[Tensor], None]:
    def program(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            function(x)

    return program


def eager(pair: Any, data: Any) -> pv.Fit:
    fitted = unfitted(pair, data)
    fitted.settings["engine"] = "eager"  # tracing takes longer than these runs
    return fitted


class Known(NamedTuple):
    """p(z) and p(x | z) of which log p(x) is known, a poor guide, and rows."""

    model: Callable[[Tensor], Any]
    guide: Callable[[Tensor], Any]
    exact: Callable[[Tensor], Tensor]
    x: Tensor

    @property
    def fitted(self) -> pv.Fit:
        return eager(pv.Pair(in_plate(self.model), in_plate(self.guide)), self.x)


def poisson(x: Tensor) -> Any:
    z = pyro.sample("z", dist.Gamma(f64(2.0), f64(0.5)).expand([len(x)]))
    return pyro.sample("x", dist.Poisson(z), obs=x)


def multinomial(x: Tensor) -> Any:
    z = pyro.sample("z", dist.Dirichlet(f64(1.0, 2.0, 3.0)).expand([len(x)]))
    return pyro.sample("x", dist.Multinomial(7, z), obs=x)


def levels(x: Tensor) -> Any:
    z2 = pyro.sample("z2", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
    z1 = pyro.sample("z1", dist.Normal(z2, 0.5).to_event(1))
    return pyro.sample("x", dist.Normal(z1, 0.6).to_event(1), obs=x)


def guide_of_levels(x: Tensor) -> None:
    z2 = pyro.sample("z2", dist.Normal(0.5 * x, 0.2).to_event(1))
    pyro.sample("z1", dist.Normal(0.5 * (z2 + x) + 0.3, 0.2).to_event(1))


def image(x: Tensor) -> Any:
    z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(3))
    return pyro.sample("x", dist.Normal(z, 0.5).to_event(3), obs=x)


def on_the_sphere(x: Tensor) -> Any:
    z = pyro.sample("z", pv.priors.HypersphericalUniform(3)())
    return pyro.sample("x", dist.Normal(z, 0.6).to_event(1), obs=x)


def density_on_the_sphere(x: Tensor) -> Tensor:
    """The mean of exp(k cos) over directions is sinh(k) / k, with k = |x| / 0.36."""
    k = x.double().norm(dim=-1) / 0.36
    there = -(x.double().square().sum(-1) + 1) / 0.72 - 1.5 * math.log(2 * math.pi * 0.36)
    return there + k + (-torch.expm1(-2 * k)).log() - (2 * k).log()


def mixture(guided: bool) -> Callable[[Tensor], Any]:
    def model(x: Tensor) -> Any:
        y = pyro.sample("y", dist.Categorical(f64(0.3, 0.7)), infer={} if guided else PARALLEL)
        loc = torch.where(y[..., None] == 0, f64(-1.0, 1.0), f64(1.5, 0.0))
        z = pyro.sample("z", dist.Normal(loc, 0.7).to_event(1))
        return pyro.sample("x", dist.Normal(z, 0.6).to_event(1), obs=x)

    return model


def guide_of_mixture(x: Tensor) -> None:
    y = pyro.sample("y", dist.Categorical(logits=x), infer=PARALLEL)
    pyro.sample("z", dist.Normal(0.5 * x + 0.2 * y[..., None], 0.2).to_event(1))


def density_of_mixture(x: Tensor) -> Tensor:
    scale = math.sqrt(0.7**2 + 0.6**2)
    parts = [dist.Normal(f64(*loc), scale).to_event(1).log_prob(x) for loc in ((-1.0, 1.0), (1.5, 0.0))]
    return torch.stack(parts, -1).add(f64(0.3, 0.7).log()).logsumexp(-1)


torch.manual_seed(7)
KNOWN = {
    "positive": Known(
        poisson,
        lambda x: pyro.sample("z", dist.LogNormal((x + 1).log() + 0.3, 0.1)),
        lambda x: dist.NegativeBinomial(2.0, probs=f64(1 / 1.5)).log_prob(x),
        torch.arange(N, dtype=torch.float64),
    ),
    "simplex": Known(
        multinomial,
        lambda x: pyro.sample("z", dist.Dirichlet(4 * x + 6)),
        lambda x: dist.DirichletMultinomial(f64(1.0, 2.0, 3.0), 7).log_prob(x),
        torch.distributions.Multinomial(7, f64(0.2, 0.3, 0.5)).sample((N,)),
    ),
    "two levels": Known(
        levels,
        guide_of_levels,
        lambda x: dist.Normal(0.0, math.sqrt(1 + 0.5**2 + 0.6**2)).expand(x.shape).to_event(1).log_prob(x),
        torch.randn(N, 2, dtype=torch.float64) * 1.2,
    ),
    "image": Known(
        image,
        lambda x: pyro.sample("z", dist.Normal(0.5 * x, 0.2).to_event(3)),
        lambda x: dist.Normal(0.0, math.sqrt(1.25)).expand(x.shape).to_event(3).log_prob(x),
        torch.randn(N, 1, 2, 2, dtype=torch.float64),
    ),
    "sphere": Known(
        on_the_sphere,
        lambda x: pyro.sample("z", pv.distributions.PowerSpherical(x / x.norm(dim=-1, keepdim=True), x[:, 0].exp())),
        density_on_the_sphere,
        torch.randn(N, 3),
    ),
    "a class summed out under the guide": Known(
        mixture(True), guide_of_mixture, density_of_mixture, torch.randn(N, 2, dtype=torch.float64) * 1.5
    ),
    "a class summed out in the model": Known(
        mixture(False),
        lambda x: pyro.sample("z", dist.Normal(0.5 * x + 0.3, 0.2).to_event(1)),
        density_of_mixture,
        torch.randn(N, 2, dtype=torch.float64) * 1.5,
    ),
}


QUICK = ("positive", "two levels", "a class summed out under the guide")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in KNOWN]
)
def test_log_p_is_the_closed_form_within_its_stated_error(name: str) -> None:
    """8 rows: false alarms 6e-5, as far as the mean of 150 weights is normal."""
    row = KNOWN[name]
    found = pv.ais(row.fitted, row.x, num_temperatures=25, num_chains=150, num_leapfrog=3, seed=1)
    exact = row.exact(row.x)
    assert found.log_likelihood.dtype == torch.float64 and found.standard_error.max() < 0.25
    assert ((found.log_likelihood - exact).abs() < BOUND * found.standard_error).all()
    assert found.acceptance.min() > 0.4 and found.acceptance.max() < 0.9


@pytest.mark.slow
def test_the_path_may_start_from_the_guides_moments() -> None:
    """20 rows: false alarms 1.4e-4. The guide is 2 posterior standard deviations off."""
    pair, x, fitted = linear_gaussian(shift=2.0)
    fitted.settings["engine"] = "eager"
    found = pv.ais(fitted, x, num_temperatures=30, num_chains=200, num_leapfrog=2, start="guide", seed=2)
    assert ((found.log_likelihood - pair.marginal().log_prob(x)).abs() < BOUND * found.standard_error).all()
    assert found.start == "guide" and found.ess.min() > 40


def test_a_guide_without_use_changes_nothing() -> None:
    """From the prior, the guide's draws do not enter."""
    _, x, fitted = linear_gaussian(shift=0.0)
    _, _, other = linear_gaussian(shift=50.0, spread=1e-4)
    options = {"num_temperatures": 5, "num_chains": 3, "num_leapfrog": 2, "seed": 3}
    for one in (fitted, other):
        one.settings["engine"] = "eager"
    assert torch.equal(pv.ais(fitted, x, **options).log_likelihood, pv.ais(other, x, **options).log_likelihood)


@pytest.mark.parametrize("temperatures", [1, 8])
def test_the_mean_weight_is_unbiased_however_few_the_temperatures(temperatures: int) -> None:
    """One temperature is sampling from the prior. One number: false alarms 7e-6."""
    pair, x, fitted = linear_gaussian(columns=2)
    fitted.settings["engine"] = "eager"
    found = pv.ais(fitted, x, num_temperatures=temperatures, num_chains=2000, num_leapfrog=2, seed=4)
    ratio = (found.log_likelihood - pair.marginal().log_prob(x)).exp()
    error = (ratio * found.standard_error).square().sum().sqrt() / len(x)
    assert (ratio.mean() - 1).abs() < BOUND * error and error < 0.05


@pytest.mark.slow
def test_chunks_and_the_traced_engine_change_no_more_than_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 rows: false alarms 1.4e-4."""
    pair, x, fitted = linear_gaussian(columns=3)
    options = {"num_temperatures": 12, "num_leapfrog": 2, "seed": 5}
    traced = pv.ais(fitted, x, num_chains=60, **options)
    fitted.settings["engine"] = "eager"
    whole = pv.ais(fitted, x, num_chains=60, **options)
    torch.testing.assert_close(traced.log_likelihood, whole.log_likelihood, rtol=0, atol=1e-6)
    monkeypatch.setattr(chunking, "CHUNK_ELEMENTS", 40 * fitted.row_elements[("x",)])  # a row, 30 of its chains at once
    few = pv.ais(fitted, x[:6], num_chains=60, **options)
    assert ((few.log_likelihood - pair.marginal().log_prob(x[:6])).abs() < BOUND * few.standard_error).all()


def model_with_bias(x: Tensor) -> None:
    b = pyro.sample("b", dist.Normal(f64(0.0), f64(3.0)).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(f64(0.0), f64(1.0)).to_event(1))
        pyro.sample("x", dist.Normal(z + b, 0.5).to_event(1), obs=x)


def guide_with_bias(x: Tensor) -> None:
    pyro.sample("b", dist.Normal(f64(1.0), f64(0.6)).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.3 * x, 0.2).to_event(1))


def predictive(x: Tensor) -> Tensor:
    return dist.Normal(1.0, math.sqrt(1 + 0.25 + 0.36)).log_prob(x[:, 0])


def renamed(program: Callable[[Tensor], Any], name: str) -> Callable[[Tensor], Any]:
    """The program with its site b under another name."""

    class Rename(Messenger):  # type: ignore[misc]
        def _pyro_sample(self, msg: Any) -> None:
            msg["name"] = name if msg["name"] == "b" else msg["name"]

    return Rename()(program)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["b", "u", "mean", "sd"])  # what chains call their own inputs, too
def test_each_chain_has_a_draw_of_its_own_of_a_global_site(name: str) -> None:
    """8 rows: false alarms 6e-5."""
    x = torch.randn(N, 1, dtype=torch.float64) + 1
    fitted = eager(pv.Pair(renamed(model_with_bias, name), renamed(guide_with_bias, name)), x)
    found = pv.ais(fitted, x, num_temperatures=20, num_chains=300, num_leapfrog=2, seed=6)
    assert ((found.log_likelihood - predictive(x)).abs() < BOUND * found.standard_error).all()


def labelled(x: Tensor, y: Tensor | None = None) -> None:
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(f64(0.3, 0.7)), obs=y)
        loc = torch.where(y[..., None] == 0, f64(-1.0, 1.0), f64(1.5, 0.0))
        z = pyro.sample("z", dist.Normal(loc, 0.7).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.6).to_event(1), obs=x)


def guide_of_labelled(x: Tensor, y: Tensor | None = None) -> None:
    with pyro.plate("data", len(x)):
        if y is None:
            y = pyro.sample("y", dist.Categorical(logits=x), infer=PARALLEL)
        pyro.sample("z", dist.Normal(0.5 * x + 0.2 * y[..., None], 0.2).to_event(1))


def density_of_labelled(x: Tensor, y: Tensor) -> Tensor:
    scale = math.sqrt(0.7**2 + 0.6**2)
    parts = [dist.Normal(f64(*loc), scale).to_event(1).log_prob(x) for loc in ((-1.0, 1.0), (1.5, 0.0))]
    joint = torch.stack(parts, -1) + f64(0.3, 0.7).log()
    return torch.where(y < 0, joint.logsumexp(-1), joint.gather(1, y.clamp_min(0)[:, None])[:, 0])


@pytest.mark.slow
def test_rows_of_several_kinds_come_back_in_their_order() -> None:
    """16 numbers: false alarms 1.1e-4."""
    data = {"x": torch.randn(N, 2, dtype=torch.float64), "y": torch.tensor([-1, 0, 1, -1, 1, -1, 0, -1])}
    first = {name: value[:2] for name, value in data.items()}
    fitted = eager(pv.Pair(labelled, guide_of_labelled), {"x": first["x"]})
    options = {"num_temperatures": 12, "num_chains": 100, "num_leapfrog": 2, "seed": 7}
    found = pv.ais(fitted, data, **options)
    assert ((found.log_likelihood - density_of_labelled(**data)).abs() < BOUND * found.standard_error).all()
    both = pv.bdmc(fitted, data, **options)
    assert ((both.rows["y"] == -1) == (data["y"] == -1)).all() and (both.rows["x"] != data["x"]).all()
    exact = density_of_labelled(**both.rows)
    assert ((both.lower - exact).abs() < BOUND * both.lower_error).all()
    assert (both.upper - exact).abs().median() < 0.3 < 0.5 * exact.std()  # each row beside its own


def assert_unbiased(found: pv.BDMC, exact: Tensor) -> None:
    """The means over rows of w / p(x) and of p(x) / w are 1. The rows are independent, their chains are not."""
    for ratio in ((found.lower - exact).exp(), (exact - found.upper).exp()):
        error = ratio.std() / math.sqrt(len(ratio))
        assert (ratio.mean() - 1).abs() < BOUND * error, (ratio.mean(), error)
        assert error < 0.15


@pytest.mark.slow
def test_bounds_from_both_sides_hold_the_closed_form_between_them() -> None:
    """Two means over 200 rows: false alarms 1.4e-5 as far as they are normal. The mean bounds are 3 errors apart from exact."""
    pair, x, fitted = linear_gaussian(200, columns=3)
    fitted.settings["engine"] = "eager"
    found = pv.bdmc(fitted, x, num_temperatures=10, num_chains=4, num_leapfrog=2, seed=8)
    exact = pair.marginal().log_prob(found.rows["x"])
    assert_unbiased(found, exact)
    below, above = exact - found.lower, found.upper - exact
    assert below.mean() > 3 * below.std() / 200**0.5 and above.mean() > 3 * above.std() / 200**0.5
    assert torch.equal(found.gap, found.upper - found.lower)
    finer = pv.bdmc(fitted, x[:50], num_temperatures=50, num_chains=3, num_leapfrog=1, seed=9)
    assert finer.summary()["gap"] < 0.4 * found.summary()["gap"]
    assert not torch.isin(found.rows["x"], x).any()


def conditional(x: Tensor, c: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(c, 1.0).to_event(1))
        likelihood = pv.observed_only(dist.Normal)
        pyro.sample("x", likelihood(z, torch.full_like(z, 0.5)).to_event(1), obs=x)


def guide_of_conditional(x: Tensor, c: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.5 * (x.nan_to_num() + c), 0.5).to_event(1))


@pytest.mark.slow
def test_simulated_rows_keep_conditions_and_gaps() -> None:
    """Two means over 60 rows: false alarms 1.4e-5 as far as they are normal."""
    x = torch.randn(60, 2, dtype=torch.float64)
    x[::3, 0] = math.nan
    c = torch.linspace(-20, 20, 60, dtype=torch.float64)[:, None].expand(-1, 2).contiguous()
    fitted = eager(pv.Pair(conditional, guide_of_conditional), {"x": x, "c": c})
    found = pv.bdmc(fitted, {"x": x, "c": c}, num_temperatures=20, num_chains=8, num_leapfrog=2, seed=10)
    drawn = found.rows["x"]
    assert torch.equal(found.rows["c"], c) and torch.equal(drawn.isnan(), x.isnan())
    assert ((drawn - c).abs() < 10).logical_or(drawn.isnan()).all()
    each = dist.Normal(c, math.sqrt(1.25)).log_prob(drawn.nan_to_num())
    assert_unbiased(found, torch.where(drawn.isnan(), 0.0, each).sum(1))


def model_with_wide_bias(x: Tensor) -> None:
    b = pyro.sample("b", dist.Normal(f64(0.0), f64(1000.0)).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(f64(0.0), f64(1.0)).to_event(1))
        pyro.sample("x", dist.Normal(z + b, 0.5).to_event(1), obs=x)


def guide_with_wide_bias(x: Tensor) -> None:
    pyro.sample("b", dist.Normal(f64(0.0), f64(1000.0)).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.3 * x, 0.2).to_event(1))


def test_global_sites_keep_the_value_that_the_rows_were_drawn_with() -> None:
    """At another draw of b, x would be hundreds of standard deviations off, and both bounds thousands of nats too low."""
    x = torch.randn(3, 1, dtype=torch.float64)
    fitted = eager(pv.Pair(model_with_wide_bias, guide_with_wide_bias), x)
    found = pv.bdmc(fitted, x, num_temperatures=6, num_chains=2, num_leapfrog=1, seed=0)
    assert (found.upper > -20).all() and (found.lower < -20).any()


def discrete(x: Tensor) -> Any:
    z = pyro.sample("z", dist.Bernoulli(f64(0.4)).expand([len(x)]))
    return pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def reads_the_data(x: Tensor) -> Any:
    z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
    return pyro.sample("x", dist.Normal(z + x.roll(1, -1), 1.0).to_event(1), obs=x)


def observes_a_function(x: Tensor) -> Any:
    z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
    return pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=2 * x)


def plain_guide(x: Tensor) -> Any:
    return pyro.sample("z", dist.Normal(x, 1.0).to_event(1))


def test_what_cannot_move_along_a_gradient_is_refused() -> None:
    x = torch.randn(4, dtype=torch.float64)
    fitted = eager(pv.Pair(in_plate(discrete), in_plate(lambda x: pyro.sample("z", dist.Bernoulli(logits=x)))), x)
    with pytest.raises(pv.PairError, match="'z' is not continuous. Estimate log p"):
        pv.ais(fitted, x)


@pytest.mark.parametrize(
    ("model", "why"),
    [(reads_the_data, "reads 'x' in another way"), (observes_a_function, "does not observe an argument")],
)
def test_rows_that_cannot_be_simulated_are_refused(model: Any, why: str) -> None:
    x = torch.randn(4, 3)
    fitted = eager(pv.Pair(in_plate(model), in_plate(plain_guide)), x)
    with pytest.raises(pv.PairError, match=why):
        pv.bdmc(fitted, x, num_temperatures=2, num_chains=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_chains": 0}, "num_chains must be at least 1, got 0"),
        ({"num_temperatures": 0}, "num_temperatures must be at least 1"),
        ({"num_leapfrog": 0}, "num_leapfrog must be at least 1"),
        ({"start": "posterior"}, "start must be one of 'prior', 'guide', got 'posterior'"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    _, x, fitted = linear_gaussian()
    with pytest.raises(pv.OptionError, match=message):
        pv.ais(fitted, x, **options)


def test_one_chain_has_no_error_and_tables_say_what_was_done() -> None:
    _, x, fitted = linear_gaussian()
    fitted.settings["engine"] = "eager"
    one = pv.ais(fitted, x[:2], num_temperatures=3, num_chains=1, num_leapfrog=1, seed=0)
    assert one.standard_error.isnan().all() and (one.ess == 1).all()
    assert "1 chains of 3 temperatures" in one._repr_html_() and "monte_carlo_se" in one._repr_html_()
    both = pv.bdmc(fitted, x[:2], num_temperatures=3, num_chains=1, num_leapfrog=1, seed=0)
    assert both.lower_error.isnan().all() and "2 simulated rows" in both._repr_html_()


def test_the_schedule_rises_from_0_to_1_in_small_steps_at_its_ends() -> None:
    betas = torch.tensor(schedule(100))
    steps = betas.diff()
    assert betas[0] == 0 and betas[-1] == 1 and (steps > 0).all()
    torch.testing.assert_close(steps, steps.flip(0), rtol=1e-3, atol=0)
    assert steps[0] < 0.1 * steps[50]

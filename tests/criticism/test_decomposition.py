"""What an ELBO is made of: the KL term of each latent site, in a fit's history and of any rows, and collapsed sites."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.programs import Clusters, Ladder, adgm, binary, gmvae, joint_vae, sdgm, ssvae, stacked, vade, vae
from torch import Tensor, nn
from torch.distributions import kl_divergence

import pyrovae as pv
from pyrovae.batching.splits import Split
from pyrovae.criticism.decomposition import collapsed, kl_by_site
from pyrovae.objectives.weights import row_kl
from pyrovae.training.monitor import NOTHING


@pytest.mark.parametrize("build", [vae, Ladder, gmvae, vade, joint_vae, ssvae, stacked, adgm, sdgm, Clusters])
@pytest.mark.parametrize("particles", [1, 3])
def test_kl_terms_are_what_the_likelihood_loses_in_the_elbo(build: Any, particles: int) -> None:
    """The bound with KL weight 0 is the likelihood alone, by another road; enumerated sites on either side included."""
    pair, x = build(), binary(5)
    run = pv.terms(pair, {"x": x}, particles)
    lost = pv.elbo(run, kl_weight=0.0).objective - pv.elbo(run).objective
    found = row_kl(run)
    assert all(kl.shape == (particles, 5) for kl in found.values())
    torch.testing.assert_close(sum(kl.sum() for kl in found.values()) / particles, lost, rtol=1e-5, atol=1e-5)


def test_a_kl_term_is_the_closed_form_in_expectation() -> None:
    """Within 5 standard errors of 2,000 draws, for each of 8 rows: false alarms below 1 in 200,000."""
    torch.manual_seed(0)
    pair, x = vae().double(), binary(8).double()
    fitted = pv.fit(pair, x, epochs=1, batch_size=8)
    exact = kl_divergence(pair.encoder(x), pair.prior()).detach()
    with torch.no_grad():
        spread = row_kl(pv.terms(pair, {"x": x}, 2000))["z"].std(0)
    found = kl_by_site(fitted, x, num_samples=2000)
    assert found.keys() == {"z"}
    assert ((found["z"] - exact).abs() < 5 * spread / 2000**0.5).all()
    assert torch.equal(found["z"], kl_by_site(fitted, x, num_samples=2000)["z"])
    with pytest.raises(pv.OptionError, match="num_samples"):
        kl_by_site(fitted, x, num_samples=0)


@pytest.mark.parametrize("validation", [None, 0.25])
def test_the_history_holds_the_kl_of_each_site(validation: float | None) -> None:
    torch.manual_seed(0)
    x = binary(80)
    fitted = pv.fit(Ladder(), x, epochs=2, batch_size=20, validation=validation, seed=0)
    assert [[name for name in row if name.startswith("kl/")] for row in fitted.history] == [["kl/z2", "kl/z1"]] * 2
    seen = x
    if validation:
        seen = x[Split.from_json(fitted.settings["validation_split"], num_rows=80).validation]
    # The history has one draw a row: its mean over these rows lies within 5 standard errors, 1 false alarm in 2 million.
    with torch.no_grad():
        drawn = row_kl(pv.terms(fitted.pair, {"x": seen}, 500))
    for site in ("z1", "z2"):
        error = drawn[site].std(0).square().sum().sqrt() / len(seen)
        assert abs(fitted.history[-1][f"kl/{site}"] - drawn[site].mean()) < 5 * error


def test_an_observed_site_has_no_kl_term() -> None:
    y = torch.arange(40) % 3
    y[12:] = -1
    data = {"x": binary(), "y": y}
    fitted = pv.fit(ssvae(), data, epochs=1, batch_size=20)
    found = kl_by_site(fitted, data, num_samples=3)
    # y is summed out: no noise but rounding
    assert (
        fitted.history[-1]["kl/y"] == pytest.approx(found["y"].mean().item(), rel=1e-4) and "kl/z" in fitted.history[-1]
    )
    assert (found["y"][:12] == 0).all() and (found["y"][12:] != 0).all() and (found["z"] != 0).all()


def test_watching_rows_leaves_the_fit_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def weights() -> list[Tensor]:
        torch.manual_seed(0)
        pair = vae()
        pv.fit(pair, binary(), epochs=2, batch_size=10, seed=0)
        return [p.detach() for p in pair.parameters()]

    torch.manual_seed(1)
    seen = weights()
    monkeypatch.setattr("pyrovae.training.monitor.Monitor.measure", lambda self: NOTHING)
    torch.manual_seed(1)
    assert all(map(torch.equal, seen, weights()))


class Unused(nn.Module):
    """z2 is drawn and says nothing of x; z1 does."""

    def __init__(self) -> None:
        super().__init__()
        self.likelihood, self.encoder = nn.Linear(2, 6), nn.Linear(6, 2)
        self.loc = nn.Parameter(torch.ones(2))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("z2", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.likelihood(z1), 0.3).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z1", dist.Normal(self.encoder(x), 0.3).to_event(1))
            pyro.sample("z2", dist.Normal(self.loc, 1.0).to_event(1))


@pytest.mark.slow
def test_a_collapsed_site_is_named() -> None:
    torch.manual_seed(0)
    x = torch.randn(100, 2) @ torch.randn(2, 6)
    fitted = pv.fit(Unused(), x, epochs=60, batch_size=20, learning_rate=0.03, seed=0)
    assert fitted.history[0]["kl/z2"] > 0.1
    assert collapsed(fitted).keys() == {"z2"}
    assert collapsed(fitted, threshold=100.0).keys() == {"z1", "z2"}


class Switch(nn.Module):
    """A class for the whole data set that only the model has: no row has a KL term of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor([-1.0, 1.0]))

    def model(self, x: Tensor) -> None:
        c = pyro.sample("c", dist.Categorical(logits=torch.zeros(2)), infer={"enumerate": "parallel"})
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + self.loc[c], 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))


def test_a_fit_goes_on_where_no_row_has_terms_of_its_own() -> None:
    fitted = pv.fit(Switch(), torch.randn(40), epochs=2, batch_size=40)
    assert len(fitted.history) == 2 and not any(name.startswith("kl/") for name in fitted.history[-1])


class Shared(nn.Module):
    """Two latents whose priors share a class that only the model sums out."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor([-1.0, 1.0]))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=torch.zeros(2)), infer={"enumerate": "parallel"})
            z1 = pyro.sample("z1", dist.Normal(self.loc[y], 1.0))
            z2 = pyro.sample("z2", dist.Normal(-self.loc[y], 1.0))
            z3 = pyro.sample("z3", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z1 + z2 + z3, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            for name in ("z1", "z2", "z3"):
                pyro.sample(name, dist.Normal(self.loc[0], 1.0))


def test_no_term_is_told_of_sites_that_share_one() -> None:
    assert row_kl(pv.terms(Shared(), {"x": torch.randn(5)})).keys() == {"z3"}


def test_units_are_active_by_the_variance_of_their_prior() -> None:
    """On a simplex of 20 shares every variance is below 0.01; what counts is the share of the prior's."""
    prior = dist.Dirichlet(torch.ones(20)).sample((2000,))
    moving = prior[:500].clone()
    still = prior.mean(0).expand(500, 20)
    assert not pv.active_units(moving).any()
    variance = prior.var(0)
    assert pv.active_units(moving, prior_variance=variance).all()
    assert not pv.active_units(still, prior_variance=variance).any()
    with pytest.raises(pv.ShapeError, match=r"prior_variance must be \(20,\), got \(3,\)"):
        pv.active_units(moving, prior_variance=torch.ones(3))


# --- what the KL term of a site consists of --------------------------------------------------------------------------


class Points(nn.Module):
    """q(z | x) = N(x, 0.1), for rows far from each other: each code tells its row."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.ones(()))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 5.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.slope * x, 0.1).to_event(1))


def points(x: Tensor) -> pv.Fit:
    return pv.fit(Points(), x, epochs=1, learning_rate=1e-12)


def test_a_grid_of_codes_has_no_total_correlation_and_a_diagonal_has_all() -> None:
    """12 places of a 3 x 4 grid: I = log 12, TC = 0. Of 5 places on a diagonal: I = log 5, TC = 2 log 5 - log 5."""
    grid = 10.0 * torch.cartesian_prod(torch.arange(3.0), torch.arange(4.0))
    for x, correlation in ((grid, 0.0), (10.0 * torch.arange(5.0).unsqueeze(1).expand(5, 2), math.log(5))):
        parts = pv.kl_parts(points(x), x, num_samples=7)["z"]
        assert parts.information == pytest.approx(math.log(len(x)), abs=1e-6)
        assert parts.total_correlation == pytest.approx(correlation, abs=1e-6)
        assert parts.kl == pytest.approx(parts.information + parts.marginal, abs=1e-12)
        assert parts.units is not None and parts.units.shape == (2,)
        assert parts.units.sum().item() == pytest.approx(parts.dimension_wise, abs=1e-6)


def test_the_parts_are_those_of_all_rows_in_whatever_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """One draw of 40 rows, and I and TC again from its densities under the guides of all rows, one after the other."""
    pair, x = vae().double(), binary(40).double()
    fitted = pv.fit(pair, x, epochs=1)
    z = torch.randn(40, 2).double()
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(dist.Normal, "rsample", lambda self, shape=(): z if len(self.loc) == 40 else self.loc)
        found = pv.kl_parts(fitted, x)["z"]
        q = pair.encoder(x).base_dist
    log_q = torch.stack(
        [torch.distributions.Normal(q.loc[n], q.scale[n]).log_prob(z) for n in range(40)]
    )  # (rows, draws, 2)
    joint = (log_q.sum(-1).exp().mean(0)).log()
    units = (log_q.exp().mean(0)).log()
    own = torch.stack([log_q[n, n].sum() for n in range(40)])
    assert found.information == pytest.approx((own - joint).mean().item())
    assert found.total_correlation == pytest.approx((joint - units.sum(-1)).mean().item())
    log_p = torch.distributions.Normal(0.0, 1.0).log_prob(z)
    assert found.kl == pytest.approx((own - log_p.sum(-1)).mean().item())
    assert found.units is not None
    torch.testing.assert_close(found.units, (units - log_p).mean(0))


def test_priors_whose_units_depend_on_each_other_have_no_parts_by_unit() -> None:
    pair, x = vae(prior=pv.priors.MixtureOfNormals(2, 3)), binary(20)
    parts = pv.kl_parts(pv.fit(pair, x, epochs=1), x)["z"]
    assert parts.units is None
    assert parts.kl == pytest.approx(parts.information + parts.marginal)


class Shifted(torch.nn.Module):
    """p(z) is another for each row, and the guide's: every KL is 0, and that of all codes to one prior means nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = torch.nn.Linear(2, 6)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(6.0 * x[:, :2], 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(6.0 * x[:, :2], 1.0).to_event(1))


def test_a_prior_of_each_row_has_no_parts_by_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted, x = pv.fit(Shifted(), binary(20), epochs=1), binary(20)
    parts = pv.kl_parts(fitted, x)["z"]
    assert parts.units is None and parts.kl == pytest.approx(0.0, abs=1e-6) and parts.information > 0.5
    monkeypatch.setattr(pv.Fit, "chunk_size", lambda *_: 1)  # one row a run
    assert pv.kl_parts(fitted, x)["z"].units is None
    assert pv.kl_parts(pv.fit(vae(), x, epochs=1), x)["z"].units is not None


def test_continuous_codes_beside_discrete_ones_have_parts_and_others_are_refused() -> None:
    x = binary(20)
    joint = pv.fit(joint_vae(), x, epochs=1)
    assert pv.kl_parts(joint, x).keys() == pv.kl_parts(joint, x, sites="z").keys() == {"z"}
    assert pv.record_kl_parts(x, sites="z1").sites == ("z1",)
    levels = pv.fit(Ladder(), x, epochs=1)
    with pytest.raises(pv.PairError, match="depends on the draw of"):
        pv.kl_parts(levels, x)
    levels.pair.requires_grad_(False)
    with pytest.raises(pv.PairError, match="another at every run"):
        pv.kl_parts(levels, x)
    with pytest.raises(pv.OptionError, match=r"no latent site 'w'; its latent sites: \['z'\]"):
        pv.kl_parts(pv.fit(vae(), x, epochs=1), x, sites=["w"])
    with pytest.raises(pv.OptionError, match="every must be at least 1"):
        pv.record_kl_parts(x, every=0)


def test_parts_in_the_history_every_second_epoch() -> None:
    x = binary(20)
    fitted = pv.fit(vae(), x, epochs=4, callbacks=[pv.record_kl_parts(x, every=2)])
    have = [
        all(f"{n}/z" in row for n in ("information", "total_correlation", "dimension_wise")) for row in fitted.history
    ]
    assert have == [False, True, False, True]


def test_active_units_of_arrays_and_of_means_that_are_not_finite() -> None:
    means = torch.tensor([[0, 3], [1, 3], [2, 3]])
    for given in (means, means.numpy(), means.double(), means.tolist()):
        assert pv.active_units(given).tolist() == [True, False]
    assert pv.active_units(means, again=means.numpy(), prior_variance=[1e3, 1.0]).tolist() == [False, False]
    with pytest.raises(pv.DataError, match="1 of these"):
        pv.active_units(torch.tensor([[0.0, torch.nan], [1.0, 2.0]]))
    with pytest.raises(pv.DataError, match="array of numbers"):
        pv.active_units("z")

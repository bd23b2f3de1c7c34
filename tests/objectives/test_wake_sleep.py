"""Wake-sleep and reweighted wake-sleep: gradients equal brute force, rows are drawn as they should."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.comparisons import BOUND, assert_equal
from support.pairs import value_and_gradients, weight
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.pair.handlers import SetValues
from pyrovae.pair.simulated import simulated

CLASSES, COLUMNS = 3, 2


class Toy(nn.Module):
    """z in {0, 1, 2}, x in {0, 1}^2 given z; q(z | x) with logits linear in x, or, tied, with the likelihood's own weights."""

    def __init__(self, *, marked: bool = False, tied: bool = False) -> None:
        super().__init__()
        self.prior, self.loc = weight(CLASSES), weight(CLASSES, COLUMNS)
        self.encode = None if tied else weight(COLUMNS, CLASSES)
        self.infer = {"enumerate": "parallel"} if marked else {}

    def logits(self, x: Tensor) -> Tensor:
        return x @ (self.loc.T if self.encode is None else self.encode)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=self.prior))
            pyro.sample("x", dist.Bernoulli(logits=self.loc[z]).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=self.logits(x)), infer=self.infer)

    def log_joint(self, x: Tensor) -> Tensor:
        """log p(x, z) of every value of z, (CLASSES, N)."""
        prior = self.prior.log_softmax(-1)[:, None]
        return prior + dist.Bernoulli(logits=self.loc[:, None]).to_event(1).log_prob(x)

    def log_guide(self, x: Tensor) -> Tensor:
        return self.logits(x).log_softmax(-1).T


def bits(rows: int = 6) -> Tensor:
    return torch.bernoulli(torch.full((rows, COLUMNS), 0.6, dtype=torch.float64))


def found_by(loss: Any, toy: nn.Module, x: Tensor, pair: Any = None, **options: Any) -> dict[str, Tensor]:
    bound = loss(toy if pair is None else pair, {"x": x}, **options)
    return value_and_gradients(bound.objective, toy)


# --- the gradients ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("num_rows", [None, 30])
def test_rws_is_brute_force_at_given_draws(tied: bool, num_rows: int | None) -> None:
    toy, x = Toy(tied=tied), bits()
    draws = torch.randint(CLASSES, (4, 6))
    given = pv.Pair(toy.model, SetValues({"z": draws})(toy.guide))
    found = found_by(pv.RWS(4), toy, x, given, num_rows=num_rows, layout=pv.check_pair(toy, x))
    log_p, log_q = toy.log_joint(x).gather(0, draws), toy.log_guide(x).gather(0, draws)
    log_w = (log_p - log_q).detach()
    by_hand = (log_w.softmax(0) * (log_p + log_q)).sum()
    bound = (log_w.logsumexp(0) - math.log(4)).sum()
    share = 1 if num_rows is None else num_rows / 6
    assert_equal(found, value_and_gradients(share * (by_hand - by_hand.detach() + bound), toy))


@pytest.mark.parametrize("tied", [False, True])
def test_rws_of_an_enumerated_site_has_the_gradients_of_log_p_and_of_kl(tied: bool) -> None:
    """With every value at once, the weights are the posterior, so that one draw has no noise and no bias."""
    toy, x = Toy(marked=True, tied=tied), bits()
    log_p = toy.log_joint(x)
    other = (log_p.detach().softmax(0) * toy.log_guide(x)).sum()
    exact = log_p.logsumexp(0).sum() + other - other.detach()
    assert_equal(found_by(pv.RWS(1), toy, x), value_and_gradients(exact, toy))


def test_wake_sleep_moves_the_model_as_the_elbo_does() -> None:
    toy, x = Toy(marked=True), bits()
    found, elbo = (found_by(loss, toy, x, num_rows=30) for loss in (pv.WakeSleep(), pv.Trace_ELBO()))
    assert_equal({n: found[n] for n in ("value", "prior", "loc")}, {n: elbo[n] for n in ("value", "prior", "loc")})
    assert not torch.allclose(found["encode"], elbo["encode"], rtol=0.05)


@pytest.mark.parametrize("loss", [pv.WakeSleep(2), pv.RWS(2, sleep=1.0)], ids=repr)
@pytest.mark.parametrize("marked", [False, True])
def test_the_sleep_phase_is_brute_force_over_all_rows(loss: Any, marked: bool) -> None:
    """6 numbers a case: false alarms 1.7e-4 over the four."""
    toy = Toy(marked=marked)
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * COLUMNS)
    dreamt = 300 * (toy.log_joint(every).detach().exp() * toy.log_guide(every)).sum()
    (exact,) = torch.autograd.grad(dreamt, [toy.encode])
    runs = torch.stack([found_by(loss, toy, bits(100), num_rows=300)["encode"] for _ in range(40)])
    error = runs.std(0) / 40**0.5
    assert ((runs.mean(0) - exact).abs() <= BOUND * error).all()
    assert error.max() < 0.1 * exact.abs().max()


def test_a_mixture_is_the_mixture_of_both_phases() -> None:
    toy, x = Toy(), bits()
    layout, found = pv.check_pair(toy, {"x": x}), []
    for sleep in (0.0, 0.25, 1.0):
        torch.manual_seed(3)
        found.append(found_by(pv.RWS(3, sleep), toy, x, layout=layout))
    wake, mixed, asleep = found
    assert_equal(mixed, {name: 0.75 * wake[name] + 0.25 * asleep[name] for name in wake})


class Clusters(nn.Module):
    """y enumerated, z drawn for each value of y, x: what is summed out and what is drawn meet in one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.prior, self.loc, self.decode = weight(CLASSES), weight(CLASSES), weight()
        self.classify, self.encode = weight(CLASSES), weight(CLASSES)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=self.prior))
            z = pyro.sample("z", dist.Normal(self.loc[y], 1.0))
            pyro.sample("x", dist.Normal(self.decode * z, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=x[:, None] * self.classify), infer={"enumerate": "parallel"})
            pyro.sample("z", dist.Normal(x * self.encode[y], 0.7))


def test_rws_of_enumerated_and_drawn_sites_is_brute_force() -> None:
    pair, x = Clusters(), torch.randn(5, dtype=torch.float64)
    layout = pv.check_pair(pair, x)
    torch.manual_seed(2)
    z = pv.terms(pair, {"x": x}, 4, layout=layout).sites["z"].value.detach()  # (CLASSES, 4, 5)
    each = torch.arange(CLASSES)
    log_q = (x[:, None] * pair.classify).log_softmax(-1).T[:, None] + dist.Normal(
        x * pair.encode[each, None, None], 0.7
    ).log_prob(z)
    log_p = pair.prior.log_softmax(-1)[:, None, None] + dist.Normal(pair.loc[:, None, None], 1.0).log_prob(z)
    log_p = log_p + dist.Normal(pair.decode * z, 1.0).log_prob(x)
    # the draw of a value y has the density q(z | x, y), since all values are there
    log_w = (log_p - dist.Normal(x * pair.encode[each, None, None], 0.7).log_prob(z)).detach()
    by_hand = (log_w.flatten(0, 1).softmax(0).reshape(log_w.shape) * (log_p + log_q)).sum()
    bound = (log_w.flatten(0, 1).logsumexp(0) - math.log(4)).sum()
    torch.manual_seed(2)
    found = found_by(pv.RWS(4), pair, x, layout=layout)
    assert_equal(found, value_and_gradients(by_hand - by_hand.detach() + bound, pair))


@pytest.mark.parametrize("loss", [pv.WakeSleep(2), pv.RWS(3, 0.5)], ids=repr)
def test_scales_and_rows_count_in_both_phases(loss: Any) -> None:
    toy, x = Toy(), bits()
    layout, found = pv.check_pair(toy, {"x": x}), []
    tripled = pv.Pair(pyro.poutine.scale(toy.model, 3.0), pyro.poutine.scale(toy.guide, 3.0))
    for pair, num_rows in ((toy, None), (toy, 30), (tripled, 30)):
        torch.manual_seed(5)
        found.append(found_by(loss, toy, x, pair, layout=layout, num_rows=num_rows))
    plain, five, fifteen = found
    assert_equal(five, {name: 5 * value for name, value in plain.items()})
    assert_equal(fifteen, {name: 15 * value for name, value in plain.items()})


def test_the_value_is_that_of_the_bound() -> None:
    toy, x = Toy(), bits()
    layout, values = pv.check_pair(toy, {"x": x}), []
    for loss in (pv.RWS(3, 0.5), pv.IWELBO(3)):
        torch.manual_seed(4)
        values.append(loss(toy, {"x": x}, layout=layout, num_rows=60))
    assert values[0].elbo == pytest.approx(values[1].elbo.item())
    assert values[0].objective.item() == pytest.approx(values[1].objective.item())


# --- rows of the sleep phase -----------------------------------------------------------------------------------------


class Conditional(nn.Module):
    """x near z + c, where c is a condition and x may have gaps; y is nearly certain given z."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(3, 1)

    def model(self, x: Tensor, c: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("y", dist.Bernoulli((z[..., 0] > 0).float()), obs=y)
            likelihood = dist.Normal((z + c[:, None]).expand(*z.shape[:-1], 2), 1e-3).to_event(1)
            pyro.sample("x", pv.distributions.ObservedOnly(likelihood), obs=x)

    def guide(self, x: Tensor, c: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            seen = torch.cat([x.nan_to_num(), c[:, None]], -1)
            z = pyro.sample("z", dist.Normal(self.encode(seen), 1.0).to_event(1))
            if y is None:
                pyro.sample("y", dist.Bernoulli(torch.full(z.shape[:-1], 0.5)))


@pytest.mark.parametrize("labelled", [False, True])
def test_conditions_and_gaps_stay_and_the_rest_is_drawn_from_the_model(labelled: bool) -> None:
    x, c = torch.randn(50, 2), 100 * torch.arange(50.0)
    x[::3, 0] = torch.nan
    given = {"x": x, "c": c, **({"y": torch.full((50,), 0.5).round()} if labelled else {})}
    before = {name: value.clone() for name, value in given.items()}
    rows, latent = simulated(Conditional(), given, pv.check_pair(Conditional(), given))
    for name, value in given.items():  # what is given is left alone
        assert torch.equal(value.nan_to_num(7.0), before[name].nan_to_num(7.0))
    assert torch.equal(rows["c"], c)
    assert torch.equal(rows["x"].isnan(), x.isnan())
    filled = ~x.isnan()
    assert torch.allclose(rows["x"][filled], (latent["z"] + c[:, None]).expand(-1, 2)[filled], atol=0.02, rtol=1e-5)
    drawn = rows["y"] if labelled else latent["y"]
    assert torch.equal(drawn, (latent["z"][:, 0] > 0).float()) and ("y" in latent) is not labelled


def test_gaps_leave_the_log_density_of_the_guide_finite() -> None:
    x = torch.randn(20, 2)
    x[::2, 1] = torch.nan
    bound = pv.WakeSleep()(Conditional(), {"x": x, "c": torch.zeros(20)})
    assert bound.objective.isfinite()


@pytest.mark.parametrize("loss", [pv.WakeSleep(), pv.RWS(2, 0.5)], ids=repr)
@pytest.mark.parametrize(("engine", "own"), [("eager", False), ("eager", True), ("traced", False)])
def test_running_means_are_those_of_the_rows_given(loss: Any, engine: str, own: bool) -> None:
    """The rows are near 5 and the model draws rows near 0, so that half of the mean would be theirs."""
    torch.manual_seed(0)
    norm = pv.nets.BatchNormed()(3)[0] if own else nn.BatchNorm1d(3)  # type: ignore[index]
    net = nn.Sequential(norm, nn.Linear(3, 2), nn.Unflatten(-1, (2, 1)))
    pair = pv.VAE(
        pv.priors.StandardNormal(1), pv.mlp(1, fam.Normal(3), hidden=(4,)), pv.Conditional(net, fam.Normal(1))
    )
    x = 5 + torch.randn(40, 3)
    pv.fit(pair, x, epochs=4, batch_size=40, loss=loss, engine=engine, progress=False)
    share = 1 - 0.9**4  # of four steps, by the momentum of 0.1
    torch.testing.assert_close(norm.running_mean, share * x.mean(0))
    assert norm.track_running_stats


# --- fits ------------------------------------------------------------------------------------------------------------


class Line(nn.Module):
    """z ~ N(0, 1), x | z ~ N(a z, 0.5^2 I) of two columns: the best guide is known."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.encode, self.log_scale = nn.Parameter(torch.tensor([1.0, 0.2])), weight(2), weight()

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            pyro.sample("x", dist.Normal(z[..., None] * self.a.to(x), 0.5).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ self.encode, self.log_scale.exp()))


@pytest.mark.parametrize("loss", [pv.WakeSleep(4), pv.RWS(8)], ids=repr)
def test_a_linear_gaussian_pair_reaches_the_closed_form(loss: Any) -> None:
    """Maximum likelihood of a, and the posterior under it. Where the guide is exact, the wake phase has no bias."""
    z = torch.randn(400, dtype=torch.float64)
    x = z[:, None] * torch.tensor([1.5, -0.7], dtype=torch.float64) + 0.5 * torch.randn(400, 2, dtype=torch.float64)
    pair = Line().double()
    pv.fit(
        pair,
        x,
        epochs=150,
        batch_size=400,
        loss=loss,
        schedule=pv.schedules.one_cycle(0.2),
        engine="traced",
        progress=False,
    )
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))  # the first factor, since the noise is known
    best = (values[-1] - 0.25).sqrt() * vectors[:, -1]
    a = pair.a.detach()
    assert torch.allclose(a * (a @ best).sign(), best, atol=0.05)
    precision = 1 + a @ a / 0.25
    assert torch.allclose(pair.encode.detach(), a / 0.25 / precision, atol=0.05)
    assert pair.log_scale.exp().item() == pytest.approx(precision.rsqrt().item(), rel=0.06)


@pytest.mark.parametrize("loss", [pv.WakeSleep(), pv.RWS(3, 0.5)], ids=repr)
def test_a_fit_is_traced_resumed_saved_and_questioned(loss: Any, tmp_path: Path) -> None:
    def vae() -> pv.VAE:
        torch.manual_seed(0)
        return pv.VAE(
            pv.priors.StandardNormal(1), pv.mlp(1, fam.Bernoulli(3), hidden=(4,)), pv.mlp(3, fam.Normal(1), hidden=(4,))
        )

    x = torch.rand(40, 3).round()
    options: dict[str, Any] = {"batch_size": 20, "loss": loss, "seed": 0, "progress": False}
    whole = pv.fit(vae(), x, epochs=3, engine="eager", **options)
    pv.fit(vae(), x, epochs=1, engine="eager", checkpoint=tmp_path / "run", **options)
    resumed = pv.fit(vae(), x, epochs=3, engine="eager", checkpoint=tmp_path / "run", resume=True, **options)
    traced = pv.fit(vae(), x, epochs=3, engine="traced", **options)
    assert traced.settings["engine"] == "traced"
    for name, value in whole.pair.state_dict().items():
        assert torch.equal(value, resumed.pair.state_dict()[name]), name
        assert torch.allclose(value, traced.pair.state_dict()[name], atol=1e-5), name
    loaded = pv.load(tmp_path / "run")
    assert loaded.settings["loss"]["class"] == f"pyrovae.{type(loss).__name__}"
    assert pv.importance(loaded, x, 20, seed=0).log_likelihood.isfinite().all()


@pytest.mark.parametrize("loss", [pv.WakeSleep(), pv.RWS(3), pv.RWS(3, 0.5)], ids=repr)
def test_rows_in_groups_and_terms_of_the_objective_alone(loss: Any) -> None:
    """M2 with a few labels: the classifier learns from labels, which count in the objective alone, and as a guide."""
    torch.manual_seed(0)
    m2 = pv.SSVAE(
        label_prior=pv.priors.Categorical(3),
        prior=pv.priors.StandardNormal(1),
        likelihood=pv.mlp((1, 3), fam.Bernoulli(4), hidden=(4,)),
        encoder=pv.mlp((4, 3), fam.Normal(1), hidden=(4,)),
        classifier=pv.mlp(4, fam.Categorical((), 3), hidden=()),
        code=pv.nets.OneHot(3),
    )
    x = torch.rand(30, 4).round()
    y = torch.where(torch.arange(30) < 9, torch.arange(30) % 3, -1)
    fitted = pv.fit(m2, {"x": x, "y": y}, epochs=2, batch_size=10, loss=loss, seed=0, progress=False)
    assert pv.classify(fitted, x).predicted.shape == (30,)
    labelled = {"x": x[:9], "y": y[:9]}
    weights = list(m2.classifier.parameters())
    gradient = torch.autograd.grad(loss(m2, labelled).objective, weights)
    from_labels = 50 * m2.classifier(x[:9]).log_prob(y[:9]).sum()
    for found, wanted in zip(gradient, torch.autograd.grad(from_labels, weights)):
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)
    unlabelled = torch.autograd.grad(loss(m2, {"x": x}).objective, weights)
    assert all(g.abs().max() > 1e-4 for g in unlabelled)


def test_missing_entries_that_are_latent_have_no_guide_to_train() -> None:
    """The likelihood draws them: in the wake phase its gradient is that of log p alone, as under IWELBO."""
    torch.manual_seed(0)
    pair = pv.NotMIWAE(
        prior=pv.priors.StandardNormal(1),
        likelihood=pv.mlp(1, fam.Normal(2), hidden=(3,)),
        encoder=pv.Conditional(pv.nets.WithMask(pv.nets.MLP((2, 2), (2, 1), hidden=(3,))), fam.Normal(1)),
        missingness=pv.Conditional(pv.nets.SelfMasking(2, missing="high"), fam.Bernoulli(2)),
    )
    x = torch.randn(12, 2)
    x[x > 0.8] = torch.nan
    layout = pv.check_pair(pair, x)
    torch.manual_seed(1)
    run = pv.terms(pair, {"x": x}, 5, layout=layout)
    values = {name: run.sites[name].value.detach() for name in ("z", "x_missing")}
    torch.manual_seed(1)
    weights = list(pair.likelihood.parameters())
    found = torch.autograd.grad(pv.RWS(5)(pair, {"x": x}, layout=layout).objective, weights)
    shares = pv.log_weights(run).detach().softmax(0)
    p = pair.likelihood(values["z"])
    log_p = p.log_prob(values["x_missing"]) + pv.distributions.ObservedOnly(p).log_prob(x)
    for one, other in zip(found, torch.autograd.grad((shares * log_p).sum(), weights)):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)
    with pytest.raises(pv.PairError, match="site 's' does not observe an argument"):
        pv.fit(pair, x, epochs=1, loss=pv.WakeSleep(), progress=False)

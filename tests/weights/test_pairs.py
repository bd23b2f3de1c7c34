"""Weights as global latent variables, and weights with a prior: closed forms, hand-made objectives, and what they refuse."""

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.programs import ROWS, regression_data, vae
from torch import Tensor, nn

import pyrovae as pv
import pyrovae.families as fam
from pyrovae.errors import OptionError, PairError
from pyrovae.fitted.ensemble import fit_like
from pyrovae.weights.priors import prior_of

NOISE = 0.5  # standard deviation of the regressions
NUM_ROWS = 30


class Line(nn.Module):
    """`y ~ N(w'c, NOISE^2)`, without local latent variables."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.net = nn.Linear(inputs, 1, bias=False)

    def model(self, y: Tensor, c: Tensor) -> None:
        loc = self.net(c).squeeze(-1)
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc, NOISE), obs=y)

    def guide(self, y: Tensor, c: Tensor) -> None:
        pass


def line_data(inputs: int, orthogonal: bool) -> dict[str, Tensor]:
    c = torch.randn(NUM_ROWS, inputs)
    if orthogonal:  # so that the posterior has independent weights
        c = torch.linalg.qr(c).Q * torch.tensor([4.0, 2.0, 1.0][:inputs])
    return {"c": c, "y": c @ torch.tensor([1.0, -2.0, 0.5][:inputs]) + NOISE * torch.randn(NUM_ROWS)}


def exact(data: dict[str, Tensor], prior_scale: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of p(w | y), of the conjugate model."""
    c, y = data["c"].double(), data["y"].double()
    covariance = (c.T @ c / NOISE**2 + torch.eye(c.shape[1]) / prior_scale**2).inverse()
    return covariance @ c.T @ y / NOISE**2, covariance


def evidence(data: dict[str, Tensor], prior_scale: float) -> float:
    """log p(y), the density of N(0, s^2 c c' + noise^2)."""
    c, y = data["c"].double(), data["y"].double()
    spread = prior_scale**2 * c @ c.T + NOISE**2 * torch.eye(len(y))
    density = dist.MultivariateNormal(torch.zeros_like(y), spread).log_prob(y)
    return float(density)


@pytest.fixture(scope="module")
def mean_field() -> tuple[pv.Fit, dict[str, Tensor]]:
    torch.manual_seed(0)
    data = line_data(3, orthogonal=True)
    pair = pv.bayesian(Line(3), prior=dist.Normal(0.0, 0.8), guide=pv.weights.MeanField(0.1))
    fitted = pv.fit(
        pair,
        data,
        epochs=150,
        # no noise is left in the gradient where q(w) is exact
        loss=pv.Trace_ELBO(num_particles=3, gradient="sticking_the_landing"),
        schedule=pv.schedules.one_cycle(0.1),
        engine="traced",
        seed=0,
        progress=False,
    )
    return fitted, data


def test_mean_field_is_exact_where_weights_are_independent(mean_field: tuple[pv.Fit, dict[str, Tensor]]) -> None:
    """At the optimum no noise is left in the gradient, so that the fit ends there, within 3 %."""
    fitted, data = mean_field
    mean, covariance = exact(data, 0.8)
    with fitted.scope():
        q = fitted.pair.approximation({"net.weight": fitted.pair.pair.net.weight})["net.weight"].base_dist
    assert torch.allclose(q.loc[0].double(), mean, rtol=0.03, atol=0)
    assert torch.allclose(q.scale[0].double(), covariance.diagonal().sqrt(), rtol=0.03)
    assert fitted.history[-1]["elbo"] * NUM_ROWS == pytest.approx(evidence(data, 0.8), abs=0.05)


def test_low_rank_can_be_the_exact_posterior() -> None:
    """There the bound is log p(y) at every draw, and its gradient zero."""
    data = {name: value.double() for name, value in line_data(3, orthogonal=False).items()}
    mean, covariance = exact(data, 0.8)
    pair = pv.bayesian(Line(3).double(), prior=dist.Normal(0.0, 0.8), guide=pv.weights.LowRank(rank=3))
    small = 1e-3 * torch.linalg.eigvalsh(covariance)[0]
    with torch.no_grad():
        pair.pair.net.weight[0] = mean
        pair.approximation.factor.copy_(torch.linalg.cholesky(covariance - small * torch.eye(3)))
        pair.approximation.log_scale.fill_(small.log() / 2)
    bound = pv.Trace_ELBO(num_particles=4, gradient="sticking_the_landing")(pair, data)
    assert bound.elbo.item() == pytest.approx(evidence(data, 0.8), rel=1e-6)
    for gradient in torch.autograd.grad(bound.objective, list(pair.parameters())):
        assert gradient.abs().max() < 1e-4


def test_importance_is_the_predictive_density(mean_field: tuple[pv.Fit, dict[str, Tensor]]) -> None:
    """log E_q(w)[p(y | c, w)] of each row; within 5 standard errors, 30 rows: false alarms 2e-5."""
    fitted, data = mean_field
    mean, covariance = exact(data, 0.8)
    c, y = data["c"].double(), data["y"].double()
    variance = NOISE**2 + ((c @ covariance) * c).sum(-1)
    wanted = dist.Normal(c @ mean, variance.sqrt()).log_prob(y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pv.importance(fitted, data, num_samples=5000, seed=0)
    assert ((found.log_likelihood - wanted).abs() < 5 * found.standard_error + 0.02).all()
    # not that at the mean, from which it differs by more than that
    assert ((dist.Normal(c @ mean, NOISE).log_prob(y) - wanted).abs() > 0.04).any()


def test_generate_draws_weights_for_each_call_or_each_row(mean_field: tuple[pv.Fit, dict[str, Tensor]]) -> None:
    fitted, _ = mean_field
    c = torch.ones(1, 3).expand(60, 3)
    together = pv.generate(fitted, 60, given={"c": c}, mean=True, seed=0)
    assert len(together.unique()) == 1
    assert not torch.equal(together, pv.generate(fitted, 60, given={"c": c}, mean=True, seed=1))
    each = pv.generate(fitted, 60, given={"c": c}, mean=True, each_row=True, seed=0)
    draws = pv.global_posterior(fitted, 1000, seed=0)["w.net.weight"]
    assert draws.shape == (1000, 1, 3)
    # sd of a sum of independent weights, from 60 draws: its relative error is 0.09, so false alarms are 1e-7
    assert each.std().item() == pytest.approx(draws.sum(-1).std().item(), rel=0.5)
    fixed = draws[0]
    given = pv.generate(fitted, 60, given={"c": c, "w.net.weight": fixed}, mean=True)
    assert torch.allclose(given, fixed.sum().expand(60))


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("guide", [pv.weights.MeanField(0.3), pv.weights.LowRank(2, 0.3)], ids=repr)
def test_the_bound_by_hand(guide: Any, particles: int) -> None:
    """`log p(w) - log q(w) + (N/B) [log p(x, z | w) - log q(z | x)]` at the values that were drawn."""
    plain = vae()
    pair = pv.bayesian(plain, prior=dist.Normal(0.0, 0.7), guide=guide)
    x = torch.bernoulli(torch.full((8, 6), 0.4))
    run = pv.terms(pair, {"x": x}, particles, plate_nesting=1)
    bound = pv.elbo(run, num_rows=80).elbo
    parameters = {name: one.parameter for name, one in pair.chosen.items()}
    q = pair.approximation(parameters)
    total = torch.zeros(())
    for k in range(particles):
        values = {
            name: run.sites[f"w.{name}"].value.reshape(particles, *parameter.shape)[k]
            for name, parameter in parameters.items()
        }
        z = run.sites["z"].value.reshape(particles, 8, 2)[k]
        for value in values.values():
            total = total + dist.Normal(0.0, 0.7).log_prob(value).sum()
        if isinstance(q, dict):
            total = total - sum(q[name].log_prob(value) for name, value in values.items())
        else:
            total = total - q.log_prob(torch.cat([value.flatten() for value in values.values()]))
        likelihood = torch.func.functional_call(
            plain.likelihood.net, {name.removeprefix("likelihood.net."): v for name, v in values.items()}, (z,)
        )
        local = (
            plain.likelihood.family(likelihood).log_prob(x) + plain.prior().log_prob(z) - plain.encoder(x).log_prob(z)
        )
        total = total + 10 * local.sum()
    assert bound.item() == pytest.approx(total.item() / particles, rel=1e-4)


def test_weights_without_width_give_the_plain_pair() -> None:
    """The local terms of a pair whose q(w) is a point are those of the pair itself, at the same noise."""
    torch.manual_seed(0)
    plain = vae()
    narrow = pv.bayesian(plain, guide=pv.weights.MeanField(1e-7))
    x = torch.bernoulli(torch.full((8, 6), 0.4))
    run = pv.terms(narrow, {"x": x})
    at = pv.terms(pv.Pair(plain.model, pyro.poutine.condition(plain.guide, {"z": run.sites["z"].value})), {"x": x})
    assert torch.allclose(run.sites["x"].p.log_prob, at.sites["x"].p.log_prob, atol=1e-4)


SEVERAL = ("cvae-label", "vae-shared-scale", "ladder", "gmvae", "ssvae", "hierarchical-vae", "registered-modules")


@pytest.mark.parametrize("name", SEVERAL)
def test_every_graph_takes_weights_as_latent_variables(name: str) -> None:
    """With several particles (a wrong dimension would be refused), classes summed out, labels missing, functions."""
    row = ROWS[name]
    pair, data = pv.bayesian(row.build()), row.data()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = pv.Trace_ELBO(num_particles=2)
        fitted = pv.fit(pair, data, epochs=1, batch_size=20, loss=loss, engine="eager", seed=0, progress=False)
        found = pv.importance(fitted, data, 10, proposal="guide", seed=0)
    assert torch.isfinite(found.log_likelihood).all()
    assert all(site.local != site.name.startswith("w.") for site in fitted.layout.sites)
    if row.latent is not None:
        assert len(pv.encode(fitted, data, site=row.latent, num_samples=2)) == 40


def test_convolutions_run_particle_by_particle_and_say_so() -> None:
    images = torch.rand(12, 1, 8, 8).round()
    likelihood = pv.conv(2, fam.Bernoulli((1, 8, 8)), channels=(2,))
    encoder = pv.Conditional(nn.Sequential(nn.Flatten(-3), pv.nets.MLP(64, (2, 2), hidden=(4,))), fam.Normal(2))
    pair = pv.bayesian(pv.VAE(pv.priors.StandardNormal(2), likelihood, encoder))
    fitted = pv.fit(pair, images, epochs=1, engine="eager", seed=0, progress=False)
    with pytest.warns(UserWarning, match="one at a time"):
        found = pv.importance(fitted, images, 3, proposal="guide", seed=0)
    assert torch.isfinite(found.log_likelihood).all()


def test_what_the_guide_reads_runs_with_the_same_draw() -> None:
    pair = pv.bayesian(vae(), expose="encoder", guide=pv.weights.MeanField(0.5))
    x = torch.bernoulli(torch.full((8, 6), 0.4))
    run = pv.terms(pair, {"x": x})
    drawn = {name: run.sites[f"w.{name}"].value for name in pair.chosen}
    assert all(name.startswith("encoder.") for name in drawn)
    net = {name.removeprefix("encoder.net."): value for name, value in drawn.items()}
    params = torch.func.functional_call(pair.pair.encoder.net, net, (x,))
    assert torch.allclose(run.sites["z"].q.fn.base_dist.loc, pair.pair.encoder.family(params).base_dist.loc, atol=1e-6)


def test_a_copy_and_a_loaded_pair_are_the_same_pair(tmp_path: Path) -> None:
    x = torch.bernoulli(torch.full((40, 6), 0.4))
    for made in (
        pv.bayesian(vae(), prior=pv.weights.FanIn(0.5), guide=pv.weights.LowRank(2), hide="*.bias"),
        pv.bayesian(vae(), prior=dist.Laplace(0.0, 1.0), expose=["likelihood.net.rest", "encoder"]),
        pv.map_prior(vae(), prior=dist.StudentT(3.0)),
    ):
        fitted = pv.fit(made, x, epochs=1, batch_size=20, seed=0, engine="eager", progress=False)
        loaded = pv.load(pv.save(fitted, tmp_path / type(made).__name__ / str(len(made.chosen))))
        copied = copy.deepcopy(fitted)
        for other in (loaded, copied):
            assert list(other.pair.chosen) == list(made.chosen)
            answers = [pv.log_likelihood(one, x, 20, proposal="guide", seed=0) for one in (fitted, other)]
            assert torch.equal(*answers)
        pv.fit(copied.pair, x, epochs=1, batch_size=20, seed=1, learning_rate=0.1, engine="eager", progress=False)
        fitted.check_weights()  # a copy has weights of its own
        bounds = [pv.elbo(pv.terms(one.pair, {"x": x}, layout=one.layout)).objective for one in (fitted, loaded)]
        assert all(torch.isfinite(bound) for bound in bounds)


def test_a_traced_fit_is_the_eager_one() -> None:
    x = torch.bernoulli(torch.full((40, 6), 0.4))
    losses = []
    for engine in ("eager", "traced"):
        torch.manual_seed(0)
        pair = pv.bayesian(vae(), guide=pv.weights.LowRank(2, 0.1))
        fitted = pv.fit(pair, x, epochs=2, batch_size=20, seed=0, engine=engine, progress=False)
        assert fitted.settings["engine"] == engine
        losses.append([row["elbo"] for row in fitted.history])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# --- priors


def gradients(pair: Any, data: dict[str, Tensor], rows: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss in nats per row at fixed noise, and its gradient."""
    torch.manual_seed(0)
    loss = -pv.Trace_ELBO()(pair, data, num_rows=rows).objective / rows
    named = dict(pair.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return loss.detach(), dict(zip(named, found))


def test_a_prior_adds_its_gradient_and_no_more() -> None:
    """`grad [loss - (1/N) log p(w)]`, of the named weights alone; the bound that is reported is that of the pair."""
    plain = vae()
    x = {"x": torch.bernoulli(torch.full((8, 6), 0.4))}
    pair = pv.map_prior(plain, prior=dist.Laplace(0.0, 0.5), hide="*.bias")
    loss, without = gradients(plain, x, 80)
    total, found = gradients(pair, x, 80)
    log_p = sum(
        dist.Laplace(0.0, 0.5).log_prob(p).sum() for n, p in plain.likelihood.named_parameters() if n.endswith("weight")
    )
    assert total.item() == pytest.approx((loss - log_p.detach() / 80).item(), rel=1e-5)
    for name, parameter in plain.named_parameters():
        prior = parameter.sign() / 0.5 / 80 if name.startswith("likelihood") and name.endswith("weight") else 0.0
        assert torch.allclose(found[f"pair.{name}"], without[name] + prior, atol=1e-6)
    torch.manual_seed(0)
    bound = pv.Trace_ELBO()(pair, x, num_rows=80)
    torch.manual_seed(0)
    assert torch.equal(bound.elbo, pv.Trace_ELBO()(plain, x, num_rows=80).elbo)


def test_questions_of_a_pair_with_a_prior_are_those_of_the_pair() -> None:
    """Also of rows with gaps, which are asked of draws from the prior of z, too."""
    plain = pv.VAE(
        prior=pv.priors.StandardNormal(2),
        likelihood=pv.observed_only(pv.mlp(2, fam.Normal(6), hidden=(8,))),
        encoder=pv.Conditional(pv.nets.WithMask(pv.nets.MLP((6, 6), (2, 2), hidden=(8,))), fam.Normal(2)),
    )
    x = torch.randn(20, 6)
    x[::2, 0] = torch.nan
    fitted = pv.fit(pv.map_prior(plain), x, epochs=1, engine="eager", seed=0, progress=False)
    alone = fit_like(fitted, plain)
    assert torch.equal(*(pv.log_likelihood(one, x, 30, seed=0) for one in (fitted, alone)))
    assert torch.equal(*(pv.generate(one, 5, seed=0) for one in (fitted, alone)))


def test_a_prior_counts_once_where_rows_come_in_groups() -> None:
    """One step of gradient descent moves weights by `- rate * w / (N s^2)` more than without a prior."""
    row, scale, rate = ROWS["ssvae"], 1e-2, 1e-3
    data, ends = row.data(), []
    for around in (lambda pair: pair, lambda pair: pv.map_prior(pair, prior=dist.Normal(0.0, scale))):
        torch.manual_seed(0)
        pair = row.build()
        start = [parameter.detach().clone() for parameter in pair.likelihood.parameters()]
        descent = lambda leaves: torch.optim.SGD(leaves, lr=rate)  # noqa: E731
        options = {"epochs": 1, "batch_size": 40, "optimizer": descent, "engine": "eager", "seed": 0}
        fitted = pv.fit(around(pair), data, progress=False, **options)
        assert fitted.history[-1]["steps"] == 1
        ends.append([parameter.detach() for parameter in pair.likelihood.parameters()])
    for before, without, having in zip(start, *ends):
        assert torch.allclose(having, without - rate * before / (40 * scale**2), atol=1e-5)


OPTIMIZERS = {
    "SGD": lambda decay: lambda leaves: torch.optim.SGD(leaves, lr=0.05, weight_decay=decay),
    "Adam": lambda decay: lambda leaves: torch.optim.Adam(leaves, lr=0.01, weight_decay=decay),
    "AdamW": lambda decay: lambda leaves: torch.optim.AdamW(leaves, lr=0.01, weight_decay=decay),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_is_a_normal_prior_except_where_it_is_decoupled(name: str) -> None:
    """N(0, s^2) is the weight decay 1/(N s^2) of SGD and Adam, and that of AdamW is no prior."""
    data, scale = line_data(3, orthogonal=False), 0.3
    decay = 1 / (NUM_ROWS * scale**2)
    ends = []
    for decays in (True, False):
        torch.manual_seed(0)
        line = Line(3)
        pair = line if decays else pv.map_prior(line, prior=dist.Normal(0.0, scale))
        optimizer = OPTIMIZERS[name](decay if decays else 0.0)
        pv.fit(pair, data, epochs=20, optimizer=optimizer, engine="eager", seed=0, progress=False)
        ends.append(line.net.weight.detach())
    if name == "AdamW":
        assert (ends[0] - ends[1]).abs().max() > 1e-3
    else:
        assert torch.allclose(*ends, atol=1e-5)


def test_the_gradient_is_zero_at_the_mode_of_a_conjugate_posterior() -> None:
    data = line_data(3, orthogonal=False)
    line = Line(3)
    with torch.no_grad():
        line.net.weight[0] = exact(data, 0.3)[0].float()
    _, found = gradients(pv.map_prior(line, prior=dist.Normal(0.0, 0.3)), data, NUM_ROWS)
    _, without = gradients(line, data, NUM_ROWS)
    assert found["pair.net.weight"].abs().max() < 1e-5 < 1e-2 < without["net.weight"].abs().max()


def test_priors_of_weights() -> None:
    weight = torch.zeros(3, 16)
    for prior, scale in ((pv.weights.FanIn(2.0), 0.5), (dist.Normal(0.0, 0.7), 0.7)):
        made = prior_of(prior, "weight", weight)
        assert made.event_shape == (3, 16) and made.batch_shape == ()
        density = -48 * (math.log(scale) + 0.5 * math.log(2 * math.pi))
        assert made.log_prob(weight).item() == pytest.approx(density, rel=1e-5)
    two = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), torch.tensor([1.0, 0.1])))
    assert prior_of(two, "weight", weight.double()).log_prob(weight.double()).dtype == torch.float64


# --- what is refused


def test_names_that_fit_nothing_and_parameters_that_cannot_be_exchanged() -> None:
    with pytest.raises(OptionError, match=r"expose='decoder' .*likelihood.net.first.0.weight"):
        pv.bayesian(vae(), expose="decoder")
    with pytest.raises(OptionError, match="hide='nothing'"):
        pv.map_prior(vae(), hide=["likelihood.net.first", "nothing"])
    with pytest.raises(OptionError, match="No parameter is chosen"):
        pv.bayesian(vae(), hide="likelihood")
    with pytest.raises(OptionError, match="PyroSample"):
        pv.bayesian(ROWS["auto-normal"].build(), expose="model")
    with pytest.raises(OptionError, match="nn.RNNBase"):
        pv.bayesian(pv.Pair(nn.GRU(3, 3), lambda input, hx=None: None), expose="model")
    with pytest.raises(OptionError, match="callable `guide`"):
        pv.bayesian(nn.Linear(2, 2))  # type: ignore[arg-type]
    for wrong, words in (
        (1.0, "got 1.0"),
        (dist.Normal(torch.zeros(3), 1.0), r"shapes \(3,\)"),
        (torch.distributions.Normal(0.0, 1.0), "torch.distributions"),
        (lambda name, value: dist.Normal(0.0, 1.0), "must be a distribution of events of shape"),
        (lambda name, value: None, "got None"),
    ):
        with pytest.raises(OptionError, match=words):
            pv.bayesian(vae(), prior=wrong)
    with pytest.raises(OptionError, match="guide must be"):
        pv.bayesian(vae(), guide="mean-field")  # type: ignore[arg-type]
    for make in (lambda: pv.weights.MeanField(0.0), lambda: pv.weights.LowRank(0), lambda: pv.weights.FanIn(math.inf)):
        with pytest.raises(OptionError):
            make()


def test_what_is_frozen_or_read_by_the_guide_is_not_chosen_by_default() -> None:
    plain = vae()
    plain.likelihood.net.first.requires_grad_(False)
    assert list(pv.bayesian(plain).chosen) == ["likelihood.net.rest.1.weight", "likelihood.net.rest.1.bias"]
    encoder = pv.mlp(6, fam.Normal(2), hidden=(8,))
    vamp = pv.VAE(pv.priors.VampPrior(encoder, torch.rand(3, 6)), pv.mlp(2, fam.Bernoulli(6), hidden=()), encoder)
    names = list(pv.bayesian(vamp).chosen)
    assert any(name.startswith("prior.") for name in names) and not any("encoder" in name for name in names)


@pytest.mark.parametrize("kind", ["bayesian", "map_prior", "swag"])
def test_what_was_chosen_is_what_a_run_records(kind: str, tmp_path: Path) -> None:
    """A part that is frozen when weights are chosen is none of them in the loaded pair, either."""
    torch.manual_seed(0)
    x, options = torch.bernoulli(torch.full((20, 6), 0.4)), {"engine": "eager", "progress": False}
    pair = vae()
    pair.likelihood.net.first = pv.frozen(pair.likelihood.net.first)
    if kind == "swag":
        fitted = pv.swag(pv.fit(pair, x, epochs=1, **options), x, epochs=2, **options)
    else:
        fitted = pv.fit(getattr(pv, kind)(pair, hide="*.bias"), x, epochs=1, **options)
    loaded = pv.load(pv.save(fitted, tmp_path / "run"))
    assert list(loaded.pair.chosen) == list(fitted.pair.chosen)
    assert not any("likelihood.net.first" in name for name in fitted.pair.chosen)
    answers = [pv.log_likelihood(one, x, 10, proposal="guide", seed=0) for one in (fitted, loaded)]
    assert torch.equal(*answers)


def test_options_of_another_kind() -> None:
    for wrong in (3, [3], {"likelihood": 1}.values()):
        for option in ("expose", "hide"):
            with pytest.raises(OptionError, match=f"{option} must be a name"):
                pv.bayesian(vae(), **{option: wrong})  # type: ignore[arg-type]
    several = (name for name in ["likelihood.net.rest", "encoder"])
    assert list(pv.bayesian(vae(), expose=several).chosen) == list(  # type: ignore[arg-type]
        pv.bayesian(vae(), expose=["likelihood.net.rest", "encoder"]).chosen
    )
    for guide in (pv.weights.MeanField, pv.weights.LowRank, 3, lambda parameters: 0.1):
        with pytest.raises(OptionError, match="guide"):
            pv.bayesian(vae(), guide=guide)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="A prior of weights"):
        pv.bayesian(vae(), prior=pv.weights.FanIn)
    for scale in ("0.1", None, True, 0.0, math.nan):
        for of_scale in (pv.weights.MeanField, pv.weights.FanIn, lambda scale: pv.weights.LowRank(2, scale)):
            with pytest.raises(OptionError, match="scale of .* must be a positive number"):
                of_scale(scale)  # type: ignore[arg-type]


def test_global_posterior_needs_a_global_site() -> None:
    x = torch.bernoulli(torch.full((40, 6), 0.4))
    fitted = pv.fit(vae(), x, epochs=1, engine="eager", progress=False)
    with pytest.raises(PairError, match="no global latent site"):
        pv.global_posterior(fitted)
    for wrong in (0, "5", 2.5, True):
        with pytest.raises(OptionError, match="num_samples"):
            pv.global_posterior(fitted, wrong)  # type: ignore[arg-type]
    auto = pv.fit(ROWS["auto-normal"].build(), regression_data(), epochs=1, engine="eager", progress=False)
    assert pv.global_posterior(auto, 7)["weight"].shape == (7, 5)
    with pytest.raises(PairError, match="'z' is no global latent site"):
        pv.global_posterior(auto, site="z")
    for wrong_site in ([], 3):
        with pytest.raises(OptionError, match="site"):
            pv.global_posterior(auto, site=wrong_site)  # type: ignore[arg-type]

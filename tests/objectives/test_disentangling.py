"""Objectives that disentangle, and the parts of the KL: against brute force over all minibatches, and closed forms."""

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.programs import binary, ssvae, vae
from torch import Tensor, nn

import pyrovae as pv
import pyrovae.families as fam
from pyrovae.fitted.spec import from_spec, to_spec
from pyrovae.objectives.aggregate import Codes, code_sites, codes_of, estimate, exact, log_density_matrix
from pyrovae.objectives.elbo import bound_of

N, D = 6, 3


def codes(rows: int = N, particles: int = 2) -> Codes:
    loc, scale = torch.randn(1, rows, D).double(), torch.rand(1, rows, D).double() + 0.3
    draws = loc + scale * torch.randn(particles, rows, D).double()
    return Codes(draws, loc.expand_as(draws), scale.expand_as(draws))


def some_rows(all_rows: Codes, rows: list[int]) -> Codes:
    return Codes(*(value[:, rows] for value in all_rows))


def brute_force(all_rows: Codes) -> tuple[Tensor, Tensor, Tensor]:
    """log q(z | x), log q(z) and log q(z_d) of every draw, by torch's mixtures."""
    own, joint, units = [], [], []
    for draws, loc, scale in zip(*all_rows):
        each = torch.distributions.Normal(loc, scale)
        weights = torch.distributions.Categorical(torch.ones(len(loc)).double())
        whole = torch.distributions.MixtureSameFamily(weights, torch.distributions.Independent(each, 1))
        by_unit = torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(torch.ones(D, len(loc)).double()),
            torch.distributions.Normal(loc.T, scale.T),
        )
        own.append(each.log_prob(draws).sum(-1))
        joint.append(whole.log_prob(draws))
        units.append(by_unit.log_prob(draws))
    return torch.stack(own), torch.stack(joint), torch.stack(units)


# --- the aggregate posterior -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("found", [exact, lambda c: exact(c, at_once=1), lambda c: estimate(c, N)], ids=range(3))
def test_the_aggregate_of_all_rows_is_a_mixture(found: Any) -> None:
    given = codes()
    for got, wanted in zip(found(given), brute_force(given)):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_stratified_estimate_has_no_bias(size: int) -> None:
    """The mean of the densities over every minibatch that contains the row is that over all rows, to rounding."""
    given = codes()
    _, joint, units = brute_force(given)
    for row in range(N):
        others = itertools.combinations([n for n in range(N) if n != row], size - 1)
        batches = [estimate(some_rows(given, [row, *rest]), N) for rest in others]
        torch.testing.assert_close(torch.stack([b.joint[:, 0].exp() for b in batches]).mean(0), joint[:, row].exp())
        torch.testing.assert_close(torch.stack([b.units[:, 0].exp() for b in batches]).mean(0), units[:, row].exp())


def test_the_weighted_estimate_is_that_of_the_reference() -> None:
    given = codes(4)
    log_q = log_density_matrix(*given)
    found = estimate(given, 100, "weighted")
    torch.testing.assert_close(found.joint, (log_q.sum(-1).exp().sum(-1) / (100 * 4)).log())
    torch.testing.assert_close(found.units, (log_q.exp().sum(-2) / (100 * 4)).log())
    alone = estimate(given, 4)  # of a data set that is the minibatch alone: the same up to a constant
    shift = math.log(100)
    torch.testing.assert_close(found.total_correlation, alone.total_correlation + (D - 1) * shift)
    torch.testing.assert_close(found.information, alone.information + shift)


def test_one_row_has_no_others() -> None:
    with pytest.raises(pv.PairError, match="one row"):
        estimate(codes(1), 10)


def test_codes_of_scalars_and_of_several_particles() -> None:
    encoder = nn.Linear(6, 1)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1).expand(*z.shape, 6), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x).squeeze(-1), 1.0))

    for particles in (1, 3):
        found = codes_of(pv.terms(pv.Pair(model, guide), {"x": binary(5)}, particles), "z")
        assert {tuple(value.shape) for value in found} == {(particles, 5, 1)}
    found = codes_of(pv.terms(vae(), {"x": binary(5)}, 3), "z")
    assert {tuple(value.shape) for value in found} == {(3, 5, 2)}


# --- objectives ------------------------------------------------------------------------------------------------------


def objective(run: pv.Terms, kl: Any, num_rows: int = 40, kl_weight: float | None = None) -> Tensor:
    return bound_of(run, num_rows, kl_weight, kl).objective


@pytest.fixture
def run() -> pv.Terms:
    return pv.terms(vae().double(), {"x": binary(8).double()}, num_particles=2)


def test_equal_weights_need_no_estimate(run: pv.Terms) -> None:
    torch.testing.assert_close(objective(run, pv.kl.total_correlation(1.0)), objective(run, "analytic"))
    four = pv.kl.total_correlation(4.0, 4.0, 4.0)
    torch.testing.assert_close(objective(run, four), objective(run, pv.kl.beta(4.0)))
    torch.testing.assert_close(objective(run, pv.kl.beta({"z": 4.0})), objective(run, "analytic", kl_weight=4.0))


@pytest.mark.parametrize("estimator", ["stratified", "weighted"])
def test_each_part_has_its_weight(run: pv.Terms, estimator: str) -> None:
    found = estimate(codes_of(run, "z"), 40, estimator)
    plain = objective(run, "analytic")
    kl = objective(run, "analytic", kl_weight=0.0) - plain  # of 40 rows
    mi, tc = (40 * part.mean() for part in (found.information, found.total_correlation))
    got = objective(run, pv.kl.total_correlation(5.0, 3.0, 2.0, estimator, ["z"]), kl_weight=0.5)
    torch.testing.assert_close(got, plain + kl - 0.5 * (3.0 * mi + 5.0 * tc + 2.0 * (kl - mi - tc)))


def test_the_capacity_is_the_share_that_the_kl_weight_opens(run: pv.Terms) -> None:
    likelihood = objective(run, "analytic", kl_weight=0.0)
    kl = (likelihood - objective(run, "analytic")) / 40
    for share, nats in ((0.0, 3.0), (0.5, 3.0), (1.0, 0.01)):
        found = objective(run, pv.kl.capacity(nats, gamma=7.0), kl_weight=share)
        torch.testing.assert_close(found, likelihood - 40 * 7.0 * (kl - share * nats).abs())
    unnamed = pv.kl.capacity({}, gamma=7.0)
    torch.testing.assert_close(objective(run, unnamed, kl_weight=0.5), objective(run, "analytic", kl_weight=0.5))
    both = pv.kl.chain(pv.kl.beta(2.0), pv.kl.capacity(3.0, gamma=7.0))
    torch.testing.assert_close(objective(run, both, kl_weight=0.5), likelihood - 40 * 7.0 * (2 * kl - 1.5).abs())


@pytest.mark.parametrize("of", ["means", "codes"])
def test_dip_is_a_penalty_on_a_covariance(run: pv.Terms, of: str) -> None:
    z = codes_of(run, "z")
    covariance = torch.cov(z.loc[0].T, correction=0)
    if of == "codes":
        covariance = covariance + z.scale[0].square().mean(0).diag()
    off, diagonal = covariance - covariance.diag().diag(), covariance.diag() - 1
    penalty = 3.0 * off.square().sum() + 5.0 * diagonal.square().sum()
    found = objective(run, pv.kl.dip(3.0, 5.0, of))
    torch.testing.assert_close(found, objective(run, "analytic") - 40 * penalty)


def test_the_discriminator_and_the_pair_get_gradients_of_their_own() -> None:
    pair, x = vae().double(), binary(8).double()
    discriminator = pv.nets.MLP(2, 1, hidden=(4,)).double()
    kl = pv.kl.density_ratio(3.0, discriminator)
    run = pv.terms(pair, {"x": x})
    torch.manual_seed(1)
    found = objective(run, kl, num_rows=8)
    codes = run.sites["z"].value
    ratio = discriminator(codes)
    torch.testing.assert_close(found, objective(run, "analytic", num_rows=8) - 3.0 * ratio.sum())

    of_pair = list(pair.parameters())
    alone = objective(run, "analytic", num_rows=8) - 3.0 * ratio.sum()
    for got, wanted in zip(*(torch.autograd.grad(f, of_pair, retain_graph=True) for f in (found, alone))):
        torch.testing.assert_close(got, wanted)

    torch.manual_seed(1)
    order = torch.rand(1, 8, 2, dtype=torch.float64).argsort(1)[0]  # of each dimension
    shuffled = torch.stack([codes[order[:, d], d] for d in range(2)], 1)
    logistic = nn.functional.binary_cross_entropy_with_logits
    here, there = discriminator(codes.detach()), discriminator(shuffled.detach())
    loss = 0.5 * (logistic(here, torch.ones_like(here)) + logistic(there, torch.zeros_like(there)))
    for got, wanted in zip(*(torch.autograd.grad(f, list(discriminator.parameters())) for f in (-found / 8, loss))):
        torch.testing.assert_close(got, wanted)


def test_a_fit_trains_the_discriminator_and_goes_on_with_it(tmp_path: Path) -> None:
    x = binary(20)

    def fit(folder: str, epochs: int = 4, **options: Any) -> tuple[pv.Fit, nn.Module]:
        torch.manual_seed(0)
        pair, discriminator = vae(), pv.nets.MLP(2, 1, hidden=(4,))
        loss = pv.Trace_ELBO(kl=pv.kl.density_ratio(3.0, discriminator))
        where = tmp_path / folder
        return pv.fit(
            pair, x, epochs=epochs, batch_size=10, seed=0, loss=loss, engine="traced", checkpoint=where, **options
        ), discriminator

    whole, one = fit("whole")
    start = pv.nets.MLP(2, 1, hidden=(4,)).state_dict()
    fit("parts", callbacks=[lambda fitted: len(fitted.history) == 2])
    again, two = fit("parts", resume=True)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name]) and not torch.equal(tensor, start[name])
    assert torch.equal(pv.encode(whole, x), pv.encode(again, x))
    assert torch.equal(pv.encode(pv.load(tmp_path / "whole"), x), pv.encode(whole, x))


def test_the_gradient_of_the_discriminator_does_not_clip_that_of_the_pair() -> None:
    found = []
    for kl in (pv.kl.density_ratio(0.0, pv.nets.MLP(2, 1, hidden=(4,))), pv.kl.beta(1.0)):
        for parameter in getattr(kl, "discriminator", nn.Module()).parameters():
            parameter.data.mul_(20)
        torch.manual_seed(0)
        pair, loss = vae(), pv.Trace_ELBO(kl=kl)
        optimizer = lambda leaves: torch.optim.SGD(leaves, lr=1.0)  # noqa: E731
        pv.fit(pair, binary(20), epochs=1, batch_size=20, seed=0, loss=loss, optimizer=optimizer, clip_norm=0.1)
        found.append(pair.state_dict())
    torch.testing.assert_close(*found)


FUNCTIONS = [
    pv.kl.beta(4.0),
    pv.kl.capacity(2.0, gamma=3.0),
    pv.kl.total_correlation(6.0),
    pv.kl.dip(2.0, 3.0),
    pv.kl.chain(pv.kl.total_correlation(6.0, estimator="stratified"), pv.kl.dip(2.0, 3.0, of="means")),
    pv.kl.density_ratio(3.0, pv.nets.MLP(2, 1, hidden=(4,))),
]


@pytest.mark.parametrize("function", FUNCTIONS, ids=repr)
def test_settings_are_recorded(function: Any) -> None:
    assert to_spec(from_spec(to_spec(function))) == to_spec(function)
    assert "0x" not in repr(function) and repr(from_spec(to_spec(function))) == repr(function)


@pytest.mark.parametrize("function", FUNCTIONS, ids=repr)
def test_engines_agree(function: Any) -> None:
    x, found = binary(20), []
    for engine in ("eager", "traced"):
        torch.manual_seed(0)
        loss, growing = pv.Trace_ELBO(kl=copy.deepcopy(function)), pv.schedules.kl_warmup(2)
        fitted = pv.fit(vae(), x, epochs=2, batch_size=10, seed=0, loss=loss, schedule=growing, engine=engine)
        assert "engine_notes" not in fitted.settings
        found.append(pv.encode(fitted, x))
    torch.testing.assert_close(found[0], found[1])


# --- what is refused -------------------------------------------------------------------------------------------------


class Masked(nn.Module):
    """A site of which some rows are masked."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 2)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=x[:, 0] > 0):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True).expand(-1, 6), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=x[:, 0] > 0):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))


def ladder() -> pv.LadderVAE:
    return pv.LadderVAE.of_levels(fam.Bernoulli(6), levels=(3, 2), hidden=(8, 8))


def labels() -> pv.SSVAE:
    return pv.SSVAE(
        label_prior=pv.priors.Categorical(3),
        prior=pv.priors.StandardNormal(2),
        likelihood=pv.mlp((2, 3), fam.Bernoulli(6), hidden=(8,)),
        classifier=pv.mlp(6, fam.Categorical((), 3), hidden=(8,)),
        encoder=pv.mlp((6, 3), fam.Normal(2), hidden=(8,)),
        code=pv.nets.OneHot(3),
    )


def laplace() -> pv.VAE:
    return pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6)), pv.mlp(6, fam.Laplace(2)))


@pytest.mark.parametrize(
    ("build", "sites", "message"),
    [
        (ladder, None, r"'z1' depends on the draw of 'z2': .*sites=\('z2',\)"),
        (laplace, None, "'z' is Laplace"),
        (Masked, None, "'z' is masked"),
        (labels, None, "'z' depends on an enumerated site"),
        (labels, ["y"], "'y' is enumerated"),
    ],
)
def test_other_guides_are_refused(build: Any, sites: Any, message: str) -> None:
    pair = build()
    for kl in (pv.kl.total_correlation(6.0, sites=sites), pv.kl.dip(1.0, 1.0, sites=sites)):
        with pytest.raises(pv.PairError, match=message):
            pv.Trace_ELBO(kl=kl)(pair, {"x": binary(8)})


class Switch(nn.Module):
    """A code whose Normal depends on a coin that seldom falls on its other side."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.p = nn.Linear(6, 2), 0.05

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(torch.tensor(0.5)))
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True).expand(-1, 6), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(torch.full((len(x),), self.p)))
            pyro.sample("z", dist.Normal(self.encoder(x) + y.unsqueeze(-1), 1.0).to_event(1))


def frozen_ladder() -> pv.LadderVAE:
    pair = ladder()
    for part in (pair.upward, pair.evidence, pair.lower):
        part.requires_grad_(False)
    return pair


# of Switch, 8 rows and 32 runs pass for one of no other draws with probability 0.95^256, about 2e-6
@pytest.mark.parametrize(("build", "site"), [(Switch, "z"), (frozen_ladder, "z1")])
def test_a_fit_and_a_criticism_see_draws_that_autograd_does_not(build: Any, site: str) -> None:
    x = binary(8)
    for kl in (pv.kl.total_correlation(6.0, sites=site), pv.kl.chain(pv.kl.beta(2.0), pv.kl.dip(1.0, 1.0, sites=site))):
        with pytest.raises(pv.PairError, match="another at every run"):
            pv.fit(build(), x, epochs=1, loss=pv.Trace_ELBO(kl=kl))
    with pytest.raises(pv.PairError, match="another at every run"):
        pv.kl_parts(pv.fit(build(), x, epochs=0), x, sites=site)


@pytest.mark.parametrize("function", FUNCTIONS[2:], ids=repr)
def test_a_minibatch_of_one_row_is_refused(function: Any) -> None:
    with pytest.raises(pv.PairError, match="minibatch, which has one row"):
        pv.Trace_ELBO(kl=copy.deepcopy(function))(vae(), {"x": binary(1)})


def test_the_top_level_alone_can_be_named() -> None:
    pair = ladder()
    run = pv.terms(pair, {"x": binary(8)})
    assert code_sites(run) == ["z2", "z1"]
    kl = pv.kl.total_correlation(6.0, sites="z2")
    bound = pv.Trace_ELBO(kl=kl)(pair, {"x": binary(8)})
    assert bound.objective.isfinite() and bound.objective != bound.elbo


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pv.kl.beta(-1.0), "at least 0.*got -1.0"),
        (lambda: pv.kl.capacity({"z": math.inf}), "at least 0.*got inf for 'z'"),
        (lambda: pv.kl.capacity(1.0, gamma=0.0), "gamma must be a positive number, got 0.0"),
        (lambda: pv.kl.capacity(1.0, gamma={"z": 1.0}), "gamma must be a positive number, got {'z': 1.0}"),  # type: ignore[arg-type]
        (lambda: pv.kl.total_correlation({"z": 1.0}), "weight must be a number of at least 0"),  # type: ignore[arg-type]
        (lambda: pv.kl.total_correlation(1.0, estimator="exact"), "'stratified', 'weighted', got 'exact'"),
        (lambda: pv.kl.total_correlation(1.0, sites=[1]), r"sites must be a name, or a list of names, got \[1\]"),  # type: ignore[list-item]
        (lambda: pv.kl.dip(1.0, 1.0, of="draws"), "of must be one of 'means', 'codes', got 'draws'"),
        (lambda: pv.kl.density_ratio(1.0, lambda z: z), "a module as discriminator"),  # type: ignore[arg-type]
        (lambda: pv.kl.density_ratio(1.0, nn.Flatten()), "Flatten has no parameter to train"),
        (lambda: pv.kl.chain(pv.kl.capacity(1.0), pv.kl.beta(2.0)), "the last function of a chain"),
    ],
)
def test_unfit_options_get_one_clear_error(make: Any, message: str) -> None:
    with pytest.raises(pv.OptionError, match=message):
        make()


def test_unfit_discriminators_are_refused() -> None:
    wide = pv.kl.density_ratio(1.0, pv.nets.MLP(2, 2))
    with pytest.raises(pv.PairError, match="one logit for each row"):
        pv.Trace_ELBO(kl=wide)(vae(), {"x": binary(8)})
    with pytest.raises(pv.PairError, match=r"choose by site=..., of \['z2', 'z1'\]"):
        pv.Trace_ELBO(kl=pv.kl.density_ratio(1.0, pv.nets.MLP(2, 1)))(ladder(), {"x": binary(8)})
    with pytest.raises(pv.PairError, match="'z' has one for each value of an enumerated site"):
        pv.Trace_ELBO(kl=pv.kl.density_ratio(1.0, pv.nets.MLP(2, 1), site="z"))(ssvae(), {"x": binary(8)})
    pair = vae()
    with pytest.raises(pv.OptionError, match="use pv.fit"):
        pv.SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 1e-3}), pv.Trace_ELBO(kl=wide))

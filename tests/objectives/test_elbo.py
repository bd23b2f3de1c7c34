"""The ELBO: equal to Pyro's in value and gradient, weighed as the formulas say, and without a host sync."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.comparisons import MANY, assert_equal, named
from support.pairs import (
    TABLE,
    Base,
    BernoulliLatent,
    GlobalLocal,
    Hierarchical,
    Mixed,
    Plain,
    Row,
    largest_difference,
    normal,
    ones,
    ours,
    pyros,
    value_and_gradients,
    weight,
    zeros,
)
from support.reads import counted_reads
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.nn import functional as F

import pyrovae as pv
from pyrovae.objectives.losses import as_loss

ANALYTIC = [row for row in TABLE if row.analytic]
SCORE = [row for row in TABLE if row.score]


# Every row with the kinds of KL that apply to it.
KINDS = [
    pytest.param(row, kl, id=f"{row.name}-{name}")
    for row in TABLE
    for name, kl in (("drawn", None), ("analytic", "analytic"), ("function", lambda terms: terms))
    if kl is None or row.analytic
]


# --- against Pyro ----------------------------------------------------------------------------------------------------


@named(TABLE)
@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("num_rows", [None, MANY])
def test_trace_elbo(row: Row, particles: int, num_rows: int | None) -> None:
    pair, batch = row.build()
    a = ours(row, pair, batch, particles=particles, num_rows=num_rows)
    assert_equal(a, pyros(row, pair, batch, particles=particles, num_rows=num_rows))


@named(ANALYTIC)
@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("num_rows", [None, MANY])
def test_trace_mean_field_elbo(row: Row, particles: int, num_rows: int | None) -> None:
    pair, batch = row.build()
    a = ours(row, pair, batch, particles=particles, num_rows=num_rows, kl="analytic")
    assert_equal(a, pyros(row, pair, batch, particles=particles, num_rows=num_rows, kl="analytic"))


@named(TABLE)
def test_subsample_scale_of_its_own(row: Row) -> None:
    # Plate "data" says N/B itself: `num_rows` must not say it again.
    pair, batch = row.build()
    pair.total = MANY
    a = ours(row, pair, batch, num_rows=MANY)
    assert_equal(a, pyros(row, pair, batch, num_rows=MANY))


def test_comparison_can_fail() -> None:
    row = next(row for row in TABLE if row.name == "global_local")
    pair, batch = row.build()
    reference = pyros(row, pair, batch, num_rows=MANY)
    for wrong in (
        ours(row, pair, batch),  # N/B left out
        ours(row, pair, batch, num_rows=MANY, seed=2),  # other noise
        ours(row, pair, batch, num_rows=MANY, kl="analytic"),  # another estimator
    ):
        value, gradient = largest_difference(wrong, reference)
        assert value > 1e-4 and gradient > 1e-4


def test_pyro_losses_are_accepted() -> None:
    pair, batch = TABLE[0].build()
    for theirs, mine in (
        (pyro.infer.Trace_ELBO(num_particles=3), pv.Trace_ELBO(3)),
        (pyro.infer.TraceMeanField_ELBO(num_particles=2), pv.Trace_ELBO(2, kl="analytic")),
        (pyro.infer.TraceEnum_ELBO(num_particles=2), pv.Trace_ELBO(2)),
        (pyro.infer.JitTraceEnum_ELBO(num_particles=2), pv.Trace_ELBO(2)),
        (None, pv.Trace_ELBO()),
    ):
        values = []
        for loss in (as_loss(theirs), mine):
            torch.manual_seed(0)
            values.append(loss(pair, batch).elbo)
        assert torch.equal(*values)


# --- where Pyro is biased, and the truth is known --------------------------------------------------------------------


class ScoreBeforeAuxiliary(Base):
    """The entropy of an auxiliary site depends on a score-function site. Pyro's log_r leaves auxiliary sites out."""

    def __init__(self) -> None:
        super().__init__()
        self.logit, self.loc = weight(), weight()

    def spread(self, y: Tensor) -> Tensor:
        return 0.1 + 3 * y

    def model(self, x: Tensor) -> None:
        with self.rows(x):
            y = pyro.sample("y", dist.Bernoulli(0.5 * ones()))
            z = pyro.sample("z", dist.Normal(zeros(), ones()))
            pyro.sample("x", dist.Normal(y + z, ones()), obs=x[:, 0])

    def guide(self, x: Tensor) -> None:
        with self.rows(x):
            y = pyro.sample("y", dist.Bernoulli(logits=self.logit))
            pyro.sample("u", dist.Normal(zeros(), self.spread(y)), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(self.loc, ones()))


def test_auxiliary_site_behind_a_score_site() -> None:
    row = Row("score_before_auxiliary", ScoreBeforeAuxiliary, analytic=False, score=True)
    pair, batch = row.build()
    x, q, exact = batch["x"][:, 0], torch.sigmoid(pair.logit), zeros()
    for y, probability in ((0.0, 1 - q), (1.0, q)):
        entropy = dist.Normal(0.0, pair.spread(torch.tensor(y))).entropy()
        fit = dist.Normal(y + pair.loc, 1.0).log_prob(x) - 0.5
        prior_y = ones().mul(0.5).log()
        exact = exact + (probability * (fit + entropy + prior_y - probability.log() - pair.loc**2 / 2)).sum()
    (wanted,) = torch.autograd.grad(-exact, pair.logit)
    draws = torch.stack([ours(row, pair, batch, particles=500, seed=s)["logit"] for s in range(25)])
    # |t| < 6 on 24 degrees of freedom: false alarms 3e-6
    assert abs(draws.mean() - wanted) < 6 * draws.std() / 5
    assert draws.std() / 5 < 0.05 * abs(wanted)  # else the bound would say nothing


# --- the weight of the KL --------------------------------------------------------------------------------------------


@named(TABLE)
@pytest.mark.parametrize("particles", [1, 3])
def test_kl_weight_with_pyro_means(row: Row, particles: int) -> None:
    pair, batch = row.build()
    options: dict[str, Any] = {"particles": particles, "num_rows": MANY, "kl_weight": 0.3}
    assert_equal(ours(row, pair, batch, **options), pyros(row, pair, batch, **options))


@named(ANALYTIC)
def test_kl_weight_analytic(row: Row) -> None:
    pair, batch = row.build()
    options: dict[str, Any] = {"num_rows": MANY, "kl_weight": 0.3, "kl": "analytic"}
    assert_equal(ours(row, pair, batch, **options), pyros(row, pair, batch, **options))


@pytest.mark.parametrize("kl", [None, "analytic"])
def test_kl_weight_by_hand(kl: str | None) -> None:
    row = Row("plain", Plain)
    pair, batch = row.build()
    x, beta = batch["x"], 0.3
    torch.manual_seed(1)
    loc, scale = x @ pair.encode, pair.log_scale.exp()
    z = loc + scale * torch.randn(loc.shape, dtype=torch.float64)
    fit = -F.binary_cross_entropy_with_logits(z @ pair.decode, (x > 0).double(), reduction="sum")
    if kl is None:
        divergence = (dist.Normal(loc, scale).log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z)).sum()
    else:
        divergence = 0.5 * (loc**2 + scale**2 - 1 - 2 * scale.log()).sum()
    by_hand = value_and_gradients(-MANY / len(x) * (fit - beta * divergence), pair)
    assert_equal(ours(row, pair, batch, num_rows=MANY, kl_weight=beta, kl=kl), by_hand)


def test_kl_weight_by_hand_with_a_score_site() -> None:
    row = Row("bernoulli", BernoulliLatent, score=True)
    pair, batch = row.build()
    x, beta = batch["x"], 0.3
    torch.manual_seed(1)
    logits = x @ pair.encode
    z = dist.Bernoulli(logits=logits).sample()
    log_q = dist.Bernoulli(logits=logits).log_prob(z).sum(-1)
    log_p = dist.Bernoulli(logits=pair.prior_logits).log_prob(z).sum(-1)
    fit = dist.Normal(z @ pair.decode, 1.0).log_prob(x).sum(-1)
    reward = fit + beta * (log_p - log_q)  # of each row: its own terms only
    surrogate = (fit + beta * log_p + reward.detach() * log_q).sum()
    by_hand = value_and_gradients(-surrogate, pair) | {"value": -reward.sum().detach()}
    assert_equal(ours(row, pair, batch, kl_weight=beta), by_hand)


@pytest.mark.parametrize(("row", "kl"), KINDS)
def test_elbo_is_free_of_the_weight(row: Row, kl: Any) -> None:
    pair, batch = row.build()
    bounds = []
    for kl_weight in (None, 1.0, 0.3, torch.zeros(())):
        torch.manual_seed(1)
        bounds.append(pv.Trace_ELBO(kl=kl)(pair, batch, num_rows=MANY, kl_weight=kl_weight))
    for bound in bounds[1:]:
        torch.testing.assert_close(bound.elbo, bounds[0].elbo, rtol=1e-14, atol=0)
    assert not bounds[0].elbo.requires_grad
    torch.testing.assert_close(bounds[0].elbo, bounds[0].objective.detach(), rtol=1e-13, atol=0)
    assert abs(bounds[2].objective - bounds[0].objective) > 1e-3


# --- kl as a function ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.5, 2.0], ids=["below the KL", "above the KL"])
def test_free_bits_by_hand(factor: float) -> None:
    row = Row("plain", Plain)
    pair, batch = row.build()
    x, beta, particles = batch["x"], 0.5, 3
    torch.manual_seed(1)
    loc, scale = x @ pair.encode, pair.log_scale.exp()
    z = loc + scale * torch.randn((particles, *loc.shape), dtype=torch.float64)
    seen = (x > 0).double().expand(particles, -1, -1)
    fit = -F.binary_cross_entropy_with_logits(z @ pair.decode, seen, reduction="sum") / particles
    closed = 0.5 * (loc**2 + scale**2 - 1 - 2 * scale.log()).sum(-1)
    floor = factor * closed.mean().item()

    def free_bits(terms: dict[str, Tensor]) -> dict[str, Tensor]:
        assert {name: tuple(term.shape) for name, term in terms.items()} == {"z": (particles, len(x))}
        return {name: term.mean(1, keepdim=True).clamp_min(floor) for name, term in terms.items()}

    torch.manual_seed(1)
    bound = pv.Trace_ELBO(particles, kl=free_bits)(pair, batch, num_rows=MANY, kl_weight=beta)
    share = MANY / len(x)
    torch.testing.assert_close(bound.elbo, (share * (fit - closed.sum())).detach(), rtol=1e-12, atol=0)
    by_hand = -share * (fit - beta * len(x) * closed.mean().clamp_min(floor))
    assert_equal(value_and_gradients(-bound.objective, pair), value_and_gradients(by_hand, pair))


@pytest.mark.parametrize("make", [lambda terms: None, list, lambda terms: {}], ids=["None", "list", "empty"])
def test_function_of_kl_that_returns_other_sites(make: Any) -> None:
    pair, batch = Row("global_local", GlobalLocal).build()
    with pytest.raises(pv.PairError, match="must return a dict of the sites it was given"):
        pv.Trace_ELBO(kl=make)(pair, batch)


@pytest.mark.parametrize("wrong", [0.0, torch.ones(2, 3), torch.ones(1, 1, 1), None], ids=str)
@pytest.mark.parametrize("site, kind", [("z", "local"), ("theta", "global")])
def test_function_of_kl_that_returns_another_shape(wrong: Any, site: str, kind: str) -> None:
    pair, batch = Row("global_local", GlobalLocal).build()
    with pytest.raises(pv.PairError, match=f"particles and then rows, for the {kind} site '{site}'"):
        pv.Trace_ELBO(3, kl=lambda terms: {**terms, site: wrong})(pair, batch)


def test_function_of_kl_sees_local_and_global_terms() -> None:
    row = Row("global_local", GlobalLocal)
    pair, batch = row.build()
    seen: dict[str, tuple[int, ...]] = {}

    def double_global(terms: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.update({name: tuple(term.shape) for name, term in terms.items()})
        return {**terms, "theta": 2 * terms["theta"]}

    def values(kl: Any) -> dict[str, Tensor]:
        return ours(row, pair, batch, particles=3, num_rows=MANY, kl=kl)

    plain, doubled, same = values("analytic"), values(double_global), values(lambda terms: terms)
    assert seen == {"theta": (3,), "z": (3, len(batch["x"]))}
    assert_equal(same, plain)
    closed = kl_divergence(dist.Normal(pair.loc, pair.log_scale.exp()), dist.Normal(zeros(), 3 * ones()))
    torch.testing.assert_close(doubled["value"] - plain["value"], closed.detach(), rtol=1e-10, atol=1e-10)


# --- refusals --------------------------------------------------------------------------------------------------------


class Disordered(Hierarchical):
    """A guide that draws z1 before z2."""

    def guide(self, x: Tensor) -> None:
        with self.rows(x):
            z1 = pyro.sample("z1", normal(x @ self.up1, self.scales[3]))
            pyro.sample("z2", normal(x @ self.up2 + z1 @ self.skip, self.scales[2]))


def test_closed_form_refuses_another_order() -> None:
    row = Row("disordered", Disordered)
    pair, batch = row.build()
    with pytest.raises(pv.PairError, match="same order"):
        pv.Trace_ELBO(kl="analytic")(pair, batch)
    assert_equal(ours(row, pair, batch), pyros(row, pair, batch))  # as drawn, every order is right


def test_auto_takes_closed_forms_where_the_prior_depends_on_nothing_drawn_later() -> None:
    row = Row("disordered", Disordered)
    pair, batch = row.build()
    torch.manual_seed(1)
    run = pv.terms(pair, batch, 3)
    drawn, auto = pv.elbo(run), pv.elbo(run, kl="auto")
    z2 = run.sites["z2"]
    assert run.in_order == {"z2"} and z2.q is not None and z2.p is not None
    closed = kl_divergence(z2.q.fn, z2.p.fn).sum() - (z2.q.log_prob - z2.p.log_prob).sum()
    torch.testing.assert_close(auto.elbo, drawn.elbo - closed.detach() / 3, rtol=1e-12, atol=0)
    (wanted,) = torch.autograd.grad(drawn.objective - closed / 3, pair.up2, retain_graph=True)
    (found,) = torch.autograd.grad(auto.objective, pair.up2)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("make", [GlobalLocal, Hierarchical])
def test_auto_is_analytic_where_sites_are_in_order(make: Any) -> None:
    row = Row("ordered", make)
    pair, batch = row.build()
    assert_equal(ours(row, pair, batch, kl="auto"), ours(row, pair, batch, kl="analytic"))


@pytest.mark.parametrize("particles", [1, 3])
def test_function_of_kl_gets_the_terms_as_drawn_in_another_order(particles: int) -> None:
    row = Row("disordered", Disordered)
    pair, batch = row.build()
    options: dict[str, Any] = {"particles": particles, "num_rows": MANY, "kl_weight": 0.3}
    assert_equal(ours(row, pair, batch, **options, kl=lambda terms: terms), pyros(row, pair, batch, **options))


@named(SCORE)
@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("kl", ["analytic", lambda terms: terms], ids=["analytic", "function"])
def test_closed_form_refuses_score_sites(row: Row, particles: int, kl: Any) -> None:
    pair, batch = row.build()
    with pytest.raises(pv.PairError, match="not reparameterised"):
        pv.Trace_ELBO(particles, kl=kl)(pair, batch)


@named(SCORE)
def test_auto_takes_the_draws_where_sites_have_scores(row: Row) -> None:
    pair, batch = row.build()
    assert_equal(ours(row, pair, batch, kl="auto"), ours(row, pair, batch, kl=None))


@pytest.mark.parametrize("particles", [0, -1])
def test_no_particles(particles: int) -> None:
    with pytest.raises(pv.OptionError, match="at least 1"):
        pv.Trace_ELBO(particles)


@pytest.mark.parametrize("kl", ["closed", 1, True])
def test_unknown_kl(kl: Any) -> None:
    with pytest.raises(pv.OptionError, match="kl must be"):
        pv.Trace_ELBO(kl=kl)
    x = torch.zeros(2, 4)
    pair = pv.VAE(
        pv.priors.StandardNormal(2), pv.mlp(2, pv.families.Bernoulli(4), ()), pv.mlp(4, pv.families.Normal(2), ())
    )
    with pytest.raises(pv.OptionError, match="kl must be"):
        pv.elbo(pv.terms(pair, {"x": x}), kl=kl)


# --- closed-form KL must be the KL -----------------------------------------------------------------------------------


class MaskedPrior(Plain):
    """A mask (or a scale) around the prior alone: the guide's own log q counts in full."""

    def __init__(self, handler: Any) -> None:
        super().__init__()
        self.handler = handler

    def model(self, x: Tensor) -> None:
        with self.rows(x):
            with self.handler():
                z = pyro.sample("z", self.prior())
            pyro.sample("x", dist.Bernoulli(logits=z @ self.decode).to_event(1), obs=(x > 0).double())


class LogNormalGlobal(Base):
    """A positive global latent variable: an AutoGuide draws it as a Delta with the Jacobian as its log-density."""

    def __init__(self) -> None:
        super().__init__()
        self.level = weight()
        values = {"s": torch.tensor(5.0, dtype=torch.float64)}
        initial = pyro.infer.autoguide.init_to_value(values=values)
        self.guide = pyro.infer.autoguide.AutoNormal(self.model, init_loc_fn=initial)  # type: ignore[method-assign]

    def model(self, x: Tensor) -> None:
        s = pyro.sample("s", dist.Gamma(2 * ones(), ones()))
        with self.rows(x):
            pyro.sample("x", normal(s[..., None] + self.level + zeros(x.shape[-1]), 0.0), obs=x)


@pytest.mark.parametrize(
    "make",
    [
        lambda: MaskedPrior(lambda: pyro.poutine.mask(mask=torch.arange(7) > 3)),
        lambda: MaskedPrior(lambda: pyro.poutine.scale(scale=0.3)),
        LogNormalGlobal,
    ],
    ids=["mask", "scale", "auto_guide_jacobian"],
)
def test_closed_form_has_the_drawn_expectation(make: Any) -> None:
    # Pyro's TraceMeanField_ELBO has another expectation here: it takes the guide's mask and scale for both sides, and
    # for a Delta leaves out its log-density.
    row = Row("own", make)
    pair, batch = row.build()
    losses = {}
    for kl in (None, "analytic"):
        torch.manual_seed(0)
        with torch.no_grad():
            losses[kl] = torch.stack([pv.Trace_ELBO(500, kl=kl)(pair, batch).elbo for _ in range(10)])
    # same seed: the likelihood's draws are shared. |t| < 6 on 9 degrees of freedom: false alarms 2e-4 each
    difference = losses[None] - losses["analytic"]
    assert abs(difference.mean()) < 6 * difference.std() / 10**0.5 + 1e-9


# --- no host sync ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "kl"), KINDS)
@pytest.mark.filterwarnings("ignore:.*poutine.scale")  # which is asked for here
@pytest.mark.parametrize("particles", [1, 3])
def test_no_host_sync(row: Row, particles: int, kl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pair, batch = row.build()
    layout = pv.check_pair(pair, batch)
    kl_weight = torch.tensor(0.5)
    with counted_reads(monkeypatch) as reads:
        found = pv.terms(pair, batch, particles, layout=layout)
        pv.elbo(found, num_rows=MANY, kl_weight=kl_weight, kl=kl).objective.backward()
        pv.log_weights(found)
    assert reads.count == 0
    assert all(p.grad is not None for p in pair.parameters())


def test_the_counter_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    pair, batch = Row("mixed", Mixed).build()
    with counted_reads(monkeypatch) as reads:
        pyro.infer.Trace_ELBO().differentiable_loss(pair.model, pair.guide, **batch).backward()
    assert reads.count > 0
    with counted_reads(monkeypatch) as reads:
        bool(torch.ones(()) > 0)
    assert reads.count > 0


def test_parameters_are_modules_of_every_kind() -> None:
    # The comparison is over named_parameters: a row whose parameters were hidden from it would compare nothing.
    for row in TABLE:
        pair, _ = row.build()
        assert isinstance(pair, nn.Module) and len(list(pair.parameters())) >= 2, row.name

"""The importance-weighted bound and the gradients of less noise: equal to Pyro's and to closed forms, and unbiased."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from support.comparisons import BOUND, MANY, TOLERANCE, assert_equal, named
from support.pairs import (
    ENUMERATED,
    MIXTURE_GLOBAL,
    ROWS,
    TABLE,
    BernoulliLatent,
    GlobalLocal,
    Hierarchical,
    Plain,
    Row,
    described,
    normal,
    ones,
    relative_difference,
    value_and_gradients,
    weight,
    zeros,
)
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.fitted.spec import to_spec
from pyrovae.objectives.iwelbo import _leave_one_out
from pyrovae.objectives.weights import joint_log_weights

LANDING, DOUBLY = "sticking_the_landing", "doubly_reparameterised"
REPARAMETERISED = [row for row in TABLE if not row.score]
WHOLE = ("global_local", "auto_normal", "auto_mvn")  # rows share a latent variable


def found_by(loss: Any, pair: Any, batch: dict[str, Tensor], seed: int = 1, **options: Any) -> dict[str, Tensor]:
    layout = described(pair, batch)
    torch.manual_seed(seed)
    return value_and_gradients(loss(pair, batch, layout=layout, **options).objective, pair)


# --- the bound -------------------------------------------------------------------------------------------------------


@named([row for row in REPARAMETERISED if row.name != "scaled_plain"])
@pytest.mark.parametrize("particles", [2, 5])
def test_renyi_elbo(row: Row, particles: int) -> None:
    """alpha = 0, on all rows. Left out: score-function sites, whose score Pyro multiplies by alpha / (1 - alpha) = 0, so that
    its gradient is biased; and scales, which Pyro leaves inside the logarithm."""
    pair, batch = row.build()
    loss = pyro.infer.RenyiELBO(
        alpha=0, num_particles=particles, vectorize_particles=True, max_plate_nesting=row.nesting
    )
    torch.manual_seed(1)
    leaves = dict(pair.named_parameters())
    for leaf in leaves.values():
        leaf.grad = None

    def model(x: Tensor) -> None:
        pyro.module("pair", pair)  # Pyro takes a backward step only where a trace holds a parameter
        pair.model(x)

    value = loss.loss_and_grads(model, pair.guide, **batch)
    theirs = {"value": -torch.tensor(value, dtype=torch.float64), **{n: -leaf.grad for n, leaf in leaves.items()}}
    assert_equal(found_by(pv.IWELBO(particles), pair, batch), theirs)


@named(TABLE)
@pytest.mark.parametrize("num_rows", [None, MANY])
@pytest.mark.parametrize("kl_weight", [None, 0.3])
def test_one_particle_is_the_elbo(row: Row, num_rows: int | None, kl_weight: float | None) -> None:
    pair, batch = row.build()
    options: dict[str, Any] = {"num_rows": num_rows, "kl_weight": kl_weight}
    assert_equal(found_by(pv.IWELBO(1), pair, batch, **options), found_by(pv.Trace_ELBO(), pair, batch, **options))


@named([row for row in ENUMERATED if row.name in ("mixture", "deep_mixture", "mixture_masked")])
def test_one_particle_is_the_elbo_of_a_mixture(row: Row) -> None:
    # the fold by weights, not the one that K = 1 takes
    pair, batch = row.build()
    layout = described(pair, batch)
    for kl_weight in (None, 0.3):
        torch.manual_seed(1)
        run = pv.terms(pair, batch, layout=layout)
        both = [pv.log_weights(run, kl_weight=kl_weight).sum(), pv.elbo(run, kl_weight=kl_weight).objective]
        leaves = list(pair.parameters())
        found, wanted = (dict(enumerate(torch.autograd.grad(b, leaves, retain_graph=True))) for b in both)
        assert_equal({"value": both[0].detach(), **found}, {"value": both[1].detach(), **wanted})


def plain_by_hand(pair: Plain, x: Tensor, particles: int, beta: float) -> Tensor:
    """log w of Plain: (K, N)."""
    torch.manual_seed(1)
    loc, scale = x @ pair.encode, pair.log_scale.exp()
    z = loc + scale * torch.randn((particles, *loc.shape), dtype=torch.float64)
    fit = dist.Bernoulli(logits=z @ pair.decode).log_prob((x > 0).double()).sum(-1)
    return fit - beta * (dist.Normal(loc, scale).log_prob(z) - dist.Normal(zeros(), ones()).log_prob(z)).sum(-1)


@pytest.mark.parametrize("own", [False, True], ids=["num_rows", "plate"])
@pytest.mark.parametrize("kl_weight", [None, 0.3])
def test_scales_stand_outside(kl_weight: float | None, own: bool) -> None:
    pair, batch = Row("plain", Plain).build()
    x, particles = batch["x"], 5
    pair.total = MANY if own else None
    layout = described(pair, batch)
    torch.manual_seed(1)
    bound = pv.IWELBO(particles)(pair, batch, num_rows=MANY, kl_weight=kl_weight, layout=layout)
    for found, beta in ((bound.objective, kl_weight or 1.0), (bound.elbo, 1.0)):
        log_w = plain_by_hand(pair, x, particles, beta)
        wanted = MANY / ROWS * (log_w.logsumexp(0) - math.log(particles)).sum()
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0, check_stride=False)
    wanted = MANY / ROWS * (plain_by_hand(pair, x, particles, kl_weight or 1.0).logsumexp(0)).sum()
    a, b = value_and_gradients(bound.objective, pair), value_and_gradients(wanted, pair)
    assert_equal({**a, "value": ones()}, {**b, "value": ones()})
    assert not bound.elbo.requires_grad


class ScaledByTwo(Plain):
    def model(self, x: Tensor) -> None:
        with poutine.scale(scale=2.0):
            super().model(x)

    def guide(self, x: Tensor) -> None:
        with poutine.scale(scale=2.0):
            super().guide(x)


class Halves(Plain):
    """Rows of which some are masked on both sides: they count log 1."""

    def model(self, x: Tensor) -> None:
        with poutine.mask(mask=torch.arange(len(x)) < 3):
            super().model(x)

    def guide(self, x: Tensor) -> None:
        with poutine.mask(mask=torch.arange(len(x)) < 3):
            super().guide(x)


@pytest.mark.parametrize("gradient", ["standard", DOUBLY])
def test_scales_and_masks(gradient: str) -> None:
    x = Row("plain", Plain).build()[1]["x"]
    for make, wanted in ((ScaledByTwo, lambda b: 2 * b.sum()), (Halves, lambda b: b[:3].sum())):
        pair, _ = Row("own", make).build()
        torch.manual_seed(1)
        bound = pv.IWELBO(4, gradient)(pair, {"x": x}, layout=described(pair, {"x": x}))
        log_w = plain_by_hand(pair, x, 4, 1.0)
        torch.testing.assert_close(bound.elbo, wanted(log_w.logsumexp(0) - math.log(4)).detach(), rtol=1e-12, atol=0)


@named([row for row in ENUMERATED if not row.score and row.name not in ("global", "scaled", "mixture_scaled")])
def test_enumerated_sites_are_summed_within(row: Row) -> None:
    pair, batch = row.build()
    layout = described(pair, batch)
    torch.manual_seed(1)
    bound = pv.IWELBO(4)(pair, batch, num_rows=MANY, layout=layout)
    torch.manual_seed(1)
    log_w = pv.log_weights(pv.terms(pair, batch, 4, layout=layout))
    wanted = MANY / ROWS * (log_w.logsumexp(0) - math.log(4)).sum()
    torch.testing.assert_close(bound.elbo, wanted.detach(), rtol=1e-12, atol=0)


def test_global_weights_are_joint() -> None:
    row = next(row for row in ENUMERATED if row.name == "global")
    pair, batch = row.build()
    run = pv.terms(pair, batch, layout=described(pair, batch))
    sides = [torch.tensor(v, dtype=torch.float64) for v in (0.0, 1.0)]
    each = []
    for s in sides:
        loc = s * pair.loc[0] + (1 - s) * pair.loc[1] + pair.shift[:, None]
        fit = dist.Normal(loc, 1.0).log_prob(batch["x"]).sum(-1) + pair.prior_y.log_softmax(-1)[:, None]
        each.append(dist.Bernoulli(logits=pair.prior_logit).log_prob(s) + fit.logsumexp(0).sum())
    torch.testing.assert_close(joint_log_weights(run)[0], torch.stack(each).logsumexp(0), rtol=1e-12, atol=0)
    pair, batch = MIXTURE_GLOBAL.build()
    bound = pv.IWELBO(3)(pair, batch)
    torch.testing.assert_close(bound.elbo, pv.Trace_ELBO()(pair, batch).elbo, rtol=1e-12, atol=0)  # nothing is drawn


class Marked(Plain):
    """A term for training only, beside the bound."""

    def model(self, x: Tensor) -> None:
        with self.rows(x):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", dist.Bernoulli(logits=z @ self.decode).to_event(1), obs=(x > 0).double())
            pyro.sample("c", normal(x @ self.encode, 0.0), obs=x[:, :2], infer={"objective_only": True})


def test_objective_only_stands_beside() -> None:
    pair, batch = Row("marked", Marked).build()
    x = batch["x"]
    found = found_by(pv.IWELBO(4), pair, batch, num_rows=MANY)
    beside = dist.Normal(x @ pair.encode, 1.0).log_prob(x[:, :2]).sum()
    log_w = plain_by_hand(pair, x, 4, 1.0)
    wanted = MANY / ROWS * ((log_w.logsumexp(0) - math.log(4)).sum() + beside)
    assert_equal(found, value_and_gradients(wanted, pair))


def test_leave_one_out() -> None:
    log_w = 3 * torch.randn(6, 4, dtype=torch.float64)
    for k in range(6):
        others = torch.cat([log_w[:k], log_w[k + 1 :]])
        wanted = torch.cat([others, others.mean(0, keepdim=True)]).logsumexp(0) - math.log(6)
        torch.testing.assert_close(_leave_one_out(log_w)[k], wanted, rtol=1e-12, atol=0)


# --- gradients of less noise -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["landing", "doubly"])
@named(REPARAMETERISED)
def test_value_is_the_standard_one(row: Row, loss: str) -> None:
    pair, batch = row.build()
    other = pv.Trace_ELBO(3, gradient=LANDING) if loss == "landing" else pv.IWELBO(3, DOUBLY)
    same = pv.Trace_ELBO(3) if loss == "landing" else pv.IWELBO(3)
    num_rows = None if row.name in WHOLE else MANY
    a = found_by(other, pair, batch, num_rows=num_rows, kl_weight=0.4)
    b = found_by(same, pair, batch, num_rows=num_rows, kl_weight=0.4)
    assert relative_difference(a["value"], b["value"]) < 1e-12
    model_only = set(a) & {"decode", "down"} - {"value"}
    for name in model_only:  # the model's own parameters have the standard gradient
        assert relative_difference(a[name], b[name]) < TOLERANCE, name


class SharedEncoder(Plain):
    """A VampPrior: the prior is the guide's own encoder at pseudo-inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs = weight(COLUMNS_OF_X)

    def prior(self) -> Any:
        return normal(self.inputs @ self.encode, self.log_scale + 0.5)


COLUMNS_OF_X = 4


@pytest.mark.parametrize("make", [Plain, Hierarchical, SharedEncoder])
@pytest.mark.parametrize("kl_weight", [None, 0.4])
def test_sticking_the_landing_by_hand(make: Callable[[], Any], kl_weight: float | None) -> None:
    """d log q / d phi with z held fixed is left out: the gradient of log q with its parameters detached."""
    pair, batch = Row("own", make).build()
    x, beta = batch["x"], 1.0 if kl_weight is None else kl_weight
    found = found_by(pv.Trace_ELBO(3, gradient=LANDING), pair, batch, num_rows=MANY, kl_weight=kl_weight)
    torch.manual_seed(1)
    standard = normal(zeros(3, ROWS, 2), 0.0)

    def stopped(fn: Any, z: Tensor) -> Tensor:
        return dist.Normal(fn.base_dist.loc.detach(), fn.base_dist.scale.detach()).log_prob(z).sum(-1)

    def drawn(fn: Any) -> Tensor:
        return fn.base_dist.loc + fn.base_dist.scale * standard.sample()

    if make is Hierarchical:
        q2 = normal(x @ pair.up2, pair.scales[2])
        z2 = drawn(q2)
        q1 = normal(x @ pair.up1 + z2 @ pair.skip, pair.scales[3])
        z1 = drawn(q1)
        # through the draw of z2, but not through the parameters, does the mean of z1 depend on phi
        held = dist.Normal((x @ pair.up1).detach() + z2 @ pair.skip.detach(), q1.base_dist.scale.detach())
        latent = normal(zeros(2), 0.0).log_prob(z2) + normal(z2 @ pair.down, pair.scales[0]).log_prob(z1)
        latent = latent - stopped(q2, z2) - held.log_prob(z1).sum(-1)
        fit = normal(z1 @ pair.decode, pair.scales[1].mean()).log_prob(x)
    else:
        q = normal(x @ pair.encode, pair.log_scale)
        z = drawn(q)
        latent = pair.prior().log_prob(z) - stopped(q, z)
        fit = dist.Bernoulli(logits=z @ pair.decode).log_prob((x > 0).double()).sum(-1)
    wanted = MANY / ROWS * (fit + beta * latent).sum() / 3
    assert_equal(found, value_and_gradients(wanted, pair))


@pytest.mark.parametrize("kl_weight", [None, 0.4])
def test_doubly_reparameterised_by_hand(kl_weight: float | None) -> None:
    pair, batch = Row("hierarchical", Hierarchical).build()
    x, beta = batch["x"], 1.0 if kl_weight is None else kl_weight
    found = found_by(pv.IWELBO(4, DOUBLY), pair, batch, num_rows=MANY, kl_weight=kl_weight)
    torch.manual_seed(1)
    standard = normal(zeros(4, ROWS, 2), 0.0)
    z2 = x @ pair.up2 + pair.scales[2].exp() * standard.sample()
    z1 = x @ pair.up1 + z2 @ pair.skip + pair.scales[3].exp() * standard.sample()

    def log_w(z2: Tensor, z1: Tensor, p: Any, q: Any) -> Tensor:
        latent = normal(zeros(2), 0.0).log_prob(z2) + normal(z2 @ p["down"], p["scales"][0]).log_prob(z1)
        latent = latent - normal(x @ q["up2"], q["scales"][2]).log_prob(z2)
        latent = latent - normal(x @ q["up1"] + z2 @ q["skip"], q["scales"][3]).log_prob(z1)
        return normal(z1 @ p["decode"], p["scales"][1].mean()).log_prob(x) + beta * latent

    live = dict(pair.named_parameters())
    held = {name: value.detach() for name, value in live.items()}
    share = log_w(z2, z1, held, held).detach().softmax(0)
    # the model's gradient has weight w, the draws' w - b (w - w^2)
    of_model = (share * log_w(z2.detach(), z1.detach(), live, held)).sum()
    of_draws = ((share - beta * (share - share**2)) * log_w(z2, z1, held, held)).sum()
    wanted = value_and_gradients(MANY / ROWS * (of_model + of_draws), pair)
    assert_equal({**found, "value": ones()}, {**wanted, "value": ones()})


class ExactGuide(nn.Module):
    """z ~ N(0, 1), x | z ~ N(a z, 1) with q(z | x) = N(c x, s^2), which can be the exact posterior."""

    def __init__(self, exact: bool = True) -> None:
        super().__init__()
        self.slope = weight()
        precision = 1 + self.slope.detach() ** 2
        self.gain = nn.Parameter(self.slope.detach() / precision + (0.0 if exact else 0.3))
        self.log_scale = nn.Parameter(-0.5 * precision.log() + (0.0 if exact else 0.4))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(zeros(), ones()))
            pyro.sample("x", dist.Normal(self.slope * z, ones()), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.gain * x, self.log_scale.exp()))

    def elbo(self, x: Tensor) -> Tensor:
        loc, variance = self.gain * x, (2 * self.log_scale).exp()
        fit = dist.Normal(self.slope * loc, 1.0).log_prob(x) - self.slope**2 * variance / 2
        return (fit - 0.5 * (loc**2 + variance - 1 - 2 * self.log_scale)).sum()


@pytest.mark.parametrize(
    "loss", [pv.Trace_ELBO(2, gradient=LANDING), pv.IWELBO(5, DOUBLY), pv.IWELBO(1, DOUBLY)], ids=repr
)
def test_no_noise_where_the_guide_is_exact(loss: Any) -> None:
    torch.manual_seed(0)
    pair, x = ExactGuide(), torch.randn(6, dtype=torch.float64)
    for seed in range(3):
        found = found_by(loss, pair, {"x": x}, seed)
        assert max(found[name].abs().item() for name in ("gain", "log_scale")) < 1e-12
    standard = pv.Trace_ELBO(2) if isinstance(loss, pv.Trace_ELBO) else pv.IWELBO(5)
    assert found_by(standard, pair, {"x": x})["log_scale"].abs() > 1e-2


# --- unbiased --------------------------------------------------------------------------------------------------------


def repeated(
    loss: Any, pair: nn.Module, x: Tensor, times: int, **options: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Mean gradient over `times` runs, and its standard error. Rows are copies: each is a draw of its own."""
    layout = described(pair, {"x": x})
    runs = [value_and_gradients(loss(pair, {"x": x}, layout=layout, **options).objective, pair) for _ in range(times)]
    stacked = {name: torch.stack([r[name] for r in runs]) for name in runs[0] if name != "value"}
    return {n: v.mean(0) for n, v in stacked.items()}, {n: v.std(0) / times**0.5 for n, v in stacked.items()}


def assert_agree(a: tuple[Any, Any], b: tuple[Any, Any], sharp: float = 0.05) -> None:
    (mean_a, error_a), (mean_b, error_b) = a, b
    for name in mean_b:
        error = (error_a[name] ** 2 + error_b[name] ** 2).sqrt()
        assert ((mean_a[name] - mean_b[name]).abs() <= BOUND * error + 1e-9).all(), name
        assert (error.max() < sharp * mean_b[name].abs().max()).all(), name  # else the bound would say nothing


@pytest.mark.parametrize(
    "loss",
    [
        pv.Trace_ELBO(50),
        pv.Trace_ELBO(50, gradient=LANDING),
        pv.Trace_ELBO(50, kl="analytic"),
        pv.IWELBO(1),
        pv.IWELBO(1, DOUBLY),
    ],
    ids=repr,
)
def test_elbo_gradients_are_unbiased(loss: Any) -> None:
    """Closed form, 3 numbers a loss, |t| < 4.5 on 99 degrees of freedom: false alarms 15 x 2e-5 = 3e-4."""
    torch.manual_seed(0)
    pair = ExactGuide(exact=False)
    x = torch.tensor([0.5, -1.5, 2.0], dtype=torch.float64).repeat(50 if loss.num_particles == 1 else 1)
    wanted = value_and_gradients(pair.elbo(x), pair)
    del wanted["value"]
    none = {name: torch.zeros_like(value) for name, value in wanted.items()}
    assert_agree(repeated(loss, pair, x, 100), (wanted, none))


@pytest.mark.slow
def test_doubly_reparameterised_gradient_is_unbiased() -> None:
    """Against the standard estimator, 3 x 3 + 7 numbers: false alarms 16 x 2e-5 = 3e-4."""
    torch.manual_seed(0)
    one = ExactGuide(exact=False)
    x = torch.tensor([0.5, -1.5, 2.0], dtype=torch.float64).repeat(400)
    for weighed in ({}, {"kl_weight": 0.5}, {"kl_weight": 0.0}):
        doubly, standard = (repeated(pv.IWELBO(4, g), one, x, 60, **weighed) for g in (DOUBLY, "standard"))
        assert_agree(doubly, standard)
    pair, batch = Row("own", SharedEncoder).build()
    rows = batch["x"].repeat(400, 1)
    doubly, standard = (repeated(pv.IWELBO(3, g), pair, rows, 60) for g in (DOUBLY, "standard"))
    assert_agree(doubly, standard, sharp=0.1)


def test_doubly_reparameterised_gradient_has_less_noise() -> None:
    """Near the exact posterior, of many particles."""
    torch.manual_seed(0)
    pair, x = ExactGuide(), torch.randn(50, dtype=torch.float64)
    with torch.no_grad():
        pair.log_scale.add_(0.05)
    (_, doubly), (_, standard) = (repeated(pv.IWELBO(50, g), pair, x, 20) for g in (DOUBLY, "standard"))
    assert doubly["log_scale"] < 0.2 * standard["log_scale"] and doubly["gain"] < 0.2 * standard["gain"]


class Switch(nn.Module):
    """s ~ Bernoulli, x | s ~ N(2 s, 1), q(s | x) = Bernoulli(c x + d): drawn without reparameterisation."""

    def __init__(self) -> None:
        super().__init__()
        self.slope, self.offset, self.logit = weight(), weight(), weight()

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            s = pyro.sample("s", dist.Bernoulli(logits=self.logit))
            pyro.sample("x", dist.Normal(2 * s, ones()), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("s", dist.Bernoulli(logits=self.slope * x + self.offset))

    def exact(self, x: Tensor, particles: int) -> Tensor:
        """E log (1/K) sum_k w_k, the number of particles at 1 summed over."""
        q = dist.Bernoulli(logits=self.slope * x + self.offset)
        log_w = []
        for s in (zeros(), ones()):
            log_w.append(
                dist.Bernoulli(logits=self.logit).log_prob(s) + dist.Normal(2 * s, 1.0).log_prob(x) - q.log_prob(s)
            )
        total = zeros()
        for n in range(particles + 1):
            ways = math.comb(particles, n) * q.probs**n * (1 - q.probs) ** (particles - n)
            counts = torch.tensor([particles - n, n], dtype=torch.float64).log()
            total = (
                total
                + (ways * (torch.stack(log_w, -1) + counts).logsumexp(-1)).sum()
                - (ways * math.log(particles)).sum()
            )
        return total


@pytest.mark.slow
@pytest.mark.parametrize("particles", [1, 2, 5])
def test_vimco_is_unbiased(particles: int) -> None:
    """Closed form by summing over all draws, 3 numbers: false alarms 3 x 3 x 2e-5 = 2e-4. Without the score, as in Pyro's
    RenyiELBO(alpha=0), it is off by many standard errors."""
    torch.manual_seed(0)
    pair, copies = Switch(), 2000
    x = torch.tensor([0.5, 1.5, 2.5], dtype=torch.float64)
    wanted = value_and_gradients(copies * pair.exact(x, particles), pair)
    del wanted["value"]
    none = {name: torch.zeros_like(value) for name, value in wanted.items()}
    found = repeated(pv.IWELBO(particles), pair, x.repeat(copies), 60)
    assert_agree(found, (wanted, none), sharp=0.3)
    if particles > 1:
        log_w = pv.log_weights(pv.terms(pair, {"x": x.repeat(copies)}, particles))
        (without,) = torch.autograd.grad(log_w.logsumexp(0).sum(), pair.offset)
        assert abs(without - wanted["offset"]) > 10 * found[1]["offset"]


# --- options and refusals ----------------------------------------------------------------------------------------------


def test_global_latents_need_all_rows() -> None:
    pair, batch = Row("global_local", GlobalLocal).build()
    with pytest.raises(pv.PairError, match=r"'theta' belongs to all rows.*batch_size=len\(data\)"):
        pv.IWELBO(3)(pair, batch, num_rows=MANY)
    pair.total = MANY
    with pytest.raises(pv.PairError, match="'theta' belongs to all rows"):
        pv.IWELBO(3)(pair, batch)


def test_weights_need_one_scale() -> None:
    pair, batch = next(row for row in TABLE if row.name == "scaled").build()
    with pytest.raises(pv.PairError, match="scale all alike"):
        pv.IWELBO(3)(pair, batch)


@pytest.mark.parametrize("loss", [pv.Trace_ELBO(2, gradient=LANDING), pv.IWELBO(2, DOUBLY)], ids=repr)
def test_what_must_be_reparameterised(loss: Any) -> None:
    pair, batch = Row("bernoulli", BernoulliLatent).build()
    with pytest.raises(pv.PairError, match="reparameterised sites, and 'z' is not"):
        loss(pair, batch)
    pair, batch = ENUMERATED[0].build()
    with pytest.raises(pv.PairError, match="'y' is enumerated"):
        loss(pair, batch)


def test_score_sites_that_iwelbo_does_not_take() -> None:
    row = next(row for row in ENUMERATED if row.name == "beside_score")
    pair, batch = row.build()
    with pytest.raises(pv.PairError, match="'s' is drawn without reparameterisation for each value"):
        pv.IWELBO(3)(pair, batch)

    class Both(BernoulliLatent):
        def model(self, x: Tensor) -> None:
            with self.rows(x):
                z = pyro.sample("z", dist.Bernoulli(logits=self.prior_logits).to_event(1))
                pyro.sample("x", normal(z @ self.decode, 0.0), obs=x)
                pyro.sample("c", normal(x, 0.0), obs=x, infer={"objective_only": True})

    pair, batch = Row("both", Both).build()
    with pytest.raises(pv.PairError, match="objective_only"):
        pv.IWELBO(3)(pair, batch)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pv.IWELBO(0), "at least 1"),
        (
            lambda: pv.IWELBO(2, "reinforce"),
            "gradient must be one of 'standard', 'doubly_reparameterised', got 'reinforce'",
        ),
        (lambda: pv.Trace_ELBO(gradient=DOUBLY), "gradient must be one of 'standard', 'sticking_the_landing'"),
        (lambda: pv.Trace_ELBO(kl="analytic", gradient=LANDING), "needs the KL as drawn"),
        (lambda: pv.Trace_ELBO(kl=lambda t: t, gradient=LANDING), "needs the KL as drawn"),
    ],
)
def test_unknown_options(make: Any, message: str) -> None:
    with pytest.raises(pv.OptionError, match=message):
        make()


def test_objectives_are_recorded() -> None:
    args = {"num_particles": 3, "gradient": DOUBLY}
    assert to_spec(pv.IWELBO(3, DOUBLY)) == {"class": "pyrovae.IWELBO", "args": args}
    args = {"num_particles": 2, "kl": None, "gradient": LANDING, "baseline": "leave_one_out"}
    assert to_spec(pv.Trace_ELBO(2, gradient=LANDING))["args"] == args
    assert repr(pv.IWELBO(3, DOUBLY)) == "IWELBO(num_particles=3, gradient='doubly_reparameterised')"
    assert repr(pv.IWELBO(3)) == "IWELBO(num_particles=3)"
    assert (
        repr(pv.Trace_ELBO()) == "Trace_ELBO(num_particles=1, kl=None)"
    )  # as recorded by fits before there was a choice
    assert repr(pv.Trace_ELBO(gradient=LANDING)) == f"Trace_ELBO(num_particles=1, kl=None, gradient={LANDING!r})"


@pytest.mark.slow
@pytest.mark.parametrize("loss", [pv.IWELBO(3), pv.IWELBO(3, DOUBLY), pv.Trace_ELBO(2, gradient=LANDING)], ids=repr)
def test_fit(loss: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 5) @ torch.randn(5, 5)
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.mlp(2, pv.families.Normal(5), hidden=(8,)),
        pv.mlp(5, pv.families.Normal(2), hidden=(8,)),
    )
    fitted = pv.fit(vae, x, epochs=20, batch_size=16, loss=loss, learning_rate=1e-2, seed=0, progress=False)
    assert fitted.history[-1]["elbo"] > fitted.history[0]["elbo"] + 0.5

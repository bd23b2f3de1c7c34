"""Enumerated sites: equal to Pyro's TraceEnum_ELBO and to sums written by hand, for any program, and refused where wrong."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.comparisons import MANY, TOLERANCE, assert_equal, named
from support.pairs import (
    CLASSES,
    COLUMNS,
    ENUMERATED,
    LATENT,
    MIXTURE_GLOBAL,
    PARALLEL,
    ROWS,
    TABLE,
    Base,
    Enumerated,
    GlobalDiscrete,
    Mixed,
    Mixture,
    Row,
    described,
    largest_difference,
    normal,
    ones,
    ours,
    pyros,
    relative_difference,
    unfitted,
    value_and_gradients,
    weight,
    zeros,
)
from support.reads import counted_reads
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.nn.functional import one_hot

import pyrovae as pv
from pyrovae.batching.chunks import row_elements
from pyrovae.engine.tracing import graph_of
from pyrovae.fitted.folder import read_layout
from pyrovae.objectives.enumeration import expected
from pyrovae.objectives.marginals import count
from pyrovae.objectives.weights import global_bound, row_bounds
from pyrovae.pair.checks import check_enumeration
from pyrovae.pair.parameters import param_scope


def enumerated(row: Row, pair: Any, batch: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """Ours, with -log q of the sites drawn without reparameterisation left in the gradient, as Pyro's DiCE leaves it.

    Its gradient has expectation zero; ours, as Pyro's own Trace_ELBO, does without.
    """
    found = ours(row, pair, batch, **options)
    if not row.score:
        return found
    beta, particles = options.get("kl_weight", 1.0), options.get("particles", 1)
    layout = described(pair, batch)
    torch.manual_seed(1)
    run = pv.terms(pair, batch, particles, layout=layout)
    rows = options.get("num_rows") or run.num_rows
    direct = torch.zeros((), dtype=torch.float64)
    for name, term in run.sites.items():
        if term.q is not None and term.q.score is not None:
            scaled = term.q.scaled  # not the gradient of what weighs it
            parts = [expected(value, term.q.plates, name, run).sum() for value in (scaled, scaled.detach())]
            part = parts[0] - parts[1]
            direct = direct + beta * count(term, run, rows) * part / particles
    named = dict(pair.named_parameters())
    more = torch.autograd.grad(direct, list(named.values()), materialize_grads=True)
    return {**found, **{name: found[name] + g for name, g in zip(named, more)}}


# --- against Pyro ----------------------------------------------------------------------------------------------------


@named([*ENUMERATED, MIXTURE_GLOBAL])
@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("num_rows", [None, MANY])
def test_trace_enum_elbo(row: Row, particles: int, num_rows: int | None) -> None:
    pair, batch = row.build()
    if row is MIXTURE_GLOBAL and num_rows:
        with pytest.raises(pv.PairError, match="'s' is summed out .*batch_size=len"):
            ours(row, pair, batch, particles=particles, num_rows=num_rows)
        return
    a = enumerated(row, pair, batch, particles=particles, num_rows=num_rows)
    assert_equal(a, pyros(row, pair, batch, particles=particles, num_rows=num_rows))


@named(ENUMERATED)
def test_subsample_scale_of_its_own(row: Row) -> None:
    # Plate "data" says N/B itself: `num_rows` must not say it again.
    pair, batch = row.build()
    pair.total = MANY
    a = ours(row, pair, batch, num_rows=MANY)
    pair.total = None
    assert_equal(a, ours(row, pair, batch, num_rows=MANY))


@named([row for row in ENUMERATED if "mixture" not in row.name and row.name != "both_sides"])
@pytest.mark.parametrize("particles", [1, 3])
def test_kl_weight_with_pyro_means(row: Row, particles: int) -> None:
    # Pyro takes one scale only for all that a site of the model is summed with: those are below.
    pair, batch = row.build()
    options: dict[str, Any] = {"particles": particles, "num_rows": MANY, "kl_weight": 0.3}
    assert_equal(enumerated(row, pair, batch, **options), pyros(row, pair, batch, **options))


def test_comparison_can_fail() -> None:
    row = ENUMERATED[0]
    pair, batch = row.build()
    reference = pyros(row, pair, batch, num_rows=MANY)
    wrong = [ours(row, pair, batch), ours(row, pair, batch, num_rows=MANY, kl_weight=0.5)]
    layout = described(pair, batch)
    torch.manual_seed(1)
    # a fold by logsumexp over the guide's y loses the classifier
    by_sum = pv.log_weights(pv.terms(pair, batch, layout=layout)).sum() * MANY / len(batch["x"])
    assert torch.autograd.grad(by_sum, pair.classify, allow_unused=True, retain_graph=True)[0] is None
    assert abs(by_sum + reference["value"]) > 1e-4 * abs(by_sum)
    for found in wrong:
        assert max(largest_difference(found, reference)) > 1e-4


# --- against sums written by hand --------------------------------------------------------------------------------------


def drawn_for_each_class(pair: Any, batch: dict[str, Tensor], particles: int = 3) -> tuple[pv.Terms, Tensor, Tensor]:
    """A run of Enumerated, and its z for each class, (C, K, N, L), as a function of the parameters, with log q(z | x, y)."""
    layout = described(pair, batch)
    torch.manual_seed(1)
    run = pv.terms(pair, batch, particles, layout=layout)
    loc, scale = batch["x"] @ pair.encode + pair.shift[:, None, None], pair.log_scale.exp()
    noise = ((run.sites["z"].value - loc) / scale).detach()
    z = loc + scale * noise
    assert z.shape == (CLASSES, particles, ROWS, LATENT)
    return run, z, dist.Normal(loc, scale).log_prob(z).sum(-1)


def by_class(pair: Any, batch: dict[str, Tensor], z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log q(y | x), log p(y), log p(z) and log p(x | y, z): (C, 1 or K, 1 or N)."""
    log_q = (batch["x"] @ pair.classify).log_softmax(-1).T[:, None]
    log_p = pair.prior_logits.log_softmax(-1)[:, None, None]
    fit = dist.Normal(z @ pair.decode + pair.loc[:, None, None], ones()).log_prob(batch["x"]).sum(-1)
    return log_q, log_p, dist.Normal(zeros(), ones()).log_prob(z).sum(-1), fit


@pytest.mark.parametrize("kl_weight", [None, 0.3])
@pytest.mark.parametrize("kl", [None, "analytic", "function"])
def test_classifier_by_hand(kl: str | None, kl_weight: float | None) -> None:
    pair, batch = ENUMERATED[0].build()
    run, z, log_qz = drawn_for_each_class(pair, batch)
    log_q, log_p, log_pz, fit = by_class(pair, batch, z)
    beta = 1.0 if kl_weight is None else kl_weight
    divergence = log_qz - log_pz
    if kl is not None:
        loc = batch["x"] @ pair.encode + pair.shift[:, None, None]
        own = dist.Normal(loc, pair.log_scale.exp())
        divergence = kl_divergence(own, dist.Normal(zeros(), ones())).sum(-1)
    objective = MANY / ROWS * (log_q.exp() * (fit - beta * (log_q - log_p + divergence))).sum() / 3
    seen: dict[str, Tensor] = {}

    def same(terms: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.update(terms)
        return terms

    found = pv.elbo(run, num_rows=MANY, kl_weight=kl_weight, kl=same if kl == "function" else kl)
    assert pair.classify.grad is None
    wanted = value_and_gradients(objective, pair)
    assert wanted["classify"].abs().max() > 1
    assert_equal(value_and_gradients(found.objective, pair), wanted)
    plain = pv.elbo(run, num_rows=MANY, kl=None if kl is None else "analytic")
    torch.testing.assert_close(found.elbo, plain.elbo, rtol=1e-13, atol=0)
    if kl == "function":  # the terms come weighed, a row each
        assert {name: tuple(term.shape) for name, term in seen.items()} == {"y": (3, ROWS), "z": (3, ROWS)}
        weighed = (log_q.exp() * divergence).sum(0)
        torch.testing.assert_close(seen["z"], weighed.expand(3, -1), rtol=1e-12, atol=0)
        class_kl = (log_q.exp() * (log_q - log_p)).sum(0)
        torch.testing.assert_close(seen["y"], class_kl.expand(3, -1), rtol=1e-12, atol=0)


def test_log_weights_by_hand() -> None:
    pair, batch = ENUMERATED[0].build()
    run, z, log_qz = drawn_for_each_class(pair, batch)
    log_q, log_p, log_pz, fit = by_class(pair, batch, z)
    log_w = torch.logsumexp(log_p + log_pz + fit - log_qz, 0)
    torch.testing.assert_close(pv.log_weights(run), log_w, rtol=1e-12, atol=0)
    bounds = (log_q.exp() * (log_p + log_pz + fit - log_qz - log_q)).sum(0)
    torch.testing.assert_close(row_bounds(run), bounds, rtol=1e-12, atol=0)
    assert (row_bounds(run) < pv.log_weights(run)).all()
    alone = pv.terms(pair, batch, 3, enumerate=False)  # its q is a proposal's density
    assert not alone.enum_dims and alone.sites["y"].value.shape == (3, ROWS)
    y, q = alone.sites["y"], alone.sites["z"].q
    assert y.q is not None and q is not None
    classes = (batch["x"] @ pair.classify).log_softmax(-1).expand(3, -1, -1)
    torch.testing.assert_close(y.q.log_prob, classes.gather(-1, y.value[..., None])[..., 0], rtol=1e-12, atol=0)


@named([row for row in ENUMERATED if not row.score and "scaled" not in row.name])  # a row's share is unscaled
def test_bounds_add_up(row: Row) -> None:
    """The shares of rows and of global sites are the ELBO."""
    pair, batch = row.build()
    run = pv.terms(pair, batch, 3)
    total = (row_bounds(run).sum() + global_bound(run)) / 3
    torch.testing.assert_close(total, pv.elbo(run).objective, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["mixture", "deep_mixture"])
@pytest.mark.parametrize("function", [False, True])
def test_kl_weight_of_a_mixture_prior(name: str, function: bool) -> None:
    # b weighs log p(z) = log sum_y p(y) p(z | y); p(x | z) = p(x, z) / p(z) keeps weight 1
    row = next(row for row in ENUMERATED if row.name == name)
    pair, batch = row.build()
    x, beta = batch["x"], 0.3
    layout = described(pair, batch)
    torch.manual_seed(1)
    run = pv.terms(pair, batch, layout=layout)
    loc, scale = x @ pair.encode, pair.log_scale.exp()
    z = loc + scale * ((run.sites["z"].value - loc) / scale).detach()
    log_y = pair.prior_logits.log_softmax(-1)[:, None]
    log_zy = log_y + dist.Normal(pair.centres[:, None], math.exp(-0.5)).log_prob(z).sum(-1)
    mean = z @ pair.decode + (pair.loc[:, None] if name == "deep_mixture" else 0.0)
    joint = torch.logsumexp(log_zy + dist.Normal(mean, ones()).log_prob(x).sum(-1), 0)
    prior, log_q = torch.logsumexp(log_zy, 0), dist.Normal(loc, scale).log_prob(z).sum(-1)
    wanted = MANY / ROWS * (joint - prior + beta * (prior - log_q)).sum()
    kl = (lambda terms: {"z": 1.0 * terms["z"]}) if function else None
    found = pv.elbo(run, num_rows=MANY, kl_weight=beta, kl=kl)
    assert_equal(value_and_gradients(found.objective, pair), value_and_gradients(wanted, pair))
    torch.testing.assert_close(found.elbo, MANY / ROWS * (joint - log_q).sum().detach(), rtol=1e-12, atol=0)


@named([row for row in ENUMERATED if not row.score])
def test_closed_form_has_the_drawn_expectation(row: Row) -> None:
    # |t| < 6 on 9 degrees of freedom: false alarms 2e-4 each, 2e-3 in all
    pair, batch = row.build()
    layout, losses = described(pair, batch), {}
    for kl in (None, "analytic"):
        torch.manual_seed(0)
        with torch.no_grad():
            losses[kl] = torch.stack([pv.Trace_ELBO(100, kl=kl)(pair, batch, layout=layout).elbo for _ in range(10)])
    difference = losses[None] - losses["analytic"]
    assert abs(difference.mean()) < 6 * difference.std() / 10**0.5 + 1e-9
    a = ours(row, pair, batch, particles=3, num_rows=MANY, kl="analytic")
    assert_equal(a, ours(row, pair, batch, particles=3, num_rows=MANY, kl=lambda terms: terms))


class ExactClasses(nn.Module):
    """y ~ Categorical, z | y ~ N(c_y, 1), x | z ~ N(z, 1), with the exact posterior as guide, y summed out by either side."""

    def __init__(self, side: str) -> None:
        super().__init__()
        self.side, self.logits, self.centres = side, weight(CLASSES), 2 * weight(CLASSES)

    def posterior(self, x: Tensor) -> Any:
        logits = self.logits.log_softmax(-1) + dist.Normal(self.centres, 2**0.5).log_prob(x[..., None])
        return dist.Categorical(logits=logits)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=self.logits), infer=PARALLEL)
            z = pyro.sample("z", dist.Normal(self.centres[y], 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            if self.side == "guide":
                y = pyro.sample("y", self.posterior(x), infer=PARALLEL)
                pyro.sample("z", dist.Normal((self.centres[y] + x) / 2, 0.5**0.5))
            else:
                means = dist.Normal((self.centres + x[..., None]) / 2, 0.5**0.5)
                pyro.sample("z", dist.MixtureSameFamily(self.posterior(x), means))

    def marginal(self, x: Tensor) -> Tensor:
        each = self.logits.log_softmax(-1) + dist.Normal(self.centres, 2**0.5).log_prob(x[:, None])
        return torch.logsumexp(each, -1)


@pytest.mark.parametrize("side", ["model", "guide"])
def test_exact_posterior_has_constant_weights(side: str) -> None:
    torch.manual_seed(0)
    pair, x = ExactClasses(side), torch.randn(9, dtype=torch.float64)
    with torch.no_grad():
        run = pv.terms(pair, {"x": x}, 5)
        for found in (pv.log_weights(run), row_bounds(run)):
            torch.testing.assert_close(found, pair.marginal(x).expand(5, -1), rtol=0, atol=1e-12)
    fitted = unfitted(pair, x)
    torch.testing.assert_close(
        pv.log_likelihood(fitted, x, 7, proposal="guide"), pair.marginal(x).detach(), rtol=0, atol=1e-10
    )
    # posterior draws of the class: frequencies, 4.5 standard errors, 27 numbers: false alarms 2e-4
    draws = pv.posterior(fitted, x, 4000, site="y", num_particles=8000, seed=0, proposal="guide")
    assert draws.shape == (4000, 9)
    share, wanted = one_hot(draws).double().mean(0), pair.posterior(x).probs.detach()
    ess = 8000 if side == "guide" else 8000 * 0.1  # classes come from the prior there
    error = (wanted * (1 - wanted) * (1 / 4000 + 1 / ess)).sqrt()
    assert ((share - wanted).abs() < 4.5 * error + 1e-3).all()


def test_impossible_values_count_for_nothing() -> None:
    """q(y) = 0 or p(x | y) = 0 of a value: no NaN, neither in the value nor in a gradient."""

    class Impossible(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(3))

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                y = pyro.sample("y", dist.Categorical(logits=torch.tensor([0.0, 0.0, -math.inf])))
                pyro.sample("x", dist.Normal(self.loc[y], 1.0), obs=x)

        def guide(self, x: Tensor) -> None:
            logits = torch.cat([self.loc[:2], torch.full((1,), -math.inf)])
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Categorical(logits=logits), infer=PARALLEL)

    pair = Impossible()
    bound = pv.Trace_ELBO()(pair, {"x": torch.randn(4)}).objective
    bound.backward()
    assert torch.isfinite(bound) and torch.isfinite(pair.loc.grad).all() and pair.loc.grad[2] == 0


# --- traced, and without a host sync -----------------------------------------------------------------------------------


@named([*ENUMERATED, MIXTURE_GLOBAL])
@pytest.mark.filterwarnings("ignore:.*poutine.scale")  # which is asked for here
@pytest.mark.parametrize("particles", [1, 3])
def test_no_host_sync(row: Row, particles: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pair, batch = row.build()
    layout = pv.check_pair(pair, batch)
    rows = ROWS if row is MIXTURE_GLOBAL else MANY
    with counted_reads(monkeypatch) as reads:
        found = pv.terms(pair, batch, particles, layout=layout)
        pv.elbo(found, num_rows=rows, kl_weight=torch.tensor(0.5)).objective.backward()
        if row is not MIXTURE_GLOBAL:
            pv.log_weights(found)
            row_bounds(found)
    assert reads.count == 0
    assert all(p.grad is not None for p in pair.parameters())


def traced_and_eager(pair: nn.Module, loss: Any, batch: dict[str, Tensor], **options: Any) -> Any:
    """Value and gradients of one step, as a flat graph and as Python runs it, from one random state."""
    leaves = list(pair.parameters())

    def step(leaves: list[Tensor], batch: dict[str, Tensor]) -> list[Tensor]:
        bound = loss(pair, batch, **options)
        return [bound.elbo, bound.objective.detach(), *torch.autograd.grad(bound.objective, leaves)]

    found = []
    with pyro.validation_enabled(False):
        graph = graph_of(step, leaves, batch)
        other = {name: value.flip(0) for name, value in batch.items()}  # not what it was traced on
        for run in (graph, step):
            torch.manual_seed(3)
            found.append(run(leaves, other))
    return found


LOSSES = {
    "elbo": lambda k: pv.Trace_ELBO(k),
    "analytic": lambda k: pv.Trace_ELBO(k, kl="analytic"),
    "iwelbo": lambda k: pv.IWELBO(k),
    "landing": lambda k: pv.Trace_ELBO(k, gradient="sticking_the_landing"),
    "doubly": lambda k: pv.IWELBO(k, gradient="doubly_reparameterised"),
}
TRACED = [  # each program once: by its closed forms, where it has them
    *((row, "analytic" if row.analytic and "auto" not in row.name else "elbo", 3) for row in TABLE),
    *((row, "elbo", 3) for row in [*ENUMERATED, MIXTURE_GLOBAL]),
    *((row, "elbo", 1) for row in ENUMERATED if row.name in ("mixture", "beside_score")),
    *((row, "landing", 3) for row in TABLE if row.name == "hierarchical"),
    *((row, "doubly", 3) for row in TABLE if row.name in ("auxiliary", "auto_mvn")),
    *((row, "iwelbo", 3) for row in [*TABLE, *ENUMERATED] if row.name in ("mixed", "global_local", "deep_mixture")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("row", "loss", "particles"), TRACED, ids=lambda value: getattr(value, "name", str(value)))
def test_traced(row: Row, loss: str, particles: int) -> None:
    pair, batch = row.build()
    layout = described(pair, batch)
    graph, eager = traced_and_eager(pair, LOSSES[loss](particles), batch, layout=layout, kl_weight=torch.tensor(0.7))
    for a, b in zip(graph, eager):
        assert b.abs().max() > 1e-6
        assert relative_difference(a, b) <= TOLERANCE


# --- any static program, with no argument and no plate "data" ----------------------------------------------------------


def sub(name: str, total: int, size: int, dim: int | None = None) -> pyro.plate:
    """A subsampling plate whose rows are given, so that two programs run the same."""
    return pyro.plate(name, total, subsample=torch.arange(size), dim=dim)


def p(name: str, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    return pyro.param(name, 0.7 * torch.randn(shape, generator=generator, dtype=torch.float64))


OBSERVED = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(3, 4)


def global_only() -> Any:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(p("a"), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0).expand([4]).to_event(1), obs=OBSERVED[0])

    return pv.Pair(model, lambda: pyro.sample("z", dist.Normal(p("m"), p("s").exp())))


def nested_plates() -> Any:
    def model() -> None:
        rows, columns = sub("rows", 30, 3, -2), sub("columns", 8, 4, -1)
        with rows:
            z = pyro.sample("z", dist.Normal(p("a"), 1.0))
        with columns:
            w = pyro.sample("w", dist.Bernoulli(logits=p("b")))
        with rows, columns:
            pyro.sample("x", dist.Normal(z + w * p("c"), 1.0), obs=OBSERVED)

    def guide() -> None:
        with sub("rows", 30, 3, -2):
            pyro.sample("z", dist.Normal(p("m", 3, 1), p("s").exp()))
        with sub("columns", 8, 4, -1):
            pyro.sample("w", dist.Bernoulli(logits=p("l", 4)))

    return pv.Pair(model, guide)


def plate_both_ways() -> Any:
    """One plate looped over, another as a dimension, and the first one again as a dimension."""

    def model() -> None:
        loop = sub("groups", 6, 3)
        for i in loop:
            z = pyro.sample(f"z{i}", dist.Normal(p("a"), 1.0))
            with pyro.plate(f"columns{i}", 4):
                pyro.sample(f"x{i}", dist.Normal(z, 1.0), obs=OBSERVED[i])
        with pyro.plate("again", 3):
            pyro.sample("y", dist.Normal(p("c"), 1.0), obs=OBSERVED[:, 0])

    def guide() -> None:
        for i in sub("groups", 6, 3):
            pyro.sample(f"z{i}", dist.Normal(p(f"m{i}"), p("s").exp()))

    return pv.Pair(model, guide)


def looped_data() -> Any:
    """The plate "data" itself, looped over."""

    def model() -> None:
        for i in sub("data", 12, 4):
            z = pyro.sample(f"z{i}", dist.Bernoulli(logits=p("a")))
            pyro.sample(f"x{i}", dist.Normal(z, 1.0), obs=OBSERVED[0, i])

    def guide() -> None:
        for i in sub("data", 12, 4):
            pyro.sample(f"z{i}", dist.Bernoulli(logits=p(f"l{i}")))

    return pv.Pair(model, guide)


def gaussian_mixture() -> Any:
    """Pyro's tutorial: weights and locations for all, a class of each datum that only the model has."""

    def model() -> None:
        shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3, dtype=torch.float64)))
        with pyro.plate("components", 3):
            locs = pyro.sample("locs", dist.Normal(p("a"), 3.0))
        with sub("points", 40, 4):
            k = pyro.sample("k", dist.Categorical(shares), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(locs[k], 1.0), obs=OBSERVED[0])

    def guide() -> None:
        pyro.sample("shares", dist.Dirichlet(p("d", 3).exp()))
        with pyro.plate("components", 3):
            pyro.sample("locs", dist.Normal(p("m", 3), p("s").exp()))

    return pv.Pair(model, guide)


def hidden_markov() -> Any:
    """A chain of classes summed out in the model, with pyro.markov."""

    def model() -> None:
        table, locs = p("t", 3, 3), p("l", 3)
        with pyro.plate("series", 3):
            y = 0
            for t in pyro.markov(range(4)):
                y = pyro.sample(f"y{t}", dist.Categorical(logits=table[y]), infer={"enumerate": "parallel"})
                pyro.sample(f"x{t}", dist.Normal(locs[y], 1.0), obs=OBSERVED[:, t])

    return pv.Pair(model, lambda: None)


def guided_chain() -> Any:
    """A chain of classes of the guide, each summed out."""

    def model() -> None:
        table, locs = p("t", 3, 3), p("l", 3)
        with sub("series", 9, 3):
            y = 0
            for t in range(4):
                y = pyro.sample(f"y{t}", dist.Categorical(logits=table[y]))
                pyro.sample(f"x{t}", dist.Normal(locs[y], 1.0), obs=OBSERVED[:, t])

    def guide() -> None:
        table, shift = p("g", 3, 3), p("h", 3)
        with sub("series", 9, 3):
            y = 0
            for t in range(4):
                logits = table[y] + shift * OBSERVED[:, t, None]
                y = pyro.sample(f"y{t}", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})

    return pv.Pair(model, guide)


def several_loops() -> Any:
    """Classes in a plate looped over: each has a dimension of its own, and the last site sees them all."""

    def model() -> None:
        classes = [
            pyro.sample(f"y{i}", dist.Categorical(logits=p("t", 2)), infer={"enumerate": "parallel"})
            for i in pyro.plate("loop", 3)
        ]
        pyro.sample("x", dist.Normal(sum(p("l", 2)[y] for y in classes), 1.0), obs=OBSERVED[0, 0])

    return pv.Pair(model, lambda: None)


PROGRAMS = [
    (global_only, 0),
    (nested_plates, 2),
    (plate_both_ways, 1),
    (looped_data, 0),
    (gaussian_mixture, 1),
    (hidden_markov, 1),
    (guided_chain, 1),
    (several_loops, 0),
]


@pytest.mark.parametrize("given", [False, True], ids=["found", "told"])
@pytest.mark.parametrize(("make", "nesting"), PROGRAMS, ids=[make.__name__ for make, _ in PROGRAMS])
def test_programs_without_arguments(make: Any, nesting: int, given: bool) -> None:
    pair = make()
    sampled = make in (global_only, nested_plates, plate_both_ways, looped_data)
    kind = pyro.infer.Trace_ELBO if sampled else pyro.infer.TraceEnum_ELBO
    values = []
    for which in ("ours", "theirs"):
        torch.manual_seed(1)
        if which == "ours":
            run = pv.terms(pair, {}, plate_nesting=nesting if given else None)
            if not given and run.enum_dims:  # the run that found the nesting has drawn
                torch.manual_seed(1)
                run = pv.terms(pair, {}, plate_nesting=run.plate_nesting)
            assert run.plate_nesting == nesting and run.num_rows == (4 if make is looped_data else 1)
            loss = -pv.elbo(run).objective
        else:
            loss = kind(max_plate_nesting=nesting).differentiable_loss(pair.model, pair.guide)
        store = pyro.get_param_store()
        leaves = {name: store._params[name] for name in store}
        gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        values.append({"value": loss.detach(), **dict(zip(leaves, gradients))})
    assert_equal(*values)


@pytest.mark.parametrize("make", [nested_plates, hidden_markov, guided_chain])
def test_programs_without_arguments_and_particles(make: Any) -> None:
    pair = make()
    run = pv.terms(pair, {}, 3)
    alone = pv.terms(pair, {})
    assert torch.isfinite(pv.elbo(run).objective)
    if make in (hidden_markov, guided_chain):  # nothing is drawn: particles are alike
        torch.testing.assert_close(pv.elbo(run).objective, pv.elbo(alone).objective, rtol=1e-12, atol=0)


def test_a_long_chain() -> None:
    """Forty classes in a row, against the forward algorithm: no dimension is recycled, nothing is 3^40 large."""
    table, locs, x = torch.randn(3, 3).double(), torch.randn(3).double(), torch.randn(40).double()

    def model() -> None:
        y = 0
        for t in pyro.markov(range(40)):
            y = pyro.sample(f"y{t}", dist.Categorical(logits=table[y]), infer={"enumerate": "parallel"})
            pyro.sample(f"x{t}", dist.Normal(locs[y], 1.0), obs=x[t])

    log_table, fit = table.log_softmax(-1), dist.Normal(locs, 1.0).log_prob(x[:, None])
    forward = log_table[0] + fit[0]
    for t in range(1, 40):
        forward = torch.logsumexp(forward[:, None] + log_table, 0) + fit[t]
    found = pv.elbo(pv.terms(pv.Pair(model, lambda: None), {})).elbo
    torch.testing.assert_close(found, forward.logsumexp(0), rtol=1e-12, atol=0)


# --- drawn sites beside enumerated ones --------------------------------------------------------------------------------


class ScoreInPlate(Base):
    """Bernoulli sites in a plate that x stands outside of, beside an enumerated class: Pyro's DiCE takes x for no
    consequence of theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.classify, self.loc, self.prior = weight(COLUMNS, 2), weight(COLUMNS, 2), weight(2), weight(2)

    def model(self, x: Tensor) -> None:
        with self.rows(x, dim=-2):
            y = pyro.sample("y", dist.Categorical(logits=self.prior))
            with pyro.plate("parts", 2, dim=-1):
                s = pyro.sample("s", dist.Bernoulli(0.4 * ones()))
            total = 2 * s.sum(-1, keepdim=True) + self.loc[y]
            pyro.sample("x", dist.Normal(total, ones()), obs=x[:, :1])

    def guide(self, x: Tensor) -> None:
        with self.rows(x, dim=-2):
            pyro.sample("y", dist.Categorical(logits=(x @ self.classify)[:, None]), infer=PARALLEL)
            with pyro.plate("parts", 2, dim=-1):
                pyro.sample("s", dist.Bernoulli(logits=x @ self.encode))

    def exact(self, x: Tensor) -> Tensor:
        q = dist.Bernoulli(logits=x @ self.encode)
        log_y, log_p = (x @ self.classify).log_softmax(-1), self.prior.log_softmax(-1)
        total = zeros()
        for s in torch.cartesian_prod(torch.arange(2), torch.arange(2)).double():
            log_q = q.log_prob(s).sum(-1)
            latent = dist.Bernoulli(0.4 * ones()).log_prob(s).sum() - log_q
            for y in range(2):
                fit = dist.Normal(2 * s.sum() + self.loc[y], 1.0).log_prob(x[:, 0])
                total = total + ((log_q + log_y[:, y]).exp() * (fit + latent + log_p[y] - log_y[:, y])).sum()
        return total


@pytest.mark.slow
def test_score_in_a_plate_beside_an_enumerated_site() -> None:
    """Against the sum over all values. 20 numbers at 4.5 standard errors, 59 degrees of freedom: false alarms 7e-4."""
    row = Row("score_in_plate", ScoreInPlate, nesting=2)
    pair, batch = row.build()
    wanted = value_and_gradients(pair.exact(batch["x"]), pair)
    runs = [{k: -v for k, v in ours(row, pair, batch, particles=200, seed=s).items()} for s in range(60)]
    for name in wanted:
        draws = torch.stack([r[name] for r in runs])
        error = draws.std(0) / 60**0.5
        assert ((draws.mean(0) - wanted[name]).abs() < 4.5 * error + 1e-9).all(), name
        assert error.max() < 0.05 * wanted[name].abs().max(), name


@pytest.mark.slow
@named([row for row in ENUMERATED if row.name in ("beside_score", "score_above")])
def test_score_gradients_agree_with_pyros(row: Row) -> None:
    """In expectation, by either estimator; about 50 numbers: false alarms 1e-3."""
    pair, batch = row.build()
    both = []
    for found in (ours, pyros):
        runs = [found(row, pair, batch, particles=100, seed=s) for s in range(40)]
        both.append({name: torch.stack([r[name] for r in runs]) for name in runs[0]})
    for name in both[0]:
        a, b = both[0][name], both[1][name]
        assert ((a - b).mean(0).abs() < 4.5 * (a - b).std(0) / 40**0.5 + 1e-9).all(), name


# --- what is found in a layout -----------------------------------------------------------------------------------------


def test_layout_tells_what_is_enumerated() -> None:
    row = next(row for row in ENUMERATED if row.name == "both_sides")
    pair, batch = row.build()
    layout = pv.check_pair(pair, batch)
    assert {s.name: s.enumerated for s in layout.sites} == {"y": "guide", "z": None, "x": None, "c": "model"}
    assert "enumerated in the guide" in str(layout) and "enumerated in the model" in str(layout)
    spec = {
        "sites": [{k: v for k, v in asdict(site).items() if k != "enumerated"} for site in layout.sites],
        "plate_nesting": 1,
        "arguments": {"x": [[COLUMNS], "float64"]},
    }
    assert not read_layout(spec).enumerates  # a run of before there was enumeration
    with pytest.raises(pv.PairError, match="got 'c', which the model sums out"):
        pv.encode(unfitted(pair, batch), batch, site="c")


def test_chunks_count_the_values() -> None:
    drawn, batch = Row("mixed", Mixed).build()
    summed, _ = ENUMERATED[0].build()
    assert row_elements(summed, batch) == CLASSES * row_elements(drawn, batch)


def test_layout_saves_the_extra_run() -> None:
    pair, batch = ENUMERATED[0].build()
    runs = []
    watched = pv.Pair(pair.model, lambda x: (runs.append(1), pair.guide(x)))
    for options, wanted in (
        ({"layout": described(pair, batch)}, 1),
        ({"plate_nesting": 1}, 1),
        ({}, 2),
        ({"enumerate": False}, 1),
    ):
        runs.clear()
        pv.terms(watched, batch, **options)
        assert len(runs) == wanted, options


# --- refusals --------------------------------------------------------------------------------------------------------


def marked(fn: Any, infer: dict[str, Any], side: str) -> pv.Pair:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("s", fn, infer=infer if side == "model" else None)
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            if side == "guide":
                pyro.sample("s", fn, infer=infer)

    return pv.Pair(model, guide)


@pytest.mark.parametrize("side", ["model", "guide"])
@pytest.mark.parametrize("ask", [pv.check_pair, lambda pair, x: pv.terms(pair, {"x": x})], ids=["check", "terms"])
@pytest.mark.parametrize(
    ("fn", "infer", "message"),
    [
        (
            dist.Bernoulli(0.5),
            {"enumerate": "sequential"},
            "'s' is marked .*'sequential'.*TraceEnum_ELBO with pyro.infer.SVI",
        ),
        (dist.Bernoulli(0.5), {"enumerate": "parallel", "num_samples": 3}, "'s' is marked .*with num_samples"),
        (dist.Poisson(2.0), PARALLEL, "'s' is marked .*no finite support to sum over: remove the mark"),
        (dist.Normal(0.0, 1.0), PARALLEL, "no finite support"),
    ],
)
def test_marks_that_cannot_be_honoured(side: str, ask: Any, fn: Any, infer: Any, message: str) -> None:
    with pytest.raises(pv.PairError, match=message):
        ask(marked(fn, infer, side), torch.randn(4))


def test_mark_in_the_model_of_a_site_that_the_guide_draws() -> None:
    pair, batch = Row("global_discrete", GlobalDiscrete).build()
    both = pv.Pair(pyro.infer.config_enumerate(pair.model), pair.guide)
    for ask in (pv.check_pair, pv.terms):
        with pytest.raises(
            pv.PairError, match="'s' is marked .* in the model only, and the guide draws it: mark it in"
        ):
            ask(both, batch)
    marked_twice = pv.Pair(pyro.infer.config_enumerate(pair.model), pyro.infer.config_enumerate(pair.guide))
    assert pv.terms(marked_twice, batch).enum_dims


def coin(name: str, logit: Any = 0.0, infer: Any = None) -> Any:
    return pyro.sample(name, dist.Bernoulli(logits=torch.as_tensor(logit, dtype=torch.float64)), infer=infer)


def outside(side: str, keepdim: bool = True) -> pv.Pair:
    """x, outside of a plate, depends on an enumerated site inside of it."""

    def model() -> None:
        with pyro.plate("inner", 3):
            s = coin("s", infer=PARALLEL if side == "model" else None)
        pyro.sample("x", dist.Normal(s.sum(-1, keepdim), 1.0), obs=zeros())

    def guide() -> None:
        if side == "guide":
            with pyro.plate("inner", 3):
                coin("s", infer=PARALLEL)

    return pv.Pair(model, guide)


def two_plates() -> pv.Pair:
    """Sites of two plates side by side, and a factor in both."""

    def model() -> None:
        rows, columns = pyro.plate("rows", 3, dim=-2), pyro.plate("columns", 4, dim=-1)
        with rows:
            a = coin("a", infer=PARALLEL)
        with columns:
            b = coin("b", infer=PARALLEL)
        with rows, columns:
            pyro.sample("x", dist.Normal(a + b, 1.0), obs=zeros(3, 4))

    return pv.Pair(model, lambda: None)


def more_global_in_the_model() -> pv.Pair:
    def model() -> None:
        a = coin("a", infer=PARALLEL)
        with pyro.plate("rows", 3):
            b = coin("b")
            pyro.sample("x", dist.Normal(a + b, 1.0), obs=zeros(3))

    def guide() -> None:
        with pyro.plate("rows", 3):
            coin("b", infer=PARALLEL)

    return pv.Pair(model, guide)


def two_scales() -> pv.Pair:
    def model() -> None:
        a = coin("a", infer=PARALLEL)
        with pyro.poutine.scale(scale=0.5):
            pyro.sample("x", dist.Normal(a, 1.0), obs=zeros())

    return pv.Pair(model, lambda: None)


def scale_that_is_a_tensor() -> pv.Pair:
    def model() -> None:
        a = coin("a", infer=PARALLEL)
        with pyro.poutine.scale(scale=torch.tensor(1.0)):
            pyro.sample("x", dist.Normal(a, 1.0), obs=zeros())

    return pv.Pair(model, lambda: None)


def too_many() -> pv.Pair:
    def model() -> None:
        for i in range(70):
            coin(f"a{i}", infer=PARALLEL)

    return pv.Pair(model, lambda: None)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (outside("guide"), "'x' depends on the enumerated site 's' but is outside of its plate 'inner': put"),
        (outside("model"), "'x' depends on the enumerated site 's' but is outside of its plate 'inner': put"),
        (
            two_plates(),
            "Sites '[ab]' and '[ab]' cannot be summed out together: the second is in the plate '(rows|columns)'",
        ),
        (
            more_global_in_the_model(),
            "Sites 'a' and 'b' cannot be summed out together: the second is in the plate 'rows'",
        ),
        (two_scales(), r"'a' is summed out in the model together with \['x'\], and these count .*1.0, 0.5.* times"),
        (scale_that_is_a_tensor(), "scale all of them alike with one number"),
        (too_many(), "at most 60 are possible.*pyro.markov.*mark fewer sites"),
    ],
)
@pytest.mark.parametrize("particles", [1, 3])
def test_what_cannot_be_summed_out(pair: pv.Pair, message: str, particles: int) -> None:
    with pytest.raises(pv.PairError, match=message):
        pv.elbo(pv.terms(pair, {}, particles))


def test_shapes_that_nothing_explains() -> None:
    with pytest.raises(
        pv.PairError, match="'x' has a log-density of shape .* put it into the plate of what it depends"
    ):
        pv.terms(outside("guide", keepdim=False), {})


def test_plate_nesting_too_small() -> None:
    with pytest.raises(pv.PairError, match="plate_nesting=0 is too small: plates nest 1 deep. Pass plate_nesting=1"):
        pv.terms(hidden_markov(), {}, plate_nesting=0)


def test_no_density_of_a_row() -> None:
    pair, batch = MIXTURE_GLOBAL.build()
    for fold in (pv.log_weights, row_bounds):
        with pytest.raises(pv.PairError, match="'s' belongs to all rows and only the model sums it out.*to the guide"):
            fold(pv.terms(pair, batch))
    with pytest.raises(pv.PairError, match="vectorised plate 'data'"):
        pv.log_weights(pv.terms(looped_data(), {}))


class SharedPrior(Mixture):
    """Two latent sites whose priors depend on one class of the model; the second may be drawn for each class of another."""

    def __init__(self, each: bool = False) -> None:
        super().__init__()
        self.each = each

    def model(self, x: Tensor) -> None:
        with self.rows(x):
            if self.each:
                pyro.sample("c", dist.Bernoulli(0.5 * ones()))
            y = pyro.sample("y", dist.Categorical(logits=self.prior_logits), infer=PARALLEL)
            z = pyro.sample("z", normal(self.centres[y], 0.0))
            w = pyro.sample("w", normal(self.centres[y], 0.0))
            pyro.sample("x", normal((z + w) @ self.decode, 0.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with self.rows(x):
            shift = pyro.sample("c", dist.Bernoulli(0.5 * ones()), infer=PARALLEL)[..., None] if self.each else 0.0
            pyro.sample("z", normal(x @ self.encode + shift, self.log_scale))
            pyro.sample("w", normal(x @ self.encode, self.log_scale))


def test_priors_that_share_a_class() -> None:
    pair, batch = Row("shared", SharedPrior).build()
    with pytest.raises(pv.PairError, match="priors of 'z', 'w' share an enumerated site of the model"):
        pv.Trace_ELBO(kl=lambda terms: terms)(pair, batch)
    assert torch.isfinite(pv.IWELBO(3)(pair, batch, kl_weight=0.5).objective)
    pair, batch = Row("shared", lambda: SharedPrior(each=True)).build()
    with pytest.raises(pv.PairError, match="KL weight has no place"):
        pv.IWELBO(3)(pair, batch, kl_weight=0.5)
    assert torch.isfinite(pv.IWELBO(3)(pair, batch).objective)


def test_model_that_mistakes_the_dimension() -> None:
    """A softmax over the first dimension is right for rows alone."""
    wrong = nn.Parameter(torch.randn(2, 5, dtype=torch.float64))

    class Mistaken(Enumerated):
        def __init__(self) -> None:
            super().__init__()
            self.table = wrong

        def model(self, x: Tensor) -> None:
            with self.rows(x):
                y = pyro.sample("y", dist.Categorical(logits=self.prior_logits))
                z = pyro.sample("z", normal(zeros(LATENT), 0.0))
                mean = z @ self.decode + self.loc[y]
                mean = mean + 0 * self.table.sum() + (mean.mean(0) if mean.dim() == 4 or y.dim() > 1 else 0.0)
                pyro.sample("x", normal(mean, 0.0), obs=x)

    pair, batch = Row("mistaken", Mistaken).build()
    with param_scope({}), pytest.raises(pv.PairError, match="another log-density with all values"):
        layout = described(pair, batch)
        check_enumeration(pair, batch, layout)

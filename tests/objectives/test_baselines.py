"""Gradients of discrete codes, by every estimator, against the sum over all values of all codes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from support.comparisons import TOLERANCE
from support.pairs import ENUMERATED, relative_difference, value_and_gradients
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.fitted import folder as store

CODES, ROWS, MANY = (2, 3), 4, 20  # two codes of three categories: nine values
LIMIT = 6.0  # standard errors of a mean of 30 runs: false alarms 1.6e-6 for each number compared, by Student's t


class Toy(nn.Module):
    """p(z) p(x | z), z one-hot codes, with a guide whose logits depend on x. Everything in float64."""

    def __init__(self, family: fam.Family) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.logits, self.decode = (nn.Parameter(torch.randn(*shape).double()) for shape in (CODES, (6, 5)))
        self.encode = nn.Parameter(torch.randn(5, 6).double())
        self.family = family.double()

    def likelihood(self, z: Tensor) -> Any:
        logits = torch.sin(z.flatten(-2) @ self.decode) * 3  # not linear in z
        return pv.distributions.Bernoulli(logits).to_event(1)

    def q(self, x: Tensor) -> Any:
        return self.family((x @ self.encode).unflatten(-1, CODES))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", pv.distributions.OneHotCategorical(self.logits, 2))
            pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.q(x))

    def every(self, x: Tensor, kl_weight: float = 1.0) -> tuple[Tensor, Tensor]:
        """log w and log q of all values, (9, N)."""
        codes = [torch.eye(3, dtype=torch.float64)[list(k)] for k in itertools.product(range(3), repeat=2)]
        z = torch.stack(codes)[:, None]
        log_q = (z * (x @ self.encode).unflatten(-1, CODES).log_softmax(-1)).sum((-1, -2))
        log_p = (z * self.logits.log_softmax(-1)).sum((-1, -2))
        return self.likelihood(z).log_prob(x) + kl_weight * (log_p - log_q), log_q

    def elbo(self, x: Tensor, kl_weight: float = 1.0) -> Tensor:
        log_w, log_q = self.every(x, kl_weight)
        return (log_q.exp() * log_w).sum()

    def bound_of_two(self, x: Tensor) -> Tensor:
        """E log (w_1 + w_2) / 2 over all pairs of draws."""
        log_w, log_q = self.every(x)
        pairs = torch.logaddexp(log_w[:, None], log_w[None]) - math.log(2)
        return ((log_q[:, None] + log_q[None]).exp() * pairs).sum()


def rows() -> Tensor:
    return torch.bernoulli(torch.full((ROWS, 5), 0.5)).double()


def draws_of(pair: Toy, loss: Any, x: Tensor, times: int, **options: Any) -> dict[str, Tensor]:
    """The gradients of so many runs, stacked."""
    layout = pv.check_pair(pair, x)
    found = [value_and_gradients(loss(pair, {"x": x}, layout=layout, **options).objective, pair) for _ in range(times)]
    return {name: torch.stack([f[name] for f in found]) for name in found[0]}


def centre() -> nn.Module:
    torch.manual_seed(0)
    return pv.nets.MLP(5, 1, hidden=(4,)).double()


LOSSES: dict[str, Callable[[], Any]] = {
    "none": lambda: pv.Trace_ELBO(4, baseline=None),
    "rows": lambda: pv.Trace_ELBO(),
    "draws": lambda: pv.Trace_ELBO(4),
    "learned": lambda: pv.Trace_ELBO(baseline=pv.baselines.learned(centre())),
    "learned-draws": lambda: pv.Trace_ELBO(4, baseline=pv.baselines.learned(centre(), inputs="x")),
}


@pytest.mark.parametrize("name", LOSSES)
def test_every_baseline_leaves_the_expectation_as_it_is(name: str) -> None:
    """Of 67 numbers each: false alarms 1e-4 a case. Rows are repeated, so that one run draws each of them many times."""
    pair, x = Toy(fam.OneHotCategorical(CODES)), rows()
    exact = value_and_gradients(MANY / ROWS * pair.elbo(x, 0.7), pair)
    found = draws_of(pair, LOSSES[name](), x.repeat(100, 1), 30, kl_weight=0.7, num_rows=100 * MANY)
    for of, wanted in exact.items():
        mean, error = found[of].mean(0) / 100, found[of].std(0) / 30**0.5 / 100
        assert ((mean - wanted).abs() <= LIMIT * error + 1e-9).all(), of
        assert of == "value" or error.norm() < 0.1 * wanted.norm(), of  # sharp enough to see a bias


@pytest.mark.parametrize("particles", [1, 3])
def test_leave_one_out_by_hand(particles: int) -> None:
    """The mean signal of the other draws of a row, and for one draw of the other rows."""
    pair, x = Toy(fam.OneHotCategorical(CODES)), rows()
    layout = pv.check_pair(pair, x)
    torch.manual_seed(1)
    run = pv.terms(pair, {"x": x}, particles, layout=layout)
    log_q = run.sites["z"].q.score.reshape(particles, ROWS)  # type: ignore[union-attr]
    signal = pv.log_weights(run)
    dim = 0 if particles > 1 else 1
    rest = (signal.sum(dim, keepdim=True) - signal) / (signal.shape[dim] - 1)
    model = sum(term.p.log_prob.sum() for term in run.sites.values() if term.p is not None)
    by_hand = value_and_gradients((model + ((signal - rest).detach() * log_q).sum()) / particles, pair)
    torch.manual_seed(1)
    found = value_and_gradients(pv.Trace_ELBO(particles)(pair, {"x": x}, layout=layout).objective, pair)
    for name in by_hand.keys() - {"value"}:
        assert relative_difference(found[name], by_hand[name]) < TOLERANCE, name
    torch.testing.assert_close(found["value"], signal.sum().detach() / particles)


def test_vimco_is_unbiased() -> None:
    """Against the sum over all pairs of draws, 67 numbers: false alarms 1e-4."""
    pair, x = Toy(fam.OneHotCategorical(CODES)), rows()
    exact = value_and_gradients(pair.bound_of_two(x), pair)
    found = draws_of(pair, pv.IWELBO(2), x.repeat(200, 1), 30)
    for of, wanted in exact.items():
        mean, error = found[of].mean(0) / 200, found[of].std(0) / 30**0.5 / 200
        assert ((mean - wanted).abs() <= LIMIT * error + 1e-9).all(), of
        assert of == "value" or error.norm() < 0.1 * wanted.norm(), of


def test_enumeration_is_the_sum_over_all_values() -> None:
    pair, x = Toy(fam.OneHotCategorical(CODES)), rows()
    summed = pv.Pair(pair.model, pyro.infer.config_enumerate(pair.guide, "parallel"))
    found = value_and_gradients(pv.Trace_ELBO()(summed, {"x": x}, kl_weight=0.7).objective, pair)
    exact = value_and_gradients(pair.elbo(x, 0.7), pair)
    for name in exact:
        assert relative_difference(found[name], exact[name]) < TOLERANCE, name
    log_p = pv.log_weights(pv.terms(summed, {"x": x}))[0]
    log_w, log_q = pair.every(x)
    torch.testing.assert_close(log_p, (log_w + log_q).logsumexp(0), check_stride=False)


def noise_of(loss: Any, pair: Toy, x: Tensor) -> float:
    """The standard deviation of the guide's gradient."""
    found = draws_of(pair, loss, x, 60)["encode"]
    return float(found.var(0).sum().sqrt())


def test_baselines_lower_the_noise() -> None:
    pair, x = Toy(fam.OneHotCategorical(CODES)), rows().repeat(5, 1)
    torch.manual_seed(0)
    plain = noise_of(pv.Trace_ELBO(baseline=None), pair, x)
    assert noise_of(pv.Trace_ELBO(), pair, x) < 0.7 * plain
    assert noise_of(pv.Trace_ELBO(4), pair, x) < 0.7 * noise_of(pv.Trace_ELBO(4, baseline=None), pair, x)


def bias_of(family: fam.Family, temperature: float | None = None) -> tuple[float, float]:
    """The length of the bias of the guide's gradient, and of its error, both over the length of the exact gradient."""
    if temperature is not None:
        family.current_temperature.fill_(temperature)  # type: ignore[operator]
    pair, x = Toy(family), rows()
    (exact,) = torch.autograd.grad(pair.elbo(x), pair.encode)
    torch.manual_seed(2)
    found = draws_of(pair, pv.Trace_ELBO(kl="analytic"), x.repeat(500, 1), 20)["encode"] / 500
    noise = (found.var(0).sum() / 20).sqrt()
    return float((found.mean(0) - exact).norm() / exact.norm()), float(noise / exact.norm())


def test_the_bias_of_relaxed_codes_falls_with_their_temperature() -> None:
    """From 1 to 0.1 to less than half of it; three times the root mean square of what noise does to a length is left over."""
    warm, warm_error = bias_of(fam.RelaxedOneHotCategorical(CODES), 1.0)
    cold, cold_error = bias_of(fam.RelaxedOneHotCategorical(CODES), 0.1)
    assert warm > 0.1 + 3 * warm_error and cold + 3 * cold_error < 0.5 * warm, (warm, warm_error, cold, cold_error)


HARD: dict[str, Callable[[], fam.Family]] = {
    "warm": lambda: fam.RelaxedOneHotCategorical(CODES, temperature=1.0, hard=True),
    "cold": lambda: fam.RelaxedOneHotCategorical(CODES, temperature=0.1, hard=True),
    "straight-through": lambda: fam.StraightThroughOneHotCategorical(CODES),
}


@pytest.mark.parametrize("build", HARD.values(), ids=HARD)
def test_hard_draws_have_an_exact_bound_and_a_bias_that_stays(build: Callable[[], fam.Family]) -> None:
    bias, error = bias_of(build())
    assert bias > 0.1 + 3 * error
    pair, x = Toy(build()), rows()
    values = draws_of(pair, pv.Trace_ELBO(), x.repeat(100, 1), 30)["value"] / 100
    assert (values.mean() - pair.elbo(x)).abs() < LIMIT * values.std() / 30**0.5


# --- what learns, and what is refused --------------------------------------------------------------------------------


def test_the_network_learns_the_signal_and_leaves_the_pair_alone() -> None:
    """By hand: least squares towards the signal less the mean of the other rows' rest; the pair gets no gradient of it."""
    pair, x, net = Toy(fam.OneHotCategorical(CODES)), rows(), centre()
    loss = pv.Trace_ELBO(baseline=pv.baselines.learned(net))
    layout = pv.check_pair(pair, x)
    torch.manual_seed(1)
    bound = loss(pair, {"x": x}, num_rows=MANY, layout=layout)
    torch.manual_seed(1)
    signal = pv.log_weights(pv.terms(pair, {"x": x}, layout=layout))[0].detach()
    predicted = net(x).squeeze(-1)
    rest = (signal - predicted).detach()
    others = (rest.sum() - rest) / (ROWS - 1)
    by_hand = torch.autograd.grad(-MANY / ROWS * (signal - others - predicted).square().sum() / 2, net.parameters())
    found = torch.autograd.grad(bound.objective, [*net.parameters()], retain_graph=True)
    for one, two in zip(found, by_hand):
        torch.testing.assert_close(one, two)
    torch.testing.assert_close(bound.objective.detach(), MANY / ROWS * signal.sum())


def test_normalised_divides_by_the_deviation_of_what_is_left() -> None:
    pair, x = Toy(fam.OneHotCategorical(CODES)), rows()
    layout = pv.check_pair(pair, x)

    def score(normalised: bool) -> Tensor:
        torch.manual_seed(1)
        loss = pv.Trace_ELBO(baseline=pv.baselines.learned(centre(), normalised=normalised))
        return value_and_gradients(loss(pair, {"x": x}, layout=layout).objective, pair)["encode"]

    one, two = score(False), score(True)
    ratio = (one / two)[two.abs() > 1e-9]  # a column of zeros has no gradient
    assert ratio.std() < 1e-6 and ratio.mean() > 1.01


def test_a_fit_trains_the_network_in_every_engine_and_goes_on_with_it(tmp_path: Path) -> None:
    x = torch.bernoulli(torch.full((40, 6), 0.4))

    def build() -> tuple[pv.CategoricalVAE, dict[str, Any], nn.Module]:
        torch.manual_seed(0)
        net = pv.nets.MLP(6, 1, hidden=(4,))
        pair = pv.CategoricalVAE(
            pv.priors.OneHotCategorical((2, 3)),
            pv.mlp(6, fam.Bernoulli(6), hidden=(4,)),
            pv.mlp(6, fam.OneHotCategorical((2, 3)), hidden=(4,)),
        )
        loss = pv.Trace_ELBO(baseline=pv.baselines.learned(net))
        return pair, {"loss": loss, "batch_size": 20, "seed": 1, "epochs": 3}, net

    pair, how, net = build()
    start = [p.detach().clone() for p in net.parameters()]
    whole = pv.fit(pair, x, engine="eager", **how)
    assert not any(torch.equal(a, b) for a, b in zip(start, net.parameters()))
    other, how, traced = build()
    again = pv.fit(other, x, engine="traced", **how)
    assert "engine_notes" not in again.settings
    torch.testing.assert_close([*net.parameters()], [*traced.parameters()], rtol=1e-4, atol=1e-5)
    stopped, how, _ = build()
    pv.fit(stopped, x, engine="eager", checkpoint=tmp_path / "run", callbacks=[lambda f: len(f.history) == 1], **how)
    resumed, how, last = build()
    pv.fit(resumed, x, engine="eager", checkpoint=tmp_path / "run", resume=True, **how)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), last.parameters()))
    assert whole.settings["loss"]["args"]["baseline"]["class"] == "pyrovae.baselines.learned"


class Shared(nn.Module):
    """A code that all rows share."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(3))

    def model(self, x: Tensor) -> None:
        z = pyro.sample("z", pv.distributions.OneHotCategorical(torch.zeros(3)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", pyro.distributions.Normal((z * torch.arange(3.0)).sum(-1), 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.sample("z", pv.distributions.OneHotCategorical(self.logits))


class Loop(nn.Module):
    """A code of each row, in a loop over the plate."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.3, -0.1, 0.2]))

    def model(self, x: Tensor) -> None:
        for i in pyro.plate("data", len(x)):
            z = pyro.sample(f"z{i}", pyro.distributions.Categorical(torch.ones(3)))
            pyro.sample(f"x{i}", pyro.distributions.Normal(z.float(), 1.0), obs=x[i])

    def guide(self, x: Tensor) -> None:
        for i in pyro.plate("data", len(x)):
            pyro.sample(f"z{i}", pyro.distributions.Categorical(logits=self.logits))


def test_a_loop_over_rows_has_nothing_to_subtract() -> None:
    pair, x = Loop(), torch.randn(5)
    found = []
    for baseline in (None, "leave_one_out"):
        torch.manual_seed(0)
        found.append(value_and_gradients(pv.Trace_ELBO(baseline=baseline)(pair, {"x": x}).objective, pair))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert len(pv.fit(pair, x, epochs=1, engine="eager", progress=False).history) == 1


def test_a_network_that_would_learn_nothing_is_refused() -> None:
    x = rows().float()
    loss = pv.Trace_ELBO(baseline=pv.baselines.learned(pv.nets.MLP(5, 1, hidden=())))
    smooth = pv.VAE(
        pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(5), hidden=()), pv.mlp(5, fam.Normal(2), hidden=())
    )
    summed = Toy(fam.OneHotCategorical(CODES)).float()
    relaxed, hard = (
        Toy(build(CODES)).float() for build in (fam.RelaxedOneHotCategorical, fam.StraightThroughOneHotCategorical)
    )
    enumerated = pv.Pair(summed.model, pyro.infer.config_enumerate(summed.guide, "parallel"))
    for pair in (smooth, enumerated, relaxed, hard):
        with pytest.raises(
            pv.OptionError, match=r"learned\(MLP\) learns .* the guide has none: leave the baseline out"
        ):
            pv.fit(pair, x, epochs=1, loss=loss, progress=False)


LOSSES_BEFORE: dict[str, Callable[[], Any]] = {
    "default": lambda: None,
    "none": lambda: pv.Trace_ELBO(baseline=None),
    "pyro": pyro.infer.Trace_ELBO,
}


@pytest.mark.parametrize("name", LOSSES_BEFORE)
def test_runs_of_before_there_were_baselines_go_on(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With any loss of today that learns nothing; but a run of today only with its own."""
    x = rows().float()

    def fit(loss: Any, **more: Any) -> pv.Fit:
        pair = Toy(fam.OneHotCategorical(CODES)).float()
        how: dict[str, Any] = {"epochs": 3, "seed": 0, "engine": "eager", "checkpoint": tmp_path / "run"}
        return pv.fit(pair, x, loss=loss, **how, **more)

    fit(LOSSES_BEFORE[name](), callbacks=[lambda f: True])
    others = [pv.Trace_ELBO(baseline=pv.baselines.learned(pv.nets.MLP(5, 1, hidden=())))]
    others += [pv.Trace_ELBO(baseline="leave_one_out" if name != "default" else None)]
    for other in others:
        with pytest.raises(pv.CheckpointError, match="other loss"):
            fit(other, resume=True)
    read = store.read_state

    def before(folder: Path) -> Any:
        tensors, notes = read(folder)
        del notes["identity"]["loss"]["args"]["baseline"]
        return tensors, notes

    monkeypatch.setattr(store, "read_state", before)
    with pytest.raises(pv.CheckpointError, match="other loss"):
        fit(others[0], resume=True)
    assert len(fit(LOSSES_BEFORE[name](), resume=True).history) == 3


def test_what_cannot_be_meant_is_refused() -> None:
    x = rows()
    with pytest.raises(pv.OptionError, match="baseline must be None, 'leave_one_out' or pv.baselines.learned"):
        pv.Trace_ELBO(baseline="mean")
    with pytest.raises(pv.OptionError, match="baseline must be None"):
        pv.Trace_ELBO(baseline=np.zeros(3))
    with pytest.raises(pv.OptionError, match="needs a module"):
        pv.baselines.learned(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(pv.OptionError, match="nothing to train"):
        pv.baselines.learned(nn.Identity())
    pair = Toy(fam.OneHotCategorical(CODES))
    wide = pv.Trace_ELBO(baseline=pv.baselines.learned(pv.nets.MLP(5, 2, hidden=()).double()))
    with pytest.raises(pv.PairError, match=r"one number for each row, \(4,\) or \(4, 1\), got \(4, 2\)"):
        wide(pair, {"x": x})
    with pytest.raises(pv.PairError, match=r"one number for each row, \(4,\) or \(4, 1\), got a tuple"):
        pv.Trace_ELBO(baseline=pv.baselines.learned(nn.LSTM(5, 1).double()))(pair, {"x": x})
    absent = pv.Trace_ELBO(baseline=pv.baselines.learned(centre(), inputs=("x", "c")))
    with pytest.raises(pv.PairError, match=r"\['c'\] are not among"):
        absent(pair, {"x": x})
    learns = pv.Trace_ELBO(baseline=pv.baselines.learned(pv.nets.MLP(5, 1, hidden=())))
    with pytest.raises(pv.PairError, match="belongs to all rows.*leave_one_out"):
        learns(Shared(), {"x": torch.randn(5)})
    beside, batch = next(row for row in ENUMERATED if row.score).build()
    columns = pv.nets.MLP(next(iter(batch.values())).shape[-1], 1, hidden=()).double()
    with pytest.raises(pv.PairError, match="drawn beside enumerated sites.*without a baseline"):
        pv.Trace_ELBO(baseline=pv.baselines.learned(columns))(beside, batch)
    with pytest.raises(pv.PairError, match="in a loop over rows.*pyro.plate"):
        learns(Loop(), {"x": torch.randn(5)})
    with pytest.raises(pv.OptionError, match="use pv.fit"):
        pv.SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.1}), loss=learns)


def test_a_shared_code_is_centred_over_its_draws() -> None:
    """Three draws by hand; one draw has nothing to be compared with."""
    pair, x = Shared(), torch.randn(5)
    for particles in (1, 3):
        torch.manual_seed(0)
        run = pv.terms(pair, {"x": x}, particles, plate_nesting=1)
        log_q = run.sites["z"].q.log_prob.reshape(-1)  # type: ignore[union-attr]
        signal = sum(run.reduce(t.p.log_prob, False) for t in run.sites.values() if t.p is not None) - log_q
        rest = (signal.sum() - signal) / (particles - 1) if particles > 1 else 0.0
        (by_hand,) = torch.autograd.grad(((signal - rest).detach() * log_q).sum() / particles, pair.logits)
        torch.manual_seed(0)
        bound = pv.Trace_ELBO(particles)(pair, {"x": x}, layout=pv.check_pair(pair, x))
        torch.testing.assert_close(torch.autograd.grad(bound.objective, pair.logits)[0], by_hand)

"""log (1/K) sum_k p(x | z_k), z_k ~ p(z): against closed forms, for any pair, and without a word from the guide."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.pairs import LinearGaussian, normal, unfitted, weight, zeros
from support.programs import binary, labels, ssvae
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.batching import chunks as chunking
from pyrovae.criticism import importance as importance_module
from pyrovae.criticism.prior_as_guide import with_prior_as_guide

pytestmark = pytest.mark.slow

# Standard errors of an estimate. 4.5 of them: false alarms 7e-6 a number compared.
BOUND = 4.5


def agrees(found: pv.Importance, closed: Tensor) -> bool:
    # Jensen's bias, about se^2 / 2, is small beside the error itself
    assert 0 < found.standard_error.max() < 0.1
    return bool(((found.log_likelihood - closed).abs() < BOUND * found.standard_error).all())


def test_linear_gaussian() -> None:
    torch.manual_seed(0)
    pair = LinearGaussian(shift=3.0)  # a guide that is far off has no say
    x = pair.marginal().sample((20,))
    fitted = unfitted(pair, x)
    found = pv.importance(with_prior_as_guide(fitted), x, 20_000, seed=0, proposal="guide")
    assert agrees(found, pair.marginal().log_prob(x))  # false alarms 20 x 7e-6
    mean = pv.prior_log_likelihood(fitted, x, 20_000, seed=0)
    torch.testing.assert_close(mean, found.log_likelihood, rtol=0, atol=1e-12)
    other = unfitted(LinearGaussian(shift=-1.0), x)
    other.pair.weight, other.pair.bias = pair.weight, pair.bias
    assert torch.equal(mean, pv.prior_log_likelihood(other, x, 20_000, seed=0))
    assert not torch.equal(mean, pv.prior_log_likelihood(fitted, x, 20_000, seed=1))


class ConditionalGaussian(LinearGaussian):
    """z ~ N(V c, I), x | z as in LinearGaussian: x | c ~ N(W V c + b, W W' + s^2 I)."""

    def __init__(self) -> None:
        super().__init__()
        self.prior_weight = 2 * weight(3, 2)

    def model(self, x: Tensor, c: Tensor) -> None:  # type: ignore[override]
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(c @ self.prior_weight, 0.0))
            pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x: Tensor, c: Tensor) -> None:  # type: ignore[override]
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.proposal(x))


def test_the_prior_may_have_conditions() -> None:
    torch.manual_seed(0)
    pair = ConditionalGaussian()
    c = torch.randn(20, 3, dtype=torch.float64)
    shift = c @ pair.prior_weight @ pair.weight.T
    x = pair.marginal().sample((20,)) + shift
    found = pv.importance(
        with_prior_as_guide(unfitted(pair, {"x": x, "c": c})), {"x": x, "c": c}, 20_000, seed=0, proposal="guide"
    )
    assert agrees(found, pair.marginal().log_prob(x - shift))  # false alarms 20 x 7e-6


class Mixture(LinearGaussian):
    """y ~ Cat, z | y ~ N(m_y, I), x | z. `where` marks y for enumeration: in the guide, or in the model alone."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.logits, self.centres = where, weight(3), 2 * weight(3, 2)

    def label(self, logits: Tensor, side: str) -> Tensor:
        infer = {"enumerate": "parallel"} if side == self.where else {}
        return pyro.sample("y", dist.Categorical(logits=logits), infer=infer)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = self.label(self.logits, "model")
            z = pyro.sample("z", normal(self.centres[y], 0.0))
            pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            if self.where == "guide":
                self.label(x[:, :3], "guide")
            pyro.sample("z", self.proposal(x))

    def log_prob(self, x: Tensor) -> Tensor:
        shifted = x[:, None] - self.centres @ self.weight.T
        return torch.logsumexp(self.marginal().log_prob(shifted) + self.logits.log_softmax(0), -1)


@pytest.mark.parametrize("where", ["guide", "model"])
def test_enumerated_sites_are_summed_out(where: str) -> None:
    torch.manual_seed(0)
    pair = Mixture(where)
    x = pair.marginal().sample((20,))
    proposal = with_prior_as_guide(unfitted(pair, x))
    assert agrees(
        pv.importance(proposal, x, 20_000, seed=0, proposal="guide"), pair.log_prob(x)
    )  # false alarms 20 x 7e-6
    found = pv.terms(proposal.pair, {"x": x}, 5, layout=proposal.layout)
    assert found.sites["y"].enum_dim is not None
    assert pv.posterior(proposal, x, 10, site="y", seed=0, proposal="guide").shape == (10, 20)


class LabelOnly(Mixture):
    """Nothing but y: once it is summed out there is nothing to draw."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = self.label(self.logits, "model")
            pyro.sample("x", self.likelihood(self.centres[y]), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            if self.where == "guide":
                self.label(x[:, :3], "guide")


@pytest.mark.parametrize("where", ["guide", "model"])
def test_a_sum_over_classes_is_exact(where: str) -> None:
    torch.manual_seed(0)
    pair = LabelOnly(where)
    x = torch.randn(20, 5, dtype=torch.float64)
    by_class = torch.stack([pair.likelihood(centre).log_prob(x) for centre in pair.centres], -1)
    closed = torch.logsumexp(by_class + pair.logits.log_softmax(0), -1)
    found = pv.prior_log_likelihood(unfitted(pair, x), x, 1)
    torch.testing.assert_close(found, closed, rtol=0, atol=1e-9)


class Global(nn.Module):
    """b ~ N(0, I) for all rows, z a row, x | z, b ~ N(z + b, 1); the guide knows b nearly exactly."""

    def __init__(self, local: bool) -> None:
        super().__init__()
        self.local = local

    def model(self, x: Tensor) -> None:
        b = pyro.sample("b", normal(zeros(2), 0.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(zeros(2), 0.0)) if self.local else 0.0
            pyro.sample("x", normal(z + b, 0.0), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.sample("b", normal(torch.full_like(x[0], 1.5), -9.0))
        if self.local:
            with pyro.plate("data", len(x)):
                pyro.sample("z", normal(x / 2, 0.0))


def test_global_latents_come_from_the_guide() -> None:
    x = torch.linspace(-1, 3, 10, dtype=torch.float64)[:, None].expand(10, 2).contiguous()
    found = pv.importance(with_prior_as_guide(unfitted(Global(True), x)), x, 20_000, seed=0, proposal="guide")
    b = torch.full((2,), 1.5, dtype=torch.float64)
    # b's spread in the guide, 1e-4, is out of sight; false alarms 10 x 7e-6
    assert agrees(found, dist.Normal(b, 2**0.5).to_event(1).log_prob(x))
    alone = unfitted(Global(False), x)
    assert torch.equal(
        pv.prior_log_likelihood(alone, x, 50, seed=0), pv.log_likelihood(alone, x, 50, seed=0, proposal="guide")
    )


def test_without_latents_it_is_the_likelihood() -> None:
    torch.manual_seed(0)
    pair = pv.Regression(nn.Identity(), pv.mlp(3, fam.Bernoulli(4), hidden=(5,)))
    data = {"x": torch.bernoulli(torch.full((7, 4), 0.5)), "c": torch.randn(7, 3)}
    closed = pair.likelihood(data["c"]).log_prob(data["x"]).detach().double()
    for found in (pv.prior_log_likelihood, pv.log_likelihood):
        torch.testing.assert_close(found(unfitted(pair, data), data, 10), closed, rtol=0, atol=1e-5)


def test_the_likelihood_is_computed_once_a_draw() -> None:
    calls: list[Any] = []

    class Counting(LinearGaussian):
        def likelihood(self, z: Tensor) -> Any:
            calls.append(z.shape)
            return super().likelihood(z)

    torch.manual_seed(0)
    pair, x = Counting(), torch.randn(4, 5, dtype=torch.float64)
    proposal = with_prior_as_guide(unfitted(pair, x))
    calls.clear()
    pv.terms(proposal.pair, {"x": x}, 6, layout=proposal.layout)
    assert calls == [(6, 4, 2)]


def test_a_pair_of_two_modules_is_asked_in_evaluation_mode_and_left_as_it_was() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5))

        def forward(self, x: Tensor) -> None:
            assert not self.training or calls == []
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.net(z), 1.0).to_event(1), obs=x)

    class Guide(nn.Module):
        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1))

    calls: list[int] = []
    x = torch.randn(5, 3)
    fitted = unfitted(pv.Pair(Model(), Guide()), x)
    calls.append(1)
    assert torch.isfinite(pv.prior_log_likelihood(fitted, x, 10)).all()
    assert fitted.pair.model.training and fitted.pair.model.net[1].training


@pytest.mark.parametrize("engine", ["eager", "traced"])
def test_chunks_and_traces_draw_from_the_prior_as_well(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    pair = LinearGaussian()
    x = pair.marginal().sample((7,))
    fitted = unfitted(pair, x)
    fitted.settings["engine"] = engine
    monkeypatch.setattr(chunking, "CHUNK_ELEMENTS", 7000)
    monkeypatch.setattr(importance_module, "TRACE_FROM", 2)
    found = pv.importance(with_prior_as_guide(fitted), x, 10_000, seed=0, proposal="guide")
    assert agrees(found, pair.marginal().log_prob(x))  # false alarms 7 x 7e-6


def test_what_cannot_be_asked() -> None:
    pair = LinearGaussian()
    x = torch.randn(4, 5, dtype=torch.float64)
    with pytest.raises(pv.OptionError, match="num_samples"):
        pv.prior_log_likelihood(unfitted(pair, x), x, 0)
    with pytest.raises(pv.DataError, match="NaN"):
        pv.prior_log_likelihood(unfitted(pair, x), torch.full_like(x, float("nan")))


@pytest.mark.parametrize("known", [0, 12, 40])
def test_rows_with_and_without_their_label(known: int) -> None:
    data = {"x": binary(), "y": labels(known=known)}
    fitted = pv.fit(ssvae(), data, epochs=1, batch_size=20, seed=0)
    by_guide = pv.importance(fitted, data, 4000, seed=1, proposal="guide")
    by_prior = pv.importance(with_prior_as_guide(fitted), data, 4000, seed=0, proposal="guide")
    error = (by_guide.standard_error.square() + by_prior.standard_error.square()).sqrt()
    # false alarms 40 x 7e-6
    assert ((by_guide.log_likelihood - by_prior.log_likelihood).abs() < BOUND * error + 1e-3).all()

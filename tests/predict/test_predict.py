"""Generated rows, codes and reconstructions: moments in closed form, and what is drawn, given or refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.comparisons import BOUND
from support.pairs import (
    LinearGaussian,
    linear_gaussian,
    normal,
    ones,
    unfitted,
    zeros,
)
from torch import Tensor, nn

import pyrovae as pv


def assert_moments(x: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Of normal draws (S, D); D + D (D + 1) / 2 numbers at 7e-6 false alarms each."""
    count, variance = len(x), covariance.diagonal()
    assert ((x.mean(0) - mean).abs() < BOUND * (variance / count).sqrt()).all()
    error = ((covariance**2 + variance[:, None] * variance) / count).sqrt()
    assert ((x.T.cov() - covariance).abs() < BOUND * error).all()


def test_generated_moments() -> None:
    pair, _, fitted = linear_gaussian()
    marginal = pair.marginal()
    x = pv.generate(fitted, 20_000, seed=0)
    assert x.shape == (20_000, 5)
    assert_moments(x, marginal.mean, marginal.covariance_matrix)
    joint = pv.simulate(fitted, 20_000, seed=0)
    assert set(joint) == {"z", "x"} and torch.equal(joint["x"], x)
    assert_moments(joint["z"], zeros(2), torch.eye(2, dtype=torch.float64))
    noise = joint["x"] - joint["z"] @ pair.weight.T - pair.bias  # x belongs to the z beside it
    assert_moments(noise, zeros(5), 0.7**2 * torch.eye(5, dtype=torch.float64))
    means = pv.generate(fitted, 20_000, mean=True, seed=0)
    torch.testing.assert_close(means, joint["z"] @ pair.weight.T + pair.bias)


@pytest.mark.parametrize("how", [{}, {"mean": True}, {"each_row": True}])
def test_more_rows_than_memory_are_refused_before_any_is_drawn(how: dict[str, Any]) -> None:
    _, _, fitted = linear_gaussian()
    with pytest.raises(pv.OptionError, match="1000000000000 rows at once are too many: with the 7 numbers of each"):
        pv.generate(fitted, 10**12, **how)
    with pytest.raises(pv.OptionError, match="rows at once are too many"):
        pv.simulate(fitted, 10**30)
    with pytest.raises(pv.OptionError, match="num must be at least 1"):
        pv.generate(fitted, 0, **how)


def test_encode_and_reconstruct() -> None:
    pair, x, fitted = linear_gaussian(shift=0.5, spread=2.0)
    proposal = pair.proposal(x)
    torch.testing.assert_close(pv.encode(fitted, x), proposal.mean, rtol=0, atol=1e-12)
    draws = 2000
    found = pv.reconstruct(fitted, x, num_samples=draws, seed=1)
    wanted = proposal.mean @ pair.weight.T + pair.bias
    spread = (pair.weight @ proposal.covariance_matrix @ pair.weight.T).diagonal(dim1=-2, dim2=-1).sqrt()
    assert ((found - wanted).abs() < BOUND * spread / draws**0.5).all()  # 100 numbers: false alarms 7e-4
    torch.testing.assert_close(pv.decode(fitted, proposal.mean), wanted)


class TwoLevels(nn.Module):
    """z1 = z2 + noise under the guide, so that the mean of z1 is not exact; says how often the guide was run."""

    def __init__(self, softmax_over: int = -1) -> None:
        super().__init__()
        self.net, self.softmax_over, self.runs = nn.Linear(3, 2), softmax_over, 0

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", normal(zeros(2), zeros(2)))
            z1 = pyro.sample("z1", normal(z2, zeros(2)))
            mean = z1.softmax(self.softmax_over).sum(-1, keepdim=True).expand(*z1.shape[:-1], 3)
            pyro.sample("x", normal(mean, zeros(3)), obs=x)

    def guide(self, x: Tensor) -> None:
        self.runs += 1
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", normal(self.net(x), zeros(2)))
            pyro.sample("z1", normal(z2, zeros(2)))


@pytest.mark.slow
def test_many_draws_take_few_runs_and_one_each_where_particles_are_not_kept_apart() -> None:
    x, draws = torch.randn(20, 3), 400
    for pair, at_most in ((TwoLevels(), 8), (TwoLevels(softmax_over=1), draws + 8)):
        fitted = unfitted(pair, x)
        means = pair.net(x)
        for ask in (pv.encode, pv.reconstruct):
            pair.runs = 0
            site = {"site": "z1"} if ask is pv.encode else {}
            if at_most < draws:
                found = ask(fitted, x, **site, num_samples=draws)
            else:
                with pytest.warns(UserWarning, match="one at a time"):
                    found = ask(fitted, x, **site, num_samples=draws)
            assert pair.runs <= at_most
            if ask is pv.encode:  # z1 given z2 has the mean z2, of variance 1: 80 numbers, false alarms 6e-4
                assert ((found - means).abs() < BOUND / draws**0.5).all()


class HeavyTail(nn.Module):
    """z ~ N(0, 1), x | z log-normal, whose mean exp(z + s^2 / 2) overflows where s, a power of |z|, is large."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(zeros(), ones()))
            pyro.sample("x", dist.LogNormal(z, 0.5 * ones() + z.abs() ** 3), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.log(), 1e-9 * ones()))


def test_a_row_without_a_mean_leaves_the_others_theirs() -> None:
    far = torch.tensor([1.0, 1.0, 1e4], dtype=torch.float64)  # z = 9, s = 782: its mean is inf
    fitted = unfitted(HeavyTail(), far[:2])
    found = pv.reconstruct(fitted, far, num_samples=1)
    torch.testing.assert_close(found[:2], torch.full((2,), math.exp(0.125), dtype=torch.float64))
    assert pv.decode(fitted, far.log())[:2].tolist() == pytest.approx([math.exp(0.125)] * 2)


class Undecided(nn.Module):
    """The guide draws z, and says of most z that y = 0 is a little more probable, of the others that y = 1 is sure."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(zeros())

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.tensor([0.5, 0.5], dtype=torch.float64)))
            z = pyro.sample("z", dist.Normal(y + self.loc, ones()))
            pyro.sample("x", dist.Normal(z, ones()), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x, ones()))
            one = torch.where(z > 0.25, 0.99, 0.45)
            pyro.sample("y", dist.Categorical(torch.stack([1 - one, one], -1)), infer={"enumerate": "parallel"})


def test_a_code_that_is_a_class_is_the_most_probable_one_of_all_draws() -> None:
    # P(z > 0.25) = 0.40: q(y = 1) = 0.67, though y = 0 is the more probable class in 60 draws of 100
    x = torch.zeros(4, dtype=torch.float64)
    assert pv.encode(unfitted(Undecided(), x), x, site="y", num_samples=500).tolist() == [1] * 4


class Thresholded(LinearGaussian):
    """What is observed is a function of x, which hides whether x was given."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(zeros(2), 0.0))
            pyro.sample("x", dist.Bernoulli(logits=z @ self.weight.T).to_event(1), obs=(x > 0).double())


def test_a_function_of_the_data_is_not_taken_for_a_draw() -> None:
    fitted = unfitted(Thresholded(), torch.randn(10, 5, dtype=torch.float64))
    for mean in (False, True):
        with pytest.raises(pv.PairError, match="observes a function of what is to be drawn"):
            pv.generate(fitted, 3, mean=mean)


class Reader(LinearGaussian):
    """A model that reads the data it is to generate: its noise grows with |x|."""

    def model(self, x: Tensor) -> None:
        scale = x.abs().mean().log()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(zeros(2), 0.0))
            pyro.sample("x", normal(z @ self.weight.T, scale), obs=x)


class BernoulliReader(Reader):
    """The same with a discrete likelihood, whose sampler refuses NaN by itself."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(zeros(2), 0.0))
            logits = z @ self.weight.T + x.mean()
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


@pytest.mark.parametrize("kind", [Reader, BernoulliReader])
@pytest.mark.parametrize("ask", [pv.generate, pv.simulate])
def test_model_that_reads_its_data(kind: Callable[[], Any], ask: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    x = torch.randn(10, 5, dtype=torch.float64).gt(0).double()
    fitted = unfitted(kind(), x)
    with pytest.raises(pv.PairError, match="argument"):
        ask(fitted, 3)


class Regression(nn.Module):
    """p(x | c) = N(3 c, 0.1^2), with z of no use."""

    def model(self, x: Tensor, c: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(zeros(), ones()))
            pyro.sample("x", dist.Normal(3 * c, 0.1 * ones()), obs=x)

    def guide(self, x: Tensor, c: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(zeros(), ones()))


def test_conditional_generation() -> None:
    batch = {"x": torch.randn(10, dtype=torch.float64), "c": torch.randn(10, dtype=torch.float64)}
    fitted = unfitted(Regression(), batch)
    c = torch.linspace(-2, 2, 1000, dtype=torch.float64)
    x = pv.generate(fitted, 1000, given={"c": c}, seed=0)
    residual = x - 3 * c  # of each row its own c
    assert residual.abs().max() < 0.1 * 6 and abs(residual.std() - 0.1) < BOUND * 0.1 / 2000**0.5
    with pytest.raises(pv.DataError, match="'c', which no site observes: pass it"):
        pv.generate(fitted, 3)
    with pytest.raises(pv.DataError, match="num=3"):
        pv.generate(fitted, 3, given={"c": c})


class GlobalShift(nn.Module):
    """theta ~ N(0, 10^2) for all rows, guide N(5, 0.01^2); z and x of a row stand about theta."""

    def model(self, x: Tensor) -> None:
        theta = pyro.sample("theta", dist.Normal(zeros(), 10 * ones()))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(zeros(), 0.1 * ones()))
            pyro.sample("x", dist.Normal(theta + z, 0.1 * ones()), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.sample("theta", dist.Normal(5 * ones(), 0.01 * ones()))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(zeros(), 0.1 * ones()))


def test_global_latents_come_from_the_guide() -> None:
    # Under the prior a draw of theta is within 0.1 of 5 once in 140 times, 5 times never; under the guide always (10 sd).
    fitted = unfitted(GlobalShift(), torch.randn(10, dtype=torch.float64))
    for seed in range(5):
        joint = pv.simulate(fitted, 400, seed=seed)
        assert abs(joint["theta"] - 5) < 0.1
        assert abs(pv.generate(fitted, 400, seed=seed).mean() - 5) < 0.1 + BOUND * 0.02**0.5 / 20


def test_decode_draws_global_latents_from_the_guide() -> None:
    fitted = unfitted(GlobalShift(), torch.randn(10, dtype=torch.float64))
    assert (pv.decode(fitted, torch.zeros(4, dtype=torch.float64)) - 5).abs().max() < 0.1


def test_predictive_density_with_global_latents() -> None:
    # mean weight of a row = its density with theta ~ q integrated out: N(5, 0.01^2 + 2 x 0.1^2)
    x = torch.tensor([4.9, 5.0, 5.2], dtype=torch.float64)
    fitted = unfitted(GlobalShift(), x)
    found = pv.importance(fitted, x, 20_000, seed=0, proposal="guide")
    closed = dist.Normal(5.0, (0.01**2 + 2 * 0.1**2) ** 0.5).log_prob(x)
    assert ((found.log_likelihood - closed).abs() < BOUND * found.standard_error).all()


def test_what_is_derived_from_a_given_argument_stays_given() -> None:
    """obs=y * 1.0: another tensor than the argument, yet made of it alone."""

    class Derived(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def model(self, x: Tensor, y: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                y = pyro.sample("y", dist.Normal(z, 1.0), obs=y * 1.0)
                pyro.sample("x", dist.Normal(10 * y, self.scale), obs=x)

        def guide(self, x: Tensor, y: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(0.0, self.scale))

    data = {"x": torch.randn(20), "y": torch.randn(20)}
    fitted = pv.fit(Derived(), data, epochs=1, batch_size=20, learning_rate=1e-6)
    made = pv.generate(fitted, 500, given={"y": torch.full((500,), 3.0)}, site="x", seed=0)
    assert abs(made.mean().item() - 30.0) < 0.25  # 5 standard errors


def test_marks_of_the_model_are_kept() -> None:
    """objective_only on a site that the guide draws: the objective counts it, the evaluator's fold does not."""

    class Marked(nn.Module):
        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(0.0, 1.0), infer={"objective_only": True})
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(3.0, 1.0))

    x = torch.randn(5)
    found = pv.terms(Marked(), {"x": x})
    assert torch.allclose(pv.log_weights(found)[0], dist.Normal(0.0, 1.0).log_prob(x))


def test_deterministic_sites_are_no_observations() -> None:
    class Noted(nn.Module):
        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.deterministic("twice", 2 * z)
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(0.0, 1.0))

    assert [s.name for s in pv.check_pair(Noted(), torch.randn(4)).sites] == ["z", "x"]


def test_a_class_that_is_needed_must_be_given() -> None:
    """An integer stand-in would pass for class 0."""

    class OfClass(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(3))

        def model(self, x: Tensor, c: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(self.loc[c] + z, 1.0), obs=x)

        def guide(self, x: Tensor, c: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.loc[c], 1.0))

    fitted = pv.fit(OfClass(), {"x": torch.randn(30), "c": torch.arange(30) % 3}, epochs=1, batch_size=30)
    with pytest.raises(pv.DataError, match="'c', which no site observes"):
        pv.generate(fitted, 5)
    assert pv.generate(fitted, 6, given={"c": torch.arange(6) % 3}).shape == (6,)
    with pytest.raises(pv.DataError, match="int64"):
        pv.generate(fitted, 6, given={"c": torch.zeros(6)})


def test_two_halves_of_one_tensor_are_two_arguments() -> None:
    class Both(nn.Module):
        def model(self, x: Tensor, y: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)
                pyro.sample("y", dist.Normal(z, 1.0), obs=y)

        def guide(self, x: Tensor, y: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(0.0, 1.0))

    whole = torch.randn(2, 10)
    layout = pv.check_pair(Both(), {"x": whole[0], "y": whole[1]})
    assert {s.name: s.argument for s in layout.sites if s.role == "observed"} == {"x": "x", "y": "y"}


class Sized(nn.Module):
    """Rows of a group, and of a size that the likelihood multiplies by: two arguments that no site observes."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(3))

    def model(self, x: Tensor, group: Tensor, size: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.loc[group], 1.0))
            pyro.sample("x", dist.Poisson(size * z.exp()), obs=x)

    def guide(self, x: Tensor, group: Tensor, size: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc[group], 1.0))


class SizedNormal(Sized):
    """The same with a likelihood whose sampler takes NaN, so that it shows in what is drawn."""

    def model(self, x: Tensor, group: Tensor, size: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.loc[group], 1.0))
            with pyro.validation_enabled(False):
                pyro.sample("x", dist.Normal(size * z, 1.0, validate_args=False), obs=x)


@pytest.mark.parametrize("kind", [Sized, SizedNormal])
@pytest.mark.parametrize("ask", [pv.generate, pv.simulate])
def test_all_arguments_that_no_site_observes_are_asked_for(kind: type[Sized], ask: Callable[..., Any]) -> None:
    rows = {"x": torch.ones(30), "group": torch.arange(30) % 3, "size": torch.ones(30)}
    fitted = pv.fit(kind(), rows, epochs=1, engine="eager", progress=False)
    with pytest.raises(
        pv.DataError, match=r"'group' and 'size', which no site observes: pass them, given={'group': ..., 'si"
    ):
        ask(fitted, 3)
    with pytest.raises(pv.DataError, match=r"'size', which no site observes: pass it, given={'size': ...}"):
        ask(fitted, 3, given={"group": torch.arange(3)})
    with pytest.raises(pv.DataError, match=r"'group', which no site observes: pass it"):
        ask(fitted, 3, given={"size": torch.ones(3)})
    ask(fitted, 3, given={"group": torch.arange(3), "size": torch.ones(3)})


def test_a_plate_of_a_number_of_its_own_is_told_when_other_rows_are_drawn() -> None:
    class Fixed(Sized):
        def model(self, x: Tensor) -> None:  # type: ignore[override]
            with pyro.plate("data", 30, subsample_size=len(x)):
                z = pyro.sample("z", dist.Normal(self.loc.sum(), 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(self, x: Tensor) -> None:  # type: ignore[override]
            with pyro.plate("data", 30, subsample_size=len(x)):
                pyro.sample("z", dist.Normal(self.loc.sum(), 1.0))

    fitted = pv.fit(Fixed(), torch.ones(30), epochs=1, engine="eager", progress=False)
    with pytest.raises(
        pv.PairError, match=r"a number of rows of its own, and these are 40 .*plate\('data', len\(x\)\)"
    ):
        pv.generate(fitted, 40)

"""Sequences: a linear chain with Normal noise, whose every probability is that of one Normal, and chains of other lengths."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from support.pairs import unfitted
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.criticism import proposals
from pyrovae.distributions import MarkovChain, normal_where
from pyrovae.errors import DataError

NAN = float("nan")
T, A, Q, B, R = 4, 0.9, 0.5, 1.3, 0.4  # z_t = A z_(t-1) + Q e, x_t = B z_t + R e


class Step(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(A, dtype=torch.float64))

    def forward(self, z: Tensor, *others: Tensor) -> Any:
        return dist.Normal(self.slope * z, Q).to_event(1)


class Seen(nn.Module):
    def forward(self, z: Tensor) -> Any:
        return dist.Normal(B * z, R).to_event(1)


class Reader(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.nan_to_num(0.0)


def linear() -> pv.DeepMarkovVAE:
    prior = dist.Normal(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)).to_event(1)
    return pv.DeepMarkovVAE(prior, Step(), Seen(), Reader(), Step())


def covariances() -> tuple[Tensor, Tensor]:
    """Of z_1, ..., z_T, and of x_1, ..., x_T."""
    of_z = torch.zeros(T, T, dtype=torch.float64)
    variance = 1.0
    for t in range(T):
        variance = 1.0 if t == 0 else A**2 * variance + Q**2
        for s in range(t, T):
            of_z[t, s] = of_z[s, t] = variance * A ** (s - t)
    return of_z, B**2 * of_z + R**2 * torch.eye(T)


def sequences() -> Tensor:
    """Six sequences: two whole, one of two steps, one with a gap, one that begins late, one of which nothing is known."""
    x = torch.distributions.MultivariateNormal(torch.zeros(T).double(), covariances()[1]).sample((6,))[..., None]
    x[2, 2:], x[3, 1:3], x[4, :2], x[5] = NAN, NAN, NAN, NAN
    return x


def true_log_p(x: Tensor) -> Tensor:
    found = []
    for row in x[..., 0]:
        here = ~row.isnan()
        if not bool(here.any()):
            found.append(row.new_zeros(()))
            continue
        own = covariances()[1][here][:, here]
        found.append(torch.distributions.MultivariateNormal(row.new_zeros(len(own)), own).log_prob(row[here]))
    return torch.stack(found)


def test_the_density_of_a_chain_is_that_of_its_steps_one_by_one() -> None:
    torch.manual_seed(0)
    pair = linear()
    chain = MarkovChain(pair.initial(), lambda z, t: pair.transition(z), T).expand((3,))
    z = chain.rsample((5,))
    assert z.shape == (5, 3, T, 1) and chain.batch_shape == (3,) and chain.event_shape == (T, 1)
    joint = torch.distributions.MultivariateNormal(torch.zeros(T).double(), covariances()[0])
    assert torch.allclose(chain.log_prob(z), joint.log_prob(z[..., 0]))
    many = chain.sample((20_000,))[:, :, :, 0].reshape(-1, T)
    error = 6 * 2 * covariances()[0].max() / len(many) ** 0.5  # false alarms: fewer than 1 in 10^8
    assert torch.allclose(many.T.cov(), covariances()[0], atol=float(error))
    assert not many.requires_grad and z.requires_grad


def test_log_p_of_sequences_of_all_lengths_and_with_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    """By proposals around the mode, from a guide that knows nothing of x; within five of the stated errors."""
    monkeypatch.setattr(proposals, "MODE_STEPS", 100)  # as many as users have: the mode is far from the guide
    torch.manual_seed(1)
    x = sequences()
    found = pv.importance(unfitted(linear(), {"x": x}), {"x": x}, 2000, proposal="laplace", seed=0)
    error = 5 * found.standard_error + 1e-6
    assert bool(((found.log_likelihood - true_log_p(x)).abs() < error).all())
    assert bool((found.standard_error < 0.05).all())


@pytest.mark.parametrize("length", [1, 2])
def test_what_follows_a_sequence_costs_nothing(length: int) -> None:
    """After its last step guide and model have the same density, so that log p - log q is that of the sequence alone."""
    torch.manual_seed(2)
    pair = pv.DeepMarkovVAE.of_sequences(fam.Normal(3), latent=2, hidden=8, width=8).double()
    x = torch.randn(4, 3, 3, dtype=torch.float64)
    x[:, length:] = NAN
    z = torch.randn(4, 3, 2, dtype=torch.float64)
    with torch.no_grad():
        sides = [
            poutine.trace(poutine.condition(side, {"z": z})).get_trace(x=x).nodes["z"]["fn"]
            for side in (pair.model, pair.guide)
        ]
        following = MarkovChain(sides[0].initial, sides[0].transition, length).log_prob(z[:, :length])
        after = sides[0].log_prob(z) - following
        whole = sides[1].log_prob(z)
        start = sides[1].initial.log_prob(z[:, 0])
        for t in range(1, length):
            start = start + sides[1].transition(z[:, t - 1], t).log_prob(z[:, t])
    assert torch.allclose(whole - start, after) and bool((after != 0).all())


def test_what_is_no_chain() -> None:
    flat = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    with pytest.raises(pv.PairError, match=r"num_steps=0 and event_shape \(2,\)"):
        MarkovChain(flat, lambda z, t: flat, 0)
    with pytest.raises(pv.PairError, match="num_steps=2.5"):
        MarkovChain(flat, lambda z, t: flat, 2.5)  # type: ignore[arg-type]
    with pytest.raises(pv.PairError, match=r"event_shape \(\)"):
        MarkovChain(dist.Normal(torch.zeros(2), 1.0), lambda z, t: flat, 3)
    with pytest.raises(pv.PairError, match=r"normal_where needs Normals.*Laplace \(2,\)"):
        normal_where(torch.tensor(True), flat, dist.Laplace(torch.zeros(2), 1.0).to_event(1))


def test_a_transition_of_another_kind_than_the_initial_distribution() -> None:
    """A transition without `.to_event(1)` would give a density for each dimension, in the place of rows where sizes agree."""
    flat, z = dist.Normal(torch.zeros(4, 2), 1.0).to_event(1), torch.randn(4, 5, 2)
    bare = MarkovChain(flat, lambda z, t: dist.Normal(z, 1.0), 5)
    discrete = MarkovChain(flat, lambda z, t: dist.Bernoulli(torch.full_like(z, 0.5)).to_event(1), 5)
    for chain, said in ((bare, r"event_shape \(\), and its initial"), (discrete, "has_rsample is True and False")):
        with pytest.raises(pv.PairError, match=said):
            chain.log_prob(z)
        with pytest.raises(pv.PairError, match=said):
            chain.sample()


def test_a_chain_of_classes_and_one_of_positive_numbers() -> None:
    torch.manual_seed(0)
    start = dist.Bernoulli(torch.full((1,), 0.2)).to_event(1)
    chain = MarkovChain(start, lambda z, t: dist.Bernoulli(0.1 + 0.8 * z).to_event(1), 2)
    draws = chain.sample((20_000,))[..., 0]
    assert not chain.has_rsample
    error = 5 * 0.5 / 20_000**0.5  # false alarms: fewer than 1 in 10^6
    assert abs(draws[:, 1].mean().item() - (0.2 * 0.9 + 0.8 * 0.1)) < error
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 2)[..., None]
    assert chain.log_prob(every).exp().sum().item() == pytest.approx(1.0)
    positive = dist.LogNormal(torch.zeros(1), 1.0).to_event(1)
    walk = MarkovChain(positive, lambda z, t: dist.LogNormal(z.log(), 1.0).to_event(1), 3)
    assert bool(walk.support.check(walk.rsample((9,))).all()) and not bool(walk.support.check(-torch.ones(3, 1)))


def test_what_follows_a_sequence_does_not_change_what_the_network_says_of_it() -> None:
    torch.manual_seed(0)
    net, x = pv.nets.BackwardGRU(2, 5), torch.randn(3, 4, 2)
    x[1, 2:], x[2, 1] = NAN, NAN
    longer = torch.cat([x, torch.full((3, 3, 2), NAN)], 1)
    assert torch.equal(net(longer)[:, :4], net(x)) and not bool(net(longer)[:, 4:].any())
    shorter = net(x[1:2, :2])
    torch.testing.assert_close(net(x)[1:2, :2], shorter)


def test_steps_that_are_no_vectors() -> None:
    with pytest.raises(pv.OptionError, match=r"has the event shape \(2, 3\)"):
        pv.DeepMarkovVAE.of_sequences(fam.Bernoulli((2, 3)), latent=2)


def test_a_network_reads_from_the_end() -> None:
    """What stands before a step does not change what is known from it on, and a gap is not a zero."""
    torch.manual_seed(0)
    net = pv.nets.BackwardGRU(2, 5)
    x = torch.randn(3, 4, 2)
    other = x.clone()
    other[:, 1] += 1
    assert torch.equal(net(x)[:, 2:], net(other)[:, 2:])
    assert not torch.allclose(net(x)[:, :2], net(other)[:, :2])
    zero, gap = x.clone(), x.clone()
    zero[:, 2], gap[:, 2] = 0, NAN
    assert torch.isfinite(net(gap)).all() and not torch.allclose(net(zero)[:, 2], net(gap)[:, 2])


def test_a_shorter_sequence_is_told_how_to_become_as_long() -> None:
    pair = pv.DeepMarkovVAE.of_sequences(fam.Normal(2), latent=1, hidden=4, width=4)
    fitted = pv.fit(pair, torch.randn(20, 5, 2), epochs=1, engine="eager", progress=False, seed=0)
    with pytest.raises(DataError, match="fill up those of fewer than 5 steps with NaN"):
        pv.encode(fitted, torch.randn(4, 3, 2))
    filled = torch.cat([torch.randn(4, 3, 2), torch.full((4, 2, 2), torch.nan)], 1)
    assert pv.encode(fitted, filled).shape == (4, 5, 1)

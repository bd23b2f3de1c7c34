"""Distributions over codes: probabilities that sum to 1, one place after another, and the vectors that codes stand for."""

import itertools
from typing import Any

import pytest
import scipy.stats
import torch

from pyrovae.distributions import Autoregressive, Codes
from pyrovae.errors import OptionError
from pyrovae.nets import FSQ, CausalTransformer
from pyrovae.priors import Autoregressive as Prior
from pyrovae.priors import Categorical

# A right sampler fails once in 10,000 seeds, and seeds are fixed.
FALSE_ALARM = 1e-4


def shaken(classes: int = 3, length: int = 4) -> CausalTransformer:
    """A transformer whose logits are far from equal."""
    net = CausalTransformer(classes, length, width=8, layers=2, heads=2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return net


def test_probabilities_of_all_arrays_sum_to_1_and_are_products_of_conditionals() -> None:
    net = shaken()
    every = torch.tensor(list(itertools.product(range(3), repeat=4)))
    log_p = Autoregressive(net, 3, (2, 2)).log_prob(every.reshape(-1, 2, 2))
    torch.testing.assert_close(log_p.exp().sum(), torch.tensor(1.0))
    assert log_p.std() > 0.3
    one = torch.zeros(len(every))
    for i in range(4):  # the conditional of place i, from what is before it alone
        one += net(every[:, : i + 1])[:, i].log_softmax(-1)[torch.arange(len(every)), every[:, i]]
    torch.testing.assert_close(log_p, one)


def test_a_place_does_not_depend_on_itself_and_those_after_it() -> None:
    net, k = shaken(), torch.tensor([[0, 1, 2, 0]])
    for i in range(4):
        other = k.clone()
        other[:, i:] = (other[:, i:] + 1) % 3
        same, changed = net(k), net(other)
        torch.testing.assert_close(same[:, : i + 1], changed[:, : i + 1])
        assert i == 3 or not torch.allclose(same[:, i + 1], changed[:, i + 1])


def test_draws_have_these_probabilities() -> None:
    p = Autoregressive(shaken(2, 3), 2, (3,))
    k = p.sample((4000,))
    every = torch.tensor(list(itertools.product(range(2), repeat=3)))
    counts = (k[:, None] == every).all(-1).sum(0)
    expected = 4000 * p.log_prob(every).exp().detach().double()
    assert scipy.stats.chisquare(counts, expected * 4000 / expected.sum()).pvalue > FALSE_ALARM


def test_batches_and_values_outside() -> None:
    p = Autoregressive(shaken(), 3, (2, 2)).expand((5,))
    assert p.sample((7,)).shape == (7, 5, 2, 2)
    k = torch.randint(3, (5, 2, 2))
    assert p.log_prob(k).shape == (5,) and p.log_prob(k[:1]).shape == (5,)
    k[0, 1, 1], k[1, 0, 0] = 3, -1
    assert (p.log_prob(k) == -torch.inf).tolist() == [True, True, False, False, False]
    assert p.support.check(k).tolist() == [False, False, True, True, True]


def test_a_prior_starts_uniform() -> None:
    p = Prior(5, (2, 3), width=8, layers=1, heads=2)()
    k = p.sample((4,))
    torch.testing.assert_close(p.log_prob(k), torch.full((4,), -6 * torch.tensor(5.0).log().item()))
    with pytest.raises(OptionError, match="heads that divide width=8, got heads=3"):
        Prior(5, 2, width=8, heads=3)


@pytest.mark.parametrize("prior", [Categorical(12, learned=True, event_shape=3), Prior(12, 3, width=8, heads=2)])
def test_codes_have_the_probability_of_their_numbers(prior: Any) -> None:
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    quantiser = FSQ((4, 3), grid=3)
    p = Codes(prior(), quantiser).expand((5,))
    z = p.sample((2,))
    assert z.shape == (2, 5, 2, 3) and p.event_shape == (2, 3) and not p.has_rsample
    assert torch.equal(p.log_prob(z), prior().log_prob(quantiser.indices(z)).expand(2, 5))
    assert p.support.check(z).all() and p.support.is_discrete
    before = p.log_prob(z)
    z[0, 3, 1, 2] += 0.2
    assert p.support.check(z).sum() == 9 and not p.support.check(z)[0, 3]
    assert torch.equal(p.log_prob(z), before)

"""Families of codes: one-hot and relaxed draws, their masses at and between codes, and what they are in evaluation mode."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from torch import Tensor
from torch.distributions import kl_divergence

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.errors import OptionError, ShapeError
from pyrovae.fitted.spec import from_spec, to_spec

FALSE_ALARM = 1e-4
CATEGORIES: dict[str, Any] = {
    "exact": fam.OneHotCategorical,
    "relaxed": fam.RelaxedOneHotCategorical,
    "hard": lambda event: fam.RelaxedOneHotCategorical(event, temperature=0.3, hard=True),
    "straight-through": fam.StraightThroughOneHotCategorical,
}
BITS: dict[str, Any] = {
    "exact": fam.Bernoulli,
    "relaxed": fam.RelaxedBernoulli,
    "hard": lambda event: fam.RelaxedBernoulli(event, temperature=0.3, hard=True),
    "straight-through": fam.StraightThroughBernoulli,
}
every_kind = pytest.mark.parametrize("kind", CATEGORIES)
gradient_kinds = pytest.mark.parametrize("kind", ["relaxed", "hard", "straight-through"])


def params_of(family: fam.Family, batch: tuple[int, ...] = ()) -> Tensor:
    return torch.randn(*batch, *family.param_shape, dtype=torch.float64)


def test_every_family_of_codes_is_here() -> None:
    made = {type(build(3)) for build in (*CATEGORIES.values(), *BITS.values())} - {fam.Bernoulli}
    assert made == {c for c in vars(fam).values() if getattr(c, "__module__", "") == "pyrovae.families.codes"}


@every_kind
@pytest.mark.parametrize("event", [(3,), (2, 3), (2, 2, 3)], ids=str)
@pytest.mark.parametrize("batch", [(), (4,), (5, 4)], ids=str)
def test_shapes_and_the_mass_of_codes(kind: str, event: tuple[int, ...], batch: tuple[int, ...]) -> None:
    family = CATEGORIES[kind](event).double()
    params = params_of(family, batch)
    q = family(params)
    assert (q.batch_shape, q.event_shape, family.event_shape) == (batch, event, event)
    z = q.expand((7, *batch)).sample()
    assert z.shape == (7, *batch, *event) and q.sample((7,)).shape == z.shape and z.dtype == torch.float64
    torch.testing.assert_close(z.sum(-1), torch.ones(7, *batch, *event[:-1], dtype=torch.float64))
    by_hand = (z.numpy() * scipy.special.log_softmax(params.numpy(), -1)).reshape(7, *batch, -1).sum(-1)
    np.testing.assert_allclose(q.log_prob(z), by_hand, rtol=1e-10)
    assert bool(q.support.check(z).all())


@every_kind
def test_draws_have_the_probabilities_of_the_logits(kind: str) -> None:
    """The largest of the numbers of a draw is a draw of the category, relaxed or not."""
    family = CATEGORIES[kind]((2, 4))
    params = params_of(family).float()
    found = family(params).sample((4000,)).argmax(-1)
    for code in range(2):
        observed = np.bincount(found[:, code].numpy(), minlength=4)
        expected = 4000 * params[code].double().softmax(-1).numpy()
        assert scipy.stats.chisquare(observed, expected * 4000 / expected.sum()).pvalue > FALSE_ALARM


@pytest.mark.parametrize("kind", BITS)
def test_draws_of_bits_have_the_probabilities_of_the_logits(kind: str) -> None:
    family = BITS[kind](3)
    params = params_of(family).float()
    found = (family(params).sample((4000,)) > 0.5).double().mean(0)
    for share, p in zip(found.tolist(), params[0].double().sigmoid().tolist()):
        assert scipy.stats.binomtest(round(4000 * share), 4000, p).pvalue > FALSE_ALARM


def test_relaxed_draws_are_those_of_the_concrete_density() -> None:
    """Of two categories: the logit of z_0 is `(l_0 - l_1 + logistic noise) / t`, for codes and for bits."""
    one = fam.RelaxedOneHotCategorical(2, temperature=0.7)(torch.tensor([0.4, -0.5])).sample((4000,))[:, 0]
    two = fam.RelaxedBernoulli((), temperature=0.7)(torch.tensor([0.9])).sample((4000,))
    for z in (one, two):
        found = scipy.special.logit(np.clip(z.double().numpy(), 1e-12, 1 - 1e-7))
        assert scipy.stats.kstest(found, scipy.stats.logistic(0.9 / 0.7, 1 / 0.7).cdf).pvalue > FALSE_ALARM


@gradient_kinds
@pytest.mark.parametrize("table", [CATEGORIES, BITS], ids=["codes", "bits"])
def test_in_evaluation_mode_it_is_the_exact_family(table: dict[str, Any], kind: str) -> None:
    family, exact = table[kind]((2, 3)), table["exact"]((2, 3))
    params = params_of(exact, (5,)).float()
    relaxed = family(params)
    assert relaxed.has_rsample and family.train().training
    q, same = family.eval()(params), exact(params)
    assert (
        not q.has_rsample
        and type(q) is type(same)
        and type(getattr(q, "base_dist", q)) is type(getattr(same, "base_dist", same))
    )
    z = q.sample()
    assert set(z.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(q.log_prob(z), same.log_prob(z)) and torch.equal(relaxed.log_prob(z), same.log_prob(z))


@gradient_kinds
@pytest.mark.parametrize("table", [CATEGORIES, BITS], ids=["codes", "bits"])
def test_a_draw_is_what_its_name_says_and_has_a_gradient(table: dict[str, Any], kind: str) -> None:
    family = table[kind]((2, 3))
    params = params_of(family, (50,)).float().requires_grad_()
    z = family(params).rsample()
    values = set(z.detach().unique().tolist())
    assert len(values) > 50 if kind == "relaxed" else values == {0.0, 1.0}
    weights = torch.randn_like(z)
    (found,) = torch.autograd.grad((weights * z).sum(), params)
    assert found.isfinite().all() and found.flatten(1).any(1).all()
    if kind == "straight-through":
        dim = -1 if table is CATEGORIES else None
        probs = params.softmax(dim) if dim else params.squeeze(1).sigmoid()
        (by_hand,) = torch.autograd.grad((weights * probs).sum(), params)
        torch.testing.assert_close(found, by_hand)


@pytest.mark.parametrize("table", [CATEGORIES, BITS], ids=["codes", "bits"])
def test_hard_draws_have_the_gradient_of_the_relaxed_ones(table: dict[str, Any]) -> None:
    build = fam.RelaxedOneHotCategorical if table is CATEGORIES else fam.RelaxedBernoulli
    soft, hard = build((2, 3), 0.3), table["hard"]((2, 3))
    params = params_of(soft, (5,)).float().requires_grad_()
    weights, found = torch.randn(5, 2, 3), []
    for family in (soft, hard):
        torch.manual_seed(1)
        z = family(params).rsample()
        found.append((z, torch.autograd.grad((weights * z).sum(), params)[0]))
    assert torch.equal(found[0][1], found[1][1])
    nearest = found[0][0].argmax(-1) if table is CATEGORIES else found[0][0].round()
    assert torch.equal(nearest, found[1][0].argmax(-1) if table is CATEGORIES else found[1][0])


@every_kind
def test_masses_are_linear_between_codes_and_the_divergence_is_the_categorical_one(kind: str) -> None:
    family = CATEGORIES[kind]((2, 3)).double()
    q, p = family(params_of(family, (4,))), fam.OneHotCategorical((2, 3))(params_of(family))
    codes = torch.stack([torch.eye(3, dtype=torch.float64)[list(k)] for k in itertools.product(range(3), repeat=2)])
    masses = p.log_prob(codes).exp()
    torch.testing.assert_close(masses.sum(), masses.new_ones(()))
    share = torch.rand(9, dtype=torch.float64).softmax(-1)
    between = (share[:, None, None] * codes).sum(0)
    torch.testing.assert_close(p.log_prob(between), (share * p.log_prob(codes)).sum())
    log_q = q.log_prob(codes[:, None])
    by_hand = (log_q.exp() * (log_q - p.log_prob(codes[:, None]))).sum(0)
    torch.testing.assert_close(kl_divergence(q, p), by_hand)
    torch.testing.assert_close(fam.OneHotCategorical((2, 3))(q.logits).entropy(), -(log_q.exp() * log_q).sum(0))


def test_all_values_are_listed_where_they_are_few() -> None:
    p = fam.OneHotCategorical((2, 2, 3))(torch.randn(5, 2, 2, 3))
    for expand, batch in ((False, 1), (True, 5)):
        values = p.enumerate_support(expand)
        assert values.shape == (81, batch, 2, 2, 3) and len(values[:, 0].flatten(1).unique(dim=0)) == 81
    torch.testing.assert_close(p.log_prob(p.enumerate_support(False)).logsumexp(0), torch.zeros(5))
    assert not fam.OneHotCategorical((20, 10))(torch.zeros(20, 10)).has_enumerate_support
    assert not fam.RelaxedOneHotCategorical((2, 3))(torch.zeros(2, 3)).has_enumerate_support


def test_extreme_logits_are_finite() -> None:
    """A category that cannot occur has no mass, and a one-hot code without it is not affected."""
    logits = torch.tensor([[0.0, -math.inf, 1e4], [-1e4, 0.0, 1.0]], requires_grad=True)
    p = fam.OneHotCategorical((2, 3))(logits)
    z = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    assert p.log_prob(z).isfinite() and p.log_prob(z) > -2
    assert p.log_prob(torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])).exp().eq(0)
    for t in (1e-3, 1e3):
        drawn = fam.RelaxedOneHotCategorical((2, 3), t)(logits).rsample((1000,))
        assert drawn.isfinite().all() and drawn[:, 0, 1].max().eq(0)
        (gradient,) = torch.autograd.grad(drawn.square().sum(), logits)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("build", [fam.RelaxedOneHotCategorical, fam.RelaxedBernoulli])
@pytest.mark.parametrize("temperature", [0, -1.0, math.inf, math.nan, True, "1"], ids=str)
def test_temperatures_are_positive(build: Any, temperature: Any) -> None:
    with pytest.raises(OptionError, match="temperature of .* must be a positive number"):
        build(3, temperature)


@every_kind
def test_shapes_without_categories_are_refused(kind: str) -> None:
    for event in ((), (3, 1), 1):
        with pytest.raises(ShapeError, match="last number is that of the categories"):
            CATEGORIES[kind](event)
    with pytest.raises(ShapeError, match=r"needs parameters of shape \(\*batch, 2, 3\), got \(3, 2\)"):
        CATEGORIES[kind]((2, 3))(torch.zeros(3, 2))


@gradient_kinds
@pytest.mark.parametrize("table", [CATEGORIES, BITS], ids=["codes", "bits"])
def test_is_rebuilt_with_its_temperature(table: dict[str, Any], kind: str) -> None:
    family = table[kind]((2, 3))
    if hasattr(family, "current_temperature"):
        family.current_temperature.fill_(0.125)
    again: Any = from_spec(to_spec(family))
    again.load_state_dict(family.state_dict())
    assert repr(again) == repr(family)
    params = params_of(family).float()
    draws = []
    for one in (family, again):
        torch.manual_seed(3)
        draws.append(one(params).rsample())
    assert torch.equal(*draws)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(("build", "even"), [(pv.priors.OneHotCategorical, 1 / 3), (pv.priors.Bernoulli, 1 / 2)])
def test_priors_of_codes_and_bits(build: Any, even: float, learned: bool) -> None:
    prior = build((2, 3), learned=learned)
    assert len(list(prior.parameters())) == len(prior.state_dict()) == learned and prior.event_shape == (2, 3)
    torch.testing.assert_close(prior().mean, torch.full((2, 3), even))
    again: Any = from_spec(to_spec(prior))
    with torch.no_grad():
        prior.logits.add_(torch.randn(2, 3))
    z = prior().sample((5,))
    assert z.shape == (5, 2, 3) and prior().log_prob(z).shape == (5,)
    if learned:
        again.load_state_dict(prior.state_dict())
        assert torch.equal(again().log_prob(z), prior().log_prob(z))
        (gradient,) = torch.autograd.grad(prior().log_prob(z).sum(), prior.logits)
        torch.testing.assert_close(gradient, (z - prior().mean).sum(0))
    between = torch.full((2, 3), even)  # a relaxed draw, whatever Pyro validates
    assert prior().log_prob(between).isfinite()
    with pytest.raises(ShapeError):
        build((2, 0))

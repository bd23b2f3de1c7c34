"""The mixture over subsets of experts: its density by quadrature, what it is where experts have seen nothing, its gradient."""

from __future__ import annotations

import itertools
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.distributions import MixtureOfProducts, ProductOfExperts, product_of_experts

GRID = torch.linspace(-25, 25, 5001, dtype=torch.float64)
SEEN = torch.tensor(
    list(itertools.product([True, False], repeat=3))
)  # eight rows: all that three experts may have seen


def experts(rows: int = 8, size: int = 1) -> list[Any]:
    """A prior, which is the same for all rows, and three experts."""
    torch.manual_seed(0)
    kind: Any = {"dtype": torch.float64}
    made = [dist.Normal(torch.zeros(size, **kind), 2.0).to_event(1)]
    for _ in range(3):
        loc, scale = (2 * torch.randn(rows, size, **kind)).requires_grad_(), torch.rand(rows, size, **kind) + 0.4
        made.append(dist.Normal(loc, scale).to_event(1))
    return made


def seen(rows: Tensor = SEEN) -> list[Tensor | None]:
    return [None, *rows.unbind(1)]


def test_the_density_is_the_mean_over_subsets_of_products_normalised_by_quadrature() -> None:
    """Each product is normalised on a grid, not by a formula; the whole integrates to one for whatever was seen."""
    q = MixtureOfProducts()(experts(), seen())
    density = q.log_prob(GRID[:, None, None]).exp()  # (points, rows)
    assert torch.allclose(torch.trapezoid(density, GRID, dim=0), torch.ones(8).double(), atol=1e-9)
    heights = [one.log_prob(GRID[:, None, None]).exp().expand(-1, 8) for one in experts()]
    for row, known in enumerate(SEEN.tolist()):
        there = [i + 1 for i in range(3) if known[i]]
        subsets = [s for n in range(1, 4) for s in itertools.combinations(there, n)] or [()]
        assert len(subsets) == max(1, 2 ** len(there) - 1)
        mixture = torch.zeros_like(GRID)
        for subset in subsets:
            product = heights[0][:, row].clone()
            for number in subset:
                product = product * heights[number][:, row]
            mixture += product / torch.trapezoid(product, GRID) / len(subsets)
        assert torch.allclose(density[:, row], mixture, atol=1e-9)


def test_it_is_the_product_where_one_expert_has_seen_something_and_the_prior_where_none_has() -> None:
    few = SEEN[SEEN.sum(1) < 2]
    q, product = (joint(experts(4, 3), seen(few)) for joint in (MixtureOfProducts(), ProductOfExperts()))
    z = torch.randn(20, 4, 3, dtype=torch.float64)
    assert torch.allclose(q.log_prob(z), product.log_prob(z))
    assert torch.allclose(q.mean, product.mean) and torch.allclose(q.variance, product.variance)
    prior = experts(4, 3)[0]
    assert torch.allclose(q.log_prob(z)[:, -1], prior.log_prob(z[:, -1]))
    alone = MixtureOfProducts()([prior])
    assert torch.allclose(alone.log_prob(z), prior.log_prob(z))
    assert torch.allclose(product.mean, product_of_experts(experts(4, 3), seen(few)).mean)


def test_without_a_prior_the_mixture_has_no_empty_product() -> None:
    """Two experts alone: q_1, q_2 and their product."""
    one, two = experts(1)[1:3]
    q = MixtureOfProducts()([one, two], [torch.tensor([True]), torch.tensor([True])])
    both = product_of_experts([one, two])
    by_hand = (
        torch.stack([p.log_prob(GRID[:, None, None]) for p in (one, two, both)]).logsumexp(0) - torch.tensor(3.0).log()
    )
    assert torch.allclose(q.log_prob(GRID[:, None, None]), by_hand)


def test_draws_have_the_moments_and_the_gradient_of_the_mixture() -> None:
    """d E[z^2] / d m of each expert, by draws and from the moments. False alarms: 1 in 5,000."""
    made = experts()
    parameters = [one.base_dist.loc for one in made[1:]]
    q = MixtureOfProducts()(made, seen())
    second = q.variance + q.mean.square()
    true = torch.autograd.grad(second.sum(), parameters, retain_graph=True)
    torch.manual_seed(1)
    squares, found = [], []
    for _ in range(40):
        squares.append(q.rsample((100,)).square().squeeze(-1).mean(0))  # (rows,)
        found.append([g[:, 0] for g in torch.autograd.grad(squares[-1].sum(), parameters, retain_graph=True)])
    square = torch.stack(squares)
    assert bool(((square.mean(0) - second[:, 0]).abs() < 5.2 * square.std(0) / 40**0.5).all())
    for number, wanted in enumerate(true):
        each = torch.stack([one[number] for one in found])  # (40, rows)
        assert torch.equal(each[:, ~SEEN[:, number]], torch.zeros_like(each[:, ~SEEN[:, number]]))
        assert bool(((each.mean(0) - wanted[:, 0]).abs() <= 5.2 * each.std(0) / 40**0.5 + 1e-12).all())


@pytest.mark.parametrize(
    ("given", "rows", "said"),
    [
        ([], None, "got none"),
        (experts(2)[1:3], [None], "2 experts need as many entries of `seen`, got 1"),
        ([dist.Laplace(torch.zeros(1), 1.0).to_event(1)], None, r"Laplace \(1,\)"),
        ([dist.Normal(torch.zeros(3), 1.0)], None, r"experts of vectors, got event_shape \(\)"),
        ([*experts(2)[:2], torch.zeros(2, 1)], None, r"Normal \(1,\) and Normal \(1,\) and Tensor\."),
        (experts(2)[0], None, r"needs a list of experts, got Independent: write \[prior, expert\]"),
        (experts(2)[:2], [None, [True, False]], "needs a tensor for each entry of `seen`, .* got list for expert 1"),
        (experts(2)[:2], [None, torch.tensor([0.5, 1.0])], "give booleans as `seen`"),
        (experts(2)[:2], [None, torch.ones(3) > 0], r"for the same rows, got .* and entries of shapes \[\(3,\)\]"),
    ],
)
def test_what_is_no_mixture_of_products_is_told(given: list[Any], rows: Any, said: str) -> None:
    with pytest.raises(pv.PairError, match=said):
        MixtureOfProducts()(given, rows)
    if "vectors" not in said and "booleans" not in said:  # of which a product takes any
        with pytest.raises(pv.PairError, match=said):
            product_of_experts(given, rows)


def test_the_variance_of_narrow_products_far_from_zero_has_its_digits() -> None:
    """In float32, where second moments less the square of the mean are 0 and even negative."""
    moments = (0.0, 1e3), (100.0, 0.01), (100.02, 0.01)
    prior, one, two = (dist.Normal(torch.full((1, 2), loc), scale).to_event(1) for loc, scale in moments)
    seen = [None, torch.tensor([True])]
    for narrow in (one, two):
        alone = MixtureOfProducts()([prior, narrow], seen)
        torch.testing.assert_close(alone.variance, product_of_experts([prior, narrow], seen).variance)
    q = MixtureOfProducts()([prior, one, two], [*seen, seen[1]])
    # means 100, 100.02 and 100.01; variances 1e-4, 1e-4 and 0.5e-4
    torch.testing.assert_close(q.variance, torch.full((1, 2), (2.5e-4 + 2 * 0.01**2) / 3), rtol=2e-2, atol=0)

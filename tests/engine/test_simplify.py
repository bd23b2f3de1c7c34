"""Simplification of a graph: fewer operations, the same numbers, the same draws."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyrovae.engine.recording import record
from pyrovae.engine.simplify import COMPARISONS, simplify

pytestmark = pytest.mark.auto_engine


def both(function: Callable[..., Any], *tensors: Tensor) -> tuple[Any, Any, int, int]:
    """What a graph gives from one seed before and after, and how many operations it has before and after."""
    module, _ = record(function, tensors)
    found = []
    for step in range(2):
        if step:
            simplify(module)
        torch.manual_seed(0)
        given = [t.clone() for t in tensors]
        result = module(*given)
        calls = sum(node.op == "call_function" for node in module.graph.nodes)
        found.append(([*result, *given, torch.rand(1)], calls))  # what it returns, writes and draws
    return found[0][0], found[1][0], found[0][1], found[1][1]


def views(x: Tensor) -> list[Tensor]:
    return [x.expand(3, 4).t().t().view(3, 4).detach() * 2]


def orders(x: Tensor) -> list[Tensor]:
    return [x.permute(0, 1) * 2, x.permute(1, 0) * 3]


def repeats(x: Tensor) -> list[Tensor]:
    return [(x.sum(0) * 10.0) + (x.sum(0) * 10.0) - x.sum(0) * 10]


def unread(x: Tensor) -> list[Tensor]:
    torch.arange(100)
    x.exp()
    return [x * 2]


def draws(x: Tensor) -> list[Tensor]:
    torch.rand_like(x)  # unread, but the generator moves on
    a, b = torch.rand_like(x), torch.rand_like(x)
    c, d = torch.empty_like(x).normal_(), torch.empty_like(x).normal_()
    return [a - b, c - d, torch.nn.functional.dropout(x, 0.5), torch.bernoulli(x.sigmoid())]


def ones(x: Tensor) -> list[Tensor]:
    leaf = x.detach().requires_grad_()
    loss = (leaf.pow(2) * 1).sum() / 1
    return [loss.detach(), *torch.autograd.grad(loss, [leaf])]


def ones_that_stay(x: Tensor) -> list[Tensor]:
    noise = torch.empty(3, 4).normal_()
    drawn = noise * 1
    noise.normal_()
    return [x * 1, torch.ones(3, dtype=torch.int64) / 1, x.sum(0) * 1, drawn.exp(), noise.exp(), (x.t() + 1) * 1]


def writes(x: Tensor) -> list[Tensor]:
    before = x.sum()
    x.add_(1.0)
    return [before, x.sum(), x.t().t()]


def writes_through_a_view(x: Tensor) -> list[Tensor]:
    zeros = torch.zeros(3, 4)
    a = zeros.sum()
    zeros.view(12)[:4].fill_(2.0)
    return [a, zeros.sum(), x]


@pytest.mark.parametrize(
    "function", [views, orders, repeats, unread, draws, ones, ones_that_stay, writes, writes_through_a_view]
)
def test_numbers_and_draws_stay_and_operations_go(function: Callable[..., Any]) -> None:
    before, after, calls_before, calls_after = both(function, torch.randn(3, 4))
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a, b)
    assert calls_after <= calls_before
    if function in (views, orders, repeats, unread, ones):
        assert calls_after < calls_before


def test_a_size_is_taken_at_once_where_nothing_else_asks_for_the_sign() -> None:
    def size(x: Tensor) -> list[Tensor]:
        return [x * torch.copysign(x.new_ones(()), x)]

    def slope(x: Tensor) -> list[Tensor]:
        leaf = x.detach().requires_grad_()
        return [leaf.detach(), *torch.autograd.grad(leaf.mul(leaf.new_ones(()).copysign(leaf.detach())).sum(), [leaf])]

    x = torch.tensor([1.5, -2.0, 0.0, -0.0, -torch.inf, torch.nan])
    before, after, many, few = both(size, x)
    assert (many, few) == (3, 1)
    assert all(
        torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(before, after)
    )
    before, after, _, _ = both(slope, torch.tensor([1.5, -2.0, 0.0, -0.0]))
    assert torch.equal(after[1], torch.tensor([1.0, -1.0, 1.0, -1.0])) and torch.equal(before[1], after[1])


def test_no_result_is_an_input() -> None:
    module, _ = record(lambda x: [x * 1, (x + 1) / 1], [torch.ones(2)])
    simplify(module)
    x = torch.ones(2)
    module(x)[0].zero_()
    assert torch.equal(x, torch.ones(2))


def test_equal_numbers_of_other_types_are_not_one() -> None:
    def function(x: Tensor) -> list[Tensor]:
        return [torch.full_like(x, 1), torch.full((3, 4), 1), torch.full((3, 4), 1.0)]

    before, after, _, _ = both(function, torch.randn(3, 4))
    assert [t.dtype for t in after[:3]] == [t.dtype for t in before[:3]] == [torch.float32, torch.int64, torch.float32]


def likelihood_of_words(logits: Tensor, words: Tensor) -> list[Tensor]:
    """Loss and gradient of words observed, the words of a topic expanded for each observation, as `Categorical` has them."""
    leaf = logits.detach().requires_grad_()
    probs = leaf.softmax(-1).unsqueeze(1).expand(3, 5, 4).expand(3, 5, 4).clamp(0.1, 0.9)
    loss = probs.log().gather(-1, words.expand(3, 5).unsqueeze(-1)).sum() + (leaf * 2).sum() + (leaf * 2).sum()
    return [loss.detach(), *torch.autograd.grad(loss, [leaf])]


def test_logarithms_are_taken_before_expanding_and_gradients_are_added_in_place() -> None:
    logits, words = torch.randn(3, 4), torch.tensor([0, 3, 1, 1, 2])
    before, after, calls_before, calls_after = both(likelihood_of_words, logits, words)
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a, b)
    assert calls_after < calls_before
    module, _ = record(likelihood_of_words, [logits, words])
    simplify(module)
    aten = torch.ops.aten
    shapes = {n.target: tuple(n.meta["val"].shape) for n in module.graph.nodes if n.op == "call_function"}
    compared = [operation for operation in COMPARISONS if operation in shapes]
    assert len(compared) == 2  # > and <, or >= and <=, by the version of torch
    for operation in (aten.clamp.default, aten.log.default, aten.logical_and.default, *compared):
        assert shapes[operation] == (3, 1, 4)
    assert aten.scatter_add_.default in shapes and aten.scatter_add.default not in shapes


def test_zeros_that_are_read_elsewhere_are_not_written_into() -> None:
    def function(x: Tensor) -> list[Tensor]:
        zeros = x.new_zeros(4)
        return [
            zeros.scatter_add(0, torch.tensor([1, 1, 2]), x),
            zeros.index_put((torch.tensor([0]),), x[:1], True),
            zeros,
        ]

    before, after, _, _ = both(function, torch.randn(3))
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a, b)

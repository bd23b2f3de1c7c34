"""The default optimizer: torch's fused Adam, bit for bit, with torch's names for its state."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.engine.adam import Adam, set_model_apart

SHAPES: tuple[tuple[tuple[int, ...], torch.dtype], ...] = (
    ((3, 2), torch.float32),
    ((4,), torch.float64),
    ((2,), torch.float64),
    ((5,), torch.float32),
)


def parameters() -> list[Tensor]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape, dtype in SHAPES]


def test_steps_are_torchs() -> None:
    """Of some of the parameters at a time, in two groups with rates of their own, and after the state was put back."""
    ours, theirs = parameters(), parameters()
    mine, other = Adam(ours, 0.01), torch.optim.Adam(theirs, lr=0.01, fused=True)
    for optimizer, leaves in ((mine, ours), (other, theirs)):
        set_model_apart(optimizer, leaves[2:])
        assert len(optimizer.param_groups) == 2
    for number in range(6):
        used = [0, 1, 2, 3] if number % 3 else [3, 0]
        if number == 4:
            for optimizer in (mine, other):
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for optimizer in (mine, other):
            optimizer.param_groups[1]["lr"] = 0.1 / (1 + number)
        grads = [torch.randn_like(ours[i]) for i in used]
        mine.descend([ours[i] for i in used], grads)
        for i, grad in zip(used, grads):
            theirs[i].grad = grad.clone()
        other.step()
        other.zero_grad()
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs))
    assert mine.state_dict()["param_groups"] == other.state_dict()["param_groups"]
    for index, state in other.state_dict()["state"].items():
        own = mine.state_dict()["state"][index]
        assert own.keys() == state.keys() and all(torch.equal(own[name], value) for name, value in state.items())


def test_its_own_step_is_torchs() -> None:
    ours, theirs = parameters(), parameters()
    mine, other = Adam(ours, 0.01), torch.optim.Adam(theirs, lr=0.01, fused=True)
    for leaves, optimizer in ((ours, mine), (theirs, other)):
        for leaf in leaves:
            leaf.grad = torch.ones_like(leaf)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))


def test_complex_parameters_are_refused() -> None:
    leaf = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(pv.OptionError, match="no complex parameters"):
        Adam([leaf], 0.01).descend([leaf], [torch.ones_like(leaf)])


def test_sparse_gradients_are_refused() -> None:
    leaf = nn.Parameter(torch.zeros(2))
    with pytest.raises(pv.OptionError, match="no sparse gradients"):
        Adam([leaf], 0.01).descend([leaf], [torch.ones(2).to_sparse()])


def test_groups_that_change_after_a_step() -> None:
    leaves = parameters()
    optimizer = Adam(leaves, 0.01)
    grads = [torch.ones_like(leaf) for leaf in leaves]
    optimizer.descend(leaves, grads)
    set_model_apart(optimizer, leaves[2:])
    optimizer.param_groups[1]["lr"] = 0.0
    before = [leaf.detach().clone() for leaf in leaves]
    optimizer.descend(leaves, grads)
    assert [torch.equal(a, b) for a, b in zip(leaves, before)] == [False, False, True, True]


def test_a_copy_takes_the_same_steps() -> None:
    leaves = parameters()
    optimizer = Adam(leaves, 0.01)
    grads = [torch.ones_like(leaf) for leaf in leaves]
    optimizer.descend(leaves, grads)
    twin = copy.deepcopy(optimizer)
    copies = twin.param_groups[0]["params"]
    optimizer.descend(leaves, grads)
    twin.descend(copies, grads)
    assert all(a is not b and torch.equal(a, b) for a, b in zip(leaves, copies))


@pytest.mark.parametrize("option", [{"amsgrad": True}, {"maximize": True}, {"weight_decay": 0.1}])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_options_that_a_loaded_state_brings_are_kept(kind: type[torch.optim.Adam], option: dict[str, Any]) -> None:
    ours, theirs = parameters(), parameters()
    other = kind(theirs, lr=0.01, fused=True, **option)
    mine = Adam(ours, 0.01)
    for number in range(3):
        grads = [torch.randn_like(leaf) for leaf in ours]
        for leaf, grad in zip(theirs, grads):
            leaf.grad = grad.clone()
        other.step()
        if number == 0:
            mine.load_state_dict(copy.deepcopy(other.state_dict()))
            for leaf, true in zip(ours, theirs):
                leaf.data.copy_(true)
        else:
            mine.descend(ours, grads)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs))

"""Values in the place of parameters: every particle computes what the layer computes with its own weights."""

import pyro
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pyrovae as pv
from pyrovae.weights.choose import choose
from pyrovae.weights.exchange import OneForEachParticle, exchanged, linear


def pair_of(net: nn.Module) -> pv.Pair:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            pyro.module("net", self.net)
            found: Tensor = self.net(x)
            return found

    return pv.Pair(Model(), lambda x: None)


@pytest.mark.parametrize("plates", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_and_layer_norm_take_one_weight_for_each_particle(plates: int, bias: bool) -> None:
    net = nn.Sequential(nn.Linear(3, 4, bias=bias), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2, bias=bias))
    pair = pair_of(net)
    chosen = choose(pair, "model", None)
    ones = (1,) * plates
    values = {name: torch.randn(5, *ones, *one.parameter.shape, requires_grad=True) for name, one in chosen.items()}
    for batch in ((5, *(2, 6)[-plates:]), (6,), (7, 5, *(2, 6)[-plates:])):  # of each particle, of none, and enumerated
        x = torch.randn(*batch, 3)
        with exchanged(chosen, values):
            found = pair.model(x)
        full = x.expand(*torch.broadcast_shapes(batch, (5, *ones)), 3)
        own = full.dim() - plates - 2  # the dimension of the particles
        for k in range(5):
            with exchanged(chosen, {name: value[(k, *(0 for _ in ones))] for name, value in values.items()}):
                assert torch.allclose(found.select(own, k), pair.model(full.select(own, k)), atol=1e-5)
    assert not pyro.get_param_store().keys()  # pyro.module has made nothing of the values


def test_linear_takes_one_weight_for_each_row() -> None:
    x, weight, bias = torch.randn(6, 3), torch.randn(6, 2, 3), torch.randn(6, 2)
    each = torch.stack([F.linear(x[n], weight[n], bias[n]) for n in range(6)])
    assert torch.allclose(linear(x, weight, bias), each, atol=1e-6)
    with OneForEachParticle():
        assert torch.equal(F.linear(x, weight[0], bias[0]), linear(x, weight[0], bias[0]))
    assert torch.allclose(linear(x, weight[0], bias[:, None]), F.linear(x, weight[0]) + bias[:, None])


def test_parameters_are_back_after_an_error_and_shared_ones_are_exchanged_everywhere() -> None:
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    pair = pair_of(nn.Sequential(first, second))
    before = first.weight
    chosen = choose(pair, "model", None)
    (name,) = chosen  # one parameter
    value = torch.randn(3, 3, requires_grad=True)
    x = torch.randn(6, 3)
    with pytest.raises(RuntimeError), exchanged(chosen, {name: value}):
        assert torch.allclose(pair.model(x), x @ value.T @ value.T, atol=1e-6)
        raise RuntimeError
    assert first.weight is before and second.weight is before

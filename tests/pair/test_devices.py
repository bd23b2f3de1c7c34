"""What GPUs say worse than CPUs, as far as a CPU can tell: indices out of range, tensors on two devices, recurrent networks."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.pair.devices import IndicesInRange
from pyrovae.pair.parameters import evaluating

X = torch.arange(12.0).reshape(4, 3)
LOOKUPS: dict[str, Callable[[Tensor], Tensor]] = {
    "a module": lambda i: nn.Embedding(3, 2)(i),
    "embedding": lambda i: nn.functional.embedding(i, torch.zeros(3, 2)),
    "one_hot": lambda i: nn.functional.one_hot(i, 3),
    "gather": lambda i: X[:2].gather(-1, i[:, None]),
    "torch.gather": lambda i: torch.gather(X[:2], dim=1, index=i[:, None]),
    "index_select": lambda i: X.index_select(1, i),
    "scatter_": lambda i: torch.zeros(2, 3).scatter_(1, i[:, None], 1.0),
    "a density": lambda i: dist.Categorical(torch.ones(2, 3), validate_args=False).log_prob(i),
    "first": lambda i: X.t()[i],
    "second": lambda i: X[:, i],
    "last": lambda i: X[..., i],
    "after None": lambda i: X[None, :, i],
    "after a mask": lambda i: X[None].expand(2, 4, 3)[torch.tensor([[True] * 4] * 2)][:, i],
    "beside a mask": lambda i: X[torch.tensor([True, True, False, False]), i],
}
FROM_THE_END = {"first", "second", "last", "after None", "after a mask", "beside a mask"}


@pytest.mark.parametrize("name", LOOKUPS)
def test_an_index_is_looked_at_before_it_is_looked_up(name: str) -> None:
    look = LOOKUPS[name]
    good = torch.tensor([0, 2])
    with IndicesInRange():
        found = look(good)
        for wrong in (3, -4) if name in FROM_THE_END else (3, -4, -1):
            with pytest.raises(IndexError, match=f"index out of range: {wrong}, where there are 3"):
                look(torch.tensor([0, wrong]))
        if name in FROM_THE_END:
            look(torch.tensor([0, -1]))
    if name != "a module":
        assert torch.equal(found, look(good))


def test_values_inside_of_vmap_are_not_looked_at() -> None:
    with IndicesInRange():
        found = torch.vmap(lambda row, i: row[i] + row.gather(0, i))(X, torch.tensor([[0], [1], [2], [0]]))
    assert torch.equal(found, 2 * X.gather(1, torch.tensor([[0], [1], [2], [0]])))


@pytest.mark.parametrize("side", ["model", "guide"])
def test_a_constant_on_another_device_is_told_with_its_cure(side: str) -> None:
    elsewhere = torch.zeros(2, device="meta")

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(2))

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                loc = z + elsewhere if side == "model" else z
                pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

        def guide(self, x: Tensor) -> None:
            loc = self.loc + elsewhere if side == "guide" else self.loc
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    with pytest.raises(pv.PairError, match=r"expected device.*rows are on cpu.*x\.new_zeros.*register_buffer"):
        pv.fit(Half(), torch.randn(10, 2), epochs=1, progress=False)


def test_recurrent_networks_can_be_differentiated_in_evaluation_mode() -> None:
    """For which cuDNN, that cannot, is set aside."""

    class Holder(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def model(self, x: Tensor) -> None: ...

        def guide(self, x: Tensor) -> None: ...

    before = torch.backends.cudnn.enabled
    for net, wanted in ((nn.Sequential(nn.GRU(2, 3)), False), (nn.Linear(2, 3), before)):
        with evaluating(Holder(net)):
            assert torch.backends.cudnn.enabled == wanted and not net.training
        assert torch.backends.cudnn.enabled == before and net.training

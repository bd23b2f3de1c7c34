"""Optimizers that go through memory in order get gradients and state in the order of their parameters."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.engine.fused import gradients_as_by_backward, is_dense, laid_out_as

Make = Callable[[list[Tensor]], torch.optim.Optimizer]
LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "rows": lambda: torch.zeros(3, 2),
    "columns": lambda: torch.zeros(2, 3).mT,
    "gaps": lambda: torch.zeros(3, 4)[:, ::2],
    "rows with gaps": lambda: torch.zeros(6, 2)[::2],
}
OPTIMIZERS: dict[str, Make | None] = {
    "default": None,
    "AdamW": lambda leaves: torch.optim.AdamW(leaves, lr=0.1, fused=True),
    "SGD": lambda leaves: torch.optim.SGD(leaves, lr=0.1, momentum=0.9, nesterov=True, fused=True),
}


class Mean(nn.Module):
    """The mean of x, whose gradient is another in each place; laid out in some way."""

    def __init__(self, layout: str = "rows") -> None:
        super().__init__()
        self.weight = nn.Parameter(LAYOUTS[layout]())

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.weight, 1.0).to_event(2), obs=x)

    def guide(self, x: Tensor) -> None:
        pass


def rows() -> Tensor:
    return torch.arange(6.0).reshape(3, 2) - 2 + torch.randn(8, 3, 2)


def fitted(layout: str, x: Tensor, make: Make | None = None, epochs: int = 4, **options: Any) -> Tensor:
    pair = Mean(layout)
    pv.fit(
        pair,
        x,
        epochs=epochs,
        batch_size=4,
        learning_rate=0.1,
        seed=0,
        engine="eager",
        optimizer=make,
        **options,
    )
    return pair.weight.detach()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_fit_has_its_state_in_the_order_of_the_parameters(tmp_path: Path, name: str) -> None:
    x, make = rows(), OPTIMIZERS[name]
    whole = fitted("columns", x, make)
    torch.testing.assert_close(whole, fitted("rows", x, make))
    fitted("columns", x, make, epochs=2, checkpoint=tmp_path / "run")
    assert torch.equal(fitted("columns", x, make, checkpoint=tmp_path / "run", resume=True), whole)


@pytest.mark.parametrize("layout", ["gaps", "rows with gaps"])
def test_parameters_with_gaps_are_trained_without_fused_steps(layout: str) -> None:
    """A fused step would write into what lies between."""
    x = rows()
    torch.testing.assert_close(fitted(layout, x), fitted("rows", x))
    with pytest.raises(
        pv.OptionError, match=r"AdamW\(fused=True\) cannot train .* of shape \(3, 2\) .*leave out fused"
    ):
        fitted(layout, x, OPTIMIZERS["AdamW"])
    pair = Mean(layout)
    for optim in (pyro.optim.Adam({"fused": True}), torch.optim.Adam(pair.parameters(), fused=True)):
        with pytest.raises(pv.OptionError, match=r"Adam\(fused=True\) cannot train"):
            pv.SVI(pair.model, pair.guide, optim).step(x)
        assert not pair.weight.any()


class Summed(Mean):
    """The mean is the sum of two parameters, whose gradient is one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Parameter(torch.zeros(3, 2))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.weight + self.more, 1.0).to_event(2), obs=x)


@pytest.mark.parametrize("engine", ["eager", "traced"])
def test_parameters_do_not_share_a_gradient_that_an_optimizer_changes(engine: str) -> None:
    x, found = rows(), []
    for foreach in (False, True):  # the second adds to gradients in place

        def make(leaves: list[Tensor], foreach: bool = foreach) -> torch.optim.Optimizer:
            return torch.optim.SGD(leaves, lr=0.1, momentum=0.9, nesterov=True, foreach=foreach)

        pair = Summed()
        pv.fit(pair, x, epochs=3, batch_size=8, engine=engine, optimizer=make)
        found.append(pair.weight.detach())
    torch.testing.assert_close(*found)


def test_what_is_in_order_is_not_copied() -> None:
    weight, kernel = torch.zeros(3, 2), torch.zeros(4, 3, 1, 1)
    grads = [torch.ones(3, 2), torch.ones(4, 3, 1, 1).to(memory_format=torch.channels_last)]
    assert all(a is b for a, b in zip(gradients_as_by_backward([weight, kernel], grads), grads))
    for other in (torch.ones(2, 3).mT, torch.ones(2).expand(3, 2), torch.ones(3, 2, dtype=torch.cfloat).conj().imag):
        found = laid_out_as(weight, other)
        assert found.stride() == weight.stride() and not found.is_neg() and torch.equal(found, other)


def test_gaps_in_memory_are_seen() -> None:
    assert [is_dense(make()) for make in LAYOUTS.values()] == [True, True, False, False]
    dense = torch.zeros(4, 3, 2, 2).to(memory_format=torch.channels_last), torch.zeros(()), torch.zeros(0, 4)[:, ::2]
    assert all(map(is_dense, (*dense, torch.zeros(1, 6)[:, :3]))) and not is_dense(torch.zeros(1).expand(3))

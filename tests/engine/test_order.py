"""Compiled programs read and write in the order of the program, and draw its noise."""

from collections.abc import Callable

import pytest
import torch
from support.marks import compiles
from torch import Tensor

from pyrovae.engine.compiled import compiled

pytestmark = [pytest.mark.slow, compiles]


def drawn(x: Tensor, scales: Tensor) -> list[Tensor]:
    """Noise that is drawn in place and then read. Before torch 2.14 it was read first."""
    scaled = (x * scales).relu()
    return [scaled, scaled * torch.empty_like(scaled).bernoulli_(0.7)]


def overwritten(x: Tensor, scales: Tensor) -> list[Tensor]:
    """A tensor that a product reads and that is overwritten then. In torch 2.11 it was overwritten first."""
    product = x @ x.mT
    scaled = (x * scales).relu()
    x.add_(scaled)
    return [product, scaled]


def several(x: Tensor, scales: Tensor) -> list[Tensor]:
    """Draws one after another. In torch 2.11 the second came first."""
    return [torch.multinomial(x.softmax(-1), 1), torch.rand(8, 1, dtype=x.dtype) * x, torch.poisson(x.exp()), scales]


def of_given_probabilities(x: Tensor, scales: Tensor) -> list[Tensor]:
    """TorchInductor's own draws would be others."""
    return [torch.bernoulli(x.sigmoid()), scales * torch.bernoulli(scales.expand(8, 4)), torch.randn_like(x)]


@pytest.mark.parametrize("program", [drawn, overwritten, several, of_given_probabilities])
def test_compiled_programs_give_the_same_results(program: Callable[..., list[Tensor]]) -> None:
    given = [torch.randn(8, 4, dtype=torch.float64), torch.rand(4, dtype=torch.float64)]
    made = compiled(program, [t.clone() for t in given], checks=False)
    results = []
    for run in (program, made):
        tensors = [t.clone() for t in given]
        torch.manual_seed(1)
        results.append([*run(*tensors), *tensors])
    for found, true in zip(results[1], results[0]):
        torch.testing.assert_close(found, true)

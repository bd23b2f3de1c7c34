"""Functions that are compiled once they have been run so often that it pays: the same results, draws included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyrovae.engine import compiled
from pyrovae.engine.compiled import STARTING, CompiledFunction, has_compiler


class Noisy:
    def __init__(self) -> None:
        self.weight = torch.linspace(-1, 1, 12).reshape(3, 4)

    def __call__(self, batch: dict[str, Tensor]) -> list[Tensor]:
        x = batch["x"]
        return [(x @ self.weight + torch.randn(len(x), 4)).tanh().sum(-1)]


@pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler")
def test_it_is_compiled_once_that_has_paid_and_stays_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "COMPILING", 3.5 * STARTING)  # worth it from the fourth run on
    function = Noisy()
    twice = CompiledFunction(function, (function,))
    batch = {"x": torch.randn(5, 3, generator=torch.Generator().manual_seed(0))}
    torch.manual_seed(1)
    true = [function(batch) for _ in range(6)]
    torch.manual_seed(1)
    for number in range(1, 7):
        torch.testing.assert_close(twice(batch), true[number - 1])
        assert len(twice.seen) == (number >= 4)
        assert twice.traced is not None and twice.traced.run_by_interpreter == (number < 4)


@pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler")
def test_it_stays_traced_where_compiling_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(compiled, "COMPILING", 0.5 * STARTING)
    monkeypatch.setattr(compiled, "compiled", fails)
    function = Noisy()
    traced = CompiledFunction(function, (function,), runs=1)
    batch = {"x": torch.ones(5, 3)}
    with pytest.warns(UserWarning, match="could not be compiled"):
        traced(batch)
    torch.manual_seed(3)
    true = function(batch)
    torch.manual_seed(3)
    torch.testing.assert_close(traced(batch), true)
    assert traced.traced is not None and traced.traced.run_by_interpreter


def test_short_questions_are_not_compiled() -> None:
    assert not CompiledFunction(Noisy(), (), product=1e8, runs=1000)._pays(torch.device("cpu"))
    assert not CompiledFunction(Noisy(), (), product=1e12, runs=10**9)._pays(torch.device("cuda"))

"""What is recorded of a function: its operations on inputs, captured tensors and constants, and what it may not read."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyrovae.engine.recording import record, recorder_at_work

pytestmark = pytest.mark.auto_engine


def names(function: Callable[[Tensor], list[Tensor]]) -> list[str]:
    module, _ = record(function, [torch.ones(3)])
    return [node.target.__name__ for node in module.graph.nodes if node.op == "call_function"]  # type: ignore[union-attr]


def test_operations_in_their_order() -> None:
    assert names(lambda x: [(x.exp() + 1).sum()]) == ["exp.default", "add.Tensor", "sum.default"]


def test_inputs_first_then_what_is_captured() -> None:
    shift, parameter = torch.ones(3), torch.nn.Parameter(torch.ones(3))
    module, captured = record(lambda x, p: [x * shift + p], [torch.zeros(3), parameter])
    assert [node.name for node in module.graph.nodes if node.op == "placeholder"] == [
        "input_0",
        "input_1",
        "captured_1",
    ]
    assert len(captured) == 1 and captured[0] is shift
    found = module(torch.full((3,), 2.0), torch.full((3,), 5.0), torch.full((3,), 3.0))
    assert torch.equal(found[0], torch.full((3,), 11.0))


def test_results_that_are_inputs_or_captured() -> None:
    other = torch.ones(2)
    module, captured = record(lambda x: [x, other], [torch.zeros(2)])
    x, y = module(torch.full((2,), 4.0), *captured)
    assert x.tolist() == [4.0, 4.0] and y is other


def test_a_number_is_a_constant_that_each_run_has_anew() -> None:
    def counted(x: Tensor) -> list[Tensor]:
        number = torch.tensor(1.0)
        number.add_(x.sum())
        return [number]

    module, captured = record(counted, [torch.ones(2)])
    assert not captured and [module(torch.ones(2))[0].item() for _ in range(2)] == [3.0, 3.0]


def test_saved_tensors_of_the_backward_pass_are_those_of_the_forward_pass() -> None:
    def gradient(x: Tensor) -> list[Tensor]:
        w = x.detach().requires_grad_()
        y = w.exp().tanh().sum()
        return list(torch.autograd.grad(y, [w]))

    module, captured = record(gradient, [torch.zeros(3)])
    x = torch.tensor([0.1, -2.0, 0.7])
    assert not captured and torch.allclose(module(x)[0], x.exp() * (1 - x.exp().tanh() ** 2))


def test_shapes_strides_and_dtypes() -> None:
    module, _ = record(lambda x: [x.t(), x.double(), *x.split([1, 2])], [torch.zeros(3, 2)])
    *_, output = module.graph.nodes
    found = [node.meta["val"] for node in output.args[0]]
    assert [tuple(v.shape) for v in found] == [(2, 3), (3, 2), (1, 2), (2, 2)]
    assert found[0].stride() == (1, 2) and found[1].dtype == torch.float64
    assert len(next(node for node in module.graph.nodes if "split" in node.name).meta["val"]) == 2


@pytest.mark.parametrize(
    "read",
    [
        lambda x: float(x.sum()),
        lambda x: bool(x[0] > 0),
        lambda x: torch.rand(()).item(),
        lambda x: torch.equal(x, x + 1),
        lambda x: torch.zeros(3).copy_(x)[0].item(),
        lambda x: _viewed(x).item(),
    ],
)
def test_values_that_depend_on_inputs_or_draws_are_not_read(read: Callable[[Tensor], object]) -> None:
    with pytest.raises(RuntimeError, match="reads the value of a tensor"):
        record(lambda x: [x * bool(read(x))], [torch.ones(3)])
    assert recorder_at_work() is None


def _viewed(x: Tensor) -> Tensor:
    """A tensor that is written through a view of it."""
    made = torch.zeros(3)
    made.view(3, 1)[:1].copy_(x[0])
    return made[0]


def test_values_that_are_the_same_in_every_run_are_read() -> None:
    known = torch.tensor(2.0)
    module, captured = record(
        lambda x: [x * float(torch.arange(4)[2]) * known.item() * torch.tensor(3.0).item()], [torch.ones(2)]
    )
    assert module(torch.ones(2), *captured)[0].tolist() == [12.0, 12.0]


@pytest.mark.parametrize("write", [lambda t: t.view(1).add_(1), lambda t: torch._foreach_add_([t], 1)])
def test_captured_tensors_are_not_read_once_something_was_written(write: Callable[[Tensor], object]) -> None:
    """What was written may be a captured tensor by another name, and its value in the next run another."""
    count = torch.zeros(1)

    def counted(x: Tensor) -> list[Tensor]:
        write(count)
        return [x * count.item()]

    with pytest.raises(RuntimeError, match="reads the value of a tensor"):
        record(counted, [torch.ones(3)])


def test_a_generator_is_refused() -> None:
    own = torch.Generator().manual_seed(0)
    with pytest.raises(RuntimeError, match="takes a Generator"):
        record(lambda x: [torch.rand(2, generator=own)], [torch.ones(2)])

"""Programs that torch's interpreter runs: the same numbers, draws and errors as in Python."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from pyrovae.engine.interpreted import interpreted
from pyrovae.engine.recording import record
from pyrovae.engine.tracing import TracedProgram, capture, trace

pytestmark = pytest.mark.auto_engine


def products(x: Tensor) -> list[Tensor]:
    return [x @ x.t(), functional.linear(x, x, x[:, 0]), torch.einsum("ij,ik->jk", x, x), x.matmul(x.t()).logsumexp(-1)]


def several(x: Tensor) -> list[Tensor]:
    values, places = x.max(1)
    first, second = x.chunk(2, 1)
    return [
        values,
        places,
        first * second,
        *x.unbind(0),
        torch.stack(x.split([1, 3], 1)[1].unbind(1)),
        *torch.linalg.qr(x),
    ]


def indices(x: Tensor) -> list[Tensor]:
    rows = torch.tensor([2, 0])
    return [x[rows], x[:, rows], x[rows, rows], x.index_put((rows,), x.new_ones(())), x.gather(1, rows.expand(3, 2))]


def kinds(x: Tensor) -> list[Tensor]:
    made = [x.double(), x.to(torch.int64), torch.zeros(2, dtype=torch.bool), torch.full((2,), 3, dtype=torch.int32)]
    return [*made, x.contiguous(memory_format=torch.contiguous_format), torch.zeros_like(x), x.new_full((), torch.inf)]


def numbers(x: Tensor) -> list[Tensor]:
    return [
        x.pow(2),
        2 - x,
        1 / x,
        x.clamp(min=0.1),
        x.clamp(-0.5, 0.5),
        x.sum(),
        x.std(1),
        functional.softplus(x, 2, 3),
        *(x + 0.1, x - 3, x * 2, x / 7, x.double() / 7, x.sum() * 0.3, x.to(torch.int64) * 0.1, x.to(torch.int64) + 1),
        *(
            (x > 0) * 0.1,
            x.bfloat16() * 0.1,
            x + 1e300,
            x * torch.nan,
            torch.add(x, 0.1, alpha=0.3),
            x.to(torch.complex64) * 2,
        ),
    ]


def draws(x: Tensor) -> list[Tensor]:
    given = torch.bernoulli(x.sigmoid()), functional.dropout(x, 0.3), torch.empty(3).normal_(1.0, 2.0)
    return [torch.randn(2, 3), torch.rand_like(x), torch._standard_gamma(x.exp()), *given]


def writes(x: Tensor) -> list[Tensor]:
    x[0] = 7.0
    mean, variance = torch.zeros(4), torch.ones(4)
    normed = functional.batch_norm(x, mean, variance, training=True)
    return [normed, mean, variance, x.mul_(2)]


def gradients(x: Tensor) -> list[Tensor]:
    w = torch.linspace(-1, 1, 8).view(4, 2).requires_grad_()
    h = functional.elu(x @ w)
    scale_tril = h.new_tensor([[1.0, 0.0], [0.3, 0.5]])
    loss = torch.distributions.MultivariateNormal(h, scale_tril=scale_tril, validate_args=False).log_prob(h.sin()).sum()
    return list(torch.autograd.grad(loss, [w]))


@pytest.mark.parametrize("on_cpu", [False, True])
@pytest.mark.parametrize("function", [products, several, indices, kinds, numbers, draws, writes, gradients])
def test_the_same_bit_for_bit(function: Callable[[Tensor], list[Tensor]], on_cpu: bool) -> None:
    x = torch.randn(3, 4)
    module, captured = record(function, [x.clone()])
    run = interpreted(module, on_cpu=on_cpu)
    assert run is not None
    found = []
    for program in (module, run, function):
        torch.manual_seed(3)
        given = x.clone()
        results = program(given) if program is function else program(given, *captured)
        found.append([*results, given, torch.rand(1)])
    for python, here, true in zip(*found, strict=True):
        assert here.dtype == python.dtype == true.dtype and here.shape == true.shape
        assert torch.equal(here.nan_to_num(7), python.nan_to_num(7)) and torch.equal(
            here.nan_to_num(7), true.nan_to_num(7)
        )


class Calls(TorchDispatchMode):
    """The names of the operations that torch runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def test_numbers_are_not_converted_at_each_call() -> None:
    x = torch.ones(3, 4)
    program = capture(lambda x: [(2 * x + 0.1 - x / 7) * 1.5], [x])
    with Calls() as calls:
        program(x)
    assert sorted(calls.names) == ["aten::add", "aten::div", "aten::mul", "aten::mul", "aten::sub"]


def test_errors_are_those_of_python() -> None:
    program = capture(lambda x, places: [x[places]], [torch.ones(2), torch.tensor([0, 1])])
    assert program.run_by_interpreter
    with pytest.raises(IndexError, match="out of bounds"):
        program(torch.ones(2), torch.tensor([0, 2]))


def test_the_interpreters_optimizer_stays_as_it_was() -> None:
    program = capture(lambda x: [x + 1], [torch.ones(2)])
    for setting in (True, False):
        with torch.jit.optimized_execution(setting):
            program(torch.ones(2))
            assert torch._C._get_graph_executor_optimize() is setting


def test_what_is_no_operation_of_torchs_own_runs_in_python() -> None:
    def doubled(x: Tensor) -> Tensor:
        return 2 * x

    module, _ = record(lambda x: [x + 1], [torch.ones(2)])
    next(iter(module.graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor))).target = doubled
    assert interpreted(module) is None


@pytest.mark.parametrize("name", ["_create_function_from_graph", "Graph", "_set_graph_executor_optimize"])
def test_a_torch_without_its_parts_runs_programs_in_python(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C, name)
    program = capture(lambda x: [x + 1], [torch.ones(2)])
    assert not program.run_by_interpreter
    assert torch.equal(program(torch.ones(2))[0], torch.full((2,), 2.0))


@pytest.mark.parametrize("fault", ["error", "number"])
def test_what_the_interpreter_runs_otherwise_runs_in_python(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []

    def fails(*tensors: Tensor) -> Any:
        tried.append(tensors)
        torch.rand(3)
        if fault == "error":
            raise RuntimeError("no such operator")
        return [torch.zeros(2)]

    def noisy(x: Tensor) -> list[Tensor]:
        return [x + torch.rand(2)]

    monkeypatch.setattr(torch._C, "_create_function_from_graph", lambda name, graph: fails)
    program = trace(noisy, [[torch.ones(2)], [torch.zeros(2)]], [])
    assert not program.run_by_interpreter
    torch.manual_seed(5)
    found = [program(torch.ones(2))[0] for _ in range(3)]
    torch.manual_seed(5)
    assert all(torch.equal(here, noisy(torch.ones(2))[0]) for here in found) and len(tried) == 1


def test_what_fails_in_the_middle_is_not_written_or_drawn_twice() -> None:
    """Also where Python would not fail, as where memory was short for a moment."""

    def counted(total: Tensor, places: Tensor) -> list[Tensor]:
        total.add_(1)
        return [total[places] + torch.rand(2)]

    program = capture(counted, [torch.zeros(2), torch.tensor([0, 1])])
    total, drawn = torch.zeros(2), torch.get_rng_state()
    with pytest.raises(IndexError, match="out of bounds"):
        program(total, torch.tensor([0, 2]))
    assert total.tolist() == [1.0, 1.0] and torch.equal(torch.get_rng_state(), drawn)
    program.module.forward = lambda *tensors: [tensors[0].add_(1), torch.rand(2)]
    with pytest.raises(RuntimeError, match="out of bounds"):
        program(total, torch.tensor([0, 2]))
    assert total.tolist() == [2.0, 2.0] and torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize("value", [True, 2.0])
def test_an_operation_that_the_interpreter_does_not_find_is_noticed_before_it_runs(value: float) -> None:
    """Numbers are all alike to it, but for truth values, which it does not take for numbers."""
    module, _ = record(lambda x: [torch.full_like(x, value)], [torch.ones(2)])
    assert (interpreted(module) is None) == (value is True)
    assert torch.equal(TracedProgram(module, [])(torch.ones(2))[0], torch.full((2,), float(value)))


def test_another_operation_of_the_same_name_is_noticed() -> None:
    """Where the arguments of the one would do for the other, too, and a version of torch finds that first."""
    module, _ = record(lambda x: [x.sum(0)], [torch.ones(2)])
    (node,) = module.graph.find_nodes(op="call_function", target=torch.ops.aten.sum.dim_IntList)
    assert interpreted(module) is not None
    node.target = Operation(torch.ops.aten.sum.dim_IntList._schema, torch.ops.aten.mean.dim._schema)
    assert interpreted(module) is None


class Operation:
    """An operation whose text is that of another."""

    def __init__(self, schema: Any, text: Any) -> None:
        self._schema = Text(schema, str(text))


class Text:
    def __init__(self, schema: Any, text: str) -> None:
        self.name, self.arguments, self.returns, self.text = schema.name, schema.arguments, schema.returns, text

    def __str__(self) -> str:
        return self.text


def test_programs_are_freed() -> None:
    """torch keeps what its own functions make of a graph for ever; that would be megabytes for each fit."""

    def held() -> int:
        return len(torch.jit._state._python_cu.get_functions())

    before: Any = held()
    capture(lambda x: [x + 1], [torch.ones(2)])(torch.ones(2))
    assert held() == before

"""Products of matrices by oneDNN: the same numbers, and only where they are large, in float32 and not scaled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.engine import products, tracing
from pyrovae.engine.compiled import cached_compilation
from pyrovae.engine.tracing import TracedProgram, capture, graph_of

aten = torch.ops.aten
HAS = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
pytestmark = pytest.mark.skipif(not HAS, reason="this torch has no oneDNN")


@pytest.fixture(autouse=True)
def amd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(products, "OPERATIONS", 0)
    monkeypatch.setattr(products, "IN_COMPILED", (16, 0))


def targets(program: TracedProgram) -> list[Any]:
    return [node.target for node in program.module.graph.nodes if node.op == "call_function"]


def matrix(rows: int, columns: int, turned: bool = False, dtype: torch.dtype = torch.float32) -> Tensor:
    made = torch.randn(columns, rows, dtype=dtype, generator=torch.Generator().manual_seed(rows + 7 * columns))
    return made.t() if turned else made.t().contiguous()


@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
def test_products_of_any_layout_have_the_same_values(turned: tuple[bool, bool]) -> None:
    a, b, bias = matrix(70, 90, turned[0]), matrix(90, 80, turned[1]), torch.arange(80.0)
    program = capture(lambda a, b, bias: [a @ b, torch.addmm(bias, a, b)], [a, b, bias])
    assert torch.ops.mkldnn._linear_pointwise.default in targets(program) and aten.mm.default not in targets(program)
    assert program.run_by_interpreter
    for found, true in zip(program(a, b, bias), [a.double() @ b.double(), a.double() @ b.double() + bias]):
        torch.testing.assert_close(found.double(), true, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("function", "tensors"),
    [
        (lambda a, b: [a @ b], [matrix(70, 90), matrix(90, 10)]),  # few columns
        (lambda a, b: [a @ b], [matrix(70, 10), matrix(10, 80)]),  # few summands
        (lambda a, b: [a @ b], [matrix(70, 90, dtype=torch.float64), matrix(90, 80, dtype=torch.float64)]),
        (
            lambda a, b: [torch.addmm(a[:, :80], a, b)],
            [matrix(70, 90), matrix(90, 80)],
        ),  # a matrix is added, not a bias
        (lambda a, b: [torch.addmm(b[0], a, b, alpha=2.0)], [matrix(70, 90), matrix(90, 80)]),
    ],
)
def test_other_products_stay(function: Any, tensors: list[Tensor]) -> None:
    program = capture(function, tensors)
    assert torch.ops.mkldnn._linear_pointwise.default not in targets(program)
    torch.testing.assert_close(program(*tensors), function(*tensors))


def test_large_products_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "OPERATIONS", 2 * 70 * 90 * 80 + 1)
    program = capture(lambda a, b: [a @ b], [matrix(70, 90), matrix(90, 80)])
    assert aten.mm.default in targets(program)


def test_a_compiled_program_calls_onednn() -> None:
    tensors = [matrix(70, 90), matrix(80, 90), torch.arange(80.0)]
    program = capture(lambda a, w, bias: [torch.addmm(bias, a, w.t()).relu()], tensors)
    with torch.no_grad():
        module = graph_of(lambda *t: list(program.module(*t)), *tensors)
        products.for_the_compiler(module)
        assert [n.target for n in module.graph.nodes].count(torch.ops.pyrovae.linear.default) == 1
        with cached_compilation():
            compiled = torch._inductor.compile(module, tensors)
        torch.testing.assert_close(compiled(*tensors)[0], program(*tensors)[0], rtol=1e-5, atol=1e-4)


def test_a_compiled_program_copies_what_is_turned_itself() -> None:
    tensors = [matrix(90, 70), matrix(90, 80)]  # a gradient of weights: the first matrix is turned
    with torch.no_grad():
        module = graph_of(lambda g, x: [g.relu().t() @ x], *tensors)
        products.for_the_compiler(module)
        product = next(n for n in module.graph.nodes if n.target is torch.ops.pyrovae.linear.default)
        assert product.args[0].target is aten.clone.default and product.args[0].meta["val"].is_contiguous()
        with cached_compilation():
            compiled = torch._inductor.compile(module, tensors)
        true = tensors[0].double().relu().t() @ tensors[1].double()
        torch.testing.assert_close(compiled(*tensors)[0].double(), true, rtol=1e-5, atol=1e-4)


def test_compiled_programs_give_smaller_products_to_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "OPERATIONS", 1e7)
    monkeypatch.setattr(products, "IN_COMPILED", (16, 4e6))
    for columns, by_onednn in ((20, True), (10, False)):
        module = graph_of(lambda a, b: [a @ b], matrix(256, 400), matrix(400, columns))
        products.use_the_faster_library(module)
        assert [n.target for n in module.graph.nodes].count(aten.mm.default) == 1
        products.for_the_compiler(module)
        assert [n.target for n in module.graph.nodes].count(aten.mm.default) == (not by_onednn)


def test_a_fit_is_the_same_up_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.bernoulli(torch.full((128, 100), 0.3), generator=torch.Generator().manual_seed(1))

    def fitted() -> pv.Fit:
        torch.manual_seed(0)
        nets: dict[str, Any] = {"hidden": (64,), "activation": nn.Tanh}
        vae = pv.VAE(
            pv.priors.StandardNormal(64), pv.mlp(64, fam.Bernoulli(100), **nets), pv.mlp(100, fam.Normal(64), **nets)
        )
        return pv.fit(vae, x, epochs=2, batch_size=64, engine="traced", seed=0, progress=False)

    by_onednn = fitted()
    monkeypatch.setattr(products, "onednn_is_faster", lambda: False)
    assert by_onednn.history[-1]["elbo"] == pytest.approx(fitted().history[-1]["elbo"], rel=1e-5)


@pytest.mark.parametrize(
    ("capability", "maker", "faster"),
    [("AVX512", "AuthenticAMD", True), ("AVX2", "AuthenticAMD", False), ("AVX512", "GenuineIntel", False)],
)
def test_the_rule_is_the_processors_maker(
    monkeypatch: pytest.MonkeyPatch, capability: str, maker: str, faster: bool
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(products, "_processor", lambda: f"vendor_id : {maker}")
    products.onednn_is_faster.cache_clear()
    try:
        assert products.onednn_is_faster() is faster
    finally:
        products.onednn_is_faster.cache_clear()


@pytest.mark.parametrize(("wrong", "kept"), [(1e-6, True), (0.02, False)])
def test_another_library_may_round_a_number_to_the_other_side_of_a_kink(
    wrong: float, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slope differs there, and with it one element of a gradient; the products are right all the same."""

    def other(module: fx.GraphModule) -> bool:
        product = next(node for node in module.graph.nodes if node.target is aten.mm.default)
        with module.graph.inserting_after(product):
            moved = module.graph.call_function(aten.add.Tensor, (product, wrong))
        moved.meta = dict(product.meta)
        product.replace_all_uses_with(moved)
        moved.args = (product, wrong)
        module.recompile()
        return True

    x, weight = torch.randn(64, 8), torch.randn(8, 40, requires_grad=True)
    x[0] = torch.tensor([2.0, *[0.0] * 7])
    weight.data[0] = 0.0  # so that the first row is at the kink

    def gradient(x: Tensor) -> list[Tensor]:
        loss = (x @ weight)[:, 3:4].relu().sum() + (x @ weight).square().sum()
        return list(torch.autograd.grad(loss, [weight]))

    monkeypatch.setattr(tracing, "use_the_faster_library", other)
    made = tracing.trace(gradient, [[x]], [])
    assert made.other_library == kept
    difference = (made(x)[0] - gradient(x)[0]).abs()
    if kept:  # the element of the first input and the fourth unit
        assert difference.argmax() == 3 and difference[0, 3] == pytest.approx(2.0, abs=0.01)
    else:
        assert difference.max() == 0

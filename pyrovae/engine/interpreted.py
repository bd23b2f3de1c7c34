"""Traced programs run by torch's interpreter of graphs, which is written in C++.

Each operation costs Python two or three microseconds besides its own work. The step of a small network is some hundred of them,
and takes half the time where the interpreter starts them. The program is handed over operation by operation, which takes a
hundredth of a second, and no pass of the interpreter's optimizer changes it: the results are the same bit for bit.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pyrovae.pair.parameters import fork_rng

aten = torch.ops.aten
LAYOUTS = {torch.contiguous_format: 0, torch.preserve_format: 1, torch.channels_last: 2, torch.channels_last_3d: 3}
# Operations that take a number in a tensor's place, and the dtypes of operands and result to which torch converts it then.
WITH_A_NUMBER = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)
CONVERTED = ({torch.float32}, {torch.float64})


class Unknown(Exception):
    """A program that the interpreter does not take."""


def interpreted(module: fx.GraphModule, *, on_cpu: bool = False) -> Callable[..., Sequence[Tensor]] | None:
    """The program as a function of its inputs; None if it holds what is no operation of torch's own.

    It is made of parts of torch that have no public names. Where a version of torch lacks them, the program runs in Python.

    Args:
        on_cpu: whether all of its tensors are on the CPU.
    """
    try:
        function = torch._C._create_function_from_graph("program", _graph_of(module, on_cpu))
        optimizes, optimize = torch._C._get_graph_executor_optimize, torch._C._set_graph_executor_optimize
    except (Unknown, AttributeError, TypeError, RuntimeError):
        return None

    def run(*tensors: Tensor) -> Sequence[Tensor]:
        before = optimizes()
        optimize(False)
        try:
            found: Sequence[Tensor] = function(*tensors)
            return found
        except RuntimeError as error:
            failed = error
        finally:
            optimize(before)
        # All errors are of this class there, and Python gives them their own. Some of the program has run: another run must
        # neither write into these tensors once more nor draw on.
        with fork_rng():
            module.forward(*(tensor.clone() for tensor in tensors))
        raise failed

    return run


def _graph_of(module: fx.GraphModule, on_cpu: bool) -> Any:
    """The program in the interpreter's own form."""
    graph: Any = torch._C.Graph()
    values: dict[fx.Node, Any] = {}  # of each node: a value, or a list of them where an operation has several results
    for node in module.graph.nodes:
        if node.op == "placeholder":
            values[node] = graph.addInput()
        elif node.op == "get_attr":
            values[node] = graph.insertConstant(getattr(module, str(node.target)))
        elif node.op == "output":
            results: Any = node.args[0]
            tensors: list[Any] = [torch._C.TensorType.get() for _ in results]
            made = graph.insertNode(graph.create("prim::TupleConstruct", [values[n] for n in results], 1)).output()
            made.setType(torch._C.TupleType(tensors))
            graph.registerOutput(made)
        elif node.target is operator.getitem:
            values[node] = values[node.args[0]][node.args[1]]
        else:
            values[node] = _call(graph, node, values, on_cpu)
    return graph


def _call(graph: Any, node: fx.Node, values: dict[fx.Node, Any], on_cpu: bool) -> Any:
    schema: Any = getattr(node.target, "_schema", None)
    if schema is None or not schema.name.startswith(("aten::", "mkldnn::")):
        raise Unknown(str(node.target))
    arguments = []
    for position, argument in enumerate(schema.arguments):
        given: Any = (
            node.args[position] if position < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
        )
        if on_cpu and argument.type.kind() == "TensorType" and type(given) in (int, float):
            given = _as_tensor(given, node)
        arguments.append(_value(graph, given, argument.type, values))
    call = graph.insertNode(graph.create(schema.name, arguments, len(schema.returns)))
    _check_overload(call, node, schema)
    results = list(call.outputs())
    for result, returned in zip(results, schema.returns):
        result.setType(returned.type)
    if len(results) != 1:
        return results
    if schema.returns[0].type.kind() == "ListType":
        unpacked = graph.create("prim::ListUnpack", results, len(node.meta["val"]))
        return list(graph.insertNode(unpacked).outputs())
    return results[0]


def _as_tensor(number: float, node: fx.Node) -> Any:
    """A number in a tensor's place as a tensor of the dtype that torch would convert it to at each call.

    That takes as long as the operation itself does for a small tensor. The result is the same bit for bit.
    """
    dtypes = {value.meta["val"].dtype for value in (*node.all_input_nodes, node)}
    if node.target not in WITH_A_NUMBER or dtypes not in CONVERTED:  # others compute with the number as it is
        return number
    return torch.tensor(number, dtype=dtypes.pop())


def _check_overload(call: Any, node: fx.Node, schema: Any) -> None:
    """The interpreter finds operations by name and arguments: `aten::add` of a tensor and a number is not that of two."""
    found = call.schema()
    if found == str(schema):
        return
    given = [
        *zip(schema.arguments, node.args),
        *((a, node.kwargs[a.name]) for a in schema.arguments if a.name in node.kwargs),
    ]
    as_number = any(a.type.kind() == "TensorType" and type(value) in (int, float, complex) for a, value in given)
    # a number in a tensor's place is computed with in the same way
    if not (as_number and found.startswith(f"{schema.name}.")):
        raise Unknown(f"{schema} is found as {found}")


def _value(graph: Any, given: Any, kind: Any, values: dict[fx.Node, Any]) -> Any:
    """An argument of an operation: the result of another one, a constant, or a list of these."""
    if isinstance(given, fx.Node):
        return values[given]
    if kind.kind() == "OptionalType" and given is not None:
        kind = kind.getElementType()
    if isinstance(given, (list, tuple)):
        if kind.kind() != "ListType":
            raise Unknown(f"{given} as {kind}")
        parts = [_value(graph, part, kind.getElementType(), values) for part in given]
        made = graph.insertNode(graph.create("prim::ListConstruct", parts, 1)).output()
        made.setType(torch._C.ListType(kind.getElementType()))
        return made
    if isinstance(given, torch.memory_format):
        given = LAYOUTS[given]
    if kind.kind() == "FloatType" and type(given) is int:
        given = float(given)
    return graph.insertConstant(given)

"""What a function does to tensors, recorded operation by operation while it runs.

torch's own tracer, `make_fx`, would do as well. It is made for compilers: it imports them, which takes more than a second, and
works out the shape of each result once more, which takes longer than most operations.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils.weak import WeakTensorKeyDictionary

from pyrovae._dispatch import DispatchMode

LIFTS = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default)
CONSTANTS = (type(None), bool, int, float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format)

_recorders: list[Recorder] = []  # those at work, the innermost last


class Recorder(DispatchMode):
    """Records as a graph what is computed inside, of tensors that are known by identity.

    Tensors that the operations take, and that are neither among the inputs nor results, are captured: they become inputs after
    the others. A number that becomes a tensor (`torch.tensor(1.0)`) is a constant of the graph.

    Args:
        tensors: the inputs of the graph.
    """

    records = True

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.captured: list[Tensor] = []
        self.constants: dict[str, Tensor] = {}
        self._nodes: Any = WeakTensorKeyDictionary()  # by identity; what nothing else holds is freed as outside
        self._fixed: set[fx.Node] = set()  # whose values are the same in every run
        self._known: set[fx.Node] = set()  # of captured tensors, which are read where they are
        self._wrote = False  # into what others may see: a captured tensor may be a view of it
        self._last: fx.Node | None = None  # the last of the inputs
        for number, tensor in enumerate(tensors):
            self._last = self.graph.placeholder(f"input_{number}")
            self._note(self._last, tensor)

    def knows(self, tensor: Tensor) -> bool:
        """Whether this is one of the inputs, or a result."""
        return tensor in self._nodes and self._nodes[tensor] not in self._known

    def module(self, results: Sequence[Tensor]) -> fx.GraphModule:
        """The graph of these results, whose code is not made yet. It is a list, as the function's."""
        self.graph.output([self._node(tensor) for tensor in results])
        return fx.GraphModule(self.constants, self.graph)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in LIFTS:  # of a tensor that was made outside, such as by `torch.tensor`
            return self._result(func(*args, **kwargs), LIFTS[1], (self._constant(args[0]),), {})
        sources: list[fx.Node] = []
        taken = self._argument(args, sources)
        named = {name: self._argument(value, sources) for name, value in kwargs.items()}
        if torch.Tag.data_dependent_output in func.tags:
            if not all(node in self._fixed or (node in self._known and not self._wrote) for node in sources):
                raise RuntimeError(f"{func} reads the value of a tensor")
            return func(*args, **kwargs)
        fixed = torch.Tag.nondeterministic_seeded not in func.tags and all(node in self._fixed for node in sources)
        if func._schema.is_mutable and not fixed:
            self._fixed.clear()  # views of what is written are others now, too
            self._wrote = True
        return self._result(func(*args, **kwargs), func, taken, named, fixed)

    def _result(self, made: Any, func: Any, taken: Any, named: dict[str, Any], fixed: bool = True) -> Any:
        several = isinstance(made, (list, tuple))
        if not (several or made is None or isinstance(made, Tensor)):
            return made  # a property, which does not depend on values
        node = self.graph.call_function(func, taken, named)
        if isinstance(made, Tensor):
            self._note(node, made, fixed)
        elif several:
            node.meta["val"] = made_vals = [None] * len(made)
            for number, part in enumerate(made):
                if isinstance(part, Tensor):
                    got = self.graph.call_function(operator.getitem, (node, number))
                    self._note(got, part, fixed)
                    made_vals[number] = got.meta["val"]
        return made

    def _note(self, node: fx.Node, tensor: Tensor, fixed: bool = False) -> None:
        self._nodes[tensor] = node
        node.meta["val"] = _shape_of(tensor)
        if fixed:
            self._fixed.add(node)

    def _argument(self, value: Any, nodes: list[fx.Node]) -> Any:
        if isinstance(value, Tensor):
            nodes.append(self._node(value))
            return nodes[-1]
        if isinstance(value, (list, tuple)):
            return type(value)(self._argument(part, nodes) for part in value)
        if not isinstance(value, CONSTANTS):
            raise RuntimeError(f"an operation takes a {type(value).__name__}")
        return value

    def _node(self, tensor: Tensor) -> fx.Node:
        if tensor not in self._nodes:
            self.captured.append(tensor)
            with self.graph.inserting_after(self._last):
                self._last = self.graph.placeholder(f"captured_{len(self.captured)}")
            self._note(self._last, tensor)
            self._known.add(self._last)
        found: fx.Node = self._nodes[tensor]
        return found

    def _constant(self, tensor: Tensor) -> fx.Node:
        name = f"number_{len(self.constants)}"
        self.constants[name] = tensor.detach().clone()
        node = self.graph.get_attr(name)
        node.meta["val"] = _shape_of(tensor)
        self._fixed.add(node)
        return node


def _shape_of(tensor: Tensor) -> Tensor:
    """A tensor without values, of the same shape, strides and dtype."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def record(function: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor]) -> tuple[fx.GraphModule, list[Tensor]]:
    """The operations of `function(*tensors)` as a graph, and the tensors that it captures.

    In the graph, `meta["val"]` of a node has the shape, dtype and strides of its result.

    Raises:
        RuntimeError: Python reads the value of a tensor that depends on an input, or on draws.
    """
    recorder = Recorder(tensors)
    with recording(recorder):
        results = function(*tensors)
    return recorder.module(results), recorder.captured


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    _recorders.append(recorder)
    try:
        with recorder:
            yield
    finally:
        _recorders.pop()


def recorder_at_work() -> Recorder | None:
    """What records just now."""
    return _recorders[-1] if _recorders else None

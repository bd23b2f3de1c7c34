"""Simplification of traced programs: operations are removed that a person would not have written.

On a CPU each operation costs some microseconds to start, which is most of the time of a small network's step. A trace contains
views that change nothing, the same arithmetic once for each use of its result, and results that nothing reads.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten
ALIASES = (aten.alias.default, aten.detach.default)
SAME_SHAPE = (aten.expand.default, aten.view.default, aten._unsafe_view.default)
COMPARISONS = (aten.gt.Scalar, aten.lt.Scalar, aten.ge.Scalar, aten.le.Scalar)
# Of each element by itself, so that they may come before their argument is expanded; and what reads a tensor of any strides.
POINTWISE = (
    *(aten.log.default, aten.log1p.default, aten.exp.default, aten.neg.default, aten.clamp.default),
    *(aten.clamp_min.default, aten.reciprocal.default, aten.sigmoid.default, aten.logical_and.default, *COMPARISONS),
)
READERS = (
    *(*POINTWISE, aten.gather.default, aten.where.self, aten.sum.dim_IntList, aten.expand.default),
    *(aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor),
)
# The gradient of what was gathered from a tensor: a copy of zeros, with something added to it.
ADDS = {aten.scatter_add.default: aten.scatter_add_.default, aten.index_put.default: aten.index_put_.default}
ONES = (aten.new_ones.default, aten.ones_like.default)
ZEROS = (aten.new_zeros.default, aten.zeros_like.default)
BY_ONE = (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar, aten.pow.Tensor_Scalar)
FRESH = (aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default, aten.empty_strided.default)


def simplify(module: fx.GraphModule) -> None:
    """Drop what a program need not do, in place.

    Views of the same shape, double transposes, products with 1 and unread results go; repeats and constants are computed once;
    what is computed of each element comes before `expand`, and gradients are added to zeros themselves, not to a copy of them.
    """
    graph = module.graph
    _remove_views(graph)
    _expand_late(graph)
    if all(_changes_only_its_own(node) for node in graph.nodes):
        _remove_ones(graph)
        _remove_repeats(graph)
        _take_sizes(graph)
        _compute_constants(module)
    graph.eliminate_dead_code(_has_effect)
    _add_in_place(graph)
    module.recompile()


def _remove_views(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
            continue
        source = node.args[0]
        instead: fx.Node | None = None
        same = node.target in SAME_SHAPE and _shape(node) == _shape(source) is not None
        if node.target in ALIASES or same or _moves_nothing(node):
            instead = source
        elif node.target is aten.t.default and source.target is aten.t.default and isinstance(source.args[0], fx.Node):
            instead = source.args[0]
        if instead is not None:
            node.replace_all_uses_with(instead)
            graph.erase_node(node)


def _moves_nothing(node: fx.Node) -> bool:
    """Whether dimensions are put into the order in which they are."""
    return node.target is aten.permute.default and list(node.args[1]) == list(range(len(node.args[1])))  # type: ignore[arg-type]


def _expand_late(graph: fx.Graph) -> None:
    """Compute on the few elements that are expanded: log p of all words once a topic, not once a word observed."""
    for node in graph.nodes:  # the gradient of `clamp` writes into a comparison that nothing else reads
        if node.target is aten.logical_and_.default and _is_own(node, COMPARISONS):
            node.target = aten.logical_and.default
    for node in list(graph.nodes):
        sources = node.all_input_nodes
        if node.target not in POINTWISE or not all(source.target is aten.expand.default for source in sources):
            continue
        if any(user.target not in READERS for user in node.users):
            continue
        inner = {source: _unexpanded(source) for source in sources}
        before, after = {_shape(few) for few in inner.values()}, {_shape(source) for source in (*sources, node)}
        if len(before) != 1 or len(after) != 1 or None in before | after:
            continue
        if not all(few.meta["val"].is_contiguous() for few in inner.values()):
            continue  # or the order of strides could change, and with it what may be viewed
        with graph.inserting_before(node):
            few = graph.call_function(node.target, *fx.node.map_arg((node.args, node.kwargs), inner.__getitem__))
            expanded = graph.call_function(aten.expand.default, (few, list(_shape(node))))
        few.meta["val"] = node.meta["val"].new_empty(next(iter(before)))
        expanded.meta = dict(node.meta)
        node.replace_all_uses_with(expanded)
        graph.erase_node(node)


def _unexpanded(node: fx.Node) -> fx.Node:
    while node.target is aten.expand.default and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _add_in_place(graph: fx.Graph) -> None:
    for node in graph.nodes:
        if node.target in ADDS and _is_own(node, ZEROS):
            node.target = ADDS[node.target]


def _is_own(node: fx.Node, made_by: tuple[Any, ...]) -> bool:
    """Whether the first argument is made by one of these operations, and read nowhere else."""
    first, *others = node.args
    alone = isinstance(first, fx.Node) and first.target in made_by and len(first.users) == 1
    return alone and all(part is not first for part in others)


def _remove_ones(graph: fx.Graph) -> None:
    """Leave out products with 1, quotients and powers by 1, such as weights that are 1 and derivatives of squares.

    Inputs and results stay, so that none of the latter is one of the former, and so does a copy of what is written later.
    """
    place = {node: number for number, node in enumerate(graph.nodes)}
    writes = [(place[node.args[0]], place[node]) for node in graph.nodes if _writes(node)]
    for node in list(graph.nodes):
        if node.target not in BY_ONE or node.args[1] != 1 or any(user.op == "output" for user in node.users):
            continue
        source, here = node.args[0], place[node]
        if any(made < here < written for made, written in writes):
            continue
        if isinstance(source, fx.Node) and source.op == "call_function" and _alike(source, node):
            node.replace_all_uses_with(source)
            graph.erase_node(node)


def _alike(a: fx.Node, b: fx.Node) -> bool:
    """Whether two results have one shape, dtype and order of strides."""
    first, second = a.meta.get("val"), b.meta.get("val")
    return (
        isinstance(first, Tensor)
        and isinstance(second, Tensor)
        and (first.shape, first.dtype, first.stride()) == (second.shape, second.dtype, second.stride())
    )


def _take_sizes(graph: fx.Graph) -> None:
    """|x| in place of x times its sign, which is written so for its slope at 0, where no gradient asks for the sign."""
    for node in list(graph.nodes):
        if node.target is not aten.mul.Tensor or not all(isinstance(part, fx.Node) for part in node.args):
            continue
        number, sign = node.args
        of_one = sign.target is aten.copysign.Tensor and sign.args[1] is number and len(sign.users) == 1
        written = any(_writes(user) for user in number.users)
        if of_one and sign.args[0].target in ONES and _alike(number, node) and not written:
            with graph.inserting_before(node):
                size = graph.call_function(aten.abs.default, (number,))
            size.meta = dict(node.meta)
            node.replace_all_uses_with(size)
            graph.erase_node(node)


def _remove_repeats(graph: fx.Graph) -> None:
    """Compute equal operations once. Only valid if the program writes into no tensor but its own, so that values stay."""
    written = {node.args[0] for node in graph.nodes if _writes(node)}
    seen: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or _has_effect(node) or node.target in FRESH or node in written:
            continue
        key = (node.target, _frozen(node.args), _frozen(node.kwargs))
        first = seen.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)


def _compute_constants(module: fx.GraphModule) -> None:
    """Compute what depends on no input now, and keep it as a constant."""
    written = {node.args[0] for node in module.graph.nodes if _writes(node)}
    known: dict[fx.Node, Any] = {}
    for node in list(module.graph.nodes):
        if node.op == "get_attr":
            known[node] = getattr(module, str(node.target))
        fresh = node.target in FRESH or node in written
        if (
            node.op != "call_function"
            or fresh
            or _has_effect(node)
            or any(n not in known for n in node.all_input_nodes)
        ):
            continue
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
        known[node] = node.target(*args, **kwargs)
        if not isinstance(known[node], Tensor):
            continue
        name = f"constant_{node.name}"
        module.register_buffer(name, known[node], persistent=False)
        with module.graph.inserting_before(node):
            instead = module.graph.get_attr(name)
        instead.meta = dict(node.meta)
        known[instead] = known[node]
        node.replace_all_uses_with(instead)


def _shape(node: fx.Node) -> Any:
    value = node.meta.get("val")
    return value.shape if isinstance(value, Tensor) else None


def _frozen(value: Any) -> Any:
    """A hashable key of an argument: numbers by type and value (1 is not 1.0), nodes by identity."""
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(part) for part in value)
    if isinstance(value, dict):
        return tuple((name, _frozen(part)) for name, part in sorted(value.items()))
    return (type(value), repr(value)) if isinstance(value, (int, float, complex)) else value


def _schema(node: fx.Node) -> Any:
    return getattr(node.target, "_schema", None)


def _writes(node: fx.Node) -> bool:
    return node.op == "call_function" and _schema(node) is not None and bool(_schema(node).is_mutable)


def _changes_only_its_own(node: fx.Node) -> bool:
    if not _writes(node):
        return True
    target: Any = node.args[0] if node.args else None
    return isinstance(target, fx.Node) and target.target in FRESH


def _has_effect(node: fx.Node) -> bool:
    """Whether a node must stay even if nothing reads it: it writes, draws random numbers, or is of an unknown kind."""
    if node.op in ("placeholder", "output"):
        return True
    if node.op != "call_function":
        return False
    if _schema(node) is None:
        return node.target is not operator.getitem
    return _writes(node) or torch.Tag.nondeterministic_seeded in node.target.tags  # type: ignore[union-attr]

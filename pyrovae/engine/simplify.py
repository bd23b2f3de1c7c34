"""Simplification of traced programs: operations are removed that a person would not have written.

On a CPU each operation costs some microseconds to start, which is most of the time of a small network's step. A trace contains
views that change nothing, the same arithmetic once for each use of its result, and results that nothing reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten
ALIASES = (aten.alias.default, aten.detach.default)
SAME_SHAPE = (aten.expand.default, aten.view.default, aten._unsafe_view.default)
FRESH = (aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default, aten.empty_strided.default)


def simplify(module: fx.GraphModule) -> None:
    """Drop views of the same shape, double transposes and unread results, and compute repeats and constants once, in place."""
    graph = module.graph
    _remove_views(graph)
    if all(_changes_only_its_own(node) for node in graph.nodes):
        _remove_repeats(graph)
        _compute_constants(module)
    graph.eliminate_dead_code(_has_effect)
    module.recompile()


def _remove_views(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
            continue
        source = node.args[0]
        instead: fx.Node | None = None
        if node.target in ALIASES or (node.target in SAME_SHAPE and _shape(node) == _shape(source) is not None):
            instead = source
        elif node.target is aten.t.default and source.target is aten.t.default and isinstance(source.args[0], fx.Node):
            instead = source.args[0]
        if instead is not None:
            node.replace_all_uses_with(instead)
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
        return not _is_getitem(node.target)
    return _writes(node) or torch.Tag.nondeterministic_seeded in node.target.tags  # type: ignore[union-attr]


def _is_getitem(target: Callable[..., Any] | str) -> bool:
    return getattr(target, "__name__", "") == "getitem"

"""The graphical model of a pair, found by running it: as data, as text, and as a picture."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.inspect import TrackProvenance
from pyro.ops.provenance import detach_provenance, get_provenance, track_provenance
from torch import Tensor

from pyrovae.pair.batch import take_rows
from pyrovae.pair.parameters import evaluating, fork_rng
from pyrovae.pair.program import distribution_name, sample_sites


@dataclass(frozen=True)
class Node:
    """A sample site: its distribution's class, the shape of one row's event, what it depends on, and its plates."""

    name: str
    distribution: str
    event_shape: tuple[int, ...]
    parents: tuple[str, ...]  # sites, and arguments that are no site of that name
    plates: tuple[str, ...]
    observed: bool


def graph(pair: Any, batch: Mapping[str, Tensor]) -> dict[str, list[Node]]:
    """{"model": sites, "guide": sites} in the order in which they are sampled, from one run on the first rows of a batch.

    Parents are found by following values through the operations on them: what is read as a Python number leaves no mark.
    """
    rows = take_rows(dict(batch), slice(0, 2))
    with fork_rng(), evaluating(pair), torch.no_grad(), pyro.validation_enabled(False):
        return {side: _nodes(getattr(pair, side), rows) for side in ("model", "guide")}


def graph_text(pair: Any, batch: Mapping[str, Tensor]) -> str:
    """The graph in lines: p(z) p(x | z), and each site with its distribution.

    model  p(z) p(x | z)
      z ~ Normal (10)
      x ~ Bernoulli (64), observed
    guide  q(z | x)
      z ~ Normal (10)
    """
    lines = []
    for side, nodes in graph(pair, batch).items():
        letter = "p" if side == "model" else "q"
        factors = [f"{letter}({node.name}{' | ' if node.parents else ''}{', '.join(node.parents)})" for node in nodes]
        lines.append(f"{side}  {' '.join(factors)}")
        for node in nodes:
            shape = ", ".join(map(str, node.event_shape)) or "a number"
            shared = "" if node.plates else ", one for all rows"
            lines.append(
                f"  {node.name} ~ {node.distribution} ({shape}){', observed' if node.observed else ''}{shared}"
            )
    return "\n".join(lines)


def draw_graph(pair: Any, batch: Mapping[str, Tensor], path: Path) -> Path:
    """Draw the model's graph in plate notation by `pyro.render_model` into a .png, .svg or .pdf; returns what was written.

    Graphviz's program `dot` draws; without it the graph is written as text for it, `path` with the ending .gv.
    """
    rows = take_rows(dict(batch), slice(0, 2))
    with fork_rng(), evaluating(pair), torch.no_grad(), pyro.validation_enabled(False):
        drawn = pyro.render_model(pair.model, model_kwargs=rows, render_distributions=True)
    if shutil.which("dot") is None:
        path = path.with_suffix(".gv")
        path.write_text(drawn.source)
    else:
        path.write_bytes(drawn.pipe(format=path.suffix[1:]))
    return path


def _nodes(program: Any, rows: Mapping[str, Tensor]) -> list[Node]:
    try:
        return _tracked(program, {name: track_provenance(value, frozenset({name})) for name, value in rows.items()})
    except RuntimeError:  # some of torch's samplers do not take tensors with marks: the graph without its arrows
        return _tracked(program, rows)


def _tracked(program: Any, rows: Mapping[str, Tensor]) -> list[Node]:
    with TrackProvenance():
        trace = poutine.trace(program).get_trace(**rows)
    found = []
    for name, node in sample_sites(trace).items():
        value = detach_provenance(node["value"]) if node["is_observed"] else node["value"]
        above = get_provenance(node["fn"].log_prob(value)) - {name}
        if not above:
            # a flow keeps the density of its own draw, which so has lost its marks; another draw has them, unless its
            # distribution draws in a way that they do not go through
            with suppress(RuntimeError):
                above = get_provenance(node["fn"].sample()) - {name}
        found.append(
            Node(
                name=name,
                distribution=distribution_name(node["fn"]),
                event_shape=tuple(node["fn"].event_shape),
                # once, where an observed site has the name of its argument
                parents=tuple(dict.fromkeys(part for part in [*trace.nodes, *rows] if part in above)),
                plates=tuple(frame.name for frame in node["cond_indep_stack"]),
                observed=bool(node["is_observed"]),
            )
        )
    return found

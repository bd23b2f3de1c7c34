"""The graphical model of a pair, found by running it: as nodes, as text, and as a picture."""

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

from pyrovae._arguments import as_path
from pyrovae._files import write_file
from pyrovae.pair.batch import as_batch, take_rows
from pyrovae.pair.parameters import evaluating, every_module, fork_rng
from pyrovae.pair.program import PairLike, arguments, distribution_name, sample_sites


@dataclass(frozen=True)
class Node:
    """A sample site as a node of the graphical model."""

    name: str
    distribution: str  # name of its class
    event_shape: tuple[int, ...]  # of one row
    parents: tuple[str, ...]  # the sites and arguments that its distribution depends on
    plates: tuple[str, ...]
    observed: bool


def graph(pair: PairLike, batch: Any) -> dict[str, list[Node]]:
    """The graphical model and its guide as nodes, each with the parents that its distribution depends on.

    Parents are found by following tensors through operations. A value that is read as a Python number is not followed.

    Args:
        pair: Model and guide.
        batch: Rows, as `pv.fit` takes them. The pair is run on the first two.

    Returns:
        For "model" and "guide", their sites in the order in which they are sampled. A node has a `name`, the name of its
        `distribution`, the `event_shape` of one row, `parents`, `plates`, and whether it is `observed`.

    Example:
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6)), pv.mlp(6, fam.Normal(2)))
        >>> nodes = pv.graph(vae, {"x": torch.zeros(5, 6)})
        >>> [(node.name, node.parents) for node in nodes["model"]]
        [('z', ()), ('x', ('z',))]
    """
    rows = _few(pair, batch)
    with fork_rng(), evaluating(pair), torch.no_grad(), pyro.validation_enabled(False):
        return {side: _nodes(getattr(pair, side), rows) for side in ("model", "guide")}


def parents(program: Any, batch: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """For each site of a program its parents among sites and arguments, found as by `graph`, from one run on a batch."""
    return {node.name: node.parents for node in _nodes(program, batch)}


def graph_text(pair: PairLike, batch: Any) -> str:
    """The factorisations of model and guide, such as p(z) p(x | z) and q(z | x), and the distribution of each site, as text.

    Args:
        pair: Model and guide.
        batch: Rows, as `pv.fit` takes them. The pair is run on the first two.

    Returns:
        The factorisation of the model and one line per site, with the shape of one row's event; the same for the guide.

    Example:
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6)), pv.mlp(6, fam.Normal(2)))
        >>> print(pv.graph_text(vae, {"x": torch.zeros(5, 6)}))
        model  p(z) p(x | z)
          z ~ Normal (2)
          x ~ Bernoulli (6), observed
        guide  q(z | x)
          z ~ Normal (2)
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


def draw_graph(pair: PairLike, batch: Any, path: str | Path) -> Path:
    """Draw the graphical model of p(x, z) in plate notation, by `pyro.render_model`.

    Graphviz's program `dot` makes the picture. Where it is not installed, the graph is written in Graphviz's own language
    instead, to a file of the same name that ends in `.gv`.

    Args:
        pair: Model and guide. Only the model is drawn.
        batch: Rows, as `pv.fit` takes them. The model is run on the first two.
        path: File to write, ending in `.png`, `.svg` or `.pdf`.

    Returns:
        The file that was written: `path`, or the one that ends in `.gv`.

    Example:
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6)), pv.mlp(6, fam.Normal(2)))
        >>> written = pv.draw_graph(vae, {"x": torch.zeros(5, 6)}, "vae.svg")
        >>> written.exists(), written.stem
        (True, 'vae')
    """
    path, rows = as_path("path", path), _few(pair, batch)
    with fork_rng(), evaluating(pair), torch.no_grad(), pyro.validation_enabled(False):
        drawn = pyro.render_model(pair.model, model_kwargs=rows, render_distributions=True)
    if shutil.which("dot") is None:
        path = path.with_suffix(".gv")
        write_file(path, drawn.source.encode())
    else:
        write_file(path, drawn.pipe(format=path.suffix[1:]))
    return path


def _few(pair: PairLike, batch: Any) -> dict[str, Tensor]:
    """Two rows, where the pair's parameters are."""
    arguments(pair)  # says what is wrong with it
    as_it_is = isinstance(batch, Mapping) and all(isinstance(value, Tensor) for value in batch.values())
    rows = take_rows(dict(batch) if as_it_is else as_batch(pair, batch), slice(0, 2))
    parameters = (p for module in every_module(pair).values() for p in module.parameters())
    device = next((p.device for p in parameters), None)
    return rows if device is None else {name: value.to(device) for name, value in rows.items()}


def _nodes(program: Any, rows: Mapping[str, Tensor]) -> list[Node]:
    try:
        return _tracked(program, {name: track_provenance(value, frozenset({name})) for name, value in rows.items()})
    except RuntimeError:  # some samplers of torch do not take tracked tensors: find the nodes without their parents
        return _tracked(program, rows)


def _tracked(program: Any, rows: Mapping[str, Tensor]) -> list[Node]:
    with TrackProvenance():
        trace = poutine.trace(program).get_trace(**rows)
    found = []
    for name, node in sample_sites(trace).items():
        value = detach_provenance(node["value"]) if node["is_observed"] else node["value"]
        above = get_provenance(node["fn"].log_prob(value)) - {name}
        if not above:
            # A flow keeps the log-density of its own draw, which is not tracked. A new draw is, unless the distribution's
            # sampler does not pass tracking on.
            with suppress(RuntimeError):
                above = get_provenance(node["fn"].sample()) - {name}
        found.append(
            Node(
                name=name,
                distribution=distribution_name(node["fn"]),
                event_shape=tuple(node["fn"].event_shape),
                # an observed site and its argument may share a name, which is listed once
                parents=tuple(dict.fromkeys(part for part in [*trace.nodes, *rows] if part in above)),
                plates=tuple(frame.name for frame in node["cond_indep_stack"]),
                observed=bool(node["is_observed"]),
            )
        )
    return found

"""A pair: a model p(x, z) and its guide q(z | x), two Pyro programs with the same arguments, and how they are run on a batch.

Nothing here knows a particular graph: everything that is known about a pair is found by running it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyrovae.errors import PairError
from pyrovae.pair.handlers import DATA_PLATE, PARTICLE_PLATE, Enumerate, Replay, with_particles


@dataclass(frozen=True)
class Pair:
    """Two functions, modules or AutoGuides held together: `Pair(model, guide)`. Any object with both names does as well.

    A module that a function only registers with `pyro.module` has its parameters trained and saved; its buffers and its
    evaluation mode (batch norm, dropout) are out of sight: hold such a module in the pair.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]


def _signature(function: Any) -> inspect.Signature:
    # An nn.Module's own __call__ takes (*args, **kwargs); its forward tells the names.
    return inspect.signature(function.forward if isinstance(function, nn.Module) else function)


def arguments(pair: Any) -> dict[str, inspect.Parameter]:
    """The named arguments of the model, in order. PairError when the guide's differ, or when there are none."""
    for side in ("model", "guide"):
        if not callable(getattr(pair, side, None)):
            raise PairError(
                f"A pair needs a callable `{side}`, {type(pair).__name__} has none. "
                "Write both methods in one class, or hold two functions: pv.Pair(model, guide)."
            )
    named = {
        side: {
            name: p
            for name, p in _signature(getattr(pair, side)).parameters.items()
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        }
        for side in ("model", "guide")
    }
    open_ended = any(p.kind is p.VAR_KEYWORD for p in _signature(pair.guide).parameters.values())
    if not open_ended and list(named["model"]) != list(named["guide"]):
        differing = sorted(set(named["model"]) ^ set(named["guide"])) or list(named["guide"])
        raise PairError(
            f"Model and guide must take the same arguments: model({', '.join(named['model'])}), "
            f"guide({', '.join(named['guide'])}); they differ in {', '.join(map(repr, differing))}."
        )
    if not named["model"]:
        raise PairError("The model takes no argument: give it the data, model(x), so that a batch can reach it.")
    return named["model"]


def run(
    pair: Any, batch: Mapping[str, Tensor], *, num_particles: int = 1, plate_nesting: int = 0, enumerate: bool = False
) -> tuple[Any, Any]:
    """Trace the guide, then the model at the guide's values: (model trace, guide trace), without log-densities.

    With `enumerate`, sites marked so take all of their values at once, on the left of plates and particles, whose number
    `plate_nesting` must tell; else they are drawn.
    """
    guide = with_particles(pair.guide, num_particles, plate_nesting)
    model = with_particles(pair.model, num_particles, plate_nesting)
    if not enumerate:
        guide_trace = poutine.trace(guide).get_trace(**batch)
        return poutine.trace(Replay(guide_trace)(model)).get_trace(**batch), guide_trace
    summed = Enumerate(-plate_nesting - 1 - (num_particles > 1))
    guide_trace = poutine.trace(summed(guide)).get_trace(**batch)
    # Replay stands inside: what the guide has given a value is not enumerated again.
    return poutine.trace(summed(Replay(guide_trace)(model))).get_trace(**batch), guide_trace


def plate_nesting(*sides: Mapping[str, Any]) -> int:
    """How deep the vectorised plates of these sample sites nest, the particles' plate left out."""
    frames = [f for sites in sides for node in sites.values() for f in node["cond_indep_stack"]]
    return max((-f.dim for f in frames if f.vectorized and f.name != PARTICLE_PLATE), default=0)


def is_marked(node: Any) -> bool:
    """Whether a site asks to be enumerated; an observed one has nothing to enumerate."""
    return node["infer"].get("enumerate") is not None and not node["is_observed"]


def sample_sites(trace: Any) -> dict[str, Any]:
    """The random sample sites of a trace by name: neither a plate's own subsampling nor `pyro.deterministic`."""
    return {
        name: node
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and not site_is_subsample(node) and not node["infer"].get("_deterministic")
    }


def is_local(node: Any) -> bool:
    return any(f.name == DATA_PLATE for f in node["cond_indep_stack"])


def distribution_name(fn: Any) -> str:
    """The class of what stands inside of Independent, expanded and masked distributions."""
    while type(fn).__name__ in ("Independent", "ExpandedDistribution", "MaskedDistribution"):
        fn = fn.base_dist
    return type(fn).__name__

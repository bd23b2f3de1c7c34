"""Rows drawn from the model in place of those given, `(x, z) ~ p(x, z | c)`, with the same conditions c and the same gaps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from pyrovae.errors import PairError, PyrovaeError
from pyrovae.pair.batch import Batch
from pyrovae.pair.handlers import DrawObserved, SetValues
from pyrovae.pair.layout import Layout
from pyrovae.pair.masks import masked_out
from pyrovae.pair.mistakes import in_words
from pyrovae.pair.parameters import fork_rng
from pyrovae.pair.program import PairLike, same_values, sample_sites, unwritten
from pyrovae.pair.turns import turn

# what to do where a site observes something else than an argument, as the end of a sentence
AS_A_WHOLE = (
    "write obs=x for an argument x, in the plate 'data' alone, and prepare the data before the fit. Parts that are observed "
    "one by one, as obs=x[:, t] for each t, are one site of the whole row, as dist.Normal(torch.stack(locs, -1), 1.0)"
    ".to_event(1), or, where they depend on one another, as x[:, t] on x[:, t - 1], a distribution of your own whose sample "
    "draws them in turn"
)


class Simulated(NamedTuple):
    """Rows drawn from the model, and the latent values that they came from."""

    rows: Batch
    latent: dict[str, Tensor]


def observed_arguments(layout: Layout) -> dict[str, str]:
    """The observed sites of rows, with the argument that each observes.

    Raises:
        PairError: Something is observed that is no argument, or by all rows together, or in another plate besides "data".
    """
    sites: dict[str, str] = {}
    for site in layout.sites:
        if site.role != "observed" or site.objective_only or (site.is_factor and not site.local):
            continue
        if site.is_factor:
            raise PairError(
                f"Rows cannot be simulated, since site {site.name!r} is a factor (pyro.factor), a number of a row and no "
                "distribution: write a likelihood as a distribution of its own, and mark a penalty objective_only."
            )
        if site.argument is None or not site.local or site.plates or site.argument in sites.values():
            raise PairError(
                f"Rows cannot be simulated, since site {site.name!r} does not observe an argument as it is: {AS_A_WHOLE}."
            )
        sites[site.name] = site.argument
    return sites


def simulated(pair: PairLike, batch: Mapping[str, Tensor], layout: Layout) -> Simulated:
    """Draw a row from the model for each of those given, without gradient.

    Arguments that sites observe are replaced, and all others, conditions, stay. Gaps stay gaps, as if they did not depend on
    the values: NaN, and what stands where the model masks. Nothing is read on the host; `check_simulated` has the checks.

    Raises:
        PairError: As `observed_arguments`.
    """
    arguments = observed_arguments(layout)
    nodes = _drawn(pair, batch)
    rows = dict(batch)
    for site, name in arguments.items():
        given, node = batch[name], nodes[site]
        value, out = node["value"], masked_out(node["fn"], node["mask"], node["value"])
        gone = given.isnan() if out is None else given.isnan() | out.expand(value.shape).reshape(given.shape)
        rows[name] = torch.where(gone, given, value.reshape(given.shape).to(given.dtype))
    return Simulated(rows, {name: node["value"] for name, node in nodes.items() if name not in arguments})


def check_simulated(pair: PairLike, batch: Mapping[str, Tensor], layout: Layout) -> Simulated:
    """`simulated`, after a check that the model draws its rows without reading those given.

    Raises:
        PairError: As `observed_arguments`; a site cannot be drawn, the model reads what it should draw in another way than by
            `obs=`, or a site observes its argument transposed.
    """
    arguments = observed_arguments(layout)
    others = {name: _others(value) if name in arguments.values() else value for name, value in batch.items()}
    with torch.no_grad():
        try:
            with fork_rng():
                nodes = _drawn(pair, batch)
        except PyrovaeError:
            raise
        except (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError) as error:
            raise PairError(
                f"Rows cannot be drawn from the model ({type(error).__name__}: {in_words(error)}): take what needs none of "
                "them, as a loss pv.RWS(num_particles=10) or pv.Trace_ELBO(), and pv.ais in place of pv.bdmc."
            ) from error
        try:
            with fork_rng():
                again = _drawn(pair, others)
            same = all(same_values(node["value"], again[name]["value"]) for name, node in nodes.items())
        except (RuntimeError, ValueError, TypeError, AttributeError, KeyError):  # values that the model could not read
            same = False
        if not same:
            raise PairError(
                f"The model reads {', '.join(map(repr, arguments.values()))} in another way than by obs=, and so cannot draw "
                "it: give what it reads as an argument of its own."
            )
        found = simulated(pair, batch, layout)
        seen = sample_sites(poutine.trace(SetValues(found.latent)(pair.model)).get_trace(**found.rows))
    for site, name in arguments.items():
        value = seen[site]["value"]
        if value.numel() != found.rows[name].numel() or not same_values(
            value.reshape(batch[name].shape), found.rows[name]
        ):
            raise PairError(
                f"Site {site!r} observes {name!r} in another form than it is given, of shape {tuple(value.shape)}, so it "
                "cannot be drawn anew: write obs=x, and prepare the data before the fit."
            )
    return found


def _drawn(pair: PairLike, batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """The sites that the model draws where it observes nothing, apart from those marked `objective_only`."""
    with torch.no_grad(), turn(), unwritten(batch, "model"):
        nodes = sample_sites(poutine.trace(DrawObserved()(pair.model)).get_trace(**batch))
    return {name: node for name, node in nodes.items() if not node["is_observed"]}


def _others(value: Tensor) -> Tensor:
    """As many other rows: the first half of them, each twice; zeros where there is but one."""
    if len(value) == 1:
        return torch.zeros_like(value)
    return value[torch.arange(len(value), device=value.device) // 2]

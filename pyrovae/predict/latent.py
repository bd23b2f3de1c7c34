"""Draws of latent sites given what is known: from the guide, or where it needs more than that, from the model, with weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.batching.checks import NotedClasses, noting_classes
from pyrovae.errors import DataError, NotFiniteError, PairError, PyrovaeError
from pyrovae.fitted.fitted import Fit
from pyrovae.fitted.runs import global_draw, global_sites
from pyrovae.pair.batch import Batch, num_rows, take_rows
from pyrovae.pair.handlers import DATA_PLATE, SetRows, SetValues, Uncondition
from pyrovae.pair.layout import union
from pyrovae.pair.program import Pair, is_local, sample_sites, unwritten
from pyrovae.predict.dependence import common_sites, reached, site_parents
from pyrovae.predict.missing import missing_arguments, not_generated, pass_them

# The draws of the model for each row from which one is chosen, and the rows of one run.
PRIOR_DRAWS, ROWS_AT_ONCE = 4096, 2**14


def sites_of(fitted: Fit, model: Any, batch: Batch, known: Mapping[str, Tensor]) -> tuple[dict[str, Any], NotedClasses]:
    """The sites of a run of the model, and what `noting_classes` has noted."""
    try:
        with noting_classes(fitted.pair, known) as noted, unwritten(batch, "model"):
            return sample_sites(poutine.trace(model).get_trace(**batch)), noted
    except PyrovaeError:
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:  # some distributions refuse NaN
        first_line = (str(error).splitlines() or [""])[0]
        if "subsample_size does not match" in first_line:
            raise PairError(
                f"The plate 'data' has a number of rows of its own, and these are {num_rows(batch)} ({first_line}): write "
                "`pyro.plate('data', len(x))` in model and guide, where x is an argument."
            ) from error
        if lacking := not_generated(fitted, known):
            raise DataError(f"The model failed ({first_line}). {pass_them(fitted, lacking)}") from error
        raise PairError(reads_data(f"The model failed ({first_line}). Perhaps")) from error


def reads_data(what: str) -> str:
    """The message for a model that reads what it should generate; `what` says how that was noticed."""
    return (
        f"{what} the model reads an argument that it is to generate, other than by obs=. "
        "Make what it reads an argument of its own, and pass it in given={...}."
    )


def is_beside(node: Any) -> bool:
    """Whether a site is no part of the model's distribution, but of what a fit ascends alone."""
    return bool(node["is_observed"] and node["infer"].get("objective_only"))


def draw_globals(fitted: Fit, batch: Batch, latent: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A value of each global latent site: the given one, or else one draw from the guide, the approximate posterior."""
    layout = union(fitted.layouts)
    names = {site.name for site in global_sites(layout)}
    if not names:
        return {}
    # What is not given is NaN, so that a global site for which the guide reads the data shows up.
    filled = {name: torch.nan_to_num(value) for name, value in batch.items()}
    try:
        drawn = global_draw(fitted, batch, layout)
    except (RuntimeError, ValueError):  # a site of the rows that the guide draws before does not take NaN
        drawn = global_draw(fitted, filled, layout)
    if given := {name: latent[name].reshape(drawn[name]["value"].shape) for name in names & latent.keys()}:
        fixed = replace(fitted, pair=Pair(fitted.pair.model, SetValues(given)(fitted.pair.guide)))
        drawn = global_draw(fixed, filled if names <= given.keys() else batch, layout)
    if read := [name for name, node in drawn.items() if bool(torch.isnan(node["value"].double()).any())]:
        raise PairError(
            f"The guide reads the data for {', '.join(map(repr, read))}, which all rows share, and here are none: draw values "
            f"with pv.posterior(fitted, data, site={read[0]!r}), and give one of them, given={{{read[0]!r}: ...}}."
        )
    return {name: node["value"] for name, node in drawn.items()}


def from_guide(
    fitted: Fit,
    batch: Batch,
    known: Mapping[str, Tensor],
    held: Mapping[str, Tensor],
    sites: Collection[str] | None,
) -> dict[str, Any]:
    """Nodes of the guide's trace by name, if what is given depends on latent sites that matter for what is wanted.

    Where the guide cannot draw what is needed from the given arguments alone, draws of the model are resampled.
    """
    observed = {
        s.name for layout in fitted.layouts for s in layout.sites if s.argument in known and not s.objective_only
    }
    if not observed:
        return {}
    above = site_parents(fitted, take_rows(batch, slice(0, 2)), held)
    wanted = set(above) - observed - held.keys() if sites is None else set(sites) - observed
    if not common_sites(above, wanted, observed, held.keys()):
        return {}
    local = {s.name for s in union(fitted.layouts).sites if s.local}
    required = missing_arguments(fitted, known, ())
    inputs = {name: value for name, value in batch.items() if name in known or name in required}
    try:
        trace = poutine.trace(SetRows(held)(fitted.pair.guide)).get_trace(**inputs)
        nodes = {name: node for name, node in sample_sites(trace).items() if name in above and name not in held}
    except PyrovaeError:
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):
        nodes = {}
    drawn = {name: node for name, node in nodes.items() if not bool(torch.isnan(node["value"].double()).any())}
    integers = [name for name, (_, dtype) in required.items() if not dtype.is_floating_point]
    if integers or common_sites(above, wanted, observed, {*held, *drawn}):
        return _resampled(fitted, batch, known, held, sorted(reached(above, observed, {*held, *observed}) & local))
    return drawn


def _resampled(
    fitted: Fit, batch: Batch, known: Mapping[str, Tensor], held: Mapping[str, Tensor], names: Sequence[str]
) -> dict[str, Any]:
    """Joint draws of these sites from their posterior given the arguments, where the guide cannot draw them from these alone.

    Of many draws of the model, one is chosen for each row, with probabilities proportional to the density of what is given.

    Raises:
        PairError: The model reads an argument that is missing.
        NotFiniteError: A row has probability 0 at every draw.
    """
    num, shared = num_rows(batch), {s.name for s in union(fitted.layouts).sites if not s.local}
    repeats = max(1, min(PRIOR_DRAWS, ROWS_AT_ONCE // num))

    def repeated(value: Tensor) -> Tensor:
        return value.repeat(repeats, *(1 for _ in value.shape[1:]))

    given = {name: repeated(value) for name, value in known.items()}
    rows = {name: given.get(name, repeated(value)) for name, value in batch.items()}
    values = {name: value if name in shared else repeated(value) for name, value in held.items()}
    model = SetRows(values)(Uncondition(given.values())(fitted.pair.model))
    best, total, squares = (torch.full((num,), -torch.inf, dtype=torch.float64, device=fitted.device) for _ in range(3))
    found: dict[str, Any] = {}
    events: dict[str, int] = {}
    stacks: dict[str, Any] = {}
    for _ in range(math.ceil(PRIOR_DRAWS / repeats)):
        nodes, _ = sites_of(fitted, model, rows, given)
        log_w = torch.zeros((), dtype=torch.float64, device=fitted.device)
        for node in nodes.values():
            if is_local(node) and node["is_observed"] and not is_beside(node):
                log_w = log_w + _of_rows(node, node["fn"].log_prob(node["value"]).double())
        if bool(torch.isnan(log_w).any()):
            raise PairError(reads_data("What is given came out with a density of NaN:"))
        log_w = log_w.reshape(repeats, num)
        total = torch.logaddexp(total, log_w.logsumexp(0))
        squares = torch.logaddexp(squares, (2 * log_w).logsumexp(0))
        # the largest of log-weights with Gumbel noise is a draw with probabilities proportional to the weights
        score, pick = (log_w - torch.empty_like(log_w).exponential_().log()).max(0)
        for name in names:
            axis = nodes[name]["value"].dim() - len(nodes[name]["fn"].event_shape) + _data_dim(nodes[name])
            fresh = nodes[name]["value"].index_select(axis, pick * num + torch.arange(num, device=pick.device))
            if name in found:
                keep = (score <= best).reshape(-1, *(1 for _ in range(fresh.dim() - axis - 1)))
                fresh = torch.where(keep, found[name], fresh)
            found[name], stacks[name] = fresh, nodes[name]["cond_indep_stack"]
            events[name] = len(nodes[name]["fn"].event_shape)
        best = torch.maximum(best, score)
    if bool(torch.isinf(total).any()):
        raise NotFiniteError(
            f"A row has probability 0 at each of {PRIOR_DRAWS} draws of the model: no draw agrees with what is given. Give "
            "other values, or latent values that go with them."
        )
    if (fewest := (2 * total - squares).exp().min().item()) < 5:
        warnings.warn(
            f"What is given is so improbable under the model's own draws that for some row only {fewest:.1f} of {PRIOR_DRAWS} "
            "count. A guide that can do without the other arguments, as guide(x1=None, x2=None), would draw better.",
            stacklevel=2,
        )
    return {
        name: {"value": value, "fn": dist.Delta(value, event_dim=events[name]), "cond_indep_stack": stacks[name]}
        for name, value in found.items()
    }


def _data_dim(node: Any) -> int:
    return next(int(frame.dim) for frame in node["cond_indep_stack"] if frame.name == DATA_PLATE)


def _of_rows(node: Any, log_prob: Tensor) -> Tensor:
    """A log-density summed over all plates but that of the rows, `(N,)`."""
    others = [dim for dim in range(-log_prob.dim(), 0) if dim != _data_dim(node)]
    return log_prob.sum(others) if others else log_prob

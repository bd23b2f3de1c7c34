"""Running the model forward: given values are fixed, all other sites are drawn.

What is given says something about the sites on which it depends. These are drawn from the guide, given it, or where the
guide needs more, from the model, with weights; all other sites are drawn from the model.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.batching.checks import NotedClasses, check_classes, check_given, check_support, noting_classes
from pyrovae.errors import DataError, NotFiniteError, OptionError, PairError, PyrovaeError
from pyrovae.fitted.fitted import Fit, as_count, seeded
from pyrovae.fitted.runs import global_draw, global_sites
from pyrovae.objectives.terms import Terms
from pyrovae.pair.arrays import as_tensor
from pyrovae.pair.batch import Batch, known_rows, num_rows, take_rows
from pyrovae.pair.handlers import DATA_PLATE, SetValues, Uncondition
from pyrovae.pair.layout import Layout, Site, union
from pyrovae.pair.program import Pair, arguments, is_local, sample_sites, unwritten
from pyrovae.predict.dependence import common_sites, reached, site_parents

# The draws of the model for each row from which one is chosen, and the rows of one run.
PRIOR_DRAWS, ROWS_AT_ONCE = 4096, 2**14
# The name of one site, of several, or None for the only one.
Several = list[str] | tuple[str, ...]
Names = str | Several | None


def as_named(found: dict[str, Tensor], site: Names) -> Tensor | dict[str, Tensor]:
    """The values of one site alone, where no list of sites was asked for."""
    return found if isinstance(site, (list, tuple)) else next(iter(found.values()))


def observed_sites(layouts: Sequence[Layout]) -> dict[str, Site]:
    """The sites that the model observes in any of these layouts, by name, without those marked `objective_only`."""
    found = [s for layout in layouts for s in layout.sites if s.role == "observed" and not s.objective_only]
    return {site.name: next(s for s in found if s.name == site.name) for site in found}


def sites_to_generate(
    fitted: Fit, given: Collection[str], site: Names = None, layouts: Sequence[Layout] | None = None
) -> list[str]:
    """The observed sites of these names, or, for None, the only one whose argument is not given.

    If there are several, it is the only one whose argument is never missing, as x of a pair with an optional label y.
    `layouts` are those to choose from for None; all that the fit knows by default.
    """
    known = observed_sites(fitted.layouts)
    if site is None:
        candidates = [s for s in observed_sites(layouts or fitted.layouts).values() if s.argument not in given]
        if len(candidates) > 1:
            candidates = [s for s in candidates if not is_optional(fitted, s.argument)] or candidates
        if len(candidates) == 1:
            return [candidates[0].name]
        known = {s.name: s for s in candidates} or known
    offered = replace(union(fitted.layouts), sites=tuple(known.values()))
    wanted = site if isinstance(site, (list, tuple)) else [site]
    if not wanted:
        raise OptionError(f"site= is an empty list: name at least one of {list(known)}.")
    return [offered.site(name, role="observed").name for name in wanted]


def is_optional(fitted: Fit, argument: str | None) -> bool:
    """Whether an argument of the model may be None; an observed site without an argument counts as if it had one."""
    taken = arguments(fitted.pair)
    return argument not in taken or taken[argument].default is None


def without_none(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is given; an argument that is None is not."""
    return {name: value for name, value in (given or {}).items() if value is not None}


def split_given(fitted: Fit, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Given values in two dicts: those of the model's arguments, and those of its latent sites."""
    taken = arguments(fitted.pair)
    sites = [s.name for s in union(fitted.layouts).sites if s.role == "latent" and s.name not in taken]
    latent = {name: latent_values(fitted, name, value) for name, value in given.items() if name in sites}
    return {name: value for name, value in given.items() if name not in latent}, latent


def latent_values(fitted: Fit, name: str, values: Any) -> Tensor:
    """Values of a latent site as a tensor on the device of the weights: `(N, *event)`, or `(*plates, *event)` of a global one.

    Raises:
        DataError: The values do not have the shape of the site.
    """
    site = union(fitted.layouts).site(name, role="latent")
    dtypes = [dtype for _, dtype in fitted.arguments.values() if dtype.is_floating_point]
    if not site.local:
        one = values.reshape(1) if isinstance(values, Tensor) and not values.dim() else np.atleast_1d(values)
        found = as_tensor(name, one, dtypes[0] if dtypes else None).to(fitted.device, copy=True)
        if [n for n in found.shape if n != 1] != [n for n in site.shape if n != 1]:
            raise DataError(
                f"{name!r} is one value for all rows, of shape {site.shape}, got {tuple(found.shape)}. Ask once for each of "
                "several values."
            )
        return found.reshape(site.shape)
    found = as_tensor(name, values, dtypes[0] if dtypes else None).to(fitted.device, copy=True)
    if tuple(found.shape[1:]) != tuple(site.event_shape):
        raise DataError(f"{site.name!r} must have rows of shape {site.event_shape}, got {tuple(found.shape[1:])}.")
    return found


def run_model(
    fitted: Fit,
    num: int,
    given: Mapping[str, Any],
    latent: Mapping[str, Tensor],
    seed: int | None,
    sites: Collection[str] | None = None,
) -> dict[str, Any]:
    """Run the model for `num` new rows, and return its sample sites by name, as a trace has them.

    The arguments in `given` stay observed, the sites in `latent` have these values, global latent sites are drawn from the
    guide, and all others from the model; where a given argument depends on sites that are not given, those are drawn given the
    argument, see `_from_guide`.

    Args:
        fitted: The fitted pair.
        num: The number of rows.
        given: Arguments of the model, by name.
        latent: Values of latent sites.
        seed: The seed of the draws; None continues torch's random state.
        sites: The observed sites that are wanted; None for all that the model has.

    Raises:
        OptionError: `num` is less than 1.
        DataError: A given value is unknown to the model, has another shape, dtype or number of rows, or is outside the support
            of its site; or an argument is missing that the model needs.
        PairError: The model reads an argument that is missing because it should be generated.
    """
    num = as_count("num", num)
    taken = arguments(fitted.pair)
    everything = union(fitted.layouts)
    if unknown := [name for name in given if name not in taken]:
        names = [s.name for s in everything.sites if s.role == "latent"]
        raise DataError(
            f"given= takes arguments of the model, which are {sorted(taken)}, and its latent sites {names}, got {unknown}."
        )
    shared = {s.name for s in everything.sites if not s.local}
    if wrong := {name: len(value) for name, value in latent.items() if name not in shared and len(value) != num}:
        raise DataError(
            f"Latent sites must be given for num={num} rows, got {wrong} rows. Use z.expand(num, -1) of one row."
        )
    known = {name: _checked(fitted, name, value, num) for name, value in given.items()}
    _check_all_generated(fitted, known)
    with fitted.scope(), seeded(seed):
        batch = with_placeholders(fitted, num, known, sites)
        held = {**latent, **draw_globals(fitted, batch, latent)}
        guided = _from_guide(fitted, batch, known, held, sites)
        held |= {name: node["value"] for name, node in guided.items()}
        # `SetValues` is the outer handler: it sets its sites after `Uncondition` has marked them to be drawn.
        model = SetValues(held)(Uncondition(known.values())(fitted.pair.model))
        nodes, noted = _sites_of(fitted, model, batch, known)
        check_given(nodes, known, latent, noted)
    nodes = {name: node for name, node in nodes.items() if not _is_beside(node)}
    for name, node in nodes.items():
        if name in guided:  # its mean is that of the guide, too
            node["fn"] = guided[name]["fn"]
        value = node["value"]
        if value.is_floating_point() and bool(torch.isnan(value).any()):
            raise PairError(reads_data(f"Site {name!r} came out NaN:"))
    return nodes


def plain(node: Any, value: Tensor) -> Tensor:
    """A site's value, or a mean of its shape, as `(N, *plates, *event)`, without dimensions of plates that it is not in."""
    event = len(node["fn"].event_shape)
    dims = {int(frame.dim) - event for frame in node["cond_indep_stack"] if frame.vectorized}
    kept = [size for dim, size in enumerate(value.shape, -value.dim()) if dim >= -event or dim in dims]
    return value.reshape(kept) if torch.Size(kept).numel() == value.numel() else value


def _sites_of(
    fitted: Fit, model: Any, batch: Batch, known: Mapping[str, Tensor]
) -> tuple[dict[str, Any], NotedClasses]:
    """The sites of a run of the model, and what `noting_classes` has noted."""
    try:
        with noting_classes(fitted.pair, known) as noted, unwritten(batch, "model"):
            return sample_sites(poutine.trace(model).get_trace(**batch)), noted
    except PyrovaeError:
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:  # some distributions refuse NaN
        first_line = (str(error).splitlines() or [""])[0]
        raise PairError(reads_data(f"The model failed ({first_line}). Perhaps")) from error


def reads_data(what: str) -> str:
    """The message for a model that reads what it should generate; `what` says how that was noticed."""
    return (
        f"{what} the model reads an argument that it is to generate, other than by obs=. "
        "Make what it reads an argument of its own, and pass it in given={...}."
    )


def _is_beside(node: Any) -> bool:
    """Whether a site is no part of the model's distribution, but of what a fit ascends alone."""
    return bool(node["is_observed"] and node["infer"].get("objective_only"))


def _checked(fitted: Fit, name: str, value: Any, num: int) -> Tensor:
    """The values of a given argument. DataError unless all `num` rows are known and have the shape and dtype of the fit."""
    shape_and_dtype = fitted.arguments.get(name)
    found = as_tensor(name, value, shape_and_dtype[1] if shape_and_dtype else None).to(fitted.device, copy=True)
    shape, dtype = shape_and_dtype or (tuple(found.shape[1:]), found.dtype)
    if len(found) != num or tuple(found.shape[1:]) != shape or found.dtype != dtype:
        raise DataError(
            f"{name!r} must have num={num} rows of shape {shape} and dtype {str(dtype)[6:]} as in the fit, "
            f"got {tuple(found.shape)} {str(found.dtype)[6:]}."
        )
    if arguments(fitted.pair)[name].default is None and not bool(known_rows(found).all()):
        raise DataError(f"{name!r} is unknown (-1, or NaN) in some of the rows given: give it for all, or not at all.")
    return found


def _check_all_generated(fitted: Fit, known: Mapping[str, Tensor]) -> None:
    """DataError if an integer argument is missing that no site observes, so that the model cannot generate it.

    A floating one is replaced by NaN, which shows up where it is read; a placeholder that is an integer would not.
    """
    generated = {s.argument for layout in fitted.layouts for s in layout.sites}
    for name, (_, dtype) in _missing_arguments(fitted, known, ()).items():
        if name not in generated and not dtype.is_floating_point:
            raise DataError(f"The model reads {name!r}, which no site observes: pass it, given={{{name!r}: ...}}.")


# --- arguments that are missing


def with_placeholders(fitted: Fit, num: int, known: Mapping[str, Tensor], sites: Collection[str] | None) -> Batch:
    """A batch in which missing arguments are NaN, so that reading one gives NaN, or 0 if they are integers.

    An argument that may be None is left out, unless one of the sites that are wanted needs it in order to be there.
    """
    batch = dict(known)
    missing = _missing_arguments(fitted, known, needed_for(fitted, sites))
    if not missing and not batch:  # as of a model of which each argument may be None, but not all of them
        missing = _missing_arguments(fitted, known, [str(s.argument) for s in _wanted(fitted, sites)])
    for name, (shape, dtype) in missing.items():
        batch[name] = placeholder(num, shape, dtype, fitted.device)
    return {name: batch[name] for name in arguments(fitted.pair) if name in batch}


def placeholder(num: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """What stands for an argument that is to be drawn."""
    return torch.full((num, *shape), float("nan") if dtype.is_floating_point else 0, dtype=dtype, device=device)


def _wanted(fitted: Fit, sites: Collection[str] | None) -> list[Site]:
    return [s for s in observed_sites(fitted.layouts).values() if sites is None or s.name in sites]


def needed_for(fitted: Fit, sites: Collection[str] | None) -> list[str]:
    """The optional arguments without which the model does not have some of these sites; of all sites for None.

    Whether it has a site without the argument, too, is known from rows of the fit that lacked it.
    """
    found = []
    for site in _wanted(fitted, sites):
        without = [layout for layout in fitted.layouts if site.argument not in layout.arguments]
        drawn = any(other.name == site.name for layout in without for other in layout.sites)
        if site.argument is not None and is_optional(fitted, site.argument) and not drawn:
            found.append(site.argument)
    return found


def _missing_arguments(
    fitted: Fit, known: Mapping[str, Tensor], optional: Collection[str]
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Row shape and dtype of the arguments that are not given and cannot be None, and of these optional ones."""
    return {
        name: what
        for name, what in fitted.arguments.items()
        if name not in known and (name in optional or not is_optional(fitted, name))
    }


def completed(fitted: Fit, batch: Mapping[str, Tensor], layout: Layout, sites: Sequence[str]) -> Fit:
    """The fit with a model that draws these observed sites for rows which lack their arguments; the guide is as it was.

    Raises:
        PairError: The rows have one of the sites as a latent one, which is the guide's to predict.
    """
    for site in layout.sites:
        if site.name in sites and site.role != "observed":
            raise PairError(
                f"Site {site.name!r} is latent in rows that lack it, and so has no reconstruction: ask for its mean or most "
                f"probable class by pv.encode(fitted, data, site={site.name!r})."
            )
    here = {site.name for site in layout.sites}
    what = _missing_arguments(fitted, batch, needed_for(fitted, [name for name in sites if name not in here]))
    absent = {name: value for name, value in what.items() if is_optional(fitted, name)}
    known = {site.argument for site in layout.sites} | absent.keys()
    for site in observed_sites(fitted.layouts).values():
        if site.name in sites and site.name not in here and site.argument not in known:
            raise PairError(
                f"Rows with {', '.join(map(repr, batch))} alone have no site {site.name!r}: name another site."
            )
    if not absent:
        return fitted

    def model(**rows: Tensor) -> Any:
        device = next(iter(rows.values())).device
        others = {name: placeholder(num_rows(rows), *value, device) for name, value in absent.items()}
        shared = draw_globals(fitted, {**rows, **others}, {})
        drawn = SetValues({name: value for name, value in shared.items() if name not in here})
        return drawn(Uncondition(rows.values())(fitted.pair.model))(**rows, **others)

    return replace(fitted, pair=Pair(model, fitted.pair.guide))


def checked(fitted: Fit, layout: Layout, rows: Batch, numbers: Tensor, runs: Iterable[Terms]) -> Iterator[Terms]:
    """The terms of runs on rows with these numbers in the data, whose values are checked in the first run.

    Raises:
        DataError: Values are outside the support of their site, or no classes.
    """
    with noting_classes(fitted.pair, rows, numbers) as noted:
        for number, found in enumerate(runs):
            if number == 0:
                check_classes(noted, rows, numbers)
                for site in layout.sites:
                    term = found.sites.get(site.name)
                    if site.role != "observed" or not site.local or term is None or term.p is None:
                        continue
                    with suppress(NotImplementedError, AttributeError):  # of a distribution without a support
                        check_support(site.name, term.p.fn, term.value, numbers)
            yield found


# --- sites that are drawn from the guide


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


def _from_guide(
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
    required = _missing_arguments(fitted, known, ())
    inputs = {name: value for name, value in batch.items() if name in known or name in required}
    try:
        trace = poutine.trace(SetValues(held)(fitted.pair.guide)).get_trace(**inputs)
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
    model = SetValues(values)(Uncondition(given.values())(fitted.pair.model))
    best, total, squares = (torch.full((num,), -torch.inf, dtype=torch.float64, device=fitted.device) for _ in range(3))
    found: dict[str, Any] = {}
    for _ in range(math.ceil(PRIOR_DRAWS / repeats)):
        nodes, _ = _sites_of(fitted, model, rows, given)
        log_w = torch.zeros((), dtype=torch.float64, device=fitted.device)
        for node in nodes.values():
            if is_local(node) and node["is_observed"] and not _is_beside(node):
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
            found[name] = fresh
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
    return {name: {"value": value, "fn": dist.Delta(value)} for name, value in found.items()}


def _data_dim(node: Any) -> int:
    return next(int(frame.dim) for frame in node["cond_indep_stack"] if frame.name == DATA_PLATE)


def _of_rows(node: Any, log_prob: Tensor) -> Tensor:
    """A log-density summed over all plates but that of the rows, `(N,)`."""
    others = [dim for dim in range(-log_prob.dim(), 0) if dim != _data_dim(node)]
    return log_prob.sum(others) if others else log_prob

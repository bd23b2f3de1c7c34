"""Running the model forward: given values are fixed, all other sites are drawn.

What is given says something about the sites on which it depends. These are drawn from the guide, given it, or where the
guide needs more, from the model, with weights; all other sites are drawn from the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae._arguments import as_count, as_mapping
from pyrovae.batching.checks import check_given
from pyrovae.batching.memory import halvings
from pyrovae.errors import DataError, OptionError, PairError
from pyrovae.fitted.fitted import Fit, seeded
from pyrovae.fitted.limits import memory_of
from pyrovae.pair.arrays import as_dtype, as_tensor
from pyrovae.pair.batch import cast, known_rows
from pyrovae.pair.counted import is_factor
from pyrovae.pair.handlers import DATA_PLATE, SetRows, Uncondition
from pyrovae.pair.layout import union
from pyrovae.pair.program import arguments
from pyrovae.predict.latent import draw_globals, from_guide, is_beside, reads_data, sites_of
from pyrovae.predict.missing import not_generated, pass_them, with_placeholders


def without_none(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is given; an argument that is None is not. OptionError for what is no dict."""
    known = as_mapping("given", given, "values by the names of arguments or latent sites")
    return {name: value for name, value in known.items() if value is not None}


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
        found = _as_real(name, one, dtypes).to(fitted.device, copy=True)
        if [n for n in found.shape if n != 1] != [n for n in site.shape if n != 1]:
            raise DataError(
                f"{name!r} is one value for all rows, of shape {site.shape}, got {tuple(found.shape)}. Ask once for each of "
                "several values."
            )
        return found.reshape(site.shape)
    found = _as_real(name, values, dtypes).to(fitted.device, copy=True)
    if tuple(found.shape[1:]) != site.shape:
        raise DataError(f"{site.name!r} must have rows of shape {site.shape}, got {tuple(found.shape[1:])}.")
    return found


def _as_real(name: str, values: Any, dtypes: Sequence[torch.dtype]) -> Tensor:
    """Values of a latent site as a tensor; floating-point ones get the dtype of the rows."""
    found = as_tensor(name, values, dtypes[0] if dtypes else None)
    return as_dtype(name, found, dtypes[0]) if dtypes and found.is_floating_point() else found


def check_room(fitted: Fit, num: int) -> None:
    """Refuse to draw more rows at once than the memory has room for, before anything is made.

    Values of all sites may take a quarter of it: parameters and what is computed on the way take as much again, and more.

    Raises:
        OptionError: `num` is that large.
    """
    numbers = sum(math.prod(site.shape) for site in union(fitted.layouts).sites if site.local)
    most = memory_of(fitted.device) / 4 / (4 * max(1, numbers))
    if num > most:
        raise OptionError(
            f"{num} rows at once are too many: with the {numbers} numbers of each, those of up to {int(most)} have room in the "
            "memory. Draw fewer, several times, each time with another seed."
        )


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
    argument, see `from_guide`.

    Args:
        fitted: The fitted pair.
        num: The number of rows.
        given: Arguments of the model, by name.
        latent: Values of latent sites.
        seed: The seed of the draws; None continues torch's random state.
        sites: The observed sites that are wanted; None for all that the model has.

    Raises:
        OptionError: `num` is less than 1, or larger than the memory.
        DataError: A given value is unknown to the model, has another shape, dtype or number of rows, or is outside the support
            of its site; or an argument is missing that the model needs.
        PairError: The model reads an argument that is missing because it should be generated.
    """
    num = as_count("num", num)
    check_room(fitted, num)
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
        guided = from_guide(fitted, batch, known, held, sites)
        held |= {name: plain(node, node["value"]) for name, node in guided.items()}
        # `SetRows` is the outer handler: it sets its sites after `Uncondition` has marked them to be drawn.
        model = SetRows(held)(Uncondition(known.values())(fitted.pair.model))
        nodes, noted = sites_of(fitted, model, batch, known)
        check_given(nodes, known, latent, noted)
    nodes = {name: node for name, node in nodes.items() if not is_beside(node) and not is_factor(node)}
    for name, node in nodes.items():
        if name in guided:  # its mean is that of the guide, too
            node["fn"] = guided[name]["fn"]
        value = node["value"]
        if value.is_floating_point() and bool(torch.isnan(value).any()):
            if lacking := not_generated(fitted, known):
                raise DataError(pass_them(fitted, lacking))
            raise PairError(reads_data(f"Site {name!r} came out NaN:"))
    return nodes


def run_in_parts(
    fitted: Fit,
    num: int,
    given: Mapping[str, Any],
    latent: Mapping[str, Tensor],
    seed: int | None,
    sites: Collection[str] | None,
    read: Callable[[dict[str, Any]], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """Run the model for `num` new rows, at once if memory suffices, else for a part of them after the other.

    All parts have the same values of the global latent sites. For use in a question that is asked with `halving`.

    Args:
        fitted, num, given, latent, seed, sites: As for `run_model`.
        read: What is wanted of the sample sites of a run: values by name, `(N, *event)`, of global sites `(*event)`.

    Returns:
        The same of all rows.
    """
    num = as_count("num", num)
    size = max(1, num >> halvings())
    if size >= num:
        return read(run_model(fitted, num, given, latent, seed, sites))
    shared = {site.name: site.role == "latent" for site in union(fitted.layouts).sites if not site.local}
    held, parts = dict(latent), []
    with seeded(seed):
        for start in range(0, num, size):
            rows = slice(start, min(num, start + size))
            part = {name: value[rows] if len(value) == num else value for name, value in given.items()}
            own = {name: value if name in shared or len(value) != num else value[rows] for name, value in held.items()}
            nodes = run_model(fitted, rows.stop - start, part, own, None, sites)
            held |= {name: nodes[name]["value"] for name, drawn in shared.items() if drawn and name in nodes}
            parts.append(read(nodes))
    return {
        name: one if name in shared else torch.cat([part[name] for part in parts]) for name, one in parts[0].items()
    }


def plain(node: Any, value: Tensor) -> Tensor:
    """A site's value, or a mean of its shape, as `(N, *plates, *event)`, without dimensions of plates that it is not in."""
    event = len(node["fn"].event_shape)
    plates = {int(frame.dim) - event: frame.name for frame in node["cond_indep_stack"] if frame.vectorized}
    kept = [dim for dim in range(-value.dim(), 0) if dim >= -event or dim in plates]
    sizes = torch.Size([value.shape[dim] for dim in kept])
    if sizes.numel() != value.numel():
        return value
    rows = [place for place, dim in enumerate(kept) if plates.get(dim) == DATA_PLATE]
    return value.reshape(sizes).movedim(rows, list(range(len(rows))))


def _checked(fitted: Fit, name: str, value: Any, num: int) -> Tensor:
    """The values of a given argument. DataError unless all `num` rows are known and have the shape and dtype of the fit."""
    fitted.check_columns({name: value})
    shape_and_dtype = fitted.arguments.get(name)
    found = as_tensor(name, value, shape_and_dtype[1] if shape_and_dtype else None)
    if shape_and_dtype is not None:
        found = cast(fitted.pair, {name: found}, {name: shape_and_dtype[1]})[name]
    found = found.to(fitted.device, copy=True)
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

    A floating one is replaced by NaN, which shows up where it is read (the guide alone may read it); a placeholder that is an
    integer would not. All are named, so that they are asked for once.
    """
    lacking = not_generated(fitted, known)
    if any(not fitted.arguments[name][1].is_floating_point for name in lacking):
        raise DataError(pass_them(fitted, lacking))

"""Running the model forward: given values are fixed, all other sites are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyrovae.errors import DataError, OptionError, PairError, PyrovaeError
from pyrovae.fitted.fitted import Fit, seeded
from pyrovae.pair.batch import as_tensor, known_rows
from pyrovae.pair.handlers import Uncondition
from pyrovae.pair.layout import Layout
from pyrovae.pair.program import arguments, sample_sites, unwritten


def site_to_generate(fitted: Fit, layout: Layout, given: Mapping[str, Any], site: str | None = None) -> str:
    """The observed site of this name, or, for None, the only one whose argument is not given.

    If there are several, it is the only one whose argument is never missing, as x of a pair with an optional label y.
    """
    candidates = [s for s in layout.sites if s.role == "observed" and s.argument not in given and not s.objective_only]
    if site is None and len(candidates) > 1:
        taken = arguments(fitted.pair)
        candidates = [s for s in candidates if s.argument in taken and taken[s.argument].default is not None]
    if site is None and len(candidates) == 1:
        return candidates[0].name
    return layout.site(site, role="observed").name


def split_given(fitted: Fit, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Given values in two dicts: those of the model's arguments, and those of its latent sites."""
    taken = arguments(fitted.pair)
    sites = [s.name for s in fitted.layout.sites if s.role == "latent" and s.local and s.name not in taken]
    latent = {name: latent_values(fitted, name, value) for name, value in given.items() if name in sites}
    return {name: value for name, value in given.items() if name not in latent}, latent


def latent_values(fitted: Fit, name: str, values: Any) -> Tensor:
    """Values of a latent site, `(N, *event)`, as a tensor on the device of the weights.

    Raises:
        DataError: The rows do not have the shape of the site.
    """
    site = fitted.layout.site(name, role="latent", local=True)
    dtypes = [dtype for _, dtype in fitted.arguments.values() if dtype.is_floating_point]
    found = as_tensor(site.name, values, dtypes[0] if dtypes else None).to(fitted.device, copy=True)
    if tuple(found.shape[1:]) != tuple(site.event_shape):
        raise DataError(f"{site.name!r} must have rows of shape {site.event_shape}, got {tuple(found.shape[1:])}.")
    return found


def run_model(
    fitted: Fit, num: int, given: Mapping[str, Any], latent: Mapping[str, Tensor], seed: int | None
) -> dict[str, Any]:
    """Run the model for `num` new rows, and return its sample sites by name, as a trace has them.

    The arguments in `given` stay observed, the sites in `latent` have these values, global latent sites are drawn from the
    guide, and all others from the model.

    Raises:
        OptionError: `num` is less than 1.
        DataError: A given value is unknown to the model or has another shape, dtype or number of rows, or an argument is
            missing that the model needs.
        PairError: The model reads an argument that is missing because it should be generated.
    """
    if num < 1:
        raise OptionError(f"num must be at least 1, got {num}.")
    taken = arguments(fitted.pair)
    if unknown := [name for name in given if name not in taken]:
        sites = [s.name for s in fitted.layout.sites if s.role == "latent" and s.local]
        raise DataError(
            f"given= takes arguments of the model, which are {sorted(taken)}, and its latent sites {sites}, got {unknown}."
        )
    if wrong := {name: len(value) for name, value in latent.items() if len(value) != num}:
        raise DataError(
            f"Latent sites must be given for num={num} rows, got {wrong} rows. Use z.expand(num, -1) of one row."
        )
    known = {name: _checked(fitted, name, value, num) for name, value in given.items()}
    _check_all_generated(fitted, known)
    with fitted.scope(), seeded(seed):
        batch = _with_placeholders(fitted, num, known)
        values = {**_draw_globals(fitted, batch), **latent}
        # `condition` is the outer handler: it sets its sites after `Uncondition` has marked them to be drawn.
        model = poutine.condition(Uncondition(known.values())(fitted.pair.model), data=values)
        try:
            with unwritten(batch, "model"):
                nodes = sample_sites(poutine.trace(model).get_trace(**batch))
        except PyrovaeError:
            raise
        except (RuntimeError, ValueError) as error:  # some distributions refuse parameters that are NaN
            first_line = (str(error).splitlines() or [""])[0]
            raise PairError(reads_data(f"The model failed ({first_line}). Perhaps")) from error
    for name, node in nodes.items():
        value = node["value"]
        if value.is_floating_point() and bool(torch.isnan(value).any()):
            raise PairError(reads_data(f"Site {name!r} came out NaN:"))
    return nodes


def reads_data(what: str) -> str:
    """The message for a model that reads what it should generate; `what` says how that was noticed."""
    return (
        f"{what} the model reads an argument that it is to generate, other than by obs=. "
        "Make what it reads an argument of its own, and pass it in given={...}."
    )


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
    generated = {s.argument for s in fitted.layout.sites}
    for name, (_, dtype) in _missing_arguments(fitted, known).items():
        if name not in generated and not dtype.is_floating_point:
            raise DataError(f"The model reads {name!r}, which no site observes: pass it, given={{{name!r}: ...}}.")


def _draw_globals(fitted: Fit, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One draw of each global latent site from the guide, the approximate posterior."""
    names = [s.name for s in fitted.layout.sites if s.role == "latent" and not s.local and s.enumerated != "model"]
    if not names:
        return {}
    # Zeros instead of NaN, since the local sites of the guide, which are not used, may read the data.
    filled = {name: torch.nan_to_num(value) for name, value in batch.items()}
    guide = sample_sites(poutine.trace(fitted.pair.guide).get_trace(**filled))
    return {name: guide[name]["value"] for name in names}


def _with_placeholders(fitted: Fit, num: int, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch in which missing arguments are NaN, so that reading one gives NaN, or 0 if they are integers."""
    batch = dict(known)
    for name, (shape, dtype) in _missing_arguments(fitted, known).items():
        fill = float("nan") if dtype.is_floating_point else 0
        batch[name] = torch.full((num, *shape), fill, dtype=dtype, device=fitted.device)
    return {name: batch[name] for name in arguments(fitted.pair) if name in batch}


def _missing_arguments(fitted: Fit, known: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Row shape and dtype of the arguments that are not given and have no default None."""
    taken = arguments(fitted.pair)
    return {
        name: what for name, what in fitted.arguments.items() if name not in known and taken[name].default is not None
    }

"""The model run forward without data: what is given stays observed, everything else is drawn."""

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
from pyrovae.pair.program import arguments, sample_sites


def site_to_draw(fitted: Fit, layout: Layout, given: Mapping[str, Any], site: str | None = None) -> str:
    """The observed site to generate: the one named, or the only one that is not given; of several, the only one whose
    argument must always be there."""
    open_sites = [s for s in layout.sites if s.role == "observed" and s.argument not in given and not s.objective_only]
    if site is None and len(open_sites) > 1:
        wanted = arguments(fitted.pair)
        open_sites = [s for s in open_sites if s.argument in wanted and wanted[s.argument].default is not None]
    if site is None and len(open_sites) == 1:
        return open_sites[0].name
    return layout.site(site, role="observed").name


def held_values(fitted: Fit, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What is given, in two: arguments, and values of latent sites."""
    taken = arguments(fitted.pair)
    latent = [s.name for s in fitted.layout.sites if s.role == "latent" and s.local and s.name not in taken]
    held = {name: latent_values(fitted, name, value) for name, value in given.items() if name in latent}
    return {name: value for name, value in given.items() if name not in held}, held


def latent_values(fitted: Fit, latent: str, z: Any) -> Tensor:
    """Values of a latent site, a row each. DataError unless their rows have its shape."""
    source = fitted.layout.site(latent, role="latent", local=True)
    dtypes = [dtype for _, dtype in fitted.arguments.values() if dtype.is_floating_point]
    values = as_tensor(source.name, z, dtypes[0] if dtypes else None).to(fitted.device)
    if tuple(values.shape[1:]) != tuple(source.event_shape):
        raise DataError(f"{source.name!r} must have rows of shape {source.event_shape}, got {tuple(values.shape[1:])}.")
    return values


def run_model(
    fitted: Fit, num: int, given: Mapping[str, Any], latent: Mapping[str, Tensor], seed: int | None
) -> dict[str, Any]:
    """The model's sample sites for `num` new rows: what is given stays observed, global latents come from the guide."""
    if num < 1:
        raise OptionError(f"num must be at least 1, got {num}.")
    known, taken = fitted.arguments, arguments(fitted.pair)
    unknown = [name for name in given if name not in taken]
    if unknown:
        sites = [s.name for s in fitted.layout.sites if s.role == "latent" and s.local]
        raise DataError(f"The model takes {sorted(taken)} and draws {sites} for each row; it does not know {unknown}.")
    wrong = {name: len(value) for name, value in latent.items() if len(value) != num}
    if wrong:
        raise DataError(
            f"Latent sites must be given for num={num} rows, got {wrong} rows. Use z.expand(num, -1) of one row."
        )
    kept = {}
    for name, value in given.items():
        dtype = known[name][1] if name in known else None
        kept[name] = as_tensor(name, value, dtype).to(fitted.device)
        shape, dtype = known.get(name, (tuple(kept[name].shape[1:]), kept[name].dtype))
        if len(kept[name]) != num or tuple(kept[name].shape[1:]) != shape or kept[name].dtype != dtype:
            raise DataError(
                f"{name!r} must have num={num} rows of shape {shape} and dtype {str(dtype)[6:]} as in the fit, "
                f"got {tuple(kept[name].shape)} {str(kept[name].dtype)[6:]}."
            )
        if taken[name].default is None and not bool(known_rows(kept[name]).all()):
            raise DataError(
                f"{name!r} is unknown (-1, or NaN) in some of the rows given: give it for all, or not at all."
            )
    observed = {s.argument for s in fitted.layout.sites}
    for name, (_, dtype) in _stand_ins(fitted, kept).items():
        # A floating stand-in is NaN and shows where it is read; a whole number would pass for a value.
        if name not in given and name not in observed and not dtype.is_floating_point:
            raise DataError(f"The model reads {name!r}, which no site observes: pass it, given={{{name!r}: ...}}.")
    with fitted.scope(), seeded(seed):
        rows = _dummies(fitted, num, kept)
        values = {**_global_draws(fitted, rows), **latent}
        # The condition stands outside: what it sets must not be drawn again.
        model = poutine.condition(Uncondition(kept.values())(fitted.pair.model), data=values)
        try:
            nodes = sample_sites(poutine.trace(model).get_trace(**rows))
        except PyrovaeError:
            raise
        except (RuntimeError, ValueError) as error:  # some distributions refuse to draw at NaN
            raise PairError(
                reads_data(f"The model failed ({(str(error).splitlines() or [''])[0]}). Perhaps")
            ) from error
        for name, node in nodes.items():
            value = node["value"]
            if value.is_floating_point() and bool(torch.isnan(value).any()):
                raise PairError(reads_data(f"Site {name!r} came out NaN:"))
    return nodes


def reads_data(what: str) -> str:
    return (
        f"{what} the model reads an argument that it is to generate, other than by obs=. "
        "Make what it reads an argument of its own, and pass it in given={...}."
    )


def _global_draws(fitted: Fit, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One draw of the guide of every global latent: new data come from the fitted posterior of those."""
    names = [s.name for s in fitted.layout.sites if s.role == "latent" and not s.local and s.enumerated != "model"]
    if not names:
        return {}
    # Zeros, not NaN: the guide's local sites may read the data here, and are thrown away.
    filled = {name: torch.nan_to_num(value) for name, value in rows.items()}
    guide = sample_sites(poutine.trace(fitted.pair.guide).get_trace(**filled))
    return {name: guide[name]["value"] for name in names}


def _dummies(fitted: Fit, num: int, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stand-ins for what is not given, NaN where floating: if one is read, NaN comes out."""
    made = dict(kept)
    for name, (shape, dtype) in _stand_ins(fitted, kept).items():
        fill = float("nan") if dtype.is_floating_point else 0
        made[name] = torch.full((num, *shape), fill, dtype=dtype, device=fitted.device)
    return {name: made[name] for name in arguments(fitted.pair) if name in made}


def _stand_ins(fitted: Fit, kept: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """The arguments that are not given and must be there all the same: None is left to be None."""
    wanted = arguments(fitted.pair)
    return {
        name: what for name, what in fitted.arguments.items() if name not in kept and wanted[name].default is not None
    }

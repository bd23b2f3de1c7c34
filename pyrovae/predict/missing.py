"""Arguments that are not given: which the model needs, and what stands in for them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from pyrovae.fitted.fitted import Fit
from pyrovae.pair.batch import Batch
from pyrovae.pair.layout import Site
from pyrovae.pair.program import arguments
from pyrovae.pair.simulated import AS_A_WHOLE
from pyrovae.predict.sites import is_optional, observed_sites


def with_placeholders(fitted: Fit, num: int, known: Mapping[str, Tensor], sites: Collection[str] | None) -> Batch:
    """A batch in which missing arguments are NaN, so that reading one gives NaN, or 0 if they are integers.

    An argument that may be None is left out, unless one of the sites that are wanted needs it in order to be there.
    """
    batch = dict(known)
    missing = missing_arguments(fitted, known, needed_for(fitted, sites))
    if not missing and not batch:  # as of a model of which each argument may be None, but not all of them
        missing = missing_arguments(fitted, known, [str(s.argument) for s in _wanted(fitted, sites)])
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


def missing_arguments(
    fitted: Fit, known: Mapping[str, Tensor], optional: Collection[str]
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Row shape and dtype of the arguments that are not given and cannot be None, and of these optional ones."""
    return {
        name: what
        for name, what in fitted.arguments.items()
        if name not in known and (name in optional or not is_optional(fitted, name))
    }


def _beside(fitted: Fit) -> set[str]:
    """The sites that are factors, or no part of the model."""
    every = (site for layout in fitted.layouts for site in layout.sites)
    return {site.name for site in every if site.objective_only or site.is_factor}


def not_generated(fitted: Fit, known: Mapping[str, Tensor]) -> list[str]:
    """The arguments that are not given, cannot be None, and that no site observes, so that the model cannot draw them."""
    generated = {site.argument for layout in fitted.layouts for site in layout.sites}
    return [name for name in missing_arguments(fitted, known, ()) if name not in generated]


def pass_them(fitted: Fit, names: Sequence[str]) -> str:
    """The message for arguments that the model takes, that no site observes, and that are not given."""
    given = ", ".join(f"{name!r}: ..." for name in names)
    observing = {s.name for layout in fitted.layouts for s in layout.sites if s.role == "observed" and s.local}
    known = {s.name for layout in fitted.layouts for s in layout.sites if s.argument is not None}
    if parts := sorted(observing - known - _beside(fitted)):
        return (
            f"The model takes {' and '.join(map(repr, names))}, which no site observes as a whole (site {parts[0]!r} observes "
            f"a part or a function of an argument). What is only a condition, pass: given={{{given}}}. For what is to be "
            f"drawn, {AS_A_WHOLE}."
        )
    return (
        f"The model takes {' and '.join(map(repr, names))}, which no site observes: "
        f"pass {'it' if len(names) == 1 else 'them'}, given={{{given}}}."
    )

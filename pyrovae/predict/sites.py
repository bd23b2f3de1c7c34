"""Which sites are meant: those that are named, or those that a question without a name can only mean."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from torch import Tensor

from pyrovae.errors import OptionError
from pyrovae.fitted.fitted import Fit
from pyrovae.pair.layout import Layout, Site, union
from pyrovae.pair.program import arguments

# The name of one site, of several, or None for the only one.
Several = list[str] | tuple[str, ...]
Names = str | Several | None


def as_named(found: dict[str, Tensor], site: Names) -> Tensor | dict[str, Tensor]:
    """The values of one site alone, where no list of sites was asked for."""
    return found if isinstance(site, (list, tuple)) else next(iter(found.values()))


def observed_sites(layouts: Sequence[Layout]) -> dict[str, Site]:
    """The sites that the model observes in any of these layouts, by name, without factors and those marked `objective_only`."""
    sites = [s for layout in layouts for s in layout.sites if s.role == "observed"]
    found = [s for s in sites if not s.objective_only and not s.is_factor]
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

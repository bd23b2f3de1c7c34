"""Rows that are asked about: sites that they lack are drawn, and their values are checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from torch import Tensor

from pyrovae.batching.checks import check_classes, check_support, noting_classes
from pyrovae.errors import PairError
from pyrovae.fitted.fitted import Fit
from pyrovae.objectives.terms import Terms
from pyrovae.pair.batch import Batch, num_rows
from pyrovae.pair.handlers import SetValues, Uncondition
from pyrovae.pair.layout import Layout
from pyrovae.pair.program import Pair
from pyrovae.predict.latent import draw_globals
from pyrovae.predict.missing import missing_arguments, needed_for, placeholder
from pyrovae.predict.sites import is_optional, observed_sites


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
    what = missing_arguments(fitted, batch, needed_for(fitted, [name for name in sites if name not in here]))
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

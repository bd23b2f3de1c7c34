"""Columns far from the numbers that a likelihood expects at the start of a fit: one warning, before any work."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.errors import PyrovaeError
from pyrovae.pair.batch import Batch, take_rows
from pyrovae.pair.layout import Layout, Site
from pyrovae.pair.masks import masked_out
from pyrovae.pair.parameters import fork_rng
from pyrovae.pair.program import PairLike, distribution_name, sample_sites
from pyrovae.pair.supports import is_real

# Fits of wine's 13 columns in 200 epochs end at -20 nats a row where these are standardised, at -29 with means of 10, at -764
# with means of 50, at -832 with standard deviations of 50, at -19 with 0.05, and at -26 with 0.005, in the units of the first.
LARGE = 20.0  # times the standard deviation that is expected, of a mean or a standard deviation
SMALL = 100.0  # one in so many
UNUSUAL = 10.0  # both, of 0 ± 1, from where on the model is asked what it expects
PRIOR_DRAWS = 64
JUDGED = 500  # rows that are looked at, at most
ENOUGH = 20  # rows to judge a column by
MOST_ELEMENTS = 4_000_000  # of more, fewer rows are looked at
MOST_NAMED = 4


def warn_of_scales(
    pair: PairLike,
    groups: Iterable[tuple[Layout, Any, Batch, Batch]],
    names: Mapping[str, Sequence[str]],
    *,
    transforms: bool,
    may_be_first: bool = False,
    stacklevel: int,
) -> None:
    """Warn of columns of real numbers that a fit would first have to walk a long way to.

    A likelihood of real numbers, such as a Normal with a network, starts near mean 0 and standard deviation 1. It can learn any
    scale, but by gradient steps whose size is made for standardised rows: a column of 1000 ± 300 costs a million nats a row at
    the start, and one of 0 ± 0.001 is nothing to the codes. Columns that are far from 0 ± 1 are compared with what the model
    draws before the fit, so that a likelihood with units of its own, such as `RoundedNormal`, raises no question. Counts,
    classes, shares and positive numbers are left alone, and so are columns that are mostly one value, such as pixels at a
    border.

    Args:
        pair: Model and guide, in evaluation mode. The model is run once more, on a few rows, where columns are far from 0 ± 1.
        groups: For each group of rows its layout, the trace of the model in a run on the first of them, these rows, and rows
            from all over the data, where they are at hand: without them no column is called narrow, since the first rows of a
            sorted table are alike.
        names: The names of the columns of an argument, where the data have some.
        transforms: Whether the rows are those that a transform has made.
        may_be_first: Whether the rows from all over the data may be the first of many all the same. Then no column is called
            narrow that rises or falls, as columns of a sorted table do.
        stacklevel: As for `warnings.warn`, seen from the function that calls this one.
    """
    for layout, trace, first, spread_out in groups:
        sites = sample_sites(trace)
        asked = {str(s.argument): s.name for s in layout.sites if _is_asked(s) and is_real(sites[s.name]["fn"])}
        masked = {name: out for name, site in asked.items() if (out := _masked(sites[site])) is not None}
        # of rows with a mask those of the run, for which it is known
        seen = {name: spread_out.get(name, first[name]) for name in asked if name not in masked}
        seen |= {
            name: _shown(first[name], out) for name, out in masked.items() if _as_given(sites[asked[name]], first[name])
        }
        values = {name: rows for name, rows in seen.items() if rows.is_floating_point() and len(rows) >= ENOUGH}
        if not any(_is_unusual(value) for value in values.values()):
            continue
        nodes = _from_the_prior(pair, take_rows(first, slice(0, PRIOR_DRAWS)))
        for argument, value in values.items():
            fn = _whole(nodes[asked[argument]]["fn"]) if asked[argument] in nodes else None
            expected = None if fn is None else _expected(fn, value)
            if expected is None:
                continue
            everywhere = argument in spread_out and argument not in masked
            found = _far(value, *expected, LARGE, SMALL if everywhere else None, may_be_first)
            if found is None:
                continue
            centre, spread = (each.mean().item() for each in expected)
            warnings.warn(
                f"Before the fit, {distribution_name(fn)} at site {asked[argument]!r} expects {centre:.2g} ± {spread:.2g}, and "
                f"rows are far from that, which takes many steps to learn: {_listed(*found, value, names.get(argument, ()))}. "
                + _cure(argument, value, transforms),
                stacklevel=stacklevel + 1,
            )
            return  # one is enough: the cure of another site is the same


def _is_asked(site: Site) -> bool:
    return site.role == "observed" and site.local and not site.objective_only and site.argument is not None


def _masked(node: Any) -> Tensor | None:
    out = masked_out(node["fn"], node["mask"], node["value"])
    return None if out is None else out.expand(node["value"].shape)


def _as_given(node: Any, rows: Tensor) -> bool:
    """Whether a site observes an argument as it is, and not transposed or reshaped."""
    return node["value"].shape == rows.shape and node["value"].stride() == rows.stride()


def _shown(rows: Tensor, out: Tensor) -> Tensor:
    return torch.where(out, torch.nan, rows) if rows.is_floating_point() else rows


def _is_unusual(value: Tensor) -> bool:
    zero = torch.zeros((), dtype=torch.float64, device=value.device)
    return _far(value, zero, zero + 1, UNUSUAL, UNUSUAL) is not None


def _from_the_prior(pair: PairLike, batch: Batch) -> dict[str, Any]:
    """The sites of a run of the model with latent sites drawn from their priors; none where it cannot be run so."""
    try:
        with fork_rng(), torch.no_grad(), pyro.validation_enabled(False):
            return sample_sites(poutine.trace(pair.model).get_trace(**batch))
    except (PyrovaeError, RuntimeError, ValueError, TypeError, IndexError, NotImplementedError, AttributeError):
        return {}  # such as a flat prior, which has no draws


def _whole(fn: Any) -> Any:
    """The likelihood of a whole row, of one of what was observed."""
    while hasattr(fn, "whole"):
        fn = fn.whole
    return fn


def _expected(fn: Any, value: Tensor) -> tuple[Tensor, Tensor] | None:
    """Mean and standard deviation of each column in these draws, `(D,)`; None where there is nothing to compare."""
    try:
        mean, variance = (x.double() for x in (fn.mean, fn.variance))
    except (NotImplementedError, AttributeError, RuntimeError, ValueError):  # a distribution that does not say
        return None
    event = value.shape[1:]
    if mean.shape != variance.shape or mean.dim() <= len(event) or mean.shape[mean.dim() - len(event) :] != event:
        return None
    mean, variance = mean.reshape(-1, event.numel()), variance.reshape(-1, event.numel())
    spread = (variance.mean(0) + mean.var(0, correction=0)).sqrt()
    known = bool(torch.isfinite(mean).all()) and bool(torch.isfinite(spread).all()) and bool((spread > 0).all())
    return (mean.mean(0), spread) if known else None


def most_rows(elements: int) -> int:
    """How many rows of so many elements are enough to judge their scale."""
    return min(JUDGED, max(ENOUGH, MOST_ELEMENTS // max(1, elements)))


def _far(
    value: Tensor, expected: Tensor, spread: Tensor, large: float, small: float | None, steady: bool = False
) -> tuple[list[int], Tensor, Tensor] | None:
    """The columns that are so many times off, with the mean and standard deviation of every column; None without one.

    With `steady`, columns whose halves differ by more than a standard deviation are not called small.
    """
    x = value[: most_rows(value[0].numel())].double().reshape(-1, value[0].numel())
    x = torch.where(torch.isfinite(x), x, torch.nan)
    mean = x.nanmean(0)
    sd = (x - mean).square().nanmean(0).sqrt()
    far = ((mean - expected).abs() > large * spread) | (sd > large * spread)  # false with NaN
    if small is not None:
        typical = (x - x.nanmedian(0).values).abs().nanmedian(0).values  # 0 where more than half of the values are one
        narrow = (small * sd < spread) & (typical > 0.1 * sd)
        if steady:
            narrow &= (x[: len(x) // 2].nanmean(0) - x[len(x) // 2 :].nanmean(0)).abs() < sd
        far |= narrow
    columns = far.nonzero().squeeze(1).tolist()
    return (columns, mean, sd) if columns else None


def _listed(columns: Sequence[int], mean: Tensor, sd: Tensor, value: Tensor, names: Sequence[str]) -> str:
    """The columns that are far, each with its mean and standard deviation, those with the largest and least numbers."""
    num = value[0].numel()
    if value.dim() != 2:
        of_elements = "" if num == 1 else f"{len(columns)} of {num} elements of a row, the first "
        return f"{of_elements}{mean[columns[0]].item():.3g} ± {sd[columns[0]].item():.3g}"
    size = torch.maximum(mean.abs(), sd).log().abs()
    first = sorted(sorted(columns, key=lambda d: -size[d].item())[:MOST_NAMED])
    told = [f"{repr(names[d]) if len(names) == num else d} ({mean[d].item():.3g} ± {sd[d].item():.3g})" for d in first]
    more = ", ..." if len(columns) > len(first) else ""
    return f"{len(columns)} of {num} columns, {', '.join(told)}{more}"


def _cure(argument: str, value: Tensor, transforms: bool) -> str:
    if transforms:
        return f"Let the transform standardise {argument!r}, or give it standardised rows."
    if value.dim() == 2:
        return (
            f"Standardise them: units = pv.data.Standardize.fit({argument}), and fit to units.apply({argument}); log p(x) in "
            "the units of the data is then that of the fit minus units.log_abs_det, and units.invert(...) brings rows back to "
            "them. The model of pv.tables.vae takes a table as it is."
        )
    x = value.double()
    x = x[torch.isfinite(x)]
    mean, sd = x.mean().item(), x.std(correction=0).item() or 1.0
    return (
        f"Standardise them: fit to ({argument} - {mean:.3g}) / {sd:.3g}; log p(x) in the units of the data is then that of the "
        f"fit minus {value[0].numel()} log({sd:.3g}) nats a row."
    )

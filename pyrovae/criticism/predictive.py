"""Posterior predictive checks: rows drawn from the model beside the rows held out."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyrovae._lazily import Lazily
from pyrovae.criticism.evidence import Evidence
from pyrovae.criticism.findings import LEVEL, Finding, grade
from pyrovae.criticism.statistics import MEANING, Statistic, statistics_for
from pyrovae.fitted.fitted import FittedGroup, seeded
from pyrovae.objectives.terms import terms
from pyrovae.pair.batch import take_rows
from pyrovae.pair.layout import Site

stats = Lazily("scipy.stats")

PART = "predictions"
REPLICATES = 60


def predictive_checks(evidence: Evidence) -> list[Finding]:
    """Statistics of the rows held out, and of 60 sets of as many rows that the model draws, new codes included.

    If the model is right, the rows are one more such set. What it says of a statistic is a t test of one value against the 60,
    with a standard deviation of at least what one row can change, and it counts only where no set goes as far; of the p-values
    of the m numbers of a statistic the smallest is multiplied by m.

    References:
        Gelman, Meng & Stern 1996, *Posterior predictive assessment of model fitness via realized discrepancies*, Statistica
        Sinica 6. Box 1980, *Sampling and Bayes' inference in scientific modelling and robustness*, JRSS A 143.
    """
    sites = {s.name: s for part in evidence.parts for s in part.layout.sites if _is_checked(s)}
    found = []
    for site in sites.values():
        seen, drawn, labels = _rows_of(evidence, site)
        if seen is None:
            continue
        shape = site.event_shape if len(site.event_shape) > 1 else evidence.image_shape
        shape = shape if shape is not None and math.prod(shape) == seen.shape[1] and len(shape) > 1 else None
        suffix = f" of {site.name}" if len(sites) > 1 else ""
        columns = evidence.columns
        named = columns if columns is not None and len(columns) == seen.shape[1] else None
        for statistic in statistics_for(seen, labels, shape, named):
            replicates = torch.stack([statistic.of(rows) for rows in drawn])
            step = torch.maximum(statistic.step(seen), statistic.step(drawn[0]))
            found.append(compared(statistic, seen, replicates, step, suffix))
    return found


def _is_checked(site: Site) -> bool:
    return (
        site.role == "observed" and site.local and not site.objective_only and not site.plates and bool(site.argument)
    )


def _rows_of(evidence: Evidence, site: Site) -> tuple[Tensor | None, list[Tensor], list[bool]]:
    """The values of a site in the rows, `(N, D)`, those of each replicate, and which columns hold classes."""
    parts = [p for p in evidence.parts if site.argument in p.batch and any(s.name == site.name for s in p.layout.sites)]
    if not parts:
        return None, [], []
    seen = torch.cat([_flat(_without_masked(evidence, p, str(site.argument))) for p in parts])
    with evidence.fitted.scope(), seeded(evidence.seed):
        few = take_rows(parts[0].batch, slice(0, 2))
        side = terms(evidence.fitted.pair, few, layout=parts[0].layout, enumerate=False).sites[site.name].p
    assert side is not None
    labels = class_columns(side.fn, seen.shape[1])
    drawn = []
    for number in range(REPLICATES):
        rows = [
            _flat(evidence.simulate(part, len(part.rows), evidence.seed + 1000 + number).batch[str(site.argument)])
            for part in parts
        ]
        drawn.append(torch.where(torch.isnan(seen), seen, torch.cat(rows)))
    return seen, drawn, labels


def _without_masked(evidence: Evidence, part: FittedGroup, argument: str) -> Tensor:
    """The rows of an argument, with NaN where the model masks them."""
    rows, out = part.batch[argument], evidence.masked(part).get(argument)
    return rows if out is None else torch.where(out, torch.nan, rows.double())


def class_columns(fn: Any, num: int) -> list[bool]:
    """Which of the columns of a row hold classes, as its distribution says."""
    inner = getattr(fn, "whole", fn)
    labels = getattr(inner, "labels", None)
    while hasattr(inner, "base_dist"):
        inner = inner.base_dist
    return list(labels) if labels is not None else [type(inner).__name__ == "Categorical"] * num


def _flat(values: Tensor) -> Tensor:
    return values.reshape(len(values), -1).double().cpu()


def compared(statistic: Statistic, seen: Tensor, replicates: Tensor, step: Tensor, suffix: str = "") -> Finding:
    """A statistic of the rows against those of the replicates, `(R, m)`; one row can change it by `step`, `(m,)`."""
    value = statistic.of(seen)
    step = step.expand(value.shape)
    mean, spread = replicates.mean(0), replicates.std(0)
    z = (value - mean) / torch.sqrt(spread.square() * (1 + 1 / REPLICATES) + step.square()).clamp_min(1e-12)
    p = torch.from_numpy(2 * stats.t.sf(z.abs().numpy(), REPLICATES - 1))
    inside = (value >= replicates.amin(0)) & (value <= replicates.amax(0))
    p = torch.where(inside, torch.ones_like(p), p)
    effect = (value - mean).abs() / statistic.scale(seen).expand(value.shape).clamp_min(1e-9)
    significant = p * len(p) < LEVEL
    at = int(torch.where(significant, effect, -1.0).argmax()) if bool(significant.any()) else int(z.abs().argmax())
    says = f"{statistic.labels[at]}: {statistic.told(at, value[at].item(), mean[at].item(), spread[at].item())}"
    if len(value) > 2:
        num = int(significant.sum())
        says = f"{num or 'none'} of {len(value)} differ{'s' if num < 2 else ''} by more than chance; the most: {says}"
    size = effect[at].item() if bool(significant.any()) else 0.0
    look, bad, advice = MEANING[statistic.name]
    return Finding(
        f"{statistic.name}{suffix}",
        PART,
        says,
        f"the data are like another draw; a difference below {look:g} of its scale does not matter",
        grade(size, look, bad),
        advice,
        values={
            "data": value[at].item(),
            "model": mean[at].item(),
            "model_sd": spread[at].item(),
            "effect": size,
            "different": float(significant.sum()),
            "numbers": float(len(value)),
        },
        p_value=min(1.0, float(p.min()) * len(p)),
        curves={"z": z.tolist(), "data": value.tolist(), "model": mean.tolist()},
    )

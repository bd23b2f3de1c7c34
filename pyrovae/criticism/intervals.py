"""Whether predictive intervals hold what they say: each value of a row given the rest of the row."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from pyrovae.criticism.averages import over_rows, transform_among
from pyrovae.criticism.evidence import POSTERIOR_DRAWS, Evidence
from pyrovae.criticism.findings import NONE, OK, Finding, grade, normal_p
from pyrovae.criticism.left_out import NotPossible, may_lack_entries, transforms_without_each
from pyrovae.criticism.population import ROUND_DRAWS
from pyrovae.distributions.combine import log_prob_of_entries
from pyrovae.errors import counted
from pyrovae.fitted.fitted import seeded
from pyrovae.pair.batch import take_rows
from pyrovae.pair.masks import without_masked

PART = "predictions"
INTERVALS = (0.5, 0.8, 0.95)
CARRIED = 0.8  # the share of the draws that has to count, on average, for intervals of a column to be trusted
LEFT_OUT, FEWEST = 400, 40  # entries that are predicted by draws of p(z | x_-d), and rows with some of these at least
NARROW = (
    "The likelihood is too narrow, values are farther from their mean than it says: learn its scale (scale='column' or 'net'), "
    "or take one with heavier tails (Student t, negative binomial). If training rows fit better than these, "
    "train for fewer epochs."
)
WIDE = (
    "The likelihood is too wide, values are nearer to their mean than it says: learn its scale (scale='column' or 'net') "
    "instead of fixing it, or train for longer."
)


def predictive_intervals(evidence: Evidence) -> list[Finding]:
    """The share of values that lie inside the central predictive intervals of 50, 80 and 95 %.

    A value x_d is predicted from the rest of its row: draws z_s of p(z | x) are weighed by 1 / p(x_d | z_s), which takes x_d
    out of what they know. Its probability integral transform among draws of p(x_d | z_s), made continuous by random numbers
    where values are whole numbers, is uniform if model and posterior are right. The test is on the mean over a row of
    whether values lie in an interval, so that values of one row may depend on one another.

    Where one value nearly determines the code, a few draws have nearly all of the weight, and intervals seem wider than they
    are. In columns of such values, some 400 of them are predicted by draws from the posterior of a row without its entry,
    `p(z | x_-d)`, by population Monte Carlo, if the likelihood leaves missing entries out; elsewhere these columns do not
    count. If that leaves none, only intervals that are too narrow do.

    References:
        Cappé, Guillin, Marin & Robert 2004, *Population Monte Carlo*, Journal of Computational and Graphical Statistics 13.
        Gelfand, Dey & Chang 1992, *Model determination using predictive distributions*, Bayesian Statistics 4. Czado,
        Gneiting & Held 2009, *Predictive model assessment for count data*, Biometrics 65.
    """
    names = {
        s.name
        for part in evidence.parts
        for s in part.layout.sites
        if s.role == "observed" and s.local and not s.objective_only and not s.is_factor and not s.plates
    }
    return [_of_site(evidence, name, f" of {name}" if len(names) > 1 else "") for name in sorted(names)]


def _of_site(evidence: Evidence, name: str, suffix: str) -> Finding:
    transforms = _transforms(evidence, name)
    if transforms is None:
        return _nothing(suffix, "values of a row are not independent given the code")
    pit, ess = transforms
    carried = ess.nanmean(0) >= CARRIED * POSTERIOR_DRAWS
    wanted = ~carried & ~ess.isnan().all(0)  # not a column that is missing in all rows
    of = "of the values"
    if bool(wanted.any()):
        anew = _left_out(evidence, name, wanted)
        if anew is not None:
            pit, asked = torch.where(carried, pit, anew), ~anew.isnan()
            if not bool(asked.any(1).all()) or int(asked.any(0).sum()) < int(wanted.sum()):
                in_rows = counted(int(asked.any(1).sum()), "row")
                of += f", those of {int(asked.any(0).sum())} of {len(carried)} columns in {in_rows} only"
            carried = carried | wanted
        elif bool(carried.any()):
            pit, of = pit[:, carried], f"{of} in {int(carried.sum())} of {len(carried)} columns"
    found = _judged(pit, suffix, of)
    if not bool(carried.any()) and found.advice == WIDE and found.verdict != OK:
        return _nothing(
            suffix, "one value nearly determines the code, so that values cannot be predicted from the others"
        )
    return found


def _left_out(evidence: Evidence, name: str, wanted: Tensor) -> Tensor | None:
    """Transforms `(N, D)` of some entries of the columns that are wanted, by draws of `p(z | x_-d)`; NaN elsewhere.

    As many columns as allow for `FEWEST` rows. None where such draws are not possible.
    """
    fitted, proposal = replace(evidence.fitted, transform=None, untransformed={}), evidence.proposal
    parts = [p for p in evidence.parts if any(s.name == name and s.role == "observed" for s in p.layout.sites)]
    total = sum(len(part.rows) for part in parts)
    rows = min(total, max(FEWEST, LEFT_OUT // int(wanted.sum())))
    found = []
    with fitted.scope(), seeded(evidence.seed + 7):
        numbers = wanted.nonzero().flatten()
        columns = torch.zeros_like(wanted)
        columns[numbers[torch.randperm(len(numbers))[: max(1, LEFT_OUT // rows)]]] = True
        for part in parts:
            if proposal == "guide" or not may_lack_entries(fitted, part, name):
                return None
            num = min(len(part.rows), max(1, round(rows * len(part.rows) / total)))
            some = torch.randperm(len(part.rows))[:num].sort().values.to(part.rows.device)
            few = part._replace(batch=take_rows(part.batch, some), rows=part.rows[some])
            try:
                anew = transforms_without_each(fitted, few, name, columns, draws=ROUND_DRAWS, proposal=proposal)
            except NotPossible:
                return None
            found.append(torch.full((len(part.rows), len(columns)), math.nan, dtype=torch.float64))
            found[-1][some.cpu()] = anew
    return torch.cat(found)


def _nothing(suffix: str, why: str) -> Finding:
    return Finding(f"predictive intervals{suffix}", PART, why, "", NONE)


def _judged(pit: Tensor, suffix: str, of: str) -> Finding:
    """A finding from transforms `(N, D)`, NaN where a value is missing."""
    values: dict[str, float] = {}
    tests, effects = [], []
    for wanted in INTERVALS:
        inside = torch.where(torch.isnan(pit), pit, ((pit - 0.5).abs() < wanted / 2).to(pit))
        rows = inside.nanmean(1)
        rows = rows[~torch.isnan(rows)]
        share = rows.mean().item()
        # at least that of independent values: all rows may have the same share
        error = max(over_rows(rows), math.sqrt(wanted * (1 - wanted) / int((~inside.isnan()).sum())))
        values |= {f"coverage_{wanted:g}": share, f"coverage_{wanted:g}_se": error}
        tests.append(normal_p((share - wanted) / error))
        effects.append(share - wanted)
    worst = max(effects, key=abs)
    narrow = worst < 0
    listed = ", ".join(f"{values[f'coverage_{w:g}']:.1%} in the {w:.0%} interval" for w in INTERVALS)
    histogram = torch.histc(pit[~torch.isnan(pit)], 20, 0, 1)
    return Finding(
        f"predictive intervals{suffix}",
        PART,
        f"{of}, given the rest of their row, {listed}",
        "50, 80 and 95 %, to 2 percentage points",
        grade(abs(worst), 0.02, 0.08),
        NARROW if narrow else WIDE,
        values=values,
        p_value=min(1.0, len(tests) * min(tests)),
        curves={"histogram": (histogram / histogram.sum()).tolist()},
    )


def _transforms(evidence: Evidence, name: str) -> tuple[Tensor, Tensor] | None:
    """The randomised probability integral transform of each value, and how many draws carry it, both `(N, D)`, NaN in gaps.

    None if values are not independent given z.
    """
    found: list[Tensor] = []
    sizes: list[Tensor] = []
    with evidence.fitted.scope(), seeded(evidence.seed + 6):
        for number in range(len(evidence.parts)):
            for _, run in evidence.at_posterior(number):
                term = run.sites.get(name)
                if term is None or term.p is None:
                    continue
                event = tuple(term.p.fn.event_shape)
                value = run.rows(term.value, event)
                each = log_prob_of_entries(term.p.fn, term.value)
                if each is None:
                    return None
                log_p = run.rows(each, event).double()
                drawn = run.rows(term.p.fn.sample(), event)
                weight = (-log_p).softmax(0)
                pit = transform_among(drawn, value, weight)
                gone = torch.isnan(run.rows(without_masked(term.p.fn, term.p.mask, term.value.double()), event)[0])
                for column, values in ((found, pit), (sizes, 1 / weight.square().sum(0))):
                    column.append(torch.where(gone, torch.nan, values).reshape(value.shape[1], -1).cpu())
    return (torch.cat(found), torch.cat(sizes)) if found else None

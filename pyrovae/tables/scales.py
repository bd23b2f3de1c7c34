"""Answers that have an order, such as "never", "sometimes" and "always": which columns have such, and what to say of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import NegativeBinomial

from pyrovae.tables.schema import Schema

# From the lowest to the highest; words of one place, between bars, are answers to different questions.
SCALES = (
    "never, almost never|hardly ever, rarely|seldom, sometimes|occasionally, often|frequently|usually, very often, "
    "almost always|nearly always, always",
    "strongly disagree|completely disagree, disagree, somewhat disagree|slightly disagree, "
    "neutral|neither agree nor disagree|neither|undecided, somewhat agree|slightly agree, agree, "
    "strongly agree|completely agree",
    "very dissatisfied, dissatisfied, neutral|neither satisfied nor dissatisfied, satisfied, very satisfied",
    "very unlikely, unlikely, neutral, likely, very likely",
    "terrible|awful, very poor|very bad, poor|bad, fair|average|acceptable, good, very good, excellent",
    "none|absent, minimal, mild|slight, moderate, severe, very severe",
    "not at all, a little|slightly, somewhat|moderately, quite a bit|very, extremely|very much",
    "very low, low, medium|moderate|middle|average|normal, high, very high",
    "very small|tiny, small, medium, large|big, very large|huge",
    "xxs, xs, s, m, l, xl, xxl",
    "primary, secondary, tertiary",
)
_PLACES = [
    {word: place for place, words in enumerate(scale.split(", ")) for word in words.split("|")} for scale in SCALES
]
FEWEST, MOST = 3, 11  # values of a column that may be such answers
MOST_ROWS = 5000  # that are looked at
UNLIKE = 0.15  # nats a cell, by which counts are too bad an explanation
SHARE = 0.75  # of the columns that have one scale, from which on a table of whole numbers is a questionnaire


def in_order(categories: Sequence[Any]) -> tuple[Any, ...] | None:
    """The categories from the lowest to the highest, if these are words of one scale that is known; else None."""
    words = {" ".join(str(category).lower().replace("_", " ").split()): category for category in categories}
    for places in _PLACES:
        if words.keys() <= places.keys() and len({places[word] for word in words}) == len(categories) >= FEWEST:
            return tuple(words[word] for word in sorted(words, key=places.__getitem__))
    return None


def mostly_ordinal(schema: Schema) -> bool:
    """Whether more than half of the modelled columns are ordinal."""
    return 2 * sum(column.kind == "ordinal" for column in schema.modelled) > len(schema.modelled)


def on_one_scale(schema: Schema) -> bool:
    """Whether most columns of whole numbers have the same few values, as the items of a questionnaire, answered from 1 to 5.

    Counts of words or cells have largest values that differ from column to column, and some of them are large.
    """
    columns = schema.modelled
    ends = Counter(
        (c.categories[0], c.categories[-1]) for c in columns if c.kind == "ordinal" and len(c.categories) <= MOST
    )
    return bool(ends) and max(ends.values()) >= SHARE * len(columns)


def unlike_counts(x: Tensor) -> bool:
    """Whether columns of whole numbers from 0 on, `(N, D)`, are answers rather than counts without an upper bound.

    A column of which no value is above `MOST` has a probability for each value, and a negative binomial of its mean and
    variance has others: the Kullback-Leibler divergence between the two says how much worse counts explain it, in nats a cell.
    Of genes and words the mean over the columns is 0.07 at most, of questionnaires 0.25 or more.
    """
    x = x[:MOST_ROWS].double()
    mean, variance = x.mean(0), x.var(0, correction=0)
    more = (variance - mean).clamp_min(1e-4 * mean**2 + 1e-12)  # towards Poisson's, where the variance is no larger
    size = mean**2 / more
    by_counts = NegativeBinomial(size, logits=(mean / size).log(), validate_args=False)
    lost = torch.zeros_like(mean)
    for k in range(MOST + 1):
        share = (x == k).double().mean(0)
        lost += torch.xlogy(share, share) - share * by_counts.log_prob(torch.full_like(mean, k))
    return bool(torch.where((x <= MOST).all(0) & (mean > 0), lost, 0.0).mean() > UNLIKE)


def hint(schema: Schema) -> str:
    """Which columns of categories seem to be answers on a scale, and how to say their order; "" if none does.

    A scale is known by its English words, or by several columns that have the same values.
    """
    seen: dict[tuple[Any, ...], list[str]] = {}
    for column in schema.columns:
        if column.kind == "categorical" and FEWEST <= len(column.categories) <= MOST:
            seen.setdefault(in_order(column.categories) or column.categories, []).append(column.name)
    lines = []
    for categories, names in seen.items():
        known = in_order(categories) is not None
        if known or len(names) > 1:
            listed = ", ".join(map(str, categories))
            many = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            lines.append(f"  {many}: kind: ordinal, categories: [{listed}]" + ("" if known else ", put in order"))
    if not lines:
        return ""
    return "\n".join(["These answers seem to have an order. If so, say it in a copy of columns.yaml:", *lines])

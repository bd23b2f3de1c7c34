"""Of a few graphs an estimator keeps the one that is best in rows held out: `best_fit`, and how imputers are judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae.errors import PyrovaeError
from pyrovae.fitted.fitted import Fit
from pyrovae.tables.starts import MOST_JUDGES, error_of, mean_of

RATE = 1e-2  # the highest learning rate that suits most graphs
GROUPS = 5  # of the entries of a row, of which each is hidden once
MOST_HIDDEN = 100  # validation rows that judge an imputer

Judge = Callable[[Fit, Tensor], Tensor]


@dataclass(frozen=True)
class Start:
    """A default graph that may be kept.

    Args:
        name: What it is called where the search is reported.
        graph: Makes it of the training rows.
        rate: The highest learning rate that suits it.
        trained: Whether it is fitted by gradient steps; else it is kept as it is made.
        leads: Whether it has to be ahead of the best one before by more than the standard error of the difference, so that
            chance alone does not choose it in place of a simpler one.
    """

    name: str
    graph: Callable[[Tensor], Any]
    rate: float = RATE
    trained: bool = True
    leads: bool = False


def best_fit(starts: Sequence[Start], fit: Callable[[Start], Fit], judge: Judge, judges: Tensor) -> Fit:
    """The fit of the start with the highest mean score of rows held out; of a single start, its fit.

    What was found is in its `info["search"]`, the mean score of each start by its name; those whose fit diverged are missing.
    No fit is left early: a start with little noise is behind after a third of its epochs, and may end first.

    Args:
        starts: At least one, the usual one first.
        fit: Called with a start.
        judge: Scores of rows that a fit has not learned from, `(M,)`.
        judges: These rows, `(M, D)`.

    Raises:
        PyrovaeError: The first start cannot be fitted.
    """
    best = fit(starts[0])
    if len(starts) == 1:
        return best
    highest = judge(best, judges[:MOST_JUDGES])
    found = {starts[0].name: mean_of(highest)}
    for start in starts[1:]:
        try:
            tried = fit(start)
            scores = judge(tried, judges[:MOST_JUDGES])
        except PyrovaeError:
            continue
        found[start.name] = mean_of(scores)
        lead = error_of(scores - highest) if start.leads else 0.0
        if found[start.name] > mean_of(highest) + lead:
            best, highest = tried, scores
    best.info["search"] = found
    return best


def hidden_in_turn(rows: Tensor, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows `(M, D)` with some observed entries hidden, and where: each entry once, a fifth of those of a row at a time."""
    random = torch.Generator().manual_seed(seed)
    rank = (
        torch.rand(rows.shape, generator=random, dtype=torch.float64)
        .masked_fill(rows.isnan(), 2.0)
        .argsort(1)
        .argsort(1)
    )
    for group in range(GROUPS):
        where = (rank % GROUPS == group) & ~rows.isnan()
        yield rows.masked_fill(where, torch.nan), where

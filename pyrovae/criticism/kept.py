"""Proposals that are refined once for several questions about the same rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from pyrovae.criticism import proposals
from pyrovae.criticism.refined import Refined
from pyrovae.fitted.fitted import Fit
from pyrovae.pair.batch import Batch
from pyrovae.pair.common import start_rows
from pyrovae.pair.layout import Layout

_kept: ContextVar[dict[Any, Any] | None] = ContextVar("_kept", default=None)


@contextmanager
def proposals_kept() -> Iterator[None]:
    """Refine once for all questions inside, which are about the same rows under one fit. What each weighs is drawn afresh."""
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def adapted(
    fitted: Fit, batch: Batch, layout: Layout, weights: int, at_once: int, proposal: str
) -> Iterator[tuple[Batch, Refined]]:
    """`proposals.adapted`, or what it gave to the last question like this one inside of `proposals_kept`."""
    kept, key = _kept.get(), (id(layout), weights, at_once, proposal)
    if kept is None:
        yield from proposals.adapted(fitted, batch, layout, weights, at_once, proposal)
        return
    if key not in kept:
        kept[key] = list(proposals.adapted(fitted, batch, layout, weights, at_once, proposal))
    for rows, refined in kept[key]:
        start_rows(stage=1)
        yield rows, refined

"""One value for a distribution: its mean, or its most probable class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.objectives.terms import Terms


def mean_of(fn: Any) -> Tensor | None:
    """The mean, where all of it is finite."""
    try:
        mean: Tensor = fn.mean
    except (NotImplementedError, AttributeError):
        return None
    return mean if bool(torch.isfinite(mean).all()) else None


def mean_or(fn: Any, drawn: Tensor) -> Tensor:
    """The mean, and the draw in its place where it is not finite: one row without a mean leaves the others theirs."""
    try:
        mean: Tensor = fn.mean.expand(drawn.shape)
    except (NotImplementedError, AttributeError):
        return drawn
    return torch.where(torch.isfinite(mean), mean, drawn) if drawn.is_floating_point() else drawn


def _categorical(fn: Any) -> Any:
    """The Categorical that a distribution is, whose codes have no mean; None for anything else."""
    while isinstance(fn, dist.Independent):
        fn = fn.base_dist
    return fn if isinstance(fn, dist.Categorical) else None


def probabilities_of(fn: Any) -> Tensor | None:
    """Of a single class label, (*batch, C)."""
    classes = _categorical(fn)
    return None if classes is None or len(fn.event_shape) else classes.probs


def point_of(found: Terms, fn: Any, drawn: Tensor | None) -> Tensor:
    """One run's point for a site, (N, *event): mode of classes, else mean, else what was drawn, else a draw."""
    classes = _categorical(fn)
    point = mean_of(fn) if classes is None else classes.logits.argmax(-1)
    if point is None:
        point = mean_or(fn, fn.sample() if drawn is None else drawn)
    return found.rows(point, tuple(fn.event_shape))[0]


def average(points: list[Tensor], labels: Sequence[bool] | None = None) -> Tensor:
    """The mean of numbers, the most frequent of classes; `labels` says which columns of a mixed table are classes."""
    stacked = torch.stack(points)
    if labels is not None:
        return torch.where(torch.tensor(labels, device=stacked.device), stacked.mode(0).values, stacked.mean(0))
    return stacked.mean(0) if stacked.is_floating_point() else stacked.mode(0).values

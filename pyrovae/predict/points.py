"""A point prediction from a distribution: its mean, or its most probable class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.objectives.terms import Terms


def mean_of(fn: Any) -> Tensor | None:
    """The mean, or None if the distribution has none or any of it is not finite."""
    try:
        mean: Tensor = fn.mean
    except (NotImplementedError, AttributeError):
        return None
    return mean if bool(torch.isfinite(mean).all()) else None


def mean_or(fn: Any, drawn: Tensor) -> Tensor:
    """The mean, entry by entry, and `drawn` where it is not finite."""
    try:
        mean: Tensor = fn.mean.expand(drawn.shape)
    except (NotImplementedError, AttributeError):
        return drawn
    return torch.where(torch.isfinite(mean), mean, drawn) if drawn.is_floating_point() else drawn


def _categorical(fn: Any) -> Any:
    """The Categorical inside `fn`, or None: the mean of class numbers has no meaning."""
    while isinstance(fn, dist.Independent):
        fn = fn.base_dist
    return fn if isinstance(fn, dist.Categorical) else None


def probabilities_of(fn: Any) -> Tensor | None:
    """The class probabilities of a single label, `(*batch, C)`, or None for any other distribution."""
    classes = _categorical(fn)
    return None if classes is None or len(fn.event_shape) else classes.probs


def point_of(found: Terms, fn: Any, drawn: Tensor | None) -> Tensor:
    """The point prediction for a site in one run, for each particle and row, `(K, N, *event)`.

    It is the most probable class, or the mean; entries without a finite mean are `drawn`, or a new draw if that is None.
    """
    classes = _categorical(fn)
    point = mean_of(fn) if classes is None else classes.logits.argmax(-1)
    if point is None:
        point = mean_or(fn, fn.sample() if drawn is None else drawn)
    return found.rows(point, tuple(fn.event_shape))


def average(points: Tensor, labels: Sequence[bool] | None = None) -> Tensor:
    """The mean over the first dimension of numbers, or the most frequent class.

    `labels` says which columns of a mixed table are classes.
    """
    if labels is not None:
        return torch.where(torch.tensor(labels, device=points.device), points.mode(0).values, points.mean(0))
    return points.mean(0) if points.is_floating_point() else points.mode(0).values

"""The elements of a row that are missing, given those that are observed: draws, and means."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn import functional as F

from pyrovae._shapes import broadcast_shapes
from pyrovae.distributions.combine import ObservedOnly, has_marginals, marginal
from pyrovae.errors import PairError


def draw_missing(fn: Any, value: Tensor) -> Tensor:
    """Draw rows of which the elements that are NaN in `value` follow `p(x_missing | x_observed)`.

    Of independent elements the draw is that of the whole row; of a mixture of products the component is drawn given what is
    observed. A distribution may say how by a method `sample_missing(value)` of its own.

    Args:
        fn: The distribution, batch shape `(*batch)`.
        value: Rows with gaps, `(*batch, *event)`; batch shapes broadcast.

    Returns:
        A draw, `(*batch, *event)`; its elements at observed places are of no meaning.

    Raises:
        PairError: The elements depend on one another, and the distribution does not say how to draw some given the others.
    """
    fn = _unwrapped(fn)
    if hasattr(fn, "sample_missing"):
        drawn: Tensor = fn.sample_missing(value)
        return drawn
    _check(fn)
    return _drawn(fn, value)


def mean_missing(fn: Any, value: Tensor) -> Tensor | None:
    """`E[x_missing | x_observed]`, element by element, shaped as a draw of `draw_missing`; None if there is no finite mean."""
    fn = _unwrapped(fn)
    if hasattr(fn, "sample_missing"):
        return None
    _check(fn)
    try:
        return _mean(fn, value)
    except (NotImplementedError, AttributeError):
        return None


def _unwrapped(fn: Any) -> Any:
    while isinstance(fn, ObservedOnly) or type(fn).__name__ == "MaskedDistribution":
        fn = fn.whole if isinstance(fn, ObservedOnly) else fn.base_dist
    return fn


def _check(fn: Any) -> None:
    if not has_marginals(fn):
        raise PairError(
            f"Missing elements of a {type(fn).__name__} depend on the observed ones even given the latent sites, and it does "
            "not say how. Use a family of independent elements, or give the distribution a method sample_missing(value), "
            "which returns draws of whole rows given the elements of value that are not NaN."
        )


def _drawn(fn: Any, value: Tensor) -> Tensor:
    shares = _shares(fn, value)
    if shares is None:
        if isinstance(fn, dist.Independent) and fn.base_dist.event_shape:
            return _drawn(fn.base_dist, value)
        drawn: Tensor = fn.sample()
        return drawn.expand(broadcast_shapes(drawn.shape, value.shape))
    each = _drawn(fn.component_distribution, value.unsqueeze(-1 - len(fn.event_shape)))
    which = torch.distributions.Categorical(logits=shares, validate_args=False).sample()
    return _of_component(each, which, len(fn.event_shape))


def _mean(fn: Any, value: Tensor) -> Tensor:
    shares = _shares(fn, value)
    if shares is None:
        if isinstance(fn, dist.Independent) and fn.base_dist.event_shape:
            return _mean(fn.base_dist, value)
        mean: Tensor = fn.mean
        return mean.expand(broadcast_shapes(mean.shape, value.shape))
    n = len(fn.event_shape)
    each = _mean(fn.component_distribution, value.unsqueeze(-1 - n))
    weights = shares.softmax(-1).reshape(*shares.shape, *[1] * n)
    return (weights * each).sum(-1 - n)


def _shares(fn: Any, value: Tensor) -> Tensor | None:
    """`log p(component | x_observed)`, unnormalised, of a mixture of rows; None of any other distribution."""
    n = len(fn.event_shape)
    if not isinstance(fn, dist.MixtureSameFamily) or not n:
        return None
    wide = value.unsqueeze(-1 - n)
    inside = marginal(fn.component_distribution, wide, ~torch.isnan(wide))
    return inside + F.log_softmax(fn.mixture_distribution.logits, -1)


def _of_component(each: Tensor, which: Tensor, n: int) -> Tensor:
    """The values of the component that was drawn, `(*batch, *event)`, from `(*batch, components, *event)`."""
    event = each.shape[each.dim() - n :]
    wide = each.expand(*which.shape, *each.shape[-1 - n :])
    index = which.reshape(*which.shape, 1, *[1] * n).expand(*which.shape, 1, *event)
    return wide.gather(-1 - n, index).squeeze(-1 - n)

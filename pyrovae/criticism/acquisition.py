"""Which row's label would teach most: uncertainty of class probabilities, nats."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrovae.errors import DataError, ShapeError


def entropy(probabilities: Tensor) -> Tensor:
    """H[p] = -sum_c p_c log p_c, nats, 0 log 0 = 0: (*batch, C) -> (*batch), 0 to log C.

    It is large where the classes overlap as well as where the model has not seen enough; `information_gain` tells these
    apart. Raises ShapeError for a tensor without classes, DataError for rows that are no probabilities.
    """
    p = check_probabilities(probabilities)
    return -torch.xlogy(p, p).sum(-1)


def information_gain(probabilities: Tensor) -> Tensor:
    """Expected information gain of a row's label, BALD: H[mean_s p_s] - mean_s H[p_s], nats: (S, N, C) -> (N,).

    `probabilities` are those of S members of a committee, or of S draws of a posterior over weights. The mutual information
    of label and member: 0 where they agree, log min(S, C) at most. It is largest where members are sure, each of another
    class, and not where all of them are unsure alike. Raises ShapeError unless there are S >= 2 members, DataError for rows
    that are no probabilities. Houlsby, Huszar, Ghahramani & Lengyel 2011, arXiv:1112.5745.
    """
    if probabilities.dim() != 3 or len(probabilities) < 2:
        raise ShapeError(
            "information_gain needs the probabilities (S, N, C) of S >= 2 members of a committee, got "
            f"{tuple(probabilities.shape)}. Stack those of several fits, or of several draws of the weights."
        )
    # rounding may leave a little less than nothing
    return (entropy(probabilities.mean(0)) - entropy(probabilities).mean(0)).clamp_min(0.0)


def check_probabilities(probabilities: Tensor) -> Tensor:
    """The tensor, if its last dimension holds probabilities that sum to 1 within 1e-3."""
    if probabilities.dim() < 1 or not probabilities.is_floating_point() or probabilities.shape[-1] < 1:
        raise ShapeError(
            f"Probabilities are a floating tensor of shape (*batch, C), got {str(probabilities.dtype)[6:]} "
            f"{tuple(probabilities.shape)}."
        )
    wrong = (probabilities < 0).any(-1) | ~((probabilities.sum(-1) - 1).abs() <= 1e-3)
    if bool(wrong.any()):
        first = wrong.nonzero()[0].tolist()
        raise DataError(
            f"Probabilities of the classes must be at least 0 and sum to 1, and {int(wrong.sum())} rows do not; the first is "
            f"{first}. Give probabilities, not log-probabilities or scores: logits.softmax(-1)."
        )
    return probabilities

"""Uncertainty of class probabilities, in nats, to choose the rows whose labels would be most informative."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyrovae.errors import DataError, ShapeError, counted
from pyrovae.pair.arrays import as_tensor

__all__ = ["entropy", "information_gain"]


def entropy(probabilities: Tensor) -> Tensor:
    """The entropy of class probabilities, `H[p] = -sum_c p_c log p_c`, in nats.

    It is large where classes overlap, and also where the model has seen too few rows; `information_gain` distinguishes the two.

    Args:
        probabilities: Class probabilities, `(*batch, C)`, that sum to 1 over the last dimension.

    Returns:
        The entropy, `(*batch)`, from 0 to log C.

    Raises:
        ShapeError: The tensor is not floating or has no dimension of classes.
        DataError: The rows are not probabilities.

    References:
        Settles 2009, *Active learning literature survey*, section 3.1.

    Example:
        >>> pv.acquisition.entropy(torch.tensor([[0.5, 0.5], [0.9, 0.1]]))
        tensor([0.6931, 0.3251])
    """
    p = check_probabilities(probabilities)
    return -torch.xlogy(p, p).sum(-1)


def information_gain(probabilities: Tensor) -> Tensor:
    """The expected information gain of a row's label, `H[mean_s p_s] - mean_s H[p_s]`, in nats (BALD).

    This is the mutual information between the label and the member of a committee that predicts it. It is largest where
    members are sure of different classes, and small where all of them are equally unsure.

    Args:
        probabilities: Class probabilities, `(S, N, C)`, of S >= 2 members of a committee: several fits, or several draws
            from a posterior over weights.

    Returns:
        The gain for each row, `(N,)`, from 0, where all members agree, to log min(S, C).

    Raises:
        ShapeError: The shape is not `(S, N, C)` with S >= 2.
        DataError: The rows are not probabilities.

    References:
        Houlsby, Huszár, Ghahramani & Lengyel 2011, arXiv:1112.5745.

    Example:
        >>> sure = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])  # two members that contradict each other on one row
        >>> pv.acquisition.information_gain(sure)
        tensor([0.6931])
        >>> pv.acquisition.information_gain(torch.full((2, 1, 2), 0.5))  # two that are equally unsure
        tensor([0.])
    """
    probabilities = as_probabilities(probabilities)
    if probabilities.dim() != 3 or len(probabilities) < 2:
        raise ShapeError(
            "information_gain needs the probabilities (S, N, C) of S >= 2 members of a committee, got "
            f"{tuple(probabilities.shape)}. Stack the probabilities of several fits, or of several draws of the weights."
        )
    # Rounding may make it slightly negative.
    return (entropy(probabilities.mean(0)) - entropy(probabilities).mean(0)).clamp_min(0.0)


def as_probabilities(probabilities: Any) -> Tensor:
    """Probabilities as a tensor, which itself is kept, with its gradient. DataError for what are no numbers."""
    return probabilities if isinstance(probabilities, Tensor) else as_tensor("probabilities", probabilities)


def check_probabilities(probabilities: Tensor) -> Tensor:
    """Return the tensor if its last dimension has probabilities that sum to 1 within 1e-3.

    Raises:
        ShapeError: The tensor is not floating or has no dimension of classes.
        DataError: The rows are not probabilities.
    """
    probabilities = as_probabilities(probabilities)
    if probabilities.dim() < 1 or not probabilities.is_floating_point() or probabilities.shape[-1] < 1:
        raise ShapeError(
            f"Probabilities must be a floating tensor of shape (*batch, C), got {str(probabilities.dtype)[6:]} "
            f"{tuple(probabilities.shape)}."
        )
    wrong = (probabilities < 0).any(-1) | ~((probabilities.sum(-1) - 1).abs() <= 1e-3)
    if bool(wrong.any()):
        first = wrong.nonzero()[0].tolist()
        raise DataError(
            "Probabilities of the classes must be at least 0 and sum to 1, and "
            f"{counted(int(wrong.sum()), 'row does', 'rows do')} not; the first is "
            f"{first}. Give probabilities, not log-probabilities or scores: logits.softmax(-1)."
        )
    return probabilities

"""Rows of which a kind of data is missing altogether: which they are, and what a network is given in their place."""

import torch
from torch import Tensor


def is_seen(x: Tensor) -> Tensor:
    """`1[some entry of x is not NaN]`, for each row.

    Args:
        x: Rows, `(N, *event)`.

    Returns:
        `(N,)`, boolean.

    Example:
        >>> nan = float("nan")
        >>> pv.nets.is_seen(torch.tensor([[1.0, nan], [nan, nan]]))
        tensor([ True, False])
    """
    return ~torch.isnan(x).reshape(len(x), -1).all(1)


def without_gaps(x: Tensor) -> Tensor:
    """Rows of which nothing is seen, as zeros; other rows stay as they are, single gaps included.

    Args:
        x: Rows, `(N, *event)`.

    Returns:
        `(N, *event)`.

    Example:
        >>> nan = float("nan")
        >>> pv.nets.without_gaps(torch.tensor([[1.0, nan], [nan, nan]]))
        tensor([[1., nan],
                [0., 0.]])
    """
    return torch.where(is_seen(x).reshape(-1, *[1] * (x.dim() - 1)), x, torch.zeros_like(x))

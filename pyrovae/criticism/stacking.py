"""Weights of several models for one mixture of their predictions, and which of them is best for which row."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyrovae.errors import DataError, ShapeError
from pyrovae.pair.arrays import as_tensor

STEPS, CLOSE = 20_000, 1e-9


def stacking_weights(log_p: Any) -> Tensor:
    """The weights w of M models whose mixture predicts N rows best: they maximise `sum_n log sum_m w_m p_m(x_n)`.

    Unlike differences of mean log p(x), the weights say whether models know different things: a model that is worse on average
    has a weight if it is better for some kinds of rows. The objective is concave, and the steps of expectation-maximisation,
    `w_m <- w_m mean_n [p_m(x_n) / sum_j w_j p_j(x_n)]`, which stay on the simplex, lead to its maximum. Rows that were held out
    of the fits take the place of leave-one-out densities.

    Args:
        log_p: log p(x) of each model and row, `(M, N)`, nats, from `pv.log_likelihood` of rows held out: a tensor or an
            array, a list of one `(N,)` for each model, or a dict of them by the models' names.

    Returns:
        The weights, `(M,)` float64, which sum to 1, in the order of the models.

    Raises:
        ShapeError: `log_p` is not `(M, N)` with at least one model and one row.
        DataError: These are no numbers, the models have different numbers of rows, a value is NaN, or all
            models give a row probability 0.

    References:
        Yao, Vehtari, Simpson & Gelman 2018, *Using stacking to average Bayesian predictive distributions*, arXiv:1704.02030.

    Example:
        >>> first = torch.tensor([-1.0, -1.0, -4.0, -4.0])
        >>> # two that know different rows, and one that is worse everywhere
        >>> pv.stacking_weights(torch.stack([first, first.flip(0), first - 5])).round(decimals=3)
        tensor([0.5000, 0.5000, 0.0000], dtype=torch.float64)
    """
    given = list(log_p.values()) if isinstance(log_p, Mapping) else log_p
    found = as_tensor("log_p", given, torch.float64)
    if found.dim() != 2 or not found.numel():
        raise ShapeError(f"stacking_weights takes log p(x) of shape (models, rows), got {tuple(found.shape)}.")
    if len(found) > found.shape[1] > 1:
        warnings.warn(
            f"stacking_weights takes log p(x) of shape (models, rows), and got {tuple(found.shape)}: more models than rows. "
            "If that is the wrong way round, give log_p.T.",
            stacklevel=2,
        )
    values = found.detach().double().cpu()
    if bool(torch.isnan(values).any()) or bool(torch.isinf(values.amax(0)).any()):
        raise DataError(
            "stacking_weights needs log p(x) that is no NaN, and one model at least under which each row is possible."
        )
    p = (values - values.amax(0)).exp()
    weights = torch.full((len(p),), 1 / len(p), dtype=torch.float64)
    for _ in range(STEPS):
        # the gradient of the objective divided by N; at the maximum it is 1 where a weight is not 0, and at most 1 elsewhere
        slope = (p / (weights @ p)).mean(1)
        weights = weights * slope
        if float(slope.max()) < 1 + CLOSE:
            break
    return weights / weights.sum()


def shares_of_wins(log_p: Tensor) -> Tensor:
    """For each of M models the share of rows for which it has the largest log p(x), `(M,)`; equal ones share a row."""
    best = (log_p == log_p.amax(0)).double()
    return (best / best.sum(0)).mean(1)

"""Means of importance weights and over rows, with their standard errors, and the place of a value among weighed draws."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def effective_sample_size(log_w: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 of each row, `(N,)`, from log-weights `(K, N)`; 0 if all weights are zero."""
    return torch.exp(2 * torch.logsumexp(log_w, 0) - torch.logsumexp(2 * log_w, 0)).nan_to_num(0.0)


def relative_error(ess: Tensor, num_samples: int) -> Tensor:
    """The standard error of the log of the mean weight; by the delta method, that of the mean weight divided by it."""
    if num_samples == 1:
        return torch.full_like(ess, float("nan"))
    # The relative variance of the mean weight, (mean w^2 / (mean w)^2 - 1) / (K - 1), where K / ESS = mean w^2 / (mean w)^2.
    return ((num_samples / ess - 1).clamp_min(0) / (num_samples - 1)).sqrt()


def log_mean(log_w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The log of the mean weight of each row, its standard error, and the effective sample size, from `(K, N)`: `(N,)` each."""
    ess = effective_sample_size(log_w)
    return log_w.logsumexp(0) - math.log(len(log_w)), relative_error(ess, len(log_w)), ess


def transform_among(drawn: Tensor, value: Tensor, weight: Tensor) -> Tensor:
    """The probability integral transform of a value among draws, `(K, ...)`, whose weights add up to 1.

    It is made continuous by random numbers, over all places that the value could have among draws that equal it.
    """
    below, same = ((weight * hit.double()).sum(0) * len(drawn) for hit in (drawn < value, drawn == value))
    return (below + torch.rand_like(below) * (1 + same)) / (len(drawn) + 1)


def over_rows(values: Tensor) -> float:
    """The standard error of the mean over rows, sd / sqrt(N); NaN for one row."""
    return values.std().item() / math.sqrt(len(values)) if len(values) > 1 else float("nan")


def of_mean(errors: Tensor) -> float:
    """The standard error of the mean over rows that follows from independent errors of the rows; NaN for no row."""
    return errors.square().sum().sqrt().item() / len(errors) if len(errors) else float("nan")

"""k-hat, the diagnostic of Pareto-smoothed importance sampling, of many rows at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrovae._arguments import as_count

FIT_ELEMENTS = 2**22  # the most numbers that a fit of tails keeps in memory at once


def k_hat_threshold(num_samples: int) -> float:
    """The largest k-hat at which an estimate from K draws can be trusted: `min(1 - 1 / log10 K, 0.7)`.

    Args:
        num_samples: K, the number of draws.

    Returns:
        The threshold: 0.5 at K = 100, 0.67 at K = 1000, 0.7 from K = 2155 on; 0 at K = 10 and below, where none can be trusted.

    References:
        Vehtari, Simpson, Gelman, Yao & Gabry 2024, arXiv:1507.02646, section 3.2.4.

    Example:
        >>> pv.k_hat_threshold(100), round(pv.k_hat_threshold(1000), 3), pv.k_hat_threshold(10_000)
        (0.5, 0.667, 0.7)
    """
    num_samples = as_count("num_samples", num_samples, least=0)
    return max(0.0, min(1 - 1 / math.log10(num_samples), 0.7)) if num_samples > 1 else 0.0


def pareto_k(log_weights: Tensor) -> Tensor:
    """k-hat, the estimated shape of the generalised Pareto tail of the importance weights of each row.

    An estimate can be trusted as long as k-hat is not above `k_hat_threshold`.

    Args:
        log_weights: The log-weights of K draws for N rows, `(K, N)`.

    Returns:
        k-hat of each row, `(N,)` float64. It is -inf if the weights are equal up to rounding and so have no tail; NaN for
        K < 25, too few to fit one; and inf if at most 4 weights are in the tail, because few draws have any weight, or
        because weights take few values, as with discrete latent sites.

    References:
        Vehtari, Simpson, Gelman, Yao & Gabry 2024, arXiv:1507.02646. Zhang & Stephens 2009, *A new and efficient estimation
        method for the generalized Pareto distribution*, Technometrics 51 (the fit).

    Example:
        >>> from pyrovae.criticism.psis import pareto_k
        >>> pareto_k(torch.zeros(100, 3))
        tensor([-inf, -inf, -inf], dtype=torch.float64)
    """
    particles, rows = log_weights.shape
    if particles < 25:
        return torch.full((rows,), float("nan"), dtype=torch.float64)
    values = log_weights.detach().double().cpu()
    some = torch.isfinite(values)
    lowest = torch.where(some, values, float("inf")).amin(0)
    spread = torch.where(some.all(0), values.amax(0) - lowest, float("inf"))
    # A log-weight is a difference of log-densities, which are rounded in their own precision.
    rounding = 64 * torch.finfo(log_weights.dtype).eps * torch.where(some, values, 0.0).abs().amax(0).clamp_min(1.0)
    found = _tail_shapes(values)
    return torch.where(spread <= rounding, torch.full_like(found, -float("inf")), found)


def _tail_shapes(log_weights: Tensor) -> Tensor:
    """The shape of the tail of each column of `(K, N)`: of its largest weights, a fifth of all or 3 sqrt(K) if that is less."""
    particles, rows = log_weights.shape
    most = math.ceil(min(particles / 5, 3 * particles**0.5))
    # (N, most + 1), the largest last
    largest = (log_weights - log_weights.amax(0)).topk(most + 1, dim=0).values.flip(0).T
    cutoff = largest[:, :1].clamp_min(math.log(torch.finfo(torch.float64).tiny))
    excess = largest[:, 1:].exp() - cutoff.exp()
    lengths = (largest[:, 1:] > cutoff).sum(1)  # fewer than `most` where weights are equal, or zero
    found = torch.full((rows,), float("inf"), dtype=torch.float64)
    for length in [n for n in lengths.unique().tolist() if n > 4]:
        (of_length,) = torch.nonzero(lengths == length, as_tuple=True)
        for some in of_length.split(max(1, FIT_ELEMENTS // (_grid_size(length) * length))):
            found[some] = _generalised_pareto_shape(excess[some, most - length :])
    return found


def _grid_size(length: int) -> int:
    return 30 + int(length**0.5)


def _generalised_pareto_shape(excess: Tensor) -> Tensor:
    """The shape k of a generalised Pareto distribution for each row of `(rows, n)` ascending excesses over a threshold.

    With b = -k / scale, k is the mean of log(1 - b x). The estimate of b is its mean under the profile likelihood on a grid;
    k is then drawn towards 1/2 with the weight of ten observations.
    """
    n = excess.shape[1]
    size = _grid_size(n)
    places = torch.arange(1, size + 1, dtype=excess.dtype) - 0.5
    quartile = excess[:, int(n / 4 + 0.5) - 1]
    b = 1 / excess[:, -1:] + (1 - (size / places).sqrt()) / (3 * quartile[:, None])
    k = torch.log1p(-b[..., None] * excess[:, None]).mean(-1)
    probability = (n * (torch.log(-b / k) - k - 1)).nan_to_num(-math.inf).softmax(1)
    probability = torch.where(probability < 10 * torch.finfo(excess.dtype).eps, 0.0, probability)
    best = (b * probability).sum(1) / probability.sum(1)
    shape = torch.log1p(-best[:, None] * excess).mean(1)
    return (n * shape + 5) / (n + 10)

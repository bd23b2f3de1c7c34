"""k-hat, the diagnostic of Pareto-smoothed importance sampling, from ArviZ, which only this module imports."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from pyrovae._lazily import Lazily

arviz = Lazily("arviz")  # takes a second to import, and a fit does not need it


def pareto_k(log_weights: Tensor) -> Tensor:
    """k-hat, the estimated shape of the generalised Pareto tail of the importance weights of each row.

    An estimate is reliable if k-hat is below 0.5, usable up to 0.7, and not to be trusted above.

    Args:
        log_weights: The log-weights of K draws for N rows, `(K, N)`.

    Returns:
        k-hat of each row, `(N,)` float64. It is -inf if the weights are equal up to rounding and so have no tail; NaN for
        K < 25, too few to fit one; and inf if at most 4 weights are in the tail, because few draws have any weight, or
        because weights take few values, as with discrete latent sites.

    References:
        Vehtari, Simpson, Gelman, Yao & Gabry 2024, arXiv:1507.02646.

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
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 announces version 1.0 when it is imported
        _, k = arviz.psislw(values.T.contiguous().numpy(), normalize=False)
    found = torch.from_numpy(np.atleast_1d(np.asarray(k, dtype=np.float64)))
    return torch.where(spread <= rounding, torch.full_like(found, -float("inf")), found)

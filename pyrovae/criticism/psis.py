"""Pareto-smoothed importance sampling, from ArviZ. The one module that imports ArviZ."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from pyrovae._lazily import Lazily

arviz = Lazily("arviz")  # a second to import, and a fit needs none of it


def pareto_k(log_weights: Tensor) -> Tensor:
    """k-hat, the tail index of the importance weights of each row: (K, N) -> (N,) float64.

    Below 0.5 good, up to 0.7 usable, above: do not trust the estimate (Vehtari et al. 2024, JMLR 25(72), arXiv:1507.02646).
    Weights that are equal within rounding have no tail: -inf. With fewer than 25 particles there is none to fit: NaN. Where
    at most 4 weights stand above the tail's lower end, ArviZ gives inf: few draws have any weight, or, with discrete
    latents, weights take few values.
    """
    particles, rows = log_weights.shape
    if particles < 25:
        return torch.full((rows,), float("nan"), dtype=torch.float64)
    values = log_weights.detach().double().cpu()
    some = torch.isfinite(values)
    lowest = torch.where(some, values, float("inf")).amin(0)
    spread = torch.where(some.all(0), values.amax(0) - lowest, float("inf"))
    # Rounding of the log-densities that a weight is the difference of, in the precision they came in.
    rounding = 64 * torch.finfo(log_weights.dtype).eps * torch.where(some, values, 0.0).abs().amax(0).clamp_min(1.0)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 announces 1.0 at its first import of a day
        _, k = arviz.psislw(values.T.contiguous().numpy(), normalize=False)
    found = torch.from_numpy(np.atleast_1d(np.asarray(k, dtype=np.float64)))
    return torch.where(spread <= rounding, torch.full_like(found, -float("inf")), found)

"""One Normal of all columns as a VAE, in closed form, gaps included: what a table of few rows may be best described by."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrovae.closed_form import fill_linear
from pyrovae.conditionals import mlp
from pyrovae.distributions import observed_only
from pyrovae.families import Normal
from pyrovae.models import VAE
from pyrovae.models.linear import LinearPosterior
from pyrovae.priors import StandardNormal
from pyrovae.tables.recipe import MOST_ROWS, normal_of_observed

MOST_NUMBERS = 2**25  # of the covariances of rows that EM holds at once
LEAST_NOISE = 1e-3  # in standard deviations of the columns


def normal(rows: Tensor) -> VAE:
    """`z ~ N(0, I), x | z ~ N(W z + b, s^2 I)` with as many z as columns: the Normal that EM finds for rows `(N, D)` with gaps.

    Its covariance `C = W W' + s^2 I` is any one with eigenvalues above s^2, which is half the least. The encoder is the exact
    posterior given what a row has, so that log p(x) and `E[x_missing | x_observed]` need no refined proposal.

    References:
        Little and Rubin 2019, *Statistical Analysis with Missing Data*, chapter 11.
    """
    x = rows.detach().to("cpu", torch.float64)
    num = min(MOST_ROWS, max(2, MOST_NUMBERS // x.shape[1] ** 2))
    if len(x) > num:
        x = x[torch.linspace(0, len(x) - 1, num).long()]
    mean, covariance = normal_of_observed(x)
    values, vectors = torch.linalg.eigh(covariance)
    noise = (values[0] / 2).clamp_min(LEAST_NOISE**2)
    weight = vectors * (values - noise).clamp_min(0.0).sqrt()
    columns = x.shape[1]
    likelihood = mlp(columns, Normal(columns, scale="column", floor=LEAST_NOISE / 10), hidden=())
    fill_linear(likelihood, weight, mean, noise.sqrt().expand(columns))
    return VAE(StandardNormal(columns), observed_only(likelihood), LinearPosterior(likelihood))

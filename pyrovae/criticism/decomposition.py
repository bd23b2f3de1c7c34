"""What a fitted ELBO is made of: which latent dimensions are in use."""

from __future__ import annotations

from torch import Tensor

from pyrovae.errors import ShapeError


def active_units(means: Tensor, threshold: float = 0.01) -> Tensor:
    """Which latent dimensions move with the data: Var_n(E_q[z_l | x_n]) > threshold. means: (N, L) -> bool (L,).

    `means` is what `encode` gives. Burda et al. 2016, arXiv:1509.00519, section 5.2. Raises ShapeError for another shape
    or fewer than 2 rows.
    """
    if means.dim() != 2 or len(means) < 2:
        raise ShapeError(f"active_units takes posterior means of shape (N, L) with N >= 2, got {tuple(means.shape)}.")
    return means.var(0) > threshold

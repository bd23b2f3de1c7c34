"""What a fitted ELBO is made of: which latent dimensions are in use."""

from __future__ import annotations

from torch import Tensor

from pyrovae.errors import ShapeError


def active_units(means: Tensor, threshold: float = 0.01, again: Tensor | None = None) -> Tensor:
    """Which latent dimensions move with the data: Var_n(E_q[z_l | x_n]) > threshold. means: (N, L) -> bool (L,).

    `means` is what `encode` gives. Where that is an average of draws, as of an upper level of a hierarchy, their noise adds
    1/S of the spread within a row: give the same means of other draws (another seed) as `again`, and the variance becomes
    their covariance over rows, which no such noise enters. Burda et al. 2016, arXiv:1509.00519, section 5.2. Raises
    ShapeError for another shape or fewer than 2 rows.
    """
    again = means if again is None else again
    if means.dim() != 2 or len(means) < 2 or again.shape != means.shape:
        raise ShapeError(
            f"active_units takes posterior means of shape (N, L) with N >= 2, got {tuple(means.shape)}"
            + ("." if again.shape == means.shape else f" and, again, {tuple(again.shape)}.")
        )
    spread = (means - means.mean(0)) * (again - again.mean(0))
    return spread.sum(0) / (len(means) - 1) > threshold

"""The exact guide of a linear VAE with Normal noise, whatever is missing of a row: `LinearPosterior`."""

from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.distributions.normals import MultivariateNormal
from pyrovae.errors import PairError


class LinearPosterior(nn.Module):
    """`p(z | x_observed)` of `z ~ N(0, I), x | z ~ N(W z + b, diag(s^2))`, in closed form: an encoder that learns nothing.

    With O the observed elements of a row, the precision of z is `P = I + sum_{d in O} w_d w_d' / s_d^2`, and its mean
    `P^-1 sum_{d in O} w_d (x_d - b_d) / s_d^2`. So the ELBO is log p(x_observed), also while W, b and s are learned.

    Args:
        likelihood: The conditional p(x|z): `pv.mlp(L, fam.Normal(D, scale="column"), hidden=())`, without `observed_only`.

    Raises:
        PairError: The likelihood is not a linear one.

    References:
        Tipping and Bishop 1999, *Probabilistic principal component analysis*, there without gaps.

    Example:
        >>> from pyrovae.models.linear import LinearPosterior
        >>> likelihood = pv.mlp(2, fam.Normal(4, scale="column"), hidden=())
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.observed_only(likelihood), LinearPosterior(likelihood))
        >>> x = torch.randn(8, 4)
        >>> x[0, :2] = float("nan")
        >>> fitted = pv.fit(vae, x, epochs=0, progress=False)
        >>> weights = pv.importance(fitted, x, num_samples=3, proposal="guide", seed=0)
        >>> bool((weights.log_likelihood - weights.elbo).abs().max() < 1e-4)
        True
    """

    def __init__(self, likelihood: nn.Module) -> None:
        super().__init__()
        self.likelihood = likelihood
        layers = [part for part in likelihood.modules() if isinstance(part, nn.Linear)]
        if len(layers) != 1 or getattr(getattr(likelihood, "family", None), "raw_scale", None) is None:
            raise PairError(
                'LinearPosterior needs a linear likelihood, pv.mlp(L, fam.Normal(D, scale="column"), hidden=()), got '
                f"{type(likelihood).__name__} with {len(layers)} linear layers."
            )

    def forward(self, x: Tensor) -> MultivariateNormal:
        (layer,) = (part for part in self.likelihood.modules() if isinstance(part, nn.Linear))
        own: Any = self.likelihood(x.new_zeros(layer.in_features))  # at z = 0: its mean is b
        weight: Tensor = layer.weight
        shift, scale = own.mean, own.stddev
        missing = x.isnan()
        left = (torch.where(missing, shift, x) - shift) / scale
        factors = (weight / scale.unsqueeze(-1)) * (~missing).unsqueeze(-1).to(weight.dtype)  # (*batch, D, L)
        precision = factors.mT @ factors + torch.eye(layer.in_features, dtype=weight.dtype, device=weight.device)
        root = torch.linalg.cholesky(precision)
        mean = torch.cholesky_solve((factors.mT @ left.unsqueeze(-1)), root).squeeze(-1)
        return MultivariateNormal(mean, torch.linalg.cholesky(torch.cholesky_inverse(root)))

"""Exact EM for factor analysis and probabilistic PCA, as a fitted VAE: `linear_em`."""

from __future__ import annotations

import math
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyrovae._arguments import as_count
from pyrovae.conditionals import Conditional, mlp
from pyrovae.errors import DataError, OptionError
from pyrovae.families import Normal
from pyrovae.fitted.fitted import Fit
from pyrovae.models import VAE
from pyrovae.pair.arrays import as_tensor
from pyrovae.pair.batch import columns_of
from pyrovae.priors import StandardNormal
from pyrovae.training.fit import fit

NOISES = ("column", "shared")
LEAST_NOISE = 1e-3  # of a column's standard deviation: below it, a factor is the column itself


class _Model(NamedTuple):
    """`x = W z + mean + noise` of columns in units of their standard deviations."""

    weight: Tensor  # (D, L)
    noise: Tensor  # (D,), variances

    def log_likelihood(self, covariance: Tensor) -> float:
        """The mean of log N(x; mean, W W' + diag(noise)) over rows with this covariance, in nats per row."""
        factor = torch.linalg.cholesky(self.weight @ self.weight.T + self.noise.diag())
        log_det = 2 * factor.diagonal().log().sum()
        spread = torch.cholesky_solve(covariance, factor).trace()
        return -0.5 * (len(covariance) * math.log(2 * math.pi) + log_det + spread).item()


def linear_em(
    data: Any,
    latent: int,
    *,
    noise: str = "column",
    epochs: int = 1000,
    tolerance: float = 1e-7,
    device: str | torch.device = "auto",
    info: dict[str, Any] | None = None,
) -> Fit:
    """Exact EM for `z ~ N(0, I), x | z ~ N(W z + b, diag(s^2))`: factor analysis, or with one s probabilistic PCA.

    Both steps are closed forms: what a VAE with a linear decoder would learn, without a step size and without noise. The
    E-step gives `E[z | x] = B (x - b)` with `B = W' (W W' + diag(s^2))^-1` and `E[z z'] = I - B W + B S B'`, where S is the
    covariance of the rows; the M-step `W = S B' E[z z']^-1` and `s^2 = diag(S - W B S)`. log p(x) never falls.

    The result is a fit of `pv.VAE` whose encoder is the exact posterior: z is turned, which changes no density, so that its
    posterior covariance, the same for all rows, is diagonal. So the ELBO is log p(x), and
    what a linear VAE, `pv.per_row` or `pv.monte_carlo_em` reach on the same rows is at most that.

    Args:
        data: Rows, `(N, D)`, without gaps.
        latent: The number L of factors, less than D.
        noise: "column": a standard deviation s for each column (factor analysis); "shared": one (probabilistic PCA), whose
            answer is the start already, since it is known in closed form.
        epochs: The largest number of iterations. A history of as many rows tells that the tolerance was not reached.
        tolerance: Iterations end when the mean log p(x) of a row gains less than this, in nats.
        device: Where the weights of the result are, as for `pv.fit`.
        info: As for `pv.fit`.

    Returns:
        A fit with the history of iterations: "elbo" is the mean log p(x) of the rows, in nats per row.

    Raises:
        DataError: Rows are no matrix of finite numbers, there are fewer than two, or a column is constant; with one s,
            whose density constant columns share, all of them.
        OptionError: An option is not possible.

    References:
        Rubin and Thayer 1982, *EM algorithms for ML factor analysis*, Psychometrika 47. Tipping and Bishop 1999,
        *Probabilistic principal component analysis*, Journal of the Royal Statistical Society B 61.

    Example:
        >>> x = torch.randn(100, 2) @ torch.randn(2, 6) + 0.3 * torch.randn(100, 6)
        >>> fitted = pv.linear_em(x, latent=2)
        >>> exact = pv.importance(fitted, x, num_samples=5, proposal="guide", seed=0)
        >>> bool((exact.log_likelihood - exact.elbo).abs().max() < 1e-2)  # the guide is the posterior
        True
        >>> abs(exact.log_likelihood.mean().item() - fitted.history[-1]["elbo"]) < 1e-2
        True
    """
    x = as_tensor("x", data).to("cpu", torch.float64)
    if x.dim() != 2 or len(x) < 2 or not bool(x.isfinite().all()):
        raise DataError(
            f"linear_em takes at least two rows of numbers without gaps, (N, D), got {tuple(x.shape)}: fill gaps, or fit a "
            "pv.VAE with pv.observed_only(likelihood)."
        )
    number, iterations = as_count("latent", latent), as_count("epochs", epochs)
    if number >= x.shape[1]:
        raise OptionError(f"latent must be less than the {x.shape[1]} columns, got {latent}.")
    if noise not in NOISES:
        raise OptionError(f"noise must be one of {', '.join(map(repr, NOISES))}, got {noise!r}.")
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or math.isnan(tolerance):
        raise OptionError(f"tolerance must be a number of nats, got {tolerance!r}.")
    mean, sd = x.mean(0), x.std(0, correction=0)
    constant = sd <= 1e-12 * x.abs().amax(0)
    if bool(constant.all() if noise == "shared" else constant.any()):
        raise DataError(f"Columns {constant.nonzero()[:6, 0].tolist()} are constant and have no density: drop them.")
    unit = sd if noise == "column" else sd.square().mean().sqrt().expand_as(sd)
    scaled = (x - mean) / unit
    log_unit = unit.log().sum().item()
    model, history = _iterate(scaled.T @ scaled / len(x), number, noise, iterations, tolerance)
    for row in history:
        row["elbo"] -= log_unit
    pair = _as_pair(model, mean, unit, noise)
    fitted = fit(pair, x.to(torch.get_default_dtype()), epochs=0, device=device, info=info, progress=False)
    fitted.columns = columns_of(pair, data)
    fitted.history[:] = history
    fitted.settings |= {"epochs": len(history), "loss": "linear_em", "optimizer": {"class": "linear_em", "lr": 0.0}}
    return fitted


def _iterate(
    covariance: Tensor, latent: int, noise: str, epochs: int, tolerance: float
) -> tuple[_Model, list[dict[str, float]]]:
    """EM from the principal components of a covariance matrix."""
    began = time.monotonic()
    values, vectors = torch.linalg.eigh(covariance)
    rest = values[:-latent].mean().clamp_min(LEAST_NOISE**2)
    weight = vectors[:, -latent:] * (values[-latent:] - rest).clamp_min(0.0).sqrt()
    model = _Model(weight, rest.expand(len(covariance)))
    history: list[dict[str, float]] = []
    while len(history) < epochs:
        model = _step(model, covariance, noise)
        row = {"epoch": len(history) + 1, "steps": len(history) + 1, "elbo": model.log_likelihood(covariance)}
        row |= {"learning_rate": 0.0, "kl_weight": 1.0, "seconds": round(time.monotonic() - began, 3)}
        history.append(row)
        if len(history) > 1 and history[-1]["elbo"] - history[-2]["elbo"] < tolerance:
            break
    return model, history


def _step(model: _Model, covariance: Tensor, noise: str) -> _Model:
    """One iteration: the moments of z, and the model that they are likeliest under."""
    weight = model.weight
    marginal = weight @ weight.T + model.noise.diag()
    predict = torch.linalg.solve(marginal, weight).T  # B
    both = predict @ covariance
    second = torch.eye(weight.shape[1]).to(weight) - predict @ weight + both @ predict.T
    weight = torch.linalg.solve(second, both).T
    left = (covariance - weight @ both).diagonal()
    left = left.mean().expand_as(left) if noise == "shared" else left
    return _Model(weight, left.clamp_min(LEAST_NOISE**2))


def _as_pair(model: _Model, mean: Tensor, unit: Tensor, noise: str) -> VAE:
    """The VAE with this model in the units of the data, and its posterior as encoder."""
    information = model.weight.T @ (model.weight / model.noise[:, None])
    precision, turn = torch.linalg.eigh(information)
    weight = model.weight @ turn * unit[:, None]
    scale = model.noise.sqrt() * unit
    posterior = (1 + precision).rsqrt()  # of each factor, now that they are independent
    columns, latent = weight.shape
    floor = (LEAST_NOISE / 10 * unit.min()).item()
    decoder = mlp(latent, Normal(columns, scale=noise, floor=floor), hidden=())
    encoder = mlp(columns, Normal(latent, scale="column", floor=posterior.min().item() / 10), hidden=())
    forward = weight.T / scale.square() * posterior.square()[:, None]
    fill_linear(decoder, weight, mean, scale[0] if noise == "shared" else scale)
    fill_linear(encoder, forward, -forward @ mean, posterior)
    return VAE(StandardNormal(latent), decoder, encoder)


def fill_linear(conditional: Conditional, weight: Tensor, bias: Tensor, scale: Tensor) -> None:
    """Give a linear conditional its weights, and its family the scale `softplus(raw) + floor`."""
    (layer,) = (part for part in conditional.net.modules() if isinstance(part, nn.Linear))
    family: Any = conditional.family
    raw = scale - family.floor
    raw = raw + (-(-raw).expm1()).log()  # the inverse of softplus, for scales of any size
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
        family.raw_scale.copy_(raw)

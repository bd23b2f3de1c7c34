"""log p(x) from draws of the posterior: a density is fitted to some, and weighed against p(x, z) at others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae._arguments import as_count
from pyrovae._html import Told
from pyrovae.batching.checks import check_rows
from pyrovae.batching.memory import halving
from pyrovae.criticism.ais import annealer_of, check_options
from pyrovae.criticism.annealing import ACCEPTANCE, GAIN, Path, Point, shared_sites
from pyrovae.criticism.averages import of_mean, over_rows
from pyrovae.criticism.prior_as_guide import with_prior_as_guide
from pyrovae.errors import OptionError, PairError
from pyrovae.fitted.fitted import Fit, in_order, seeded

SHARE = 0.9  # of the fitted Normal that counts: the ellipsoid around its mean that holds this probability
LEAST_DRAWS = 10  # for each latent dimension: a Normal of fewer is too narrow, and overlaps with draws that follow
LEAST_STEPS = 4  # of a chain, for each half of the draws
JITTER = 1e-6  # of the mean variance, added to every variance, so that a covariance of few draws has an inverse


@dataclass(frozen=True, repr=False)
class Harmonic(Told):
    """Estimates of log p(x) of N rows from draws of their posteriors. All tensors are `(N,)` float64, on the CPU.

    Attributes:
        log_likelihood: The estimate of log p(x), in nats. Its expectation is at least log p(x), if the draws are the
            posterior's and independent of those that the density is fitted to. It is infinite where none of them is in the
            ellipsoid of that density.
        standard_error: The standard error of `log_likelihood` over the chains, in nats, by the delta method.
        acceptance: The share of trajectories that were accepted.
        num_samples: S, draws of a row for the estimate, and as many for the fitted density.
        num_chains: K.

    Example:
        >>> zeros = torch.zeros(3, dtype=torch.float64)
        >>> found = pv.Harmonic(zeros - 80, zeros + 0.1, zeros + 0.65, num_samples=1000, num_chains=16)
        >>> found.summary()["log_likelihood"]
        -80.0
    """

    log_likelihood: Tensor
    standard_error: Tensor
    acceptance: Tensor
    num_samples: int
    num_chains: int

    def summary(self) -> dict[str, float]:
        """The means of `log_likelihood` and `acceptance`, by name; `log_likelihood_se`, the standard error of the mean over
        rows, sd / sqrt(N); and `monte_carlo_se`, the part of it that more draws would remove, by the rows' own errors."""
        return {
            "log_likelihood": self.log_likelihood.mean().item(),
            "log_likelihood_se": over_rows(self.log_likelihood),
            "monte_carlo_se": of_mean(self.standard_error),
            "acceptance": self.acceptance.mean().item(),
        }

    def _told(self) -> tuple[Any, ...]:
        title = f"Harmonic estimates of {len(self.log_likelihood)} rows, {self.num_samples} draws each; nats per row"
        return (title, ("mean over rows", "value"), self.summary().items())


@halving
def harmonic(
    fitted: Fit,
    data: Any,
    *,
    num_samples: int = 1000,
    num_chains: int = 16,
    num_temperatures: int = 100,
    num_leapfrog: int = 10,
    seed: int | None = None,
) -> Harmonic:
    """Estimate log p(x) of each row from draws of its posterior, as Kingma and Welling (2014, appendix D) did.

    With draws z_s of p(z | x) by Hamiltonian Monte Carlo and any density q(z),

        1 / p(x) = E_p(z|x)[q(z) / p(x, z)],  log p(x) = -log (1/S) sum_s q(z_s) / p(x, z_s).

    q is a Normal with mean and covariance of S other draws of the row, cut off to the ellipsoid that holds 0.9 of it (Geweke
    1999), so that no draw in a tail, where p(x, z) falls faster than q, decides on the sum. It owes nothing to the guide. The
    fewer latent dimensions, the better: what it takes is a posterior that one Normal resembles and that chains move about in.
    Where one is in several pieces, the estimate is too high, and where chains move so slowly that both halves of the draws are
    alike, it is too low; the stated error may show neither. Compare `pv.ais`.

    K chains of each row start from the prior and are annealed to the posterior, as those of `pv.ais`, and resampled by their
    weights. They then take as many steps as each half of the draws does, in which the step size settles, before any counts.
    Enumerated sites are summed out. Rows are processed in blocks.

    Args:
        fitted: The fitted pair.
        data: The rows, as for `pv.fit`. The transform of the fit is applied once, with a fixed seed.
        num_samples: The number S of draws of a row for the estimate, rounded up to a multiple of K; as many for q. At least 10
            for each latent dimension of a row, and 4 for each chain.
        num_chains: The number K of chains for each row, at least 2.
        num_temperatures: The number of steps in which a chain comes from the prior.
        num_leapfrog: The number of leapfrog steps in a step of Hamiltonian Monte Carlo.
        seed: The seed of the draws; None continues torch's random state.

    Returns:
        The estimates for each row, see `Harmonic`.

    Raises:
        OptionError: A number is less than 1; there are fewer than two chains, whose spread gives the error; or `num_samples` is
            too small for a Normal of as many dimensions.
        DataError: Values are outside the support of the likelihood, or missing where it does not allow that.
        PairError: A row has a latent site that is neither continuous nor enumerated, or one in a plate beside "data"; there is
            a global latent site; or the pair does not keep several particles of a row apart.

    References:
        Kingma and Welling 2014, arXiv:1312.6114, appendix D. Gelfand and Dey 1994, *Bayesian model choice: asymptotics and
        exact calculations*, Journal of the Royal Statistical Society B 56. Geweke 1999, *Using simulation methods for Bayesian
        econometric models*, Econometric Reviews 18.

    Example:
        >>> vae = pv.VAE(pv.priors.StandardNormal(1), pv.mlp(1, fam.Bernoulli(6)), pv.mlp(6, fam.Normal(1)))
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> fitted = pv.fit(vae, x, epochs=1, engine="eager", progress=False)
        >>> found = pv.harmonic(fitted, x[:3], num_samples=160, num_temperatures=10, num_leapfrog=2, seed=0)
        >>> exact = pv.quadrature(fitted, x[:3])
        >>> bool((found.log_likelihood - exact.log_likelihood).abs().max() < 0.2)
        True
    """
    check_options(num_temperatures, num_chains, num_leapfrog)
    num_samples = as_count("num_samples", num_samples)
    if num_chains < 2:
        raise OptionError(
            "num_chains must be at least 2, since the error is estimated by how far chains disagree, got 1."
        )
    steps = math.ceil(num_samples / num_chains)
    prior = with_prior_as_guide(fitted)
    found = []
    with prior.scope(), seeded(seed):
        parts = prior.parts(data)
        for part in parts:
            if shared := shared_sites(part.layout):
                raise PairError(
                    f"All rows share {', '.join(map(repr, shared))}, so that a chain of one row has no posterior of its own: "
                    "estimate log p(x) with pv.importance or pv.ais."
                )
        annealers = [annealer_of(fitted, prior, part, num_temperatures, num_leapfrog, "prior") for part in parts]
        for annealer in annealers:
            _check_draws(num_samples, num_chains, annealer.coordinates.size)
        for part in parts:
            check_rows(prior.pair, part.batch, prior.chunk_size(part.batch), strict=False, numbers=part.rows)
        for part, annealer in zip(parts, annealers):
            columns = []
            for rows, count in annealer.blocks(part.batch, num_chains):
                columns.append(torch.stack(_estimate(annealer.path(rows), num_chains, steps))[:, :count].cpu())
            found.append(torch.cat(columns, 1))
    log_p, error, acceptance = in_order(parts, found, 1)
    return Harmonic(log_p, error, acceptance, steps * num_chains, num_chains)


def _check_draws(num_samples: int, num_chains: int, size: int) -> None:
    """OptionError where draws are too few for a Normal of so many dimensions, whose estimates would be far too low."""
    least = max(LEAST_DRAWS * size, LEAST_STEPS * num_chains)
    if num_samples < least:
        raise OptionError(
            f"num_samples must be at least {least} for {size} latent dimensions and {num_chains} chains, got {num_samples}: a "
            "Normal that is fitted to fewer draws says little of others."
        )


def _estimate(path: Path, num_chains: int, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """log p(x), its standard error, and the share of accepted trajectories of a block of rows, `(N,)` each."""
    chain = _Chains(path, path.resampled(path.start(num_chains)))
    chain.walk(steps, settling=True)
    fitted_to, _ = chain.walk(steps)
    mean, factor = _normal(fitted_to)
    u, log_joint = chain.walk(steps)
    log_ratio = _log_cut_normal(u, mean, factor) - log_joint.double()
    of_chains = log_ratio.logsumexp(0) - math.log(steps)  # (N, K), log of the mean of q / p(x, u) of each chain
    largest = of_chains.amax(1, keepdim=True).nan_to_num(neginf=0.0)  # no chain has a draw in the ellipsoid
    means = (of_chains - largest).exp()
    error = (means.std(1) / num_chains**0.5 / means.mean(1)).nan_to_num(math.inf)
    return -(means.mean(1).log() + largest[:, 0]), error, chain.accepted / chain.walked


class _Chains:
    """Chains of a block of rows under their posteriors."""

    def __init__(self, path: Path, at: Point) -> None:
        assert path.step_sizes is not None
        self.path, self.at = path, at
        self.size = path.step_sizes[max(0, len(path.step_sizes) - 2)]  # of the last temperature that has trajectories
        self.accepted = torch.zeros(len(at.u), dtype=torch.float64, device=at.u.device)
        self.walked = 0

    def walk(self, steps: int, *, settling: bool = False) -> tuple[Tensor, Tensor]:
        """Take steps, and return where chains were, `(steps, N, K, d)`, and log p(x, u) there, `(steps, N, K)`."""
        u, log_joint = [], []
        for _ in range(steps):
            self.at, share = self.path.trajectory(self.at, {}, 1.0, self.size)
            if settling:
                self.size = self.size * (GAIN * (share - ACCEPTANCE)).exp()
            else:
                self.accepted += share.double()
                self.walked += 1
            u.append(self.at.u)
            log_joint.append(self.at.log_joint)
        return torch.stack(u), torch.stack(log_joint)


def _normal(u: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `(N, 1, d)` and Cholesky factor of the covariance `(N, d, d)` of the draws of each row."""
    draws = u.double().permute(1, 0, 2, 3).flatten(1, 2)  # (N, S, d)
    mean = draws.mean(1, keepdim=True)
    covariance = (draws - mean).mT @ (draws - mean) / max(1, draws.shape[1] - 1)
    spread = covariance.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(torch.finfo(torch.float32).tiny)
    eye = torch.eye(u.shape[-1], dtype=torch.float64, device=u.device)
    return mean, torch.linalg.cholesky(covariance + JITTER * spread[:, None, None] * eye)


def _log_cut_normal(u: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """log q at u, `(steps, N, K)`: that of a Normal within the ellipsoid that holds SHARE of it, and -inf outside."""
    size = u.shape[-1]
    standard = torch.linalg.solve_triangular(factor, (u.double() - mean).mT, upper=False).square().sum(-2)
    log_q = -standard / 2 - size / 2 * math.log(2 * math.pi) - math.log(SHARE)
    log_q = log_q - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)[:, None]
    return torch.where(standard <= _radius(size), log_q, -math.inf)


def _radius(size: int) -> float:
    """The quantile of SHARE of a chi-squared distribution of so many degrees of freedom, by bisection."""
    low, high = 0.0, 10.0 * size + 100.0
    half = torch.tensor(size / 2, dtype=torch.float64)
    for _ in range(100):
        middle = (low + high) / 2
        inside = torch.special.gammainc(half, torch.tensor(middle / 2, dtype=torch.float64)) < SHARE
        low, high = (middle, high) if inside else (low, middle)
    return high

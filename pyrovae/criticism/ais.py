"""Annealed importance sampling with Hamiltonian Monte Carlo: `ais`, a yardstick for estimates of log p(x)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae._arguments import as_choice, as_count
from pyrovae._html import Told
from pyrovae.batching.checks import check_rows
from pyrovae.batching.memory import halving
from pyrovae.criticism.annealing import Annealer, Path, coordinates_of, schedule
from pyrovae.criticism.averages import log_mean, of_mean, over_rows
from pyrovae.criticism.coordinates import NotRefinable
from pyrovae.criticism.prior_as_guide import with_prior_as_guide
from pyrovae.errors import PairError
from pyrovae.fitted.fitted import Fit, FittedGroup, in_order, seeded

STARTS = ("prior", "guide")


@dataclass(frozen=True, repr=False)
class AIS(Told):
    """Estimates for N rows by annealed importance sampling with K chains each. All tensors are `(N,)` float64, on the CPU.

    Attributes:
        log_likelihood: The estimate `log (1/K) sum_k w_k` of log p(x), in nats. Its expectation is at most log p(x).
        standard_error: The standard error of `log_likelihood` over the chains, in nats, by the delta method; NaN for K = 1.
        ess: The effective sample size `(sum_k w_k)^2 / sum_k w_k^2` of the chains, from 1 to K (0 if all weights are zero).
        acceptance: The share of trajectories that were accepted, averaged over chains and temperatures.
        num_temperatures: T.
        num_chains: K.
        start: Where the chains began: "prior" or "guide".

    References:
        Neal 2001, *Annealed importance sampling*, Statistics and Computing 11.

    Example:
        >>> zeros = torch.zeros(3, dtype=torch.float64)
        >>> found = pv.AIS(zeros - 80, zeros + 0.1, zeros + 12, zeros + 0.65, num_temperatures=500, num_chains=16)
        >>> found.summary()["log_likelihood"], found.summary()["ess"]
        (-80.0, 12.0)
    """

    log_likelihood: Tensor
    standard_error: Tensor
    ess: Tensor
    acceptance: Tensor
    num_temperatures: int
    num_chains: int
    start: str = "prior"

    def summary(self) -> dict[str, float]:
        """Means over the rows, by name.

        Returns:
            The means of `log_likelihood`, `ess` and `acceptance`; `log_likelihood_se`, the standard error of the mean over
            rows, sd / sqrt(N); and `monte_carlo_se`, the part of it that more chains would remove, by the rows' own errors.
        """
        return {
            "log_likelihood": self.log_likelihood.mean().item(),
            "log_likelihood_se": over_rows(self.log_likelihood),
            "monte_carlo_se": of_mean(self.standard_error),
            "ess": self.ess.mean().item(),
            "acceptance": self.acceptance.mean().item(),
        }

    def _told(self) -> tuple[Any, ...]:
        title = (
            f"Annealed importance sampling of {len(self.ess)} rows, {self.num_chains} chains of {self.num_temperatures} "
            "temperatures each; nats per row"
        )
        return (title, ("mean over rows", "value"), self.summary().items())


@halving
def ais(
    fitted: Fit,
    data: Any,
    *,
    num_temperatures: int = 500,
    num_chains: int = 16,
    num_leapfrog: int = 10,
    start: str = "prior",
    seed: int | None = None,
) -> AIS:
    """Estimate log p(x) of each row by annealed importance sampling with Hamiltonian Monte Carlo: slow, and hard to mislead.

    K chains of each row move along `f_b(z) = f_0(z)^(1 - b) p(x, z)^b` from b = 0, where z is drawn from f_0, to b = 1, in
    T steps along a sigmoid. The estimate is `log (1/K) sum_k w_k` with
    `log w_k = sum_t (b_t - b_{t-1}) [log p(x, z_{t-1}) - log f_0(z_{t-1})]`, where z_t is one step of Hamiltonian Monte Carlo
    from z_{t-1} that leaves f_{b_t} as it is.

    This is a yardstick for `pv.importance`, which takes seconds where this takes minutes: T times `num_leapfrog` gradients of
    the model for each chain. It needs no proposal near the posterior, and from the prior it owes nothing to the guide. What
    error is left, `pv.bdmc` tells. Chains start from the prior by default for that reason.

    All continuous latent sites of a row are moved together, as one vector without constraints, in units of their standard
    deviations under f_0. Enumerated sites are summed out; global latent sites are drawn from the guide, once for each chain,
    so that the estimate of a row is its log predictive density. The step size under each b, of each row, is tuned to an
    acceptance of 0.65 with chains that are not weighed. Rows and chains are processed in chunks.

    Args:
        fitted: The fitted pair.
        data: The rows, as for `pv.fit`. The transform of the fit is applied once, with a fixed seed.
        num_temperatures: The number T of steps from f_0 to the posterior.
        num_chains: The number K of chains for each row.
        num_leapfrog: The number of leapfrog steps in a step of Hamiltonian Monte Carlo.
        start: f_0: "prior", p(z), or "guide", a Normal with the guide's mean and standard deviation of each coordinate. From
            there fewer temperatures may do; what the guide cannot see, such as a second mode, is then found less surely.
        seed: The seed of the draws; None continues torch's random state.

    Returns:
        The estimates for each row, see `AIS`.

    Raises:
        OptionError: A number is less than 1, or the start is not known.
        DataError: Values are outside the support of the likelihood, or missing where it does not allow that.
        PairError: A row has a latent site that is neither continuous nor enumerated, or one in a plate beside "data"; or the
            pair does not keep several particles of a row apart.

    References:
        Neal 2001, *Annealed importance sampling*, Statistics and Computing 11. Wu, Burda, Salakhutdinov & Grosse 2017,
        arXiv:1611.04273 (for decoders, with Hamiltonian Monte Carlo and this schedule).

    Example:
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6)), pv.mlp(6, fam.Normal(2)))
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> fitted = pv.fit(vae, x, epochs=1, engine="eager", progress=False)
        >>> found = pv.ais(fitted, x[:3], num_temperatures=20, num_chains=8, num_leapfrog=2, seed=0)
        >>> found.log_likelihood.shape, bool((found.standard_error < 0.5).all())
        (torch.Size([3]), True)
    """
    check_options(num_temperatures, num_chains, num_leapfrog, start)
    prior = with_prior_as_guide(fitted)
    found = []
    with prior.scope(), seeded(seed):
        parts = prior.parts(data)
        annealers = [annealer_of(fitted, prior, part, num_temperatures, num_leapfrog, start) for part in parts]
        for part in parts:
            check_rows(prior.pair, part.batch, prior.chunk_size(part.batch), strict=False, numbers=part.rows)
        for part, annealer in zip(parts, annealers):
            pieces = annealer.pieces(part.batch, num_chains)
            columns = []
            for rows, count in annealer.blocks(part.batch, num_chains):
                path = annealer.path(rows)
                log_w, acceptance = weigh(path, pieces)
                columns.append(torch.stack([*log_mean(log_w.T), acceptance])[:, :count].cpu())
            found.append(torch.cat(columns, 1))
    log_p, error, ess, acceptance = in_order(parts, found, 1)
    return AIS(log_p, error, ess, acceptance, num_temperatures, num_chains, start)


def check_options(num_temperatures: int, num_chains: int, num_leapfrog: int, start: str = "prior") -> None:
    """OptionError unless there are chains to run, from a start that is known."""
    numbers = {"num_temperatures": num_temperatures, "num_chains": num_chains, "num_leapfrog": num_leapfrog}
    for name, value in numbers.items():
        as_count(name, value)
    as_choice("start", start, STARTS)


def annealer_of(
    fitted: Fit, prior: Fit, part: FittedGroup, num_temperatures: int, num_leapfrog: int, start: str
) -> Annealer:
    """What chains of rows with the same arguments have in common. PairError if they cannot move."""
    try:
        coordinates = coordinates_of(prior, part.batch, part.layout)
    except NotRefinable as error:
        raise PairError(
            f"Chains move along gradients, and so need latent sites of a row that are continuous: {error}. Estimate log p(x) "
            "with pv.importance, whose proposal may be the guide."
        ) from error
    guided = (fitted, fitted.layout_of(part.batch)) if start == "guide" else None
    return Annealer(prior, part.layout, coordinates, schedule(num_temperatures), num_leapfrog, guided, {})


def weigh(path: Path, pieces: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Log-weights `(N, K)` and acceptance `(N,)` of chains that run in pieces."""
    log_w, acceptance = zip(*(path.weigh(path.start(k)) for k in pieces))
    shares = torch.stack([a * k for a, k in zip(acceptance, pieces)])
    return torch.cat(log_w, 1), shares.sum(0) / sum(pieces)

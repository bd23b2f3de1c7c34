"""Monte Carlo EM: a chain of Hamiltonian Monte Carlo for each training row, under the weights of the moment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyrovae._arguments import as_count, as_number
from pyrovae.errors import OptionError
from pyrovae.guides.by_row import ByRow, Place, as_pair, at_dim, normals, sites_of, to_support
from pyrovae.guides.hmc import trajectory
from pyrovae.objectives.terms import terms
from pyrovae.objectives.weights import log_weights
from pyrovae.pair.batch import as_batch, columns_of, named_by, num_rows
from pyrovae.pair.program import Pair, PairLike, plate_nesting, sample_sites

LEAST_GAIN = 0.02  # how fast step sizes follow acceptance, after 2500 visits of a row; chains are exact where it is 0
MEMORY = 20  # visits of a row that its moments and its acceptance are averaged over


class _At(NamedTuple):
    """Where chains are, `(n, d)`, with log p(x, u), `(n,)`, and its gradient."""

    u: Tensor
    log_joint: Tensor
    gradient: Tensor
    drawn: Tensor  # which coordinates the rows have, `(d,)`: those of sites that they observe stay where they are

    def where(self, goes: Tensor, other: _At) -> _At:
        """Here in rows that go, else at the other place."""
        return _At(
            torch.where(goes[:, None], self.u, other.u),
            torch.where(goes, self.log_joint, other.log_joint),
            torch.where(goes[:, None], self.gradient, other.gradient),
            self.drawn,
        )


class MonteCarloEM(ByRow):
    """`p(x, z)` with a chain of Hamiltonian Monte Carlo for each row in the place of a guide.

    `pv.monte_carlo_em` makes it, and finds the sites.

    Args:
        pair: The pair whose model it is.
        num_rows: The number N of rows.
        sites: The shape of each continuous latent site of a row without constraints, by name.
        summed: Names of discrete latent sites, which are summed out.
        num_leapfrog: Leapfrog steps in a trajectory.
        num_trajectories: Trajectories in a step of the fit.
        acceptance: What step sizes are tuned to.

    Attributes:
        chain: Where the chains are, `(N, d)`.
        mean: The mean of each chain over some 20 visits, `(N, d)`.
        variance: Its variance, `(N, d)`.
        step_size: The step size of each row, `(N,)`.
        accepted: The probability of acceptance of each row, averaged as the moments are, `(N,)`.
        visits: How often each row was in a minibatch, `(N,)`.

    Example:
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6)), pv.mlp(6, fam.Normal(2)))
        >>> pv.guides.MonteCarloEM(vae, num_rows=40, sites={"z": (2,)}).chain.shape
        torch.Size([40, 2])
    """

    chain: Tensor
    mean: Tensor
    variance: Tensor
    step_size: Tensor
    accepted: Tensor
    visits: Tensor

    def __init__(
        self,
        pair: PairLike,
        num_rows: int,
        sites: Mapping[str, Sequence[int]],
        summed: Sequence[str] = (),
        num_leapfrog: int = 10,
        num_trajectories: int = 1,
        acceptance: float = 0.9,
    ) -> None:
        super().__init__(pair, num_rows, sites, summed)
        self.num_leapfrog = as_count("num_leapfrog", num_leapfrog)
        self.num_trajectories = as_count("num_trajectories", num_trajectories)
        self.acceptance = as_number("acceptance", acceptance, above=0, below=1)
        num_rows = self.num_rows
        like = next((p for p in self.parameters() if p.is_floating_point()), torch.zeros(()))
        empty = torch.zeros(num_rows, self.size, dtype=like.dtype, device=like.device)
        for name in ("chain", "mean"):
            self.register_buffer(name, empty.clone())
        self.register_buffer("variance", torch.ones_like(empty))
        self.register_buffer("step_size", torch.full_like(empty[:, 0], self.size**-0.25))
        for name in ("accepted", "visits"):
            self.register_buffer(name, torch.zeros_like(empty[:, 0]))

    def in_history(self) -> dict[str, float]:
        """What the history of a fit notes after each epoch: means over the rows that have been in a minibatch."""
        seen = self.visits > 0
        if not bool(seen.any()):
            return {}
        return {"acceptance": self.accepted[seen].mean().item(), "step_size": self.step_size[seen].mean().item()}

    def _place(self, index: Tensor, rows: Mapping[str, Tensor]) -> Place:
        if not self.training:
            return normals(self.parts(self.mean[index]), self.parts(self.variance[index].sqrt()))
        at = self._moved(index, rows)

        def place(name: str, fn: Any, dim: int) -> Any:
            value, log_det = _carried(fn, at_dim(at[name], dim))
            # where a support depends on weights, so does the point: theirs is the gradient of log p(x, u), log_det included
            density = log_det.detach() - log_det if log_det.requires_grad else 0.0
            return dist.Delta(value, density, event_dim=fn.event_dim)

        return place

    def check_fit(self, rows: Mapping[str, Tensor] | None, loss: Any, num_processes: int) -> None:
        """As `ByRow.check_fit`; chains move in training mode only, and in one process, which sees all rows."""
        super().check_fit(rows, loss, num_processes)
        if not self.training:
            raise OptionError(
                "Chains stand still in evaluation mode, and the pair is in it: call .train() before the fit."
            )
        if num_processes > 1:
            raise OptionError(
                f"Each of {num_processes} processes would move the chains of its own rows only: take one process, or "
                "pv.per_row, whose tables several can learn together."
            )

    def _moved(self, index: Tensor, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Move the chains of these rows, and return where they are then, by site."""
        size, visits, accepted = self.step_size[index], self.visits[index] + 1, self.accepted[index]
        share, gain = torch.zeros_like(size), visits.rsqrt().clamp_min(LEAST_GAIN)
        # the end of a trajectory that went astray is refused for its density, whatever parameters were computed there
        with poutine.block(), self._evaluated(), pyro.validation_enabled(False):
            depth = self._nesting(rows) if self.summed else None
            at = self._at(self.chain[index], rows, depth)
            for _ in range(self.num_trajectories):
                moved, log_ratio = trajectory(
                    at,
                    log_density=lambda place: place.log_joint,
                    gradient=lambda place: place.gradient,
                    move=lambda u: self._at(u, rows, depth),
                    step_size=size,
                    unit=at.drawn,
                    num_leapfrog=self.num_leapfrog,
                )
                goes = torch.rand_like(log_ratio).log() < log_ratio
                at = moved.where(goes, at)
                size = size * (gain * (log_ratio.exp() - self.acceptance)).exp()
                share = share + log_ratio.exp() / self.num_trajectories
        with torch.no_grad():
            # moments forget where the chain began: the prior counts as one visit
            newest = (1 / (visits + 1)).clamp_min(1 / MEMORY)[:, None]
            mean, variance = self.mean[index], self.variance[index]
            apart = at.u - mean
            found = {
                "mean": mean + newest * apart,
                "variance": (1 - newest) * (variance + newest * apart.square()),
                "accepted": accepted + (1 / visits).clamp_min(1 / MEMORY) * (share - accepted),
                "chain": at.u,
                "step_size": size,
                "visits": visits,
            }
            for name, values in found.items():
                kept = getattr(self, name)
                kept.index_copy_(0, index, values.to(kept.dtype))  # densities may have another one, as their rows have
        return self.parts(at.u)

    def _at(self, u: Tensor, rows: Mapping[str, Tensor], depth: int | None) -> _At:
        """log p(x, u) of these rows, whose density is that of u, not of z."""
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            at, log_dets = self.parts(u), {}

            def place(name: str, fn: Any, dim: int) -> Any:
                value, log_det = _carried(fn, at_dim(at[name], dim))
                log_dets[name] = log_det.reshape(len(u), -1).sum(1)
                return dist.Delta(value, event_dim=fn.event_dim)

            pair = Pair(self._marked(), lambda **given: self._draw(given, place))
            found = terms(pair, dict(rows), plate_nesting=depth)
            # rows that observe all sites have a density that does not depend on u, and still a gradient
            log_joint = log_weights(found)[0] + sum(log_dets.values(), 0 * u.sum(1))
            (gradient,) = torch.autograd.grad(log_joint.sum(), [u])
        drawn = torch.cat([torch.full((part[0].numel(),), name in log_dets) for name, part in at.items()]).to(u)
        return _At(u.detach(), log_joint.detach(), gradient.nan_to_num(0.0, posinf=0.0, neginf=0.0), drawn)

    def _nesting(self, rows: Mapping[str, Tensor]) -> int:
        """How deep plates nest in the model: "data" alone, or others around observed sites, too."""
        return plate_nesting(sample_sites(poutine.trace(self.pair.model).get_trace(**rows)))

    @contextmanager
    def _evaluated(self) -> Iterator[None]:
        """Chains move under the model as it answers, without dropout, and leave running means alone."""
        parts = [part for child in self.children() for part in child.modules() if part.training]
        for part in parts:
            part.training = False
        try:
            yield
        finally:
            for part in parts:
                part.training = True


def _carried(fn: Any, free: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates carried to the support of a distribution, and log |dz / du|."""
    transform = to_support(fn)
    value = transform(free)
    return value, transform.log_abs_det_jacobian(free, value)


def monte_carlo_em(
    pair: Any, data: Any, *, num_leapfrog: int = 10, num_trajectories: int = 1, acceptance: float = 0.9
) -> MonteCarloEM:
    """Monte Carlo EM: the model learns from draws of each row's posterior, which a chain of its own gives; there is no encoder.

    A step of `pv.fit` moves the chains of the rows of its minibatch, by Hamiltonian Monte Carlo under the weights of the
    moment (E-step), and then takes a gradient step of `log p(x, z)` at where they are (M-step). No bound on log p(x) is
    involved, so that no family of q biases the model; what biases it are chains that lag behind the weights, that do not reach
    all of a posterior, and, a little, step sizes that go on following each chain's acceptance. Fit it to `pair.indexed(data)`,
    the rows with their numbers: the argument `index`, beside those of the model, says which rows a minibatch holds.
    Discrete latent sites are summed out.

    Kingma and Welling take 10 leapfrog steps, an acceptance of 90 %, and then 5 updates of the weights at the draw. Here each
    step of a fit is one update, at a draw of its own. All is a pair like any other: chains, moments and step sizes are
    buffers, kept in checkpoints, so that a fit that was stopped goes on bit for bit.

    In the history, "elbo" is the mean of log p(x, z) at the draws, which is no bound; "acceptance" and "step_size" are means
    over rows. To questions, the guide of a row that has its number is a Normal with the moments of its chain over some 20
    visits: where `pv.importance` and `pv.refine` start, and what `pv.encode` gives. Rows without a number get the prior,
    which `pv.importance`, `pv.refine` and `pv.posterior` refine; `pv.encode` does not. Chains cost three times N d numbers.

    Pyro's HMC takes all rows for one state, with one step size and one decision to accept; here every row has its own, and
    all are computed at once, as in `pv.ais`.

    Args:
        pair: A pair, whose own guide plays no part: parameters that it alone reads are frozen. Or a model alone, a function.
        data: All training rows, as the model takes them, after any transform.
        num_leapfrog: Leapfrog steps in a trajectory. Each costs a gradient of the model in z.
        num_trajectories: Trajectories in a step of the fit.
        acceptance: The probability of acceptance that the step size of each row is tuned to.

    Returns:
        The pair, see `pv.guides.MonteCarloEM`.

    Raises:
        PairError: A latent site is shared by all rows, is in another plate beside "data", is discrete with too many values to
            sum, or has no vector of real numbers. When called: a step is to be taken with rows that have no number.
        OptionError: A number is not possible, or the model has an argument `index` of its own. From `pv.fit`: the pair is in
            evaluation mode, in which chains stand still; several processes take the steps; the loss has a sleep phase.
        DataError: From `pv.fit`: numbers of rows are out of range, or occur twice.

    References:
        Kingma & Welling 2014, arXiv:1312.6114, section 5 and appendix E. Wei & Tanner 1990, *A Monte Carlo implementation of
        the EM algorithm and the poor man's data augmentation algorithms*, Journal of the American Statistical Association 85.

    Example:
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6)), pv.mlp(6, fam.Normal(2)))
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> pair = pv.monte_carlo_em(vae, x, num_leapfrog=3)
        >>> fitted = pv.fit(pair, pair.indexed(x), epochs=2, engine="eager", progress=False)
        >>> sorted(fitted.history[-1])[:2], pv.log_likelihood(fitted, x[:3], num_samples=50).shape
        (['acceptance', 'elbo'], torch.Size([3]))
    """
    whole = as_pair(pair)
    found = sites_of(whole, data)
    rows = num_rows(as_batch(whole, data))
    made = MonteCarloEM(whole, rows, found.free, found.summed, num_leapfrog, num_trajectories, acceptance)
    made.name_columns(columns_of(whole, data) or named_by(whole))
    draws = made.prior_draws(data)
    made.chain.copy_(draws[0])
    made.mean.copy_(draws.mean(0))
    made.variance.copy_(draws.var(0).clamp_min(1e-6))
    return made

"""Bidirectional Monte Carlo: bounds of log p(x) of simulated rows from both sides, by chains that run both ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae._html import Told
from pyrovae.batching.memory import halving
from pyrovae.criticism.ais import annealer_of, check_options, weigh
from pyrovae.criticism.annealing import Annealer, Start, shared_sites
from pyrovae.criticism.averages import log_mean, over_rows
from pyrovae.criticism.prior_as_guide import with_prior_as_guide
from pyrovae.fitted.fitted import Fit, FittedGroup, in_order, seeded
from pyrovae.fitted.runs import global_draw
from pyrovae.objectives.terms import terms
from pyrovae.pair.batch import Batch
from pyrovae.pair.handlers import SetValues
from pyrovae.pair.parameters import fork_rng
from pyrovae.pair.program import Pair, at_values
from pyrovae.pair.simulated import check_simulated


@dataclass(frozen=True, repr=False)
class BDMC(Told):
    """Bounds of log p(x) of N simulated rows from both sides. All tensors are `(N,)` float64, on the CPU.

    Attributes:
        lower: The estimate by annealed importance sampling, in nats. Its expectation is at most log p(x).
        upper: The estimate by chains that start from the latent values of which the row was drawn, in nats. Its expectation
            is at least log p(x).
        lower_error: The standard error of `lower` over the chains, in nats; NaN for one chain.
        upper_error: The same of `upper`. Chains of a row start from one draw of its posterior, so the rows' spread shows more.
        rows: The simulated rows, by argument; NaN or -1 where a row lacks one. A transform of the fit has been applied.
        num_temperatures: T.
        num_chains: K.

    References:
        Grosse, Ghahramani & Adams 2015, arXiv:1511.02543.

    Example:
        >>> zeros = torch.zeros(3, dtype=torch.float64)
        >>> found = pv.BDMC(zeros - 80.01, zeros - 79.99, zeros, zeros, {}, num_temperatures=500, num_chains=16)
        >>> round(found.summary()["gap"], 3)
        0.02
    """

    lower: Tensor
    upper: Tensor
    lower_error: Tensor
    upper_error: Tensor
    rows: dict[str, Tensor]
    num_temperatures: int
    num_chains: int

    @property
    def gap(self) -> Tensor:
        """`upper - lower` of each row, `(N,)`, in nats: in expectation, the sum of the errors of the two."""
        return self.upper - self.lower

    def summary(self) -> dict[str, float]:
        """The means of `lower`, `upper` and `gap` over the rows, and `gap_se`, the standard error of the mean gap."""
        means = {"lower": self.lower, "upper": self.upper, "gap": self.gap}
        return {**{name: values.mean().item() for name, values in means.items()}, "gap_se": over_rows(self.gap)}

    def _told(self) -> tuple[Any, ...]:
        title = f"log p(x) of {len(self.lower)} simulated rows from both sides; nats per row"
        return (title, ("mean over rows", "value"), self.summary().items())


@halving
def bdmc(
    fitted: Fit,
    data: Any,
    *,
    num_temperatures: int = 500,
    num_chains: int = 16,
    num_leapfrog: int = 10,
    seed: int | None = None,
) -> BDMC:
    """Bound log p(x) of simulated rows from both sides (bidirectional Monte Carlo): how far `pv.ais` is to be trusted.

    For each row of `data`, one is simulated: z ~ p(z), x ~ p(x | z), with the same conditions and gaps. So z is an exact draw
    of the posterior p(z | x), and chains that run from z back to the prior give unbiased estimates of 1 / p(x), as chains
    from the prior give them of p(x). In expectation the log of the one is an upper bound, that of the other a lower bound, and
    the error of either is at most the gap. On data like the simulated ones, `pv.ais` with the same options has that error.

    Args:
        fitted: The fitted pair.
        data: Rows, as for `pv.fit`. Their number, what is known of each, and conditions that no site observes are taken from
            them; values that sites observe are replaced by simulated ones.
        num_temperatures: The number T of steps between prior and posterior.
        num_chains: The number K of chains for each row, in each direction.
        num_leapfrog: The number of leapfrog steps in a step of Hamiltonian Monte Carlo.
        seed: The seed of the draws; None continues torch's random state.

    Returns:
        Both bounds for each row, and the simulated rows, see `BDMC`.

    Raises:
        OptionError: A number is less than 1.
        PairError: As `pv.ais`; or the model reads what it should draw in another way than by `obs=`, or observes something
            else than an argument.

    References:
        Grosse, Ghahramani & Adams 2015, arXiv:1511.02543. Wu, Burda, Salakhutdinov & Grosse 2017, arXiv:1611.04273.

    Example:
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6)), pv.mlp(6, fam.Normal(2)))
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> fitted = pv.fit(vae, x, epochs=1, engine="eager", progress=False)
        >>> found = pv.bdmc(fitted, x[:4], num_temperatures=20, num_chains=8, num_leapfrog=2, seed=0)
        >>> bool(found.gap.abs().mean() < 0.2), found.rows["x"].shape
        (True, torch.Size([4, 6]))
    """
    check_options(num_temperatures, num_chains, num_leapfrog)
    prior = with_prior_as_guide(fitted)
    found, simulated = [], []
    with prior.scope(), seeded(seed):
        parts = prior.parts(data)
        annealers = [annealer_of(fitted, prior, part, num_temperatures, num_leapfrog, "prior") for part in parts]
        for part, annealer in zip(parts, annealers):
            pieces = annealer.pieces(part.batch, num_chains)
            columns, made = [], []
            for block, count in annealer.blocks(part.batch, num_chains):
                drawn, exact = _simulate(fitted, annealer, block)
                path = annealer.path(drawn)
                forward, _ = weigh(path, pieces)
                backward = torch.cat([path.weigh(exact(k), reverse=True)[0] for k in pieces], 1)
                lower, lower_error, _ = log_mean(forward.T)
                upper, upper_error, _ = log_mean(-backward.T)
                columns.append(torch.stack([lower, -upper, lower_error, upper_error])[:, :count].cpu())
                made.append({name: value[:count].cpu() for name, value in drawn.items()})
            found.append(torch.cat(columns, 1))
            simulated.append({name: torch.cat([one[name] for one in made]) for name in part.batch})
    lower, upper, lower_error, upper_error = in_order(parts, found, 1)
    rows = _together(parts, simulated)
    return BDMC(lower, upper, lower_error, upper_error, rows, num_temperatures, num_chains)


def _simulate(fitted: Fit, annealer: Annealer, rows: Batch) -> tuple[Batch, Callable[[int], Start]]:
    """Rows drawn from the model, and what starts so many chains at the latent values that they came from.

    Raises:
        PairError: Something is observed that is no argument, or the model reads what it should draw.
    """
    layout, prior = annealer.layout, annealer.fitted.pair
    shared = {name: node["value"] for name, node in global_draw(fitted, rows, layout).items()}
    made, latent = check_simulated(Pair(SetValues(shared)(prior.model), prior.guide), rows, layout)
    with fork_rng():
        u = annealer.coordinates.join(terms(at_values(prior, latent), made, layout=layout, enumerate=False)).transpose(
            0, 1
        )
    exact = Start(u, {name: shared[name] for name in shared_sites(layout)})
    events = {s.name: len(s.event_shape) for s in layout.sites}

    def start(num_chains: int) -> Start:
        if num_chains == 1:
            return exact
        shared = {}
        for name, value in exact.shared.items():  # of size 1 in place of the plates, as in a run of many particles
            missing = layout.plate_nesting - (value.dim() - events[name])
            padded = value.reshape((1,) * (missing + 1) + tuple(value.shape))
            shared[name] = padded.expand(num_chains, *padded.shape[1:])
        return Start(exact.u.expand(-1, num_chains, -1), shared)

    return made, start


def _together(parts: Sequence[FittedGroup], found: Sequence[Batch]) -> Batch:
    """Rows of all parts in the order of the data, with NaN or -1 where they lack an argument."""
    like = {name: value for rows in found for name, value in rows.items()}
    made = {}
    for name, value in like.items():
        missing = float("nan") if value.is_floating_point() else -1
        columns = [
            rows[name] if name in rows else value.new_full((len(part.rows), *value.shape[1:]), missing)
            for part, rows in zip(parts, found)
        ]
        made[name] = in_order(list(parts), columns)
    return made

"""What makes a row strange: the density of each of its entries, given its code, and given the others."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyrovae._arguments import as_count
from pyrovae.batching.chunks import chunks
from pyrovae.batching.memory import halving
from pyrovae.criticism.averages import effective_sample_size, relative_error
from pyrovae.criticism.importance import Importance, importance
from pyrovae.criticism.left_out import NotPossible, may_lack_entries, without_each
from pyrovae.criticism.of_entries import of_entries
from pyrovae.criticism.population import ROUND_DRAWS
from pyrovae.criticism.posterior import posterior
from pyrovae.criticism.psis import pareto_k
from pyrovae.criticism.refined import DRAWS
from pyrovae.fitted.fitted import Fit, FittedGroup, in_order, seeded
from pyrovae.fitted.runs import need_particles
from pyrovae.objectives.terms import Terms, terms
from pyrovae.pair.batch import Batch, num_rows, take_rows
from pyrovae.pair.layout import Layout
from pyrovae.pair.parameters import fork_rng
from pyrovae.pair.program import at_values

PARTICLES = 200  # draws for the density of a row without one of its entries, where its proposal is like that of any row


@dataclass(frozen=True)
class Entries:
    """Log-densities of the entries of N rows, from `pv.entry_densities`: `(N, *event)` float64, on the CPU, in nats.

    Entries that are missing are NaN.

    Attributes:
        log_density: `E[log p(x_d | z)]` over the posterior p(z | x): how well the row's own code explains the entry.
        leave_one_out: `log p(x_d | x_-d)`, the density of the entry given all others of its row.
        site: The observed site.
        num_samples: S, the posterior draws for each row.
        error: The Monte Carlo standard error of `leave_one_out`, in nats, by the delta method.
        k_hat: The diagnostic of the weights that `leave_one_out` rests on, the larger one where it is a difference of two
            estimates, see `pv.importance`. Where it is above `pv.k_hat_threshold`, of 400 draws for tables and of S elsewhere,
            the error may be far larger than `error`. It is NaN for fewer than 25 draws.

    Example:
        >>> found = pv.Entries(torch.zeros(2, 3), torch.tensor([[-1.0, -9.0, 0.0], [-2.0, -1.0, -1.0]]), "x", 100)
        >>> found.strangest(1)  # of each row, the entry with the lowest density given the others
        tensor([[1],
                [0]])
    """

    log_density: Tensor
    leave_one_out: Tensor
    site: str
    num_samples: int
    error: Tensor | None = None
    k_hat: Tensor | None = None

    def strangest(self, num: int = 3) -> Tensor:
        """The positions of the entries with the lowest density given the others, worst first, in flattened rows: `(N, num)`."""
        flat = self.leave_one_out.flatten(1).nan_to_num(nan=math.inf)
        return flat.topk(min(num, flat.shape[1]), dim=1, largest=False).indices


@halving
def entry_densities(
    fitted: Fit,
    data: Any,
    *,
    site: str | None = None,
    num_samples: int = 500,
    num_particles: int = 1000,
    proposal: str = "refined",
    seed: int | None = None,
) -> Entries:
    """What makes a row strange: `log p(x_d | x_-d)`, the log-density of each entry given all others of its row.

    Where the likelihood leaves missing entries out, as `pv.observed_only` does and tables have it, this is the difference of
    `log p(x)` and `log p(x_-d)`, each by importance sampling. An entry may all but determine z, as where a column is nearly
    without noise, and then `p(z | x_-d)` is far wider than p(z | x), and may have several modes, one for each value that the
    others allow. So draws come from mixtures around those of p(z | x), and around draws of the guide for rows with another
    value of one of their entries. All entries of a row share 1,200 of them, and where these do not suffice for an entry,
    proposals are adapted to it in up to eight rounds of 400 draws (population Monte Carlo). What no diagnostic can tell is a
    mode that no start came near, at a value of the entry that is very rare under the model. Where the latent sites of a row
    are drawn for each of several classes, or are no vector of real numbers, the proposals for `p(x_-d)` are as for
    `pv.importance`, with 200 draws.

    Elsewhere, and with `proposal="guide"`, it is `1 / E[1 / p(x_d | z)]` over posterior draws, a harmonic mean, for entries
    that are independent given z: where an entry alone pulls z far away, few draws carry it, and it is too high. `k_hat` says
    where.

    Densities of columns in other units, or of other kinds, are not comparable: compare each with the same column of ordinary
    rows, as `pyrovae outliers` does, by `pv.conformal_p_values` of `-leave_one_out`.

    Args:
        fitted: The fitted pair.
        data: The rows, as for `pv.fit`. The transform of the fit is applied once, with a fixed seed.
        site: The observed site, of a pair that has several.
        num_samples: The number S of posterior draws for each row.
        num_particles: The number of draws to choose them from, as for `pv.posterior`; if fewer than 400 also the draws of a
            round.
        proposal: "refined", "laplace" or "guide", as for `pv.importance`, of the posterior draws.
        seed: The seed of the draws; None continues torch's random state.

    Returns:
        The log-densities of all entries, see `Entries`.

    Raises:
        OptionError: `num_samples` is less than 1.
        PairError: There is no such site, or its entries are not independent given the latent sites.
        DataError: Values are outside the support of the likelihood, or missing where it does not allow that.

    References:
        Cappé, Guillin, Marin & Robert 2004, *Population Monte Carlo*, Journal of Computational and Graphical Statistics 13.
        Gelfand, Dey & Chang 1992, *Model determination using predictive distributions*, Bayesian Statistics 4 (the harmonic
        mean). Vehtari, Gelman & Gabry 2017, arXiv:1507.04544 (k-hat of its weights).

    Example:
        >>> vae = pv.VAE(pv.priors.StandardNormal(1), pv.mlp(1, fam.Normal(3)), pv.mlp(3, fam.Normal(1)))
        >>> x = torch.randn(60, 3)
        >>> fitted = pv.fit(vae, x, epochs=3, engine="eager", progress=False)
        >>> x[7, 2] += 9
        >>> found = pv.entry_densities(fitted, x[7:8], num_samples=50, proposal="guide", seed=0)
        >>> found.strangest(1)
        tensor([[2]])
    """
    num_samples = as_count("num_samples", num_samples)
    with fitted.scope(), seeded(seed):
        parts = fitted.parts(data)
        name = parts[0].layout.site(site, role="observed", local=True).name
        how: dict[str, Any] = {"num_particles": num_particles, "proposal": proposal}
        found = []
        for part in parts:
            left_out = _may_be_left_out(fitted, part, name, proposal)
            at_codes = _at_codes(fitted, part, name, num_samples, how, harmonic=not left_out)
            found.append((*at_codes, *_given_the_others(fitted, part, name, how)) if left_out else at_codes)
    mean, one_out, error, k_hat = (in_order(parts, list(column)) for column in zip(*found))
    return Entries(mean, one_out, name, num_samples, error, k_hat)


@halving
def leave_one_out(
    fitted: Fit, data: Any, *, site: str, num_samples: int, num_particles: int, proposal: str, seed: int
) -> Tensor:
    """`Entries.leave_one_out` of `entry_densities` alone, for which rows of tables need no posterior draws.

    Where rows may lack entries, `num_samples` is the number of draws of a round.
    """
    with fitted.scope(), seeded(seed):
        parts = fitted.parts(data)
        how: dict[str, Any] = {"num_particles": num_particles, "proposal": proposal}
        found = []
        for part in parts:
            if _may_be_left_out(fitted, part, site, proposal):
                found.append(_given_the_others(fitted, part, site, {**how, "num_particles": num_samples})[0])
            else:
                found.append(_at_codes(fitted, part, site, num_samples, how, harmonic=True)[1])
    return in_order(parts, found)


def _may_be_left_out(fitted: Fit, part: FittedGroup, name: str, proposal: str) -> bool:
    """Whether rows without one of their entries have densities. What cannot be answered is refused."""
    with fork_rng():
        of_entries(terms(fitted.pair, take_rows(part.batch, slice(0, 1)), layout=part.layout, enumerate=False), name)
    return bool(_codes(part)) and proposal != "guide" and may_lack_entries(fitted, part, name)


def _codes(part: FittedGroup) -> list[str]:
    """The latent sites of each row."""
    return [site.name for site in part.layout.sites if site.role == "latent" and site.local]


def _at_codes(
    fitted: Fit, part: FittedGroup, name: str, num_samples: int, how: dict[str, Any], *, harmonic: bool
) -> tuple[Tensor, ...]:
    """`E[log p(x_d | z)]` of rows that have the same arguments, `(n, *event)`, and with `harmonic` what `_harmonic` gives."""
    latent, whole, done = _codes(part), replace(fitted, transform=None, untransformed={}), []
    need_particles(fitted, part.batch, part.layout, num_samples)
    size = fitted.chunk_size(part.batch, num_samples)
    for block in chunks(part.batch, fitted.chunk_size(part.batch, DRAWS)):  # whose proposals are refined together
        drawn = posterior(whole, block, num_samples, site=latent, **how) if latent else {}
        for first in range(0, num_rows(block), size):
            some = slice(first, first + size)
            values = {key: value[:, some] for key, value in drawn.items()}
            found = _run_at(fitted, take_rows(block, some), part.layout, values, num_samples)
            entries = of_entries(found, name).double()  # (S, n, *event)
            rest = _harmonic(entries) if harmonic else ()
            done.append([column.cpu() for column in (entries.mean(0), *rest)])
    return tuple(torch.cat(column) for column in zip(*done))


def _harmonic(entries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`1 / E[1 / p(x_d | z)]` as a logarithm, its error, and k-hat, from log p(x_d | z), `(S, n, *event)`."""
    one_out = math.log(len(entries)) - (-entries).logsumexp(0)
    ess = effective_sample_size(-entries)
    k_hat = pareto_k(-entries.flatten(1)).reshape(one_out.shape)
    missing = one_out.isnan()
    error, k_hat = relative_error(ess, len(entries)), k_hat.to(one_out.device)
    return one_out, torch.where(missing, math.nan, error), torch.where(missing, math.nan, k_hat)


def _given_the_others(fitted: Fit, part: FittedGroup, name: str, how: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """`log p(x) - log p(x_-d)` of each entry of rows x, its error, and k-hat, `(n, D)`; NaN where it is missing."""
    draws = min(how["num_particles"], ROUND_DRAWS)
    fitted = replace(fitted, transform=None, untransformed={})  # these rows have been transformed
    try:
        return without_each(fitted, part, name, draws=draws, proposal=how["proposal"])
    except NotPossible:
        return _with_gaps(fitted, part, name, min(how["num_particles"], PARTICLES))


def _with_gaps(fitted: Fit, part: FittedGroup, name: str, num_samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same with a proposal for rows with a gap as for any others."""

    def estimate(rows: Batch) -> Importance:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The guide is the proposal")
            return importance(fitted, rows, num_samples, seed=None)

    argument = str(part.layout.site(name, role="observed").argument)
    x = part.batch[argument]
    whole = estimate(part.batch)
    found = torch.full((3, *x.shape), math.nan, dtype=torch.float64)
    for d in range(x.shape[1]):
        known = (~x[:, d].isnan()).nonzero().flatten()
        if len(known):
            others = x[known].clone()
            others[:, d] = math.nan
            rest, rows = estimate({**take_rows(part.batch, known), argument: others}), known.cpu()
            error = torch.hypot(whole.standard_error[rows], rest.standard_error)
            log_p = whole.log_likelihood[rows] - rest.log_likelihood
            found[:, rows, d] = torch.stack([log_p, error, rest.k_hat])
    return found[0], found[1], found[2]


def _run_at(fitted: Fit, rows: Batch, layout: Layout, values: dict[str, Tensor], num_samples: int) -> Terms:
    """A run of S particles at these values of the latent sites, `(S, n, *event)` each."""
    with fork_rng():
        seen = terms(fitted.pair, take_rows(rows, slice(0, 1)), layout=layout, enumerate=False)
    plates = [1] * seen.plate_nesting
    plates[seen.data_dim] = num_rows(rows)
    shape = ((num_samples,) if num_samples > 1 else ()) + tuple(plates)
    put = {name: value.reshape(*shape, *value.shape[2:]) for name, value in values.items()}
    return terms(at_values(fitted.pair, put), rows, num_samples, layout=layout, enumerate=False)

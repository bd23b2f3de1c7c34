"""`impute`: draws of the missing entries of rows given the observed ones."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyrovae._arguments import as_count
from pyrovae.batching.checks import check_rows
from pyrovae.batching.chunks import chunks
from pyrovae.batching.memory import halving
from pyrovae.batching.transformed import in_evaluation
from pyrovae.criticism.proposals import check_proposal
from pyrovae.criticism.psis import pareto_k
from pyrovae.criticism.resampling import resampled
from pyrovae.errors import DataError, counted
from pyrovae.fitted.diverged import cure_of_few_draws
from pyrovae.fitted.fitted import Fit, FittedGroup, seeded
from pyrovae.fitted.runs import global_draw, global_sites, particles_at_once
from pyrovae.pair.batch import Batch, num_rows, take_rows
from pyrovae.pair.common import start_rows
from pyrovae.pair.datasets import is_streamed
from pyrovae.pair.handlers import FixDraws
from pyrovae.pair.program import Pair, arguments
from pyrovae.predict.rows import completed
from pyrovae.predict.sites import observed_sites
from pyrovae.recover.filling import Given
from pyrovae.recover.gaps import Completed, Observers, complete, observers, rows_without_anything
from pyrovae.recover.imputation import Imputation, Imputed

MEAN_DRAWS = 200  # draws of z over which a mean is taken, at least
FEWEST_CANDIDATES = 50  # of a draw that has candidates of its own
PER_DRAW = 2  # rows with fewer candidates in effect than this a draw are moved


@halving
def impute(
    fitted: Fit,
    data: Any,
    num_samples: int = 20,
    *,
    num_particles: int = 1000,
    proposal: str = "refined",
    moves: int = 20,
    seed: int | None = None,
) -> Imputation:
    """Fill in missing entries by draws of `p(x_missing | x_observed)`: `z ~ p(z | x_observed)`, then x from its likelihood.

    Missing are entries that are NaN in an argument which a site of the model observes; the likelihood must leave them out
    of its density, as `pv.observed_only` does. The latent sites of a row are drawn from their posterior given all that is
    observed of the row, as by `pv.posterior`, and the missing entries from the likelihood at these draws. Observed entries
    stay as they are, bit for bit, rows without a gap cost nothing, and rows of which nothing is observed are draws from the
    model. Rows that lack a whole argument, which may be None, get draws of it: real numbers that are latent in such rows, as y
    of `pv.SSRegression`, their posterior draws. Only classes that are latent there stay unknown, since `pv.classify` has their
    probabilities.

    Each of the S draws is one complete data set. If the pair has global latent sites, each of them is made at a draw of
    these from the guide, which all of its rows share. So differences between the S data sets say how uncertain the missing
    values are: analyse each of them, and combine the results by `pv.pool`.

    Where a latent site is marked `infer={"fills": "x"}`, as in `pv.NotMIWAE`, its posterior draws fill the gaps of x.

    Args:
        fitted: The fitted pair.
        data: The rows, as for `pv.fit`, with NaN for what is missing. The transform of the fit is applied, and then entries
            are filled in as it makes them.
        num_samples: The number S of draws.
        num_particles: The number of draws of the proposal from which those of z are chosen. With global sites they are
            divided among the S draws, of which each has 50 or more.
        proposal: "refined", "laplace" or "guide", as for `pv.importance`.
        moves: Steps of the Metropolis-adjusted Langevin algorithm for the draws of rows in which fewer than 2 S candidates
            count, by their effective sample size. They need a refined proposal and continuous sites; elsewhere there are
            none.
        seed: The seed of the draws; None continues torch's random state.

    Returns:
        Draws, means and intervals of the missing entries, and the completed data, see `pv.Imputation`.

    Raises:
        OptionError: A number is less than 1, or the proposal is not known.
        DataError: The likelihood does not leave missing entries out, or no site observes them.
        PairError: The elements of a row depend on one another even given z.
        NotFiniteError: A row has probability 0 at every draw.

    References:
        Rubin 1987, *Multiple Imputation for Nonresponse in Surveys*. Mattei and Frellsen 2019, arXiv:1812.02633.

    Example:
        >>> x = torch.randn(40, 1) + 0.1 * torch.randn(40, 3)
        >>> x[:10, 0] = float("nan")
        >>> vae = pv.VAE(
        ...     prior=pv.priors.StandardNormal(1),
        ...     likelihood=pv.observed_only(pv.mlp(1, fam.Normal(3), hidden=(8,))),
        ...     encoder=pv.Conditional(pv.nets.WithMask(pv.nets.MLP((3, 3), (2, 1), hidden=(8,))), fam.Normal(1)),
        ... )
        >>> fitted = pv.fit(vae, x, epochs=1, engine="eager", progress=False)
        >>> imputed = pv.impute(fitted, x, num_samples=20, seed=0)
        >>> imputed.draws.shape, bool(imputed.complete(0).isfinite().all())
        (torch.Size([20, 40, 3]), True)
        >>> low, high = imputed.interval(0.9)
        >>> bool((low <= high).all()), torch.equal(imputed.complete(3)[10:], x[10:])
        (True, True)
    """
    num_samples, num_particles = as_count("num_samples", num_samples), as_count("num_particles", num_particles)
    moves = as_count("moves", moves, least=0)
    check_proposal(proposal)
    with fitted.scope(), seeded(seed):
        if is_streamed(data):
            data = fitted.batch(data)
        names = list(fitted.batch(data))
        parts = fitted.parts(data)
        found = Collected(parts, names)
        for part in parts:
            _impute(
                fitted, part, names, found, num_samples, num_particles, proposal, 0 if proposal == "guide" else moves
            )
        imputed = found.by_argument(fitted, num_samples)
    warn_of_few(fitted, found.ess, num_samples, proposal)
    as_given = in_evaluation(fitted.transform) is None
    given = Given.of(data, list(arguments(fitted.pair))) if as_given else None
    return Imputation(num_samples, found.ess, found.k_hat, imputed, given)


def warn_of_few(fitted: Fit, ess: Tensor, num_samples: int, proposal: str, stacklevel: int = 4) -> None:
    """Warn of rows in which few candidates count, for S draws."""
    enough = min(num_samples, 100) / 2
    poor = ess < enough
    if bool(poor.any()):
        cure = "raise num_particles" if proposal != "guide" else 'raise num_particles, or take proposal="refined"'
        cure = cure_of_few_draws(fitted, cure)
        warnings.warn(
            f"In {counted(int(poor.sum()), 'row')} fewer than {enough:g} draws of the proposal count "
            f"({ess[poor].min().item():.1f} in the "
            f"worst of them, by the effective sample size), so that what is drawn there may be too alike: {cure}.",
            stacklevel=stacklevel,
        )


class Collected:
    """What is found block by block, put in the places of the data.

    Attributes:
        ess: The effective sample size of each row, `(N,)`; NaN in rows that needed no draws.
        k_hat: k-hat of each row's weights, in the same way.
    """

    def __init__(self, parts: Sequence[FittedGroup], names: Sequence[str]) -> None:
        self.parts, self.names = parts, names
        total = sum(len(part.rows) for part in parts)
        self.ess = torch.full((total,), torch.nan, dtype=torch.float64)
        self.k_hat = self.ess.clone()
        self.found: dict[str, list[Completed]] = {name: [] for name in names}

    def add(self, numbers: Tensor, blocks: dict[str, Completed], sizes: dict[str, int]) -> None:
        """Add what was found for the rows with these numbers; `sizes` are the numbers of entries of a row."""
        for name, block in blocks.items():
            row, entry = block.where.div(sizes[name], rounding_mode="floor"), block.where % sizes[name]
            self.found[name].append(replace(block, where=numbers[row] * sizes[name] + entry))

    def by_argument(self, fitted: Fit, num_samples: int) -> dict[str, Imputed]:
        """For each argument that a site observes its rows, as the fit sees them, and what was found."""
        observed = {site.argument for site in observed_sites(fitted.layouts).values()}
        return {
            name: Imputed.of(self._whole(fitted, name), self.found[name], num_samples)
            for name in self.names
            if name in observed or self.found[name]
        }

    def _whole(self, fitted: Fit, name: str) -> Tensor:
        """An argument of all rows; NaN, or -1 among integers, in those that lack it."""
        shape, dtype = next(
            ((tuple(v.shape[1:]), v.dtype) for p in self.parts if (v := p.batch.get(name)) is not None),
            fitted.arguments.get(name, ((), torch.float32)),
        )
        unknown = torch.nan if dtype.is_floating_point else -1
        whole = torch.full((len(self.ess), *shape), unknown, dtype=dtype)
        for part in self.parts:
            if name in part.batch:
                whole[part.rows.cpu()] = part.batch[name].cpu()
        return whole


def _impute(
    fitted: Fit,
    part: FittedGroup,
    names: Sequence[str],
    found: Collected,
    num_samples: int,
    num_particles: int,
    proposal: str,
    moves: int,
) -> None:
    """Fill in the gaps of rows that have the same arguments."""
    absent = _absent(fitted, part, names)
    gaps = {n: torch.isnan(v) for n, v in part.batch.items() if v.is_floating_point() and bool(torch.isnan(v).any())}
    some = torch.zeros(num_rows(part.batch), dtype=torch.bool, device=next(iter(part.batch.values())).device)
    for gap in gaps.values():
        some |= gap.flatten(1).any(1) if gap.dim() > 1 else gap
    latent = _latent(fitted, part, names)
    index = torch.arange(len(some), device=some.device) if absent or latent else some.nonzero().squeeze(-1)
    if not len(index):
        return
    part = FittedGroup(part.rows.to(some.device)[index], take_rows(part.batch, index), part.layout)
    check_rows(fitted.pair, part.batch, fitted.chunk_size(part.batch), strict=False, numbers=part.rows)
    drawing = completed(fitted, part.batch, part.layout, list(absent.values())) if absent else fitted
    how = observers(drawing, _fullest(part.batch), part.layout, list(absent))
    how = replace(how, fills=how.fills | latent)
    wanted = [*gaps, *absent, *latent]
    _check_observed(wanted, how)
    draw = _Drawing(fitted, drawing, part, how, wanted, num_samples, max(num_particles, 1))
    empty = rows_without_anything(part.batch, how).nonzero().squeeze(-1)
    full = (~rows_without_anything(part.batch, how)).nonzero().squeeze(-1)
    if len(empty):
        draw.from_the_model(empty, found)
    if len(full):
        draw.from_the_posterior(full, found, proposal, moves)


def _absent(fitted: Fit, part: FittedGroup, names: Sequence[str]) -> dict[str, str]:
    """The arguments, with their sites, that these rows lack and that are no latent sites of them."""
    here = {site.name for site in part.layout.sites}
    return {
        str(site.argument): site.name
        for site in observed_sites(fitted.layouts).values()
        if site.argument in names and site.argument not in part.batch and site.local and site.name not in here
    }


def _latent(fitted: Fit, part: FittedGroup, names: Sequence[str]) -> dict[str, str]:
    """The arguments of real numbers, with their sites, that these rows lack and that are latent in them."""
    here = {site.name for site in part.layout.sites if site.role == "latent" and site.local}
    return {
        str(site.argument): site.name
        for site in observed_sites(fitted.layouts).values()
        if site.argument in names
        and site.argument not in part.batch
        and site.name in here
        and fitted.arguments[str(site.argument)][1].is_floating_point
    }


def _fullest(batch: Batch) -> Batch:
    """The two rows with the fewest gaps, which say best what sites observe."""
    gaps = torch.zeros(num_rows(batch), device=next(iter(batch.values())).device)
    for value in batch.values():
        if value.is_floating_point():
            gaps = gaps + torch.isnan(value).reshape(len(value), -1).sum(1)
    return take_rows(batch, gaps.argsort()[:2])


def _check_observed(names: Sequence[str], how: Observers) -> None:
    for name in names:
        if not how.sites(name) and name not in how.fills:
            raise DataError(
                f"{name!r} has missing entries, and no site of the model observes them as they are (obs={name}), so that there "
                "is no distribution to draw them from: fill them in, or drop these rows."
            )


class _Drawing:
    """Draws for rows that have the same arguments, and gaps."""

    def __init__(
        self,
        fitted: Fit,
        drawing: Fit,
        part: FittedGroup,
        how: Observers,
        names: Sequence[str],
        num_samples: int,
        num_particles: int,
    ) -> None:
        self.fitted, self.drawing, self.part, self.how, self.names = fitted, drawing, part, how, names
        self.num_samples, self.num_particles = num_samples, num_particles
        self.shared: list[dict[str, Tensor]] = []
        if global_sites(part.layout):
            rows = next(iter(chunks(part.batch, fitted.chunk_size(part.batch))))
            draws = [global_draw(fitted, rows, part.layout) for _ in range(num_samples)]
            self.shared = [{name: node["value"] for name, node in draw.items()} for draw in draws]
        self.total = num_samples if self.shared else max(num_samples, MEAN_DRAWS)
        self.at_once = particles_at_once(fitted, part.batch, part.layout, self.total)

    def from_the_model(self, index: Tensor, found: Collected) -> None:
        """Rows of which nothing is observed."""
        batch, size = take_rows(self.part.batch, index), self.fitted.chunk_size(self.part.batch, self.at_once)
        for rows, numbers in zip(chunks(batch, size), self.part.rows[index].split(size)):
            self._complete(rows, numbers, {}, found)
            found.ess[numbers.cpu()] = float(self.total)

    def from_the_posterior(self, index: Tensor, found: Collected, proposal: str, moves: int) -> None:
        """Rows of which something is observed."""
        fitted, layout = self.fitted, self.part.layout
        part = FittedGroup(self.part.rows[index], take_rows(self.part.batch, index), layout)
        needed = self.how.needed(self.names)
        if not needed:
            for rows, numbers in zip(
                chunks(part.batch, size := fitted.chunk_size(part.batch, self.at_once)), part.rows.split(size)
            ):
                self._complete(rows, numbers, {}, found)
                found.ess[numbers.cpu()] = float(self.total)
            return
        variants = [
            replace(fitted, pair=Pair(fitted.pair.model, FixDraws(values)(fitted.pair.guide))) for values in self.shared
        ]
        particles = self.num_particles
        if variants:
            particles = max(FEWEST_CANDIDATES, particles // self.num_samples)
        start = 0
        for block in resampled(
            fitted,
            part,
            self.total,
            needed,
            particles,
            proposal,
            moves=moves,
            ess_below=PER_DRAW * (1 if variants else self.num_samples),
            variants=variants,
            stacklevel=9,
        ):
            numbers = part.rows[start : start + num_rows(block.rows)]
            start += len(numbers)
            self._complete(block.rows, numbers, block.values, found)
            found.ess[numbers.cpu()] = block.ess.cpu()
            found.k_hat[numbers.cpu()] = torch.stack([pareto_k(log_w) for log_w in block.log_w]).amax(0)

    def _complete(self, rows: Batch, numbers: Tensor, values: dict[str, Tensor], found: Collected) -> None:
        missing = {}
        start_rows(stage=2)
        for name in self.names:
            if name in rows:
                missing[name] = torch.isnan(rows[name])
            else:
                shape = (num_rows(rows), *self.fitted.arguments[name][0])
                missing[name] = torch.ones(shape, dtype=torch.bool, device=numbers.device)
        at_once = max(1, min(self.at_once, self.fitted.chunk_size(self.part.batch) // num_rows(rows)))
        done = complete(
            self.drawing,
            rows,
            self.part.layout,
            self.how,
            missing,
            values,
            self.total,
            self.num_samples,
            self.shared,
            at_once,
        )
        found.add(numbers, done, {name: gap[0].numel() for name, gap in missing.items()})

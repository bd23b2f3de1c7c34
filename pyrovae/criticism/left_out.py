"""`log p(x_d | x_-d)` of tables: rows without one of their entries, whose posteriors one entry often all but determined."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.batching.chunks import chunks
from pyrovae.criticism.coordinates import Coordinates
from pyrovae.criticism.importance import TRACE_FROM
from pyrovae.criticism.population import Estimated, Kernels, population_monte_carlo
from pyrovae.criticism.prior_as_guide import with_prior_as_guide
from pyrovae.criticism.proposals import adapted, pieces, usable
from pyrovae.criticism.refined import DRAWS, Refined, at, log_joint, widening
from pyrovae.distributions.combine import ObservedOnly
from pyrovae.engine.tracing import TracedFunction
from pyrovae.fitted.fitted import Fit, FittedGroup
from pyrovae.fitted.runs import particles_at_once
from pyrovae.objectives.terms import terms
from pyrovae.pair.batch import Batch, num_rows, take_rows
from pyrovae.pair.common import are_common
from pyrovae.pair.parameters import fork_rng

U = " u"  # a name that no argument has
TOGETHER = 64  # rows that lack an entry, whose proposals are adapted together
STARTS = 2  # for each draw of a round
# Where they are: at draws of the guide for rows with another value of the entry, at draws of the posterior of the
# whole row, and at draws of the guide for the row without the entry.
SHARES = (0.7, 0.15, 0.15)


class NotPossible(Exception):
    """The latent sites of a row are no vector of real numbers, or are drawn for each class."""


def without_each(
    fitted: Fit, part: FittedGroup, name: str, *, draws: int, proposal: str
) -> tuple[Tensor, Tensor, Tensor]:
    """`log p(x_d | x_-d) = log p(x) - log p(x_-d)` of each entry of rows x, its error, and k-hat: `(n, D)` each.

    The posterior of a row whose entry is left out is `p(z | x_-d) = ∫ p(z | x_-d, x_d) p(x_d | x_-d) dx_d`, a mixture of
    posteriors of whole rows over values of the entry. If the entry all but determines z, these are far narrower than their
    mixture, which then is as wide, and may have as many modes, as p(x_d | x_-d). So the proposals are mixtures, too, adapted by
    `population_monte_carlo`: of kernels as wide as the posterior of the whole row, first around draws of the guide for rows in
    which x_d is replaced by draws of p(x_d), and around draws of p(z | x).

    Args:
        fitted: The fitted pair, for rows to which a transform has been applied.
        part: The rows.
        name: The observed site, whose likelihood leaves out entries that are NaN.
        draws: Draws of a round.
        proposal: Of the whole rows, "refined" or "laplace".

    Raises:
        NotPossible: The latent sites of a row are no vector of real numbers, or are drawn for each class.
    """
    blocks = _blocks(fitted, part, name, draws, proposal)
    log_p, error, k_hat = (torch.cat(column) for column in zip(*(block.entries() for block in blocks)))
    return log_p, error, k_hat


def transforms_without_each(
    fitted: Fit, part: FittedGroup, name: str, columns: Tensor, *, draws: int, proposal: str
) -> Tensor:
    """The probability integral transform of each entry x_d among draws of `p(x_d | x_-d)`, `(n, D)`, of pairs without classes.

    It is randomised where draws are equal to the entry, and NaN where an entry is missing, or not in `columns`, `(D,)` of bool.
    The other arguments are those of `without_each`.

    Raises:
        NotPossible: See `without_each`; also where a site is summed out.
    """
    if any(site.enumerated for site in part.layout.sites):
        raise NotPossible  # x may depend on a class that is summed out, and would have to be drawn for each
    blocks = _blocks(fitted, part, name, draws, proposal)
    return torch.cat([block.transforms(columns) for block in blocks])


def may_lack_entries(fitted: Fit, part: FittedGroup, name: str) -> bool:
    """Whether `p(x_-d)` is the density of rows x, `(n, D)`, in which an entry is missing, and of nothing else."""
    x = part.batch.get(str(part.layout.site(name, role="observed").argument))
    # global sites would be drawn anew for each of the densities
    if x is None or x.dim() != 2 or part.layout.shared:
        return False
    with fork_rng():
        sites = terms(fitted.pair, take_rows(part.batch, slice(0, 1)), layout=part.layout, enumerate=False).sites
    shape = tuple(sites[name].either.fn.event_shape)
    # where a site fills gaps, as in NotMIWAE, that an entry is missing is observed, too
    tells = any(site.fills for site in sites.values())
    return isinstance(sites[name].either.fn, ObservedOnly) and shape == tuple(x.shape[1:]) and not tells


def _blocks(fitted: Fit, part: FittedGroup, name: str, draws: int, proposal: str) -> Iterator[_Rows]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        possible_here = usable(fitted, part, proposal) != "guide"
    if not possible_here or _has_classes(fitted, part):
        raise NotPossible
    argument = str(part.layout.site(name, role="observed").argument)
    prior = with_prior_as_guide(fitted)
    at_once = particles_at_once(fitted, part.batch, part.layout, max(draws, DRAWS))
    # about five rounds an entry
    runs = 5 * draws * part.batch[argument].numel() // (at_once * fitted.chunk_size(part.batch, at_once))
    eager = fitted.settings.get("engine") == "eager" or runs < TRACE_FROM or are_common()
    traced: dict[tuple[int, ...], TracedFunction] | None = None if eager else {}
    # rows without an entry are others to the guide
    for rows, refined in adapted(fitted, part.batch, part.layout, draws, DRAWS, proposal, noise=False):
        yield _Rows(fitted, prior, part, rows, refined, name, argument, draws, at_once, traced)


def _has_classes(fitted: Fit, part: FittedGroup) -> bool:
    with fork_rng():
        run = terms(fitted.pair, take_rows(part.batch, slice(0, 2)), 2, layout=part.layout)
        return Coordinates.of(run, part.layout).classes is not None


@dataclass
class _Rows:
    """A block of n rows, with the proposal of each."""

    fitted: Fit
    prior: Fit
    part: FittedGroup
    rows: Batch
    refined: Refined
    name: str
    argument: str
    draws: int
    at_once: int
    traced: dict[tuple[int, ...], TracedFunction] | None

    def entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """The densities of all entries, their errors, and k-hat, `(n, D)` each; NaN where an entry is missing."""
        whole, x = self.whole(), self.rows[self.argument]
        found = torch.full((3, *x.shape), math.nan, dtype=torch.float64)
        for row, column, rest in self.estimated(~x.isnan(), whole):
            at = row.cpu()
            log_p = whole.log_p[at] - rest.log_p
            error, k_hat = torch.hypot(whole.error[at], rest.error), torch.maximum(whole.k_hat[at], rest.k_hat)
            found[:, at, column.cpu()] = torch.stack([log_p, error, k_hat])
        return found[0], found[1], found[2]

    def transforms(self, columns: Tensor) -> Tensor:
        """See `transforms_without_each`."""
        x = self.rows[self.argument]
        found = torch.full(x.shape, math.nan, dtype=torch.float64)
        for row, column, rest in self.estimated(~x.isnan() & columns.to(x.device), self.whole()):
            drawn, value = self._drawn(rest.u, self._without(row, column), column), x[row, column]
            weight = _usual(rest.log_w.double()).softmax(0)
            below, same = ((weight * hit.double()).sum(0) * len(drawn) for hit in (drawn < value, drawn == value))
            pit = (below + torch.rand_like(below) * (1 + same)) / (len(drawn) + 1)
            found[row.cpu(), column.cpu()] = pit.cpu()
        return found

    def whole(self) -> Estimated:
        """Estimates of log p of the rows as they are, which may have several modes, too, where entries are missing.

        Kernels start at draws of the proposal, of the guide, and of the prior.
        """
        found = []
        numbers = torch.arange(num_rows(self.rows), device=self.refined.loc.device)
        for row in numbers.split(self.together):
            rows, q = take_rows(self.rows, row), self.refined.rows(row)
            each, starts = max(1, STARTS * self.draws // 3), []
            for k in pieces(each, self.at_once):
                starts += [q.sample(k), self._guided(rows, k), self._prior_draws(rows, k)]
            u = torch.cat(starts)
            u = torch.where(u.isfinite().all(-1, keepdim=True), u, q.loc)
            found.append(self._adapted(rows, row, u))
        return Estimated.of(found)

    @property
    def together(self) -> int:
        """Rows that are estimated together."""
        return max(TOGETHER, self.fitted.chunk_size(self.rows, self.at_once))

    def _guided(self, rows: Batch, num: int) -> Tensor:
        """Draws of the guide, `(num, m, d)`."""
        layout, size = self.part.layout, self.fitted.chunk_size(rows, num)
        runs = [terms(self.fitted.pair, some, num, layout=layout) for some in chunks(rows, size)]
        return torch.cat([self.refined.coordinates.join(run) for run in runs], 1)

    def _prior_draws(self, rows: Batch, num: int) -> Tensor:
        """Draws of the prior, `(num, m, d)`, of which classes that are summed out elsewhere are drawn, too."""
        layout, size = self.prior.layout_of(rows), self.fitted.chunk_size(rows, num)
        runs = [terms(self.prior.pair, some, num, layout=layout, enumerate=False) for some in chunks(rows, size)]
        return torch.cat([self.refined.coordinates.join(run) for run in runs], 1)

    def _adapted(self, rows: Batch, row: Tensor, starts: Tensor) -> Estimated:
        q = self.refined.rows(row)
        kernels, scale = Kernels(q.loc[None], q.scale_tril), q.scale_tril / widening(q.loc.shape[-1])
        return population_monte_carlo(_LogJoint(self, rows), kernels, starts, scale, self.draws)

    def _chosen(self, u: Tensor, log_w: Tensor, count: int) -> Tensor:
        """So many draws of the posterior of the whole rows, `(count, n, d)`."""
        picked = torch.multinomial(_usual(log_w).softmax(0).T, count, replacement=True).T
        return u.gather(0, picked[..., None].expand(-1, -1, u.shape[-1]))

    def estimated(self, which: Tensor, whole: Estimated) -> Iterator[tuple[Tensor, Tensor, Estimated]]:
        """For entries `which`, `(n, D)` of bool, some at a time, their rows and columns and the estimates without them."""
        own = self._chosen(whole.u, whole.log_w, max(1, round(SHARES[1] * STARTS * self.draws)))
        for some in which.nonzero().split(self.together):
            if not len(some):  # of nothing to split
                continue
            row, column = some.unbind(1)
            gaps = self._without(row, column)
            starts = self._starts(take_rows(self.rows, row), gaps, column, own[:, row], STARTS * self.draws)
            yield row, column, self._adapted(gaps, row, starts)

    def _without(self, row: Tensor, column: Tensor) -> Batch:
        """These rows without these entries."""
        rows = take_rows(self.rows, row)
        x = rows[self.argument].clone()
        x[torch.arange(len(row), device=x.device), column] = math.nan
        return {**rows, self.argument: x}

    def _drawn(self, u: Tensor, gaps: Batch, column: Tensor) -> Tensor:
        """A draw of p(x_d | z) for each u, `(K, m, d)`, and column d, `(m,)`: `(K, m)`."""
        size, layout = self.fitted.chunk_size(gaps, self.at_once), self.part.layout
        found = []
        for some in u.split(self.at_once):
            parts = []
            for index in torch.arange(len(column), device=u.device).split(size):
                pair = at(self.fitted.pair, self.refined.coordinates, some[:, index])[0]
                run = terms(pair, take_rows(gaps, index), len(some), layout=layout)
                side = run.sites[self.name].p
                assert side is not None
                x = run.rows(side.fn.sample(), tuple(side.fn.event_shape))
                parts.append(x.gather(2, column[index, None].expand(len(some), -1, 1))[..., 0])
            found.append(torch.cat(parts, 1))
        return torch.cat(found)

    def _starts(self, whole: Batch, gaps: Batch, column: Tensor, own: Tensor, count: int) -> Tensor:
        """Where the kernels of the first round are, `(J, m, d)`."""
        coordinates, layout = self.refined.coordinates, self.part.layout
        others, blind = (max(1, round(share * count)) for share in (SHARES[0], SHARES[2]))
        index = column[None, :, None]
        drawn = []
        for k in pieces(others, self.at_once):
            x = self._replaced(whole, index, k)
            rows = {key: value.repeat(k, *(1 for _ in value.shape[1:])) for key, value in whole.items()}
            rows[self.argument] = x.flatten(0, 1)
            size = self.fitted.chunk_size(rows)
            found = [coordinates.join(terms(self.fitted.pair, some, layout=layout))[0] for some in chunks(rows, size)]
            drawn.append(torch.cat(found).unflatten(0, (k, -1)))
        drawn += [self._guided(gaps, k) for k in pieces(blind, self.at_once)]
        far = torch.cat([torch.where(u.isfinite().all(-1, keepdim=True), u, own[:1]) for u in drawn])
        return torch.cat([far, own])

    def _replaced(self, whole: Batch, index: Tensor, num: int) -> Tensor:
        """The rows, `(num, m, D)`, in which one entry of each is replaced by draws of its distribution under the model.

        Half of them are as drawn. The other half are chosen among these so that the tails are as full as the middle: the logits
        of their ranks are evenly spaced.
        """
        layout = self.prior.layout_of(whole)
        run = terms(self.prior.pair, whole, num, layout=layout, enumerate=False)
        side = run.sites[self.name].p
        assert side is not None
        drawn = run.rows(side.fn.sample(), tuple(side.fn.event_shape))
        x = whole[self.argument].expand(num, *whole[self.argument].shape)
        value = drawn.to(x.dtype).expand(x.shape).gather(2, index.expand(num, -1, 1))
        half, end = num // 2, math.log(num)
        ranks = torch.linspace(-end, end, half, device=x.device).sigmoid() * (num - 1)
        value = torch.cat([value[half:], value.sort(0).values[ranks.round().long()]])
        return x.scatter(2, index.expand(num, -1, 1), value)


def _usual(log_w: Tensor) -> Tensor:
    """Log-weights `(K, M)`, all equal where none is finite."""
    return torch.where(torch.isfinite(log_w.amax(0)), log_w, 0.0)


class _LogJoint:
    """log p(x_-d, u) of rows, some rows and draws at a time; many runs of one shape are traced."""

    def __init__(self, block: _Rows, rows: Batch) -> None:
        self.block, self.rows = block, rows
        self.size = min(block.fitted.chunk_size(rows, block.at_once), num_rows(rows))

    def __call__(self, u: Tensor, index: Tensor) -> Tensor:
        """`(K, m)` at u, `(K, m, d)`, of the rows with these numbers."""
        found = []
        for some in u.split(self.block.at_once):
            columns = [self._at(part, rows) for part, rows in zip(some.split(self.size, 1), index.split(self.size))]
            found.append(torch.cat(columns, 1))
        return torch.cat(found)

    def _at(self, u: Tensor, index: Tensor) -> Tensor:
        block, count = self.block, u.shape[1]
        if block.traced is None:
            return self._density({**take_rows(self.rows, index), U: u})[0]
        full = torch.arange(self.size, device=index.device) % count  # of one size, so that one trace serves all
        key = (len(u), self.size)
        traced = block.traced.setdefault(key, TracedFunction(self._density, (block.fitted.pair,)))
        return traced({**take_rows(self.rows, index[full]), U: u[:, full]})[0][:, :count]

    def _density(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        block = self.block
        rows = {name: inputs[name] for name in self.rows}
        return [log_joint(block.fitted.pair, rows, block.part.layout, block.refined.coordinates, inputs[U])]

"""`log p(x_d | x_-d)` of tables: rows without one of their entries, whose posteriors one entry often all but determined."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.batching.chunks import chunks
from pyrovae.criticism.averages import transform_among
from pyrovae.criticism.coordinates import Coordinates
from pyrovae.criticism.importance import TRACE_FROM
from pyrovae.criticism.of_entries import of_entries
from pyrovae.criticism.population import (
    ENOUGH,
    Estimated,
    Kernels,
    adapted_kernels,
    drawn_from,
    population_monte_carlo,
    weights_of,
)
from pyrovae.criticism.prior_as_guide import with_prior_as_guide
from pyrovae.criticism.proposals import adapted, pieces, usable
from pyrovae.criticism.refined import DRAWS, LOOKS, Refined, at, run_at, widening
from pyrovae.distributions.combine import ObservedOnly
from pyrovae.engine.tracing import TracedFunction
from pyrovae.errors import PairError
from pyrovae.fitted.fitted import Fit, FittedGroup
from pyrovae.fitted.runs import particles_at_once
from pyrovae.objectives.terms import Terms, terms
from pyrovae.pair.batch import Batch, num_rows, take_rows
from pyrovae.pair.common import are_common
from pyrovae.pair.parameters import fork_rng

U = " u"  # a name that no argument has
TOGETHER = 64  # rows that lack an entry, whose proposals are adapted together
STARTS = 2  # for each draw of a round
# Where they are: at draws of the guide for rows with another value of the entry, at draws of the posterior of the
# whole row, and at draws of the guide for the row without the entry.
SHARES = (0.7, 0.15, 0.15)
# Draws that all entries of a row share, for each draw of a round, and where they are: one t distribution and kernels, both of
# the posterior of the whole row, and kernels at draws of the guide for rows with another value of one of the entries.
SHARED = 3
SHARED_SHARES = (0.3, 0.3, 0.4)
ELSEWHERE, ALL_ELSEWHERE = 40, 4000  # such values of each entry, and of all entries, at most
ENTRIES = 256  # of which rows have a share in these draws together
# With larger k-hats, estimates from shared draws were up to a nat too high, so that rounds of the entry's own follow.
SURE = 0.5
FEWEST = 8  # rows in a traced run
PRECISE = 0.01  # nats, to which densities must be known of which one is subtracted
NEGLIGIBLE = 20.0  # nats, by which the weights of draws that do not count are below the largest


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
    traced: dict[tuple[str, int, int], TracedFunction] | None = None if eager else {}
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
    traced: dict[tuple[str, int, int], TracedFunction] | None

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
            found[row.cpu(), column.cpu()] = transform_among(drawn, value, weight).cpu()
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

    def _adapted(
        self, rows: Batch, row: Tensor, starts: Tensor, first: tuple[Tensor, Tensor] | None = None
    ) -> Estimated:
        q = self.refined.rows(row)
        kernels, scale = Kernels(q.loc[None], q.scale_tril), q.scale_tril / widening(q.loc.shape[-1])
        log_joint = _Runs(self, rows, self._density)
        return population_monte_carlo(
            lambda u, index: log_joint(u, index)[0], kernels, starts, scale, self.draws, first
        )

    def _density(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        """log p(x, u)."""
        return [self._run(inputs)[1]]

    def _densities(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        """log p(x, u), and the log-densities of the entries given u, `(K, m, D)`."""
        run, log_p = self._run(inputs)
        return [log_p, of_entries(run, self.name)]

    def _run(self, inputs: dict[str, Tensor]) -> tuple[Terms, Tensor]:
        rows = {name: inputs[name] for name in self.rows}
        return run_at(self.fitted.pair, rows, self.part.layout, self.refined.coordinates, inputs[U])

    def _chosen(self, u: Tensor, log_w: Tensor, count: int) -> Tensor:
        """So many draws of the posterior of the whole rows, `(count, n, d)`."""
        picked = torch.multinomial(_usual(log_w).softmax(0).T, count, replacement=True).T
        return u.gather(0, picked[..., None].expand(-1, -1, u.shape[-1]))

    def estimated(self, which: Tensor, whole: Estimated) -> Iterator[tuple[Tensor, Tensor, Estimated]]:
        """For entries `which`, `(n, D)` of bool, some at a time, their rows and columns and the estimates without them.

        Where draws that all entries of a row share suffice for an entry, they are its estimate; where they do not, rounds
        for this entry start with them; and where these do not suffice either, rounds with starts of its own.
        """
        if not self._subtracts(whole):
            yield from self._one_by_one(which, whole)
            return
        poor = torch.zeros_like(which)
        size = max(1, min(self.together, ENTRIES // which.shape[1]))
        for row in which.any(1).nonzero().flatten().split(size):
            u, log_w, precise, far = self._shared(row, whole)
            left = which[row]
            for column in range(which.shape[1]):
                rest = Estimated.from_weights(u, log_w[..., column])
                good = (rest.suffice(ENOUGH * len(u)) & (rest.k_hat <= SURE)).to(row.device)
                good &= precise[:, column] & left[:, column]
                left[good, column] = False
                if bool(good.any()):
                    yield row[good], torch.full_like(row[good], column), rest.rows(good)
            for some in left.nonzero().split(self.together):
                if not len(some):  # of nothing to split
                    continue
                r, column = some.unbind(1)
                near, first = far[column, :, r].transpose(0, 1), (u[:, r], log_w[:, r, column])
                rest = self._adapted(self._without(row[r], column), row[r], near, first)
                good = rest.suffice(ENOUGH * self.draws).to(row.device)
                poor[row[r], column] = ~good
                if bool(good.any()):
                    yield row[r[good]], column[good], rest.rows(good)
        yield from self._one_by_one(poor, whole)

    def _one_by_one(self, which: Tensor, whole: Estimated) -> Iterator[tuple[Tensor, Tensor, Estimated]]:
        """The same where each entry needs draws of its own."""
        own = self._chosen(whole.u, whole.log_w, max(1, round(SHARES[1] * STARTS * self.draws)))
        for some in which.nonzero().split(self.together):
            if not len(some):
                continue
            row, column = some.unbind(1)
            gaps = self._without(row, column)
            starts = self._starts(take_rows(self.rows, row), gaps, column, own[:, row], STARTS * self.draws)
            yield row, column, self._adapted(gaps, row, starts)

    def _subtracts(self, whole: Estimated) -> bool:
        """Whether `log p(x_-d, u) = log p(x, u) - log p(x_d | u)`, as where nothing else depends on x_d."""
        known = ~self.rows[self.argument].isnan()
        if any(site.enumerated for site in self.part.layout.sites) or not bool(known.any()):
            return False
        number = known.sum(1).argmax()[None]
        first, (column,) = take_rows(self.rows, number), known[number[0]].nonzero(as_tuple=True)
        u = whole.u[:LOOKS, number].to(self.refined.loc)
        try:
            log_p, each = self._densities({**first, U: u})
        except PairError:  # densities of entries there are none
            return False
        gaps = self._without(number.expand(len(column)), column)
        found = self._density({**gaps, U: u.expand(-1, len(column), -1)})[0]
        return torch.allclose(found, log_p - each[:, 0, column], rtol=1e-4, atol=PRECISE)

    def _shared(self, row: Tensor, whole: Estimated) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draws that all entries of a row share, for if z says much of one entry, leaving out another one changes it little.

        Draws, `(K, m, d)`, their log-weights without each entry, `(K, m, D)`, whether these are precise, `(m, D)`, and
        draws of the guide for rows with other values of each entry, `(D, J, m, d)`.
        """
        rows, q = take_rows(self.rows, row), self.refined.rows(row)
        count = max(1, round(SHARED_SHARES[1] * self.draws))
        scale = q.scale_tril / widening(q.loc.shape[-1])
        far = self._elsewhere(rows, q)
        parts = (
            *adapted_kernels(whole.u[:, row], whole.log_w[:, row], scale, count),
            Kernels(far.flatten(0, 1), q.scale_tril),
        )
        u, log_q = drawn_from(list(zip(SHARED_SHARES, parts)), SHARED * self.draws)
        log_p, each = _Runs(self, rows, self._densities)(u, torch.arange(len(row), device=u.device))
        log_w = weights_of(log_p[..., None] - each, log_q[..., None])
        rounding = (torch.finfo(log_p.dtype).eps * log_p.abs())[..., None]
        counts = log_w > log_w.amax(0) - NEGLIGIBLE
        return u, log_w, torch.where(counts, rounding, 0.0).amax(0) < PRECISE, far

    def _elsewhere(self, rows: Batch, q: Refined) -> Tensor:
        """Draws of the guide for rows of which each entry in turn has another value, `(D, J, m, d)`.

        These values are chosen among draws of the model so that the tails are as full as the middle.
        """
        x, layout = rows[self.argument], self.part.layout
        each = max(1, min(ELSEWHERE, ALL_ELSEWHERE // x.shape[1]))
        others = self._other_values(rows, self.draws).sort(0).values
        places = torch.linspace(-1, 1, each + 2, device=x.device)[1:-1] * math.log(len(others))
        others = others[(places.sigmoid() * (len(others) - 1)).round().long()]
        put = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)[:, None, None]
        changed = torch.where(put, others, x).flatten(0, 1)  # (D * J, m, D)
        found = []
        for some in changed.split(self.at_once):
            batch = {name: value.repeat(len(some), *(1 for _ in value.shape[1:])) for name, value in rows.items()}
            batch[self.argument] = some.flatten(0, 1)
            runs = [
                terms(self.fitted.pair, part, layout=layout) for part in chunks(batch, self.fitted.chunk_size(batch))
            ]
            drawn = torch.cat([self.refined.coordinates.join(run)[0] for run in runs])
            found.append(drawn.unflatten(0, (len(some), -1)))
        u = torch.cat(found)
        return torch.where(u.isfinite().all(-1, keepdim=True), u, q.loc).unflatten(0, (x.shape[1], -1))

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

    def _other_values(self, rows: Batch, num: int) -> Tensor:
        """Draws of p(x), `(num, m, D)`."""
        run = terms(self.prior.pair, rows, num, layout=self.prior.layout_of(rows), enumerate=False)
        side = run.sites[self.name].p
        assert side is not None
        x = rows[self.argument]
        return run.rows(side.fn.sample(), tuple(side.fn.event_shape)).to(x.dtype).expand(num, *x.shape)

    def _replaced(self, whole: Batch, index: Tensor, num: int) -> Tensor:
        """The rows, `(num, m, D)`, in which one entry of each is replaced by draws of its distribution under the model.

        Half of them are as drawn. The other half are chosen among these so that the tails are as full as the middle: the logits
        of their ranks are evenly spaced.
        """
        x = whole[self.argument].expand(num, *whole[self.argument].shape)
        value = self._other_values(whole, num).gather(2, index.expand(num, -1, 1))
        half, end = num // 2, math.log(num)
        ranks = torch.linspace(-end, end, half, device=x.device).sigmoid() * (num - 1)
        value = torch.cat([value[half:], value.sort(0).values[ranks.round().long()]])
        return x.scatter(2, index.expand(num, -1, 1), value)


def _usual(log_w: Tensor) -> Tensor:
    """Log-weights `(K, M)`, all equal where none is finite."""
    return torch.where(torch.isfinite(log_w.amax(0)), log_w, 0.0)


class _Runs:
    """A function of rows and draws u, some of both at a time; many runs of one shape are traced.

    Args:
        block: The rows that it is asked about, or that these were made of.
        rows: The rows.
        function: Of the rows' arguments and U, `(K, m, d)`: a list of `(K, m, ...)`.
    """

    def __init__(self, block: _Rows, rows: Batch, function: Callable[[dict[str, Tensor]], list[Tensor]]) -> None:
        self.block, self.rows, self.function = block, rows, function
        self.size = min(block.fitted.chunk_size(rows, block.at_once), num_rows(rows))

    def __call__(self, u: Tensor, index: Tensor) -> list[Tensor]:
        """At u, `(K, m, d)`, of the rows with these numbers."""
        found = []
        for some in u.split(self.block.at_once):
            parts = [self._at(part, rows) for part, rows in zip(some.split(self.size, 1), index.split(self.size))]
            found.append([torch.cat(column, 1) for column in zip(*parts)])
        return [torch.cat(column) for column in zip(*found)]

    def _at(self, u: Tensor, index: Tensor) -> list[Tensor]:
        block, count = self.block, u.shape[1]
        if block.traced is None:
            return self.function({**take_rows(self.rows, index), U: u})
        size = min(self.size, max(FEWEST, 2 ** (count - 1).bit_length()))  # of few sizes, so that few traces serve all
        full = torch.arange(size, device=index.device) % count
        key = (self.function.__name__, len(u), size)
        traced = block.traced.setdefault(key, TracedFunction(self.function, (block.fitted.pair,)))
        return [part[:, :count] for part in traced({**take_rows(self.rows, index[full]), U: u[:, full]})]

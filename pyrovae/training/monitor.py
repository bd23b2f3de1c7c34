"""The bound, the KL terms and the use of codes of validation rows, or of some training rows, after each epoch."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from pyrovae.batching.chunks import chunks
from pyrovae.batching.incoming import Incoming
from pyrovae.batching.memory import halving
from pyrovae.batching.stream import Resident, Stream
from pyrovae.engine import ranks
from pyrovae.engine.tracing import TracedFunction
from pyrovae.errors import PairError
from pyrovae.fitted.fitted import FIXED_NOISE_SEED, Fit, FittedGroup
from pyrovae.objectives.codes import Numbered, numbered, perplexity
from pyrovae.objectives.terms import terms
from pyrovae.objectives.weights import global_bound, log_weights, row_bounds, row_kl
from pyrovae.pair.batch import Batch, num_rows, take_rows
from pyrovae.pair.parameters import fork_rng, seed_torch

MONITORED_ROWS = 256  # of the training rows, whose KL terms the history holds where no rows are held out
TRACE_FROM = 50  # epochs; for fewer, a graph of a few rows costs more than it saves


class Measured(NamedTuple):
    """What rows say of a pair: the mean share of the bound and the mean KL term of each latent site (0 for a row that observes
    it), in nats per row, and the perplexity of the codes in use, of each level of each site that has any."""

    bound: float
    kl: dict[str, float]
    perplexity: dict[str, list[float]]

    @property
    def columns(self) -> dict[str, float]:
        """What of it stands in the history, besides the bound."""
        columns = {f"kl/{site}": kl for site, kl in self.kl.items()}
        for site, levels in self.perplexity.items():
            several = len(levels) > 1
            columns |= {f"perplexity/{site}{f'/{n}' if several else ''}": p for n, p in enumerate(levels, 1)}
        return columns


NOTHING = Measured(math.nan, {}, {})


class MonitoredGroup:
    """Bounds, KL terms and codes of rows with the same arguments, in chunks of one size, by one traced program.

    Of several ranks each has some of the rows; `counting` is their number. One that has none takes another's, which does not
    count. `counted` are the global sites that are counted with another group of rows; `draws` as for `Monitor`.
    """

    def __init__(
        self, fitted: Fit, group: FittedGroup, traces: bool, counted: frozenset[str], draws: int | None
    ) -> None:
        self.fitted, self.layout, self.counted, self.draws = fitted, group.layout, counted, draws
        self.rows, self.counting = _own_rows(group.batch)
        self.chunk = min(num_rows(self.rows), fitted.chunk_size(group.batch, draws or 1))
        self.evaluate = TracedFunction(self.bounds, (fitted.pair,)) if traces else self.bounds
        self.sites: list[str] = []  # the latent ones, in the order of their KL terms
        self.codes: dict[str, int] = {}  # the latent ones with codes, in the order of these, and how many there are

    def bounds(self, rows: Batch) -> list[Tensor]:
        """What all rows share of the bound, each row's share, and each row's KL terms and numbers of codes by latent site."""
        found = terms(self.fitted.pair, rows, self.draws or 1, layout=self.layout)
        divergences = row_kl(found)
        self.sites = list(divergences)
        shared = global_bound(found, self.counted) / found.num_particles
        each = row_bounds(found)[0]
        if self.draws is not None:
            each = log_weights(found).logsumexp(0) - math.log(self.draws)
        codes = numbered(found)
        self.codes = {site: one.num_codes for site, one in codes.items()}
        return [shared, each, *(kl.mean(0) for kl in divergences.values()), *(one.numbers for one in codes.values())]


def _own_rows(batch: Batch) -> tuple[Batch, int]:
    """This rank's rows, spread over all, and their number, which may be 0."""
    if ranks.world_size() == 1:
        return batch, num_rows(batch)
    own = torch.arange(num_rows(batch))[ranks.rank() :: ranks.world_size()]
    return take_rows(batch, own if len(own) else torch.zeros(1, dtype=torch.long)), len(own)


class Monitor:
    """Measures the validation rows, or else some training rows, with the same noise every time.

    Args:
        fitted: The fit.
        source: The training rows.
        held_out: The validation rows, or None.
        engine: How steps are run; "eager" traces nothing here either.
        draws: How many draws count together in the importance-weighted bound of a validation row; None for its ELBO at one
            draw.
    """

    def __init__(
        self,
        fitted: Fit,
        source: Resident | Stream | Incoming,
        held_out: Batch | None,
        engine: str,
        draws: int | None = None,
    ) -> None:
        self.fitted, self.source, self.held_out = fitted, source, held_out
        self.draws = None if held_out is None else draws
        self.traces = engine != "eager" and (held_out is not None or fitted.settings["epochs"] >= TRACE_FROM)
        self.rows = held_out
        self.told: set[str] = set()  # sites whose codes were out of range
        self.groups: list[MonitoredGroup] = []
        self.works = True

    def measure(self) -> Measured:
        """What the rows say; NaN and nothing where no row of the training data has a term of its own."""
        if not self.works:
            return NOTHING
        try:
            with self.fitted.evaluation_mode(), fork_rng():
                # in smaller chunks from then on, where memory does not suffice for these
                return halving(self._measure, again=self.groups.clear)()
        except PairError:
            if self.held_out is not None:
                raise
            self.works = False
            return NOTHING

    def _measure(self) -> Measured:
        device, num_training = self.source.device, self.source.num_rows
        if self.rows is None:
            self.rows = self.source.some(MONITORED_ROWS)
        seed_torch(FIXED_NOISE_SEED + ranks.rank())
        if not self.groups:
            counted: frozenset[str] = frozenset()
            for part in self.fitted.parts(self.rows, known=True):
                self.groups.append(MonitoredGroup(self.fitted, part, self.traces, counted, self.draws))
                counted |= set(part.layout.global_sites)
        total, shared_total = torch.zeros(2, dtype=torch.float64, device=device).unbind()
        divergences: dict[str, Tensor] = {}
        used: dict[str, Tensor] = {}
        for group in self.groups:
            left = group.counting
            for rows in chunks(group.rows, group.chunk):
                # the last chunk is filled up with rows that do not count, so that one program serves all
                fill = torch.arange(group.chunk, device=device) % num_rows(rows)
                shared, bounds, *others = group.evaluate(take_rows(rows, fill))
                counting = min(left, group.chunk)
                total = total + bounds[:counting].double().sum()
                for site, kl in zip(group.sites, others):
                    divergences[site] = divergences.get(site, 0.0) + kl[:counting].double().sum()
                for (site, size), numbers in zip(group.codes.items(), others[len(group.sites) :]):
                    used[site] = used.get(site, 0) + self._counts(Numbered(site, numbers, size), counting)
                left -= num_rows(rows)
            shared_total = shared_total + shared.double()  # of the last chunk: every chunk has it whole
        # Global latents count as in training: once for all training rows.
        if ranks.rank():
            shared_total = torch.zeros_like(shared_total)  # the first rank counts it
        whole, shared_once, *kls = ranks.total(torch.stack([total, shared_total, *divergences.values()])).tolist()
        bound = whole / num_rows(self.rows) + shared_once / num_training
        if any(group.layout.enumerates for group in self.groups):  # rows whose codes are not drawn would be left out
            used = {}
        means = {site: kl / num_rows(self.rows) for site, kl in zip(divergences, kls)}
        return Measured(bound, means, {site: perplexity(ranks.total(n)).tolist() for site, n in used.items()})

    def _counts(self, codes: Numbered, rows: int) -> Tensor:
        """How often codes occur, `(Q, K)`; NaN, and a warning, where numbers are out of range: no fit need end for it."""
        try:
            return codes.counts(rows).double()
        except PairError as error:
            if codes.site not in self.told:
                self.told.add(codes.site)
                warnings.warn(f"{error} The perplexity of its codes is NaN in the history.", stacklevel=2)
            levels = codes.numbers.shape[1]
            return torch.full((levels, codes.num_codes), math.nan, dtype=torch.float64, device=codes.numbers.device)

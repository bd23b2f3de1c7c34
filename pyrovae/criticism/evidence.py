"""What the questions about a fit look at: some rows, draws for them, and rows drawn from the model; each made once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyrovae.criticism.coordinates import is_delta
from pyrovae.criticism.importance import Importance, silently, tell_undefined
from pyrovae.criticism.posterior import posterior
from pyrovae.criticism.statistics import Columns
from pyrovae.errors import PairError
from pyrovae.fitted.fitted import Fit, FittedGroup, in_order, seeded
from pyrovae.fitted.runs import drawn_terms, need_particles, particles_at_once
from pyrovae.objectives.terms import Terms, terms
from pyrovae.pair.batch import Batch, known_rows, num_rows, take_rows
from pyrovae.pair.handlers import DATA_PLATE
from pyrovae.pair.layout import Site
from pyrovae.pair.masks import masked_out
from pyrovae.pair.parameters import fork_rng
from pyrovae.pair.program import arguments, at_values, run, sample_sites
from pyrovae.pair.simulated import AS_A_WHOLE
from pyrovae.predict.forward import plain, run_model

POSTERIOR_DRAWS = 100  # of each row
LIKELIHOOD = "log p(x | z)"
SIMULATED = 1000  # rows at least, drawn from the model for calibration
GUIDE_DRAWS = 63  # of each simulated row, so that ranks are 0 to 63


@dataclass(frozen=True)
class Simulated:
    """Rows drawn from the model, as the pair takes them, and the latent values that they came from, `(N, *event)`."""

    part: FittedGroup
    batch: Batch
    latent: dict[str, Tensor]


@dataclass(frozen=True)
class Codes:
    """The codes of simulated rows, `(N, D)`, and draws of the guide for them, `(L, N, D)`, of one site."""

    name: str
    truth: Tensor
    draws: Tensor


class Evidence:
    """Rows held out and rows of the training, and what is computed from them, at its first use.

    Args:
        fitted: the fitted pair.
        data: the rows held out.
        train: the training rows, or None.
        rows: the most rows that are looked at, drawn at random if there are more.
        samples: draws per row for log p(x).
        proposal: of these draws, "refined", "laplace" or "guide".
        image_shape: the shape of a row that is an image, where its event does not say so.
        columns: the names of the columns of rows, each with those of its classes, or None.
        seed: of all that is random.
    """

    def __init__(
        self,
        fitted: Fit,
        data: Any,
        train: Any,
        *,
        rows: int,
        samples: int,
        proposal: str,
        image_shape: tuple[int, ...] | None,
        columns: Columns | None = None,
        seed: int,
    ) -> None:
        self.fitted, self.samples, self.proposal, self.seed = fitted, samples, proposal, seed
        self.image_shape, self.columns = image_shape, columns
        self._masked: dict[int, dict[str, Tensor]] = {}
        self.held_out = fitted.batch(data)
        self.numbers = _some(num_rows(self.held_out), rows, seed)
        self.rows = take_rows(self.held_out, self.numbers)
        self.training, self.training_rows, self.alike = None, None, self.rows
        if train is not None:
            given = fitted.batch(train)
            # log p(x, y) is no yardstick for log p(x): what some row lacks is left out of all where the two are compared
            shared = _known_throughout(fitted, self.held_out, given)
            self.training = {name: value for name, value in given.items() if name in shared}
            self.training_rows = take_rows(self.training, _some(num_rows(given), rows, seed + 1))
            self.alike = {name: value for name, value in self.rows.items() if name in shared}

    @cached_property
    def parts(self) -> list[FittedGroup]:
        """The rows in groups with the same arguments."""
        with self.fitted.scope():
            return self.fitted.parts(self.rows)

    @cached_property
    def is_point(self) -> bool:
        """Whether all draws of the guide for a row are one, as those of a grid of codes."""
        found: list[bool] = []
        with self.fitted.scope(), fork_rng():
            for part in self.parts:
                run = terms(self.fitted.pair, take_rows(part.batch, slice(0, 2)), layout=part.layout, enumerate=False)
                found += [is_delta(t.q.fn) for t in run.sites.values() if t.local and t.q is not None]
        return bool(found) and all(found)

    def check_spread(self) -> None:
        """Raise PairError where the guide has none to ask about."""
        if self.is_point:
            raise PairError("the guide is a single point, so that log p(x) is estimated by its ELBO, a lower bound")

    @cached_property
    def estimated(self) -> Importance:
        """log p(x) of the rows held out."""
        return self._estimate(self.rows)

    @cached_property
    def estimated_alike(self) -> Importance:
        """log p(x) of the rows held out, with the arguments alone that training rows are compared with."""
        return self.estimated if self.alike.keys() == self.rows.keys() else self._estimate(self.alike)

    @cached_property
    def estimated_training(self) -> Importance | None:
        """log p(x) of training rows."""
        return None if self.training_rows is None else self._estimate(self.training_rows)

    def _estimate(self, rows: Batch) -> Importance:
        with quietly():
            found = silently(self.fitted, rows, self.samples, self.proposal, self.seed)
        tell_undefined(found.log_likelihood, error=True)
        return found

    def latent_sites(self, part: FittedGroup) -> list[Site]:
        """The latent sites that each row has, one value each."""
        return [s for s in part.layout.sites if s.role == "latent" and s.local and not s.plates]

    @cached_property
    def posterior(self) -> list[dict[str, Tensor]]:
        """For each part joint draws from the posterior of its rows' latent sites, `(S, n, *event)`."""
        how: dict[str, Any] = {"num_particles": self.samples, "proposal": self.proposal, "seed": self.seed + 2}
        found: list[dict[str, Tensor]] = []
        for part in self.parts:
            sites = [s.name for s in self.latent_sites(part)]
            with quietly():
                rows = take_rows(self.rows, part.rows)
                found.append(posterior(self.fitted, rows, POSTERIOR_DRAWS, site=sites, **how) if sites else {})
        return found

    def at_posterior(self, number: int) -> Iterator[tuple[Batch, Terms]]:
        """Chunks of the rows of a part, and the terms of a run at the posterior draws of their latent sites, S of each row."""
        part, draws = self.parts[number], self.posterior[number]
        if any(s.role != "observed" and s.local and s.plates for s in part.layout.sites):
            raise PairError("a latent site is in another plate besides 'data'")
        need_particles(self.fitted, part.batch, part.layout)
        size = self.fitted.chunk_size(part.batch, POSTERIOR_DRAWS)
        for start in range(0, len(part.rows), size):
            rows = take_rows(part.batch, slice(start, start + size))
            if draws:
                yield rows, self.terms_at(rows, part, {name: x[:, start : start + size] for name, x in draws.items()})
            else:
                yield rows, terms(self.fitted.pair, rows, POSTERIOR_DRAWS, layout=part.layout, enumerate=False)

    def terms_at(self, rows: Batch, part: FittedGroup, values: Mapping[str, Tensor]) -> Terms:
        """The terms of a run at these values of the latent sites, `(K, N, *event)`."""
        few = terms(self.fitted.pair, take_rows(part.batch, slice(0, 2)), layout=part.layout, enumerate=False)
        batch = [1] * part.layout.plate_nesting
        batch[few.data_dim] = num_rows(rows)  # a run shows where the dimension of the rows is
        draws = len(next(iter(values.values())))
        lead = [draws, *batch] if draws > 1 else batch
        placed = {s.name: values[s.name].reshape(*lead, *s.event_shape) for s in self.latent_sites(part)}
        return terms(at_values(self.fitted.pair, placed), rows, draws, layout=part.layout, enumerate=False)

    def guide_draws(self, batch: Batch, part: FittedGroup, num: int) -> dict[str, Tensor]:
        """Draws of the guide for rows, `(num, N, *event)`, by the name of each site that it has for each row.

        Under the name of `LIKELIHOOD` is the log-likelihood of the row at these draws, `(num, N)`.
        """
        sites = [s for s in self.latent_sites(part) if s.enumerated != "model"]
        found: dict[str, list[Tensor]] = {LIKELIHOOD: [], **{s.name: [] for s in sites}}
        with quietly():
            at_once = particles_at_once(self.fitted, batch, part.layout, num)
        size = self.fitted.chunk_size(batch, at_once)
        for start in range(0, num_rows(batch), size):
            rows = take_rows(batch, slice(start, start + size))
            runs = list(drawn_terms(self.fitted, rows, part.layout, num, at_once))
            found[LIKELIHOOD].append(torch.cat([_likelihood(run, part) for run in runs]))
            for site in sites:
                drawn = [run.rows(run.sites[site.name].value, site.event_shape) for run in runs]
                found[site.name].append(torch.cat(drawn))
        return {name: torch.cat(chunks, 1) for name, chunks in found.items()}

    def likelihood_at_truth(self, rows: Simulated) -> Tensor | None:
        """The log-likelihood of simulated rows at their true codes, `(N,)`; None where not all of these are known."""
        sites = [s for s in rows.part.layout.sites if s.local and s.role != "observed"]
        if not sites or any(s.name not in rows.latent or s.enumerated == "model" for s in sites):
            return None
        size, found = self.fitted.chunk_size(rows.batch), []
        for start in range(0, num_rows(rows.batch), size):
            some = slice(start, start + size)
            values = {name: value[some][None] for name, value in rows.latent.items()}
            found.append(_likelihood(self.terms_at(take_rows(rows.batch, some), rows.part, values), rows.part)[0])
        return torch.cat(found)

    @cached_property
    def draws(self) -> dict[str, Tensor]:
        """Draws of the guide for the rows held out, `(40, N, *event)`, of the sites that every row has."""
        with self.fitted.scope(), seeded(self.seed + 3):
            found = [self.guide_draws(part.batch, part, 40) for part in self.parts]
        names = [name for name in found[0] if name != LIKELIHOOD and all(name in one for one in found)]
        return {name: in_order(self.parts, [one[name] for one in found], 1) for name in names}

    def masked(self, part: FittedGroup) -> dict[str, Tensor]:
        """Which entries of the arguments that sites observe are masked in the rows of a part, `(N, *event)`, where some are."""
        number = next(n for n, one in enumerate(self.parts) if one is part)
        if number not in self._masked:
            found: dict[str, list[Tensor]] = {}
            observed = {
                s.name: s.argument for s in part.layout.sites if s.role == "observed" and s.local and s.argument
            }
            size = self.fitted.chunk_size(part.batch)
            with self.fitted.scope(), fork_rng(), torch.no_grad():
                for start in range(0, len(part.rows), size):
                    rows = take_rows(part.batch, slice(start, start + size))
                    nodes = sample_sites(run(self.fitted.pair, rows)[0])
                    for name, argument in observed.items():
                        node, value = nodes[name], nodes[name]["value"]
                        out = masked_out(node["fn"], node["mask"], value)
                        if out is not None:
                            found.setdefault(argument, []).append(plain(node, out.expand(value.shape)))
            self._masked[number] = {argument: torch.cat(chunks) for argument, chunks in found.items()}
        return self._masked[number]

    def simulate(self, part: FittedGroup, num: int, seed: int) -> Simulated:
        """Rows drawn from the model, `num` of them, with the conditions of the rows of a part, repeated as often as needed."""
        sites = [s for s in part.layout.sites if s.role == "observed" and not s.objective_only]
        if factor := next((s.name for s in sites if s.is_factor and s.local), None):
            raise PairError(
                f"site {factor!r} is a factor, a number of a row and no distribution, so that no row can be drawn"
            )
        observed = {s.argument: s.name for s in sites if not s.is_factor}
        if unknown := [site for argument, site in observed.items() if argument is None]:
            raise PairError(
                f"site {unknown[0]!r} observes a part or a function of an argument, so that no row can be drawn: {AS_A_WHOLE}"
            )
        masked = self.masked(part)
        index = torch.arange(num, device=part.rows.device) % len(part.rows)
        given = {name: value[index] for name, value in part.batch.items() if name not in observed}
        nodes = run_model(self.fitted, num, given, {}, seed)
        drawn = {a: plain(nodes[s], nodes[s]["value"]) for a, s in observed.items() if a is not None and s in nodes}
        if wrong := [a for a, value in drawn.items() if value.shape[1:] != part.batch[a].shape[1:]]:
            raise PairError(
                f"site {observed[wrong[0]]!r} observes {wrong[0]!r} in another form, so that no row can be drawn"
            )
        for a, out in masked.items():  # what is masked is missing, and the guide reads there what stands in its place
            drawn[a] = torch.where(out[index], part.batch[a][index], drawn[a])
        batch = {name: given[name] if name in given else drawn[name] for name in part.batch}
        latent = {
            s.name: plain(nodes[s.name], nodes[s.name]["value"]).reshape(num, *s.event_shape)
            for s in self.latent_sites(part)
            if s.name in nodes and any(f.name == DATA_PLATE for f in nodes[s.name]["cond_indep_stack"])
        }
        return Simulated(part, batch, latent)

    @cached_property
    def simulated(self) -> list[Simulated]:
        """At least SIMULATED rows drawn from the model for calibration, as many for each part as its share of the rows."""
        total = max(SIMULATED, len(self.numbers))
        shares = [max(50, round(total * len(part.rows) / len(self.numbers))) for part in self.parts]
        return [self.simulate(part, share, self.seed + 4) for part, share in zip(self.parts, shares)]

    @cached_property
    def codes(self) -> list[Codes]:
        """For each latent site that the guide draws for each row the true codes of simulated rows, and draws of the guide.

        `LIKELIHOOD` is one of them, of which the codes are the row's log-likelihoods.
        """
        self.check_spread()
        found: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
        with self.fitted.scope(), seeded(self.seed + 11):
            for rows in self.simulated:
                at_truth = self.likelihood_at_truth(rows)
                known = rows.latent if at_truth is None else {**rows.latent, LIKELIHOOD: at_truth}
                for name, drawn in self.guide_draws(rows.batch, rows.part, GUIDE_DRAWS).items():
                    if name in known:
                        truth, draws = found.setdefault(name, ([], []))
                        truth.append(_flat(known[name][None])[0])
                        draws.append(_flat(drawn))
        return [Codes(name, torch.cat(truth), torch.cat(draws, 1)) for name, (truth, draws) in found.items()]


def _known_throughout(fitted: Fit, *batches: Batch) -> set[str]:
    """The arguments that each row of all batches has; where there is none, those that occur in all."""
    optional = {name for name, taken in arguments(fitted.pair).items() if taken.default is None}
    common = set.intersection(*(set(batch) for batch in batches))
    known = {n for n in common if n not in optional or all(bool(known_rows(batch[n]).all()) for batch in batches)}
    return known or common


def _some(have: int, most: int, seed: int) -> Tensor:
    """The numbers of all rows, or of so many drawn at random, in their order."""
    if have <= most:
        return torch.arange(have)
    return torch.randperm(have, generator=torch.Generator().manual_seed(seed))[:most].sort().values


@contextmanager
def quietly() -> Iterator[None]:
    """Without the warnings that a report says in its own words."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="The guide is the proposal|Particles are run one at a time|The posterior draws of"
        )
        yield


def _likelihood(run: Terms, part: FittedGroup) -> Tensor:
    """The sum of the log-densities of the observed sites of each row, `(K, N)`."""
    names = [s.name for s in part.layout.sites if s.role == "observed" and s.local and not s.objective_only]
    each = [side.log_prob for name in names if (side := run.sites[name].p) is not None]
    return torch.stack([run.reduce(log_p, True) for log_p in each]).sum(0)


def _flat(values: Tensor) -> Tensor:
    """Values `(..., N, *event)` of a site with S draws, or of none, as `(S, N, D)` float64 on the CPU."""
    return values.reshape(*values.shape[:2], -1).double().cpu()

"""Exploring a fitted model: values of its latent variables go in, and what the decoder makes of them comes out.

Each latent site is either held, at values that a person chose or that a row of the data has, or drawn from the model, given
the sites above it. It works for any pair; nothing here knows a graph. What it answers is made of numbers, texts, lists and
dicts, as JSON has them.
"""

from __future__ import annotations

import json
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrovae._arguments import as_seed
from pyrovae.app.catalogue import CONDITION
from pyrovae.app.jobs.explore.conditions import Conditions, Fields, check_fields, conditions_of, conditions_of_pair
from pyrovae.app.jobs.explore.latents import REALS, Latent
from pyrovae.app.jobs.explore.noise import NoiseBySite
from pyrovae.app.jobs.explore.shown import GO_BACK, NOT_FINITE, view_of, views_of
from pyrovae.app.rows import Labels, num_source_rows, of_source, source_rows
from pyrovae.app.run import Run, open_run
from pyrovae.criticism.classification import classify
from pyrovae.errors import DataError, NotFiniteError, PairError, PyrovaeError, shortened
from pyrovae.fitted.files import read_run
from pyrovae.fitted.fitted import Fit, seeded
from pyrovae.fitted.folder import load
from pyrovae.pair.batch import Batch
from pyrovae.pair.layout import Site, union
from pyrovae.pair.program import arguments
from pyrovae.pair.turns import turn
from pyrovae.predict.dependence import reached, site_parents
from pyrovae.predict.encode import encode
from pyrovae.predict.forward import plain, run_model
from pyrovae.predict.missing import with_placeholders
from pyrovae.predict.sites import is_optional, observed_sites

REFERENCE = 256  # draws from the prior, with which the density of a point is compared
MOST_ROWS = 256  # whose codes say which dimensions are active
MEMORY = 32  # conditions for which these draws are kept
DRAWS = 20  # of the guide, over which the codes of rows are averaged


@dataclass(frozen=True, eq=False)
class Reference:
    """Draws from the prior, given something.

    Args:
        log_p: The log density of all latent sites at each draw, `(REFERENCE,)`.
        middles: The median of each element of the sites of real numbers.
    """

    log_p: Tensor
    middles: dict[str, list[float]]


class Explorer:
    """What a page about a fitted model asks.

    Args:
        fitted: The fitted pair.
        conditions: What its model is given; None for numbers, one for each element of what it reads and does not model.
        views: How observed sites are shown, by name; others by their shapes.
        rows: Rows of the data, as the guide takes them, by their numbers, `(n,)`; None where there are no data to start from.
        num_rows: How many rows there are.
        labels: Of all rows, "" where unknown; or None.
        classes: The names of the model's classes, or None.
        several: Columns of labels, of a model that has several, whose sites are named as its arguments are.
        name: Of the run.

    Raises:
        PairError: The model has no latent variables of rows, or cannot draw what depends on them.
    """

    def __init__(
        self,
        fitted: Fit,
        conditions: Conditions | None = None,
        views: Mapping[str, Any] | None = None,
        rows: Callable[[Tensor], Batch] | None = None,
        num_rows: int = 0,
        labels: Sequence[str] | None = None,
        classes: Sequence[str | int] | None = None,
        several: Sequence[Labels] = (),
        name: str = "model",
    ) -> None:
        self.fitted, self.rows, self.name = fitted, rows, name
        self.conditions = conditions or conditions_of_pair(fitted)
        self.num_rows = num_rows
        self._lock = threading.RLock()
        self._above: dict[str, tuple[str, ...]] = {}
        self._references: OrderedDict[str, Reference] = OrderedDict()
        self._outputs = self._shown_sites()
        given = self.conditions.read(self.conditions.start)
        try:
            nodes = self._run(REFERENCE, given, {}, 0)
        except PyrovaeError as error:
            raise PairError(f"There is nothing to explore, since this model does not decode: {error}") from error
        self.latents = self._found_latents(nodes, given, classes, {one.argument: one for one in several})
        if not self.latents:
            raise PairError(
                "There is nothing to explore: what this model observes depends on no latent variable of rows."
            )
        self._keep_reference(self.conditions.start, nodes)
        self._views = {
            site: (views or {}).get(site) or view_of(nodes[site]["fn"].event_shape) for site in self._outputs
        }
        codes, some = self._codes(), None
        if labels is not None and codes:
            some = [str(labels[int(i)]) for i in self._some()]
        self._described = [latent.describe(codes.get(name), some) for name, latent in self.latents.items()]

    @classmethod
    def of(cls, run: Run) -> Explorer:
        """Of a run, with its data."""
        labels, dataset = None, run.dataset
        if dataset.y is not None and (dataset.x_test is None or dataset.y_test is not None):
            names, numbers = dataset.classes, of_source(dataset.y, dataset.y_test).tolist()
            labels = ["" if number < 0 else str(number if names is None else names[number]) for number in numbers]
        site = next(s.name for s in union(run.fitted.layouts).sites if s.argument == "x")
        return cls(
            run.fitted,
            conditions_of(run),
            {site: views_of(run)},
            lambda which: source_rows(dataset, run.rows, which),
            num_source_rows(dataset),
            labels,
            classes=None if run.rows.argument == CONDITION else run.rows.classes,
            several=run.rows.several,
            name=run.folder.name or str(run.folder),
        )

    @classmethod
    def open(cls, folder: Path, *, device: str = "auto", threads: int | None = None, **how: Any) -> Explorer:
        """Of a run folder: of `pyrovae fit`, with its data, or of a pair that was fitted and saved in Python, without.

        Args:
            how: As for `open_run`.

        Raises:
            CheckpointError: There is no finished run of either in the folder, or the pair cannot be built again.
            PairError: Its model does not decode.
        """
        info = read_run(folder).get("info", {})  # which a fit that was killed at its start has not written
        if "options" in info or info.get("job") is not None:
            return cls.of(open_run(folder, device=device, threads=threads, **how))
        fitted = load(folder, device=device)
        fitted.threads = threads
        return cls(fitted, name=folder.name or str(folder))

    # --- what the page shows

    def describe(self) -> dict[str, Any]:
        """What can be set, and where it starts."""
        return {
            "name": self.name,
            "sites": self._described,
            "conditions": [dict(field) for field in self.conditions.fields],
            "given": list(self.conditions.read(self.conditions.start)),
            "rows": self.num_rows,
            "outputs": self._outputs,
            "parents": {name: self._parents(name) for name in self._outputs},
            "reference": REFERENCE,
            "start": self.decode({}),
        }

    def decode(self, sent: Mapping[str, Any]) -> dict[str, Any]:
        """What the decoder makes of these values.

        Args:
            sent: "held", the numbers of each site that is held, by name; "moved", the site and dimension that were moved last;
                "given", what the model is given; "row", the row of the data that is shown beside; "seed", of all that is drawn.

        Returns:
            "values", those of all sites; "held", the names of those that are held; "log_p", the log density of each site given
            those above it, in nats, and "total", their sum; "less_dense", the share of draws from the prior at which the sum is
            lower; "even", whether all of these are alike; "middles", the medians of the prior, of each dimension
            that can be set; "given"; and "shown", what each observed site is.

        Raises:
            DataError: Something that was sent cannot be.
            OptionError: The seed is none.
        """
        seed = as_seed(sent.get("seed", 0))
        fields = check_fields(self.conditions, sent.get("given"))
        row = None if sent.get("row") is None else self._check_row(sent["row"])
        moved = sent.get("moved")
        if moved is not None and not (isinstance(moved, list) and len(moved) == 2):
            raise DataError(f"what was moved is a site and a dimension of it, got {str(moved)[:40]}.")
        wanted = sent.get("held", {})
        if not isinstance(wanted, dict):
            raise DataError(f"what is held is an object, one list of numbers a site, got {type(wanted).__name__}.")
        with self._lock:
            held = {}
            for name, values in wanted.items():
                if name not in self.latents:
                    raise DataError(f"there is no latent site {str(name)[:40]!r}; there are {', '.join(self.latents)}.")
                which = moved[1] if moved is not None and moved[0] == name else None
                held[name] = self.latents[name].read(values, which)
            found = self._answer(self.conditions.read(fields), fields, held, seed, row)
        for name in held:  # several codes may stand for one value: what was typed stays
            if not self.latents[name].moves:
                found["values"][name] = [int(number) for number in wanted[name]]
        return found

    def start_from(self, sent: Mapping[str, Any]) -> dict[str, Any]:
        """The codes of a row of the data, its posterior means, held; and what `decode` makes of them.

        Raises:
            DataError: There is no such row.
        """
        number = self._check_row(sent.get("row"))
        seed = as_seed(sent.get("seed", 0))
        fields = self.conditions.of_row(number)
        with self._lock:
            assert self.rows is not None
            codes = self._encoded(self.rows(torch.tensor([number])))
            held = {name: latent.write(codes[name]) for name, latent in self.latents.items()}
        return self.decode({"held": held, "given": fields, "row": number, "seed": seed})

    # --- how

    def _parents(self, output: str) -> list[str]:
        """What an observed site depends on, as far as a person can set it."""
        known = [
            name for name in self._above.get(output, ()) if name in self.latents or name in arguments(self.fitted.pair)
        ]
        return known or list(self.latents)

    def _answer(
        self, given: dict[str, Tensor], fields: Fields, held: dict[str, Tensor], seed: int, row: int | None
    ) -> dict[str, Any]:
        reference = self._reference(given, fields)
        try:
            nodes = self._run(1, given, held, seed)
        except (PairError, NotFiniteError) as error:  # the same model has run at draws of its prior, given the same
            raise DataError(f"{_failure(error)}: {GO_BACK}") from error
        log_p = {name: float(each.sum()) for name, each in self._log_p(nodes).items()}
        total = sum(log_p.values())
        own = None if row is None or self.rows is None else self.rows(torch.tensor([row]))
        return {
            "values": {
                name: latent.write(plain(nodes[name], nodes[name]["value"])) for name, latent in self.latents.items()
            },
            "held": list(held),
            "log_p": log_p,
            "total": total,
            "less_dense": _rank(total, reference.log_p),
            "even": bool(reference.log_p.max() - reference.log_p.min() <= _near(float(reference.log_p.max()))),
            "middles": {
                site["name"]: {str(dim["index"]): reference.middles[site["name"]][dim["index"]] for dim in site["dims"]}
                for site in self._described
                if site["name"] in reference.middles
            },
            "given": fields,
            "row": row,
            "seed": seed,
            "shown": self._shown(nodes, own, seed),
        }

    def _shown(self, nodes: Mapping[str, Any], row: Batch | None, seed: int) -> dict[str, Any]:
        """What each observed site is, beside a row of the data if there is one."""
        found = {}
        with self.fitted.scope(), seeded(seed):
            for name in self._outputs:
                argument = observed_sites(self.fitted.layouts)[name].argument
                own = None if row is None or argument is None else row.get(argument)
                try:
                    found[name] = self._views[name].show(
                        nodes[name]["fn"], plain(nodes[name], nodes[name]["value"]), own
                    )
                except (RuntimeError, ValueError) as error:  # of a sampler of torch or numpy
                    raise DataError(f"{NOT_FINITE}: {GO_BACK}") from error
        return found

    def _run(self, num: int, given: Mapping[str, Tensor], held: Mapping[str, Tensor], seed: int) -> dict[str, Any]:
        """The sites of a run of the model.

        A label is held as a value of its site, and not as an argument, which would say something about the sites above it. The
        noise of a site follows from the seed alone: to hold another one where it is changes nothing.
        """
        known = {name: value.expand(num, *value.shape[1:]) for name, value in given.items()}
        with turn(), NoiseBySite(seed):
            return run_model(self.fitted, num, known, held, seed, self._outputs)

    def _shown_sites(self) -> list[str]:
        """The observed sites whose arguments the model needs: not a label that may be missing."""
        sites = [site for site in observed_sites(self.fitted.layouts).values() if site.local]
        needed = [site.name for site in sites if not is_optional(self.fitted, site.argument)]
        return needed or [site.name for site in sites]

    def _found_latents(
        self,
        nodes: Mapping[str, Any],
        given: Mapping[str, Tensor],
        classes: Sequence[str | int] | None,
        columns: Mapping[str, Labels],
    ) -> dict[str, Latent]:
        """The latent sites on which what is shown depends, from the top down."""
        on = self.fitted.device
        known = {name: value.expand(2, *value.shape[1:]).to(on) for name, value in given.items()}
        with self.fitted.scope(), seeded(0):
            batch = with_placeholders(self.fitted, 2, known, self._outputs)
            above = self._above = site_parents(self.fitted, batch, {})
        sites = {site.name: site for site in union(self.fitted.layouts).sites if self._can_be_latent(site)}
        wanted = reached(above, self._outputs, ()) if any(above.get(name) for name in self._outputs) else set(sites)
        found = {}
        for name, node in nodes.items():
            if name in sites and name in wanted:
                draws = plain(node, node["value"])
                parents = [one for one in above.get(name, ()) if one in sites or one in given]
                column = columns.get(name)
                names = classes if column is None else column.classes
                title = None if column is None else column.name
                found[name] = Latent(sites[name], node["fn"], draws, parents, names, title)
        return found

    def _can_be_latent(self, site: Site) -> bool:
        """Whether the model draws the site for a row; also a label that all rows of the fit had, and new ones need not have."""
        if site.role == "latent":
            return site.local and not site.plates
        told = site.role == "observed" and not site.objective_only and site.name not in self._outputs
        return told and site.local and is_optional(self.fitted, site.argument)

    def _reference(self, given: Mapping[str, Tensor], fields: Fields) -> Reference:
        """Draws from the prior, given the same."""
        key = _key(fields)
        if key not in self._references:
            try:
                nodes = self._run(REFERENCE, given, {}, 0)
            except (PairError, NotFiniteError) as error:
                raise DataError(f"{_failure(error)} with what it is given: give it other values.") from error
            self._keep_reference(fields, nodes)
        self._references.move_to_end(key)
        return self._references[key]

    def _keep_reference(self, fields: Fields, nodes: Mapping[str, Any]) -> None:
        draws = {
            name: plain(nodes[name], nodes[name]["value"]) for name, one in self.latents.items() if one.kind == REALS
        }
        middles = {name: self.latents[name].middle(value) for name, value in draws.items()}
        self._references[_key(fields)] = Reference(torch.stack(list(self._log_p(nodes).values())).sum(0), middles)
        while len(self._references) > MEMORY:
            self._references.popitem(last=False)

    def _log_p(self, nodes: Mapping[str, Any]) -> dict[str, Tensor]:
        """The log density of each latent site in each row, `(N,)`, on the CPU."""
        found = {}
        with self.fitted.scope():
            for name in self.latents:
                log_p: Tensor = nodes[name]["fn"].log_prob(nodes[name]["value"])
                found[name] = log_p.double().cpu().reshape(-1)
        return found

    def _check_row(self, number: object) -> int:
        if not self.num_rows:
            raise DataError("there are no data here to start from.")
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < self.num_rows:
            raise DataError(f"rows are numbered from 0 to {self.num_rows - 1}, got {str(number)[:40]}.")
        return number

    def _some(self) -> Tensor:
        """Numbers of rows that stand for all."""
        generator = torch.Generator().manual_seed(0)
        return torch.randperm(self.num_rows, generator=generator)[:MOST_ROWS].sort().values

    def _codes(self) -> dict[str, Tensor]:
        """Posterior means of some rows, by site, of those that move and that the guide draws."""
        if self.rows is None:
            return {}
        some = self.rows(self._some())
        moved = [name for name, latent in self.latents.items() if latent.moves and latent.enumerated != "model"]
        return encode(self.fitted, some, site=moved, num_samples=DRAWS) if moved else {}

    def _encoded(self, rows: Batch) -> dict[str, Tensor]:
        """The codes of rows: first of labels, then of all else given these."""
        found: dict[str, Tensor] = {}
        guided = [name for name, latent in self.latents.items() if latent.enumerated != "model"]
        labels = [name for name in guided if name in arguments(self.fitted.pair) and name not in rows]
        for name in labels:
            found[name] = encode(self.fitted, rows, site=name, num_samples=DRAWS)
        if others := [name for name in guided if name not in labels]:
            found |= encode(self.fitted, {**rows, **found}, site=others, num_samples=DRAWS)
        for name in self.latents.keys() - set(guided):
            found[name] = classify(self.fitted, rows, site=name).predicted
        return found


def _rank(total: float, reference: Tensor) -> float | None:
    """The share of draws that are less dense, and half of those that are as dense."""
    if math.isnan(total):
        return None
    near = _near(total)
    return float(((reference < total - near).double() + (reference <= total + near).double()).mean() / 2)


def _near(total: float) -> float:
    """A difference of log densities that is one of rounding."""
    return 1e-4 * (1 + abs(total)) if math.isfinite(total) else 0.0


def _failure(error: PyrovaeError) -> str:
    """That the model fails, and with what, where it is not that numbers are too large."""
    why = error.__cause__
    overflow = why is None or (isinstance(why, ValueError) and "to satisfy the constraint" in str(why))
    return NOT_FINITE if overflow else f"the model fails here ({shortened(why)})"


def _key(fields: Fields) -> str:
    return json.dumps(fields, sort_keys=True)

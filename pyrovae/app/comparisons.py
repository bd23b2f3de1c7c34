"""Comparisons: log p(x) of several runs on the same rows, and a grid of runs to compare."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrovae._files import real
from pyrovae.app.catalogue import CONDITION, own_files
from pyrovae.app.decide import decide
from pyrovae.app.options import OPTIONS, Options
from pyrovae.app.pictures import draw_pictures
from pyrovae.app.rows import split_rows
from pyrovae.app.run import Run, fit_run, open_run, resume_run
from pyrovae.app.scores import EVALUATION_SEED, check_draws, estimate, evaluate, first_rows
from pyrovae.criticism.importance import Importance
from pyrovae.criticism.stacking import shares_of_wins, stacking_weights
from pyrovae.data import Dataset
from pyrovae.errors import NotFiniteError, OptionError
from pyrovae.fitted.files import STATE, is_mark, read_run
from pyrovae.pair.batch import take_rows
from pyrovae.pair.supports import DENSITY, MASS, measures_of
from pyrovae.tables.schema import Schema

MOST_NAMES = 5  # of columns that a message lists
BINARISED = "mass of rows binarised at evaluation"


@dataclass(frozen=True)
class Measure:
    """What is reported of a run: the log of a mass or density (`kind`), `of` p(x) or p(x | c), where c is a certain label.

    columns: for rows of both, what it is of each column.
    """

    kind: str
    of: str
    columns: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"log {self.of}: {self.kind}"


def measure_of(run: Run) -> Measure:
    """What log p(x) of a run is the logarithm of, as its likelihood says."""
    of, label = run.model.probability, run.dataset.source.get("label")
    if run.rows.given is not None:
        columns = "" if run.dataset.captions is not None else "the columns "
        of += f", {CONDITION} {columns}{run.rows.given.what}"
    elif run.model.labels == CONDITION and label is not None:
        of += f", {CONDITION} the label {label}"
    if run.fitted.transform is not None:
        return Measure(BINARISED, of)
    measures = measures_of(run.likelihood())
    if len(measures) == 1:
        return Measure(measures[0], of)
    names = run.rows.columns or tuple(str(number) for number in range(len(measures)))
    parts = []
    for measure in dict.fromkeys(measures):
        which = [name for name, own in zip(names, measures) if own == measure]
        some = ", ".join(which[:MOST_NAMES]) + (", ..." if len(which) > MOST_NAMES else "")
        parts.append(f"{measure} of {len(which)} column{'s' if len(which) > 1 else ''} ({some})")
    return Measure(" and ".join(parts), of, measures)


def compare(
    runs: Sequence[Run],
    num_samples: int,
    num_rows: int | None = None,
    *,
    proposal: str = OPTIONS["proposal"].default,
    dequantise: bool = False,
) -> list[dict[str, Any]]:
    """log p(x) of several runs on the test rows that they share, best first, in nats per row.

    Differences to the best run are paired row by row, so that their standard error leaves out how much the rows themselves
    differ. A mass and a density have different units and are not compared, unless a density is turned into a mass.

    Args:
        num_samples: draws per row.
        num_rows: the number of test rows, from the first on; by default as many as make a million draws.
        proposal: of these draws, "refined", "laplace" or "guide".
        dequantise: for rows of whole numbers, turn a density into a lower bound of the mass,
            log P(x) >= E_u log p(x + u) with u uniform on [0, 1)^D.

    Returns:
        For each run a dict: log p(x), the difference to the best, their standard errors, bits per dimension, how far the
        estimate is to be trusted, the ELBO and the rank by it, the weight in the best mixture of the runs' predictions, and the
        share of rows for which the run is the best.

    Raises:
        OptionError: the runs held out different rows, or report different measures.

    References:
        Theis, van den Oord & Bethge 2016, arXiv:1511.01844. Yao, Vehtari, Simpson & Gelman 2018, arXiv:1704.02030 (stacking).
    """
    check_draws(num_samples, num_rows)
    first = runs[0]
    for run in runs[1:]:
        same = run.dataset.source.get("checksum") == first.dataset.source.get("checksum")
        if not same or not torch.equal(run.rows.test_index, first.rows.test_index):
            raise OptionError(
                f"{run.folder} held out other rows than {first.folder} ({run.dataset.name} and {first.dataset.name}): compare "
                "runs of one data set, split by one seed and one fraction."
            )
    _check_measures(runs, dequantise)
    for run in runs[1:]:
        if run.rows.schema is not None and first.rows.schema is not None:
            other = read_otherwise(run.rows.schema, run.rows.test, first.rows.schema, first.rows.test)
            if other:
                raise OptionError(
                    f"{run.folder} takes cells of {', '.join(other[:MOST_NAMES])} for other values, or other gaps, than "
                    f"{first.folder}: fit both with one columns.yaml, by --columns, to compare them."
                )
    judged = []
    for run in runs:
        picked, bound = take_rows(run.rows.batch("test"), first_rows(num_samples, num_rows)), run.model.quantised
        if dequantise and measure_of(run).kind == DENSITY:
            picked["x"], bound = run.rows.dequantised(picked["x"], seed=EVALUATION_SEED), True
        values = estimate(run, picked, num_samples, proposal)
        judged.append((run.folder, values, run.rows.log_abs_det, bound))
    # rows are compared one by one, so that one which a run cannot judge is left out for all, and in the ELBO, too
    defined = ~torch.stack([values.log_likelihood for _, values, _, _ in judged]).isnan().any(0)
    if not bool(defined.any()):
        raise NotFiniteError(
            "There is no row whose density is defined in all of these runs, so that none can be compared."
        )
    found = [_judged(*entry, defined) for entry in judged]
    found.sort(key=lambda entry: -entry[1].mean().item())
    dimensions = first.rows.test[0].numel()
    everything = torch.stack([entry[1] for entry in found])
    weights, wins = stacking_weights(everything).tolist(), shares_of_wins(everything).tolist()
    by_elbo = sorted(range(len(found)), key=lambda i: -found[i][4])
    table = []
    for number, (folder, log_p, summary, bound, elbo) in enumerate(found):
        difference = log_p - found[0][1]
        table.append(
            {
                "run": str(folder),
                "log_likelihood": log_p.mean().item(),
                "log_likelihood_se": (log_p.std() / len(log_p) ** 0.5).item(),
                "difference": difference.mean().item(),
                "difference_se": (difference.std() / len(log_p) ** 0.5).item(),
                "bits_per_dimension": -log_p.mean().item() / dimensions / math.log(2),
                "k_hat_threshold": summary["k_hat_threshold"],
                "k_hat_above_threshold": summary["k_hat_above_threshold"],
                "bound": bound,
                "elbo": elbo,
                "rank_by_elbo": by_elbo.index(number) + 1,
                "stacking_weight": weights[number],
                "wins": wins[number],
                "rows": len(log_p),
            }
        )
    return table


def read_otherwise(schema: Schema, rows: Tensor, other: Schema, others: Tensor) -> list[str]:
    """The columns of which two readings of the same rows of a table, `(N, D)` and `(N, E)`, have other values or gaps."""
    one, two = schema.decode(rows), other.decode(others)
    names = dict.fromkeys([*one, *two])
    return [name for name in names if name not in one or name not in two or not _are_same(one[name], two[name])]


def _are_same(one: pd.Series, two: pd.Series) -> bool:
    if not (one.isna() == two.isna()).all():
        return False
    one, two = (cells.dropna() for cells in (one, two))
    if pd.api.types.is_numeric_dtype(one) and pd.api.types.is_numeric_dtype(two):
        return bool(np.allclose(one.astype(float), two.astype(float)))
    return bool((one.astype(str) == two.astype(str)).all())


def _judged(
    folder: Path, values: Importance, scale: float, bound: bool, rows: Tensor
) -> tuple[Path, Tensor, dict[str, float], bool, float]:
    """What is compared of a run, from some of its rows alone: log p(x) of each, and means over them."""
    columns: dict[str, Any] = {
        name: column[rows] for name, column in vars(values).items() if isinstance(column, Tensor)
    }
    summary = replace(values, **columns).summary()
    return folder, columns["log_likelihood"] - scale, summary, bound, summary["elbo"] - scale


def _check_measures(runs: Sequence[Run], dequantise: bool) -> None:
    """OptionError unless all runs report the same measure, or can be made to."""
    measures = {run.folder: measure_of(run) for run in runs}
    if len(set(measures.values())) > 1:
        found = "; ".join(f"{folder}: {measure}" for folder, measure in measures.items())
        kinds = {measure.kind for measure in measures.values()}
        if len({measure.of for measure in measures.values()}) > 1:
            raise OptionError(
                f"These runs give the probability of different things ({found}): what a model is given about a row it need "
                "not predict."
            )
        if not dequantise or kinds != {MASS, DENSITY}:
            cure = (
                "rows binarised anew are other rows"
                if BINARISED in kinds
                else "for rows of whole numbers --dequantise turns a density into a lower bound of a mass"
                if kinds == {MASS, DENSITY}
                else "compare likelihoods that give a mass, or a density, for the same columns"
            )
            raise OptionError(f"These runs give log p(x) in different units ({found}): {cure}.")
    dataset = runs[0].dataset
    if dequantise and dataset.kind not in ("count", "binary") and "divided_by" not in dataset.source:
        raise OptionError(f"--dequantise is for rows of whole numbers, and those of {dataset.name} are not.")


def sweep(
    dataset: Dataset,
    grid: Sequence[Options],
    folder: Path,
    say: Callable[[str], None],
    *,
    data_root: Path | None = None,
    device: str = "auto",
    engine: str = "auto",
    threads: int | None = None,
    track: Sequence[str] = (),
) -> list[Run]:
    """Fit each member of a grid of options in a folder of its own, below `folder`.

    Runs that are there already are opened; unfinished ones are gone on with. `track` is as for `fit_run`.
    """
    done = []
    file = None if dataset.source.get("name") else dataset.source.get("path")
    read: dict[str, Any] = {"data": file, "data_root": data_root, "device": device, "trust": True}
    for number, options in enumerate(grid, 1):
        options = decide(options, dataset, len(split_rows(dataset, options).train))
        parts = (str(options.prior), str(options.likelihood), str(options.guide))
        name = "+".join(part.rpartition(":")[2] for part in parts)
        where = folder / name
        if not real(where).is_relative_to(real(folder)):
            raise OptionError(f"{where} is a link that leads out of {folder}: give the sweep another folder by --out.")
        found = read_run(where) if (where / "run.json").exists() else None
        begun = found is not None and not is_mark(found)
        if begun:
            _refuse_other(where, options, dataset)
        finished = begun and read_run(where)["status"] not in ("running", "diverged")
        judged = finished and found is not None and "results" in found["info"]
        say(f"{number} of {len(grid)}: {name}{' (there already)' if finished else ''}")
        # what was fitted may have been killed before it was judged: gone on with, so that its trackers get the results, too
        if judged or (finished and not (where / STATE).exists()):
            # its parts are those of this grid
            run = open_run(where, threads=threads, **read)
        elif begun:
            run = resume_run(where, progress=False, track=track, **read)
        else:
            how: dict[str, Any] = {"device": device, "engine": engine, "threads": threads}
            how |= {"track": track, "progress": False}
            run = fit_run(dataset, options, where, force=found is not None, **how)
        if not judged:
            results, _ = evaluate(run, options.num_samples, proposal=options.proposal)
            run.record(results | {"fit_seconds": run.fitted.history[-1]["seconds"]})
            draw_pictures(run)
        done.append(run)
    return done


def _refuse_other(where: Path, options: Options, dataset: Dataset) -> None:
    """OptionError unless the run in a folder has these options and data."""
    info = read_run(where)["info"]
    recorded = Options.from_json(info.get("options"), "fit")
    before, now = asdict(replace(recorded, num_samples=options.num_samples, proposal=options.proposal)), asdict(options)
    differing = [f"{name} {before[name]} there, {now[name]} here" for name in now if before[name] != now[name]]
    if info["data"].get("checksum") != dataset.source.get("checksum"):
        differing.append("other data")
    if info.get("own", {}) != own_files(options):
        differing.append("another content of the file of a part")
    if differing:
        raise OptionError(
            f"{where} holds a run with other options ({'; '.join(differing)}): give the sweep another folder by --out."
        )

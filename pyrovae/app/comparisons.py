"""Comparisons: log p(x) of several runs on the same rows, and a grid of runs to compare.

This is a face, as `runs` is, which fits and opens what is compared here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pyrovae.app.catalogue import CONDITION, own_files, part
from pyrovae.app.decide import decide
from pyrovae.app.models import MODELS
from pyrovae.app.options import Options, read_options
from pyrovae.app.pictures import draw_pictures
from pyrovae.app.rows import split_rows
from pyrovae.app.run import finish, fit_run, open_run, reading, resume_run
from pyrovae.app.scores import EVALUATION_SEED, evaluate, first_rows
from pyrovae.criticism.importance import importance
from pyrovae.data import Dataset
from pyrovae.errors import OptionError
from pyrovae.fitted.folder import read_run
from pyrovae.pair.batch import take_rows

MASS, DENSITY, BINARISED = "probability mass", "density", "mass of rows binarised at evaluation"


@dataclass(frozen=True)
class Measure:
    """What a run's numbers are the logarithm of: a mass or a density (`kind`) `of` p(x), or of p(x | c), c a certain label."""

    kind: str
    of: str

    def __str__(self) -> str:
        return f"log {self.of}: {self.kind}"


def measure_of(folder: Path) -> Measure:
    """What log p(x) of the run in a folder is the logarithm of."""
    with reading(folder):
        run = read_run(folder)
        options = read_options(run["info"])
        model = MODELS[options.model]
        of, label = model.probability, run["info"]["data"].get("label")
        if model.labels == CONDITION and label is not None:
            of += f", {CONDITION} the label {label}"
        if run["settings"].get("transform") is not None:
            return Measure(BINARISED, of)
        return Measure(DENSITY if part("likelihood", str(options.likelihood)).density else MASS, of)


def compare(
    folders: Sequence[Path],
    num_samples: int,
    num_rows: int | None = None,
    *,
    dequantise: bool = False,
    data_root: Path | None = None,
    device: str = "auto",
) -> list[dict[str, Any]]:
    """log p(x) of several runs on the test rows that all of them held out, best first, nats per row.

    Differences to the best run are paired, row by row, which takes the rows' own spread out of their standard error.
    A mass and a density are of different units and never compared: OptionError, or with `dequantise`, for rows of whole
    numbers, a density becomes a lower bound of the mass, log P(x) >= E_u log p(x + u), u uniform on [0, 1)^D (Theis et al.
    2016, arXiv:1511.01844); rows are then reported in bits per dimension, too.
    """
    if num_samples < 1 or (num_rows is not None and num_rows < 1):
        raise OptionError(f"--num-samples and --rows must be at least 1, got {num_samples} and {num_rows}.")
    opened = [(folder, *open_run(folder, data_root=data_root, device=device)) for folder in folders]
    first = opened[0]
    for folder, _, rows, dataset in opened[1:]:
        same = dataset.source.get("checksum") == first[3].source.get("checksum")
        if not same or not torch.equal(rows.test_index, first[2].test_index):
            raise OptionError(
                f"{folder} held out other rows than {first[0]} ({dataset.name} and {first[3].name}): compare runs of one data "
                "set, split by one seed and one fraction."
            )
    measures = {folder: measure_of(folder) for folder in folders}
    if len(set(measures.values())) > 1:
        told = "; ".join(f"{folder}: {what}" for folder, what in measures.items())
        kinds = {measure.kind for measure in measures.values()}
        if len({measure.of for measure in measures.values()}) > 1:
            raise OptionError(
                f"These runs give the probability of different things ({told}): what a model is told about a row it need not "
                "predict."
            )
        if not dequantise or BINARISED in kinds:
            cure = (
                "rows binarised anew are other rows"
                if BINARISED in kinds
                else "for rows of whole numbers --dequantise makes a lower bound of a mass of a density"
            )
            raise OptionError(f"These runs give log p(x) in different units ({told}): {cure}.")
    if dequantise and first[3].kind not in ("count", "binary") and "divided_by" not in first[3].source:
        raise OptionError(f"--dequantise is for rows of whole numbers, and those of {first[3].name} are not.")
    found = []
    for folder, fitted, rows, _ in opened:
        picked = take_rows(rows.batch("test"), first_rows(num_samples, num_rows))
        if dequantise and measures[folder].kind == DENSITY:
            picked["x"] = rows.dequantised(picked["x"], seed=EVALUATION_SEED)
        values = importance(fitted, picked, num_samples, seed=EVALUATION_SEED)
        found.append((folder, values.log_likelihood - rows.log_abs_det, values.summary(), measures[folder]))
    found.sort(key=lambda entry: -entry[1].mean().item())
    dimensions = first[2].test[0].numel()
    table = []
    for folder, log_p, summary, what in found:
        apart = log_p - found[0][1]
        table.append(
            {
                "run": str(folder),
                "log_likelihood": log_p.mean().item(),
                "log_likelihood_se": (log_p.std() / len(log_p) ** 0.5).item(),
                "difference": apart.mean().item(),
                "difference_se": (apart.std() / len(log_p) ** 0.5).item(),
                "bits_per_dimension": -log_p.mean().item() / dimensions / math.log(2),
                "k_hat_above_0.7": summary["k_hat_above_0.7"],
                "bound": dequantise and what.kind == DENSITY,
                "rows": len(log_p),
            }
        )
    return table


def sweep(
    dataset: Dataset,
    grid: Sequence[Options],
    folder: Path,
    say: Callable[[str], None],
    *,
    data_root: Path | None = None,
    device: str = "auto",
    engine: str = "auto",
) -> list[Path]:
    """Fit every member of a grid in a folder of its own below `folder`; runs that are there are kept, or gone on with."""
    done = []
    for number, options in enumerate(grid, 1):
        options = decide(options, dataset, len(split_rows(dataset, options).train))
        parts = (options.prior, str(options.likelihood), str(options.guide))
        name = "+".join(part.rpartition(":")[2] for part in parts)
        where = folder / name
        begun = (where / "run.json").is_file()
        if begun:
            _refuse_other(where, options, dataset)
        finished = begun and read_run(where)["status"] not in ("running", "diverged")
        say(f"{number} of {len(grid)}: {name}{' (there already)' if finished else ''}")
        if not finished:
            if begun:
                fitted, rows = resume_run(where, data_root=data_root, device=device, progress=False)
            else:
                fitted, rows = fit_run(dataset, options, where, device=device, engine=engine, progress=False)
            results, _ = evaluate(fitted, rows, options.num_samples)
            results["fit_seconds"] = fitted.history[-1]["seconds"]
            finish(fitted, where, results)
            draw_pictures(fitted, rows, where)
        done.append(where)
    return done


def _refuse_other(where: Path, options: Options, dataset: Dataset) -> None:
    """OptionError unless the run in a folder is one of these options and data."""
    info = read_run(where)["info"]
    before, now = asdict(replace(read_options(info), num_samples=options.num_samples)), asdict(options)
    differing = [f"{name} {before[name]} there, {now[name]} here" for name in now if before[name] != now[name]]
    if info["data"].get("checksum") != dataset.source.get("checksum"):
        differing.append("other data")
    if info.get("own", {}) != own_files(options):
        differing.append("another content of a part's file")
    if differing:
        raise OptionError(
            f"{where} holds a run with other options ({'; '.join(differing)}): give the sweep another folder by --out."
        )

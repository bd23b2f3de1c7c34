"""A run: a data set, a model for it, a fit and a folder; made, resumed, and opened again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pyrovae.app.catalogue import is_own, own_files
from pyrovae.app.decide import build, decide, refuse_missing
from pyrovae.app.options import Options, read_options
from pyrovae.app.pictures import patterns
from pyrovae.app.rows import Rows, describe_run, make_rows, split_rows
from pyrovae.batching.checks import check_rows
from pyrovae.batching.splits import Split
from pyrovae.batching.transforms import Binarize
from pyrovae.data import Dataset, Standardize, load_again
from pyrovae.errors import CheckpointError, PyrovaeError
from pyrovae.fitted.fitted import Fit
from pyrovae.fitted.folder import load, read_run, write_fit
from pyrovae.objectives.kl import free_bits
from pyrovae.objectives.losses import Trace_ELBO
from pyrovae.pair.graph import draw_graph, graph_text
from pyrovae.training import schedules
from pyrovae.training.fit import fit

ARTEFACTS = (
    *("graph.png", "graph.gv", "graph-labelled.png", "graph-labelled.gv"),
    *("training.png", "reconstructions.png", "samples.png", "levels.png", "manifold.png", "latent.png"),
    *("generated.png", "generated.csv", "codes.csv"),
    *("reliability.png", "doubtful.png"),  # of a run of `label` that was here before
)


def fit_run(
    dataset: Dataset,
    options: Options,
    folder: Path,
    *,
    force: bool = False,
    resume: bool = False,
    device: str = "auto",
    engine: str = "auto",
    progress: bool = True,
    say: Callable[[str], None] | None = None,
) -> tuple[Fit, Rows]:
    """Fit a model to a data set in a run folder, or go on with the fit in it."""
    refuse_missing(dataset)
    split = split_rows(dataset, options)
    options = decide(options, dataset, len(split.train))
    rows = make_rows(dataset, split, options)
    if say is not None:
        say(describe_run(dataset, options, rows))
    torch.manual_seed(options.seed)
    pair = build(options, rows.train, rows.num_classes)
    if say is not None:
        with suppress(Exception):  # of a pair that does not run: the fit has the words for it
            for what, batch in patterns(rows).items():
                say(f"{what}\n{graph_text(pair, batch)}" if what else graph_text(pair, batch))
    schedule: list[Any] = [schedules.one_cycle(float(options.learning_rate or 0))]
    if options.kl_warmup > 0:
        schedule.append(schedules.kl_warmup(options.kl_warmup))
    if options.kl_cycles:
        schedule.append(schedules.kl_cycles(options.kl_cycles))
    if options.lagging > 0:
        schedule.append(schedules.lagging(epochs=options.lagging))
    floors: Any = options.free_bits
    if options.model == "hierarchical":  # see `free_bits`: the guide goes up
        floors = {f"z{level}": options.free_bits for level in range(2, len(options.levels or ()) + 1)}
    recorded = {
        "data": dataset.source,
        "split": split.to_json(),
        "scaler": rows.scaler.to_json() if rows.scaler is not None else None,
        "options": {
            **asdict(options),
            "hidden": list(options.hidden),
            "levels": options.levels and list(options.levels),
            "groups": options.groups and list(options.groups),
        },
        "own": own_files(options),
    }
    transform = Binarize() if dataset.kind == "unit" and options.likelihood == "bernoulli" else None
    check_rows(pair, rows.batch("test"), transform=transform)  # fit looks at the others
    fitted = fit(
        pair,
        rows.batch("train"),
        epochs=int(options.epochs or 0),
        batch_size=int(options.batch_size or 0),
        learning_rate=float(options.learning_rate or 0),
        validation=None if rows.validation is None else rows.batch("validation"),
        patience=options.patience,
        schedule=schedule,
        loss=Trace_ELBO(kl=free_bits(floors)) if options.free_bits > 0 else None,
        transform=transform,
        clip_norm=options.clip_norm,
        checkpoint=folder,
        resume=resume,
        force=force,
        seed=options.seed,
        device=device,
        engine=engine,
        progress=progress,
        info=recorded,
    )
    if force:  # what the replaced run left would be taken for this one's; not sooner, for the fit may have been refused
        for name in ARTEFACTS:
            (folder / name).unlink(missing_ok=True)
    with suppress(Exception):  # a picture that cannot be drawn must not cost a fit its table
        for what, batch in patterns(rows).items():
            draw_graph(pair, batch, folder / f"graph{'-labelled' if what else ''}.png")
    return fitted, rows


def resume_run(
    folder: Path, *, data_root: Path | None = None, device: str = "auto", progress: bool = True
) -> tuple[Fit, Rows]:
    """Go on with the fit in a folder: the same data, split, options and random stream."""
    with reading(folder):
        info = _fitted_info(folder)
        options = read_options(info)
        dataset = load_again(info["data"], data_root=data_root)
        decide(options, dataset, len(dataset.x))
    return fit_run(dataset, options, folder, resume=True, device=device, progress=progress)


def open_run(folder: Path, *, data_root: Path | None = None, device: str = "auto") -> tuple[Fit, Rows, Dataset]:
    """A finished run with its data: the recorded split drawn again and checked, the recorded scaling applied again."""
    with reading(folder):
        info = _fitted_info(folder)
    if not any(map(is_own, _parts(info))):
        fitted = load(folder, device=device)  # its weights are checked before data are read
    with reading(folder):
        dataset = load_again(info["data"], data_root=data_root)
        options = decide(read_options(info), dataset, len(dataset.x))
        split = Split.from_json(info["split"], num_rows=len(dataset.x))
        scaler = Standardize.from_json(info["scaler"]) if info["scaler"] else None
        rows = make_rows(dataset, split, options, scaler)
        if info.get("own", {}) != own_files(options):
            raise CheckpointError(f"{folder}: the file of a part of your own has changed since the fit. Put it back.")
    if any(map(is_own, _parts(info))):  # only its author can build a part of one's own
        fitted = load(folder, device=device, pair=build(options, rows.train, rows.num_classes))
    return fitted, rows, dataset


def _fitted_info(folder: Path) -> dict[str, Any]:
    """What a run of `fit` says of itself; CheckpointError for one of `label`, which has no such options."""
    info: dict[str, Any] = read_run(folder)["info"]
    if info.get("job") == "label":
        raise CheckpointError(f"{folder} is a run of `pyrovae label`: that command asks it, and goes on with it.")
    return info


def _parts(info: Mapping[str, Any]) -> list[str | None]:
    options = info.get("options", {})
    return [options.get(kind) for kind in ("prior", "likelihood", "guide")] if isinstance(options, dict) else []


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """What a run.json changed by hand can raise, as one clear error."""
    try:
        yield
    except PyrovaeError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(f"The run.json in {folder} is damaged ({error!r}): restore it, or fit again.") from error


def finish(fitted: Fit, folder: Path, results: Mapping[str, Any]) -> None:
    """Write the results into the run."""
    fitted.info["results"] = dict(results)
    write_fit(folder, fitted)


def claim_default(name: str, root: Path = Path("runs")) -> Path:
    """A folder for a run that was given none: runs/NAME, or runs/NAME-2 and so on where that is taken."""
    number, folder = 1, root / name
    while folder.exists() and any(folder.iterdir()):
        number += 1
        folder = root / f"{name}-{number}"
    return folder

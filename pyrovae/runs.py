"""Runs: what the command line does, as functions. A run is a data set, a recipe's VAE for it, a fit, and a folder.

This is a face: it puts parts of both towers together. What a recipe decided is recorded in the run's `info`, and so applied
again by `open_run`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrovae import plots
from pyrovae.criticism.decomposition import active_units
from pyrovae.criticism.importance import Importance, importance
from pyrovae.data import Dataset, Standardize, load_again
from pyrovae.errors import CheckpointError, OptionError, PairError, PyrovaeError
from pyrovae.graph import draw_graph, graph_text
from pyrovae.infer import schedules
from pyrovae.infer.checkpoint import load, read_run, write_fit
from pyrovae.infer.fit import fit
from pyrovae.infer.fitted import Fit
from pyrovae.infer.splits import Split
from pyrovae.infer.transforms import Binarize
from pyrovae.infer.validate import check_rows
from pyrovae.predict import decode, encode, generate, reconstruct
from pyrovae.recipes import (
    Options,
    Rows,
    build,
    decide,
    describe_run,
    is_own,
    make_rows,
    own_files,
    part,
    read_options,
    refuse_missing,
    split_rows,
)

EVALUATION_SEED = 1  # of the draws behind the table, so that `evaluate` repeats what `fit` printed
ARTEFACTS = (
    *("graph.png", "graph.gv", "training.png", "reconstructions.png", "samples.png", "manifold.png", "latent.png"),
    *("generated.png", "generated.csv", "codes.csv"),
)


# --- fitting ---------------------------------------------------------------------------------------------------------


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
    """Fit a standard VAE to a data set in a run folder, or go on with the fit in it."""
    refuse_missing(dataset)
    split = split_rows(dataset, options)
    options = decide(options, dataset, len(split.train))
    rows = make_rows(dataset, split, options)
    if say is not None:
        say(describe_run(dataset, options, rows))
    torch.manual_seed(options.seed)
    vae = build(options, rows.train)
    if say is not None:
        with suppress(Exception):  # of a pair that does not run: the fit has the words for it
            say(graph_text(vae, {"x": rows.train[:2]}))
    schedule: list[Any] = [schedules.one_cycle(float(options.learning_rate or 0))]
    if options.kl_warmup > 0:
        schedule.append(schedules.kl_warmup(options.kl_warmup))
    recorded = {
        "data": dataset.source,
        "split": split.to_json(),
        "scaler": rows.scaler.to_json() if rows.scaler is not None else None,
        "options": {**asdict(options), "hidden": list(options.hidden)},
        "own": own_files(options),
    }
    transform = Binarize() if dataset.kind == "unit" and options.likelihood == "bernoulli" else None
    check_rows(vae, {"x": rows.test}, transform=transform)  # fit looks at the others
    fitted = fit(
        vae,
        rows.train,
        epochs=int(options.epochs or 0),
        batch_size=int(options.batch_size or 0),
        learning_rate=float(options.learning_rate or 0),
        validation=rows.validation,
        patience=options.patience,
        schedule=schedule,
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
    with suppress(Exception):  # a picture that cannot be drawn must not cost a fit its table
        draw_graph(vae, {"x": rows.train[:2]}, folder / "graph.png")
    if force:  # what the replaced run left would be taken for this one's; not sooner, for the fit may have been refused
        for name in ARTEFACTS:
            (folder / name).unlink(missing_ok=True)
    return fitted, rows


def resume_run(
    folder: Path, *, data_root: Path | None = None, device: str = "auto", progress: bool = True
) -> tuple[Fit, Rows]:
    """Go on with the fit in a folder: the same data, split, options and random stream."""
    with _reading(folder):
        info = read_run(folder)["info"]
        options = read_options(info)
        dataset = load_again(info["data"], data_root=data_root)
        decide(options, dataset, len(dataset.x))
    return fit_run(dataset, options, folder, resume=True, device=device, progress=progress)


def open_run(folder: Path, *, data_root: Path | None = None, device: str = "auto") -> tuple[Fit, Rows, Dataset]:
    """A finished run with its data: the recorded split drawn again and checked, the recorded scaling applied again."""
    info = read_run(folder)["info"]
    if not any(map(is_own, _parts(info))):
        fitted = load(folder, device=device)  # its weights are checked before data are read
    with _reading(folder):
        dataset = load_again(info["data"], data_root=data_root)
        options = decide(read_options(info), dataset, len(dataset.x))
        split = Split.from_json(info["split"], num_rows=len(dataset.x))
        scaler = Standardize.from_json(info["scaler"]) if info["scaler"] else None
        rows = make_rows(dataset, split, options, scaler)
        if info.get("own", {}) != own_files(options):
            raise CheckpointError(f"{folder}: the file of a part of your own has changed since the fit. Put it back.")
    if any(map(is_own, _parts(info))):  # only its author can build a part of one's own
        fitted = load(folder, device=device, pair=build(options, rows.train))
    return fitted, rows, dataset


def _parts(info: Mapping[str, Any]) -> list[str | None]:
    options = info.get("options", {})
    return [options.get(kind) for kind in ("prior", "likelihood", "guide")] if isinstance(options, dict) else []


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """What a run.json changed by hand can raise, as one clear error."""
    try:
        yield
    except PyrovaeError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(f"The run.json in {folder} is damaged ({error!r}): restore it, or fit again.") from error


# --- questions -------------------------------------------------------------------------------------------------------


def evaluate(
    fitted: Fit, rows: Rows, num_samples: int, num_rows: int | None = None
) -> tuple[dict[str, float], Importance]:
    """The table's numbers on the test rows, nats per row in the data's own units, and the values of each row.

    log p(x) and k-hat are those of the first `num_rows` test rows, by default as many as make a million draws; the ELBO is
    that of all.
    """
    if num_samples < 1 or (num_rows is not None and num_rows < 1):
        raise OptionError(f"--num-samples and --rows must be at least 1, got {num_samples} and {num_rows}.")
    picked = rows.test[: num_rows or max(1, 1_000_000 // num_samples)]
    found = importance(fitted, picked, num_samples, seed=EVALUATION_SEED)
    results = found.summary()
    if len(picked) < len(rows.test):
        everything = importance(fitted, rows.test, 10, seed=EVALUATION_SEED).summary()
        results |= {"elbo": everything["elbo"], "elbo_se": everything["elbo_se"]}
    results["elbo"] -= rows.log_abs_det
    results["log_likelihood"] -= rows.log_abs_det
    means = encode(fitted, seen(fitted, rows.test))
    results["active_units"] = int(active_units(means.flatten(1)).sum()) if len(means) > 1 else 0
    results["latent_units"] = means.flatten(1).shape[1]
    results["log_abs_det"] = rows.log_abs_det
    results |= {"num_samples": num_samples, "test_rows": len(rows.test), "log_likelihood_rows": len(picked)}
    return results, found


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
        if not dequantise or BINARISED in measures.values():
            cure = (
                "rows binarised anew are other rows"
                if BINARISED in measures.values()
                else "for rows of whole numbers --dequantise makes a lower bound of a mass of a density"
            )
            raise OptionError(f"These runs give log p(x) in different units ({told}): {cure}.")
    if dequantise and first[3].kind not in ("count", "binary") and "divided_by" not in first[3].source:
        raise OptionError(f"--dequantise is for rows of whole numbers, and those of {first[3].name} are not.")
    found = []
    for folder, fitted, rows, _ in opened:
        picked = rows.test[: num_rows or max(1, 1_000_000 // num_samples)]
        if dequantise and measures[folder] == DENSITY:
            picked = rows.dequantised(picked, seed=EVALUATION_SEED)
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
                "bound": dequantise and what == DENSITY,
                "rows": len(log_p),
            }
        )
    return table


MASS, DENSITY, BINARISED = "probability mass", "density", "mass of rows binarised at evaluation"


def measure_of(folder: Path) -> str:
    """What log p(x) of the run in a folder is the logarithm of."""
    with _reading(folder):
        info = read_run(folder)
        if info["settings"].get("transform") is not None:
            return BINARISED
        return DENSITY if part("likelihood", str(read_options(info["info"]).likelihood)).density else MASS


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


def finish(fitted: Fit, folder: Path, results: Mapping[str, Any]) -> None:
    """Write the results into the run."""
    fitted.info["results"] = dict(results)
    write_fit(folder, fitted)


def seen(fitted: Fit, data: Tensor) -> Tensor:
    """Rows as the guide sees them: after the fit's transform, drawn once from a fixed seed."""
    return next(iter(fitted.evaluation_batch(data).values()))


def draw_pictures(fitted: Fit, rows: Rows, folder: Path) -> list[Path]:
    """Training curve, reconstructions, samples from the prior and the latent space, as PNG files."""
    made = {"training.png": plots.training_curve(fitted.history)}
    made["reconstructions.png"] = reconstruction_picture(fitted, rows, 10)
    if rows.image_shape:
        made["samples.png"] = sample_picture(fitted, rows, 64)
    latent = fitted.layout.site(None, role="latent", local=True).event_shape[0]
    everywhere = len(part("prior", read_options(fitted.info).prior).guides) > 1  # not on a sphere, nor a simplex
    if latent == 2 and rows.image_shape and everywhere:
        # Quantiles of the standard normal: cells of equal mass under it.
        side = 16
        axis = torch.distributions.Normal(0.0, 1.0).icdf(torch.linspace(0.02, 0.98, side))
        up, right = torch.meshgrid(axis, axis, indexing="ij")
        grid = decode(fitted, torch.stack([right, up], -1).reshape(-1, 2))
        made["manifold.png"] = plots.manifold(rows.restore(grid).reshape(side, side, -1), rows.image_shape, grid=axis)
    picked = rows.test[:2000]
    labels = None if rows.labels is None else rows.labels[:2000]
    made["latent.png"] = plots.latent(encode(fitted, seen(fitted, picked)), labels)
    for name, axes in made.items():
        plots.save(axes, folder / name)
    return [folder / name for name in made]


def reconstruction_picture(fitted: Fit, rows: Rows, num: int) -> Any:
    shown = seen(fitted, rows.test[:num] if rows.image_shape else rows.test[:500])
    again = rows.restore(reconstruct(fitted, shown))
    return plots.reconstructions(rows.restore(shown), again, rows.image_shape, columns=rows.columns)


def sample_picture(fitted: Fit, rows: Rows, num: int, seed: int | None = 0) -> Any:
    """E[x | z] at draws of the prior: noise of the likelihood left out, so that what z determines can be seen."""
    assert rows.image_shape is not None
    try:
        drawn = generate(fitted, num, mean=True, seed=seed)
    except PairError:  # classes have no mean
        drawn = generate(fitted, num, seed=seed)
    return plots.images(rows.restore(drawn), rows.image_shape)


def all_codes(fitted: Fit, dataset: Dataset, rows: Rows) -> Tensor:
    """E_q[z | x] of every row of the source in its own order, test rows of a set of its own last."""
    x = dataset.x if dataset.x_test is None else torch.cat([dataset.x, dataset.x_test])
    scaled = rows.scaler.apply(x) if rows.scaler is not None else x
    return encode(fitted, seen(fitted, scaled.reshape(len(scaled), *rows.train.shape[1:]))).flatten(1)


def claim_default(name: str, root: Path = Path("runs")) -> Path:
    """A folder for a run that was given none: runs/NAME, or runs/NAME-2 and so on where that is taken."""
    number, folder = 1, root / name
    while folder.exists() and any(folder.iterdir()):
        number += 1
        folder = root / f"{name}-{number}"
    return folder

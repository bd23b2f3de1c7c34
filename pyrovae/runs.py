"""Runs: what the command line does, as functions. A run is a data set, a recipe's VAE for it, a fit, and a folder.

This is a face: it puts parts of both towers together. What a recipe decided is recorded in the run's `info`, and so applied
again by `open_run`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrovae import plots
from pyrovae.criticism.decomposition import active_units
from pyrovae.criticism.importance import Importance, importance
from pyrovae.data import Dataset, Standardize, load_again
from pyrovae.errors import CheckpointError, OptionError, PyrovaeError
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
    make_rows,
    read_options,
    refuse_missing,
    split_rows,
)

EVALUATION_SEED = 1  # of the draws behind the table, so that `evaluate` repeats what `fit` printed
ARTEFACTS = (
    *("training.png", "reconstructions.png", "samples.png", "manifold.png", "latent.png"),
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
    vae = build(options, tuple(rows.train.shape[1:]))
    schedule: list[Any] = [schedules.one_cycle(float(options.learning_rate or 0))]
    if options.kl_warmup > 0:
        schedule.append(schedules.kl_warmup(options.kl_warmup))
    recorded = {
        "data": dataset.source,
        "split": split.to_json(),
        "scaler": rows.scaler.to_json() if rows.scaler is not None else None,
        "options": {**asdict(options), "hidden": list(options.hidden)},
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
    fitted = load(folder, device=device)
    with _reading(folder):
        dataset = load_again(fitted.info["data"], data_root=data_root)
        options = decide(read_options(fitted.info), dataset, len(dataset.x))
        split = Split.from_json(fitted.info["split"], num_rows=len(dataset.x))
        scaler = Standardize.from_json(fitted.info["scaler"]) if fitted.info["scaler"] else None
        return fitted, make_rows(dataset, split, options, scaler), dataset


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
    if latent == 2 and rows.image_shape:
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
    return plots.images(rows.restore(generate(fitted, num, mean=True, seed=seed)), rows.image_shape)


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

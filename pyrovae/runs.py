"""Runs: what the command line does, as functions. A run is a data set, a standard VAE for it, a fit, and a folder.

This is a face: it puts parts of both towers together. Whatever it decides by itself is recorded in the run's `info`, and so
applied again by `open_run`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pyrovae import families, plots, priors
from pyrovae.conditionals import Conditional, conv, mlp
from pyrovae.criticism.decomposition import active_units
from pyrovae.criticism.importance import Importance, importance
from pyrovae.data import Dataset, Standardize, load_again
from pyrovae.errors import CheckpointError, DataError, OptionError, PyrovaeError
from pyrovae.infer import schedules
from pyrovae.infer.checkpoint import load, read_run, write_fit
from pyrovae.infer.fit import fit
from pyrovae.infer.fitted import Fit
from pyrovae.infer.splits import Split
from pyrovae.infer.transforms import Binarize
from pyrovae.infer.validate import check_rows
from pyrovae.models import VAE
from pyrovae.nets import Rescaled
from pyrovae.predict import decode, encode, generate, reconstruct

PRIORS: dict[str, Callable[[int], nn.Module]] = {
    "normal": priors.StandardNormal,
    "mixture": priors.MixtureOfNormals,
}
Event = int | tuple[int, ...]
LIKELIHOODS: dict[str, Callable[[Event, int], families.Family]] = {
    "bernoulli": lambda event, total_count: families.Bernoulli(event),
    "binomial": families.Binomial,
    "beta-binomial": families.BetaBinomial,
    "normal": lambda event, total_count: families.Normal(event, scale="column"),
}
NETS = ("mlp", "conv")
EVALUATION_SEED = 1
Array = NDArray[Any]
PICTURES = ("training.png", "reconstructions.png", "samples.png", "manifold.png", "latent.png")
ARTEFACTS = (*PICTURES, "generated.png", "generated.csv", "codes.csv")


@dataclass(frozen=True)
class Options:
    """What a person may choose. None: decided from the data (see `decide`)."""

    prior: str = "normal"
    likelihood: str | None = None
    total_count: int | None = None
    net: str = "mlp"
    latent: int = 10
    hidden: tuple[int, ...] = (400,)
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    kl_warmup: float = 0.0
    clip_norm: float | None = None
    patience: int | None = None
    test_fraction: float = 0.2
    validation_fraction: float = 0.1
    num_samples: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Rows:
    """The rows of a run as the model takes them, and how to get back: `restore` turns model rows into the data's own units."""

    train: Tensor
    validation: Tensor | None
    test: Tensor
    labels: Array | None  # of the test rows, as the source writes them
    scaler: Standardize | None
    image_shape: tuple[int, ...] | None
    columns: tuple[str, ...] | None
    test_index: Tensor  # where the test rows stand in the source, as `encode` numbers its rows
    divisor: float  # what the source was divided by when it was read, undone for densities of real rows

    def restore(self, rows: Tensor) -> Tensor:
        flat = rows.flatten(1)
        return self.scaler.invert(flat) * self.divisor if self.scaler is not None else flat

    @property
    def log_abs_det(self) -> float:
        """What turns a log-density of standardised rows into one of the data's own units: subtract it."""
        if self.scaler is None:
            return 0.0
        return float(self.scaler.log_abs_det) + len(self.scaler.scale) * math.log(self.divisor)


# --- decisions -------------------------------------------------------------------------------------------------------


def choose(name: str, value: str, known: Any) -> str:
    """The value, or OptionError with the known ones."""
    if value not in known:
        raise OptionError(f"--{name} {value!r} is not known; known: {', '.join(known)}.")
    return value


def decide(options: Options, dataset: Dataset, num_rows: int) -> Options:
    """Fill in what was left open, from the data: the likelihood from their kind, the length of the fit from their number.

    Epochs: about 3,000 steps, at least 20 and at most 500 epochs.
    """
    choose("prior", options.prior, PRIORS)
    choose("net", options.net, NETS)
    bounded = options.total_count if options.total_count is not None else dataset.total_count
    kinds = {
        "binary": "bernoulli",
        "unit": "bernoulli",
        "count": "beta-binomial" if bounded is not None else "normal",
        "real": "normal",
    }
    likelihood = options.likelihood or kinds[dataset.kind]
    choose("likelihood", likelihood, LIKELIHOODS)
    if likelihood in ("binomial", "beta-binomial") and bounded is None:
        raise OptionError(f"--likelihood {likelihood} needs --total-count, the largest count that can occur.")
    if options.latent < 1 or any(width < 1 for width in options.hidden):
        raise OptionError(f"--latent and --hidden must be positive, got {options.latent} and {options.hidden}.")
    for name in ("epochs", "batch_size", "num_samples", "total_count"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise OptionError(f"--{name.replace('_', '-')} must be at least 1, got {value}.")
    for name in ("learning_rate", "clip_norm"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise OptionError(f"--{name.replace('_', '-')} must be positive, got {value}.")
    if not options.kl_warmup >= 0:
        raise OptionError(f"--kl-warmup is a number of epochs, 0 for none, got {options.kl_warmup}.")
    batch_size = options.batch_size or min(num_rows, 256 if num_rows >= 20_000 else 128)
    filled = {
        "likelihood": likelihood,
        "total_count": bounded if likelihood in ("binomial", "beta-binomial") else None,
        "batch_size": batch_size,
        "epochs": options.epochs or max(20, min(500, math.ceil(3000 * batch_size / num_rows))),
        "learning_rate": options.learning_rate or 3e-3,
    }
    return Options(**{**asdict(options), **filled})


def build(options: Options, event_shape: tuple[int, ...]) -> VAE:
    """The standard VAE of these options for rows of that shape. Counts enter the encoder divided by their bound."""
    event: Event = event_shape[0] if len(event_shape) == 1 else event_shape
    total = options.total_count or 1
    likelihood_family = LIKELIHOODS[str(options.likelihood)](event, total)
    guide_family = families.Normal(options.latent)
    if options.net == "conv":
        if len(event_shape) < 2:
            raise OptionError("--net conv needs images, and these rows have no image shape; use --net mlp.")
        encoder, likelihood = conv(event_shape, guide_family), conv(options.latent, likelihood_family)
    else:
        encoder = mlp(event_shape[0], guide_family, hidden=options.hidden)
        likelihood = mlp(options.latent, likelihood_family, hidden=options.hidden)
    if total > 1:
        encoder = Conditional(Rescaled(encoder.net, 1 / total), guide_family)
    return VAE(prior=PRIORS[options.prior](options.latent), likelihood=likelihood, encoder=encoder)


def split_rows(dataset: Dataset, options: Options) -> Split:
    test = 0.0 if dataset.x_test is not None else options.test_fraction
    if dataset.x_test is None and not test > 0:
        raise OptionError("--test-fraction must be above 0: this data set has no test rows of its own.")
    return Split(len(dataset.x), test_fraction=test, validation_fraction=options.validation_fraction, seed=options.seed)


def make_rows(dataset: Dataset, split: Split, options: Options, scaler: Standardize | None = None) -> Rows:
    """Split, standardise by the training rows where the likelihood is a density, and shape rows for the network."""
    train, validation = dataset.x[split.train], dataset.x[split.validation]
    test = dataset.x[split.test] if dataset.x_test is None else dataset.x_test
    codes = dataset.y_test if dataset.x_test is not None else None if dataset.y is None else dataset.y[split.test]
    if options.likelihood == "normal":
        scaler = scaler or Standardize.fit(train)
        train, validation, test = scaler.apply(train), scaler.apply(validation), scaler.apply(test)
    shape = dataset.image_shape if options.net == "conv" and dataset.image_shape else tuple(train.shape[1:])
    train, validation, test = (part.reshape(len(part), *shape) for part in (train, validation, test))
    return Rows(
        train=train,
        validation=validation if len(validation) else None,
        test=test,
        labels=None if codes is None else class_values(dataset, codes),
        scaler=scaler,
        image_shape=dataset.image_shape,
        columns=dataset.columns,
        test_index=split.test if dataset.x_test is None else len(dataset.x) + torch.arange(len(dataset.x_test)),
        divisor=float(dataset.source.get("divided_by", 1)),
    )


def class_values(dataset: Dataset, codes: Tensor) -> Array:
    """Class numbers as the source writes the classes; -1, unknown, stays -1, or "unknown" among names."""
    if dataset.classes is None:
        return np.asarray(codes)
    unknown: str | int = "unknown" if any(isinstance(c, str) for c in dataset.classes) else -1
    return np.asarray([dataset.classes[code] if code >= 0 else unknown for code in codes.tolist()])


# --- fitting ---------------------------------------------------------------------------------------------------------


def fit_run(
    dataset: Dataset,
    options: Options,
    folder: Path,
    *,
    force: bool = False,
    resume: bool = False,
    device: str = "auto",
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
    if force and (folder / "run.json").exists():
        for name in ARTEFACTS:  # they would be taken for this run's
            (folder / name).unlink(missing_ok=True)
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
        progress=progress,
        info=recorded,
    )
    return fitted, rows


def read_options(info: Mapping[str, Any]) -> Options:
    """The options of a run.json. CheckpointError when they are not whole."""
    try:
        found = dict(info["options"])
        names = {f.name for f in fields(Options)}
        if set(found) != names:
            raise KeyError(f"options {sorted(set(found) ^ names)}")
        return Options(**{**found, "hidden": tuple(found["hidden"])})
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"The run's options are damaged or missing ({error!r}): was it made by `pyrovae fit`?"
        ) from error


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


def refuse_missing(dataset: Dataset) -> None:
    """DataError for missing entries, by their place in the source: the standard VAE does not take them."""
    for part in (dataset.x, dataset.x_test):
        if part is not None and bool(part.isnan().any()):
            row, column = part.isnan().nonzero()[0].tolist()
            name = dataset.columns[column] if dataset.columns else f"column {column}"
            raise DataError(
                f"{dataset.name} has {int(part.isnan().sum())} missing entries (NaN) in {int(part.isnan().any(1).sum())} rows, "
                f"the first in row {row} (counted from 0), {name}. Fill or drop them; in Python, pv.observed_only(likelihood) "
                "leaves them out of the density."
            )


def describe_run(dataset: Dataset, options: Options, rows: Rows) -> str:
    """What was decided, in one line."""
    counts = f"{len(rows.train)} training, {0 if rows.validation is None else len(rows.validation)} validation, "
    binarised = (
        " on rows binarised anew at every step" if dataset.kind == "unit" and options.likelihood == "bernoulli" else ""
    )
    return (
        f"{dataset.name}: {counts}{len(rows.test)} test rows of {dataset.x.shape[1]} ({dataset.kind}); likelihood "
        f"{options.likelihood}{binarised}, prior {options.prior}, {options.latent} latent dimensions, {options.net}"
    )


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

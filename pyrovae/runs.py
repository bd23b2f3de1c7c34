"""Runs: what the command line does, as functions. A run is a data set, a recipe's model for it, a fit, and a folder.

This is a face: it puts parts of both towers together. What a recipe decided is recorded in the run's `info`, and so applied
again by `open_run`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrovae import plots
from pyrovae.criticism.classification import classify
from pyrovae.criticism.decomposition import active_units
from pyrovae.criticism.importance import Importance, importance
from pyrovae.data import Dataset, Standardize, load_again
from pyrovae.errors import CheckpointError, OptionError, PairError, PyrovaeError
from pyrovae.graph import draw_graph, graph_text
from pyrovae.infer import schedules
from pyrovae.infer.checkpoint import load, read_run, write_fit
from pyrovae.infer.fit import fit
from pyrovae.infer.fitted import Fit
from pyrovae.infer.kl import free_bits
from pyrovae.infer.objectives import Trace_ELBO
from pyrovae.infer.splits import Split
from pyrovae.infer.transforms import Binarize
from pyrovae.infer.validate import check_rows
from pyrovae.pair import take_rows
from pyrovae.predict import decode, encode, generate, reconstruct, simulate
from pyrovae.recipes import (
    CONDITION,
    MODELS,
    Model,
    Options,
    build,
    choose,
    decide,
    is_own,
    own_files,
    part,
    read_options,
    refuse_missing,
)
from pyrovae.rows import Rows, describe_run, make_rows, split_rows

EVALUATION_SEED = 1  # of the draws behind the table, so that `evaluate` repeats what `fit` printed
ARTEFACTS = (
    *("graph.png", "graph.gv", "graph-labelled.png", "graph-labelled.gv"),
    *("training.png", "reconstructions.png", "samples.png", "levels.png", "manifold.png", "latent.png"),
    *("generated.png", "generated.csv", "codes.csv"),
    *("reliability.png", "doubtful.png"),  # of a run of `label` that was here before
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


def patterns(rows: Rows) -> dict[str, dict[str, Tensor]]:
    """Two rows of each kind that the model tells apart, by what is to be said of them: without and with a label of its own."""
    given = take_rows(rows.batch("train"), slice(0, 2))
    if rows.argument in (None, CONDITION):
        return {"": given}
    known = torch.zeros(2, dtype=torch.int64)  # any class: the graph is that of all
    return {"": {"x": given["x"]}, f"where {rows.argument} is known": {**given, str(rows.argument): known}}


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


# --- questions -------------------------------------------------------------------------------------------------------


def evaluate(
    fitted: Fit, rows: Rows, num_samples: int, num_rows: int | None = None
) -> tuple[dict[str, float], Importance]:
    """The table's numbers on the test rows, nats per row in the data's own units, and the values of each row.

    log p(x), or log p(x | c), and k-hat are those of the first `num_rows` test rows, by default as many as make a million
    draws; the ELBO is that of all. Labels of test rows serve for `accuracies` only, unless they are conditions.
    """
    if num_samples < 1 or (num_rows is not None and num_rows < 1):
        raise OptionError(f"--num-samples and --rows must be at least 1, got {num_samples} and {num_rows}.")
    batch = rows.batch("test")
    picked = take_rows(batch, first_rows(num_samples, num_rows))
    found = importance(fitted, picked, num_samples, seed=EVALUATION_SEED)
    results = found.summary()
    if len(picked["x"]) < len(rows.test):
        everything = importance(fitted, batch, 10, seed=EVALUATION_SEED).summary()
        results |= {"elbo": everything["elbo"], "elbo_se": everything["elbo_se"]}
    results["elbo"] -= rows.log_abs_det
    results["log_likelihood"] -= rows.log_abs_det
    seen = fitted.evaluation_batch(batch)
    several = levels_of(fitted)
    # maps are counted together, levels each
    counted = [several] if model_of(fitted).images else [(site,) for site in several or (model_of(fitted).code,)]
    for sites, suffix in zip(counted, ("", *(f"_{name}" for (name, *_) in counted[1:]))):
        # twice where they are averages of draws, whose noise would pass for activity
        seeds = (0, 1) if several else (0,)
        means = [torch.cat([encode(fitted, seen, site=z, seed=seed).flatten(1) for z in sites], 1) for seed in seeds]
        results[f"active_units{suffix}"] = (
            int(active_units(means[0], again=means[-1]).sum()) if len(rows.test) > 1 else 0
        )
        results[f"latent_units{suffix}"] = means[0].shape[1]
    results["log_abs_det"] = rows.log_abs_det
    results |= {"num_samples": num_samples, "test_rows": len(rows.test), "log_likelihood_rows": len(picked["x"])}
    return results | accuracies(fitted, rows, num_samples), found


def first_rows(num_samples: int, num_rows: int | None) -> slice:
    """Of so many test rows log p(x) is estimated: those asked for, or as many as make a million draws."""
    return slice(0, num_rows or max(1, 1_000_000 // num_samples))


def accuracies(fitted: Fit, rows: Rows, num_samples: int) -> dict[str, float]:
    """The share of the first 500 labelled test rows whose class is told rightly, for models that have one to tell.

    Of labelled classes by the guide's classifier and by the joint model; of clusters after each was given the class that most
    of its training rows have, by the guide.
    """
    model, truth = model_of(fitted), rows.codes["test"]
    if truth is None or (model.labels != "y" and not model.clusters):
        return {}
    draws = min(num_samples, 10 if model.clusters else 100)

    def told(part: str, first: int) -> tuple[Tensor, Tensor, Tensor]:
        codes = rows.codes[part]
        assert codes is not None
        known = (codes >= 0).nonzero().squeeze(1)[:first]
        found = classify(fitted, {"x": getattr(rows, part)[known]}, site="y", num_samples=draws, seed=EVALUATION_SEED)
        return found.guide.argmax(-1), found.joint.argmax(-1), codes[known]

    if not bool((truth >= 0).any()):
        return {}
    guide, joint, truth = told("test", 500)
    by = {"guide": guide, "joint": joint}
    if model.clusters:
        clusters, _, codes = told("train", 2000)
        if not len(codes):
            return {}
        pairs = torch.zeros(int(clusters.max()) + 1, int(codes.max()) + 1)
        pairs.index_put_((clusters, codes), torch.ones(len(codes)), accumulate=True)
        majority = torch.full(
            (max(len(pairs), int(guide.max()) + 1),), -1
        )  # of a cluster that no training row is in: none
        majority[: len(pairs)] = torch.where(pairs.sum(1) > 0, pairs.argmax(1), -1)
        by = {"clusters": majority[guide]}
    results: dict[str, float] = {"accuracy_rows": len(truth)}
    for name, predicted in by.items():
        share = (predicted == truth).double().mean().item()
        results |= {f"accuracy_{name}": share, f"accuracy_{name}_se": math.sqrt(share * (1 - share) / len(truth))}
    if model.clusters:
        results["clusters_used"] = len(clusters.unique())
    return results


def finish(fitted: Fit, folder: Path, results: Mapping[str, Any]) -> None:
    """Write the results into the run."""
    fitted.info["results"] = dict(results)
    write_fit(folder, fitted)


def model_of(fitted: Fit) -> Model:
    """What the recipes know about the model of a run."""
    return MODELS[read_options(fitted.info).model]


def levels_of(fitted: Fit) -> tuple[str, ...]:
    """The sites of a model of several levels, from the data upwards; () of others."""
    options = read_options(fitted.info)
    if options.groups is not None:
        return tuple(f"z{s}_{g}" for s, num in enumerate(options.groups, 1) for g in range(1, num + 1))[::-1]
    return tuple(f"z{level}" for level in range(1, len(options.levels or ()) + 1))


def draw_pictures(fitted: Fit, rows: Rows, folder: Path) -> list[Path]:
    """Training curve, reconstructions, samples and the latent space, as PNG files."""
    made = {"training.png": plots.training_curve(fitted.history)}
    made["reconstructions.png"] = reconstruction_picture(fitted, rows, 10)
    if rows.image_shape:
        made["samples.png"] = sample_picture(fitted, rows)
        if levels_of(fitted):
            made["levels.png"] = level_picture(fitted, rows)
    code = model_of(fitted).code
    latent = tuple(fitted.layout.site(code, role="latent", local=True).event_shape)
    everywhere = len(part("prior", read_options(fitted.info).prior).guides) > 1  # not on a sphere, nor a simplex
    if latent == (2,) and rows.image_shape and rows.classes is None and everywhere and not levels_of(fitted):
        # Quantiles of the standard normal: cells of equal mass under it.
        side = 16
        axis = torch.distributions.Normal(0.0, 1.0).icdf(torch.linspace(0.02, 0.98, side))
        up, right = torch.meshgrid(axis, axis, indexing="ij")
        grid = decode(fitted, torch.stack([right, up], -1).reshape(-1, 2))
        made["manifold.png"] = plots.manifold(rows.restore(grid).reshape(side, side, -1), rows.image_shape, grid=axis)
    picked = fitted.evaluation_batch(take_rows(rows.batch("test"), slice(0, 2000)))
    labels = None if rows.labels is None else rows.labels[:2000]
    made["latent.png"] = plots.latent(encode(fitted, picked, site=code).flatten(1), labels, name=code)
    for name, axes in made.items():
        plots.save(axes, folder / name)
    return [folder / name for name in made]


def reconstruction_picture(fitted: Fit, rows: Rows, num: int) -> Any:
    shown = fitted.evaluation_batch(take_rows(rows.batch("test"), slice(0, num if rows.image_shape else 500)))
    again = rows.restore(reconstruct(fitted, shown))
    return plots.reconstructions(rows.restore(shown["x"]), again, rows.image_shape, columns=rows.columns)


MOST_COLUMNS = 20  # of a picture with a column a class


def sample_picture(fitted: Fit, rows: Rows, num: int = 64, seed: int | None = 0) -> Any:
    """E[x | z] at draws of the prior: noise of the likelihood left out, so that what z determines can be seen.

    Of models with classes or clusters E[x | z, y] at draws of p(z | y), a column for each.
    """
    assert rows.image_shape is not None
    if rows.classes is None:
        return plots.images(rows.restore(_means(fitted, num, seed)), rows.image_shape)
    names = [str(name) for name in rows.classes[:MOST_COLUMNS]]
    codes = torch.arange(8 * len(names)) % len(names)
    if rows.argument is not None:
        drawn = _means(fitted, len(codes), seed, {rows.argument: codes})
    else:
        drawn = decode(fitted, codes, latent="y", seed=seed)
    return plots.images(rows.restore(drawn), rows.image_shape, len(names), names=names)


def level_picture(fitted: Fit, rows: Rows, num: int = 8, seed: int = 0) -> Any:
    """What each level says: E[x | z1] of `num` draws a column. The first holds no level, the next the top one at its value in
    one draw of all, and so on; its name says which are held, and what varies in it is said below them."""
    assert rows.image_shape is not None
    top_down = levels_of(fitted)[::-1]
    one = simulate(fitted, 1, seed=seed)
    columns, names = [], []
    for number in range(len(top_down)):
        held = {site: one[site].expand(num, *one[site].shape[1:]) for site in top_down[:number]}
        columns.append(_means(fitted, num, seed, held))
        names.append(
            f"{top_down[0]}-{top_down[number - 1].removeprefix('z')}" if number > 1 else "".join(held) or "none"
        )
    return plots.images(rows.restore(torch.stack(columns, 1).flatten(0, 1)), rows.image_shape, len(names), names=names)


def _means(fitted: Fit, num: int, seed: int | None, given: Mapping[str, Tensor] | None = None) -> Tensor:
    try:
        return generate(fitted, num, given=given, mean=True, seed=seed)
    except PairError:  # classes have no mean
        return generate(fitted, num, given=given, seed=seed)


def draw_rows(
    fitted: Fit, rows: Rows, num: int, *, wanted: str | None = None, mean: bool = False, seed: int | None = 0
) -> tuple[Tensor, Tensor | None]:
    """New rows in the data's own units, and of a model of labelled classes their class numbers: each class in turn, or the
    one that is `wanted` by its name."""
    if rows.argument is None or rows.classes is None:
        if wanted is not None:
            those = ", ".join(name for name, model in MODELS.items() if model.labels is not None)
            raise OptionError(f"--class is for models of labelled classes ({those}), and this run is of another model.")
        return rows.restore(_drawn(fitted, num, mean, seed)), None
    names = [str(name) for name in rows.classes]
    codes = torch.arange(max(0, num)) % len(names)
    if wanted is not None:
        codes[:] = names.index(choose("class", wanted, names))
    return rows.restore(_drawn(fitted, num, mean, seed, {rows.argument: codes})), codes


def _drawn(fitted: Fit, num: int, mean: bool, seed: int | None, given: Mapping[str, Tensor] | None = None) -> Tensor:
    if mean and read_options(fitted.info).likelihood == "categorical":
        raise OptionError("--mean needs a likelihood that has one, and this run's draws classes: leave it out.")
    return generate(fitted, num, given=given, mean=mean, seed=seed)


def all_codes(fitted: Fit, dataset: Dataset, rows: Rows) -> Tensor:
    """E_q[z | x] of every row of the source in its own order, test rows of a set of its own last."""

    def every(first: Tensor | None, rest: Tensor | None) -> Tensor:
        return torch.cat([part for part in (first, rest) if part is not None])

    x = every(dataset.x, dataset.x_test)
    scaled = rows.scaler.apply(x) if rows.scaler is not None else x
    batch = {"x": scaled.reshape(len(scaled), *rows.train.shape[1:])}
    if rows.argument == CONDITION:
        batch[CONDITION] = every(dataset.y, dataset.y_test)
    return encode(fitted, fitted.evaluation_batch(batch), site=model_of(fitted).code).flatten(1)


def claim_default(name: str, root: Path = Path("runs")) -> Path:
    """A folder for a run that was given none: runs/NAME, or runs/NAME-2 and so on where that is taken."""
    number, folder = 1, root / name
    while folder.exists() and any(folder.iterdir()):
        number += 1
        folder = root / f"{name}-{number}"
    return folder

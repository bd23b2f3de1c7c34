"""The command line: `pyrovae fit digits`, and questions to the run that it leaves."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from rich.console import Console
from rich.table import Table

from pyrovae import plots
from pyrovae._version import __version__
from pyrovae.app import catalogue, pictures, scores
from pyrovae.app import run as runs
from pyrovae.app.comparisons import compare as compare_runs
from pyrovae.app.comparisons import measure_of
from pyrovae.app.comparisons import sweep as sweep_runs
from pyrovae.app.decide import decide
from pyrovae.app.jobs import label as labelling
from pyrovae.app.models import MODELS
from pyrovae.app.options import Options, read_options
from pyrovae.app.rows import Array, Rows, class_values
from pyrovae.criticism.decomposition import collapsed
from pyrovae.criticism.importance import Importance
from pyrovae.data import NAMES, load
from pyrovae.errors import OptionError, PyrovaeError
from pyrovae.predict.reconstruct import reconstruct as reconstruct_rows

app = typer.Typer(
    help="Fit variational autoencoders to data, and question them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
out = Console(markup=False, emoji=False)
err = Console(stderr=True, markup=False, emoji=False)
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)]
DataRoot = Annotated[Path | None, typer.Option(help="Folder with the files of mnist or fashion-mnist.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Samples = Annotated[int, typer.Option(help="Draws per row for log p(x).")]
TotalCount = Annotated[int | None, typer.Option(help="Largest count, where a likelihood needs one.")]
Net = Annotated[str, typer.Option(help=f"{', '.join(catalogue.NETS)}.")]
Latent = Annotated[int, typer.Option(help="Number of latent dimensions.")]
Hidden = Annotated[str, typer.Option(help="Widths of the hidden layers, as 400 or 300,300.")]
Epochs = Annotated[int | None, typer.Option(help="Passes over the rows; default about 3,000 steps, 20 to 500.")]
BatchSize = Annotated[int | None, typer.Option(help="Rows a step; default 128, or 256 from 20,000 rows on.")]
LearningRate = Annotated[float | None, typer.Option(help="Peak of the one-cycle schedule; default 3e-3.")]
Warmup = Annotated[
    float, typer.Option(help="Epochs over which the KL weight rises from 0 to 1; nvae: a third of them.")
]
Label = Annotated[str | None, typer.Option(help="Column or array with class labels: name, number or last.")]
Seed = Annotated[int, typer.Option(help="Of weights, split, shuffling and noise.")]
Engine = Annotated[str, typer.Option(help="How a step is run: auto, eager, traced, compiled, or graphed on CUDA.")]
Out = Annotated[Path | None, typer.Option("--out", help="File to write; its ending gives the format.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
REMEDIES = (
    "Try --free-bits 0.5, --kl-warmup over half of the epochs, --kl-cycles 4, --lagging 5, or fewer latent dimensions."
)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if show:
        typer.echo(f"pyrovae {__version__}")
        raise typer.Exit


@app.command()
def fit(
    context: typer.Context,
    source: Annotated[
        str | None,
        typer.Argument(help="digits, mnist, fashion-mnist, or a .npz, .npy or .csv file.", show_default=False),
    ] = None,
    folder: Annotated[Path | None, typer.Option("--out", help="New folder for the run; default runs/NAME.")] = None,
    model: Annotated[str, typer.Option(help=f"{', '.join(MODELS)}.")] = "vae",
    clusters: Annotated[
        int | None,
        typer.Option(help="Clusters of gmvae, vade, jointvae; default as many as there are labels, else 10."),
    ] = None,
    labelled: Annotated[
        int | None, typer.Option(help="Training rows whose label m2, m1m2, adgm see; default all that have one.")
    ] = None,
    levels: Annotated[
        str | None,
        typer.Option(
            help="Dimensions of z1, z2, ... of hierarchical, ladder, as 32,16,8; default --latent and half of it."
        ),
    ] = None,
    groups: Annotated[
        str | None, typer.Option(help="Groups of maps of nvae at each resolution, the coarsest first; default 1,2.")
    ] = None,
    prior: Annotated[str, typer.Option(help=f"{', '.join(catalogue.PRIORS)}.")] = "normal",
    likelihood: Annotated[
        str | None, typer.Option(help=f"{', '.join(catalogue.LIKELIHOODS)}; default by the data.")
    ] = None,
    total_count: TotalCount = None,
    guide: Annotated[
        str | None, typer.Option(help=f"{', '.join(catalogue.GUIDES)}; default normal, or what the prior needs.")
    ] = None,
    net: Net = "mlp",
    latent: Latent = 10,
    hidden: Hidden = "400",
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    kl_warmup: Warmup = 0.0,
    kl_cycles: Annotated[int, typer.Option(help="How often the KL weight rises from 0 to 1 anew.")] = 0,
    free_bits: Annotated[
        float,
        typer.Option(
            help="Nats a row that each latent variable may use at no cost; not z1 of hierarchical, inferred before the others."
        ),
    ] = 0.0,
    lagging: Annotated[
        float, typer.Option(help="Epochs in which the model moves at every tenth step only, the guide at all.")
    ] = 0.0,
    clip_norm: Annotated[float | None, typer.Option(help="Largest global norm of the gradient.")] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many epochs without a better validation ELBO.")
    ] = None,
    test_fraction: Annotated[float, typer.Option(help="Rows held out for the final table.")] = 0.2,
    validation_fraction: Annotated[float, typer.Option(help="Rows that watch the training.")] = 0.1,
    num_samples: Samples = 1000,
    label: Label = None,
    seed: Seed = 0,
    data_root: DataRoot = None,
    device: Device = "auto",
    engine: Engine = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace the run in the folder.")] = False,
    resume: Annotated[Path | None, typer.Option(help="Go on with the unfinished run in this folder.")] = None,
) -> None:
    """Fit a model to data; print what it reached on the test rows; leave weights, settings and pictures in a folder."""
    if (source is None) == (resume is None):
        raise OptionError("Give what to fit (digits, mnist, fashion-mnist or a file), or --resume RUN, and not both.")
    if resume is not None:
        given = [f"--{name.replace('_', '-')}" for name in context.params if _typed(context, name)]
        if other := [name for name in given if name not in ("--resume", "--data-root", "--device")]:
            raise OptionError(f"--resume goes on with the run's own options; leave out {', '.join(other)}.")
        where = resume
        fitted, rows = _watched(where, lambda: runs.resume_run(where, data_root=data_root, device=device))
    else:
        options = Options(
            model=model,
            clusters=clusters,
            labelled=labelled,
            levels=None if levels is None else _widths(levels, "levels"),
            groups=None if groups is None else _widths(groups, "groups"),
            prior=prior,
            likelihood=likelihood,
            guide=guide,
            total_count=total_count,
            net=net,
            latent=latent,
            hidden=_widths(hidden),
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            kl_warmup=kl_warmup,
            kl_cycles=kl_cycles,
            free_bits=free_bits,
            lagging=lagging,
            clip_norm=clip_norm,
            patience=patience,
            test_fraction=test_fraction,
            validation_fraction=validation_fraction,
            num_samples=num_samples,
            seed=seed,
        )
        dataset = load(str(source), data_root=data_root, label=label)
        where = folder or runs.claim_default(dataset.name)
        fitted, rows = _watched(
            where, lambda: runs.fit_run(dataset, options, where, force=force, device=device, engine=engine, say=_tell)
        )
    if fitted.stopped:
        out.print(f"Stopped: {fitted.stopped}.", highlight=False)
    for site, kl in collapsed(fitted).items():
        out.print(
            f"The latent variable {site} has collapsed: it says next to nothing of x (KL {kl:.3f} nats a row). {REMEDIES}",
            highlight=False,
        )
    results, _ = scores.evaluate(fitted, rows, read_options(fitted.info).num_samples)
    results["fit_seconds"] = fitted.history[-1]["seconds"]
    runs.finish(fitted, where, results)
    drawn = pictures.draw_pictures(fitted, rows, where)
    _table(results, scores.model_of(fitted).probability)
    out.print(f"Run folder: {where}", highlight=False, soft_wrap=True)
    out.print(f"Pictures: {', '.join(p.name for p in drawn)}", highlight=False, soft_wrap=True)


@app.command("list")
def list_names() -> None:
    """Names that `fit` and `sweep` know, and what they stand for."""
    for title, parts in (
        ("models", MODELS),
        ("priors", catalogue.PRIORS),
        ("likelihoods", catalogue.LIKELIHOODS),
        ("guides", catalogue.GUIDES),
    ):
        table = Table(title=title, title_justify="left", box=None, show_header=False, pad_edge=False)
        for name, part in parts.items():
            notes = [part.what]
            if isinstance(part, catalogue.Likelihood):
                notes.append(f"for {part.takes}; {'density' if part.density else 'mass'}")
            elif isinstance(part, catalogue.Prior) and len(part.guides) == 1:
                notes.append(f"with guide {part.guides[0]}")
            elif isinstance(part, catalogue.Model) and part.labels is not None:
                notes.append("needs labels")
            table.add_row(f"  {name}", "; ".join(notes))
        out.print(table, highlight=False)
    out.print(f"nets: {', '.join(catalogue.NETS)}; data: {', '.join(NAMES)}, or a file", highlight=False)


@app.command()
def sweep(
    source: Annotated[str, typer.Argument(help="As for `fit`.", show_default=False)],
    prior: Annotated[str, typer.Option(help="One or more, by commas.")] = "normal",
    likelihood: Annotated[str, typer.Option(help="One or more, by commas; default by the data.")] = "",
    guide: Annotated[str, typer.Option(help="One or more, by commas; default what the prior needs.")] = "",
    folder: Annotated[Path | None, typer.Option("--out", help="Folder for the runs; default runs/NAME-sweep.")] = None,
    total_count: TotalCount = None,
    net: Net = "mlp",
    latent: Latent = 10,
    hidden: Hidden = "400",
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    kl_warmup: Warmup = 0.0,
    num_samples: Samples = 1000,
    label: Label = None,
    seed: Seed = 0,
    data_root: DataRoot = None,
    device: Device = "auto",
    engine: Engine = "auto",
) -> None:
    """Fit every combination of the named parts; end in one table of held-out log p(x). Called again, it goes on."""
    dataset = load(source, data_root=data_root, label=label)
    if not _names(prior):
        raise OptionError("--prior names no part: see `pyrovae list`.")
    likelihoods = _names(likelihood) or [None]
    # to those that need it; where none does, `decide` has the words for that
    bounded = [x for x in likelihoods if x is None or catalogue.part("likelihood", x).needs_total] or likelihoods
    grid = [
        Options(
            prior=p,
            likelihood=x,
            guide=q,
            total_count=total_count if x in bounded else None,
            net=net,
            latent=latent,
            hidden=_widths(hidden),
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            kl_warmup=kl_warmup,
            num_samples=num_samples,
            seed=seed,
        )
        for p, x, q in itertools.product(_names(prior), likelihoods, _names(guide) or [None])
    ]
    for options in grid:  # a mistake in the last is told before the first is fitted
        decide(options, dataset, len(dataset.x))
    where = folder or Path("runs") / f"{dataset.name}-sweep"
    try:
        done = sweep_runs(dataset, grid, where, _tell, data_root=data_root, device=device, engine=engine)
    except KeyboardInterrupt:
        _say(f"stopped; the same command goes on with the runs in {where}")
        raise typer.Exit(130) from None
    for what in dict.fromkeys(measure_of(run) for run in done):
        among = [run for run in done if measure_of(run) == what]
        found = compare_runs(among, num_samples, data_root=data_root, device=device)
        _comparison([{**entry, "run": Path(entry["run"]).name} for entry in found], str(what))
    out.print(f"Runs: {where}", highlight=False, soft_wrap=True)


@app.command()
def compare(
    run: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.", show_default=False)],
    num_samples: Samples = 1000,
    num_rows: Annotated[int | None, typer.Option("--rows", help="Test rows; default a million draws.")] = None,
    dequantise: Annotated[
        bool, typer.Option("--dequantise", help="Make a lower bound of a mass of a density of whole numbers.")
    ] = False,
    data_root: DataRoot = None,
    device: Device = "auto",
) -> None:
    """Held-out log p(x) of several runs on the same test rows, with paired differences and their standard errors."""
    if len(run) < 2:
        raise OptionError("Give at least two runs to compare.")
    table = compare_runs(run, num_samples, num_rows, dequantise=dequantise, data_root=data_root, device=device)
    measures = [measure_of(folder) for folder in run]
    _comparison(table, f"log {measures[0].of}: {' and '.join(dict.fromkeys(m.kind for m in measures))}")


@app.command()
def evaluate(
    run: Run,
    num_samples: Samples = 1000,
    num_rows: Annotated[
        int | None, typer.Option("--rows", help="Test rows for log p(x); default a million draws.")
    ] = None,
    data_root: DataRoot = None,
    device: Device = "auto",
    to: Out = None,
    force: Force = False,
) -> None:
    """The table again, on the test rows that the run held out; --out writes each row's values as CSV."""
    if to is not None:
        _free(to, force, (".csv",))
    fitted, rows, _ = runs.open_run(run, data_root=data_root, device=device)
    results, found = scores.evaluate(fitted, rows, num_samples, num_rows)
    if to is not None:
        values = _row_values(found, rows.log_abs_det)
        values.set_index(rows.test_index[: len(values)].numpy()).to_csv(to, index_label="row")
    _table(results, scores.model_of(fitted).probability)
    if fitted.stopped:
        out.print(f"The fit stopped early: {fitted.stopped}.", highlight=False)


@app.command()
def generate(
    run: Run,
    num: Annotated[int, typer.Option("-n", "--num", help="How many rows.")] = 64,
    to: Out = None,
    mean: Annotated[bool, typer.Option("--mean", help="E[x | z] in place of draws of x.")] = False,
    wanted: Annotated[str | None, typer.Option("--class", help="The class of all rows; default each in turn.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    data_root: DataRoot = None,
    device: Device = "auto",
    force: Force = False,
) -> None:
    """Draw rows from the model: a picture for images, else CSV; .npy, .csv and .png by --out. Of labelled classes a column
    each."""
    fitted, rows, dataset = runs.open_run(run, data_root=data_root, device=device)
    path = to or run / ("generated.png" if rows.image_shape else "generated.csv")
    _free(path, force or to is None, (".png", ".npy", ".csv"))
    values, codes = pictures.draw_rows(fitted, rows, num, wanted=wanted, mean=mean, seed=seed)
    if path.suffix == ".png":
        names = None if wanted is not None or codes is None else [str(name) for name in rows.classes or ()][:num]
        columns = 8 if names is None else len(names)
        plots.save(plots.images(values, _image_shape(rows, path), columns, names=names), path)
    else:
        labels = None if codes is None else class_values(dataset, codes)
        _write_rows(path, values, dataset.columns, labels=labels)
    out.print(f"{num} rows: {path}", highlight=False, soft_wrap=True)


@app.command()
def reconstruct(
    run: Run, to: Out = None, data_root: DataRoot = None, device: Device = "auto", force: Force = False
) -> None:
    """Test rows and what the model makes of them: a picture; all test rows with .npy or .csv by --out."""
    fitted, rows, dataset = runs.open_run(run, data_root=data_root, device=device)
    path = to or run / "reconstructions.png"
    _free(path, force or to is None, (".png", ".npy", ".csv"))
    if path.suffix == ".png":
        plots.save(pictures.reconstruction_picture(fitted, rows, 10), path)
    else:
        again = rows.restore(reconstruct_rows(fitted, fitted.evaluation_batch(rows.batch("test"))))
        _write_rows(path, again, dataset.columns, rows.test_index)
    out.print(f"Reconstructions: {path}", highlight=False, soft_wrap=True)


@app.command()
def encode(run: Run, to: Out = None, data_root: DataRoot = None, device: Device = "auto", force: Force = False) -> None:
    """E[z | x] of every row of the data, in their order: CSV (with labels where there are any) or .npy by --out."""
    fitted, rows, dataset = runs.open_run(run, data_root=data_root, device=device)
    path = to or run / "codes.csv"
    _free(path, force or to is None, (".csv", ".npy"))
    codes = pictures.all_codes(fitted, dataset, rows).cpu()
    if path.suffix == ".npy":
        np.save(path, codes.numpy())
    else:
        table = pd.DataFrame(codes.numpy(), columns=[f"z{i}" for i in range(codes.shape[1])])
        if dataset.y is not None:
            y = dataset.y if dataset.x_test is None else _join(dataset.y, dataset.y_test, len(table))
            table["label"] = class_values(dataset, y)
        table.to_csv(path, index_label="row")
    out.print(f"{len(codes)} rows: {path}", highlight=False, soft_wrap=True)


@app.command()
def label(
    source: Annotated[
        str, typer.Argument(help="A folder of images, a .csv or .npz file, or a name as for `fit`.", show_default=False)
    ],
    labels: Annotated[
        Path | None,
        typer.Option(help="CSV table with the columns file,label (id,label for tables); default the column label."),
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--out", help="Table to write, .csv; default labels.csv in the run.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--run", help="Folder of the run, gone on with if it is there; default runs/NAME-labels."),
    ] = None,
    size: Annotated[int | None, typer.Option(help="Scale and cut images to this side, in pixels.")] = None,
    holdout: Annotated[float, typer.Option(help="Share of the labelled rows kept for the report.")] = 0.2,
    likelihood: Annotated[str | None, typer.Option(help="As for `fit`; default by the data.")] = None,
    total_count: Annotated[int | None, typer.Option(help="Largest count, where a likelihood needs one.")] = None,
    net: Annotated[
        str | None, typer.Option(help="mlp or conv; default conv for images from 16 x 16 pixels on.")
    ] = None,
    latent: Annotated[
        int | None, typer.Option(help="Number of latent dimensions; default 50 with conv, else 10.")
    ] = None,
    hidden: Annotated[int, typer.Option(help="Width of the hidden layers.")] = 200,
    steps: Annotated[
        int | None, typer.Option(help="Steps of training; default 300 to 2,000, by what one costs.")
    ] = None,
    passes: Annotated[int, typer.Option(help="Opinions of the classifier, with dropout on.")] = 20,
    seed: Annotated[int, typer.Option(help="Of weights, held-out rows, shuffling and noise.")] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew in the run's folder, whatever it holds.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file at --out, whatever it is.")] = False,
    data_root: DataRoot = None,
    device: Device = "auto",
    engine: Annotated[str, typer.Option(help="As for `fit`.")] = "auto",
) -> None:
    """Label every row by a few labels; say how sure that is, and what to label next. Called with more labels, it goes on."""
    for inside in (labels, Path(source)):
        if to is not None and inside is not None and inside.expanduser().absolute() == to.expanduser().absolute():
            raise OptionError(f"--out {to} would replace what it is made from: choose another name.")
    if to is not None and not to.absolute().parent.is_dir():
        raise OptionError(f"--out {to}: there is no folder {to.parent}.")
    settings = labelling.Settings(
        likelihood=likelihood,
        total_count=total_count,
        net=net,
        latent=latent,
        hidden=hidden,
        steps=steps,
        holdout=holdout,
        passes=passes,
        seed=seed,
    )
    job = labelling.read_job(source, labels, size=size, data_root=data_root)
    where = folder or Path("runs") / f"{job.dataset.name}-labels"
    try:
        answer = labelling.label_rows(
            job,
            settings,
            where,
            to=to,
            fresh=fresh,
            force=force,
            device=device,
            engine=engine,
            progress=True,
            say=_tell,
        )
    except KeyboardInterrupt:
        _say("stopped; nothing was written, and the same command starts again")
        raise typer.Exit(130) from None
    _judgement(answer.report)
    _next_rows(answer.table)
    out.print(f"Table: {to or where / 'labels.csv'}", highlight=False, soft_wrap=True)
    drawn = f" ({', '.join(p.name for p in answer.pictures)})" if answer.pictures else ""
    out.print(f"Run folder: {where}{drawn}", highlight=False, soft_wrap=True)


def main() -> None:
    """Run a command; a mistake of the person at the keyboard ends in one line on stderr and exit code 2, never a traceback."""
    try:
        app()
    except PyrovaeError as error:
        _say(str(error))
        sys.exit(2)
    except OSError as error:
        _say(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))
        sys.exit(2)


def _say(message: str) -> None:
    err.print(f"Error: {message}", style="bold red", markup=False, highlight=False, soft_wrap=True)


def _tell(message: str) -> None:
    err.print(message, markup=False, highlight=False)


def _typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _watched(folder: Path, work: Any) -> Any:
    """Tell how to go on when Ctrl-C stops a fit."""
    try:
        return work()
    except KeyboardInterrupt as stop:
        _say(f"{str(stop) or 'stopped'}; go on with: pyrovae fit --resume {folder}")
        raise typer.Exit(130) from None


def _widths(text: str, name: str = "hidden") -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise OptionError(f"--{name} takes whole numbers, as 400 or 300,300, got {text!r}.") from None


def _names(text: str) -> list[Any]:
    """Each once, in their order."""
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _comparison(found: list[dict[str, Any]], what: str) -> None:
    table = Table(title=f"{found[0]['rows']} test rows; {what}, nats per row")
    for name in ("run", what.partition(":")[0].partition(",")[0], "difference", "bits per dim", "k-hat > 0.7"):
        table.add_column(name, justify="left" if name == "run" else "right", no_wrap=name == "run", overflow="fold")
    for entry in found:
        best = entry is found[0]
        table.add_row(
            entry["run"],
            f"{'≥ ' if entry['bound'] else ''}{entry['log_likelihood']:.2f} ± {entry['log_likelihood_se']:.2f}",
            "" if best else f"{entry['difference']:.2f} ± {entry['difference_se']:.2f}",
            f"{entry['bits_per_dimension']:.3f}",
            f"{entry['k_hat_above_0.7']:.0%}" if math.isfinite(entry["k_hat_above_0.7"]) else "needs 25 draws",
        )
    out.print(table)
    if any(entry["bound"] for entry in found):
        out.print(
            "≥: of a density, the mean over uniform noise added to whole numbers, which bounds the mass from below.",
            highlight=False,
        )


def _judgement(report: Mapping[str, Any]) -> None:
    """What the held-out rows say."""
    if not report["held_out"]:
        out.print("No labelled row is held out: how good the labels are is not known.", highlight=False)
        return
    table = Table(title=f"{report['held_out']} held-out rows")
    table.add_column("quantity")
    table.add_column("value", justify="right")
    table.add_row("accuracy", f"{report['accuracy']:.1%} ± {report['accuracy_se']:.1%}")
    table.add_row("calibration error", f"{report['calibration_error']:.3f}")
    table.add_row("the same, if probabilities were exact", f"{report['calibration_error_of_chance']:.3f}")
    table.add_row("log score, nats per row", f"{report['log_score']:.3f}")
    fitted = report["temperature"]
    table.add_row("temperature", "not fitted" if fitted is None else f"{fitted:.2f}")
    out.print(table)
    if fitted is None:
        out.print(
            f"A temperature needs {labelling.ENOUGH} held-out rows, {labelling.MISTAKES} of them mistaken.",
            highlight=False,
        )


def _next_rows(labelled: pd.DataFrame) -> None:
    first = labelled.sort_values("rank").head(5).dropna(subset="rank")
    table = Table(title="To label next", box=None, pad_edge=False)
    for name in (labelled.columns[0], "most probable", "probability", "information, nats"):
        table.add_column(name, justify="right" if name[0] in "pi" and name != "id" else "left", overflow="fold")
    for row in first.itertuples(index=False):
        table.add_row(row[0], row.predicted, f"{row.probability:.2f}", f"{row.information_gain:.2f}")
    out.print(table, highlight=False)


def _free(path: Path, force: bool, endings: tuple[str, ...]) -> Path:
    """The path, if it may be written."""
    if path.suffix not in endings:
        raise OptionError(f"--out {path}: the ending must be one of {', '.join(endings)}.")
    if path.exists() and not force:
        raise OptionError(f"{path} exists: choose another name, or --force.")
    if not path.parent.is_dir():
        raise OptionError(f"--out {path}: there is no folder {path.parent}.")
    return path


def _image_shape(rows: Rows, to: Path) -> tuple[int, ...]:
    if rows.image_shape is None:
        raise OptionError(f"--out {to}: these rows are no images; write .csv or .npy.")
    return rows.image_shape


def _write_rows(
    to: Path,
    values: torch.Tensor,
    columns: tuple[str, ...] | None,
    index: torch.Tensor | None = None,
    labels: Array | None = None,
) -> None:
    array = values.cpu().numpy()
    if to.suffix == ".npy":
        np.save(to, array)
    else:
        table = pd.DataFrame(array, columns=columns or [f"x{i}" for i in range(array.shape[1])])
        if labels is not None:
            table.insert(len(table.columns), "label", labels, allow_duplicates=True)
        if index is None:
            table.to_csv(to, index=False)
        else:
            table.set_index(index.numpy()).to_csv(to, index_label="row")


def _join(y: torch.Tensor, y_test: torch.Tensor | None, rows: int) -> torch.Tensor:
    rest = torch.full((rows - len(y),), -1) if y_test is None else y_test
    return torch.cat([y, rest])


def _row_values(found: Importance, log_abs_det: float) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "log_likelihood": (found.log_likelihood - log_abs_det).numpy(),
            "standard_error": found.standard_error.numpy(),
            "elbo": (found.elbo - log_abs_det).numpy(),
            "ess": found.ess.numpy(),
            "k_hat": found.k_hat.numpy(),
        }
    )


ACCURACIES = {
    "accuracy_guide": "right classes by the guide",
    "accuracy_joint": "right classes by the joint model",
    "accuracy_clusters": "right classes by clusters' majorities",
}


def _table(results: Mapping[str, float], probability: str) -> None:
    """The closing table: nats per test row of log p(x) or log p(x | c), with the standard error of the mean over rows."""

    def with_error(name: str, kind: str = ".2f") -> str:
        error = results[f"{name}_se"]
        return f"{results[name]:{kind}}" + (f" ± {error:{kind}}" if math.isfinite(error) else "")

    picked = results["log_likelihood_rows"]
    few = "" if picked == results["test_rows"] else f", first {picked} rows"
    table = Table(title=f"{results['test_rows']} test rows, {results['num_samples']} draws a row")
    table.add_column("quantity")
    table.add_column("value", justify="right")
    table.add_row("ELBO, nats per row", with_error("elbo"))
    table.add_row(f"log {probability}, nats per row{few}", with_error("log_likelihood"))
    share = results["k_hat_above_0.7"]
    table.add_row(f"rows with k-hat > 0.7{few}", f"{share:.1%}" if math.isfinite(share) else "needs 25 draws")
    upper = [name.removeprefix("latent_units_") for name in results if name.startswith("latent_units_")]
    table.add_row(f"active units{' of z1' if upper else ''}", f"{results['active_units']} of {results['latent_units']}")
    for site in upper:
        table.add_row(
            f"active units of {site}", f"{results[f'active_units_{site}']} of {results[f'latent_units_{site}']}"
        )
    for name, what in ACCURACIES.items():
        if name in results:
            some = results["accuracy_rows"]
            table.add_row(f"{what}{'' if some == results['test_rows'] else f', {some} rows'}", with_error(name, ".1%"))
    if "clusters_used" in results:
        table.add_row("clusters with training rows", f"{results['clusters_used']}")
    if "fit_seconds" in results:
        table.add_row("time of the fit", f"{results['fit_seconds']:.1f} s")
    out.print(table)
    if results["log_abs_det"]:
        out.print(
            "Densities in the data's own units; those of the training curve and history.csv are of standardised columns, "
            f"{results['log_abs_det']:+.2f} nats per row.",
            highlight=False,
        )
    if share > 0.1:
        out.print(
            "Where k-hat is above 0.7 the guide is too narrow for its draws to carry log p(x): read that number as a lower "
            "bound.",
            highlight=False,
        )

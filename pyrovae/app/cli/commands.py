"""The commands: they parse what was typed, call the application, and print what it returns."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pyrovae._files import refuse_no_run
from pyrovae._lazily import Lazily
from pyrovae._sources import check_source
from pyrovae._start import advising
from pyrovae._version import __version__
from pyrovae.app import catalogue
from pyrovae.app.cli import parameters as take
from pyrovae.app.cli import tables
from pyrovae.app.decide import check_names, decide
from pyrovae.app.options import OPTIONS, Options
from pyrovae.errors import OptionError, PyrovaeError, shortened

if TYPE_CHECKING:
    import pyrovae.data.load as loading
    from pyrovae import plots
    from pyrovae.app import comparisons, pictures, scores
    from pyrovae.app import rows as row_values
    from pyrovae.app import run as runs
    from pyrovae.app import search as searching
    from pyrovae.app.cli import files
    from pyrovae.app.jobs import check as checking
    from pyrovae.app.jobs import impute as filling
    from pyrovae.app.jobs import label as labelling
    from pyrovae.app.jobs import outliers as finding
    from pyrovae.criticism import decomposition
    from pyrovae.predict import reconstruct as reconstructing
else:  # so that help, names and mistakes need not wait for torch
    plots, runs = Lazily("pyrovae.plots"), Lazily("pyrovae.app.run")
    comparisons, pictures = Lazily("pyrovae.app.comparisons"), Lazily("pyrovae.app.pictures")
    row_values, scores = Lazily("pyrovae.app.rows"), Lazily("pyrovae.app.scores")
    files, labelling = Lazily("pyrovae.app.cli.files"), Lazily("pyrovae.app.jobs.label")
    checking, finding = Lazily("pyrovae.app.jobs.check"), Lazily("pyrovae.app.jobs.outliers")
    filling, searching = Lazily("pyrovae.app.jobs.impute"), Lazily("pyrovae.app.search")
    decomposition, loading = Lazily("pyrovae.criticism.decomposition"), Lazily("pyrovae.data.load")
    reconstructing = Lazily("pyrovae.predict.reconstruct")

app = typer.Typer(
    help="Fit variational autoencoders to data, and work with the fitted models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
NO_MEMORY = ("can't allocate memory", "out of memory")  # as torch says it
REMEDIES = (
    "Try --free-bits 0.5, --kl-warmup over half of the epochs, --kl-cycles 4, --lagging 5, or fewer latent dimensions."
)


@app.callback(invoke_without_command=True)
def version(show: take.Version = False) -> None:
    if show:
        typer.echo(f"pyrovae {__version__}")
        raise typer.Exit


@app.command()
@take.takes_options("fit")
def fit(
    context: typer.Context,
    source: take.FitSource = None,
    folder: take.FitOut = None,
    *,
    given: take.Given,
    label: take.LabelColumn = None,
    data: take.RunData = None,
    data_root: take.DataRoot = None,
    device: take.Device = "auto",
    engine: take.Engine = "auto",
    threads: take.Threads = None,
    force: take.ForceRun = False,
    resume: take.Resume = None,
    trust: take.Trust = False,
) -> None:
    """Fit a model to data, print how good it is on the test rows, and leave weights, settings and pictures in a folder."""
    if (source is None) == (resume is None):
        raise OptionError(
            "Give what to fit (digits, sprites, mnist, fashion-mnist or a file), or --resume RUN, and not both."
        )
    if resume is not None:
        typed = [f"--{name.replace('_', '-')}" for name in context.params if _typed(context, name)]
        if other := [
            name for name in typed if name not in ("--resume", "--data", "--data-root", "--device", "--trust")
        ]:
            raise OptionError(f"--resume goes on with the run's own options; leave out {', '.join(other)}.")
        where = resume
        refuse_no_run(where)
        more: dict[str, Any] = {"data": data, "data_root": data_root, "device": device, "trust": trust}
        run = _watched(where, trust, lambda: runs.resume_run(where, **more))
    else:
        if data is not None:
            raise OptionError("--data is for --resume: give the data of a new fit without it.")
        options = Options.of("fit", **given)
        check_source(str(source))
        check_names(options)
        dataset = loading.read(str(source), data_root=data_root, label=label, **options.table)
        tables.remark(dataset.notes)
        where = folder or runs.default_folder(dataset.name)
        how: dict[str, Any] = {"force": force, "device": device, "engine": engine, "threads": threads}
        how["say"] = tables.inform
        own = bool(catalogue.own_paths(options))
        run = _watched(where, own, lambda: searching.search_run(dataset, options, where, **how))
    trusted = " --trust" if catalogue.own_paths(run.options) else ""
    with advising(lambda: f"stopped; the fit is whole, and its table comes by: pyrovae evaluate {where}{trusted}"):
        _finish(run, where)


def _finish(run: runs.Run, where: Path) -> None:
    """Say how good a fit is, and leave that and pictures in its folder."""
    if run.fitted.stopped:
        tables.answer(f"Stopped: {run.fitted.stopped}.")
    for site, kl in decomposition.collapsed(run.fitted).items():
        tables.answer(
            f"The latent variable {site} has collapsed: it says next to nothing of x (KL {kl:.3f} nats a row). {REMEDIES}"
        )
    results, _ = scores.evaluate(run, run.options.num_samples, proposal=run.options.proposal)
    results["fit_seconds"] = run.fitted.history[-1]["seconds"]
    run.record(results)
    drawn = pictures.draw_pictures(run)
    tables.print_results(results, run.model.probability)
    if simulated := scores.simulated_rows(run):
        tables.answer(simulated)
    needs = " (to open it again, add --trust: it has parts of your own)" if catalogue.own_paths(run.options) else ""
    tables.answer_line(f"Run folder: {where}{needs}")
    tables.answer_line(f"Pictures: {', '.join(p.name for p in drawn)}")


@app.command("list")
def list_names() -> None:
    """List the names of models, priors, likelihoods and guides, and what they mean."""
    tables.print_names()


@app.command()
@take.takes_options("sweep")
def sweep(
    source: take.Source,
    folder: take.SweepOut = None,
    *,
    given: take.Given,
    label: take.LabelColumn = None,
    data_root: take.DataRoot = None,
    device: take.Device = "auto",
    engine: take.Engine = "auto",
    threads: take.Threads = None,
) -> None:
    """Fit every combination of the named parts, and compare log p(x) of the test rows. Called again, it goes on."""
    check_source(source)
    grid = _grid(given)
    for options in grid:
        check_names(options)
    dataset = loading.read(source, data_root=data_root, label=label, **grid[0].table)
    tables.remark(dataset.notes)
    for options in grid:  # a mistake in the last one is found before the first is fitted
        decide(options, dataset, len(dataset.x))
    where = folder or Path("runs") / f"{dataset.name}-sweep"
    how: dict[str, Any] = {"device": device, "engine": engine, "threads": threads}
    stopped = f"stopped; the same command goes on with the runs in {where}"
    try:
        with advising(lambda: stopped):
            done = comparisons.sweep(dataset, grid, where, tables.inform, data_root=data_root, **how)
    except KeyboardInterrupt:
        tables.complain(stopped)
        raise typer.Exit(130) from None
    measures = [comparisons.measure_of(run) for run in done]
    for measure in dict.fromkeys(measures):
        among = [run for run, own in zip(done, measures) if own == measure]
        found = comparisons.compare(among, given["num_samples"], proposal=given["proposal"])
        tables.print_comparison([{**entry, "run": Path(entry["run"]).name} for entry in found], str(measure))
    tables.answer_line(f"Runs: {where}")


def _grid(given: dict[str, Any]) -> list[Options]:
    """The options of every combination of the named priors, likelihoods and guides."""
    priors, likelihoods, guides = (_names(given[kind]) for kind in ("prior", "likelihood", "guide"))
    if given["prior"] is not None and not priors:
        raise OptionError("--prior names no part: see `pyrovae list`.")
    # --total-count goes to the likelihoods that need one; where none does, `decide` refuses it
    bounded: list[str] = [x for x in likelihoods if catalogue.part("likelihood", x).needs_total] or likelihoods
    grid = []
    each: list[list[Any]] = [priors or [None], likelihoods or [None], guides or [None]]
    for prior, likelihood, guide in itertools.product(*each):
        options = Options.of("sweep", **given | {"prior": prior, "likelihood": likelihood, "guide": guide})
        if likelihood is not None and likelihood not in bounded:
            options = replace(options, total_count=None)
        grid.append(options)
    return grid


@app.command()
def compare(
    run: take.RunFolders,
    num_samples: take.Samples = OPTIONS["num_samples"].default,
    num_rows: take.NumRows = None,
    proposal: take.Proposal = OPTIONS["proposal"].default,
    dequantise: take.Dequantise = False,
    data: take.RunData = None,
    data_root: take.DataRoot = None,
    device: take.Device = "auto",
    threads: take.Threads = None,
    trust: take.Trust = False,
) -> None:
    """Compare log p(x) of several runs on the same test rows: paired differences with their standard errors."""
    if len(run) < 2:
        raise OptionError("Give at least two runs to compare.")
    for folder in run:
        refuse_no_run(folder)
    scores.check_draws(num_samples, num_rows)
    opened = [opened_run(folder, data, data_root, device, threads, trust) for folder in run]
    table = comparisons.compare(opened, num_samples, num_rows, proposal=proposal, dequantise=dequantise)
    measures = [comparisons.measure_of(one) for one in opened]
    kinds = " and ".join(dict.fromkeys(measure.kind for measure in measures))
    tables.print_comparison(table, f"log {measures[0].of}: {kinds}")


@app.command()
def evaluate(
    run: take.RunFolder,
    num_samples: take.Samples = OPTIONS["num_samples"].default,
    num_rows: take.NumRows = None,
    proposal: take.ProposalOfRun = None,
    data: take.RunData = None,
    data_root: take.DataRoot = None,
    device: take.Device = "auto",
    threads: take.Threads = None,
    trust: take.Trust = False,
    to: take.Out = None,
    force: take.Force = False,
) -> None:
    """Print the table of a run again, from its test rows; --out writes the values of each row as CSV."""
    if to is not None:
        files.check_file(to, force, (".csv",))
    refuse_no_run(run)
    opened = opened_run(run, data, data_root, device, threads, trust)
    results, found = scores.evaluate(opened, num_samples, num_rows, proposal or opened.options.proposal)
    if to is not None:
        files.write_scores(to, found, opened.rows)
    tables.print_results(results, opened.model.probability)
    if opened.fitted.stopped:
        tables.answer(f"The fit stopped early: {opened.fitted.stopped}.")


@app.command()
def check(
    run: take.RunFolder,
    num_rows: take.CheckRows = 400,
    num_samples: take.Samples = OPTIONS["num_samples"].default,
    proposal: take.ProposalOfRun = None,
    seed: take.DrawSeed = 0,
    data: take.RunData = None,
    data_root: take.DataRoot = None,
    device: take.Device = "auto",
    threads: take.Threads = None,
    trust: take.Trust = False,
    to: take.CheckOut = None,
    force: take.Force = False,
) -> None:
    """Ask whether a fit is any good: bounds, predictions, latent variables, guide; --out names the page that is written.

    The exit code is 0 if nothing is bad, 1 if something is, and 2 after a mistake.
    """
    refuse_no_run(run)
    scores.check_draws(num_samples, num_rows, least_rows=2)
    path = to or run / checking.PAGE
    files.check_file(path, force or to is None, (".html",))
    opened = opened_run(run, data, data_root, device, threads, trust)
    how: dict[str, Any] = {"num_rows": num_rows, "num_samples": num_samples, "seed": seed}
    report = checking.check_run(opened, proposal=proposal or opened.options.proposal, say=tables.inform, **how)
    written = checking.write_report(report, opened, path)
    tables.print_findings(report, opened.rows.log_abs_det)
    tables.answer_line(f"Page: {written[0]} (and {written[1].name})")
    if report.verdict == "bad":
        raise typer.Exit(1)


@app.command()
def outliers(
    run: take.RunFolder,
    source: take.NewRows,
    to: take.OutliersOut = None,
    method: take.Method = "log_likelihood",
    rate: take.Rate = 0.1,
    num_samples: take.Samples = OPTIONS["num_samples"].default,
    proposal: take.ProposalOfRun = None,
    seed: take.DrawSeed = 0,
    data: take.RunData = None,
    data_root: take.DataRoot = None,
    device: take.Device = "auto",
    threads: take.Threads = None,
    trust: take.Trust = False,
    force: take.Force = False,
) -> None:
    """Rank the rows of a table by how strange they are to a run, with p-values, and name the columns that make them so."""
    refuse_no_run(run)
    check_source(source)
    path = to or run / "outliers.csv"
    files.check_file(path, force or to is None, (".csv",))
    scores.check_draws(num_samples, None)
    opened = opened_run(run, data, data_root, device, threads, trust)
    how: dict[str, Any] = {"num_samples": num_samples, "proposal": proposal or opened.options.proposal, "seed": seed}
    how |= {"method": method, "rate": rate, "data_root": data_root}
    found = finding.find_outliers(opened, source, say=tables.inform, **how)
    finding.write_outliers(found, path)
    tables.print_outliers(found)
    tables.answer_line(f"{len(found.table)} rows: {path}")


@app.command()
def impute(
    run: take.RunFolder,
    source: take.NewRows,
    to: take.FilledOut = None,
    draws: take.Draws = 0,
    num_samples: take.Samples = OPTIONS["num_samples"].default,
    proposal: take.ProposalOfRun = None,
    seed: take.DrawSeed = 0,
    data: take.RunData = None,
    data_root: take.DataRoot = None,
    device: take.Device = "auto",
    threads: take.Threads = None,
    trust: take.Trust = False,
    force: take.Force = False,
) -> None:
    """Fill in the missing cells of a table, by their best guesses or by several draws; other cells stay as they are."""
    refuse_no_run(run)
    path = to or run / "imputed.csv"
    files.check_file(path, force or to is None, (".csv", ".parquet"))
    scores.check_draws(num_samples, None)
    opened = opened_run(run, data, data_root, device, threads, trust)
    how: dict[str, Any] = {"num_samples": num_samples, "proposal": proposal or opened.options.proposal, "seed": seed}
    found = filling.fill_in(opened, source, draws=draws, **how)
    filling.write_filled(found, path)
    tables.answer_line(filling.summary(found))
    tables.answer_line(f"{len(found.tables)} {'table' if len(found.tables) == 1 else 'tables'}: {path}")


@app.command()
def generate(
    run: take.RunFolder,
    num: take.NumNew = 64,
    to: take.Out = None,
    mean: take.Mean = False,
    wanted: take.ClassName = None,
    given: take.GivenRows = None,
    seed: take.DrawSeed = 0,
    data: take.RunData = None,
    data_root: take.DataRoot = None,
    device: take.Device = "auto",
    threads: take.Threads = None,
    trust: take.Trust = False,
    force: take.Force = False,
) -> None:
    """Draw new rows from the model: a picture if they are images, else CSV; --out takes .png, .npy or .csv.

    If the model has labelled classes, the picture has one column for each. A model that is given columns draws a row for each
    row of --given, one that is given captions draws rows of the caption of --given, and either, without it, rows for what
    training rows have.
    """
    refuse_no_run(run)
    opened = opened_run(run, data, data_root, device, threads, trust)
    rows = opened.rows
    path = to or run / ("generated.png" if rows.image_shape else "generated.csv")
    files.check_file(path, force or to is None, (".png", ".npy", ".csv"))
    conditions = pictures.conditions_of(opened, given, num, seed)
    num = num if conditions is None else len(conditions)
    values, codes = pictures.draw_rows(opened, num, wanted=wanted, conditions=conditions, mean=mean, seed=seed)
    if path.suffix == ".png":
        names = None if wanted is not None or codes is None else [str(name) for name in rows.classes or ()][:num]
        columns = 8 if names is None else len(names)
        axes = plots.images(values, files.image_shape(rows, path), columns, names=names)
        what = "E[x | z] at draws of p(z)" if mean else "rows drawn from the model"
        told = f", given {given}" if given is not None else ""
        plots.save(pictures.titled(axes, what + told), path)
    else:
        labels = None if codes is None else row_values.class_values(opened.dataset, codes)
        files.write_rows(path, values, rows, labels=labels, conditions=conditions)
    tables.answer_line(f"{num} rows: {path}")


@app.command()
def reconstruct(
    run: take.RunFolder,
    to: take.Out = None,
    data: take.RunData = None,
    data_root: take.DataRoot = None,
    device: take.Device = "auto",
    threads: take.Threads = None,
    trust: take.Trust = False,
    force: take.Force = False,
) -> None:
    """Show the first test rows and their reconstructions; --out writes those of all test rows as .npy or .csv."""
    refuse_no_run(run)
    opened = opened_run(run, data, data_root, device, threads, trust)
    rows = opened.rows
    path = to or run / "reconstructions.png"
    files.check_file(path, force or to is None, (".png", ".npy", ".csv"))
    if path.suffix == ".png":
        plots.save(pictures.reconstruction_picture(opened, 10), path)
    else:
        restored = rows.restore(reconstructing.reconstruct(opened.fitted, rows.batch("test")))
        files.write_rows(path, restored, rows, rows.test_index)
    tables.answer_line(f"Reconstructions: {path}")


@app.command()
def encode(
    run: take.RunFolder,
    to: take.Out = None,
    data: take.RunData = None,
    data_root: take.DataRoot = None,
    device: take.Device = "auto",
    threads: take.Threads = None,
    trust: take.Trust = False,
    force: take.Force = False,
) -> None:
    """Write the posterior mean E[z | x] of every row, in the order of the data: CSV, with labels, or .npy by --out."""
    refuse_no_run(run)
    opened = opened_run(run, data, data_root, device, threads, trust)
    path = to or run / "codes.csv"
    files.check_file(path, force or to is None, (".csv", ".npy"))
    codes = pictures.all_codes(opened).cpu()
    files.write_codes(path, codes, opened)
    tables.answer_line(f"{len(codes)} rows: {path}")


@app.command()
@take.takes_options("label")
def label(
    source: take.LabelSource,
    labels: take.LabelTable = None,
    to: take.LabelOut = None,
    folder: take.LabelRun = None,
    size: take.Size = None,
    *,
    given: take.Given,
    fresh: take.Fresh = False,
    force: take.ForceTable = False,
    data_root: take.DataRoot = None,
    device: take.Device = "auto",
    engine: take.Engine = "auto",
    threads: take.Threads = None,
) -> None:
    """Predict the label of every row from a few labels; say how sure that is, and which rows to label next.

    Called again with more labels, it goes on from there.
    """
    for inside in (labels, Path(source)):
        if to is not None and inside is not None and inside.expanduser().absolute() == to.expanduser().absolute():
            raise OptionError(f"--out {to} would replace what it is made from: choose another name.")
    if to is not None and not to.absolute().parent.is_dir():
        raise OptionError(f"--out {to}: there is no folder {to.parent}.")
    if not Path(source).expanduser().is_dir():
        check_source(source)
    options = Options.of("label", **given)
    job = labelling.read_job(source, labels, size=size, data_root=data_root, **options.table)
    tables.remark(job.dataset.notes)
    where = folder or Path("runs") / f"{job.dataset.name}-labels"
    how: dict[str, Any] = {
        "device": device,
        "engine": engine,
        "threads": threads,
        "progress": True,
        "say": tables.inform,
    }
    stopped = "stopped; the same command starts again"
    try:
        with advising(lambda: stopped):
            answer = labelling.label_rows(job, options, where, to=to, fresh=fresh, force=force, **how)
    except KeyboardInterrupt:
        tables.complain(stopped)
        raise typer.Exit(130) from None
    tables.print_report(answer.report)
    tables.print_next_rows(answer.table)
    tables.answer_line(f"Table: {to or where / 'labels.csv'}")
    drawn = f" ({', '.join(p.name for p in answer.pictures)})" if answer.pictures else ""
    tables.answer_line(f"Run folder: {where}{drawn}")


def main() -> None:
    """Run a command. A mistake of the user ends in one line on stderr and exit code 2, never in a traceback."""
    try:
        app()
    except PyrovaeError as error:
        tables.complain(str(error))
        sys.exit(2)
    except OSError as error:
        tables.complain(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or any(said in str(error) for said in NO_MEMORY)):
            raise
        tables.complain(f"not enough memory ({shortened(error, 200)}): choose smaller sizes, or fewer rows or draws.")
        sys.exit(2)


def _typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _watched(folder: Path, own: bool, work: Callable[[], runs.Run]) -> runs.Run:
    """Do some work, with parts of the user's own or not; if Ctrl-C stops it, say how to go on."""
    try:
        with advising(lambda: f"stopped{_going_on(folder, own)}"):
            return work()
    except KeyboardInterrupt as stop:
        tables.complain(f"{str(stop) or 'stopped'}{_going_on(folder, own)}")
        raise typer.Exit(130) from None


def _going_on(folder: Path, own: bool) -> str:
    """How to go on with what has been written."""
    if not (folder / "checkpoint.safetensors").exists():
        return "; nothing was written" if not folder.exists() else f"; nothing of use was written into {folder}"
    return f"; go on with: pyrovae fit --resume {folder}{' --trust' if own else ''}"


def opened_run(
    run: Path, data: Path | None, data_root: Path | None, device: str, threads: int | None, trust: bool
) -> runs.Run:
    """A finished run with its data; it is said which file is read without having been typed."""
    how: dict[str, Any] = {"device": device, "threads": threads, "trust": trust, "say": tables.inform_line}
    return runs.open_run(run, data=data, data_root=data_root, **how)


def _names(text: str | None) -> list[str]:
    """The names in a list with commas, each once, in their order."""
    return list(dict.fromkeys(part.strip() for part in (text or "").split(",") if part.strip()))

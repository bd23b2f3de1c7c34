"""The commands that ask something of a finished run, or draw from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from pyrovae._files import refuse_no_run
from pyrovae._lazily import Lazily
from pyrovae._sources import ARROW, check_source
from pyrovae.app.cli import parameters as take
from pyrovae.app.cli import tables
from pyrovae.app.options import OPTIONS
from pyrovae.errors import OptionError, counted

if TYPE_CHECKING:
    from pyrovae import plots
    from pyrovae.app import comparisons, pictures, scores
    from pyrovae.app import rows as row_values
    from pyrovae.app.cli import files
    from pyrovae.app.jobs import answers as asking
    from pyrovae.app.jobs import batch as batches
    from pyrovae.app.jobs import check as checking
    from pyrovae.app.jobs import classify as classifying
    from pyrovae.app.jobs import explore as exploring
    from pyrovae.app.jobs import impute as filling
    from pyrovae.app.jobs import outliers as finding
    from pyrovae.app.jobs import report as reporting
    from pyrovae.app.pages import explore as paging
    from pyrovae.app.pages import serve as serving
    from pyrovae.predict import forward
    from pyrovae.predict import reconstruct as reconstructing
else:  # so that help, names and mistakes need not wait for torch
    plots = Lazily("pyrovae.plots")
    comparisons = Lazily("pyrovae.app.comparisons")
    pictures = Lazily("pyrovae.app.pictures")
    row_values = Lazily("pyrovae.app.rows")
    scores = Lazily("pyrovae.app.scores")
    files = Lazily("pyrovae.app.cli.files")
    asking = Lazily("pyrovae.app.jobs.answers")
    batches = Lazily("pyrovae.app.jobs.batch")
    checking = Lazily("pyrovae.app.jobs.check")
    classifying = Lazily("pyrovae.app.jobs.classify")
    exploring = Lazily("pyrovae.app.jobs.explore")
    finding = Lazily("pyrovae.app.jobs.outliers")
    filling = Lazily("pyrovae.app.jobs.impute")
    reporting = Lazily("pyrovae.app.jobs.report")
    forward = Lazily("pyrovae.predict.forward")
    reconstructing = Lazily("pyrovae.predict.reconstruct")
    paging, serving = Lazily("pyrovae.app.pages.explore"), Lazily("pyrovae.app.pages.serve")
from pyrovae.app.cli.entry import app, opened_run


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
    source: take.AllRows = None,
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
    """Print the table of a run again, from its test rows; --out writes the values of each row as CSV.

    Of a TABLE: log p(x) of all its rows, written block by block. A job that was stopped goes on where it was.
    """
    path = to or (None if source is None else run / "scores.csv")
    if path is not None:
        files.check_file(path, force or to is None, (".csv",) if source is None else (".csv", ".parquet"))
    refuse_no_run(run)
    scores.check_draws(num_samples, num_rows)
    opened = opened_run(run, data, data_root, device, threads, trust)
    if source is not None and path is not None:
        if num_rows is not None:
            raise OptionError("--rows is for the run's own test rows; of a table all rows are evaluated. Leave it out.")
        how: dict[str, Any] = {"num_samples": num_samples, "proposal": proposal or opened.options.proposal}
        told = asking.evaluate_table(opened, source, path, force=force, say=tables.inform_line, **how)
        names = {f"log {opened.model.probability}": "log_likelihood", "ELBO": "elbo"}
        said = [f"{what} {told[name]:.2f} ± {told[f'{name}_se']:.2f}" for what, name in names.items()]
        tables.answer(f"{', '.join(said)} nats per row")
        if told["trained_on"]:
            tables.answer(
                f"{told['trained_on']:.0f} of {told['rows']:.0f} rows are training rows of the run (trained_on), which are "
                "more probable under it than new rows would be."
            )
        tables.answer_line(f"{counted(int(told['rows']), 'row')}: {path}")
        return
    results, found = scores.evaluate(opened, num_samples, num_rows, proposal or opened.options.proposal)
    if to is not None:
        files.write_scores(to, found, opened)
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
def report(
    run: take.RunFolder,
    others: take.Others = None,
    num_rows: take.CheckRows = 400,
    num_samples: take.Samples = OPTIONS["num_samples"].default,
    proposal: take.ProposalOfRun = None,
    seed: take.DrawSeed = 0,
    data: take.RunData = None,
    data_root: take.DataRoot = None,
    device: take.Device = "auto",
    threads: take.Threads = None,
    trust: take.Trust = False,
    to: take.ReportOut = None,
    force: take.Force = False,
) -> None:
    """Write all that is known of a run as one page: data, graph, curves, pictures, check, and other runs beside it."""
    for folder in (run, *(others or ())):
        refuse_no_run(folder)
    scores.check_draws(num_samples, num_rows, least_rows=2)
    path = to or run / reporting.PAGE
    files.check_file(path, force or to is None, (".html",))
    folders = (run, *(others or ()))
    opened, *beside = (opened_run(folder, data, data_root, device, threads, trust) for folder in folders)
    asked: dict[str, Any] = {"num_rows": num_rows, "num_samples": num_samples, "seed": seed}
    found = reporting.report_on(
        opened, beside, proposal=proposal or opened.options.proposal, say=tables.inform, **asked
    )
    reporting.write_page(found, path)
    tables.answer_line(f"Page: {path}")


@app.command()
def explore(
    run: take.RunFolder,
    port: take.Port = 0,
    data: take.RunData = None,
    data_root: take.DataRoot = None,
    device: take.Device = "auto",
    threads: take.Threads = None,
    trust: take.Trust = False,
) -> None:
    """Move through the latent space of a run in the browser, on a page that only this machine can open.

    Needs pip install 'pyrovae[page]'.
    """
    serving.refuse_without_packages()
    refuse_no_run(run)
    how: dict[str, Any] = {"device": device, "threads": threads, "trust": trust, "say": tables.inform_line}
    explorer = exploring.Explorer.open(run, data=data, data_root=data_root, **how)
    paging.explore_in_browser(explorer, port, say=tables.answer_line)


@app.command()
def outliers(
    run: take.RunFolder,
    source: take.NewRows,
    to: take.OutliersOut = None,
    method: take.Method = "log_likelihood",
    rate: take.Rate = 0.1,
    num_samples: take.Samples = 200,  # of all rows alike, so that p-values stay right; scores change by hundredths of nats
    proposal: take.ProposalOfRun = None,
    seed: take.DrawSeed = 0,
    data: take.RunData = None,
    data_root: take.DataRoot = None,
    device: take.Device = "auto",
    threads: take.Threads = None,
    trust: take.Trust = False,
    force: take.Force = False,
) -> None:
    """Rank the rows of a table, or the images of a folder, by how strange they are to a run, with p-values, and name the
    columns that make them so.

    Tables of any size are read block by block. A job that was stopped goes on where it was.
    """
    refuse_no_run(run)
    check_source(source, also=ARROW, folders=True)
    path = to or run / "outliers.csv"
    files.check_file(path, force or to is None, (".csv", ".parquet"))
    scores.check_draws(num_samples, None)
    opened = opened_run(run, data, data_root, device, threads, trust)
    how: dict[str, Any] = {"num_samples": num_samples, "proposal": proposal or opened.options.proposal, "seed": seed}
    how |= {"method": method, "rate": rate, "data_root": data_root}
    found = finding.find_outliers(opened, source, path, force=force, say=tables.inform, **how)
    tables.print_outliers(found)
    tables.answer_line(f"{counted(found.rows, 'row')}: {path}")


@app.command()
def impute(
    run: take.RunFolder,
    source: take.HoledRows,
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
    """Fill in the missing cells of a table, by their best guesses or by several draws; other cells stay as they are.

    Tables of any size are read block by block. A job that was stopped goes on where it was.
    """
    refuse_no_run(run)
    path = to or run / "imputed.csv"
    files.check_file(path, force or to is None, (".csv", ".parquet"))
    scores.check_draws(num_samples, None)
    opened = opened_run(run, data, data_root, device, threads, trust)
    how: dict[str, Any] = {"num_samples": num_samples, "proposal": proposal or opened.options.proposal, "seed": seed}
    found = filling.fill_in(opened, source, path, draws=draws, force=force, say=tables.inform_line, **how)
    tables.answer_line(filling.summary(found))
    tables.answer_line(f"{found.tables} {'table' if found.tables == 1 else 'tables'}: {path}")


@app.command()
def classify(
    run: take.RunFolder,
    source: take.AllRows = None,
    to: take.Out = None,
    num_samples: take.ClassSamples = 100,
    data: take.RunData = None,
    data_root: take.DataRoot = None,
    device: take.Device = "auto",
    threads: take.Threads = None,
    trust: take.Trust = False,
    force: take.Force = False,
) -> None:
    """Write the probability of each class for every row, and each column of labels: CSV, also of rows whose label is known.

    Of a TABLE in place of the run's data: .csv or .parquet, block by block. Labels that it has are compared with what is
    predicted without them, and serve to predict the others. A job that was stopped goes on where it was.
    """
    refuse_no_run(run)
    path = to or run / "classes.csv"
    files.check_file(path, force or to is None, (".csv",) if source is None else (".csv", ".parquet"))
    scores.check_draws(num_samples, None)
    opened = opened_run(run, data, data_root, device, threads, trust)
    if source is None:
        told = classifying.classify_rows(opened, path, num_samples=num_samples)
    else:
        how: dict[str, Any] = {"num_samples": num_samples, "force": force, "say": tables.inform_line}
        told = classifying.classify_table(opened, source, path, **how)
    tables.print_classes(told, own=source is None)
    tables.answer_line(f"{counted(told[0].unknown + told[0].known, 'row')}: {path}")


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
    forward.check_room(opened.fitted, num)
    conditions = pictures.conditions_of(opened, given, num, seed)
    num = num if conditions is None else len(conditions)
    how: dict[str, Any] = {"wanted": wanted, "mean": mean, "seed": seed}
    codes, labels = None, None
    if rows.several:
        values, found = pictures.draw_labelled_rows(opened, num, **how)
        labels = {one.name: row_values.names_of(one.classes, found[one.name]) for one in rows.several}
    else:
        values, codes = pictures.draw_rows(opened, num, conditions=conditions, **how)
        labels = None if codes is None else {batches.label_name(opened): row_values.class_values(opened.dataset, codes)}
    if path.suffix == ".png":
        names = None if wanted is not None or codes is None else [str(name) for name in rows.classes or ()][:num]
        columns = 8 if names is None else len(names)
        axes = plots.images(values, files.image_shape(rows, path), columns, names=names)
        what = "E[x | z] at draws of p(z)" if mean else "rows drawn from the model"
        told = f", given {given}" if given is not None else ""
        plots.save(pictures.titled(axes, what + told), path)
    else:
        files.write_rows(path, values, rows, labels=labels, conditions=conditions)
    tables.answer_line(f"{counted(num, 'row')}: {path}")


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
    source: take.AllRows = None,
    to: take.Out = None,
    draws: take.CodeDraws = 0,
    num_samples: take.CodeSamples = OPTIONS["num_samples"].default,
    proposal: take.ProposalOfRun = None,
    seed: take.DrawSeed = 0,
    data: take.RunData = None,
    data_root: take.DataRoot = None,
    device: take.Device = "auto",
    threads: take.Threads = None,
    trust: take.Trust = False,
    force: take.Force = False,
) -> None:
    """Write the posterior mean E[z | x] of every row, in the order of the data: CSV, with labels, or .npy by --out.

    With --draws, so many draws of p(z | x) for each row: a line each of the CSV, numbered from 1 on, or an array of the shape
    (rows, draws, dimensions). They are chosen from --num-samples draws of the proposal, by their weights.

    Of --model spatial the CSV has the pose, too: its angle in radians, and its shifts to the right and down in pixels.

    Of a TABLE in place of the run's data: .csv or .parquet, block by block. A job that was stopped goes on where it was.
    """
    refuse_no_run(run)
    opened = opened_run(run, data, data_root, device, threads, trust)
    path = to or run / "codes.csv"
    files.check_file(path, force or to is None, (".csv", ".npy") if source is None else (".csv", ".parquet"))
    how: dict[str, Any] = {"draws": draws}
    if draws:
        how |= {"num_particles": num_samples, "proposal": proposal or opened.options.proposal, "seed": seed}
    if source is not None:
        total = asking.encode_table(opened, source, path, force=force, say=tables.inform_line, **how)
    else:
        codes = asking.codes_of(opened, **how)
        total = len(codes) // max(1, draws)
        files.write_codes(path, codes, opened)
    tables.answer_line(f"{counted(total, 'row')}{f', {draws} draws of each' if draws else ''}: {path}")

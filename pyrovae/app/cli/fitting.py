"""The commands that fit: they parse what was typed, call the application, and print what it returns."""

from __future__ import annotations

import itertools
import time as times
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pyrovae._files import refuse_no_run
from pyrovae._lazily import Lazily
from pyrovae._near import expanded, near_paths
from pyrovae._sources import check_source
from pyrovae._start import advising
from pyrovae.app import catalogue
from pyrovae.app.budget import Budget
from pyrovae.app.cli import parameters as take
from pyrovae.app.cli import tables
from pyrovae.app.decide import check_names, decide
from pyrovae.app.flags import in_flags
from pyrovae.app.options import Options
from pyrovae.app.track import check_track, with_log
from pyrovae.app.unused import OF_FILES, refuse_unused
from pyrovae.errors import OptionError, counted

if TYPE_CHECKING:
    import pyrovae.data.load as loading
    from pyrovae.app import comparisons, pictures, scores
    from pyrovae.app import run as runs
    from pyrovae.app import search as searching
    from pyrovae.app.cli import files
    from pyrovae.app.jobs import label as labelling
    from pyrovae.app.pages import label as paging
    from pyrovae.app.pages import serve as serving
    from pyrovae.criticism import decomposition
    from pyrovae.engine import ranks
    from pyrovae.fitted import diverged as diverging
else:  # so that help, names and mistakes need not wait for torch
    runs = Lazily("pyrovae.app.run")
    comparisons = Lazily("pyrovae.app.comparisons")
    pictures = Lazily("pyrovae.app.pictures")
    scores = Lazily("pyrovae.app.scores")
    files = Lazily("pyrovae.app.cli.files")
    labelling = Lazily("pyrovae.app.jobs.label")
    paging = Lazily("pyrovae.app.pages.label")
    serving = Lazily("pyrovae.app.pages.serve")
    searching = Lazily("pyrovae.app.search")
    decomposition = Lazily("pyrovae.criticism.decomposition")
    loading = Lazily("pyrovae.data.load")
    ranks = Lazily("pyrovae.engine.ranks")
    diverging = Lazily("pyrovae.fitted.diverged")
from pyrovae.app.cli.entry import app

REMEDIES = (
    "Try --free-bits 0.5, --kl-warmup over half of the epochs, --kl-cycles 4, --lagging 5, or fewer latent dimensions."
)


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
    track: take.Track = None,
    force: take.ForceRun = False,
    resume: take.Resume = None,
    trust: take.Trust = False,
) -> None:
    """Fit a model to data, print how good it is on the test rows, and leave weights, settings and pictures in a folder.

    The exit code is 0, 1 if the fit diverged but ended with finite numbers, and 2 after a mistake or a loss that is not finite.
    """
    if (source is None) == (resume is None):
        raise OptionError(
            "Give what to fit (digits, sprites, mnist, fashion-mnist, a file or a folder), or --resume RUN, and not both."
        )
    check_track(track or ())
    if resume is not None:
        typed = [f"--{name.replace('_', '-')}" for name in _typed_names(context)]
        if other := [
            name
            for name in typed
            if name not in ("--resume", "--data", "--data-root", "--device", "--track", "--trust")
        ]:
            raise OptionError(f"--resume goes on with the run's own options; leave out {', '.join(other)}.")
        where = resume
        refuse_no_run(where)
        more: dict[str, Any] = {"data": data, "data_root": data_root, "device": device, "trust": trust}
        more["track"] = with_log(track)
        run = _watched(where, trust, lambda: runs.resume_run(where, **more))
    else:
        if data is not None:
            raise OptionError("--data is for --resume: give the data of a new fit without it.")
        options = Options.of("fit", **given)
        check_source(str(source), folders=True)
        check_names(options)
        if options.kl == "draws" and options.free_bits:
            raise OptionError("--free-bits takes KL terms in closed form where that is known: leave out --kl draws.")
        dataset = ranks.first_and_then_others(
            lambda: loading.read(str(source), data_root=data_root, label=label, **options.table)
        )
        tables.remark(dataset.notes)
        refuse_unused(_typed_names(context), [options], dataset)
        where = folder or ranks.first(lambda: runs.default_folder(dataset.name))
        how: dict[str, Any] = {"force": force, "device": device, "engine": engine, "threads": threads}
        how |= {"track": with_log(track), "say": tables.inform}
        own = bool(catalogue.own_paths(options))
        run = _watched(where, own, lambda: searching.search_run(dataset, options, where, **how))
    if ranks.rank() > 0:
        return  # the first process asks the questions
    trusted = " --trust" if catalogue.own_paths(run.options) else ""
    with advising(lambda: f"stopped; the fit is whole, and its table comes by: pyrovae evaluate {where}{trusted}"):
        _finish(run, where)


def _finish(run: runs.Run, where: Path) -> None:
    """Say how good a fit is, and leave that and pictures in its folder."""
    if run.fitted.stopped:
        tables.answer(f"Stopped: {run.fitted.stopped}.")
    astray = diverging.diverged(run.fitted)
    for site, kl in () if astray else decomposition.collapsed(run.fitted).items():
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
    if astray:
        raise typer.Exit(1)


@app.command("list")
def list_names() -> None:
    """List the names of models, priors, likelihoods and guides, and what they mean."""
    tables.print_names()


@app.command()
@take.takes_options("sweep")
def sweep(
    context: typer.Context,
    source: take.Source,
    folder: take.SweepOut = None,
    *,
    given: take.Given,
    label: take.LabelColumn = None,
    data_root: take.DataRoot = None,
    device: take.Device = "auto",
    engine: take.Engine = "auto",
    threads: take.Threads = None,
    track: take.Track = None,
) -> None:
    """Fit every combination of the named parts, and compare log p(x) of the test rows. Called again, it goes on."""
    check_source(source, folders=True)
    check_track(track or (), several=True)
    grid = _grid(given)
    for options in grid:
        check_names(options)
    dataset = loading.read(source, data_root=data_root, label=label, **grid[0].table)
    tables.remark(dataset.notes)
    refuse_unused(_typed_names(context), grid, dataset)
    for options in grid:  # a mistake in the last one is found before the first is fitted
        decide(options, dataset, len(dataset.x))
    where = folder or Path("runs") / f"{dataset.name}-sweep"
    how: dict[str, Any] = {"device": device, "engine": engine, "threads": threads, "track": with_log(track)}
    stopped = f"stopped; the same command goes on with the runs in {where}"
    try:
        with advising(lambda: stopped), in_flags():
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
@take.takes_options("label")
def label(
    context: typer.Context,
    source: take.LabelSource,
    labels: take.LabelTable = None,
    to: take.LabelOut = None,
    folder: take.LabelRun = None,
    *,
    given: take.Given,
    label: take.OwnLabel = None,
    format: take.LabelFormat = "csv",
    page: take.Page = False,
    port: take.Port = 0,
    time: take.Time = None,
    rounds: take.Rounds = None,
    fresh: take.Fresh = False,
    force: take.ForceTable = False,
    data_root: take.DataRoot = None,
    device: take.Device = "auto",
    engine: take.Engine = "auto",
    threads: take.Threads = None,
) -> None:
    """Predict the label of every row from a few labels; say how sure that is, and which rows to label next.

    Called again with more labels, it goes on from there. With --page, rows are labelled in the browser.
    """
    began = times.monotonic()
    for_studio = format == "label-studio"
    _check_labelling(format, page, port, Budget(time, rounds))
    _check_answer(source, labels, to, for_studio, force)
    check_source(source, folders=True)
    options = Options.of("label", **given)
    job = labelling.read_job(source, labels, label=label, data_root=data_root, some=not page, **options.table)
    tables.remark(job.dataset.notes)
    refuse_unused([name for name in _typed_names(context) if name in OF_FILES], [options], job.dataset)
    if columns := job.about_columns():
        tables.inform(f"{columns}.")
    where = folder or Path("runs") / f"{job.dataset.name}-labels"
    table = where / labelling.PREDICTIONS if for_studio else to or where / labelling.LABELS
    _keep_labels(labels, table, [table, where / labelling.PREDICTIONS] if page else [table], page)
    how: dict[str, Any] = {"device": device, "engine": engine, "threads": threads}
    if page:
        paging.label_in_browser(job, options, where, to, port, fresh=fresh, say=tables.answer_line, **how)
        return
    how |= {"progress": True, "time": time, "rounds": rounds, "began": began}
    stopped = "stopped; the same command starts again"
    going_on = f"stopped; {table} has the answer so far, and the same command goes on"
    line = tables.OneLine()
    how |= {"say": line.inform, "show": line}
    try:
        with line, advising(lambda: going_on if line.last else stopped):
            answer = labelling.label_rows(job, options, where, to=table, fresh=fresh, force=force, **how)
    except KeyboardInterrupt:
        tables.complain(going_on if line.last else stopped)
        raise typer.Exit(130) from None
    tables.print_report(answer.report)
    if answer.rounds > 1:
        have = counted(answer.rounds, "ensemble has", "ensembles have")
        tables.answer(f"{have} answered; --rounds {answer.rounds} asks for as many again.")
    tables.print_next_rows(answer.table)
    tables.answer_line(f"Table: {table}")
    if for_studio:
        tasks = to or where / "tasks.json"
        num, interface = labelling.write_tasks(job, answer.table, tasks)
        tables.answer_line(f"Tasks, {num} without a label: {tasks} (interface: {interface.name})")
    drawn = f" ({', '.join(p.name for p in answer.pictures)})" if answer.pictures else ""
    tables.answer_line(f"Run folder: {where}{drawn}")


def _check_labelling(format: str, page: bool, port: int, budget: Budget) -> None:
    """OptionError where options of `label` contradict each other."""
    if format not in ("csv", "label-studio"):
        raise OptionError(f"--format must be csv or label-studio, got {format}.")
    if page and format == "label-studio":
        raise OptionError("--page has no --format: it writes labels.csv, from which a later call makes tasks.")
    if page:
        serving.refuse_without_packages()
        if budget.open:
            raise OptionError("--page has no --time and no --rounds: it learns anew from every few labels.")
    elif port:
        raise OptionError("--port is for --page. Leave it out, or add --page.")


def _check_answer(source: str, labels: Path | None, to: Path | None, for_studio: bool, force: bool) -> None:
    """OptionError unless the table of `label`, or its tasks, can be written where they are asked for."""
    if to is None:
        return
    for inside in (labels, Path(source)):
        if inside is not None and expanded(inside).absolute() == expanded(to).absolute():
            raise OptionError(f"--out {to} would replace what it is made from: choose another name.")
    if not to.absolute().parent.is_dir():
        raise OptionError(f"--out {to}: there is no folder {to.parent}{near_paths(to.parent, (), folders=True)}.")
    if for_studio:
        for file in (to, to.with_suffix(".xml")):
            files.check_file(file, force, (".json", ".xml") if file is not to else (".json",))


def _keep_labels(labels: Path | None, table: Path, written: list[Path], page: bool) -> None:
    """OptionError where a file that is written would replace the given labels."""
    if labels is None or expanded(labels).absolute() not in [file.absolute() for file in written]:
        return
    itself = page and expanded(labels).absolute() == table.absolute()
    cure = "leave --labels out, since the page reads it by itself" if itself else "give a copy of it under another name"
    raise OptionError(f"--labels {labels} would be replaced: {cure}.")


def _typed_names(context: typer.Context) -> list[str]:
    """The names of the parameters that were typed."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]


def _watched(folder: Path, own: bool, work: Callable[[], runs.Run]) -> runs.Run:
    """Do some work, with parts of the user's own or not; if Ctrl-C stops it, say how to go on."""
    try:
        with advising(lambda: f"stopped{_going_on(folder, own)}"), in_flags():
            return work()
    except KeyboardInterrupt as stop:
        tables.complain(f"{str(stop) or 'stopped'}{_going_on(folder, own)}")
        raise typer.Exit(130) from None


def _going_on(folder: Path, own: bool) -> str:
    """How to go on with what has been written."""
    if not (folder / "checkpoint.safetensors").exists():
        return "; nothing was written" if not folder.exists() else f"; nothing of use was written into {folder}"
    return f"; go on with: pyrovae fit --resume {folder}{' --trust' if own else ''}"


def _names(text: str | None) -> list[str]:
    """The names in a list with commas, each once, in their order."""
    return list(dict.fromkeys(part.strip() for part in (text or "").split(",") if part.strip()))

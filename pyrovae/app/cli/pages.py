"""The commands that write pages on a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyrovae._files import refuse_no_run
from pyrovae._lazily import Lazily
from pyrovae.app.cli import parameters as take
from pyrovae.app.cli import tables
from pyrovae.app.cli.commands import app, opened_run
from pyrovae.app.options import OPTIONS

if TYPE_CHECKING:
    from pyrovae.app import scores
    from pyrovae.app.cli import files
    from pyrovae.app.jobs import report as reporting
else:
    files, reporting = Lazily("pyrovae.app.cli.files"), Lazily("pyrovae.app.jobs.report")
    scores = Lazily("pyrovae.app.scores")

ReportOut = Annotated[
    Path | None, typer.Option("--out", help="Page to write, .html; by default report.html in the run folder.")
]
Others = Annotated[
    list[Path] | None,
    typer.Option("--with", metavar="RUN", help="Folder of a run to compare it with; may be given several times."),
]


@app.command()
def report(
    run: take.RunFolder,
    others: Others = None,
    num_rows: take.CheckRows = 400,
    num_samples: take.Samples = OPTIONS["num_samples"].default,
    proposal: take.ProposalOfRun = None,
    seed: take.DrawSeed = 0,
    data: take.RunData = None,
    data_root: take.DataRoot = None,
    device: take.Device = "auto",
    threads: take.Threads = None,
    trust: take.Trust = False,
    to: ReportOut = None,
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

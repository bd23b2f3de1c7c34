"""The report on a run: everything that is known of it, gathered for one page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pyrovae import plots
from pyrovae._files import write_file
from pyrovae.app.comparisons import compare, measure_of
from pyrovae.app.jobs.check import check_run
from pyrovae.app.pages.report import RunReport, page
from pyrovae.app.pictures import neighbour_maps, pictures_of, titled
from pyrovae.app.results import Shown, comparison_tables, remarks_on_comparison, remarks_on_results, results_table
from pyrovae.app.run import Run, describe
from pyrovae.app.scores import EVALUATION_SEED, evaluate, simulated_rows
from pyrovae.criticism import calibration
from pyrovae.criticism.classification import classify
from pyrovae.pair.graph import graph_text

PAGE = "report.html"
MOST_CLASSIFIED = 500  # test rows, for the calibration of class probabilities


def report_on(
    run: Run,
    others: Sequence[Run] = (),
    *,
    num_rows: int,
    num_samples: int,
    proposal: str,
    seed: int = 0,
    say: Callable[[str], None] = lambda message: None,
) -> RunReport:
    """Gather the report on a run.

    Args:
        others: runs to compare it with, which held out the same rows.
        num_rows: the most test rows, and as many training rows, that the check looks at.
        num_samples: draws per row.
        proposal: of these draws, "refined", "laplace" or "guide".
        seed: of the check.
        say: called with what is being done.

    Raises:
        OptionError: a run that it is to be compared with held out other rows, or reports another measure.
    """
    comparison: tuple[list[Shown], list[str]] = ([], [])
    if others:  # first, since a mistake shows here
        say("comparison")
        found = compare([run, *others], num_samples, proposal=proposal)
        measure = measure_of(run)
        comparison = comparison_tables(found, str(measure)), remarks_on_comparison(found)
    results = run.fitted.info.get("results")
    if not isinstance(results, dict) or "log_likelihood" not in results:  # a fit that was stopped after its last epoch
        say("table")
        results = evaluate(run, num_samples, proposal=proposal)[0]
    say("pictures")
    made = pictures_of(run) | neighbour_maps(run)
    made |= reliabilities(run, num_samples)
    checked = check_run(run, num_rows=num_rows, num_samples=num_samples, proposal=proposal, seed=seed, say=say)
    epochs = len(run.fitted.history)
    about = [f"{describe(run.dataset, run.options, run.rows)}.", f"{epochs} epoch{'s' if epochs > 1 else ''}."]
    if run.fitted.stopped:
        about.append(f"The fit stopped early: {run.fitted.stopped}.")
    if simulated := simulated_rows(run):
        about.append(simulated)
    about += [f"{one.argument} is {one.name}: {', '.join(map(str, one.classes))}." for one in run.rows.several]
    chosen = {name: value for name, value in run.options.to_json("fit").items() if value is not None}
    return RunReport(
        title=f"{run.dataset.name}: {run.options.model}",
        about=about,
        columns=None if run.rows.schema is None else repr(run.rows.schema),
        results=(results_table(results, run.model.probability), remarks_on_results(results)),
        graph={which: graph_text(run.fitted.pair, batch) for which, batch in run.rows.examples().items()},
        graph_files=[path for end in ("", "-labelled") if (path := run.folder / f"graph{end}.png").is_file()],
        pictures=made,
        checked=checked,
        comparison=comparison,
        options=Shown(
            f"seed {run.options.seed}", ("option", "value"), tuple((n, str(value)) for n, value in chosen.items())
        ),
    )


def write_page(report: RunReport, path: Path) -> Path:
    """Write the report as one HTML file, in place of one that is there."""
    write_file(path, page(report).encode())
    return path


def reliabilities(run: Run, num_samples: int) -> dict[str, Any]:
    """Reliability diagrams of the joint model's classes on labelled test rows, one for each column of labels that it infers."""
    rows = run.rows
    asked: dict[str, tuple[str, Tensor | None]] = {}
    if rows.several:
        asked = {f"reliability of {one.name}": (one.argument, one.codes["test"]) for one in rows.several}
    elif run.model.labels == "y":
        asked = {"reliability": ("y", rows.codes["test"])}
    made = {}
    for name, (site, truth) in asked.items():
        if truth is None or not bool((truth >= 0).any()):
            continue
        known = (truth >= 0).nonzero().squeeze(1)[:MOST_CLASSIFIED]
        draws = min(num_samples, 100)
        found = classify(run.fitted, {"x": rows.test[known]}, site=site, num_samples=draws, seed=EVALUATION_SEED)
        curve = calibration.reliability(found.joint, truth[known].cpu())
        made[name] = plots.reliability(curve.confidence, curve.accuracy, curve.counts)
        if name != "reliability":
            titled(made[name], name)
    return made

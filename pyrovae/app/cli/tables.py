"""What the commands print: messages and tables."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pyrovae._lazily import Lazily
from pyrovae._sources import NAMES
from pyrovae.app import catalogue
from pyrovae.app.models import MODELS
from pyrovae.app.results import (
    Shown,
    comparison_tables,
    remarks_on_comparison,
    remarks_on_results,
    results_table,
    share,
)
from pyrovae.errors import counted, printable

if TYPE_CHECKING:
    import pandas as pd

    from pyrovae.app.jobs import label as labelling
    from pyrovae.app.jobs.classify import Told
    from pyrovae.app.jobs.outliers import Outliers
    from pyrovae.criticism.report import Report
else:
    labelling = Lazily("pyrovae.app.jobs.label")

out = Console(markup=False, emoji=False)
err = Console(stderr=True, markup=False, emoji=False)


def _row(table: Table, *cells: object) -> None:
    """Add a row to a table. Names of runs and columns come from files, and may hold codes that a terminal obeys."""
    table.add_row(*(cell if isinstance(cell, Text) else printable(str(cell)) for cell in cells))


def complain(message: str) -> None:
    err.print(f"Error: {printable(message)}", style="bold red", markup=False, highlight=False, soft_wrap=True)


def inform(message: str) -> None:
    """Say something on the way, on stderr."""
    err.print(printable(message), markup=False, highlight=False)


def inform_line(message: str) -> None:
    """Say something on the way in one line, whose paths are not broken."""
    err.print(printable(message), markup=False, highlight=False, soft_wrap=True)


LINE_EVERY = 30.0  # seconds between two lines where there is no terminal


class OneLine:
    """A line on stderr that replaces the one before: on a terminal in its place, and elsewhere every half a minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.last, self._said = "", ""
        self._clock, self._next, self._width = clock, 0.0, 0
        self._in_place = err.is_terminal and not err.is_dumb_terminal

    def __enter__(self) -> OneLine:
        return self

    def __call__(self, message: str) -> None:
        self.last = message
        if self._in_place:  # the cursor stays visible, since a signal may end the process here
            self._write(printable(message)[: err.width - 1])
        elif self._clock() >= self._next:
            self._keep()

    def __exit__(self, *error: object) -> None:
        if self.last != self._said:
            self._keep()

    def inform(self, message: str) -> None:
        """Say something else, below the line as it is by now."""
        self.__exit__()
        inform(message)

    def _keep(self) -> None:
        self._write("")
        self._said, self._next = self.last, self._clock() + LINE_EVERY
        inform_line(self.last)

    def _write(self, text: str) -> None:
        if text or self._width:
            err.file.write(f"\r{text:{self._width}}" + ("" if text else "\r"))
            err.file.flush()
        self._width = len(text)


def remark(notes: Sequence[str]) -> None:
    """Say what was found out about the data."""
    for note in notes:
        err.print(f"Note: {printable(note)}", markup=False, highlight=False, soft_wrap=True)


def answer(message: str) -> None:
    """Say what came out."""
    out.print(printable(message), highlight=False)


def answer_line(message: str) -> None:
    """Say what came out in one line, whose paths are not broken."""
    out.print(printable(message), highlight=False, soft_wrap=True)


def print_names() -> None:
    """The names that the catalogue knows."""
    for title, parts in (
        ("models", MODELS),
        ("priors", catalogue.PRIORS),
        ("likelihoods", catalogue.LIKELIHOODS),
        ("guides", catalogue.GUIDES),
        ("codebooks", catalogue.CODEBOOKS),
        ("estimators of categorical", catalogue.ESTIMATORS),
        ("norms", catalogue.NORMS),
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
            elif isinstance(part, catalogue.Model) and part.several:
                notes.append("needs several columns of labels")
            _row(table, f"  {name}", "; ".join(notes))
        out.print(table, highlight=False)
    answer(f"nets: {', '.join(catalogue.NETS)}; data: {', '.join(NAMES)}, or a file")


def print_table(shown: Shown, first: str) -> None:
    """Lines of text, the first column of which gives way where there is no room, and never a number."""
    table = Table(title=shown.title)
    for name in shown.columns:
        table.add_column(name, justify="left" if name == first else "right", no_wrap=name != first, overflow="fold")
    for line in shown.lines:
        _row(table, *line)
    out.print(table)


def print_results(results: Mapping[str, Any], probability: str) -> None:
    """The table of a run: log p(x) or log p(x | c) of the test rows, with the standard error of the mean over rows."""
    print_table(results_table(results, probability), "quantity")
    for remark_on in remarks_on_results(results):
        answer(remark_on)


def print_comparison(found: list[dict[str, Any]], what: str) -> None:
    """log p(x) of several runs, and the mixture of them that predicts best."""
    for shown in comparison_tables(found, what):
        print_table(shown, "run")
    for remark_on in remarks_on_comparison(found):
        answer(remark_on)


def print_findings(report: Report, log_abs_det: float = 0.0) -> None:
    """What a check has found, a line for each question, and below it what to try."""
    about = report.about
    table = Table(title=f"{about['rows']} of {about['held_out_rows']} test rows, {about['num_samples']} draws a row")
    table.add_column("")
    table.add_column("question", ratio=2)
    table.add_column("found", ratio=5)
    styles = {"bad": "bold red", "look": "yellow", "ok": "green", "none": "dim"}
    for found in report.findings:
        _row(table, Text(found.verdict, style=styles[found.verdict]), found.name, found.says)
    out.print(table, highlight=False)
    for found in [*report.of("bad"), *report.of("look")]:
        answer(f"{found.name} ({found.verdict}). Good: {found.good}. {found.advice}")
    if log_abs_det:
        answer(
            f"Densities are of standardised columns; in the units of the data they are {-log_abs_det:+.2f} nats per row."
        )
    counts = ", ".join(f"{len(report.of(kind))} {kind}" for kind in ("bad", "look", "ok"))
    answer(f"{counts}. Tests change a verdict at a level of {about['level']:.0%} for the whole report (Holm).")


def print_outliers(found: Outliers) -> None:
    """The strangest rows: those that are called outliers, or a few to look at."""
    title = f"{found.called} of {found.rows} rows are called outliers, at a rate of {found.rate:g}; the strangest"
    table = Table(title=title)
    numbers = [name for name in found.worst if name.startswith("column_")]
    table.add_column(str(found.worst.columns[0]))
    for name in ("score, nats", "p-value", "outlier"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("strange in")
    for _, row in found.worst.iterrows():
        strange = [f"{row[name]} (p {row['p_' + name]:.2g})" for name in numbers if row[f"p_{name}"] <= STRANGE]
        score = f"{row['score']:.2f} ± {row['error']:.2f}"
        _row(
            table, str(row.iloc[0]), score, f"{row['p_value']:.2g}", "yes" if row["outlier"] else "", ", ".join(strange)
        )
    out.print(table, highlight=False)
    for note in found.notes:
        answer(note)


def print_classes(found: Sequence[Told], own: bool) -> None:
    """How many labels were unknown in each column, and of those that are known how many are predicted rightly."""
    table = Table()
    shares = [one for one in found if one.known and not own]  # of the run's own rows, the model has seen labels
    for name in ("column", "rows without a label", *(["known ones that are right"] if shares else [])):
        table.add_column(name, justify="left" if name == "column" else "right")
    for one in found:
        right = [share(one.right / one.known, one.known) if one.known else ""] if shares else []
        _row(table, one.name, one.unknown, *right)
    out.print(table, highlight=False)
    for one in shares:
        if one.seen:
            answer(
                f"The run was trained on {one.seen} of the {one.known} rows with a label in column {one.name}, and on their "
                "labels, so that more of these are right than would be of new rows."
            )


STRANGE = 0.05  # p-value of a column that is named


def print_report(report: Mapping[str, Any]) -> None:
    """How good the labels of the held-out rows are."""
    if not report["held_out"]:
        answer("No labelled row is held out, so nothing is known about how good the labels are.")
        return
    rows = counted(report["held_out"], "held-out row")
    if report.get("folds"):
        rows = f"{counted(report['held_out'], 'labelled row')}, each predicted without its label"
    table = Table(title=rows)
    table.add_column("quantity")
    table.add_column("value", justify="right")
    _row(table, "accuracy", share(report["accuracy"], report["held_out"]))
    parts = {"classifier": "the model's classifier", "ensemble": "the ensemble"}
    parts = {name: what for name, what in parts.items() if f"accuracy_of_{name}" in report}
    if len(parts) > 1:
        for name, what in parts.items():
            _row(table, f"accuracy of {what} alone", share(report[f"accuracy_of_{name}"], report["held_out"]))
    if "logistic_regression" in report:
        _row(
            table,
            "accuracy of a logistic regression on the same labels",
            share(report["logistic_regression"], report["held_out"]),
        )
    _row(table, "calibration error", f"{report['calibration_error']:.3f}")
    _row(table, "calibration error expected by chance", f"{report['calibration_error_of_chance']:.3f}")
    _row(table, "log-loss, nats per row", f"{report['log_score']:.3f}")
    out.print(table)
    answer(_calibration(report["weights"], parts))
    answer("Shares are with their 95% intervals.")


def _calibration(powers: Mapping[str, float] | None, parts: Mapping[str, str]) -> str:
    """How probabilities were made those that stand in the table: what was fitted to labels that no part had seen."""
    if powers is None:
        return (
            "The probabilities are not calibrated, and may be too sure: calibration needs "
            f"{labelling.ENOUGH} such rows, {labelling.MISTAKES} of them predicted wrongly."
        )
    raised = " times ".join(f"those of {what} to the power of {powers[name]:.2f}" for name, what in parts.items())
    return f"Probabilities are calibrated by these rows: {raised}, made to add up to 1 (a power below 1 makes them less sure)."


def print_next_rows(labelled: pd.DataFrame) -> None:
    """The rows to label next."""
    first = labelled.sort_values("rank").head(5).dropna(subset="rank")
    table = Table(title="To label next", box=None, pad_edge=False)
    for name in (labelled.columns[0], "most probable", "probability", "margin"):
        table.add_column(name, justify="right" if name in ("probability", "margin") else "left", overflow="fold")
    for row in first.itertuples(index=False):
        _row(table, row[0], row.predicted, f"{row.probability:.2f}", f"{row.margin:.2f}")
    out.print(table, highlight=False)

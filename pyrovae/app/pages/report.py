"""The report on a run as one HTML file: data, graph, curves, pictures, criticism and comparison."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from pyrovae.app.pages import check
from pyrovae.app.pages.html import document, figure, paragraph, picture, picture_of, table
from pyrovae.app.results import Shown
from pyrovae.criticism.report import Report

# How each picture is to be read, by its name.
CAPTIONS = {
    "training": "The ELBO of each epoch, higher is better. Where the validation rows fall while the training rows still rise, "
    "the fit learns its rows by heart; a curve that still rises at the end asks for more epochs.",
    "reconstructions": "Rows that the fit has not seen, and what the decoder makes of their codes. What is missing in all of "
    "them, the codes do not hold: more latent dimensions, or a larger network.",
    "columns": "Each point is a test row: what it has in a column, across, and what the decoder makes of its code, upwards. On "
    "the line, the code holds the column; a level cloud is a column of which it knows nothing. Of classes, discs "
    "are as large as the numbers of rows.",
    "samples": "What the model takes rows to look like. Samples that are worse than the reconstructions come from codes that "
    "no row has: the prior is at odds with the codes of rows, and a richer prior helps.",
    "levels": "Each column holds the levels that its name says at one draw, and draws the others anew. What differs within a "
    "column is what the other levels stand for.",
    "manifold": "The decoder over the plane of codes. Neighbours should look alike; where it looks like nothing, no row is.",
    "latent": "Codes of test rows. Groups that lie apart are kinds of rows that the model tells apart.",
    "labelled": "Codes of test rows. Where colours part, the codes hold the label, which the model may never have seen.",
    "t-SNE": "The same codes, so that neighbours stay neighbours. Sizes of groups and distances between them mean nothing.",
    "UMAP": "The same codes, so that neighbours stay neighbours. Distances between groups mean little.",
    "reliability": "Of rows that are given a probability of 0.8, four in five should be right: a calibrated classifier is on "
    "the diagonal, an overconfident one below it. Vertical lines are 95 % intervals.",
}
GROUPS = {
    "curves": ("How did the fit go?", ("training",)),
    "samples": ("What has it learned?", ("reconstructions", "samples", "levels", "manifold")),
    "codes": ("Where are the rows in the latent space?", ("latent", "t-SNE", "UMAP")),
    "classes": ("Are its class probabilities right?", ("reliability",)),
}


@dataclass(frozen=True)
class RunReport:
    """What a report on a run holds.

    Args:
        title: the title of its page.
        about: lines on the data, the model and the fit.
        columns: what each column of a table is; None of other rows.
        results: the table of the run, and remarks on it.
        graph: the factorisation of model and guide, as text, by the rows that it is for; "" if all rows are alike.
        graph_files: pictures of the graph in the run folder.
        pictures: the axes of its pictures, by a name of `GROUPS`, or such a name and of what: "reliability of species".
        checked: what `pyrovae check` finds.
        comparison: tables of the run beside others, and remarks on them.
        options: every option of the run and its value.
    """

    title: str
    about: list[str]
    columns: str | None
    results: tuple[Shown, list[str]]
    graph: dict[str, str]
    graph_files: list[Path]
    pictures: dict[str, Any]
    checked: Report
    options: Shown
    comparison: tuple[list[Shown], list[str]] = field(default_factory=lambda: ([], []))


def page(report: RunReport) -> str:
    """The page as text."""
    shown, remarks = report.results
    parts = {
        "numbers": ("How good is it?", table(shown) + "".join(map(paragraph, remarks))),
        "comparison": ("Is it better than others?", _comparison(report)),
        "graph": ("What is the model?", _graph(report)),
        **{name: (title, _pictures(report, names)) for name, (title, names) in GROUPS.items()},
        "check": ("What do the checks say?", check.summary(report.checked)),
        "options": ("With what was it fitted?", table(report.options)),
    }
    links = "".join(f'<a href="#{name}">{html.escape(title)}</a>' for name, (title, body) in parts.items() if body)
    body = "".join(map(paragraph, report.about)) + f"<nav>{links}</nav>"
    for name, (title, content) in parts.items():
        if content:
            body += f'<section id="{name}"><h2>{html.escape(title)}</h2>{content}</section>'
        if name == "check":
            body += check.answers(report.checked)
    return document(report.title, f"{body}<footer>{check.about(report.checked)}</footer>")


def _comparison(report: RunReport) -> str:
    tables, remarks = report.comparison
    return "".join(map(table, tables)) + "".join(map(paragraph, remarks))


def _graph(report: RunReport) -> str:
    """The factorisation of model and guide, its pictures, and what each column of a table is."""
    texts = "".join(
        (paragraph(which) if which else "") + f"<pre>{html.escape(text)}</pre>" for which, text in report.graph.items()
    )
    drawn = "".join(
        figure(
            picture_of(path.read_bytes(), "the graphical model"),
            "The generative model. Grey nodes are observed, a box is repeated for each row.",
        )
        for path in report.graph_files
    )
    columns = "" if report.columns is None else f"<pre>{html.escape(report.columns)}</pre>"
    return texts + drawn + columns


def _pictures(report: RunReport, names: tuple[str, ...]) -> str:
    return "".join(
        figure(picture(axes, name), caption(name, axes))
        for wanted in names
        for name, axes in report.pictures.items()
        if name == wanted or name.startswith(f"{wanted} of ")
    )


def caption(name: str, axes: Any) -> str:
    """How a picture of this name is to be read."""
    if name == "reconstructions" and not isinstance(axes, Axes):  # a picture for each column
        return CAPTIONS["columns"]
    if name == "latent" and axes.get_legend() is not None:
        return CAPTIONS["labelled"]
    return CAPTIONS[name.partition(" of ")[0]]

"""The report on a fit as one HTML file: its findings, what to try, and pictures, with nothing to load from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyrovae._arguments import as_path
from pyrovae._files import write_file
from pyrovae._version import __version__
from pyrovae.app.pages.html import document, figure, paragraph, picture
from pyrovae.criticism.findings import BAD, LOOK, NONE, OK, Finding
from pyrovae.criticism.report import Report
from pyrovae.criticism.units import INACTIVE
from pyrovae.errors import counted
from pyrovae.plots import findings as pictures

WORDS = {OK: "ok", LOOK: "look", BAD: "bad", NONE: "not asked"}
PARTS = {
    "bounds": "How probable are the rows?",
    "predictions": "Do rows drawn from the model look like the data?",
    "latent variables": "What do the latent variables say?",
    "guide": "Is the guide the posterior of its model?",
}

SCORES = (
    "A point is one number, such as the mean of one column. The grey band has those of which the data are like another draw of "
    "the model; points to the right are larger in the data than in the model."
)


def save_page(report: Report, path: str | Path, title: str = "Is this fit any good?") -> Path:
    """Write a report as one HTML file that holds its pictures and needs no network.

    Args:
        report: What `pv.criticise` returns.
        path: The file, which is replaced if it is there.
        title: The title of the page.

    Returns:
        The path of the file.

    Example:
        >>> finding = pv.Finding("copies of training rows", "bounds", "3 % stand there", "none", "bad", "Split anew.")
        >>> path = pv.save_page(pv.Report((finding,)), "check.html")
        >>> "Split anew." in path.read_text()
        True
    """
    path = as_path("path", path)
    write_file(path, page(report, str(title)).encode())
    return path


def page(report: Report, title: str) -> str:
    """The page as text."""
    return document(title, f"{summary(report)}{answers(report)}<footer>{about(report)}</footer>")


def summary(report: Report) -> str:
    """How many findings are bad, and a line for each that leads to its place on the page."""
    rows = "".join(
        f'<tr><td>{_mark(f)}</td><td><a href="#f{i}">{html.escape(f.name)}</a></td><td>{html.escape(f.says)}</td></tr>'
        for i, f in enumerate(report.findings)
    )
    return f'<p>{_counts(report)}</p><div class="wide"><table class="summary"><tbody>{rows}</tbody></table></div>'


def answers(report: Report) -> str:
    """Every finding with what good looks like, what to try, and its pictures, in the order of the parts."""
    parts = dict.fromkeys([*PARTS, *(f.part for f in report.findings)])
    return "".join(_section(report, part) for part in parts)


def _section(report: Report, part: str) -> str:
    found = [(i, f) for i, f in enumerate(report.findings) if f.part == part]
    if not found:
        return ""
    articles = "".join(_article(i, f) for i, f in found)
    shared = (
        figure(picture(pictures.scores(z), "posterior predictive checks"), SCORES)
        if (z := _scores(report)) and part == "predictions"
        else ""
    )
    return f"<section><h2>{html.escape(PARTS.get(part, part))}</h2>{shared}{articles}</section>"


def _article(number: int, found: Finding) -> str:
    p = "" if found.adjusted is None else f" p = {found.adjusted:.2g} after correction for all tests of the report."
    good = f'<p class="good">Good: {html.escape(found.good)}.{p}</p>' if found.good else ""
    advice = f'<p class="advice">{html.escape(found.advice)}</p>' if found.advice else ""
    drawn = "".join(
        figure(picture(axes, f"{found.name}: {axes.get_title(loc='left')}"), how) for axes, how in _pictures(found)
    )
    return (
        f'<article id="f{number}"><h3>{_mark(found)} {html.escape(found.name)}</h3>'
        f"<p>{html.escape(found.says)}.</p>{good}{advice}{_worst(found)}{drawn}</article>"
    )


def _worst(found: Finding) -> str:
    """The rows that are worst, as a table."""
    rows = found.curves.get("worst_rows")
    if not rows:
        return ""
    head = "<tr><th>row with a large k-hat</th><th>k-hat</th><th>log p(x)</th></tr>"
    body = "".join(f"<tr><td>{row}</td><td>{k:.2f}</td><td>{value:.2f}</td></tr>" for row, k, value in rows)
    least = ", ".join(f"{row} ({value:.1f})" for row, value in found.curves["least_probable_rows"])
    return f"<table>{head}{body}</table><p>Least probable rows: {least}.</p>"


def _scores(report: Report) -> dict[str, Any]:
    return {f.name: f.curves["z"] for f in report.findings if "z" in f.curves}


def _pictures(found: Finding) -> Iterator[tuple[Any, str]]:
    """The axes of the pictures of a finding, by the numbers that it holds, each with a sentence on how to read it."""
    curves = found.curves
    if "particles" in curves:
        bounds = pictures.rising_bounds(curves["particles"], curves["bound"], curves["log_likelihood"])
        yield (
            bounds,
            "The bound rises to log p(x) as draws are added. If it is far below at the right end, the guide is poor.",
        )
    if "k_hat" in curves:
        yield (
            pictures.distributions({"k-hat": curves["k_hat"]}, "k-hat", found.values["k_hat_threshold"]),
            "Of rows to the right of the line log p(x) is not to be trusted: few draws carry nearly all of the weight.",
        )
    if "gap" in curves:
        yield (
            pictures.distributions({"gap": curves["gap"]}, "log p(x) - ELBO, nats"),
            "How much of log p(x) the guide loses, row by row. A long tail to the right: it fits some rows badly.",
        )
    if "training" in curves:
        both = {"training rows": curves["training"], "rows held out": curves["held_out"]}
        yield (
            pictures.distributions(both, "log p(x), nats"),
            "Both should lie on one another. Rows held out that lie further left are less probable than those of the fit.",
        )
    if "to_training" in curves:
        both = {"rows held out": curves["to_training"], "training rows": curves["within_training"]}
        yield (
            pictures.distributions(both, "distance to the nearest other training row"),
            "Both should lie on one another. A bar at 0 is of rows that stand twice in the data.",
        )
    if "histogram" in curves:
        yield (
            pictures.transforms(curves["histogram"]),
            "Flat: predictions are as sure as they should be. High at both ends: too sure; high in the middle: too cautious.",
        )
    if "idle" in curves and len(curves["share"]) > 1:
        yield (
            pictures.units(curves["share"], curves["kl"], found.name.rpartition(" ")[2], INACTIVE),
            "What each latent dimension says of a row, the busiest first; those in another colour say nothing.",
        )
    if "prior" in curves:
        yield (
            pictures.two_clouds(curves["codes"], curves["prior"]),
            "Both clouds should lie on one another. Where only the prior is, new rows are drawn from codes that no row has.",
        )
    if "at" in curves:
        yield (
            pictures.departures(curves["at"], curves["low"], curves["high"], curves["units"]),
            "Curves in the grey band: the guide is as good as the posterior. A wave that is first high and then low: it is "
            "too narrow; first low and then high: too wide; an arch to one side: it is displaced.",
        )


def _mark(found: Finding) -> str:
    return f'<span class="mark {found.verdict}">{WORDS[found.verdict]}</span>'


def _counts(report: Report) -> str:
    return ", ".join(f"{len(some)} {WORDS[kind]}" for kind in (BAD, LOOK, OK, NONE) if (some := report.of(kind))) + "."


def about(report: Report) -> str:
    """What the report rests on."""
    said = report.about
    if not said:
        return paragraph(f"pyrovae {__version__}")
    training = f", {counted(said['training_rows'], 'training row')}" if said["training_rows"] else ""
    return paragraph(
        f"{said['rows']} of {said['held_out_rows']} rows held out{training}; {said['num_samples']} draws a row of the "
        f"{said['proposal']} proposal; seed {said['seed']}. Verdicts that rest on tests change at a level of "
        f"{said['level']:.0%} for all tests of the report together (Holm). pyrovae {__version__}."
    )

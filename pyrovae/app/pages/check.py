"""The report on a fit as one HTML file: its findings, what to try, and pictures, with nothing to load from elsewhere."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyrovae._files import write_file
from pyrovae._version import __version__
from pyrovae.criticism.findings import BAD, LOOK, NONE, OK, Finding
from pyrovae.criticism.report import Report
from pyrovae.criticism.units import INACTIVE
from pyrovae.plots import findings as pictures

WORDS = {OK: "ok", LOOK: "look", BAD: "bad", NONE: "not asked"}
PARTS = {
    "bounds": "How probable are the rows?",
    "predictions": "Do rows drawn from the model look like the data?",
    "latent variables": "What do the latent variables say?",
    "guide": "Is the guide the posterior of its model?",
}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .25rem .6rem; vertical-align: top; }
tr { border-bottom: 1px solid #eee; } article { margin: 1.2rem 0; overflow: hidden; } article h3 { margin: 0; font-size: 1rem; }
article p { margin: .2rem 0; } img { max-width: 100%; display: block; margin: .4rem 0; }
.mark { display: inline-block; min-width: 4.2rem; text-align: center; border-radius: .3rem; color: #fff; font-size: .8rem; }
.ok { background: #009e73; } .look { background: #b37400; } .bad { background: #c0392b; } .none { background: #888; }
.good, footer { color: #666; font-size: .9rem; } .advice { border-left: 3px solid #b37400; padding-left: .6rem; }
"""


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
    path = Path(path)
    write_file(path, page(report, title).encode())
    return path


def page(report: Report, title: str) -> str:
    """The page as text."""
    rows = "".join(
        f'<tr><td>{_mark(f)}</td><td><a href="#f{i}">{html.escape(f.name)}</a></td><td>{html.escape(f.says)}</td></tr>'
        for i, f in enumerate(report.findings)
    )
    parts = dict.fromkeys([*PARTS, *(f.part for f in report.findings)])
    sections = "".join(_section(report, part) for part in parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1>"
        f"<p>{_counts(report)}</p><table><tbody>{rows}</tbody></table>{sections}<footer><p>{_about(report)}</p></footer>"
        "</body></html>\n"
    )


def _section(report: Report, part: str) -> str:
    found = [(i, f) for i, f in enumerate(report.findings) if f.part == part]
    if not found:
        return ""
    articles = "".join(_article(i, f) for i, f in found)
    shared = (
        _png(pictures.scores(z), "posterior predictive checks")
        if (z := _scores(report)) and part == "predictions"
        else ""
    )
    return f"<section><h2>{html.escape(PARTS.get(part, part))}</h2>{shared}{articles}</section>"


def _article(number: int, found: Finding) -> str:
    p = "" if found.adjusted is None else f" p = {found.adjusted:.2g} after correction for all tests of the report."
    good = f'<p class="good">Good: {html.escape(found.good)}.{p}</p>' if found.good else ""
    advice = f'<p class="advice">{html.escape(found.advice)}</p>' if found.advice else ""
    drawn = "".join(_png(axes, f"{found.name}: {axes.get_title(loc='left')}") for axes in _pictures(found))
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


def _pictures(found: Finding) -> Iterator[Any]:
    """The axes of the pictures of a finding, by the numbers that it holds."""
    curves = found.curves
    if "particles" in curves:
        yield pictures.rising_bounds(curves["particles"], curves["bound"], curves["log_likelihood"])
    if "k_hat" in curves:
        yield pictures.distributions({"k-hat": curves["k_hat"]}, "k-hat", found.values["k_hat_threshold"])
    if "gap" in curves:
        yield pictures.distributions({"gap": curves["gap"]}, "log p(x) - ELBO, nats")
    if "training" in curves:
        both = {"training rows": curves["training"], "rows held out": curves["held_out"]}
        yield pictures.distributions(both, "log p(x), nats")
    if "to_training" in curves:
        both = {"rows held out": curves["to_training"], "training rows": curves["within_training"]}
        yield pictures.distributions(both, "distance to the nearest other training row")
    if "histogram" in curves:
        yield pictures.transforms(curves["histogram"])
    if "idle" in curves and len(curves["share"]) > 1:
        yield pictures.units(curves["share"], curves["kl"], found.name.rpartition(" ")[2], INACTIVE)
    if "prior" in curves:
        yield pictures.two_clouds(curves["codes"], curves["prior"])
    if "at" in curves:
        yield pictures.departures(curves["at"], curves["low"], curves["high"], curves["units"])


def _png(axes: Any, text: str) -> str:
    with io.BytesIO() as content:
        axes.get_figure(root=True).savefig(content, format="png", dpi=110, bbox_inches="tight", facecolor="white")
        code = base64.b64encode(content.getvalue()).decode()
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{code}">'


def _mark(found: Finding) -> str:
    return f'<span class="mark {found.verdict}">{WORDS[found.verdict]}</span>'


def _counts(report: Report) -> str:
    return ", ".join(f"{len(some)} {WORDS[kind]}" for kind in (BAD, LOOK, OK, NONE) if (some := report.of(kind))) + "."


def _about(report: Report) -> str:
    about = report.about
    if not about:
        return html.escape(f"pyrovae {__version__}")
    training = f", {about['training_rows']} training rows" if about["training_rows"] else ""
    return html.escape(
        f"{about['rows']} of {about['held_out_rows']} rows held out{training}; {about['num_samples']} draws a row of the "
        f"{about['proposal']} proposal; seed {about['seed']}. Verdicts that rest on tests change at a level of "
        f"{about['level']:.0%} for all tests of the report together (Holm). pyrovae {__version__}."
    )

"""Checking: every question about a run that its fit can answer, written as a page and as JSON into its folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pyrovae._files import write_file
from pyrovae.app.pages.check import save_page
from pyrovae.app.run import Run
from pyrovae.criticism.report import Report, as_text, criticise

PAGE = "check.html"


def check_run(
    run: Run,
    *,
    num_rows: int,
    num_samples: int,
    proposal: str,
    seed: int = 0,
    say: Callable[[str], None] | None = None,
) -> Report:
    """The report on a run: its test rows beside its training rows.

    Args:
        num_rows: the most rows of each that are looked at.
        num_samples: draws per row.
        proposal: of these draws, "refined", "laplace" or "guide".
        say: called with the name of each question.
    """
    rows = run.rows
    return criticise(
        run.fitted,
        rows.batch("test"),
        train=rows.batch("train", labels=False),
        num_rows=num_rows,
        num_samples=num_samples,
        proposal=proposal,
        image_shape=rows.image_shape,
        seed=seed,
        say=say,
    )


def write_report(report: Report, run: Run, path: Path) -> list[Path]:
    """Write the page, and the same as JSON beside it."""
    data = path.with_suffix(".json")
    save_page(report, path, f"{run.dataset.name}: is this fit any good?")
    write_file(data, as_text(report).encode())
    return [path, data]

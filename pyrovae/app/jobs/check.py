"""Checking: every question about a run that its fit can answer, written as a page and as JSON into its folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyrovae._files import write_file
from pyrovae.app.pages.check import save_page
from pyrovae.app.run import Run
from pyrovae.app.scores import rows_for_densities
from pyrovae.criticism.evidence import Evidence
from pyrovae.criticism.findings import Finding, grade, normal_p
from pyrovae.criticism.report import Report, as_text, criticise
from pyrovae.tables.baselines import FITTED, baselines

PAGE = "check.html"
MOST_FOR_KERNELS = 2000  # training rows, for a kernel estimate, which takes a time that is quadratic in them


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
        columns=_columns_of(run),
        also={"other_densities": lambda evidence: other_densities(run, evidence)},
        seed=seed,
        say=say,
    )


def _columns_of(run: Run) -> Sequence[str] | Mapping[str, Any] | None:
    """The names of a table's columns and what their numbers are, as far as the run knows them."""
    if run.rows.schema is not None:
        return run.rows.schema.meanings
    return run.rows.columns if len(run.rows.columns or ()) == run.rows.test[0].numel() else None


def other_densities(run: Run, evidence: Evidence) -> list[Finding]:
    """How probable the same rows held out are by densities without a latent variable, for tables without gaps."""
    known = rows_for_densities(run)
    if known is None:
        return []
    schema = run.rows.schema
    assert schema is not None
    names = [name for name in FITTED if name != "kernel density" or len(known) <= MOST_FOR_KERNELS]
    found = baselines(schema, known, evidence.rows["x"].cpu(), names=names, seed=evidence.seed)
    model = evidence.estimated.log_likelihood.cpu()
    means = {name: log_p.mean().item() for name, log_p in found.items()}
    best = max(means, key=lambda name: means[name])
    above = model - found[best]
    mean, error = above.mean().item(), max((above.std() / math.sqrt(len(above))).item(), 1e-12)
    others = ", ".join(f"{name} by {means[best] - means[name]:.2f}" for name in means if name != best)
    return [
        Finding(
            "other densities",
            "bounds",
            f"log p(x) of rows held out is {abs(mean):.2f} ± {error:.2f} nats {'above' if mean >= 0 else 'below'} that by the "
            f"best of scikit-learn's densities, {best} (which is above {others})",
            "a model that is no worse than a density without a latent variable",
            grade(-mean, 0.1, 1.0),
            f"For these rows {best} is the better density: train for longer, give the model a richer prior "
            "(--prior full-mixture or full-mixture-nsf) or more latent dimensions, or take that density.",
            values={
                "above_best": mean,
                "above_best_se": error,
                **{f"log_p_{n.replace(' ', '_')}": m for n, m in means.items()},
            },
            # the best of several, chosen on these rows
            p_value=min(1.0, len(names) * normal_p(mean / error)) if mean < 0 else 1.0,
        )
    ]


def write_report(report: Report, run: Run, path: Path) -> list[Path]:
    """Write the page, and the same as JSON beside it."""
    data = path.with_suffix(".json")
    save_page(report, path, f"{run.dataset.name}: is this fit any good?")
    write_file(data, as_text(report).encode())
    return [path, data]

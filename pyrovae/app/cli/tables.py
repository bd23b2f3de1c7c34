"""What the commands print: messages and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pyrovae._lazily import Lazily
from pyrovae._sources import NAMES
from pyrovae.app import catalogue
from pyrovae.app.models import MODELS

if TYPE_CHECKING:
    import pandas as pd

    from pyrovae.app.jobs import label as labelling
    from pyrovae.app.jobs.outliers import Outliers
    from pyrovae.criticism import calibration
    from pyrovae.criticism.report import Report
else:
    calibration = Lazily("pyrovae.criticism.calibration")
    labelling = Lazily("pyrovae.app.jobs.label")

out = Console(markup=False, emoji=False)
err = Console(stderr=True, markup=False, emoji=False)
ACCURACIES = {
    "accuracy_guide": "right classes by the guide",
    "accuracy_joint": "right classes by the joint model",
    "accuracy_clusters": "right classes by clusters' majorities",
}


DOUBT = {  # what to say where many rows have a large k-hat, after the limit
    "guide": "the guide's means are displaced on these rows, or it is too narrow, and its draws do not carry log p(x): read "
    "that number as a lower bound. Try --proposal refined, or a richer --guide, such as full or iaf.",
    "laplace": "the posterior is far from a Normal around its mode: read log p(x) as a lower bound. Try --proposal refined.",
    "refined": "the posterior has more modes or longer tails than the draws reach: read log p(x) as a lower bound. Try a "
    "larger --num-samples.",
}


def complain(message: str) -> None:
    err.print(f"Error: {message}", style="bold red", markup=False, highlight=False, soft_wrap=True)


def inform(message: str) -> None:
    """Say something on the way, on stderr."""
    err.print(message, markup=False, highlight=False)


def remark(notes: Sequence[str]) -> None:
    """Say what was found out about the data."""
    for note in notes:
        err.print(f"Note: {note}", markup=False, highlight=False, soft_wrap=True)


def answer(message: str) -> None:
    """Say what came out."""
    out.print(message, highlight=False)


def answer_line(message: str) -> None:
    """Say what came out in one line, whose paths are not broken."""
    out.print(message, highlight=False, soft_wrap=True)


def print_names() -> None:
    """The names that the catalogue knows."""
    for title, parts in (
        ("models", MODELS),
        ("priors", catalogue.PRIORS),
        ("likelihoods", catalogue.LIKELIHOODS),
        ("guides", catalogue.GUIDES),
        ("codebooks", catalogue.CODEBOOKS),
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
            table.add_row(f"  {name}", "; ".join(notes))
        out.print(table, highlight=False)
    answer(f"nets: {', '.join(catalogue.NETS)}; data: {', '.join(NAMES)}, or a file")


def print_results(results: Mapping[str, Any], probability: str) -> None:
    """The table of a run: log p(x) or log p(x | c) of the test rows, with the standard error of the mean over rows."""

    def with_error(name: str, kind: str = ".2f") -> str:
        error = results[f"{name}_se"]
        return f"{results[name]:{kind}}" + (f" ± {error:{kind}}" if math.isfinite(error) else "")

    picked = results["log_likelihood_rows"]
    few = "" if picked == results["test_rows"] else f", first {picked} rows"
    quantised = "code_perplexity" in results  # all draws of the guide are one, so that they give the ELBO
    draws = "" if quantised else f", {results['num_samples']} {results['proposal']} draws a row"
    table = Table(title=f"{results['test_rows']} test rows{draws}")
    table.add_column("quantity")
    table.add_column("value", justify="right")
    table.add_row("ELBO, nats per row", with_error("elbo"))
    bound = ", at least" if quantised else ""
    table.add_row(f"log {probability}{bound}, nats per row{few}", with_error("log_likelihood"))
    if math.isfinite(results["log_likelihood_mc_se"]) and not quantised:
        table.add_row("  Monte Carlo error of that mean", f"{results['log_likelihood_mc_se']:.2g}")
    if "mixture_log_likelihood" in results:
        table.add_row(f"log p(x) of a Gaussian mixture{few}", with_error("mixture_log_likelihood"))
        table.add_row("  how much the model is above it", with_error("above_mixture", "+.2f").replace("± +", "± "))
    share, limit = results["k_hat_above_threshold"], f"{results['k_hat_threshold']:.2f}"
    if not quantised:
        table.add_row(
            f"rows with k-hat > {limit}{few}", _share(share, picked) if math.isfinite(share) else "needs 25 draws"
        )
    else:
        used = f"{results['codes_used']:.0f} of {results['codes']}"
        table.add_row("perplexity of codes", f"{results['code_perplexity']:.1f}, {used} in use")
    upper = [name.removeprefix("latent_units_") for name in results if name.startswith("latent_units_")]
    table.add_row(f"active units{' of z1' if upper else ''}", f"{results['active_units']} of {results['latent_units']}")
    for site in upper:
        table.add_row(
            f"active units of {site}", f"{results[f'active_units_{site}']} of {results[f'latent_units_{site}']}"
        )
    for name, what in ACCURACIES.items():
        if name in results:
            some = results["accuracy_rows"]
            rows = "" if some == results["test_rows"] else f", {some} rows"
            table.add_row(f"{what}{rows}", _share(results[name], some))
    if "clusters_used" in results:
        table.add_row("clusters with training rows", f"{results['clusters_used']}")
    if "fit_seconds" in results:
        table.add_row("time of the fit", f"{results['fit_seconds']:.1f} s")
    out.print(table)
    answer(overfitting(results))
    if results.get("above_mixture", 0.0) < -2 * results.get("above_mixture_se", math.inf):
        answer(
            "A Gaussian mixture predicts the test rows better. Try --prior full-mixture-nsf, --hidden 128,128, or another "
            "seed; or take the mixture, if a density is all that you need."
        )
    if results["log_abs_det"]:
        answer(
            "Densities are in the units of the data; those of the training curve and of history.csv are of standardised "
            f"columns, {results['log_abs_det']:+.2f} nats per row."
        )
    if share > 0.1 and not quantised:
        answer(f"Where k-hat is above {limit}, the limit for so many draws, {DOUBT[results['proposal']]}")


def overfitting(results: Mapping[str, Any]) -> str:
    """How far training and test rows are apart, and how much of it is the guide."""
    gap = results["train_elbo"] - results["elbo"]
    error = math.hypot(results["train_elbo_se"], results["elbo_se"])
    said = f"Training rows have an ELBO of {results['train_elbo']:.2f}"
    if not gap > 2 * error:  # NaN for a single row
        return f"{said}, no more above test rows than by chance ({gap:+.2f} ± {error:.2f})."
    if "code_perplexity" in results:
        return f"{said}, {gap:.2f} ± {error:.2f} nats above test rows."
    if results["proposal"] == "guide":  # its log p(x) is too low by what the guide lacks
        return f"{said}, {gap:.2f} ± {error:.2f} nats above test rows. --proposal refined tells how much of it is the guide."
    model = results["train_log_likelihood"] - results["log_likelihood"]
    return (
        f"{said}, {gap:.2f} ± {error:.2f} nats above test rows: {model:.2f} by log p(x), which the model has overfitted, and "
        f"{gap - model:.2f} by the guide, which knows the rows that it was trained on."
    )


def print_comparison(found: list[dict[str, Any]], what: str) -> None:
    table = Table(title=f"{found[0]['rows']} test rows; {what}, nats per row")
    for name in (
        "run",
        what.partition(":")[0].partition(",")[0],
        "difference",
        "bits per dim",
        f"k-hat > {max(entry['k_hat_threshold'] for entry in found):.2f}",
    ):
        # the name gives way, and never a number
        table.add_column(name, justify="left" if name == "run" else "right", no_wrap=name != "run", overflow="fold")
    for entry in found:
        best = entry is found[0]
        table.add_row(
            entry["run"],
            f"{'≥ ' if entry['bound'] else ''}{entry['log_likelihood']:.2f} ± {entry['log_likelihood_se']:.2f}",
            "" if best else f"{entry['difference']:.2f} ± {entry['difference_se']:.2f}",
            f"{entry['bits_per_dimension']:.3f}",
            f"{entry['k_hat_above_threshold']:.0%}"
            if math.isfinite(entry["k_hat_above_threshold"])
            else ("" if entry["bound"] else "needs 25 draws"),
        )
    out.print(table)
    mixture = Table(title="Orders, and the mixture of the runs that predicts these rows best")
    for name in ("run", "by log p", "ELBO", "by ELBO", "best for", "weight"):
        mixture.add_column(name, justify="left" if name == "run" else "right", no_wrap=name != "run", overflow="fold")
    for number, entry in enumerate(found, 1):
        ranks = str(number), f"{entry['elbo']:.2f}", str(entry["rank_by_elbo"])
        mixture.add_row(entry["run"], *ranks, f"{entry['wins']:.0%} of rows", f"{entry['stacking_weight']:.2f}")
    out.print(mixture)
    if [entry["rank_by_elbo"] for entry in found] != list(range(1, len(found) + 1)):
        answer(
            "The ELBO orders the runs otherwise than log p(x): it also pays for how near each guide is to its posterior."
        )
    if any(entry["bound"] for entry in found):
        answer(
            "≥: of a density, the mean over uniform noise added to whole numbers, which bounds the mass from below; of a model "
            "of codes, the ELBO."
        )


def print_findings(report: Report, log_abs_det: float = 0.0) -> None:
    """What a check has found, a line for each question, and below it what to try."""
    about = report.about
    table = Table(title=f"{about['rows']} of {about['held_out_rows']} test rows, {about['num_samples']} draws a row")
    table.add_column("")
    table.add_column("question", ratio=2)
    table.add_column("found", ratio=5)
    styles = {"bad": "bold red", "look": "yellow", "ok": "green", "none": "dim"}
    for found in report.findings:
        table.add_row(Text(found.verdict, style=styles[found.verdict]), found.name, found.says)
    out.print(table, highlight=False)
    for found in [*report.of("bad"), *report.of("look")]:
        answer(f"{found.name} ({found.verdict}). Good: {found.good}. {found.advice}")
    if log_abs_det:
        answer(
            f"Densities are of standardised columns; in the units of the data they are {-log_abs_det:+.2f} nats per row."
        )
    counts = ", ".join(f"{len(report.of(kind))} {kind}" for kind in ("bad", "look", "ok"))
    answer(f"{counts}. Tests change a verdict at a level of {about['level']:.0%} for the whole report (Holm).")


MOST_OUTLIERS = 10  # lines


def print_outliers(found: Outliers) -> None:
    """The strangest rows: those that are called outliers, or a few to look at."""
    called = len(found.found)
    worst = found.table.sort_values("rank").head(MOST_OUTLIERS)
    table = Table(
        title=f"{called} of {len(found.table)} rows are called outliers, at a rate of {found.rate:g}; the strangest"
    )
    numbers = [name for name in found.table if name.startswith("column_")]
    table.add_column(str(found.table.columns[0]))
    for name in ("score, nats", "p-value", "outlier"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("strange in")
    for _, row in worst.iterrows():
        strange = [f"{row[name]} (p {row['p_' + name]:.2g})" for name in numbers if row[f"p_{name}"] <= STRANGE]
        score = f"{row['score']:.2f} ± {row['error']:.2f}"
        table.add_row(
            str(row.iloc[0]), score, f"{row['p_value']:.2g}", "yes" if row["outlier"] else "", ", ".join(strange)
        )
    out.print(table, highlight=False)
    for note in found.notes:
        answer(note)


STRANGE = 0.05  # p-value of a column that is named


def _share(share: float, total: float) -> str:
    """A share of some rows and its interval, such as 83.3% (43.6 to 97.0%)."""
    low, high = calibration.share_interval(share, total)
    return f"{share:.1%} ({100 * low:.1f} to {high:.1%})"


def print_report(report: Mapping[str, Any]) -> None:
    """How good the labels of the held-out rows are."""
    if not report["held_out"]:
        answer("No labelled row is held out, so nothing is known about how good the labels are.")
        return
    rows = f"{report['held_out']} held-out rows"
    if report.get("folds"):
        rows = f"{report['held_out']} labelled rows, each predicted by a fit that had not seen its label"
    table = Table(title=rows)
    table.add_column("quantity")
    table.add_column("value", justify="right")
    table.add_row("accuracy", _share(report["accuracy"], report["held_out"]))
    if "accuracy_of_neighbors" in report:
        for name, what in (("classifier", "the model's classifier"), ("neighbors", "nearest neighbours")):
            table.add_row(f"accuracy of {what} alone", _share(report[f"accuracy_of_{name}"], report["held_out"]))
    if "logistic_regression" in report:
        table.add_row(
            "accuracy of a logistic regression on the same labels",
            _share(report["logistic_regression"], report["held_out"]),
        )
    table.add_row("calibration error", f"{report['calibration_error']:.3f}")
    table.add_row("calibration error expected by chance", f"{report['calibration_error_of_chance']:.3f}")
    table.add_row("log score, nats per row", f"{report['log_score']:.3f}")
    fitted = report["weights"]
    both = "accuracy_of_neighbors" in report
    counted = [] if fitted is None else [fitted["classifier"], *([fitted["neighbors"]] if both else [])]
    table.add_row(
        f"weight{'s' if both else ''} of classifier{' and neighbours' if both else ''}",
        " and ".join(f"{weight:.2f}" for weight in counted) or "not fitted",
    )
    out.print(table)
    if fitted is None:
        answer(
            "The probabilities are not calibrated, and may be too sure: calibration needs "
            f"{labelling.ENOUGH} such rows, {labelling.MISTAKES} of them predicted wrongly."
        )
    answer("Shares are with their 95% intervals.")


def print_next_rows(labelled: pd.DataFrame) -> None:
    """The rows to label next."""
    first = labelled.sort_values("rank").head(5).dropna(subset="rank")
    table = Table(title="To label next", box=None, pad_edge=False)
    for name in (labelled.columns[0], "most probable", "probability", "information, nats"):
        table.add_column(name, justify="right" if name[0] in "pi" and name != "id" else "left", overflow="fold")
    for row in first.itertuples(index=False):
        table.add_row(row[0], row.predicted, f"{row.probability:.2f}", f"{row.information_gain:.2f}")
    out.print(table, highlight=False)

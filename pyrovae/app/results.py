"""What a run's numbers say, as lines of text: for the terminal and for pages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyrovae._lazily import Lazily
from pyrovae.errors import counted

if TYPE_CHECKING:
    from pyrovae.criticism import calibration
else:
    calibration = Lazily("pyrovae.criticism.calibration")

ACCURACIES = {
    "accuracy_guide": "right classes by the guide",
    "accuracy_joint": "right classes by the joint model",
    "accuracy_clusters": "right classes by clusters' majorities",
}

OF_COLUMNS = {  # how one of several columns of labels is predicted
    "guide": "by the guide",
    "joint": "by the joint model",
    "given": "given the other labels that are known",
}

FEW_STEPS, MANY_EPOCHS = 1000, 500  # a third of those that a fit has by default, and epochs that make up for few rows
DOUBT = {  # what to say where many rows have a large k-hat, after the limit
    "guide": "the guide's means are displaced on these rows, or it is too narrow, and its draws do not carry log p(x): read "
    "that number as a lower bound. Try --proposal refined, or a richer --guide, such as full or iaf.",
    "laplace": "the posterior is far from a Normal around its mode: read log p(x) as a lower bound. Try --proposal refined.",
    "only_guide": "the guide's draws do not carry log p(x), and this model has no other proposal: read that number as a lower "
    "bound. Try a larger --num-samples.",
    "refined": "the posterior has more modes or longer tails than the draws reach: read log p(x) as a lower bound. Try a "
    "larger --num-samples.",
}


@dataclass(frozen=True)
class Shown:
    """A table of text: its title, its columns, and its lines."""

    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def results_table(results: Mapping[str, Any], probability: str) -> Shown:
    """The table of a run: log p(x) or log p(x | c) of the test rows, with the standard error of the mean over rows."""

    def with_error(name: str, kind: str = ".2f") -> str:
        error = results[f"{name}_se"]
        return f"{results[name]:{kind}}" + (f" ± {error:{kind}}" if math.isfinite(error) else "")

    def median(name: str, kind: str = ".2f") -> list[tuple[str, str]]:
        """A line for what few rows dominate: the median, which they do not move."""
        return [("  median row", f"{results[f'{name}_median']:{kind}}")] if results.get(f"{name}_far_rows") else []

    picked = results["log_likelihood_rows"]
    few = "" if picked == results["test_rows"] else f", first {counted(picked, 'row')}"
    quantised = "code_perplexity" in results  # all draws of the guide are one, so that they give the ELBO
    draws = "" if quantised else f", {results['num_samples']} {results['proposal']} draws a row"
    lines: list[tuple[str, str]] = [("ELBO, nats per row", with_error("elbo"))]
    bound = ", at least" if quantised else ""
    lines.append((f"log {probability}{bound}, nats per row{few}", with_error("log_likelihood")))
    lines += median("log_likelihood")
    if undefined := results.get("undefined_rows"):
        lines.append(("  rows left out, whose density is undefined", str(undefined)))
    if math.isfinite(results["log_likelihood_mc_se"]) and not quantised:
        lines.append(("  Monte Carlo error of that mean", f"{results['log_likelihood_mc_se']:.2g}"))
    if "mixture_log_likelihood" in results:
        lines.append((f"log p(x) of a Gaussian mixture{few}", with_error("mixture_log_likelihood")))
        lines += median("mixture_log_likelihood")
        lines.append(("  how much the model is above it", with_error("above_mixture", "+.2f").replace("± +", "± ")))
        lines += median("above_mixture", "+.2f")
    if not quantised:
        large, limit = results["k_hat_above_threshold"], f"{results['k_hat_threshold']:.2f}"
        lines.append(
            (f"rows with k-hat > {limit}{few}", share(large, picked) if math.isfinite(large) else "needs 25 draws")
        )
    else:
        used = f"{results['codes_used']:.0f} of {results['codes']}"
        lines.append(("perplexity of codes", f"{results['code_perplexity']:.1f}, {used} in use"))
    upper = [name.removeprefix("latent_units_") for name in results if name.startswith("latent_units_")]
    lines.append(
        (f"active units{' of z1' if upper else ''}", f"{results['active_units']} of {results['latent_units']}")
    )
    lines += [
        (f"active units of {site}", f"{results[f'active_units_{site}']} of {results[f'latent_units_{site}']}")
        for site in upper
    ]
    for name, what in ACCURACIES.items():
        if name in results:
            some = results["accuracy_rows"]
            rows = "" if some == results["test_rows"] else f", {counted(some, 'row')}"
            lines.append((f"{what}{rows}", share(results[name], some)))
    for one in results.get("labels", ()):
        rows = "" if one["rows"] == results["test_rows"] else f", {counted(one['rows'], 'row')}"
        lines += [
            (f"right {one['column']} {what}{rows}", share(one[name], one["rows"]))
            for name, what in OF_COLUMNS.items()
            if name in one
        ]
    if "clusters_used" in results:
        lines.append(("clusters with training rows", f"{results['clusters_used']}"))
    if "fit_seconds" in results:
        lines.append(("time of the fit", f"{results['fit_seconds']:.1f} s"))
    return Shown(f"{counted(results['test_rows'], 'test row')}{draws}", ("quantity", "value"), tuple(lines))


def remarks_on_results(results: Mapping[str, Any]) -> list[str]:
    """What the numbers of a run mean: overfitting, a better density, units, and how far they are to be trusted."""
    if said := results.get("diverged"):  # all other advice would be wrong
        return [
            f"{said[0].upper()}{said[1:]}. The numbers above say nothing of the model. Lower --learning-rate (by default "
            "3e-3), or set --clip-norm 10, and fit again."
        ]
    remarks = [*_few_steps(results), overfitting(results), *_few_rows(results)]
    if results.get("above_mixture", 0.0) < -2 * results.get("above_mixture_se", math.inf):
        other = "full-mixture" if results.get("prior") == "full-mixture-nsf" else "full-mixture-nsf"
        remarks.append(
            f"A Gaussian mixture predicts the test rows better. Try --prior {other}, --hidden 128,128, or another seed; or "
            "take the mixture, if a density is all that you need."
        )
    if results["log_abs_det"]:
        remarks.append(
            "Densities are in the units of the data; those of the training curve and of history.csv are of standardised "
            f"columns, {results['log_abs_det']:+.2f} nats per row."
        )
    if results["k_hat_above_threshold"] > 0.1 and "code_perplexity" not in results:
        limit = f"{results['k_hat_threshold']:.2f}"
        doubt = DOUBT["only_guide" if results.get("only_guide") else results["proposal"]]
        remarks.append(f"Where k-hat is above {limit}, the limit for so many draws, {doubt}")
    return remarks


def _few_steps(results: Mapping[str, Any]) -> list[str]:
    """A sentence where a fit was given far fewer steps than it has by default."""
    steps = results.get("steps", math.inf)
    if steps >= FEW_STEPS or results["epochs"] >= MANY_EPOCHS or "second_half_gain" not in results:
        return []
    return [
        f"The fit is short, {steps:,} steps, in the second half of which the validation ELBO changed by "
        f"{results['second_half_gain']:+.2f} nats per row. By default it has about 3,000 or more: leave out --epochs, or "
        "raise it."
    ]


def _few_rows(results: Mapping[str, Any]) -> list[str]:
    """A sentence where the mean of log p(x), of the model or of the mixture beside it, is one over few rows."""
    of = {"log_likelihood": "the model", "mixture_log_likelihood": "the Gaussian mixture"}
    found = {name: results.get(f"{name}_far_rows", 0) for name in of}
    if not any(found.values()):
        return []
    told = [
        f"{found[name]} under {whose} (the least log p(x) is {results[f'{name}_least']:.1f}, the median "
        f"{results[f'{name}_median']:.1f})"
        for name, whose in of.items()
        if found[name]
    ]
    rows = counted(results["log_likelihood_rows"], "test row")
    return [
        f"Few of the {rows} make most of the ± of the mean: {', and '.join(told)}. Such rows are all but impossible to a "
        "density that has not seen their like: compare medians, and look at these rows with `pyrovae outliers`."
    ]


def overfitting(results: Mapping[str, Any]) -> str:
    """How far training and test rows are apart, and how much of it is the guide."""
    gap = results["train_elbo"] - results["elbo"]
    error = math.hypot(results["train_elbo_se"], results["elbo_se"])
    said = f"Training rows have an ELBO of {results['train_elbo']:.2f}"
    if not gap > 2 * error:  # NaN for a single row
        return f"{said}, no more above test rows than by chance ({gap:+.2f} ± {error:.2f})."
    if "code_perplexity" in results or results.get("only_guide"):
        return f"{said}, {gap:.2f} ± {error:.2f} nats above test rows."
    if results["proposal"] == "guide":  # its log p(x) is too low by what the guide lacks
        return f"{said}, {gap:.2f} ± {error:.2f} nats above test rows. --proposal refined tells how much of it is the guide."
    model = results["train_log_likelihood"] - results["log_likelihood"]
    return (
        f"{said}, {gap:.2f} ± {error:.2f} nats above test rows: {model:.2f} by log p(x), which the model has overfitted, and "
        f"{gap - model:.2f} by the guide, which knows the rows that it was trained on."
    )


def comparison_tables(found: Sequence[Mapping[str, Any]], what: str) -> list[Shown]:
    """log p(x) of several runs, best first; and their orders and weights in the mixture that predicts these rows best."""
    limit = max(entry["k_hat_threshold"] for entry in found)
    columns = ("run", what.partition(":")[0].partition(",")[0], "difference", "bits per dim", f"k-hat > {limit:.2f}")
    values, orders = [], []
    for number, entry in enumerate(found, 1):
        share_above = entry["k_hat_above_threshold"]
        values.append(
            (
                str(entry["run"]),
                f"{'≥ ' if entry['bound'] else ''}{entry['log_likelihood']:.2f} ± {entry['log_likelihood_se']:.2f}",
                "" if number == 1 else f"{entry['difference']:.2f} ± {entry['difference_se']:.2f}",
                f"{entry['bits_per_dimension']:.3f}",
                f"{share_above:.0%}" if math.isfinite(share_above) else ("" if entry["bound"] else "needs 25 draws"),
            )
        )
        ranks = str(number), f"{entry['elbo']:.2f}", str(entry["rank_by_elbo"])
        orders.append((str(entry["run"]), *ranks, f"{entry['wins']:.0%} of rows", f"{entry['stacking_weight']:.2f}"))
    return [
        Shown(f"{counted(found[0]['rows'], 'test row')}; {what}, nats per row", columns, tuple(values)),
        Shown(
            "Orders, and the mixture of the runs that predicts these rows best",
            ("run", "by log p", "ELBO", "by ELBO", "best for", "weight"),
            tuple(orders),
        ),
    ]


def remarks_on_comparison(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the two orders of runs, and a bound among them, mean."""
    remarks = []
    if [entry["rank_by_elbo"] for entry in found] != list(range(1, len(found) + 1)):
        remarks.append(
            "The ELBO orders the runs otherwise than log p(x): it also pays for how near each guide is to its posterior."
        )
    if any(entry["bound"] for entry in found):
        remarks.append(
            "≥: of a density, the mean over uniform noise added to whole numbers, which bounds the mass from below; of a model "
            "of codes, the ELBO."
        )
    return remarks


def share(part: float, total: float) -> str:
    """A share of some rows and its interval, such as 83.3% (43.6 to 97.0%)."""
    low, high = calibration.share_interval(part, total)
    return f"{part:.1%} ({100 * low:.1f} to {high:.1%})"

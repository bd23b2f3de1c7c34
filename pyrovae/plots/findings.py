"""Pictures of a report on a fit: bounds, distributions, ranks, units and codes, from the numbers of its findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from pyrovae.plots.style import PALETTE, STYLE, axes_of, literal

GREY = "#888888"


@rc_context(STYLE)
def rising_bounds(particles: ArrayLike, bound: ArrayLike, log_likelihood: float, ax: Axes | None = None) -> Axes:
    """Importance-weighted bounds against the number of draws, and log p(x) as a line."""
    ax = axes_of(ax, (4.2, 2.8))
    ax.axhline(log_likelihood, color=PALETTE[3], linewidth=1.0, label="log p(x)")
    ax.plot(
        np.asarray(particles),
        np.asarray(bound),
        color=PALETTE[0],
        marker="o",
        markersize=4,
        label="bound of K draws of the guide",
    )
    ax.set(xscale="log", xlabel="K", title="nats per row")
    ax.legend(loc="lower right")
    return ax


@rc_context(STYLE)
def distributions(
    values: Mapping[str, ArrayLike], xlabel: str, limit: float | None = None, ax: Axes | None = None
) -> Axes:
    """Histograms of several sets of numbers over one another, as shares of each, and a limit as a line."""
    ax = axes_of(ax, (4.2, 2.8))
    arrays = {name: np.asarray([v for v in _floats(numbers) if np.isfinite(v)]) for name, numbers in values.items()}
    everything = np.concatenate([*arrays.values(), np.zeros(0)])
    if everything.size:
        low, high = np.quantile(everything, [0.002, 0.998])
        bins = np.linspace(low, high + 1e-9 + (high == low), 31).tolist()
        for (name, numbers), colour in zip(arrays.items(), PALETTE):
            weights = np.full(len(numbers), 1 / max(1, len(numbers)))
            ax.hist(
                np.clip(numbers, bins[0], bins[-1]), bins, weights=weights, color=colour, alpha=0.6, label=literal(name)
            )
    if limit is not None:
        ax.axvline(limit, color=PALETTE[3], linewidth=1.0, label=f"limit {limit:.2f}")
    ax.set(xlabel=xlabel, title="share of the rows")
    if len(ax.get_legend_handles_labels()[1]) > 1:
        ax.legend()
    return ax


@rc_context(STYLE)
def departures(
    at: ArrayLike, low: ArrayLike, high: ArrayLike, units: Mapping[str, ArrayLike], ax: Axes | None = None
) -> Axes:
    """Distribution functions of ranks minus the uniform one, in the band that uniform ranks stay in."""
    ax = axes_of(ax, (4.2, 2.8))
    ax.fill_between(
        np.asarray(at), np.asarray(low), np.asarray(high), color="#dddddd", linewidth=0, label="band of uniform ranks"
    )
    ax.axhline(0, color=GREY, linewidth=0.8)
    for number, (name, curve) in enumerate(units.items()):
        colour = PALETTE[number % len(PALETTE)]
        ax.plot(np.asarray(at), np.asarray(curve), color=colour, linewidth=1.0, label=literal(name))
    ax.set(xlabel="rank of the true code among draws of the guide", title="ECDF minus uniform", xlim=(0, 1))
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7)
    return ax


@rc_context(STYLE)
def transforms(histogram: ArrayLike, ax: Axes | None = None) -> Axes:
    """The histogram of probability integral transforms, which is flat for calibrated predictions."""
    heights = np.asarray(histogram)
    ax = axes_of(ax, (4.2, 2.8))
    ax.bar((np.arange(len(heights)) + 0.5) / len(heights), heights * len(heights), 0.9 / len(heights), color=PALETTE[0])
    ax.axhline(1, color=PALETTE[3], linewidth=1.0)
    ax.set(
        xlabel="probability below the value, given the rest of its row", title="density (flat: calibrated)", xlim=(0, 1)
    )
    return ax


@rc_context(STYLE)
def units(share: Sequence[float], kl: Sequence[float], name: str, limit: float, ax: Axes | None = None) -> Axes:
    """For each unit, the KL term or else the variance of its means over rows; idle ones in another colour."""
    heights, what = (kl, "KL, nats a row") if len(kl) == len(share) else (share, "variance of means, of the prior's")
    order = np.argsort(heights)[::-1]
    ax = axes_of(ax, (4.2, 2.8))
    colours = [PALETTE[3] if share[i] < limit else PALETTE[0] for i in order]
    ax.bar(np.arange(len(order)), np.asarray(heights)[order], color=colours, width=0.8)
    if len(order) <= 30:
        ax.set_xticks(np.arange(len(order)), [str(i) for i in order])
    ax.set(xlabel=f"unit of {name}", title=what)
    return ax


@rc_context(STYLE)
def two_clouds(codes: ArrayLike, prior: ArrayLike, ax: Axes | None = None) -> Axes:
    """Codes of rows over codes of the prior, `(N, 2)`, or histograms of `(N, 1)`."""
    one, other = np.asarray(codes), np.asarray(prior)
    if one.shape[1] == 1:
        return distributions({"codes of rows": one[:, 0], "prior": other[:, 0]}, "code", ax=ax)
    ax = axes_of(ax, (4.2, 3.4))
    for points, colour, name in ((other, "#bbbbbb", "prior"), (one, PALETTE[0], "codes of rows")):
        ax.scatter(points[:, 0], points[:, 1], s=6, color=colour, alpha=0.7, linewidths=0, label=name)
    ax.set(title="codes of rows and of the prior")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=2)
    return ax


@rc_context(STYLE)
def scores(z: Mapping[str, ArrayLike], ax: Axes | None = None) -> Axes:
    """For each statistic the standardised differences of its numbers between the data and rows drawn from the model."""
    ax = axes_of(ax, (6.4, 0.7 + 0.28 * len(z)))
    rng = np.random.default_rng(0)
    for number, values in enumerate(z.values()):
        x = np.clip([v for v in _floats(values) if np.isfinite(v)], -12, 12)
        ax.scatter(x, number + rng.uniform(-0.2, 0.2, len(x)), s=8, color=PALETTE[0], alpha=0.5, linewidths=0)
    ax.axvspan(-2, 2, color="#eeeeee", zorder=0, linewidth=0)
    ax.set_yticks(range(len(z)), [literal(name) for name in z])
    ax.invert_yaxis()
    ax.set(
        xlabel="(data - model) / sd of replicates, cut at 12", title="posterior predictive checks", xlim=(-12.5, 12.5)
    )
    return ax


def _floats(values: ArrayLike) -> list[float]:
    return [float("nan") if v is None else float(v) for v in np.asarray(values, dtype=object).tolist()]

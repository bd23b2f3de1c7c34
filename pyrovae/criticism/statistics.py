"""Numbers that summarise rows, for posterior predictive checks: those that fit what the values are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyrovae._moments import is_moment, span, written

# The name of each column, and the names of its classes; of numbers (), of dates and times what says so (see `_moments`).
Columns = tuple[tuple[str, Any], ...]

MOST_COLUMNS = 40  # whose correlations are looked at, those that vary most
MOST_VALUES = 20  # that a column of classes may have
MOST_OF_TOTAL = 0.9  # that one column may have of the sum of variances; else totals say what it says


# By the name of a statistic: the least effects that are worth a look, and bad, and what to try.
MEANING = {
    "means of columns": (
        0.1,
        0.5,
        "The decoder misses what columns are on average: train for longer, give it more units, or, where the numbers are far "
        "from 0 ± 1, standardise them before the fit.",
    ),
    "standard deviations of columns": (
        *(0.1, 0.3),
        "Columns vary more or less than the model's: learn a scale for each column (scale='column' or 'net'), or take heavier "
        "tails.",
    ),
    "share of zeros": (
        *(0.03, 0.15),
        "Zeros are more or less frequent than the model's: a zero-inflated likelihood, or a negative binomial for a Poisson.",
    ),
    "variance over mean": (
        *(0.15, 0.5),
        "Counts vary more or less than the likelihood lets them: take one with a dispersion of its own, a negative binomial "
        "or a beta-binomial.",
    ),
    "extremes of columns": (
        *(0.2, 1.0),
        "The tails are not those of the likelihood: a Student t or a Laplace, or transform the columns.",
    ),
    "shares of classes": (
        *(0.03, 0.15),
        "Classes are drawn more or less often than they occur: train for longer, or give the code a prior that is learned.",
    ),
    "correlations": (
        *(0.05, 0.2),
        "The code misses how columns go together: more latent dimensions, or another prior.",
    ),
    "row totals": (
        *(0.1, 0.3),
        "Rows differ in their total in another way than the model's: give the total as a condition, or another prior.",
    ),
    "library size": (
        *(0.1, 0.3),
        "Rows differ in their total in another way than the model's: take a size factor (nets.SizeFactor, --size-factor), or "
        "another prior.",
    ),
    "neighbouring pixels": (
        *(0.05, 0.3),
        "Images drawn are too noisy or too smooth: give each pixel a scale of its own, or take a decoder of convolutions.",
    ),
}


@dataclass(frozen=True)
class Statistic:
    """A summary of rows `(N, D)`, in which NaN is missing, as m numbers.

    Attributes:
        name: What it is called, a key of `MEANING`.
        of: The numbers, `(m,)`.
        scale: What a difference is divided by to be an effect, `(m,)`, from the rows.
        step: What one row can change, `(m,)`, from the rows: a difference of less is none.
        labels: What each of the numbers is, `(m,)`.
        since: Of those that are dates, periods or times what says so (see `pyrovae._moments`), of others None, `(m,)`; ()
            where none is.
        spans: Whether these are not dates but differences of dates.
    """

    name: str
    of: Callable[[Tensor], Tensor]
    scale: Callable[[Tensor], Tensor]
    step: Callable[[Tensor], Tensor]
    labels: tuple[str, ...]
    since: tuple[Any, ...] = ()
    spans: bool = False

    def told(self, at: int, data: float, model: float, spread: float) -> str:
        """One of the numbers in the data and in rows of the model, in the words of a report: a date as such."""
        since = self.since[at] if self.since else None
        first, second, error = f"{data:.3g}", f"{model:.3g}", f"{spread:.2g}"
        if since is not None:
            dates = (None, None) if self.spans else (written(data, since), written(model, since))
            first, second = dates[0] or span(data, since, 3), dates[1] or span(model, since, 3).split()[0]
            error = span(spread, since)
        return f"{first} in the data, {second} ± {error} in rows drawn from the model"

    def among(self, columns: Tensor) -> Statistic:
        """The same of some of the columns."""
        of, scale, step = (_among(function, columns) for function in (self.of, self.scale, self.step))
        return replace(self, of=of, scale=scale, step=step)


def _among(function: Callable[[Tensor], Tensor], columns: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda rows: function(rows[:, columns])


def statistics_for(
    x: Tensor, labels: list[bool], image_shape: tuple[int, ...] | None, columns: Columns | None = None
) -> list[Statistic]:
    """The statistics that fit rows `(N, D)`, by what values they have.

    Args:
        x: Rows; NaN is missing.
        labels: Which columns hold classes, whose numbers have no mean.
        image_shape: The shape of a row that is an image, `(H, W)` or `(C, H, W)`.
        columns: The names of the columns, each with what its numbers are.
    """
    classes, numbers = torch.tensor(labels), ~torch.tensor(labels)
    if columns is None:
        columns = tuple((f"column {i}", ()) for i in range(x.shape[1]))
    found = [_frequencies(x, classes, columns)] if bool(classes.any()) else []
    if not bool(numbers.any()):
        return found
    seen = x[:, numbers]
    some_columns = [columns[i] for i in numbers.nonzero().squeeze(1).tolist()]
    names = tuple(name for name, _ in some_columns)
    since = tuple(what if is_moment(what) else None for _, what in some_columns)
    some = seen[~torch.isnan(seen)]
    binary = bool(((some == 0) | (some == 1)).all())
    counts = not binary and bool(((some >= 0) & (some == some.round())).all())
    made = [Statistic("means of columns", means, spreads, _one_row, names, since)]
    if not binary:
        about = ("standard deviations of columns", spreads, spreads, _one_row_of_spread, names)
        made.append(Statistic(*about, since, spans=True))
    if counts:
        made.append(Statistic("share of zeros", zeros, _ones, _share_of_one_row, names))
        made.append(Statistic("variance over mean", dispersion, dispersion, _one_row_of_dispersion, names))
    elif not binary:
        ends = tuple(f"{end} percent of {name}" for end in ("lowest", "highest") for name in names)
        made.append(Statistic("extremes of columns", extremes, _spread_twice, _range_twice, ends, since * 2))
    if len(names) > 1:
        made.append(_correlations(seen, names))
    if len(names) > 1 and not _is_of_one(seen):
        what = ("mean of the totals of rows", "their standard deviation")
        made.append(
            Statistic(
                "library size" if counts and image_shape is None else "row totals",
                totals,
                _spread_of_totals,
                _one_total,
                what,
            )
        )
    found += [statistic.among(numbers) for statistic in made]
    if image_shape is not None and bool(numbers.all()):
        found.append(_neighbours(image_shape))
    return found


def _correlations(seen: Tensor, names: Sequence[str]) -> Statistic:
    """The correlations of the columns that vary most."""
    best = spreads(seen).argsort(descending=True)[:MOST_COLUMNS].sort().values
    pairs = torch.triu_indices(len(best), len(best), 1)
    among = [names[i] for i in best.tolist()]
    labels = tuple(f"{among[i]} and {among[j]}" for i, j in pairs.T.tolist())

    def of(rows: Tensor) -> Tensor:
        return correlation(rows[:, best])[pairs[0], pairs[1]]

    def step(rows: Tensor) -> Tensor:
        scaled = _scaled(rows[:, best])
        return torch.stack([(scaled[:, i, None] * scaled).abs().amax(0) for i in range(len(best))])[pairs[0], pairs[1]]

    return Statistic("correlations", of, _ones, step, labels)


def _neighbours(shape: tuple[int, ...]) -> Statistic:
    def of(rows: Tensor) -> Tensor:
        return roughness(rows, shape)

    labels = ("difference of neighbours in a column", "difference of neighbours in a row")
    return Statistic("neighbouring pixels", of, of, lambda rows: roughness(rows, shape) / len(rows), labels)


def means(x: Tensor) -> Tensor:
    return x.nanmean(0).nan_to_num(0.0)


def spreads(x: Tensor) -> Tensor:
    return (x - x.nanmean(0)).square().nanmean(0).sqrt().nan_to_num(0.0)


def zeros(x: Tensor) -> Tensor:
    return torch.where(torch.isnan(x), x, (x == 0).to(x)).nanmean(0).nan_to_num(0.0)


def dispersion(x: Tensor) -> Tensor:
    return spreads(x).square() / means(x).abs().clamp_min(1e-6)


def extremes(x: Tensor) -> Tensor:
    at = torch.tensor([0.01, 0.99], dtype=x.dtype)
    return torch.nanquantile(x, at, 0).flatten().nan_to_num(0.0)


def correlation(x: Tensor) -> Tensor:
    """The correlations of columns, `(D, D)`; a missing value counts as the mean, in both the data and the draws."""
    scaled = _scaled(x)
    return scaled.T @ scaled


def _scaled(x: Tensor) -> Tensor:
    """Columns with mean 0 and norm 1."""
    centred = (x - x.nanmean(0)).nan_to_num(0.0)
    return centred / centred.square().sum(0).sqrt().clamp_min(1e-12)


def totals(x: Tensor) -> Tensor:
    total = x.nansum(1)
    return torch.stack([total.mean(), total.std()])


def _is_of_one(x: Tensor) -> bool:
    """Whether the totals of rows are mostly those of one column, as where columns have several units."""
    variances = spreads(x).square()
    return bool(variances.amax() > MOST_OF_TOTAL * variances.sum())


def roughness(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The mean absolute difference of vertical and of horizontal neighbours, `(2,)`."""
    image = x.reshape(len(x), *shape)
    return torch.stack([image.diff(dim=dim).abs().nanmean() for dim in (-2, -1)])


def _frequencies(x: Tensor, classes: Tensor, columns: Columns) -> Statistic:
    """The shares of the classes of each column."""
    where = classes.nonzero().squeeze(1).tolist()
    pairs = [(c, v) for c in where for v in x[:, c][~x[:, c].isnan()].unique()[:MOST_VALUES].tolist()]

    def shares(rows: Tensor) -> Tensor:
        found = [torch.where(rows[:, c].isnan(), rows[:, c], (rows[:, c] == v).to(rows)).nanmean() for c, v in pairs]
        return torch.stack(found).nan_to_num(0.0)

    labels = tuple(_class_name(v, *columns[c]) for c, v in pairs)
    return Statistic(
        "shares of classes", shares, _ones, lambda rows: rows.new_full((len(pairs),), 1 / len(rows)), labels
    )


def _class_name(value: float, column: str, classes: Any) -> str:
    if is_moment(classes):
        return f"{column} = {written(value, classes) or f'{value:g}'}"
    named = value.is_integer() and 0 <= value < len(classes)
    return f"{column} = {classes[int(value)]}" if named else f"class {value:g} of {column}"


def _ones(x: Tensor) -> Tensor:
    return x.new_ones(())


def _one_row(x: Tensor) -> Tensor:
    return _range(x) / len(x)


def _range(x: Tensor) -> Tensor:
    high = x.nan_to_num(-torch.inf).amax(0)
    return (high - x.nan_to_num(torch.inf).amin(0)).nan_to_num(0.0, 0.0, 0.0)


def _share_of_one_row(x: Tensor) -> Tensor:
    return x.new_full((x.shape[1],), 1 / len(x))


def _one_row_of_spread(x: Tensor) -> Tensor:
    """The variance may change by range^2 / N, and the spread by this over twice the spread."""
    return _range(x).square() / len(x) / (2 * spreads(x)).clamp_min(1e-12)


def _one_row_of_dispersion(x: Tensor) -> Tensor:
    return _range(x).square() / len(x) / means(x).abs().clamp_min(1e-6)


def _spread_twice(x: Tensor) -> Tensor:
    return spreads(x).repeat(2)


def _range_twice(x: Tensor) -> Tensor:
    return _one_row(x).repeat(2)


def _spread_of_totals(x: Tensor) -> Tensor:
    return totals(x)[1].repeat(2).clamp_min(1e-9)


def _one_total(x: Tensor) -> Tensor:
    total = x.nansum(1)
    wide = total.max() - total.min()
    return torch.stack([wide / len(x), wide.square() / len(x) / (2 * total.std()).clamp_min(1e-12)])

"""`pool`: one estimate, with its uncertainty, from those of several completed data sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrovae._arguments import as_number, number_of, told
from pyrovae._html import table
from pyrovae._lazily import Lazily
from pyrovae.errors import DataError, OptionError

stats = Lazily("scipy.stats")

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Pooled:
    """Estimates pooled over completed data sets, as `pv.pool` returns them: arrays of the shape of one estimate.

    Attributes:
        estimate: The mean of the estimates.
        standard_error: The square root of the total variance, within and between the data sets.
        df: The degrees of freedom of the t distribution of `(estimate - truth) / standard_error`.
        missing_information: The share of the information on the estimate that is missing.

    Example:
        >>> pooled = pv.pool([1.0, 1.2, 1.1], [0.04, 0.05, 0.04])
        >>> low, high = pooled.interval(0.95)
        >>> round(float(low), 2), round(float(high), 2), bool(pooled.p_value() < 0.001)
        (0.62, 1.58, True)
    """

    estimate: Array
    standard_error: Array
    df: Array
    missing_information: Array

    def interval(self, level: float = 0.95) -> tuple[Array, Array]:
        """The ends of confidence intervals by the t distribution.

        Args:
            level: The probability with which such an interval contains the truth.
        """
        level = as_number("level", level, above=0, below=1)
        half = stats.t.ppf((1 + level) / 2, self.df) * self.standard_error
        return self.estimate - half, self.estimate + half

    def p_value(self, null: float = 0.0) -> Array:
        """The two-sided p-values of the hypothesis that the truth is `null`."""
        with np.errstate(divide="ignore"):
            return np.asarray(2 * stats.t.sf(np.abs(self.estimate - null) / self.standard_error, self.df))

    def _repr_html_(self) -> str:
        low, high = self.interval()
        columns = (self.estimate, self.standard_error, low, high, self.df, self.missing_information)
        rows = np.stack([np.atleast_1d(column).ravel() for column in columns], 1)
        head = ("estimate", "standard error", "95 % from", "to", "df", "missing information")
        return table("Pooled estimates", head, [[f"{value:.4g}" for value in row] for row in rows])


def pool(estimates: Any, variances: Any, df: float | None = None) -> Pooled:
    """Combine the estimates from m completed data sets by Rubin's rules.

    With estimates q_i and variances u_i, the pooled estimate is their mean, and its variance `T = mean(u) + (1 + 1/m) B`, where
    B is the variance of the estimates between the data sets. Intervals use the t distribution, with the degrees of freedom of
    Barnard and Rubin if those of the complete data are known, and else with `(m - 1) / l^2`, where `l = (1 + 1/m) B / T`.

    Args:
        estimates: One for each data set, `(m, *shape)`, such as coefficients of a regression.
        variances: Their squared standard errors, `(m, *shape)`.
        df: The degrees of freedom that the analysis would have with complete data, such as N - p of a regression; None for a
            large number of rows.

    Returns:
        Estimates, standard errors and degrees of freedom, see `pv.Pooled`.

    Raises:
        DataError: There are fewer than two estimates, the shapes differ, or values are not finite or variances negative.
        OptionError: `df` is not positive.

    References:
        Rubin 1987, *Multiple Imputation for Nonresponse in Surveys*, chapter 3. Barnard and Rubin 1999, *Small-sample degrees
        of freedom with multiple imputation*, Biometrika 86.

    Example:
        >>> pooled = pv.pool([1.0, 1.2, 1.1], [0.04, 0.05, 0.04], df=30)
        >>> round(float(pooled.estimate), 3), round(float(pooled.standard_error), 3), round(float(pooled.df), 1)
        (1.1, 0.238, 13.5)
    """
    q, u = _numbers("estimates", estimates), _numbers("variances", variances)
    if q.shape != u.shape or len(q) < 2:
        raise DataError(
            "pool needs estimates and variances of at least two data sets, of one shape (m, ...), got "
            f"{q.shape} and {u.shape}. Impute with num_samples=20, and analyse each completed data set."
        )
    if not (np.isfinite(q).all() and np.isfinite(u).all() and (u >= 0).all()):
        raise DataError(
            "Estimates must be finite, and variances (squared standard errors) finite and not negative: look for an analysis "
            "that failed."
        )
    if df is not None and (isinstance(df, bool) or (number := number_of(df)) is None or not number > 0):
        raise OptionError(f"df must be a positive number, infinite too, got {told(df)}.")
    m = len(q)
    within, between = u.mean(0), (1 + 1 / m) * q.var(0, ddof=1)
    total = within + between
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(total > 0, between / total, 0.0)
        large = (m - 1) / share**2
        if df is None:
            freedom = large
        else:
            observed = (df + 1) / (df + 3) * df * (1 - share)
            freedom = np.where(np.isinf(large), observed, 1 / (1 / large + 1 / observed))
        ratio = between / within
        missing = np.where(np.isinf(ratio), 1.0, (ratio + 2 / (freedom + 3)) / (ratio + 1))
    missing = np.where(between > 0, missing, 0.0)
    return Pooled(q.mean(0), np.sqrt(total), freedom, missing)


def _numbers(name: str, values: Any) -> Array:
    """What each data set gave, `(m, ...)`. DataError for what are no numbers."""
    try:
        return np.asarray([np.asarray(part, dtype=np.float64) for part in values])
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{name} must be a list of numbers, or of arrays of one shape, one for each data set: {error}."
        ) from error

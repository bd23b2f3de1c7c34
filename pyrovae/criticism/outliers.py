"""Which rows are strange, and how surely: scores, and conformal p-values."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae._arguments import as_choice, as_number, number_of
from pyrovae._html import Told
from pyrovae.criticism.averages import over_rows
from pyrovae.criticism.importance import silently
from pyrovae.criticism.refine import refine
from pyrovae.errors import DataError, OptionError, counted
from pyrovae.fitted.fitted import Fit, seeded
from pyrovae.pair.arrays import as_tensor
from pyrovae.pair.asked import refuse_unfitted

METHODS = ("log_likelihood", "regret", "typicality", "ratio")


@dataclass(frozen=True, repr=False)
class Anomaly(Told):
    """How strange each of N rows is, from `pv.anomaly_score`. Tensors are `(N,)` float64, on the CPU.

    Attributes:
        score: The larger, the stranger; in nats. Infinite for a row whose density is 0, or undefined since those of its draws
            overflow: it is stranger than all others.
        error: The Monte Carlo standard error of `score`, in nats.
        k_hat: The diagnostic of the estimate of log p(x) of the row, see `pv.importance`.
        method: What the score is.
        num_samples: K, the draws for each row.

    Example:
        >>> zeros = torch.zeros(3, dtype=torch.float64)
        >>> found = pv.Anomaly(zeros + torch.arange(3), zeros + 0.1, zeros, "log_likelihood", num_samples=100)
        >>> found.ranks
        tensor([3, 2, 1])
    """

    score: Tensor
    error: Tensor
    k_hat: Tensor
    method: str
    num_samples: int

    @property
    def ranks(self) -> Tensor:
        """The place of each row, from 1 for the strangest, `(N,)` int64."""
        ranks = torch.empty(len(self.score), dtype=torch.int64)
        ranks[self.score.argsort(descending=True, stable=True)] = torch.arange(1, len(self.score) + 1)
        return ranks

    def _told(self) -> tuple[Any, ...]:
        worst = self.score.argsort(descending=True)[:10].tolist()
        rows = [(i, f"{self.score[i]:.2f}", f"{self.error[i]:.2f}", f"{self.k_hat[i]:.2f}") for i in worst]
        title = f"The strangest of {counted(len(self.score), 'row')} by {self.method}"
        return title, ("row", "score", "error", "k-hat"), rows


def anomaly_score(
    fitted: Fit,
    data: Any,
    method: str = "log_likelihood",
    *,
    reference: Any = None,
    background: Fit | None = None,
    num_samples: int = 1000,
    proposal: str = "refined",
    seed: int | None = None,
) -> Anomaly:
    """How strange each row is: `-log p(x)`, or what is left of it once its usual value, or its complexity, is taken off.

    - "log_likelihood": `-log p(x)`.
    - "regret": `ELBO(q*) - ELBO(q)`, the gain when q is fitted to the row itself instead of being predicted from it. The
      encoder knows the kind of rows that it was trained on, so that it loses more on others. It is the amortisation gap of
      `pv.refine`, whose q* has a full covariance.
    - "typicality": `|-log p(x) - H|`, with H the mean of `-log p(x)` over the `reference` rows: rows may also be too probable.
    - "ratio": `log p_b(x) - log p(x)`, with p_b the `background`, a model of rows of all kinds, or of ones that were perturbed:
      what any row like this has, such as a plain background of an image, cancels.

    No score is best for all data: a model may give simple rows of another kind a higher density than its own. Compare them on
    rows whose kind is known, and turn the one you choose into a statement by `pv.conformal_p_values`.

    Args:
        fitted: The fitted pair.
        data: The rows, as for `pv.fit`.
        method: "log_likelihood", "regret", "typicality" or "ratio".
        reference: For "typicality": ordinary rows, best ones that the fit has not seen.
        background: For "ratio": another fit, of the same rows or columns.
        num_samples: The number K of draws for each row.
        proposal: Of these draws, as for `pv.importance`; "regret" has its own.
        seed: The seed of the draws; None continues torch's random state.

    Returns:
        Scores and their errors, see `Anomaly`. A row without a finite density has an infinite score: infinity where log p(x) is
        -infinity, or a density undefined, so that it is ranked first; for "ratio", -infinity where only p_b(x) is 0,
        so that it is ranked last.

    Raises:
        OptionError: The method is not known, or lacks its `reference` or `background`.
        DataError: Values are outside the support of the likelihood, or missing where it does not allow that; or no row of the
            `reference` has a finite density.
        PairError: For "regret", q cannot be refined: see `pv.refine`.

    References:
        Xiao, Yan & Amit 2020, *Likelihood regret: an out-of-distribution detection score for variational auto-encoder*,
        arXiv:2003.02977. Nalisnick, Matsukawa, Teh & Lakshminarayanan 2019, arXiv:1906.02994 (typicality). Ren et al. 2019,
        arXiv:1906.02845 (the ratio).

    Example:
        >>> vae = pv.VAE(pv.priors.StandardNormal(1), pv.mlp(1, fam.Normal(3)), pv.mlp(3, fam.Normal(1)))
        >>> x = torch.randn(60, 3)
        >>> fitted = pv.fit(vae, x, epochs=3, engine="eager", progress=False)
        >>> x[7] += 6
        >>> found = pv.anomaly_score(fitted, x, num_samples=100, proposal="guide", seed=0)
        >>> found.ranks[7]
        tensor(1)
    """
    refuse_unfitted(fitted)
    as_choice("method", method, METHODS)
    needed = {"typicality": ("reference", reference), "ratio": ("background", background)}.get(method)
    if needed is not None and needed[1] is None:
        raise OptionError(f"method={method!r} needs {needed[0]}=...: {_NEEDS[method]}.")
    with seeded(seed):
        if method == "regret":
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The density of")  # the score says it
                refined = refine(fitted, data, num_samples)
            score, error, k_hat = refined.amortisation_gap, refined.amortisation_gap_error, refined.k_hat
        else:
            found = silently(fitted, data, num_samples, proposal, None)
            score, error, k_hat = -found.log_likelihood, found.standard_error, found.k_hat
        if method == "typicality":
            usual = silently(fitted, reference, num_samples, proposal, None)
            score, error = _typicality(score, error, -usual.log_likelihood)
        elif method == "ratio":
            assert background is not None
            other = silently(background, data, num_samples, proposal, None)
            score, error = score + other.log_likelihood, torch.hypot(error, other.standard_error)
    return Anomaly(score.nan_to_num(math.inf, math.inf, -math.inf), error, k_hat, method, num_samples)


def typicality(found: Anomaly, usual: Anomaly) -> Anomaly:
    """The scores by "typicality" of rows, from theirs and those of ordinary rows by "log_likelihood"."""
    score, error = _typicality(found.score, found.error, usual.score)
    return replace(found, score=score, error=error, method="typicality")


def _typicality(score: Tensor, error: Tensor, usual: Tensor) -> tuple[Tensor, Tensor]:
    usual = usual[usual.isfinite()]
    if not len(usual):
        raise DataError(
            "No row of the reference has a finite density, so that there is no usual one: give ordinary rows, of the kind that "
            "the model was fitted to."
        )
    spread = over_rows(usual) if len(usual) > 1 else 0.0
    return (score - usual.mean()).abs(), (error.square() + spread**2).sqrt()


_NEEDS = {
    "typicality": "ordinary rows, whose mean of log p(x) is the usual one",
    "ratio": "a fit of a model of the background, by pv.fit",
}


def conformal_p_values(calibration: Any, scores: Any) -> Tensor:
    """`p_i = (1 + #{j: c_j >= s_i}) / (n + 1)`: the share of ordinary rows that are at least as strange, split-conformal.

    If row i and the n calibration rows are exchangeable, that is, if row i is an ordinary one, then `P(p_i <= a) <= a` for
    every a, whatever the score and however badly the model fits. Calibration rows must be ones that the fit has not seen, and
    rows must be scored alike. No p-value is below `1 / (n + 1)`.

    Args:
        calibration: Scores of ordinary rows that were held out, `(n,)`; the larger, the stranger.
        scores: Scores of the rows in question, `(N,)`.

    Returns:
        p-values, `(N,)` float64.

    Raises:
        DataError: There are no calibration rows, or a score is NaN.

    References:
        Vovk, Gammerman & Shafer 2005, *Algorithmic Learning in a Random World*. Bates, Candès, Lei, Romano & Sesia 2023,
        *Testing for outliers with conformal p-values*, arXiv:2104.08279.

    Example:
        >>> pv.conformal_p_values(torch.arange(9.0), torch.tensor([-1.0, 4.5, 100.0]))
        tensor([1.0000, 0.5000, 0.1000], dtype=torch.float64)
    """
    ordinary = _numbers("calibration", calibration)
    new = _numbers("scores", scores)
    if not len(ordinary):
        raise DataError("There are no calibration scores: give those of ordinary rows that the fit has not seen.")
    if bool(ordinary.isnan().any()) or bool(new.isnan().any()):
        raise DataError(
            "A score is NaN, so that it has no place among the others: look at these rows, or leave them out."
        )
    ordered = ordinary.sort().values
    at_least = len(ordered) - torch.searchsorted(ordered, new, right=False)
    return (1 + at_least).double() / (len(ordered) + 1)


def _numbers(name: str, values: Any) -> Tensor:
    """Scores or p-values, of one row or several, as float64. DataError for what are no numbers."""
    one = np.ndim(values) == 0 and number_of(values) is not None
    return as_tensor(name, [float(values)] if one else values, torch.float64).detach().cpu().double().flatten()


def benjamini_hochberg(p_values: Any, rate: float) -> Tensor:
    """Which rows to call outliers so that the expected share of ordinary rows among those called is at most `rate`.

    With ordered p-values, the rows with the k smallest are called, where k is the largest number with
    `p_(k) <= rate k / N`. The guarantee holds for independent p-values, and for conformal ones of one set of calibration rows.

    Args:
        p_values: One of each row, `(N,)`, from 0 to 1.
        rate: The false discovery rate, above 0 and below 1.

    Returns:
        Whether each row is called an outlier, `(N,)` bool.

    Raises:
        OptionError: The rate is not between 0 and 1.
        DataError: A p-value is not from 0 to 1.

    References:
        Benjamini & Hochberg 1995, Journal of the Royal Statistical Society B 57. Bates et al. 2023, arXiv:2104.08279 (of
        conformal p-values).

    Example:
        >>> pv.benjamini_hochberg(torch.tensor([0.001, 0.5, 0.02, 0.9]), rate=0.1)
        tensor([ True, False,  True, False])
    """
    rate = as_number("rate", rate, above=0, below=1)
    return adjusted_p_values(p_values) <= rate


def adjusted_p_values(p_values: Any) -> Tensor:
    """The smallest rate at which `benjamini_hochberg` calls each row an outlier, `(N,)` float64."""
    p = _numbers("p_values", p_values)
    if bool((~((p >= 0) & (p <= 1))).any()):
        raise DataError("p-values are numbers from 0 to 1: give those of pv.conformal_p_values, not scores.")
    order = p.argsort(descending=True)
    num = len(p)
    ranked = p[order] * num / torch.arange(num, 0, -1, dtype=torch.float64)
    adjusted = torch.empty_like(p)
    adjusted[order] = ranked.cummin(0).values if num else ranked
    return adjusted.clamp_max(1.0)

"""Calibration of class probabilities: reliability curves, proper scores, and temperature scaling.

The functions take class probabilities, `(N, C)`, and class numbers, `(N,)`. Rows whose label is unknown, -1, are left out.
The rows should be some that training has not seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from pyrovae._arguments import MOST, as_choice, as_count, as_number
from pyrovae._lazily import Lazily
from pyrovae.criticism.acquisition import as_probabilities, check_probabilities
from pyrovae.errors import DataError, ShapeError
from pyrovae.pair.arrays import as_tensor

__all__ = [
    "Reliability",
    "brier_score",
    "expected_calibration_error",
    "fit_temperature",
    "log_score",
    "reliability",
    "share_interval",
    "with_temperature",
]

metrics = Lazily("sklearn.metrics")

BINS = ("width", "mass")
COLDEST, HOTTEST = 1e-2, 1e2  # the bounds of a temperature


def share_interval(share: float, total: float, *, level: float = 0.95) -> tuple[float, float]:
    """The interval of Wilson for a probability of which `share` of `total` independent trials came out true.

    It is right where a standard error is not: of few trials, and of a share near 0 or 1. Of n trials that all came out true it
    reaches from `n / (n + z^2)` to 1, z the quantile of the standard Normal.

    Args:
        share: The share of trials, from 0 to 1.
        total: Their number n.
        level: How probable it is that such intervals contain the probability.

    Returns:
        The lower and the upper end; (0, 1) of no trial.

    References:
        Wilson 1927, doi:10.1080/01621459.1927.10502953. Brown, Cai & DasGupta 2001, doi:10.1214/ss/1009213286.

    Example:
        >>> low, high = pv.calibration.share_interval(1.0, 6)  # six of six
        >>> round(low, 3), high
        (0.61, 1.0)
    """
    share, level = as_number("share", share, least=0, most=1), as_number("level", level, above=0, below=1)
    if as_number("total", total) <= 0:
        return 0.0, 1.0
    z2 = NormalDist().inv_cdf(0.5 + level / 2) ** 2
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = math.sqrt(z2 * (share * (1 - share) / total + z2 / (4 * total**2))) / (1 + z2 / total)
    return (0.0 if share == 0 else max(0.0, middle - half)), (1.0 if share == 1 else min(1.0, middle + half))


@dataclass(frozen=True)
class Reliability:
    """A reliability curve: rows in B bins of their confidence, `max_c p_c`, in increasing order, without empty bins.

    `pv.plots.reliability(r.confidence, r.accuracy, r.counts)` plots it.

    Attributes:
        confidence: The mean confidence in each bin, `(B,)` float64.
        accuracy: The share of rows in each bin whose most probable class is the label, `(B,)` float64.
        counts: The number of rows in each bin, `(B,)` float64.

    Example:
        >>> p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7]])
        >>> r = pv.calibration.reliability(p, torch.tensor([0, 1, 1]), num_bins=4)
        >>> r.accuracy.tolist(), r.counts.tolist()
        ([1.0, 0.5], [1.0, 2.0])
        >>> round(r.error, 3)
        0.367
    """

    confidence: Tensor
    accuracy: Tensor
    counts: Tensor

    @property
    def error(self) -> float:
        """The expected calibration error, `sum_b (n_b / N) |accuracy_b - confidence_b|`, from 0 to 1."""
        gaps = (self.accuracy - self.confidence).abs()
        return float((self.counts * gaps).sum() / self.counts.sum())


def reliability(probabilities: Tensor, labels: Tensor, *, num_bins: int = 15, bins: str = "width") -> Reliability:
    """The reliability curve: how often the predicted class is right, against the probability that it was given.

    Args:
        probabilities: Class probabilities, `(N, C)`.
        labels: Class numbers, `(N,)`; rows with -1, unknown, are left out.
        num_bins: The number B of bins.
        bins: "width" divides the confidence into the equal intervals (b/B, (b+1)/B]; most rows of a good classifier are
            then in the last one. "mass" puts about equal numbers of rows into each bin, and equal confidences into one.

    Returns:
        A `Reliability`, without the bins that have no rows.

    Raises:
        OptionError: `num_bins` is less than 1, or `bins` is neither "width" nor "mass".
        ShapeError: The shapes of probabilities and labels do not fit together.
        DataError: The rows are not probabilities, a label is not a class number, or no label is known.

    References:
        Guo, Pleiss, Sun & Weinberger 2017, arXiv:1706.04599.

    Example:
        >>> p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7]])
        >>> pv.calibration.reliability(p, torch.tensor([0, 1, -1]), num_bins=10).accuracy
        tensor([0.5000], dtype=torch.float64)
    """
    num_bins = as_count("num_bins", num_bins, most=MOST)
    as_choice("bins", bins, BINS)
    p, y = _known(probabilities, labels)
    confidence, predicted = p.max(-1)
    if bins == "width":
        index = (confidence * num_bins).ceil().long().clamp(1, num_bins) - 1
    else:
        # The rank of the first row with this confidence, so that equal confidences are in one bin.
        ranks = torch.searchsorted(confidence.sort().values, confidence)
        index = ranks * num_bins // len(p)
    counts = torch.zeros(num_bins, dtype=p.dtype).index_add_(0, index, torch.ones_like(confidence))
    sums = [
        torch.zeros(num_bins, dtype=p.dtype).index_add_(0, index, v) for v in (confidence, (predicted == y).to(p.dtype))
    ]
    filled = counts > 0
    mean, accuracy = ((total / counts)[filled] for total in sums)
    return Reliability(mean, accuracy, counts[filled])


def expected_calibration_error(
    probabilities: Tensor, labels: Tensor, *, num_bins: int = 15, bins: str = "width"
) -> float:
    """The expected calibration error, `ECE = sum_b (n_b / N) |accuracy_b - confidence_b|`, from 0 (best) to 1.

    It is biased upwards: on average, a perfectly calibrated classifier has about
    `sum_b sqrt(2 p_b (1 - p_b) n_b / pi) / N`, with the confidence p_b and the number n_b of rows of bin b.

    Args:
        probabilities: Class probabilities, `(N, C)`.
        labels: Class numbers, `(N,)`; rows with -1, unknown, are left out.
        num_bins: The number of bins.
        bins: "width" or "mass", see `reliability`.

    Returns:
        The error.

    Raises:
        OptionError: `num_bins` is less than 1, or `bins` is neither "width" nor "mass".
        ShapeError: The shapes of probabilities and labels do not fit together.
        DataError: The rows are not probabilities, a label is not a class number, or no label is known.

    References:
        Guo, Pleiss, Sun & Weinberger 2017, arXiv:1706.04599, equation 3.

    Example:
        >>> p = torch.tensor([[0.75, 0.25]]).expand(4, 2)
        >>> pv.calibration.expected_calibration_error(p, torch.tensor([0, 0, 0, 1]))  # 3 of 4 are right
        0.0
    """
    return reliability(probabilities, labels, num_bins=num_bins, bins=bins).error


def brier_score(probabilities: Tensor, labels: Tensor) -> float:
    """The Brier score, the mean over rows of `sum_c (p_c - 1[y = c])^2`, from 0 (best) to 2. It is a proper score.

    For two classes, it is twice the squared error of the probability of one class, which is also called by this name.

    Args:
        probabilities: Class probabilities, `(N, C)`.
        labels: Class numbers, `(N,)`; rows with -1, unknown, are left out.

    Returns:
        The score.

    Raises:
        ShapeError: The shapes of probabilities and labels do not fit together.
        DataError: The rows are not probabilities, a label is not a class number, or no label is known.

    References:
        Brier 1950, *Verification of forecasts expressed in terms of probability*, Monthly Weather Review 78.

    Example:
        >>> pv.calibration.brier_score(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([0, 0]))
        0.25
    """
    p, y = _known(probabilities, labels)
    return float((p - torch.nn.functional.one_hot(y, p.shape[-1])).square().sum(-1).mean())


def log_score(probabilities: Tensor, labels: Tensor) -> float:
    """The logarithmic score, the mean over rows of `-log p_y`, in nats per row; 0 is best. It is a proper score.

    Probabilities below 2e-16 count as 2e-16, as in scikit-learn.

    Args:
        probabilities: Class probabilities, `(N, C)`.
        labels: Class numbers, `(N,)`; rows with -1, unknown, are left out.

    Returns:
        The score.

    Raises:
        ShapeError: The shapes of probabilities and labels do not fit together.
        DataError: The rows are not probabilities, a label is not a class number, or no label is known.

    References:
        Good 1952, *Rational decisions*, Journal of the Royal Statistical Society B 14.

    Example:
        >>> round(pv.calibration.log_score(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([0, 0])), 4)  # log(2) / 2
        0.3466
    """
    p, y = _known(probabilities, labels)
    if p.shape[-1] == 1:
        return 0.0
    normed = p / p.sum(-1, keepdim=True)
    return float(metrics.log_loss(y.numpy(), normed.numpy(), labels=list(range(p.shape[-1]))))


def fit_temperature(probabilities: Tensor, labels: Tensor) -> float:
    """The temperature T with which `with_temperature` has the best log score on these rows.

    T is above 1 if the probabilities are overconfident, and below 1 if they are underconfident. The log score is convex in
    1/T, and bisection finds the zero of its derivative.

    Args:
        probabilities: Class probabilities, `(N, C)`, of rows that training has not seen.
        labels: Class numbers, `(N,)`; rows with -1, unknown, are left out.

    Returns:
        The temperature, from 0.01 to 100. It is one of these bounds if the score improves towards it without end, as
        towards 0 when all rows are right.

    Raises:
        ShapeError: The shapes of probabilities and labels do not fit together.
        DataError: The rows are not probabilities, a label is not a class number, or no label is known.

    References:
        Guo, Pleiss, Sun & Weinberger 2017, arXiv:1706.04599, section 4.2.

    Example:
        >>> p, y = torch.tensor([[0.9, 0.1]]).expand(4, 2), torch.tensor([0, 0, 0, 1])  # 90 % sure, 75 % right
        >>> t = pv.calibration.fit_temperature(p, y)
        >>> round(t, 3)
        2.0
        >>> pv.calibration.with_temperature(p[:1], t)
        tensor([[0.7500, 0.2500]])
    """
    p, y = _known(probabilities, labels)
    logits = _log(p)
    return temperature_at(logits, logits.gather(-1, y[:, None])[:, 0].mean(), COLDEST, HOTTEST)


def temperature_at(logits: Tensor, wanted: Tensor, coldest: float, hottest: float, weight: float = 1.0) -> float:
    """The temperature at which the expected logit, averaged over rows `(N, C)` and times `weight`, is `wanted`, by bisection.

    It is the zero of the log score's derivative by 1/T where `wanted` is the mean logit of the labels.
    """
    cold, hot = math.log(coldest), math.log(hottest)
    for _ in range(60):
        middle = (cold + hot) / 2
        tempered = (logits * math.exp(-middle)).softmax(-1)
        # the expected logit decreases in T
        too_cold = bool(weight * (tempered * logits).sum(-1).mean() > wanted)
        cold, hot = (middle, hot) if too_cold else (cold, middle)
    return math.exp((cold + hot) / 2)


def with_temperature(probabilities: Tensor, temperature: float) -> Tensor:
    """Probabilities at temperature T, `p_c^(1/T) / sum_j p_j^(1/T)`: the softmax of the logits divided by T.

    The order of the classes does not change. Probabilities below 1e-38, including 0, count as 1e-38.

    Args:
        probabilities: Class probabilities, `(*batch, C)`.
        temperature: T > 0, from `fit_temperature`. Above 1 it moves probabilities towards equal ones.

    Returns:
        Class probabilities, `(*batch, C)`, of the same dtype.

    Raises:
        OptionError: The temperature is not positive.
        ShapeError: The tensor is not floating or has no dimension of classes.
        DataError: The rows are not probabilities.

    References:
        Guo, Pleiss, Sun & Weinberger 2017, arXiv:1706.04599.

    Example:
        >>> pv.calibration.with_temperature(torch.tensor([0.9, 0.1]), 2.0)
        tensor([0.7500, 0.2500])
    """
    temperature = as_number("temperature", temperature, above=0)
    probabilities = check_probabilities(as_probabilities(probabilities))
    return (_log(probabilities) / temperature).softmax(-1).to(probabilities.dtype)


def _log(p: Tensor) -> Tensor:
    """log p in float64; p is raised to the smallest normal float32, so that the result does not depend on the dtype of p."""
    return p.double().clamp_min(torch.finfo(torch.float32).tiny).log()


def _known(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities as float64 and labels as int64, on the CPU, of the rows whose label is known.

    Raises:
        ShapeError: The shapes do not fit together.
        DataError: The rows are not probabilities, a label is not a class number, or no label is known.
    """
    p = as_probabilities(probabilities).detach().double().cpu()
    y = as_tensor("labels", labels, codes=True).detach().cpu()
    if p.dim() != 2 or y.shape != p.shape[:1]:
        raise ShapeError(
            f"Probabilities of shape (N, C) need labels of shape (N,), got {tuple(p.shape)} and {tuple(y.shape)}."
        )
    check_probabilities(p)
    numbers = y.long()
    wrong = (numbers != y) | (numbers < -1) | (numbers >= p.shape[-1])
    if bool(wrong.any()):
        raise DataError(
            f"Labels of {p.shape[-1]} classes are 0 to {p.shape[-1] - 1}, or -1 where unknown; {int(wrong.sum())} are not, the "
            f"first is {y[wrong][0].item()}. Number the classes in the order of the probabilities' columns."
        )
    known = numbers >= 0
    if not bool(known.any()):
        raise DataError(
            "No row has a label, all are -1: calibration needs labelled rows, which training should not have seen."
        )
    return p[known], numbers[known]

"""Do class probabilities mean what they say? Calibration error, proper scores, and a temperature that mends them.

Everything takes probabilities (N, C) and class numbers (N,); rows whose label is unknown, -1, are left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae._lazily import Lazily
from pyrovae.criticism.acquisition import check_probabilities
from pyrovae.errors import DataError, OptionError, ShapeError

metrics = Lazily("sklearn.metrics")

BINS = ("width", "mass")
COLDEST, HOTTEST = 1e-2, 1e2


@dataclass(frozen=True)
class Reliability:
    """Rows in B bins of confidence, max_c p_c; bins without rows left out. Each (B,), float64, by rising confidence.

    confidence: its mean over the bin's rows. accuracy: the share of them whose most probable class is the label. counts:
    how many rows. `plots.reliability(r.confidence, r.accuracy, r.counts)` draws it.
    """

    confidence: Tensor
    accuracy: Tensor
    counts: Tensor

    @property
    def error(self) -> float:
        """The expected calibration error, sum_b (n_b / N) |accuracy_b - confidence_b|, 0 to 1."""
        gaps = (self.accuracy - self.confidence).abs()
        return float((self.counts * gaps).sum() / self.counts.sum())


def reliability(probabilities: Tensor, labels: Tensor, *, num_bins: int = 15, bins: str = "width") -> Reliability:
    """The reliability curve: how often a class that was given probability p was right. (N, C), (N,) -> `Reliability`.

    bins: "width", equal intervals (b/B, (b+1)/B] of confidence, as in the source, where most rows of a good classifier
    fall into the last one; "mass", equal numbers of rows as near as can be, equal confidences together. Guo, Pleiss, Sun &
    Weinberger 2017, arXiv:1706.04599.

    Raises OptionError for fewer than one bin or another kind, ShapeError and DataError for unfit probabilities or labels.
    """
    if num_bins < 1:
        raise OptionError(f"num_bins must be at least 1, got {num_bins}.")
    if bins not in BINS:
        raise OptionError(f"bins must be 'width' or 'mass', got {bins!r}.")
    p, y = _known(probabilities, labels)
    confidence, predicted = p.max(-1)
    if bins == "width":
        index = (confidence * num_bins).ceil().long().clamp(1, num_bins) - 1
    else:
        # rank of the first row of that confidence: equal ones are never torn apart
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
    """ECE = sum_b (n_b / N) |accuracy_b - confidence_b|, 0 to 1, of the bins of `reliability`, which see for errors.

    It is biased upwards: a perfectly calibrated classifier has about sum_b sqrt(2 p_b (1 - p_b) n_b / pi) / N. Guo et al. 2017,
    arXiv:1706.04599, equation 3.
    """
    return reliability(probabilities, labels, num_bins=num_bins, bins=bins).error


def brier_score(probabilities: Tensor, labels: Tensor) -> float:
    """Mean over rows of sum_c (p_c - 1[y = c])^2, 0 (best) to 2; a proper score. (N, C), (N,).

    For C = 2 it is twice what is often called so. Brier 1950, *Monthly Weather Review* 78. Raises as `reliability`.
    """
    p, y = _known(probabilities, labels)
    return float((p - torch.nn.functional.one_hot(y, p.shape[-1])).square().sum(-1).mean())


def log_score(probabilities: Tensor, labels: Tensor) -> float:
    """Mean of -log p_y over rows, nats, 0 is best; a proper score. p is raised to 2e-16, as scikit-learn does.

    Good 1952, *Rational decisions*. Raises as `reliability`.
    """
    p, y = _known(probabilities, labels)
    if p.shape[-1] == 1:
        return 0.0
    normed = p / p.sum(-1, keepdim=True)
    return float(metrics.log_loss(y.numpy(), normed.numpy(), labels=list(range(p.shape[-1]))))


def fit_temperature(probabilities: Tensor, labels: Tensor) -> float:
    """T of `with_temperature` with the best log score on these rows, which training must not have seen; 0.01 to 100.

    Above 1 the probabilities were too sure, below 1 not sure enough. -log p_y is convex in 1/T: its slope
    E_c[log p_c] - log p_y, a mean over rows, is brought to zero by bisection. Where a colder (all rows right) or a hotter one
    would always be better, the nearest bound. Guo et al. 2017, arXiv:1706.04599, section 4.2. Raises as `reliability`.
    """
    p, y = _known(probabilities, labels)
    logits = _log(p)
    of_label = logits.gather(-1, y[:, None])[:, 0].mean()

    def slope(log_t: float) -> float:
        tempered = (logits * math.exp(-log_t)).softmax(-1)
        return float((tempered * logits).sum(-1).mean() - of_label)

    cold, hot = math.log(COLDEST), math.log(HOTTEST)
    for _ in range(60):
        middle = (cold + hot) / 2
        # the expected logit falls with T: too high a one, too cold
        cold, hot = (middle, hot) if slope(middle) > 0 else (cold, middle)
    return math.exp((cold + hot) / 2)


def with_temperature(probabilities: Tensor, temperature: float) -> Tensor:
    """p_c^(1/T) / sum_j p_j^(1/T), softmax(logits / T) of the logits that p came from: (*batch, C) -> (*batch, C).

    The order of the classes stays; a probability below 1e-38, 0 among them, counts as that. Raises OptionError unless T is
    positive. Guo et al. 2017, arXiv:1706.04599.
    """
    if not temperature > 0:
        raise OptionError(f"temperature must be positive, got {temperature!r}.")
    return (_log(check_probabilities(probabilities)) / temperature).softmax(-1).to(probabilities.dtype)


def _log(p: Tensor) -> Tensor:
    """log p in float64, of the least float32 where p = 0: the same number, whatever dtype the probabilities came in."""
    return p.double().clamp_min(torch.finfo(torch.float32).tiny).log()


def _known(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities as float64 and labels as whole numbers, on the CPU, rows of unknown label left out."""
    p, y = probabilities.detach().double().cpu(), labels.detach().cpu()
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
        raise DataError("No row has a label, all are -1: calibration needs labelled rows that training has not seen.")
    return p[known], numbers[known]

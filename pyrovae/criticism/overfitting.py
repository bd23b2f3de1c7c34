"""Training rows against rows held out: how much less probable new rows are, why, and whether they are new at all."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrovae._lazily import Lazily
from pyrovae.criticism.evidence import Evidence
from pyrovae.criticism.findings import Finding, grade, normal_p

stats = Lazily("scipy.stats")

PART = "bounds"
MOST_ROWS = 20_000  # training rows among which copies are looked for
AT_ONCE = 2**24  # differences of two values in memory


def overfitting(evidence: Evidence) -> list[Finding]:
    """How much less probable rows held out are than training rows, in nats, and how much of it is the guide's."""
    trained = evidence.estimated_training
    if trained is None:
        return []
    held = evidence.estimated_alike
    difference, error = _difference(trained.log_likelihood, held.log_likelihood)
    gaps = [found.log_likelihood - found.elbo for found in (trained, held)]
    more, more_error = _difference(gaps[1], gaps[0])
    spread = torch.cat(
        [trained.log_likelihood - trained.log_likelihood.mean(), held.log_likelihood - held.log_likelihood.mean()]
    )
    scale = max(spread.std().item(), 1e-9)
    train_gap, held_gap = (gap.mean().item() for gap in gaps)
    return [
        Finding(
            "overfitting of the model",
            PART,
            f"log p(x) of rows held out is {_apart(difference, error)} that of training rows",
            "a difference of less than a fifth of the spread of log p(x) over rows",
            grade(difference / scale, 0.2, 0.5),
            "Train for fewer epochs (keep the best by validation rows), use a smaller network, fewer latent dimensions, "
            "more rows, weight decay, or, where rows are few for the numbers in each, dropout, as by "
            "activation=pv.nets.ReLUDropout(0.2).",
            values={"difference": difference, "difference_se": error, "relative": difference / scale},
            p_value=normal_p(difference / error) if difference > 0 else 1.0,
            curves={"training": trained.log_likelihood.tolist(), "held_out": held.log_likelihood.tolist()},
        ),
        Finding(
            "overfitting of the guide",
            PART,
            f"the ELBO of rows held out is {_apart(difference + more)} that of training rows; the guide fits them "
            f"{abs(more):.2f} ± {more_error:.2f} nats {'better' if more < 0 else 'worse'} "
            f"({train_gap:.2f} nats below log p(x) in training, {held_gap:.2f} held out)",
            "less than 0.5 nats are the guide's",
            grade(more, 0.5, 5.0),
            "The encoder has learned the training rows by heart: fewer epochs, dropout, as by "
            "activation=pv.nets.ReLUDropout(0.2), rows transformed at random, or q refined for each row (proposal='refined').",
            values={"elbo_difference": difference + more, "guide": more, "guide_se": more_error},
            p_value=normal_p(more / more_error) if more > 0 else 1.0,
        ),
    ]


def _apart(fall: float, error: float | None = None) -> str:
    """How far, in nats, what falls by so much is below another number, or above it."""
    found = f"{abs(fall):.2f}" if error is None else f"{abs(fall):.2f} ± {error:.2f}"
    return f"{found} nats {'above' if fall < 0 else 'below'}"


def copies(evidence: Evidence) -> list[Finding]:
    """Whether rows held out stand among the training rows, more often than training rows stand there twice.

    The distance of a row to the nearest training row is compared with that of training rows to the nearest other one. A copy is
    a row nearer than a hundredth of the median distance. Where rows repeat by nature, as those of a few yes-or-no columns, they
    do so in both, and the two shares are compared by Fisher's exact test.
    """
    if evidence.training is None:
        return []
    observed = {s.argument for part in evidence.parts for s in part.layout.sites if s.role == "observed"}
    names = [name for name in evidence.rows if name in observed and name in evidence.training]
    if not names:
        return []
    held, train = (torch.cat([_plain(b[n]) for n in names], 1) for b in (evidence.rows, evidence.training))
    if len(train) > MOST_ROWS:
        train = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(evidence.seed))[:MOST_ROWS]]
    if len(train) < 3:
        return []
    scale = train.std(0)
    held, train = (rows[:, scale > 0] / scale[scale > 0] for rows in (held, train))
    first = torch.randperm(len(train), generator=torch.Generator().manual_seed(evidence.seed))[: len(held)]
    to_train, within = nearest(held, train), nearest(train[first], train, first)
    near = 0.01 * within.median().item() + 1e-6
    copied, twice = to_train <= near, within <= near
    share, expected = copied.double().mean().item(), twice.double().mean().item()
    table = [[int(copied.sum()), int((~copied).sum())], [int(twice.sum()), int((~twice).sum())]]
    which = evidence.numbers[copied].tolist()
    listed = f" (rows {', '.join(map(str, which[:5]))}{', ...' if len(which) > 5 else ''})" if which else ""
    return [
        Finding(
            "copies of training rows",
            PART,
            f"{share:.1%} of the rows held out{listed} stand among the training rows, too; of training rows {expected:.1%} "
            "stand there twice",
            "rows held out are copies no more often than training rows are of one another",
            grade(share - expected, 1e-9, 0.01),
            "Rows that were trained on say nothing about new ones: drop duplicates before the split, and split by patient, "
            "document or day where rows belong together.",
            values={"share": share, "expected": expected},
            p_value=float(stats.fisher_exact(table, alternative="greater")[1]),
            curves={"copied_rows": which, "to_training": to_train.tolist(), "within_training": within.tolist()},
        )
    ]


def nearest(rows: Tensor, among: Tensor, own: Tensor | None = None) -> Tensor:
    """The distance of each row to the nearest of others, `(N,)`; `own` are the positions of the rows themselves among these."""
    found = []
    size = max(1, AT_ONCE // len(among))
    for start in range(0, len(rows), size):
        distance = torch.cdist(rows[start : start + size], among, compute_mode="donot_use_mm_for_euclid_dist")
        if own is not None:
            distance[torch.arange(len(distance)), own[start : start + size]] = float("inf")
        found.append(distance.amin(1))
    return torch.cat(found)


def _plain(values: Tensor) -> Tensor:
    """Rows of numbers, `(N, D)`; what is missing is a number of its own, so that gaps are compared, too."""
    return values.reshape(len(values), -1).float().cpu().nan_to_num(-1e3)


def _difference(one: Tensor, other: Tensor) -> tuple[float, float]:
    """The difference of two means and its standard error."""
    error = math.sqrt((one.var() / len(one) + other.var() / len(other)).item())
    return (one.mean() - other.mean()).item(), max(error, 1e-12)

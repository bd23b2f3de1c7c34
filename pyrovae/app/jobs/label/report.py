"""What `pyrovae label` says: probabilities of labels, how good they are on held-out rows, a table, and pictures."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from torch import Tensor

from pyrovae import plots
from pyrovae._lazily import Lazily
from pyrovae.app.jobs.label.ensemble import fitted_weights
from pyrovae.app.jobs.label.reading import Job
from pyrovae.criticism.acquisition import entropy
from pyrovae.criticism.calibration import log_score, reliability, share_interval
from pyrovae.criticism.ensembles import Weights
from pyrovae.data.labels import LABEL
from pyrovae.errors import OptionError
from pyrovae.fitted.fitted import Fit, seeded
from pyrovae.nets.dropout import dropping

linear_model = Lazily("sklearn.linear_model")

# weights are fitted from so many held-out rows on, if so many of them are predicted wrongly
ENOUGH, MISTAKES = 20, 5
PARTS = 20  # into which the held-out rows are divided for cross-validation
PICTURES = ("reliability.png", "doubtful.png")


def committee(fitted: Fit, x: Tensor, num: int, seed: int | None = 0) -> Tensor:
    """Class probabilities by several passes of a pair's `classifier` with its dropout on.

    Each pass is a draw of q(y | x, w) under an approximate posterior of the classifier's weights w. The mean of the passes
    approximates p(y | x, labels). The fit's transform is not applied: a pixel that is binarised anew at each step of the fit is
    seen at its mean.

    Args:
        fitted: a fitted pair with a `classifier`.
        x: `(N, *event)`.
        num: the number of passes, S.

    Returns:
        `(S, N, C)` probabilities, float64.

    Raises:
        OptionError: less than one pass.

    References:
        Gal & Ghahramani 2016, arXiv:1506.02142; Gal, Islam & Ghahramani 2017, arXiv:1703.02910.
    """
    if num < 1:
        raise OptionError(f"a committee needs one pass or more, got {num}.")
    classifier = cast(Any, fitted.pair).classifier
    with fitted.scope(), seeded(seed), dropping(classifier):
        parts = [
            torch.stack([classifier(rows).probs.double().cpu() for _ in range(num)])
            for rows in x.to(fitted.device).split(1000)
        ]
    return torch.cat(parts, 1)


def held_out_report(q: Tensor | None, f: Tensor | None, y: Tensor, seed: int = 0) -> tuple[dict[str, Any], Weights]:
    """How good class probabilities of held-out rows are, and the weights of classifier and ensemble that are best calibrated.

    The weights with the best log score are fitted from 20 held-out rows on, of which at least 5 are predicted wrongly; where
    nearly all predictions are right, so few rows make them far too large, and they stay what they are by default. The report is
    cross-validated: each of 20 parts of the held-out rows gets the weights of the others.

    Args:
        q: class probabilities of the held-out rows by the classifier of a model, `(n, C)`; None without one.
        f: and by the ensemble, `(n, C)`; None without it.
        y: the labels of the held-out rows, `(n,)`.
        seed: of the division into parts and of the draws behind `calibration_error_of_chance`.

    Returns:
        The report and the weights. The report is a dict: `held_out`, the number of rows, and unless it is 0:

        - `accuracy`, and the ends of its 95 % interval, `accuracy_low` and `accuracy_high`,
        - `accuracy_of_classifier` and `accuracy_of_ensemble`, of each alone, of those that there are,
        - `calibration_error`, the expected calibration error over at most 10 bins of equal mass and at least 5 rows,
        - `calibration_error_of_chance`, the mean of that error if labels were drawn from the predicted probabilities,
        - `log_score` in nats per row,
        - `weights`, those of the classifier and the ensemble, None where they were not fitted,
        - `curve`, the values of a `Reliability`.

    References:
        Broecker & Smith 2007, doi:10.1175/WAF993.1.
    """
    report: dict[str, Any] = {"held_out": len(y)}
    weights = Weights.default(q, f)
    if not len(y):
        return report, weights
    p = weights.pooled(q, f)
    generator = torch.Generator().manual_seed(seed)
    enough = len(y) >= ENOUGH and int((p.argmax(-1) != y).sum()) >= MISTAKES
    if enough:
        weights = fitted_weights(q, f, y)
        for rows in torch.randperm(len(y), generator=generator).tensor_split(min(PARTS, len(y))):
            others = torch.ones(len(y), dtype=torch.bool)
            others[rows] = False
            (q_others, f_others), (q_rows, f_rows) = (
                [None if one is None else one[part] for one in (q, f)] for part in (others, rows)
            )
            p[rows] = fitted_weights(q_others, f_others, y[others]).pooled(q_rows, f_rows)
    right = (p.argmax(-1) == y).double()
    draws = torch.multinomial(p, 200, replacement=True, generator=generator).T
    binned = partial(reliability, p, num_bins=max(1, min(10, len(y) // 5)), bins="mass")
    curve = binned(y)
    low, high = share_interval(right.mean().item(), len(y))
    alone = {"classifier": q, "ensemble": f}
    report |= {
        "accuracy": right.mean().item(),
        "accuracy_low": low,
        "accuracy_high": high,
        **{
            f"accuracy_of_{name}": (one.argmax(-1) == y).double().mean().item()
            for name, one in alone.items()
            if one is not None
        },
        "calibration_error": curve.error,
        "calibration_error_of_chance": torch.tensor([binned(drawn).error for drawn in draws]).mean().item(),
        "log_score": log_score(p, y),
        "weights": asdict(weights) if enough else None,
        "curve": {name: getattr(curve, name).tolist() for name in ("confidence", "accuracy", "counts")},
    }
    return report, weights


def logistic_regression(x: Tensor, y: Tensor, held: Tensor) -> Tensor:
    """The classes of held-out rows by a logistic regression on the other rows with a label, `(n,)`: a yardstick.

    Columns are standardised; the penalty is scikit-learn's default, and so is everything else.

    Args:
        x: all rows, `(N, D)`.
        y: their classes, -1 where unknown; those of the held-out rows are not looked at.
        held: the positions of the held-out rows.
    """
    known = y >= 0
    known[held] = False
    if len(y[known].unique()) < 2:
        return y[known][:1].expand(len(held))
    scale = x.std(0).clamp_min(1e-8)
    scaled = (x - x.mean(0)) / scale
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a yardstick need not have converged to the last digit
        model = linear_model.LogisticRegression(max_iter=200).fit(scaled[known].numpy(), y[known].numpy())
    return torch.from_numpy(model.predict(scaled[held].numpy()))


def tabulate(job: Job, p: Tensor) -> pd.DataFrame:
    """The table of all rows: one line for each.

    Args:
        job: the rows.
        p: their class probabilities, `(N, C)`.

    Returns:
        The columns are the row's id; `label` as given, "" where unknown; `predicted`, the most probable label; its
        `probability`; the `entropy` of all labels in nats; the `margin`, by which the probability of the most probable label
        is above that of the next; and `rank`, by the smallest margin, among the unlabelled rows, 1 for the row to label first.

    References:
        Scheffer, Decomain & Wrobel 2001, doi:10.1007/3-540-44816-0_31 (the margin).
    """
    (probability, second), (predicted, _) = (top.T for top in p.topk(2))
    margin = probability - second
    unknown = (job.labels.y < 0).nonzero().squeeze(1)
    rank = pd.array([pd.NA] * len(p), dtype="Int64")
    first = unknown[margin[unknown].argsort(stable=True)]
    rank[first.numpy()] = range(1, len(first) + 1)
    return pd.DataFrame(
        {
            job.id_column: job.names(),
            LABEL: job.labels.text(job.labels.y),
            "predicted": job.labels.text(predicted),
            "probability": probability.numpy(),
            "entropy": entropy(p).numpy(),
            "margin": margin.numpy(),
            "rank": rank,
        }
    )


def draw_report(job: Job, report: Mapping[str, Any], table: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw the reliability diagram of the held-out rows, and the images to label next."""
    for name in PICTURES:
        (folder / name).unlink(missing_ok=True)
    made = {}
    if "curve" in report:
        made["reliability.png"] = plots.reliability(**report["curve"])
    if job.dataset.image_shape is not None:
        first = table.sort_values("rank").head(min(40, int(table["rank"].notna().sum())))
        captions = [
            f"{_end(name)}\n{_short(label)} {p:.2f}"
            for name, label, p in zip(first[job.id_column], first["predicted"], first["probability"])
        ]
        made["doubtful.png"] = plots.captioned(job.x[first.index.tolist()], job.dataset.image_shape, captions)
        what = f"to label next: {job.id_column}, most probable label and its probability"
        made["doubtful.png"].set_title(what, loc="left", fontsize=9, parse_math=False)
    return [plots.save(axes, folder / name) for name, axes in made.items()]


def _end(name: str) -> str:
    return name if len(name) <= 16 else "…" + name[-15:]


def _short(label: str) -> str:
    return label if len(label) <= 10 else label[:9] + "…"

"""Which starts of a table's model are worth a comparison, and how it ends: the command `fit` and the estimators share this."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pyrovae.errors import counted

if TYPE_CHECKING:
    from torch import Tensor

    from pyrovae.fitted.fitted import Fit

FLOW, MIXTURE, RANDOM = "flow", "mixture", "random"  # of `tables.vae`, and few codes that start at random
ENOUGH_FOR_A_FLOW = 300  # training rows, from which on a flow in the prior gains more than it overfits
MOST_WITHOUT_FLOW = 2000  # rows, beyond which a prior without a flow is not tried
MOST_COPIED = 12  # columns, beyond which a start at random is tried
FEWEST_JUDGES = 10  # validation rows
MOST_JUDGES, DRAWS = 500, 200  # validation rows that judge, and draws of each
# share of the epochs after which a further fit may be left, and by how many nats its best validation ELBO is then too low
START, FAR_BEHIND = 1 / 3, 3.0


def usual(num_training: int) -> str:
    """The start of a table's model where nothing is compared: of some hundred training rows and more with a flow."""
    return FLOW if num_training >= ENOUGH_FOR_A_FLOW else MIXTURE


def also(num_training: int, num_rows: int, num_columns: int) -> tuple[str, ...]:
    """The starts that are worth a comparison with the usual one.

    Of some hundred rows a flow learns more than they say in some tables (by 1.8 nats a row of diabetes), and gains in others.
    Copies of columns overfit in some tables of many columns, by 14 nats a row of ionosphere, and gain as much in others.

    Args:
        num_training: training rows.
        num_rows: all rows, those held out included.
        num_columns: columns that are modelled.
    """
    some_hundred = usual(num_training) == FLOW and num_rows <= MOST_WITHOUT_FLOW
    return (MIXTURE,) * some_hundred + (RANDOM,) * (num_columns > MOST_COPIED)


class Behind(Exception):
    """A fit is so far behind another one that it is not worth its time."""


class Race:
    """A callback of a fit that ends it by `Behind` where it is far behind another fit of the same rows.

    Args:
        best: the best validation ELBO of the other fit, in nats per row.
    """

    only_looks = True  # a fit that comes through is as it would be without

    def __init__(self, best: float) -> None:
        self.best = best

    def __call__(self, fitted: Fit) -> None:
        epoch = len(fitted.history)
        if epoch < START * fitted.settings["epochs"]:
            return
        behind = self.best - best_elbo(fitted)
        if behind > FAR_BEHIND:
            raise Behind(f"its validation ELBO is {behind:.1f} nats per row lower after {counted(epoch, 'epoch')}")


def best_elbo(fitted: Fit) -> float:
    """The best validation ELBO of a fit so far, in nats per row; not every one of many epochs has one."""
    return max((row["validation_elbo"] for row in fitted.history if "validation_elbo" in row), default=-math.inf)


def mean_of(scores: Tensor) -> float:
    """The mean of scores, or minus infinity if it is no number."""
    mean = scores.mean().item()
    return mean if math.isfinite(mean) else -math.inf


def error_of(differences: Tensor) -> float:
    """The standard error of the mean of differences, row by row; 0 of a single row, and where it is no number."""
    error = differences.std().item() / math.sqrt(len(differences)) if len(differences) > 1 else 0.0
    return error if math.isfinite(error) else 0.0

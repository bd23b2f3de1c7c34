"""Which rows of a table are among the training rows of a run, so that what is said of them says little about new rows."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from pyrovae.app.rows import Array
from pyrovae.app.run import Run
from pyrovae.pair.batch import take_rows

TRAINED_ON = "trained_on"  # the column that says so of each row
MOST_TEST_ROWS = 1000  # among which rows are counted that equal a training row by chance


class TrainingRows:
    """The training rows of a run, of which a hash is held."""

    def __init__(self, run: Run, which: Tensor | None = None) -> None:
        """`which` training rows are meant, `(N,)` bool; by default all."""
        train = run.rows.batch("train", labels=False)
        self.names = sorted(train)
        self.known = set(self._keys(train if which is None else take_rows(train, which.nonzero().flatten())))
        self.test = self.among(take_rows(run.rows.batch("test"), slice(0, MOST_TEST_ROWS)))

    def among(self, batch: Mapping[str, Tensor]) -> Array:
        """Whether each row equals a training row, with what the model is given beside it: `(N,)` bool."""
        return np.array([key in self.known for key in self._keys(batch)], dtype=bool)

    def are_told(self, count: int, rows: int) -> bool:
        """Whether so many of the rows are training rows that it is no chance, as among rows of a few yes-or-no columns.

        Chance is what happens to test rows; more than that and two standard deviations is none.
        """
        share = float(self.test.mean()) if len(self.test) else 0.0
        return count > rows * share + 2 * math.sqrt(rows * share * (1 - share))

    def _keys(self, batch: Mapping[str, Tensor]) -> list[int]:
        values = [batch[name].reshape(len(batch[name]), -1).float().cpu() for name in self.names]
        # adding 0 turns -0 into 0, and one NaN stands for all
        rows = torch.cat([torch.where(one.isnan(), torch.nan, one) + 0.0 for one in values], 1).numpy()
        return [hash(row.tobytes()) for row in rows]

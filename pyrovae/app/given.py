"""Columns of a table that a model is given with every row: what they are, and what its networks see of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor

from pyrovae.app.catalogue import CONDITION
from pyrovae.errors import DataError
from pyrovae.families import Features

if TYPE_CHECKING:
    from pyrovae.tables.schema import Schema


class Given:
    """Columns that a model is given.

    Args:
        schema: what they are.
        parts: their rows, `(N, C)` each, as `schema` encodes them: "train", "validation", "test".
        size: the column among them that holds the sizes of rows of counts, or None.
    """

    def __init__(self, schema: Schema, parts: Mapping[str, Tensor], size: str | None = None) -> None:
        self.schema, self.parts, self.size = schema, parts, size
        gaps = any(bool(part.isnan().any()) for part in parts.values())
        self.seen = Features(schema.family(parts["train"]), mask=gaps)
        self.centre = 0.0 if size is None else float(self._log_sizes(parts["train"]).mean())

    @property
    def num_features(self) -> int:
        """How many numbers the model's networks see."""
        return self.seen.num_features + (self.size is not None)

    def argument(self, rows: Tensor) -> dict[str, Tensor]:
        """The argument c of the model for rows of these columns, `(N, C)`; the size's logarithm is the last of its numbers.

        Raises:
            DataError: a cell is missing where none was at the fit, or a size is not positive.
        """
        if not self.seen.mask and bool(rows.isnan().any()):
            row, column = rows.isnan().nonzero()[0].tolist()
            raise DataError(
                f"Row {row} (counted from 0) has no {self.schema.names[column]}, which the model is given; all rows of its fit "
                "had theirs. Fill it in, or fit again with rows that have such gaps."
            )
        told: Tensor = self.seen(rows)
        if self.size is not None:
            told = torch.cat([told, (self._log_sizes(rows) - self.centre).to(told.dtype).unsqueeze(1)], 1)
        return {CONDITION: told}

    def _log_sizes(self, rows: Tensor) -> Tensor:
        """`(N,)` float64."""
        column = pd.to_numeric(self.schema.decode(rows)[self.size], errors="coerce")
        sizes = torch.tensor(column.to_numpy(dtype=float, na_value=float("nan")))
        bad = (~(sizes > 0)).nonzero().flatten()
        if len(bad):
            raise DataError(
                f"The sizes of rows must be positive numbers, and {self.size} is {float(sizes[bad[0]]):g} in row {int(bad[0])} "
                f"(counted from 0), and so in {len(bad)} rows. Correct them, or take another --size-factor."
            )
        return sizes.log()

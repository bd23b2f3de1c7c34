"""What a model is given with every row, columns of a table or a caption, and what its networks see of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor, nn

from pyrovae._near import expanded
from pyrovae._sources import check_source
from pyrovae.app.catalogue import CONDITION
from pyrovae.data.frames import read_frame
from pyrovae.errors import DataError, OptionError, counted
from pyrovae.families import Features
from pyrovae.nets import Words

if TYPE_CHECKING:
    from pyrovae.data import Captions
    from pyrovae.tables.schema import Schema

WIDTH, DROPOUT = 32, 0.3  # the size of a word's vector, and how often one is left out in training


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

    @property
    def what(self) -> str:
        return ", ".join(self.schema.names)

    def code(self) -> nn.Module:
        """The network of c that the others share."""
        return nn.Identity()

    def rows(self, given: str, num: int) -> Tensor:
        """The rows that --given asks for: those of a table in a file."""
        check_source(given)
        return self.schema.encode(read_frame(expanded(given), header=True)[0])

    def table(self, rows: Tensor) -> pd.DataFrame:
        return self.schema.written(self.schema.decode(rows))

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
                f"(counted from 0), and so in {counted(len(bad), 'row')}. Correct them, or take another --size-factor."
            )
        return sizes.log()


class GivenCaptions:
    """Captions that a model is given.

    Args:
        captions: how they are made, and their words.
        parts: the numbers of their words, `(N, T)` each: "train", "validation", "test".
    """

    def __init__(self, captions: Captions, parts: Mapping[str, Tensor]) -> None:
        self.captions, self.parts, self.words = captions, parts, captions.vocabulary

    num_features = WIDTH

    @property
    def what(self) -> str:
        return f"captions of {len(self.words)} words"

    def code(self) -> nn.Module:
        return Words(len(self.words), WIDTH, DROPOUT)

    def argument(self, rows: Tensor) -> dict[str, Tensor]:
        return {CONDITION: rows}

    def rows(self, given: str, num: int) -> Tensor:
        """`num` rows of the caption that --given c="..." asks for."""
        name, found, text = given.partition("=")
        if not found or name.strip() != CONDITION:
            raise OptionError(
                f'This run\'s model is given captions: write --given {CONDITION}="{self.example}", for example. Got {given!r}.'
            )
        return self.words.encode([text] * num)

    @property
    def example(self) -> str:
        """A caption of the words that the run knows, the plainest name of the last level of each attribute."""
        levels = {name: len(phrases) - 1 for name, phrases in self.captions.phrases.items()}
        return self.captions.say(levels)

    def table(self, rows: Tensor) -> pd.DataFrame:
        return pd.DataFrame({"caption": self.words.decode(rows)})

    def each(self) -> list[str]:
        """For each level of each attribute the caption that tells it alone."""
        names = [name for name in ("width", "slant", "size", "class") if name in self.captions.phrases]
        return [
            self.captions.phrases[name][level][0] for name in names for level in range(len(self.captions.phrases[name]))
        ]

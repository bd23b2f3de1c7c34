"""Train, validation and test rows: drawn once from a seed, and checked whenever they are drawn again."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyrovae.errors import CheckpointError, DataError, OptionError


@dataclass(frozen=True, eq=False)
class Split:
    """A random partition of the rows 0..N-1 into train, validation and test rows.

    The parts are consecutive pieces of one permutation pi that a generator seeded with `seed` draws:
    test = pi[:T], validation = pi[T:T+V], train = the rest, with T = round(test_fraction * N) and V likewise.

    Args:
        num_rows: N, at least 1.
        test_fraction: share of the rows held out for the end; 0 where the source has a test set of its own.
        validation_fraction: share of the rows that watch the training.
        seed: 0 <= seed < 2**63.

    `train`, `validation` and `test` are int64 index tensors, (rows,); the latter two are empty where their fraction is 0.

    Raises:
        OptionError: a fraction outside [0, 1), fractions that sum to 1 or more, a seed out of range.
        DataError: so few rows that a part which was asked for stays empty.
    """

    num_rows: int
    test_fraction: float = 0.2
    validation_fraction: float = 0.0
    seed: int = 0
    train: Tensor = field(init=False, repr=False)
    validation: Tensor = field(init=False, repr=False)
    test: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        fractions = {"test": self.test_fraction, "validation": self.validation_fraction}
        for name, fraction in fractions.items():
            if not 0 <= fraction < 1:  # NaN fails here, too
                raise OptionError(f"the {name} fraction must lie in [0, 1), got {fraction}. Give 0.2 for a fifth.")
        if sum(fractions.values()) >= 1:
            raise OptionError(f"the fractions {fractions} leave nothing to train on. Give a sum below 1.")
        if not 0 <= self.seed < 2**63:
            raise OptionError(f"the seed must lie in [0, 2**63), got {self.seed}. Give a non-negative integer.")
        sizes = {name: math.floor(fraction * self.num_rows + 0.5) for name, fraction in fractions.items()}
        sizes["train"] = self.num_rows - sum(sizes.values())
        empty = [name for name, size in sizes.items() if size < 1 and fractions.get(name, 1.0) > 0]
        if empty:
            raise DataError(
                f"{self.num_rows} rows leave no row for {' and '.join(empty)} (fractions {fractions}). "
                "Give more rows, or other fractions (0 does without the part)."
            )
        order = torch.randperm(self.num_rows, generator=torch.Generator().manual_seed(self.seed))
        for name in ("test", "validation", "train"):
            part, order = order[: sizes[name]], order[sizes[name] :]
            object.__setattr__(self, name, part.clone())

    @property
    def checksum(self) -> str:
        """sha256 of the train, validation and test indices, each as its length and its little-endian int64 values."""
        digest = hashlib.sha256()
        for part in (self.train, self.validation, self.test):
            digest.update(len(part).to_bytes(8, "little") + part.numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    def to_json(self) -> dict[str, Any]:
        """What `from_json` needs to draw the same split again."""
        return {
            "num_rows": self.num_rows,
            "test_fraction": self.test_fraction,
            "validation_fraction": self.validation_fraction,
            "seed": self.seed,
            "checksum": self.checksum,
        }

    @classmethod
    def from_json(cls, saved: Mapping[str, Any], num_rows: int | None = None) -> Split:
        """Draws a saved split again. `num_rows`: the rows of the data now at hand, where they are at hand.

        Raises:
            CheckpointError: an entry is missing or impossible, the data have another number of rows, or the rows
                drawn are not those that were saved (another version of torch may permute differently).
        """
        wanted = ("num_rows", "test_fraction", "validation_fraction", "seed", "checksum")
        if missing := [key for key in wanted if key not in saved]:
            raise CheckpointError(f"a saved split has the entries {wanted}; {missing} are missing. Fit again.")
        if num_rows is not None and num_rows != saved["num_rows"]:
            raise CheckpointError(
                f"the split was drawn from {saved['num_rows']} rows, the data have {num_rows}. "
                "Give the data of the fit."
            )
        try:
            split = cls(saved["num_rows"], saved["test_fraction"], saved["validation_fraction"], saved["seed"])
        except (DataError, OptionError, TypeError) as error:
            raise CheckpointError(f"the saved split is damaged: {error}") from error
        if split.checksum != saved["checksum"]:
            raise CheckpointError(
                f"the split drawn again has the checksum {split.checksum}, the saved one {saved['checksum']}: other "
                f"rows would be held out. Use the torch version of the fit (this is {torch.__version__}), or fit again."
            )
        return split

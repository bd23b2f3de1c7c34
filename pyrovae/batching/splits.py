"""Random splits into training, validation and test rows, which are saved as a seed and a checksum."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyrovae._arguments import MOST, as_count, as_number, as_seed
from pyrovae.errors import CheckpointError, DataError, OptionError, counted


@dataclass(frozen=True, eq=False)
class Split:
    """A random partition of the rows 0, ..., N-1 into training, validation and test rows.

    A generator with the given seed draws one permutation pi of the rows. Then test = pi[:T], validation = pi[T:T+V] and
    train = pi[T+V:], with T = round(test_fraction * N) and V = round(validation_fraction * N). The attributes `train`,
    `validation` and `test` are these indices, each an int64 tensor of shape `(rows,)`.

    Args:
        num_rows: N, at least 1.
        test_fraction: Share of the rows held out for the final evaluation; 0 if the data have a test set of their own.
        validation_fraction: Share of the rows held out to monitor the fit.
        seed: 0 <= seed < 2**63.

    Raises:
        OptionError: A fraction is outside [0, 1), the fractions sum to 1 or more, or the seed is out of range.
        DataError: There are so few rows that a part with a positive fraction would be empty.

    Example:
        >>> from pyrovae.batching.splits import Split
        >>> split = Split(num_rows=10, test_fraction=0.2, validation_fraction=0.1, seed=0)
        >>> len(split.train), len(split.validation), len(split.test)
        (7, 1, 2)
        >>> again = Split.from_json(split.to_json())
        >>> torch.equal(again.test, split.test)
        True
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
            as_number(f"The {name} fraction", fraction, least=0, below=1, cure="0.2 means a fifth of the rows.")
        if sum(fractions.values()) >= 1:
            raise OptionError(f"The fractions {fractions} leave nothing to train on: their sum must be below 1.")
        seed, _ = as_seed(self.seed, least=0), as_count("num_rows", self.num_rows, least=0, most=MOST)
        sizes = {name: math.floor(fraction * self.num_rows + 0.5) for name, fraction in fractions.items()}
        sizes["train"] = self.num_rows - sum(sizes.values())
        empty = [name for name, size in sizes.items() if size < 1 and fractions.get(name, 1.0) > 0]
        if empty:
            raise DataError(
                f"{counted(self.num_rows, 'row leaves', 'rows leave')} no row for {' and '.join(empty)} (the fractions "
                f"are {fractions}): "
                "give more rows or other fractions; 0 leaves a part out."
            )
        order = torch.randperm(self.num_rows, generator=torch.Generator().manual_seed(seed))
        for name in ("test", "validation", "train"):
            part, order = order[: sizes[name]], order[sizes[name] :]
            object.__setattr__(self, name, part.clone())

    @property
    def checksum(self) -> str:
        """SHA-256 of the training, validation and test indices, each as its length and its values in little-endian int64."""
        digest = hashlib.sha256()
        for part in (self.train, self.validation, self.test):
            digest.update(len(part).to_bytes(8, "little") + part.numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The split as JSON, from which `from_json` draws it again: sizes, seed and checksum."""
        return {
            "num_rows": self.num_rows,
            "test_fraction": self.test_fraction,
            "validation_fraction": self.validation_fraction,
            "seed": self.seed,
            "checksum": self.checksum,
        }

    @classmethod
    def from_json(cls, saved: Mapping[str, Any], num_rows: int | None = None) -> Split:
        """Draw a saved split again.

        Args:
            saved: What `to_json` returned.
            num_rows: The number of rows of the data, if it is to be checked.

        Raises:
            CheckpointError: An entry is missing or invalid, the data have another number of rows, or the checksum shows that
                other rows were drawn, as another version of torch might.
        """
        wanted = ("num_rows", "test_fraction", "validation_fraction", "seed", "checksum")
        if missing := [key for key in wanted if key not in saved]:
            raise CheckpointError(f"A saved split has the entries {wanted}, and {missing} are missing: fit again.")
        if num_rows is not None and num_rows != saved["num_rows"]:
            raise CheckpointError(
                f"The split was drawn from {counted(saved['num_rows'], 'row')}, the data have {num_rows}: pass the data "
                "of the fit."
            )
        try:
            split = cls(saved["num_rows"], saved["test_fraction"], saved["validation_fraction"], saved["seed"])
        except (DataError, OptionError, TypeError) as error:
            raise CheckpointError(f"The saved split is damaged ({error}): fit again.") from error
        if split.checksum != saved["checksum"]:
            raise CheckpointError(
                f"The split drawn again has the checksum {split.checksum}, the saved one {saved['checksum']}, so that other "
                f"rows would be held out: use the torch version of the fit (this is {torch.__version__}), or fit again."
            )
        return split

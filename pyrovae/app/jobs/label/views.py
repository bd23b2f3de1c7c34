"""Rows as a person sees them: an image, or the cells of a table as they are written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pyrovae.app.jobs.label.reading import Job
from pyrovae.data.frames import read_frame, read_text
from pyrovae.data.images import as_png, grey_range, thumbnail
from pyrovae.data.labels import LABEL
from pyrovae.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

LARGEST = 320  # pixels of a side
MOST_CELLS, LONGEST_CELL = 40, 1_500  # cells of a row, and letters of a cell


class Views:
    """How the rows of a job are shown.

    Args:
        job: The rows.
        cells: The cells of its table as texts, `(N, D)`, if it is one.
    """

    def __init__(self, job: Job, cells: pd.DataFrame | None = None) -> None:
        self.job, self.cells = job, cells
        self.are_images = job.dataset.image_shape is not None
        self._low, self._high = grey_range(job.dataset, job.x) if self.are_images else (0.0, 1.0)

    @classmethod
    def of(cls, job: Job) -> Views:
        """The views of a job, with the cells of its table read anew, since its rows hold only what is modelled.

        Raises:
            DataError: The table has other rows by now.
        """
        source = job.dataset.source
        path = Path(str(source.get("path", "")))
        if job.dataset.image_shape is not None or path.suffix.lower() in ("", ".npz", ".npy"):
            return cls(job)
        frame, form = read_frame(path, source.get("header"))
        hidden = {source.get("ids"), source.get("label")}
        cells = read_text(path, form, [name for name in frame if name not in hidden and name.lower() != LABEL], frame)
        if len(cells) != len(job.x):
            raise DataError(f"{path} has changed while it was read: start again.")
        return cls(job, cells)

    def cells_of(self, row: int) -> list[tuple[str, str]]:
        """The names and values of a row's columns; [] for an image."""
        if self.are_images:
            return []
        if self.cells is not None:
            found = [(str(name), str(value)) for name, value in self.cells.iloc[row].items()]
        else:
            names = self.job.dataset.columns or [f"x{i}" for i in range(self.job.x.shape[1])]
            found = [(name, f"{value:.4g}") for name, value in zip(names, self.job.x[row].tolist())]
        more = len(found) - MOST_CELLS
        return [(name, _cut(value)) for name, value in found[:MOST_CELLS]] + (
            [("...", f"{more} more")] if more > 0 else []
        )

    def image_of(self, row: int) -> bytes:
        """The image of a row as a PNG file: the file of a folder, or else the row's pixels.

        Raises:
            DataError: The rows are no images, or the file is no longer in the folder.
        """
        dataset = self.job.dataset
        if dataset.image_shape is None:
            raise DataError("these rows are no images.")
        if self.job.is_folder and self.job.ids is not None:
            return thumbnail(dataset.source["path"], self.job.ids[row], LARGEST)
        values = self.job.x[row].reshape(dataset.image_shape).numpy().astype(np.float64)
        return as_png(values, self._low, self._high)


def _cut(value: str) -> str:
    return value if len(value) <= LONGEST_CELL else value[: LONGEST_CELL - 4] + " ..."

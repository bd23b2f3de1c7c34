"""The images in a folder as blocks of rows, for questions that tables are asked, too."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pyrovae._near import expanded
from pyrovae.app.catalogue import CONDITION
from pyrovae.app.jobs.frames import FILE, Block
from pyrovae.app.run import Run
from pyrovae.data.cells import Form
from pyrovae.data.images import paths_of_images, pixels_of
from pyrovae.errors import DataError, OptionError, counted
from pyrovae.fitted.files import digest

BITS = 255  # by which pixels of 8 bits are divided


class Folder:
    """A folder of images, read as those that a run was fitted to, so many at once.

    Images are scaled and cropped as the run's were; where these were taken as they are, they must have their size.

    Args:
        run: a run of images.
        source: the folder.
        label: what the column of classes is called, which are the folders in it, where these are classes of the run.
        rows: how many images are read at once.

    Raises:
        OptionError: the run was not fitted to images of 8 bits.
        DataError: the folder is not there, or holds no image; or the model is given a class that is none of the run's.
    """

    def __init__(self, run: Run, source: Path, label: str, rows: int) -> None:
        self.path, self.rows = expanded(source).absolute(), rows
        shape = run.dataset.image_shape
        if shape is None or run.dataset.source.get("divided_by") != BITS:
            raise OptionError(
                f"{source} is a folder, and the run was fitted to {_what(run)}: give a table (.csv, .parquet, .npy) with the "
                f"{counted(run.rows.test[0].numel(), 'column')} of the run."
            )
        self.shape, self.size = tuple(shape), run.dataset.source.get("size")
        self.names = paths_of_images(source)
        self.form = Form(",", ".", (FILE,), True, False, ())
        self.classes = {label: self._classes(run.dataset.classes or ())}
        if run.rows.argument == CONDITION and self.classes[label] is None:
            known = ", ".join(map(str, run.dataset.classes or ()))
            raise DataError(
                f"The model is given the class of each image, and {source} has no folders that are classes of the run: put the "
                f"images into folders called {known}."
            )

    def _classes(self, known: Sequence[Any]) -> list[str] | None:
        """The class of each image by the folder that it is in; None where one is in none that is known."""
        found = [name.split("/")[0] if "/" in name else None for name in self.names]
        return [str(one) for one in found] if set(found) <= set(known) else None

    @property
    def identity(self) -> dict[str, Any]:
        """What tells the images from others, and from what they were before."""
        states = [(name, (self.path / name).stat()) for name in self.names]
        files = digest("\n".join(f"{name} {state.st_size} {state.st_mtime_ns}" for name, state in states).encode())
        return {"folder": str(self.path), "files": files, "rows": self.rows}

    def blocks(self, texts: Sequence[str] | None = ()) -> Generator[Block, None, None]:
        """The images, block by block, in ascending order of their paths. DataError where one cannot be read, or has no room."""
        for start in range(0, len(self.names), self.rows):
            some = slice(start, start + self.rows)
            named = {FILE: self.names[some]} | {
                name: one[some] for name, one in self.classes.items() if one is not None
            }
            pixels = pixels_of(self.path, self.names[some], self.size, self.shape)
            flat = np.divide(pixels.reshape(len(pixels), -1), BITS, dtype=np.float32)
            yield Block(start, pd.DataFrame(named), pixels=flat)


def _what(run: Run) -> str:
    if run.dataset.image_shape is None:
        return f"{counted(run.rows.test[0].numel(), 'column')}, and not to images"
    return f"{run.dataset.name}, whose pixels are not of 8 bits"

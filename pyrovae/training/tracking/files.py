"""Trackers that write files: lines of JSON, and those of TensorBoard."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyrovae._arguments import as_path
from pyrovae._files import refuse_leaving, write_file
from pyrovae._lazily import Lazily
from pyrovae.errors import OptionError
from pyrovae.fitted.fitted import Fit
from pyrovae.training.tracking.tracker import Row, Tracker, need_package, numbers_in, plain, settings_of

board = Lazily("torch.utils.tensorboard")
image = Lazily("matplotlib.image")

BEGINNING = b'{"epoch": '  # of a log
FLUSH_EVERY = 2.0  # seconds between two writes of TensorBoard's file


class JSONLines(Tracker):
    """One line of JSON for each epoch, written as the fit goes on: to follow it from elsewhere, by `tail -f` or a script.

    A run folder has the same numbers in history.csv, but only when the fit has ended. What is not finite is null.

    Args:
        path: The file. A log that is there is replaced, and begins with all epochs of the fit, also of one that is resumed.

    Raises:
        OptionError: The file is there, and is no such log.

    Example:
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6)), pv.mlp(6, fam.Normal(2)))
        >>> fitted = pv.fit(vae, x, epochs=2, callbacks=[pv.tracking.JSONLines("log.jsonl")], progress=False)
        >>> with open("log.jsonl") as file:
        ...     [line.split(",")[0] for line in file]
        ['{"epoch": 1', '{"epoch": 2']
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = as_path("path", path)
        if self.path.exists() and not (
            self.path.is_file() and _is_log(self.path)
        ):  # a pipe would not be read to its end
            raise OptionError(f"{self.path} is there, and is no log of a fit: choose another file, or remove it.")

    def begin(self, fitted: Fit) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_file(self.path, b"")

    def write(self, rows: Sequence[Row]) -> None:
        self._append([dict(row) for row in rows])

    def write_table(self, name: str, values: Mapping[str, Any]) -> None:
        self._append([{name: dict(values)}])

    def _append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(plain(line), default=str) + "\n" for line in lines)


class TensorBoard(Tracker):
    """The curves of a fit in TensorBoard: `tensorboard --logdir FOLDER`, or the folder above for several fits.

    The names are those of the history, and the step is the epoch. The settings of the fit are a text. Needs
    `pip install 'pyrovae[tensorboard]'`.

    Args:
        folder: A folder for this fit alone: what another fit wrote there before is no longer shown.

    Raises:
        MissingPackageError: TensorBoard is not installed.

    Example:
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6)), pv.mlp(6, fam.Normal(2)))
        >>> tracker = pv.tracking.TensorBoard("runs/first")
        >>> fitted = pv.fit(vae, x, epochs=2, callbacks=[tracker], progress=False)
        >>> tracker.table(pv.importance(fitted, x, num_samples=10, proposal="guide").summary())
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        need_package("tensorboard", "tensorboard")
        self.folder = as_path("folder", folder)
        self._writer: Any = None
        self._flushed = -math.inf

    def begin(self, fitted: Fit) -> None:
        self._close()
        # TensorBoard takes back what was written before from this step on, so that all is written again
        self._writer = self._open(purge_step=0)
        self._writer.add_text("settings", markdown(settings_of(fitted)), 0)

    def write(self, rows: Sequence[Row]) -> None:
        now = time.time()
        for row in rows:
            step, when = int(row["epoch"]), now - (rows[-1]["seconds"] - row["seconds"])
            for name, value in row.items():
                if name != "epoch":
                    self._writer.add_scalar(name, value, step, walltime=when)
        if now - self._flushed > FLUSH_EVERY:
            self._writer.flush()
            self._flushed = now

    def finish(self, fitted: Fit, error: BaseException | None) -> None:
        self._close()

    def write_table(self, name: str, values: Mapping[str, Any]) -> None:
        with self._open() as writer:
            writer.add_text(name, markdown(values), self.last)
            for key, value in numbers_in(values).items():
                writer.add_scalar(f"{name}/{key}", value, self.last)

    def write_picture(self, name: str, content: bytes) -> None:
        with self._open() as writer:
            writer.add_image(name, image.imread(io.BytesIO(content)), self.last, dataformats="HWC")

    def _open(self, **how: Any) -> Any:
        refuse_leaving(self.folder / "events")
        return board.SummaryWriter(str(self.folder), **how)

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def markdown(values: Mapping[str, Any]) -> str:
    """A table of two columns; a bar or a new line in a value would end its cell."""
    rows = [[str(one).replace("\n", " ").replace("|", "\\|") for one in pair] for pair in values.items()]
    return "\n".join(["name | value", "--- | ---", *(" | ".join(row) for row in rows)])


def _is_log(path: Path) -> bool:
    """Whether a file is empty, or begins with an epoch, or with as much of one as was written before its fit was killed."""
    with path.open("rb") as file:
        first = file.read(len(BEGINNING))
    return BEGINNING.startswith(first)

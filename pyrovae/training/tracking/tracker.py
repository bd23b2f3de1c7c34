"""What all trackers have in common: which epochs are new, who writes, and that a failure is one warning."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyrovae._lazily import Lazily
from pyrovae.engine import ranks
from pyrovae.errors import MissingPackageError, shortened, without_password
from pyrovae.fitted.fitted import Fit

letters = Lazily("pyrovae._letters")  # which imports matplotlib

Row = Mapping[str, float]


class Tracker:
    """What looks on while a fit runs, and keeps its history in a place of its own: a callback of `pv.fit`.

    After the fit it takes what was found out, by `table` and `picture`. For a place of your own, derive from it and define
    `write`, and `begin`, `finish`, `write_table` and `write_picture` where there is something to do.

    Example:
        >>> class Print(pv.tracking.Tracker):
        ...     def write(self, rows):
        ...         print([int(row["epoch"]) for row in rows])
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6)), pv.mlp(6, fam.Normal(2)))
        >>> fitted = pv.fit(vae, x, epochs=2, callbacks=[Print()], progress=False)
        [1]
        [2]
    """

    only_looks = True  # so that `pv.fit` does as if it were not there
    failed = False
    last = 0  # the last epoch that was written, or is on its way
    under_way = False  # whether there is a fit that has not ended
    first = ""  # a checksum of the first epoch of the fit that is written

    def begin(self, fitted: Fit) -> None:
        """Get ready for the whole history of a fit: a new one, one that goes on, or one that went back to an earlier epoch."""

    def write(self, rows: Sequence[Row]) -> None:
        """Write rows of the history, in their order: after `begin` all that there are, and then the new ones."""
        raise NotImplementedError

    def finish(self, fitted: Fit, error: BaseException | None) -> None:
        """The fit has ended, by an error or without one."""

    def write_table(self, name: str, values: Mapping[str, Any]) -> None:
        """Write what was found out after the fit: numbers and texts by name."""

    def write_picture(self, name: str, content: bytes) -> None:
        """Write a picture, the content of a PNG file."""

    def __call__(self, fitted: Fit) -> None:
        """Write what is new in the history."""
        self._try(lambda: self._go_on(fitted))

    def end(self, fitted: Fit, error: BaseException | None = None) -> None:
        """Say that the fit has ended, as `pv.fit` does."""
        # what is new: a fit that is resumed, and has its length; or one that failed, and went back to its last good epoch
        if fitted.history and (len(fitted.history) < self.last if self.under_way else error is None):
            self(fitted)
        if self.under_way:
            self._try(lambda: self.finish(fitted, error))
        self.under_way = False

    def table(self, values: Mapping[str, Any], name: str = "results") -> None:
        """Keep what was found out after the fit.

        Args:
            values: Numbers and texts by name, such as `pv.importance(fitted, x_test).summary()`.
            name: What they are.
        """
        self._after_a_fit(lambda: self.write_table(name, {key: _number(value) for key, value in values.items()}))

    def picture(self, name: str, picture: Any) -> None:
        """Keep a picture.

        Args:
            name: What it is, such as "samples".
            picture: Axes, a figure of matplotlib, or the path of a PNG file.
        """
        self._after_a_fit(lambda: self.write_picture(name, png_of(picture)))

    def _after_a_fit(self, work: Callable[[], None]) -> None:
        if not self.first and not self.failed and ranks.rank() == 0:
            self.give_up("it has seen no epoch of one.")
        self._try(work)

    def _go_on(self, fitted: Fit) -> None:
        history = fitted.history
        first, last = checksum_of(history[0]), len(history)
        if not self.under_way or first != self.first or last <= self.last:
            self.first, self.last, self.under_way = first, 0, True
            self.begin(fitted)
        self.write(history[self.last :])
        self.last = last

    def _try(self, work: Callable[[], None]) -> None:
        if self.failed or ranks.rank() > 0:
            return
        try:
            work()
        except Exception as error:  # whatever a disk, a server or a library of others raises
            self.give_up(error)

    def give_up(self, error: BaseException | str) -> None:
        """Warn, and write nothing more."""
        self.failed = True
        warnings.warn(
            f"{type(self).__name__} takes no more of this fit, which goes on without it: {shortened(without_password(error))}",
            stacklevel=2,
        )


def need_package(package: str, extra: str) -> None:
    """MissingPackageError unless a package is installed, which is not imported here."""
    if importlib.util.find_spec(package) is None:
        raise MissingPackageError(f"This tracker needs {package}: pip install 'pyrovae[{extra}]'.")


def checksum_of(row: Row) -> str:
    """What tells a fit from all others: of its first epoch the ELBO, to the last digit, and the time.

    What other callbacks write into the history, maybe later, is not part of it.
    """
    return hashlib.sha256(json.dumps([float(row[name]) for name in ("elbo", "seconds")]).encode()).hexdigest()[:32]


def settings_of(fitted: Fit) -> dict[str, Any]:
    """The settings of a fit that are numbers and texts, and the options of the command line where there are such."""
    options = fitted.info.get("options")
    both = {**(options if isinstance(options, dict) else {}), **fitted.settings}
    named = {name: value["class"] for name, value in both.items() if isinstance(value, dict) and "class" in value}
    return {name: value for name, value in both.items() if isinstance(value, bool | int | float | str)} | named


def numbers_in(values: Mapping[str, Any]) -> dict[str, float]:
    return {n: v for n, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def plain(value: Any) -> Any:
    """The value as JSON, in which a number that is not finite is null, and an array a list."""
    if hasattr(value, "tolist"):  # of NumPy or torch
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return {str(name): plain(one) for name, one in value.items()} if isinstance(value, Mapping) else value


def _number(value: Any) -> Any:
    """The number in an array that has no axes; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def png_of(picture: Any) -> bytes:
    """A picture as the content of a PNG file."""
    if isinstance(picture, str | Path):
        return Path(picture).read_bytes()
    figure = picture.get_figure() if hasattr(picture, "get_figure") else picture
    content = io.BytesIO()

    def write() -> None:
        content.seek(0)
        content.truncate()
        figure.savefig(content, format="png")

    letters.draw(figure, write)
    return content.getvalue()

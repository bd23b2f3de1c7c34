"""The exceptions that pyrovae raises. Each message says what was expected, what was given, and how to fix it."""

from __future__ import annotations

import re
import unicodedata

IN_ADDRESS = re.compile(r"(?<=://)[^/\s]+@")  # a name and a password
LONGEST = 3_000  # characters of a message, which may quote a cell of a table, or its header


# as torch says it of CPUs and GPUs, and the libraries of these
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "STATUS_ALLOC_FAILED")


class PyrovaeError(Exception):
    """Base class of all exceptions that pyrovae raises on purpose."""

    def __str__(self) -> str:
        text = super().__str__()
        return printable(text if len(text) <= LONGEST else f"{text[: LONGEST - 4]} ...")


def printable(text: str) -> str:
    """The text, with codes that a terminal would obey, or could not show, as they are written in Python.

    Names of files and columns come from anybody, and may not move the cursor, or turn what is written around.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" or _is_plain(c) else ascii(c)[1:-1] for c in text)


def _is_plain(character: str) -> bool:
    """Whether a character that Python calls not printable is only a blank of some width."""
    return unicodedata.category(character) == "Zs"


def shortened(text: object, most: int = 300) -> str:
    """A message in one line, of at most so many characters."""
    words = " ".join(str(text)[: 10 * most].split())
    return words if len(words) <= most else words[: most - 4] + " ..."


def counted(number: int, one: str, many: str = "") -> str:
    """A number and what it counts: `1 row`, `2 rows`; `many` is what it is of several, where that is not with an s behind."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def short_of_memory(error: BaseException | None) -> bool:
    """Whether memory did not suffice: what an error says, or one that led to it."""
    return memory_error(error) is not None


def memory_error(error: BaseException | None) -> BaseException | None:
    """The error that says that memory did not suffice, among an error and those that led to it; None without one."""
    seen: set[int] = set()  # an error may lead back to itself
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        foreign = isinstance(error, RuntimeError) and not isinstance(error, PyrovaeError)
        of_torch = foreign and any(said in str(error) for said in NO_MEMORY)
        if isinstance(error, MemoryError) or of_torch:
            return error
        error = error.__cause__ or error.__context__
    return None


def without_password(text: object) -> str:
    """A message of somebody else's library, without the names and passwords of the addresses in it."""
    return IN_ADDRESS.sub("***@", str(text))


class ShapeError(PyrovaeError, ValueError):
    """The shape or dtype of a tensor differs from what the component that receives it expects."""


class PairError(PyrovaeError, ValueError):
    """A model and its guide do not match each other or the batch, or a component cannot be part of a pair."""


class DataError(PyrovaeError, ValueError):
    """Data are empty, missing, outside the support of a likelihood, or cannot be found."""


class OptionError(PyrovaeError, ValueError):
    """An option has an unknown or invalid value. The message lists the valid ones."""


class MissingPackageError(OptionError):
    """An option needs a package that is not installed. The message says how to install it."""


class NotFiniteError(PyrovaeError, ArithmeticError):
    """A loss became NaN or infinite. The message names the epoch and the step."""


class CheckpointError(PyrovaeError):
    """A run folder already exists, is damaged, does not match the pair, or was written by a newer version."""


class OutOfMemoryError(PyrovaeError, MemoryError):
    """Memory does not suffice, that of the device or of the machine. The message says what would fit."""


class RankError(PyrovaeError, RuntimeError):
    """Of several processes that fit together, another was lost, or does not do the same as this one."""

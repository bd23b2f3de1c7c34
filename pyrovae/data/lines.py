"""The lines of a text file: which are comments, and which go on with a cell that a line before has begun."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from pyrovae._foreign import cure_of_content
from pyrovae.errors import DataError

LOOKED_AT = 200  # lines from which the form of a table is found out
ENOUGH = 2**24  # characters in them, after which fewer lines do, but no fewer than two
BLANKS = r"\s+"
BOM = "\ufeff"
_COMMENTS = re.compile(r"^(?:#[^\n]*+\n?+)++", re.MULTILINE)
_RUN = re.compile(r"(?:#[^\n]*+\n?+)++|(?:[^\S\n]*+\n)++|[^\n]*+\n?+")  # comments, blank lines, or one line
UTF8, WESTERN = "utf-8-sig", "cp1252"
ACCENTS = 0.8  # of the bytes beyond ASCII, which at least are letters with accents
_HIGH = re.compile(rb"[\x80-\xff]+")
_OF_UTF8 = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_NO_TEXT = re.compile(
    rb"[\x00-\x08\x81\x8d\x8f\x90\x9d]"
)  # control characters, and bytes that mean nothing in Windows-1252
_ACCENTED = re.compile(r"\w*[^\x00-\x7f]\w*")
PIECE = 2**20  # characters of a file that are looked at together
# As Excel has it in a line of its own, above the table.
_DECLARED = re.compile(r'"?sep=([,;|\t])"?[ \t]*\r?\n?', re.IGNORECASE)
# The rest of a cell in quotes; no two parts can take the same characters, so that it takes a time by the length of a line.
_FIRST = re.compile(' *+"')  # a first cell in quotes
_REST = re.compile(r'[^"]*+(?:""[^"]*+)*+"')


class Lines:
    """What one look at a file shows.

    Args:
        path: the file.

    Attributes:
        first: its first lines, as many as `LOOKED_AT` that are neither blank nor comments, and as many comments; fewer where
            these are very long.
        marked: whether some of its lines begin with "#".
        quotes: whether it has a quotation mark.
        begins: the mark that files of Excel begin with, by which it knows UTF-8; "" where there is none.
        ends: how lines end: "\\n", or "\\r\\n" as on Windows.
        separator: what the first line says is between two cells, such as "sep=;"; "" where it does not. It is none of `first`.
        encoding: UTF-8, or Windows-1252 where it can only be that.
        letters: the first word with a letter that is read so, "" in UTF-8.

    Raises:
        DataError: a line has a NUL byte, as text in UTF-16 has, and the end of a file that a crash left.
        UnicodeDecodeError: it is in another encoding, or is no text.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._read(path, UTF8)
        except UnicodeDecodeError:
            if not is_western(path):
                raise
            self._read(path, WESTERN)

    def _read(self, path: Path, encoding: str) -> None:
        self.encoding, self.letters = encoding, ""
        self.first: list[str] = []
        self.marked = self.quotes = False
        self._rows = self._marks = self._length = before = 0  # of lines
        with path.open(encoding=encoding.removesuffix("-sig"), newline="") as file:
            first = file.readline(PIECE)
        self.begins, self.ends = first[: first.startswith(BOM)], "\r\n" if first.endswith("\r\n") else "\n"
        with path.open(encoding=encoding) as file:
            for text in pieces(file):
                if encoding == WESTERN and not self.letters and (word := _ACCENTED.search(text)):
                    self.letters = word[0]
                if "\0" in text:
                    number = before + 1 + text[: text.index("\0")].count("\n")
                    cure = "It is text in UTF-16, or damaged: save it anew, in UTF-8."
                    raise DataError(f"{path} has a NUL byte in line {number}. {cure_of_content(path) or cure}")
                before += text.count("\n")
                self.marked = self.marked or is_comment(text) or "\n#" in text
                self.quotes = self.quotes or '"' in text
                if not self._has_enough():
                    self._look_at(text)
        said = _DECLARED.fullmatch(self.first[0]) if self.first else None
        self.separator = said[1] if said else ""
        if said:
            self.first = self.first[1:]

    def _has_enough(self) -> bool:
        return self._rows >= LOOKED_AT or (self._length > ENOUGH and self._rows >= 2)

    def _look_at(self, text: str) -> None:
        place = 0
        while place < len(text) and not self._has_enough():
            run = _RUN.match(text, place)
            assert run is not None  # as it matches any line
            place = run.end()
            if is_comment(run[0]):
                *lines, last = run[0].splitlines(keepends=True)[-LOOKED_AT:]
                new = [*lines, last][: LOOKED_AT - self._marks]
                self._marks += len(new)
                self.first += new
                if not self._rows:  # the last one above the table may name its columns
                    self.first[-1] = last
            elif not run[0].isspace():
                self._rows += 1
                self._length += len(run[0])
                self.first.append(run[0])


def is_western(path: Path) -> bool:
    """Whether a text that is not in UTF-8 can be in Windows-1252: most bytes beyond ASCII stand alone, or two side by side.

    So do letters with accents. In other alphabets there are more in a row, and in damaged UTF-8 most of them are characters.
    """
    high = few = characters = 0
    with path.open("rb") as file:
        while piece := file.read(PIECE) + file.readline():
            if _NO_TEXT.search(piece):
                return False
            runs = [len(run) for run in _HIGH.findall(piece)]
            high += sum(runs)
            few += sum(length for length in runs if length <= 2)
            characters += sum(map(len, _OF_UTF8.findall(piece)))
    return few > ACCENTS * high and characters < high / 2


def pieces(file: TextIO) -> Iterator[str]:
    """The text of a file, some whole lines at once."""
    begun: list[str] = []
    while text := file.read(PIECE):
        whole, end, rest = text.rpartition("\n")
        if end:
            yield "".join((*begun, whole, end))
            begun = []
        begun.append(rest)
    if last := "".join(begun):
        yield last


def is_comment(line: str) -> bool:
    """Whether a line is a comment, unless it begins within a cell."""
    return line.startswith("#")


def within_cells(lines: Iterable[str], separator: str) -> Iterator[tuple[str, bool]]:
    """Each line, and whether it begins within a cell in quotes that a line before has begun. Comments begin none."""
    mark = r"\s" if separator == BLANKS else re.escape(separator)
    opening, inside = re.compile(rf'{mark} *"'), False
    for line in lines:
        yield line, inside
        if '"' in line and (inside or not is_comment(line)):
            inside = _ends_within(line, opening, inside)


def _ends_within(line: str, opening: re.Pattern[str], inside: bool) -> bool:
    place = 0
    # apart, as what follows a mark is found far faster than what may also stand at the beginning
    if not inside and (found := _FIRST.match(line)):
        place, inside = found.end(), True
    while True:
        found = _REST.match(line, place) if inside else opening.search(line, place)
        if found is None:
            return inside
        place, inside = found.end(), not inside


def records(lines: Sequence[str], separator: str) -> tuple[list[str], list[str]]:
    """Rows, each of one line or several, and the comments among some lines of a file."""
    rows: list[str] = []
    comments: list[str] = []
    for line, inside in within_cells(lines, separator):
        if inside:
            rows[-1] += line
        elif is_comment(line):
            comments.append(line)
        else:
            rows.append(line)
    return rows, comments


def width(line: str, separator: str) -> int:
    """How many cells a row has."""
    if separator != BLANKS and '"' not in line:
        return line.count(separator) + 1
    return len(split(line, separator))


def split(line: str, separator: str, most: int | None = None) -> list[str]:
    """The first cells of a row, or all. Where a cell begins with a quotation mark, it ends behind the next one."""
    if separator == BLANKS:
        return line.split(maxsplit=-1 if most is None else most)[:most]
    if '"' not in line:
        return [cell.strip() for cell in line.split(separator, maxsplit=-1 if most is None else most)[:most]]
    cell = re.compile(rf' *+(?:"([^"]*+(?:""[^"]*+)*+)"?)?([^{separator}]*+)')
    found: list[str] = []
    line, place = line.strip("\r\n"), 0
    while place <= len(line) and (most is None or len(found) < most):
        quoted, more = (one := cell.match(line, place)).groups()  # type: ignore[union-attr]  # it matches nothing, too
        found.append(((quoted or "").replace('""', '"') + more).strip())
        place = one.end() + 1  # type: ignore[union-attr]
    return found


class _Rows:
    """A text file without its comments, for pandas, whose own way to skip lines counts a row of several as one."""

    def __init__(self, parts: Iterator[str]) -> None:
        self.parts = parts

    def __iter__(self) -> Iterator[str]:
        return self.parts

    def read(self, size: int = -1) -> str:
        """At least so many characters, unless these are the last."""
        taken, length = [], 0
        for part in self.parts:
            taken.append(part)
            length += len(part)
            if 0 <= size <= length:
                break
        return "".join(taken)


@contextlib.contextmanager
def without_comments(
    path: Path, separator: str, quotes: bool, declared: bool = False, encoding: str = UTF8
) -> Iterator[_Rows]:
    """What pandas reads in place of a file that has comments, or a line that says what separates its cells.

    Args:
        path: the file.
        separator: what is between two of its cells.
        quotes: whether it has quotation marks, so that a line that looks like a comment may be one of a cell.
        declared: whether its first line says what separates its cells.
        encoding: of its letters.
    """
    with path.open(encoding=encoding, newline="" if quotes else None) as file:
        while declared and not file.readline().strip():
            pass
        if quotes:
            yield _Rows(line for line, inside in within_cells(file, separator) if inside or not is_comment(line))
        else:
            yield _Rows(_COMMENTS.sub("", piece) for piece in pieces(file))

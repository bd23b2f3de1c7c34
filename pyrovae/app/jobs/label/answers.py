"""The labels that people give on the page: who gave which, what they agree on, and the file that keeps them."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyrovae._files import write_file
from pyrovae._foreign import cure_of_letters
from pyrovae.data.labels import LABEL, match_labels, read_lines
from pyrovae.errors import DataError, OptionError, counted

GIVEN = "given"  # in the place of an annotator: labels that were known before
CHOSEN, BY = "chosen", "by "  # the column of how a row was chosen, and what stands before the name of an annotator
RANDOM, INFORMATIVE, SECOND = "at random", "as informative", "as a second opinion"
LONGEST_NAME = 40  # letters


@dataclass(frozen=True)
class Change:
    """What one annotator did in one step: for each row, the label before, None for none."""

    rows: tuple[int, ...]
    before: tuple[str | None, ...]


class Answers:
    """Labels of rows by several annotators, kept in a CSV file that is replaced whole at each change.

    The file has a line for each row with a label: its name, `label`, what most annotators say, or nothing where there is a
    tie; `chosen`, how the row was chosen; and a column `by NAME` for each annotator. `pyrovae label --labels` reads it; where
    rows are numbered, there is always a line for row 0, by which it sees that they do not count from 1. A label that was
    `given` before the page counts until an annotator says something else; so does one that somebody wrote into the file.

    Args:
        path: The file, which is read if it is there.
        column: The name of the column with the names of the rows.
        ids: The names of the rows; None where they are numbered from 0.
        num_rows: How many rows there are.
        given: The labels that were known before, one a row, "" for none.

    Raises:
        OptionError: The file is none that the page has written.
        DataError: It speaks of rows that are not there, or of one twice; it contradicts itself; or it cannot be read.
    """

    def __init__(
        self, path: Path, column: str, ids: Sequence[str] | None, num_rows: int, given: Sequence[str] = ()
    ) -> None:
        self.path, self.column, self.ids, self.num_rows = path, column, ids, num_rows
        self.by: dict[str, dict[int, str]] = {}
        self.chosen: dict[int, str] = {}
        self._done: dict[str, list[Change]] = {}
        self._written: str | None = None  # the checksum of the file as it was read or written last
        if path.exists():
            self._read()
        known = {row: label for row, label in enumerate(given) if label}
        if known:
            self.by[GIVEN] = self.by.get(GIVEN, {}) | known

    # --- what was said

    @property
    def annotators(self) -> list[str]:
        return [name for name in self.by if name != GIVEN]

    def of(self, annotator: str) -> dict[int, str]:
        """The labels by one annotator, by row."""
        return self.by.get(annotator, {})

    def labels_of(self, row: int) -> dict[str, str]:
        """The labels of a row by annotator; that which was given only where nobody has said anything."""
        said = {name: labels[row] for name, labels in self.by.items() if name != GIVEN and row in labels}
        before = self.of(GIVEN).get(row)
        return said or ({GIVEN: before} if before else {})

    def agreed(self, row: int) -> str:
        """The label that most annotators give, "" where there is none, or a tie."""
        counts = Counter(self.labels_of(row).values()).most_common(2)
        if not counts or (len(counts) == 2 and counts[0][1] == counts[1][1]):
            return ""
        return counts[0][0]

    def rows(self) -> list[int]:
        """The rows that have a label by anybody, ascending."""
        return sorted(set().union(*self.by.values()))

    def texts(self) -> list[str]:
        """What is agreed on, for all rows."""
        found = [""] * self.num_rows
        for row in self.rows():
            found[row] = self.agreed(row)
        return found

    def disagreements(self) -> list[int]:
        """The rows to which annotators give different labels, ascending."""
        return [row for row in self.rows() if len(set(self.labels_of(row).values())) > 1]

    def classes(self) -> list[str]:
        """All labels that somebody gives, in the order in which they came."""
        return list(dict.fromkeys(label for labels in self.by.values() for label in labels.values()))

    # --- what is done

    def give(self, annotator: str, rows: Iterable[int], label: str, chosen: dict[int, str] | None = None) -> None:
        """Give rows a label, and write the file. If that fails, nothing has changed.

        Args:
            annotator: Who says so.
            rows: The rows.
            label: Their label.
            chosen: How each row was chosen, which is kept from the first time on.
        """
        some = tuple(dict.fromkeys(rows))
        change = Change(some, tuple(self.of(annotator).get(row) for row in some))
        self._set(annotator, some, [label] * len(some))
        for row in some:
            if why := (chosen or {}).get(row):
                self.chosen.setdefault(row, why)
        try:
            self._write()
        except BaseException:
            self._restore(annotator, change)
            raise
        self._done.setdefault(annotator, []).append(change)

    def undo(self, annotator: str) -> list[int]:
        """Take back what an annotator did last since the page was started, and write the file: the rows, [] for nothing."""
        steps = self._done.get(annotator, [])
        if not steps:
            return []
        change = steps[-1]
        now = Change(change.rows, tuple(self.of(annotator).get(row) for row in change.rows))
        kept = dict(self.chosen)
        self._restore(annotator, change)
        try:
            self._write()
        except BaseException:
            self._restore(annotator, now)
            self.chosen = kept
            raise
        steps.pop()
        return list(change.rows)

    def _set(self, annotator: str, rows: Sequence[int], labels: Sequence[str | None]) -> None:
        mine = self.by.setdefault(annotator, {})
        for row, label in zip(rows, labels):
            if label is None:
                mine.pop(row, None)
            else:
                mine[row] = label
        if not mine:
            del self.by[annotator]

    def _restore(self, annotator: str, change: Change) -> None:
        self._set(annotator, change.rows, change.before)
        for row in change.rows:
            if not any(row in self.of(name) for name in self.annotators):
                self.chosen.pop(row, None)

    # --- the file

    def _name(self, row: int) -> str:
        return str(row) if self.ids is None else self.ids[row]

    def _write(self) -> None:
        if self.path.exists() and self._digest(self.path.read_bytes()) != self._written:
            raise DataError(
                f"{self.path} was changed by another program, and is left as it is: end the page, and start it again, so that "
                "it reads the file anew."
            )
        out = io.StringIO(newline="")
        odd = self.ids is not None and any("\r" in name for name in self.ids)  # which Python 3.11 puts in no quotes
        table = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL if odd else csv.QUOTE_MINIMAL)
        table.writerow([self.column, LABEL, CHOSEN, *(BY + name for name in self.by)])
        rows = self.rows()
        if self.ids is None and rows and rows[0] > 0:
            rows = [0, *rows]
        for row in rows:
            said = [labels.get(row, "") for labels in self.by.values()]
            table.writerow([self._name(row), self.agreed(row), self.chosen.get(row, ""), *said])
        content = out.getvalue().encode()
        write_file(self.path, content)
        self._written = self._digest(content)

    def _read(self) -> None:
        try:
            written = self._digest(self.path.read_bytes())
            lines = read_lines(self.path)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            cure = cure_of_letters(self.path, error)
            cure = f"{cure} Put that in its place." if cure else "Restore it, or give another name by --out."
            raise DataError(f"{self.path} cannot be read ({error}). {cure}") from error
        header = lines[0] if lines else []
        if header[:3] != [self.column, LABEL, CHOSEN] or not all(name.startswith(BY) for name in header[3:]):
            raise OptionError(
                f"{self.path} is not a file that the page has written: give it as --labels, and another name as --out."
            )
        names = [name.removeprefix(BY) for name in header[3:]]
        if wrong := [line for line in lines[1:] if len(line) != len(header)]:
            cells = counted(len(wrong[0]), "cell")
            raise DataError(f"{self.path} is damaged: a line has {cells}, and the first {len(header)}.")
        for what, found in (("lines for", [line[0] for line in lines[1:]]), ("columns of", names)):
            if twice := [name for name, times in Counter(found).items() if times > 1]:
                raise DataError(f"{self.path} is damaged: there are two {what} {twice[0]!r}. Keep one.")
        table = {line[0]: line[1] for line in lines[1:]}
        match_labels(table, self.ids, self.num_rows, self.path, from_0=True)  # refuses strangers
        place = {self._name(row): row for row in range(self.num_rows)}
        for name, agreed, chosen, *labels in lines[1:]:
            row = place.get(name, -1)
            if row < 0:  # a number that is written in another way
                raise DataError(f"{self.path} is damaged: there is no row {name!r}. Write its name as it was.")
            if chosen:
                self.chosen[row] = chosen
            for annotator, label in zip(names, map(str.strip, labels)):
                if label:
                    self.by.setdefault(annotator, {})[row] = label
            if agreed.strip() and not any(map(str.strip, labels)):
                self.by.setdefault(GIVEN, {})[row] = agreed.strip()
            if agreed.strip() != self.agreed(row):
                raise DataError(
                    f"{self.path} contradicts itself: the label of {name} is {agreed!r}, and that of its annotators "
                    f"{self.agreed(row)!r}. If it was corrected, correct what they say, too."
                )
        self._written = written

    @staticmethod
    def _digest(content: bytes) -> str:
        return hashlib.sha256(content).hexdigest()


def check_annotator(name: object) -> str:
    """The name of an annotator. DataError for one that cannot be.

    Example:
        >>> from pyrovae.app.jobs.label.answers import check_annotator
        >>> check_annotator(" Ada ")
        'Ada'
    """
    text = name.strip() if isinstance(name, str) else ""
    if not text or len(text) > LONGEST_NAME or not text.isprintable():
        raise DataError(f"a name has 1 to {LONGEST_NAME} letters, all in one line. Give another.")
    if text == GIVEN:
        raise DataError(f"{GIVEN!r} stands for labels that were known before. Give another name.")
    return text

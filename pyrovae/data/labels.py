"""Tables of labels: which rows have one, and which class it is.

Labels may be text or numbers; an empty cell means that the label is not known yet.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pyrovae._foreign import cure_of, cure_of_another, cure_of_letters
from pyrovae._near import absent, expanded, near_names
from pyrovae.errors import DataError, OptionError, counted

LABEL = "label"
_WHOLE = re.compile(r"(?<=\d)\.0*$")  # the end of a whole number that is written as a real one
IDS = ("id", "file", "filename", "row")  # the names of the column that identifies the row, in order of preference


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of N rows, as class numbers and as they were written.

    Args:
        y: The class number of each row, `(N,)` int64, -1 where unknown.
        classes: The C labels as text: first numbers, by value, then other labels, in alphabetical order.
    """

    y: Tensor
    classes: tuple[str, ...]

    @property
    def known(self) -> Tensor:
        """The indices of the rows that have a label, `(n,)` int64."""
        return (self.y >= 0).nonzero().squeeze(1)

    def text(self, y: Tensor) -> list[str]:
        """The labels of these class numbers; "" for -1."""
        return [self.classes[number] if number >= 0 else "" for number in y.tolist()]


def read_labels(path: str | Path) -> dict[str, str]:
    """Read a CSV file with a header into a dict from the id of a row to its label.

    The label is in the column `label`. The id is in the first of the columns id, file, filename and row that the file has,
    or else in the first column that is not the label. Cells are text, labels without the blanks around them; only an empty
    cell means that a label is unknown.

    Args:
        path: The CSV file, separated by commas, semicolons or tabs, in UTF-8.

    Returns:
        The label of each row by the row's id, "" where the cell is empty.

    Raises:
        DataError: The file does not exist or is not a table, a column is missing, a row has no id, or an id has two
            different labels.
    """
    path = expanded(path)
    if not path.is_file():
        near = absent(path, (".csv", ".tsv", ".txt", ".json"))
        raise DataError(f"{near}. Give a table of labels: a CSV file with the columns id,label.")
    try:
        rows = read_lines(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        usual = "Give a CSV file in UTF-8."
        if isinstance(error, csv.Error):
            usual = "Check its quotation marks: a cell that begins with one ends in one."
        cure = cure_of(path) or cure_of_another(path) or cure_of_letters(path, error) or usual
        raise DataError(f"{path} is not a table of labels ({error}). {cure}") from error
    header = [name.strip().lower() for name in rows[0]] if rows else []
    others = [name for name in header if name != LABEL]
    if header.count(LABEL) != 1 or not others:
        raise DataError(
            f"{path} needs a first line with the columns id,label (id: the file's name, or the row's number from 0); "
            f"found {', '.join(map(repr, header)) or 'nothing'}. Add it."
        )
    which = header.index(next((name for name in IDS if name in others), others[0]))
    where = header.index(LABEL)
    found: dict[str, str] = {}
    for number, row in enumerate(rows[1:], 2):
        if len(row) > len(header):
            raise DataError(
                f"{path}, row {number}: {counted(len(row), 'cell')} under {counted(len(header), 'column')}. Put quotes "
                "around text with commas."
            )
        cells = row + [""] * (len(header) - len(row))
        name, label = _tidy(cells[which]), cells[where].strip()
        if not name.strip():
            raise DataError(
                f"{path}, row {number}: the column {header[which]!r} is empty. Say which row {label!r} is for."
            )
        before = found.get(name, "")
        if before and label and before != label:
            raise DataError(f"{path}: {name} has two labels, {before!r} and {label!r}. Keep one.")
        found[name] = before or label
    return found


def read_lines(path: Path) -> list[list[str]]:
    """The cells of a CSV file, separated by commas, semicolons or tabs, without the lines in which nothing stands.

    Raises:
        OSError, UnicodeDecodeError, csv.Error: It cannot be read, is not in UTF-8, or is no table.
    """
    text = path.read_bytes().decode("utf-8-sig")
    first = text.partition("\n")[0]
    mark = next((mark for mark in (",", ";", "\t") if mark in first), ",")
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    return [line for line in lines if any(map(str.strip, line))]


def match_labels(
    table: dict[str, str], ids: Sequence[str] | None, num_rows: int, source: str | Path, *, from_0: bool = False
) -> Labels:
    """The labels of N rows of data, from a table that `read_labels` has read.

    Args:
        table: The label of each row by the row's id. A label of "" or of "-1", as in scikit-learn, is unknown. Blanks around
            an id are ignored, unless they are part of the name of a row.
        ids: The ids of the rows in their order, or None if rows are numbered from 0.
        num_rows: The number N of rows.
        source: The name of the table in error messages.
        from_0: Whether its rows are known to be numbered from 0, even if it does not name row 0.

    Returns:
        A `Labels` of N rows. The label of a row that the table does not name is unknown.

    Raises:
        DataError: The table names a row that the data do not have, gives a row two labels, or counts rows from 1.
    """
    names = [str(i) for i in range(num_rows)] if ids is None else list(ids)
    place = {name: number for number, name in enumerate(names)}
    given: dict[str, str] = {}
    for written, label in table.items():
        name = written if ids is not None and written in place else written.strip()
        name = _number(name) if ids is None else name
        before = given.get(name, "")
        if before and label and before != label:
            raise DataError(f"{source}: row {name} has two labels, {before!r} and {label!r}. Keep one.")
        given[name] = before or label
    if ids is None and not from_0:
        _refuse_numbers_from_1(given, num_rows, source)
    strangers = [name for name in given if name not in place]
    if strangers:
        near = near_names(strangers[0], names[:20_000]) if ids is not None else ""
        rows = f"numbers from 0 to {num_rows - 1}" if ids is None else f"such as {', '.join(names[:3])}"
        raise DataError(
            f"{source}: {len(strangers)} of {len(given)} ids have no row in the data, the first is {strangers[0]}{near}. "
            f"The rows' ids are {rows}. Correct them, or drop these lines."
        )
    return as_labels([given.get(name, "") for name in names])


def as_labels(labels: Sequence[str]) -> Labels:
    """Class numbers for labels that are text, one per row; "" and "-1" are unknown.

    Where all labels are whole numbers, 2.0, as pandas writes numbers in a column with gaps, is 2.
    """
    known = ["" if _WHOLE.sub("", label) == "-1" else label for label in labels]
    if all(not label or _number(label).lstrip("-").isdecimal() for label in known):
        known = [_WHOLE.sub("", label) for label in known]
    classes = sorted(set(known) - {""}, key=_order)
    numbers = {label: number for number, label in enumerate(classes)}
    return Labels(torch.tensor([numbers.get(label, -1) for label in known], dtype=torch.int64), tuple(classes))


def refuse_labels(labels: Labels) -> None:
    """DataError unless a classifier can learn from these labels and has something to predict.

    There must be two classes, one of them with at least two labelled rows, and a row without a label.
    """
    num, total, classes = len(labels.known), len(labels.y), labels.classes
    if num == 0:
        raise DataError(
            f"none of the {counted(total, 'row')} has a label. Label some first, each class at least twice: 10 rows per "
            "class are a start."
        )
    if len(classes) == 1:
        raise DataError(
            f"all {num} labelled rows are {classes[0]!r} (-1 means unknown). Label rows of another class, too."
        )
    counts = Counter(labels.text(labels.y[labels.known]))
    once = [label for label in classes if counts[label] == 1]
    if 2 * len(once) > len(classes) and len(once) > 2:
        raise DataError(
            f"{counted(num, 'labelled row has', 'labelled rows have')} {len(classes)} different labels "
            f"({', '.join(classes[:4])}, ...), {len(once)} of them "
            "once. Labels must be classes of at least two rows each, not measurements: label more rows, or merge classes."
        )
    if len(once) == len(classes):
        raise DataError(
            f"each of the {len(classes)} labels occurs once: {', '.join(map(repr, once[:5]))}. Label more rows, so that some "
            "label has at least two."
        )
    if num == total:
        raise DataError(
            f"all {total} rows have a label: there is nothing to find out. Add rows without a label, or empty some cells."
        )


def about_lone_labels(labels: Labels) -> str:
    """A warning of labels that one row alone has, since a class may be rare, and a label may be misspelt; "" without any."""
    counts = Counter(labels.text(labels.y[labels.known]))
    once = [label for label in labels.classes if counts[label] == 1]
    if not once:
        return ""
    near = near_names(once[0], [label for label in labels.classes if label != once[0]])
    return (
        f"{len(once)} of {len(labels.classes)} labels occur once: {', '.join(map(repr, once[:5]))}{near}. How well such "
        "rows are found cannot be said: label another row of each, or correct the spelling."
    )


def split_labels(labels: Labels, num: int, seed: int) -> list[Tensor]:
    """Divide the labelled rows of each class among parts of about equal size, for cross-validation.

    A class with one label is in none, so that each part leaves a label of every class to the others.

    Args:
        labels: The labels of all rows.
        num: The number of parts.
        seed: The seed of the random division.

    Returns:
        The indices of the rows of each part, int64, ascending. A part may be empty.
    """
    order = torch.randperm(len(labels.y), generator=torch.Generator().manual_seed(seed))
    members = [order[labels.y[order] == number] for number in range(len(labels.classes))]
    dealt = torch.cat([rows for rows in members if len(rows) > 1] or [order[:0]])  # one class after the other, in turn
    return [dealt[part::num].sort().values for part in range(num)]


def hold_out(labels: Labels, share: float, seed: int) -> Tensor:
    """Choose about `share` of the labelled rows of each class for testing, and leave at least two of each for training.

    Args:
        labels: The labels of all rows.
        share: The share to hold out, in [0, 1). Of a class with k rows, k times this share are taken, rounded down or up
            at random so that the expected number is exact.
        seed: The seed of the random choice.

    Returns:
        The indices of the rows that are held out, `(n,)` int64, ascending.

    Raises:
        OptionError: `share` is outside [0, 1).
    """
    if not 0 <= share < 1:
        raise OptionError(
            f"--holdout is a share of the labelled rows, from 0 to below 1, as 0.2 for a fifth, got {share}."
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels.y), generator=generator)
    held = []
    for number in range(len(labels.classes)):
        members = order[labels.y[order] == number]
        wanted = int(share * len(members) + torch.rand((), generator=generator).item())
        held.append(members[: max(0, min(wanted, len(members) - 2))])
    return torch.cat(held).sort().values if held else order[:0]


def _refuse_numbers_from_1(given: Mapping[str, str], num_rows: int, source: str | Path) -> None:
    """DataError for row numbers that seem to count from 1, by which each label would go to the next row."""
    numbers = {int(name) for name in given if name.isdecimal()}
    if len(numbers) < 2 or 0 in numbers or 1 not in numbers:
        return
    if num_rows in numbers or 2 * len(numbers) > max(numbers):
        raise DataError(
            f"{source}: the numbers of the rows seem to count from 1, since they begin 1, {sorted(numbers)[1]}, ... and 0 is "
            f"not among them; the rows are numbered from 0 to {num_rows - 1}. Subtract 1 from them, or, if they do count from "
            "0, add a line for row 0 with an empty label."
        )


def _tidy(name: str) -> str:
    """A path as `load_folder` writes it."""
    return name.replace("\\", "/").removeprefix("./")


def _number(name: str) -> str:
    """The row number that an id means: 3.0, as pandas writes numbers in a column with gaps, and 03 are row 3."""
    try:
        value = float(name)
    except ValueError:
        return name
    return str(int(value)) if value.is_integer() else name


def _order(label: str) -> tuple[int, float, str]:
    """The key that sorts numbers by value, and before all other text."""
    try:
        value = float(label)
    except ValueError:
        return 1, 0.0, label
    return (0, value, label) if value == value else (1, 0.0, label)

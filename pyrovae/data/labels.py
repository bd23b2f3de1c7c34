"""A table of labels: which rows have one. Text and numbers alike; an empty cell is a label that is not known yet."""

from __future__ import annotations

import csv
import difflib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pyrovae.errors import DataError, OptionError

LABEL = "label"
IDS = ("id", "file", "filename", "row")  # names of the column that says which row, by preference


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels of N rows, as class numbers and as they were written.

    y: (N,) int64, -1 where unknown; classes: the C labels in order, numbers by their value, else as text.
    """

    y: Tensor
    classes: tuple[str, ...]

    @property
    def known(self) -> Tensor:
        """Where rows have a label: (n,) int64."""
        return (self.y >= 0).nonzero().squeeze(1)

    def text(self, y: Tensor) -> list[str]:
        """Class numbers as labels; -1 is empty."""
        return [self.classes[number] if number >= 0 else "" for number in y.tolist()]


def read_labels(path: str | Path) -> dict[str, str]:
    """Which label each row has, by the row's id, from a CSV file with a header; "" where the cell is empty.

    The label stands in the column `label`; the id in the first of the columns id, file, filename, row that is there, else in
    the first other column. Cells are text, blanks around them aside: nothing but an empty cell is unknown.

    Raises:
        DataError: no file, no table, a column is missing, a row without an id, an id with two different labels.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        near = difflib.get_close_matches(
            path.name, [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        )
        raise DataError(
            f"there is no file {path}{_or(near)}. Give a table of labels: a CSV file with the columns id,label."
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
        first = text.partition("\n")[0]
        mark = next((mark for mark in (",", ";", "\t") if mark in first), ",")
        rows = [
            row
            for row in csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
            if any(map(str.strip, row))
        ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a table of labels ({error}). Give a CSV file in UTF-8.") from error
    header = [name.strip().lower() for name in rows[0]] if rows else []
    others = [name for name in header if name != LABEL]
    if header.count(LABEL) != 1 or not others:
        raise DataError(
            f"{path} needs a first line with the columns id,label (id: the file's name, or the row's number from 0); "
            f"found {', '.join(header) or 'nothing'}. Add it."
        )
    which = header.index(next((name for name in IDS if name in others), others[0]))
    where = header.index(LABEL)
    found: dict[str, str] = {}
    for number, row in enumerate(rows[1:], 2):
        if len(row) > len(header):
            raise DataError(
                f"{path}, row {number}: {len(row)} cells under {len(header)} columns. Put quotes around text with commas."
            )
        cells = [cell.strip() for cell in row] + [""] * (len(header) - len(row))
        name, label = _tidy(cells[which]), cells[where]
        if not name:
            raise DataError(
                f"{path}, row {number}: the column {header[which]!r} is empty. Say which row {label!r} is for."
            )
        before = found.get(name, "")
        if before and label and before != label:
            raise DataError(f"{path}: {name} has two labels, {before!r} and {label!r}. Keep one.")
        found[name] = before or label
    return found


def match_labels(table: dict[str, str], ids: Sequence[str] | None, num_rows: int, source: str | Path) -> Labels:
    """The labels of a table for the rows of the data: `ids` are the rows' names, None for numbers from 0.

    Rows that the table does not name are unknown. -1 means unknown, too, as it does in scikit-learn.

    Raises:
        DataError: an id without a row.
    """
    names = [str(i) for i in range(num_rows)] if ids is None else list(ids)
    place = {name: number for number, name in enumerate(names)}
    given = {_number(name) if ids is None else name: label for name, label in table.items()}
    strangers = [name for name in given if name not in place]
    if strangers:
        near = difflib.get_close_matches(strangers[0], names[:20_000]) if ids is not None else []
        rows = f"numbers from 0 to {num_rows - 1}" if ids is None else f"such as {', '.join(names[:3])}"
        raise DataError(
            f"{source}: {len(strangers)} of {len(given)} ids have no row in the data, the first is {strangers[0]}{_or(near)}. "
            f"The rows' ids are {rows}. Correct them, or drop these lines."
        )
    return as_labels([given.get(name, "") for name in names])


def as_labels(labels: Sequence[str]) -> Labels:
    """Labels as text, one a row, "" or "-1" where unknown -> class numbers."""
    known = ["" if label == "-1" else label for label in labels]
    classes = sorted(set(known) - {""}, key=_order)
    numbers = {label: number for number, label in enumerate(classes)}
    return Labels(torch.tensor([numbers.get(label, -1) for label in known], dtype=torch.int64), tuple(classes))


def refuse_labels(labels: Labels) -> None:
    """DataError unless a classifier can learn from these labels: some rows with and some without one, two classes or more,
    each with two rows or more."""
    num, total, classes = len(labels.known), len(labels.y), labels.classes
    if num == 0:
        raise DataError(
            f"none of the {total} rows has a label. Label some first, each class twice or more: 10 a class are a start."
        )
    if len(classes) == 1:
        raise DataError(
            f"all {num} labelled rows are {classes[0]!r} (-1 means unknown). Label rows of another class, too."
        )
    counts = Counter(labels.text(labels.y[labels.known]))
    once = [label for label in classes if counts[label] == 1]
    if 2 * len(once) > len(classes) and len(once) > 2:
        raise DataError(
            f"{num} labelled rows have {len(classes)} different labels ({', '.join(classes[:4])}, ...), {len(once)} of them "
            "once. Labels are classes, each of two rows or more: label more rows, or merge classes; numbers on a scale are not."
        )
    if once:
        near = difflib.get_close_matches(once[0], [label for label in classes if label != once[0]])
        raise DataError(
            f"{len(once)} of {len(classes)} labels occur once: {', '.join(map(repr, once[:5]))}{_or(near)}. Each class needs "
            "two rows or more: label another row of it, correct a slip of the pen, or empty the cell."
        )
    if num == total:
        raise DataError(
            f"all {total} rows have a label: there is nothing to find out. Add rows without one, or empty cells."
        )


def hold_out(labels: Labels, share: float, seed: int) -> Tensor:
    """Which labelled rows to keep for a report, about `share` of each class: (n,) int64, ascending.

    Of each class two rows at least are left for training. Of a class with k rows, k `share` are taken, rounded down or up at
    random so that the expected number is right. OptionError for a share outside [0, 1).
    """
    if not 0 <= share < 1:
        raise OptionError(f"--holdout is a share of the labelled rows from 0 to 1, 0.2 for a fifth, got {share}.")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels.y), generator=generator)
    held = []
    for number in range(len(labels.classes)):
        members = order[labels.y[order] == number]
        wanted = int(share * len(members) + torch.rand((), generator=generator).item())
        held.append(members[: max(0, min(wanted, len(members) - 2))])
    return torch.cat(held).sort().values if held else order[:0]


def _tidy(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./")


def _number(name: str) -> str:
    """3.0 and 03 are row 3: pandas writes a column of numbers with gaps so."""
    try:
        value = float(name)
    except ValueError:
        return name
    return str(int(value)) if value.is_integer() else name


def _order(label: str) -> tuple[int, float, str]:
    try:
        value = float(label)
    except ValueError:
        return 1, 0.0, label
    return (0, value, label) if value == value else (1, 0.0, label)


def _or(near: Sequence[str]) -> str:
    return f" (did you mean {' or '.join(near)}?)" if near else ""

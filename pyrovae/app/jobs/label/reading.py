"""What `pyrovae label` reads: rows, and the labels that some of them have."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrovae._near import expanded
from pyrovae._sources import TABLES
from pyrovae.app.decide import refuse_missing
from pyrovae.data import Dataset
from pyrovae.data.frames import table_columns
from pyrovae.data.images import load_folder
from pyrovae.data.label_studio import read_export
from pyrovae.data.labels import LABEL, Labels, as_labels, match_labels, read_labels, refuse_labels
from pyrovae.data.load import read
from pyrovae.data.tables import several
from pyrovae.data.texts import load_texts
from pyrovae.errors import DataError, OptionError

MOST_NAMES = 20  # of columns


@dataclass(frozen=True, eq=False)
class Job:
    """Rows and the labels that are known.

    Args:
        dataset: the data as they were read.
        x: all rows, `(N, D)`; those of a test set come last.
        labels: the labels of these rows.
        ids: the N names of the rows; None where they are numbered from 0.
    """

    dataset: Dataset
    x: Tensor
    labels: Labels
    ids: tuple[str, ...] | None

    @property
    def id_column(self) -> str:
        """The name of the column with the rows' names."""
        return "row" if self.ids is None else "file" if self.is_folder else "id"

    @property
    def is_folder(self) -> bool:
        """Whether the rows are the images of a folder."""
        return Path(self.dataset.source.get("path", "")).is_dir()

    def names(self) -> list[str]:
        return [str(row) for row in range(len(self.x))] if self.ids is None else list(self.ids)

    def about_columns(self) -> str:
        """Which columns of a table the labels are predicted from, and which are left out; "" for other rows."""
        schema, names = self.dataset.schema, self.dataset.columns
        if self.dataset.image_shape is not None or names is None or "texts" in self.dataset.source:
            return ""
        used, kinds = set(names), {} if schema is None else {column.name: column for column in schema.columns}
        ordered = [name for name in kinds if name in used] + [name for name in names if name not in kinds]
        out = [f"{name} ({column.why})" if column.why else name for name, column in kinds.items() if name not in used]
        out += [name for name in self.dataset.source.get("drop", ()) if name not in kinds]
        told = f"Predicted from {len(used)} column{'s' if len(used) > 1 else ''}: {_first(ordered)}"
        return f"{told}; left out: {_first(out)}" if out else told

    def digest(self) -> str:
        """The SHA-256 of the rows and their names. Not of the file, in which labels may have been filled in."""
        digest = hashlib.sha256(self.x.numpy().astype("<f4").tobytes())
        digest.update("\n".join(self.names()).encode())
        return digest.hexdigest()


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_NAMES]) + (f" and {len(names) - MOST_NAMES} others" if len(names) > MOST_NAMES else "")


def read_job(
    source: str,
    labels: str | Path | None = None,
    *,
    label: str | None = None,
    size: int | None = None,
    data_root: Path | None = None,
    some: bool = True,
    **table: Any,
) -> Job:
    """Read rows and labels.

    Args:
        source: a folder of images, see `load_folder`, or what `load` takes. A column `id` names the rows.
        table: how a table is read: the arguments `ids`, `header` and `drop` of `load`.
        labels: a table of labels, see `read_labels`. With None, or the source itself, the labels are a column of the table,
            or an array of the .npz file.
        label: the name of that column or array; by default "label", or y.
        size: the side, in pixels, that the images of a folder are scaled and cut to.
        data_root: the folder with the files of MNIST or Fashion-MNIST.
        some: whether there must be labels from which a classifier can learn. Without, there may be none.

    Raises:
        DataError, OptionError: rows or labels cannot be read, do not belong together, or cannot train a classifier.
    """
    path = expanded(source)
    if labels is not None and expanded(labels).is_dir():
        raise DataError(
            f"--labels {labels} is a folder: give a table of labels, a CSV file with the columns file,label."
        )
    own = labels is None or (path.is_file() and expanded(labels).absolute() == path.absolute())
    if path.is_dir():
        if chosen := [name for name, value in {"label": label, **table}.items() if value not in (None, ())]:
            flags = ", ".join({"ids": "--id"}.get(name, f"--{name}") for name in chosen)
            raise OptionError(f"{flags}: for tables, and {source} is a folder of images. Leave it out.")
        if labels is None and some:
            raise OptionError("a folder of images needs --labels: a table with the columns file,label.")
        dataset = load_folder(path, size=size)
    elif size is not None:
        raise OptionError(f"--size is for a folder of images, and {source} is none. Leave it out.")
    else:
        dataset = _load_table(source, own, label, data_root, table, some)
    refuse_missing(dataset)
    x = dataset.x if dataset.x_test is None else torch.cat([dataset.x, dataset.x_test])
    if labels is None or own:
        found = _own_labels(dataset, len(x))
    else:
        exported = Path(labels).suffix.lower() == ".json"  # in which a row has the name that we gave it
        known = read_export(labels) if exported else read_labels(labels)
        found = match_labels(known, dataset.ids, len(x), labels, from_0=exported)
        if dataset.source.get("label") is not None:
            found = _merged(found, _own_labels(dataset, len(x)), dataset.ids, labels, source)
    if some:
        refuse_labels(found)
    elif len(found.known) == len(x):
        raise DataError(f"all {len(x)} rows have a label: there is nothing to label.")
    return Job(dataset, x, found, dataset.ids)


def _load_table(
    source: str, own: bool, label: str | None, data_root: Path | None, table: dict[str, Any], some: bool
) -> Dataset:
    """Rows with the labels of a column, by default `label`, which must be there if `own`, and `some` labels are needed."""
    path = expanded(source)
    if not path.is_file() or path.suffix.lower() not in TABLES:
        dataset = read(source, data_root=data_root, label=label, **table)
        if own and some and dataset.y is None:
            raise OptionError(
                f"{source} has no labels (an array y): name the array by --label, or give --labels TABLE, with the columns "
                "row,label."
            )
        return dataset
    if table.get("header") is None and (label or LABEL).lower() in map(str.lower, table_columns(path, True)):
        table = {**table, "header": True}  # which may be hard to tell where all cells are texts
    names = table_columns(path, table.get("header"))
    labels, ids = ([name for name in names if name.lower() == wanted] for wanted in (LABEL, "id"))
    if own and some and not labels and label is None:
        raise OptionError(
            f"{source} has no column {LABEL!r}: say by --label which column has the labels, or give --labels TABLE."
        )
    if table.get("ids") is None and ids:
        table = {**table, "ids": ids[0]}
    label = label or (labels[0] if labels else None)
    if label is not None and len(several(label, names)) > 1:
        raise OptionError(f"--label {label}: rows are labelled by one column at a time. Name one of them.")
    return load_texts(path, label, **table) or read(source, label=label, text_labels=True, **table)


def _own_labels(dataset: Dataset, num_rows: int) -> Labels:
    parts = [(dataset.y, len(dataset.x)), (dataset.y_test, num_rows - len(dataset.x))]
    codes = torch.cat([torch.full((rows,), -1) if y is None else y for y, rows in parts])
    classes = dataset.classes or ()
    return as_labels([str(classes[code]) if code >= 0 else "" for code in codes.tolist()])


def _merged(table: Labels, own: Labels, ids: tuple[str, ...] | None, labels: str | Path, source: str) -> Labels:
    """The labels of a table and those of the rows' own column. DataError where they contradict each other."""
    merged = []
    for row, (given, had) in enumerate(zip(table.text(table.y), own.text(own.y))):
        if given and had and given != had:
            name = row if ids is None else ids[row]
            raise DataError(f"Row {name} is {had!r} in {source} and {given!r} in {labels}. Make them agree.")
        merged.append(given or had)
    return as_labels(merged)

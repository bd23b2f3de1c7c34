"""`load` reads a data set by name or from a file; `load_again` reads it once more and checks that it is the same."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pyrovae._arguments import as_mapping, as_path, as_several
from pyrovae._lazily import Lazily
from pyrovae._near import expanded
from pyrovae._sources import NAMES, SUFFIXES, check_source
from pyrovae.data.captioned import captioned
from pyrovae.data.captions import CAPTIONS, Captions
from pyrovae.data.dataset import Dataset, Kind, file_checksum
from pyrovae.data.images import folder_checksum, load_folder
from pyrovae.data.named import load_digits, load_idx
from pyrovae.data.sprites import sprites
from pyrovae.errors import DataError, OptionError

if TYPE_CHECKING:
    from pyrovae.data import ids as row_ids
    from pyrovae.data import tables
else:  # which need pandas
    tables, row_ids = Lazily("pyrovae.data.tables"), Lazily("pyrovae.data.ids")


def load(
    source: str,
    *,
    data_root: str | Path | None = None,
    label: str | None = None,
    ids: str | None = None,
    header: bool | None = None,
    drop: str | Sequence[str] = (),
    text_labels: bool = False,
    columns: str | Path | None = None,
    conditions: str | Sequence[str] = (),
    size: int | None = None,
) -> Dataset:
    """Load a data set by its name, from a file, or from a folder of images.

    Args:
        source: "digits" (8 x 8 images of counts from 0 to 16), "sprites" (10,000 drawn shapes, see `sprites`), "mnist" or
            "fashion-mnist" (784 pixels in [0, 1], with their test sets), or the path of a .npz or .npy file, or of a table:
            .csv (also .data, .txt, .tsv), .parquet, .xlsx. Or a folder of images, see `load_folder`, with pixels in [0, 1];
            if all are in folders within it, two or more, these are their classes.

            .npz: the rows are the only array of the file, or the first of the arrays `x`, `x_train`, `data` and `images`
            that it has. The arrays `x_test`, `y` (or `y_train`, `labels`) and `y_test` (or `labels_test`) are read if
            they exist; other arrays are ignored. Rows of rank 2 and 3 are images, `(H, W)`, `(C, H, W)` or `(H, W, C)`,
            and are flattened with channels first. What the columns of other rows are is found out, as of a table, up to 64.

            .csv: cells are separated by commas, semicolons, tabs or blanks, whichever makes lines of equally many cells.
            Text is in UTF-8, or else in Windows-1252 where it can be, with a note.
            Numbers may have a decimal comma where no cell has a decimal point. Lines that begin with "#", and not within a
            cell in quotes, are no rows; the last one above the table may name the columns, as `numpy.savetxt` writes it.
            Empty cells, '?' and the markers that pandas knows ('NA', 'nan', ...) are missing values. Columns without any
            value, and a first column without a name that counts 0, 1, 2, ... (the index of pandas), are left out. Texts are
            categories or dates, see `pv.tables.infer`: where there are any, `x` holds rows as `Dataset.schema` encodes them,
            and the kind is "table".
        data_root: A folder with the IDX files of MNIST or Fashion-MNIST, compressed (.gz) or not: in ROOT/MNIST/raw as
            torchvision has it (ROOT/FashionMNIST/raw), ROOT/MNIST, ROOT/raw or ROOT. Compressed files are verified and
            unpacked into the user's cache folder. Missing files are downloaded into this folder, or into the cache if
            `data_root` is None.
        label: The column (a name, a number from 0, or "last") or the .npz array with the class labels. Classes are
            numbered in ascending order of their labels; missing labels and -1 become -1. Several columns of a table, with
            commas between them, become `Dataset.labels`.
        ids: The column of a .csv file (as for `label`) that names the rows: it becomes `Dataset.ids`, and is not part of the
            rows. By default a column of text or whole numbers, hardly any of them twice, whose name says so (`id`,
            `patient_id`, `sampleID`, `serial number`, ...), or a first column that counts 20 rows or more. "none": no
            column.
        header: Whether the first line of a .csv file names the columns. By default it does if none of its cells in numeric
            columns is a number, if it is 0, 1, 2, ..., as pandas writes it, or if its numbers rise or fall as those of no
            other line do.
        drop: Columns of a .csv file to leave out: a list, or their names or numbers with commas between them.
        text_labels: Labels are text, and only an empty cell is missing.
        columns: A YAML file that says what each column of a table is, as `Schema.write` writes it and a run keeps as
            columns.yaml; by default that is found out, see `pv.tables.infer`.
        conditions: Columns of a table that a model is given with every row, and that are not among the rows: a list, or their
            names or numbers with commas between them. They become `Dataset.c`. Of gray images "captions", which
            `pyrovae.data.captioned` writes.
        size: The side of the squares, in pixels, that the images of a folder are scaled and cropped to; None if they have one
            size.

    Returns:
        A `Dataset`; its `x` has the shape `(N, D)`.

    Raises:
        OptionError: The name or the kind of file is unknown, or the label does not exist.
        DataError: Files cannot be found, read, verified or downloaded; the data are empty or not numbers; or the id of a
            row is missing or not unique.

    Example:
        >>> import pathlib
        >>> from pyrovae.data import load
        >>> digits = load("digits")
        >>> digits.x.shape, digits.kind, digits.image_shape
        (torch.Size([1797, 64]), 'count', (8, 8))
        >>> _ = pathlib.Path("flowers.csv").write_text("length,width,kind\\n5.1,3.5,rose\\n4.9,,tulip\\n6.3,3.3,rose\\n")
        >>> flowers = load("flowers.csv", label="kind")
        >>> flowers.columns, flowers.classes, flowers.y
        (('length', 'width'), ('rose', 'tulip'), tensor([0, 1, 0]))
    """
    how: dict[str, Any] = {"ids": ids, "header": header, "drop": drop, "text_labels": text_labels, "columns": columns}
    how |= {"conditions": conditions, "size": size}
    dataset = read(source, data_root=data_root, label=label, **how)
    for note in dataset.notes:
        warnings.warn(f"{dataset.name}: {note}", stacklevel=2)
    return dataset


def read(
    source: str,
    *,
    data_root: str | Path | None = None,
    label: str | None = None,
    drop: str | Sequence[str] = (),
    size: int | None = None,
    **table: Any,
) -> Dataset:
    """What `load` does, without a warning for each of the notes; `table` are arguments of `load_table`."""
    try:
        path = expanded(as_path("source", source)).absolute()
        suffix = path.suffix.lower()
        if source not in NAMES and path.is_dir() and suffix not in SUFFIXES:
            return _read_folder(source, size, {"label": label, "drop": drop, **table})
        if size is not None:
            raise OptionError(f"--size is for a folder of images, and {source} is none. Leave it out.")
        if source in NAMES or suffix in (".npz", ".npy"):
            chosen = [n for n in ("ids", "header", "columns") if table.get(n) is not None] + ["drop"] * bool(drop)
            wanted = table.get("conditions") or ()
            listed = wanted.split(",") if isinstance(wanted, str) else as_several("conditions", wanted, "columns")
            names = [str(name).strip() for name in listed]
            told = names == [CAPTIONS]
            chosen += ["conditions"] * bool(names and not told)
            if chosen:
                flags = ", ".join(
                    {"ids": "--id", "conditions": "--condition"}.get(name, f"--{name}") for name in chosen
                )
                beside = ", and no column or --size-factor beside it"
                images = f" Images can have --condition {CAPTIONS}{beside}." if "conditions" in chosen else ""
                raise OptionError(f"{flags}: for tables (.csv), and {source} is none. Leave it out.{images}")
            if told:
                return captioned(read(source, data_root=data_root, label=label, **table | {"conditions": ()}))
        if source in NAMES:
            if label is not None:
                raise OptionError(f"{source} has its own labels, got label={label!r}. Leave the label out.")
            root = None if data_root is None else expanded(as_path("data_root", data_root)).absolute()
            if source == "digits":
                return load_digits()
            return sprites() if source == "sprites" else load_idx(source, root)
        check_source(source)
        if suffix in (".npz", ".npy"):
            return tables.load_arrays(path, label, table.get("arrays", True))
        return tables.load_table(path, label, drop=drop, **table)
    except OSError as error:
        raise DataError(f"cannot read {source!r}: {error}. Check the permissions and the free space.") from error


def _read_folder(source: str, size: int | None, others: Mapping[str, Any]) -> Dataset:
    of_tables = {"label": "--label", "ids": "--id", "header": "--header", "drop": "--drop", "columns": "--columns"}
    of_tables["conditions"] = "--condition"
    if flags := ", ".join(flag for name, flag in of_tables.items() if others.get(name) not in (None, (), [], "")):
        raise OptionError(
            f"{flags}: for tables, and {source} is a folder of images, whose classes are the folders in it. Leave it out."
        )
    return load_folder(source, size=size, classes=True)


def load_again(
    source: Mapping[str, Any], *, data_root: str | Path | None = None, data: str | Path | None = None
) -> Dataset:
    """Load the data that a `Dataset.source` describes, and check that they have not changed.

    A file whose checksum is not the recorded one is not read further.

    Args:
        source: The `source` of a data set that `load` returned, also after a round trip through JSON.
        data_root: The folder of the IDX files, if it is not the recorded one any more.
        data: The file, if it is not in the recorded place any more.

    Returns:
        The same `Dataset`.

    Raises:
        DataError: The data have another checksum than those loaded then, or cannot be loaded (see `load`).

    Example:
        >>> from pyrovae.data import load, load_again
        >>> digits = load("digits")
        >>> torch.equal(load_again(digits.source).x, digits.x)
        True
    """
    source = as_mapping("source", source, "what load wrote down of the data, dataset.source")
    root = source.get("data_root") if data_root is None else as_path("data_root", data_root)
    if data is not None:
        if source.get("name"):
            raise OptionError(f"The data are {source['name']}, and come from no file: leave --data out.")
        check_source(str(data), folders="size" in source)
        source = {**source, "path": str(expanded(data).absolute())}
    if not source.get("name"):
        _refuse_changed(source)
    table: dict[str, Any] = {}
    if "size" in source:  # of a folder of images
        table = {"size": source["size"]}
    elif "header" in source:  # of a table
        table = {
            "header": source["header"],
            "ids": source["ids"] or row_ids.NO_IDS,
            "drop": source["drop"],
            "look": False,
            "index": source.get("index", False),
        }
        if "columns" in source:
            table |= {"columns": source["columns"], "coded": source.get("kind") == "table"}
        if "conditions" in source:
            table |= {name: source[name] for name in ("conditions", "condition_columns")}
    elif str(source.get("path", "")).lower().endswith((".npz", ".npy")):
        table = {"arrays": source.get("columns", False)}
    elif str(source.get("path", "")).lower().endswith((".csv", ".data")):
        table = {"look": False}
    dataset = read(source.get("name") or source["path"], data_root=root, label=source.get("label"), **table)
    _refuse_other(dataset.name, dataset.source["checksum"], source["checksum"])
    if "kind" not in source:
        kind = _earlier_kind(dataset)
        dataset = replace(dataset, kind=kind, source={**dataset.source, "kind": kind})
    return captioned(dataset, Captions.from_json(source[CAPTIONS])) if CAPTIONS in source else dataset


def _refuse_changed(source: Mapping[str, Any]) -> None:
    """DataError unless the file, or the folder of images, has the recorded checksum.

    It is not looked into: whoever wrote the run chose which it is.
    """
    path = Path(source["path"])
    check_source(str(path), folders="size" in source)
    try:
        found = folder_checksum(path, source["size"]) if path.is_dir() else file_checksum(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}. Check the permissions.") from error
    _refuse_other(path.stem, found, source["checksum"])


def _refuse_other(name: str, found: str, wanted: str) -> None:
    if found != wanted:
        raise DataError(
            f"{name} has changed: its sha256 was {wanted}, now it is {found}. Restore the data that the model was fitted to, "
            "or fit it again."
        )


def _earlier_kind(dataset: Dataset) -> Kind:
    """The kind by the rule of versions that did not record it: all reals in [0, 1] were taken for pixels."""
    values = torch.cat([x.flatten() for x in (dataset.x, dataset.x_test) if x is not None])
    values = values[~values.isnan()]
    return "unit" if dataset.kind == "real" and values.min() >= 0 and values.max() <= 1 else dataset.kind

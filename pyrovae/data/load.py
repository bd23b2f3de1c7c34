"""`load` reads a data set by name or from a file; `load_again` reads it once more and checks that it is the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyrovae.data.dataset import Dataset, near_names
from pyrovae.data.named import NAMES, load_digits, load_idx
from pyrovae.data.tables import load_arrays, load_table
from pyrovae.errors import DataError, OptionError

SUFFIXES = (".npz", ".npy", ".csv", ".data")


def load(
    source: str, *, data_root: str | Path | None = None, label: str | None = None, ids: str | None = None
) -> Dataset:
    """Load a data set by its name, or from a file.

    Args:
        source: "digits" (8 x 8 images of counts from 0 to 16), "mnist" or "fashion-mnist" (784 pixels in [0, 1], with their
            test sets), or the path of a .npz, .npy or .csv file (.data is read as .csv).

            .npz: the rows are the only array of the file, or the first of the arrays `x`, `x_train`, `data` and `images`
            that it has. The arrays `x_test`, `y` (or `y_train`, `labels`) and `y_test` (or `labels_test`) are read if
            they exist; other arrays are ignored. Rows of rank 2 and 3 are images, `(H, W)`, `(C, H, W)` or `(H, W, C)`,
            and are flattened with channels first.

            .csv: cells are separated by commas, or else by semicolons, tabs or blanks. The first line is a header if none
            of its cells in numeric columns is a number, or if it is 0, 1, 2, ..., as pandas writes it. Empty cells, '?'
            and the markers that pandas knows ('NA', 'nan', ...) are missing values. A first column without a name that
            counts 0, 1, 2, ... (the index of pandas) is dropped.
        data_root: A folder with the IDX files of MNIST or Fashion-MNIST, compressed (.gz) or not: in ROOT/MNIST/raw as
            torchvision has it (ROOT/FashionMNIST/raw), ROOT/MNIST, ROOT/raw or ROOT. Compressed files are verified and
            unpacked into the user's cache folder. Missing files are downloaded into this folder, or into the cache if
            `data_root` is None.
        label: The column (a name, a number from 0, or "last") or the .npz array with the class labels. Classes are
            numbered in ascending order of their labels; missing labels and -1 become -1. With `ids`, labels are text and
            only an empty cell is missing.
        ids: The name of the column of a .csv file that holds the ids of the rows, in upper or lower case. If the file
            has this column it becomes `Dataset.ids`, and is not part of the rows.

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
    try:
        if source in NAMES:
            if label is not None:
                raise OptionError(f"{source} has its own labels, got label={label!r}. Leave the label out.")
            root = None if data_root is None else Path(data_root).expanduser().absolute()
            return load_digits() if source == "digits" else load_idx(source, root)
        path = Path(source).expanduser().absolute()
        if path.suffix.lower() not in SUFFIXES:
            raise OptionError(
                f"unknown data {source!r}{near_names(source, NAMES)}. Known names: {', '.join(NAMES)}; "
                f"or give the path of a file that ends in {', '.join(SUFFIXES)}."
                + (" A folder of images is for `pyrovae label`." if path.is_dir() else "")
            )
        if not path.is_file():
            here = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
            raise DataError(f"there is no file {path}{near_names(path.name, here)}. Check the name and the folder.")
        return load_arrays(path, label) if path.suffix.lower() in (".npz", ".npy") else load_table(path, label, ids)
    except OSError as error:
        raise DataError(f"cannot read {source!r}: {error}. Check the permissions and the free space.") from error


def load_again(source: Mapping[str, Any], *, data_root: str | Path | None = None) -> Dataset:
    """Load the data that a `Dataset.source` describes, and check that they have not changed.

    Args:
        source: The `source` of a data set that `load` returned, also after a round trip through JSON.
        data_root: The folder of the IDX files, if it is not the recorded one any more.

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
    root = source.get("data_root") if data_root is None else data_root
    dataset = load(source.get("name") or source["path"], data_root=root, label=source.get("label"))
    if dataset.source["checksum"] != source["checksum"]:
        raise DataError(
            f"{dataset.name} has changed: its sha256 was {source['checksum']}, now it is {dataset.source['checksum']}. "
            "Restore the data that the model was fitted to, or fit it again."
        )
    return dataset

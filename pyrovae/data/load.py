"""`load`: a data set by name or from a file."""

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
    """Loads a data set by its name, or from a file.

    Args:
        source: "digits" (8x8 counts 0..16), "mnist", "fashion-mnist" (784 pixels in [0, 1], official test set), or the
            path of a .npz, .npy or .csv file (.data is read as .csv).

            .npz: the rows are the array `x`, `x_train`, `data` or `images` (the first of these that is there), or the
            only array; `x_test`, `y` (`y_train`, `labels`) and `y_test` (`labels_test`) are taken where they are there,
            other arrays are left alone. Rows of rank 2 and 3 are pictures, (H, W), (C, H, W) or (H, W, C), and are
            flattened (channels first).

            .csv: separated by commas, else semicolons, tabs or blanks. The first row is a header if none of its cells
            in the numeric columns is a number (or if it is 0, 1, 2, ... as pandas writes it). Empty cells, '?' and
            pandas' own markers ('NA', 'nan', ...) are missing. An unnamed first column 0, 1, 2, ... (pandas' index) is
            dropped.
        data_root: a folder with the IDX files of MNIST or Fashion-MNIST, packed (.gz) or not: in ROOT/MNIST/raw as
            torchvision has it (ROOT/FashionMNIST/raw), ROOT/MNIST, ROOT/raw or ROOT. Packed files are checked and
            unpacked into the user's cache folder, never beside themselves. Where there are none, they are downloaded
            there, or into the cache without a `data_root`.
        label: the column (name, 0-based number or "last") or the .npz array with the class labels. Classes are
            numbered in ascending order of their values; missing labels and -1 become -1. With `ids` labels are text, and
            nothing but an empty cell is missing.
        ids: name of a column of a .csv file that holds the rows' names, upper or lower case, where there is such a
            column: it becomes `Dataset.ids`, and is no number of the row.

    Raises:
        OptionError: an unknown name or file kind, a label that is not there.
        DataError: files that cannot be found, read, verified or downloaded; data that are not numbers, or empty; a row's name
            that is missing, or that of another row.
    """
    try:
        if source in NAMES:
            if label is not None:
                raise OptionError(f"{source} has its own labels, got the label {label!r}. Leave it out.")
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
    """Loads what a `Dataset.source` describes. `data_root` takes the place of the recorded one.

    Raises:
        DataError: the data are not those that were loaded then, or cannot be loaded (see `load`).
    """
    root = source.get("data_root") if data_root is None else data_root
    dataset = load(source.get("name") or source["path"], data_root=root, label=source.get("label"))
    if dataset.source["checksum"] != source["checksum"]:
        raise DataError(
            f"{dataset.name} has changed: its sha256 was {source['checksum']}, now it is {dataset.source['checksum']}. "
            "Bring back the data of the fit, or fit again."
        )
    return dataset

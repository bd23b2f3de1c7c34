"""Where rows come from: data sets with a name, .npz, .npy and .csv files.

The rule for `kind` looks at all rows of a source, NaN aside, and takes the first that fits:

1. uint8 whose largest value is 255 (or above 127 in arrays of rank 3 and more) are pixels: divided by 255, "unit";
2. only 0 and 1 (bool included): "binary";
3. only non-negative integers: "count";
4. only values in [0, 1]: "unit";
5. anything else: "real".
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import http.client
import io
import os
import socket
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from platformdirs import user_cache_path
from torch import Tensor

from pyrovae._lazily import Lazily
from pyrovae.errors import DataError, OptionError

# seconds to import, and each for one kind of source only
if TYPE_CHECKING:
    import pandas as pd
else:
    pd = Lazily("pandas")
sklearn = Lazily("sklearn.datasets")
torchvision = Lazily("torchvision.datasets")

Kind = Literal["binary", "unit", "count", "real"]
Array = NDArray[Any]

KINDS: tuple[Kind, ...] = ("binary", "unit", "count", "real")
NAMES = ("digits", "mnist", "fashion-mnist")
SUFFIXES = (".npz", ".npy", ".csv", ".data")

_X, _X_TEST = ("x", "x_train", "data", "images"), ("x_test",)
_Y, _Y_TEST = ("y", "y_train", "labels"), ("y_test", "labels_test")
_IDX = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}  # classes of torchvision.datasets
# The two sets have the same file names and sizes; these tell unpacked files apart, which have no published checksum.
_FIRST_TEST_LABELS = {"mnist": [7, 2, 1, 0, 4, 1, 4, 9], "fashion-mnist": [9, 2, 1, 1, 6, 1, 4, 6]}


@dataclass(frozen=True, eq=False)
class Dataset:
    """Rows and what is known about them.

    name: what messages and run folders call it.
    x: (N, D) float32, the rows to train and validate on; NaN is missing.
    x_test: (N_test, D) float32, or None where the source has no split of its own.
    y, y_test: (N,), (N_test,) int64 class numbers, -1 is unknown; or None.
    kind: "binary" (0 and 1), "unit" (reals in [0, 1]), "count" (integers >= 0) or "real".
    total_count: the largest count that can occur, where known.
    columns: the D names, or None.
    classes: the original values of the classes 0, 1, ..., or None.
    image_shape: (H, W) or (C, H, W), a row's shape where rows are pictures, or None.
    ids: the N rows' names, or None: they are numbered from 0.
    source: what `load_again` needs, in JSON's types: name or absolute path, label, sha256 checksum of the file's bytes
        (of the values where there is no single file), `divided_by` where pixels were scaled.
    """

    name: str
    x: Tensor
    kind: Kind
    source: dict[str, Any]
    x_test: Tensor | None = None
    y: Tensor | None = None
    y_test: Tensor | None = None
    total_count: int | None = None
    columns: tuple[str, ...] | None = None
    classes: tuple[str | int, ...] | None = None
    image_shape: tuple[int, ...] | None = None
    ids: tuple[str, ...] | None = None


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
            return _digits() if source == "digits" else _idx(source, root)
        path = Path(source).expanduser().absolute()
        if path.suffix.lower() not in SUFFIXES:
            raise OptionError(
                f"unknown data {source!r}{_near(source, NAMES)}. Known names: {', '.join(NAMES)}; "
                f"or give the path of a file that ends in {', '.join(SUFFIXES)}."
                + (" A folder of images is for `pyrovae label`." if path.is_dir() else "")
            )
        if not path.is_file():
            here = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
            raise DataError(f"there is no file {path}{_near(path.name, here)}. Check the name and the folder.")
        return _arrays(path, label) if path.suffix.lower() in (".npz", ".npy") else _table(path, label, ids)
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


def _near(word: str, words: tuple[str, ...] | list[str]) -> str:
    near = difflib.get_close_matches(word, words)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- data sets with a name -----------------------------------------------------------------------


def _digits() -> Dataset:
    data = sklearn.load_digits()
    return Dataset(
        name="digits",
        x=torch.from_numpy(data.data.astype(np.float32)),
        y=torch.from_numpy(data.target.astype(np.int64)),
        kind="count",
        total_count=16,
        classes=tuple(range(10)),
        image_shape=(8, 8),
        source={"name": "digits", "checksum": hashlib.sha256(data.data.astype("<f4").tobytes()).hexdigest()},
    )


def _idx(name: str, root: Path | None) -> Dataset:
    """MNIST and its kin: four IDX files, read and checked by torchvision."""
    cls = _idx_class(name)
    read = torchvision.mnist
    folder = _idx_folder(cls, root)
    files = [folder / Path(archive).stem for archive, _ in cls.resources]
    try:  # in torchvision's order: train images, train labels, test images, test labels
        x, y, x_test, y_test = (
            read.read_image_file(str(f)) if "images" in f.name else read.read_label_file(str(f)) for f in files
        )
    except (AssertionError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder} holds a damaged IDX file ({error}). Delete {', '.join(f.name for f in files)} there."
        ) from error
    if len(x) != len(y) or len(x_test) != len(y_test):
        raise DataError(
            f"{folder}: {len(x)} and {len(x_test)} pictures have {len(y)} and {len(y_test)} labels. "
            "Bring the four files of one set."
        )
    for other, first in _FIRST_TEST_LABELS.items():
        if other != name and y_test[: len(first)].tolist() == first:
            raise DataError(f"{folder} holds {other}, not {name}. Ask for {other}, or give the folder of {name}.")
    digest = hashlib.sha256()
    for file in files:
        digest.update(bytes.fromhex(_sha256(file)))
    return Dataset(
        name=name,
        x=x.flatten(1).float().div_(255),
        y=y,
        x_test=x_test.flatten(1).float().div_(255),
        y_test=y_test,
        kind="unit",
        classes=tuple(range(10)) if name == "mnist" else tuple(cls.classes),  # torchvision's: "0 - zero"
        image_shape=tuple(x.shape[1:]),
        source={
            "name": name,
            "data_root": None if root is None else str(root),
            "checksum": digest.hexdigest(),
            "divided_by": 255,
        },
    )


def _idx_class(name: str) -> type[Any]:
    return getattr(torchvision, _IDX[name])


def _idx_folder(cls: type[Any], root: Path | None) -> Path:
    """A folder with the four unpacked files, which this unpacks or downloads where needed."""
    archives = [archive for archive, _ in cls.resources]
    names = [Path(archive).stem for archive in archives]
    # verified archives have one content, so the checksums are the key: no path, and nothing to go stale
    key = hashlib.sha256("".join(md5 for _, md5 in cls.resources).encode()).hexdigest()[:12]
    cache = user_cache_path("pyrovae") / f"{cls.__name__}-{key}"

    def complete(folder: Path, wanted: list[str]) -> bool:
        return all((folder / name).is_file() for name in wanted)

    if root is not None:
        if not root.is_dir():
            raise DataError(f"the data root {root} is not a folder. Make it, or give one that is there.")
        for folder in (root / cls.__name__ / "raw", root / cls.__name__, root / "raw", root):
            if complete(folder, names):
                return folder
            if complete(folder, archives):
                # checked before torchvision sees them: it would download over a file with a wrong checksum
                for archive, md5 in cls.resources:
                    _verify(cls, folder / archive, md5)
                if not complete(cache, names):
                    with _publish(cache, names) as unpacked:
                        for archive in archives:
                            torchvision.utils.extract_archive(str(folder / archive), str(unpacked))
                return cache
    target = cache if root is None else root / cls.__name__ / "raw"
    if not complete(target, names):
        try:
            with _publish(target, names) as unpacked, _patience(20.0):
                downloaded = cls(str(unpacked), download=True)
                for name in names:
                    os.replace(Path(downloaded.raw_folder) / name, unpacked / name)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise DataError(
                f"{cls.__name__} needs the files {', '.join(archives)}; they are not in {root or cache}, and the "
                f"download into {target} failed ({' '.join(str(error).split())}). Put them into a folder DIR and give "
                "--data-root DIR (data_root=DIR); `pyrovae fit digits` needs no files."
            ) from error
    return target


def _verify(cls: type[Any], path: Path, md5: str) -> None:
    found = torchvision.utils.calculate_md5(path)
    if found == md5:
        return
    for other in map(_idx_class, _IDX):
        if other is not cls and found in dict(other.resources).values():
            raise DataError(f"{path} belongs to {other.__name__}. Give the folder of {cls.__name__}.")
    raise DataError(f"{path} is damaged: its md5 is {found}, {cls.__name__} has {md5}. Fetch the file again.")


@contextlib.contextmanager
def _publish(target: Path, names: list[str]) -> Iterator[Path]:
    """A temporary folder whose files move into `target` one by one at the end.

    Each move is atomic, so that another process sees a file whole or not at all.
    """
    made = [folder for folder in (target, *target.parents) if not folder.exists()]
    target.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=target) as temporary:
            yield Path(temporary)
            for name in names:
                os.replace(Path(temporary) / name, target / name)
    finally:
        with contextlib.suppress(OSError):  # leave no empty folders behind a failed download
            for folder in made:
                folder.rmdir()


@contextlib.contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Downloads in silence, and gives up on a network that does not answer (torchvision sets no time limit)."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(before)


# ---- arrays --------------------------------------------------------------------------------------


def _arrays(path: Path, label: str | None) -> Dataset:
    try:
        with contextlib.ExitStack() as stack:
            loaded = np.load(path, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                names, arrays = ["x"], {"x": loaded}
            else:
                stack.enter_context(loaded)
                names = list(loaded.files)
                wanted = {*_X, *_X_TEST, *_Y, *_Y_TEST, label, *(names if len(names) == 1 else ())}
                arrays = {name: loaded[name] for name in names if name in wanted}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path} is not a file of plain numeric arrays ({error}). "
            "Write it with numpy.savez or numpy.save, without objects."
        ) from error

    def first(candidates: tuple[str, ...]) -> Array | None:
        return next((arrays[name] for name in candidates if name in arrays), None)

    x = first(_X) if len(names) != 1 else arrays[names[0]]
    if x is None:
        raise DataError(f"{path} needs an array named {' or '.join(_X)}; found {names}. Rename one.")
    if label is not None and (label not in arrays or label in (*_X, *_X_TEST) or len(names) == 1):
        raise OptionError(f"{path.name} has no array of labels {label!r}{_near(label, names)}; found {names}.")
    return _dataset(
        path,
        x,
        first(_X_TEST),
        first(_Y) if label is None else arrays[label],
        first(_Y_TEST),
        label=label,
    )


def _dataset(
    path: Path,
    x: Array,
    x_test: Array | None = None,
    y: Array | None = None,
    y_test: Array | None = None,
    *,
    label: str | None,
    columns: tuple[str, ...] | None = None,
    ids: tuple[str, ...] | None = None,
) -> Dataset:
    parts = [x] if x_test is None else [x, x_test]
    for part in parts:
        if part.dtype.kind not in "biuf":
            raise DataError(f"{path}: rows must be numbers, got an array of dtype {part.dtype}. Convert it to float32.")
        if part.ndim < 2 or part.size == 0:
            raise DataError(
                f"{path}: rows must have the shape (N, D) or (N, *event), none of them 0, got {part.shape}. "
                "Reshape a single column with array.reshape(-1, 1)."
            )
    if x_test is not None and x_test.shape[1:] != x.shape[1:]:
        raise DataError(f"{path}: a row has shape {x.shape[1:]}, a test row {x_test.shape[1:]}. Give both the same.")
    for rows, labels in ((x, y), (x_test, y_test)):
        if labels is not None and (rows is None or labels.shape != rows.shape[:1]):
            wanted = "rows to label" if rows is None else f"the shape {rows.shape[:1]}, one class a row"
            raise DataError(
                f"{path}: labels of shape {labels.shape} need {wanted}. Give class numbers, not one-hot rows."
            )
    kind, divisor = _kind(path, parts)
    image_shape = _image_shape(x)
    source: dict[str, Any] = {"path": str(path), "label": label, "checksum": _sha256(path)}
    if divisor != 1:
        source["divided_by"] = divisor
    rows_of = [torch.from_numpy(_flat(part)).div_(divisor) for part in parts]
    if infinite := sum(int(rows.isinf().sum()) for rows in rows_of):
        raise DataError(
            f"{path}: {infinite} values are infinite (or beyond float32, 3.4e38). "
            "Make them NaN (missing), drop their rows, or change their unit."
        )
    for part, read in zip(parts, rows_of):
        _refuse_rounding(path, part, read, divisor, columns)
    codes, classes = _classes(path, [part for part in (y, y_test) if part is not None])
    return Dataset(
        name=path.stem,
        x=rows_of[0],
        x_test=rows_of[1] if len(rows_of) > 1 else None,
        y=None if y is None else codes[0],
        y_test=None if y_test is None else codes[-1],
        kind=kind,
        columns=columns,
        classes=classes,
        image_shape=image_shape,
        ids=ids,
        source=source,
    )


def _kind(path: Path, parts: list[Array]) -> tuple[Kind, int]:
    """The kind (by the rule at the top of this file), and what to divide by."""
    values = np.concatenate([part.reshape(-1) for part in parts])
    if values.dtype.kind == "f":
        values = values[~np.isnan(values)]
    if values.size == 0:
        raise DataError(f"{path}: no value is observed, all are NaN. Give data.")
    low, high = values.min(), values.max()
    if values.dtype == np.uint8 and (high == 255 or (high > 127 and parts[0].ndim > 2)):
        return "unit", 255
    integral = values.dtype.kind in "biu" or bool((values == np.floor(values)).all())
    if low < 0 or (not integral and high > 1):
        return "real", 1
    if not integral:
        return "unit", 1
    return ("binary" if high <= 1 else "count"), 1


def _image_shape(x: Array) -> tuple[int, ...] | None:
    if x.ndim == 3:
        return x.shape[1:]
    if x.ndim != 4 or not {x.shape[1], x.shape[-1]} & {1, 3, 4}:
        return None
    channels, height, width = x.shape[1:] if x.shape[1] in (1, 3, 4) else (x.shape[-1], *x.shape[1:-1])
    return (height, width) if channels == 1 else (channels, height, width)


def _flat(x: Array, dtype: type = np.float32) -> Array:
    if x.ndim == 4 and x.shape[1] not in (1, 3, 4) and x.shape[-1] in (1, 3, 4):
        x = np.moveaxis(x, -1, 1)
    with np.errstate(over="ignore"):  # an overflow becomes infinite, and is refused as such
        return np.array(x.reshape(len(x), -1), dtype=dtype)  # always a copy: it is divided in place


def _refuse_rounding(path: Path, given: Array, rows: Tensor, divisor: int, columns: tuple[str, ...] | None) -> None:
    """Rows become float32, 7 digits: a column such as 1e9 +- 1 would lose what varies in it."""
    if given.dtype.kind != "f" or given.dtype.itemsize <= 4:
        return
    given = _flat(given, np.float64)
    lost = np.nanmax(np.abs(given - rows.double().numpy() * divisor), axis=0, initial=0.0)
    spread = np.nanstd(given, axis=0)
    bad = np.flatnonzero(lost > 0.01 * spread)
    if len(bad):
        name = columns[bad[0]] if columns else f"column {bad[0]}"
        raise DataError(
            f"{path}: {name} varies by {spread[bad[0]]:.3g} around {np.nanmean(given[:, bad[0]]):.6g}, less than float32 can "
            "tell apart. Subtract an offset, or change its unit."
        )


def _classes(path: Path, parts: list[Array]) -> tuple[list[Tensor], tuple[str | int, ...] | None]:
    """Labels -> class numbers in ascending order of the values; missing and -1 -> -1."""
    if not parts:
        return [], None
    values = pd.Series(np.concatenate(parts))
    unknown = values.isna() | values.astype(str).isin(("", "-1", "-1.0"))
    known = values[~unknown]
    if pd.api.types.is_float_dtype(known) and not (known == np.floor(known)).all():
        raise DataError(
            f"{path}: labels are classes, got the numbers {known.unique()[:3].tolist()}, ... "
            "Give whole numbers or names."
        )
    if pd.api.types.is_numeric_dtype(known):
        known = known.astype(np.int64)
    numbers, found = pd.factorize(known.to_numpy(), sort=True)
    classes = tuple(np.asarray(found).tolist())
    if len(classes) == 1 and unknown.any():
        raise DataError(
            f"{path}: the only class is {classes[0]!r}, beside -1 or missing, which mean unknown. "
            "Code two classes as 0 and 1, or leave the labels out."
        )
    codes = np.full(len(values), -1, dtype=np.int64)
    codes[(~unknown).to_numpy()] = numbers
    ends = np.cumsum([len(part) for part in parts])[:-1]
    return [torch.from_numpy(part) for part in np.split(codes, ends)], classes


# ---- tables --------------------------------------------------------------------------------------


def _table(path: Path, label: str | None, ids: str | None) -> Dataset:
    frame, header = _read_csv(path, () if ids is None else (ids, label or ids))
    columns = list(frame.columns)
    names = None
    if header and ids is not None and (called := [name for name in columns if name.lower() == ids.lower()]):
        names = _row_names(path, frame.pop(called[0]))
        columns = list(frame.columns)
    elif header and columns[0] == "column 0" and np.array_equal(frame.iloc[:, 0], np.arange(len(frame))):
        frame, columns = frame.iloc[:, 1:], columns[1:]
    y = None
    if label is not None:
        y = frame.pop(_column(path, columns, label)).to_numpy()
        columns = list(frame.columns)
    if not columns:
        raise DataError(f"{path} has no column beside the label. Give one column or more.")
    if text := [name for name in columns if not pd.api.types.is_numeric_dtype(frame[name])]:
        examples = [f"{name} ({_first_text(frame[name])!r})" for name in text[:8]] + ["..."] * (len(text) > 8)
        raise DataError(
            f"{path}: {len(text)} of {len(columns)} columns are not numbers: {', '.join(examples)}. "
            f"Name the class column with --label (label={text[-1]!r}), and drop or encode the others."
        )
    x = frame.to_numpy(dtype=np.float64)
    return _dataset(path, x, y=y, label=label, columns=tuple(columns) if header else None, ids=names)


def _row_names(path: Path, names: pd.Series) -> tuple[str, ...]:
    if (names == "").any():
        raise DataError(
            f"{path}: row {int((names == '').argmax())} (counted from 0) has no {names.name}. "
            "Give every row one, or drop the column."
        )
    if names.duplicated().any():
        raise DataError(
            f"{path}: several rows have the {names.name} {names[names.duplicated()].iloc[0]}. Give each row its own."
        )
    return tuple(names)


def _read_csv(path: Path, text: tuple[str, ...] = ()) -> tuple[pd.DataFrame, bool]:
    """The table, its columns named, and whether the names come from a header. Columns whose names are in `text`, upper or lower
    case, are read as they stand: "NA" is a text there, and "007" is not 7."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            line = file.readline()
        marks = (",", ";") if "  " in line else (",", ";", "\t")  # tabs among runs of blanks only align
        separator = next((mark for mark in marks if mark in line), r"\s+")
        options: dict[str, Any] = {
            "sep": separator,
            "na_values": ["?"],
            "skipinitialspace": True,
            "encoding": "utf-8-sig",
        }
        head = pd.read_csv(path, header=None, dtype=str, nrows=200, **options)
        header = _has_header(head)
        names = [
            str(cell).strip() if header and not pd.isna(cell) else f"column {i}" for i, cell in enumerate(head.iloc[0])
        ]
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise DataError(f"{path}: several columns are called {', '.join(twice)}. Rename them.")
        options |= {"header": 0 if header else None, "names": names}
        frame = pd.read_csv(path, low_memory=False, **options)
        as_text = [name for name in names if header and name.lower() in map(str.lower, text)]
        if as_text:
            cells = pd.read_csv(path, usecols=as_text, dtype=str, na_filter=False, **options)
            frame[as_text] = cells.apply(lambda column: column.str.strip())
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is not a table ({' '.join(str(error).split())}). Give rows of equal length, in UTF-8."
        ) from error
    if frame.empty:
        raise DataError(f"{path} has a header and no rows. Give at least one row.")
    return frame, header


def _has_header(head: pd.DataFrame) -> bool:
    words = {"true": "1", "false": "0"}  # pandas reads these as bool
    numbers = head.map(lambda cell: words.get(str(cell).strip().lower(), cell)).apply(pd.to_numeric, errors="coerce")
    numeric = (numbers.notna() | head.isna()).iloc[1:].all()  # judged by the rows below the first
    first = numbers.iloc[0]
    if len(first) > 2 and first.tolist() == list(range(len(first))):
        return True
    return not first[numeric].notna().any() and bool(head.iloc[0][numeric].notna().any())


def _column(path: Path, columns: list[str], label: str) -> str:
    if label in columns:
        return label
    if label == "last":
        return columns[-1]
    if label.isdecimal() and int(label) < len(columns):
        return columns[int(label)]
    raise OptionError(
        f"{path.name} has no column {label!r}{_near(label, columns)}; it has {len(columns)}: "
        f'{", ".join(columns[:20])}{", ..." if len(columns) > 20 else ""}. Give a name, a number from 0, or "last".'
    )


def _first_text(column: pd.Series) -> str:
    known = column.dropna()
    return str(known[pd.to_numeric(known, errors="coerce").isna()].iloc[0])

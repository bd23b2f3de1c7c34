"""Data sets known by name: scikit-learn's digits, and the files of MNIST and Fashion-MNIST."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import io
import math
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from platformdirs import user_cache_path
from torch import Tensor

from pyrovae._files import temporary_folder
from pyrovae._lazily import Lazily
from pyrovae.data.dataset import Dataset, file_checksum
from pyrovae.errors import DataError

sklearn = Lazily("sklearn.datasets")
torchvision = Lazily("torchvision.datasets")  # two seconds, which a download may take, and reading may not


class Files(NamedTuple):
    """What is known of a data set in IDX files.

    Args:
        folder: the name of its class in torchvision, and of its folder.
        md5: the published checksums of its archives, in the order of `ARCHIVES`.
        classes: the names of its classes.
        first_test_labels: by which sets of the same file names and sizes are told apart, where they are unpacked.
    """

    folder: str
    md5: tuple[str, str, str, str]
    classes: tuple[int | str, ...]
    first_test_labels: tuple[int, ...]


ARCHIVES = tuple(f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
UNPACKED = tuple(name.removesuffix(".gz") for name in ARCHIVES)
SETS = {
    "mnist": Files(
        "MNIST",
        (
            *("f68b3c2dcbeaaa9fbdd348bbdeb94873", "d53e105ee54ea40749a09fcbcd1e9432"),
            *("9fb629c4189551a2d022fa330f9573f3", "ec29112dd5afa0611ce80d1b7f02629c"),
        ),
        tuple(range(10)),
        (7, 2, 1, 0, 4, 1, 4, 9),
    ),
    "fashion-mnist": Files(
        "FashionMNIST",
        (
            *("8d4fb7e6c68d591d4c3dfef9ec88bf0d", "25c81989df183df01b3e8a0aad5dffbe"),
            *("bef4ecab320f06d8554ea6380940ec79", "bb300cfdad3c16e7a12a480ee83cd310"),
        ),
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        (9, 2, 1, 1, 6, 1, 4, 6),
    ),
}


def load_digits() -> Dataset:
    """The 1797 handwritten digits of scikit-learn, 8 x 8 pixels that count from 0 to 16."""
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


def load_idx(name: str, root: Path | None) -> Dataset:
    """MNIST or Fashion-MNIST, from four IDX files."""
    folder = _idx_folder(name, root)
    files = [folder / file for file in UNPACKED]
    try:
        x, y, x_test, y_test = (_read_idx(file, 3 if "images" in file.name else 1) for file in files)
    except ValueError as error:
        raise DataError(
            f"{folder} holds a damaged IDX file ({error}). Delete {', '.join(UNPACKED)} there and load again."
        ) from error
    if len(x) != len(y) or len(x_test) != len(y_test):
        raise DataError(
            f"{folder}: {len(x)} and {len(x_test)} pictures have {len(y)} and {len(y_test)} labels. "
            "Use the four files of one data set."
        )
    if x.shape[1:] != x_test.shape[1:] or not x.numel() or not x_test.numel():
        raise DataError(
            f"{folder} holds training pictures of shape {tuple(x.shape)} and test pictures of shape {tuple(x_test.shape)}: "
            "they must be of one size, and at least one each. Use the four files of one data set."
        )
    last = len(SETS[name].classes) - 1
    if (most := int(max(y.max(), y_test.max()))) > last:
        raise DataError(
            f"{folder} holds the label {most}, and the labels of {name} are 0 to {last}: these files are of another data set. "
            f"Give the folder of {name}, or write arrays of pictures and labels as .npz."
        )
    for other, known in SETS.items():
        if other != name and tuple(y_test[: len(known.first_test_labels)].tolist()) == known.first_test_labels:
            raise DataError(f"{folder} holds {other}, not {name}. Ask for {other}, or give the folder of {name}.")
    digest = hashlib.sha256()
    for file in files:
        digest.update(bytes.fromhex(file_checksum(file)))
    return Dataset(
        name=name,
        x=x.flatten(1).float().div_(255),
        y=y.long(),
        x_test=x_test.flatten(1).float().div_(255),
        y_test=y_test.long(),
        kind="unit",
        classes=SETS[name].classes,
        image_shape=tuple(x.shape[1:]),
        source={
            "name": name,
            "data_root": None if root is None else str(root),
            "checksum": digest.hexdigest(),
            "divided_by": 255,
        },
    )


def _read_idx(file: Path, rank: int) -> Tensor:
    """The bytes of an IDX file, as a tensor of this rank; ValueError if it holds anything else."""
    content, begin = file.read_bytes(), 4 + 4 * rank
    shape = [int.from_bytes(content[place : place + 4], "big") for place in range(4, begin, 4)]
    if content[:4] != bytes((0, 0, 8, rank)) or len(content) != begin + math.prod(shape):
        raise ValueError(f"{file.name} does not hold bytes of {rank} dimension{'s' if rank > 1 else ''}, or not all")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=begin).reshape(shape).copy())


def _idx_folder(name: str, root: Path | None) -> Path:
    """The folder with the four unpacked files, after unpacking or downloading them if necessary."""
    known = SETS[name]
    # The archives are verified, so their checksums identify the content: a cache by checksum cannot be out of date.
    key = hashlib.sha256("".join(known.md5).encode()).hexdigest()[:12]
    cache = user_cache_path("pyrovae") / f"{known.folder}-{key}"

    def complete(folder: Path, wanted: tuple[str, ...]) -> bool:
        return all((folder / file).is_file() for file in wanted)

    if root is not None:
        if not root.is_dir():
            raise DataError(f"the data root {root} is not a folder. Create it, or give an existing folder.")
        for folder in (root / known.folder / "raw", root / known.folder, root / "raw", root):
            if complete(folder, UNPACKED):
                return folder
            if complete(folder, ARCHIVES):
                # Verify first: torchvision would replace a file with a wrong checksum by a download.
                for archive, md5 in zip(ARCHIVES, known.md5):
                    _verify(name, folder / archive, md5)
                if not complete(cache, UNPACKED):
                    with _publish(cache) as unpacked:
                        for archive, file in zip(ARCHIVES, UNPACKED):
                            with gzip.open(folder / archive) as packed, (unpacked / file).open("xb") as plain:
                                shutil.copyfileobj(packed, plain)
                return cache
    target = cache if root is None else root / known.folder / "raw"
    if not complete(target, UNPACKED):
        try:
            with _publish(target) as unpacked, _patience(20.0):
                downloaded = getattr(torchvision, known.folder)(str(unpacked), download=True)
                for file in UNPACKED:
                    os.replace(Path(downloaded.raw_folder) / file, unpacked / file)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise DataError(
                f"{known.folder} needs the files {', '.join(ARCHIVES)}; they are not in {root or cache}, and the "
                f"download into {target} failed ({' '.join(str(error).split())}). Put them into a folder DIR and give "
                "--data-root DIR (data_root=DIR); `pyrovae fit digits` needs no files."
            ) from error
    return target


def _verify(name: str, path: Path, md5: str) -> None:
    """DataError unless the archive has the published checksum."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found == md5:
        return
    own = SETS[name].folder
    for other, known in SETS.items():
        if other != name and found in known.md5:
            raise DataError(f"{path} belongs to {known.folder}. Give the folder of {own}.")
    raise DataError(f"{path} is damaged: its md5 is {found}, that of {own} is {md5}. Fetch the file again.")


@contextlib.contextmanager
def _publish(target: Path) -> Iterator[Path]:
    """A temporary folder whose files are moved into `target` at the end.

    Each move is atomic, so that another process finds either the whole file or none.
    """
    made = [folder for folder in (target, *target.parents) if not folder.exists()]
    target.mkdir(parents=True, exist_ok=True)
    try:
        with temporary_folder(dir=target) as temporary:
            yield temporary
            for name in UNPACKED:
                os.replace(temporary / name, target / name)
    finally:
        with contextlib.suppress(OSError):  # leave no empty folders after a failed download
            for folder in made:
                folder.rmdir()


@contextlib.contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Silence the download, and give up if the network does not answer: torchvision sets no time limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(before)

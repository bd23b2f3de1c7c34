"""Data sets known by name: scikit-learn's digits, and the files of MNIST and Fashion-MNIST."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from platformdirs import user_cache_path

from pyrovae._files import temporary_folder
from pyrovae._lazily import Lazily
from pyrovae.data.dataset import Dataset, file_checksum
from pyrovae.errors import DataError

sklearn = Lazily("sklearn.datasets")
torchvision = Lazily("torchvision.datasets")
_IDX = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}  # classes of torchvision.datasets

# The two sets have the same file names and sizes, and unpacked files have no published checksum: this tells them apart.
_FIRST_TEST_LABELS = {"mnist": [7, 2, 1, 0, 4, 1, 4, 9], "fashion-mnist": [9, 2, 1, 1, 6, 1, 4, 6]}


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
    """MNIST or Fashion-MNIST, from four IDX files that torchvision reads."""
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
            f"{folder} holds a damaged IDX file ({error}). Delete {', '.join(f.name for f in files)} there and load again."
        ) from error
    if len(x) != len(y) or len(x_test) != len(y_test):
        raise DataError(
            f"{folder}: {len(x)} and {len(x_test)} pictures have {len(y)} and {len(y_test)} labels. "
            "Use the four files of one data set."
        )
    for other, first in _FIRST_TEST_LABELS.items():
        if other != name and y_test[: len(first)].tolist() == first:
            raise DataError(f"{folder} holds {other}, not {name}. Ask for {other}, or give the folder of {name}.")
    digest = hashlib.sha256()
    for file in files:
        digest.update(bytes.fromhex(file_checksum(file)))
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
    """The folder with the four unpacked files, after unpacking or downloading them if necessary."""
    archives = [archive for archive, _ in cls.resources]
    names = [Path(archive).stem for archive in archives]
    # The archives are verified, so their checksums identify the content: a cache by checksum cannot be out of date.
    key = hashlib.sha256("".join(md5 for _, md5 in cls.resources).encode()).hexdigest()[:12]
    cache = user_cache_path("pyrovae") / f"{cls.__name__}-{key}"

    def complete(folder: Path, wanted: list[str]) -> bool:
        return all((folder / name).is_file() for name in wanted)

    if root is not None:
        if not root.is_dir():
            raise DataError(f"the data root {root} is not a folder. Create it, or give an existing folder.")
        for folder in (root / cls.__name__ / "raw", root / cls.__name__, root / "raw", root):
            if complete(folder, names):
                return folder
            if complete(folder, archives):
                # Verify first: torchvision would replace a file with a wrong checksum by a download.
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
    """DataError unless the archive has the published checksum."""
    found = torchvision.utils.calculate_md5(path)
    if found == md5:
        return
    for other in map(_idx_class, _IDX):
        if other is not cls and found in dict(other.resources).values():
            raise DataError(f"{path} belongs to {other.__name__}. Give the folder of {cls.__name__}.")
    raise DataError(f"{path} is damaged: its md5 is {found}, that of {cls.__name__} is {md5}. Fetch the file again.")


@contextlib.contextmanager
def _publish(target: Path, names: list[str]) -> Iterator[Path]:
    """A temporary folder whose files are moved into `target` at the end.

    Each move is atomic, so that another process finds either the whole file or none.
    """
    made = [folder for folder in (target, *target.parents) if not folder.exists()]
    target.mkdir(parents=True, exist_ok=True)
    try:
        with temporary_folder(dir=target) as temporary:
            yield temporary
            for name in names:
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

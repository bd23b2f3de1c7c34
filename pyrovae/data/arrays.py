"""The reader of .npy and .npz files: it looks at what a file says of itself before memory is taken for it."""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from pyrovae.errors import DataError, shortened

# Arrays may be so many times as large as the file, and so much larger (256 MiB). Zeros compress a thousandfold; counts of which
# one in twenty is not zero, as those of cells and genes, 40- to 75-fold.
TIMES, MORE = 100, 2**28
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
START = len(npy.MAGIC_PREFIX) + 2  # bytes, with the version


def read_arrays(path: Path, wanted: Collection[str | None]) -> tuple[list[str], dict[str, NDArray[Any]]]:
    """The names of the arrays in a file, and those that are wanted, or the only one. A .npy file has one, `x`.

    Raises:
        DataError: The file is damaged, or its arrays are objects, or larger than their file can hold.
    """
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore", UserWarning)  # about headers of Python 2
            start = file.read(START)
            file.seek(0)
            if start.startswith(npy.MAGIC_PREFIX):
                return ["x"], {"x": _array(file, path.stat().st_size)}
            with zipfile.ZipFile(file) as archive:
                return _members(path, archive, wanted)
    except (DataError, FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # whatever a damaged file makes NumPy and zipfile raise
        raise DataError(
            f"{path} is not a file of plain numeric arrays ({shortened(error) or type(error).__name__}). "
            "Write it with numpy.savez or numpy.save, without objects."
        ) from error


def _members(
    path: Path, archive: zipfile.ZipFile, wanted: Collection[str | None]
) -> tuple[list[str], dict[str, NDArray[Any]]]:
    members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    chosen = {name: info for name, info in members.items() if name in wanted or len(members) == 1}
    size, most = sum(info.file_size for info in chosen.values()), TIMES * path.stat().st_size + MORE
    if size > most:
        raise DataError(
            f"{path} holds {size / 2**20:.0f} MiB in {path.stat().st_size / 2**20:.1f} MiB, and is read up to "
            f"{most / 2**20:.0f} MiB, since a file can be made to fill all memory. If it is right, write it with numpy.savez, "
            "not compressed."
        )
    found = {}
    for name, info in chosen.items():
        with archive.open(info) as member:
            found[name] = _array(member, info.file_size)
    return list(members), found


def map_array(path: Path) -> NDArray[Any]:
    """The array in a .npy file, none of whose rows has been read yet. DataError where there is no such file, or it is none."""
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore", UserWarning)
            shape, fortran, dtype = _described(file, path.stat().st_size)
            if not math.prod(shape):
                return np.empty(shape, dtype)
            found: NDArray[Any] = np.memmap(file, dtype, "r", file.tell(), shape, "F" if fortran else "C")
            return found
    except Exception as error:  # whatever a damaged file makes NumPy raise
        raise DataError(
            f"{path} is not an array of numbers ({shortened(error) or type(error).__name__}): write it with numpy.save, "
            "without objects."
        ) from error


def _array(file: IO[bytes], size: int) -> NDArray[Any]:
    """An array from an open file of so many bytes. ValueError unless they are what its header says."""
    shape, fortran, dtype = _described(file, size)
    content = bytearray(math.prod(shape) * dtype.itemsize)
    if read_into(file, content) < len(content):
        raise ValueError("it ends early")
    array: NDArray[Any] = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
    return array


def _described(file: IO[bytes], size: int) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and dtype of an array, at whose beginning the file is left. ValueError unless so many bytes can hold it."""
    start = file.read(START)
    if len(start) < START or not start.startswith(npy.MAGIC_PREFIX):
        raise ValueError("no array of NumPy")
    version = (start[-2], start[-1])
    if version not in HEADERS:
        raise ValueError(f"version {version} of NumPy's format, which only arrays of several fields need")
    shape, fortran, dtype = HEADERS[version](file)
    if dtype.hasobject or dtype.fields is not None or dtype.subdtype is not None or not dtype.itemsize:
        raise ValueError(f"dtype {dtype}, which is no plain number")
    if any(type(side) is not int or side < 0 for side in shape):
        raise ValueError(f"shape {shape}")
    wanted = math.prod(shape) * dtype.itemsize
    if wanted > size:
        raise ValueError(f"shape {shape} of {dtype}, which are {wanted} bytes, in {size}")
    return shape, bool(fortran), dtype


def read_into(file: IO[bytes], content: bytearray) -> int:
    """Fill a buffer from a file, and return how many bytes there were."""
    view, place = memoryview(content), 0
    while place < len(content):
        part = file.read(min(2**20, len(content) - place))
        if not part:
            break
        view[place : place + len(part)] = part
        place += len(part)
    return place

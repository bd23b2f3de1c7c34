"""A folder of images as a `Dataset`: one row per file, whose id is the path in the folder."""

from __future__ import annotations

import contextlib
import hashlib
import io
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from pyrovae._near import expanded, near_paths
from pyrovae.data.dataset import Dataset, file_checksum
from pyrovae.errors import DataError, OptionError, PyrovaeError, shortened

IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
MOST_PIXELS = 128 * 128  # larger images must be scaled: the networks of the command line are small
STRIP = 2**20  # pixels that are converted at once
MOST_BYTES, MOST_TIMES = 2**29, 10  # of memory for an image: this, and so many times its file
SIZES = (4, 256)  # the smallest and largest side that can be asked for, in pixels
MOST_NAMED = 20  # images, of those that cannot be read
Array = NDArray[Any]
R = TypeVar("R")
_ORIENTATION = 0x0112  # the tag of a photo that says how the camera was held


def load_folder(folder: str | Path, *, size: int | None = None, classes: bool = False) -> Dataset:
    """The images in a folder and in its subfolders, with pixels in [0, 1].

    An image counts as gray if its three colours are equal in every pixel, however it is stored. Transparent pixels are
    shown on white, the orientation that a camera recorded is applied, and the first frame of an animation is taken. Hidden
    files, and files whose suffix is not in `IMAGES`, are ignored.

    Args:
        folder: The folder to read.
        size: The side of the square images to make, in pixels: each image is scaled until it just covers the square, and
            cropped around its centre. None takes images as they are; they must have one size, of at most 128 x 128 pixels.
        classes: Whether the folders in it are classes, if there are two or more, and no image is outside of them.

    Returns:
        A `Dataset` of kind "unit". Its `image_shape` is `(H, W)` if all images are gray, else `(3, H, W)`; its `ids` are
        the paths of the files relative to the folder, with forward slashes, in ascending order.

    Raises:
        DataError: The folder does not exist or has no image; an image cannot be read; or, if `size` is None, images
            differ in size or are too large.
        OptionError: `size` is not from 4 to 256.

    Example:
        >>> import pathlib
        >>> from PIL import Image
        >>> from pyrovae.data.images import load_folder
        >>> pathlib.Path("photos").mkdir()
        >>> Image.new("RGB", (40, 30), "orange").save("photos/a.png")
        >>> Image.new("L", (30, 40)).save("photos/b.png")
        >>> photos = load_folder("photos", size=16)
        >>> photos.x.shape, photos.image_shape, photos.ids
        (torch.Size([2, 768]), (3, 16, 16), ('a.png', 'b.png'))
    """
    root = expanded(folder).absolute()
    if size is not None and not SIZES[0] <= size <= SIZES[1]:
        raise OptionError(f"--size is the side of the images in pixels, from {SIZES[0]} to {SIZES[1]}, got {size}.")
    names = _images_of(root, folder)
    if size is None:  # before any is decoded, which takes a hundred times its file
        _refuse_sizes(root, dict(zip(names, _of_each(root, names, _size))))
    checksum = _checksum(root, names, size)
    pictures = _of_each(root, names, lambda path: _pixels(path, size))
    if size is None:  # a head may not say that a photo is turned
        _refuse_sizes(root, {name: picture.shape[-2:] for name, picture in zip(names, pictures)})
    colour = any(picture.ndim == 3 for picture in pictures)
    stacked = np.stack(
        [picture if not colour or picture.ndim == 3 else np.stack([picture] * 3) for picture in pictures]
    )
    y, labels = _classes(names) if classes else (None, None)
    return Dataset(
        name=root.name,
        y=y,
        classes=labels,
        x=torch.from_numpy(stacked.reshape(len(stacked), -1)).float().div_(255),
        kind="unit",
        image_shape=stacked.shape[1:],
        ids=tuple(names),
        source={"path": str(root), "size": size, "checksum": checksum, "divided_by": 255},
    )


def folder_checksum(folder: str | Path, size: int | None) -> str:
    """The checksum of the `source` that `load_folder` gives a folder, without a look into its images."""
    return _checksum(expanded(folder).absolute(), _images_of(expanded(folder).absolute(), folder), size)


def paths_of_images(folder: str | Path) -> list[str]:
    """The paths of the images in a folder and in its subfolders, relative to it, in ascending order. DataError without one."""
    return _images_of(expanded(folder).absolute(), folder)


def pixels_of(folder: Path, names: Sequence[str], size: int | None, shape: Sequence[int]) -> Array:
    """Images of a folder, as `load_folder` reads them, for a model of images of one shape.

    Args:
        folder: The folder.
        names: The paths of the images in it.
        size: The side of the squares that they are scaled and cropped to; None takes them as they are.
        shape: The shape of an image, `(H, W)` or `(3, H, W)`.

    Returns:
        `(N, *shape)` uint8. Gray images have three equal colours where `shape` has three.

    Raises:
        DataError: An image cannot be read, has another size, or has colours where `shape` has none.
    """
    height, width = shape[-2:]
    found = np.empty((len(names), *shape), dtype=np.uint8)

    def of_shape(path: Path) -> Array:
        picture = _pixels(path, size)
        if picture.shape[-2:] != (height, width):
            raise DataError(
                f"{path} is {picture.shape[-1]} x {picture.shape[-2]}, and the model takes images of {width} x "
                f"{height} pixels. Scale it, or take it out of the folder."
            )
        if picture.ndim == 3 and len(shape) == 2:
            raise DataError(f"{path} has colours, and the model takes gray images. Make it gray, or take it out.")
        return picture

    for place, picture in enumerate(_of_each(folder, names, of_shape)):
        found[place] = picture  # a gray one is broadcast to three colours
    return found


def _of_each(root: Path, names: Sequence[str], read: Callable[[Path], R]) -> list[R]:
    """What a function makes of each image. DataError for all of which it makes nothing, so that they are mended at once."""
    found: list[R] = []
    wrong: list[DataError] = []
    for name in names:
        try:
            one = read(root / name)
        except DataError as error:
            wrong.append(error)
            found = []
        else:
            found += [] if wrong else [one]
    if len(wrong) == 1:
        raise wrong[0]
    if wrong:
        listed = "; ".join(str(error).partition(". ")[0] for error in wrong[:MOST_NAMED])
        more = f"; and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else ""
        raise DataError(
            f"{len(wrong)} of {len(names)} images in {root} cannot be taken: {listed}{more}. Repair them, or take them out of "
            "the folder."
        )
    return found


def _images_of(root: Path, folder: str | Path) -> list[str]:
    """The paths of the images in a folder, in ascending order. DataError if there is none."""
    if not root.is_dir():
        raise DataError(f"there is no folder {folder}{near_paths(folder, (), folders=True)}. Check the name.")
    names = sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.suffix.lower() in IMAGES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )
    if not names:
        raise DataError(
            f"{root} holds no image: no file in it ends in {', '.join(IMAGES)}. Give the folder that contains the images."
        )
    if odd := [name for name in names if not _is_text(name)]:
        raise DataError(f"the name of {root / odd[0]} is not in UTF-8, as tables are written. Rename the file.")
    return names


def _checksum(root: Path, names: Sequence[str], size: int | None) -> str:
    digest = hashlib.sha256(f"size {size}".encode())
    for name in names:
        try:
            found = file_checksum(root / name)
        except OSError as error:
            raise DataError(f"cannot read {root / name}: {error.strerror or error}. Check the permissions.") from error
        digest.update(f"\n{name}\n{found}".encode())
    return digest.hexdigest()


def _classes(names: Sequence[str]) -> tuple[Tensor | None, tuple[str, ...] | None]:
    """The class of each image by the folder that it is in, and what these are called; None where they are no classes."""
    folders = [name.split("/")[0] if "/" in name else None for name in names]
    labels = sorted({one for one in folders if one is not None})
    if None in folders or len(labels) < 2:
        return None, None
    return torch.tensor([labels.index(str(one)) for one in folders]), tuple(labels)


def thumbnail(folder: str | Path, name: str, most: int) -> bytes:
    """An image of a folder as a PNG file whose sides have at most so many pixels.

    Args:
        folder: The folder, as for `load_folder`.
        name: The path of the file in it, one of the `ids` of its `Dataset`.
        most: The largest side, in pixels; smaller images stay as they are.

    Raises:
        DataError: The name leads out of the folder, or the file cannot be read. Links are followed, as by `load_folder`.

    Example:
        >>> import pathlib
        >>> from PIL import Image
        >>> from pyrovae.data.images import thumbnail
        >>> pathlib.Path("shots").mkdir()
        >>> Image.new("RGB", (40, 30), "orange").save("shots/a.png")
        >>> thumbnail("shots", "a.png", 20)[:4]
        b'\\x89PNG'
    """
    root = expanded(folder).absolute()
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(f"{name} is not in the folder {root}.")
    pixels = _pixels(root / name, None)
    picture = Image.fromarray(pixels if pixels.ndim == 2 else np.moveaxis(pixels, 0, -1))
    picture.thumbnail((most, most))
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def _is_text(name: str) -> bool:
    """Whether the name of a file, which may be of any bytes, is one of letters."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image whose pixels have not been decoded yet. DataError if it cannot be read, here or inside."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning)  # about odd but harmless tags
            with Image.open(path) as opened:
                if opened.mode == "F":
                    raise DataError(
                        f"{path} has pixels that are floating numbers, whose white is not known. Save it with 8 bits."
                    )
                _refuse_swollen(path, opened)
                yield opened
    except (PyrovaeError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} is too large ({error}). Make it smaller, or take it out of the folder.") from error
    except Exception as error:  # of damaged files, decoders and readers of tags raise whatever they come upon
        raise DataError(
            f"{path} is not an image that can be read ({shortened(error)}). Repair it, or take it out of the folder."
        ) from error


def _size(path: Path) -> tuple[int, int]:
    """The height and width of an image as it is shown, from the head of its file."""
    with _opened(path) as opened:
        width, height = opened.size
        # not `opened.getexif()`, which decodes the pixels of a PNG file
        turned = Image.Image.getexif(opened).get(_ORIENTATION, 1) >= 5  # by a quarter
    return (width, height) if turned else (height, width)


def _pixels(path: Path, size: int | None) -> Array:
    """One image as uint8, `(H, W)` or `(3, H, W)`."""
    with _opened(path) as opened:
        ImageOps.exif_transpose(opened, in_place=True)
        picture = _plain(opened)
        if size is not None:
            picture = ImageOps.fit(picture, (size, size))
        pixels: Array = np.asarray(picture)
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    return pixels if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)


def _plain(picture: Image.Image) -> Image.Image:
    """The same in mode L or RGB, made strip by strip, as each step on the way would be another copy of a large image."""
    if picture.mode in ("L", "RGB") and "transparency" not in picture.info:
        return picture
    width, height = picture.size
    made, rows = None, max(1, STRIP // max(1, width))
    for top in range(0, max(1, height), rows):
        strip = picture.crop((0, top, width, min(top + rows, height)))
        if strip.mode.startswith("I"):  # 16 bits per pixel, which Pillow would clip at 255
            wide = np.asarray(strip, dtype=np.float64) / 257
            strip = Image.fromarray(wide.round().clip(0, 255).astype(np.uint8))
        elif strip.mode in ("RGBA", "LA", "PA") or "transparency" in strip.info:
            strip = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip)
        strip = strip if strip.mode == "L" else strip.convert("RGB")
        made = Image.new(strip.mode, picture.size) if made is None else made
        made.paste(strip, (0, top))
    assert made is not None  # an image has a row
    return made


def _refuse_swollen(path: Path, opened: Image.Image) -> None:
    """DataError where the pixels of an image, and those that are made of them, take more memory than such a file may."""
    width, height = opened.size
    each = (1 if opened.mode in ("1", "L", "P") else 4) + 4  # bytes of a pixel, as it is and in RGB
    most = (MOST_TIMES * path.stat().st_size + MOST_BYTES) // each
    if width * height > most:
        raise DataError(
            f"{path} has {width} x {height} pixels, and an image in a file of its size may have {most // 10**6} million. Make "
            "it smaller, or take it out of the folder."
        )


def _refuse_sizes(root: Path, sizes: Mapping[str, tuple[int, int]]) -> None:
    """DataError if images, to be taken as they are, differ in size or are larger than `MOST_PIXELS`."""
    counts = Counter(sizes.values())
    if len(counts) > 1:
        (most, number), *others = counts.most_common()
        odd = next(name for name, size in sizes.items() if size == others[0][0])
        raise DataError(
            f"the images of {root} have {len(counts)} sizes: {number} are {most[1]} x {most[0]}, and {odd} is "
            f"{others[0][0][1]} x {others[0][0][0]}. Give --size 28 (size=28) to scale and crop all of them to 28 x 28 pixels."
        )
    height, width = next(iter(counts))
    if height * width > MOST_PIXELS:
        raise DataError(
            f"the images of {root} are {width} x {height}: too large for the networks, which take at most 128 x 128. "
            "Give --size 64 (size=64) to scale and crop them to 64 x 64 pixels."
        )


def grey_range(dataset: Dataset, x: Tensor) -> tuple[float, float]:
    """The values of pixels that are shown as black and as white, for rows x of these data."""
    if dataset.kind in ("unit", "binary"):
        return 0.0, 1.0
    known = x[~x.isnan()]
    low = 0.0 if dataset.kind == "count" else float(known.min())
    high = float(dataset.total_count or known.max())
    return low, high if high > low else low + 1.0


def as_png(values: Array, low: float, high: float) -> bytes:
    """An image, `(H, W)` or `(C, H, W)`, as a PNG file; `low`, and what is missing, is black, `high` is white."""
    scaled = (np.nan_to_num(values, nan=low) - low) / (high - low)
    pixels: Any = (scaled.clip(0, 1) * 255).round().astype(np.uint8)
    if pixels.ndim == 3:
        pixels = np.moveaxis(pixels, 0, -1)[..., :3]
    out = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels).save(out, "PNG")
    return out.getvalue()

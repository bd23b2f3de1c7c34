"""Files that are damaged or made to do harm give rows or one clear error. `benchmarks/fuzz.py` does this at length."""

import io
import os
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import pyrovae as pv
from pyrovae.app.jobs.frames import Table
from pyrovae.data import arrays, images, load, parquets
from pyrovae.data.arrays import map_array, read_arrays
from pyrovae.data.cells import is_number
from pyrovae.data.files import open as open_rows
from pyrovae.data.images import load_folder, pixels_of
from pyrovae.data.label_studio import read_export
from pyrovae.data.labels import match_labels, read_labels
from pyrovae.data.load import read
from pyrovae.tables.cells import as_numbers
from pyrovae.tables.numerals import form_of, style_of
from pyrovae.tables.schema import Schema

FEW = settings(max_examples=15, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=200)


def header(fields: Any) -> bytes:
    text = fields if isinstance(fields, bytes) else repr(fields).encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def saved(array: Any) -> bytes:
    with io.BytesIO() as file:
        np.save(file, array)
        return file.getvalue()


def archived(members: dict[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> bytes:
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w", how) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return file.getvalue()


ROWS = np.arange(12, dtype="f4").reshape(4, 3)
PLAIN = {"descr": "<f4", "fortran_order": False}
HEADERS: dict[str, bytes] = {
    "a header that ends early": header(b"{'descr': '<f4', 'shape': ("),
    "brackets": header(b"(" * 500),
    "not a header": header(b"\xff" * 30),
    "a field too few": header({"descr": "<f4", "shape": (1, 3)}),
    "a long number": header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (9" + b"9" * 4000 + b",)}"),
    "terabytes": header({**PLAIN, "shape": (10**12, 3)}),
    "sizes that overflow": header({**PLAIN, "shape": (2**40, 2**40)}),
    "fewer than nothing": header({**PLAIN, "shape": (-1, 3)}),
    "a size that is true": header({**PLAIN, "shape": (True, 3)}),
    "objects": header({**PLAIN, "descr": "|O", "shape": (4, 3)}),
    "fields": header({**PLAIN, "descr": [("a", "<f4"), ("b", "<i4")], "shape": (4,)}),
    "nothing at all in a cell": header({**PLAIN, "descr": "|V0", "shape": (4, 3)}),
    "a version to come": b"\x93NUMPY\x09\x00" + header({**PLAIN, "shape": (4, 3)})[8:],
    "the first bytes alone": b"\x93NUMPY",
    "code": header(b"__import__('os').system('touch ran')"),
}


@pytest.mark.parametrize("content", list(HEADERS.values()), ids=list(HEADERS))
def test_a_crafted_array_is_refused(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.npy").write_bytes(content + bytes(100))
    Path("rows.npz").write_bytes(archived({"x.npy": content + bytes(100)}))
    for name in ("rows.npy", "rows.npz"):
        with pytest.raises(pv.DataError, match=f"{name} is not a file of plain numeric arrays") as refused:
            read(name)
        assert len(str(refused.value)) < 1000
    assert not Path("ran").exists()


@pytest.mark.parametrize("content", list(HEADERS.values()), ids=list(HEADERS))
def test_a_crafted_array_is_not_mapped(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.npy").write_bytes(content + bytes(100))
    with pytest.raises(pv.DataError, match=r"rows.npy is not an array of numbers") as refused:
        open_rows("rows.npy")
    assert len(str(refused.value)) < 1000 and not Path("ran").exists()


def test_mapped_arrays_are_those_that_were_saved(tmp_path: Path) -> None:
    for array in (ROWS, np.asfortranarray(ROWS), ROWS.astype(">i2"), np.float64(3.0), np.zeros((0, 3))):
        np.save(tmp_path / "x.npy", array)
        np.testing.assert_array_equal(map_array(tmp_path / "x.npy"), array)


@pytest.mark.parametrize("dtype", ["U3", "S3", "M8[D]", "longdouble", "complex64", [("a", "f4")]])
def test_arrays_of_other_things_than_numbers_are_not_opened(dtype: Any) -> None:
    with pytest.raises(pv.DataError, match="must hold numbers of at most 64 bits"):
        open_rows(np.zeros(3, dtype))


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_names_of_columns_that_are_not_utf_8_are_refused(ending: str, tmp_path: Path) -> None:
    path, frame = tmp_path / f"rows{ending}", pd.DataFrame({"n\u00e9": [1.0, 2.0]})
    (frame.to_parquet if ending == ".parquet" else frame.to_feather)(path)
    path.write_bytes(path.read_bytes().replace("\u00e9".encode(), b"\xff\xff"))
    for read_all in (lambda: open_rows(path), lambda: list(Table(path, 10).blocks())):
        with pytest.raises(pv.DataError, match="rows"):
            read_all()


def test_arrays_are_read_as_numpy_reads_them(tmp_path: Path) -> None:
    arrays = {
        "x": ROWS,
        "data": np.asfortranarray(ROWS.astype(">f8")),
        "y": np.array(["a", "b", "a", "b"]),
        "labels": np.zeros((4, 0), dtype="i2"),
        "images": np.array(3.0),
    }
    for name, save in (("a.npz", np.savez), ("b.npz", np.savez_compressed)):
        save(tmp_path / name, allow_pickle=False, **arrays)
        names, found = read_arrays(tmp_path / name, set(arrays))
        assert names == list(arrays)
        for key, array in arrays.items():
            assert found[key].dtype == array.dtype and np.array_equal(found[key], array)
    found["x"][0, 0] = 5.0  # it can be written to


def test_what_fills_all_memory_is_refused_by_its_size(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("x.npy", saved(ROWS))
    content = bytearray((tmp_path / "x.npz").read_bytes())
    at = content.rindex(b"PK\x01\x02") + 24  # the size that the archive's directory states for its member
    content[at : at + 4] = struct.pack("<I", 2**30)
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(pv.DataError, match="holds 1024 MiB in 0.0 MiB.*write it with numpy.savez, not compressed"):
        load(str(tmp_path / "x.npz"))


def test_counts_with_many_zeros_are_read_however_well_they_compress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "MORE", 0)
    random = np.random.default_rng(0)
    counts = (random.random((400, 500)) < 0.05) * random.poisson(1.5, (400, 500))
    np.savez_compressed(tmp_path / "x.npz", x=counts)
    assert counts.nbytes > 60 * (tmp_path / "x.npz").stat().st_size
    assert np.array_equal(read_arrays(tmp_path / "x.npz", {"x"})[1]["x"], counts)


@pytest.mark.parametrize("number", ["1e40", "-2e154", "1e300"])
def test_numbers_beyond_float32_are_named(tmp_path: Path, number: str) -> None:
    """Beside texts, too, where the squares of some of them are beyond float64."""
    (tmp_path / "x.csv").write_text(f"a,b\nx,{number}\ny,0\nx,1\n")
    with pytest.raises(pv.DataError, match="Column 'b' reaches .*, beyond the 3.4e.38 that float32"):
        load(str(tmp_path / "x.csv"))


LABELS: dict[str, Any] = {
    "infinite": np.array([np.inf, 0, 1, 1]),
    "beyond whole numbers": np.array([2.0**70, 0, 1, 1]),
    "beyond 63 bits": np.array([2**63, 0, 1, 1], dtype="u8"),
    "dates": np.array(["2020-01-01"] * 4, dtype="M8[D]"),
    "spans of time": np.zeros(4, dtype="m8[s]"),
    "raw bytes": np.zeros(4, dtype="V8"),
    "complex": np.zeros(4, dtype="c8"),
    "two for a row": np.zeros((4, 2)),
}


@pytest.mark.parametrize("labels", list(LABELS.values()), ids=list(LABELS))
def test_labels_that_are_no_classes_are_refused(tmp_path: Path, labels: Any) -> None:
    np.savez(tmp_path / "x.npz", x=ROWS, y=labels)
    with pytest.raises(pv.DataError, match="labels|plain numeric"):
        load(str(tmp_path / "x.npz"))


def test_labels_that_are_bytes_are_texts(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=ROWS, y=np.array([b"a", b"\xff", b"a", b"\xc3\xa9"]))
    assert load(str(tmp_path / "x.npz")).classes == (r"\xff", "a", "é")


CELLS = st.one_of(
    st.text(max_size=6),
    st.sampled_from(
        [
            "",
            "nan",
            "inf",
            "-inf",
            "1e999",
            "9" * 30,
            "9" * 400,
            "True",
            "2020-01-01",
            "1,5",
            "0" * 99,
            "\x00",
            "\x1b[0m",
        ]
    ),
    st.floats().map(str),
    st.integers().map(str),
)
TABLES = st.lists(st.lists(CELLS, min_size=1, max_size=4), min_size=1, max_size=8).map(
    lambda rows: "\n".join(",".join(row) for row in rows).encode("utf-8", "surrogatepass")
)


LONG = {
    "digits": "1" * 100_000 + "x",
    "blanks": "1" + " " * 100_000 + "x",
    "per cent": "1" + "%" * 100_000,
    "thousands": "1" + " 111" * 25_000 + "x",
    "points": "1." * 50_000,
    "exponent": "1e" + "9" * 100_000 + "x",
}


@pytest.mark.parametrize("cell", list(LONG.values()), ids=list(LONG))
def test_long_cells_take_time_by_their_length(tmp_path: Path, cell: str) -> None:
    """Where two parts of a pattern can take the same characters, it is the square: minutes, which nothing has to measure."""
    (tmp_path / "rows.csv").write_text("a;b\n" + "1;2\n" * 3 + f"{cell};4\n")
    a_result_or_one_error(lambda: read(str(tmp_path / "rows.csv")))
    assert not is_number(cell) and not style_of([cell, "1"]).comma and form_of([cell, "1"]) == ""
    assert as_numbers(pd.Series([cell, "1"]))[1] == [cell]


def a_result_or_one_error(reads: Callable[[], Any]) -> None:
    try:
        reads()
    except pv.PyrovaeError as error:
        assert all(c.isprintable() or c in "\n\t" or unicodedata.category(c) == "Zs" for c in str(error))
        assert len(str(error)) <= 3000


def read_any(folder: Path, kind: str, content: bytes) -> None:
    path = folder / f"rows.{kind}"
    path.write_bytes(content)
    if kind == "labels":
        a_result_or_one_error(lambda: match_labels(read_labels(path), None, 8, path))
    elif kind == "yaml":
        a_result_or_one_error(lambda: Schema.read(path))
    else:
        a_result_or_one_error(lambda: read(str(path)))
        a_result_or_one_error(lambda: read(str(path), label="0"))


BYTES = st.binary(max_size=200)
ARRAYS = st.tuples(
    st.sampled_from([saved(ROWS), archived({"x.npy": saved(ROWS)}), *HEADERS.values()]), st.integers(0, 300), BYTES
)
PIECES = ARRAYS.map(lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] + len(parts[2]) :])
CONTENTS = {"csv": TABLES | BYTES, "npy": PIECES, "npz": PIECES, "labels": TABLES | BYTES, "yaml": TABLES | BYTES}


@pytest.mark.parametrize("kind", list(CONTENTS))
def test_any_bytes_are_rows_or_one_error(tmp_path: Path, kind: str) -> None:
    FEW(given(CONTENTS[kind])(lambda content: read_any(tmp_path, kind, content)))()


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(CONTENTS))
def test_many_bytes_are_rows_or_one_error(tmp_path: Path, kind: str) -> None:
    MANY(given(CONTENTS[kind])(lambda content: read_any(tmp_path, kind, content)))()


def with_chunk(png: bytes, name: bytes, content: bytes) -> bytes:
    """A PNG file with another chunk before its end."""
    chunk = struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return png[:-12] + chunk + png[-12:]


def test_images_whose_tags_are_damaged_are_refused(tmp_path: Path) -> None:
    """Decoders raise what they come upon: an IndexError, and a TypeError of a whole number that is said to be a fraction."""
    made = {}
    for kind in ("PNG", "TIFF"):
        with io.BytesIO() as file:
            Image.new("L", (12, 12), 7).save(file, kind)
            made[kind] = file.getvalue()
    (tmp_path / "a.png").write_bytes(with_chunk(made["PNG"], b"iCCP", b""))
    with pytest.raises(pv.DataError, match="a.png is not an image that can be read"):
        load_folder(tmp_path)
    (tmp_path / "a.png").unlink()
    start, raised = int.from_bytes(made["TIFF"][4:8], "little"), set()
    for tag in range(int.from_bytes(made["TIFF"][start : start + 2], "little")):
        changed = bytearray(made["TIFF"])
        changed[start + 2 + 12 * tag + 2] = 5  # the type of its value
        (tmp_path / "a.tif").write_bytes(changed)
        try:
            load_folder(tmp_path)
        except pv.DataError as error:
            raised.add(type(error.__cause__))
    assert TypeError in raised


def test_images_are_converted_strip_by_strip_as_they_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    colours = np.random.default_rng(0).integers(0, 255, (37, 21, 4), dtype=np.uint8)
    whole, few = Image.fromarray(colours), Image.fromarray(colours[..., :3]).quantize(40)
    deep = Image.fromarray(np.arange(37 * 21, dtype="u2").reshape(37, 21) * 80)
    turned = Image.Exif()
    turned[0x0112] = 6  # by a quarter
    made: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "RGBA.png": (whole, {}),
        "turned.png": (whole, {"exif": turned}),
        "LA.png": (whole.convert("LA"), {}),
        "L.png": (whole.convert("L"), {"transparency": 7}),
        "1.png": (whole.convert("1"), {}),
        "P.png": (few, {"transparency": bytes(range(40))}),
        "P.gif": (few, {"transparency": 3}),
        "CMYK.jpg": (whole.convert("CMYK"), {}),
        "16 bits.png": (deep, {}),
    }
    for name, (image, how) in made.items():
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / name, **how)
        at_once = load_folder(tmp_path / name, size=16).x if "turned" in name else load_folder(tmp_path / name).x
        with monkeypatch.context() as patch:
            patch.setattr(images, "STRIP", 50)
            again = load_folder(tmp_path / name, size=16).x if "turned" in name else load_folder(tmp_path / name).x
        assert again.equal(at_once)


def test_images_of_many_pixels_in_a_small_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of a megabyte of PNG took 790 MiB, three copies of 80 million pixels."""
    for mode, size in (("RGB", 64), ("L", 80)):
        Image.new(mode, (size, size)).save(tmp_path / "a.png")
        monkeypatch.setattr(images, "MOST_BYTES", 64 * 64 * 8 - 10 * (tmp_path / "a.png").stat().st_size)
        assert len(load_folder(tmp_path, size=8).x) == 1
        Image.new(mode, (size + 9, size)).save(tmp_path / "a.png")
        with pytest.raises(pv.DataError, match=rf"a.png has {size + 9} x {size} pixels, and an image in a file of its"):
            load_folder(tmp_path, size=8)


@pytest.mark.parametrize("reads", [read, lambda path: list(Table(Path(path), 16).blocks())], ids=["whole", "blocks"])
def test_parquet_files_whose_notes_for_pandas_are_damaged_are_refused(
    tmp_path: Path, reads: Callable[[str], Any]
) -> None:
    path = tmp_path / "rows.parquet"
    pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": ["x", "y", "x"]}).to_parquet(path)
    whole = path.read_bytes()
    for old, new in ((b'"object"', b'"oZject"'), (b'"unicode"', b'"int9999"'), (b'"float64"', b'"flZat64"')):
        path.write_bytes(whole.replace(old, new))
        a_result_or_one_error(lambda: reads(str(path)))


PACKED: dict[str, tuple[dict[str, Any], int]] = {
    "a number again and again": ({"a": np.zeros(50_000), "b": np.zeros(50_000, dtype="f4")}, 600_000),
    "a text again and again": ({"a": ["x" * 10_000] * 100, "b": range(100)}, 1_000_800),
    "several texts": ({"a": ["x" * 10_000, "y" * 20_000, None] * 40, "b": range(120)}, 1_200_960),
}


@pytest.mark.parametrize("case", PACKED.values(), ids=PACKED.keys())
def test_parquet_files_far_smaller_than_their_tables_are_refused(
    tmp_path: Path, case: tuple[dict[str, Any], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """13 KiB took 5.9 GiB."""
    columns, size = case
    path = tmp_path / "rows.parquet"
    pd.DataFrame(columns).to_parquet(path)
    monkeypatch.setattr(parquets, "TIMES", 0)
    monkeypatch.setattr(parquets, "MORE", size)
    parquets.refuse_parquet(path)
    monkeypatch.setattr(parquets, "MORE", size - 1)
    with pytest.raises(pv.DataError, match=r"holds more than 1 MiB in 0.\d MiB, up to which it is read"):
        read(str(path))
    monkeypatch.setattr(parquets, "TIMES", 100)
    monkeypatch.setattr(parquets, "MORE", 0)
    pd.DataFrame(columns).to_parquet(path, compression=None, use_dictionary=False)  # as the error says
    parquets.refuse_parquet(path)


def test_columns_of_one_name_in_a_parquet_file_are_named(tmp_path: Path) -> None:
    table = pa.table([pa.array([1.0, 2.0])] * 3, names=["a", "b", "a"])
    parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(pv.DataError, match="several columns are called a. Rename them"):
        read(str(tmp_path / "rows.parquet"))


@pytest.mark.parametrize("reads", [read, lambda path: list(Table(Path(path), 16).blocks())], ids=["whole", "blocks"])
def test_texts_of_parquet_that_are_no_utf_8_are_refused(tmp_path: Path, reads: Callable[[str], Any]) -> None:
    path = tmp_path / "rows.parquet"
    pd.DataFrame({"a": ["first", "secnd"] * 10, "b": range(20)}).to_parquet(path, compression=None)
    path.write_bytes(path.read_bytes().replace(b"secnd", b"sec\xff1"))
    with pytest.raises(pv.DataError, match=r"rows.parquet is (not a table|damaged) \("):
        reads(str(path))


NO_FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "folder": (lambda path: path.mkdir(), "is a folder, and no file"),
    "pipe": (os.mkfifo, "is a pipe, a socket or a device, and no file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a pipe, a socket or a device, and no file"),
    "link to nothing": (lambda path: path.symlink_to("nowhere"), "is a link that leads to no file"),
    "link to itself": (lambda path: path.symlink_to(path), "is a link that leads to no file"),
    "nothing": (lambda path: None, r"there is no file .* \(did you mean near"),
}
OPENERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "table": ("csv", lambda path: read(str(path))),
    "arrays": ("npz", lambda path: read(str(path))),
    "array": ("npy", open_rows),
    "rows of Parquet": ("parquet", open_rows),
    "blocks": ("csv", lambda path: Table(path, 10)),
    "labels": ("csv", read_labels),
    "export": ("json", read_export),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are of Unix")
@pytest.mark.parametrize("opener", OPENERS.values(), ids=OPENERS.keys())
@pytest.mark.parametrize("kind", NO_FILES.values(), ids=NO_FILES.keys())
def test_what_is_no_file_is_not_opened(
    kind: tuple[Callable[[Path], None], str], opener: tuple[str, Callable[[Path], Any]], tmp_path: Path
) -> None:
    (make, said), (ending, reads) = kind, opener
    (tmp_path / f"near.{ending}").touch()
    make(tmp_path / f"nears.{ending}")
    if reads is open_rows and ending == "parquet" and said.startswith("is a folder"):
        said = "there is no file that ends in"  # a folder of such files would be read
    with pytest.raises(pv.DataError, match=said):
        reads(tmp_path / f"nears.{ending}")


@pytest.mark.parametrize("size", [None, 8])
def test_all_images_that_cannot_be_read_are_named_at_once(tmp_path: Path, size: int | None) -> None:
    for name in "abcd":
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 3).save(tmp_path / f"{name}.png")
    (tmp_path / "a.png").write_bytes(b"no image")
    (tmp_path / "c.jpg").write_bytes(b"")
    said = (
        r"2 of 5 images in .* cannot be taken: .*a\.png is not an image .*; .*c\.jpg is not an image .*\. Repair them"
    )
    with pytest.raises(pv.DataError, match=said):
        load_folder(tmp_path, size=size)
    names = ["a.png", "b.png", "c.jpg", "d.png"]
    with pytest.raises(pv.DataError, match="4 of 4 images"):
        pixels_of(tmp_path, names, size=size, shape=(8, 9))
    assert pixels_of(tmp_path, ["b.png", "d.png"], size=size, shape=(8, 8)).shape == (2, 8, 8)

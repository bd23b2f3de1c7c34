"""Few labels for many rows: what comes in, what is refused, what comes out, and how it goes on."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyrovae.data import load
from pyrovae.data.folders import load_folder
from pyrovae.data.labels import as_labels, hold_out, match_labels, read_labels, refuse_labels
from pyrovae.errors import DataError, OptionError

# --- a folder of images ----------------------------------------------------------------------------------------------


def write_images(folder: Path, num: int = 6, side: int = 8, channels: int = 0) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    shape = (num, side, side, channels) if channels else (num, side, side)
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{number:02d}.png")
    return pixels


def test_gray_images_are_rows_named_by_their_files_in_order(tmp_path: Path) -> None:
    pixels = write_images(tmp_path / "a", 4)
    shutil.move(tmp_path / "a" / "03.png", tmp_path / "a" / "b.PNG")
    (tmp_path / "a" / "01").mkdir()
    shutil.move(tmp_path / "a" / "01.png", tmp_path / "a" / "01" / "x.png")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "a" / ".hidden.png").write_text("no image")
    found = load_folder(tmp_path / "a")
    assert found.ids == ("00.png", "01/x.png", "02.png", "b.PNG")
    assert found.kind == "unit" and found.image_shape == (8, 8) and found.x.dtype == torch.float32
    np.testing.assert_array_equal(found.x.reshape(4, 8, 8).numpy(), pixels.astype(np.float32) / 255)


def test_one_coloured_image_makes_all_coloured(tmp_path: Path) -> None:
    gray = write_images(tmp_path, 2)
    colour = np.random.default_rng(1).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    Image.fromarray(colour).save(tmp_path / "z.png")
    found = load_folder(tmp_path)
    assert found.image_shape == (3, 8, 8)
    rows = (found.x.reshape(3, 3, 8, 8) * 255).round().numpy()
    np.testing.assert_array_equal(rows[0], np.stack([gray[0]] * 3))
    np.testing.assert_array_equal(rows[2], np.moveaxis(colour, -1, 0))


def test_gray_is_what_looks_gray_however_it_is_stored(tmp_path: Path) -> None:
    wanted = write_images(tmp_path, 1)[0]
    Image.fromarray(np.stack([wanted] * 3, -1)).save(tmp_path / "rgb.png")
    Image.fromarray(np.stack([wanted] * 3, -1)).convert("P", palette=Image.Palette.ADAPTIVE, colors=256).save(
        tmp_path / "palette.png"
    )
    Image.fromarray(wanted.astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    Image.fromarray(np.dstack([wanted, np.full_like(wanted, 255)]), mode=None).save(tmp_path / "opaque.png")
    found = load_folder(tmp_path)
    assert found.image_shape == (8, 8) and len(found.x) == 5
    for row in found.x.reshape(5, 8, 8).numpy():
        np.testing.assert_array_equal((row * 255).round(), wanted)


def test_transparent_pixels_are_seen_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("1", (4, 4), 0).save(tmp_path / "black.png")
    found = load_folder(tmp_path)
    assert found.ids == ("black.png", "clear.png") and found.x.mean(1).tolist() == [0.0, 1.0]


def test_a_size_scales_and_cuts_around_the_centre(tmp_path: Path) -> None:
    wide = np.zeros((20, 60), dtype=np.uint8)
    wide[:, 20:40] = 255  # the centre square is white
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide.T.copy()).save(tmp_path / "tall.png")
    found = load_folder(tmp_path, size=10)
    assert found.image_shape == (10, 10) and found.x.min() > 0.9  # a filter looks a little over the edge
    with pytest.raises(DataError, match=r"2 sizes: 1 are .*--size 28"):
        load_folder(tmp_path)


def test_the_checksum_sees_files_names_and_size(tmp_path: Path) -> None:
    write_images(tmp_path, 2)
    sums = [load_folder(tmp_path).source["checksum"], load_folder(tmp_path, size=8).source["checksum"]]
    assert load_folder(tmp_path).source["checksum"] == sums[0]
    (tmp_path / "00.png").rename(tmp_path / "0.png")
    sums.append(load_folder(tmp_path).source["checksum"])
    assert len(set(sums)) == 3


def test_what_is_no_folder_of_images_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder .*Check the name"):
        load_folder(tmp_path / "none")
    with pytest.raises(DataError, match=r"holds no image: no file in it ends in \.bmp"):
        load_folder(tmp_path)
    write_images(tmp_path, 2)
    with pytest.raises(OptionError, match="from 4 to 256, got 2"):
        load_folder(tmp_path, size=2)
    for content in (b"", b"nonsense", (tmp_path / "01.png").read_bytes()[:60]):
        (tmp_path / "01.png").write_bytes(content)
        with pytest.raises(DataError, match=r"01\.png is not an image that can be read .*Repair it, or take it out"):
            load_folder(tmp_path)
    Image.new("F", (4, 4)).save(tmp_path / "01.tiff")
    (tmp_path / "01.png").unlink()
    with pytest.raises(DataError, match="floating numbers, whose white is not known"):
        load_folder(tmp_path)
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    Image.new("L", (200, 100)).save(tmp_path / "large.png")
    with pytest.raises(DataError, match="are 200 x 100: .* Give --size 64"):
        load_folder(tmp_path)


# --- the rows' names in a table --------------------------------------------------------------------------------------


def test_an_id_column_names_rows_and_is_no_number_of_theirs(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("ID,a,b\n007,1.5,2\nx 8,2.5,3\n")
    found = load(str(path), ids="id")
    assert found.ids == ("007", "x 8") and found.columns == ("a", "b") and found.x.tolist() == [[1.5, 2.0], [2.5, 3.0]]
    path.write_text("a,b\n1.5,2\n2.5,3\n")
    assert load(str(path), ids="id").ids is None
    path.write_text("id,a\n1,1.5\n1,2\n")
    with pytest.raises(DataError, match="several rows have the id 1"):
        load(str(path), ids="id")
    path.write_text("id,a\n1,1.5\n,2\n")
    with pytest.raises(DataError, match=r"row 1 \(counted from 0\) has no id"):
        load(str(path), ids="id")


# --- a table of labels -----------------------------------------------------------------------------------------------


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_labels_are_text_and_empty_is_unknown(tmp_path: Path) -> None:
    table = read_labels(
        write(tmp_path / "l.csv", '\ufefffile,note,label\n./a.png,x,cat\nb\\c.png,y,\n"d,e.png",z, NA \n')
    )
    assert table == {"a.png": "cat", "b/c.png": "", "d,e.png": "NA"}
    found = match_labels(table, ["a.png", "b/c.png", "d,e.png", "f.png"], 4, "l.csv")
    assert found.classes == ("NA", "cat") and found.y.tolist() == [1, -1, 0, -1] and found.known.tolist() == [0, 2]
    assert found.text(found.y) == ["cat", "", "NA", ""]


@pytest.mark.parametrize("header", ["id,label", "row,label", "label,number", "Label;ID", "label\trow"])
def test_rows_of_a_table_are_numbers(tmp_path: Path, header: str) -> None:
    mark = next(mark for mark in ",;\t" if mark in header)
    first = header.lower().startswith("label")
    lines = [("up", "2"), ("down", "0.0"), ("up", "01")] if first else [("2", "up"), ("0.0", "down"), ("01", "up")]
    path = write(tmp_path / "l.csv", "\n".join([header, *(mark.join(line) for line in lines)]) + "\n")
    assert match_labels(read_labels(path), None, 4, path).y.tolist() == [0, 1, 1, -1]


def test_numbers_are_ordered_by_value_and_minus_one_is_unknown() -> None:
    assert as_labels(["10", "9", "", "-1", "2"]).classes == ("2", "9", "10")
    assert as_labels(["10", "9", "", "-1", "2"]).y.tolist() == [2, 1, -1, -1, 0]
    assert as_labels(["10", "b", "nan", "2"]).classes == ("2", "10", "b", "nan")


UNFIT_TABLES = {
    "empty": ("", r"needs a first line with the columns id,label .* found nothing"),
    "no header": ("a.png,cat\nb.png,dog\n", r"needs a first line .* found a\.png, cat"),
    "only labels": ("label\ncat\n", "needs a first line"),
    "two labels": ("file,label\na.png,cat\na.png,dog\n", "a.png has two labels, 'cat' and 'dog'. Keep one"),
    "no id": ("file,label\n,cat\n", "row 2: the column 'file' is empty. Say which row 'cat' is for"),
    "too many cells": ("file,label\na.png,cat,black\n", "3 cells under 2 columns. Put quotes around text with commas"),
    "quotes": ('file,label\na.png,"cat\n', "is not a table of labels"),
    "a stranger": (
        "file,label\na.png,cat\nbb.png,dog\n",
        r"1 of 2 ids have no row .* bb\.png \(did you mean b\.png or",
    ),
}


@pytest.mark.parametrize("case", list(UNFIT_TABLES.values()), ids=list(UNFIT_TABLES))
def test_a_table_that_cannot_be_read_says_what_to_do(tmp_path: Path, case: tuple[str, str]) -> None:
    text, message = case
    with pytest.raises(DataError, match=message):
        match_labels(read_labels(write(tmp_path / "l.csv", text)), ["a.png", "b.png"], 2, "l.csv")


def test_the_same_label_twice_is_one(tmp_path: Path) -> None:
    path = write(tmp_path / "l.csv", "file,label\na,cat\na,cat\na,\nb,\nb,dog\n")
    assert read_labels(path) == {"a": "cat", "b": "dog"}


UNFIT_LABELS = {
    "none": ([""] * 9, "none of the 9 rows has a label. Label some first"),
    "one class": (["a"] * 5 + [""], "all 5 labelled rows are 'a'"),
    "once": (
        ["a", "a", "bb", "bb", "b", ""],
        r"1 of 3 labels occur once: 'b' \(did you mean bb\?\).*label another row",
    ),
    "numbers": ([f"{i}.5" for i in range(5)] + ["0.5", ""], "6 labelled rows have 5 different labels .* merge classes"),
    "all": (["a", "a", "b", "b"], "all 4 rows have a label: there is nothing to find out"),
}


@pytest.mark.parametrize("case", list(UNFIT_LABELS.values()), ids=list(UNFIT_LABELS))
def test_labels_that_teach_nothing_are_refused(case: tuple[list[str], str]) -> None:
    labels, message = case
    with pytest.raises(DataError, match=message):
        refuse_labels(as_labels(labels))


def test_rows_held_out_are_of_all_classes_and_leave_two_to_teach() -> None:
    labels = as_labels(["a"] * 50 + ["b"] * 10 + ["c"] * 2 + [""] * 40)
    held = hold_out(labels, 0.2, seed=0)
    assert torch.bincount(labels.y[held], minlength=3).tolist() == [10, 2, 0]
    assert torch.equal(held, hold_out(labels, 0.2, seed=0)) and not torch.equal(held, hold_out(labels, 0.2, seed=1))
    assert len(hold_out(labels, 0.0, seed=0)) == 0
    assert torch.bincount(labels.y[hold_out(labels, 0.99, seed=0)]).tolist()[1] == 8
    with pytest.raises(OptionError, match="0.2 for a fifth, got 1"):
        hold_out(labels, 1.0, seed=0)
    few = as_labels((["a"] * 4 + ["b"] * 4) * 1 + [""])
    sizes = [len(hold_out(few, 0.2, seed=seed)) for seed in range(200)]
    assert np.mean(sizes) == pytest.approx(1.6, abs=0.25)  # 0.8 of each class

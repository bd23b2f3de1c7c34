"""Few labels for many rows: what comes in, what is refused, what comes out, and how it goes on."""

import json
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from support.command import Command

import pyrovae as pv
from pyrovae.app.cli.tables import print_report
from pyrovae.app.jobs import label as labelling
from pyrovae.app.jobs.label.ensemble import Ensemble, fitted_weights, too_many
from pyrovae.app.jobs.label.judging import Judged, judged_before
from pyrovae.app.jobs.label.learning import quick
from pyrovae.app.jobs.label.training import build_labeller
from pyrovae.app.options import Options
from pyrovae.criticism.ensembles import Weights
from pyrovae.data import Dataset, load
from pyrovae.data.images import load_folder
from pyrovae.data.labels import (
    Labels,
    about_lone_labels,
    as_labels,
    hold_out,
    match_labels,
    read_labels,
    refuse_labels,
    split_labels,
)
from pyrovae.errors import CheckpointError, DataError, OptionError

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
    (tmp_path / "larger.png").write_bytes((tmp_path / "large.png").read_bytes()[:50])  # its head is all that is read
    with pytest.raises(DataError, match="are 200 x 100: .* Give --size 64"):
        load_folder(tmp_path)


# --- the rows' names in a table --------------------------------------------------------------------------------------


def test_an_id_column_names_rows_and_is_no_number_of_theirs(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("ID,a,b\n007,1.5,2\nx 8,2.5,3\n")
    found = load(str(path), ids="id")
    assert found.ids == ("007", "x 8") and found.columns == ("a", "b") and found.x.tolist() == [[1.5, 2.0], [2.5, 3.0]]
    path.write_text("a,b\n1.5,2\n2.5,3\n")
    assert load(str(path)).ids is None
    with pytest.raises(OptionError, match="no column 'id'"):
        load(str(path), ids="id")
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


def test_whole_numbers_are_the_same_class_however_they_are_written() -> None:
    assert as_labels(["1.0", "1", "", "-1.0", "2.0", "-2"]).classes == ("-2", "1", "2")
    assert as_labels(["1.0", "1.1", "2"]).classes == ("1.0", "1.1", "2")
    assert as_labels(["1.0", "a", "007"]).classes == ("1.0", "007", "a")
    assert as_labels(["7", "007"]).classes == ("007", "7")


@pytest.mark.parametrize("twice", [("0", "00"), ("3", "3.0"), ("12", "012"), (" 1", "1")])
def test_two_numbers_of_one_row_do_not_overwrite_each_other(tmp_path: Path, twice: tuple[str, str]) -> None:
    path = tmp_path / "l.csv"
    for first, last in (twice, twice[::-1]):
        table = read_labels(write(path, f"id,label\n0,\n{first},cat\n{last},dog\n"))
        with pytest.raises(
            DataError, match=rf"row {int(float(first))} has two labels, '(cat' and 'dog|dog' and 'cat)'"
        ):
            match_labels(table, None, 20, path)
        table = read_labels(write(path, f"id,label\n0,\n{first},cat\n{last},\n"))
        found = match_labels(table, None, 20, path)
        assert found.known.tolist() == [int(float(first))] and found.classes == ("cat",)


FROM_1 = {"all": range(1, 21), "without the last": range(1, 20), "the first few": (1, 2, 3), "most": (1, 2, 4, 5, 8)}
FROM_0 = {"all": range(20), "the first few": (0, 1, 2), "some": (1, 7, 13), "one": (1,), "from 2": (2, 3, 4)}


@pytest.mark.parametrize("numbers", FROM_1.values(), ids=FROM_1.keys())
def test_rows_that_are_counted_from_1_are_refused(numbers: Sequence[int]) -> None:
    with pytest.raises(DataError, match="seem to count from 1.*Subtract 1.*add a line for row 0"):
        match_labels({str(i): "ab"[i % 2] for i in numbers}, None, 20, "l.csv")
    if 20 not in numbers:
        assert len(match_labels({str(i): "ab"[i % 2] for i in numbers} | {"0": ""}, None, 20, "l.csv").known) == len(
            numbers
        )


@pytest.mark.parametrize("numbers", FROM_0.values(), ids=FROM_0.keys())
def test_rows_that_are_counted_from_0_are_taken(numbers: Sequence[int]) -> None:
    table = {str(i): "ab"[i % 2] for i in numbers}
    assert match_labels(table, None, 20, "l.csv").known.tolist() == list(numbers)


def test_names_may_begin_and_end_with_blanks(tmp_path: Path) -> None:
    path = write(tmp_path / "l.csv", "file,label\n a.png,cat\nb.png ,dog\n c.png,cat\n")
    found = match_labels(read_labels(path), [" a.png", "b.png ", "c.png"], 3, path)
    assert found.y.tolist() == [0, 1, 0]


UNFIT_TABLES = {
    "empty": ("", r"needs a first line with the columns id,label .* found nothing"),
    "no header": ("a.png,cat\nb.png,dog\n", r"needs a first line .* found 'a\.png', 'cat'"),
    "only labels": ("label\ncat\n", "needs a first line"),
    "two labels": ("file,label\na.png,cat\na.png,dog\n", "a.png has two labels, 'cat' and 'dog'. Keep one"),
    "no id": ("file,label\n,cat\n", "row 2: the column 'file' is empty. Say which row 'cat' is for"),
    "too many cells": ("file,label\na.png,cat,black\n", "3 cells under 2 columns. Put quotes around text with commas"),
    "quotes": ('file,label\na.png,"cat\n', "is not a table of labels"),
    "blanks around a name": (
        "file,label\na.png,cat\n a.png,dog\n",
        "row a.png has two labels, 'cat' and 'dog'. Keep one",
    ),
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
    "each once": (["a", "b", ""], "each of the 2 labels occurs once: 'a', 'b'. Label more rows"),
    "unknown written as reals": (["-1.0", "-1", "-1.", ""], "none of the 4 rows has a label"),
    "numbers": ([f"{i}.5" for i in range(5)] + ["0.5", ""], "6 labelled rows have 5 different labels .* merge classes"),
    "all": (["a", "a", "b", "b"], "all 4 rows have a label: there is nothing to find out"),
}


@pytest.mark.parametrize("case", list(UNFIT_LABELS.values()), ids=list(UNFIT_LABELS))
def test_labels_that_teach_nothing_are_refused(case: tuple[list[str], str]) -> None:
    labels, message = case
    with pytest.raises(DataError, match=message):
        refuse_labels(as_labels(labels))


def test_a_label_of_one_row_is_warned_of() -> None:
    labels = as_labels(["a", "a", "bb", "bb", "b", ""])
    refuse_labels(labels)
    assert re.search(
        r"1 of 3 labels occur once: 'b' \(did you mean bb\?\).*label another row", about_lone_labels(labels)
    )
    assert not about_lone_labels(as_labels(["a", "a", "b", "b", ""]))
    assert torch.bincount(labels.y[hold_out(labels, 0.5, seed=0)], minlength=3)[labels.classes.index("b")] == 0


@pytest.mark.parametrize("counts", [(50, 10, 2), (2, 2), (7, 1, 3)])
def test_each_labelled_row_is_in_one_part_whose_classes_the_others_know(counts: tuple[int, ...]) -> None:
    labels = as_labels([name for name, count in zip("abc", counts) for _ in range(count)] + [""] * 9)
    parts = split_labels(labels, 3, seed=0)
    together = torch.cat(parts)
    lone = [number for number, count in enumerate(counts) if count == 1]
    assert sorted(together.tolist()) == [row for row in labels.known.tolist() if labels.y[row] not in lone]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for part in parts:
        left = labels.y.clone()
        left[part] = -1
        assert set(left[left >= 0].tolist()) == set(range(len(counts)))
    assert any(not torch.equal(together, torch.cat(split_labels(labels, 3, seed=seed))) for seed in range(1, 9))


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


# --- the job ---------------------------------------------------------------------------------------------------------

WORDS = ("naught", "one", "$2^$", "three, say")
QUICK = ("--steps", "100", "--hidden", "50", "--passes", "5", "--engine", "eager")
FEW = ("--steps", "20", *QUICK[2:])  # where it does not matter what is learned


def write_digits(folder: Path, labelled: int = 60) -> list[str]:
    """The digits 0 to 3, 200 of them, as PNG files, beside a table with the first labels. Their true names come back."""
    digits = load_digits(n_class=4)
    folder.mkdir()
    names = [WORDS[number] for number in digits.target[:200]]
    for number, picture in enumerate(digits.images[:200]):
        Image.fromarray((picture * 255 / 16).astype(np.uint8)).save(folder / f"{number:03d}.png")
    lines = [f'{number:03d}.png,"{name}"' for number, name in enumerate(names[:labelled])]
    (folder.parent / "some.csv").write_text("\n".join(["file,label", *lines]) + "\n")
    return names


@pytest.mark.slow
def test_from_a_folder_and_few_labels_to_a_label_for_every_row_and_on(pyrovae: Command) -> None:
    names = write_digits(Path("photos"))
    code, out, err = pyrovae("label", "photos/", "--labels", "some.csv", "--out", "labels.csv", *QUICK)
    assert code == 0, err
    assert "60 labels of 4 classes, none of them held out; likelihood bernoulli, mlp" in " ".join(err.split())
    for words in (
        "60 labelled rows",
        "accuracy",
        "logistic regression",
        "calibration error",
        "95% intervals",
        "To label next",
        "Table: labels.csv",
    ):
        assert words in out
    run = Path("runs/photos-labels")
    assert {p.name for p in run.iterdir()} == {
        *("weights.safetensors", "run.json", "history.csv", "reliability.png", "doubtful.png")
    }
    table = pd.read_csv("labels.csv", dtype={"label": str}, keep_default_na=False)
    assert list(table) == ["file", "label", "predicted", "probability", "entropy", "margin", "rank"]
    assert table["file"].tolist() == [f"{n:03d}.png" for n in range(200)]
    assert table["label"].tolist() == names[:60] + [""] * 140
    assert (table["rank"][:60] == "").all() and sorted(map(int, table["rank"][60:])) == list(range(1, 141))
    margins = table["margin"][60:].to_numpy()[np.argsort(table["rank"][60:].astype(int))]
    assert (np.diff(margins) >= 0).all() and (margins >= 0).all() and (margins <= table["probability"].max()).all()
    assert table["probability"].between(0.25, 1).all() and table["entropy"].between(0, math.log(4) + 1e-6).all()
    right = np.array(table["predicted"]) == np.array(names)
    assert right[60:].mean() > 0.85
    first = json.loads((run / "run.json").read_text())
    results = first["info"]["results"]
    assert results["held_out"] == 60 and results["folds"] == 3 and results["accuracy"] > 0.6
    assert results["accuracy_low"] < results["accuracy"] <= results["accuracy_high"] <= 1
    assert results["logistic_regression"] > 0.6
    assert pv.load(run).pair.likelihood is not None  # rebuilt from JSON, dropout and all

    table.loc[60:89, "label"] = names[60:90]
    table.to_csv("labels.csv", index=False)
    code, _, err = pyrovae("label", "photos", "--labels", "some.csv", "--out", "labels.csv", *QUICK)
    assert code == 2 and "labels.csv has changed since it was written" in err  # what was filled in is not lost
    code, out, err = pyrovae("label", "photos", "--labels", "labels.csv", "--out", "more.csv", *QUICK)
    assert code == 0 and "90 labels of 4 classes, none of them held out" in " ".join(err.split()), err
    second = json.loads((run / "run.json").read_text())
    assert second["info"]["held_out"] == first["info"]["held_out"]
    assert second["settings"]["epochs"] < first["settings"]["epochs"]
    assert second["weights_sha256"] != first["weights_sha256"]
    more = pd.read_csv("more.csv", keep_default_na=False)
    assert (more["predicted"][90:] == names[90:]).mean() > 0.85 and more["label"].tolist() == names[:90] + [""] * 110

    code, _, err = pyrovae("label", "photos", "--labels", "labels.csv", "--out", "more.csv", *QUICK)
    assert code == 0 and "its weights are asked again" in " ".join(err.split()), (
        err
    )  # nothing to learn; its own table is replaced
    third = json.loads((run / "run.json").read_text())
    assert third["weights_sha256"] == second["weights_sha256"] and "Cross-validation" not in err
    assert third["info"]["results"] == second["info"]["results"]
    pd.testing.assert_frame_equal(pd.read_csv("more.csv", keep_default_na=False), more)


@pytest.mark.usefixtures("small_ensembles")
@pytest.mark.slow
def test_a_class_that_is_new_starts_training_anew(pyrovae: Command) -> None:
    write_digits(Path("photos"), 130)
    quick = ("--engine", "eager", "--holdout", "0.5", "--hidden", "50", "--steps", "5")
    assert pyrovae("label", "photos", "--labels", "some.csv", *quick)[0] == 0
    assert Path("runs/photos-labels/labels.csv").exists()
    held = json.loads(Path("runs/photos-labels/run.json").read_text())["info"]["held_out"]
    assert len(held) > 50
    with Path("some.csv").open("a") as file:
        file.write("150.png,five\n151.png,five\n")
    code, _, err = pyrovae("label", "photos", "--labels", "some.csv", *quick)
    assert code == 0 and "Training starts anew: classes are not as before" in " ".join(err.split())
    code, _, err = pyrovae("label", "photos", "--labels", "some.csv", *quick[:-4], "--hidden", "20", "--steps", "5")
    assert code == 0 and "Training starts anew: hidden is not" in " ".join(err.split())
    # the report is of the same rows, whatever is taught and by what
    assert json.loads(Path("runs/photos-labels/run.json").read_text())["info"]["held_out"] == held
    code, _, err = pyrovae("label", "photos", "--labels", "some.csv", *quick[:2], *quick[4:], "--holdout", 0.6)
    assert code == 0 and f"The {len(held)} rows held out before stay so" in " ".join(err.split())
    for question in ("evaluate", "generate"):
        code, _, err = pyrovae(question, "runs/photos-labels")
        assert code == 2 and "is a run of `pyrovae label`" in " ".join(err.split()), err
    code, _, err = pyrovae("fit", "--resume", "runs/photos-labels")
    assert code == 2 and "is a run of `pyrovae label`" in " ".join(err.split()), err
    (Path("photos") / "199.png").unlink()
    code, _, err = pyrovae("label", "photos", "--labels", "some.csv", *quick)
    assert code == 2 and "run of other rows" in err and "--fresh" in err
    code, _, err = pyrovae("label", "photos", "--labels", "some.csv", "--fresh", "--holdout", 0, *quick[:2], *quick[4:])
    assert code == 0 and len(pd.read_csv("runs/photos-labels/labels.csv")) == 199
    assert not Path("runs/photos-labels/reliability.png").exists()


@pytest.mark.usefixtures("small_ensembles")
@pytest.mark.slow
def test_labels_beside_the_rows_are_text_and_may_be_filled_in(pyrovae: Command) -> None:
    frame = write_species(Path("t.csv"))
    frame["label"] = frame["label"].replace({"oak": "NA", "elm": "None"})
    frame.drop(columns="truth").to_csv("t.csv", index=False)
    job = labelling.read_job("t.csv")
    assert job.labels.classes == ("NA", "None") and len(job.labels.known) == 30
    assert pyrovae("label", "t.csv", "--out", "o.csv", *FEW, "--latent", 2, "--holdout", 0)[0] == 0
    frame.loc[1:2, "label"] = "None"
    frame.drop(columns="truth").to_csv("t.csv", index=False)
    code, _, err = pyrovae("label", "t.csv", "--out", "more.csv", *FEW, "--latent", 2, "--holdout", 0)
    assert code == 0 and "32 labels" in err and "steps from the weights of before" in " ".join(err.split()), err
    assert pd.read_csv("more.csv", keep_default_na=False)["label"].tolist() == frame["label"].tolist()


def write_species(path: Path, ids: bool = True) -> pd.DataFrame:
    """Two clouds of points, every third of which has its name in the table itself."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 2, 90)
    frame = pd.DataFrame(rng.normal(size=(90, 3)) + 3 * kind[:, None], columns=list("abc"))
    frame["label"] = np.where(np.arange(90) % 3 == 0, np.where(kind == 1, "oak", "elm"), "")
    if ids:
        frame.insert(0, "id", [f"tree {number}" for number in range(90)])
    frame.to_csv(path, index=False)
    frame["truth"] = np.where(kind == 1, "oak", "elm")
    return frame


@pytest.mark.usefixtures("small_ensembles")
@pytest.mark.slow
@pytest.mark.parametrize("ids", [True, False], ids=["ids", "row numbers"])
def test_a_table_with_its_own_column_of_labels(pyrovae: Command, ids: bool) -> None:
    frame = write_species(Path("t.csv"), ids)
    steps = QUICK if ids else FEW
    code, out, err = pyrovae("label", "t.csv", "--out", "o.csv", *steps, "--latent", 2, "--holdout", 0)
    assert code == 0 and "likelihood normal, mlp" in " ".join(err.split()), err
    found = pd.read_csv("o.csv", keep_default_na=False)
    assert found.columns[0] == ("id" if ids else "row")
    assert found.iloc[:, 0].tolist() == (frame["id"].tolist() if ids else list(range(90)))
    if ids:
        assert (found["predicted"] == frame["truth"]).mean() > 0.9
    assert "doubtful.png" not in out


def test_labels_are_in_the_column_that_is_named(tmp_path: Path) -> None:
    """By its name, its number, or as the last one; the column `label` is then one like the others."""
    frame = write_species(tmp_path / "t.csv")
    plain = labelling.read_job(str(tmp_path / "t.csv"))
    frame = frame.drop(columns="truth").rename(columns={"label": "kind of tree"})
    frame = frame[[name for name in frame if name != "kind of tree"] + ["kind of tree"]]
    frame.to_csv(tmp_path / "n.csv", index=False)
    for name in ("kind of tree", "last", str(len(frame.columns) - 1)):
        named = labelling.read_job(str(tmp_path / "n.csv"), label=name)
        assert torch.equal(named.labels.y, plain.labels.y) and torch.equal(named.x, plain.x)
    frame.assign(label=frame.iloc[:, 1]).to_csv(tmp_path / "both.csv", index=False)
    both = labelling.read_job(str(tmp_path / "both.csv"), label="kind of tree")
    assert both.labels.classes == plain.labels.classes and "label" in (both.dataset.columns or ())
    np.savez(tmp_path / "a.npz", x=np.eye(6, 3), kind=np.array([3, 7, 3, 7, -1, -1]))
    assert labelling.read_job(str(tmp_path / "a.npz"), label="kind").labels.classes == ("3", "7")
    with pytest.raises(OptionError, match=r"no column 'kind of tee' \(did you mean kind of tree"):
        labelling.read_job(str(tmp_path / "n.csv"), label="kind of tee")
    with pytest.raises(OptionError, match="one column at a time"):
        labelling.read_job(str(tmp_path / "both.csv"), label="kind of tree,label")
    with pytest.raises(OptionError, match="--label: for tables, and .* is a folder of images"):
        labelling.read_job(str(tmp_path), label="kind")


def test_a_job_says_which_columns_it_predicts_from(tmp_path: Path) -> None:
    frame = write_species(tmp_path / "t.csv").drop(columns="truth")
    numbers = [name for name in frame if name not in ("id", "label")]
    frame["note"] = [f"seen on the way number {row}" for row in range(len(frame))]
    frame["one"] = 1
    frame.to_csv(tmp_path / "n.csv", index=False)
    told = labelling.read_job(str(tmp_path / "n.csv"), drop="one").about_columns()
    assert told.startswith(f"Predicted from {len(numbers)} columns: {', '.join(numbers)}; left out: ")
    assert "note" in told and "one" in told and "label" not in told
    wide = (
        pd.DataFrame(np.random.default_rng(0).normal(size=(30, 50)))
        .add_prefix("gene")
        .assign(label=["a", "b", ""] * 10)
    )
    wide.to_csv(tmp_path / "w.csv", index=False)
    told = labelling.read_job(str(tmp_path / "w.csv")).about_columns()
    assert told.startswith("Predicted from 50 columns: gene0, gene1, ") and told.endswith("gene19 and 30 others")
    write_images(tmp_path / "photos", 3)
    (tmp_path / "l.csv").write_text("file,label\n00.png,a\n01.png,b\n")
    images = labelling.read_job(str(tmp_path / "photos"), tmp_path / "l.csv", some=False)
    assert images.about_columns() == ""


def test_a_report_says_how_probabilities_were_calibrated(capsys: pytest.CaptureFixture[str]) -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(60, 3, generator=generator, dtype=torch.float64).softmax(-1)
    y = torch.multinomial(p, 1, generator=generator)[:, 0]
    for q, f, told in (
        (None, p, "those of the ensemble to the power of "),
        (p, p, "those of the model's classifier to the power of "),
    ):
        print_report(labelling.held_out_report(q, f, y)[0])
        out = " ".join(capsys.readouterr().out.split())
        assert "Probabilities are calibrated by these rows" in out and told in out and "weight" not in out
    print_report(labelling.held_out_report(None, p[:9], y[:9])[0])
    out = " ".join(capsys.readouterr().out.split())
    assert "not calibrated" in out and "not fitted" not in out and "power" not in out


def test_labels_of_a_table_beside_it_and_of_arrays(tmp_path: Path) -> None:
    frame = write_species(tmp_path / "t.csv")
    frame.drop(columns=["label", "truth"]).to_csv(tmp_path / "x.csv", index=False)
    frame[["id", "label"]].to_csv(tmp_path / "l.csv", index=False)
    one, two = (
        labelling.read_job(str(tmp_path / "t.csv")),
        labelling.read_job(str(tmp_path / "x.csv"), tmp_path / "l.csv"),
    )
    assert torch.equal(one.x, two.x) and torch.equal(one.labels.y, two.labels.y) and one.ids == two.ids
    assert labelling.read_job(str(tmp_path / "t.csv"), tmp_path / "t.csv").labels.classes == ("elm", "oak")
    # a table with more labels, as this job writes it, goes with the labels that the rows have themselves
    more = frame[["id", "label"]].copy()
    more.loc[more["label"] == "", "label"] = ["oak"] + [""] * int((more["label"] == "").sum() - 1)
    more.to_csv(tmp_path / "l.csv", index=False)
    merged = labelling.read_job(str(tmp_path / "t.csv"), tmp_path / "l.csv")
    frame.drop(columns="truth").rename(columns={"label": "Label"}).to_csv(tmp_path / "capital.csv", index=False)
    assert torch.equal(labelling.read_job(str(tmp_path / "capital.csv"), tmp_path / "l.csv").x, one.x)
    assert torch.equal(merged.x, one.x) and len(merged.labels.known) == len(one.labels.known) + 1
    more["label"] = more["label"].replace({"oak": "elm"})
    more.to_csv(tmp_path / "l.csv", index=False)
    with pytest.raises(DataError, match="is 'oak' in .*t.csv and 'elm' in .*l.csv. Make them agree"):
        labelling.read_job(str(tmp_path / "t.csv"), tmp_path / "l.csv")
    x, y = np.random.default_rng(0).normal(size=(20, 3)), np.array([3, 7] * 3 + [-1] * 10)
    np.savez(tmp_path / "a.npz", x=x[:16], y=y, x_test=x[16:], y_test=np.array([7, 7, 3, 3]))
    found = labelling.read_job(str(tmp_path / "a.npz"))
    assert found.labels.classes == ("3", "7") and found.labels.y.tolist() == [0, 1] * 3 + [-1] * 10 + [1, 1, 0, 0]
    assert found.names()[-1] == "19" and found.id_column == "row"


MISTAKES = {
    "no labels": (("photos",), "a folder of images needs --labels"),
    "no file": (("photos", "--labels", "sone.csv"), r"no file sone\.csv \(did you mean .*some\.csv"),
    "no data": (("fotos", "--labels", "some.csv"), r"unknown data 'fotos' \(did you mean photos\?\)"),
    "stranger": (("photos", "--labels", "stranger.csv"), "have no row in the data, the first is 999.png"),
    "none": (("photos", "--labels", "none.csv"), "none of the 200 rows has a label"),
    "all": (("all.csv",), "all 6 rows have a label"),
    "named": (("digits",), "all 300 rows have a label"),
    "sizes": (("sizes", "--labels", "some.csv"), "2 sizes: .*--size 28"),
    "damaged": (("damaged", "--labels", "some.csv"), r"a\.png is not an image that can be read"),
    "size of a table": (("all.csv", "--size", "28"), "--size is for a folder of images"),
    "column": (("x.csv",), "has no column 'label': say by --label which column has the labels, or give --labels"),
    "arrays": (("x.npy",), r"has no labels \(an array y\): name the array by --label, or give --labels"),
    "out": (("photos", "--labels", "some.csv", "--out", "some.csv"), "would replace what it is made from"),
    "ending": (("photos", "--labels", "some.csv", "--out", "o.txt"), r"written as \.csv"),
    "there": (
        ("photos", "--labels", "some.csv", "--out", "all.csv"),
        "all.csv exists: choose another name, or --force",
    ),
    "no folder": (("photos", "--labels", "some.csv", "--out", "no/o.csv"), "there is no folder no"),
    "run": (("photos", "--labels", "some.csv", "--run", "other"), "other is not a run folder"),
    "holdout": (("photos", "--labels", "some.csv", "--holdout", "1"), "--holdout is a share"),
    "passes": (("photos", "--labels", "some.csv", "--passes", "1"), "--passes must be at least 2"),
    "steps": (("photos", "--labels", "some.csv", "--steps", "-1"), "--steps must be at least 0"),
    "nothing": (
        ("photos", "--labels", "some.csv", "--steps", "0", "--neighbors", "0"),
        "nothing is left that could answer",
    ),
    "net": (("all2.csv", "--net", "conv"), "--net conv needs images"),
    "likelihood": (("photos", "--labels", "some.csv", "--likelihood", "gauss"), "--likelihood 'gauss' is not known"),
    "unfit": (("photos", "--labels", "some.csv", "--likelihood", "poisson"), "outside the support"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", list(MISTAKES.values()), ids=list(MISTAKES))
def test_a_mistake_gets_one_clear_error(pyrovae: Command, case: tuple[tuple[str, ...], str]) -> None:
    write_digits(Path("photos"))
    some = Path("some.csv").read_text()
    Path("stranger.csv").write_text(some + "999.png,one\n")
    Path("once.csv").write_text(some + "199.png,five\n")
    Path("none.csv").write_text("file,label\n001.png,\n")
    Path("all.csv").write_text("a,label\n" + "1.5,x\n2.5,y\n" * 3)
    Path("all2.csv").write_text("a,label\n" + "1.5,x\n2.5,y\n" * 3 + "3.5,\n")
    Path("x.csv").write_text("a,b\n1.5,2\n2.5,3\n")
    np.save("x.npy", np.zeros((4, 3)))
    write_images(Path("sizes"), 3)
    Image.new("L", (5, 4)).save("sizes/odd.png")
    write_images(Path("damaged"), 3)
    Path("damaged/a.png").write_bytes(b"nonsense")
    Path("other").mkdir()
    Path("other/file").write_text("x")
    words, message = case
    code, out, err = pyrovae("label", *words, *((*QUICK[2:4], "--steps", "5") if "--steps" not in words else ()))
    assert code == 2, out + err
    assert re.search(message, err.replace("\n", " "), re.DOTALL), err
    assert "Traceback" not in err and not out.strip()
    assert not Path("runs").exists() and Path("some.csv").read_text() == some


@pytest.mark.slow
def test_another_kind_of_run_is_left_alone(pyrovae: Command) -> None:
    write_digits(Path("photos"))
    assert pyrovae("fit", "digits", "--epochs", 1, "--hidden", 8, "--num-samples", 30, "--out", "fitted")[0] == 0
    code, _, err = pyrovae("label", "photos", "--labels", "some.csv", "--run", "fitted", "--fresh")
    assert code == 2 and "another kind of run" in err
    Path("fitted/run.json").write_text(json.dumps({"format": 1, "info": {"job": "label", "classes": 3}}))
    code, _, err = pyrovae("label", "photos", "--labels", "some.csv", "--run", "fitted")
    assert code == 2 and "run.json in fitted is damaged" in err


# --- what is decided and computed ------------------------------------------------------------------------------------


NONE = torch.zeros(0, dtype=torch.int64)  # no row is held out


def a_job(
    x: torch.Tensor, labels: list[str], image_shape: tuple[int, ...] | None = None, kind: str = "unit"
) -> labelling.Job:
    dataset = pv_dataset(x, image_shape, kind)
    return labelling.Job(dataset, x, as_labels(labels), None)


def pv_dataset(x: torch.Tensor, image_shape: tuple[int, ...] | None, kind: str) -> Dataset:
    return Dataset(name="t", x=x, kind=kind, source={"checksum": "0"}, image_shape=image_shape)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["unit", "count", "bounded", "real"])
def test_a_pair_holds_together_for_each_kind_of_rows(kind: str) -> None:
    x = torch.rand(12, 6)
    x = x if kind == "unit" else x - 0.5 if kind == "real" else (5 * x).round()
    job = a_job(x, ["a", "b", "c"] * 2 + [""] * 6, kind="count" if kind == "bounded" else kind)
    if kind == "bounded":
        job = replace(job, dataset=replace(job.dataset, total_count=5))
    settings = labelling.decide_labelling(Options.of("label", hidden=(7,), latent=2), job)
    rows = labelling.labelling_rows(job, settings, NONE).train
    pair = build_labeller(settings, rows, 3)
    rows = (rows > 0.5).float() if kind == "unit" else rows
    pv.check_pair(pair, {"x": rows, "y": job.labels.y})
    likelihoods = {"unit": "bernoulli", "count": "negative-binomial", "bounded": "beta-binomial", "real": "normal"}
    assert settings.likelihood == likelihoods[kind] and settings.alpha == 50 and settings.latent == 2
    assert settings.steps == 300  # with options of the model
    assert labelling.decide_labelling(Options.of("label"), job).steps == 0  # and without


@pytest.mark.parametrize("shape", [(16, 18), (3, 16, 16)])
def test_images_from_16_pixels_on_are_convolved(shape: tuple[int, ...]) -> None:
    x = torch.rand(8, math.prod(shape))
    job = a_job(x, ["a", "b"] * 2 + [""] * 4, shape)
    settings = labelling.decide_labelling(Options.of("label", hidden=(20,), latent=2), job)
    assert settings.net == "conv" and settings.latent == 2 and settings.alpha == 0.6 * math.prod(shape)
    rows = (labelling.labelling_rows(job, settings, NONE).train > 0.5).float()
    assert rows.shape == (8, *shape)
    pv.check_pair(build_labeller(settings, rows, 2), {"x": rows, "y": job.labels.y})
    assert labelling.decide_labelling(Options.of("label", net="mlp"), job).net == "mlp"


def test_a_costly_step_means_fewer() -> None:
    small, large = (a_job(torch.rand(8, side**2), ["a", "b"] * 2 + [""] * 4, (side, side)) for side in (28, 128))
    model = Options.of("label", passes=7)  # an option of the model
    few, many = (labelling.decide_labelling(model, job).steps for job in (large, small))
    assert 100 <= (few or 0) < (many or 0) <= 300
    table = [a_job(torch.rand(rows, 4), ["a", "b"] * 2 + [""] * (rows - 4)) for rows in (100, 5000, 20_000)]
    assert [labelling.decide_labelling(model, job).steps for job in table] == [300, 782, 2000]
    alone = Options.of("label", neighbors=0)  # whose classifier must know more
    assert [labelling.decide_labelling(alone, job).steps for job in table] == [2000, 2000, 2000]
    classes = a_job(torch.rand(2100, 1), [str(row % 1000) for row in range(2100)])
    assert labelling.decide_labelling(Options.of("label"), classes).steps == 2000  # here it answers alone, too
    # the page takes no more steps than the command
    assert (
        quick(model, large).steps == few
        and quick(Options.of("label"), large).steps == 0
        and [quick(alone, job).steps for job in table] == [400] * 3
    )
    assert quick(model, table[0]).steps == 300 and quick(Options.of("label", steps=7), large).steps == 7


def test_a_cross_validation_counts_only_if_the_ensemble_is_still_such_a_one() -> None:
    rows, p = torch.tensor([0, 2]), torch.tensor([[0.5, 0.5], [0.25, 0.75]]).double()
    now = Judged(rows, rows, None, p).to_json()
    again = judged_before({"cross_validation": now})
    assert again is not None and again.ensemble is not None and torch.equal(again.ensemble, p)
    assert again.classifier is None and torch.equal(again.rows, rows) and torch.equal(again.yardstick, rows)
    assert (
        judged_before({"cross_validation": now | {"kind": "field and process"}}) is None and judged_before({}) is None
    )


@pytest.mark.slow
def test_exact_probabilities_keep_their_weight_and_have_their_own_error() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(3000, 4, generator=generator, dtype=torch.float64).pow(3)
    p = p / p.sum(-1, keepdim=True)
    y = torch.multinomial(p, 1, generator=generator)[:, 0]
    report, weights = labelling.held_out_report(p, None, y)
    assert weights.classifier == pytest.approx(1.0, abs=0.1) == report["weights"]["classifier"]
    assert weights.ensemble == 0 and "accuracy_of_ensemble" not in report
    assert labelling.held_out_report(None, p, y)[1].ensemble == pytest.approx(1.0, abs=0.1)
    assert (
        report["accuracy"]
        == report["accuracy_of_classifier"]
        == pytest.approx(p.max(-1).values.mean().item(), abs=report["accuracy_high"] - report["accuracy_low"])
    )
    assert report["calibration_error"] < 2 * report["calibration_error_of_chance"] < 0.1
    sharp = p.pow(3) / p.pow(3).sum(-1, keepdim=True)
    report, weights = labelling.held_out_report(sharp, None, y)
    assert weights.classifier == pytest.approx(1 / 3, abs=0.03) and report["calibration_error"] < 0.05  # crosswise
    report, weights = labelling.held_out_report(sharp[:19], None, y[:19])
    assert weights == Weights(1.0, 0.0) and report["weights"] is None and report["held_out"] == 19
    right = (p.argmax(-1) == y).nonzero().squeeze(1)[:500]
    assert (
        labelling.held_out_report(p[right], None, y[right])[1].classifier == 1.0
    )  # no mistake tells nothing of weights
    assert labelling.held_out_report(p[:0], None, y[:0]) == ({"held_out": 0}, Weights(1.0, 0.0))


def two_opinions(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Labels drawn in proportion to q^0.3 f^0.8, for probabilities q and f of three classes that are independent."""
    generator = torch.Generator().manual_seed(1)
    q, f = torch.randn(2, n, 3, generator=generator, dtype=torch.float64).mul(3).softmax(-1)
    p = (0.3 * q.log() + 0.8 * f.log()).softmax(-1)
    return q, f, torch.multinomial(p, 1, generator=generator)[:, 0]


def test_weights_of_classifier_and_ensemble_are_found() -> None:
    """A standard error of either is at most 0.03 with 4,000 labels: false alarms 1e-5 each."""
    q, f, y = two_opinions(4000)
    found = fitted_weights(q, f, y)
    assert found.classifier == pytest.approx(0.3, abs=0.13) and found.ensemble == pytest.approx(0.8, abs=0.13)
    report, weights = labelling.held_out_report(q[:400], f[:400], y[:400])
    assert weights == fitted_weights(q[:400], f[:400], y[:400])
    alone = [labelling.held_out_report(one[:400], None, y[:400])[0]["log_score"] for one in (q, f)]
    assert report["log_score"] < min(alone)  # crosswise, too
    assert report["accuracy_of_classifier"] < report["accuracy"] > report["accuracy_of_ensemble"] - 0.05
    few = fitted_weights(q[:3], f[:3], y[:3])
    assert abs(few.classifier - 0.1) < 0.2 and abs(few.ensemble - 0.9) < 0.2  # three labels do not move them far
    wrong = fitted_weights(q[:200], f[:200], 3 - 1 - (0.3 * q[:200].log() + 0.8 * f[:200].log()).argmax(-1))
    assert 0 < wrong.classifier < 0.5 and 0 < wrong.ensemble < 0.5  # no weights of 0, at which all classes are alike
    none = torch.zeros(0, dtype=torch.int64)
    assert labelling.held_out_report(q[:0], f[:0], none)[1] == Weights(0.1, 0.9)


def test_weights_by_default_make_a_geometric_mean() -> None:
    q, f = torch.tensor([[0.8, 0.2], [1.0, 0.0]]).double(), torch.tensor([[0.2, 0.8], [0.5, 0.5]]).double()
    found = Weights.default(q, f).pooled(q, f)
    mean = torch.tensor([0.8**0.1 * 0.2**0.9, 0.2**0.1 * 0.8**0.9]).double()
    assert torch.allclose(found[0], mean / mean.sum()) and found[1, 0] > 0.99
    assert torch.allclose(Weights(0.5, 0.5).pooled(q, f)[0], torch.tensor([0.5, 0.5]).double())
    assert torch.allclose(Weights.default(q, None).pooled(q, None), q, atol=1e-30)
    assert torch.allclose(Weights.default(None, f).pooled(None, f), f)


def test_the_ensemble_of_a_job_sees_images_as_such_and_other_labels_anew() -> None:
    generator = torch.Generator().manual_seed(0)
    kind = torch.arange(40) % 2
    x = torch.rand(40, 16, generator=generator)
    x[:, 4:8] += kind[:, None]
    labels = [("ab"[k] if row < 20 else "") for row, k in enumerate(kind)]
    for shape in (None, (4, 4)):
        job = a_job(x, labels, shape, "real")
        ensemble = Ensemble(job, 5)
        found = ensemble(job.labels.y)
        assert found is not None and torch.equal(found, pv.LabelEnsemble(x, job.labels.y, 2, 5, shape).probabilities)
    fewer = torch.where(torch.arange(40) < 10, -1, job.labels.y)
    again, anew = ensemble(fewer), Ensemble(job, 5)(fewer)
    assert again is not None and anew is not None and torch.allclose(again, anew)
    assert Ensemble(job, 0)(job.labels.y) is None


def test_the_ensemble_is_left_out_where_it_would_take_too_long() -> None:
    job = a_job(torch.zeros(1, 1).expand(2_000_000, 1), ["a", "b", *[""] * 1_999_998])
    ensemble = Ensemble(job, 5)
    assert ensemble(job.labels.y) is None and "2000000 rows of 1 number and 2 classes" in ensemble.why_not
    # distances of few columns are sorted, too
    for rows, columns, wanted in ((200_000, 2, True), (60_000, 784, False), (60_000, 5, False), (10_000, 5_000, False)):
        job = a_job(torch.zeros(1, 1).expand(rows, columns), ["a", "b", *[""] * (rows - 2)])
        assert too_many(job) is wanted, (rows, columns)


def test_without_an_option_of_the_model_the_ensemble_answers_alone(tmp_path: Path) -> None:
    frame = write_species(tmp_path / "t.csv")
    frame.drop(columns="truth").to_csv(tmp_path / "t.csv", index=False)
    job, said = labelling.read_job(str(tmp_path / "t.csv")), list[str]()
    answer = labelling.label_rows(job, Options.of("label"), tmp_path / "run", progress=False, say=said.append)
    assert answer.fitted is None and "no model is fitted" in said[0] and "Cross-validation: 3 ensembles" in said[-1]
    assert (answer.table["predicted"] == frame["truth"]).mean() > 0.95
    assert answer.report["folds"] == 3 and "accuracy_of_classifier" not in answer.report
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"run.json", "labels.csv", "reliability.png"}
    with pytest.raises(CheckpointError, match="has fitted no pair: `pyrovae label` does so with --steps"):
        pv.load(tmp_path / "run")
    said.clear()
    again = labelling.label_rows(job, Options.of("label"), tmp_path / "run", progress=False, say=said.append)
    assert not any("Cross-validation" in line for line in said)  # whose answer is on record
    pd.testing.assert_frame_equal(again.table, answer.table)
    few = Options.of("label", steps=2, hidden=(4,), latent=2, passes=2, holdout=0.0)
    fitted = labelling.label_rows(job, few, tmp_path / "run", progress=False, engine="eager").fitted
    assert fitted is not None and len(pv.load(tmp_path / "run").history) == len(fitted.history)
    how = Options.of("label", hidden=(4,), latent=2, passes=2, holdout=0.0)
    assert labelling.label_rows(job, how, tmp_path / "run", progress=False).fitted is not None  # the model goes on
    labelling.label_rows(job, replace(how, steps=0), tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "weights.safetensors").exists()


@pytest.mark.usefixtures("small_ensembles")
@pytest.mark.slow
def test_without_neighbours_the_classifier_answers_alone(pyrovae: Command) -> None:
    write_species(Path("t.csv")).drop(columns="truth").to_csv("t.csv", index=False)
    how = ("label", "t.csv", "--out", "o.csv", *FEW, "--latent", 2)
    code, out, err = pyrovae(*how)
    assert code == 0 and "the ensemble alone" in " ".join(out.split()), err
    assert (pd.read_csv("o.csv")["predicted"] == write_species(Path("t.csv"))["truth"]).mean() > 0.95
    code, out, err = pyrovae(*how, "--neighbors", 0)
    assert code == 0 and "ensemble" not in out, err
    assert "its weights are asked again" in " ".join(err.split()) and "Cross-validation" in err  # whose fits are others
    code, out, err = pyrovae(*how, "--neighbors", 0)
    assert code == 0 and "Cross-validation" not in err
    code, out, err = pyrovae(*how, "--neighbors", -1)
    assert code == 2 and "--neighbors must be at least 0" in err and "got -1" in err


def test_ranks_follow_the_margin_of_the_two_most_probable_classes() -> None:
    p = torch.tensor([[0.6, 0.4, 0.0], [0.46, 0.46, 0.08], [0.5, 0.25, 0.25], [0.4, 0.3, 0.3]], dtype=torch.float64)
    job = a_job(torch.zeros(4, 1), ["", "", "", "a"])
    job = replace(job, labels=Labels(job.labels.y, ("a", "b", "c")))
    table = labelling.tabulate(job, p)
    assert table["rank"].tolist()[:3] == [2, 1, 3] and table["rank"].isna().tolist() == [False] * 3 + [True]
    assert table["margin"].tolist() == pytest.approx([0.2, 0.0, 0.25, 0.1])  # the entropy is the largest in row 3
    assert table["probability"].tolist() == [0.6, 0.46, 0.5, 0.4] and table["predicted"][2] == "a"


def test_a_committee_disagrees_by_dropout_and_leaves_everything_as_it_was() -> None:
    job = a_job(torch.rand(12, 6), ["a", "b"] * 3 + [""] * 6)
    settings = labelling.decide_labelling(Options.of("label", hidden=(10,), latent=2), job)
    pair = build_labeller(settings, job.x, 2)
    fitted = pv.fit(pair, {"x": (job.x > 0.5).float(), "y": job.labels.y}, epochs=1, batch_size=6, seed=0)
    state = torch.get_rng_state()
    one, two = (labelling.committee(fitted, job.x, 4, seed=0) for _ in range(2))
    assert one.shape == (4, 12, 2) and torch.equal(one, two) and not torch.equal(one[0], one[1])
    assert torch.allclose(one.sum(-1), torch.ones(4, 12, dtype=one.dtype))
    assert torch.equal(state, torch.get_rng_state()) and all(module.training for module in pair.modules())
    assert not torch.equal(one, labelling.committee(fitted, job.x, 4, seed=1))
    pair.eval()
    labelling.committee(fitted, job.x, 1)
    assert not any(module.training for module in pair.modules())
    with pytest.raises(OptionError, match="one pass or more, got 0"):
        labelling.committee(fitted, job.x, 0)
    with pytest.raises(OptionError, match="at least 0 and below 1, got 1"):
        pv.nets.ReLUDropout(1)


def test_a_damaged_run_is_told(tmp_path: Path) -> None:
    job = a_job(torch.rand(12, 6), ["a", "b"] * 3 + [""] * 6)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match="is damaged"):
        labelling.label_rows(job, Options.of("label"), tmp_path)

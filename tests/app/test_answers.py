"""The file of labels that the page keeps: whatever rows are called, and whatever other programs and people do to it."""

import os
from pathlib import Path

import pytest
from PIL import Image

from pyrovae.app.jobs.label.answers import Answers
from pyrovae.data.images import load_folder
from pyrovae.data.labels import match_labels, read_labels
from pyrovae.errors import DataError

NAMES = ["a", "b", "c"]


@pytest.mark.parametrize("rows", [[0], [1, 2], [1, 3], [39], list(range(1, 40))])
def test_rows_that_are_numbered_come_back_whichever_have_a_label(tmp_path: Path, rows: list[int]) -> None:
    path = tmp_path / "labels.csv"
    answers = Answers(path, "row", None, 40)
    answers.give("ada", rows, "x")
    assert Answers(path, "row", None, 40).by == {"ada": dict.fromkeys(rows, "x")}
    assert match_labels(read_labels(path), None, 40, path).known.tolist() == rows  # as by --labels
    answers.undo("ada")
    assert Answers(path, "row", None, 40).by == {}


def test_names_of_rows_come_back_whatever_they_are(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    names = [
        "a\rb",
        "a\r\nb",
        "c\nd",
        "e,f",
        'g"h',
        " i",
        "i",
        "=1+1",
        "1.0",
        "1",
        "01",
        "NA",
        "True",
        "2026-01-02",
        ";",
        "é",
    ]
    labels = [f"label {row}" for row in range(len(names))]
    answers = Answers(path, "id", names, len(names))
    for row, label in enumerate(labels):
        answers.give('=ada, the "first"', [row], label)
    again = Answers(path, "id", names, len(names))
    assert again.by == answers.by and again.texts() == labels
    found = match_labels(read_labels(path), names, len(names), path)
    assert found.text(found.y) == again.texts()


@pytest.mark.parametrize(
    ("old", "new"), [("", "\ufeff"), ("\n", "\r\n"), (",", ";"), (",", "\t"), ("\n", "\n\n"), ("\n", "\n,,,\n")]
)
def test_a_file_that_a_spreadsheet_has_saved_is_read_and_written_on(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "labels.csv"
    Answers(path, "id", NAMES, 3).give("ada", [1], "é", {1: "at random"})
    before = path.read_bytes()
    text = before.decode()
    path.write_bytes((text.replace(old, new) if old else new + text).encode())
    again = Answers(path, "id", NAMES, 3)
    assert again.by == {"ada": {1: "é"}} and again.chosen == {1: "at random"}
    again.give("ada", [1], "é")
    assert path.read_bytes() == before


def test_a_label_that_somebody_wrote_into_the_file_counts_as_given(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    Answers(path, "id", NAMES, 3).give("ada", [1], "x")
    with path.open("a") as file:
        file.write("c, z ,,\n")
    answers = Answers(path, "id", NAMES, 3)
    answers.give("ada", [0], "y")
    assert Answers(path, "id", NAMES, 3).texts() == ["y", "x", "z"] and answers.annotators == ["ada"]


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("by ada\na,y,,x", "contradicts itself: the label of a is 'y', and that of its annotators 'x'"),
        ("by ada\na,,,x", "contradicts itself"),
        ("by ada,by ben\na,x,,x,y", "contradicts itself"),
        ("by ada\na,x,,x\na,,,", "two lines for 'a'"),
        ("by ada,by ada\na,x,,x,y", "two columns of 'ada'"),
    ],
)
def test_a_file_whose_labels_are_not_clear_is_left_alone(tmp_path: Path, lines: str, says: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(f"id,label,chosen,{lines}\n")
    with pytest.raises(DataError, match=says):
        Answers(path, "id", NAMES, 3)
    assert path.read_text() == f"id,label,chosen,{lines}\n"


def test_a_file_that_a_spreadsheet_has_saved_in_another_encoding_is_told_how_it_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes("id,label,chosen\na,gr\u00fcn,\n".encode("cp1252"))
    with pytest.raises(DataError, match=r"iconv -f WINDOWS-1252 .* Put that in its place\."):
        Answers(path, "id", NAMES, 3)


def test_a_file_whose_name_no_table_can_hold_is_refused_before_any_fit(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    try:
        os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/\xff.png")
    except OSError:
        pytest.skip("names are in UTF-8 here")
    with pytest.raises(DataError, match=r"the name of .*\\udcff.png is not in UTF-8.* Rename"):
        load_folder(tmp_path)

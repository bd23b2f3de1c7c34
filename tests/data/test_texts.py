"""Tables of texts: which words each row has."""

from pathlib import Path

import pytest

from pyrovae.app.jobs.label import read_job
from pyrovae.app.jobs.label.views import Views
from pyrovae.data.texts import load_texts
from pyrovae.errors import DataError

REVIEWS = ["A fine, fine film", "a dull film indeed", "fine music, dull film", "music that I like"]


def write(path: Path, header: str = "id,review,label", labels: tuple[str, ...] = ("", "", "", "")) -> Path:
    lines = [f'r{i},"{review}",{label}' for i, (review, label) in enumerate(zip(REVIEWS, labels))]
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def test_a_row_of_texts_is_the_set_of_its_words(tmp_path: Path) -> None:
    found = load_texts(write(tmp_path / "reviews.csv"), "label", ids="id", header=True)
    assert found is not None and found.kind == "binary" and found.ids == ("r0", "r1", "r2", "r3")
    assert found.columns == ("dull", "film", "fine", "music")  # those of two rows or more
    assert found.x.tolist() == [[0, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1]]


def test_a_job_takes_texts_with_one_label_or_none(tmp_path: Path) -> None:
    job = read_job(str(write(tmp_path / "reviews.csv")), some=False)
    assert len(job.labels.known) == 0 and job.x.shape == (4, 4)
    assert Views.of(job).cells_of(0) == [("review", REVIEWS[0])]
    job = read_job(str(write(tmp_path / "reviews.csv", labels=("good", "", "", ""))), some=False)
    assert job.labels.classes == ("good",) and job.names()[0] == "r0"
    with pytest.raises(DataError, match="all 1 labelled rows are 'good'"):
        read_job(str(tmp_path / "reviews.csv"))


def test_other_tables_are_none_of_texts(tmp_path: Path) -> None:
    numbers, categories = tmp_path / "numbers.csv", tmp_path / "categories.csv"
    numbers.write_text("size,note\n1,a b c d\n7,some words here\n2,other words there\n")
    categories.write_text("colour,note\nred,one red car\nred,two red cars\nblue,a blue one\n")
    assert load_texts(numbers, header=True) is None and load_texts(categories, header=True) is None
    alone = load_texts(categories, header=True, drop=["colour"])
    assert alone is not None and alone.columns == ("one", "red")


@pytest.mark.parametrize("name", ["row", "review_id", "nr"])
def test_names_of_rows_and_empty_columns_are_no_texts(tmp_path: Path, name: str) -> None:
    path = tmp_path / "reviews.csv"
    lines = [f'{i},"{REVIEWS[i % 4]} {i}",' for i in range(24)]
    path.write_text("\n".join([f"{name},review,remark", *lines]) + "\n")
    found = load_texts(path)
    assert found is not None and found.ids == tuple(map(str, range(24))) and "film" in (found.columns or ())
    assert any(f"Column {name} names the rows" in note for note in found.notes)
    assert load_texts(path, ids="none") is None  # its numbers are values then


def test_texts_without_a_word_in_common_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.csv"
    path.write_text("id,note\n1,one two three\n2,four five six\n")
    with pytest.raises(DataError, match="no word occurs in two rows"):
        load_texts(path, ids="id")

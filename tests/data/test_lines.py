"""Lines of text files: comments, cells of several lines, quotation marks that stay open, bytes that are no text."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import pyrovae as pv
from pyrovae.app.jobs.frames import Table
from pyrovae.data import cells, lines
from pyrovae.data.frames import read_csv
from pyrovae.data.labels import read_labels
from pyrovae.data.lines import Lines, pieces, split, within_cells

ROWS = 30
NOTES = {
    "a line that begins as a comment does": "first\n# second",
    "an empty line": "first\n\nthird",
    "a quotation mark": 'he said "no"\nand #\n# left',
    "lines that end otherwise": "first\r\n# second\r# third",
}
COMMENTS = {
    "none": "",
    "one": "# a comment\n",
    "an odd number of quotation marks": '# pipes of 5", by hand\n',
    "a cell that opens": '# by,"hand\n',
    "several": "# one\n#\n# three, 3, 3\n",
}
MARKS = {"commas": ",", "semicolons": ";", "tabs": "\t"}


def table(note: str) -> pd.DataFrame:
    draw = np.random.default_rng(0)
    named = [f"{note} {i}" for i in range(ROWS)]
    return pd.DataFrame({"a": draw.normal(size=ROWS).round(2), "note": named, "b": draw.normal(size=ROWS).round(2)})


def written(frame: pd.DataFrame, path: Path, separator: str, comment: str, at: tuple[int, ...]) -> None:
    """The table in a file, with a comment above some of its rows; row 0 is the header."""
    with path.open("w", newline="") as file:
        for row in range(-1, len(frame)):
            file.write(comment if row + 1 in at else "")
            text = frame.iloc[[max(row, 0)]].to_csv(sep=separator, index=False, header=row < 0)
            file.write(text if row >= 0 else f"a{separator}note{separator}b\n")


@pytest.mark.parametrize("separator", MARKS.values(), ids=MARKS.keys())
@pytest.mark.parametrize("comment", COMMENTS.values(), ids=COMMENTS.keys())
@pytest.mark.parametrize("note", NOTES.values(), ids=NOTES.keys())
def test_no_row_is_lost_or_made_by_comments_and_cells_of_several_lines(
    tmp_path: Path, note: str, comment: str, separator: str
) -> None:
    frame, path = table(note), tmp_path / "rows.csv"
    written(frame, path, separator, comment, (0, 1, 7, 20))
    # the ends of lines within cells are those of the file where it has comments; else pandas is given the file
    whole, form = read_csv(path)
    pd.testing.assert_frame_equal(whole, frame)
    assert form.separator == separator
    blocks = list(Table(path, 7).blocks(texts=("note",)))
    pd.testing.assert_frame_equal(pd.concat([block.frame for block in blocks], ignore_index=True), frame)
    assert [text for block in blocks for text in block.texts["note"]] == frame["note"].tolist()


def test_comments_are_left_out_in_one_way_with_quotation_marks_and_without(tmp_path: Path) -> None:
    """One line by line, the other by pieces of which a regular expression takes them out."""
    path, text = tmp_path / "rows.csv", "#x\r\na,b\r1,2\n# 3,4\n#\n5,6\n\n#7\n8,9\n#"
    path.write_bytes(text.encode())
    for quotes in (True, False):
        with lines.without_comments(path, ",", quotes) as rows:
            read = "".join(iter(lambda rows=rows: rows.read(3), ""))
        assert read.replace("\r\n", "\n").replace("\r", "\n") == "a,b\n1,2\n5,6\n\n8,9\n"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_file_is_looked_at_in_pieces_of_whole_lines(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "PIECE", size)
    text = "# one\n# two\n\n  \na,b\n1,2\n#\n3,4"
    found = list(pieces(io.StringIO(text)))
    assert "".join(found) == text and all(piece.endswith("\n") for piece in found[:-1])
    (tmp_path / "rows.csv").write_text(text)
    looked = Lines(tmp_path / "rows.csv")
    assert looked.first == ["# one\n", "# two\n", "a,b\n", "1,2\n", "#\n", "3,4"]
    assert looked.marked and not looked.quotes


def test_the_last_of_many_comments_names_the_columns(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("# made by hand\n" * 1000 + "# a b\n1.5 2\n3 4.25\n")
    assert read_csv(path)[1].names == ("a", "b")


@pytest.mark.parametrize("text", ["#\n" * 300_000, "\n" * 300_000, "# 1,2\n\n" * 100_000])
def test_many_lines_without_rows_are_looked_at_together(tmp_path: Path, text: str) -> None:
    """Of each kind there are so many in a piece; line by line took half a minute, and 60 times the file."""
    path = tmp_path / "rows.csv"
    path.write_text(text + "a,b\n1,2\n3,4\n")
    looked, number = Lines(path), 0

    def count(*arguments: object) -> bool:
        nonlocal number
        number += 1
        return str(arguments[0]).startswith("#")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "is_comment", count)
        Lines(path)
        if "\n\n#" not in text:
            assert number < 20
    assert looked.first[-3:] == ["a,b\n", "1,2\n", "3,4\n"] and len(looked.first) <= lines.LOOKED_AT + 3
    assert read_csv(path)[0].to_numpy().tolist() == [[1, 2], [3, 4]]


def test_rows_that_look_like_comments_are_spoken_of(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,a,b\n1,2.5,3\n#2,3.5,4\n3,5,6\n#4,1,2\n")
    frame, form = read_csv(path)
    assert len(frame) == 2
    assert any("begin with # are left out, such as '#2,3.5,4'" in note for note in form.notes)
    path.write_text('id,a,b\n1,2.5,3\n"#2",3.5,4\n# a break\n3,5,6\n')
    frame, form = read_csv(path)
    assert len(frame) == 3 and not form.notes


NUL = {
    "at the end, as a crash leaves it": (b"a,b\n1,2\n3,4\n" + b"\0" * 50, 4),
    "in a cell": (b"a,b\n1,2\n3\0,4\n", 3),
    "in a name": (b"a\0,b\n1,2\n", 1),
    "in UTF-16": ("a,b\n1,2\n".encode("utf-16-le"), 1),
    "behind the first lines": (b"a,b\n" + b"1,2\n" * 500 + b"\0,2\n", 502),
}


@pytest.mark.parametrize("case", NUL.values(), ids=NUL.keys())
def test_bytes_that_are_no_text_are_refused_by_their_line(tmp_path: Path, case: tuple[bytes, int]) -> None:
    content, line = case
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    for reads in (lambda: pv.data.load(str(path)), lambda: Table(path, 10)):
        with pytest.raises(pv.DataError, match=rf"rows.csv has a NUL byte in line {line}\. It is text in UTF-16, or"):
            reads()


def test_a_quotation_mark_that_nothing_closes_is_told_as_that(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('a,label\n1,x\n"2,y\n' + "3,x\n" * 50_000)
    with pytest.raises(pv.DataError, match="begins with a quotation mark that nothing closes"):
        pv.data.load(str(path))
    with pytest.raises(pv.DataError, match="Check its quotation marks"):
        read_labels(path)


@pytest.mark.parametrize("text", ["", "\n\n", "\ufeff"])
def test_a_file_without_lines_is_said_to_be_empty(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(pv.DataError, match="It is empty, or has only blanks"):
        pv.data.load(str(tmp_path / "rows.csv"))


def test_cells_in_quotes_may_be_long(tmp_path: Path) -> None:
    """Python's own reader takes 131,072 characters."""
    path = tmp_path / "rows.csv"
    pd.DataFrame({"a": [1.5, 2, 4], "note": ["x, " * 60_000, "y", "z"], "b": [1, 2, 3.5]}).to_csv(path, index=False)
    assert read_csv(path)[0]["b"].tolist() == [1, 2, 3.5]


def test_many_columns_of_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pandas tells them apart in the square of their number: 50,000 took half a minute."""
    monkeypatch.setattr(cells, "MOST_ALIKE", 3)
    path = tmp_path / "rows.csv"
    path.write_text("a,a,a,b\n1,2,3,4\n5,6,7,8\n")
    assert read_csv(path)[1].names == ("a", "a.1", "a.2", "b")
    path.write_text("a,a,a,a\n1,2,3,4\n5,6,7,8\n")
    with pytest.raises(pv.DataError, match="4 columns are called 'a'. Rename them"):
        read_csv(path)


SPLIT = {
    '1,"a,b",2': ["1", "a,b", "2"],
    '"a ""b"" c",': ['a "b" c', ""],
    'a"b,"c"d': ['a"b', "cd"],
    ' "a" , "b': ["a", "b"],
    '"",""': ["", ""],
    '"a\nb",c': ["a\nb", "c"],
}


@pytest.mark.parametrize("line", list(SPLIT))
def test_cells_of_a_line_are_those_that_pandas_reads(line: str) -> None:
    assert split(line + "\n", ",") == SPLIT[line]
    assert split(line, ",", 1) == SPLIT[line][:1]
    if line.count('"') % 2 == 0:
        how = {"header": None, "skipinitialspace": True, "na_filter": False, "dtype": str}
        assert [cell.strip() for cell in pd.read_csv(io.StringIO(line), **how).iloc[0]] == SPLIT[line]


def test_lines_are_within_a_cell_as_pandas_has_it() -> None:
    text = 'a,"b\n#c\n",d\n5" x,"y ""\nz"\n"w"v,"\n\n"\n#"\nu\n'
    found = [inside for _, inside in within_cells(io.StringIO(text), ",")]
    assert found == [False, True, True, False, True, False, True, True, False, False]


def test_lines_are_within_a_cell_by_any_text() -> None:
    """By a plain reading, character by character, of texts that are mostly marks."""
    draw = random.Random(0)
    for _ in range(2000):
        text = "".join(draw.choice('a""", \n') for _ in range(draw.randrange(1, 25)))
        expected, inside, begins = [], False, True  # begins: only blanks since the last mark
        for line in text.splitlines(keepends=True):
            expected.append(inside)
            place, begins = 0, True
            while place < len(line):
                if inside:
                    pair = line[place : place + 2] == '""'
                    inside, begins = line[place] != '"' or pair, False
                    place += 1 + pair
                    continue
                inside = line[place] == '"' and begins
                begins = line[place] == "," or (begins and line[place] == " ")
                place += 1
        assert [inside for _, inside in within_cells(text.splitlines(keepends=True), ",")] == expected, repr(text)


def test_few_of_very_long_lines_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The form of 40 lines of 5 MB was looked for in all of them, for half a minute."""
    path = tmp_path / "rows.csv"
    path.write_text("# made\n" + "a,b\n" + f"1,{'x' * 100}\n" * 30)
    assert len(Lines(path).first) == 32
    monkeypatch.setattr(lines, "ENOUGH", 300)
    assert len(Lines(path).first) == 5 and read_csv(path)[1].names == ("a", "b")
    monkeypatch.setattr(lines, "ENOUGH", 0)
    assert Lines(path).first == ["# made\n", "a,b\n", f"1,{'x' * 100}\n"]
    assert len(read_csv(path)[0]) == 30


@pytest.mark.parametrize("line", ["sep=,\r\n", "sep=;\n", '"sep=,"\n', "SEP=\t\n", "\nsep=,\n"])
@pytest.mark.parametrize("comment", ["", "# of a machine\n"])
def test_a_line_that_names_the_separator_is_no_row(tmp_path: Path, line: str, comment: str) -> None:
    """As programs write it for Excel. The other marks are in cells, and do not divide them."""
    separator = line.strip().strip('"')[4:] or "\t"
    frame = table("a; b, c").assign(b=1.5)
    frame.columns = ["a", "of #", "b"]
    rows = frame.to_csv(sep=separator, index=False)
    (tmp_path / "rows.csv").write_text("\ufeff" + line + comment + rows, encoding="utf-8", newline="")
    found, _ = read_csv(tmp_path / "rows.csv")
    pd.testing.assert_frame_equal(found, frame)
    blocks = [block.frame for block in Table(tmp_path / "rows.csv", 7).blocks()]
    pd.testing.assert_frame_equal(pd.concat(blocks, ignore_index=True), frame)

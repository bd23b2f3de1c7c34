"""Files of other programs, and files whose ending is not what they are: one error with the cure for that kind."""

from __future__ import annotations

import gzip
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import pyrovae as pv
from pyrovae._foreign import _TOLD, cure_of
from pyrovae.app.jobs.frames import Table
from pyrovae.data.labels import read_labels
from pyrovae.data.load import read
from pyrovae.errors import DataError, OptionError

CURES = {
    ".ods": "Save the table as .csv, .parquet or .xlsx",
    ".sav": r"pandas\.read_spss\('rows\.sav'\)\.to_csv",
    ".feather": r"pandas\.read_feather\('rows\.feather'\)\.to_parquet",
    ".json": r"pandas\.read_json\('rows\.json'\)",
    ".jsonl": r"pandas\.read_json\('rows\.jsonl', lines=True\)",
    ".zip": r"unzip rows\.zip",
    ".gz": r"gunzip rows\.gz",
    ".h5ad": r"anndata\.read_h5ad\('rows\.h5ad'\)",
    ".pkl": "is a pickle, which runs code when it is opened",
    ".pt": "is a pickle, which runs code when it is opened",
    ".png": "give the folder of images",
}


@pytest.mark.parametrize("ending", CURES)
def test_a_file_of_another_program_gets_its_own_cure(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows{ending}"
    path.write_bytes(b"content")
    with pytest.raises(OptionError, match=CURES[ending]):
        read(str(path))
    if ending != ".feather":  # which both read
        for reads in (pv.data.open, lambda path: Table(path, 10)):
            with pytest.raises(OptionError, match=CURES[ending]):
                reads(path)


@pytest.mark.parametrize("ending", _TOLD)
def test_each_cure_is_a_sentence_with_the_name(ending: str) -> None:
    cure = cure_of(Path(f"a {{b}} 'c'{ending.upper()}"))
    assert cure.startswith(f"a {{b}} 'c'{ending.upper()} ") and cure.endswith(".") and ": " not in cure[:8]


def test_a_file_that_is_not_there_is_told_so_and_not_cured(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="unknown data"):
        read(str(tmp_path / "rows.sav"))


def npy(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros((3, 2)))


OTHERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"a,b\n1,2\n")), "compressed by gzip: name it .gz"),
    "zip": (lambda path: zipfile.ZipFile(path, "w").writestr("a.csv", "a,b\n1,2\n"), "is a ZIP archive"),
    "npy": (npy, r"an array of NumPy: name it \.npy"),
    "utf-16": (lambda path: path.write_text("a,b\n1,2\n", encoding="utf-16"), "UTF-16: save it in UTF-8"),
    "pickle": (
        lambda path: path.write_bytes(pickle.dumps({"a": [1]}, protocol=4)),
        "Give rows of equal length|Save it",
    ),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_file_with_a_wrong_ending_is_told_what_it_is(tmp_path: Path, what: str) -> None:
    write, says = OTHERS[what]
    write(path := tmp_path / "rows.csv")
    with pytest.raises(DataError, match=says):
        read(str(path))


def test_a_workbook_and_a_parquet_file_with_wrong_endings(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    pd.DataFrame({"a": [1, 2]}).to_parquet(tmp_path / "rows.parquet")
    content = (tmp_path / "rows.parquet").read_bytes()
    (tmp_path / "rows.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"is a Parquet file: name it \.parquet"):
        read(str(tmp_path / "rows.csv"))
    (tmp_path / "rows.parquet").write_bytes(gzip.compress(b"a,b\n1,2\n"))
    with pytest.raises(DataError, match="compressed by gzip"):
        read(str(tmp_path / "rows.parquet"))
    (tmp_path / "rows.parquet").write_bytes(content[:-9])  # which is one, but damaged
    with pytest.raises(DataError, match=r"Save it as \.csv"):
        read(str(tmp_path / "rows.parquet"))


def test_labels_in_a_workbook_are_told_how_to_be_given(tmp_path: Path) -> None:
    for name, cure in (("labels.csv", "is a ZIP archive, as Excel's workbooks"), ("labels.xlsx", "Give a CSV file")):
        (tmp_path / name).write_bytes(b"PK\x03\x04\xff\xfe\x80")
        with pytest.raises(DataError, match=cure):
            read_labels(tmp_path / name)


LETTERS: dict[str, tuple[str, str]] = {  # of a name and its cells, and the encoding
    "German": ("größe,grün,süß", "cp1252"),
    "French": ("prénom,Hélène,Noël", "cp1252"),
    "curly quotes and euros": ("price €,“a”,it’s", "cp1252"),
    "Russian": ("имя,красный,синий", "cp1251"),
    "Chinese": ("名字,红色,蓝色", "gb18030"),
    "Japanese": ("名前,ひらがな,カタカナ", "shift-jis"),
}


def written_so(path: Path, case: str, line: int) -> None:
    words, encoding = LETTERS[case]
    name, *cells = words.split(",")
    lines = [f"id,label,{name if line == 1 else 'colour'}", *(f"{i},red,blue" for i in range(60))]
    lines += [f"{70 + i},{cell},blue" for i, cell in enumerate(cells)]
    path.write_bytes("\n".join(lines).encode(encoding))


@pytest.mark.parametrize("line", [1, 40])
@pytest.mark.parametrize("case", [name for name, (_, encoding) in LETTERS.items() if encoding == "cp1252"])
def test_letters_of_excel_are_read_and_it_is_said(tmp_path: Path, case: str, line: int) -> None:
    path = tmp_path / "from excel.csv"
    written_so(path, case, line)
    words = LETTERS[case][0].split(",")
    found = read(str(path), drop="id")
    assert any("are read as Windows-1252" in note and "save it in UTF-8" in note for note in found.notes)
    assert found.schema is not None and set(words[1:]) <= set(found.schema.columns[0].categories)
    assert found.schema.columns[-1].name == (words[0] if line == 1 else "colour")
    table = Table(path, 10)
    assert [block.frame["label"].iloc[-1] for block in table.blocks()][-1] == words[-1]
    text = path.read_bytes().decode("cp1252")
    path.write_text(f"# of a survey\n{text}", encoding="cp1252")
    assert read(str(path), drop="id").schema == found.schema
    path.write_text(text, encoding="utf-8")
    assert not [note for note in read(str(path), drop="id").notes if "UTF-8" in note]


@pytest.mark.parametrize("line", [1, 40])
@pytest.mark.parametrize("case", [name for name, (_, encoding) in LETTERS.items() if encoding != "cp1252"])
def test_letters_of_another_encoding_are_told_with_their_cure(tmp_path: Path, case: str, line: int) -> None:
    path = tmp_path / "from excel.csv"
    written_so(path, case, line)
    cure = (
        r"is not a table .* iconv -f WINDOWS-1252 -t UTF-8 'from excel.csv' > rows\.csv, with WINDOWS-1251 for Cyrillic"
    )
    for reads in (lambda path: read(str(path)), lambda path: list(Table(path, 10).blocks()), read_labels):
        with pytest.raises(DataError, match=cure):
            reads(path)


def test_damaged_utf_8_is_no_other_encoding(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes("\n".join(["colour,x", *(f"grün,{i}\nweiß,{i}" for i in range(40))]).encode() + b"\ngr\xc3n,3\n")
    with pytest.raises(DataError, match="or it is damaged"):
        read(str(path))

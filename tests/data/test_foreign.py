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


@pytest.mark.parametrize("line", [1, 40])
def test_letters_of_another_encoding_are_told_with_their_cure(tmp_path: Path, line: int) -> None:
    lines = ["id,label,colour", *(f"{i},red,blue" for i in range(60))]
    lines[line - 1 if line == 1 else line] = "id,label,größe" if line == 1 else "70,grün,blue"
    path = tmp_path / "from excel.csv"
    path.write_bytes("\n".join(lines).encode("cp1252"))
    cure = r"is not a table .*Windows-1252.* iconv -f WINDOWS-1252 -t UTF-8 'from excel.csv' > rows\.csv\."
    for reads in (lambda path: read(str(path)), lambda path: list(Table(path, 10).blocks()), read_labels):
        with pytest.raises(DataError, match=cure):
            reads(path)

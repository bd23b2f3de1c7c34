"""What a text file says about its rows is found, said, and can be overruled."""

import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

from pyrovae.app.likelihoods import choose_likelihood
from pyrovae.app.options import Options
from pyrovae.data import load, load_again
from pyrovae.data.cells import find_form
from pyrovae.data.load import read
from pyrovae.errors import DataError, OptionError

RNG = np.random.default_rng(0)


def lines(*rows: object, mark: str = ",") -> str:
    return "".join(mark.join(map(str, row)) + "\n" for row in rows)


def table(text: str, **options: object) -> object:
    Path("t.csv").write_text(text)
    dataset = read("t.csv", **options)
    again = load_again(json.loads(json.dumps(dataset.source)))
    assert torch.equal(again.x.nan_to_num(-7), dataset.x.nan_to_num(-7))  # whatever was found out is recorded
    assert (again.ids, again.columns, again.kind, again.source) == (
        dataset.ids,
        dataset.columns,
        dataset.kind,
        dataset.source,
    )
    return dataset


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


SPECTRA = RNG.random((12, 5)).round(4).tolist()
COUNTS = RNG.integers(0, 9, (12, 4)).tolist()

NUMBERS_THAT_NAME = {
    "wavelengths": lines([400, 450, 500, 550, 600], *SPECTRA),
    "falling": lines([4000, 3500, 3000, 2500, 2000], *SPECTRA),
    "decimals": lines([400.5, 401.0, 401.5, 402.0, 402.5], *SPECTRA),
    "uneven": lines([400.12, 401.9, 405.3, 409.1, 420.7], *SPECTRA),
    "years": lines([1990, 1991, 1992, 1993], *COUNTS),
    "years with gaps": lines([1990, 1995, 2005, 2020], *COUNTS),
    "next to the rows' names": lines(["site", 1990, 2000, 2010, 2020], *([f"s{i}", *r] for i, r in enumerate(COUNTS))),
    "next to a number's name": lines(["depth", 9.5, 7.25, 30.0], *RNG.random((12, 4)).round(3).tolist()),
    "semicolons": lines([400, 450, 500, 550, 600], *SPECTRA, mark=";"),
}


@pytest.mark.parametrize("text", NUMBERS_THAT_NAME.values(), ids=NUMBERS_THAT_NAME.keys())
def test_a_header_of_numbers_is_found_and_said(text: str) -> None:
    first = text.splitlines()[0].replace(";", ",").split(",")
    drop = {"drop": "site"} if first[0] == "site" else {}
    dataset = table(text, **drop)
    assert len(dataset.x) == 12 and dataset.columns == tuple(first[bool(drop) :])
    assert any("is taken for a header" in note and "--no-header" in note for note in dataset.notes)
    if not first[0].isalpha():
        whole = table(text, header=False)
        assert len(whole.x) == 13 and whole.columns is None and not whole.notes
    with pytest.warns(UserWarning, match="is taken for a header"):
        load("t.csv", **drop)


ROWS_OF_NUMBERS = {
    "reals": lines(*SPECTRA),
    "counts": lines(*COUNTS),
    "all rise": lines(*(np.sort(RNG.random(5)).round(3) for _ in range(9))),
    "all in equal steps": lines(*([i, i + 2, i + 4] for i in (3, 9, 1, 7))),
    "two columns": lines([1, 2], [4, 3], [5, 1], [9, 2]),
    "blank pixels": lines([0, 0, 0, 0], *COUNTS),
    "three rising values among others": lines([0.2, 0.4, 0.7], *RNG.random((12, 3)).round(2).tolist()),
    "a class that occurs again": lines([1, 2, 3, "a"], [7, 7, 1, "b"], [4, 1, 1, "a"], [2, 7, 5, "b"]),
    "a broken number": lines(["5.1x", 3.5, 1.4], [4.9, 3.0, 1.4], [4.7, 3.2, 1.3]),
}


@pytest.mark.parametrize("text", ROWS_OF_NUMBERS.values(), ids=ROWS_OF_NUMBERS.keys())
def test_rows_are_no_header(text: str) -> None:
    drop = {"drop": "last" if "a\n" in text else "0" if "x" in text else ()}
    dataset = table(text, **drop)
    assert len(dataset.x) == len(text.splitlines()) and dataset.columns is None


ANSWERS = [["agree", "no", "b"], ["disagree", "no", "a"], ["agree", "yes", "b"], ["agree", "no", "a"]]
TEXTS_THAT_NAME = {
    "answers": lines(["q1", "smoker", "arm"], *ANSWERS),
    "a gap": lines(["q1", "smoker", "arm"], *ANSWERS, ["", "", "a"]),
    "rows' names": lines(["person", "answer"], *([f"p{i}", row[0]] for i, row in enumerate(ANSWERS))),
    "dates": lines(["seen", "answer"], *([f"2024-01-0{1 + i}", row[0]] for i, row in enumerate(ANSWERS))),
    "long texts": lines(["name", "review"], *([f"p{i}", f"a long review {i}"] for i in range(4))),
    "semicolons": lines(["q1", "smoker", "arm"], *ANSWERS, mark=";"),
    "numbers with a name that is missing": lines(["", "answer"], *([3 * i, row[0]] for i, row in enumerate(ANSWERS))),
}
TEXTS_OF_ROWS = {
    "answers": lines(*ANSWERS),
    "an answer that is rare": lines(["never", "no", "b"], *ANSWERS),
    "dates": lines(*([f"2024-01-0{1 + i}", row[0]] for i, row in enumerate([["never"], *ANSWERS]))),
    "names": lines(["anna", "rome"], ["ben", "oslo"], ["cora", "bonn"]),
    "two that are one": lines(["x", "x", "y"], *ANSWERS),
    "one of which is a number": lines(["x", "7", "y"], *ANSWERS, ["b", "seven", "a"]),
}


@pytest.mark.parametrize("name", TEXTS_THAT_NAME)
def test_a_header_above_texts_is_found_and_said(name: str) -> None:
    """It was a row, and its cells were values."""
    Path("t.csv").write_text(TEXTS_THAT_NAME[name])
    form = find_form(Path("t.csv"))
    first = TEXTS_THAT_NAME[name].splitlines()[0].replace(";", ",").split(",")
    assert form.header and form.names == tuple(word or f"column {i}" for i, word in enumerate(first))
    assert any("is taken for a header" in note and "--no-header" in note for note in form.notes)
    assert not find_form(Path("t.csv"), False).header


@pytest.mark.parametrize("name", TEXTS_OF_ROWS)
def test_texts_are_no_header(name: str) -> None:
    Path("t.csv").write_text(TEXTS_OF_ROWS[name])
    form = find_form(Path("t.csv"))
    assert not form.header and not form.named


def test_a_header_can_be_demanded() -> None:
    assert table("1,2\n3,4\n5,6\n", header=True).columns == ("1", "2")
    assert table("0,1,2\n5,6,7\n", header=False).x.tolist() == [[0, 1, 2], [5, 6, 7]]


N = 24
VALUES = RNG.normal(size=N).round(3).tolist()
NAMES_OF_ROWS = {
    "patient_id": range(10001, 10001 + N),
    "ID": RNG.permutation(900)[:N],
    "SampleID": [f"s{i:03}" for i in range(N)],
    "id": [f"{i:05}" for i in range(N)],
    "serial number": RNG.permutation(10**6)[:N],
    "uuid": [f"{i:08x}-ab" for i in range(N)],
    "patient": range(10001, 10001 + N),
    "": range(N),
}


FIRST_ONLY = ("patient", "")  # a counter is known by its values in the first column only


@pytest.mark.parametrize(
    ("name", "first"), [(n, f) for n in NAMES_OF_ROWS for f in (True, False) if f or n not in FIRST_ONLY]
)
def test_ids_are_no_values(name: str, first: bool) -> None:
    ids = [str(i) for i in NAMES_OF_ROWS[name]]
    rows = [[name, "a"], *zip(ids, VALUES)] if first else [["a", name], *zip(VALUES, ids)]
    dataset = table(lines(*rows))
    assert dataset.columns == ("a",) and dataset.kind == "real"
    if name:
        assert dataset.ids == tuple(ids) and any(name in note and "--id none" in note for note in dataset.notes)
    if all(i.isdigit() for i in ids):
        kept = table(lines(*rows), ids="none")
        assert kept.x.shape == (N, 1 if not name else 2) and kept.ids is None


def test_a_table_of_counts_with_ids_stays_one_of_counts_and_ids_that_repeat_are_left_out() -> None:
    counts = RNG.integers(0, 9, N).tolist()
    assert table(lines(["a", "patient_id"], *zip(counts, range(10001, 10001 + N)))).kind == "count"
    visits = table(lines(["patient_id", "a"], *zip([*range(N - 1), 0], VALUES)))
    assert visits.columns == ("a",) and visits.ids is None and "patient_id is left out" in visits.notes[0]


NO_NAMES_OF_ROWS = {
    "a category": ("species_id", [i % 3 for i in range(N)]),
    "reals": ("bmi_index", [20 + i / 7 for i in range(N)]),
    "different numbers": ("area", RNG.permutation(900)[:N].tolist()),
    "a word that ends so": ("humid", RNG.permutation(900)[:N].tolist()),
}


@pytest.mark.parametrize("header", ["cell,a,b", ",a,b", "a,b,cell"])
def test_texts_that_say_nothing_leave_counts_what_they_are(header: str) -> None:
    counts = [[i % 5, i % 7] for i in range(30)]
    cells = [f"ACGT-{i}" for i in range(30)]
    last = header.endswith("cell")
    rows = [[*map(str, row), cell] if last else [cell, *map(str, row)] for row, cell in zip(counts, cells)]
    Path("counts.csv").write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")
    dataset = read("counts.csv")
    assert dataset.kind == "count" and dataset.columns == ("a", "b")
    assert dataset.x is not None and dataset.x.tolist() == counts
    assert dataset.ids == (None if last else tuple(cells))
    [note] = dataset.notes
    assert ("left out: texts, 30 different ones" in note) == last
    again = load_again(json.loads(json.dumps(dataset.source)))
    assert again.kind == "count" and again.x is not None and again.x.tolist() == counts and again.ids == dataset.ids


def test_a_first_column_of_dates_or_categories_names_no_rows() -> None:
    days = [f"2026-01-{i:02}" for i in range(1, 31)]
    Path("days.csv").write_text("\n".join(["day,a", *(f"{day},{i % 5}" for i, day in enumerate(days))]) + "\n")
    dataset = read("days.csv")
    assert dataset.ids is None and dataset.schema is not None and dataset.schema.names == ("day", "a")


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "bsr", "dia"])
def test_a_sparse_matrix_of_scipy_is_one_error(form: str) -> None:
    scipy.sparse.save_npz("sparse.npz", scipy.sparse.eye(4).asformat(form))
    with pytest.raises(DataError, match="toarray"):
        load("sparse.npz")


@pytest.mark.parametrize("case", NO_NAMES_OF_ROWS.values(), ids=NO_NAMES_OF_ROWS.keys())
def test_values_are_no_ids(case: tuple[str, list[float]]) -> None:
    name, values = case
    assert table(lines(["a", name], *zip(VALUES, values))).columns == ("a", name)


@pytest.mark.parametrize("dtype", ["int64", "int16", "uint8", "float32"])
@pytest.mark.parametrize("columns", [4, 30])
def test_whole_numbers_are_taken_for_the_same_in_an_array_as_in_a_text(
    dtype: str, columns: int, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    rows = np.column_stack([random.poisson(4 + 3 * k, 300) for k in range(columns)]).astype(dtype)
    np.save(tmp_path / "rows.npy", rows)
    pd.DataFrame(rows.astype(int)).to_csv(tmp_path / "rows.csv", index=False)
    array, text = (read(str(tmp_path / f"rows.{ending}")) for ending in ("npy", "csv"))
    chosen = [choose_likelihood(Options(), dataset)[0] for dataset in (array, text)]
    assert chosen[0] == chosen[1] and (chosen[0] == "negative-binomial") == (columns == 30)
    assert array.schema is not None and text.schema is not None
    assert [c.kind for c in array.schema.columns] == [c.kind for c in text.schema.columns]
    again = load_again(json.loads(json.dumps(array.source)))
    assert again.source == array.source and again.schema == array.schema


def test_pixels_of_8_bits_are_no_table(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).integers(0, 256, (300, 16)).astype(np.uint8))
    assert read(str(tmp_path / "rows.npy")).schema is None


def test_numbers_that_may_be_ids_are_mentioned() -> None:
    dataset = table(lines(*zip(10_000 + RNG.permutation(10**6)[:N], VALUES, VALUES)))
    assert dataset.x.shape == (N, 3) and "say --id column 0" in dataset.notes[0]


def test_columns_are_named_to_be_ids_or_dropped() -> None:
    text = lines(["a", "who", "b", "c"], *zip(VALUES, [f"w{i}" for i in range(N)], VALUES, VALUES))
    assert table(text, ids="who").ids == tuple(f"w{i}" for i in range(N))
    assert table(text, ids="1", drop=["b"]).columns == ("a", "c")
    assert table(text, drop="who, b").columns == ("a", "c") and table(text, drop="who,last").columns == ("a", "b")
    comma = table(text.replace("b,c", '"b,c",d').replace("who,b", "who,b"), drop=["who"])
    assert comma.columns == ("a", "b,c", "d")
    for options, message in (
        ({"ids": "woh"}, "no column 'woh' .did you mean who"),
        ({"drop": "bb"}, "no column 'bb'"),
        ({"ids": "who", "label": "who"}, "who is the label, and cannot be the id"),
        ({"drop": "a,who,b,c"}, "no column besides"),
    ):
        with pytest.raises((OptionError, DataError), match=message):
            table(text, **options)


@pytest.mark.parametrize("source", ["digits", "x.npy"])
def test_what_is_no_table_has_no_columns_to_choose(source: str) -> None:
    np.save("x.npy", np.ones((3, 2)))
    for options, flag in (({"ids": "a"}, "--id"), ({"drop": "a"}, "--drop"), ({"header": True}, "--header")):
        with pytest.raises(OptionError, match=f"{flag}: for tables"):
            load(source, **options)


FORMS = {
    "decimal commas": ("a;b\n1,5;2\n3;4,25\n", ["a", "b"]),
    "decimal commas without a header": ("1,5;2,0\n3,0;4,25\n", None),
    "decimal commas between tabs": ("a\tb\n1,5\t2\n3\t4,25\n", ["a", "b"]),
    "decimal commas between blanks": ("a b\n1,5 2\n3 4,25\n", ["a", "b"]),
    "decimal commas in quotes": ('a,b\n"1,5",2\n3,"4,25"\n', ["a", "b"]),
    "three decimals after a comma": ("a;b\n1,500;2,000\n3,000;4,250\n", ["a", "b"]),
    "commas in the names between semicolons": ("length, in cm;b\n1.5;2\n3;4.25\n", ["length, in cm", "b"]),
    "semicolons in a name": ('"a;b",c\n1.5,2\n3,4.25\n', ["a;b", "c"]),
    "comments": ("# made by hand\n# today\na,b\n1.5,2\n# a break\n3,4.25\n", ["a", "b"]),
    "names in a comment": ("# a b\n1.5 2\n3 4.25\n", ["a", "b"]),
    "no names in a comment": ("# by hand, in 2020, by me\n1.5,2\n3,4.25\n", None),
    "a column called #": ("#,b\n1.5,2\n3,4.25\n", ["column 0", "b"]),
    "an empty column": ("a,x,b\n1.5,,2\n3,,4.25\n", ["a", "b"]),
    "a column of question marks": ("a,b,x\n1.5,2,?\n3,4.25,?\n", ["a", "b"]),
    "separators at the ends": ("a;b;\n1.5;2;\n3;4.25;\n", ["a", "b"]),
}


@pytest.mark.parametrize("case", FORMS.values(), ids=FORMS.keys())
def test_forms_of_a_table(case: tuple[str, list[str] | None]) -> None:
    text, columns = case
    dataset = table(text)
    assert dataset.x.tolist() == [[1.5, 2], [3, 4.25]]
    assert dataset.columns == (None if columns is None else tuple(columns))
    if "5;" in text and "," in text.split("\n")[1]:
        assert any("decimal comma" in note for note in dataset.notes)


MARKED_NUMBERS = {
    "a comma in one column": ("a;b\n1,5;2\n3;4.25\n", [1.5, 3]),
    "thousands": ('a,b\n"1,234",2\n"5,678",3\n', [1234, 5678]),
    "thousands and a comma": ("a;b\n1.234,5;2\n3;4\n", [1234.5, 3]),
    "blanks": ("a,b\n1 234,5\n2,3\n", [1234, 2]),
    "money": ('a,b\n"$1,200.50",5\n$7,3\n', [1200.5, 7]),
    "shares": ("a,b\n12.5%,5\n7%,3\n", [12.5, 7]),
}


@pytest.mark.parametrize("case", MARKED_NUMBERS.values(), ids=MARKED_NUMBERS.keys())
def test_numbers_with_marks_are_read_and_it_is_said_how(case: tuple[str, list[float]]) -> None:
    text, numbers = case
    dataset = table(text)
    (column,) = [one for one in dataset.schema.columns if one.name == "a"]
    codes = dataset.x[:, dataset.columns.index("a")].tolist()
    assert [column.categories[int(code)] if column.is_class else code for code in codes] == numbers
    assert "is read as" in column.why


FEW = {
    "a constant": (lines(["a", "b"], [0.1, 1], [0.1, 2], [0.1, 4]), [[0.1, 1], [0.1, 2], [0.1, 4]]),
    "a large constant": (lines(["a"], *[[123456789.123]] * 7), [[123456789.123]] * 7),
    "a constant with gaps": (lines(["a", "b"], [0.3, 1], ["", 2], [0.3, 2.5]), [[0.3, 1], [np.nan, 2], [0.3, 2.5]]),
    "one row": (lines(["a", "b"], [0.1, 1e9 / 3]), [[0.1, 1e9 / 3]]),
    "true and false with gaps": (lines(["a", "b"], [True, 1], ["", 2], [False, 3]), [[1, 1], [np.nan, 2], [0, 3]]),
    "true, false and nothing else": (lines(["a"], [True], ["?"], [False]), [[1], [np.nan], [0]]),
}


@pytest.mark.parametrize("case", FEW.values(), ids=FEW.keys())
def test_columns_of_few_values(case: tuple[str, list[list[float]]]) -> None:
    text, rows = case
    dataset = table(text)
    np.testing.assert_array_equal(dataset.x.numpy(), np.array(rows, dtype=np.float32))
    constant = "0.1" in text and len(rows) > 1
    assert any("same value of a" in note for note in dataset.notes) or not constant


@pytest.mark.parametrize("values", [[2**53 + 1, 5], [2**63 + 5, 7], [2**24 + 1, 6]])
def test_whole_numbers_that_would_be_rounded(values: list[int]) -> None:
    with pytest.raises(DataError, match="a'? (holds whole numbers beyond|varies by)"):
        table(lines(["a", "b"], *zip(values, [1, 2])))


def test_ordinary_tables_leave_nothing_to_say() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Path("t.csv").write_text("a,b\n1.5,2\n2.5,1\n")
        assert load("t.csv").notes == ()


def test_runs_of_earlier_versions_read_a_table_as_they_did() -> None:
    text = lines([400, 450, 500], *RNG.random((9, 3)).round(3).tolist())
    old = {name: table(text).source[name] for name in ("path", "label", "checksum")}
    assert load_again(old).x.shape == (10, 3)
    text = lines(["patient_id", "a"], *zip(range(7), [0.5, 0.25, 0.1, 0.9, 1, 0, 0.7]))
    old = {name: table(text).source[name] for name in ("path", "label", "checksum")}
    assert load_again(old).columns == ("patient_id", "a")
    text = lines(["a"], [0.5], [0.25], [1])
    old = {name: table(text).source[name] for name in ("path", "label", "checksum")}
    assert load_again(old).kind == "unit" and table(text).kind == "real"


def test_a_second_line_of_a_header_is_told() -> None:
    """As survey tools and pandas write it: its texts would be gaps, a few among many cells, and a class of their own."""
    header = [
        ("when", "age", "answer", "name"),
        ("Start Date", "What is your age?", "Do you agree?", "Your name"),
        ("{1}",) * 4,
    ]
    rows = [(f"2024-01-{1 + i % 28:02}", 20 + i % 41, ["yes", "no"][i % 2], f"n{i}") for i in range(100)]
    Path("t.csv").write_text(lines(*header, *rows))
    told = "Rows 0, 1 (from 0) have no values in 2 columns, such as 'Start Date' in when: another line of a header"
    assert any(told in note for note in read("t.csv").notes)
    Path("t.csv").write_text(lines(header[0], *rows, ("Total", "all ages", "", "")))
    assert any("Row 100 (counted from 0) has no values in 2 columns" in note for note in read("t.csv").notes)
    Path("t.csv").write_text(lines(header[0], *rows, ("unknown", 31, "yes", "x"), ("2024-01-03", "old", "no", "y")))
    assert not any("another line" in note for note in read("t.csv").notes)


def test_codes_with_a_0_in_front_are_told_and_no_months() -> None:
    rows = [(f"{1000 + 90 * i:05}", f"{1 + i % 12:02}", i * 0.7) for i in range(150)]
    told = (
        "Cells begin with 0, as codes do, and are read as numbers: plz (such as 01000). --drop leaves such columns out."
    )
    dataset = table(lines(("plz", "month", "x"), *rows))
    assert told in dataset.notes  # type: ignore[attr-defined]
    dropped = table(lines(("plz", "month", "x"), *rows), drop="plz")
    assert not any("begin with 0" in note for note in dropped.notes)  # type: ignore[attr-defined]


@pytest.mark.parametrize("mark", [r"\N", "NULL", "(null)", "<null>"])
def test_nulls_of_databases_are_missing(mark: str) -> None:
    rows = [
        (f"{i % 9} days 0{i % 10}:30:00" if i % 4 else mark, i * 0.7 if i % 5 else mark, ["a", "b", mark][i % 3])
        for i in range(120)
    ]
    schema = table(lines(("took", "x", "kind"), *rows)).schema  # type: ignore[attr-defined]
    assert [column.kind for column in schema.columns] == ["time", "real", "binary"]
    assert not any("missing" in column.why for column in schema.columns)

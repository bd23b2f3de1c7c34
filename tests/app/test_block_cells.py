"""Cells of tables that are read block by block: what they are does not depend on the block that they are in."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from support.command import invoke

import pyrovae as pv
from pyrovae.app.jobs import answers, impute, outliers
from pyrovae.app.run import Run, open_run
from pyrovae.tables.cells import as_numbers
from pyrovae.tables.numerals import form_of, write

QUICK = ("--epochs", 2, "--hidden", 4, "--latent", 2, "--engine", "eager", "--proposal", "guide", "--num-samples", 5)


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, pd.DataFrame]:
    """A run of a table with names, of which some look like numbers, and the table."""
    folder, place = tmp_path_factory.mktemp("named"), np.arange(60)
    rows = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 2)).round(3), columns=["a", "b"])
    rows = rows.astype(str).assign(code=np.array(["A10", "001", "002"])[place // 20])
    rows.loc[1::7, "a"] = ""
    rows.to_csv(folder / "named.csv", index=False)
    code, _, err = invoke("fit", folder / "named.csv", "--seed", 0, *QUICK, "--out", folder / "run")
    assert code == 0, err
    return open_run(folder / "run"), rows


@pytest.mark.parametrize("size", [9, 59])
def test_names_that_look_like_numbers_are_names_in_every_block(
    named: tuple[Run, pd.DataFrame], size: int, tmp_path: Path
) -> None:
    """001 is not 1 in a block of such names only; and few cells that are no numbers are missing ones, in a short block, too."""
    run, rows = named[0], named[1].copy()
    rows.loc[59, "a"] = rows.loc[58, "b"] = "unclear"
    rows.to_csv(tmp_path / "named.csv", index=False)
    assert answers.encode_table(run, tmp_path / "named.csv", tmp_path / "z.csv", say=print, rows=size) == 60
    assert run.rows.schema is not None
    wanted = pv.encode(run.fitted, {"x": run.rows.schema.encode(rows)}, site="z")
    np.testing.assert_allclose(pd.read_csv(tmp_path / "z.csv")[["z0", "z1"]], wanted, rtol=1e-4, atol=1e-6)


def test_marks_of_gaps_are_filled_in(named: tuple[Run, pd.DataFrame], tmp_path: Path) -> None:
    """What the run takes for missing is filled in, and what it cannot read stays as it is written."""
    run, rows = named[0], named[1].iloc[:40].copy()
    rows.loc[[3, 4], "b"], rows.loc[5, "b"], rows.loc[6, "code"] = "-", "unclear", "n.a."
    rows.to_csv(tmp_path / "marked.csv", index=False)
    told = impute.fill_in(
        run, tmp_path / "marked.csv", tmp_path / "whole.csv", draws=0, num_samples=5, proposal="guide", rows=30
    )
    found = pd.read_csv(tmp_path / "whole.csv", dtype=str, keep_default_na=False)
    assert told.by_column == {"a": int((rows["a"] == "").sum()), "b": 2, "code": 1}
    assert found.loc[6, "code"] in ("A10", "001", "002") and found.loc[5, "b"] == "unclear"
    assert pd.to_numeric(found["b"].drop(5)).notna().all()
    there = (rows != "") & (rows != "-") & (rows != "n.a.")
    pd.testing.assert_frame_equal(found.where(there), rows.where(there), check_dtype=False)


def test_whole_numbers_with_gaps_are_not_rounded(named: tuple[Run, pd.DataFrame], tmp_path: Path) -> None:
    """In Parquet, of which pandas makes real numbers; as cells that stay, and as names of rows in all blocks alike."""
    run, numbers = named[0], [*range(2**53 + 1, 2**53 + 20), None]
    rows = named[1].iloc[:20].assign(patient_id=pd.array(numbers, dtype="Int64"))
    source, to = tmp_path / "long.parquet", tmp_path / "whole.parquet"
    rows.to_parquet(source, index=False)
    impute.fill_in(run, source, to, draws=0, num_samples=5, proposal="guide", rows=6)
    kept = parquet.read_table(to)["patient_id"]
    assert kept.type == pa.int64() and kept.to_pylist() == numbers
    how: dict[str, Any] = {"method": "log_likelihood", "rate": 0.3, "num_samples": 5, "proposal": "guide"}
    outliers.find_outliers(run, str(source), tmp_path / "found.csv", rows=6, **how)
    names = pd.read_csv(tmp_path / "found.csv", dtype=str, keep_default_na=False)["id"].tolist()
    assert names == [*map(str, numbers[:-1]), ""]


def test_a_column_that_would_be_there_twice_is_told(named: tuple[Run, pd.DataFrame], tmp_path: Path) -> None:
    named[1].iloc[:9].assign(draw=1).to_csv(tmp_path / "t.csv", index=False)
    how: dict[str, Any] = {"num_samples": 5, "proposal": "guide"}
    with pytest.raises(pv.OptionError, match="has a column 'draw', which --draws 2 writes"):
        impute.fill_in(named[0], tmp_path / "t.csv", tmp_path / "o.parquet", draws=2, **how)
    assert impute.fill_in(named[0], tmp_path / "t.csv", tmp_path / "o.parquet", draws=1, **how).tables == 1


@pytest.mark.parametrize(
    "euro",
    [lambda n: write(n, "1.234,5 €", 2), lambda n: write(n, "€1,234.5", 2), lambda n: f"{n:.2f}"],
    ids=["behind", "before", "plain"],
)
def test_filled_in_numbers_are_written_as_the_others_of_their_table(euro: Any, tmp_path: Path) -> None:
    """A number with a decimal point among ones with commas would make another column of them, and 1.234 is not 1234."""
    paid, share = (
        np.random.default_rng(0).lognormal(7, 1, 60).round(2),
        np.random.default_rng(1).random(60).round(3) * 100,
    )
    rows = pd.DataFrame(
        {"paid": [write(n, "1.234,5 €", 2) for n in paid], "share": [write(n, "1234,5 %", 1) for n in share]}
    )
    rows.to_csv(tmp_path / "euro.csv", sep=";", index=False)
    code, _, err = invoke("fit", tmp_path / "euro.csv", "--seed", 0, *QUICK, "--out", tmp_path / "run")
    assert code == 0, err
    rows["paid"] = [euro(n) for n in paid]
    rows.loc[::7, "paid"] = rows.loc[1::7, "share"] = ""
    rows.to_csv(tmp_path / "gaps.csv", sep=";", index=False)
    rows.replace("", None).to_parquet(tmp_path / "gaps.parquet")
    for name, to in (("gaps.csv", "whole.csv"), ("gaps.parquet", "whole.parquet")):
        code, _, err = invoke("impute", tmp_path / "run", tmp_path / name, "--out", tmp_path / to)
        assert code == 0, err
        found = pd.read_csv(tmp_path / to, sep=";", dtype=str) if to.endswith("csv") else pd.read_parquet(tmp_path / to)
        pd.testing.assert_frame_equal(found[rows != ""], rows[rows != ""], check_dtype=False)
        filled = found.loc[::7, "paid"].tolist(), found.loc[1::7, "share"].tolist()
        assert (
            form_of([*filled[0], euro(1234.5)]) == form_of([euro(n) for n in paid]) and form_of(filled[1]) == "1234,5 %"
        )
        numbers, strange = as_numbers(found["paid"].astype(object))
        assert not strange and np.isfinite(numbers).all()


def test_a_block_is_read_as_the_column_of_the_run(tmp_path: Path) -> None:
    rows = pd.DataFrame({"paid": [write(1000 + 7.25 * i, "1.234,5 €", 2) for i in range(60)], "x": np.arange(60) * 0.5})
    rows.to_csv(tmp_path / "euro.csv", sep=";", index=False)
    code, _, err = invoke("fit", tmp_path / "euro.csv", "--seed", 0, *QUICK, "--out", tmp_path / "run")
    assert code == 0, err
    for name, paid in (("whole", "1.360 €"), ("same", "1.360,00 €")):
        rows.iloc[:1].assign(paid=paid).to_csv(tmp_path / f"{name}.csv", sep=";", index=False)
        code, _, err = invoke("encode", tmp_path / "run", tmp_path / f"{name}.csv", "--out", tmp_path / f"{name}-z.csv")
        assert code == 0, err
    assert (tmp_path / "whole-z.csv").read_text() == (tmp_path / "same-z.csv").read_text()


@pytest.mark.parametrize("draws", [0, 2])
def test_a_table_of_excel_is_one_of_excel_again(named: tuple[Run, pd.DataFrame], draws: int, tmp_path: Path) -> None:
    """Without the mark at its beginning, Excel would take letters beyond ASCII for others."""
    run, rows = named[0], named[1].assign(größe="süß")
    for name, encoding, end in (("excel", "utf-8-sig", "\r\n"), ("plain", "utf-8", "\n")):
        rows.to_csv(tmp_path / f"{name}.csv", index=False, encoding=encoding, lineterminator=end)
        to = tmp_path / f"{name}-whole.csv"
        how = {"draws": draws, "num_samples": 5, "proposal": "guide", "rows": 30}
        impute.fill_in(run, tmp_path / f"{name}.csv", to, **how)
        written = to.read_bytes()
        assert written.startswith("\ufeff".encode()) == (name == "excel") and written.count("\ufeff".encode()) <= 1
        assert written.count(b"\r\n") == (written.count(b"\n") if name == "excel" else 0)
        assert pd.read_csv(to)["größe"].eq("süß").all()


@pytest.mark.parametrize("form", ["%d.%m.%Y", "%Y-%m-%d"])
def test_filled_in_dates_are_written_as_the_others_of_their_table(form: str, tmp_path: Path) -> None:
    days = pd.Series(pd.date_range("2024-01-01", periods=60))
    rows = pd.DataFrame({"seen": days.dt.strftime("%d.%m.%Y"), "x": np.arange(60) * 0.5})
    rows.to_csv(tmp_path / "t.csv", index=False)
    code, _, err = invoke("fit", tmp_path / "t.csv", "--seed", 0, *QUICK, "--out", tmp_path / "run")
    assert code == 0, err
    rows["seen"] = days.dt.strftime(form)
    rows.loc[::7, "seen"] = ""
    rows.to_csv(tmp_path / "gaps.csv", index=False)
    code, _, err = invoke("impute", tmp_path / "run", tmp_path / "gaps.csv", "--out", tmp_path / "whole.csv")
    assert code == 0, err
    found = pd.read_csv(tmp_path / "whole.csv")["seen"]
    assert pd.to_datetime(found, format=form).notna().all() and (found == rows["seen"])[rows["seen"] != ""].all()

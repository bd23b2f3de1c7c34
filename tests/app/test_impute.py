"""`pyrovae impute`: the missing cells of a table come back filled in, and everything else as it was written."""

import re
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from support.command import Command, invoke

from pyrovae.app.jobs.impute import _typed
from pyrovae.tables import infer

pytestmark = pytest.mark.slow

QUICK = ("--epochs", 30, "--hidden", 8, "--latent", 1, "--engine", "eager", "--proposal", "guide", "--num-samples", 200)


def table(rows: int, seed: int) -> pd.DataFrame:
    """Six columns of six kinds that one hidden number moves together."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=rows)
    return pd.DataFrame(
        {
            "visits": rng.poisson(np.exp(1 + 0.5 * z)),
            "kind": np.where(z + 0.3 * rng.normal(size=rows) > 0, "rose", "tulip"),
            "length": np.round(10 + 3 * z + 0.5 * rng.normal(size=rows), 2),
            "late": z + rng.normal(size=rows) > 1,
            "seen": (pd.Timestamp("2024-01-01") + pd.to_timedelta(np.round(60 + 20 * z), unit="D")).strftime(
                "%d.%m.%Y"
            ),
            "pain": np.where(z + rng.normal(size=rows) > 0, "none", "mild"),
        }
    )


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("impute")
    rows = table(300, 0)
    rows.loc[::7, "length"] = np.nan
    rows.to_csv(folder / "rows.csv", index=False)
    code, _, err = invoke("fit", folder / "rows.csv", "--seed", 0, *QUICK, "--out", folder / "run")
    assert code == 0, err
    return folder / "run"


def holed() -> pd.DataFrame:
    rows = table(20, 1).astype({"visits": object, "late": object})
    rows.loc[2, "visits"] = rows.loc[3, "kind"] = rows.loc[3, "late"] = rows.loc[4, "length"] = None
    rows.loc[5, "seen"] = rows.loc[6, "pain"] = None
    rows.insert(1, "remark", ["", "a, b", *[f"{i:03d}" for i in range(18)]])
    return rows[["length", "remark", "late", "kind", "visits", "seen", "pain"]]


def test_gaps_are_filled_and_other_cells_stay_as_they_are_written(pyrovae: Command, fitted: Path) -> None:
    holed().to_csv("holes.csv", index=False)
    code, out, err = pyrovae("impute", fitted, "holes.csv", "--out", "whole.csv")
    assert code == 0, err
    assert "6 missing cells filled in: " in out and "does not model remark" in " ".join(out.split())
    given = pd.read_csv("holes.csv", dtype=str, na_filter=False)
    found = pd.read_csv("whole.csv", dtype=str, na_filter=False)
    assert list(found.columns) == list(given.columns)
    gaps = given == ""
    gaps["remark"] = False
    assert (found.where(~gaps) == given.where(~gaps)).where(~gaps, True).to_numpy().all()
    assert found.loc[3, "kind"] in ("rose", "tulip") and found.loc[3, "late"] in ("True", "False")
    assert re.fullmatch(r"\d\d\.0[1-5]\.2024", found.loc[5, "seen"]) and found.loc[6, "pain"] in ("none", "mild")
    assert 0 < float(found.loc[4, "length"]) < 20 and float(found.loc[2, "visits"]) >= 0


def test_several_draws_stand_below_one_another(pyrovae: Command, fitted: Path) -> None:
    holed().to_csv("holes.csv", index=False)
    code, out, err = pyrovae("impute", fitted, "holes.csv", "--draws", 3, "--out", "whole.csv")
    assert code == 0, err
    found = pd.read_csv("whole.csv")
    assert "3 tables" in out and found["draw"].tolist() == [1] * 20 + [2] * 20 + [3] * 20
    assert found[["length", "late", "kind", "visits"]].notna().all().all()
    assert found["length"][[4, 24, 44]].nunique() == 3
    assert (found["visits"] == found["visits"].round()).all()
    before = Path("whole.csv").read_text()
    code, _, err = pyrovae("impute", fitted, "holes.csv", "--out", "whole.csv")
    assert code == 2 and "whole.csv exists" in err and Path("whole.csv").read_text() == before


def test_a_table_of_numbers(pyrovae: Command) -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(200, 1))
    rows = pd.DataFrame(10 + 3 * (z * [1, -1, 2] + 0.1 * rng.normal(size=(200, 3))), columns=["a", "b", "c"])
    whole = rows.copy()
    rows.loc[::5, "a"] = np.nan
    rows.to_csv("rows.csv", index=False)
    code, _, err = pyrovae("fit", "rows.csv", "--seed", 0, *QUICK, "--out", "run")
    assert code == 0, err
    rows[["c", "a", "b"]].to_csv("holes.csv", index=False)
    code, out, err = pyrovae("impute", "run", "holes.csv")
    assert code == 0, err
    found = pd.read_csv("run/imputed.csv")
    assert "40 missing cells filled in: a (40)." in out
    assert np.allclose(found[["b", "c"]], rows[["b", "c"]]) and found["a"].notna().all()
    assert np.corrcoef(found["a"][::5], whole["a"][::5])[0, 1] > 0.5


def test_tables_that_do_not_fit(pyrovae: Command, fitted: Path) -> None:
    holed().drop(columns="length").to_csv("holes.csv", index=False)
    code, _, err = pyrovae("impute", fitted, "holes.csv", "--out", "whole.csv")
    assert code == 2 and "no column 'length'" in err and not Path("whole.csv").exists()
    rows = holed()
    rows.loc[0, "kind"] = "daisy"
    rows.to_csv("holes.csv", index=False)
    code, _, err = pyrovae("impute", fitted, "holes.csv", "--out", "whole.csv")
    assert code == 2 and "daisy" in err
    code, _, err = pyrovae("impute", fitted, "holes.csv", "--draws", -1, "--out", "whole.csv")
    assert code == 2 and "--draws must be 0 or more" in err


def test_an_export_keeps_its_header_and_the_forms_of_its_cells(pyrovae: Command) -> None:
    """Names that occur twice, a column without a name, letters of Excel, times, units and per cent."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=200)
    cells = {
        "Maß": [f"{v:.1f} kg" for v in 70 + 9 * z],
        "beginn": [f"{int(v) // 60:02}:{int(v) % 60:02}" for v in 600 + 60 * z],
        "anteil": [f"{v:.0f} %" for v in 100 / (1 + np.exp(-2 - z))],
        "ort": np.where(z > 0, "Köln", "Düren"),
        "mal": np.round(z, 2),
        "": np.round(z + 1, 2),
    }
    rows = pd.DataFrame(cells).astype(object)
    rows.loc[::9, rows.columns] = rows.loc[::9, rows.columns].mask(rng.random((23, 6)) < 0.5, "")
    rows.columns = ["mal", "beginn", "anteil", "ort", "mal", ""]
    header = "mal;beginn;anteil;ort;mal;"
    rows.to_csv("export.csv", index=False, sep=";", encoding="cp1252")
    assert Path("export.csv").read_text("cp1252").splitlines()[0].replace('""', "") == header
    code, _, err = pyrovae("fit", "export.csv", "--seed", 0, *QUICK, "--out", "run")
    assert code == 0 and "are read as Windows-1252" in err and "mal (mal.1)" in err
    for draws, first in ((0, "mal"), (2, "draw;mal")):
        code, _, err = pyrovae("impute", "run", "export.csv", "--draws", draws, "--out", "whole.csv", "--force")
        assert code == 0, err
        lines = Path("whole.csv").read_bytes().decode("utf-8-sig").splitlines()
        assert lines[0].replace('""', "") == first + header.removeprefix("mal")
        assert Path("whole.csv").read_bytes().startswith(b"\xef\xbb\xbf")  # or Excel would take it for Windows-1252
        shapes = r"-?[\d.]+ kg;\d\d:\d\d;(\d\d?|100) %;(Köln|Düren);-?[\d.]+;-?[\d.]+"
        assert all(re.fullmatch((r"\d;" if draws else "") + shapes, line) for line in lines[1:]), lines


TYPED: dict[str, tuple[pa.Array, object]] = {
    "days": (pa.array([date(2024, 1, 1) + timedelta(days=i) for i in range(40)]), date(2024, 1, 4)),
    "decimals": (pa.array([Decimal(i) / 4 for i in range(40)], type=pa.decimal128(12, 3)), Decimal("0.750")),
    "long durations": (pa.array([timedelta(hours=9 * i) for i in range(40)]), timedelta(hours=27)),
    "times": (pa.array([time(i % 24, i) for i in range(40)]), time(3, 3)),
    "moments in a zone": (
        pa.array(
            [datetime(2024, 1, 1, tzinfo=UTC) + timedelta(days=i) for i in range(40)], pa.timestamp("us", "Asia/Tokyo")
        ),
        datetime(2024, 1, 4, tzinfo=UTC),
    ),
}


@pytest.mark.parametrize("case", TYPED.values(), ids=TYPED)
def test_what_is_filled_in_a_parquet_file_has_the_type_of_its_column(case: tuple[pa.Array, object]) -> None:
    cells, wanted = case
    frame = pa.table({"a": cells}).to_pandas()
    schema = infer(frame)
    decoded = schema.decode(schema.encode(frame))
    frame.loc[3, "a"] = None
    filled = _typed(frame, frame.isna(), decoded, {"a": schema.columns[0]})
    assert frame["a"].isna().sum() == 1  # a user's table stays as it is
    assert filled["a"].map(type).nunique() == 1
    again = pa.Table.from_pandas(filled, preserve_index=False)["a"]
    assert again.type == cells.type or pa.types.is_decimal(again.type)
    found = again.to_pylist()
    assert found[4:] == cells.to_pylist()[4:]
    assert abs(found[3] - wanted) < timedelta(minutes=3) if isinstance(wanted, datetime) else found[3] == wanted

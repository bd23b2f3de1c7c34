"""Tables of numbers whose columns of classes do not come last: the model has them in another order than the table."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from support.command import Command

import pyrovae as pv
from pyrovae.app.cli.files import write_rows
from pyrovae.app.comparisons import measure_of
from pyrovae.app.jobs.impute import _as_texts
from pyrovae.app.run import open_run


@pytest.mark.slow
def test_columns_keep_their_values_and_names_in_every_question(pyrovae: Command) -> None:
    random = np.random.default_rng(0)
    flag = random.integers(0, 2, 120)
    table = pd.DataFrame({"flag": flag, "x": random.normal(3 * flag, 1).round(2), "grade": random.integers(1, 4, 120)})
    table["y"] = (100 + random.normal(size=120)).round(1)
    table.to_csv("table.csv", index=False)
    quick = ("--epochs", 20, "--proposal", "guide", "--num-samples", 10)
    code, _, err = pyrovae("fit", "table.csv", *quick, "--out", "run")
    assert code == 0, err
    run = open_run(Path("run"))
    assert run.rows.columns == ("x", "y", "flag", "grade")
    assert "(x, y)" in measure_of(run).kind and "(flag, grade)" in measure_of(run).kind

    assert pyrovae("encode", "run", "--out", "codes.csv")[0] == 0
    codes = torch.tensor(pd.read_csv("codes.csv", index_col="row").to_numpy(), dtype=torch.float32)
    torch.testing.assert_close(
        codes[run.rows.test_index], pv.encode(run.fitted, run.rows.batch("test")), atol=1e-4, rtol=1e-4
    )

    assert pyrovae("generate", "run", "-n", 50, "--out", "new.csv")[0] == 0
    new = pd.read_csv("new.csv")
    assert list(new) == list(table) and new["grade"].isin([1, 2, 3]).all() and new["y"].between(80, 120).all()

    strange = table.head(3).copy()
    strange.loc[0, "y"] = 107.0
    strange.to_csv("strange.csv", index=False)
    assert pyrovae("outliers", "run", "strange.csv", "--proposal", "laplace", "--out", "found.csv")[0] == 0
    found = pd.read_csv("found.csv", index_col="row")
    assert found.loc[0, "rank"] == 1 and found.loc[0, "column_1"] == "y"

    gaps = table.head(12).astype(object)
    gaps.loc[4, "flag"] = gaps.loc[5, "y"] = None
    gaps.to_csv("gaps.csv", index=False)
    code, _, err = pyrovae("impute", "run", "gaps.csv", "--num-samples", 20, "--out", "whole.csv")
    assert code == 0 and pd.read_csv("whole.csv").notna().all().all(), err


@pytest.mark.parametrize(
    ("visits", "written"),
    [([3.0, 40.0], ["3", "40"]), ([3.0, math.nan], ["3", ""]), ([math.inf, 1.0], ["inf", "1.0"])],
    ids=["whole", "missing", "far out"],
)
def test_counts_of_a_column_with_gaps_are_written_as_counts(
    visits: list[float], written: list[str], tmp_path: Path
) -> None:
    """Unless they are larger than whole numbers can be."""
    cells = pd.DataFrame({"visits": [*range(40), None], "length": np.linspace(0, 1, 41)})
    schema = pv.tables.infer(cells)
    assert schema.columns[0].kind == "count" and schema.names[0] == "visits"
    rows: Any = SimpleNamespace(schema=schema, given=None, columns=None)
    write_rows(tmp_path / "t.csv", torch.tensor([[one, 0.5] for one in visits]), rows)
    assert pd.read_csv(tmp_path / "t.csv", dtype=str, keep_default_na=False)["visits"].tolist() == written


def test_few_numbers_of_a_column_with_gaps_are_written_as_they_are(tmp_path: Path) -> None:
    """9, and not 9.0, as its dtype would have it; and filled in with the sign that the others have."""
    cells = pd.DataFrame(
        {"score": [7, 8, 9] * 20 + [None], "off": ["5%", "10%", "25%"] * 20 + [None], "x": np.arange(61) * 0.1}
    )
    schema = pv.tables.infer(cells)
    rows: Any = SimpleNamespace(schema=schema, given=None, columns=None)
    write_rows(tmp_path / "t.csv", torch.tensor([[0.5, 2, 1], [0.1, 0, 2]]), rows)
    written = pd.read_csv(tmp_path / "t.csv", dtype=str)
    assert written[["score", "off"]].to_numpy().tolist() == [["9", "10"], ["7", "25"]]
    decoded = schema.decode(torch.tensor([[0.5, 2.0, 1.0]]))
    off = next(column for column in schema.columns if column.name == "off")
    assert _as_texts(["5%", "25%"], decoded["off"].to_numpy(), ".", off) == ["10%"]

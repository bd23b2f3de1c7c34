"""`pyrovae outliers`: ranks, p-values and strange columns of a new table, and what is said of tables that do not fit."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from support.command import Command, invoke

from pyrovae.app.jobs import outliers
from pyrovae.app.jobs.outliers import strangest_first
from pyrovae.app.jobs.trained import TrainingRows
from pyrovae.app.rows import split_rows
from pyrovae.app.run import open_run

pytestmark = pytest.mark.slow

NAMES = ["a", "b", "c", "d"]
QUICK = ("--epochs", 30, "--hidden", 8, "--latent", 1, "--engine", "eager", "--proposal", "guide", "--num-samples", 50)


def table(rows: int, seed: int) -> pd.DataFrame:
    """Four columns that one hidden number moves together."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(rows, 1))
    return pd.DataFrame(10 + 3 * (z * [1, -1, 2, 0.5] + 0.3 * rng.normal(size=(rows, 4))), columns=NAMES)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outliers")
    table(400, 0).to_csv(folder / "rows.csv", index=False)
    how = ("--test-fraction", 0.3, "--seed", 0, *QUICK, "--out", folder / "run")
    code, _, err = invoke("fit", folder / "rows.csv", *how)
    assert code == 0, err
    return folder / "run"


@pytest.fixture
def new() -> pd.DataFrame:
    rows = table(60, 1)
    rows.loc[7, "b"] += 25
    rows.loc[20, "d"] -= 15
    rows.insert(0, "id", [f"s{i}" for i in range(60)])
    return rows


def test_strange_rows_come_first_with_their_columns(pyrovae: Command, fitted: Path, new: pd.DataFrame) -> None:
    new[["id", "d", "c", "b", "a"]].to_csv("new.csv", index=False)  # in another order
    code, out, err = pyrovae("outliers", fitted, "new.csv", "--out", "found.csv", "--rate", 0.2)
    assert code == 0, err
    found = pd.read_csv("found.csv").set_index("id")
    assert found.index.tolist() == new["id"].tolist()
    assert set(found.index[found["rank"] <= 2]) == {"s7", "s20"}
    assert found.loc["s7", "column_1"] == "b" and found.loc["s20", "column_1"] == "d"
    assert found.loc[["s7", "s20"], "p_value"].tolist() == pytest.approx([1 / 121] * 2, rel=1e-4)
    assert sorted(found["rank"]) == list(range(1, 61)) and found["p_value"].between(1 / 122, 1).all()
    assert (found["outlier"] == (found["adjusted_p"] <= 0.2)).all()
    assert "120 test rows" in out and "s7" in out and "b (p 0.0083)" in " ".join(out.split())
    before = Path("found.csv").read_text()
    code, _, err = pyrovae("outliers", fitted, "new.csv", "--out", "found.csv")
    assert code == 2 and "found.csv exists" in err and Path("found.csv").read_text() == before


@pytest.mark.parametrize("kind", [".csv", ".parquet"])
def test_training_rows_are_told_apart(pyrovae: Command, fitted: Path, new: pd.DataFrame, kind: str) -> None:
    opened = open_run(fitted)
    trained = split_rows(opened.dataset, opened.options).train.sort().values.tolist()
    rows = pd.concat([table(400, 0), new[NAMES]], ignore_index=True)
    rows.to_csv("rows.csv", index=False) if kind == ".csv" else rows.to_parquet("rows.parquet")
    code, out, err = pyrovae("outliers", fitted, f"rows{kind}", "--out", "found.csv")
    assert code == 0, err
    found = pd.read_csv("found.csv")
    assert found["row"][found["trained_on"]].tolist() == trained and 0 < len(trained) < 280
    assert f"{len(trained)} of 460 rows are training rows of the run" in " ".join(out.split())
    code, out, err = pyrovae("evaluate", fitted, f"rows{kind}", "--out", "scores.csv", "--num-samples", 5)
    assert code == 0 and f"{len(trained)} of 460 rows are training rows of the run" in " ".join(out.split()), err
    assert (pd.read_csv("scores.csv")["trained_on"] == found["trained_on"]).all()
    new.to_csv("new.csv", index=False)
    for question in ("outliers", "evaluate"):
        code, out, err = pyrovae(question, fitted, "new.csv", "--out", f"{question}.csv", "--num-samples", 5)
        assert code == 0 and "training rows" not in out, err
        assert not pd.read_csv(f"{question}.csv")["trained_on"].any()


def test_rows_that_equal_training_rows_by_chance_are_not_told_of() -> None:
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 2, (300, 3), generator=generator).float()  # each of the eight rows is a training row, too
    reals = torch.randn(300, 3, generator=generator)
    reals[0, 0], reals[1, 1] = -0.0, torch.nan
    for x, told in ((bits, False), (reals, True)):
        parts = {"train": {"x": x[:200]}, "test": {"x": x[200:]}}
        run: Any = SimpleNamespace(rows=SimpleNamespace(batch=lambda part, labels=True, parts=parts: parts[part]))
        training = TrainingRows(run)
        among = training.among({"x": x[:50] * 1.0})
        assert among.all() and training.are_told(int(among.sum()), 50) == told
        assert training.among({"x": x[200:]}).any() != told and not training.among({"x": x + 9}).any()
        assert training.among({"x": torch.tensor([[0.0, *x[0, 1:].tolist()]])}).all() or not told  # -0 is 0


@pytest.mark.parametrize("method", ["regret", "typicality"])
def test_other_scores(pyrovae: Command, fitted: Path, new: pd.DataFrame, method: str) -> None:
    new.head(12).to_csv("new.csv", index=False)
    code, _, err = pyrovae("outliers", fitted, "new.csv", "--method", method, "--out", "found.csv")
    assert code == 0, err
    found = pd.read_csv("found.csv")
    assert found["score"].notna().all() and len(found) == 12 and (found["score"] >= 0).all() == (method == "typicality")


def test_without_out_the_table_is_in_the_run_folder(pyrovae: Command, fitted: Path, new: pd.DataFrame) -> None:
    new.drop(columns="id").to_csv("new.csv", index=False)
    code, out, err = pyrovae("outliers", fitted, "new.csv")
    assert code == 0, err
    assert "outliers.csv" in out and pd.read_csv(fitted / "outliers.csv").columns[0] == "row"
    assert json.loads((fitted / "run.json").read_text())  # and the run stays whole
    assert pyrovae("evaluate", fitted)[0] == 0


def changed(new: pd.DataFrame, kind: str) -> Any:
    new = new.drop(columns="id")
    if kind == "a column is gone":
        return new.drop(columns="c")
    if kind == "text":
        return new.assign(c=["x"] * len(new))
    return new


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("a column is gone", (), "no column 'c'"),
        ("text", (), "Column 'c' holds real values, and 60 of 60 cells are no such values"),
        ("", ("--method", "ratio"), "--method must be one of"),
        ("", ("--rate", 1.5), "--rate must be between 0 and 1"),
    ],
)
def test_what_cannot_be_scored(
    pyrovae: Command, fitted: Path, new: pd.DataFrame, kind: str, options: tuple[Any, ...], words: str
) -> None:
    changed(new, kind).to_csv("new.csv", index=False)
    code, _, err = pyrovae("outliers", fitted, "new.csv", *options, "--out", "found.csv")
    assert code == 2 and words in err, err
    assert not Path("found.csv").exists()


def test_values_that_cannot_be_are_the_strangest(pyrovae: Command, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"size": np.exp(rng.normal(size=250)), "parts": rng.poisson(3, 250), "x": rng.normal(size=250)})
    rows["mode"] = np.where(rng.random(250) < 0.5, "on", "off")
    rows["level"] = rng.integers(1, 4, 250)
    rows.to_csv(tmp_path / "rows.csv", index=False)
    code, _, err = pyrovae("fit", tmp_path / "rows.csv", "--seed", 0, "--search", "none", *QUICK, "--out", "run")
    assert code == 0, err
    new = rows.head(20).assign(mode=rows["mode"].astype(object), x=rows["x"] + 0.01)
    new.loc[3, "size"], new.loc[5, "mode"], new.loc[9, "level"] = -2.0, "broken", 7
    new.loc[9, "parts"], new.loc[11, "mode"], new.loc[12, "size"] = -1, None, None
    new.loc[14, "x"] = np.inf
    for kind in ("csv", "parquet"):
        new.to_csv("new.csv", index=False) if kind == "csv" else new.to_parquet("new.parquet")
        code, out, err = pyrovae("outliers", "run", f"new.{kind}", "--out", f"{kind}.csv")
        assert code == 0, err
        said = " ".join(out.split())
        assert (
            "4 of 20 rows hold values that their columns cannot have" in said
            and "size (1), mode (1), parts (1), level (1), x (1)." in said
        )
        assert "rows is infinite" not in said
    found = pd.read_csv("csv.csv")
    pd.testing.assert_frame_equal(found, pd.read_csv("parquet.csv"))
    assert found["impossible"].dropna().to_dict() == {3: "size", 5: "mode", 9: "parts, level", 14: "x"}
    assert found["outlier"][[3, 5, 9, 14]].all() and set(found.index[found["rank"] <= 4]) == {3, 5, 9, 14}
    assert np.isinf(found["score"][[3, 5, 9, 14]]).all() and np.isfinite(found["score"].drop([3, 5, 9, 14])).all()
    assert found.loc[9, ["column_1", "p_column_1", "column_2"]].tolist() == ["parts", 0.0, "level"]
    assert (found["p_column_1"].drop([3, 5, 9, 14]) > 0).all()


def test_blocks_have_the_same_columns_whatever_cannot_be_in_them(
    pyrovae: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"a, b": np.exp(rng.normal(size=250)), "n": rng.poisson(30, 250), "x": rng.normal(size=250)})
    rows.to_csv(tmp_path / "rows.csv", index=False)
    assert pyrovae("fit", tmp_path / "rows.csv", "--seed", 0, "--search", "none", *QUICK, "--out", "run")[0] == 0
    monkeypatch.setattr(outliers, "rows_at_once", lambda *args: 4)
    new = rows.head(8).copy()
    new["a, b"] *= -1  # no row is left to compare columns of
    new.loc[6, "n"] = -1
    new.to_csv("new.csv", index=False)
    code, out, err = pyrovae("outliers", "run", "new.csv", "--out", "found.csv")
    assert code == 0 and "a, b (8), n (1)." in " ".join(out.split()), err
    found = pd.read_csv("found.csv")
    assert found["column_1"].tolist() == ["a, b"] * 8 and found["column_2"].dropna().to_dict() == {6: "n"}
    assert found["impossible"].tolist() == ["a, b"] * 6 + ["a, b, n", "a, b"]


def test_a_run_that_is_none(pyrovae: Command) -> None:
    Path("new.csv").write_text("a,b\n1,2\n")
    code, _, err = pyrovae("outliers", "nowhere", "new.csv")
    assert code == 2 and "not a run folder" in err


def test_the_columns_to_blame_are_those_farthest_from_ordinary_entries_whatever_gaps_they_have() -> None:
    usual = torch.tensor([[-1.0, -2.0, -9.0], [-3.0, -4.0, -8.0], [-2.0, math.nan, -7.0]])
    found = torch.tensor(
        [
            [-4.0, -90.0, -9.5],  # all stranger than any ordinary entry, by 1, 86 and 0.5 nats
            [-2.5, -2.0, -9.0],  # none is: by p
            [-math.inf, math.nan, -7.5],
        ]
    )
    order, p = strangest_first(found, usual)
    np.testing.assert_allclose(p, [[1 / 4, 1 / 3, 1 / 4], [2 / 4, 1, 2 / 4], [1 / 4, 1, 3 / 4]])
    assert order.tolist() == [[1, 0, 2], [0, 2, 1], [0, 2, 1]]

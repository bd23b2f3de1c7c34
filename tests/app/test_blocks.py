"""Questions about tables block by block: the answers of the whole table at once, also after an interruption."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from support.command import Command, invoke

import pyrovae as pv
from pyrovae.app.jobs import answers, blocks, impute, outliers
from pyrovae.app.jobs.batch import batch_of
from pyrovae.app.jobs.frames import Block, Table
from pyrovae.app.jobs.ranking import Ranking
from pyrovae.app.run import Run, open_run
from pyrovae.criticism.outliers import adjusted_p_values
from pyrovae.fitted.lock import locked

NAMES = ["a", "b", "c"]
QUICK = ("--epochs", 2, "--hidden", 4, "--latent", 2, "--engine", "eager", "--proposal", "guide", "--num-samples", 5)


def table(rows: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(np.round(rng.normal(size=(rows, 1)) + 0.3 * rng.normal(size=(rows, 3)), 4), columns=NAMES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blocks")
    rows = table(60, 0)
    rows.loc[::10, "a"] = np.nan  # so that the model takes gaps
    rows.to_csv(folder / "rows.csv", index=False)
    how = ("--likelihood", "normal", "--seed", 0, *QUICK, "--out", folder / "run")
    code, _, err = invoke("fit", folder / "rows.csv", *how)
    assert code == 0, err
    new = table(50, 1)[["c", "a", "b"]]  # in another order, with a column that the run does not know
    new.assign(remark="x").to_csv(folder / "new.csv", index=False)
    new.assign(remark="x").to_parquet(folder / "new.parquet", index=False, row_group_size=13)
    return folder / "run"


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return open_run(folder)


def whole(run: Run) -> dict[str, torch.Tensor]:
    return batch_of(run, Block(0, table(50, 1)))


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
@pytest.mark.parametrize("size", [7, 25, 1000])
def test_codes_are_those_of_the_whole_table(run: Run, ending: str, size: int, tmp_path: Path) -> None:
    to = tmp_path / f"codes{ending}"
    source = run.folder.parent / f"new{ending}"
    assert answers.encode_table(run, source, to, say=print, rows=size) == 50
    found = pd.read_csv(to) if ending == ".csv" else pd.read_parquet(to)
    assert list(found) == ["row", "z0", "z1"] and found["row"].tolist() == list(range(50))
    wanted = pv.encode(run.fitted, whole(run), site="z")
    torch.testing.assert_close(torch.tensor(found[["z0", "z1"]].to_numpy(dtype=np.float32)), wanted)
    assert [path.name for path in tmp_path.iterdir()] == [to.name]


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_answers_have_the_names_of_rows(pyrovae: Command, ending: str) -> None:
    rows = table(60, 3)
    rows.insert(1, "cell", [f"{number:03d}" for number in range(60)])
    rows.to_csv("rows.csv", index=False)
    rows.iloc[::-1].to_parquet("new.parquet", index=False)
    rows.iloc[::-1].to_csv("new.csv", index=False)
    code, _, err = pyrovae("fit", "rows.csv", "--id", "cell", *QUICK, "--out", "run")
    assert code == 0, err
    for word in ("encode", "evaluate"):
        assert pyrovae(word, "run", f"new{ending}", "--out", "new_answers.csv", "--force")[0] == 0
        found = pd.read_csv("new_answers.csv", dtype={"id": str})
        assert found["id"].tolist() == rows["cell"].tolist()[::-1] and list(found)[:2] == ["row", "id"]
        assert pyrovae(word, "run", "--out", "own.csv", "--force")[0] == 0
        own = pd.read_csv("own.csv", dtype={"id": str})
        assert own["id"].tolist() == [f"{row:03d}" for row in own["row"]] and list(own)[:2] == ["row", "id"]


def test_one_block_has_the_estimates_of_the_whole_table(run: Run, tmp_path: Path) -> None:
    to, how = tmp_path / "scores.csv", {"num_samples": 20, "proposal": "guide"}
    told = answers.evaluate_table(run, run.folder.parent / "new.parquet", to, say=print, **how)  # type: ignore[arg-type]
    found = pd.read_csv(to)
    true = pv.importance(run.fitted, whole(run), 20, proposal="guide", seed=answers.EVALUATION_SEED)
    offset = run.rows.log_abs_det
    torch.testing.assert_close(torch.tensor(found["log_likelihood"].to_numpy()), true.log_likelihood.double() - offset)
    torch.testing.assert_close(torch.tensor(found["k_hat"].to_numpy()), true.k_hat.double(), equal_nan=True)
    assert told["rows"] == 50 and told["elbo"] == pytest.approx(true.elbo.double().mean().item() - offset)
    assert told["elbo_se"] == pytest.approx(true.elbo.double().std().item() / 50**0.5)


def test_rows_whose_density_is_undefined_are_told_and_left_out_of_the_means(run: Run, tmp_path: Path) -> None:
    """Of a number that overflows in the networks, there is no density; in outliers, such rows come first."""
    rows = table(12, 3)
    rows.loc[[4, 9], "c"] = [1e38, -1e38]
    rows.to_csv(tmp_path / "t.csv", index=False)
    how: dict[str, Any] = {"num_samples": 5, "proposal": "guide", "say": print, "rows": 6}
    with pytest.warns(
        UserWarning, match="of 2 rows, the first of which is row 4, is undefined: .* other rows, 10 of 12"
    ):
        told = answers.evaluate_table(run, tmp_path / "t.csv", tmp_path / "s.csv", **how)
    found = pd.read_csv(tmp_path / "s.csv")
    assert np.flatnonzero(found["log_likelihood"].isna()).tolist() == [4, 9] and told["rows"] == 12
    for name in ("log_likelihood", "elbo"):
        assert told[name] == pytest.approx(found[name].mean())
        assert told[f"{name}_se"] == pytest.approx(found[name].std() / 10**0.5)
    how = {"method": "log_likelihood", "rate": 0.5, **how}
    strange = outliers.find_outliers(run, str(tmp_path / "t.csv"), tmp_path / "o.csv", **how)
    assert sorted(strange.worst["row"][:2]) == [4, 9] and "2 of 12 rows is infinite" in strange.notes[-1]


def test_blocks_have_random_numbers_of_their_own(run: Run, tmp_path: Path) -> None:
    """Of a table that says the same twice, the estimates of the second half are other ones; of the first they stay."""
    half = table(20, 2)
    pd.concat([half, half]).to_csv(tmp_path / "twice.csv", index=False)
    how: dict[str, Any] = {"num_samples": 3, "proposal": "guide", "say": print, "rows": 20}
    answers.evaluate_table(run, tmp_path / "twice.csv", tmp_path / "scores.csv", **how)
    first, second = np.split(pd.read_csv(tmp_path / "scores.csv")["elbo"].to_numpy(), 2)
    assert (first != second).all()


class Stopped(Exception):
    pass


def test_an_infinite_number_is_told_beside_rows_with_gaps_that_are_taken(run: Run, tmp_path: Path) -> None:
    rows = table(9, 1)
    rows.loc[[1, 2, 8], "a"], rows.loc[5, "c"] = np.nan, np.inf
    rows.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(pv.DataError, match="Column 'c' is infinite in row 5 of the table"):
        answers.encode_table(run, tmp_path / "t.csv", tmp_path / "z.csv", say=print, rows=4)


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_job_goes_on_where_it_was_stopped(
    run: Run, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, to, plain = run.folder.parent / f"new{ending}", tmp_path / f"z{ending}", tmp_path / f"plain{ending}"
    said: list[str] = []
    how: dict[str, Any] = {"say": said.append, "rows": 12}
    answers.encode_table(run, source, plain, **how)
    encode, asked = answers.encode, []

    def stopping(*args: Any, **options: Any) -> torch.Tensor:
        asked.append(1)
        if len(asked) == 3:
            raise Stopped
        return encode(*args, **options)

    monkeypatch.setattr(answers, "encode", stopping)
    with pytest.raises(Stopped):
        answers.encode_table(run, source, to, **how)
    assert not to.exists() and not said
    with pytest.raises(pv.OptionError, match="another table, run or options"):
        answers.encode_table(run, source, to, say=said.append, rows=13)
    assert answers.encode_table(run, source, to, **how) == 50
    assert len(asked) == 3 + 3  # of 5 blocks, two were there
    assert said == ["2 blocks of rows were answered before; going on with the next"]
    assert to.read_bytes() == plain.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([to.name, plain.name])


def test_force_starts_anew(run: Run, tmp_path: Path) -> None:
    source, to = run.folder.parent / "new.csv", tmp_path / "z.csv"
    parts = tmp_path / ".z.csv.parts"
    parts.mkdir()
    (parts / "mine.txt").write_text("mine")
    with pytest.raises(pv.OptionError, match="in the way"):
        answers.encode_table(run, source, to, say=print, force=True)
    assert (parts / "mine.txt").read_text() == "mine"
    (parts / "mine.txt").unlink()
    (parts / blocks.MARK).write_text(json.dumps({"asked": "evaluate"}))
    (parts / "000000.csv").write_text("row,z0\n0,1.0\n")
    with pytest.raises(pv.OptionError, match="start anew with --force"):
        answers.encode_table(run, source, to, say=print)
    assert answers.encode_table(run, source, to, say=print, force=True) == 50


def test_the_table_that_is_asked_about_is_never_replaced(run: Run, tmp_path: Path) -> None:
    source = tmp_path / "new.csv"
    source.write_bytes((run.folder.parent / "new.csv").read_bytes())
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.csv").symlink_to(source)
    before = source.read_bytes()
    for asked, to in ((source, tmp_path / "folder" / ".." / "new.csv"), (tmp_path / "link.csv", source)):
        with pytest.raises(pv.OptionError, match="would replace the table"):
            answers.encode_table(run, asked, to, say=print, force=True)
    assert source.read_bytes() == before


@pytest.mark.parametrize("after", [0, 1, 3, 5])
def test_a_job_that_is_killed_while_it_removes_its_answers_can_be_given_again(
    run: Run, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, to, unlink = run.folder.parent / "new.csv", tmp_path / "z.csv", Path.unlink
    removed: list[Path] = []

    def killed(path: Path, missing_ok: bool = False) -> None:
        if path.parent.name == ".z.csv.parts" and not missing_ok:
            if len(removed) == after:
                raise Stopped
            removed.append(path)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(Stopped):
        answers.encode_table(run, source, to, say=print, rows=12)
    monkeypatch.undo()
    wanted = to.read_bytes()
    assert len(removed) == after
    assert answers.encode_table(run, source, to, say=print, rows=12) == 50
    assert to.read_bytes() == wanted and [path.name for path in tmp_path.iterdir()] == [to.name]


def test_a_job_that_is_killed_before_its_first_block_can_be_given_again(run: Run, tmp_path: Path) -> None:
    (tmp_path / ".z.csv.parts").mkdir()
    (tmp_path / ".z.csv.parts" / f".{blocks.MARK}.new").write_text("{")
    assert answers.encode_table(run, run.folder.parent / "new.csv", tmp_path / "z.csv", say=print) == 50


def test_draws_of_codes_are_those_of_the_posterior(run: Run, tmp_path: Path) -> None:
    """Block by block, with the names of rows, and around the means that the same rows have by many draws."""
    rows = table(12, 1)
    rows.insert(0, "id", [f"r{i}" for i in range(12)])
    rows.to_csv(tmp_path / "t.csv", index=False)
    how: dict[str, Any] = {"say": print, "draws": 400, "num_particles": 2000, "proposal": "refined"}
    assert answers.encode_table(run, tmp_path / "t.csv", tmp_path / "z.csv", rows=5, **how) == 12
    found = pd.read_csv(tmp_path / "z.csv")
    assert found["row"].tolist() == np.repeat(np.arange(12), 400).tolist()
    assert found["draw"].tolist() == list(range(1, 401)) * 12
    codes = [name for name in found if name.startswith("z")]
    block = next(Table(tmp_path / "t.csv", 50).blocks())
    exact = pv.posterior(run.fitted, batch_of(run, block), 2000, num_particles=10_000, seed=1)
    expected, sd = exact.mean(0).numpy(), exact.std(0).numpy()
    of_rows = found.groupby("row")[codes]
    # 24 means, each within five standard errors: wrongly told in fewer than one run of 70,000
    assert (np.abs(of_rows.mean() - expected) < 5 * sd * (1 / 400 + 1 / 2000) ** 0.5 * 1.3).all().all()
    assert of_rows.std().to_numpy() == pytest.approx(sd, rel=0.25)


def test_rows_that_cannot_be_asked_about_are_told(run: Run, tmp_path: Path) -> None:
    table(10, 1).astype(object).replace({"b": {table(10, 1)["b"][7]: "many"}}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(pv.DataError, match="Rows 6 to 8 of the table: "):
        answers.encode_table(run, tmp_path / "t.csv", tmp_path / "z.csv", say=print, rows=3)


def test_the_commands(pyrovae: Command, folder: Path) -> None:
    code, out, err = pyrovae("encode", folder, folder.parent / "new.parquet", "--out", "z.parquet")
    assert code == 0, err
    assert "50 rows: z.parquet" in out and len(pd.read_parquet("z.parquet")) == 50
    code, out, err = pyrovae("evaluate", folder, folder.parent / "new.csv", "--out", "s.csv", "--num-samples", 5)
    assert code == 0, err
    assert "log p(x) " in out and "nats per row" in out and "50 rows: s.csv" in out
    before = Path("s.csv").read_bytes()
    code, _, err = pyrovae("evaluate", folder, folder.parent / "new.csv", "--out", "s.csv")
    assert code == 2 and "s.csv exists" in err and Path("s.csv").read_bytes() == before
    for words, said in {
        ("encode", folder, "none.csv"): "there is no file none.csv",
        ("encode", folder, "none.npz"): "read block by block",
        ("encode", folder, folder.parent / "new.csv", "--out", "z.npy"): "must be one of .csv, .parquet",
        ("evaluate", folder, folder.parent / "new.csv", "--rows", 5): "Leave it out",
    }.items():
        code, _, err = pyrovae(*words)
        assert code == 2 and said in " ".join(err.split()), words


def test_a_table_that_does_not_fit_is_told(run: Run, tmp_path: Path) -> None:
    for content, match in {"a,b\n1,2\n": "no column 'c'", "a,b,c\n": "no rows|not a table"}.items():
        (tmp_path / "bad.csv").write_text(content)
        with pytest.raises(pv.DataError, match=match):
            answers.encode_table(run, tmp_path / "bad.csv", tmp_path / "z.csv", say=print)
    (tmp_path / "bad.parquet").write_bytes(b"no table")
    with pytest.raises(pv.DataError, match="bad.parquet is not a table"):
        answers.encode_table(run, tmp_path / "bad.parquet", tmp_path / "y.csv", say=print)
    with pytest.raises(pv.OptionError, match="would replace the table"):
        answers.encode_table(run, tmp_path / "bad.csv", tmp_path / "bad.csv", say=print)


def arrow_file(path: Path, frame: pd.DataFrame) -> None:
    whole = pa.Table.from_pandas(frame)
    with pa.ipc.new_file(path, whole.schema) as file:
        for batch in whole.to_batches(max_chunksize=13):
            file.write(batch)


def test_arrow_files_and_arrays_are_read_as_well(run: Run, tmp_path: Path) -> None:
    rows = table(50, 1)
    arrow_file(tmp_path / "new.arrow", rows)
    rows.to_feather(tmp_path / "new.feather")
    wanted = pv.encode(run.fitted, whole(run), site="z").numpy()
    for name in ("new.arrow", "new.feather"):
        assert answers.encode_table(run, tmp_path / name, tmp_path / "z.csv", say=print, force=True, rows=7) == 50
        np.testing.assert_allclose(pd.read_csv(tmp_path / "z.csv")[["z0", "z1"]], wanted, rtol=1e-5, atol=1e-6)
    np.save(tmp_path / "new.npy", rows.to_numpy())
    with pytest.raises(pv.DataError, match="no column 'a'"):  # the run's columns have names
        answers.encode_table(run, tmp_path / "new.npy", tmp_path / "y.csv", say=print)
    np.save(tmp_path / "new.npy", np.zeros((2, 3, 4)))
    with pytest.raises(pv.DataError, match=r"of the shape \(rows, columns\), got \(2, 3, 4\)"):
        answers.encode_table(run, tmp_path / "new.npy", tmp_path / "y.csv", say=print)


def test_blocks_of_very_wide_texts_are_not_a_few_rows(tmp_path: Path) -> None:
    frame = pd.DataFrame(np.ones((40, 2_000)), columns=[f"c{i}" for i in range(2_000)])
    frame.to_csv(tmp_path / "wide.csv", index=False)
    assert [len(block) for block in Table(tmp_path / "wide.csv", 16).blocks()] == [40]
    frame.iloc[:, :3].to_csv(tmp_path / "narrow.csv", index=False)
    assert [len(block) for block in Table(tmp_path / "narrow.csv", 16).blocks()] == [16, 16, 8]


def test_damaged_arrow_files_are_refused(run: Run, tmp_path: Path) -> None:
    """Neither is memory read behind the end of a text, nor does a part that says it is huge end in a MemoryError."""
    rows = table(50, 1).assign(remark=[f"remark {i}" for i in range(50)])
    arrow_file(tmp_path / "new.arrow", rows)
    content = (tmp_path / "new.arrow").read_bytes()
    ends = np.cumsum([len(f"remark {i}") for i in range(13)], dtype=np.int32).tobytes()  # of the first batch's texts
    ends = ends if ends in content else np.frombuffer(ends, np.int32).astype(np.int64).tobytes()
    assert content.count(ends) == 1
    (tmp_path / "new.arrow").write_bytes(content.replace(ends, ends[:-2] + b"\x7f\x7f"))
    with pytest.raises(pv.DataError, match="new.arrow is damaged"):
        answers.encode_table(run, tmp_path / "new.arrow", tmp_path / "z.csv", say=print)
    whole = pa.Table.from_pandas(rows)
    with pa.ipc.new_file(
        tmp_path / "new.arrow", whole.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")
    ) as file:
        file.write(whole.to_batches()[0])
    content = (tmp_path / "new.arrow").read_bytes()
    size = np.array([50 * 8]).tobytes()  # of a column's numbers, before they were compressed
    assert size in content
    (tmp_path / "new.arrow").write_bytes(content.replace(size, np.array([1 << 55]).tobytes()))
    with pytest.raises(pv.DataError, match="new.arrow (is damaged|has a part that needs more memory than there is)"):
        answers.encode_table(run, tmp_path / "new.arrow", tmp_path / "z.csv", say=print)
    assert not (tmp_path / "z.csv").exists()


def outliers_of(run: Run, source: Path, to: Path, **how: Any) -> outliers.Outliers:
    how = {"method": "log_likelihood", "rate": 0.3, "num_samples": 5, "proposal": "guide", "say": print, **how}
    return outliers.find_outliers(run, str(source), to, **how)


def strange_rows(folder: Path) -> pd.DataFrame:
    """50 rows of the kind of the run's, three of them strange, and two of them equal, in two blocks."""
    rows = table(50, 1)
    rows.loc[[3, 30, 41], "b"] += [9.0, -7.0, 8.0]
    rows.insert(0, "id", [f"{i:03d}" if i != 5 else "NA" for i in range(50)])
    rows.to_csv(folder / "strange.csv", index=False)
    rows.to_parquet(folder / "strange.parquet", index=False, row_group_size=13)
    return rows


@pytest.mark.parametrize("method", ["log_likelihood", "typicality", "regret"])
def test_outliers_of_blocks_are_those_of_all_rows(run: Run, method: str, tmp_path: Path) -> None:
    """Ranks, adjusted p-values and strange columns are those among all rows, whatever block a row is in."""
    rows = strange_rows(tmp_path)
    told = outliers_of(run, tmp_path / "strange.csv", tmp_path / "found.csv", method=method, rows=12)
    found = pd.read_csv(tmp_path / "found.csv", dtype={"id": str}, keep_default_na=False, na_values={"k_hat": [""]})
    assert found["id"].tolist() == rows["id"].tolist()
    assert (
        sorted(found["rank"]) == list(range(1, 51)) and found["score"][found["rank"].argsort()].is_monotonic_decreasing
    )
    assert told.rows == 50 and told.called == found["outlier"].sum()
    assert told.worst["rank"].tolist() == list(range(1, 11))
    wanted = adjusted_p_values(found["p_value"].to_numpy(copy=True))
    np.testing.assert_allclose(found["adjusted_p"], wanted.numpy(), rtol=2e-5)
    if method == "log_likelihood":
        assert set(found["id"][found["rank"] <= 3]) == {"003", "030", "041"}
        assert (found["column_1"][found["rank"] <= 3] == "b").all()
    outliers_of(run, tmp_path / "strange.parquet", tmp_path / "found.parquet", method=method, rows=12)
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "found.parquet").drop(columns="id").fillna({"impossible": ""}),
        found.drop(columns="id"),
        rtol=1e-4,
        check_dtype=False,
    )


def test_ranks_and_rates_of_blocks_are_those_of_all_at_once() -> None:
    """Also where scores are equal, in one block and in several."""
    draw = np.random.default_rng(0)
    scores, n = np.round(draw.normal(size=400), 1), 30
    p_values = (1 + draw.binomial(n, 0.4, 400)) / (n + 1)
    ranking = Ranking(400, n, 25)
    blocks_of = [slice(at, at + 60) for at in range(0, 400, 60)]
    for some in blocks_of:
        ranking.add(scores[some], p_values[some])
    ranks = np.concatenate([ranking.ranks(scores[some]) for some in blocks_of])
    none = torch.zeros(400, dtype=torch.float64)
    wanted = pv.Anomaly(torch.from_numpy(scores), none, none, "log_likelihood", num_samples=1).ranks.numpy()
    np.testing.assert_array_equal(ranks, wanted)
    np.testing.assert_array_equal(ranking.first, np.argsort(wanted)[:25])
    adjusted = np.concatenate([ranking.adjusted(p_values[some]) for some in blocks_of])
    np.testing.assert_array_equal(adjusted, adjusted_p_values(p_values).numpy())


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
@pytest.mark.parametrize("draws", [0, 3])
def test_gaps_are_filled_block_by_block(run: Run, draws: int, ending: str, tmp_path: Path) -> None:
    """Cells that are there come back, draws stand below one another, and blocks without a gap do not change the columns."""
    rows = table(50, 1).assign(count=np.arange(50), remark=[f"{i:02d}" for i in range(50)])
    rows.loc[[1, 13, 14], "a"] = rows.loc[30, "c"] = np.nan
    rows.loc[40, "count"] = np.nan
    source, to = tmp_path / f"holes{ending}", tmp_path / f"whole{ending}"
    (rows.to_csv if ending == ".csv" else rows.to_parquet)(source, index=False)
    how: dict[str, Any] = {"draws": draws, "num_samples": 20, "proposal": "guide", "rows": 12}
    told = impute.fill_in(run, source, to, **how)
    assert (told.tables, told.by_column, told.cells, told.left) == (max(draws, 1), {"a": 3, "c": 1}, 4, ("count",))
    found = pd.read_csv(to, dtype={"remark": str}) if ending == ".csv" else pd.read_parquet(to)
    if draws:
        assert found.pop("draw").tolist() == [1] * 50 + [2] * 50 + [3] * 50
    assert list(found) == list(rows)
    for k in range(max(draws, 1)):
        one = found.iloc[50 * k : 50 * k + 50].reset_index(drop=True)
        pd.testing.assert_frame_equal(one.where(rows.notna()), rows.where(rows.notna()), check_dtype=False)
        assert one[["a", "b", "c"]].notna().all().all()
    if draws:
        assert found["a"].to_numpy().reshape(3, 50)[:, 13].std() > 0
    first = pv.impute(
        run.fitted, batch_of(run, Block(0, rows[:12])), max(draws, 1), num_particles=20, proposal="guide", seed=0
    )
    values = run.rows.restore(first.mean if not draws else first.draws[0])[1, 0]
    assert found["a"][1] == pytest.approx(float(values), rel=1e-5)


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
@pytest.mark.parametrize("asked", ["outliers", "impute"])
def test_what_was_stopped_goes_on_to_the_same_bytes(
    run: Run, asked: str, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = strange_rows(tmp_path)
    rows.loc[::9, "c"] = np.nan
    rows.to_csv(tmp_path / "rows.csv", index=False)
    home, name = (outliers, "anomaly_score") if asked == "outliers" else (impute, "impute")

    def do(to: Path, **more: Any) -> Any:
        if asked == "outliers":
            return outliers_of(run, tmp_path / "rows.csv", to, rows=12, **more)
        how = {"draws": 2, "num_samples": 10, "proposal": "guide", "rows": 12}
        return impute.fill_in(run, tmp_path / "rows.csv", to, **how, **more)

    plain, to = tmp_path / f"plain{ending}", tmp_path / f"found{ending}"
    wanted = do(plain)
    ask, calls = getattr(home, name), []

    def stopping(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise Stopped
        return ask(*args, **options)

    monkeypatch.setattr(home, name, stopping)
    with pytest.raises(Stopped):
        do(to)
    assert not to.exists()
    said: list[str] = []
    again = do(to, say=said.append)
    assert any("blocks of rows were answered before" in one for one in said)
    assert to.read_bytes() == plain.read_bytes()
    told = (wanted.worst, again.worst) if asked == "outliers" else None
    assert wanted == again if told is None else told[0].equals(told[1])
    assert not list(tmp_path.glob(".*"))


def test_a_second_process_is_refused(run: Run, tmp_path: Path) -> None:
    source, to = run.folder.parent / "new.csv", tmp_path / "z.csv"
    (tmp_path / ".z.csv.parts").mkdir()
    with (
        locked(tmp_path / ".z.csv.parts", "command"),
        pytest.raises(pv.CheckpointError, match="Another command is at work"),
    ):
        answers.encode_table(run, source, to, say=print)
    assert answers.encode_table(run, source, to, say=print) == 50


def test_names_with_line_breaks_and_other_separators_come_back(run: Run, tmp_path: Path) -> None:
    rows = table(9, 1).assign(**{"two\nlines; one": "x;y"})
    rows.loc[7, "b"] = np.nan
    rows.to_csv(tmp_path / "t.csv", index=False, sep=";", decimal=",")
    how: dict[str, Any] = {"draws": 0, "num_samples": 5, "proposal": "guide", "rows": 4}
    impute.fill_in(run, tmp_path / "t.csv", tmp_path / "whole.csv", **how)
    found = pd.read_csv(tmp_path / "whole.csv", sep=";", decimal=",")
    pd.testing.assert_frame_equal(found.drop(7), rows.drop(7))


def test_rows_that_are_longer_than_the_first_ones_are_told(run: Run, tmp_path: Path) -> None:
    lines = ["a,b,c,", *["1,2,3,"] * 6, "1,2,3,4"]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    with pytest.raises(pv.DataError, match="column 3 has no name, is empty at first, and is not in rows 6 to 6"):
        answers.encode_table(run, tmp_path / "t.csv", tmp_path / "z.csv", say=print, rows=3)


def test_the_class_that_a_model_is_given_comes_from_the_table(tmp_path: Path) -> None:
    rows = table(60, 0).assign(kind=["rose", "tulip", "daisy"] * 20)
    rows.to_csv(tmp_path / "rows.csv", index=False)
    how = ("--model", "cvae", "--label", "last", "--likelihood", "normal", *QUICK, "--out", tmp_path / "run")
    code, _, err = invoke("fit", tmp_path / "rows.csv", *how)
    assert code == 0, err
    run = open_run(tmp_path / "run")
    new, source = rows[::-1][["kind", "c", "a", "b"]], tmp_path / "new.csv"  # where the class is not the last column
    new.to_csv(source, index=False)
    answers.encode_table(run, source, tmp_path / "z.csv", say=print, rows=25)
    codes = torch.tensor([["daisy", "rose", "tulip"].index(kind) for kind in new["kind"]])
    wanted = pv.encode(run.fitted, {"x": batch_of(run, Block(0, new))["x"], "c": codes}, site="z")
    found = torch.tensor(pd.read_csv(tmp_path / "z.csv")[["z0", "z1"]].to_numpy(dtype=np.float32))
    torch.testing.assert_close(found, wanted)
    assert outliers_of(run, source, tmp_path / "o.csv", rows=25).rows == 60
    for change, said in {"": "needs the column kind", "lily": "the classes lily; known are daisy, rose, tulip"}.items():
        (new.assign(kind=change) if change else new.drop(columns="kind")).to_csv(source, index=False)
        with pytest.raises(pv.DataError, match=said):
            outliers_of(run, source, tmp_path / "p.csv", rows=25)


def test_blocks_of_nearly_equal_values_are_taken(run: Run) -> None:
    """As of a table that is sorted by time: that float32 cannot tell them apart matters where all rows are so alike."""
    schema = pv.tables.Schema(tuple(pv.tables.Column(name, "real") for name in NAMES))
    of_schema = replace(run, rows=replace(run.rows, schema=schema, scaler=None))
    near = pd.DataFrame({"a": 1e6 + 1e-3 * np.arange(6), "b": 0.5, "c": -0.5})
    with pytest.raises(pv.DataError, match="less than float32 can tell apart"):
        schema.encode(near)
    found = batch_of(of_schema, Block(0, near))["x"]
    torch.testing.assert_close(found, torch.tensor([[1e6, 0.5, -0.5]] * 6))


def test_truth_values_with_gaps_are_numbers(run: Run) -> None:
    rows = pd.DataFrame({"a": pd.Series([True, None, False], dtype=object), "b": 1.0, "c": 2})
    as_numbers = rows.assign(a=[1.0, np.nan, 0.0])
    torch.testing.assert_close(
        batch_of(run, Block(0, rows))["x"], batch_of(run, Block(0, as_numbers))["x"], equal_nan=True
    )

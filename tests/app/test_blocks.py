"""Questions about tables block by block: the answers of the whole table at once, also after an interruption."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from support.command import Command, invoke

import pyrovae as pv
from pyrovae.app.jobs import blocks
from pyrovae.app.jobs.impute import batch_of
from pyrovae.app.run import Run, open_run

NAMES = ["a", "b", "c"]
QUICK = ("--epochs", 2, "--hidden", 4, "--latent", 2, "--engine", "eager", "--proposal", "guide", "--num-samples", 5)


def table(rows: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(np.round(rng.normal(size=(rows, 1)) + 0.3 * rng.normal(size=(rows, 3)), 4), columns=NAMES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blocks")
    table(60, 0).to_csv(folder / "rows.csv", index=False)
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
    return batch_of(run, table(50, 1))


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
@pytest.mark.parametrize("size", [7, 25, 1000])
def test_codes_are_those_of_the_whole_table(run: Run, ending: str, size: int, tmp_path: Path) -> None:
    to = tmp_path / f"codes{ending}"
    source = run.folder.parent / f"new{ending}"
    assert blocks.encode_table(run, source, to, say=print, rows=size) == 50
    found = pd.read_csv(to) if ending == ".csv" else pd.read_parquet(to)
    assert list(found) == ["row", "z0", "z1"] and found["row"].tolist() == list(range(50))
    wanted = pv.encode(run.fitted, whole(run), site="z")
    torch.testing.assert_close(torch.tensor(found[["z0", "z1"]].to_numpy(dtype=np.float32)), wanted)
    assert [path.name for path in tmp_path.iterdir()] == [to.name]


def test_one_block_has_the_estimates_of_the_whole_table(run: Run, tmp_path: Path) -> None:
    to, how = tmp_path / "scores.csv", {"num_samples": 20, "proposal": "guide"}
    told = blocks.evaluate_table(run, run.folder.parent / "new.parquet", to, say=print, **how)  # type: ignore[arg-type]
    found = pd.read_csv(to)
    true = pv.importance(run.fitted, whole(run), 20, proposal="guide", seed=blocks.EVALUATION_SEED)
    offset = run.rows.log_abs_det
    torch.testing.assert_close(torch.tensor(found["log_likelihood"].to_numpy()), true.log_likelihood.double() - offset)
    torch.testing.assert_close(torch.tensor(found["k_hat"].to_numpy()), true.k_hat.double(), equal_nan=True)
    assert told["rows"] == 50 and told["elbo"] == pytest.approx(true.elbo.double().mean().item() - offset)
    assert told["elbo_se"] == pytest.approx(true.elbo.double().std().item() / 50**0.5)


def test_blocks_have_random_numbers_of_their_own(run: Run, tmp_path: Path) -> None:
    """Of a table that says the same twice, the estimates of the second half are other ones; of the first they stay."""
    half = table(20, 2)
    pd.concat([half, half]).to_csv(tmp_path / "twice.csv", index=False)
    how: dict[str, Any] = {"num_samples": 3, "proposal": "guide", "say": print, "rows": 20}
    blocks.evaluate_table(run, tmp_path / "twice.csv", tmp_path / "scores.csv", **how)
    first, second = np.split(pd.read_csv(tmp_path / "scores.csv")["elbo"].to_numpy(), 2)
    assert (first != second).all()


class Stopped(Exception):
    pass


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_job_goes_on_where_it_was_stopped(
    run: Run, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, to, plain = run.folder.parent / f"new{ending}", tmp_path / f"z{ending}", tmp_path / f"plain{ending}"
    said: list[str] = []
    how: dict[str, Any] = {"say": said.append, "rows": 12}
    blocks.encode_table(run, source, plain, **how)
    encode, asked = blocks.encode, []

    def stopping(*args: Any, **options: Any) -> torch.Tensor:
        asked.append(1)
        if len(asked) == 3:
            raise Stopped
        return encode(*args, **options)

    monkeypatch.setattr(blocks, "encode", stopping)
    with pytest.raises(Stopped):
        blocks.encode_table(run, source, to, **how)
    assert not to.exists() and not said
    with pytest.raises(pv.OptionError, match="another table, run or options"):
        blocks.encode_table(run, source, to, say=said.append, rows=13)
    assert blocks.encode_table(run, source, to, **how) == 50
    assert len(asked) == 3 + 3  # of 5 blocks, two were there
    assert said == ["2 blocks of 12 rows were answered before; going on with row 24"]
    assert to.read_bytes() == plain.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([to.name, plain.name])


def test_force_starts_anew(run: Run, tmp_path: Path) -> None:
    source, to = run.folder.parent / "new.csv", tmp_path / "z.csv"
    parts = tmp_path / ".z.csv.parts"
    parts.mkdir()
    (parts / "mine.txt").write_text("mine")
    with pytest.raises(pv.OptionError, match="in the way"):
        blocks.encode_table(run, source, to, say=print, force=True)
    assert (parts / "mine.txt").read_text() == "mine"
    (parts / "mine.txt").unlink()
    (parts / blocks.MARK).write_text(json.dumps({"asked": "evaluate"}))
    (parts / "000000.csv").write_text("row,z0\n0,1.0\n")
    with pytest.raises(pv.OptionError, match="start anew with --force"):
        blocks.encode_table(run, source, to, say=print)
    assert blocks.encode_table(run, source, to, say=print, force=True) == 50


def test_the_table_that_is_asked_about_is_never_replaced(run: Run, tmp_path: Path) -> None:
    source = tmp_path / "new.csv"
    source.write_bytes((run.folder.parent / "new.csv").read_bytes())
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.csv").symlink_to(source)
    before = source.read_bytes()
    for asked, to in ((source, tmp_path / "folder" / ".." / "new.csv"), (tmp_path / "link.csv", source)):
        with pytest.raises(pv.OptionError, match="would replace the table"):
            blocks.encode_table(run, asked, to, say=print, force=True)
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
        blocks.encode_table(run, source, to, say=print, rows=12)
    monkeypatch.undo()
    wanted = to.read_bytes()
    assert len(removed) == after
    assert blocks.encode_table(run, source, to, say=print, rows=12) == 50
    assert to.read_bytes() == wanted and [path.name for path in tmp_path.iterdir()] == [to.name]


def test_a_job_that_is_killed_before_its_first_block_can_be_given_again(run: Run, tmp_path: Path) -> None:
    (tmp_path / ".z.csv.parts").mkdir()
    (tmp_path / ".z.csv.parts" / f".{blocks.MARK}.new").write_text("{")
    assert blocks.encode_table(run, run.folder.parent / "new.csv", tmp_path / "z.csv", say=print) == 50


def test_rows_that_cannot_be_asked_about_are_told(run: Run, tmp_path: Path) -> None:
    table(10, 1).astype(object).replace({"b": {table(10, 1)["b"][7]: "many"}}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(pv.DataError, match="Rows 6 to 8 of t.csv: "):
        blocks.encode_table(run, tmp_path / "t.csv", tmp_path / "z.csv", say=print, rows=3)


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
        ("encode", folder, "none.npy"): "read block by block",
        ("encode", folder, folder.parent / "new.csv", "--out", "z.npy"): "must be one of .csv, .parquet",
        ("evaluate", folder, folder.parent / "new.csv", "--rows", 5): "Leave it out",
    }.items():
        code, _, err = pyrovae(*words)
        assert code == 2 and said in " ".join(err.split()), words


def test_a_table_that_does_not_fit_is_told(run: Run, tmp_path: Path) -> None:
    for content, match in {"a,b\n1,2\n": "no column 'c'", "a,b,c\n": "no rows|not a table"}.items():
        (tmp_path / "bad.csv").write_text(content)
        with pytest.raises(pv.DataError, match=match):
            blocks.encode_table(run, tmp_path / "bad.csv", tmp_path / "z.csv", say=print)
    (tmp_path / "bad.parquet").write_bytes(b"no table")
    with pytest.raises(pv.DataError, match="bad.parquet is not a table"):
        blocks.encode_table(run, tmp_path / "bad.parquet", tmp_path / "y.csv", say=print)
    with pytest.raises(pv.OptionError, match="would replace the table"):
        blocks.encode_table(run, tmp_path / "bad.csv", tmp_path / "bad.csv", say=print)

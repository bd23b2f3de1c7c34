"""`--track`: what `pyrovae fit` and `sweep` keep elsewhere, as a user asks for it."""

import json
from pathlib import Path

import pytest
from support import mlflow as fake
from support.command import Command
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import pyrovae as pv
from pyrovae.app.track import check_track, trackers, with_log
from pyrovae.fitted.folder import write_fit

QUICK = ("--hidden", 16, "--engine", "eager", "--proposal", "guide", "--num-samples", 30)


def read_board(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


@pytest.mark.digits(120)
def test_a_fit_is_kept_by_all_trackers(pyrovae: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    server = fake.installed(monkeypatch)
    words = ("--track", "tensorboard", "--track", "mlflow:http://here")  # and, as always, log.jsonl
    code, _, err = pyrovae("fit", "digits", "--epochs", 2, *QUICK, *words)
    assert code == 0, err
    run = Path("runs/digits")
    history = pv.load(run).history
    results = json.loads((run / "run.json").read_text())["info"]["results"]
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert lines == [*history, {"results": results}]
    found = read_board(run / "tensorboard")
    assert [e.value for e in found.Scalars("elbo")] == pytest.approx([row["elbo"] for row in history], rel=1e-6)
    assert [(e.step, e.value) for e in found.Scalars("results/elbo")] == [(2, pytest.approx(results["elbo"]))]
    drawn = {"training", "reconstructions", "samples", "latent"}
    assert set(found.Tags()["images"]) == drawn
    (kept,) = server.runs.values()
    assert kept["name"] == "digits" and kept["params"]["likelihood"] == "beta-binomial"
    assert set(kept["artifacts"]) == {"results.json", *(f"pictures/{name}.png" for name in drawn)}
    assert str(run.resolve()) not in str(kept)
    # with another tracker the fit is the same, and a log of the run that it replaces does not pass for its own
    before = (run / "weights.safetensors").read_bytes()
    (run / "log-stage-1.jsonl").write_text('{"epoch": 1}\n')
    code, _, err = pyrovae(
        "fit", "digits", "--epochs", 2, *QUICK, "--out", run, "--force", "--track", "json:elsewhere.jsonl"
    )
    assert code == 0 and before == (run / "weights.safetensors").read_bytes() and not list(run.glob("log*.jsonl")), err


@pytest.mark.digits(120)
def test_a_run_that_is_resumed_with_a_tracker_is_told_from_its_beginning(pyrovae: Command) -> None:
    code, _, err = pyrovae("fit", "digits", "--epochs", 2, *QUICK)
    assert code == 0, err
    words = ("--track", "json:log.jsonl", "--track", "tensorboard:logs")
    code, _, err = pyrovae("fit", "--resume", "runs/digits", *words)  # it has its length, so that no epoch comes
    assert code == 0, err
    lines = [json.loads(line) for line in Path("log.jsonl").read_text().splitlines()]
    assert lines[:-1] == pv.load("runs/digits").history and "results" in lines[-1]
    assert len(read_board(Path("logs/digits")).Scalars("elbo")) == 2


@pytest.mark.digits(120)
def test_each_run_of_a_sweep_has_a_place_of_its_own(pyrovae: Command) -> None:
    words = ("--prior", "normal,vamp", "--epochs", 1, *QUICK[:-2], "--num-samples", 30, "--track", "tensorboard:logs")
    code, _, err = pyrovae("sweep", "digits", *words)
    assert code == 0, err
    names = {path.name for path in Path("runs/digits-sweep").iterdir()}
    assert len(names) == 2 and {path.name for path in Path("logs").iterdir()} == names
    assert all(read_board(path).Scalars("results/elbo") for path in Path("logs").iterdir())
    # one that was killed between its fit and its table gets both, and so does its log
    run = Path("runs/digits-sweep") / sorted(names)[0]
    fitted = pv.load(run)
    results = fitted.info.pop("results")
    write_fit(run, fitted)
    (run / "log.jsonl").write_text((run / "log.jsonl").read_text().splitlines()[0] + '\n{"epo')
    code, _, err = pyrovae("sweep", "digits", *words)
    assert code == 0, err
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert lines == [*fitted.history, {"results": results}] and pv.load(run).info["results"] == results


@pytest.mark.parametrize(
    "typed, kept",
    [
        (None, ("json",)),
        (["tensorboard"], ("tensorboard", "json")),
        (["json"], ("json",)),
        (["json:a.jsonl"], ("json:a.jsonl",)),
    ],
)
def test_each_run_has_one_log(typed: list[str] | None, kept: tuple[str, ...]) -> None:
    assert with_log(typed) == kept


def test_trackers_of_the_first_of_two_stages_have_other_places(tmp_path: Path) -> None:
    log, board = trackers(["json", "tensorboard:logs"], tmp_path / "run", "stage-1")
    assert isinstance(log, pv.tracking.JSONLines) and log.path == tmp_path / "run" / "log-stage-1.jsonl"
    assert isinstance(board, pv.tracking.TensorBoard) and board.folder == Path("logs/run-stage-1")


def test_the_home_of_nobody_is_a_place_like_any_other(tmp_path: Path) -> None:
    (board,) = trackers(["tensorboard:~nobody-here/logs"], tmp_path / "run")
    assert isinstance(board, pv.tracking.TensorBoard) and board.folder == Path("~nobody-here/logs/run")


@pytest.mark.parametrize(
    "names, said",
    [
        (["wandb"], "--track wandb: must be tensorboard, mlflow, json, or one of them, a colon and a place"),
        (["mlflow:"], "--track mlflow:: must be"),
        (["json", "json:log.jsonl"], "--track json is given twice"),
    ],
)
def test_names_that_are_none_are_refused(names: list[str], said: str) -> None:
    with pytest.raises(pv.OptionError, match=said):
        check_track(names)


def test_runs_of_a_sweep_share_no_file() -> None:
    check_track(["json", "tensorboard:logs"], several=True)
    with pytest.raises(pv.OptionError, match="each run of a sweep has a file of its own"):
        check_track(["json:log.jsonl"], several=True)

"""Trackers: what they keep is the history, once; they change nothing; and no failure of theirs ends a fit.

TensorBoard's files are read back by TensorBoard; of MLflow there is a server in memory (`support/mlflow.py`).
"""

import contextlib
import json
import math
import os
import posixpath
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from support import mlflow as fake
from support.programs import binary, vae
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import pyrovae as pv
from pyrovae.engine import ranks
from pyrovae.training import trainer
from pyrovae.training.tracking import server as mlflow_tracker
from pyrovae.training.tracking import tracker as common

HOW: dict[str, Any] = {"batch_size": 10, "validation": 0.2, "seed": 0, "engine": "eager", "progress": False}


class Kept(pv.tracking.Tracker):
    """Keeps what it is given, and does what a test wants at an epoch."""

    def __init__(self, at: int = 0, error: Exception | None = None) -> None:
        super().__init__()
        self.rows: list[Any] = []
        self.begun = 0
        self.ended: list[BaseException | None] = []
        self.at, self.error = at, error

    def begin(self, fitted: pv.Fit) -> None:
        self.begun += 1
        self.rows = []

    def write(self, rows: Sequence[Any]) -> None:
        torch.rand(3)  # what a tracker draws must not change the fit
        self.rows += rows
        if self.error is not None and len(self.rows) >= self.at:
            raise self.error

    def finish(self, fitted: pv.Fit, error: BaseException | None) -> None:
        self.ended.append(error)


def pair() -> pv.VAE:
    """The same at every call."""
    torch.manual_seed(0)
    return vae()


def rows() -> torch.Tensor:
    torch.manual_seed(1)
    return binary()


def weights(fitted: pv.Fit) -> list[torch.Tensor]:
    return [p.detach() for p in fitted.pair.parameters()]


def stop_at(epoch: int) -> Any:
    def stop(fitted: pv.Fit) -> None:
        if len(fitted.history) == epoch:
            raise ZeroDivisionError

    return stop


def stopped_and_resumed(folder: Path, make: Any, epochs: int = 5, written: int = 2) -> pv.Fit:
    """A fit whose state was written after `written` epochs, and that was stopped after `epochs` - 1; then gone on with."""
    steps = 4 * written  # of 32 training rows, 10 at a time
    with pytest.raises(ZeroDivisionError):
        how = {**HOW, "checkpoint": folder, "checkpoint_every": f"{steps} steps"}
        pv.fit(pair(), rows(), epochs=epochs, callbacks=[make(), stop_at(epochs - 1)], **how)
    return pv.fit(pair(), rows(), epochs=epochs, checkpoint=folder, resume=True, callbacks=[make()], **HOW)


def fake_fit(*elbos: float) -> Any:
    """As much of a fit as a tracker looks at."""
    history = [{"epoch": k, "elbo": elbo, "seconds": 0.1 * k} for k, elbo in enumerate(elbos, 1)]
    return SimpleNamespace(history=history, settings={"seed": 0}, info={})


# --- any tracker ----------------------------------------------------------------------------------------------------


def test_a_tracker_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the weights nor how often the pair is measured, in a fit of many short epochs."""
    monkeypatch.setattr(trainer, "MANY_EPOCHS", 2)
    tracker, how = Kept(), {**HOW, "keep_best": True, "epochs": 9}
    alone, watched = (pv.fit(pair(), rows(), callbacks=c, **how) for c in ([], [tracker]))
    assert all(torch.equal(a, b) for a, b in zip(weights(alone), weights(watched)))
    measured = ["validation_elbo" in row for row in alone.history]
    assert measured == ["validation_elbo" in row for row in watched.history] and not all(measured)
    assert tracker.rows == watched.history and tracker.begun == 1 and tracker.ended == [None]


def test_a_failure_is_one_warning_and_the_fit_goes_on() -> None:
    tracker = Kept(at=2, error=ConnectionError("the server\nis away"))
    with pytest.warns(UserWarning) as told:
        fitted = pv.fit(pair(), rows(), epochs=4, callbacks=[tracker], **HOW)
        tracker.table({"a": 1.0})
    assert [str(w.message) for w in told] == [
        "Kept takes no more of this fit, which goes on without it: the server is away"
    ]
    assert len(fitted.history) == 4 and len(tracker.rows) == 2 and tracker.ended == []
    alone = pv.fit(pair(), rows(), epochs=4, **HOW)
    assert all(torch.equal(a, b) for a, b in zip(weights(alone), weights(fitted)))


def test_only_the_first_process_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Kept()
    for rank, rows in ((1, 0), (0, 2)):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        tracker(fake_fit(-3.0, -2.0))
        assert len(tracker.rows) == rows


def test_a_tracker_is_told_by_which_error_the_fit_ended() -> None:
    tracker = Kept()
    with pytest.raises(ZeroDivisionError):
        pv.fit(pair(), rows(), epochs=3, callbacks=[tracker, stop_at(2)], **HOW)
    assert [type(error) for error in tracker.ended] == [ZeroDivisionError]


def test_a_fit_that_never_began_is_not_ended() -> None:
    tracker = Kept()
    with pytest.raises(pv.PyrovaeError):
        pv.fit(pair(), rows()[:, :3], epochs=1, callbacks=[tracker], **HOW)
    assert tracker.ended == [] and tracker.begun == 0


def test_epochs_come_once_and_in_order_also_after_a_return_to_an_earlier_one() -> None:
    tracker = Kept()
    for elbos in ((-3.0,), (-3.0, -2.0), (-3.0, -2.0, -1.0)):
        tracker(fake_fit(*elbos))
    assert [row["epoch"] for row in tracker.rows] == [1, 2, 3] and tracker.begun == 1
    tracker(fake_fit(-3.0, -2.5))  # on_nan="rollback" went back to epoch 1
    assert [row["elbo"] for row in tracker.rows] == [-3.0, -2.5] and tracker.begun == 2
    tracker(fake_fit(-3.0, -2.5, -2.0))
    tracker(fake_fit(-3.5, -2.6, -2.4, -2.3))  # another fit
    assert [row["elbo"] for row in tracker.rows] == [-3.5, -2.6, -2.4, -2.3] and tracker.begun == 3


def test_epochs_that_a_failed_fit_undid_are_not_kept(tmp_path: Path, server: fake.Server) -> None:
    """The last good state may be some epochs old, where epochs are short."""
    log, kept, run = pv.tracking.JSONLines(tmp_path / "log.jsonl"), Kept(), pv.tracking.MLflow()
    for tracker in (log, kept, run):
        tracker(fake_fit(-3.0, -2.0, -1.0))
        tracker.end(fake_fit(-3.0), pv.NotFiniteError("in epoch 4"))
    assert [line["elbo"] for line in lines(log.path)] == [-3.0] == [row["elbo"] for row in kept.rows]
    assert [type(error) for error in kept.ended] == [pv.NotFiniteError] and server.runs["run0"]["status"] == "FAILED"
    assert server.runs["run0"]["tags"]["pyrovae.undone"] == "2 epochs between 2 and 3; the fit ended with epoch 1"


class Short(pv.tracking.Tracker):
    """Does not call the constructor of its base class, as is easily forgotten."""

    def __init__(self) -> None:
        self.rows: list[Any] = []

    def write(self, rows: Sequence[Any]) -> None:
        self.rows += rows


def test_a_tracker_with_a_constructor_of_its_own_needs_no_other() -> None:
    tracker = Short()
    tracker(fake_fit(-3.0, -2.0))
    assert len(tracker.rows) == 2 and not tracker.failed


def test_a_note_that_comes_later_makes_no_other_fit() -> None:
    tracker, whole = Kept(), fake_fit(-3.0)
    tracker(whole)
    whole.history[0]["accuracy"] = torch.tensor(0.5)
    whole.history.append({"epoch": 2, "elbo": -2.0, "seconds": 0.2})
    tracker(whole)
    assert tracker.begun == 1 and [row["epoch"] for row in tracker.rows] == [1, 2]


@pytest.mark.parametrize("wrong, said", [(Kept, r"Kept is its class: write Kept\(...\)"), (3, "3 is none")])
def test_what_is_no_callback_is_refused_before_the_fit(wrong: Any, said: str) -> None:
    with pytest.raises(pv.OptionError, match=said):
        pv.fit(pair(), rows(), epochs=1, callbacks=[wrong], **HOW)


def test_a_password_in_an_address_is_not_repeated() -> None:
    with pytest.warns(UserWarning, match=r"to http://\*\*\*@host:5000/api failed"):
        Kept(at=1, error=ConnectionError("API request to http://me:secret@host:5000/api failed"))(fake_fit(-1.0))


def test_a_table_without_a_fit_is_one_warning(tmp_path: Path) -> None:
    tracker = pv.tracking.JSONLines(tmp_path / "log.jsonl")
    with pytest.warns(UserWarning, match="has seen no epoch") as told:
        tracker.table({"a": 1.0})
        tracker.table({"a": 1.0})
    assert len(told) == 1 and not tracker.path.exists()


@pytest.mark.parametrize("kind, package", [("TensorBoard", "tensorboard"), ("MLflow", "mlflow")])
def test_a_missing_package_is_told_before_the_fit(kind: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(pv.MissingPackageError, match=rf"needs {package}: pip install 'pyrovae\[{package}\]'"):
        getattr(pv.tracking, kind)("anywhere")


# --- lines of JSON --------------------------------------------------------------------------------------------------


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_of_json_are_the_history_also_of_a_fit_that_was_stopped(tmp_path: Path) -> None:
    path, seen = tmp_path / "log.jsonl", []

    def look(fitted: pv.Fit) -> None:
        if len(fitted.history) > 1:
            seen.append(len(lines(path)))

    def make() -> pv.tracking.Tracker:
        return pv.tracking.JSONLines(path)

    pv.fit(pair(), rows(), epochs=4, callbacks=[look, make()], **HOW)
    assert seen == [1, 2, 3]  # as the fit goes on; trackers come after other callbacks
    fitted = stopped_and_resumed(tmp_path / "run", make)
    assert lines(path) == fitted.history and len(fitted.history) == 5


def test_lines_of_json_take_tables_and_numbers_that_are_not_finite(tmp_path: Path) -> None:
    tracker = pv.tracking.JSONLines(tmp_path / "new" / "log.jsonl")
    tracker(fake_fit(-math.inf))
    tracker.table({"elbo": torch.tensor(-1.5), "deep": {"k_hat": math.nan}, "proposal": "refined", "path": Path("a")})
    tracker.table({"rows": [math.nan, (1, math.inf)], "array": torch.tensor([1.0, math.nan]), "one": np.float32(0.5)})
    tracker.picture("nothing", plt.figure())
    first, second, third = lines(tracker.path)
    assert first == {"epoch": 1, "elbo": None, "seconds": 0.1}
    assert second == {"results": {"elbo": -1.5, "deep": {"k_hat": None}, "proposal": "refined", "path": "a"}}
    assert third == {"results": {"rows": [None, [1, None]], "array": [1.0, None], "one": 0.5}}


def test_a_log_whose_fit_was_killed_is_written_anew_wherever_it_was_cut(tmp_path: Path) -> None:
    path, whole = tmp_path / "log.jsonl", b'{"epoch": 1, "elbo": -3.0}\n'
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        pv.tracking.JSONLines(path)
    pv.tracking.JSONLines(path)(fake_fit(-3.0, -2.0))
    assert [line["elbo"] for line in lines(path)] == [-3.0, -2.0]


def test_a_file_that_is_no_log_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("a,b\n")
    os.mkfifo(tmp_path / "pipe")  # which would be read forever
    for path in (tmp_path / "data.csv", tmp_path, tmp_path / "pipe"):
        with pytest.raises(pv.OptionError, match="is no log of a fit: choose another file"):
            pv.tracking.JSONLines(path)


# --- TensorBoard ----------------------------------------------------------------------------------------------------


def read_board(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return found.Reload()


def test_tensorboard_shows_the_history_once(tmp_path: Path) -> None:
    fitted = stopped_and_resumed(tmp_path / "run", lambda: pv.tracking.TensorBoard(tmp_path / "board"))
    assert len(list((tmp_path / "board").iterdir())) > 1  # of both starts
    found = read_board(tmp_path / "board")
    assert set(found.Tags()["scalars"]) == set(fitted.history[-1]) - {"epoch"}
    for name in ("elbo", "validation_elbo", "kl/z", "seconds"):
        points = [(event.step, event.value) for event in found.Scalars(name)]
        assert [step for step, _ in points] == [1, 2, 3, 4, 5]
        assert [value for _, value in points] == pytest.approx([row[name] for row in fitted.history], rel=1e-6)
    times = [event.wall_time for event in found.Scalars("elbo")]
    assert times == sorted(times)
    assert b"batch_size | 10" in found.Tensors("settings/text_summary")[0].tensor_proto.string_val[0]


def test_tensorboard_takes_tables_and_pictures_after_the_fit(tmp_path: Path) -> None:
    tracker = pv.tracking.TensorBoard(tmp_path / "board")
    fitted = pv.fit(pair(), rows(), epochs=2, callbacks=[tracker], **HOW)
    tracker.table({"log_likelihood": -3.5, "proposal": "a|b"})
    figure, axes = plt.subplots(figsize=(1, 1))
    tracker.picture("samples", axes)
    figure.savefig(tmp_path / "file.png")
    tracker.picture("file", tmp_path / "file.png")
    plt.close(figure)
    found = read_board(tmp_path / "board")
    assert [(e.step, e.value) for e in found.Scalars("results/log_likelihood")] == [(2, -3.5)]
    assert len(found.Scalars("elbo")) == len(fitted.history)
    assert rb"proposal | a\|b" in found.Tensors("results/text_summary")[0].tensor_proto.string_val[0]
    assert [(e.step, e.width, e.height) for e in found.Images("samples")] == [(2, 100, 100)]
    assert sorted(found.Tags()["images"]) == ["file", "samples"] and not tracker.failed


def test_nothing_is_written_through_a_link_in_a_run_folder(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run.mkdir()
    elsewhere.mkdir()
    (run / "run.json").touch()
    (run / "tensorboard").symlink_to(elsewhere)
    with pytest.warns(UserWarning, match="a link there leads out of it"):
        pv.tracking.TensorBoard(run / "tensorboard")(fake_fit(-1.0))
    assert not list(elsewhere.iterdir())


# --- MLflow ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[fake.Server]:
    made = fake.installed(monkeypatch)
    yield made
    made.answers.set()  # so that the thread ends


def test_mlflow_has_the_history_once(tmp_path: Path, server: fake.Server) -> None:
    fitted = stopped_and_resumed(tmp_path / "run", lambda: pv.tracking.MLflow("http://here", name="first"))
    assert list(server.runs) == ["run0"]
    run = server.runs["run0"]
    assert server.experiments == {"pyrovae": "0"} and run["name"] == "first" and run["status"] == "FINISHED"
    assert {m.key for m in run["metrics"]} == set(fitted.history[-1]) - {"epoch"}
    for name in ("elbo", "kl/z"):
        assert server.points("run0", name) == [(int(row["epoch"]), row[name]) for row in fitted.history]
    assert run["params"]["batch_size"] == "10" and run["params"]["epochs"] == "5"


def test_mlflow_has_the_epochs_that_are_taken_again_after_a_return_to_an_earlier_one(server: fake.Server) -> None:
    """Also if the process was killed after the return, before the fit came to where it had been."""
    first, again = pv.tracking.MLflow(), pv.tracking.MLflow()
    first(fake_fit(-5.0, -4.0, -3.0, -2.0))
    gone_back = fake_fit(-5.0, -4.5)
    gone_back.settings["rollbacks"] = 1
    first(gone_back)
    assert first._sender.wait(10.0)
    last = fake_fit(-5.0, -4.5, -3.5, -2.5)
    again(fake_fit(-5.0, -4.5))
    again(last)
    again.end(last)
    assert list(server.runs) == ["run0"]
    points = [*enumerate((-5.0, -4.0, -3.0, -2.0), 1), (2, -4.5), (3, -3.5), (4, -2.5)]
    assert server.points("run0", "elbo") == points
    assert server.runs["run0"]["tags"]["pyrovae.undone"] == "3 epochs between 2 and 4; the fit ended with epoch 4"
    assert "rollbacks" not in server.runs["run0"]["params"]  # which may become 2


def test_epochs_that_come_again_as_they_were_count_as_undone_only_until_then(server: fake.Server) -> None:
    """A fit that was stopped, and then resumed from an earlier state, and stopped and resumed once more."""
    for elbos in ((-3.0, -2.0, -1.0), (-3.0, -2.0), (-3.0, -2.0, -1.0, -0.5)):
        tracker, fitted = pv.tracking.MLflow(), fake_fit(*elbos)
        tracker(fitted)
        tracker.end(fitted, KeyboardInterrupt() if len(elbos) < 4 else None)
    assert server.points("run0", "elbo") == [(1, -3.0), (2, -2.0), (3, -1.0), (4, -0.5)]
    assert server.runs["run0"]["tags"]["pyrovae.undone"] == "0 epochs; the fit ended with epoch 4"


@pytest.mark.parametrize("elbo", [math.nan, -math.inf, math.inf])
def test_an_epoch_whose_elbo_is_no_number_is_sent_once(server: fake.Server, elbo: float) -> None:
    """Neither a return to an epoch before it, nor to go on in another process, makes another epoch of it."""
    for elbos in ((-3.0, elbo, -2.0), (-3.0, elbo, -2.0, elbo)):
        tracker = pv.tracking.MLflow()
        tracker(fake_fit(*elbos[:3]))
        tracker(fake_fit(*elbos[:2]))
        last = fake_fit(*elbos)
        tracker(last)
        tracker.end(last)
    assert [step for step, _ in server.points("run0", "elbo")] == [1, 2, 3, 4]
    assert server.runs["run0"]["tags"].get("pyrovae.undone") in (None, "0 epochs; the fit ended with epoch 4")


def test_mlflow_takes_tables_and_pictures_after_the_fit(server: fake.Server) -> None:
    tracker = pv.tracking.MLflow()
    pv.fit(pair(), rows(), epochs=2, callbacks=[tracker], **HOW)
    tracker.table({"log_likelihood": -3.5, "proposal": "refined", "k-hat > 0.7": 0.1})
    figure = plt.figure(figsize=(1, 1))
    tracker.picture("samples/of z", figure)
    plt.close(figure)
    run = server.runs["run0"]
    assert server.points("run0", "results/log_likelihood") == [(2, -3.5)]
    assert server.points("run0", "results/k-hat _ 0.7") == [(2, 0.1)]  # MLflow takes no ">" in a name
    assert json.loads(run["artifacts"]["results.json"])["proposal"] == "refined"
    assert run["artifacts"]["pictures/samples_of z.png"].startswith(b"\x89PNG")


def test_mlflow_says_how_the_fit_ended(server: fake.Server) -> None:
    def interrupted(fitted: pv.Fit) -> None:
        raise KeyboardInterrupt

    for callback, status in ((stop_at(1), "FAILED"), (interrupted, "KILLED"), (lambda f: None, "FINISHED")):
        tracker = pv.tracking.MLflow()
        with contextlib.suppress(ZeroDivisionError, KeyboardInterrupt):
            pv.fit(pair(), rows(), epochs=2, callbacks=[tracker, _after(callback)], **HOW)
        assert list(server.runs.values())[-1]["status"] == status


def _after(callback: Any) -> Any:
    """The callback at the second epoch, since trackers come after those that change the fit."""
    return lambda fitted: callback(SimpleNamespace(history=fitted.history[1:])) if len(fitted.history) == 2 else None


def test_mlflow_writes_into_the_run_under_way_and_does_not_end_it(server: fake.Server) -> None:
    first = fake.MlflowClient
    client = type("Client", (first,), {"server": server})()
    server.active = client.create_run("0", {}, "own")
    pv.fit(pair(), rows(), epochs=2, callbacks=[pv.tracking.MLflow()], **HOW)
    assert list(server.runs) == ["run0"] and len(server.points("run0", "elbo")) == 2
    assert server.runs["run0"]["status"] == "RUNNING"
    pv.fit(pair(), rows(), epochs=1, callbacks=[pv.tracking.MLflow("http://elsewhere")], **HOW)
    assert list(server.runs) == ["run0", "run1"]
    pv.fit(pair(), rows(), epochs=1, callbacks=[pv.tracking.MLflow("http://elsewhere", run_id="run0")], **HOW)
    assert list(server.runs) == ["run0", "run1"] and server.runs["run0"]["status"] == "FINISHED"


def test_a_server_that_is_away_is_one_warning(server: fake.Server) -> None:
    server.error = ConnectionError("no route to host")
    with pytest.warns(UserWarning) as told:
        tracker = pv.tracking.MLflow()
        fitted = pv.fit(pair(), rows(), epochs=3, callbacks=[tracker], **HOW)
        tracker.table({"a": 1.0})
    assert len(told) == 1 and "no route to host" in str(told[0].message) and len(fitted.history) == 3


def test_a_server_that_does_not_answer_holds_nothing_up(server: fake.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_tracker, "PATIENCE", 0.1)
    server.answers.clear()
    with pytest.warns(UserWarning, match="did not answer within") as told:
        tracker = pv.tracking.MLflow()
        fitted = pv.fit(pair(), rows(), epochs=3, callbacks=[tracker], **HOW)
        tracker.table({"a": 1.0})
    assert len(told) == 1 and len(fitted.history) == 3


def test_rows_of_a_second_fit_do_not_reach_the_run_of_the_first(server: fake.Server) -> None:
    """Also where the server is slower than both fits."""
    tracker = pv.tracking.MLflow()
    server.answers.clear()
    tracker(fake_fit(-3.0, -2.0))
    tracker.under_way = False  # it has ended, and nobody waited
    tracker(fake_fit(-5.0))
    server.answers.set()
    tracker.end(fake_fit(-5.0))
    assert [server.points(run, "elbo") for run in ("run0", "run1")] == [[(1, -3.0), (2, -2.0)], [(1, -5.0)]]


@pytest.mark.parametrize("name", ["kl/../z", "/kl//z", "./kl", "..", "kl/", "", "k>z", "z" * 300])
def test_a_name_is_one_that_mlflow_takes(name: str) -> None:
    made = mlflow_tracker._name(name)
    assert posixpath.normpath(made) == made and not made.startswith(("/", "..")) and made != "." and len(made) <= 250
    assert mlflow_tracker._name("kl/z.1") == "kl/z.1"


def test_a_thread_ends_when_there_is_nothing_to_do_and_another_takes_what_comes_later(
    server: fake.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_tracker, "IDLE", 0.001)
    tracker = pv.tracking.MLflow()
    tracker(fake_fit(-1.0))
    tracker.end(fake_fit(-1.0))
    if (thread := tracker._sender._thread) is not None:
        thread.join(10.0)
    assert tracker._sender._thread is None
    tracker.table({"a": 1.0})
    assert server.points("run0", "results/a") == [(1, 1.0)] and not tracker.failed


def test_many_epochs_are_sent_in_batches_that_mlflow_takes(server: fake.Server) -> None:
    tracker = pv.tracking.MLflow()
    whole = fake_fit(*range(2500))
    tracker(whole)
    tracker.end(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert server.points("run0", "elbo") == [(k + 1, float(k)) for k in range(2500)]
    assert server.calls.count("log_batch") == 1 + 5  # settings, and 2 x 2500 numbers, 1000 at a time

"""Labelling in the browser, without one: the session, the file of labels, and what the server answers to whom."""

import csv
import io
import json
import multiprocessing
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient
from support.command import Command

from pyrovae.app.jobs.label import label_rows, read_job
from pyrovae.app.jobs.label.answers import Answers, check_annotator
from pyrovae.app.jobs.label.job import refuse_folder, steps_before
from pyrovae.app.jobs.label.learning import Learned, Worker, learn, quick, why_not
from pyrovae.app.jobs.label.session import ENOUGH, Session, keys_of
from pyrovae.app.jobs.label.views import Views
from pyrovae.app.options import Options
from pyrovae.app.pages import serve
from pyrovae.app.pages.label import label_app
from pyrovae.data.images import thumbnail
from pyrovae.data.labels import as_labels
from pyrovae.errors import DataError, MissingPackageError, OptionError

ROWS = 40


class Pupil:
    """A learner that answers when it is told to: it takes row i for an "even" or an "odd" one, and knows how sure it is."""

    def __init__(self) -> None:
        self.busy, self.taught, self.closed = False, [], False
        self.answer: Learned | str | None = None

    def start(self, labels: list[str]) -> None:
        assert not self.busy
        self.busy = True
        self.taught.append(labels)

    def finish(self, why: str = "", margin: list[float] | None = None) -> None:
        labels = self.taught[-1]
        known = {row: (0.9, True) for row, label in enumerate(labels) if label}
        report = {"held_out": len(known), "accuracy": 1.0, "accuracy_low": 0.5, "accuracy_high": 1.0}
        report |= {"calibration_error": float("nan"), "curve": {"confidence": [0.9], "accuracy": [1.0], "counts": [1]}}
        predicted = ["even" if row % 2 == 0 else "odd" for row in range(ROWS)]
        margins = margin or [0.1] * ROWS
        self.answer = why or Learned(len(known), predicted, [0.75] * ROWS, margins, report, known)

    def poll(self) -> Learned | str | None:
        found, self.answer = self.answer, None
        self.busy = self.busy and found is None
        return found

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "photos"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (ROWS, 6, 6)).astype(np.uint8)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture
def pupil() -> Pupil:
    return Pupil()


@pytest.fixture
def session(photos: Path, pupil: Pupil, tmp_path: Path) -> Session:
    return Session(read_job(str(photos), some=False), tmp_path / "labels.csv", pupil, folder=tmp_path, batch=8)


def rows_of(session: Session, annotator: str = "ada", view: str = "next") -> list[int]:
    return [row["row"] for row in session.state(annotator, view)["rows"]]


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- the file of labels ----------------------------------------------------------------------------------------------


def test_labels_are_in_the_file_at_once_and_come_back(session: Session, photos: Path, tmp_path: Path) -> None:
    first = rows_of(session)
    session.label("ada", first[:2], " cat ")
    session.label("ben", first[:1], "dog")
    session.label("ben", first[2:3], "dog")
    found = {line["file"]: line for line in lines(tmp_path / "labels.csv")}
    assert list(found) == sorted(f"{row:02d}.png" for row in first[:3])
    assert found[f"{first[0]:02d}.png"]["label"] == ""  # they disagree
    assert found[f"{first[1]:02d}.png"] == {
        "file": f"{first[1]:02d}.png", "label": "cat", "chosen": "at random", "by ada": "cat", "by ben": ""
    }  # fmt: skip
    again = Session(read_job(str(photos), some=False), tmp_path / "labels.csv", Pupil())
    assert again.answers.by == session.answers.by and again.answers.chosen == session.answers.chosen
    assert again.answers.disagreements() == [first[0]]
    assert read_job(str(photos), tmp_path / "labels.csv", some=False).labels.classes == ("cat", "dog")


def test_undo_takes_back_steps_one_by_one_each_persons_own(session: Session, tmp_path: Path) -> None:
    a, b, c = rows_of(session)[:3]
    session.label("ada", [a, b], "cat")
    session.label("ben", [a], "dog")
    session.label("ada", [b, c], "dog")
    assert session.undo("ada") == [b, c] and session.answers.by == {"ada": {a: "cat", b: "cat"}, "ben": {a: "dog"}}
    assert session.undo("ada") == [a, b] and session.answers.by == {"ben": {a: "dog"}}
    assert session.undo("ada") == [] and session.undo("ben") == [a]
    assert lines(tmp_path / "labels.csv") == [] and session.answers.chosen == {}
    assert {a, b} <= set(rows_of(session))


def test_what_was_given_before_counts_until_somebody_says_something(tmp_path: Path) -> None:
    answers = Answers(tmp_path / "labels.csv", "row", None, 4, ["x", "", "y", ""])
    assert answers.texts() == ["x", "", "y", ""] and answers.annotators == []
    answers.give("ada", [0], "z")
    assert answers.texts() == ["z", "", "y", ""] and answers.disagreements() == []
    assert Answers(tmp_path / "labels.csv", "row", None, 4).texts() == ["z", "", "y", ""]
    answers.undo("ada")
    assert answers.texts()[0] == "x"


def test_most_annotators_decide(tmp_path: Path) -> None:
    answers = Answers(tmp_path / "labels.csv", "row", None, 2)
    for name, label in (("a", "x"), ("b", "y"), ("c", "y")):
        answers.give(name, [1], label)
    assert answers.texts() == ["", "y"] and answers.disagreements() == [1]
    answers.give("a", [1], "y")
    assert answers.disagreements() == []


def test_a_label_that_cannot_be_written_is_not_taken(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = rows_of(session)[:2]
    session.label("ada", [first], "cat")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pyrovae.app.jobs.label.answers.write_file", full)
        for act in (lambda: session.label("ada", [first, second], "dog"), lambda: session.undo("ada")):
            with pytest.raises(OSError, match="No space"):
                act()
    assert session.answers.by == {"ada": {first: "cat"}} and list(session.answers.chosen) == [first]
    assert session.undo("ada") == [first]


def test_a_file_that_another_program_changes_is_left_alone(session: Session, tmp_path: Path) -> None:
    row, other = rows_of(session)[:2]
    session.label("ada", [row], "cat")
    (tmp_path / "labels.csv").write_text("mine")
    with pytest.raises(DataError, match="changed by another program"):
        session.label("ada", [other], "cat")
    assert (tmp_path / "labels.csv").read_text() == "mine" and session.answers.rows() == [row]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("file,label,predicted\n00.png,a,a\n", "not a file that the page has written"),
        ("", "not a file that the page has written"),
        ("file,label,chosen,by ada\n99.png,a,,a\n", "1 of 1 ids have no row"),
        ("file,label,chosen,by ada\n00.png,a\n", "damaged"),
        ('file,label,chosen\n"00.png', "cannot be read"),
    ],
)
def test_a_strange_file_is_not_taken_for_labels(photos: Path, tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises((DataError, OptionError), match=says):
        Session(read_job(str(photos), some=False), tmp_path / "labels.csv", Pupil())
    assert (tmp_path / "labels.csv").read_text() == content


# --- what is asked, and when the model learns ------------------------------------------------------------------------


def test_batches_follow_one_another_until_nothing_is_left(session: Session) -> None:
    seen: list[int] = []
    while rows := rows_of(session):
        assert not set(rows) & set(seen)
        seen += rows
        session.label("ada", rows, "cat")
    assert sorted(seen) == list(range(ROWS))
    session.undo("ada")
    assert sorted(rows_of(session)) == sorted(seen[-8:])


def test_skipped_rows_come_again_when_nothing_else_is_left(session: Session) -> None:
    skipped = rows_of(session)
    session.skip("ada", skipped)
    for _ in range(ROWS // 8 - 1):
        assert not set(rows_of(session)) & set(skipped)
        session.label("ada", rows_of(session), "cat")
    assert sorted(rows_of(session)) == sorted(skipped)


def test_the_model_learns_when_enough_is_new_and_never_twice_at_once(session: Session, pupil: Pupil) -> None:
    session.label("ada", [0, 2], "even")
    assert not pupil.busy and session.state("ada")["model"]["status"] == "waiting"  # one class
    session.label("ada", [1, 3], "odd")
    assert session.state("ada")["model"]["status"] == "learning" and len(pupil.taught) == 1  # a tenth of 40 rows
    session.label("ada", list(range(4, 20)), "even")
    assert len(pupil.taught) == 1
    pupil.finish()
    state = session.state("ada")
    assert len(pupil.taught) == 2 and state["model"]["status"] == "learning"
    assert [fit["labels"] for fit in state["fits"]] == [4]
    row = state["rows"][0]
    assert row["guess"] == ("odd" if row["row"] % 2 else "even") and row["probability"] == 0.75
    pupil.finish(why="it broke")
    assert session.state("ada")["model"] == {"status": "failed", "says": "it broke"}
    assert ENOUGH > 4 and len(pupil.taught) == 2  # not again until there are new labels


def test_doubtful_rows_come_first_and_some_at_random(session: Session, pupil: Pupil) -> None:
    session.label("ada", [0, 2], "even")
    session.label("ada", [1, 3], "odd")
    wanted = list(range(20, 30))
    pupil.finish(margin=[0.0 if row in wanted else 1.0 for row in range(ROWS)])
    session.next("ada")
    state = session.state("ada")
    chosen = {row["row"]: row["why"] for row in state["rows"]}
    assert list(chosen.values()).count("at random") == 1  # an eighth, at least one
    assert {row for row, why in chosen.items() if why == "as informative"} <= set(wanted)


def test_labels_at_random_are_counted_apart(session: Session, pupil: Pupil) -> None:
    rows = rows_of(session)
    session.label("ada", rows[:2], "even")
    session.label("ada", rows[2:4], "odd")
    pupil.finish()
    fit = session.state("ada")["fits"][0]
    assert fit["at_random"]["rows"] == 4 and fit["at_random"]["accuracy"] == 1.0 and fit["at_random"]["low"] < 0.6


def test_a_second_opinion_is_asked_without_the_first(session: Session) -> None:
    mine = rows_of(session, "ada")
    session.label("ada", mine, "cat")
    shown = session.state("ben")["rows"]
    second = [row for row in shown if row["why"] == "as a second opinion"]
    assert len(second) == 1 and second[0]["row"] in mine and second[0]["others"] == {}
    assert not {row["row"] for row in shown} & set(rows_of(session, "ada"))  # nor do they do the same work
    session.label("ben", [second[0]["row"]], "dog")
    assert rows_of(session, "ada", "disagreements") == [second[0]["row"]]
    row = session.state("ada", "disagreements")["rows"][0]
    assert row["label"] == "cat" and row["others"] == {"ben": "dog"}
    assert session.state("ada")["progress"]["disagreements"] == 1 and session.answers.texts()[row["row"]] == ""


def test_labels_that_the_model_doubts_are_shown_again(session: Session, pupil: Pupil) -> None:
    session.label("ada", [0, 2], "even")
    session.label("ada", [1, 3], "odd")
    pupil.finish()
    assert isinstance(pupil.answer, Learned)
    pupil.answer.judged.update({2: (0.2, False), 1: (0.1, False)})
    assert rows_of(session, "ada", "doubtful") == [1, 2]
    assert session.state("ada", "doubtful")["rows"][0]["of_label"] == 0.1
    session.label("ada", [1], "even")
    assert rows_of(session, "ada", "doubtful") == [2]  # it was looked at again


def test_rows_are_looked_for_again_where_there_were_none(session: Session) -> None:
    assert session.undo("ada") == [] and len(rows_of(session)) == 8  # before the first look
    session.next("ada")
    for name in ("ben", "cy"):
        session.label(name, list(range(ROWS)), "cat")
    assert rows_of(session) == []
    session.undo("cy")
    assert len(rows_of(session)) > 0  # for a second opinion


def test_fits_and_labels_that_nobody_has_given_are_remembered(
    session: Session, pupil: Pupil, photos: Path, tmp_path: Path
) -> None:
    session.add_class("rare")
    session.label("ada", [0, 2], "even")
    session.label("ada", [1, 3], "odd")
    pupil.finish()
    assert len(session.state("ada")["fits"]) == 1
    job = read_job(str(photos), some=False)
    again = Session(job, tmp_path / "labels.csv", Pupil(), folder=tmp_path).state("ada")
    assert [fit["labels"] for fit in again["fits"]] == [4]
    assert {one["name"] for one in again["classes"]} == {"even", "odd", "rare"}
    (tmp_path / "page.json").write_text('{"fits": [1], "classes": 2}')
    assert Session(job, tmp_path / "labels.csv", Pupil(), folder=tmp_path).state("ada")["fits"] == []


def test_keys() -> None:
    assert keys_of([str(i) for i in range(10)]) == {str(i): str(i) for i in range(10)}
    assert keys_of(["cat", "1", "A", "a"]) == {"cat": "2", "1": "1", "A": "a", "a": "3"}
    many = keys_of([f"class {i}" for i in range(40)])
    assert len(set(many.values()) - {""}) == 36 and list(many.values())[36:] == [""] * 4


@pytest.mark.parametrize("label", ["", " ", "-1", "-1.0", "a\nb", "\x1b[2J", "x" * 101, None, 3, ["a"]])
def test_labels_that_cannot_be(session: Session, label: object) -> None:
    with pytest.raises(DataError):
        session.label("ada", [0], label)


@pytest.mark.parametrize("rows", [None, [], 3, [ROWS], [-1], [True], ["1"], [0.0], [0] * 1001, {"0": 1}, [10**30]])
def test_rows_that_cannot_be(session: Session, rows: object) -> None:
    for act in (lambda: session.label("ada", rows, "cat"), lambda: session.skip("ada", rows)):
        with pytest.raises(DataError, match="row"):
            act()


@pytest.mark.parametrize("name", [None, "", "given", "a\tb", "x" * 41, 7])
def test_names_that_cannot_be(name: object) -> None:
    with pytest.raises(DataError, match="name"):
        check_annotator(name)


# --- how rows are shown ----------------------------------------------------------------------------------------------


def test_images_of_folders_and_arrays(photos: Path, tmp_path: Path) -> None:
    views = Views.of(read_job(str(photos), some=False))
    np.testing.assert_array_equal(np.asarray(Image.open(photos / "03.png")), _pixels(views.image_of(3)))
    counts = np.arange(2 * 9).reshape(2, 3, 3)
    np.save(tmp_path / "counts.npy", counts)
    views = Views.of(read_job(str(tmp_path / "counts.npy"), some=False))
    np.testing.assert_array_equal(_pixels(views.image_of(1)), np.rint(counts[1] / 17 * 255))
    for name in ("../other.png", str(photos / "03.png"), "a/../03.png"):
        with pytest.raises(DataError, match="not in the folder"):
            thumbnail(photos, name, 100)


def test_a_folder_of_links_to_images_is_shown(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    for number in (3, 5):
        (tmp_path / "some" / f"{number}.png").symlink_to(photos / f"{number:02d}.png")
    views = Views.of(read_job(str(tmp_path / "some"), some=False))
    np.testing.assert_array_equal(np.asarray(Image.open(photos / "05.png")), _pixels(views.image_of(1)))


def _pixels(png: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(png)))


@pytest.mark.parametrize(("name", "mark"), [("table.csv", ","), ("table.tsv", "\t"), ("table.txt", ";")])
def test_rows_of_a_table_are_shown_as_they_are_written(tmp_path: Path, name: str, mark: str) -> None:
    text = "id,age,note,label\na,007,<b>first</b>,\nb,8,second,x\nc,9,third,\n"
    (tmp_path / name).write_text(text.replace(",", mark))
    job = read_job(str(tmp_path / name), some=False)
    assert job.labels.classes == ("x",) and "label" not in (job.dataset.columns or ())  # which the model must not see
    assert Views.of(job).cells_of(0) == [("age", "007"), ("note", "<b>first</b>")]
    state = Session(job, tmp_path / "labels.csv", Pupil()).state("ada")
    assert {row["name"] for row in state["rows"]} == {"a", "c"} and not state["images"]
    with pytest.raises(DataError, match="no images"):
        Views.of(job).image_of(0)


# --- the model itself ------------------------------------------------------------------------------------------------


def test_a_worker_learns_and_goes_on_from_there(photos: Path, tmp_path: Path) -> None:
    job = read_job(str(photos), some=False)
    labels = ["even" if row % 2 == 0 else "odd" for row in range(12)] + [""] * (ROWS - 12)
    options = Options.of("label", steps=2, hidden=(8,), latent=2, passes=2)
    found = learn(job, labels, options, tmp_path / "run", engine="eager")
    assert found.labels == 12 and set(found.judged) == set(range(12)) and len(found.predicted) == ROWS
    right = [ok for _, ok in found.judged.values()]
    assert np.mean(right) == pytest.approx(found.report["accuracy"])  # few: the weights are those by default
    assert all((p > 0.5) == ok for p, ok in found.judged.values())
    assert (tmp_path / "run" / "predictions.csv").exists() and not (tmp_path / "run" / "labels.csv").exists()
    refuse_folder(tmp_path / "run", job, fresh=False)
    with (tmp_path / "run" / "predictions.csv").open("a") as file:
        file.write("x\n")
    for fresh in (False, True):
        with pytest.raises(OptionError, match=r"predictions.csv has changed since it was written.*--labels"):
            refuse_folder(tmp_path / "run", job, fresh=fresh)
    assert "label some" in why_not([""] * 3).lower() and why_not(labels) == ""


def test_the_page_goes_on_with_the_model_of_the_run(photos: Path, tmp_path: Path) -> None:
    job = read_job(str(photos), some=False)
    labels = ["even" if row % 2 == 0 else "odd" for row in range(12)] + [""] * (ROWS - 12)
    model = {"hidden": (4,), "latent": 2, "passes": 2, "holdout": 0.0}
    labelled, folder = replace(job, labels=as_labels(labels)), tmp_path / "run"
    label_rows(labelled, Options.of("label", steps=2, **model), folder, progress=False, engine="eager")
    learn(job, labels, Options.of("label", hidden=(4,), latent=2, holdout=0.0), folder, engine="eager")
    assert (folder / "weights.safetensors").exists() and steps_before(folder, job) == 2
    assert quick(Options.of("label"), labelled, 2000).steps == 400  # a fifth
    assert quick(Options.of("label", steps=0), labelled, 2000).steps == 0
    learn(job, labels, Options.of("label", steps=0, holdout=0.0), folder, engine="eager")
    assert not (folder / "weights.safetensors").exists() and steps_before(folder, job) == 0


def test_a_worker_that_dies_is_reported_and_started_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dead:
        def start(self) -> None: ...
        def is_alive(self) -> bool:
            return True

        def kill(self) -> None: ...
        def join(self) -> None: ...

    worker = Worker(read_job(str(photos), some=False), Options.of("label"), tmp_path)
    context = multiprocessing.get_context("spawn")
    monkeypatch.setattr(type(context), "Process", lambda self, **_: Dead())
    worker.start(["a"])
    assert worker.busy and worker._sending is not None
    worker._sending.join()  # the other end of its pipe is closed with the parent's copy
    said = worker.poll()
    assert isinstance(said, str) and "has ended" in said and not worker.busy
    worker.close()


# --- the server ------------------------------------------------------------------------------------------------------

TOKEN = "secret"


@pytest.fixture
def client(session: Session) -> Iterator[TestClient]:
    with TestClient(
        label_app(session, TOKEN), base_url="http://127.0.0.1:8765", raise_server_exceptions=False
    ) as found:
        yield found


def test_the_page_holds_all_that_it_needs_and_may_load_nothing_else(client: TestClient) -> None:
    answer = client.get(f"/{TOKEN}/")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy
    assert "http:" not in re.sub(r'"http://www.w3.org/2000/svg"', "", answer.text) and "https:" not in answer.text
    assert " style=" not in answer.text and "innerHTML" not in answer.text and not re.search(r"\son\w+=", answer.text)
    assert "access-control-allow-origin" not in answer.headers
    for name, value in serve.HEADERS.items():
        assert client.get(f"/{TOKEN}/state?annotator=a").headers[name] == value


@pytest.mark.parametrize("path", ["/", "/wrong/", "/secre/", "/secret2/state", "//", "/wrong/../x"])
def test_without_the_token_nothing_is_answered(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 403 and "rows" not in answer.json()
    assert answer.headers["content-security-policy"]


@pytest.mark.parametrize("host", ["evil.com", "127.0.0.1.evil.com", "127.0.0.1:8765:80", "localhost.", "", "127.0.0.2"])
def test_other_hosts_are_refused(client: TestClient, host: str) -> None:
    assert client.get(f"/{TOKEN}/", headers={"host": host}).status_code == 403


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "localhost:9000", "LOCALHOST", "[::1]:1"])
def test_this_machine_by_all_its_names_is_answered(client: TestClient, host: str) -> None:
    origin = {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}
    assert client.post(f"/{TOKEN}/next", json={"annotator": "ada"}, headers=origin).status_code == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.com", "null", "https://127.0.0.1:8765", "http://127.0.0.1:1", "http://localhost:8765"]
)
def test_other_origins_are_refused(client: TestClient, session: Session, origin: str) -> None:
    sent = {"annotator": "ada", "rows": [0], "label": "cat"}
    assert client.post(f"/{TOKEN}/label", json=sent, headers={"origin": origin}).status_code == 403
    assert client.post(f"/{TOKEN}/label", json=sent, headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert session.answers.rows() == []


def test_only_json_is_taken(client: TestClient, session: Session) -> None:
    sent = json.dumps({"annotator": "ada", "rows": [0], "label": "cat"})
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        assert client.post(f"/{TOKEN}/label", content=sent, headers={"content-type": kind}).status_code == 415
    headers = {"content-type": "application/json; charset=utf-8"}
    for wrong in (b"", b"{", b"[1]", b"\xff\xfe", b"3", b"[" * 50_000, b'{"rows": ' + b"9" * 5_000 + b"}"):
        assert client.post(f"/{TOKEN}/label", content=wrong, headers=headers).status_code == 400
    huge = client.post(f"/{TOKEN}/label", content=b" " * (serve.MOST_BYTES + 1), headers=headers)
    assert huge.status_code == 413 and session.answers.rows() == []
    assert client.post(f"/{TOKEN}/label", content=sent, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "image/40",
        "image/-1",
        "image/../labels.csv",
        "image/..%2f..%2flabels.csv",
        "image/00.png",
        "image/99999999999999999999999",
        "labels.csv",
        "..%2flabels.csv",
        "../state",
        "%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "static/x",
        "state/",
    ],
)
def test_no_path_leads_to_a_file(client: TestClient, tmp_path: Path, path: str) -> None:
    (tmp_path / "labels.csv").write_text("file,label\n")
    assert client.get(f"/{TOKEN}/{path}").status_code in (400, 403, 404)


def test_what_is_asked_with_a_wrong_method_or_value_is_refused(client: TestClient) -> None:
    assert client.get(f"/{TOKEN}/label").status_code == 405 and client.delete(f"/{TOKEN}/state").status_code == 405
    assert client.options(f"/{TOKEN}/label").status_code == 405  # no other site is told that it may
    for query in ("", "?annotator=", "?annotator=ada&view=none", "?annotator=given"):
        answer = client.get(f"/{TOKEN}/state{query}")
        assert answer.status_code == 400 and answer.json()["error"]


def test_a_session_over_http(client: TestClient, session: Session, pupil: Pupil) -> None:
    state = client.get(f"/{TOKEN}/state", params={"annotator": "ada"}).json()
    rows = [row["row"] for row in state["rows"]]
    image = client.get(f"/{TOKEN}/image/{rows[0]}")
    assert image.headers["content-type"] == "image/png" and _pixels(image.content).shape == (6, 6)
    for some, label in ((rows[:2], "even"), (rows[2:4], "<odd>")):
        state = client.post(f"/{TOKEN}/label", json={"annotator": "ada", "rows": some, "label": label}).json()
    assert [row["label"] for row in state["rows"]][:5] == ["even", "even", "<odd>", "<odd>", None]
    assert state["classes"] == [{"name": "even", "key": "1"}, {"name": "<odd>", "key": "2"}]
    pupil.finish()
    assert client.get(f"/{TOKEN}/state?annotator=ada").json()["fits"][0]["calibration_error"] is None  # NaN is no JSON
    state = client.post(f"/{TOKEN}/undo", json={"annotator": "ada"}).json()
    assert state["progress"]["labelled"] == 2
    state = client.post(f"/{TOKEN}/skip", json={"annotator": "ada", "rows": rows[2:3]}).json()
    assert [row["skipped"] for row in state["rows"] if row["row"] == rows[2]] == [True]
    assert (
        client.post(f"/{TOKEN}/class", json={"annotator": "ada", "label": "new"}).json()["classes"][-1]["name"] == "new"
    )


def test_posts_at_once_are_all_kept(client: TestClient, session: Session, tmp_path: Path) -> None:
    codes: list[int] = []

    def post(row: int) -> None:
        sent = {"annotator": f"person {row % 3}", "rows": [row], "label": f"label {row % 2}"}
        codes.append(client.post(f"/{TOKEN}/label", json=sent).status_code)

    threads = [threading.Thread(target=post, args=(row,)) for row in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [200] * 12 and len(lines(tmp_path / "labels.csv")) == 12


def test_what_the_disk_refuses_is_told(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "labels.csv")

    monkeypatch.setattr("pyrovae.app.jobs.label.answers.write_file", full)
    answer = client.post(f"/{TOKEN}/label", json={"annotator": "ada", "rows": [0], "label": "cat"})
    assert answer.status_code == 500 and answer.json()["error"] == "not saved: No space left on device: labels.csv"


def test_a_fault_is_an_answer_which_the_page_does_not_ask_for_again(
    client: TestClient, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "skip", lambda *_: [][0])
    answer = client.post(f"/{TOKEN}/skip", json={"annotator": "ada", "rows": [0]})
    assert answer.status_code == 500 and "please report it (IndexError: list index" in answer.json()["error"]


# --- the command -----------------------------------------------------------------------------------------------------


def test_mistakes_of_the_command_are_told_before_anything_is_served(
    pyrovae: Command, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = pyrovae("label", photos, "--page", "--port", port)
        assert code == 2 and f"--port {port} is taken" in err
    for folder in ("run", "out"):
        (tmp_path / folder).mkdir()
    for name in ("other.csv", "run/labels.csv", "run/predictions.csv"):
        (tmp_path / name).write_text("file,label\n00.png,a\n01.png,b\n02.png,b\n")
    for words, says in (
        (("--page", "--out", "other.csv"), "not a file that the page has written"),
        (("--page", "--out", "labels.txt"), "labels are written as .csv"),
        (("--page", "--labels", "nowhere.csv"), "no file"),
        (
            ("--page", "--run", "run", "--labels", "run/labels.csv"),
            "leave --labels out, since the page reads it by itself",
        ),
        (
            ("--page", "--run", "run", "--labels", "run/predictions.csv"),
            "run/predictions.csv would be replaced: give a copy",
        ),
        (("--run", "run", "--labels", "run/labels.csv", "--force"), "run/labels.csv would be replaced: give a copy"),
        (("--page", "--run", "out", "--out", "out/predictions.csv"), "where the model writes its predictions"),
        (("--page", "--hidden", "3,4"), "--hidden is one width"),
        (("--page", "--format", "label-studio"), "no --format"),
        (("--port", "8765"), "--port is for --page"),
        (("--format", "xml"), "must be csv or label-studio"),
    ):
        code, _, err = pyrovae("label", photos, *words)
        assert code == 2 and says in " ".join(err.split()), err
    (tmp_path / "empty").mkdir()
    code, _, err = pyrovae("label", "empty", "--page")
    assert code == 2 and "holds no image" in err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = pyrovae("label", photos, "--page")
    assert code == 2 and "pip install 'pyrovae[page]'" in " ".join(err.split())
    with pytest.raises(MissingPackageError):
        serve.refuse_without_packages()


def test_the_command_serves_until_it_is_stopped(
    pyrovae: Command, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def once(app: Any, listening: socket.socket) -> None:
        seen["port"] = listening.getsockname()
        with TestClient(app, base_url="http://localhost") as client:
            seen["refused"] = client.get("/").status_code

    monkeypatch.setattr("pyrovae.app.pages.label.serve", once)
    code, out, err = pyrovae("label", photos, "--page")
    assert code == 0, err
    assert seen["port"][0] == "127.0.0.1" and seen["refused"] == 403
    tokens = re.findall(r"Open http://127\.0\.0\.1:\d+/([\w-]{32})/ \(Ctrl-C ends it\)", out)
    assert len(tokens) == 1 and (tmp_path / "runs" / "photos-labels" / "run.json").exists()

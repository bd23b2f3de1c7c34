"""The page of exploring: what the server answers to whom, and what the command refuses."""

import json
import math
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient
from support.command import Command
from support.exploring import gaussian
from support.programs import ROWS

import pyrovae as pv
from pyrovae.app.jobs.explore import Explorer
from pyrovae.app.pages import explore as page
from pyrovae.app.pages import serve


@pytest.fixture(scope="module")
def plain() -> Explorer:
    return gaussian()


# --- the server ------------------------------------------------------------------------------------------------------

TOKEN = "secret"


@pytest.fixture
def client(plain: Explorer) -> Iterator[TestClient]:
    app = page.explore_app(plain, TOKEN)
    with TestClient(app, base_url="http://127.0.0.1:8765", raise_server_exceptions=False) as found:
        yield found


def test_the_page_holds_all_that_it_needs_and_may_load_nothing_else(client: TestClient) -> None:
    answer = client.get(f"/{TOKEN}/")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy
    assert "http:" not in re.sub(r'"http://www.w3.org/2000/svg"', "", answer.text) and "https:" not in answer.text
    assert " style=" not in answer.text and "innerHTML" not in answer.text and not re.search(r"\son\w+=", answer.text)
    for name, value in serve.HEADERS.items():
        assert client.get(f"/{TOKEN}/state").headers[name] == value


def test_only_this_machine_s_own_page_is_answered(client: TestClient) -> None:
    sent: dict[str, Any] = {"held": {"z": [0.0, 0.0]}}
    assert client.post(f"/{TOKEN}/decode", json=sent).status_code == 200
    for path in ("/decode", "/wrong/decode", "/secre/decode", "/"):
        assert client.post(path, json=sent).status_code == 403
    for headers in (
        {"host": "evil.com"},
        {"host": "127.0.0.1.evil.com"},
        {"origin": "http://evil.com"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ):
        answer = client.post(f"/{TOKEN}/decode", json=sent, headers=headers)
        assert answer.status_code == 403 and set(answer.json()) == {"error"}
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = client.post(f"/{TOKEN}/decode", content=json.dumps(sent), headers={"content-type": kind})
        assert answer.status_code == 415
    for method, path in (("GET", "decode"), ("GET", "row"), ("POST", "state"), ("DELETE", "state"), ("OPTIONS", "row")):
        assert (
            client.request(method, f"/{TOKEN}/{path}", headers={"content-type": "application/json"}).status_code == 405
        )
    for path in ("run.json", "../run.json", "%2e%2e/etc/passwd", "state/", "static/x"):
        assert client.get(f"/{TOKEN}/{path}").status_code in (403, 404)


def test_what_is_no_question_is_refused_in_one_line(client: TestClient) -> None:
    headers = {"content-type": "application/json"}
    for wrong in (b"", b"{", b"[1]", b"\xff\xfe", b"null", b"[" * 50_000, b'{"seed": ' + b"9" * 5_000 + b"}"):
        for path in ("decode", "row"):
            answer = client.post(f"/{TOKEN}/{path}", content=wrong, headers=headers)
            assert answer.status_code == 400 and "\n" not in answer.json()["error"]
    huge = client.post(f"/{TOKEN}/decode", content=b" " * (page.MOST_BYTES + 1), headers=headers)
    assert huge.status_code == 413
    for text in (
        '{"held": {"z": [NaN, 0]}}',
        '{"held": {"z": [Infinity, 0]}}',
        '{"held": {"z": [1e999, 0]}}',
        '{"held": {"z": [0]}}',
        '{"held": {"y": [0]}}',
        '{"held": null}',
        '{"given": {"c": "seven"}}',
        '{"seed": 1e999}',
        '{"seed": NaN}',
    ):
        answer = client.post(f"/{TOKEN}/decode", content=text, headers=headers)
        assert answer.status_code == 400 and answer.json()["error"], text
    for row in ("NaN", "-1", "40", '"1"', "null", "[]", "1e30"):
        assert client.post(f"/{TOKEN}/row", content=f'{{"row": {row}}}', headers=headers).status_code == 400


def test_numbers_that_json_does_not_have_are_null(
    client: TestClient, plain: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain, "decode", lambda sent: {"total": -math.inf, "less_dense": math.nan})
    app = page.explore_app(plain, TOKEN)
    with TestClient(app, base_url="http://localhost") as other:
        assert other.post(f"/{TOKEN}/decode", json={}).json() == {"total": None, "less_dense": None}


def test_a_fault_is_an_answer(plain: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "decode", lambda sent: [][0])
    with TestClient(
        page.explore_app(plain, TOKEN), base_url="http://localhost", raise_server_exceptions=False
    ) as other:
        answer = other.post(f"/{TOKEN}/decode", json={})
    assert answer.status_code == 500 and "please report it (IndexError" in answer.json()["error"]


def test_questions_at_once_have_the_answers_that_they_have_one_by_one(client: TestClient, plain: Explorer) -> None:
    asked = [{"seed": seed, "held": {"z": [seed / 4, 0.0]} if seed % 2 else {}} for seed in range(8)]
    expected = [plain.decode(sent) for sent in asked]
    found: dict[int, Any] = {}

    def ask(number: int) -> None:
        found[number] = client.post(f"/{TOKEN}/decode", json=asked[number]).json()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(len(asked))] == expected


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_serves_a_run_until_it_is_stopped(
    pyrovae: Command, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def once(app: Any, listening: socket.socket) -> None:
        seen["address"] = listening.getsockname()[0]
        with TestClient(app, base_url="http://localhost") as client:
            seen["refused"] = client.get("/").status_code

    monkeypatch.setattr("pyrovae.app.pages.explore.serve", once)
    code, out, err = pyrovae("explore", finished_run)
    assert code == 0, err
    assert seen == {"address": "127.0.0.1", "refused": 403}
    assert re.fullmatch(r"Open http://127\.0\.0\.1:\d+/[\w-]{32}/ \(Ctrl-C ends it\)", out.strip())


def test_a_pair_that_was_saved_in_python_is_explored_without_data(
    pyrovae: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyrovae.app.pages.explore.serve", lambda app, listening: None)
    row = ROWS["multimodal"]
    torch.manual_seed(0)
    pv.save(pv.fit(row.build(), row.data(), epochs=0, engine="eager", progress=False), tmp_path / "two")
    code, out, err = pyrovae("explore", tmp_path / "two")
    assert code == 0 and out.startswith("Open http"), err
    found = Explorer.open(tmp_path / "two", device="cpu").describe()
    assert found["rows"] == 0 and found["outputs"] == ["x1", "x2"] and "points" not in found["sites"][0]
    row = ROWS["regression"]
    pv.save(pv.fit(row.build(), row.data(), epochs=0, engine="eager", progress=False), tmp_path / "none")
    code, out, err = pyrovae("explore", tmp_path / "none")
    assert code == 2 and not out and "There is nothing to explore" in err and err.count("\n") == 1


def test_mistakes_of_the_command_are_told_before_anything_is_served(
    pyrovae: Command, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyrovae.app.pages.explore.serve", lambda app, listening: pytest.fail("it is served"))
    code, _, err = pyrovae("explore", tmp_path)
    assert code == 2 and "not a run folder" in err
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "run.json").write_text('{"format": 1, "pyrovae": "0.2.1", "status": "running"}')
    code, _, err = pyrovae("explore", tmp_path / "killed")
    assert code == 2 and err.startswith("Error: ") and "Traceback" not in err and "resume" in err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = pyrovae("explore", finished_run, "--port", port)
        assert code == 2 and f"--port {port} is taken" in err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = pyrovae("explore", finished_run)
    assert code == 2 and "pip install 'pyrovae[page]'" in " ".join(err.split())

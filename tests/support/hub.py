"""As much of the Hugging Face Hub as its own library asks for to push and pull a model, on a port of this machine."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants


@dataclass
class Hub:
    """The models of a hub: by name, the content of files by path."""

    models: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    closed: bool = False  # to all, as without a token
    asked: list[str] = field(default_factory=list)
    commits: list[str] = field(default_factory=list)

    def commit_of(self, name: str) -> str:
        parts = [f"{path} {hashlib.sha1(content).hexdigest()}" for path, content in sorted(self.models[name].items())]
        return hashlib.sha1("\n".join(parts).encode()).hexdigest()


class Answers(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *words: Any) -> None:
        pass

    def answer(self, status: int, content: Any = None, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {"content-type": "application/json"}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self) -> None:
        self.answer(401, {"error": "closed"}, {"x-error-code": "RepoNotFound", "x-error-message": "Not found"})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.asked.append(f"{self.command} {path}")
        if hub.closed:
            self.refuse()
            return
        words = path.strip("/").split("/")
        name = "/".join(words[2:4] if words[0] == "api" else words[:2])
        if name not in hub.models:
            self.refuse()
            return
        files, commit = hub.models[name], hub.commit_of(name)
        if words[0] == "api" and "tree" in words:
            blobs = {p: hashlib.sha1(content).hexdigest() for p, content in files.items()}
            self.answer(200, [{"type": "file", "path": p, "oid": blobs[p], "size": len(files[p])} for p in files])
        elif words[0] == "api":
            self.answer(
                200,
                {
                    "id": name,
                    "sha": commit,
                    "private": hub.private[name],
                    "siblings": [{"rfilename": p} for p in files],
                },
            )
        elif words[4] in files:
            content = files[words[4]]
            headers = {"etag": f'"{hashlib.sha1(content).hexdigest()}"', "x-repo-commit": commit}
            self.answer(200, content, headers)
        else:
            self.answer(404, {}, {"x-error-code": "EntryNotFound"})

    def do_POST(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.asked.append(f"POST {path}")
        here = f"http://{self.headers['host']}"
        sent = self.rfile.read(int(self.headers["content-length"]))
        if hub.closed:
            self.refuse()
        elif path == "/api/repos/create":
            given = json.loads(sent)
            name = f"{given['organization']}/{given['name']}" if given.get("organization") else given["name"]
            known = name in hub.models
            hub.models.setdefault(name, {})
            hub.private.setdefault(name, given.get("private", given.get("visibility") == "private"))
            self.answer(409 if known else 200, {"url": f"{here}/{name}"})
        elif "/preupload/" in path:
            files = json.loads(sent)["files"]
            self.answer(200, {"files": [{**f, "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif "/commit/" in path:
            name = "/".join(path.strip("/").split("/")[2:4])
            for line in map(json.loads, sent.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    hub.models[name][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "deletedFile":
                    del hub.models[name][value["path"]]
                else:
                    hub.commits.append(value["summary"])
            commit = hub.commit_of(name)
            self.answer(200, {"commitUrl": f"{here}/{name}/commit/{commit}", "commitOid": commit, "success": True})
        else:
            self.answer(200, {})


@contextmanager
def serving(patch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """Let the library talk to a hub of this machine, and keep what it downloads in a folder."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OfHub", (Answers,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    patch.setattr(constants, "ENDPOINT", address)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        patch.delenv(name, raising=False)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

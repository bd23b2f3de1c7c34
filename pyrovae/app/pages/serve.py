"""A page that is served to the browsers of this machine, and to nobody else.

The address has a token, without which nothing is answered. A page of another site cannot use the server in the name of a
visitor: its requests have another `Origin`, or, if it has made its own name an address of this machine, another `Host`. The
page itself can load and run only what it came with (Content-Security-Policy).
"""

from __future__ import annotations

import base64
import errno
import hashlib
import hmac
import importlib.util
import json
import re
import secrets
import socket
from collections.abc import Callable
from importlib import resources
from typing import TYPE_CHECKING, Any

from pyrovae._json import of_json
from pyrovae._lazily import Lazily
from pyrovae.errors import DataError, MissingPackageError, OptionError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

uvicorn = Lazily("uvicorn")

ADDRESS = "127.0.0.1"
HOSTS = ("127.0.0.1", "localhost", "[::1]")  # with any port, since ssh may forward one
MOST_BYTES = 64 * 1024  # of what is sent
HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
_PORT = re.compile(r":\d{1,5}$")


def refuse_without_packages() -> None:
    """MissingPackageError unless what serves a page is installed."""
    if missing := [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]:
        raise MissingPackageError(
            f"a page needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
            "pip install 'pyrovae[page]'."
        )


def read_page(name: str) -> tuple[str, str]:
    """A page of this folder, and the policy by which it may load and run nothing but its own script and style."""
    text = resources.files("pyrovae.app.pages").joinpath(name).read_text(encoding="utf-8")
    hashes = {}
    for tag in ("script", "style"):
        parts = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        sums = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in parts]
        hashes[tag] = " ".join(f"'sha256-{one}'" for one in sums)
    policy = (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


def new_token() -> str:
    """A word that nobody can guess."""
    return secrets.token_urlsafe(24)


class Guard:
    """Answer only requests that know the token, come from this machine's own pages, and are small.

    The path of a request is `/TOKEN/...`; the application sees what follows the token.

    Args:
        app: What answers them.
        token: The token.
        policy: The Content-Security-Policy of all answers.
    """

    def __init__(self, app: ASGIApp, token: str, policy: str) -> None:
        self.app, self.token = app, token
        self.headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
        self.headers.append((b"content-security-policy", policy.encode()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        if scope["type"] != "http":
            return  # websockets are not answered

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *self.headers]}
            await send(message)

        token, _, rest = scope["path"].removeprefix("/").partition("/")
        refused = self._refusal(scope, token)
        if refused is not None:
            await _answer(send_guarded, *refused)
            return
        path = "/" + rest
        await self.app({**scope, "path": path, "raw_path": path.encode(), "root_path": ""}, receive, send_guarded)

    def _refusal(self, scope: Scope, token: str) -> tuple[int, str] | None:
        """The status and the reason for which a request is refused, None for one that is answered."""
        headers: dict[bytes, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value.decode("latin-1"))
        host = headers.get(b"host", [])
        if len(host) != 1 or _PORT.sub("", host[0].lower()) not in HOSTS:
            return 403, "this page is served to this machine only"
        for origin in headers.get(b"origin", []):
            if origin.lower() != f"http://{host[0].lower()}":
                return 403, "this page takes no requests of other pages"
        for site in headers.get(b"sec-fetch-site", []):
            if site not in ("same-origin", "none") and scope["method"] != "GET":
                return 403, "this page takes no requests of other pages"
        if not hmac.compare_digest(token.encode(errors="replace"), self.token.encode()):
            return 403, "the address is not complete: open the one that was printed last"
        if scope["method"] == "POST":
            kinds = [kind.partition(";")[0].strip().lower() for kind in headers.get(b"content-type", [])]
            if kinds != ["application/json"]:
                return 415, "what is sent must be JSON"
        return None


async def _answer(send: Callable[[Message], Any], status: int, reason: str) -> None:
    """An error as the page reads it."""
    body = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class TooLarge(Exception):
    """More was sent than the page ever sends."""


async def read_json(request: Request, most: int = MOST_BYTES) -> dict[str, Any]:
    """The JSON object that a request holds.

    Raises:
        TooLarge: It has more bytes than `most`, of which no more than that are read.
        DataError: It is no JSON object.
    """
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > most:
            raise TooLarge
    try:
        found = of_json(content.decode())
    except (ValueError, RecursionError) as error:
        raise DataError("what was sent is not JSON.") from error
    if not isinstance(found, dict):
        raise DataError("what was sent is not a JSON object.")
    return found


def listen(port: int) -> socket.socket:
    """A socket of this machine's own address; of any free port for 0.

    Raises:
        OptionError: The port is taken, or may not be used.
    """
    try:
        return socket.create_server((ADDRESS, port))
    except OSError as error:
        why = {errno.EADDRINUSE: "is taken", errno.EACCES: "is reserved for the system"}.get(error.errno or 0)
        raise OptionError(
            f"--port {port} {why or f'cannot be used ({error.strerror})'}: choose another, such as 8765, or leave --port out "
            "for one that is free."
        ) from error


def address_of(listening: socket.socket, token: str) -> str:
    """What to open in the browser."""
    return f"http://{ADDRESS}:{listening.getsockname()[1]}/{token}/"


def serve(app: ASGIApp, listening: socket.socket) -> None:
    """Answer requests until the process is stopped."""
    config = uvicorn.Config(
        app,
        log_level="critical",  # a request whose browser has gone needs no traceback; errors are answered
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        http="h11",
        loop="asyncio",
        proxy_headers=False,
        limit_concurrency=100,
        timeout_graceful_shutdown=1,
    )
    uvicorn.Server(config).run(sockets=[listening])

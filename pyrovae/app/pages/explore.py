"""The page of `pyrovae explore`: a fitted model, over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from pyrovae.app.jobs.explore import Explorer
from pyrovae.app.pages.answers import Answering, answered, as_json, guarded
from pyrovae.app.pages.serve import address_of, listen, new_token, read_json, read_page, serve

PAGE = "explore.html"
MOST_BYTES = 4 * 1024 * 1024  # of what is sent: hierarchies of images have many latent dimensions


def explore_in_browser(explorer: Explorer, port: int, *, say: Callable[[str], None]) -> None:
    """Serve a page about a fitted model until the process is stopped.

    Args:
        explorer: The model.
        port: Of the page; 0 for any.
        say: Called with the address.

    Raises:
        OptionError: The port is taken.
    """
    with listen(port) as listening:
        token = new_token()
        say(f"Open {address_of(listening, token)} (Ctrl-C ends it)")
        serve(explore_app(explorer, token), listening)


def explore_app(explorer: Explorer, token: str) -> ASGIApp:
    """The application that answers those who know the token.

    Args:
        explorer: The model.
        token: The first part of all paths.
    """
    text, policy = read_page(PAGE)

    async def page(request: Request) -> Response:
        return HTMLResponse(text)

    async def state(request: Request) -> Response:
        return as_json(await run_in_threadpool(explorer.describe))

    def asking(question: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Answering:
        async def post(request: Request) -> Response:
            return as_json(await run_in_threadpool(question, await read_json(request, MOST_BYTES)))

        return post

    routes = [
        Route("/", answered(page)),
        Route("/state", answered(state)),
        Route("/decode", answered(asking(explorer.decode)), methods=["POST"]),
        Route("/row", answered(asking(explorer.start_from)), methods=["POST"]),
    ]
    return guarded(routes, token, policy)

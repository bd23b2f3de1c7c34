"""The page of `pyrovae label --page`: a session of labelling, over HTTP."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from pyrovae._files import refuse_leaving
from pyrovae._start import advising
from pyrovae.app.jobs.label.job import LABELS, PREDICTIONS, refuse_folder
from pyrovae.app.jobs.label.learning import Worker, quick
from pyrovae.app.jobs.label.reading import Job
from pyrovae.app.jobs.label.session import Session
from pyrovae.app.options import Options
from pyrovae.app.pages.answers import Answering, answered, as_json, guarded
from pyrovae.app.pages.serve import address_of, listen, new_token, read_json, read_page, serve
from pyrovae.errors import OptionError
from pyrovae.fitted.files import claim_folder
from pyrovae.fitted.lock import locked

PAGE = "label.html"


def label_in_browser(
    job: Job,
    options: Options,
    folder: Path,
    to: Path | None,
    port: int,
    *,
    say: Callable[[str], None],
    **how: Any,
) -> None:
    """Serve a session of labelling until the process is stopped.

    Args:
        job: The rows.
        options: As of `Options.of("label", ...)`.
        folder: The run folder, which is made if it is not there.
        to: The file of labels; by default labels.csv in the folder.
        port: Of the page; 0 for any.
        say: Called with the address.
        how: As for `label_rows`.

    Raises:
        OptionError: An option is impossible, the port is taken, or the file of labels cannot be written or is another's.
        CheckpointError: Another page is at work with the folder.
    """
    quick(options, job)
    path = folder / LABELS if to is None else to
    with listen(port) as listening:
        refuse_folder(folder, job, fresh=bool(how.get("fresh")))
        claim_folder(folder, force=True)
        _refuse_unwritable(path, folder)
        with locked(folder):
            session = Session(job, path, Worker(job, options, folder, **how), folder=folder, seed=options.seed)
            token = new_token()
            say(f"Open {address_of(listening, token)} (Ctrl-C ends it)")
            say(f"Labels: {path}")
            try:
                with advising(lambda: f"the page has ended; all labels are in {path}, and the same command goes on"):
                    serve(label_app(session, token), listening)
            finally:
                session.close()


def _refuse_unwritable(path: Path, folder: Path) -> None:
    """OptionError unless the file of labels can be written, and nothing else writes it."""
    if path.suffix.lower() != ".csv":
        raise OptionError(f"--out {path}: labels are written as .csv.")
    if path.exists() and not path.is_file():
        raise OptionError(f"{path} is not a file: give the name of one by --out.")
    if path.absolute() == (folder / PREDICTIONS).absolute():
        raise OptionError(f"--out {path} is where the model writes its predictions: give another name.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OptionError(f"{path} cannot be written, since its folder is read-only: give a file elsewhere by --out.")
    refuse_leaving(path)


def label_app(session: Session, token: str) -> ASGIApp:
    """The application that serves a session to those who know the token.

    Args:
        session: The session.
        token: The first part of all paths.
    """
    text, policy = read_page(PAGE)

    async def page(request: Request) -> Response:
        return HTMLResponse(text)

    async def state(request: Request) -> Response:
        query = request.query_params
        return await _state(session, query.get("annotator"), query.get("view", "next"))

    async def image(request: Request) -> Response:
        content = await run_in_threadpool(session.image, request.path_params["row"])
        return Response(content, media_type="image/png")

    def doing(act: Callable[[dict[str, Any]], Any]) -> Answering:
        """Do something with what was sent, and answer with the state after it."""

        async def post(request: Request) -> Response:
            sent = await read_json(request)
            await run_in_threadpool(act, sent)
            return await _state(session, sent.get("annotator"), sent.get("view", "next"))

        return post

    acts: dict[str, Callable[[dict[str, Any]], Any]] = {
        "label": lambda sent: session.label(sent.get("annotator"), sent.get("rows"), sent.get("label")),
        "skip": lambda sent: session.skip(sent.get("annotator"), sent.get("rows")),
        "undo": lambda sent: session.undo(sent.get("annotator")),
        "next": lambda sent: session.next(sent.get("annotator")),
        "class": lambda sent: session.add_class(sent.get("label")),
    }
    routes = [
        Route("/", answered(page)),
        Route("/state", answered(state)),
        Route("/image/{row:int}", answered(image)),
        *(Route(f"/{name}", answered(doing(act), "not saved"), methods=["POST"]) for name, act in acts.items()),
    ]
    return guarded(routes, token, policy)


async def _state(session: Session, annotator: object, view: object) -> Response:
    return as_json(await run_in_threadpool(session.state, annotator, str(view)))

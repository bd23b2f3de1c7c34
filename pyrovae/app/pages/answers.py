"""What the applications behind pages have in common: their answers are JSON, and so are their errors."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from pyrovae.app.pages.serve import Guard, TooLarge
from pyrovae.errors import PyrovaeError, shortened

Answering = Callable[[Request], Awaitable[Response]]


def guarded(routes: Sequence[BaseRoute], token: str, policy: str) -> ASGIApp:
    """The application with these routes, which are answered to those who know the token."""
    app = Starlette(routes=routes)
    app.router.redirect_slashes = False  # a redirection would lose the token
    return Guard(app, token, policy)


def as_json(found: Any) -> Response:
    """An answer, with null for numbers that JSON does not have."""
    return Response(json.dumps(_finite(found), allow_nan=False), media_type="application/json")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def answered(endpoint: Answering, on_disk: str = "a file cannot be read") -> Answering:
    """An endpoint whose errors are answers: 400 for a mistake, 413 for too much, 500 for what the disk refuses, or a fault.

    The page sends again what was not answered, and would do so for ever. `on_disk` says what the disk has refused.
    """

    @functools.wraps(endpoint)
    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except TooLarge:
            return JSONResponse({"error": "what was sent is too large"}, 413)
        except PyrovaeError as error:
            return JSONResponse({"error": str(error)}, 400)
        except OSError as error:
            said = f"{error.strerror or error}: {error.filename}" if error.filename else str(error)
            return JSONResponse({"error": f"{on_disk}: {said}"}, 500)
        except Exception as error:
            said = f"{type(error).__name__}: {shortened(error)}"
            return JSONResponse({"error": f"the page has a fault, please report it ({said})"}, 500)

    return answer

"""A command line run in this process, and the type of the `pyrovae` fixture, which runs one in an empty folder."""

import contextlib
import importlib
import io
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

# (words of the command line) -> (exit code, stdout, stderr)
Command = Callable[..., tuple[int, str, str]]


def invoke(*words: Any) -> tuple[int, str, str]:
    """Run a command in the current folder: (exit code, stdout, stderr)."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    arguments = ["pyrovae", *map(str, words)]
    with mock.patch.object(sys, "argv", arguments), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            importlib.import_module("pyrovae.app.cli").main()  # only tests of the command line import it
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, out.getvalue(), err.getvalue()

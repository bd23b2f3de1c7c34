"""The command line: `pyrovae fit digits`, and commands that work with the run that it leaves."""

from pyrovae.app.cli import fitting, questions, sharing
from pyrovae.app.cli.entry import app, main

__all__ = ["app", "fitting", "main", "questions", "sharing"]

"""The command line: `pyrovae fit digits`, and commands that work with the run that it leaves."""

from pyrovae.app.cli import pages
from pyrovae.app.cli.commands import app, main

__all__ = ["app", "main", "pages"]

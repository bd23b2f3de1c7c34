"""The command line itself: what all commands share, and how a mistake ends."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pyrovae._lazily import Lazily
from pyrovae._version import __version__
from pyrovae.app.cli import parameters as take
from pyrovae.app.cli import tables
from pyrovae.errors import PyrovaeError, shortened

if TYPE_CHECKING:
    from pyrovae.app import run as runs
else:  # so that help, names and mistakes need not wait for torch
    runs = Lazily("pyrovae.app.run")


app = typer.Typer(
    help="Fit variational autoencoders to data, and work with the fitted models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
NO_MEMORY = ("can't allocate memory", "out of memory")  # as torch says it


@app.callback(invoke_without_command=True)
def version(show: take.Version = False) -> None:
    if show:
        typer.echo(f"pyrovae {__version__}")
        raise typer.Exit


def main() -> None:
    """Run a command. A mistake of the user ends in one line on stderr and exit code 2, never in a traceback."""
    try:
        app()
    except PyrovaeError as error:
        tables.complain(str(error))
        sys.exit(2)
    except OSError as error:
        tables.complain(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or any(said in str(error) for said in NO_MEMORY)):
            raise
        tables.complain(f"not enough memory ({shortened(error, 200)}): choose smaller sizes, or fewer rows or draws.")
        sys.exit(2)


def opened_run(
    run: Path, data: Path | None, data_root: Path | None, device: str, threads: int | None, trust: bool
) -> runs.Run:
    """A finished run with its data; it is said which file is read without having been typed."""
    how: dict[str, Any] = {"device": device, "threads": threads, "trust": trust, "say": tables.inform_line}
    return runs.open_run(run, data=data, data_root=data_root, **how)

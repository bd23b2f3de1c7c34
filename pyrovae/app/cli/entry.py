"""The command line itself: what all commands share, and how a mistake ends."""

from __future__ import annotations

import functools
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pyrovae._launch import launched, launched_rank
from pyrovae._lazily import Lazily
from pyrovae._version import __version__
from pyrovae.app.cli import parameters as take
from pyrovae.app.cli import tables
from pyrovae.errors import OptionError, PyrovaeError, short_of_memory, shortened

if TYPE_CHECKING:
    from pyrovae.app import run as runs
    from pyrovae.engine import ranks
else:  # so that help, names and mistakes need not wait for torch
    runs = Lazily("pyrovae.app.run")
    ranks = Lazily("pyrovae.engine.ranks")


app = typer.Typer(
    help="Fit variational autoencoders to data, and work with the fitted models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
HERE = Path(__file__).parents[2]
formatted = warnings.formatwarning
UNTIL_ENDED = 5.0  # seconds within which a launcher has ended the others of its processes after one that failed


@app.callback(invoke_without_command=True)
def version(context: typer.Context, show: take.Version = False) -> None:
    if show:
        typer.echo(f"pyrovae {__version__}")
        raise typer.Exit
    if launched() and context.invoked_subcommand == "fit":
        ranks.join()
    elif launched() and context.invoked_subcommand is not None:
        raise OptionError(
            f"`pyrovae {context.invoked_subcommand}` is for one process: start it without torchrun. Of the commands only "
            "`pyrovae fit` takes several."
        )


def said_plainly(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning of pyrovae's own without the line of code that gives it, which says nothing to the person at the keyboard."""
    if category is UserWarning and Path(filename).is_relative_to(HERE):
        return f"Warning: {message}\n"
    return formatted(message, category, filename, lineno, line)


@functools.cache
def command_line() -> Any:
    """All commands with their options, which typer makes of the functions; once a process, however many commands it runs."""
    return typer.main.get_command(app)


def main() -> None:
    """Run a command. A mistake of the user ends in one line on stderr and exit code 2, never in a traceback."""
    if launched_rank() > 0:  # the first process speaks for all
        tables.out.quiet = tables.err.quiet = True
        warnings.simplefilter("ignore")
    warnings.formatwarning = said_plainly
    try:
        command_line()()
    except PyrovaeError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))
    except (MemoryError, RuntimeError) as error:
        if not short_of_memory(error):
            raise
        _fail(f"not enough memory ({shortened(error, 200)}): choose smaller sizes, or fewer rows or draws.")
    finally:
        warnings.formatwarning = formatted


def _fail(message: str) -> None:
    """End the process with an error, which of several processes is told by the first that has one."""
    together = launched() and ranks.world_size() > 1
    if ranks.tells() if together else launched_rank() == 0:
        tables.err.quiet = False
        tables.complain(message)
    elif not together:
        time.sleep(UNTIL_ENDED)  # or the launcher could end the first process before it has told the same
    sys.exit(2)


def opened_run(
    run: Path, data: Path | None, data_root: Path | None, device: str, threads: int | None, trust: bool
) -> runs.Run:
    """A finished run with its data; it is said which file is read without having been typed."""
    how: dict[str, Any] = {"device": device, "threads": threads, "trust": trust, "say": tables.inform_line}
    return runs.open_run(run, data=data, data_root=data_root, **how)
